//! Whether the files of the database are still those that the service has open.
//!
//! In WAL mode SQLite goes on to answer `Ok` when the database, its -wal or its -shm file is deleted, renamed or
//! replaced, though nobody will ever find what it writes. So the files are asked for by name after each commit.
//! They are never opened: closing any descriptor of a database file drops the locks that the process has on it
//! (<https://www.sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_>).

use std::fmt;
use std::io;
use std::path::Path;

use rusqlite::ffi;

use crate::error::Cause;

/// The files of a database, as they were found once: after the first use of a connection, which makes them.
#[derive(Debug)]
pub(crate) struct FileIdentities {
    files: [by_name::File; 3],
}

/// A file is no longer the one that the service has open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Replaced {
    pub(crate) file: DatabaseFile,
    pub(crate) found: Found,
}

/// One of the files of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DatabaseFile {
    Database,
    Wal,
    SharedMemory,
}

/// What is there now under the name of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    AnotherFile,
    /// Something that can't be looked at: the directory is closed, or the system fails.
    Unreadable,
}

impl FileIdentities {
    /// Records what the files are, of the database at its canonical `path`.
    pub(crate) fn record(path: &Path) -> io::Result<Self> {
        let record = |file: DatabaseFile| by_name::File::record(path, file);
        let files = [DatabaseFile::Database, DatabaseFile::Wal, DatabaseFile::SharedMemory].map(record);
        let [database, wal, shared_memory] = files;
        Ok(Self { files: [database?, wal?, shared_memory?] })
    }

    /// Fails if one of them is another file by now. Three calls of the system, and for paths of a usual length no
    /// memory is taken.
    pub(crate) fn check(&self) -> Result<(), Replaced> {
        self.files.iter().try_for_each(by_name::File::check)
    }

    /// The same for the database file alone: while nobody has it open here, another program may be the last to close
    /// it, and rightly deletes the others.
    pub(crate) fn check_database(&self) -> Result<(), Replaced> {
        let [database, ..] = &self.files;
        database.check()
    }

    /// Device and inode of the database file.
    #[cfg(target_os = "linux")]
    pub(crate) fn database(&self) -> (u64, u64) {
        let [database, ..] = &self.files;
        database.identity
    }
}

impl DatabaseFile {
    fn suffix(self) -> &'static str {
        match self {
            Self::Database => "",
            Self::Wal => "-wal",
            Self::SharedMemory => "-shm",
        }
    }
}

impl fmt::Display for Replaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.file {
            DatabaseFile::Database => "the database file ",
            DatabaseFile::Wal => "the -wal file ",
            DatabaseFile::SharedMemory => "the -shm file ",
        })?;
        f.write_str(match self.found {
            Found::Nothing => "was deleted or renamed while it was in use",
            Found::AnotherFile => "was replaced by another while it was in use",
            Found::Unreadable => "can't be looked at any more",
        })
    }
}

impl Replaced {
    /// The file that was opened under the name of the database is another by now, or was.
    pub(crate) const DATABASE: Self = Self { file: DatabaseFile::Database, found: Found::AnotherFile };
}

/// As the error that SQLite has for this, and raises only without a WAL.
impl From<Replaced> for Cause {
    fn from(replaced: Replaced) -> Self {
        let moved = ffi::Error::new(ffi::SQLITE_READONLY_DBMOVED);
        rusqlite::Error::SqliteFailure(moved, Some(replaced.to_string())).into()
    }
}

#[cfg(unix)]
mod by_name {
    use std::ffi::OsString;
    use std::fs;
    use std::io::{self, ErrorKind};
    use std::os::unix::fs::MetadataExt;
    use std::path::{Path, PathBuf};

    use super::{DatabaseFile, Found, Replaced};

    #[derive(Debug)]
    pub(super) struct File {
        file: DatabaseFile,
        path: PathBuf,
        /// Device and inode.
        pub(super) identity: (u64, u64),
    }

    impl File {
        pub(super) fn record(path: &Path, file: DatabaseFile) -> io::Result<Self> {
            let mut path = OsString::from(path);
            path.push(file.suffix());
            let path = PathBuf::from(path);
            Ok(Self { file, identity: identity(&path)?, path })
        }

