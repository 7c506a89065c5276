//! Maintenance: what SQLite does outside of transactions only, alone on the writer, in its lane.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::time::Duration;

use common::{Gate, TestDb, add, committed, insert, soon};
use futures_util::FutureExt;
use rusqlite::ffi;
use solewriter::{Durability, MaintenanceError, NotStarted, Outcome, RolledBack};

/// Runs without an end, as far as a test is concerned.
const FOR_EVER: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n";

#[tokio::test]
async fn vacuum_gives_space_back_and_everything_is_still_there() {
    let db = TestDb::open().await;
    db.execute("CREATE TABLE big (line BLOB)", ()).await.unwrap();
    db.write("fill", |tx| {
        (0..100).try_for_each(|_| tx.execute("INSERT INTO big VALUES (randomblob(10000))", ()).map(drop))
    })
    .await
    .unwrap();
    insert(&db, 1).await.unwrap();
    db.execute("DELETE FROM big", ()).await.unwrap();
    let pages = async || {
        let pages = |tx: &solewriter::ReadTransaction<'_>| {
            tx.query_row("PRAGMA page_count", (), |row| row.get::<_, i64>(0))
        };
        db.read("pages", pages).await.unwrap()
    };
    let before = pages().await;
    assert!(before > 200);
    db.maintain("vacuum", |m| m.vacuum()).await.unwrap();
    let after = pages().await;
    assert!(after < 20, "{before} pages before, {after} after");
    insert(&db, 2).await.unwrap();
    assert_eq!(db.xs().await, [1, 2]);
}

#[tokio::test]
async fn it_waits_in_its_lane_and_runs_alone_between_two_groups() {
    let db = TestDb::open().await;
    let gate = Gate::close(&db).await;
    let before = committed(insert(&db, 1)).await;
    // In the lane of the others here, so that its place among them is certain.
    let maintain =
        db.maintain("count", |m| m.query_row("SELECT count(*) FROM t", (), |row| row.get::<_, i64>(0)));
    let mut maintain = Box::pin(maintain.lane(solewriter::Lane::Interactive).into_future());
    assert!((&mut maintain).now_or_never().is_none());
    let after = committed(insert(&db, 2)).await;
    gate.open().await;
    assert_eq!(soon(maintain).await.unwrap(), 1, "after the one before it was committed");
    let (before, after) = (before.await.unwrap(), after.await.unwrap());
    assert_eq!(after.token.group(), before.token.group() + 1, "it parts the group");
}

