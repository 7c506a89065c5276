//! Honest Outcome: every error says what became of the command, why, and whether to retry.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::error::Error;
use std::time::Duration;

use common::{Gate, HANG, TestDb, add, committed, insert, soon};
use rusqlite::ffi;
use solewriter::{
    Cause, Drain, Lane, NotStarted, OnDrop, Outcome, Phase, Retry, RolledBack, Unknown, WriteError,
};

fn cause(code: i32) -> Cause {
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), None).into()
}

#[test]
fn each_error_says_its_outcome_whether_to_retry_and_sqlites_code() {
    use NotStarted as N;
    let (bytes, bytes_max, waited) = (2, 1, Duration::from_secs(1));
    let not_started: [(N, Retry, Option<i32>); 12] = [
        (N::QueueFull { lane: Lane::Bulk }, Retry::Later, None),
        (N::TooLarge { bytes, bytes_max }, Retry::Never, None),
        (N::Closed, Retry::Never, None),
        (N::Reentrant, Retry::Never, None),
        (N::DeadlineExceeded { waited }, Retry::Later, None),
        (N::Busy(cause(ffi::SQLITE_BUSY)), Retry::Later, Some(ffi::SQLITE_BUSY)),
        (N::WaitedTooLong { waited, holder: Phase::Commit }, Retry::Later, None),
        (N::DiskFull(cause(ffi::SQLITE_FULL)), Retry::Later, Some(ffi::SQLITE_FULL)),
        (N::WalFull { wal_bytes: 1 << 30 }, Retry::Later, None),
        (N::Unavailable(cause(ffi::SQLITE_IOERR_READ)), Retry::Later, Some(ffi::SQLITE_IOERR_READ)),
        (N::Forked, Retry::Never, None),
        (N::Stopped(cause(ffi::SQLITE_IOERR_FSYNC)), Retry::Never, Some(ffi::SQLITE_IOERR_FSYNC)),
    ];
    for (reason, retry, code) in not_started {
        check(reason.into(), Outcome::NotStarted, retry, code);
    }
    let lost = RolledBack::GroupLost(cause(ffi::SQLITE_ABORT_ROLLBACK));
    let full = RolledBack::GroupLost(cause(ffi::SQLITE_FULL));
    let rolled_back = [
        (RolledBack::Panicked("boom".into()), Retry::Never, None),
        (RolledBack::ForeignKey, Retry::Never, None),
        (RolledBack::TransactionEnded, Retry::Never, None),
        (RolledBack::StatementLeftOpen, Retry::Never, None),
        (RolledBack::DeadlineExceeded { ran: waited }, Retry::Later, None),
        (RolledBack::Interrupted, Retry::Later, None),
        (RolledBack::TransactionLeftOpen, Retry::Never, None),
        (RolledBack::Environment(cause(ffi::SQLITE_NOMEM)), Retry::Later, Some(ffi::SQLITE_NOMEM)),
        (lost, Retry::Now, Some(ffi::SQLITE_ABORT_ROLLBACK)),
        (full, Retry::Later, Some(ffi::SQLITE_FULL)),
    ];
    for (reason, retry, code) in rolled_back {
        check(reason.into(), Outcome::RolledBack, retry, code);
    }
    let failed = Unknown::CommitFailed(cause(ffi::SQLITE_IOERR_FSYNC));
    check(failed.into(), Outcome::Unknown, Retry::AfterChecking, Some(ffi::SQLITE_IOERR_FSYNC));
    let replaced = Unknown::FilesReplaced(cause(ffi::SQLITE_READONLY_DBMOVED));
    check(replaced.into(), Outcome::Unknown, Retry::AfterChecking, Some(ffi::SQLITE_READONLY_DBMOVED));
    check(Unknown::WriterLost.into(), Outcome::Unknown, Retry::AfterChecking, None);
    let own = rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CONSTRAINT_CHECK), None);
    let code = Some(ffi::SQLITE_CONSTRAINT_CHECK);
    check(WriteError::Command(own), Outcome::RolledBack, Retry::Never, code);
}

fn check(error: WriteError, outcome: Outcome, retry: Retry, code: Option<i32>) {
    assert_eq!((error.outcome(), error.retry()), (outcome, retry), "{error:?}");
    assert_eq!(error.sqlite_extended_code(), code, "{error:?}");
    assert_eq!(error.source().is_some(), code.is_some(), "the cause of {error:?} is its source");
    let text = error.to_string();
    assert!(!text.is_empty() && !text.ends_with('.') && text.starts_with(char::is_lowercase), "{text}");
    if let Some(source) = error.source() {
        assert!(!text.contains(&source.to_string()), "{text} tells its source twice");
    }
}

#[tokio::test]
async fn the_source_of_an_error_leads_to_sqlites_own() {
    let db = TestDb::open().await;
    insert(&db, 1).await.unwrap();
    let error = insert(&db, 1).await.unwrap_err();
    let source = error.source().unwrap().downcast_ref::<rusqlite::Error>().unwrap();
    assert!(source.to_string().contains("UNIQUE"), "{source}");
    assert_eq!(error.sqlite_extended_code(), Some(ffi::SQLITE_CONSTRAINT_UNIQUE));
}