        pub(super) fn check(&self) -> Result<(), Replaced> {
            let found = match identity(&self.path) {
                Ok(identity) if identity == self.identity => return Ok(()),
                Ok(_) => Found::AnotherFile,
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                    Found::Nothing
                }
                Err(_) => Found::Unreadable,
            };
            Err(Replaced { file: self.file, found })
        }
    }

    /// Device and inode, and nothing else: a kernel with fine-grained timestamps gives a file whose times were asked
    /// for new ones at its next write, and every sync of the WAL would have to write them too.
    #[cfg(target_os = "linux")]
    fn identity(path: &Path) -> io::Result<(u64, u64)> {
        use rustix::fs::{AtFlags, CWD, StatxFlags, makedev, statx};
        match statx(CWD, path, AtFlags::empty(), StatxFlags::INO) {
            Ok(found) => Ok((makedev(found.stx_dev_major, found.stx_dev_minor), found.stx_ino)),
            Err(rustix::io::Errno::NOSYS) => all_of(path),
            Err(error) => Err(error.into()),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn identity(path: &Path) -> io::Result<(u64, u64)> {
        all_of(path)
    }

    fn all_of(path: &Path) -> io::Result<(u64, u64)> {
        fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
    }
}

/// Without inodes a file has to be opened to learn what it is, which costs too much after each commit. Windows,
/// for one, lets nobody delete or rename a file that SQLite has open.
#[cfg(not(unix))]
mod by_name {
    use std::io;
    use std::path::Path;

    use super::{DatabaseFile, Replaced};

    #[derive(Debug)]
    pub(super) struct File;

    impl File {
        pub(super) fn record(_path: &Path, _file: DatabaseFile) -> io::Result<Self> {
            Ok(Self)
        }

        pub(super) fn check(&self) -> Result<(), Replaced> {
            Ok(())
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    const FILES: [DatabaseFile; 3] = [DatabaseFile::Database, DatabaseFile::Wal, DatabaseFile::SharedMemory];

    /// A database in use, with all of its files.
    fn in_use() -> (tempfile::TempDir, PathBuf, rusqlite::Connection) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("test.db");
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (x)").unwrap();
        (directory, path, connection)
    }

    fn name(path: &Path, file: DatabaseFile) -> PathBuf {
        PathBuf::from(format!("{}{}", path.display(), file.suffix()))
    }

    fn found_after(file: DatabaseFile, change: impl FnOnce(&Path)) -> Result<(), Replaced> {
        let (_directory, path, connection) = in_use();
        let identities = FileIdentities::record(&path).unwrap();
        connection.execute_batch("INSERT INTO t VALUES (1)").unwrap();
        assert_eq!(identities.check(), Ok(()), "a write replaces nothing");
        change(&name(&path, file));
        connection.execute_batch("INSERT INTO t VALUES (2)").unwrap(); // SQLite has not noticed.
        identities.check()
    }

    #[test]
    fn a_file_that_is_deleted_or_renamed_is_missed() {
        for file in FILES {
            let missed = Err(Replaced { file, found: Found::Nothing });
            assert_eq!(found_after(file, |path| fs::remove_file(path).unwrap()), missed);
            assert_eq!(
                found_after(file, |path| fs::rename(path, path.with_extension("old")).unwrap()),
                missed
            );
        }
    }

    #[test]
    fn a_file_that_is_replaced_is_another() {
        for file in FILES {
            let another = Err(Replaced { file, found: Found::AnotherFile });
            let replace = |path: &Path| {
                // Not deleted first: the new file could get the same inode.
                let copy = path.with_extension("copy");
                fs::copy(path, &copy).unwrap();
                fs::rename(copy, path).unwrap();
            };
            assert_eq!(found_after(file, replace), another);
        }
    }

    #[test]
    fn a_directory_in_place_of_the_path_is_noticed() {
        let (directory, path, _connection) = in_use();
        let identities = FileIdentities::record(&path).unwrap();
        fs::rename(directory.path(), directory.path().with_extension("moved")).unwrap();
        assert_eq!(identities.check(), Err(Replaced { file: DatabaseFile::Database, found: Found::Nothing }));
        fs::rename(directory.path().with_extension("moved"), directory.path()).unwrap();
        assert_eq!(identities.check(), Ok(()));
    }

    #[test]
    fn what_is_not_there_can_not_be_recorded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("test.db");
        fs::write(&path, "").unwrap();
        assert_eq!(FileIdentities::record(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn the_error_names_the_file_and_what_became_of_it() {
        let cause = Cause::from(Replaced { file: DatabaseFile::Wal, found: Found::Nothing });
        assert_eq!(cause.as_sqlite().to_string(), "the -wal file was deleted or renamed while it was in use");
        let code = cause.as_sqlite().sqlite_error().unwrap().extended_code;
        assert_eq!(code, ffi::SQLITE_READONLY_DBMOVED);
    }
}
