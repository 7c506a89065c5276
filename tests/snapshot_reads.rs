//! Snapshot Reads: a read sees one unchanging state, whatever is committed meanwhile.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::sync::mpsc;

use common::{HANG, TestDb, add, insert, soon, until};
use solewriter::ReadTransaction;

fn sum(tx: &ReadTransaction<'_>) -> rusqlite::Result<i64> {
    tx.query_row("SELECT coalesce(sum(x), 0) FROM t", (), |row| row.get(0))
}

// Reader                          Writer
// sum == 1 (snapshot)
//                                 x = 2 committed, acknowledged
// sum == 1 still
//                                 (a new read: sum == 3)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_statements_of_a_read_see_the_same_state() {
    let db = TestDb::open().await;
    insert(&db, 1).await.unwrap();
    let (has_read, first) = mpsc::channel();
    let (go_on, written) = mpsc::channel::<()>();
    let handle = (*db).clone();
    let read = tokio::spawn(async move {
        handle
            .read("sums", move |tx| {
                has_read.send(sum(tx)?).unwrap();
                written.recv_timeout(HANG).unwrap();
                sum(tx)
            })
            .await
    });
    let mut seen = None;
    until("the read has begun", || {
        seen = first.try_recv().ok();
        seen.is_some()
    })
    .await;
    insert(&db, 2).await.unwrap();
    go_on.send(()).unwrap();
    assert_eq!((seen, soon(read).await.unwrap().unwrap()), (Some(1), 1));
    assert_eq!(db.read("sum", sum).await.unwrap(), 3);
}

// Invariant: the sum is zero in every snapshot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_sees_half_a_command() {
    let db = TestDb::open().await;
    let handle = (*db).clone();
    let writes = tokio::spawn(async move {
        for x in 1..=200 {
            let both = move |tx: &mut solewriter::WriteTransaction<'_>| {
                add(tx, x)?;
                add(tx, -x)
            };
            handle.write("t.add", both).await.unwrap();
        }
    });
    let mut reads = 0;
    while !writes.is_finished() || reads == 0 {
        assert_eq!(db.read("sum", sum).await.unwrap(), 0);
        reads += 1;
    }
    soon(writes).await.unwrap();
}
