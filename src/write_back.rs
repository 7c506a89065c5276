//! Has the system write the database file to its disk in small steps, before it is synced.
//!
//! A sync hands everything that a checkpoint has copied to the disk at once, and a COMMIT that syncs the WAL meanwhile
//! waits behind all of it: tens of milliseconds. In small steps it waits behind one of them.
//!
//! The system is asked through a descriptor that SQLite has open, since one of our own could never be closed again
//! (see `identity`). Where there is none to be found, which is everywhere but on Linux, the sync does it all.

use std::io;

use crate::identity::FileIdentities;

/// The way to the database file of a connection that stays open.
pub(crate) struct WriteBack {
    #[cfg(target_os = "linux")]
    file: Option<linux::OpenFile>,
}

impl WriteBack {
    #[cfg(target_os = "linux")]
    pub(crate) fn of(files: &FileIdentities) -> Self {
        Self { file: linux::OpenFile::find(files.database()) }
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn of(_files: &FileIdentities) -> Self {
        Self {}
    }

    /// Returns once what was written to the file until now is on its way to the disk, or has arrived there; it is not
    /// durable before it is synced.
    ///
    /// # Errors
    /// To be taken as a failed sync: the system tells such an error once for each time that a file was opened, so the
    /// next sync may not know of it.
    pub(crate) fn run(&self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        if let Some(file) = &self.file {
            return file.write_back();
        }
        Ok(())
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs;
    use std::io;
    use std::os::fd::RawFd;

    use rustix::fs::{AtFlags, CWD, StatxFlags, makedev, statx};
    use rustix::io::Errno;

    use crate::sqlite_ffi;

    /// A millisecond of an ordinary disk or less; smaller ones made no difference.
    const STEP_BYTES: u64 = 128 << 10;

    /// A step costs a call also where nothing is to be written, so those of a large file are larger.
    const STEPS_MAX: u64 = 4_096;

    /// A file that SQLite has open.
    ///
    /// It keeps the descriptor for as long as anybody in the process holds a lock on the file, and every connection in
    /// WAL mode holds one (<https://www.sqlite.org/src/file/src/os_unix.c>, `setPendingFd`). Should somebody else have
    /// opened and closed it, then its number may be that of another file by now, so it is looked at each time.
    pub(super) struct OpenFile {
        descriptor: RawFd,
        identity: (u64, u64),
    }

    impl OpenFile {
        pub(super) fn find(identity: (u64, u64)) -> Option<Self> {
            let names = fs::read_dir("/proc/self/fd")
                .ok()?
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            let mut files = names.filter_map(|name| Some(Self { descriptor: name.parse().ok()?, identity }));
            files.find(|file| file.bytes().is_some())
        }

        /// The size of the file; `None` if the descriptor is of another.
        fn bytes(&self) -> Option<u64> {
            let name = format!("/proc/self/fd/{}", self.descriptor);
            // Not its times, see `identity`.
            let found = statx(CWD, name, AtFlags::empty(), StatxFlags::INO | StatxFlags::SIZE).ok()?;
            let identity = (makedev(found.stx_dev_major, found.stx_dev_minor), found.stx_ino);
            (identity == self.identity).then_some(found.stx_size)
        }

        pub(super) fn write_back(&self) -> io::Result<()> {
            let Some(bytes) = self.bytes() else { return Ok(()) };
            let step = STEP_BYTES.max(bytes / STEPS_MAX);
            let mut steps = (0..bytes).step_by(usize::try_from(step).unwrap_or(usize::MAX));
            steps.try_for_each(|begin| sqlite_ffi::write_back(self.descriptor, begin, step)).or_else(
                |error| {
                    match Errno::from_io_error(&error) {
                        // A file system or a sandbox that does not let us.
                        Some(Errno::NOSYS | Errno::INVAL | Errno::BADF | Errno::SPIPE | Errno::PERM) => {
                            Ok(())
                        }
                        _ => Err(error),
                    }
                },
            )
        }
    }

    #[cfg(test)]
    mod tests {
        #![allow(clippy::unwrap_used)]
        use std::path::Path;

        use super::*;
        use crate::identity::FileIdentities;

        fn open(path: &Path) -> rusqlite::Connection {
            let connection = rusqlite::Connection::open(path).unwrap();
            connection.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE IF NOT EXISTS t (x)").unwrap();
            connection
        }

        #[test]
        fn the_file_that_sqlite_has_open_is_found_and_no_other() {
            let directory = tempfile::tempdir().unwrap();
            let (path, other_path) = (directory.path().join("test.db"), directory.path().join("other.db"));
            let (connection, _other) = (open(&path), open(&other_path));
            let files = FileIdentities::record(&path).unwrap();
            let file = OpenFile::find(files.database()).unwrap();
            let name = fs::read_link(format!("/proc/self/fd/{}", file.descriptor)).unwrap();
            assert_eq!(name, path.canonicalize().unwrap());
            assert_eq!(file.bytes(), Some(fs::metadata(&path).unwrap().len()));
            file.write_back().unwrap();
            drop(connection);
            // Whatever has the number now.
            assert_eq!(file.bytes(), None);
            file.write_back().unwrap();
            assert!(OpenFile::find(files.database()).is_none());
        }
    }
}
