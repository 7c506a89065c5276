//! Snapshot Reads: a read sees one unchanging state, whatever is committed meanwhile.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::mem_forget, reason = "a test")]

mod common;

use std::sync::mpsc;
use std::time::Duration;

use common::{HANG, TestDb, add, config_with, insert, soon, until};
use futures_util::FutureExt;
use rusqlite::Connection;
use solewriter::{Database, Drain, OnDrop, ReadEnd, ReadError, ReadTransaction, Retry};

const SHORT: Duration = Duration::from_millis(50);

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

async fn one_reader() -> TestDb {
    TestDb::open_with(|config| {
        (config.readers, config.readers_overflow) = (1, 0);
        config.reader_wait_max = SHORT;
        // What ends a snapshot here is not its age.
        config.read_age_max = 10 * HANG;
    })
    .await
}

/// Whether somebody still reads what is older than the newest commit, so that the WAL can't be emptied.
fn wal_is_pinned(connection: &Connection) -> bool {
    connection.busy_timeout(Duration::ZERO).unwrap();
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |row| row.get(0)).unwrap()
}

// Snapshot                        Writer
// taken
//                                 x = 2 committed, acknowledged
// sum == 1, twice, by two reads
//                                 (a new snapshot: sum == 3)
#[tokio::test]
async fn all_reads_of_a_snapshot_see_what_was_committed_when_it_was_taken() {
    let db = TestDb::open().await;
    insert(&db, 1).await.unwrap();
    let snapshot = db.snapshot("report").await.unwrap();
    insert(&db, 2).await.unwrap();
    assert_eq!(snapshot.read(sum).await.unwrap(), 1);
    insert(&db, 3).await.unwrap();
    assert_eq!(snapshot.read(sum).await.unwrap(), 1);
    let newer = db.snapshot("report").await.unwrap();
    assert_eq!(newer.read(sum).await.unwrap(), 6, "it sees every write that was acknowledged");
    assert_eq!(db.read("sum", sum).await.unwrap(), 6);
    assert_eq!(db.stats().reads, 4, "each read counts, a snapshot does not");
}

#[tokio::test]
async fn a_snapshot_is_listed_until_it_is_dropped_and_gives_its_connection_back() {
    let db = one_reader().await;
    let snapshot = db.snapshot("report").await.unwrap();
    assert_eq!((&**snapshot.label(), &*db.oldest_read().unwrap().label), ("report", "report"));
    let refused = db.read("late", sum).await.unwrap_err();
    assert!(matches!(refused, ReadError::NoReader { .. }), "{refused:?}");
    let refused = db.snapshot("late").await.unwrap_err();
    assert!(matches!(refused, ReadError::NoReader { .. }), "{refused:?}");
    drop(snapshot);
    soon(db.read("next", sum).wait_max(HANG)).await.unwrap();
    assert_eq!((db.oldest_read(), db.stats().readers_in_use), (None, 0));
}

// Nobody reads from the snapshot, and no timer of a runtime runs: the test blocks its only thread.
#[test]
fn a_snapshot_that_nobody_reads_from_is_gone_at_its_age_and_pins_the_wal_no_longer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    let db = Database::builder(&path).config(config_with(|_| ())).open_blocking().unwrap().blocking();
    db.execute("CREATE TABLE t (x)", ()).wait().unwrap();
    let snapshot = db.snapshot("forgotten").age_max(2 * SHORT).wait().unwrap();
    db.execute("INSERT INTO t VALUES (1)", ()).wait().unwrap();
    let plain = common::plain(&path);
    assert!(wal_is_pinned(&plain));
    while db.database().oldest_read().is_some() {
        assert!(snapshot.age() < HANG, "it is never ended");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(snapshot.age() >= 2 * SHORT);
    assert!(!wal_is_pinned(&plain));
    let ended = snapshot.read(sum).wait().unwrap_err();
    let ReadError::SnapshotEnded { age, why: ReadEnd::AgeLimit } = ended else { panic!("{ended:?}") };
    assert!(age >= 2 * SHORT && age <= snapshot.age(), "{age:?}");
    assert_eq!(ended.retry(), Retry::Never);
}

const ENDLESS: &str =
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";

fn endless(tx: &ReadTransaction<'_>) -> rusqlite::Result<i64> {
    tx.query_row(ENDLESS, (), |row| row.get(0))
}

#[tokio::test]
async fn the_age_of_a_snapshot_ends_the_statement_that_runs_in_it_whatever_its_deadline() {
    let db = one_reader().await;
    let snapshot = db.snapshot("report").age_max(SHORT).await.unwrap();
    let ended = soon(snapshot.read(endless).deadline(HANG)).await.unwrap_err();
    assert!(matches!(ended, ReadError::SnapshotEnded { why: ReadEnd::AgeLimit, .. }), "{ended:?}");
    assert_eq!(soon(db.read("next", sum)).await.unwrap(), 0, "the connection is free");
}

