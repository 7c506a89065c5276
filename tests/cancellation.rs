//! Cancel Safety: what a dropped future and a passed deadline do, before and after a command has started.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::sync::{Arc, mpsc};
use std::time::Duration;

use common::{Gate, HANG, TestDb, add, insert, soon, until};
use futures_util::FutureExt;
use solewriter::{NotStarted, OnDrop, Outcome, Retry, RolledBack, WriteError};

fn is_deadline(error: &WriteError) -> bool {
    matches!(error, WriteError::NotStarted(NotStarted::DeadlineExceeded { .. }))
}

#[tokio::test]
async fn a_future_that_was_never_polled_sends_nothing() {
    let db = TestDb::open().await;
    drop(insert(&db, 1).into_future());
    drop(insert(&db, 2).submit());
    insert(&db, 3).await.unwrap();
    assert_eq!(db.xs().await, [3]);
}

#[tokio::test]
async fn dropped_before_acceptance_a_command_never_runs() {
    let db = TestDb::open_with(|config| config.queue_commands_max = 1).await;
    let gate = Gate::close(&db).await;
    let accepted = insert(&db, 0).try_submit().unwrap();
    let mut waiting = insert(&db, 1).into_future();
    assert!((&mut waiting).now_or_never().is_none());
    drop(waiting);
    gate.open().await;
    soon(accepted).await.unwrap();
    insert(&db, 2).await.unwrap();
    assert_eq!(db.xs().await, [0, 2]);
    assert_eq!(db.stats().queue_depth.interactive, 0, "no room is lost");
}

#[tokio::test]
async fn dropped_after_acceptance_a_command_finishes() {
    let db = TestDb::open().await;
    let gate = Gate::close(&db).await;
    let mut write = insert(&db, 1).into_future();
    assert!((&mut write).now_or_never().is_none());
    drop(write);
    drop(insert(&db, 2).submit().await.unwrap());
    gate.open().await;
    insert(&db, 3).await.unwrap();
    assert_eq!(db.xs().await, [1, 2, 3]);
}

#[tokio::test]
async fn dropped_while_it_waits_a_command_can_be_withdrawn() {
    let db = TestDb::open().await;
    let gate = Gate::close(&db).await;
    drop(insert(&db, 1).on_drop(OnDrop::Withdraw).submit().await.unwrap());
    gate.open().await;
    insert(&db, 2).on_drop(OnDrop::Withdraw).await.unwrap();
    assert_eq!(db.xs().await, [2]);
    assert_eq!(db.stats().commands.withdrawn, 1);
}

/// A command that tells when it has started, and then waits to be told to go on.
type Started = (mpsc::Receiver<()>, mpsc::Sender<()>);

fn slow(
    x: i64,
) -> (impl FnOnce(&mut solewriter::WriteTransaction<'_>) -> rusqlite::Result<usize> + Send, Started) {
    let (starts, started) = mpsc::channel();
    let (go_on, wait) = mpsc::channel::<()>();
    let command = move |tx: &mut solewriter::WriteTransaction<'_>| {
        let added = add(tx, x);
        starts.send(()).unwrap();
        wait.recv_timeout(HANG).unwrap();
        added
    };
    (command, (started, go_on))
}

#[tokio::test]
async fn dropped_after_it_started_a_command_finishes_although_withdrawal_was_asked_for() {
    let db = TestDb::open().await;
    let (command, (started, go_on)) = slow(1);
    let receipt = db.write("slow", command).on_drop(OnDrop::Withdraw).submit().await.unwrap();
    started.recv_timeout(HANG).unwrap();
    drop(receipt);
    go_on.send(()).unwrap();
    insert(&db, 2).await.unwrap();
    assert_eq!(db.xs().await, [1, 2]);
}

#[tokio::test]
async fn a_deadline_that_passes_while_the_command_waits_is_answered_at_once_and_it_never_runs() {
    let db = TestDb::open().await;
    let gate = Gate::close(&db).await;
    let expired = soon(insert(&db, 1).deadline(Duration::from_millis(10))).await.unwrap_err();
    assert!(gate.holds(&db), "the writer was busy all the time");
    assert!(is_deadline(&expired), "{expired:?}");
    assert_eq!(expired.outcome(), Outcome::NotStarted);
    gate.open().await;
    insert(&db, 2).await.unwrap();
    assert_eq!(db.xs().await, [2]);
}

