//! The kinds of commands and reads, with the secrets bound to their statement, and the ways in which they fail.

use std::error::Error;
use std::fmt::Write as _;

use futures_util::stream;
use rusqlite::{ffi, params_from_iter};
use serde::{Deserialize, Serialize};
use solewriter::{Command, Database, WriteTransaction};

use crate::common::soon;
use crate::secrets::{BLOB, INTEGER, REAL, TEXT, assert_clean, bound};

/// What everything is tried with.
pub(crate) const VAULT: &str = "
    CREATE TABLE vault (
        id INTEGER PRIMARY KEY,
        words TEXT NOT NULL UNIQUE CHECK (length(words) < 40),
        bytes BLOB UNIQUE,
        number INTEGER UNIQUE CONSTRAINT positive CHECK (number > 10),
        measure REAL UNIQUE
    ) STRICT;
    CREATE TABLE named (name PRIMARY KEY, x) WITHOUT ROWID;
    CREATE TABLE held (vault INTEGER NOT NULL REFERENCES vault, x);
    CREATE TABLE owed (vault INTEGER NOT NULL REFERENCES vault DEFERRABLE INITIALLY DEFERRED, x);
    CREATE TABLE aborted (a, b, c, d);
    CREATE TRIGGER aborts BEFORE INSERT ON aborted BEGIN SELECT RAISE(ABORT, 'refused'); END;
    CREATE TABLE failed (a, b, c, d);
    CREATE TRIGGER fails AFTER INSERT ON failed BEGIN SELECT RAISE(FAIL, 'refused'); END;
    CREATE TABLE undone (a, b, c, d);
    CREATE TRIGGER undoes BEFORE INSERT ON undone BEGIN SELECT RAISE(ROLLBACK, 'refused'); END;";

/// Rows that others clash with.
pub(crate) const KEPT: &str =
    "INSERT INTO vault (id, words, bytes, number, measure) VALUES (?3, ?1, ?2, ?3, ?4)";
pub(crate) const KEPT_TOO: &str = "INSERT INTO named VALUES (?1, ?4)";

pub(crate) const CLASH: &str = "INSERT INTO vault (words, bytes, number, measure) VALUES (?1, ?2, ?3, ?4)";
pub(crate) const CLASH_AND_ROLL_BACK: &str =
    "INSERT OR ROLLBACK INTO vault (words, bytes, number, measure) VALUES (?1, ?2, ?3, ?4)";

