//! The guide's own test: a rename during an import takes less than a second. The figure is the guide's.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use common::{TestDb, plain};
use solewriter::Batch;

const ENTRIES: i64 = 100;
/// What an entry takes outside of SQL.
const WORK: Duration = Duration::from_millis(35);
const RENAME_AFTER: Duration = Duration::from_millis(100);
const RENAME_MAX: Duration = Duration::from_secs(1);

const SCHEMA: &str =
    "CREATE TABLE entries (id TEXT PRIMARY KEY, name TEXT, status TEXT NOT NULL, updated_at TEXT);
     CREATE TABLE artifacts (id TEXT PRIMARY KEY, entry TEXT NOT NULL REFERENCES entries);
     WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 99)
     INSERT INTO entries (id, name, status) SELECT 'entry-' || i, 'old', 'new' FROM n;";
const ARTIFACT: &str = "INSERT INTO artifacts VALUES ('skill:' || ?1, ?1)";
const IMPORTED: &str = "UPDATE entries SET status = 'imported' WHERE id = ?1";
const RENAME: &str = "UPDATE entries SET name = 'renamed', updated_at = datetime() WHERE id = 'entry-50'";
const COUNT: &str = "SELECT count(*) FROM entries JOIN artifacts ON entry = entries.id
     WHERE status = 'imported' AND name = iif(entries.id = 'entry-50', 'renamed', 'old')";

/// Renames the entry while the import runs, and says how long that took.
fn rename_meanwhile(rename: impl FnOnce() + Send + 'static) -> thread::JoinHandle<Duration> {
    thread::spawn(move || {
        thread::sleep(RENAME_AFTER);
        let began = Instant::now();
        rename();
        began.elapsed()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rename_during_an_import_takes_less_than_a_second() {
    for batch in [Batch::Adaptive, Batch::Fixed(10)] {
        let db = TestDb::open().await;
        db.write("schema", |tx| tx.execute_batch(SCHEMA)).await.unwrap();
        let people = db.blocking();
        let rename = rename_meanwhile(move || assert_eq!(people.execute(RENAME, ()).wait().unwrap(), 1));
        let report = db
            .import("catalog", futures_util::stream::iter(0..ENTRIES))
            .batch(batch)
            .prepare(1, |i| async move {
                tokio::time::sleep(WORK).await;
                Ok::<_, rusqlite::Error>(format!("entry-{i}"))
            })
            .run(|tx, id| {
                tx.execute(ARTIFACT, [id])?;
                tx.execute(IMPORTED, [id])
            })
            .await
            .unwrap();
        let renamed = rename.join().unwrap();
        println!(
            "{batch:?}: import {:?}, rename {renamed:?}, longest hold {:?}",
            report.total, report.hold_max
        );
        assert!(renamed < RENAME_MAX, "{renamed:?}");
        assert!(report.total >= WORK * 100, "the import went on meanwhile");
        assert_eq!((report.accepted, report.failed), (100, 0));
        let imported = db.read("count", |tx| tx.query_row(COUNT, (), |row| row.get::<_, i64>(0)));
        assert_eq!(imported.await.unwrap(), ENTRIES);
    }
}

// The same work in one transaction of a plain connection: what the guide set out to cure. If this one passed
// the check, the check above would prove nothing.
#[test]
fn the_same_rename_fails_that_check_when_the_import_is_a_single_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("single.db");
    let mut importer = plain(&path);
    importer.pragma_update(None, "journal_mode", "wal").unwrap();
    importer.execute_batch(SCHEMA).unwrap();
    let people = plain(&path);
    let rename = rename_meanwhile(move || assert_eq!(people.execute(RENAME, ()), Ok(1)));
    let began = Instant::now();
    let import = importer.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
    for i in 0..ENTRIES {
        thread::sleep(WORK);
        let id = format!("entry-{i}");
        import.execute(ARTIFACT, [&id]).unwrap();
        import.execute(IMPORTED, [&id]).unwrap();
    }
    import.commit().unwrap();
    let imported = began.elapsed();
    let renamed = rename.join().unwrap();
    println!("single transaction: import {imported:?}, rename {renamed:?}");
    assert!(renamed >= RENAME_MAX, "{renamed:?}");
    assert_eq!(importer.query_row(COUNT, (), |row| row.get::<_, i64>(0)), Ok(ENTRIES));
}
