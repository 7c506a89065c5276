//! Self-Healing, for readers: a connection that fails is replaced, and neither its next user nor the writer
//! notices.
#![cfg(unix)]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::path::Path;
use std::thread::ThreadId;

use common::faults::{By, Fault, Faults, Of, Op};
use common::{HANG, check};
use rusqlite::ffi;
use solewriter::{BlockingDatabase, Drain, ReadError, Retry};

/// The transaction of a reader can't be begun.
fn failed_lock() -> Fault {
    Fault::new(Op::Lock, Of::Database, ffi::SQLITE_IOERR_SHMLOCK).by(By::Other)
}

fn open_database(path: &Path, faults: &Faults) -> BlockingDatabase {
    faults.open(path, |config| (config.readers, config.readers_overflow) = (1, 0)).blocking()
}

fn with_database(test: impl FnOnce(&BlockingDatabase, &Faults)) {
    let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
    let path = dir.path().join("test.db");
    let db = open_database(&path, &faults);
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x)", ()).wait().unwrap();
    let filled = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000) \
                  INSERT INTO t (x) SELECT randomblob(1000) FROM n";
    db.execute(filled, ()).wait().unwrap();
    db.shutdown(Drain::within(HANG)).unwrap();
    // Opened anew, everything is in the database file, and nothing in a cache.
    let db = open_database(&path, &faults);
    faults.forget();
    test(&db, &faults);
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
    with_database(|db, faults| {
        for failed in 1..=5 {
            faults.inject(failed_lock().once());
            thread_of_a_read(db).unwrap();
            assert_eq!(faults.failed(), failed, "it has failed once");
        }
        faults.inject(failed_lock().once());
        let snapshot = db.snapshot("report").wait().unwrap();
        assert_eq!(faults.failed(), 6, "it has failed once");
        snapshot.read(|_| Ok(())).wait().unwrap();
    });
}

#[test]
fn an_environment_that_goes_on_failing_is_told_and_may_be_retried() {
    with_database(|db, faults| {
        let failed_open = || Fault::new(Op::Open, Of::Database, ffi::SQLITE_CANTOPEN).by(By::Other);
        for (fault, code) in
            [(failed_lock(), ffi::SQLITE_IOERR_SHMLOCK), (failed_open(), ffi::SQLITE_CANTOPEN)]
        {
            // Only a connection that must be opened can fail at that.
            faults.inject(failed_lock().once());
            faults.inject(fault);
            let error = thread_of_a_read(db).unwrap_err();
            assert!(matches!(error, ReadError::Connection(_)), "{error:?}");
            assert_eq!((error.retry(), error.sqlite_extended_code()), (Retry::Later, Some(code)));
            let error = db.snapshot("report").wait().unwrap_err();
            assert!(matches!(error, ReadError::Connection(_)), "{error:?}");
            faults.heal();
            thread_of_a_read(db).unwrap();
            assert_eq!(db.database().stats().readers_in_use, 0);
        }
    });
}

#[test]
fn a_statement_that_can_not_read_the_file_fails_alone_and_its_connection_is_replaced() {
    with_database(|db, faults| {
        let (told, thread) = std::sync::mpsc::channel();
        let injected = faults.clone();
        let read = db.read("count", move |tx| {
            told.send(std::thread::current().id()).unwrap();
            let failed_read = Fault::new(Op::Read, Of::Database, ffi::SQLITE_IOERR_READ);
            injected.inject(failed_read.by(By::Other).once());
            tx.query_row("SELECT sum(length(x)) FROM t", (), |row| row.get::<_, i64>(0))
        });
        let error = read.wait().unwrap_err();
        assert!(matches!(error, ReadError::Query(_)), "{error:?}");
        assert_eq!(error.sqlite_extended_code(), Some(ffi::SQLITE_IOERR_READ));
        assert_ne!(thread_of_a_read(db).unwrap(), thread.recv().unwrap());
    });
}
