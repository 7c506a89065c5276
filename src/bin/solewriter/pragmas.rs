//! Every PRAGMA of the command line, and what is asked of the schema.

use rusqlite::Connection;
use rusqlite::types::Value;
use serde::Serialize;

/// How many lines of damage, and how many violated foreign keys, are told one by one.
const KEPT: usize = 10;

/// What the file says of itself.
#[derive(Debug, Serialize)]
pub(crate) struct Settings {
    pub(crate) page_bytes: u64,
    pub(crate) pages: u64,
    pub(crate) free_pages: u64,
    pub(crate) auto_vacuum: AutoVacuum,
    pub(crate) encoding: String,
    pub(crate) user_version: i64,
    pub(crate) application_id: i64,
    pub(crate) schema_version: i64,
    pub(crate) tables: u64,
    pub(crate) indexes: u64,
    /// Whether `ANALYZE`, or `PRAGMA optimize`, has ever left statistics for the query planner.
    pub(crate) analyzed: bool,
}

/// What becomes of pages that are no longer used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AutoVacuum {
    None,
    Full,
    Incremental,
}

/// What a check of the whole file found.
#[derive(Debug, Serialize)]
pub(crate) struct Check<T> {
    /// How many; at least this many where SQLite stops counting.
    pub(crate) found: u64,
    /// The first of them.
    pub(crate) first: Vec<T>,
    /// Why the check could not be made, or could not be finished.
    pub(crate) error: Option<String>,
}

/// A row that refers to none.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Violation {
    pub(crate) table: String,
    /// `None` in a table without rowids.
    pub(crate) rowid: Option<i64>,
    pub(crate) parent: String,
}

impl<T> Default for Check<T> {
    fn default() -> Self {
        Self { found: 0, first: Vec::new(), error: None }
    }
}

impl<T> Check<T> {
    pub(crate) fn is_fine(&self) -> bool {
        self.found == 0 && self.error.is_none()
    }

    fn add(&mut self, finding: T) {
        self.found += 1;
        if self.first.len() < KEPT {
            self.first.push(finding);
        }
    }
}

/// Asks for everything at once, so that the answers fit together.
pub(crate) fn settings(connection: &Connection) -> rusqlite::Result<Settings> {
    let together = connection.unchecked_transaction()?;
    let number = |name| together.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let count = |name| number(name).map(i64::unsigned_abs);
    let rows = |condition| {
        let sql = format!("SELECT count(*) FROM sqlite_schema WHERE {condition}");
        together.query_row(&sql, (), |row| row.get::<_, i64>(0)).map(i64::unsigned_abs)
    };
    Ok(Settings {
        page_bytes: count("page_size")?,
        pages: count("page_count")?,
        free_pages: count("freelist_count")?,
        auto_vacuum: match number("auto_vacuum")? {
            0 => AutoVacuum::None,
            1 => AutoVacuum::Full,
            _ => AutoVacuum::Incremental,
        },
        encoding: together.pragma_query_value(None, "encoding", |row| row.get(0))?,
        user_version: number("user_version")?,
        application_id: number("application_id")?,
        schema_version: number("schema_version")?,
        tables: rows("type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'")?,
        indexes: rows("type = 'index'")?,
        analyzed: rows("name = 'sqlite_stat1'")? > 0,
    })
}

/// Looks for damage.
pub(crate) fn integrity_check(connection: &Connection) -> Check<String> {
    check(connection, "PRAGMA integrity_check", |row| {
        let line: String = row.get(0)?;
        Ok((line != "ok").then_some(line))
    })
}

/// Looks for rows that refer to none.
pub(crate) fn foreign_key_check(connection: &Connection) -> Check<Violation> {
    check(connection, "PRAGMA foreign_key_check", |row| {
        let rowid = match row.get("rowid")? {
            Value::Integer(rowid) => Some(rowid),
            _ => None,
        };
        Ok(Some(Violation { table: row.get("table")?, rowid, parent: row.get("parent")? }))
    })
}

fn check<T>(
    connection: &Connection,
    sql: &str,
    finding: impl Fn(&rusqlite::Row<'_>) -> rusqlite::Result<Option<T>>,
) -> Check<T> {
    let mut check = Check::default();
    let mut collect = || {
        let mut statement = connection.prepare(sql)?;
        let mut rows = statement.query(())?;
        while let Some(row) = rows.next()? {
            if let Some(finding) = finding(row)? {
                check.add(finding);
            }
        }
        Ok::<_, rusqlite::Error>(())
    };
    check.error = collect().err().map(|error| error.to_string());
    check
}
