//! What people do with catalog entries while imports run: rename one, list a page of them.

use std::fmt;

use rusqlite::{OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use crate::store::{Sql, integer};

/// A user's request to rename a catalog entry.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Rename {
    pub(crate) source_id: String,
    pub(crate) entry_id: String,
    pub(crate) name: String,
    /// When the user asked, as the schema stores time.
    pub(crate) at: String,
}

/// What people see of a catalog entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) status: String,
}

impl Entry {
    /// The entry in the first three columns: id, name, status.
    ///
    /// # Errors
    /// SQLite's.
    pub(crate) fn from_row(row: &Row<'_>) -> rusqlite::Result<Entry> {
        Ok(Entry { id: row.get(0)?, name: row.get(1)?, status: row.get(2)? })
    }
}

/// Why a rename was refused.
#[derive(Debug)]
pub(crate) enum RenameError {
    /// There is no such entry.
    NotFound,
    /// The entry belongs to another source.
    WrongSource,
    /// The name itself won't do.
    BadName { reason: &'static str },
    /// SQLite failed.
    Sqlite(rusqlite::Error),
}

impl fmt::Display for RenameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RenameError::NotFound => write!(f, "there is no such entry"),
            RenameError::WrongSource => write!(f, "the entry belongs to another source"),
            RenameError::BadName { reason } => write!(f, "the name {reason}"),
            RenameError::Sqlite(_) => write!(f, "cannot rename the entry"),
        }
    }
}

impl std::error::Error for RenameError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            RenameError::Sqlite(error) => Some(error),
            RenameError::NotFound | RenameError::WrongSource | RenameError::BadName { .. } => None,
        }
    }
}

impl From<rusqlite::Error> for RenameError {
    fn from(error: rusqlite::Error) -> RenameError {
        RenameError::Sqlite(error)
    }
}

/// Renames one catalog entry and returns its row.
///
/// # Errors
/// One [`RenameError`] per rule that the request breaks; nothing is written then.
pub(crate) fn rename_entry(sql: &impl Sql, rename: &Rename) -> Result<Entry, RenameError> {
    let name = checked_name(&rename.name)?;
    let source_id: Option<String> = sql
        .prepare_cached("SELECT source_id FROM marketplace_catalog_entries WHERE id = ?1")?
        .query_row([&rename.entry_id], |row| row.get(0))
        .optional()?;
    match source_id {
        None => return Err(RenameError::NotFound),
        Some(source_id) if source_id != rename.source_id => return Err(RenameError::WrongSource),
        Some(_) => {}
    }
    let renamed = sql
        .prepare_cached(
            "UPDATE marketplace_catalog_entries SET name = ?2, updated_at = ?3 WHERE id = ?1
             RETURNING id, name, status",
        )?
        .query_row((&rename.entry_id, name, &rename.at), Entry::from_row)?;
    Ok(renamed)
}

fn checked_name(name: &str) -> Result<&str, RenameError> {
    let name = name.trim();
    let reason = match name.chars().count() {
        0 => "is empty",
        101.. => "is longer than 100 characters",
        _ if name.contains(['/', '\\']) => "contains a path separator",
        _ => return Ok(name),
    };
    Err(RenameError::BadName { reason })
}

/// One page of a source's entries.
#[derive(Debug, Clone)]
pub(crate) struct Page {
    pub(crate) source_id: String,
    pub(crate) offset: usize,
    pub(crate) limit: usize,
}

/// Lists one page of a source's entries by name.
///
/// # Errors
/// SQLite's.
pub(crate) fn list_entries(sql: &impl Sql, page: &Page) -> rusqlite::Result<Vec<Entry>> {
    sql.prepare_cached(
        "SELECT id, name, status FROM marketplace_catalog_entries WHERE source_id = ?1
         ORDER BY name, id LIMIT ?2 OFFSET ?3",
    )?
    .query_map(params![page.source_id, integer(page.limit), integer(page.offset)], Entry::from_row)?
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_trimmed_and_checked() {
        assert!(matches!(checked_name(" serde "), Ok("serde")));
        for bad in ["", "  ", "a/b", "a\\b", &"x".repeat(101)] {
            assert!(matches!(checked_name(bad), Err(RenameError::BadName { .. })));
        }
    }
}
