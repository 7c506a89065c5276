//! What lies on the disk: the database, its WAL, its shared memory, its rollback journal.

use std::error::Error;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;

/// Why a file can't be inspected.
#[derive(Debug)]
pub(crate) enum Unreadable {
    Missing(PathBuf),
    NotAFile(PathBuf),
    NotADatabase(PathBuf),
    PermissionDenied(PathBuf),
    Io(PathBuf, io::Error),
}

/// How a database keeps what it would need to undo, as its header says. Which kind of rollback journal it is, is the
/// choice of each connection and not in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum JournalMode {
    Wal,
    Rollback,
}

/// The files of a database at one moment; equal at two moments if nobody has written in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Files {
    pub(crate) journal_mode: JournalMode,
    pub(crate) database: OnDisk,
    pub(crate) wal: Option<OnDisk>,
    pub(crate) shm: Option<OnDisk>,
    pub(crate) journal: Option<OnDisk>,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OnDisk {
    pub(crate) bytes: u64,
    modified: Option<SystemTime>,
}

/// The canonical path of what is a file: SQLite, too, keeps the other files beside the one a link leads to.
pub(crate) fn find(path: &Path) -> Result<PathBuf, Unreadable> {
    let found = fs::canonicalize(path).map_err(|error| Unreadable::of(path, error))?;
    let metadata = fs::metadata(&found).map_err(|error| Unreadable::of(path, error))?;
    if metadata.is_file() { Ok(found) } else { Err(Unreadable::NotAFile(path.to_owned())) }
}

/// The path of a file that SQLite or the service keeps beside the database.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Opens a file for reading, or says which one could not be.
pub(crate) fn open(path: &Path) -> Result<File, Unreadable> {
    File::open(path).map_err(|error| Unreadable::of(path, error))
}

/// As [`open`], where the file need not be there.
pub(crate) fn open_if_there(path: &Path) -> Result<Option<File>, Unreadable> {
    match open(path) {
        Ok(file) => Ok(Some(file)),
        Err(Unreadable::Missing(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Files {
    /// Looks at all of them, and makes sure that they may be read.
    pub(crate) fn look(path: &Path) -> Result<Self, Unreadable> {
        let database = OnDisk::of(path)?.ok_or_else(|| Unreadable::Missing(path.to_owned()))?;
        Ok(Self {
            journal_mode: journal_mode(path)?,
            database,
            wal: OnDisk::of(&beside(path, "-wal"))?,
            shm: OnDisk::of(&beside(path, "-shm"))?,
            journal: OnDisk::of(&beside(path, "-journal"))?,
        })
    }
}

impl OnDisk {
    fn of(path: &Path) -> Result<Option<Self>, Unreadable> {
        let Some(file) = open_if_there(path)? else { return Ok(None) };
        let metadata = file.metadata().map_err(|error| Unreadable::of(path, error))?;
        Ok(Some(Self { bytes: metadata.len(), modified: metadata.modified().ok() }))
    }
}

/// Reads the header (<https://www.sqlite.org/fileformat2.html#the_database_header>).
fn journal_mode(path: &Path) -> Result<JournalMode, Unreadable> {
    const MAGIC: &[u8; 16] = b"SQLite format 3\0";
    const READ_VERSION: usize = 19;
    let mut header = Vec::new();
    let read = open(path)?.take(100).read_to_end(&mut header);
    read.map_err(|error| Unreadable::of(path, error))?;
    match header.get(READ_VERSION) {
        // A database in which nothing has been stored yet.
        None if header.is_empty() => Ok(JournalMode::Rollback),
        Some(2) if header.starts_with(MAGIC) => Ok(JournalMode::Wal),
        Some(_) if header.starts_with(MAGIC) => Ok(JournalMode::Rollback),
        _ => Err(Unreadable::NotADatabase(path.to_owned())),
    }
}

impl Unreadable {
    pub(crate) fn of(path: &Path, error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::NotFound => Self::Missing(path.to_owned()),
            ErrorKind::PermissionDenied => Self::PermissionDenied(path.to_owned()),
            _ => Self::Io(path.to_owned(), error),
        }
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(path) => write!(f, "there is no file {}", path.display()),
            Self::NotAFile(path) => write!(f, "{} is not a file", path.display()),
            Self::NotADatabase(path) => {
                write!(f, "{} is not a SQLite database, or encrypted", path.display())
            }
            Self::PermissionDenied(path) => write!(f, "no permission to read {}", path.display()),
            Self::Io(path, _) => write!(f, "{} can't be read", path.display()),
        }
    }
}

impl Error for Unreadable {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Io(_, error) => Some(error),
            _ => None,
        }
    }
}