#[tokio::test]
async fn the_check_and_the_optimizer_run() {
    let db = TestDb::open().await;
    insert(&db, 1).await.unwrap();
    let found = db.maintain("check", |m| {
        m.optimize()?;
        m.integrity_check()
    });
    assert_eq!(found.await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn another_database_can_be_attached_and_is_gone_afterwards() {
    let db = TestDb::open().await;
    insert(&db, 1).await.unwrap();
    let other = db.path().with_file_name("other.db");
    // The service's connections create no files.
    std::fs::File::create(&other).unwrap();
    let attach = format!("ATTACH '{}' AS other", other.display());
    db.maintain("copy", move |m| {
        m.execute_batch(&attach)?;
        m.execute_batch("CREATE TABLE other.t AS SELECT x FROM main.t")
    })
    .await
    .unwrap();
    let copied: i64 = rusqlite::Connection::open(&other)
        .unwrap()
        .query_row("SELECT x FROM t", (), |row| row.get(0))
        .unwrap();
    assert_eq!(copied, 1);
    let attached = |tx: &mut solewriter::WriteTransaction<'_>| {
        tx.query_row("SELECT count(*) FROM pragma_database_list WHERE name = 'other'", (), |row| {
            row.get::<_, i64>(0)
        })
    };
    assert_eq!(db.write("look", attached).await.unwrap(), 0);
    assert_eq!(db.stats().connections_replaced, 1);
}

#[tokio::test]
async fn what_the_service_decides_is_refused() {
    let db = TestDb::open().await;
    for sql in [
        "PRAGMA journal_mode = DELETE",
        "PRAGMA locking_mode = EXCLUSIVE",
        "PRAGMA synchronous = OFF",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "PRAGMA writable_schema = ON",
        "PRAGMA schema_version = 7",
    ] {
        let refused = db.maintain("tries", move |m| m.execute_batch(sql)).await.unwrap_err();
        assert!(matches!(refused, MaintenanceError::Failed(_)), "{sql}: {refused:?}");
        assert_eq!(refused.sqlite_extended_code(), Some(ffi::SQLITE_AUTH), "{sql}");
    }
    insert(&db, 1).await.unwrap();
}

#[tokio::test]
async fn what_failed_says_so_and_what_was_done_before_stands() {
    let db = TestDb::open().await;
    let half = db.maintain("half", |m| {
        m.execute("INSERT INTO t (x) VALUES (1)", ())?;
        m.execute("INSERT INTO t (x) VALUES (1)", ())
    });
    let error = half.await.unwrap_err();
    assert!(matches!(error, MaintenanceError::Failed(_)), "{error:?}");
    assert_eq!(error.outcome(), Outcome::Unknown);
    assert_eq!(db.xs().await, [1]);
}

#[tokio::test]
async fn a_transaction_left_open_is_rolled_back_and_said_so() {
    let db = TestDb::open().await;
    let forgets = db.maintain("forgets", |m| m.execute_batch("BEGIN; INSERT INTO t (x) VALUES (1)"));
    let error = forgets.await.unwrap_err();
    assert!(matches!(error, MaintenanceError::CutShort(RolledBack::TransactionLeftOpen)), "{error:?}");
    insert(&db, 2).await.unwrap();
    assert_eq!(db.xs().await, [2]);
}

#[tokio::test]
async fn a_panic_and_a_deadline_cut_it_short_and_the_writer_goes_on() {
    let db = TestDb::open().await;
    let panics = db.maintain("panics", |_| -> rusqlite::Result<()> { panic!("boom") });
    let error = soon(panics).await.unwrap_err();
    assert!(
        matches!(&error, MaintenanceError::CutShort(RolledBack::Panicked(why)) if why == "boom"),
        "{error:?}"
    );
    let slow = db.maintain("slow", |m| m.query_row(FOR_EVER, (), |_| Ok(())));
    let error = soon(slow.deadline(Duration::from_millis(50))).await.unwrap_err();
    assert!(matches!(error, MaintenanceError::CutShort(RolledBack::DeadlineExceeded { .. })), "{error:?}");
    db.write("add", |tx| add(tx, 1)).await.unwrap();
    assert_eq!(db.xs().await, [1]);
}

#[tokio::test]
async fn a_deadline_that_passes_while_it_waits_means_that_it_never_runs() {
    let db = TestDb::open().await;
    let gate = Gate::close(&db).await;
    let late = db.maintain("late", |m| m.vacuum()).deadline(Duration::from_millis(5));
    let error = soon(late).await.unwrap_err();
    assert!(matches!(error, MaintenanceError::NotStarted(NotStarted::DeadlineExceeded { .. })), "{error:?}");
    gate.open().await;
}

#[test]
fn threads_have_it_too() {
    let dir = tempfile::tempdir().unwrap();
    let db = solewriter::Database::builder(dir.path().join("test.db")).open_blocking().unwrap().blocking();
    db.execute("CREATE TABLE t (x)", ()).wait().unwrap();
    assert_eq!(db.maintain("check", |m| m.integrity_check()).wait().unwrap(), Vec::<String>::new());
    db.shutdown(solewriter::Drain::within(common::HANG)).unwrap();
}

// After groups that were not synced, an I/O error could be a sync of the WAL that failed; of this file it is none.
#[tokio::test]
async fn a_file_that_can_not_be_attached_costs_the_maintenance_only() {
    let db = TestDb::open().await;
    for durability in [Durability::Normal, Durability::Full] {
        db.execute("INSERT INTO t DEFAULT VALUES", ()).durability(durability).await.unwrap();
        let typo = db.maintain("typo", |m| m.execute_batch("ATTACH '/no/such/folder/other.db' AS other"));
        let error = soon(typo).await.unwrap_err();
        assert_eq!(
            error.sqlite_extended_code().map(|code| code & 0xff),
            Some(ffi::SQLITE_CANTOPEN),
            "{error:?}"
        );
        soon(db.execute("INSERT INTO t DEFAULT VALUES", ())).await.unwrap();
    }
}

#[tokio::test]
async fn what_it_writes_to_the_wal_is_checkpointed() {
    let db = TestDb::open_with(|config| config.checkpoint_pages = 10).await;
    for _ in 0..5 {
        let fill = |m: &mut solewriter::Maintenance<'_, '_>| {
            m.execute_batch(
                "CREATE TABLE IF NOT EXISTS big (line); INSERT INTO big VALUES (randomblob(1000000))",
            )
        };
        db.maintain("fill", fill).await.unwrap();
    }
    common::until("a checkpoint has run", || db.stats().checkpoints > 0).await;
}
