//! The canary of the comparison: a true file is edited, and each edit must be noticed for what it is.

use rusqlite::Connection;

use crate::common::proof::{Tally, Wrong};
use crate::process::plan::Run;
use crate::process::verify::{Answer, Ledger, Name, Told};

/// What is known of the command `?1`, `?2` when it is edited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Acked,
    Refused,
    /// Acknowledged, and nobody has heard of it.
    Unheard,
    /// Verified after an earlier kill.
    Verified,
}

const EDITS: [(Wrong, Known, &str); 15] = [
    (Wrong::Lost, Known::Acked, "DELETE FROM parts WHERE (task, seq) = (?1, ?2)"),
    (Wrong::Half, Known::Acked, "DELETE FROM parts WHERE (task, seq, part) = (?1, ?2, 1)"),
    (Wrong::Half, Known::Acked, "UPDATE tasks SET closures = closures - 1 WHERE (task, ?2) = (?1, ?2)"),
    (Wrong::Half, Known::Acked, "UPDATE tasks SET newest = ?2 WHERE task = ?1"),
    (
        Wrong::Half,
        Known::Acked,
        "INSERT INTO parts (task, seq, part, pad) SELECT task, seq, part, pad FROM parts
         WHERE (task, seq) = (?1, ?2)",
    ),
    (
        Wrong::Broken,
        Known::Acked,
        "UPDATE parts SET id = id + (SELECT max(id) FROM parts) WHERE (task, seq) = (?1, ?2)",
    ),
    (Wrong::Ghost, Known::Refused, "INSERT INTO parts (task, seq, part) VALUES (?1, ?2, 0)"),
    (Wrong::Half, Known::Unheard, "DELETE FROM parts WHERE (task, seq, part) = (?1, ?2, 0)"),
    (Wrong::Broken, Known::Unheard, "DELETE FROM parts WHERE (task, seq) = (?1, ?2)"),
    (Wrong::Lost, Known::Verified, "DELETE FROM parts WHERE (task, seq) = (?1, ?2)"),
    (Wrong::Ghost, Known::Verified, "INSERT INTO parts (task, seq, part) VALUES (?1, ?2, 0)"),
    (Wrong::Lost, Known::Acked, "DELETE FROM entries WHERE entry = 0 AND ?1 < ?2 + 1000"),
    (Wrong::Half, Known::Acked, "DELETE FROM entries WHERE entry = 0 AND half = 1 AND ?1 < ?2 + 1000"),
    (
        Wrong::Broken,
        Known::Acked,
        "INSERT INTO entries (entry, half) SELECT entry, half FROM entries WHERE entry = 0 AND ?1 < ?2 + 1000",
    ),
    (Wrong::Corrupt, Known::Acked, "INSERT INTO parts (task, seq, part) VALUES (-1 - ?1, ?2, 0)"),
];

/// Makes every edit, and undoes it again; the tally has one wrong for each that was noticed.
pub(super) fn edit(connection: &Connection, run: &Run, told: &Told) -> Tally {
    let mut noticed = Tally::default();
    for (how, known, sql) in EDITS {
        let name = pick(run, told, known);
        let mut ledger = Ledger::default();
        let (mut run, mut told) = (*run, told.clone());
        match known {
            Known::Acked | Known::Refused => {}
            Known::Unheard => drop(told.answers.remove(&name)),
            Known::Verified => {
                let mut before = Tally::default();
                ledger.verify(connection, &run, &told, &mut before);
                assert_eq!(before.wrongs(), 0, "{before:?}");
                (run, told) = (Run::new(run.seed, run.number + 1, None), Told::default());
            }
        }
        connection.execute_batch("BEGIN").unwrap();
        assert_ne!(connection.execute(sql, name).unwrap(), 0, "{sql}: {name:?}");
        let mut tally = Tally::default();
        ledger.verify(connection, &run, &told, &mut tally);
        connection.execute_batch("ROLLBACK").unwrap();
        assert!(tally.count(how) > 0, "{sql}: {tally:?} instead of {how:?}");
        noticed.wrong(how, || sql.into());
    }
    noticed
}

/// A command of several parts, and not the newest of its task; or one that was refused.
fn pick(run: &Run, told: &Told, known: Known) -> Name {
    let wanted = if known == Known::Refused { Answer::Refused } else { Answer::Acked };
    let is_older = |&(task, seq): &Name| {
        (seq + 1..seq + 20).any(|later| {
            let is_acked = told.answers.get(&(task, later)) == Some(&Answer::Acked);
            is_acked && run.command(task, later).counts()
        })
    };
    let mut names: Vec<_> = told.answers.keys().copied().collect();
    names.sort_unstable();
    let fits = |name: &Name| {
        let planned = run.command(name.0, name.1);
        told.answers[name] == wanted && planned.doing.parts > 1 && planned.counts() && is_older(name)
    };
    names.into_iter().find(fits).expect("a child of many answers has some of each kind")
}
