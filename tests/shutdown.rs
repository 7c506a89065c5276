//! Orderly Shutdown: finish what was accepted, answer everyone, leave one file.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::{Add, Gate, HANG, TestDb, add, beside, committed, config_with, count, insert, soon, until};
use futures_util::FutureExt;
use solewriter::{Database, Drain, NotStarted, Outcome, Phase, ReadError, WriteError};

fn is_closed(error: &WriteError) -> bool {
    matches!(error, WriteError::NotStarted(NotStarted::Closed))
}

#[tokio::test]
async fn what_was_accepted_is_finished_and_one_file_is_left() {
    let db = TestDb::open().await;
    let gate = Gate::close(&db).await;
    let mut answers = Vec::new();
    for x in 0..100 {
        answers.push(committed(insert(&db, x)).await);
    }
    let handle = (*db).clone();
    let shutdown = tokio::spawn(async move { handle.shutdown(Drain::within(HANG)).await });
    until("it accepts nothing more", || insert(&db, 100).try_submit().is_err_and(|error| is_closed(&error)))
        .await;
    gate.open().await;
    for answer in answers {
        soon(answer).await.unwrap();
    }
    let report = soon(shutdown).await.unwrap().unwrap();
    assert_eq!((report.not_started, report.wal_pages_left, report.stopped), (0, 0, false));
    for suffix in ["-wal", "-shm"] {
        assert!(!beside(db.path(), suffix).exists(), "{suffix} is gone");
    }
    // Between the first refusal and the close, probes may have been accepted.
    assert!(count(&db.plain()) >= 100);
}

#[tokio::test]
async fn beyond_the_limit_what_has_not_started_never_runs_and_is_counted() {
    let db = TestDb::open().await;
    let gate = Gate::close(&db).await;
    let mut answers = Vec::new();
    for x in 0..10 {
        answers.push(committed(insert(&db, x)).await);
    }
    let handle = (*db).clone();
    let shutdown =
        tokio::spawn(async move { handle.shutdown(Drain::within(Duration::from_millis(20))).await });
    tokio::time::sleep(Duration::from_millis(40)).await;
    gate.open().await;
    for answer in answers {
        assert!(is_closed(&soon(answer).await.unwrap_err()));
    }
    let report = soon(shutdown).await.unwrap().unwrap();
    assert_eq!(report.not_started, 10);
    assert_eq!(count(&db.plain()), 0);
}

#[tokio::test]
async fn a_command_that_does_not_return_is_named_and_closing_goes_on_when_it_does() {
    let db = TestDb::open().await;
    let gate = Gate::close(&db).await;
    let error = soon(db.shutdown(Drain::within(Duration::from_millis(10)))).await.unwrap_err();
    let Some(Phase::Command { label, .. }) = &error.still_running else { panic!("{error:?}") };
    assert!(label.starts_with("gate-"), "{error}");
    let busy = Database::builder(db.path()).config(config_with(|config| {
        config.shutdown_wait_max = Duration::from_millis(10);
    }));
    assert!(busy.open().await.is_err(), "the file stays locked");
    gate.open().await;
    soon(db.shutdown(Drain::within(HANG))).await.unwrap();
}

#[tokio::test]
async fn a_closed_service_says_so_to_everyone() {
    let db = TestDb::open().await;
    let report = db.shutdown(Drain::within(HANG)).await.unwrap();
    assert!(is_closed(&insert(&db, 1).await.unwrap_err()));
    assert!(is_closed(&insert(&db, 1).try_submit().unwrap_err()));
    assert!(is_closed(&db.submit(Add { x: 1 }).await.unwrap_err()));
    assert!(is_closed(&db.blocking().execute("DELETE FROM t", ()).wait().unwrap_err()));
    let read = db.read("late", |_| Ok(())).await.unwrap_err();
    assert!(matches!(read, ReadError::Closed), "{read:?}");
    let import =
        db.import("late", futures_util::stream::iter(0..10)).run(|tx, x| add(tx, *x)).await.unwrap_err();
    assert_eq!((import.report.accepted, import.report.failed), (0, 0), "{import}");
    assert_eq!(db.shutdown(Drain::within(HANG)).await.unwrap(), report, "a second shutdown tells the same");
}

#[tokio::test]
async fn a_caller_that_waits_for_room_is_told_when_the_service_closes() {
    let db = TestDb::open_with(|config| config.queue_commands_max = 1).await;
    let gate = Gate::close(&db).await;
    let accepted = committed(insert(&db, 1)).await;
    let handle = (*db).clone();
    let waiting = tokio::spawn(async move { insert(&handle, 2).await });
    let handle = (*db).clone();
    tokio::task::yield_now().await;
    let shutdown = tokio::spawn(async move { handle.shutdown(Drain::within(HANG)).await });
    let refused = soon(waiting).await.unwrap().unwrap_err();
    assert!(is_closed(&refused) && refused.outcome() == Outcome::NotStarted, "{refused:?}");
    gate.open().await;
    soon(accepted).await.unwrap();
    soon(shutdown).await.unwrap().unwrap();
}

