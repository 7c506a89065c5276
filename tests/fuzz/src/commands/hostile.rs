//! What commands do, by themselves and to their neighbours, and what each of them may be told.

use std::mem::ManuallyDrop;
use std::time::Duration;

use rusqlite::ffi;
use serde::{Deserialize, Serialize};
use solewriter::{Command, Database, NotStarted, RolledBack, WriteError, WriteTransaction};

use super::plan::{How, Text};
use crate::ledger::{INSERT, parts, payload};
use crate::workload::{Manner, add_parts};

/// What the commands need beside the tables of the ledger; every row in them is a wrong one.
pub(super) const SCHEMA: &str = "
    CREATE TABLE parent (id INTEGER PRIMARY KEY);
    CREATE TABLE child (parent NOT NULL REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
    CREATE TABLE trap (n);
    CREATE TRIGGER trap AFTER INSERT ON trap WHEN new.n = 2 BEGIN SELECT RAISE(FAIL, 'trapped'); END;";

/// The longest value that the service is told to allow.
pub(super) const VALUE_BYTES_MAX: u32 = 1 << 20;

/// After this time an endless statement is ended.
const ENDLESS: Duration = Duration::from_millis(20);

/// The same for SQL of which nobody knows whether it ends.
pub(super) const PERHAPS_ENDLESS: Duration = Duration::from_millis(200);

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum What {
    Manner(Manner),
    /// Goes on after SQLite has rolled back everything, as if nothing had happened.
    SwallowsRollback,
    /// Leaves a statement half-stepped.
    LeaksRead,
    LeaksWrite,
    BreaksForeignKey,
    MendsForeignKey,
    /// Tries to end the transaction of its group.
    TriesToCommit,
    /// Makes, changes and drops tables, then fails.
    ChangesSchema,
    /// Fails by a trigger that keeps what was written before.
    KeepsOfTrigger,
    /// Tries a value beyond the limit, then goes on.
    TooLong,
    /// Sends a command to its own service and waits for it.
    CallsItself,
    Endless,
    WritesNothing,
    /// Runs any SQL, then fails.
    Text(Text),
}

/// Pieces of SQL: statements, beginnings and ends of some.
pub(super) const FRAGMENTS: [&str; 64] = [
    "INSERT INTO part VALUES (7, 7, 7)",
    "INSERT OR ROLLBACK INTO part VALUES (0, 0, 1)",
    "INSERT OR FAIL INTO part VALUES (6, 1, 1), (0, 0, 1)",
    "INSERT OR REPLACE INTO part VALUES (0, 0, 1)",
    "DELETE FROM part",
    "UPDATE part SET command = command + 1000",
    "UPDATE total SET parts = 0",
    "UPDATE OR ROLLBACK part SET part = 0",
    "DELETE FROM sqlite_schema",
    "DELETE FROM solewriter_imports",
    "DROP TABLE part",
    "DROP TABLE solewriter_imports",
    "DROP TRIGGER added",
    "DROP INDEX by_size",
    "ALTER TABLE part RENAME TO other",
    "ALTER TABLE part ADD COLUMN more",
    "ALTER TABLE part DROP COLUMN payload",
    "CREATE TABLE x (y)",
    "CREATE TABLE x AS SELECT * FROM part",
    "CREATE TEMP TABLE part (command, part, payload)",
    "CREATE UNIQUE INDEX y ON part (part)",
    "CREATE TRIGGER z BEFORE INSERT ON part BEGIN SELECT RAISE(ROLLBACK, 'no'); END",
    "CREATE TRIGGER z AFTER INSERT ON total BEGIN DELETE FROM part; END",
    "CREATE VIEW v AS SELECT * FROM part",
    "CREATE VIRTUAL TABLE f USING fts5(a)",
    "CREATE VIRTUAL TABLE r USING rtree(a, b, c)",
    "INSERT INTO f VALUES ('a b c')",
    "SELECT * FROM f WHERE f MATCH 'a'",
    "REINDEX",
    "ANALYZE",
    "VACUUM",
    "VACUUM INTO ':memory:'",
    "ATTACH ':memory:' AS a",
    "DETACH main",
    "COMMIT",
    "END",
    "ROLLBACK",
    "BEGIN",
    "BEGIN IMMEDIATE",
    "SAVEPOINT solewriter",
    "ROLLBACK TO solewriter",
    "RELEASE solewriter",
    "PRAGMA user_version = 7",
    "PRAGMA journal_mode = DELETE",
    "PRAGMA synchronous = OFF",
    "PRAGMA foreign_keys = OFF",
    "PRAGMA defer_foreign_keys = ON",
    "PRAGMA writable_schema = ON",
    "PRAGMA wal_checkpoint(TRUNCATE)",
    "PRAGMA query_only = ON",
    "SELECT * FROM pragma_table_info('part')",
    "SELECT randomblob(900000) || randomblob(900000)",
    "SELECT load_extension('x')",
    "INSERT INTO child VALUES (404)",
    "INSERT INTO filler (payload) SELECT payload FROM part",
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)",
    "SELECT count(*) FROM n",
    "SELECT * FROM part",
    "RETURNING *",
    "EXPLAIN",
    ";",
    "--",
    "/*",
    "\0",
];

