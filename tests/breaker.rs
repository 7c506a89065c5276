//! Self-Healing, while the environment fails: a few failures in a row nobody notices, more of them refuse writes
//! until a probe succeeds, and commands that fail by themselves never do.
#![cfg(unix)]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

mod common;

use std::time::Duration;

use common::faults::{By, Fault, Faults, Of, Op, stored, xs};
use common::{HANG, Kind, TestDb, add, insert, soon, until};
use rusqlite::ffi;
use solewriter::{Config, Database, Drain, NotStarted, Outcome, Retry, RolledBack, WriteError};
use tempfile::TempDir;

const FAILURES: u32 = 3;

fn open(set: impl FnOnce(&mut Config)) -> (TempDir, Faults, Database) {
    let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
    let db = faults.create(&dir, |config| {
        config.breaker_failures = FAILURES;
        config.breaker_pause = Duration::from_millis(5);
        set(config);
    });
    (dir, faults, db)
}

/// The lock that a transaction begins with can't be had, for want of the system's help.
fn failed_lock() -> Fault {
    Fault::new(Op::Lock, Of::Database, ffi::SQLITE_IOERR_SHMLOCK).by(By::Writer)
}

fn failed_open() -> Fault {
    Fault::new(Op::Open, Of::Database, ffi::SQLITE_CANTOPEN).by(By::Writer)
}

fn close(db: &Database) {
    let report = db.blocking().shutdown(Drain::within(HANG)).unwrap();
    assert_eq!((report.stopped, report.wal_pages_left), (false, 0));
}

/// Writes are refused while the environment fails, and come back by themselves.
async fn is_refused_until_healed(db: &Database, faults: &Faults) {
    let refused = soon(insert(db, 1)).await.unwrap_err();
    assert!(matches!(refused, WriteError::NotStarted(NotStarted::Unavailable(_))), "{refused:?}");
    assert_eq!((refused.outcome(), refused.retry()), (Outcome::NotStarted, Retry::Later));
    assert!(refused.sqlite_extended_code().is_some());
    assert!(db.stats().is_refusing_writes);
    assert_eq!(xs(db), [0], "reads go on");
    let probed = faults.failed();
    until("it probes again and again", || faults.failed() >= probed + 2).await;
    assert!(db.stats().is_refusing_writes);
    faults.heal();
    until("a probe brings writes back", || !db.stats().is_refusing_writes).await;
    for kind in Kind::ALL {
        soon(kind.submit(db, 10 + kind as i64).await).await.unwrap();
    }
}

#[tokio::test]
async fn a_begin_that_fails_fewer_times_than_the_limit_is_noticed_by_nobody() {
    let (_dir, faults, db) = open(|_| ());
    for x in 0..10 {
        faults.forget();
        // The second failure is that of the new connection.
        faults.inject(failed_lock().times(FAILURES - 1));
        soon(insert(&db, x + 1)).await.unwrap();
        assert_eq!(faults.failed(), FAILURES as usize - 1, "each success lets it count anew");
        assert!(!db.stats().is_refusing_writes);
    }
    assert_eq!(db.stats().commands.not_started, 0);
    close(&db);
    assert_eq!(stored(db.path()), (0..=10).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_begin_that_goes_on_failing_refuses_writes_until_a_probe_succeeds() {
    let (_dir, faults, db) = open(|_| ());
    faults.forget();
    faults.inject(failed_lock());
    is_refused_until_healed(&db, &faults).await;
    close(&db);
    assert_eq!(stored(db.path()), [0, 10, 11, 12, 13]);
}

#[tokio::test]
async fn a_connection_that_can_not_be_replaced_is_tried_again_until_writes_are_refused() {
    // Fewer times than the limit: nobody notices.
    let (_dir, faults, db) = open(|_| ());
    faults.forget();
    faults.inject(failed_lock().once());
    faults.inject(failed_open().times(FAILURES - 2));
    soon(insert(&db, 1)).await.unwrap();
    assert_eq!(faults.failed(), FAILURES as usize - 1);
    assert_eq!((db.stats().connections_replaced, db.stats().is_refusing_writes), (1, false));
    close(&db);
    // For longer.
    let (_dir, faults, db) = open(|_| ());
    faults.forget();
    faults.inject(failed_lock().once());
    faults.inject(failed_open());
    is_refused_until_healed(&db, &faults).await;
    close(&db);
}

#[tokio::test]
async fn a_connection_given_up_after_maintenance_that_can_not_be_replaced_heals_too() {
    let (_dir, faults, db) = open(|_| ());
    faults.forget();
    faults.inject(failed_open());
    db.maintain("analyze", |m| m.execute_batch("ANALYZE")).await.unwrap();
    until("writes are refused", || db.stats().is_refusing_writes).await;
    is_refused_until_healed(&db, &faults).await;
    close(&db);
}

#[tokio::test]
async fn a_close_while_writes_are_refused_answers_everyone_and_ends() {
    let (_dir, faults, db) = open(|config| config.breaker_pause = HANG);
    faults.inject(failed_open());
    faults.inject(failed_lock().once());
    let refused = soon(insert(&db, 1)).await.unwrap_err();
    assert!(matches!(refused, WriteError::NotStarted(NotStarted::Unavailable(_))), "{refused:?}");
    let began = std::time::Instant::now();
    close(&db);
    assert!(began.elapsed() < HANG / 2, "it does not wait for the next probe");
    assert_eq!(stored(db.path()), [0]);
}

#[tokio::test]
async fn commands_that_fail_by_themselves_never_refuse_writes_to_others() {
    let db = TestDb::open_with(|config| config.breaker_failures = 1).await;
    insert(&db, 0).await.unwrap();
    for round in 0..20 {
        let clash = insert(&db, 0).await.unwrap_err();
        assert!(matches!(clash, WriteError::Command(_)), "{clash:?}");
        let panicked = db.write("panics", |tx| if add(tx, 9)? == 1 { panic!("boom") } else { Ok(()) }).await;
        assert!(matches!(panicked, Err(WriteError::RolledBack(RolledBack::Panicked(_)))), "{panicked:?}");
        let rolled_back = db.execute("INSERT OR ROLLBACK INTO t (x) VALUES (0)", ()).await;
        assert!(matches!(rolled_back, Err(WriteError::Command(_))), "{rolled_back:?}");
        let orphan = db.execute("INSERT INTO child VALUES (99)", ()).await;
        assert!(matches!(orphan, Err(WriteError::RolledBack(RolledBack::ForeignKey))), "{orphan:?}");
        let wrong = db.execute("NO SQL", ()).await;
        assert!(matches!(wrong, Err(WriteError::Command(_))), "{wrong:?}");
        assert!(!db.stats().is_refusing_writes, "round {round}");
    }
    insert(&db, 1).await.unwrap();
    assert_eq!(db.stats().commands.not_started, 0);
}
