//! Errors, cut by what happened to the data: did it run, did it commit, may the caller retry?

use std::error::Error as StdError;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::config::ConfigError;
use crate::lane::Lane;

/// What became of a command that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// Another process kept the write lock for longer than `busy_timeout`.
    Busy(Cause),
    /// The transaction could not be begun.
    Begin(Cause),
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
    /// The command left a statement half-stepped, so the transaction could not be committed.
    StatementLeftOpen,
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
    /// The writer thread ended without an answer, which is a bug of this crate.
    WriterLost,
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
            Self::NotStarted(NotStarted::QueueFull { .. } | NotStarted::DeadlineExceeded { .. })
            | Self::NotStarted(NotStarted::Busy(_) | NotStarted::Begin(_)) => Retry::Later,
            Self::RolledBack(RolledBack::GroupLost(_)) => Retry::Now,
            Self::NotStarted(_) | Self::Command(_) | Self::RolledBack(_) => Retry::Never,
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
            Self::NotStarted(
                NotStarted::Busy(cause) | NotStarted::Begin(cause) | NotStarted::Stopped(cause),
            )
            | Self::RolledBack(RolledBack::GroupLost(cause))
            | Self::Unknown(Unknown::CommitFailed(cause)) => Some(cause.as_sqlite()),
            Self::NotStarted(_) | Self::RolledBack(_) | Self::Unknown(_) => None,
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
            Self::Busy(_) => f.write_str("another process holds the write lock; retry later"),
            Self::Begin(_) => f.write_str("the transaction could not be begun; retry later"),
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
            Self::StatementLeftOpen => f.write_str("it left a statement half-stepped"),
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

/// Why a database could not be opened. The database was not changed, nor one created.
///
/// Where only SQLite itself refuses, at the very end, the lock file beside the database may stay behind.
#[derive(Debug)]
pub struct OpenError {
    /// The path as it was given.
    pub path: PathBuf,
    /// What stood in the way.
    pub reason: OpenErrorReason,
}

/// What stood in the way of an open.
#[derive(Debug)]
#[non_exhaustive]
pub enum OpenErrorReason {
    /// A configuration value makes no sense.
    Config(ConfigError),
    /// The path names no file on disk (`:memory:`, an empty path, a `file:` URI): give a plain path.
    NotAFilePath,
    /// There is no file, and `create` is off.
    Missing,
    /// The directory of the file does not exist.
    DirectoryMissing,
    /// The path is a directory or something else that is not a regular file.
    NotAFile,
    /// The file has several hard links, which SQLite does not define: keep one, or use a symbolic link.
    HardLinks {
        /// How many names the file has.
        links: u64,
    },
    /// This process may not read and write the file, or not write its directory, where the WAL must live.
    PermissionDenied {
        /// The file or directory in question.
        at: PathBuf,
    },
    /// The file is not a SQLite database, or it is encrypted.
    NotADatabase(Cause),
    /// Another process has the database open as its sole writer.
    HeldByProcess {
        /// Its process id, where the lock file tells.
        pid: Option<u32>,
    },
    /// This process has the database open with another value of this option: use that handle, or the same.
    OptionDiffers {
        /// The field of [`Config`](crate::Config).
        option: &'static str,
    },
    /// This process is still closing the database, or opening it elsewhere, after `shutdown_wait_max`.
    StillClosing,
    /// The SQLite that is linked has a known corruption bug; 3.51.3 or later is needed.
    SqliteTooOld {
        /// The version that is linked.
        version: &'static str,
    },
    /// SQLite did not take a setting: journal mode WAL on a file system without shared memory, for example.
    Pragma {
        /// The setting.
        name: &'static str,
        /// What was asked for.
        wanted: String,
        /// What SQLite answered.
        found: String,
    },
    /// SQLite could not open or read the file.
    Sqlite(Cause),
    /// The operating system refused something.
    Io(std::io::Error),
}

impl OpenError {
    /// SQLite's extended result code, if an error of SQLite is behind this one.
    #[must_use]
    pub fn sqlite_extended_code(&self) -> Option<i32> {
        sqlite_extended_code(self)
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "could not open {}: {}", self.path.display(), self.reason)
    }
}

impl fmt::Display for OpenErrorReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(_) => f.write_str("the configuration is not valid"),
            Self::NotAFilePath => f.write_str("a plain path to a file on disk is needed"),
            Self::Missing => f.write_str("there is no such file, and `create` is off"),
            Self::DirectoryMissing => f.write_str("its directory does not exist"),
            Self::NotAFile => f.write_str("it is a directory or not a regular file"),
            Self::HardLinks { links } => {
                write!(f, "it has {links} hard links; keep one, or use a symbolic link")
            }
            Self::PermissionDenied { at } => write!(f, "this process may not write {}", at.display()),
            Self::NotADatabase(_) => f.write_str("it is not a SQLite database, or it is encrypted"),
            Self::HeldByProcess { pid: Some(pid) } => {
                write!(f, "process {pid} has it open as its sole writer")
            }
            Self::HeldByProcess { pid: None } => {
                f.write_str("another process has it open as its sole writer")
            }
            Self::OptionDiffers { option } => {
                write!(f, "this process has it open with another value of `{option}`")
            }
            Self::StillClosing => f.write_str("this process is still closing it"),
            Self::SqliteTooOld { version } => {
                write!(f, "SQLite {version} has a known corruption bug; 3.51.3 or later is needed")
            }
            Self::Pragma { name, wanted, found } => {
                write!(f, "SQLite answered {found} where {name} = {wanted} was asked for")
            }
            Self::Sqlite(_) => f.write_str("SQLite could not open it"),
            Self::Io(_) => f.write_str("the operating system refused it"),
        }
    }
}

impl StdError for OpenError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.reason {
            OpenErrorReason::Config(error) => Some(error),
            OpenErrorReason::NotADatabase(cause) | OpenErrorReason::Sqlite(cause) => Some(cause.as_sqlite()),
            OpenErrorReason::Io(error) => Some(error),
            _ => None,
        }
    }
}

/// The same reason, for callers who share it.
impl From<OpenErrorReason> for Cause {
    fn from(reason: OpenErrorReason) -> Self {
        match reason {
            OpenErrorReason::Sqlite(cause) | OpenErrorReason::NotADatabase(cause) => cause,
            other => {
                let cannot_open = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN);
                Self::from(rusqlite::Error::SqliteFailure(cannot_open, Some(other.to_string())))
            }
        }
    }
}

impl From<rusqlite::Error> for OpenErrorReason {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::NotADatabase) => Self::NotADatabase(error.into()),
            _ => Self::Sqlite(error.into()),
        }
    }
}

/// Walks the sources of an error to the first of SQLite.
fn sqlite_extended_code(error: &(dyn StdError + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(sqlite) = error.downcast_ref::<rusqlite::Error>() {
            return sqlite.sqlite_error().map(|code| code.extended_code);
        }
        next = error.source();
    }
    None
}