impl What {
    /// Whether SQLite may roll back everything, so that neighbours lose their only run.
    pub(super) fn may_end_the_transaction(&self) -> bool {
        matches!(
            self,
            Self::Manner(Manner::RollsBackEverything)
                | Self::SwallowsRollback
                | Self::LeaksRead
                | Self::LeaksWrite
                | Self::Endless
                | Self::Text(_)
        )
    }

    /// The time that it needs to be given.
    pub(super) fn deadline(&self) -> Option<Duration> {
        match self {
            Self::Endless => Some(ENDLESS),
            Self::Text(_) => Some(PERHAPS_ENDLESS),
            _ => None,
        }
    }

    /// Whether its rows are there once it has succeeded.
    pub(super) fn writes_parts(&self) -> bool {
        !matches!(self, Self::WritesNothing)
    }

    /// As one statement, with how many of the values of a part.
    pub(super) fn statement(&self, command: i64) -> Option<&'static str> {
        match self {
            Self::Manner(Manner::Good) if parts(command) == 1 => Some(INSERT),
            Self::Manner(Manner::FailsAtTheEnd) => Some("INSERT INTO part VALUES (0, 0, ?1 || ?2 || ?3)"),
            Self::Manner(Manner::RollsBackEverything) => {
                Some("INSERT OR ROLLBACK INTO part VALUES (0, 0, ?1 || ?2 || ?3)")
            }
            Self::Manner(Manner::KeepsHalf) => {
                Some("INSERT OR FAIL INTO part VALUES (?1, ?2, ?3), (0, 0, 1)")
            }
            _ => None,
        }
    }

    /// Whether that is what it may be told, where nothing but itself can be the cause.
    pub(super) fn may_be_told(&self, answer: &Result<(), WriteError>) -> bool {
        let has_code = |wanted| {
            let code = answer.as_ref().err().and_then(WriteError::sqlite_extended_code);
            code == Some(wanted)
        };
        let is_own = matches!(answer, Err(WriteError::Command(_)));
        match self {
            Self::Manner(manner) if manner.is_good() => answer.is_ok(),
            Self::Manner(Manner::Panics) => {
                matches!(answer, Err(WriteError::RolledBack(RolledBack::Panicked(_))))
            }
            Self::Manner(_) => is_own && has_code(ffi::SQLITE_CONSTRAINT_PRIMARYKEY),
            Self::SwallowsRollback => {
                matches!(answer, Err(WriteError::RolledBack(RolledBack::TransactionEnded)))
            }
            Self::LeaksRead | Self::LeaksWrite => {
                matches!(answer, Err(WriteError::RolledBack(RolledBack::StatementLeftOpen)))
            }
            Self::BreaksForeignKey => {
                matches!(answer, Err(WriteError::RolledBack(RolledBack::ForeignKey)))
            }
            Self::ChangesSchema => is_own && has_code(ffi::SQLITE_CONSTRAINT_PRIMARYKEY),
            Self::KeepsOfTrigger => is_own && has_code(ffi::SQLITE_CONSTRAINT_TRIGGER),
            Self::MendsForeignKey
            | Self::TriesToCommit
            | Self::TooLong
            | Self::CallsItself
            | Self::WritesNothing => answer.is_ok(),
            // Its deadline.
            Self::Endless => false,
            // Whatever its SQL comes to, it fails.
            Self::Text(_) => matches!(
                answer,
                Err(WriteError::Command(_)
                    | WriteError::RolledBack(
                        RolledBack::ForeignKey | RolledBack::TransactionEnded | RolledBack::StatementLeftOpen
                    ))
            ),
        }
    }

    pub(super) fn run(
        &self,
        tx: &mut WriteTransaction<'_>,
        command: i64,
        db: Option<&Database>,
    ) -> rusqlite::Result<()> {
        match self {
            Self::Manner(manner) => manner.run(tx, command).map(drop),
            Self::SwallowsRollback => {
                add_parts(tx, command)?;
                drop(tx.execute("INSERT OR ROLLBACK INTO part VALUES (0, 0, 1)", ()));
                // Everything from here on is refused.
                drop(tx.execute(INSERT, (command, 60, 1)));
                Ok(())
            }
            Self::LeaksRead => {
                add_parts(tx, command)?;
                leak(tx, "SELECT command FROM part UNION ALL SELECT 2 UNION ALL SELECT 3");
                Ok(())
            }
            Self::LeaksWrite => {
                leak(tx, "INSERT INTO filler (payload) VALUES (1), (2), (3) RETURNING id");
                Ok(())
            }
            Self::BreaksForeignKey => {
                add_parts(tx, command)?;
                tx.execute("INSERT INTO child VALUES (404)", ()).map(drop)
            }
            Self::MendsForeignKey => {
                tx.execute("INSERT INTO child VALUES (404)", ())?;
                add_parts(tx, command)?;
                tx.execute("DELETE FROM child", ()).map(drop)
            }
            Self::TriesToCommit => {
                add_parts(tx, command)?;
                for sql in ["COMMIT", "ROLLBACK", "SAVEPOINT mine", "RELEASE solewriter", "COMMIT; BEGIN"] {
                    assert!(tx.execute_batch(sql).is_err(), "{sql}");
                }
                assert!(tx.execute("COMMIT", ()).is_err());
                Ok(())
            }
            Self::ChangesSchema => {
                add_parts(tx, command)?;
                tx.execute_batch(
                    "CREATE TABLE x (y); INSERT INTO x VALUES (1); ALTER TABLE part ADD COLUMN more;
                     CREATE INDEX more ON part (more); DROP TABLE filler",
                )?;
                tx.execute("INSERT INTO part (command, part) VALUES (0, 0)", ()).map(drop)
            }
            Self::KeepsOfTrigger => {
                add_parts(tx, command)?;
                tx.execute("INSERT INTO trap VALUES (1), (2)", ()).map(drop)
            }
            Self::TooLong => {
                let too_long = tx.execute(INSERT, (command, 61, vec![0_u8; VALUE_BYTES_MAX as usize + 1]));
                assert!(too_long.is_err());
                add_parts(tx, command).map(drop)
            }
            Self::CallsItself => {
                if let Some(db) = db {
                    let inner = db.blocking().execute(INSERT, (command, 62, payload(command, 62))).wait();
                    let is_refused = matches!(inner, Err(WriteError::NotStarted(NotStarted::Reentrant)));
                    assert!(is_refused, "{inner:?}");
                }
                add_parts(tx, command).map(drop)
            }
            Self::Endless => {
                add_parts(tx, command)?;
                tx.execute(
                    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
                     INSERT INTO total SELECT count(*), 0 FROM n",
                    (),
                )
                .map(drop)
            }
            Self::WritesNothing => tx.query_row("SELECT count(*) FROM part", (), |_| Ok(())),
            Self::Text(Text { sql, how }) => {
                add_parts(tx, command)?;
                match how {
                    How::Batch => tx.execute_batch(sql)?,
                    How::Execute => drop(tx.execute(sql, ())?),
                    How::Query => drop(tx.query_all(sql, (), |_| Ok(()))?),
                }
                Err(rusqlite::Error::QueryReturnedNoRows)
            }
        }
    }
}

/// Leaves a statement half-stepped.
fn leak(tx: &WriteTransaction<'_>, sql: &str) {
    let Ok(statement) = tx.prepare(sql) else { return };
    let mut statement = ManuallyDrop::new(statement);
    let Ok(rows) = statement.query(()) else { return };
    // A step that fails leaves nothing behind.
    drop(ManuallyDrop::new(rows).next());
}

/// The typed form of a command.
#[derive(Serialize, Deserialize)]
pub(super) struct Typed {
    pub(super) command: i64,
    pub(super) what: What,
}

impl Command for Typed {
    const NAME: &'static str = "typed";
    type Output = ();
    type Error = rusqlite::Error;

    fn apply(&self, tx: &mut WriteTransaction<'_>) -> rusqlite::Result<()> {
        self.what.run(tx, self.command, None)
    }
}
