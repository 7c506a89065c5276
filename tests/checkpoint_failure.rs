//! Durable Acks, where a checkpoint fails: it is never tried again on the same wal-index, since the pages that
//! its sync has dropped would count as copied. Every connection is opened anew, or writing stops.
#![cfg(unix)]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::path::Path;
use std::sync::{Arc, mpsc};

use common::faults::{By, Call, CrashImage, Fault, Faults, Of, Op, stored, xs};
use common::{HANG, beside, insert, plain, soon, until};
use rusqlite::ffi;
use solewriter::{
    Config, Database, Drain, Durability, NotStarted, Phase, ReadEnd, ReadError, Retry, ShutdownReport,
    WriteError,
};

/// A failure shows long before so many writes.
const WRITES_MAX: usize = 1_000;

/// The routine sync of the database file fails.
fn failed_sync() -> Fault {
    Fault::new(Op::Sync, Of::Database, ffi::SQLITE_IOERR_FSYNC)
}

/// Every group asks for a checkpoint.
fn eager(config: &mut Config) {
    config.checkpoint_pages = 1;
}

fn close(db: &Database) -> ShutdownReport {
    db.blocking().shutdown(Drain::within(HANG)).unwrap()
}

/// Writes once more, and waits until the checkpoint that is asked for has failed.
async fn fail_a_checkpoint(db: &Database, faults: &Faults, x: i64, fault: Fault) {
    faults.forget();
    faults.inject(fault);
    insert(db, x).await.unwrap();
    until("the checkpoint fails", || faults.failed() > 0).await;
}

/// Writes until every connection is opened anew: the writer learns of a failure between two groups. Returns what
/// is written then.
async fn write_until_reopened(db: &Database, faults: &Faults, mut seen: Vec<i64>) -> Vec<i64> {
    while !faults.after_failure().iter().any(is_reopen) {
        soon(insert(db, seen.len() as i64)).await.unwrap();
        seen.push(seen.len() as i64);
        assert!(seen.len() < WRITES_MAX, "nothing is opened anew");
    }
    seen
}

fn is_reopen(call: &Call) -> bool {
    (call.op, call.of, call.by) == (Op::Open, Of::Database, By::Writer)
}

/// Writes until it is refused; the writer learns of a failure between two groups. Returns what is written then.
async fn write_until_refused(db: &Database, mut seen: Vec<i64>) -> Vec<i64> {
    while soon(insert(db, seen.len() as i64)).await.is_ok() {
        seen.push(seen.len() as i64);
        assert!(seen.len() < WRITES_MAX, "nobody is refused");
    }
    seen
}

/// Between the failure and the first open of the database nobody has written or synced the file.
fn is_not_retried(faults: &Faults) {
    let after = faults.after_failure();
    let opened = after.iter().position(is_reopen);
    let before: Vec<Call> = after[..opened.expect("it was opened anew")].to_vec();
    let touched =
        |call: &&Call| call.of == Of::Database && matches!(call.op, Op::Write | Op::Sync | Op::Truncate);
    assert_eq!(before.iter().filter(touched).count(), 0, "{before:?}");
}

fn is_not_opened_anew(faults: &Faults) {
    let after = faults.after_failure();
    assert!(!after.iter().any(|call| call.op == Op::Open && call.by == By::Writer), "{after:?}");
}

/// Writing has stopped for good, reads go on, and a close leaves the WAL to the next open.
async fn is_stopped(db: &Database, faults: &Faults, seen: &[i64]) {
    until("writing stops", || db.stats().is_refusing_writes).await;
    faults.heal();
    let refused = insert(db, 99).await.unwrap_err();
    assert!(matches!(refused, WriteError::NotStarted(NotStarted::Stopped(_))), "{refused:?}");
    assert_eq!(refused.retry(), Retry::Never);
    assert_eq!(xs(db), seen, "reads go on");
    faults.forget();
    let path = db.path().to_owned();
    assert!(close(db).stopped);
    assert_eq!(faults.count(Op::Write, Of::Database), 0, "no checkpoint");
    assert!(wal_bytes(&path) > 0, "the next open recovers it");
    assert_eq!(stored(&path), seen);
}

fn wal_bytes(path: &Path) -> u64 {
    std::fs::metadata(beside(path, "-wal")).map_or(0, |wal| wal.len())
}

