//! The tables of a stress run, and whether a file may be used for one.

use std::path::Path;

use solewriter::rusqlite::{self, Connection};
use solewriter::{Database, WriteError};

use crate::{Refusal, inspect};

/// Every writer has a source of its own, in each run anew. `stress_foreign` is what other processes write.
pub(crate) const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS stress_sources (source INTEGER PRIMARY KEY, kind TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS stress_halves (
        source INTEGER NOT NULL REFERENCES stress_sources,
        seq INTEGER NOT NULL,
        half INTEGER NOT NULL CHECK (half IN (0, 1)),
        PRIMARY KEY (source, seq, half)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS stress_foreign (
        source INTEGER NOT NULL REFERENCES stress_sources,
        seq INTEGER NOT NULL,
        PRIMARY KEY (source, seq)) WITHOUT ROWID;";

const TABLES: [&str; 3] = ["stress_foreign", "stress_halves", "stress_sources"];

/// Refuses a file that holds anything but earlier runs, before anything is done to it.
pub(crate) fn require_ours(path: &Path) -> Result<(), Refusal> {
    // Those of SQLite and of the service aside, which imports make.
    let tables = "SELECT name FROM sqlite_schema
         WHERE type = 'table' AND name NOT GLOB 'sqlite_*' AND name NOT GLOB 'solewriter_*' ORDER BY name";
    let names = |connection: &Connection| -> rusqlite::Result<Vec<String>> {
        connection.prepare(tables)?.query_map((), |row| row.get(0))?.collect()
    };
    let names = match path.try_exists() {
        Ok(false) => return Ok(()),
        _ => inspect::read(path, names)?,
    };
    if names.is_empty() || names == TABLES {
        return Ok(());
    }
    Err(format!("{} holds other tables than those of earlier runs; choose another file", path.display())
        .into())
}

/// Makes a source for each kind of writer.
pub(crate) async fn sources(
    db: &Database,
    kind: &'static str,
    number: usize,
) -> Result<Vec<i64>, WriteError> {
    db.write("stress.sources", move |tx| {
        let insert = "INSERT INTO stress_sources (kind) VALUES (?1) RETURNING source";
        (0..number).map(|_| tx.query_row(insert, [kind], |row| row.get(0))).collect()
    })
    .await
}
