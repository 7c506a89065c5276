//! Who uses the database: who holds the lock file of the sole writer, who is connected, who writes now.
//!
//! The lock file is locked with `flock`, and `flock` can't be asked who holds it without being taken. Even a shared
//! lock, given back at once, would get a service refused that opens the database in that moment: it tries once.
//! So the system is asked for its table of locks, which takes none. Only Linux has one; elsewhere it is not known.
//!
//! The locks of SQLite itself are byte ranges, of which the system tells without a lock, too.

use std::fs;
use std::path::Path;

use serde::Serialize;

use super::files::beside;

/// The byte of the -shm file that SQLite's writer locks
/// (<https://www.sqlite.org/walformat.html#wal_index_locks>).
const WAL_WRITE_LOCK: u64 = 120;

/// The byte that every connection to the -shm file has a shared lock on: the "dead man's switch" of `os_unix.c`.
const CONNECTED_LOCK: u64 = 128;

/// The bytes of the database file that connections lock: pending, reserved and shared
/// (<https://www.sqlite.org/src/file/src/os.h>).
const DATABASE_LOCKS: (u64, u64) = (0x4000_0000, 512);

/// Who uses the database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Users {
    /// The lock of the sole writer.
    pub(crate) sole_writer: SoleWriter,
    /// Whether any process has the WAL open; `None` where the system does not tell.
    pub(crate) is_connected: Option<bool>,
    /// The processes that have the WAL open, as far as the system tells.
    pub(crate) connected: Vec<u32>,
    /// The process that has SQLite's write lock on the WAL at this moment.
    pub(crate) writing: Option<u32>,
}

/// What is known of the lock file beside the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub(crate) enum SoleWriter {
    /// There is no lock file: no service has ever opened the database here.
    Never,
    /// Nobody holds it.
    Free {
        /// The last process that did, as it wrote down.
        last_pid: Option<u32>,
    },
    /// A service holds it.
    Held { pid: Option<u32> },
    /// There is a lock file, and the system does not tell whether it is locked.
    Unknown {
        /// The process that holds it or was the last to.
        last_pid: Option<u32>,
    },
}

impl SoleWriter {
    pub(crate) fn held_by(self) -> Option<u32> {
        match self {
            Self::Held { pid } => pid,
            _ => None,
        }
    }
}

/// Finds out who uses the database at `path`.
pub(crate) fn users(path: &Path) -> Users {
    let shm = beside(path, "-shm");
    let table = table::read();
    let table = table.as_ref();
    let connected = table.map(|locks| locks.posix(&shm, CONNECTED_LOCK)).unwrap_or_default();
    let writing = table.and_then(|locks| locks.posix(&shm, WAL_WRITE_LOCK).first().copied());
    let sole_writer = sole_writer(&beside(path, "-solewriter"), table);
    Users { sole_writer, is_connected: is_locked(&shm, (CONNECTED_LOCK, 1)), connected, writing }
}

/// Whether any process has the database file itself open in SQLite and at work, or keeps it for itself alone.
pub(crate) fn is_database_locked(path: &Path) -> Option<bool> {
    is_locked(path, DATABASE_LOCKS)
}

fn sole_writer(path: &Path, table: Option<&table::Table>) -> SoleWriter {
    let Ok(text) = fs::read_to_string(path) else {
        return if path.exists() { SoleWriter::Unknown { last_pid: None } } else { SoleWriter::Never };
    };
    let last_pid = text.trim().parse().ok();
    match table.map(|locks| locks.flock(path, last_pid)) {
        Some(Some(pid)) => SoleWriter::Held { pid: Some(pid).filter(|&pid| pid != 0).or(last_pid) },
        Some(None) => SoleWriter::Free { last_pid },
        None => SoleWriter::Unknown { last_pid },
    }
}

/// Whether anyone else has a lock on some of these bytes. Asking takes none.
#[cfg(unix)]
fn is_locked(path: &Path, (start, length): (u64, u64)) -> Option<bool> {
    use rustix::process::{Flock, FlockOffsetType, FlockType, fcntl_getlk};
    if !path.exists() {
        return Some(false);
    }
    let file = fs::File::open(path).ok()?;
    let wanted =
        Flock { start, length, pid: None, typ: FlockType::WriteLock, offset_type: FlockOffsetType::Set };
    let in_the_way = fcntl_getlk(&file, &wanted).ok()?;
    Some(in_the_way.is_some())
}

#[cfg(not(unix))]
fn is_locked(_path: &Path, _bytes: (u64, u64)) -> Option<bool> {
    None
}

/// The system's table of locks.
#[cfg(target_os = "linux")]
mod table {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use procfs::{Lock, LockType};

    pub(super) struct Table(Vec<Lock>);

    /// `None` if the system keeps it for itself, as some containers do.
    pub(super) fn read() -> Option<Table> {
        procfs::locks().ok().map(Table)
    }

    impl Table {
        /// The process that holds the `flock` of a file; 0 if it is in a process namespace of its own.
        pub(super) fn flock(&self, path: &Path, expected: Option<u32>) -> Option<u32> {
            let file = fs::metadata(path).ok()?;
            let mut holders = self.0.iter().filter(|lock| lock.lock_type == LockType::FLock);
            // Some file systems number their devices differently here (btrfs, overlayfs). Then a process that has
            // locked the same inode somewhere, and has written its id into this file, is the one.
            holders
                .find(|lock| lock.inode == file.ino() && (is_on(lock, &file) || pid(lock) == expected))
                .map(|lock| pid(lock).unwrap_or_default())
        }

        /// The processes that have a lock on this byte of a file.
        pub(super) fn posix(&self, path: &Path, byte: u64) -> Vec<u32> {
            let Ok(file) = fs::metadata(path) else { return Vec::new() };
            let covers =
                |lock: &&Lock| lock.offset_first <= byte && lock.offset_last.is_none_or(|last| byte <= last);
            let locks = self.0.iter().filter(|lock| lock.lock_type == LockType::Posix);
            let mut holders: Vec<u32> = locks
                .filter(|lock| lock.inode == file.ino() && is_on(lock, &file))
                .filter(covers)
                .filter_map(pid)
                .filter(|&pid| pid != 0)
                .collect();
            holders.sort_unstable();
            holders.dedup();
            holders
        }
    }

    fn is_on(lock: &Lock, file: &fs::Metadata) -> bool {
        (rustix::fs::major(file.dev()), rustix::fs::minor(file.dev())) == (lock.devmaj, lock.devmin)
    }

    fn pid(lock: &Lock) -> Option<u32> {
        lock.pid.and_then(|pid| pid.try_into().ok())
    }
}

/// There is none to read.
#[cfg(not(target_os = "linux"))]
mod table {
    use std::path::Path;

    pub(super) enum Table {}

    pub(super) fn read() -> Option<Table> {
        None
    }

    impl Table {
        pub(super) fn flock(&self, _path: &Path, _expected: Option<u32>) -> Option<u32> {
            match *self {}
        }

        pub(super) fn posix(&self, _path: &Path, _byte: u64) -> Vec<u32> {
            match *self {}
        }
    }
}