/// Statements that fail, and SQLite's code where it is SQLite that fails them. Each has four parameters.
pub(crate) const WAYS: [(&str, Option<i32>); 36] = [
    (CLASH, Some(ffi::SQLITE_CONSTRAINT_UNIQUE)),
    (CLASH_AND_ROLL_BACK, Some(ffi::SQLITE_CONSTRAINT_UNIQUE)),
    (
        "INSERT OR FAIL INTO vault (words, bytes, number, measure) VALUES (?1, ?2, ?3, ?4)",
        Some(ffi::SQLITE_CONSTRAINT_UNIQUE),
    ),
    (
        "INSERT INTO vault (words, bytes, measure) VALUES ('other' || ?3, ?2, ?4 + 1)",
        Some(ffi::SQLITE_CONSTRAINT_UNIQUE),
    ),
    (
        "INSERT INTO vault (words, number, measure) VALUES ('other', ?3, ?4 + 1)",
        Some(ffi::SQLITE_CONSTRAINT_UNIQUE),
    ),
    ("INSERT INTO vault (words, measure) VALUES ('other', ?4)", Some(ffi::SQLITE_CONSTRAINT_UNIQUE)),
    (
        "INSERT INTO vault (id, words, measure) VALUES (?3, 'other', ?4 + 1)",
        Some(ffi::SQLITE_CONSTRAINT_PRIMARYKEY),
    ),
    ("INSERT INTO named VALUES (?1, ?2 || ?3 || ?4)", Some(ffi::SQLITE_CONSTRAINT_PRIMARYKEY)),
    (
        "UPDATE vault SET words = NULL WHERE words = ?1 AND bytes = ?2 AND number = ?3 AND measure = ?4",
        Some(ffi::SQLITE_CONSTRAINT_NOTNULL),
    ),
    (
        "INSERT INTO vault (words, measure) VALUES (?1 || ?1 || ?1, ?4 + 1)",
        Some(ffi::SQLITE_CONSTRAINT_CHECK),
    ),
    (
        "INSERT INTO vault (words, number, measure) VALUES (?1 || 'x', -?3, ?4 + 1)",
        Some(ffi::SQLITE_CONSTRAINT_CHECK),
    ),
    ("INSERT INTO held VALUES (?3 + 1, ?1 || ?2 || ?4)", Some(ffi::SQLITE_CONSTRAINT_FOREIGNKEY)),
    // Noticed by us, at the end of the command.
    ("INSERT INTO owed VALUES (?3 + 1, ?1 || ?2 || ?4)", None),
    (
        "INSERT INTO vault (words, number, measure) VALUES ('other', ?2, ?4 + 1)",
        Some(ffi::SQLITE_CONSTRAINT_DATATYPE),
    ),
    ("INSERT INTO vault (words, measure) VALUES ('other' || ?4, ?1)", Some(ffi::SQLITE_CONSTRAINT_DATATYPE)),
    ("INSERT INTO parent SELECT ?1 WHERE ?4 > 0", Some(ffi::SQLITE_MISMATCH)),
    ("INSERT INTO named VALUES (?1 || hex(zeroblob(600000)) || ?2, ?3 || ?4)", Some(ffi::SQLITE_TOOBIG)),
    ("INSERT INTO aborted VALUES (?1, ?2, ?3, ?4)", Some(ffi::SQLITE_CONSTRAINT_TRIGGER)),
    ("INSERT INTO failed VALUES (?1, ?2, ?3, ?4)", Some(ffi::SQLITE_CONSTRAINT_TRIGGER)),
    ("INSERT INTO undone VALUES (?1, ?2, ?3, ?4)", Some(ffi::SQLITE_CONSTRAINT_TRIGGER)),
    ("INSERT INTO named VALES (?1, ?2, ?3, ?4)", Some(ffi::SQLITE_ERROR)),
    ("INSERT INTO named VALUES (?1, ?2, ?3, ?4", Some(ffi::SQLITE_ERROR)),
    ("INSERT INTO nowhere VALUES (?1, ?2, ?3, ?4)", Some(ffi::SQLITE_ERROR)),
    ("INSERT INTO named (nothing) VALUES (?1 || ?2 || ?3 || ?4)", Some(ffi::SQLITE_ERROR)),
    ("INSERT INTO named VALUES (?1, ?2, ?3, ?4)", Some(ffi::SQLITE_ERROR)),
    ("INSERT INTO named VALUES (nonsense(?1, ?2), ?3 || ?4)", Some(ffi::SQLITE_ERROR)),
    ("INSERT INTO named VALUES (abs(?1, ?2), ?3 || ?4)", Some(ffi::SQLITE_ERROR)),
    ("INSERT INTO named VALUES (?1 || 'x', (SELECT ?2, ?3, ?4))", Some(ffi::SQLITE_ERROR)),
    (
        "INSERT INTO named VALUES (abs(-9223372036854775807 - 1), ?1 || ?2 || ?3 || ?4)",
        Some(ffi::SQLITE_ERROR),
    ),
    ("INSERT INTO named VALUES (json_extract(?1, '$.a'), ?2 || ?3 || ?4)", Some(ffi::SQLITE_ERROR)),
    (
        "INSERT INTO named VALUES (?1 LIKE ?1 || replace(hex(zeroblob(1000)), '0', '_'), ?4)",
        Some(ffi::SQLITE_ERROR),
    ),
    ("INSERT INTO named VALUES (?1 LIKE ?1 ESCAPE ?1, ?4)", Some(ffi::SQLITE_ERROR)),
    ("ATTACH ?1 || ?2 || ?3 || ?4 AS other", Some(ffi::SQLITE_AUTH)),
    // By rusqlite: too few parameters, too many, rows that nobody asked for or that are of another type.
    ("INSERT INTO named VALUES (?1, ?5)", None),
    ("INSERT INTO named VALUES (?1, ?3)", None),
    ("SELECT ?1, ?2, ?3, ?4", None),
];

/// How something failed.
pub(crate) struct Told {
    /// Of the error and everything behind it.
    pub(crate) text: String,
    pub(crate) code: Option<i32>,
}

pub(crate) fn told(error: &(dyn Error + 'static)) -> Told {
    let (mut text, mut code, mut next) = (String::new(), None, Some(error));
    while let Some(error) = next {
        write!(text, "{error} {error:?} {error:#?} ").unwrap();
        if let Some(error) = error.downcast_ref::<ffi::Error>() {
            code = Some(error.extended_code);
        }
        next = error.source();
    }
    Told { text, code }
}

/// A typed command whose fields are secret.
#[derive(Serialize, Deserialize)]
struct Keep {
    sql: String,
    text: String,
    bytes: Vec<u8>,
    number: i64,
    measure: f64,
}

impl Command for Keep {
    const NAME: &'static str = "leaks.typed";
    type Output = usize;
    type Error = rusqlite::Error;

    fn apply(&self, tx: &mut WriteTransaction<'_>) -> rusqlite::Result<usize> {
        tx.execute(&self.sql, (&self.text, &self.bytes, self.number, self.measure))
    }
}

pub(crate) fn run(tx: &mut WriteTransaction<'_>, sql: &str) -> rusqlite::Result<usize> {
    tx.execute(sql, params_from_iter(bound()))
}

/// What can be sent to a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Execute,
    Returning,
    Once,
    Nested,
    Rerunnable,
    Typed,
    Import,
    Maintenance,
    Read,
    Snapshot,
}

