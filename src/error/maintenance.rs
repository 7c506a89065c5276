//! Why maintenance has no value to give.

use std::error::Error as StdError;
use std::fmt;

use super::{NotStarted, Outcome, RolledBack, Unknown, WriteError, sqlite_extended_code};

/// Why maintenance has no value to give.
///
/// Outside of a transaction every statement stands by itself: where one fails, those before it have had their
/// effect.
#[derive(Debug)]
pub enum MaintenanceError<E = rusqlite::Error> {
    /// It never ran.
    NotStarted(NotStarted),
    /// The closure returned this error. The statements that had ended before stand, as with `CutShort`.
    Failed(E),
    /// It was cut short: by a panic, its deadline, or the environment; or it left something open. The statement that
    /// was at work was undone, those before it stand, except in a transaction of its own that it had not committed.
    CutShort(RolledBack),
    /// It ran, and what came of it is not known.
    Unknown(Unknown),
}

impl<E> MaintenanceError<E> {
    /// What became of it. What did not run to its end may have had a part of its effect: unknown.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::NotStarted(_) => Outcome::NotStarted,
            Self::Failed(_) | Self::CutShort(_) | Self::Unknown(_) => Outcome::Unknown,
        }
    }
}

impl<E: StdError + 'static> MaintenanceError<E> {
    /// SQLite's extended result code, if an error of SQLite is behind this one.
    #[must_use]
    pub fn sqlite_extended_code(&self) -> Option<i32> {
        sqlite_extended_code(self)
    }
}

impl<E> From<WriteError<E>> for MaintenanceError<E> {
    fn from(error: WriteError<E>) -> Self {
        match error {
            WriteError::Command(error) => Self::Failed(error),
            WriteError::NotStarted(reason) => Self::NotStarted(reason),
            WriteError::RolledBack(reason) => Self::CutShort(reason),
            WriteError::Unknown(reason) => Self::Unknown(reason),
        }
    }
}

impl<E> fmt::Display for MaintenanceError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStarted(reason) => write!(f, "the maintenance never ran: {reason}"),
            Self::Failed(_) => f.write_str("the maintenance failed; the statements before stand"),
            Self::CutShort(reason) => {
                write!(f, "the maintenance was cut short: {reason}; the statements before stand")
            }
            Self::Unknown(reason) => write!(f, "what came of the maintenance is not known: {reason}"),
        }
    }
}

impl<E: StdError + 'static> StdError for MaintenanceError<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Failed(error) => Some(error),
            Self::NotStarted(reason) => reason.cause(),
            Self::CutShort(reason) => reason.cause(),
            Self::Unknown(reason) => reason.cause(),
        }
    }
}
