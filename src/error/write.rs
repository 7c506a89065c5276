//! Why a write has no value to give.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use super::{Cause, Outcome, Retry, sqlite_extended_code};
use crate::failure::Failure;
use crate::holder::Phase;
use crate::lane::Lane;

/// Why a write has no value to give. The variant tells the outcome.
///
/// `E` is the error type of the caller's own closure or command.
///
/// ```
/// use solewriter::{Outcome, Retry, WriteError};
/// let error: WriteError = WriteError::Command(rusqlite::Error::QueryReturnedNoRows);
/// assert_eq!((error.outcome(), error.retry()), (Outcome::RolledBack, Retry::Never));
/// ```
#[derive(Debug)]
pub enum WriteError<E = rusqlite::Error> {
    /// The command itself returned this error. It was rolled back; its neighbours were not.
    Command(E),
    /// The command never ran.
    NotStarted(NotStarted),
    /// The command ran and was rolled back.
    RolledBack(RolledBack),
    /// The command ran, and whether it was committed is not known.
    Unknown(Unknown),
}

/// Why a command never ran.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum NotStarted {
    /// The lane had no room: at once for the `try_` forms, else for as long as `queue_wait_max`.
    QueueFull {
        /// The lane that was full.
        lane: Lane,
    },
    /// The command's payload is larger than `queue_bytes_max`, so no queue can ever take it.
    TooLarge {
        /// The payload of the command.
        bytes: usize,
        /// The largest payload that is accepted.
        bytes_max: usize,
    },
    /// The service is shutting down or has shut down.
    Closed,
    /// The command was sent from inside another command of the same service, which would wait for itself.
    Reentrant,
    /// The command's deadline passed while it waited.
    DeadlineExceeded {
        /// How long it had waited.
        waited: Duration,
    },
    /// The command waited for longer than `command_wait_max` behind whoever holds the writer: a command that
    /// takes very long, or one that itself waits for this one.
    WaitedTooLong {
        /// How long it had waited.
        waited: Duration,
        /// What the writer was doing then.
        holder: Phase,
    },
    /// Another process kept the write lock for longer than `busy_timeout`.
    Busy(Cause),
    /// The disk is full: nothing is written until a small commit of the service's own has succeeded.
    DiskFull(Cause),
    /// The WAL has reached `wal_limit_bytes`, and a reader or another program kept it from being begun anew for
    /// longer than `busy_timeout`.
    WalFull {
        /// The size of the WAL.
        wal_bytes: u64,
    },
    /// The environment failed too often in a row, last with this error: nothing is written until a small commit
    /// of the service's own has succeeded.
    Unavailable(Cause),
    /// This process is a fork of the one that opened the database; its threads exist only there.
    Forked,
    /// The service has stopped writing after a failure it can't see through; reads go on.
    Stopped(Cause),
}

/// Why a command that ran was rolled back.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum RolledBack {
    /// The command panicked, with this message.
    Panicked(String),
    /// The command left a deferred foreign key violated, so the COMMIT would have failed.
    ForeignKey,
    /// The command made SQLite end the transaction, and went on as if nothing had happened.
    TransactionEnded,
    /// Maintenance left a transaction open, and it was rolled back.
    TransactionLeftOpen,
    /// The command left a statement half-stepped, so the transaction could not be committed.
    StatementLeftOpen,
    /// The command's deadline passed while it ran, and SQLite ended the statement that was at work.
    DeadlineExceeded {
        /// How long it had run.
        ran: Duration,
    },
    /// The service was to be closed by then, and ended the statement that was at work.
    Interrupted,
    /// The environment failed the command: no space, an I/O error, no memory. The command itself may be fine.
    Environment(Cause),
    /// The transaction the command shared with others was lost for this reason, which lay outside of it.
    GroupLost(Cause),
}

/// Why it is not known whether a command was committed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Unknown {
    /// COMMIT failed in a way that leaves its effect open: a failed write or sync of the WAL.
    ///
    /// SQLite shows the rows as absent, yet they can reappear after a crash. The service has stopped writing.
    CommitFailed(Cause),
    /// The database, its -wal or its -shm file was deleted, renamed or replaced while the command was committed,
    /// so the commit may have gone into a file that nobody will find. The service has stopped writing.
    FilesReplaced(Cause),
    /// The writer thread ended without an answer, which is a bug of this crate.
    WriterLost,
}

impl NotStarted {
    fn retry(&self) -> Retry {
        match self {
            Self::QueueFull { .. }
            | Self::DeadlineExceeded { .. }
            | Self::WaitedTooLong { .. }
            | Self::Busy(_)
            | Self::DiskFull(_)
            | Self::WalFull { .. }
            | Self::Unavailable(_) => Retry::Later,
            Self::TooLarge { .. } | Self::Closed | Self::Reentrant | Self::Forked | Self::Stopped(_) => {
                Retry::Never
            }
        }
    }
}

