//! Read-Your-Writes: a read that begins after a write's `Ok` sees it, also by token in another task.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::time::Duration;

use common::{HANG, TestDb, config_with, insert, soon};
use solewriter::{CommitToken, Database, Drain, ReadError, ReadTransaction};
use tokio::sync::mpsc;

fn has(x: i64) -> impl FnOnce(&ReadTransaction<'_>) -> rusqlite::Result<bool> + Send + 'static {
    move |tx| tx.query_row("SELECT count(*) FROM t WHERE x = ?1", [x], |row| row.get(0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_sees_the_write_that_returned_before_it() {
    let db = TestDb::open().await;
    let tasks = (0..4).map(|task| {
        let db = (*db).clone();
        tokio::spawn(async move {
            for x in task * 1_000..task * 1_000 + 100 {
                insert(&db, x).await.unwrap();
                assert!(db.read("has", has(x)).await.unwrap(), "{x} was acknowledged");
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        soon(task).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_after_a_token_of_another_task_sees_that_commit() {
    let db = TestDb::open().await;
    let (tokens, mut arriving) = mpsc::channel::<(i64, String)>(1);
    let writer = (*db).clone();
    let writes = tokio::spawn(async move {
        for x in 0..100 {
            let token = insert(&writer, x).committed().await.unwrap().token;
            // As a client would send it on.
            tokens.send((x, serde_json::to_string(&token).unwrap())).await.unwrap();
        }
    });
    while let Some((x, token)) = soon(arriving.recv()).await {
        let token: CommitToken = serde_json::from_str(&token).unwrap();
        assert!(db.read_after(token, "has", has(x)).await.unwrap());
    }
    soon(writes).await.unwrap();
}

#[tokio::test]
async fn a_token_of_another_opening_is_refused() {
    let (db, other) = (TestDb::open().await, TestDb::open().await);
    let foreign = insert(&other, 1).committed().await.unwrap().token;
    let refused = db.read_after(foreign, "has", has(1)).await;
    assert!(matches!(refused, Err(ReadError::ForeignToken)), "{refused:?}");
    assert_eq!(foreign.partial_cmp(&insert(&db, 1).committed().await.unwrap().token), None);

    let path = other.path().to_owned();
    other.shutdown(Drain::within(HANG)).await.unwrap();
    let reopened = Database::builder(&path).config(config_with(|_| ())).open().await.unwrap();
    let refused = reopened.read_after(foreign, "has", has(1)).await;
    assert!(matches!(refused, Err(ReadError::ForeignToken)), "{refused:?}");
    reopened.shutdown(Drain::within(Duration::from_secs(10))).await.unwrap();
}

#[tokio::test]
async fn a_token_of_a_commit_that_has_not_happened_is_refused() {
    let db = TestDb::open().await;
    let token = insert(&db, 1).committed().await.unwrap().token;
    let mut forged = serde_json::to_value(token).unwrap();
    assert_eq!(serde_json::from_value::<CommitToken>(forged.clone()).unwrap(), token);
    forged["group"] = (token.group() + 1).into();
    let forged: CommitToken = serde_json::from_value(forged).unwrap();
    let refused = db.read_after(forged, "has", has(1)).await;
    assert!(matches!(refused, Err(ReadError::ForeignToken)), "{refused:?}");
}
