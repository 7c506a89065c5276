//! Opens a database so that nothing changes: not a byte of its files, not their times, and no file comes to be.
//!
//! A plain read-only connection is not enough: it makes the -shm file, or writes into it. So which way is right depends
//! on what lies there. Where a way is safe only while nobody writes, the files are looked at again afterwards, and
//! if they have changed, the work is done once more.

use std::error::Error;
use std::fmt;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};
use serde::Serialize;
use tempfile::TempDir;

use super::files::{Files, JournalMode, Unreadable, beside};
use super::locks;

/// How often the work is begun anew when somebody has written meanwhile.
const ATTEMPTS: u32 = 10;

/// How long a lock of another process is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// How a database was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum How {
    /// The files themselves, as one reader among others.
    InPlace,
    /// The database file alone: there is nothing in a WAL.
    FileAlone,
    /// A copy in a temporary directory, since SQLite would have to repair the files first.
    Copy,
}

/// Why a database could not be read.
#[derive(Debug)]
enum Failure {
    Busy,
    KeepsChanging,
    NoSpaceForCopy { bytes: u64 },
    Copy(std::io::Error),
    Sqlite(rusqlite::Error),
}

/// What to do about an attempt that came to nothing.
enum Obstacle {
    /// Somebody is at work on the files.
    Changing,
    /// SQLite would have to write before it can read.
    NeedsRepair,
}

/// Runs `examine` on a connection that changes nothing.
pub(crate) fn read<T>(
    path: &Path,
    examine: impl Fn(&Connection) -> rusqlite::Result<T>,
) -> Result<(T, How), Box<dyn Error>> {
    let mut needs_repair = false;
    for _ in 0..ATTEMPTS {
        let before = Files::look(path)?;
        let how = if needs_repair { How::Copy } else { how(&before) };
        let attempt = match how {
            How::InPlace => in_place(path, &examine)?,
            How::FileAlone => undisturbed(path, &before, || file_alone(path, &examine))?,
            How::Copy => copied(path, &before, &examine)?,
        };
        match attempt {
            Ok(value) => return Ok((value, how)),
            Err(Obstacle::NeedsRepair) => needs_repair = true,
            Err(Obstacle::Changing) => needs_repair = false,
        }
        thread::sleep(Duration::from_millis(20));
    }
    Err(Failure::KeepsChanging.into())
}

/// Which way fits what lies there.
fn how(files: &Files) -> How {
    let wal_is_empty = files.wal.is_none_or(|wal| wal.bytes == 0);
    match files.journal_mode {
        // Without a -wal file SQLite would make one.
        JournalMode::Wal if files.wal.is_none() || (wal_is_empty && files.shm.is_none()) => How::FileAlone,
        // It uses a WAL that it finds, whatever the header says, and that needs a -shm file.
        _ if files.wal.is_some() && files.shm.is_none() => How::Copy,
        _ => How::InPlace,
    }
}

type Attempt<T> = Result<Result<T, Obstacle>, Box<dyn Error>>;

/// Reads the files as they lie there.
///
/// With `readonly_shm` SQLite takes part in the locks of the -shm file without a write to it. If nobody keeps that
/// file up to date, it makes an index of its own, in memory. It does open the -wal file for writing, but writes only
/// in recovery and commits, of which there are none. Run by root, it sets the owners of both to that of the database,
/// which they have already.
fn in_place<T>(path: &Path, examine: impl Fn(&Connection) -> rusqlite::Result<T>) -> Attempt<T> {
    match open(path, "mode=ro&readonly_shm=1").and_then(|connection| examine(&connection)) {
        Ok(value) => Ok(Ok(value)),
        Err(error) => match error.sqlite_error().map(|error| (error.code, error.extended_code)) {
            // A journal of a transaction that nobody finished.
            Some((_, ffi::SQLITE_READONLY_ROLLBACK | ffi::SQLITE_READONLY_RECOVERY)) => {
                Ok(Err(Obstacle::NeedsRepair))
            }
            // The last one has just closed the database, and has taken the -wal and the -shm file away.
            Some((ErrorCode::ReadOnly | ErrorCode::CannotOpen, _)) => Ok(Err(Obstacle::Changing)),
            _ => Err(refusal(path, error)),
        },
    }
}

/// Reads the database file and takes no lock.
fn file_alone<T>(
    path: &Path,
    examine: impl Fn(&Connection) -> rusqlite::Result<T>,
) -> Result<T, Box<dyn Error>> {
    open(path, "mode=ro&immutable=1")
        .and_then(|connection| examine(&connection))
        .map_err(|error| refusal(path, error))
}

/// Reads a copy, which SQLite may repair.
fn copied<T>(
    path: &Path,
    before: &Files,
    examine: impl Fn(&Connection) -> rusqlite::Result<T>,
) -> Attempt<T> {
    // A WAL without a -shm file may also belong to a process that keeps the database for itself alone, and writes
    // whenever it likes.
    if locks::is_database_locked(path) == Some(true) {
        return Err(Failure::Busy.into());
    }
    let copy = match undisturbed(path, before, || copy(path, before))? {
        Ok(copy) => copy,
        Err(obstacle) => return Ok(Err(obstacle)),
    };
    let copied_path = copy.path().join("copy.db");
    let value = open(&copied_path, "mode=rw").and_then(|connection| examine(&connection));
    Ok(Ok(value.map_err(|error| refusal(path, error))?))
}

