//! An import with an id happens once: whatever stops it, it goes on where it was, with nothing twice and nothing
//! lost; and what is written down of it is what happened.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{TestDb, add, soon};
use futures_util::{Stream, StreamExt, stream};
use rusqlite::ffi;
use solewriter::{
    Batch, Config, Database, Drain, ImportFailure, ImportId, ImportRecord, ImportState, OnError,
    WriteTransaction,
};
use tokio::sync::oneshot;

fn insert_entry(tx: &mut WriteTransaction<'_>, x: &i64) -> rusqlite::Result<usize> {
    add(tx, *x)
}

async fn record_of(db: &Database, id: &str) -> ImportRecord {
    let records = db.import_records(100).await.unwrap();
    records.into_iter().find(|record| record.id.as_str() == id).expect("it is written down")
}

/// A stream that says when it is first polled, and gives nothing before it is told to.
fn gated<T: Send + 'static>(
    items: impl Stream<Item = T> + Send + 'static,
) -> (impl Stream<Item = T> + Send, oneshot::Receiver<()>, oneshot::Sender<()>) {
    let (polled, is_polled) = oneshot::channel();
    let (open, opened) = oneshot::channel();
    let wait = async move {
        polled.send(()).unwrap();
        // An error means that the test has dropped it, which opens it too.
        let _is_dropped = opened.await.is_err();
    };
    (stream::once(wait).flat_map(|()| stream::empty()).chain(items), is_polled, open)
}

#[tokio::test]
async fn a_cancelled_import_goes_on_where_it_was_and_prepares_nothing_again() {
    let db = TestDb::open().await;
    let prepared = Arc::new(AtomicU64::new(0));
    let import = || {
        let prepared = prepared.clone();
        let prepare = move |x: i64| {
            prepared.fetch_add(1, Ordering::Relaxed);
            async move { Ok::<_, rusqlite::Error>(x) }
        };
        let items = stream::iter(0..100_i64);
        db.import("numbers", items).id("once").batch(Batch::Fixed(10)).prepare(1, prepare).buffer(10)
    };
    let run = import().run(insert_entry);
    assert_eq!(prepared.load(Ordering::Relaxed), 0, "an import begins when it is awaited");
    let (control, progress) = (run.control(), run.progress());
    let watched = async {
        progress.filter(|progress| std::future::ready(progress.accepted >= 40)).boxed().next().await;
        control.cancel();
    };
    let (stopped, ()) = soon(async { tokio::join!(run, watched) }).await;
    let stopped = stopped.unwrap_err();
    assert!(matches!(stopped.failure, ImportFailure::Cancelled), "{stopped}");
    let first = stopped.report.accepted;
    assert!((40..100).contains(&first), "{first}");
    let record = record_of(&db, "once").await;
    assert_eq!((record.state, record.accepted, record.next_entry), (ImportState::Cancelled, first, first));

    prepared.store(0, Ordering::Relaxed);
    let report = soon(import().run(insert_entry)).await.unwrap();
    assert_eq!((report.skipped, report.accepted), (first, 100 - first));
    assert_eq!(prepared.load(Ordering::Relaxed), 100 - first);
    assert_eq!(db.xs().await, (0..100).collect::<Vec<_>>());
    let record = record_of(&db, "once").await;
    assert_eq!((record.state, record.accepted, record.next_entry), (ImportState::Complete, 100, 100));
    assert_eq!((record.batches, record.batches_lost, record.failed), (10, 0, 0));
    assert!(record.ended_at.unwrap() >= record.started_at && record.hold_max > Duration::ZERO);
}

#[tokio::test]
async fn a_complete_import_reads_nothing_and_does_nothing_until_it_is_forgotten() {
    let db = TestDb::open().await;
    let numbers = || db.import("numbers", stream::iter(0..3_i64)).id("done");
    soon(numbers().run(insert_entry)).await.unwrap();
    let again = db.import("numbers", stream::poll_fn(|_| panic!("nobody needs it"))).id("done");
    let report = soon(again.run(|tx, x: &i64| add(tx, *x))).await.unwrap();
    assert_eq!((report.skipped, report.accepted, report.batches), (3, 0, 0));

    assert!(db.forget_import("done").await.unwrap());
    assert!(!db.forget_import("done").await.unwrap());
    db.execute("DELETE FROM t", ()).await.unwrap();
    let report = soon(numbers().run(insert_entry)).await.unwrap();
    assert_eq!((report.skipped, report.accepted), (0, 3));
}

