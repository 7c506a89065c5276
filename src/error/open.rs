//! Why a database could not be opened.

use std::error::Error as StdError;
use std::fmt;
use std::path::PathBuf;

use rusqlite::ffi;

use super::{Cause, sqlite_extended_code};
use crate::config::ConfigError;

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
    /// The file lies on a network or virtual file system, where a WAL is not safe: move it to a local disk.
    ///
    /// [`allow_network_file_system`](crate::Config::allow_network_file_system) opens it all the same.
    NetworkFileSystem {
        /// What the file system is called.
        kind: &'static str,
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
    /// This process is a fork of one that had the database open at the time of the fork.
    ///
    /// SQLite believes that the locks of then are still held here, which they are not, and would take none of its
    /// own: two processes would write over each other. Fork before the database is opened, or run a new program.
    OpenBeforeFork,
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
    /// The hook of [`Builder::on_connect`](crate::Builder::on_connect) failed, or left a transaction open.
    OnConnect(Cause),
    /// The hook of [`Builder::on_connect`](crate::Builder::on_connect) panicked.
    OnConnectPanicked {
        /// The message of the panic.
        message: String,
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
            Self::NetworkFileSystem { kind } => {
                write!(f, "a WAL is not safe on {kind}; use a local disk, or set `allow_network_file_system`")
            }
            Self::PermissionDenied { at } => write!(f, "this process may not write {}", at.display()),
            Self::NotADatabase(_) => f.write_str("it is not a SQLite database, or it is encrypted"),
            Self::HeldByProcess { pid: Some(pid) } => {
                write!(f, "process {pid} has it open as its sole writer")
            }
            Self::HeldByProcess { pid: None } => {
                f.write_str("another process has it open as its sole writer")
            }
            Self::OpenBeforeFork => f.write_str(
                "this process is a fork of one that had it open; fork before, or run a new program",
            ),
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
            Self::OnConnect(_) => f.write_str("the hook for its connections failed"),
            Self::OnConnectPanicked { message } => {
                write!(f, "the hook for its connections panicked: {message}")
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
            OpenErrorReason::NotADatabase(cause)
            | OpenErrorReason::OnConnect(cause)
            | OpenErrorReason::Sqlite(cause) => Some(cause.as_sqlite()),
            OpenErrorReason::Io(error) => Some(error),
            _ => None,
        }
    }
}

/// The same reason, for everyone whom a later open that fails concerns: callers, the log, the health.
///
/// What a hook says is for who opens the database. It may name other files, or hold a key.
impl From<OpenErrorReason> for Cause {
    fn from(reason: OpenErrorReason) -> Self {
        let (code, message) = match reason {
            OpenErrorReason::Sqlite(cause) | OpenErrorReason::NotADatabase(cause) => return cause,
            OpenErrorReason::OnConnect(cause) => {
                let code = cause.as_sqlite().sqlite_error().map(|error| error.extended_code);
                let why = code.map_or("an error of its own", ffi::code_to_str);
                (code.unwrap_or(ffi::SQLITE_CANTOPEN), format!("the hook for its connections failed: {why}"))
            }
            OpenErrorReason::OnConnectPanicked { .. } => {
                (ffi::SQLITE_CANTOPEN, "the hook for its connections panicked".into())
            }
            other => (ffi::SQLITE_CANTOPEN, other.to_string()),
        };
        rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(message)).into()
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
