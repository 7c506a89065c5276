//! Order: what one task sends into one lane takes effect in that order.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use common::{Add, TestDb, insert, soon};
use solewriter::{Database, Lane};

/// Sends commands without waiting for their commits, then waits for all.
async fn pipeline(db: &Database, lane: Lane, xs: std::ops::Range<i64>) {
    let mut receipts = Vec::new();
    for x in xs {
        receipts.push(db.send(Add { x }).lane(lane).submit().await.unwrap());
    }
    for receipt in receipts {
        soon(receipt).await.unwrap();
    }
}

#[tokio::test]
async fn commands_submitted_one_after_the_other_take_effect_in_that_order() {
    // A queue this short makes most submissions wait for room.
    let db = TestDb::open_with(|config| config.queue_commands_max = 8).await;
    for (lane, from) in Lane::ALL.into_iter().zip([0, 1_000, 2_000]) {
        pipeline(&db, lane, from..from + 1_000).await;
    }
    assert_eq!(db.xs().await, (0..3_000).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn among_64_tasks_each_keeps_its_own_order() {
    let db = TestDb::open_with(|config| config.queue_commands_max = 100).await;
    let tasks = (0..64).map(|task| {
        let db = (*db).clone();
        let lane = Lane::ALL[usize::try_from(task % 3).unwrap()];
        tokio::spawn(async move { pipeline(&db, lane, task * 100..task * 100 + 50).await })
    });
    for task in tasks.collect::<Vec<_>>() {
        soon(task).await.unwrap();
    }
    let xs = db.xs().await;
    assert_eq!(xs.len(), 64 * 50);
    for task in 0..64 {
        let own: Vec<i64> = xs.iter().copied().filter(|x| x / 100 == task).collect();
        assert!(own.is_sorted(), "task {task}: {own:?}");
    }
}

#[tokio::test]
async fn a_command_sees_what_was_sent_before_it() {
    let db = TestDb::open().await;
    let first = insert(&db, 1).submit().await.unwrap();
    let second = db.execute("UPDATE t SET x = x + 1", ()).submit().await.unwrap();
    assert_eq!((first.await.unwrap(), second.await.unwrap()), (1, 1));
    assert_eq!(db.xs().await, [2]);
}
