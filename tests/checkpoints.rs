//! Bounded Everything, for the WAL: it keeps to its target while no reader pins it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::sync::mpsc;

use common::{HANG, TestDb, soon, until};
use solewriter::Durability;

const TARGET_BYTES: u64 = 4 << 20;
const ALLOWED_BYTES: u64 = TARGET_BYTES / 10 * 11;
const ROW_BYTES: usize = 2_000;

async fn small_wal() -> TestDb {
    TestDb::open_with(|config| {
        config.wal_target_bytes = TARGET_BYTES;
        config.checkpoint_pages = 100;
        // The disk is not what is looked at.
        config.durability = Durability::Normal;
        config.group_commands_max = 16;
    })
    .await
}

/// Writes about this many bytes in small commands, and returns the largest size of the -wal file meanwhile.
async fn write_bytes(db: &TestDb, bytes: u64) -> u64 {
    let mut wal_bytes_max = 0;
    for _ in 0..bytes / (16 * ROW_BYTES as u64) {
        let mut receipts = Vec::new();
        for _ in 0..16 {
            let row = db.execute("INSERT INTO t (x) VALUES (randomblob(?1))", (ROW_BYTES as i64,));
            receipts.push(row.submit().await.unwrap());
        }
        for receipt in receipts {
            soon(receipt).await.unwrap();
        }
        wal_bytes_max = wal_bytes_max.max(db.wal_bytes());
    }
    wal_bytes_max
}

#[tokio::test]
async fn under_sustained_small_writes_the_wal_keeps_to_its_target() {
    let db = small_wal().await;
    let wal_bytes_max = write_bytes(&db, 8 * TARGET_BYTES).await;
    let stats = db.stats();
    println!(
        "at most {wal_bytes_max} bytes, {} restarts, {} checkpoints",
        stats.wal_restarts, stats.checkpoints
    );
    assert!(wal_bytes_max <= ALLOWED_BYTES, "{wal_bytes_max}");
    assert!(stats.wal_restarts > 0 && stats.checkpoints > 0);
    assert!(stats.wal_pages_max * stats.page_bytes <= ALLOWED_BYTES);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_read_pins_the_wal_and_afterwards_it_shrinks_again() {
    let db = small_wal().await;
    write_bytes(&db, TARGET_BYTES / 8).await;
    let (has_read, reads) = mpsc::channel();
    let (go_on, wait) = mpsc::channel::<()>();
    let handle = (*db).clone();
    let read = tokio::spawn(async move {
        handle
            .read("long", move |tx| {
                let rows = |tx: &solewriter::ReadTransaction<'_>| {
                    tx.query_row("SELECT count(*) FROM t", (), |row| row.get::<_, i64>(0))
                };
                let before = rows(tx)?;
                has_read.send(()).unwrap();
                wait.recv_timeout(HANG).unwrap();
                Ok((before, rows(tx)?))
            })
            .await
    });
    until("the read has begun", || reads.try_recv().is_ok()).await;
    write_bytes(&db, 2 * TARGET_BYTES).await;
    assert!(db.wal_bytes() > ALLOWED_BYTES, "it is pinned, and nobody was refused");
    assert!(db.stats().checkpoints_blocked > 0);
    go_on.send(()).unwrap();
    let (before, after) = soon(read).await.unwrap().unwrap();
    assert_eq!(before, after);
    // The next restart gives the space back.
    let mut written = 0;
    while db.wal_bytes() > ALLOWED_BYTES {
        write_bytes(&db, TARGET_BYTES / 16).await;
        written += TARGET_BYTES / 16;
        assert!(written <= 2 * TARGET_BYTES, "it does not shrink: {}", db.wal_bytes());
    }
    assert!(write_bytes(&db, 2 * TARGET_BYTES).await <= ALLOWED_BYTES);
}
