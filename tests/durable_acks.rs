//! Durable Acks: `Ok` comes after COMMIT, never before.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use common::{Gate, TestDb, committed, count, insert, soon};
use futures_util::FutureExt;
use solewriter::{Durability, Lane};

// Writer                         Plain connection
// gate
// insert 1, second gate ──┐      0 rows, no answer
// (one group)             │
// COMMIT ◀── opened ──────┘
//                                1 row, answered
#[tokio::test]
async fn a_command_that_has_run_is_not_acknowledged_before_its_commit() {
    let db = TestDb::open().await;
    let plain = db.plain();
    let first = Gate::close(&db).await;
    let mut answer = committed(insert(&db, 1)).await;
    let second = Gate::line_up(&db, Lane::Interactive, Durability::Full).await;
    first.open().await;
    let second = second.reached(&db).await;
    assert!((&mut answer).now_or_never().is_none(), "acknowledged before COMMIT");
    assert_eq!(count(&plain), 0);
    let group = second.open().await.token;
    assert_eq!(soon(answer).await.unwrap().token, group, "the two were one group");
    assert_eq!(count(&plain), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_row_is_there_for_everyone() {
    let db = TestDb::open().await;
    let tasks = (0..8).map(|task| {
        let (db, plain) = ((*db).clone(), db.plain());
        tokio::spawn(async move {
            for x in task * 100..task * 100 + 50 {
                insert(&db, x).await.unwrap();
                let seen = plain.query_row("SELECT x FROM t WHERE x = ?1", [x], |row| row.get::<_, i64>(0));
                assert_eq!(seen, Ok(x));
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        soon(task).await.unwrap();
    }
}