// Writer              Checkpointer                Readers
// x = 1 committed
//                     copies, sync fails
// x = 2 committed
// closes everything   ends                        are suspended, closed, resumed
// opens everything, checkpoints from the start
// x = 3 committed
#[tokio::test]
async fn after_a_checkpoint_that_fails_every_connection_is_opened_anew_and_everything_goes_on() {
    let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
    let db = faults.create(&dir, |config| {
        eager(config);
        (config.readers, config.readers_overflow) = (2, 0);
    });
    let path = db.path().to_owned();
    fail_a_checkpoint(&db, &faults, 1, failed_sync().by(By::Checkpointer).once()).await;
    let seen = write_until_reopened(&db, &faults, vec![0, 1]).await;
    is_not_retried(&faults);
    assert_eq!(xs(&db), seen);
    let opened = faults.count(Op::Open, Of::Database);
    assert!(opened >= 3, "writer, checkpointer, reader: {opened}");
    // The wal-index is built anew from the WAL, by the writer.
    let after = faults.after_failure();
    let opened = after.iter().position(|call| call.op == Op::Open && call.by == By::Writer).unwrap();
    assert!(
        after[opened..].iter().any(|call| (call.op, call.of, call.by) == (Op::Read, Of::Wal, By::Writer))
    );
    assert_eq!(CrashImage::take(&path).xs(), seen);
    assert!(!db.stats().is_refusing_writes);
    let report = close(&db);
    assert_eq!((report.stopped, report.wal_pages_left), (false, 0));
    assert_eq!(stored(&path), seen);
}

#[tokio::test]
async fn whatever_fails_in_a_checkpoint_its_next_one_begins_from_the_start() {
    for (op, of, code) in [
        (Op::Write, Of::Database, ffi::SQLITE_IOERR_WRITE),
        (Op::Read, Of::Wal, ffi::SQLITE_IOERR_READ),
        (Op::Sync, Of::Wal, ffi::SQLITE_IOERR_FSYNC),
        (Op::Sync, Of::Database, ffi::SQLITE_IOERR_FSYNC),
        (Op::Truncate, Of::Database, ffi::SQLITE_IOERR_TRUNCATE),
    ] {
        let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
        let db = faults.create(&dir, eager);
        let path = db.path().to_owned();
        let fault = Fault::new(op, of, code).by(By::Checkpointer).once();
        fail_a_checkpoint(&db, &faults, 1, fault).await;
        let seen = write_until_reopened(&db, &faults, vec![0, 1]).await;
        is_not_retried(&faults);
        let report = close(&db);
        assert_eq!((report.stopped, report.wal_pages_left), (false, 0), "{op:?} {of:?}");
        assert_eq!(stored(&path), seen);
    }
}

