//! Compares a file with everything that was said of it.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _};

use super::plan::{IMPORT, Run, is_good_entry};
use super::points::Point;
use crate::common::proof::{Tally, Wrong};

/// What a command was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Acked,
    Refused,
    Unknown,
}

/// A task, and the number of one of its commands.
pub(crate) type Name = (i64, i64);

/// The words of one child.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    pub(crate) answers: HashMap<Name, Answer>,
    /// The newest entry of the import that was told to be imported.
    imported: Option<i64>,
    /// Where it killed itself.
    pub(crate) died: Option<Point>,
    pub(crate) wrongs: Vec<(Wrong, String)>,
    /// It came to its end instead of being killed.
    pub(crate) end: Option<String>,
    /// The service could not be opened, and why.
    pub(crate) unopened: Option<String>,
    /// Commands for which there was no memory.
    pub(crate) without_memory: u64,
}

impl Told {
    /// A word that was cut off was not said, and one that was said after the `end` does not count.
    pub(crate) fn parse(said: &[u8], end: Duration) -> Self {
        let said = String::from_utf8_lossy(said);
        let mut told = Self::default();
        for line in said.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let Some((time, said)) = line.strip_prefix('@').and_then(|line| line.split_once(' ')) else {
                continue;
            };
            if Duration::from_nanos(time.parse().unwrap()) >= end {
                continue;
            }
            let (word, rest) = said.split_once(' ').unwrap_or((said, ""));
            let mut numbers = rest.split(' ').map_while(|number| number.parse().ok());
            let mut next = || numbers.next().unwrap();
            match word {
                "acked" => drop(told.answers.insert((next(), next()), Answer::Acked)),
                "refused" => drop(told.answers.insert((next(), next()), Answer::Refused)),
                "unknown" => drop(told.answers.insert((next(), next()), Answer::Unknown)),
                "imported" => told.imported = Some(next()),
                "died" => told.died = Point::named(rest),
                "half" => told.wrongs.push((Wrong::Half, rest.into())),
                "end" => told.end = Some(rest.into()),
                "unopened" => told.unopened = Some(rest.into()),
                "without_memory" => told.without_memory += 1,
                _ => told.wrongs.push((Wrong::Broken, rest.into())),
            }
        }
        told
    }

    pub(crate) fn count(&self, answer: Answer) -> u64 {
        self.answers.values().filter(|told| **told == answer).count() as u64
    }

    /// Counts its answers, and what it has found itself.
    pub(crate) fn count_in(&self, tally: &mut Tally) {
        tally.add("acked", self.count(Answer::Acked));
        tally.add("refused", self.count(Answer::Refused));
        tally.add("unknown", self.count(Answer::Unknown));
        for (how, what) in &self.wrongs {
            tally.wrong(*how, || what.clone());
        }
    }
}

/// What is known of a file: what was verified is not looked at again row by row, but must stay as it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    parts: Settled,
    entries: Settled,
    /// The closures of each task, and the newest of them.
    closures: BTreeMap<i64, (i64, Option<i64>)>,
    /// Where the import goes on.
    next_entry: i64,
    /// Commands that are there, and whose answer nobody has heard.
    pub(crate) unanswered: u64,
}

/// The rows of a table up to the last one, and a sum over them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Settled {
    id: i64,
    rows: i64,
    sum: i64,
}

impl Ledger {
    /// Looks at the file after `run` was killed, which has `told` that much.
    pub(crate) fn verify(&mut self, connection: &Connection, run: &Run, told: &Told, tally: &mut Tally) {
        let mut look = || -> rusqlite::Result<()> {
            check(connection, tally)?;
            self.verify_commands(connection, run, told, tally)?;
            self.verify_import(connection, told, tally)
        };
        if let Err(error) = look() {
            tally.wrong(Wrong::Corrupt, || error.to_string());
        }
    }

