//! Self-Healing costs nothing that lasts: a connection that is replaced is closed, whatever user code has leaked.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::mem::ManuallyDrop;

use common::{TestDb, insert, soon};

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn leak(tx: &solewriter::ReadTransaction<'_>) -> rusqlite::Result<()> {
    let mut statement = ManuallyDrop::new(tx.prepare("SELECT 1 UNION ALL SELECT 2")?);
    let mut rows = ManuallyDrop::new(statement.query(())?);
    rows.next().map(drop)
}

// Leaked statements once kept the connections they were leaked of open, until the process had no descriptors left.
#[tokio::test]
async fn leaked_statements_keep_no_files_open() {
    let db = TestDb::open_with(|config| config.readers = 1).await;
    let leak_all = async || {
        for _ in 0..20 {
            soon(db.write("leaks", |tx| leak(tx))).await.unwrap_err();
            soon(db.read("leaks", leak)).await.unwrap();
        }
        soon(insert(&db, 1)).await.unwrap();
        soon(db.read("one", |_| Ok(()))).await.unwrap();
        db.execute("DELETE FROM t", ()).await.unwrap();
        descriptors()
    };
    let before = leak_all().await;
    let after = leak_all().await;
    assert!(db.stats().connections_replaced >= 40);
    // A thread of a reader ends when it ends.
    assert!(after <= before + 4, "{before} descriptors before, {after} after");
}
