//! What SQLite's result codes mean for a transaction and for the service.

use rusqlite::ffi;

/// A failure, by what can be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Of the command itself: a constraint, wrong SQL, something it may not do. It would fail again.
    Command,
    /// Another process has a lock that is needed.
    Busy,
    /// There is no space.
    DiskFull,
    /// The system could not write.
    Write,
    /// The system could not read, or lock: whatever it was to do, it was not a sync.
    Read,
    /// Any other failure of the system: a failed sync, no file descriptor.
    Io,
    /// There is no memory.
    Memory,
    /// The file is damaged, or a read failed in a way that looks so.
    Corrupt,
    /// A statement was ended by the service: a deadline, a shutdown.
    Interrupted,
}

impl Failure {
    /// Classifies an extended result code (<https://www.sqlite.org/rescode.html>).
    pub(crate) fn of_code(extended: i32) -> Self {
        match extended {
            ffi::SQLITE_IOERR_WRITE => return Self::Write,
            ffi::SQLITE_IOERR_READ
            | ffi::SQLITE_IOERR_SHORT_READ
            | ffi::SQLITE_IOERR_FSTAT
            | ffi::SQLITE_IOERR_LOCK
            | ffi::SQLITE_IOERR_RDLOCK
            | ffi::SQLITE_IOERR_SHMOPEN
            | ffi::SQLITE_IOERR_SHMSIZE
            | ffi::SQLITE_IOERR_SHMLOCK
            | ffi::SQLITE_IOERR_SHMMAP => return Self::Read,
            ffi::SQLITE_IOERR_NOMEM => return Self::Memory,
            // A file system that knows its data to be damaged.
            ffi::SQLITE_IOERR_CORRUPTFS => return Self::Corrupt,
            // What a virtual table says of its own content: a wrong command to a full-text index, for one.
            ffi::SQLITE_CORRUPT_VTAB => return Self::Command,
            _ => {}
        }
        match extended & 0xff {
            // PROTOCOL: the locks of the WAL could not be had after many tries.
            ffi::SQLITE_BUSY | ffi::SQLITE_PROTOCOL => Self::Busy,
            ffi::SQLITE_FULL => Self::DiskFull,
            ffi::SQLITE_IOERR | ffi::SQLITE_CANTOPEN | ffi::SQLITE_READONLY => Self::Io,
            ffi::SQLITE_NOMEM => Self::Memory,
            ffi::SQLITE_CORRUPT | ffi::SQLITE_NOTADB => Self::Corrupt,
            ffi::SQLITE_INTERRUPT => Self::Interrupted,
            _ => Self::Command,
        }
    }

    /// What no result code stands behind is the command's own.
    pub(crate) fn of(error: &rusqlite::Error) -> Self {
        error.sqlite_error().map_or(Self::Command, |error| Self::of_code(error.extended_code))
    }

    /// Whether the same command may succeed another time.
    pub(crate) fn is_environmental(self) -> bool {
        self != Self::Command
    }
}