impl<E> WriteError<E> {
    /// What became of the command.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::NotStarted(_) => Outcome::NotStarted,
            Self::Command(_) | Self::RolledBack(_) => Outcome::RolledBack,
            Self::Unknown(_) => Outcome::Unknown,
        }
    }

    /// Whether sending the command again is safe and sensible.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::NotStarted(reason) => reason.retry(),
            Self::RolledBack(
                RolledBack::DeadlineExceeded { .. } | RolledBack::Interrupted | RolledBack::Environment(_),
            ) => Retry::Later,
            Self::RolledBack(RolledBack::GroupLost(cause))
                if Failure::of(cause.as_sqlite()).is_environmental() =>
            {
                Retry::Later
            }
            Self::RolledBack(RolledBack::GroupLost(_)) => Retry::Now,
            Self::Command(_) | Self::RolledBack(_) => Retry::Never,
            Self::Unknown(_) => Retry::AfterChecking,
        }
    }

    /// The same failure with the caller's own error translated.
    pub fn map_command<F>(self, translate: impl FnOnce(E) -> F) -> WriteError<F> {
        match self {
            Self::Command(error) => WriteError::Command(translate(error)),
            Self::NotStarted(reason) => WriteError::NotStarted(reason),
            Self::RolledBack(reason) => WriteError::RolledBack(reason),
            Self::Unknown(reason) => WriteError::Unknown(reason),
        }
    }
}

impl<E: StdError + 'static> WriteError<E> {
    /// SQLite's extended result code, if an error of SQLite is behind this one.
    ///
    /// Codes are listed at <https://www.sqlite.org/rescode.html>.
    #[must_use]
    pub fn sqlite_extended_code(&self) -> Option<i32> {
        sqlite_extended_code(self)
    }
}

impl<E> fmt::Display for WriteError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command(_) => f.write_str("the command failed and was rolled back"),
            Self::NotStarted(reason) => write!(f, "the command never ran: {reason}"),
            Self::RolledBack(reason) => write!(f, "the command was rolled back: {reason}"),
            Self::Unknown(reason) => write!(f, "the command may or may not be committed: {reason}"),
        }
    }
}

impl<E: StdError + 'static> StdError for WriteError<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Command(error) => Some(error),
            Self::NotStarted(reason) => reason.cause(),
            Self::RolledBack(reason) => reason.cause(),
            Self::Unknown(reason) => reason.cause(),
        }
    }
}

impl NotStarted {
    pub(crate) fn cause(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Busy(cause) | Self::DiskFull(cause) | Self::Unavailable(cause) | Self::Stopped(cause) => {
                Some(cause.as_sqlite())
            }
            _ => None,
        }
    }
}

impl RolledBack {
    pub(crate) fn cause(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::GroupLost(cause) | Self::Environment(cause) => Some(cause.as_sqlite()),
            _ => None,
        }
    }
}

impl Unknown {
    pub(crate) fn cause(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::CommitFailed(cause) | Self::FilesReplaced(cause) => Some(cause.as_sqlite()),
            Self::WriterLost => None,
        }
    }
}

impl fmt::Display for NotStarted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::QueueFull { lane } => write!(f, "the {lane} lane is full; retry later"),
            Self::TooLarge { bytes, bytes_max } => {
                write!(f, "its {bytes} bytes exceed the limit of {bytes_max}; split it")
            }
            Self::Closed => f.write_str("the service is closed; open it anew"),
            Self::Reentrant => {
                f.write_str("a command can't wait for its own service; send it after this one returned")
            }
            Self::DeadlineExceeded { waited } => write!(f, "its deadline passed after {waited:?} of waiting"),
            Self::WaitedTooLong { waited, holder } => {
                write!(f, "it waited for {waited:?} while the writer was at: {holder}; retry later")
            }
            Self::DiskFull(_) => f.write_str("the disk is full; make room, then retry"),
            Self::WalFull { wal_bytes } => {
                write!(
                    f,
                    "a reader or another program keeps {wal_bytes} bytes in the WAL; end it, then retry"
                )
            }
            Self::Unavailable(_) => f.write_str("the database can't be written at the moment; retry later"),
            Self::Forked => f.write_str("this process is a fork; open the database in it after the fork"),
            Self::Busy(_) => f.write_str("another process holds the write lock; retry later"),
            Self::Stopped(_) => f.write_str("the service has stopped writing; find the cause, then reopen"),
        }
    }
}

impl fmt::Display for RolledBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked(message) => write!(f, "it panicked: {message}"),
            Self::ForeignKey => f.write_str("it left a deferred foreign key violated"),
            Self::TransactionEnded => {
                f.write_str("it ended the transaction (`OR ROLLBACK`, say) and returned success")
            }
            Self::TransactionLeftOpen => f.write_str("it left a transaction open"),
            Self::StatementLeftOpen => f.write_str("it left a statement half-stepped"),
            Self::DeadlineExceeded { ran } => write!(f, "its deadline passed while it ran, after {ran:?}"),
            Self::Interrupted => f.write_str("the service was closed while it ran"),
            Self::Environment(_) => f.write_str("the environment failed, not the command; retry later"),
            Self::GroupLost(_) => {
                f.write_str("the transaction it shared with others was lost; retry is safe")
            }
        }
    }
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommitFailed(_) => f.write_str("COMMIT failed; look into the database before a retry"),
            Self::FilesReplaced(_) => {
                f.write_str("the database file or its WAL was replaced; restore the files, reopen and look")
            }
            Self::WriterLost => f.write_str("the writer ended without an answer; reopen and look"),
        }
    }
}

impl<E> From<NotStarted> for WriteError<E> {
    fn from(reason: NotStarted) -> Self {
        Self::NotStarted(reason)
    }
}

impl<E> From<RolledBack> for WriteError<E> {
    fn from(reason: RolledBack) -> Self {
        Self::RolledBack(reason)
    }
}

impl<E> From<Unknown> for WriteError<E> {
    fn from(reason: Unknown) -> Self {
        Self::Unknown(reason)
    }
}
