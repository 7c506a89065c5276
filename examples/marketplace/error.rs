//! What ends a run.

use std::error::Error as StdError;
use std::path::PathBuf;
use std::{fmt, io};

use rusqlite::ErrorCode;
use solewriter::{ImportError, OpenError, ShutdownError, WriteError};
use tokio::task::JoinError;

use crate::prepare::PrepareError;
use crate::scan::ScanError;

/// Why a run could not be done, or an entry not imported.
#[derive(Debug)]
pub(crate) enum Error {
    /// There is nothing to import.
    Scan(ScanError),
    /// An entry's files can't be read.
    Prepare(PrepareError),
    /// SQLite failed.
    Sqlite(rusqlite::Error),
    /// The sole writer can't be had.
    Open(OpenError),
    /// An import ended before its last entry.
    Import(Box<ImportError<Error>>),
    /// A write of the program's own was not committed.
    Write(WriteError),
    /// The sole writer was not done in time.
    Shutdown(ShutdownError),
    /// A file of the run's own can't be written.
    Io { path: PathBuf, source: io::Error },
    /// A part of the run panicked.
    Task(JoinError),
    /// The marketplace can't be served.
    #[cfg(feature = "http")]
    Serve(io::Error),
}

/// An error and everything that caused it, on one line.
pub(crate) fn with_causes(error: &(dyn StdError + 'static)) -> String {
    let texts: Vec<_> = causes(error).map(ToString::to_string).collect();
    texts.join(": ")
}

/// Whether SQLite refused something because another connection had the database locked.
pub(crate) fn is_locked(error: &(dyn StdError + 'static)) -> bool {
    let mut codes = causes(error)
        .filter_map(|error| error.downcast_ref::<rusqlite::Error>())
        .filter_map(rusqlite::Error::sqlite_error_code);
    codes.any(|code| matches!(code, ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// The error, its cause, the cause's cause and so on.
fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Scan(_) => write!(f, "no marketplace"),
            Error::Prepare(_) => write!(f, "cannot prepare an entry"),
            Error::Sqlite(_) => write!(f, "SQLite failed"),
            Error::Open(_) => write!(f, "no sole writer"),
            Error::Import(_) => write!(f, "an import ended early"),
            Error::Write(_) => write!(f, "cannot write"),
            Error::Shutdown(_) => write!(f, "the sole writer did not end"),
            Error::Io { path, .. } => write!(f, "cannot write {}", path.display()),
            Error::Task(_) => write!(f, "a part of the run ended early"),
            #[cfg(feature = "http")]
            Error::Serve(_) => write!(f, "cannot serve the marketplace"),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(match self {
            Error::Scan(error) => error,
            Error::Prepare(error) => error,
            Error::Sqlite(error) => error,
            Error::Open(error) => error,
            Error::Import(error) => error,
            Error::Write(error) => error,
            Error::Shutdown(error) => error,
            Error::Io { source, .. } => source,
            Error::Task(error) => error,
            #[cfg(feature = "http")]
            Error::Serve(error) => error,
        })
    }
}

impl From<ScanError> for Error {
    fn from(error: ScanError) -> Error {
        Error::Scan(error)
    }
}

impl From<PrepareError> for Error {
    fn from(error: PrepareError) -> Error {
        Error::Prepare(error)
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Error {
        Error::Sqlite(error)
    }
}

impl From<OpenError> for Error {
    fn from(error: OpenError) -> Error {
        Error::Open(error)
    }
}

impl From<WriteError> for Error {
    fn from(error: WriteError) -> Error {
        Error::Write(error)
    }
}

impl From<ShutdownError> for Error {
    fn from(error: ShutdownError) -> Error {
        Error::Shutdown(error)
    }
}

impl From<JoinError> for Error {
    fn from(error: JoinError) -> Error {
        Error::Task(error)
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;
    use crate::catalog::RenameError;

    #[test]
    fn a_lock_is_found_among_the_causes() {
        let failure = |code| rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        let error = |code| WriteError::Command(RenameError::Sqlite(failure(code)));
        assert!(is_locked(&error(ffi::SQLITE_BUSY_SNAPSHOT)));
        assert!(is_locked(&error(ffi::SQLITE_LOCKED)));
        assert!(!is_locked(&error(ffi::SQLITE_FULL)));
        assert!(!is_locked(&WriteError::Command(RenameError::NotFound)));
    }
}
