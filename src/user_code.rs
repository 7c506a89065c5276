//! Keeps user code from what is not its business: an authorizer and a commit hook, switched by flags.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use rusqlite::{Connection, ffi};

use crate::sqlite_ffi::{self, Action};

/// What a connection is at: so that SQL of user code can't end a transaction, and nothing but the writer ever
/// commits.
#[derive(Clone, Default)]
pub(crate) struct UserCode(Arc<Flags>);

/// Written by the thread of the connection alone, which also runs the hooks.
#[derive(Default)]
struct Flags {
    at: AtomicU8,
    may_commit: AtomicBool,
    others: AtomicU32,
    triggers_write: AtomicBool,
}

/// The service's own statements.
const SERVICE: u8 = 0;
/// A command in a transaction it shares, or a read.
const COMMAND: u8 = 1;
/// Maintenance, alone on the connection and outside of any transaction.
const MAINTENANCE: u8 = 2;

impl UserCode {
    /// Guards a connection; once, since an authorizer set for each command would cost more than the command.
    pub(crate) fn guard(connection: &Connection) -> rusqlite::Result<Self> {
        let user_code = Self::default();
        let flags = user_code.0.clone();
        sqlite_ffi::authorize(connection, move |action| match flags.at.load(Ordering::Relaxed) {
            SERVICE => true,
            MAINTENANCE => is_allowed_in_maintenance(action),
            _ => {
                if action.accessor.is_some() && is_write(action) {
                    flags.triggers_write.store(true, Ordering::Relaxed);
                }
                if !is_read_or_dml(action) {
                    let others = flags.others.load(Ordering::Relaxed);
                    flags.others.store(others.wrapping_add(1), Ordering::Relaxed);
                }
                is_allowed_in_command(action)
            }
        })?;
        let flags = user_code.0.clone();
        // A command that swallows an `OR ROLLBACK` and writes on would commit each statement by itself.
        connection.commit_hook(Some(move || !flags.may_commit.load(Ordering::Relaxed)))?;
        Ok(user_code)
    }

    /// Runs a command or a read.
    pub(crate) fn run<T>(&self, code: impl FnOnce() -> T) -> T {
        self.at(COMMAND, code)
    }

    /// Runs maintenance, whose statements commit by themselves.
    pub(crate) fn maintain<T>(&self, code: impl FnOnce() -> T) -> T {
        self.at(MAINTENANCE, || self.allow_commit(code))
    }

    /// Runs statements of the service in the midst of user code.
    pub(crate) fn pause<T>(&self, code: impl FnOnce() -> T) -> T {
        self.at(SERVICE, code)
    }

    /// Runs the COMMIT of the writer.
    pub(crate) fn allow_commit<T>(&self, code: impl FnOnce() -> T) -> T {
        self.0.may_commit.store(true, Ordering::Relaxed);
        let result = code();
        self.0.may_commit.store(false, Ordering::Relaxed);
        result
    }

    /// How many statements that are neither reads nor DML user code has prepared so far.
    pub(crate) fn others(&self) -> u32 {
        self.0.others.load(Ordering::Relaxed)
    }

    /// Whether a statement of user code has had a trigger that writes. What such a trigger has written before it
    /// failed with FAIL stays, and is not counted among the changed rows.
    pub(crate) fn triggers_write(&self) -> bool {
        self.0.triggers_write.load(Ordering::Relaxed)
    }

    /// `code` must not panic: the caller catches what user code throws.
    fn at<T>(&self, what: u8, code: impl FnOnce() -> T) -> T {
        let before = self.0.at.load(Ordering::Relaxed);
        self.0.at.store(what, Ordering::Relaxed);
        let result = code();
        self.0.at.store(before, Ordering::Relaxed);
        result
    }
}

/// Pragmas that only read, or write nothing but the database header within the transaction.
/// FTS5 itself prepares `data_version`.
const ALLOWED_PRAGMAS: [&str; 20] = [
    "application_id",
    "collation_list",
    "compile_options",
    "data_version",
    "database_list",
    "foreign_key_check",
    "foreign_key_list",
    "freelist_count",
    "function_list",
    "index_info",
    "index_list",
    "index_xinfo",
    "integrity_check",
    "page_count",
    "page_size",
    "quick_check",
    "table_info",
    "table_list",
    "table_xinfo",
    "user_version",
];

/// Pragmas that write to the database header if they are given a value.
const HEADER_PRAGMAS: [&str; 2] = ["application_id", "user_version"];

/// Pragmas that would change the file's journal, or its checkpoints, behind the service's back, that can damage it, or
/// that hold for the whole process.
const PRAGMAS_OF_THE_SERVICE: [&str; 11] = [
    "data_store_directory",
    "hard_heap_limit",
    "journal_mode",
    "locking_mode",
    "schema_version",
    "soft_heap_limit",
    "synchronous",
    "temp_store_directory",
    "wal_autocheckpoint",
    "wal_checkpoint",
    "writable_schema",
];

fn is_one_of(pragma: Option<&[u8]>, names: &[&str]) -> bool {
    pragma.is_some_and(|pragma| names.iter().any(|name| name.as_bytes().eq_ignore_ascii_case(pragma)))
}

fn is_write(action: &Action<'_>) -> bool {
    matches!(action.code, ffi::SQLITE_INSERT | ffi::SQLITE_UPDATE | ffi::SQLITE_DELETE)
}

/// Whether the statement leaves its traces in the counter of changed rows.
fn is_read_or_dml(action: &Action<'_>) -> bool {
    match action.code {
        ffi::SQLITE_SELECT | ffi::SQLITE_READ | ffi::SQLITE_FUNCTION | ffi::SQLITE_RECURSIVE => true,
        ffi::SQLITE_PRAGMA => {
            let [pragma, value] = action.names;
            value.is_none() || !is_one_of(pragma, &HEADER_PRAGMAS)
        }
        _ => is_write(action),
    }
}

fn is_allowed_in_command(action: &Action<'_>) -> bool {
    match action.code {
        ffi::SQLITE_TRANSACTION | ffi::SQLITE_SAVEPOINT | ffi::SQLITE_ATTACH | ffi::SQLITE_DETACH => false,
        // What is temporary belongs to the connection: the next command would find it, in place of the real.
        ffi::SQLITE_CREATE_TEMP_INDEX
        | ffi::SQLITE_CREATE_TEMP_TABLE
        | ffi::SQLITE_CREATE_TEMP_TRIGGER
        | ffi::SQLITE_CREATE_TEMP_VIEW => false,
        ffi::SQLITE_CREATE_TABLE
        | ffi::SQLITE_CREATE_INDEX
        | ffi::SQLITE_CREATE_TRIGGER
        | ffi::SQLITE_CREATE_VIEW
        | ffi::SQLITE_CREATE_VTABLE => action.database != Some(b"temp"),
        ffi::SQLITE_PRAGMA => is_one_of(action.names[0], &ALLOWED_PRAGMAS),
        _ => true,
    }
}

fn is_allowed_in_maintenance(action: &Action<'_>) -> bool {
    action.code != ffi::SQLITE_PRAGMA || !is_one_of(action.names[0], &PRAGMAS_OF_THE_SERVICE)
}