/// Does something that is worth nothing if anybody writes to the files meanwhile.
///
/// Who writes changes the time of a file, and who opens the database makes a -shm file before that.
fn undisturbed<T>(
    path: &Path,
    before: &Files,
    work: impl FnOnce() -> Result<T, Box<dyn Error>>,
) -> Attempt<T> {
    let value = work();
    if Files::look(path)? != *before {
        return Ok(Err(Obstacle::Changing));
    }
    value.map(Ok)
}

fn copy(path: &Path, files: &Files) -> Result<TempDir, Box<dyn Error>> {
    let directory =
        tempfile::Builder::new().prefix("solewriter-inspect-").tempdir().map_err(Failure::Copy)?;
    let others = [("-wal", files.wal), ("-journal", files.journal)];
    let bytes = files.database.bytes
        + others.iter().filter_map(|(_, file)| *file).map(|file| file.bytes).sum::<u64>();
    if free_bytes(directory.path()).is_some_and(|free| free < bytes) {
        return Err(Failure::NoSpaceForCopy { bytes }.into());
    }
    let to = directory.path().join("copy.db");
    fs::copy(path, &to).map_err(Failure::Copy)?;
    for (suffix, file) in others {
        if file.is_some() {
            fs::copy(beside(path, suffix), beside(&to, suffix)).map_err(Failure::Copy)?;
        }
    }
    Ok(directory)
}

/// How much the file system of a directory takes; `None` where the system does not tell.
#[cfg(unix)]
fn free_bytes(directory: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(directory).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(not(unix))]
fn free_bytes(_directory: &Path) -> Option<u64> {
    None
}

/// Opens a connection that believes nothing a file says about itself, and leaves its WAL where it is.
fn open(path: &Path, parameters: &str) -> rusqlite::Result<Connection> {
    // What has no meaning of its own in a URI, and what separates directories.
    const KEPT: &AsciiSet =
        &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');
    let encoded = percent_encode(path.as_os_str().as_encoded_bytes(), KEPT);
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(format!("file:{encoded}?{parameters}"), flags)?;
    connection.busy_timeout(PATIENCE)?;
    for (switch, on) in [
        (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
        (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
        (DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true),
    ] {
        connection.set_db_config(switch, on)?;
    }
    Ok(connection)
}

fn refusal(path: &Path, error: rusqlite::Error) -> Box<dyn Error> {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => Unreadable::NotADatabase(path.to_owned()).into(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Failure::Busy.into(),
        _ => Failure::Sqlite(error).into(),
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy => {
                f.write_str("another process keeps the database locked for itself alone; try again later")
            }
            Self::KeepsChanging => {
                f.write_str("the files are opened and closed all the time; try again later")
            }
            Self::NoSpaceForCopy { bytes } => write!(
                f,
                "the database needs recovery, so a copy must be inspected, and there is no room for {bytes} bytes in \
                 the temporary directory; set TMPDIR to one that has"
            ),
            Self::Copy(_) => {
                f.write_str("the database needs recovery, so a copy must be inspected, which can't be made")
            }
            Self::Sqlite(_) => f.write_str("the database can't be read"),
        }
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Copy(error) => Some(error),
            Self::Sqlite(error) => Some(error),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cell::Cell;
    use std::path::PathBuf;

    use super::*;

    fn database(directory: &TempDir) -> PathBuf {
        let path = directory.path().join("test.db");
        write(&path, "PRAGMA journal_mode = wal; CREATE TABLE t (x)");
        path.canonicalize().unwrap()
    }

    fn write(path: &Path, sql: &str) {
        let connection = Connection::open(path).unwrap();
        connection.execute_batch(sql).unwrap();
        connection.close().unwrap();
    }

    fn count(connection: &Connection) -> rusqlite::Result<i64> {
        connection.query_row("SELECT count(*) FROM t", (), |row| row.get(0))
    }

    #[test]
    fn what_was_read_while_somebody_wrote_is_read_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = database(&directory);
        let calls = Cell::new(0);
        let (rows, how) = read(&path, |connection| {
            calls.set(calls.get() + 1);
            let rows = count(connection);
            if calls.get() == 1 {
                write(&path, "INSERT INTO t VALUES (1)");
            }
            rows
        })
        .unwrap();
        assert_eq!((rows, how, calls.get()), (1, How::FileAlone, 2));
    }

    #[test]
    fn files_that_never_rest_are_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = database(&directory);
        let disturbed = read(&path, |connection| {
            write(&path, "INSERT INTO t VALUES (1)");
            count(connection)
        });
        assert!(disturbed.unwrap_err().to_string().contains("all the time"));
    }

    #[test]
    fn a_connection_can_not_write() {
        let directory = tempfile::tempdir().unwrap();
        let path = database(&directory);
        let refused = read(&path, |connection| connection.execute_batch("DELETE FROM t"));
        assert!(refused.is_err());
    }
}
