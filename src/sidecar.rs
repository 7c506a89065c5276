//! The lock file beside the database: one sole writer across processes.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::error::OpenErrorReason;

/// The held lock; dropping it lets the next one in.
///
/// The file is never unlinked: another process may have it open already, and would then lock a file that
/// nobody else can find. The operating system releases the lock of a process that dies.
///
/// A fork inherits the lock with the descriptor and shares it: it must close it, and never unlock it. So no
/// `Drop` unlocks, and [`release`](Self::release) is for the owner alone.
#[derive(Debug)]
pub(crate) struct Sidecar {
    file: File,
}

impl Sidecar {
    /// As [`acquire`](Self::acquire), if there is a lock file.
    pub(crate) fn acquire_existing(path: &Path) -> Option<Result<Self, OpenErrorReason>> {
        sidecar_path(path).exists().then(|| Self::acquire(path))
    }

    /// Takes the lock of the database at the canonical `path`.
    pub(crate) fn acquire(path: &Path) -> Result<Self, OpenErrorReason> {
        let at = sidecar_path(path);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        {
            // Who else can write to the directory could have the lock file lead to another, which would be emptied here.
            // SQLite opens its own files in this way too.
            use std::os::unix::fs::OpenOptionsExt;
            options.mode(0o600).custom_flags(libc::O_NOFOLLOW);
        }
        let mut file = match options.open(&at) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return Err(OpenErrorReason::PermissionDenied { at });
            }
            Err(error) => return Err(OpenErrorReason::Io(error)),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(OpenErrorReason::HeldByProcess { pid: read_pid(&mut file) });
            }
            Err(TryLockError::Error(error)) => return Err(OpenErrorReason::Io(error)),
        }
        write_pid(&mut file).map_err(OpenErrorReason::Io)?;
        Ok(Self { file })
    }

    /// Lets the next one in, also where a program that is just being started has a copy of the descriptor.
    pub(crate) fn release(self) {
        if let Err(error) = self.file.unlock() {
            tracing::error!(%error, "the lock file stays locked until this process ends");
        }
    }
}

fn sidecar_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push("-solewriter");
    name.into()
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    writeln!(file, "{}", std::process::id())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_released_lock_is_free_though_somebody_has_a_copy_of_the_descriptor() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("test.db");
        let sidecar = Sidecar::acquire(&path).unwrap();
        let copy = sidecar.file.try_clone().unwrap();
        assert!(matches!(Sidecar::acquire(&path), Err(OpenErrorReason::HeldByProcess { pid: Some(pid) })
            if pid == std::process::id()));
        sidecar.release();
        Sidecar::acquire(&path).unwrap();
        drop(copy);
    }

    #[test]
    fn a_dropped_copy_leaves_the_lock_to_the_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("test.db");
        let sidecar = Sidecar::acquire(&path).unwrap();
        // What a fork does with what it inherits.
        drop(Sidecar { file: sidecar.file.try_clone().unwrap() });
        assert!(Sidecar::acquire(&path).is_err());
        sidecar.release();
    }
}