/// Waits until this process has closed the file, and counts its rows.
async fn rows_after_close(path: &std::path::Path) -> i64 {
    until("the WAL is gone", || !beside(path, "-wal").exists()).await;
    count(&common::plain(path))
}

async fn open(path: &std::path::Path) -> Database {
    let db = Database::builder(path).config(config_with(|_| ())).open().await.unwrap();
    db.execute("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, x UNIQUE)", ()).await.unwrap();
    db
}

#[tokio::test]
async fn when_the_last_handle_is_dropped_the_service_finishes_and_closes_in_the_background() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    let db = open(&path).await;
    let gate = Gate::close(&db).await;
    let receipt = insert(&db, 1).submit().await.unwrap();
    let began = Instant::now();
    drop(db);
    assert!(began.elapsed() < HANG, "dropping it does not wait for the gate");
    gate.open().await;
    soon(receipt).await.unwrap();
    assert_eq!(rows_after_close(&path).await, 1);
}

#[tokio::test]
async fn the_last_handle_may_be_dropped_on_the_writer_thread_itself() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    let db = open(&path).await;
    let (told, tells) = mpsc::channel::<()>();
    let last = db.clone();
    let receipt = db
        .write("drops", move |tx| {
            tells.recv_timeout(HANG).unwrap();
            add(tx, 1)?;
            drop(last);
            Ok(())
        })
        .submit()
        .await
        .unwrap();
    drop(db);
    told.send(()).unwrap();
    soon(receipt).await.unwrap();
    assert_eq!(rows_after_close(&path).await, 1);
}

#[tokio::test]
async fn a_reader_of_another_connection_keeps_the_wal_and_the_report_says_so() {
    let db = TestDb::open().await;
    insert(&db, 1).await.unwrap();
    let foreign = db.plain();
    foreign.execute_batch("BEGIN").unwrap();
    assert_eq!(count(&foreign), 1);
    insert(&db, 2).await.unwrap();
    let report = soon(db.shutdown(Drain::within(Duration::from_secs(5)))).await.unwrap();
    assert!(report.wal_pages_left > 0, "{report:?}");
    foreign.execute_batch("COMMIT").unwrap();
    assert_eq!(count(&foreign), 2);
}

#[tokio::test]
async fn a_submission_that_nobody_polls_holds_nothing_up() {
    let db = TestDb::open_with(|config| config.queue_commands_max = 1).await;
    let gate = Gate::close(&db).await;
    let waiting = committed(insert(&db, 1)).await;
    let mut no_room = Box::pin(insert(&db, 2).submit());
    // Once, so that it stands in the line for room.
    assert!((&mut no_room).now_or_never().is_none());
    gate.open().await;
    soon(waiting).await.unwrap();
    // The room is its own now, and it does not take it.
    soon(db.shutdown(Drain::within(HANG))).await.unwrap();
    assert!(is_closed(&no_room.await.unwrap_err()));
}

#[tokio::test]
async fn a_command_can_not_wait_for_the_end_of_its_own_service() {
    let db = TestDb::open().await;
    let blocking = db.blocking();
    let refused = db.write("closes", move |_| Ok(blocking.shutdown(Drain::within(HANG)).is_err()));
    assert!(soon(refused).await.unwrap());
    soon(db.shutdown(Drain::within(HANG))).await.unwrap();
}

#[tokio::test]
async fn a_statement_without_an_end_does_not_keep_a_service_that_nobody_has_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    let open = || {
        Database::builder(&path).config(config_with(|config| {
            config.shutdown_wait_max = Duration::from_millis(50);
            config.hold_warning = Duration::from_millis(40);
        }))
    };
    let db = open().open().await.unwrap();
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n";
    let runs = db.write("endless", move |tx| tx.query_row(endless, (), |_| Ok(()))).submit().await.unwrap();
    until("it runs", || db.holder().is_some_and(|holder| matches!(holder.phase, Phase::Command { .. })))
        .await;
    drop(db);
    let error = soon(runs).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::RolledBack, "{error:?}");
    let limit = Instant::now() + HANG;
    let db = loop {
        match open().open().await {
            Ok(db) => break db,
            Err(error) => assert!(Instant::now() < limit, "{error}"),
        }
    };
    db.shutdown(Drain::within(HANG)).await.unwrap();
}

#[tokio::test]
async fn a_command_that_awaits_the_end_of_its_own_service_is_told_at_once() {
    let db = TestDb::open().await;
    let handle = (*db).clone();
    let asks = db.write("asks", move |_| {
        Ok(futures_util::FutureExt::now_or_never(handle.shutdown(Drain::within(HANG)))
            .expect("at once")
            .is_err())
    });
    assert!(soon(asks).await.unwrap());
}
