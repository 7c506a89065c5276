//! Bounded Queue: a full lane makes its callers wait or refuses them, and no other lane's.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::time::Duration;

use common::{Gate, HANG, TestDb, committed, insert, soon};
use futures_util::FutureExt;
use solewriter::{Lane, NotStarted, Outcome, Retry, WriteError};

async fn small_queue() -> TestDb {
    TestDb::open_with(|config| {
        config.queue_commands_max = 3;
        config.queue_wait_max = HANG;
    })
    .await
}

fn is_full(error: &WriteError, of: Lane) -> bool {
    matches!(error, WriteError::NotStarted(NotStarted::QueueFull { lane }) if *lane == of)
}

#[tokio::test]
async fn a_full_lane_refuses_at_once_whom_it_can_not_take() {
    let db = small_queue().await;
    let gate = Gate::close(&db).await;
    let accepted: Vec<_> = (0..3).map(|x| insert(&db, x).try_submit().unwrap()).collect();
    assert_eq!(db.stats().queue_depth.interactive, 3);
    let refused = insert(&db, 3).try_submit().unwrap_err();
    assert!(is_full(&refused, Lane::Interactive), "{refused:?}");
    assert_eq!((refused.outcome(), refused.retry()), (Outcome::NotStarted, Retry::Later));
    assert_eq!(db.stats().commands.refused, 1);
    gate.open().await;
    for receipt in accepted {
        soon(receipt).await.unwrap();
    }
    assert_eq!(db.xs().await, [0, 1, 2], "what was refused never runs");
    assert_eq!(db.stats().queue_depth.interactive, 0);
}

#[tokio::test]
async fn a_full_lane_makes_a_caller_wait_until_there_is_room() {
    let db = small_queue().await;
    let gate = Gate::close(&db).await;
    let accepted: Vec<_> = (0..3).map(|x| insert(&db, x).try_submit().unwrap()).collect();
    let mut waiting = Box::pin(insert(&db, 3).submit());
    assert!((&mut waiting).now_or_never().is_none());
    gate.open().await;
    soon(soon(waiting).await.unwrap()).await.unwrap();
    assert_eq!(db.xs().await, [0, 1, 2, 3]);
    drop(accepted);
}

#[tokio::test]
async fn waiting_for_room_ends_at_its_limit() {
    let db = TestDb::open_with(|config| {
        config.queue_commands_max = 1;
        config.queue_wait_max = Duration::from_millis(30);
    })
    .await;
    let gate = Gate::close(&db).await;
    let accepted = insert(&db, 0).try_submit().unwrap();
    let refused = soon(insert(&db, 1)).await.unwrap_err();
    assert!(is_full(&refused, Lane::Interactive), "{refused:?}");
    let refused = soon(insert(&db, 1).deadline(Duration::from_millis(5))).await.unwrap_err();
    assert!(matches!(refused, WriteError::NotStarted(NotStarted::DeadlineExceeded { .. })), "{refused:?}");
    gate.open().await;
    soon(accepted).await.unwrap();
    assert_eq!(db.xs().await, [0]);
}

#[tokio::test]
async fn a_full_lane_is_full_for_nobody_else() {
    let db = small_queue().await;
    let gate = Gate::close(&db).await;
    let flood: Vec<_> = (0..3).map(|x| insert(&db, x).lane(Lane::Bulk).try_submit().unwrap()).collect();
    let refused = insert(&db, 9).lane(Lane::Bulk).try_submit().unwrap_err();
    assert!(is_full(&refused, Lane::Bulk), "{refused:?}");
    let others =
        [insert(&db, 3).try_submit().unwrap(), insert(&db, 4).lane(Lane::Maintenance).try_submit().unwrap()];
    gate.open().await;
    for receipt in flood.into_iter().chain(others) {
        soon(receipt).await.unwrap();
    }
}

#[tokio::test]
async fn a_lane_is_full_by_bytes_too() {
    let db = TestDb::open_with(|config| config.queue_bytes_max = 1_000).await;
    let gate = Gate::close(&db).await;
    let heavy = |x| insert(&db, x).payload_bytes(400);
    let (first, second) = (committed(heavy(0)).await, committed(heavy(1)).await);
    let refused = heavy(2).try_submit().unwrap_err();
    assert!(is_full(&refused, Lane::Interactive), "{refused:?}");
    let light = committed(insert(&db, 3).payload_bytes(200)).await;
    gate.open().await;
    for answer in [first, second, light] {
        soon(answer).await.unwrap();
    }
}

#[tokio::test]
async fn what_no_queue_can_ever_take_is_refused_as_too_large() {
    let db = TestDb::open_with(|config| config.queue_bytes_max = 1_000).await;
    let blob = vec![0_u8; 1_001];
    let refused = soon(db.execute("INSERT INTO t (x) VALUES (?1)", (blob,))).await.unwrap_err();
    let WriteError::NotStarted(NotStarted::TooLarge { bytes, bytes_max: 1_000 }) = refused else {
        panic!("{refused:?}")
    };
    assert!((1_001..1_200).contains(&bytes), "{bytes}");
    assert_eq!((refused.outcome(), refused.retry()), (Outcome::NotStarted, Retry::Never));
    insert(&db, 1).await.unwrap();
}
