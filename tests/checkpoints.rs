//! Bounded Everything, for the WAL: it keeps to its target while no reader pins it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::sync::mpsc;

use common::{HANG, TestDb, soon, until};

const TARGET_BYTES: u64 = 4 << 20;
const ALLOWED_BYTES: u64 = TARGET_BYTES / 10 * 11;

async fn small_wal(checkpoint_pages: u32) -> TestDb {
    let db = TestDb::open_with(|config| {
        config.wal_target_bytes = TARGET_BYTES;
        config.checkpoint_pages = checkpoint_pages;
        config.group_commands_max = 2;
    })
    .await;
    db.execute("CREATE TABLE log (id INTEGER PRIMARY KEY, line BLOB)", ()).await.unwrap();
    db
}

/// Lets small commands write about this many bytes to the WAL, and returns the largest size of its file.
async fn write_bytes(db: &TestDb, bytes: u64) -> u64 {
    let (mut wal_bytes_max, mut pages, mut before) = (0, 0, db.stats().wal_pages);
    while pages * db.stats().page_bytes < bytes {
        // One after the other, the writer would be idle long enough for the WAL to begin anew by itself.
        let write = || db.execute("INSERT INTO log (line) VALUES (randomblob(3000))", ()).submit();
        let receipts = futures_util::future::join_all((0..8).map(|_| write())).await;
        for receipt in receipts {
            soon(receipt.unwrap()).await.unwrap();
        }
        let stats = db.stats();
        // It begins anew from time to time.
        pages += stats.wal_pages.saturating_sub(before);
        before = stats.wal_pages;
        wal_bytes_max = wal_bytes_max.max(db.wal_bytes());
    }
    wal_bytes_max
}

#[tokio::test]
async fn under_sustained_small_writes_the_wal_keeps_to_its_target() {
    let db = small_wal(100).await;
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

#[tokio::test]
async fn where_checkpoints_lag_the_writer_itself_keeps_the_wal_to_its_target() {
    let db = small_wal(u32::MAX).await;
    let wal_bytes_max = write_bytes(&db, 8 * TARGET_BYTES).await;
    let stats = db.stats();
    assert!(wal_bytes_max <= ALLOWED_BYTES, "{wal_bytes_max}");
    assert_eq!(stats.checkpoints, 0, "no routine checkpoint ran");
    assert!(stats.wal_restarts >= 7, "{}", stats.wal_restarts);
    assert!(stats.wal_restart.count >= 7, "{:?}", stats.wal_restart);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_read_pins_the_wal_and_afterwards_it_shrinks_again() {
    let db = small_wal(100).await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_reads_that_overlap_do_not_let_the_wal_grow_for_ever() {
    let db = small_wal(100).await;
    let ended = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let (db, ended) = ((*db).clone(), ended.clone());
            tokio::spawn(async move {
                while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                    let read = db.read("short", |tx| {
                        let rows: i64 = tx.query_row("SELECT count(*) FROM log", (), |row| row.get(0))?;
                        // The length of the read is what matters here.
                        std::thread::sleep(std::time::Duration::from_millis(2));
                        Ok(rows)
                    });
                    read.await.unwrap();
                }
            })
        })
        .collect();
    let wal_bytes_max = write_bytes(&db, 16 * TARGET_BYTES).await;
    ended.store(true, std::sync::atomic::Ordering::Relaxed);
    for reader in readers {
        soon(reader).await.unwrap();
    }
    let stats = db.stats();
    println!(
        "at most {wal_bytes_max} bytes, {} restarts, {} blocked",
        stats.wal_restarts, stats.checkpoints_blocked
    );
    assert!(wal_bytes_max <= 4 * TARGET_BYTES, "{wal_bytes_max}");
}