    fn verify_commands(
        &mut self,
        connection: &Connection,
        run: &Run,
        told: &Told,
        tally: &mut Tally,
    ) -> rusqlite::Result<()> {
        let found = parts_after(connection, self.parts.id)?;
        self.parts.verify(connection, "parts", "task * 7919 + seq * 31 + part * 7 + length(pad)", tally)?;
        let mut present = BTreeMap::<Name, Vec<i64>>::new();
        let mut newest = BTreeMap::<i64, (i64, i64)>::new();
        for (name @ (task, seq), part) in found {
            present.entry(name).or_default().push(part);
            let before = newest.insert(task, (seq, part));
            tally.check(before < Some((seq, part)), Wrong::Broken, || {
                format!("task {task}: {:?} comes after {:?}", (seq, part), before)
            });
        }
        for (&name, parts) in &present {
            self.verify_present(run, told, name, parts, tally);
        }
        for (&name, answer) in &told.answers {
            let planned = run.command(name.0, name.1);
            let is_present = present.contains_key(&name);
            match answer {
                Answer::Acked => {
                    tally.check(is_present, Wrong::Lost, || format!("{name:?}: {planned:?}"));
                    tally.check(planned.is_good(), Wrong::Broken, || format!("{name:?} is told to be good"));
                }
                Answer::Refused => {
                    tally.check(!is_present, Wrong::Ghost, || format!("{name:?}: {planned:?}"));
                    let may_be = !planned.is_good() || run.may_be_undone(&planned);
                    tally.check(may_be, Wrong::Broken, || format!("{name:?} is refused: {planned:?}"));
                }
                Answer::Unknown => {
                    tally.check(run.may_be_unknown(), Wrong::Broken, || {
                        format!("{name:?} is unknown: {planned:?}")
                    });
                }
            }
        }
        // What one task sends takes effect in order, so nothing is missing before what is there.
        for (&task, &(newest, _)) in &newest {
            for seq in 0..newest {
                let planned = run.command(task, seq);
                let is_missing = planned.is_good()
                    && !present.contains_key(&(task, seq))
                    && !told.answers.contains_key(&(task, seq))
                    && !run.may_be_undone(&planned);
                tally.check(!is_missing, Wrong::Broken, || {
                    format!("{:?} is missing, {newest} is there", (task, seq))
                });
            }
        }
        self.verify_closures(connection, run, &present, tally)
    }

    fn verify_present(&mut self, run: &Run, told: &Told, name: Name, parts: &[i64], tally: &mut Tally) {
        let (task, seq) = name;
        if !run.tasks().contains(&task) {
            tally.wrong(Wrong::Ghost, || format!("{name:?} comes back from an earlier life"));
            return;
        }
        let planned = run.command(task, seq);
        tally.check(planned.is_good(), Wrong::Ghost, || format!("{name:?} has failed: {planned:?}"));
        let is_whole = parts.iter().copied().eq(0..planned.doing.parts);
        tally.check(is_whole, Wrong::Half, || format!("{name:?} has {parts:?}: {planned:?}"));
        self.unanswered += u64::from(!told.answers.contains_key(&name));
    }

    /// Each closure has another row beside its parts: how many there were, and the newest.
    fn verify_closures(
        &mut self,
        connection: &Connection,
        run: &Run,
        present: &BTreeMap<Name, Vec<i64>>,
        tally: &mut Tally,
    ) -> rusqlite::Result<()> {
        for &(task, seq) in present.keys() {
            if run.command(task, seq).counts() {
                let (closures, newest) = self.closures.entry(task).or_default();
                *closures += 1;
                *newest = Some(seq);
            }
        }
        let mut statement = connection.prepare("SELECT task, closures, newest FROM tasks ORDER BY task")?;
        let rows = statement.query_map((), |row| Ok((row.get::<_, i64>(0)?, (row.get(1)?, row.get(2)?))))?;
        for row in rows {
            let (task, found) = row?;
            let wanted = self.closures.get(&task).copied().unwrap_or_default();
            tally.check(found == wanted, Wrong::Half, || {
                format!("task {task} counts {found:?} instead of {wanted:?}")
            });
        }
        Ok(())
    }