#[tokio::test]
async fn a_paused_import_stands_still_until_it_is_resumed() {
    let db = TestDb::open().await;
    let (items, is_polled, open) = gated(stream::iter(0..50_i64));
    let run = db.import("numbers", items).id("paused").run(insert_entry);
    let control = run.control();
    let run = async { soon(run).await.unwrap() };
    let others = async {
        is_polled.await.unwrap();
        let status = &db.imports()[0];
        assert_eq!((status.id.as_str(), &*status.label), ("paused", "numbers"));
        assert_eq!(status.state, ImportState::Running);
        let id = ImportId::from("paused");
        db.import_control(&id).unwrap().pause();
        assert!(control.is_paused());
        open.send(()).unwrap();
        // Enough commits for it to have gone on, had it not been paused.
        for x in 100..110 {
            common::insert(&db, x).lane(solewriter::Lane::Bulk).await.unwrap();
        }
        let status = &db.imports()[0];
        assert_eq!((status.state, status.progress.accepted), (ImportState::Paused, 0));
        assert_eq!(record_of(&db, "paused").await.state, ImportState::Paused);
        control.resume();
    };
    let (report, ()) = tokio::join!(run, others);
    assert_eq!(report.accepted, 50);
    assert!(db.imports().is_empty());
}

#[tokio::test]
async fn a_paused_import_can_be_cancelled() {
    let db = TestDb::open().await;
    let run = db.import("numbers", stream::iter(0..50_i64)).run(insert_entry);
    let control = run.control();
    control.pause();
    let cancel = async {
        common::until("it has begun", || !db.imports().is_empty()).await;
        control.cancel();
        control.resume();
    };
    let (stopped, ()) = soon(async { tokio::join!(run, cancel) }).await;
    assert!(matches!(stopped.unwrap_err().failure, ImportFailure::Cancelled));
    assert!(db.xs().await.is_empty());
}

#[tokio::test]
async fn the_same_import_does_not_run_twice_at_once() {
    let db = TestDb::open().await;
    let (items, is_polled, open) = gated(stream::iter(0..5_i64));
    let first = db.import("numbers", items).id("same").run(insert_entry);
    let others = async {
        is_polled.await.unwrap();
        let second = db.import("numbers", stream::iter(0..5_i64)).id("same").run(insert_entry).await;
        assert!(matches!(second.unwrap_err().failure, ImportFailure::AlreadyRunning));
        let other = db.import("numbers", stream::iter(10..15_i64)).id("other").run(insert_entry).await;
        assert_eq!(other.unwrap().accepted, 5);
        open.send(()).unwrap();
    };
    let (first, ()) = soon(async { tokio::join!(first, others) }).await;
    assert_eq!(first.unwrap().accepted, 5);
    assert_eq!(db.xs().await.len(), 10);
}

#[tokio::test]
async fn entries_that_fail_are_settled_and_written_down_without_their_values() {
    let db = TestDb::open().await;
    common::insert(&db, 4).await.unwrap();
    let prepare =
        |x: i64| async move { if x % 10 == 9 { Err(rusqlite::Error::InvalidQuery) } else { Ok(x) } };
    let import = |entries: i64, on_error| {
        let numbers = db.import("numbers", stream::iter(0..entries)).id("fails").on_error(on_error);
        numbers.batch(Batch::Fixed(1)).buffer(1).prepare(1, prepare).run(insert_entry)
    };
    let stopped = soon(import(40, OnError::StopAfter(2))).await.unwrap_err();
    assert!(matches!(stopped.failure, ImportFailure::TooManyFailures));
    let record = record_of(&db, "fails").await;
    assert_eq!(record.state, ImportState::Stopped);
    assert!(record.next_entry <= 10 && record.accepted < record.next_entry, "{record:?}");

    let report = soon(import(40, OnError::Skip)).await.unwrap();
    assert_eq!(report.skipped, record.next_entry);
    let record = record_of(&db, "fails").await;
    assert_eq!((record.state, record.next_entry), (ImportState::Complete, 40));
    assert_eq!((record.accepted, record.failed), (35, 5));
    let entries: Vec<_> = record.failures.iter().map(|failure| failure.entry).collect();
    assert_eq!(entries, [4, 9, 19, 29, 39]);
    let clash = &record.failures[0];
    assert_eq!(clash.extended_code, Some(ffi::SQLITE_CONSTRAINT_UNIQUE));
    assert_eq!(clash.constraint.as_deref(), Some("t.x"));
    assert!(record.failures[1].reason.contains("preparation"));
}

