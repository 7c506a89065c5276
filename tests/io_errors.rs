//! Command Isolation, where the disk fails a command: it alone is told so, and its neighbours commit if they can
//! run again.
#![cfg(unix)]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]
#![allow(clippy::async_yields_async, reason = "a command is sent first and waited for later")]

mod common;

use common::faults::{By, CrashImage, Fault, Faults, Of, Op, stored, xs};
use common::{Gate, HANG, Kind, committed, insert, soon};
use rusqlite::ffi;
use solewriter::{Config, Database, Drain, Outcome, Retry, RolledBack, WriteError};

/// More than the cache holds, so that its pages go to the WAL before the COMMIT.
const LARGE: &str = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 300)
                     INSERT INTO big SELECT randomblob(3000) FROM n";

fn small_cache(config: &mut Config) {
    config.cache_bytes = 40_960;
    config.breaker_failures = u32::MAX;
}

async fn create(faults: &Faults, dir: &tempfile::TempDir) -> Database {
    let db = faults.create(dir, small_cache);
    db.execute("CREATE TABLE big (x)", ()).await.unwrap();
    db
}

fn close(db: &Database) {
    let report = db.blocking().shutdown(Drain::within(HANG)).unwrap();
    assert_eq!((report.stopped, report.wal_pages_left), (false, 0));
}

fn is_of_the_environment(error: &WriteError, code: i32) {
    assert!(matches!(error, WriteError::RolledBack(RolledBack::Environment(_))), "{error:?}");
    assert_eq!((error.outcome(), error.retry()), (Outcome::RolledBack, Retry::Later));
    assert_eq!(error.sqlite_extended_code(), Some(code));
}

async fn large(db: &Database) -> i64 {
    db.read("large", |tx| tx.query_row("SELECT count(*) FROM big", (), |row| row.get(0))).await.unwrap()
}

// Group:  1 (again)  2 (again)  large, spills to the WAL, write fails  3 (again)
// SQLite rolls everything back; 1, 2 and 3 run again and commit; the large one is told.
#[tokio::test]
async fn a_command_whose_spilled_pages_can_not_be_written_is_told_and_its_neighbours_commit() {
    for neighbours in [Kind::Rerunnable, Kind::Typed, Kind::Statement] {
        for spared in [0, 1, 7, 40] {
            let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
            let db = create(&faults, &dir).await;
            let gate = Gate::close(&db).await;
            let first = [neighbours.submit(&db, 1).await, neighbours.submit(&db, 2).await];
            let culprit = committed(db.execute(LARGE, ())).await;
            let last = neighbours.submit(&db, 3).await;
            faults.forget();
            let fault = Fault::new(Op::Write, Of::Wal, ffi::SQLITE_IOERR_WRITE).by(By::Writer);
            faults.inject(fault.after(spared).once());
            gate.open().await;
            is_of_the_environment(&soon(culprit).await.unwrap_err(), ffi::SQLITE_IOERR_WRITE);
            assert_eq!(faults.failed(), 1);
            for neighbour in first.into_iter().chain([last]) {
                soon(neighbour).await.unwrap();
            }
            assert_eq!((xs(&db), large(&db).await), (vec![0, 1, 2, 3], 0));
            let stats = db.stats();
            assert_eq!((stats.groups_lost, stats.connections_replaced), (1, 1));
            assert!(!stats.is_refusing_writes);
            assert_eq!(CrashImage::take(db.path()).xs(), [0, 1, 2, 3]);
            // Sent once more, it succeeds.
            assert_eq!(db.execute(LARGE, ()).await.unwrap(), 300);
            close(&db);
            assert_eq!(stored(db.path()), [0, 1, 2, 3]);
        }
    }
}

// Group:  1 (once)  large, fails  2 (once)
// The first has run and can't run again; the second has not run yet.
#[tokio::test]
async fn of_those_that_can_not_run_again_only_who_had_run_loses_its_turn_and_may_retry() {
    let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
    let db = create(&faults, &dir).await;
    let gate = Gate::close(&db).await;
    let first = Kind::Once.submit(&db, 1).await;
    let culprit = committed(db.write("large", |tx| tx.execute(LARGE, ()))).await;
    let last = Kind::Once.submit(&db, 2).await;
    faults.inject(Fault::new(Op::Write, Of::Wal, ffi::SQLITE_IOERR_WRITE).by(By::Writer).after(5).once());
    gate.open().await;
    is_of_the_environment(&soon(culprit).await.unwrap_err(), ffi::SQLITE_IOERR_WRITE);
    let lost = soon(first).await.unwrap_err();
    assert!(matches!(lost, WriteError::RolledBack(RolledBack::GroupLost(_))), "{lost:?}");
    assert_eq!((lost.outcome(), lost.retry()), (Outcome::RolledBack, Retry::Later));
    soon(last).await.unwrap();
    assert_eq!((xs(&db), large(&db).await), (vec![0, 2], 0));
    insert(&db, 1).await.unwrap();
    close(&db);
    assert_eq!(stored(db.path()), [0, 2, 1]);
}

#[tokio::test]
async fn a_page_that_can_not_be_read_fails_its_command_and_no_neighbour() {
    let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
    let db = create(&faults, &dir).await;
    db.execute(LARGE, ()).await.unwrap();
    close(&db);
    // Opened anew, nothing is in a cache.
    let db = faults.open(db.path(), small_cache);
    let gate = Gate::close(&db).await;
    let first = insert(&db, 1).submit().await.unwrap();
    let code = ffi::SQLITE_IOERR_READ;
    let injected = faults.clone();
    let culprit = committed(db.write_rerunnable("reads", move |tx| {
        injected.inject(Fault::new(Op::Read, Of::Database, code).by(By::Writer).once());
        tx.execute("UPDATE big SET x = 1", ())
    }))
    .await;
    let last = insert(&db, 2).submit().await.unwrap();
    gate.open().await;
    is_of_the_environment(&soon(culprit).await.unwrap_err(), code);
    soon(first).await.unwrap();
    soon(last).await.unwrap();
    assert_eq!(xs(&db), [0, 1, 2]);
    close(&db);
}