    /// The entries are those that the record says, in their order, each once and whole.
    fn verify_import(
        &mut self,
        connection: &Connection,
        told: &Told,
        tally: &mut Tally,
    ) -> rusqlite::Result<()> {
        let found = entries_after(connection, self.entries.id)?;
        self.entries.verify(connection, "entries", "entry * 31 + half", tally)?;
        let (next_entry, accepted, failed) = record(connection)?.unwrap_or_default();
        let good = |entries: std::ops::Range<i64>| entries.filter(|entry| is_good_entry(*entry));
        let wanted: Vec<_> =
            good(self.next_entry..next_entry).flat_map(|entry| [(entry, 0), (entry, 1)]).collect();
        tally.check(found == wanted, how_entries_differ(&found, &wanted), || {
            let (first, last) = (self.next_entry, next_entry);
            let place = found.iter().zip(&wanted).position(|(found, wanted)| found != wanted);
            format!("entries {first}..{last}: {} instead of {}, at {place:?}", found.len(), wanted.len())
        });
        let good = good(0..next_entry).count() as i64;
        tally.check((accepted, failed) == (good, next_entry - good), Wrong::Broken, || {
            format!("the record has {accepted} and {failed} of {next_entry} entries")
        });
        tally.check(told.imported < Some(next_entry), Wrong::Lost, || {
            format!("entry {:?} was imported, and the next is {next_entry}", told.imported)
        });
        self.next_entry = next_entry;
        Ok(())
    }
}

impl Settled {
    /// Nothing has happened to the rows that were verified before; from now on this includes the new ones.
    fn verify(
        &mut self,
        connection: &Connection,
        table: &str,
        of_row: &str,
        tally: &mut Tally,
    ) -> rusqlite::Result<()> {
        let until = |id: i64| {
            let sql = format!(
                "SELECT coalesce(max(id), 0), count(*), coalesce(sum(id * 3 + {of_row}), 0) FROM {table} WHERE id <= ?1"
            );
            connection.query_row(&sql, [id], |row| {
                Ok(Self { id: row.get(0)?, rows: row.get(1)?, sum: row.get(2)? })
            })
        };
        let now = until(self.id)?;
        let how = if now.rows < self.rows { Wrong::Lost } else { Wrong::Broken };
        tally.check(now == *self, how, || {
            format!("what was verified of {table} is now {now:?}, and was {self:?}")
        });
        *self = until(i64::MAX)?;
        Ok(())
    }
}

/// Whether SQLite finds the file intact and every foreign key satisfied.
fn check(connection: &Connection, tally: &mut Tally) -> rusqlite::Result<()> {
    let intact: String = connection.query_row("PRAGMA integrity_check", (), |row| row.get(0))?;
    tally.check(intact == "ok", Wrong::Corrupt, || intact.clone());
    let is_violated = connection.prepare("PRAGMA foreign_key_check")?.exists(())?;
    tally.check(!is_violated, Wrong::Corrupt, || "a foreign key is violated".into());
    Ok(())
}

fn parts_after(connection: &Connection, id: i64) -> rusqlite::Result<Vec<(Name, i64)>> {
    let mut parts = connection.prepare("SELECT task, seq, part FROM parts WHERE id > ?1 ORDER BY id")?;
    let rows = parts.query_map([id], |row| Ok(((row.get(0)?, row.get(1)?), row.get(2)?)))?;
    rows.collect()
}

fn entries_after(connection: &Connection, id: i64) -> rusqlite::Result<Vec<(i64, i64)>> {
    let mut entries = connection.prepare("SELECT entry, half FROM entries WHERE id > ?1 ORDER BY id")?;
    let rows = entries.query_map([id], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

/// Where the import goes on, and how many entries it has accepted and failed.
fn record(connection: &Connection) -> rusqlite::Result<Option<(i64, i64, i64)>> {
    let is_there = "SELECT 1 FROM sqlite_schema WHERE name = 'solewriter_imports'";
    if !connection.prepare(is_there)?.exists(())? {
        return Ok(None);
    }
    let record = "SELECT next_entry, accepted, failed FROM solewriter_imports WHERE id = ?1";
    connection.query_row(record, [IMPORT], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).optional()
}

fn how_entries_differ(found: &[(i64, i64)], wanted: &[(i64, i64)]) -> Wrong {
    let mut halves = BTreeMap::<i64, [u32; 2]>::new();
    for (entry, half) in found {
        halves.entry(*entry).or_default()[usize::from(*half == 1)] += 1;
    }
    if halves.values().any(|[first, second]| first != second) {
        Wrong::Half
    } else if wanted.iter().any(|(entry, _)| !halves.contains_key(entry)) {
        Wrong::Lost
    } else {
        Wrong::Broken
    }
}
