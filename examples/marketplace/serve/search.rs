//! What people type, as the full-text index understands it.

use std::fmt;

use serde::Serialize;

use crate::catalog::Entry;
use crate::store::{Sql, integer};

const QUERY_CHARS_MAX: usize = 200;

/// Words that all have to be in an entry.
#[derive(Debug)]
pub(super) struct Words(String);

/// Why nothing can be searched for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SearchError {
    /// There is no word in it.
    Empty,
    TooLong,
    /// SQLite's texts end at a NUL.
    Nul,
}

impl fmt::Display for SearchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SearchError::Empty => f.write_str("q has no word to search for"),
            SearchError::TooLong => write!(f, "q is longer than {QUERY_CHARS_MAX} characters"),
            SearchError::Nul => f.write_str("q contains a NUL"),
        }
    }
}

impl Words {
    /// The words of what somebody typed.
    ///
    /// Each becomes a string of FTS5, so that none is taken for an operator or a column and no text is bad
    /// syntax (<https://www.sqlite.org/fts5.html#full_text_query_syntax>).
    ///
    /// # Errors
    /// A [`SearchError`] if there is no word or too much of them.
    pub(super) fn typed(text: &str) -> Result<Words, SearchError> {
        if text.chars().count() > QUERY_CHARS_MAX {
            return Err(SearchError::TooLong);
        }
        if text.contains('\0') {
            return Err(SearchError::Nul);
        }
        let has_word = |word: &&str| word.chars().any(char::is_alphanumeric);
        let strings: Vec<_> = text
            .split_whitespace()
            .filter(has_word)
            .map(|word| format!("\"{}\"", word.replace('"', "\"\"")))
            .collect();
        if strings.is_empty() {
            return Err(SearchError::Empty);
        }
        Ok(Words(strings.join(" ")))
    }
}

/// An entry that was found, and where a rename has to say that it belongs.
#[derive(Debug, Serialize)]
pub(super) struct Found {
    source: String,
    #[serde(flatten)]
    entry: Entry,
}

/// The entries that have all words, the best first.
///
/// # Errors
/// SQLite's.
pub(super) fn search_entries(sql: &impl Sql, words: &Words, limit: usize) -> rusqlite::Result<Vec<Found>> {
    sql.prepare_cached(
        "SELECT e.id, e.name, e.status, e.source_id FROM catalog_fts f
         JOIN marketplace_catalog_entries e ON e.rowid = f.rowid
         WHERE catalog_fts MATCH ?1 ORDER BY f.rank LIMIT ?2",
    )?
    .query_map((&words.0, integer(limit)), |row| {
        Ok(Found { source: row.get(3)?, entry: Entry::from_row(row)? })
    })?
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_strings_whatever_they_look_like() {
        let text = |typed| Words::typed(typed).map(|words| words.0);
        assert_eq!(text(" parse  json").as_deref(), Ok("\"parse\" \"json\""));
        assert_eq!(text("title:x NOT (a*").as_deref(), Ok("\"title:x\" \"NOT\" \"(a*\""));
        assert_eq!(text("5\" disk").as_deref(), Ok("\"5\"\"\" \"disk\""));
        assert_eq!(text("grüße").as_deref(), Ok("\"grüße\""));
        for empty in ["", "  ", "\"", "* ( -"] {
            assert_eq!(text(empty), Err(SearchError::Empty));
        }
        assert_eq!(text("a\0b"), Err(SearchError::Nul));
        assert_eq!(text(&"x".repeat(201)), Err(SearchError::TooLong));
    }
}