impl Sent {
    pub(crate) const ALL: [Self; 10] = [
        Self::Execute,
        Self::Returning,
        Self::Once,
        Self::Nested,
        Self::Rerunnable,
        Self::Typed,
        Self::Import,
        Self::Maintenance,
        Self::Read,
        Self::Snapshot,
    ];

    /// Whether it runs in a transaction of the writer.
    pub(crate) fn is_command(self) -> bool {
        !matches!(self, Self::Maintenance | Self::Read | Self::Snapshot)
    }

    /// Runs a statement with the secrets as its parameters.
    pub(crate) async fn send(self, db: &Database, sql: &'static str) -> Result<(), Told> {
        match self {
            Self::Execute => soon(db.execute(sql, bound())).await.map(drop).map_err(|error| told(&error)),
            Self::Returning => {
                let returning = db.execute_returning(sql, bound(), |row| row.get::<_, i64>(0));
                soon(returning).await.map(drop).map_err(|error| told(&error))
            }
            Self::Once => {
                let once = db.write("leaks.once", move |tx| run(tx, sql));
                soon(once).await.map(drop).map_err(|error| told(&error))
            }
            Self::Nested => {
                let nested = db.write("leaks.nested", move |tx| {
                    tx.savepoint(|tx| tx.prepare_cached(sql)?.execute(params_from_iter(bound())))
                });
                soon(nested).await.map(drop).map_err(|error| told(&error))
            }
            Self::Rerunnable => {
                let again = db.write_rerunnable("leaks.again", move |tx| run(tx, sql));
                soon(again).await.map(drop).map_err(|error| told(&error))
            }
            Self::Typed => soon(db.send(keep(sql))).await.map(drop).map_err(|error| told(&error)),
            Self::Import => {
                let import = db.import("leaks.import", stream::iter([bound()])).lost_batches_max(1);
                let run = import.run(move |tx, entry| tx.execute(sql, params_from_iter(entry)));
                let report = soon(run).await.map_err(|error| told(&error))?;
                assert_clean("the report of an import", &format!("{report:?}"));
                report.failures.first().map_or(Ok(()), |failure| Err(told(&failure.error)))
            }
            Self::Maintenance => {
                let maintain =
                    db.maintain("leaks.maintain", move |m| m.execute(sql, params_from_iter(bound())));
                soon(maintain).await.map(drop).map_err(|error| told(&error))
            }
            Self::Read => {
                let read = db.read("leaks.read", move |tx| {
                    tx.query_row(sql, params_from_iter(bound()), |row| row.get::<_, i64>(0))
                });
                soon(read).await.map(drop).map_err(|error| told(&error))
            }
            Self::Snapshot => {
                let snapshot = soon(db.snapshot("leaks.snapshot")).await.unwrap();
                assert_clean("a snapshot", &format!("{snapshot:?}"));
                let read = snapshot
                    .read(move |tx| tx.query_row(sql, params_from_iter(bound()), |row| row.get::<_, i64>(0)));
                soon(read).await.map(drop).map_err(|error| told(&error))
            }
        }
    }
}

fn keep(sql: &str) -> Keep {
    Keep { sql: sql.into(), text: TEXT.into(), bytes: BLOB.into(), number: INTEGER, measure: REAL }
}

/// What has not been sent or answered yet, as text.
pub(crate) async fn unsent(db: &Database) -> String {
    let sql = "SELECT ?1, ?2, ?3, ?4";
    let import = db.import("leaks.import", stream::iter([bound()]));
    let mut text = format!("{import:?}");
    let run = import.run(move |tx, entry: &Vec<_>| tx.execute(sql, params_from_iter(entry)));
    let secret = bound();
    let read = db.read("leaks.read", move |_| {
        drop(secret);
        Ok(())
    });
    write!(text, "{run:?} {read:?} {:?} {:?}", db.execute(sql, bound()), db.send(keep(sql))).unwrap();
    let maintain = db.maintain("leaks.maintain", move |m| m.execute(sql, params_from_iter(bound())));
    let returning = db.execute_returning(sql, bound(), |_| Ok(()));
    let receipt = db.send(keep(sql)).submit().await.unwrap();
    write!(text, "{maintain:?} {returning:?} {receipt:?} {:?}", db.snapshot("leaks.snapshot")).unwrap();
    drop(soon(receipt).await);
    text
}