#[tokio::test]
async fn the_writer_too_refuses_a_command_whose_deadline_has_passed() {
    let db = TestDb::open().await;
    let gate = Gate::close(&db).await;
    // Nobody polls the receipt before the writer has gone past it, so nobody else can notice.
    let receipt = insert(&db, 1).deadline(Duration::from_millis(1)).submit().await.unwrap();
    std::thread::sleep(Duration::from_millis(5));
    gate.open().await;
    insert(&db, 2).await.unwrap();
    assert!(is_deadline(&soon(receipt).await.unwrap_err()));
    assert_eq!(db.xs().await, [2]);
    assert_eq!(db.stats().commands.not_started, 1);
}

#[tokio::test]
async fn a_deadline_that_passes_after_the_start_yields_the_true_outcome() {
    let db = TestDb::open().await;
    let (command, (started, go_on)) = slow(1);
    let deadline = Duration::from_millis(300);
    let mut receipt = db.write("slow", command).deadline(deadline).submit().await.unwrap();
    started.recv_timeout(deadline).expect("it starts within its deadline");
    assert!(tokio::time::timeout(deadline, &mut receipt).await.is_err(), "no answer while it runs");
    go_on.send(()).unwrap();
    assert_eq!(soon(receipt).await.unwrap(), 1);
    assert_eq!(db.xs().await, [1]);
}

#[tokio::test]
async fn a_deadline_ends_the_statement_that_runs_and_undoes_its_command_alone() {
    let db = TestDb::open().await;
    let endless = "INSERT INTO t (x) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n";
    let gate = Gate::close(&db).await;
    let before = insert(&db, 1).submit().await.unwrap();
    let slow = db.write("slow", move |tx| {
        add(tx, 2)?;
        tx.execute(endless, ())
    });
    let slow = slow.deadline(Duration::from_millis(100)).submit().await.unwrap();
    let after = insert(&db, 3).submit().await.unwrap();
    gate.open().await;
    let error = soon(slow).await.unwrap_err();
    assert!(matches!(error, WriteError::RolledBack(RolledBack::DeadlineExceeded { .. })), "{error:?}");
    assert_eq!((error.outcome(), error.retry()), (Outcome::RolledBack, Retry::Later));
    soon(before).await.unwrap();
    soon(after).await.unwrap();
    assert_eq!(db.xs().await, [1, 3]);
}

#[tokio::test]
async fn after_its_deadline_a_command_can_begin_no_more_statements() {
    let db = TestDb::open().await;
    let late = db.write("late", |tx| {
        add(tx, 1)?;
        std::thread::sleep(Duration::from_millis(60));
        add(tx, 2)
    });
    let error = soon(late.deadline(Duration::from_millis(50))).await.unwrap_err();
    assert!(matches!(error, WriteError::RolledBack(RolledBack::DeadlineExceeded { .. })), "{error:?}");
    // What swallows it has its own way: there was nothing to interrupt.
    let stubborn = db.write("stubborn", |tx| {
        add(tx, 3)?;
        std::thread::sleep(Duration::from_millis(60));
        Ok(add(tx, 4).is_err())
    });
    assert!(soon(stubborn.deadline(Duration::from_millis(50))).await.unwrap());
    assert_eq!(db.xs().await, [3]);
}

#[tokio::test]
async fn a_deadline_beyond_all_time_is_none() {
    let db = TestDb::open().await;
    soon(insert(&db, 1).deadline(Duration::MAX)).await.unwrap();
    let read = db.read("patient", |_| Ok(())).wait_max(Duration::MAX);
    soon(read).await.unwrap();
    db.shutdown(solewriter::Drain::within(Duration::MAX)).await.unwrap();
}

// The closure of a command that is refused is gone with the answer, though nobody has asked for that yet.
#[tokio::test]
async fn what_a_command_holds_that_never_runs_is_free_again_at_once() {
    let db = TestDb::open().await;
    let gate = Gate::close(&db).await;
    let held = Arc::new(());
    let holds = held.clone();
    let command = db.write("late", move |_| {
        drop(holds);
        Ok(())
    });
    let receipt = command.deadline(Duration::from_millis(1)).submit().await.unwrap();
    until("it is free again", || Arc::strong_count(&held) == 1).await;
    soon(receipt).await.unwrap_err();
    gate.open().await;
}
