//! Self-Healing, for readers: a connection that fails is replaced, and neither its next user nor the writer
//! notices.
//!
//! A VFS of this file's own fails calls of read-only connections on demand, and leaves all others alone.
#![cfg(unix)]
#![allow(missing_docs, unsafe_code, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::ThreadId;

use common::{HANG, check, config_with};
use rusqlite::ffi;
use solewriter::{BlockingDatabase, Config, Database, Drain, ReadError, Retry};

const NAME: &CStr = c"reader-faults";

/// How many calls of each kind still fail.
static OPENS: AtomicI32 = AtomicI32::new(0);
static LOCKS: AtomicI32 = AtomicI32::new(0);
static READS: AtomicI32 = AtomicI32::new(0);

/// SQLite's own methods of a file, of which ours call some.
static ORIGINAL: OnceLock<ffi::sqlite3_io_methods> = OnceLock::new();
static FAILING: OnceLock<ffi::sqlite3_io_methods> = OnceLock::new();

fn fails(left: &AtomicI32) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| (left > 0).then_some(left - 1)).is_ok()
}

unsafe extern "C" fn open(
    _: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let reads_only = flags & ffi::SQLITE_OPEN_MAIN_DB != 0 && flags & ffi::SQLITE_OPEN_READONLY != 0;
    // SAFETY: the arguments are passed on as they came; the file is of the size that SQLite's own VFS asks for,
    // which ours was copied from, and has methods once it is open.
    unsafe {
        if reads_only && fails(&OPENS) {
            (*file).pMethods = ptr::null();
            return ffi::SQLITE_CANTOPEN;
        }
        let vfs = ffi::sqlite3_vfs_find(ptr::null());
        let code = (*vfs).xOpen.unwrap()(vfs, name, file, flags, out_flags);
        if reads_only && code == ffi::SQLITE_OK {
            let original = *ORIGINAL.get_or_init(|| *(*file).pMethods);
            (*file).pMethods = FAILING.get_or_init(|| ffi::sqlite3_io_methods {
                xShmLock: Some(lock),
                xRead: Some(read),
                ..original
            });
        }
        code
    }
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, offset: c_int, n: c_int, flags: c_int) -> c_int {
    if flags & ffi::SQLITE_SHM_LOCK != 0 && fails(&LOCKS) {
        return ffi::SQLITE_IOERR_SHMLOCK;
    }
    // SAFETY: the arguments are passed on as they came.
    unsafe { ORIGINAL.get().unwrap().xShmLock.unwrap()(file, offset, n, flags) }
}

unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, to: *mut c_void, n: c_int, offset: i64) -> c_int {
    if fails(&READS) {
        return ffi::SQLITE_IOERR_READ;
    }
    // SAFETY: the arguments are passed on as they came.
    unsafe { ORIGINAL.get().unwrap().xRead.unwrap()(file, to, n, offset) }
}

/// Registers the VFS, and lets one test at a time use it.
fn faults() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    static REGISTERED: OnceLock<()> = OnceLock::new();
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    REGISTERED.get_or_init(|| {
        // SAFETY: the copy lives for ever, as SQLite asks of a VFS, and differs by its name and one method.
        let code = unsafe {
            let mut vfs = *ffi::sqlite3_vfs_find(ptr::null());
            (vfs.zName, vfs.pNext) = (NAME.as_ptr(), ptr::null_mut());
            vfs.xOpen = Some(open);
            ffi::sqlite3_vfs_register(Box::leak(Box::new(vfs)), 0)
        };
        assert_eq!(code, ffi::SQLITE_OK);
    });
    turn
}

fn open_database(path: &Path, set: impl FnOnce(&mut Config)) -> BlockingDatabase {
    let config = config_with(|config| {
        (config.readers, config.readers_overflow) = (1, 0);
        set(config);
    });
    let db = Database::builder(path).config(config).vfs(NAME.to_str().unwrap());
    db.open_blocking().unwrap().blocking()
}

fn with_database(set: impl FnOnce(&mut Config), test: impl FnOnce(&BlockingDatabase)) {
    let _turn = faults();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    let db = open_database(&path, |_| ());
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x)", ()).wait().unwrap();
    let filled = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000) \
                  INSERT INTO t (x) SELECT randomblob(1000) FROM n";
    db.execute(filled, ()).wait().unwrap();
    db.shutdown(Drain::within(HANG)).unwrap();
    // Opened anew, everything is in the database file, and nothing in a cache.
    let db = open_database(&path, set);
    test(&db);
    // Whatever has happened to readers, the writer goes on.
    db.execute("INSERT INTO t (x) VALUES (1)", ()).wait().unwrap();
    assert!(!db.shutdown(Drain::within(HANG)).unwrap().stopped);
    check(&path);
}

fn thread_of_a_read(db: &BlockingDatabase) -> Result<ThreadId, ReadError> {
    db.read("count", |tx| {
        tx.query_row("SELECT count(*) FROM t", (), |row| row.get::<_, i64>(0))?;
        Ok(std::thread::current().id())
    })
    .wait()
}

#[test]
fn a_transaction_that_can_not_be_begun_is_begun_on_another_connection() {
    with_database(
        |_| (),
        |db| {
            for _ in 0..5 {
                LOCKS.store(1, Ordering::SeqCst);
                thread_of_a_read(db).unwrap();
                assert_eq!(LOCKS.load(Ordering::SeqCst), 0, "it has failed once");
            }
            LOCKS.store(1, Ordering::SeqCst);
            let snapshot = db.snapshot("report").wait().unwrap();
            assert_eq!(LOCKS.load(Ordering::SeqCst), 0, "it has failed once");
            snapshot.read(|_| Ok(())).wait().unwrap();
        },
    );
}

#[test]
fn an_environment_that_goes_on_failing_is_told_and_may_be_retried() {
    with_database(
        |_| (),
        |db| {
            for (left, code) in [(&LOCKS, ffi::SQLITE_IOERR_SHMLOCK), (&OPENS, ffi::SQLITE_CANTOPEN)] {
                // Only a connection that must be opened can fail at that.
                LOCKS.store(1, Ordering::SeqCst);
                left.store(100, Ordering::SeqCst);
                let error = thread_of_a_read(db).unwrap_err();
                assert!(matches!(error, ReadError::Connection(_)), "{error:?}");
                assert_eq!((error.retry(), error.sqlite_extended_code()), (Retry::Later, Some(code)));
                let error = db.snapshot("report").wait().unwrap_err();
                assert!(matches!(error, ReadError::Connection(_)), "{error:?}");
                left.store(0, Ordering::SeqCst);
                LOCKS.store(0, Ordering::SeqCst);
                thread_of_a_read(db).unwrap();
                assert_eq!(db.database().stats().readers_in_use, 0);
            }
        },
    );
}

#[test]
fn a_statement_that_can_not_read_the_file_fails_alone_and_its_connection_is_replaced() {
    with_database(
        |config| config.mmap_bytes = 0,
        |db| {
            let (told, thread) = std::sync::mpsc::channel();
            let read = db.read("count", move |tx| {
                told.send(std::thread::current().id()).unwrap();
                READS.store(1, Ordering::SeqCst);
                tx.query_row("SELECT sum(length(x)) FROM t", (), |row| row.get::<_, i64>(0))
            });
            let error = read.wait().unwrap_err();
            assert!(matches!(error, ReadError::Query(_)), "{error:?}");
            assert_eq!(error.sqlite_extended_code(), Some(ffi::SQLITE_IOERR_READ));
            assert_ne!(thread_of_a_read(db).unwrap(), thread.recv().unwrap());
        },
    );
}