#[tokio::test]
async fn a_lock_that_another_connection_keeps_is_told_as_busy_and_passes() {
    let db = TestDb::open_with(|config| config.busy_timeout = Duration::from_millis(20)).await;
    let foreign = db.plain();
    foreign.execute_batch("BEGIN IMMEDIATE").unwrap();
    for _ in 0..3 {
        let error = soon(insert(&db, 1)).await.unwrap_err();
        assert!(matches!(error, WriteError::NotStarted(NotStarted::Busy(_))), "{error:?}");
        assert_eq!((error.outcome(), error.retry()), (Outcome::NotStarted, Retry::Later));
        assert_eq!(error.sqlite_extended_code(), Some(ffi::SQLITE_BUSY));
    }
    foreign.execute_batch("INSERT INTO t (x) VALUES (5); COMMIT").unwrap();
    insert(&db, 1).await.unwrap();
    assert_eq!(db.xs().await, [5, 1]);
}

#[tokio::test]
async fn a_lock_that_is_released_in_time_is_only_waited_for() {
    let db = TestDb::open().await;
    let foreign = db.plain();
    foreign.execute_batch("BEGIN IMMEDIATE").unwrap();
    let answer = committed(insert(&db, 1)).await;
    common::until("the writer waits for the lock", || {
        db.holder().is_some_and(|holder| holder.phase == solewriter::Phase::Begin)
    })
    .await;
    foreign.execute_batch("COMMIT").unwrap();
    soon(answer).await.unwrap();
}

/// Commands of every fate, a thousand of them, half of which a shutdown overtakes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_is_answered_exactly_once_also_when_the_service_closes() {
    let db = TestDb::open().await;
    insert(&db, -1).await.unwrap();
    let tasks: Vec<_> =
        (0..1_000)
            .map(|x: i64| {
                let db = (*db).clone();
                tokio::spawn(async move {
                    if x % 2 == 1 {
                        tokio::task::yield_now().await;
                    }
                    match x % 5 {
                        0 => soon(db.execute("INSERT INTO t (x) VALUES (-1)", ())).await.map(|_| x),
                        1 => {
                            soon(db.write("panics", |tx| {
                                tx.prepare("!").map_or_else(|_| panic!("boom"), |_| Ok(0))
                            }))
                            .await
                        }
                        2 => soon(insert(&db, x).deadline(Duration::from_micros(1))).await.map(|_| x),
                        3 => {
                            let taken_back = insert(&db, x).on_drop(OnDrop::Withdraw).submit().await;
                            taken_back.map(drop).map(|()| -1)
                        }
                        _ => soon(db.write("t.add", move |tx| add(tx, x))).await.map(|_| x),
                    }
                })
            })
            .collect();
    common::until("half of them are answered", || {
        tasks.iter().filter(|task| task.is_finished()).count() > 500
    })
    .await;
    db.shutdown(Drain::within(HANG)).await.unwrap();
    let mut acknowledged = vec![-1];
    for task in tasks {
        match soon(task).await.unwrap() {
            Ok(-1) => {}
            Ok(x) => acknowledged.push(x),
            Err(error) => assert_ne!(error.outcome(), Outcome::Unknown, "{error:?}"),
        }
    }
    let plain = db.plain();
    let mut statement = plain.prepare("SELECT x FROM t WHERE x % 5 <> 3 ORDER BY x").unwrap();
    let rows: Vec<i64> = statement.query_map((), |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    acknowledged.sort_unstable();
    assert_eq!(rows, acknowledged);
}

#[tokio::test]
async fn the_counters_add_up() {
    let db = TestDb::open().await;
    let before = db.stats().commands;
    insert(&db, 1).await.unwrap();
    insert(&db, 1).await.unwrap_err();
    db.write("panics", |_| -> rusqlite::Result<()> { panic!("boom") }).await.unwrap_err();
    let gate = Gate::close(&db).await;
    drop(insert(&db, 2).on_drop(OnDrop::Withdraw).submit().await.unwrap());
    soon(insert(&db, 3).deadline(Duration::from_millis(1))).await.unwrap_err();
    let lost = committed(db.write("lost", |tx| add(tx, 4))).await;
    let culprit = committed(db.execute("INSERT OR ROLLBACK INTO t (x) VALUES (1)", ())).await;
    gate.open().await;
    soon(lost).await.unwrap_err();
    soon(culprit).await.unwrap_err();
    insert(&db, 5).payload_bytes(usize::MAX).await.unwrap_err();
    db.execute("DELETE FROM t", ()).await.unwrap();
    let after = db.stats().commands;
    assert_eq!(after.committed - before.committed, 3, "insert, gate, delete");
    assert_eq!(after.failed - before.failed, 3, "clash, panic, culprit");
    assert_eq!(after.rolled_back - before.rolled_back, 1);
    assert_eq!(after.withdrawn - before.withdrawn + after.not_started - before.not_started, 2);
    assert_eq!((after.refused - before.refused, after.unknown), (1, 0));
}