#[tokio::test]
async fn of_many_failures_the_last_ten_are_written_down() {
    let db = TestDb::open().await;
    let refuse = |_: &mut WriteTransaction<'_>, _: &i64| Err::<(), _>(rusqlite::Error::InvalidQuery);
    let report = soon(db.import("numbers", stream::iter(0..100_i64)).id("bad").run(refuse)).await.unwrap();
    assert_eq!(report.failed, 100);
    let record = record_of(&db, "bad").await;
    assert_eq!((record.failed, record.failures.len()), (100, 10));
    assert_eq!(record.failures[0].entry, 90);
}

#[tokio::test]
async fn an_import_whose_record_is_deleted_imports_nothing_more() {
    let db = TestDb::open().await;
    let (items, is_polled, open) = gated(stream::iter(0..5_i64));
    let run = db.import("numbers", items).id("gone").run(insert_entry);
    let others = async {
        is_polled.await.unwrap();
        assert!(db.forget_import("gone").await.unwrap());
        open.send(()).unwrap();
    };
    let (run, ()) = soon(async { tokio::join!(run, others) }).await;
    assert!(matches!(run.unwrap_err().failure, ImportFailure::Record(_)));
    assert!(db.xs().await.is_empty());
}

#[tokio::test]
async fn a_stream_that_ends_before_the_place_to_go_on_is_refused_and_loses_nothing() {
    let db = TestDb::open().await;
    // Cut off in the middle.
    let run =
        db.import("numbers", stream::iter(0..100_i64)).id("short").batch(Batch::Fixed(10)).run(insert_entry);
    let (control, progress) = (run.control(), run.progress());
    let cut = async {
        progress.filter(|progress| std::future::ready(progress.accepted >= 50)).boxed().next().await;
        control.cancel();
    };
    soon(async { tokio::join!(run, cut) }).await.0.unwrap_err();
    let settled = record_of(&db, "short").await.next_entry;
    let short = db.import("numbers", stream::iter(0..5_i64)).id("short").run(insert_entry);
    let refused = soon(short).await.unwrap_err();
    let missing = settled - 5;
    assert!(
        matches!(refused.failure, ImportFailure::StreamTooShort { missing: m } if m == missing),
        "{refused}"
    );
    assert_eq!(record_of(&db, "short").await.state, ImportState::Stopped);
    let whole = db.import("numbers", stream::iter(0..100_i64)).id("short").run(insert_entry);
    assert_eq!(soon(whole).await.unwrap().accepted, 100 - settled);
    assert_eq!(db.xs().await, (0..100).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_import_that_goes_on_while_its_dropped_run_has_a_batch_on_its_way_imports_nothing_twice() {
    let db = TestDb::open().await;
    let (items, is_polled, open) = gated(stream::iter(0..30_i64));
    let handle = (*db).clone();
    let dropped = tokio::spawn(async move {
        handle.import("numbers", items).id("again").batch(Batch::Fixed(10)).run(insert_entry).await
    });
    is_polled.await.unwrap();
    let gate = common::Gate::close(&db).await;
    open.send(()).unwrap();
    common::until("its batch waits", || db.stats().queue_depth.bulk == 1).await;
    dropped.abort();
    assert!(dropped.await.unwrap_err().is_cancelled());
    let again = db.import("numbers", stream::iter(0..30_i64)).id("again").run(insert_entry);
    let others = async {
        common::until("it waits behind the batch", || db.stats().queue_depth.bulk == 2).await;
        gate.open().await;
    };
    let (report, _) = soon(async { tokio::join!(again, others) }).await;
    assert_eq!(report.unwrap().skipped, 10);
    assert_eq!(db.xs().await, (0..30).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_import_without_an_id_outlives_a_thousand_others_and_its_made_up_id_can_be_kept() {
    let db = TestDb::open().await;
    let (items, is_polled, open) = gated(stream::iter(0..10_i64));
    let others = async {
        is_polled.await.unwrap();
        for _ in 0..1_010 {
            soon(db.import("empty", stream::empty::<i64>()).run(insert_entry)).await.unwrap();
        }
        open.send(()).unwrap();
    };
    let run = db.import("numbers", items).run(insert_entry);
    let (report, ()) = tokio::join!(run, others);
    let report = report.unwrap();
    assert_eq!(report.accepted, 10);

    // Asked for by its id, it is one with an id from now on.
    let again = || db.import("numbers", stream::iter(0..10_i64)).id(report.id.clone()).run(insert_entry);
    assert_eq!(soon(again()).await.unwrap().skipped, 10);
    for _ in 0..1_010 {
        soon(db.import("empty", stream::empty::<i64>()).run(insert_entry)).await.unwrap();
    }
    assert_eq!(soon(again()).await.unwrap().skipped, 10);
    assert_eq!(db.xs().await.len(), 10);
}

#[tokio::test]
async fn failed_preparations_are_written_down_as_they_come_and_let_others_have_their_turn() {
    let db = TestDb::open().await;
    let import = |entries: i64| {
        let prepare = |_: i64| async { Err::<i64, _>(rusqlite::Error::InvalidQuery) };
        let numbers = db.import("numbers", stream::iter(0..entries)).id("bad");
        numbers.failures_kept(1).prepare(1, prepare).run(insert_entry)
    };
    let run = import(i64::MAX);
    let control = run.control();
    // It never waits for anything but the writer, and the runtime has one thread.
    let others = async {
        common::until("it is written down", || db.stats().import_entries.failed > 2_000).await;
        assert!(record_of(&db, "bad").await.next_entry >= 256);
        control.cancel();
    };
    let (stopped, ()) = soon(async { tokio::join!(run, others) }).await;
    assert!(matches!(stopped.unwrap_err().failure, ImportFailure::Cancelled));
    let record = record_of(&db, "bad").await;
    assert_eq!((record.failed, record.failures.len()), (record.next_entry, 10));
    let entries = record.next_entry.cast_signed() + 10;
    let report = soon(import(entries)).await.unwrap();
    assert_eq!((report.skipped, report.failed), (record.next_entry, 10));
    assert_eq!(record_of(&db, "bad").await.failed, record.failed + 10);
}

#[tokio::test]
async fn what_was_lost_before_it_began_counts_against_no_batch() {
    let db = TestDb::open_with(|config| config.busy_timeout = Duration::from_nanos(1)).await;
    let (items, is_polled, open) = gated(stream::iter(0..3_i64));
    let other = db.plain();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let run = db.import("numbers", items).lost_batches_max(3).run(insert_entry);
    let lost = |count| {
        let db = &db;
        move || db.imports().first().is_some_and(|import| import.progress.batches_lost == count)
    };
    let others = async {
        common::until("it can't begin", lost(2)).await;
        other.execute_batch("COMMIT").unwrap();
        is_polled.await.unwrap();
        assert_eq!(db.imports()[0].progress.lost_in_a_row, 0);
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        open.send(()).unwrap();
        common::until("its batch is lost", lost(4)).await;
        other.execute_batch("COMMIT").unwrap();
    };
    let (report, ()) = soon(async { tokio::join!(run, others) }).await;
    assert_eq!(report.unwrap().accepted, 3);
}

#[tokio::test]
async fn a_table_that_is_not_ours_keeps_no_database_from_being_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    common::plain(&path).execute_batch("CREATE TABLE solewriter_imports (other)").unwrap();
    let db = Database::open(&path).await.unwrap();
    assert_eq!(db_figures(&db).await, (0, false));
    let run = db.import("numbers", stream::iter(0..3_i64)).run(insert_entry);
    assert!(matches!(run.await.unwrap_err().failure, ImportFailure::Record(_)));
}

// The times of a damaged record overflowed, on the thread that opened the database (damaged_files, seed 54).
#[tokio::test]
async fn records_whose_times_make_no_sense_keep_no_database_from_being_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    let db = Database::open(&path).await.unwrap();
    db.import("empty", stream::empty::<i64>()).run(insert_entry).await.unwrap();
    let records = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 3000)
                   INSERT INTO solewriter_imports (id, is_named, label, state, started_at, ended_at)
                   SELECT i, 0, 'many', 'complete', ?1, ?2 FROM n";
    common::plain(&path).execute(records, (i64::MIN, i64::MAX)).unwrap();
    db.shutdown(Drain::within(common::HANG)).await.unwrap();
    let db = Database::open(&path).await.unwrap();
    assert_eq!(db.health().imports.total_imports_last_hour, 3_001);
    assert_eq!(db.import_records(usize::MAX).await.unwrap().len(), 3_001);
    db.import("empty", stream::empty::<i64>()).run(insert_entry).await.unwrap();
}

// It went on wherever the number told it to, with its sign taken off (damaged_files, seed 45).
#[tokio::test]
async fn an_import_does_not_go_on_after_a_record_that_does_not_add_up() {
    let db = TestDb::open().await;
    let import = |on_error| {
        let items = stream::iter(0..10_i64);
        let run = db.import("numbers", items).id("damaged").batch(Batch::Fixed(2)).on_error(on_error);
        run.run(|tx, x| if *x == 5 { Err(rusqlite::Error::InvalidQuery) } else { add(tx, *x) })
    };
    soon(import(OnError::StopAfter(1))).await.unwrap_err();
    let before = db.xs().await;
    assert_eq!(before, [0, 1, 2, 3, 4]);
    for damage in ["next_entry = 0", "next_entry = 7", "next_entry = -6", "accepted = -5", "failed = 9"] {
        let plain = db.plain();
        plain.execute_batch(&format!("UPDATE solewriter_imports SET {damage}")).unwrap();
        let refused = soon(import(OnError::Skip)).await.unwrap_err();
        assert!(matches!(refused.failure, ImportFailure::Record(_)), "{damage}: {refused}");
        assert_eq!((db.xs().await, refused.report.skipped), (before.clone(), 0), "{damage}");
        let mended = "UPDATE solewriter_imports SET next_entry = 6, accepted = 5, failed = 1";
        plain.execute_batch(mended).unwrap();
    }
    assert_eq!(soon(import(OnError::Skip)).await.unwrap().accepted, 4);
    assert_eq!(db.xs().await, [0, 1, 2, 3, 4, 6, 7, 8, 9]);
}

#[tokio::test]
async fn an_import_that_is_dropped_is_interrupted_and_goes_on_later() {
    let db = TestDb::open().await;
    let (items, is_polled, open) = gated(stream::iter(0..5_i64));
    let handle = (*db).clone();
    let run = tokio::spawn(async move { handle.import("numbers", items).id("cut").run(insert_entry).await });
    is_polled.await.unwrap();
    run.abort();
    assert!(run.await.unwrap_err().is_cancelled());
    drop(open);
    assert!(db.imports().is_empty());
    assert_eq!(record_of(&db, "cut").await.state, ImportState::Interrupted);
    let report = db.import("numbers", stream::iter(0..5_i64)).id("cut").run(insert_entry).await.unwrap();
    assert_eq!((report.skipped, report.accepted), (0, 5));
}

#[tokio::test]
async fn nothing_is_created_before_the_first_import_and_old_records_without_an_id_go() {
    let db = TestDb::open().await;
    let tables = || {
        db.plain().query_row(
            "SELECT count(*) FROM sqlite_schema WHERE name LIKE 'solewriter%' AND type = 'table'",
            (),
            |row| row.get::<_, i64>(0),
        )
    };
    assert_eq!(tables().unwrap(), 0);
    assert!(db.import_records(10).await.unwrap().is_empty());
    assert!(!db.forget_import("nothing").await.unwrap());
    assert_eq!(tables().unwrap(), 0);
    let empty = |db: &Database| db.import("empty", stream::empty::<i64>());
    soon(empty(&db).id("kept").run(insert_entry)).await.unwrap();
    assert_eq!(tables().unwrap(), 2);
    for _ in 0..1_010 {
        soon(empty(&db).run(insert_entry)).await.unwrap();
    }
    let records = db.import_records(usize::MAX).await.unwrap();
    assert_eq!(records.len(), 1_001);
    assert_eq!(records.last().unwrap().id.as_str(), "kept");
    assert!(db.import_records(5).await.unwrap().len() == 5);
}

#[tokio::test]
async fn the_figures_of_the_last_hour_outlive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    let empty = db_figures(&Database::open(&path).await.unwrap()).await;
    assert_eq!(empty, (0, false));
    let db = Database::open(&path).await.unwrap();
    for _ in 0..2 {
        db.import("empty", stream::empty::<i64>()).run(insert_entry).await.unwrap();
    }
    let plain = common::plain(&path);
    // One of long ago, and one that took six seconds.
    plain
        .execute_batch(
            "INSERT INTO solewriter_imports (id, is_named, label, state, started_at, ended_at)
             SELECT 'old', 1, 'old', 'complete', started_at - 7200000, ended_at - 3700000
             FROM solewriter_imports WHERE number = 1;
             UPDATE solewriter_imports SET started_at = ended_at - 6000 WHERE number = 2;",
        )
        .unwrap();
    assert_eq!(db_figures(&db).await, (2, false));
    db.shutdown(Drain::within(common::HANG)).await.unwrap();
    let db = Database::open(&path).await.unwrap();
    assert_eq!(db_figures(&db).await, (2, true));
    let figures = db.health().imports;
    assert!((figures.max_import_duration_seconds - 6.0).abs() < 1e-9, "{figures:?}");
    assert!((figures.avg_import_duration_seconds - 3.0).abs() < 0.5, "{figures:?}");
}

