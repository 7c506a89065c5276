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
    /// Every connection, or the one of the snapshot, was in use for as long as the read was willing to wait.
    NoReader {
        /// How long it waited.
        waited: Duration,
    },
    /// The read's deadline passed, while it waited for a connection or while it ran.
    DeadlineExceeded {
        /// How long it waited for a connection.
        waited: Duration,
        /// How long it ran then; `None` if the closure never ran.
        ran: Option<Duration>,
    },
    /// The service ended the read before it was done, so that it pins the WAL no longer.
    Ended {
        /// How long it had had its connection.
        age: Duration,
        /// What made the service end it.
        why: ReadEnd,
    },
    /// The service has ended the snapshot, whose state can't be read any more: take a new one.
    SnapshotEnded {
        /// How old it became.
        age: Duration,
        /// What made the service end it.
        why: ReadEnd,
    },
    /// A connection could not be opened, or its transaction could not be begun, and neither could another.
    Connection(Cause),
    /// The token is from another opening of the database, so it says nothing about this one.
    ForeignToken,
    /// This process is a fork of the one that opened the database; its threads exist only there.
    Forked,
    /// The service is shutting down or has shut down.
    Closed,
}

/// Why the service ended a read or a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReadEnd {
    /// It reached its age limit, `read_age_max` unless it has one of its own.
    AgeLimit,
    /// The WAL reached `wal_limit_bytes`, and this read or snapshot kept it from being begun anew.
    WalLimit,
    /// The service had to close every connection and open the database anew.
    Reopened,
    /// SQLite ended the transaction of the snapshot, or one of its reads left a statement half-stepped.
    Broken,
    /// The service was closed.
    Closed,
}

impl fmt::Display for ReadEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AgeLimit => "it reached its age limit",
            Self::WalLimit => "the WAL reached its limit",
            Self::Reopened => "the database had to be opened anew",
            Self::Broken => "its transaction was lost",
            Self::Closed => "the service was closed",
        })
    }
}

impl<E> ReadError<E> {
    /// Whether sending the read again is sensible; safe it always is.
    ///
    /// ```
    /// use solewriter::{ReadEnd, ReadError, Retry};
    /// let age = std::time::Duration::from_secs(30);
    /// let ended = |why| ReadError::<rusqlite::Error>::Ended { age, why };
    /// assert_eq!(ended(ReadEnd::AgeLimit).retry(), Retry::Never, "it would take as long again");
    /// assert_eq!(ended(ReadEnd::WalLimit).retry(), Retry::Later);
    /// ```
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::NoReader { .. } | Self::DeadlineExceeded { .. } | Self::Connection(_) => Retry::Later,
            Self::Ended { why: ReadEnd::Reopened, .. } => Retry::Now,
            Self::Ended { why: ReadEnd::WalLimit, .. } => Retry::Later,
            Self::Query(_)
            | Self::ReadOnly(_)
            | Self::Panicked(_)
            | Self::Ended { .. }
            | Self::SnapshotEnded { .. }
            | Self::ForeignToken
            | Self::Forked
            | Self::Closed => Retry::Never,
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
            Self::DeadlineExceeded { waited, ran: None } => {
                write!(f, "its deadline passed after {waited:?} of waiting for a reader; retry later")
            }
            Self::DeadlineExceeded { waited, ran: Some(ran) } => {
                write!(f, "its deadline passed after {waited:?} of waiting and {ran:?} of running")
            }
            Self::Ended { age, why } => write!(f, "the read was ended after {age:?}: {why}"),
            Self::SnapshotEnded { age, why } => {
                write!(f, "the snapshot was ended after {age:?}: {why}; take a new one")
            }
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