#[tokio::test]
async fn neither_an_error_nor_a_deadline_nor_a_panic_of_a_read_ends_its_snapshot() {
    let db = TestDb::open().await;
    let snapshot = db.snapshot("report").await.unwrap();
    insert(&db, 1).await.unwrap();
    let failed = snapshot.read(|tx| tx.prepare("SELECT nothing").map(drop)).await.unwrap_err();
    assert!(matches!(failed, ReadError::Query(_)), "{failed:?}");
    let failed = snapshot.read(|tx| tx.prepare("DELETE FROM t")?.raw_execute()).await.unwrap_err();
    assert!(matches!(failed, ReadError::ReadOnly(_)), "{failed:?}");
    let late = soon(snapshot.read(endless).deadline(SHORT)).await.unwrap_err();
    assert!(matches!(late, ReadError::DeadlineExceeded { ran: Some(_), .. }), "{late:?}");
    let panicked = snapshot.read(|tx| -> rusqlite::Result<()> {
        tx.prepare("SELECT 1")?;
        panic!("boom")
    });
    let panicked = panicked.await.unwrap_err();
    assert!(matches!(&panicked, ReadError::Panicked(why) if why == "boom"), "{panicked:?}");
    let ended = snapshot.read(|tx| tx.prepare("ROLLBACK")?.raw_execute()).await.unwrap_err();
    assert_eq!(ended.sqlite_extended_code(), Some(rusqlite::ffi::SQLITE_AUTH));
    assert_eq!(snapshot.read(sum).await.unwrap(), 0, "it is as it was");
}

#[tokio::test]
async fn a_read_that_leaves_a_statement_half_stepped_ends_its_snapshot() {
    let db = one_reader().await;
    let snapshot = db.snapshot("report").await.unwrap();
    let leaks = |tx: &ReadTransaction<'_>| {
        let mut statement = tx.prepare("SELECT 1 UNION ALL SELECT 2")?;
        let mut rows = statement.query(())?;
        rows.next()?;
        std::mem::forget(rows);
        std::mem::forget(statement);
        Ok(())
    };
    snapshot.read(leaks).await.unwrap();
    let ended = soon(snapshot.read(sum)).await.unwrap_err();
    assert!(matches!(ended, ReadError::SnapshotEnded { why: ReadEnd::Broken, .. }), "{ended:?}");
    assert_eq!(soon(db.read("next", sum).wait_max(HANG)).await.unwrap(), 0);
}

// Snapshot, one read at a time
// read 1 runs, until told to go on
// read 2 waits for its turn         → NoReader at its limit, DeadlineExceeded at its deadline
// read 1 goes on
// read 3
#[tokio::test]
async fn the_reads_of_a_snapshot_wait_for_their_turn_within_limits() {
    let db = TestDb::open().await;
    let snapshot = db.snapshot("report").await.unwrap();
    let (go_on, wait) = mpsc::channel::<()>();
    let mut first = snapshot.read(move |_| Ok(wait.recv_timeout(HANG))).into_future();
    assert!((&mut first).now_or_never().is_none());
    let refused = soon(snapshot.read(sum).wait_max(SHORT)).await.unwrap_err();
    assert!(matches!(refused, ReadError::NoReader { .. }), "{refused:?}");
    let refused = soon(snapshot.read(sum).deadline(SHORT)).await.unwrap_err();
    assert!(matches!(refused, ReadError::DeadlineExceeded { ran: None, .. }), "{refused:?}");
    go_on.send(()).unwrap();
    soon(first).await.unwrap().unwrap();
    assert_eq!(soon(snapshot.read(sum)).await.unwrap(), 0);
}

#[tokio::test]
async fn a_read_that_is_withdrawn_leaves_its_snapshot() {
    let db = TestDb::open().await;
    let snapshot = db.snapshot("report").await.unwrap();
    let (reading, begun) = mpsc::channel();
    let read = snapshot.read(move |tx| {
        reading.send(()).unwrap();
        endless(tx)
    });
    let mut read = read.on_drop(OnDrop::Withdraw).into_future();
    assert!((&mut read).now_or_never().is_none());
    until("it reads", || begun.try_recv().is_ok()).await;
    drop(read);
    assert_eq!(soon(snapshot.read(sum).wait_max(HANG)).await.unwrap(), 0);
}

// The snapshot is never read from and never dropped while the service closes.
#[tokio::test]
async fn a_shutdown_ends_a_snapshot_at_once_and_says_so() {
    let db = TestDb::open().await;
    let snapshot = db.snapshot("report").await.unwrap();
    insert(&db, 1).await.unwrap();
    let report = soon(db.shutdown(Drain::within(HANG / 2))).await.unwrap();
    assert_eq!(report.wal_pages_left, 0);
    assert!(snapshot.age() < HANG / 2, "nobody has waited for it");
    let ended = soon(snapshot.read(sum)).await.unwrap_err();
    assert!(matches!(ended, ReadError::SnapshotEnded { why: ReadEnd::Closed, .. }), "{ended:?}");
    let refused = db.snapshot("late").await.unwrap_err();
    assert!(matches!(refused, ReadError::Closed), "{refused:?}");
}

#[tokio::test]
async fn a_snapshot_does_not_keep_the_service_from_closing_when_the_last_handle_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    let db = Database::builder(&path).open().await.unwrap();
    db.execute("CREATE TABLE t (x)", ()).await.unwrap();
    let snapshot = db.snapshot("report").await.unwrap();
    drop(db);
    until("the WAL is gone", || !common::beside(&path, "-wal").exists()).await;
    let ended = soon(snapshot.read(sum)).await.unwrap_err();
    assert!(matches!(ended, ReadError::SnapshotEnded { why: ReadEnd::Closed, .. }), "{ended:?}");
}

#[tokio::test]
async fn a_snapshot_whose_future_is_dropped_is_not_held() {
    let db = one_reader().await;
    for _ in 0..50 {
        let mut snapshot = db.snapshot("report").wait_max(HANG).into_future();
        let _begun = (&mut snapshot).now_or_never();
        drop(snapshot);
    }
    soon(db.read("next", sum).wait_max(HANG)).await.unwrap();
    assert_eq!(db.oldest_read(), None);
}