// Writer                        Checkpointer
// x = 1 committed
//                               copies, is about to sync the file
// x = 2, 3, … until the WAL
// is at its target
// waits for the checkpoint
//                               the sync fails
// must not begin the WAL anew
#[tokio::test]
async fn a_writer_that_waits_to_begin_the_wal_anew_does_not_retry_a_checkpoint_that_failed() {
    let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
    let db = faults.create(&dir, |config| {
        eager(config);
        config.wal_target_bytes = 65_536;
    });
    let path = db.path().to_owned();
    let (release, wait) = mpsc::channel::<()>();
    let wait = Arc::new(std::sync::Mutex::new(wait));
    let held = wait.clone();
    let fault = failed_sync().by(By::Checkpointer).once();
    let fault = fault.then(move || held.lock().unwrap().recv_timeout(HANG).unwrap());
    faults.forget();
    faults.inject(fault);
    let mut written = vec![0];
    let is_waiting = || matches!(db.holder().map(|holder| holder.phase), Some(Phase::Checkpoint));
    while !is_waiting() {
        let x = written.len() as i64;
        assert!(written.len() < WRITES_MAX, "the WAL never reaches its target");
        insert(&db, x).await.unwrap();
        written.push(x);
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    release.send(()).unwrap();
    let written = write_until_reopened(&db, &faults, written).await;
    is_not_retried(&faults);
    assert!(!close(&db).stopped);
    assert_eq!(stored(&path), written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_and_a_snapshot_that_are_in_progress_then_are_ended_and_told_why() {
    let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
    let db = faults.create(&dir, eager);
    let path = db.path().to_owned();
    let snapshot = db.snapshot("report").await.unwrap();
    let (begun, has_begun) = mpsc::channel();
    let handle = db.clone();
    let read = tokio::spawn(async move {
        let endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n";
        handle
            .read("endless", move |tx| {
                begun.send(()).unwrap();
                tx.query_row(endless, (), |row| row.get::<_, i64>(0))
            })
            .await
    });
    until("the read runs", || has_begun.try_recv().is_ok()).await;
    fail_a_checkpoint(&db, &faults, 1, failed_sync().by(By::Checkpointer).once()).await;
    let seen = write_until_reopened(&db, &faults, vec![0, 1]).await;
    let ended = soon(read).await.unwrap().unwrap_err();
    assert!(matches!(ended, ReadError::Ended { why: ReadEnd::Reopened, .. }), "{ended:?}");
    assert_eq!(ended.retry(), Retry::Now);
    let ended = snapshot.read(|_| Ok(())).await.unwrap_err();
    assert!(matches!(ended, ReadError::SnapshotEnded { why: ReadEnd::Reopened, .. }), "{ended:?}");
    is_not_retried(&faults);
    assert_eq!(xs(&db), seen);
    assert!(!close(&db).stopped);
    assert_eq!(stored(&path), seen);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_can_not_be_ended_keeps_the_wal_index_alive_so_writing_stops() {
    let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
    let db = faults.create(&dir, eager);
    let (begun, has_begun) = mpsc::channel();
    let (end, wait) = mpsc::channel::<()>();
    let handle = db.clone();
    let read = tokio::spawn(async move {
        handle
            .read("stuck", move |_| {
                begun.send(()).unwrap();
                let _is_dropped = wait.recv_timeout(HANG).is_err();
                Ok(())
            })
            .await
    });
    until("the read runs", || has_begun.try_recv().is_ok()).await;
    fail_a_checkpoint(&db, &faults, 1, failed_sync().by(By::Checkpointer).once()).await;
    let seen = write_until_refused(&db, vec![0, 1]).await;
    end.send(()).unwrap();
    soon(read).await.unwrap().unwrap();
    is_stopped(&db, &faults, &seen).await;
}

#[tokio::test]
async fn a_checkpoint_that_fails_again_right_after_the_reopen_stops_writing() {
    let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
    let db = faults.create(&dir, eager);
    fail_a_checkpoint(&db, &faults, 1, failed_sync().times(2)).await;
    let seen = write_until_refused(&db, vec![0, 1]).await;
    is_stopped(&db, &faults, &seen).await;
}

#[tokio::test]
async fn a_database_that_can_not_be_opened_anew_stops_writing_and_is_still_read() {
    let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
    let db = faults.create(&dir, eager);
    faults.inject(Fault::new(Op::Open, Of::Database, ffi::SQLITE_CANTOPEN).by(By::Writer));
    fail_a_checkpoint(&db, &faults, 1, failed_sync().by(By::Checkpointer).once()).await;
    let seen = write_until_refused(&db, vec![0, 1]).await;
    is_stopped(&db, &faults, &seen).await;
}

// The connection that could not be opened, or had no other beside it, was the last one, and its close copied the
// WAL and deleted it: no read could be done any more.
#[tokio::test]
async fn wherever_the_reopen_fails_the_wal_stays_for_those_who_read() {
    let cases: [fn() -> Fault; 3] = [
        || Fault::new(Op::Read, Of::Wal, ffi::SQLITE_IOERR_READ),
        || Fault::new(Op::Open, Of::Wal, ffi::SQLITE_CANTOPEN),
        // That of the checkpointer.
        || Fault::new(Op::Open, Of::Database, ffi::SQLITE_CANTOPEN).after(1),
    ];
    for case in cases {
        let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
        let db = faults.create(&dir, eager);
        let injected = faults.clone();
        let fault = failed_sync().by(By::Checkpointer).once();
        let fault = fault.then(move || injected.inject(case().by(By::Writer).once()));
        fail_a_checkpoint(&db, &faults, 1, fault).await;
        let seen = write_until_refused(&db, vec![0, 1]).await;
        is_stopped(&db, &faults, &seen).await;
    }
}

#[tokio::test]
async fn after_groups_that_were_not_synced_a_checkpoint_that_fails_stops_writing() {
    for op in [Op::Sync, Op::Write] {
        let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
        let db = faults.create(&dir, eager);
        let fault = Fault::new(op, Of::Database, ffi::SQLITE_IOERR_FSYNC).by(By::Checkpointer).once();
        faults.forget();
        faults.inject(fault);
        insert(&db, 1).durability(Durability::Normal).await.unwrap();
        until("the checkpoint fails", || faults.failed() > 0).await;
        let mut seen = vec![0, 1];
        while insert(&db, seen.len() as i64).durability(Durability::Normal).await.is_ok() {
            seen.push(seen.len() as i64);
            assert!(seen.len() < WRITES_MAX, "nobody is refused");
        }
        is_not_opened_anew(&faults);
        is_stopped(&db, &faults, &seen).await;
    }
}

// Another connection            Service
// reads
//                               x = 2 committed; the checkpoint copies what is older than the reader
// reads anew
//                               the next one copies more, and its sync fails
// still has the file open: its wal-index says that pages are copied
#[tokio::test]
async fn while_another_connection_keeps_a_wal_index_that_is_partly_copied_writing_stops() {
    let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
    let db = faults.create(&dir, |config| config.checkpoint_pages = 4);
    let other = plain(db.path());
    insert(&db, 1).await.unwrap();
    other.execute_batch("BEGIN; SELECT * FROM t").unwrap();
    let mut seen = vec![0, 1];
    while db.stats().checkpoints_blocked == 0 {
        let x = seen.len() as i64;
        insert(&db, x).await.unwrap();
        seen.push(x);
        assert!(seen.len() < WRITES_MAX, "the reader is not in the way");
    }
    faults.forget();
    faults.inject(failed_sync().by(By::Checkpointer).once());
    // Else there may be nothing more to copy.
    other.execute_batch("COMMIT; BEGIN; SELECT * FROM t").unwrap();
    let seen = write_until_refused(&db, seen).await;
    is_not_retried(&faults);
    other.execute_batch("COMMIT").unwrap();
    // The other connection stays: its close, the last one, would copy the WAL.
    is_stopped(&db, &faults, &seen).await;
}

#[tokio::test]
async fn another_connection_whose_wal_index_has_nothing_copied_is_no_harm() {
    let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
    let db = faults.create(&dir, eager);
    let path = db.path().to_owned();
    let other = plain(&path);
    other.execute_batch("SELECT * FROM t").unwrap();
    fail_a_checkpoint(&db, &faults, 1, failed_sync().by(By::Checkpointer).once()).await;
    let seen = write_until_reopened(&db, &faults, vec![0, 1]).await;
    is_not_retried(&faults);
    assert_eq!(common::count(&other), seen.len() as i64);
    drop(other);
    assert!(!close(&db).stopped);
    assert_eq!(stored(&path), seen);
}

#[tokio::test]
async fn after_a_last_checkpoint_that_fails_the_next_open_recovers_everything() {
    for fault in [failed_sync(), Fault::new(Op::Write, Of::Database, ffi::SQLITE_IOERR_WRITE)] {
        let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
        let db = faults.create(&dir, |_| ());
        let path = db.path().to_owned();
        for x in 1..5 {
            insert(&db, x).await.unwrap();
        }
        faults.forget();
        faults.inject(fault.once());
        let report = close(&db);
        assert!(report.wal_pages_left > 0 && !report.stopped, "{report:?}");
        let after = faults.after_failure();
        let retried =
            after.iter().any(|call| call.of == Of::Database && matches!(call.op, Op::Write | Op::Sync));
        assert!(!retried, "{after:?}");
        let db = faults.open(&path, |_| ());
        assert_eq!(xs(&db), [0, 1, 2, 3, 4]);
        insert(&db, 5).await.unwrap();
        assert_eq!(close(&db).wal_pages_left, 0);
        assert_eq!(stored(&path), [0, 1, 2, 3, 4, 5]);
    }
}

#[tokio::test]
async fn an_idle_writer_too_opens_everything_anew_after_a_checkpoint_that_fails() {
    let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
    let db = faults.create(&dir, eager);
    let path = db.path().to_owned();
    fail_a_checkpoint(&db, &faults, 1, failed_sync().by(By::Checkpointer).once()).await;
    // Nobody writes: whoever opened the file now would join the old wal-index.
    let reopened =
        |after: &[Call]| after.iter().position(|call| (call.op, call.of) == (Op::Open, Of::Database));
    until("it is opened anew", || reopened(&faults.after_failure()).is_some()).await;
    let report = close(&db);
    let after = faults.after_failure();
    let before_the_reopen = &after[..reopened(&after).unwrap()];
    let retried = before_the_reopen
        .iter()
        .any(|call| call.of == Of::Database && matches!(call.op, Op::Write | Op::Sync));
    assert!(!retried, "{after:?}");
    assert!(report.wal_pages_left == 0 && !report.stopped, "{report:?}");
    assert_eq!(stored(&path), [0, 1]);
}

#[tokio::test]
async fn where_the_writer_fails_to_begin_the_wal_anew_every_connection_is_opened_anew() {
    let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
    let db = faults.create(&dir, eager);
    let path = db.path().to_owned();
    let mut seen = vec![0];
    faults.forget();
    faults.inject(failed_sync().by(By::Writer).once());
    // A routine checkpoint first; the writer copies what was added meanwhile.
    while faults.failed() == 0 {
        insert(&db, seen.len() as i64).await.unwrap();
        seen.push(seen.len() as i64);
        assert!(seen.len() < WRITES_MAX, "the writer never begins the WAL anew");
    }
    assert!(db.stats().checkpoints > 0);
    let seen = write_until_reopened(&db, &faults, seen).await;
    is_not_retried(&faults);
    assert!(!close(&db).stopped);
    assert_eq!(stored(&path), seen);
}
