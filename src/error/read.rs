//! Why a read has no value to give.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use super::{Cause, Retry, sqlite_extended_code};

/// Why a read has no value to give. A failed read changed nothing.
///
/// `E` is the error type of the caller's own closure.
#[derive(Debug)]
#[non_exhaustive]
pub enum ReadError<E = rusqlite::Error> {
    /// The closure returned this error.
    Query(E),
    /// The closure tried to write; readers can't.
    ReadOnly(E),
    /// The closure panicked, with this message; its connection was replaced.
    Panicked(String),
    /// Every connection was in use for as long as the read was willing to wait.
    NoReader {
        /// How long it waited.
        waited: Duration,
    },
    /// A connection could not be opened, or its transaction could not be begun.
    Connection(Cause),
    /// The token is from another opening of the database, so it says nothing about this one.
    ForeignToken,
    /// This process is a fork of the one that opened the database; its connections must not be used here.
    Forked,
    /// The service is shutting down or has shut down.
    Closed,
}

impl<E> ReadError<E> {
    /// Whether sending the read again is sensible; safe it always is.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::NoReader { .. } | Self::Connection(_) => Retry::Later,
            _ => Retry::Never,
        }
    }
}

impl<E: StdError + 'static> ReadError<E> {
    /// SQLite's extended result code, if an error of SQLite is behind this one.
    #[must_use]
    pub fn sqlite_extended_code(&self) -> Option<i32> {
        sqlite_extended_code(self)
    }
}

impl<E> fmt::Display for ReadError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Query(_) => f.write_str("the read failed"),
            Self::ReadOnly(_) => f.write_str("a read tried to write; send it as a write"),
            Self::Panicked(message) => write!(f, "the read panicked: {message}"),
            Self::NoReader { waited } => write!(f, "no reader was free within {waited:?}; retry later"),
            Self::Connection(_) => f.write_str("no reader connection could be had; retry later"),
            Self::ForeignToken => f.write_str("the commit token is from another opening of the database"),
            Self::Forked => f.write_str("this process is a fork; open the database in it after the fork"),
            Self::Closed => f.write_str("the service is closed; open it anew"),
        }
    }
}

impl<E: StdError + 'static> StdError for ReadError<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Query(error) | Self::ReadOnly(error) => Some(error),
            Self::Connection(cause) => Some(cause.as_sqlite()),
            _ => None,
        }
    }
}
