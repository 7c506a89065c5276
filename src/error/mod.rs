//! Errors, cut by what happened to the data: did it run, did it commit, may the caller retry?

mod maintenance;
mod open;
mod read;
mod write;

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

pub use maintenance::MaintenanceError;
pub use open::{OpenError, OpenErrorReason};
pub use read::{ReadEnd, ReadError};
pub use write::{NotStarted, RolledBack, Unknown, WriteError};

/// What became of a command that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It never ran.
    NotStarted,
    /// It ran, and nothing of it is in the database, nor ever will be.
    RolledBack,
    /// It may or may not be in the database; only looking there can tell.
    Unknown,
}

/// What a caller should do about a failed command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// Send it again: nothing of it happened, and the cause had nothing to do with it.
    Now,
    /// Send it again after a while: nothing of it happened, and the cause may pass.
    Later,
    /// Don't: nothing of it happened, and the same command would fail again.
    Never,
    /// Look into the database first: the command may have been committed.
    AfterChecking,
}

/// An error of SQLite that several commands share.
#[derive(Clone)]
pub struct Cause(Arc<rusqlite::Error>);

impl Cause {
    /// The error of SQLite.
    #[must_use]
    pub fn as_sqlite(&self) -> &rusqlite::Error {
        &self.0
    }
}

impl From<rusqlite::Error> for Cause {
    fn from(error: rusqlite::Error) -> Self {
        Self(Arc::new(error))
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Walks the sources of an error to the first of SQLite.
pub(crate) fn sqlite_extended_code(error: &(dyn StdError + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(sqlite) = error.downcast_ref::<rusqlite::Error>() {
            return sqlite.sqlite_error().map(|code| code.extended_code);
        }
        next = error.source();
    }
    None
}