/// How many imports there were, and whether their status is degraded.
async fn db_figures(db: &Database) -> (u64, bool) {
    let figures = db.health().imports;
    (figures.total_imports_last_hour, figures.status == solewriter::HealthState::Degraded)
}

#[cfg(unix)]
mod kills {
    use std::io::{BufRead, BufReader};
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};

    use super::*;
    use common::proof::{Proof, Tally, Wrong};
    use fastrand::Rng;

    const PATH: &str = "SOLEWRITER_TEST_IMPORT";
    const ID: &str = "SOLEWRITER_TEST_IMPORT_ID";
    const ENTRIES: i64 = 2_000;

    /// Every entry by its fate: imported, unprepared, or refused by a constraint.
    fn is_good(entry: i64) -> bool {
        entry % 13 != 5 && entry % 17 != 3
    }

    async fn prepare(entry: i64) -> rusqlite::Result<i64> {
        if entry % 13 == 5 { Err(rusqlite::Error::InvalidQuery) } else { Ok(entry) }
    }

    /// A row and a status, which a second time would double.
    fn apply(tx: &mut WriteTransaction<'_>, entry: &i64) -> rusqlite::Result<()> {
        tx.execute("INSERT INTO rows (entry) VALUES (?1)", [entry])?;
        let refused = (entry % 17 == 3).then_some(1);
        tx.execute("INSERT INTO statuses (entry, clash) VALUES (?1, ?2)", (entry, refused))?;
        Ok(())
    }

    /// The process that is killed: imports, and says how far it is.
    #[test]
    fn a_process_of_its_own() {
        let Some(path) = std::env::var_os(PATH).map(PathBuf::from) else { return };
        let config = Config { bulk_hold_target: Duration::from_millis(1), ..Config::default() };
        let db = Database::builder(path).config(config).open_blocking().unwrap();
        let mut import = db.import("entries", stream::iter(0..ENTRIES)).prepare(4, prepare);
        if let Ok(id) = std::env::var(ID) {
            import = import.id(id);
        }
        let run = import.run_observed(apply, |index, _| {
            if index % 20 == 0 {
                println!("entry");
            }
        });
        run.wait().unwrap();
        db.blocking().shutdown(Drain::within(common::HANG)).unwrap();
        println!("done");
    }

    /// When the process is killed.
    #[derive(Clone, Copy)]
    enum When {
        /// While it begins, or opens the database.
        After(Duration),
        /// So long after so many words of it.
        Said(usize, Duration),
        Never,
    }

    impl When {
        fn random(rng: &mut Rng) -> Self {
            match rng.u8(0..4) {
                0 => Self::After(Duration::from_micros(rng.u64(0..60_000))),
                _ => Self::Said(rng.usize(0..20), Duration::from_micros(rng.u64(0..3_000))),
            }
        }
    }

    /// Starts the process and kills it; true if it came to its end before.
    fn import_and_kill(path: &Path, id: Option<&str>, when: When) -> bool {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "kills::a_process_of_its_own", "--nocapture"]);
        command.env(PATH, path).envs(id.map(|id| (ID, id)));
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let (words, then) = match when {
            When::After(time) => {
                std::thread::sleep(time);
                drop(child.kill());
                child.wait().unwrap();
                return false;
            }
            When::Said(words, then) => (words, then),
            When::Never => (usize::MAX, Duration::ZERO),
        };
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut said = 0;
        let mut done = false;
        for line in lines {
            said += usize::from(line.ends_with("entry"));
            done |= line.ends_with("done");
            if said > words {
                std::thread::sleep(then);
                break;
            }
        }
        // It may have ended by itself.
        drop(child.kill());
        let status = child.wait().unwrap();
        assert!(done || said > words, "it failed: {status}");
        done
    }

    #[test]
    fn an_import_that_is_killed_at_any_moment_has_nothing_twice_and_nothing_lost() {
        let mut proof = Proof::new("import_kills", 8, 100);
        proof.run(|seed| import_with_kills(seed, true));
        proof.canary("without_id", 10, |seed| import_with_kills(seed, false));
        proof.finish();
    }

    /// One import, which comes to its end after some kills.
    fn import_with_kills(seed: u64, has_id: bool) -> Tally {
        let mut rng = Rng::with_seed(seed);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("test.db");
        common::plain(&path)
            .execute_batch(
                "CREATE TABLE rows (id INTEGER PRIMARY KEY, entry INTEGER NOT NULL);
                 CREATE TABLE statuses (id INTEGER PRIMARY KEY, entry INTEGER NOT NULL, clash INTEGER UNIQUE);
                 INSERT INTO statuses (entry, clash) VALUES (-1, 1);",
            )
            .unwrap();
        let id = has_id.then_some("import");
        let mut tally = Tally::default();
        let kills = rng.u64(1..8);
        while tally.cases < kills && !import_and_kill(&path, id, When::random(&mut rng)) {
            tally.cases += 1;
        }
        assert!(tally.cases < kills || import_and_kill(&path, id, When::Never));
        verify(&path, has_id, &mut tally);
        tally
    }

    fn verify(path: &Path, has_id: bool, tally: &mut Tally) {
        let plain = common::plain(path);
        let entries = |sql: &str| -> Vec<i64> {
            let mut statement = plain.prepare(sql).unwrap();
            let rows = statement.query_map((), |row| row.get(0)).unwrap();
            rows.collect::<Result<_, _>>().unwrap()
        };
        let good: Vec<_> = (0..ENTRIES).filter(|entry| is_good(*entry)).collect();
        let rows = entries("SELECT entry FROM rows ORDER BY entry");
        let statuses = entries("SELECT entry FROM statuses WHERE entry >= 0 ORDER BY entry");
        tally.check(rows == statuses, Wrong::Half, || {
            format!("{} rows, {} statuses", rows.len(), statuses.len())
        });
        let mut found = vec![0; ENTRIES as usize];
        for entry in rows {
            found[entry as usize] += 1;
        }
        for (entry, found) in (0..).zip(found) {
            let wanted = i32::from(is_good(entry));
            let how = if found < wanted { Wrong::Lost } else { Wrong::Broken };
            tally.check(found == wanted, how, || format!("entry {entry} is there {found} times"));
        }
        let record = entries(
            "SELECT accepted FROM solewriter_imports UNION ALL SELECT failed FROM solewriter_imports
             UNION ALL SELECT next_entry FROM solewriter_imports",
        );
        let accepted = good.len() as i64;
        let wanted = [accepted, ENTRIES - accepted, ENTRIES];
        tally.check(!has_id || record == wanted, Wrong::Broken, || format!("the record has {record:?}"));
        common::check(path);
    }
}
