//! Imports: what is reported is what was committed, and an entry that fails costs itself only.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use common::{Gate, TestDb, add, insert, soon};
use futures_util::{StreamExt, stream};
use rusqlite::ffi;
use solewriter::{
    ALL_OR_NOTHING_ENTRIES_MAX, Batch, EntryError, Import, ImportFailure, ImportReport, Lane, NotStarted,
    OnError, RolledBack, WriteError, WriteTransaction,
};
use tokio::sync::oneshot;

/// Entries that must not be imported twice: 13 is there already.
const CLASH: i64 = 13;

async fn with_a_clash() -> TestDb {
    let db = TestDb::open().await;
    insert(&db, CLASH).await.unwrap();
    db
}

fn numbers(db: &TestDb, count: i64) -> Import<stream::Iter<std::ops::Range<i64>>> {
    db.import("numbers", stream::iter(0..count))
}

fn insert_entry(tx: &mut WriteTransaction<'_>, x: &i64) -> rusqlite::Result<usize> {
    add(tx, *x)
}

/// The indices of the failed entries.
fn failed<E>(report: &ImportReport<E>) -> Vec<u64> {
    report.failures.iter().map(|failure| failure.index).collect()
}

/// The only failure of an import of a hundred entries, all others of which are there.
async fn only_failure(db: &TestDb, report: ImportReport<rusqlite::Error>) -> WriteError {
    assert_eq!((report.accepted, report.failed), (99, 1));
    let mut xs = db.xs().await;
    xs.sort_unstable();
    assert_eq!(xs.len() - usize::from(xs.contains(&CLASH)), 99);
    let failure = report.failures.into_iter().next().unwrap();
    assert_eq!(failure.index, CLASH.unsigned_abs());
    match failure.error {
        EntryError::Write(error) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_adaptive_import_commits_every_entry_in_batches() {
    let db = TestDb::open_with(|config| config.bulk_hold_target = Duration::from_millis(8)).await;
    let slow_entry = |tx: &mut WriteTransaction<'_>, x: &i64| {
        std::thread::sleep(Duration::from_millis(1));
        add(tx, *x)
    };
    let report = soon(numbers(&db, 100).run(slow_entry)).await.unwrap();
    assert_eq!((report.accepted, report.failed, report.batches_lost), (100, 0, 0));
    assert!(report.batches >= 10, "100 ms of work in batches of at most 8: {}", report.batches);
    assert!(report.total >= report.hold_max && report.hold_max >= Duration::from_millis(1));
    assert_eq!(db.xs().await, (0..100).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_fixed_import_has_batches_of_that_many() {
    let db = TestDb::open().await;
    let report = soon(numbers(&db, 95).batch(Batch::Fixed(10)).run(insert_entry)).await.unwrap();
    assert_eq!((report.accepted, report.batches), (95, 10));
    assert_eq!(db.xs().await.len(), 95);
}

#[tokio::test]
async fn an_entry_that_fails_is_left_out_and_reported_with_its_error() {
    for batch in [Batch::Adaptive, Batch::Fixed(10), Batch::Fixed(1)] {
        let db = with_a_clash().await;
        let report = soon(numbers(&db, 100).batch(batch).run(insert_entry)).await.unwrap();
        let error = only_failure(&db, report).await;
        assert_eq!(error.sqlite_extended_code(), Some(ffi::SQLITE_CONSTRAINT_UNIQUE), "{batch:?}");
    }
}

#[tokio::test]
async fn an_entry_that_panics_costs_itself_only() {
    let db = TestDb::open().await;
    let panics_once = |tx: &mut WriteTransaction<'_>, x: &i64| {
        let rows = add(tx, *x)?;
        if *x == CLASH {
            panic!("unlucky")
        }
        Ok(rows)
    };
    let report = soon(numbers(&db, 100).run(panics_once)).await.unwrap();
    let error = only_failure(&db, report).await;
    assert!(matches!(error, WriteError::RolledBack(RolledBack::Panicked(why)) if why == "unlucky"));
}

// Entries share a savepoint until one of them needs its own: those before it are then applied again.
#[tokio::test]
async fn entries_that_fail_half_way_cost_themselves_only_wherever_they_are() {
    let db = with_a_clash().await;
    let applied = Arc::new(AtomicU64::new(0));
    let counted = applied.clone();
    let half_way = move |tx: &mut WriteTransaction<'_>, x: &i64| {
        counted.fetch_add(1, Ordering::Relaxed);
        add(tx, 1_000 + *x)?;
        if x % 50 == 49 { add(tx, CLASH) } else { Ok(1) }
    };
    let report = soon(numbers(&db, 300).batch(Batch::Fixed(150)).run(half_way)).await.unwrap();
    assert_eq!(failed(&report), [49, 99, 149, 199, 249, 299]);
    assert_eq!((report.accepted, report.batches, report.batches_lost), (294, 2, 0));
    let mut expected: Vec<_> = (0..300).filter(|x| x % 50 != 49).map(|x| 1_000 + x).collect();
    expected.insert(0, CLASH);
    let mut xs = db.xs().await;
    xs.sort_unstable();
    assert_eq!(xs, expected);
    assert_eq!(
        applied.load(Ordering::Relaxed),
        350,
        "the run up to the first of them twice, and nothing else"
    );
}

#[tokio::test]
async fn an_entry_that_makes_sqlite_roll_back_everything_costs_itself_only() {
    let db = with_a_clash().await;
    let or_rollback =
        |tx: &mut WriteTransaction<'_>, x: &i64| tx.execute("INSERT OR ROLLBACK INTO t (x) VALUES (?1)", [x]);
    let report = soon(numbers(&db, 100).batch(Batch::Fixed(50)).run(or_rollback)).await.unwrap();
    let error = only_failure(&db, report).await;
    assert_eq!(error.sqlite_extended_code(), Some(ffi::SQLITE_CONSTRAINT_UNIQUE));
}

#[tokio::test]
async fn an_entry_that_breaks_a_deferred_foreign_key_costs_itself_only() {
    let db = TestDb::open().await;
    let orphan = |tx: &mut WriteTransaction<'_>, x: &i64| {
        if *x == CLASH {
            tx.execute("INSERT INTO child VALUES (1)", ())?;
        }
        add(tx, *x)
    };
    let report = soon(numbers(&db, 100).run(orphan)).await.unwrap();
    let error = only_failure(&db, report).await;
    assert!(matches!(error, WriteError::RolledBack(RolledBack::ForeignKey)), "{error:?}");
}

#[tokio::test]
async fn an_entry_whose_preparation_fails_never_reaches_the_writer() {
    let db = TestDb::open().await;
    let prepared = numbers(&db, 100).prepare(8, |x| async move {
        tokio::task::yield_now().await;
        if x == CLASH { Err(std::fmt::Error) } else { Ok(x) }
    });
    let report = soon(prepared.run(|tx, x| add(tx, *x).map_err(|_| std::fmt::Error))).await.unwrap();
    assert_eq!((report.accepted, report.failed, failed(&report)), (99, 1, vec![13]));
    assert!(matches!(report.failures[0].error, EntryError::Prepare(std::fmt::Error)));
    assert!(!db.xs().await.contains(&CLASH));
}

#[tokio::test]
async fn an_import_can_stop_after_so_many_failures_and_keeps_what_it_has() {
    let db = TestDb::open().await;
    for x in [3, 5, 7] {
        insert(&db, x).await.unwrap();
    }
    let run = numbers(&db, 100).batch(Batch::Fixed(2)).on_error(OnError::StopAfter(2)).run(insert_entry);
    let error = soon(run).await.unwrap_err();
    assert!(matches!(error.failure, ImportFailure::TooManyFailures), "{error}");
    assert_eq!((error.report.accepted, failed(&error.report)), (4, vec![3, 5]));
    assert_eq!(db.xs().await, [3, 5, 7, 0, 1, 2, 4]);
    assert!(error.to_string().contains("numbers"), "{error}");
}

#[tokio::test]
async fn all_or_nothing_commits_all_in_one_batch() {
    let db = TestDb::open_with(|config| config.bulk_hold_target = Duration::from_millis(1)).await;
    let report = soon(numbers(&db, 1_000).on_error(OnError::AllOrNothing).run(insert_entry)).await.unwrap();
    assert_eq!((report.accepted, report.batches), (1_000, 1));
    assert_eq!(db.xs().await.len(), 1_000);
}

#[tokio::test]
async fn all_or_nothing_keeps_nothing_when_one_entry_fails() {
    let db = with_a_clash().await;
    let error =
        soon(numbers(&db, 1_000).on_error(OnError::AllOrNothing).run(insert_entry)).await.unwrap_err();
    assert!(matches!(error.failure, ImportFailure::EntryFailed), "{error}");
    assert_eq!((error.report.accepted, failed(&error.report)), (0, vec![13]));
    let too_many = i64::try_from(ALL_OR_NOTHING_ENTRIES_MAX).unwrap() + 1;
    let error =
        soon(numbers(&db, too_many).on_error(OnError::AllOrNothing).run(|_, _| Ok::<_, rusqlite::Error>(())))
            .await;
    assert!(matches!(error.unwrap_err().failure, ImportFailure::TooManyEntries));
    assert_eq!(db.xs().await, [CLASH]);
}

#[tokio::test]
async fn the_outcome_of_each_entry_is_told_once_and_only_after_its_commit() {
    let db = with_a_clash().await;
    let plain = db.plain();
    let mut told = vec![0; 100];
    let counts = &mut told;
    let observe = move |index: u64, outcome: Result<usize, &EntryError<rusqlite::Error>>| {
        counts[usize::try_from(index).unwrap()] += 1;
        assert_eq!(outcome.is_err(), index == 13);
        let x = i64::try_from(index).unwrap();
        let seen = plain.query_row("SELECT count(*) FROM t WHERE x = ?1", [x], |row| row.get::<_, i64>(0));
        assert_eq!(seen, Ok(1), "{index} is committed");
    };
    let run = numbers(&db, 100).batch(Batch::Fixed(7)).run_observed(insert_entry, observe);
    soon(run).await.unwrap();
    assert_eq!(told, [1; 100]);
}

#[tokio::test]
async fn progress_grows_up_to_the_end() {
    let db = with_a_clash().await;
    let run = numbers(&db, 100).batch(Batch::Fixed(10)).run(insert_entry);
    let progress = run.progress().collect::<Vec<_>>();
    let (report, progress) = soon(futures_util::future::join(run, progress)).await;
    let report = report.unwrap();
    assert!(progress.is_sorted_by_key(|progress| progress.accepted + progress.failed));
    let last = progress.last().unwrap();
    assert_eq!((last.accepted, last.failed, last.batches), (report.accepted, report.failed, report.batches));
    assert_eq!(last.total, Some(100));
}

#[tokio::test]
async fn only_so_many_failures_are_kept_and_all_are_counted() {
    let db = TestDb::open().await;
    let run = numbers(&db, 100).failures_kept(3).run(|_, _| Err::<(), _>(rusqlite::Error::InvalidQuery));
    let report = soon(run).await.unwrap();
    assert_eq!((report.accepted, report.failed, failed(&report)), (0, 100, vec![0, 1, 2]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_equal_imports_share_the_lane_and_end_together() {
    // Each batch is a group of its own.
    let db = TestDb::open_with(|config| config.bulk_hold_target = Duration::from_millis(1)).await;
    let done: Arc<[AtomicU64; 5]> = Arc::default();
    let at_first_end: Arc<OnceLock<[u64; 5]>> = Arc::default();
    let imports = (0..5).map(|import| {
        let (db, done, at_first_end) = ((*db).clone(), done.clone(), at_first_end.clone());
        tokio::spawn(async move {
            let entries = stream::iter((0..100_i64).map(move |entry| import as i64 * 1_000 + entry));
            let apply = |tx: &mut WriteTransaction<'_>, x: &i64| {
                std::thread::sleep(Duration::from_millis(1));
                add(tx, *x)
            };
            let observed = done.clone();
            let run = db.import("equal", entries).batch(Batch::Fixed(5)).run_observed(apply, move |_, _| {
                observed[import].fetch_add(1, Ordering::Relaxed);
            });
            run.await.unwrap();
            at_first_end.get_or_init(|| done.each_ref().map(|done| done.load(Ordering::Relaxed)));
        })
    });
    for import in imports.collect::<Vec<_>>() {
        soon(import).await.unwrap();
    }
    let at_first_end = at_first_end.get().unwrap();
    assert!(at_first_end.iter().all(|done| *done >= 85), "{at_first_end:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_imports_at_once_each_have_their_own_report() {
    let db = TestDb::open_with(|config| config.bulk_hold_target = Duration::from_millis(8)).await;
    let imports = (0..3).map(|source| {
        let db = (*db).clone();
        tokio::spawn(async move {
            let entries = stream::iter(source * 1_000..source * 1_000 + 500);
            db.import("source", entries).run(|tx, x| add(tx, *x)).await
        })
    });
    for import in imports.collect::<Vec<_>>() {
        let report = soon(import).await.unwrap().unwrap();
        assert_eq!((report.accepted, report.failed), (500, 0));
    }
    assert_eq!(db.xs().await.len(), 1_500);
}

#[tokio::test]
async fn an_import_gives_up_after_so_many_batches_lost_in_a_row_and_can_be_tried_again() {
    let db = TestDb::open_with(|config| config.busy_timeout = Duration::from_millis(10)).await;
    let foreign = db.plain();
    foreign.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = soon(numbers(&db, 10).lost_batches_max(2).run(insert_entry)).await.unwrap_err();
    let ImportFailure::BatchesLost { batches: 2, last } = &error.failure else { panic!("{error}") };
    assert!(matches!(last, WriteError::NotStarted(NotStarted::Busy(_))), "{last:?}");
    assert_eq!((error.report.accepted, error.report.failed, error.report.batches_lost), (0, 0, 2));
    foreign.execute_batch("COMMIT").unwrap();
    let report = soon(numbers(&db, 10).run(insert_entry)).await.unwrap();
    assert_eq!(report.accepted, 10);
}

#[tokio::test]
async fn a_batch_that_is_lost_for_a_passing_reason_is_tried_again_and_nothing_is_imported_twice() {
    let db = TestDb::open_with(|config| config.busy_timeout = Duration::from_millis(10)).await;
    let foreign = db.plain();
    foreign.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (run, handle) = (numbers(&db, 10).lost_batches_max(100).run(insert_entry), (*db).clone());
    let release = async {
        common::until("a batch was lost", || handle.stats().commands.not_started > 0).await;
        foreign.execute_batch("COMMIT").unwrap();
    };
    let (report, ()) = soon(futures_util::future::join(run, release)).await;
    let report = report.unwrap();
    assert_eq!((report.accepted, report.failed), (10, 0));
    assert!(report.batches_lost > 0);
    assert_eq!(db.xs().await, (0..10).collect::<Vec<_>>());
}

// Import                          People
// entry 0, 1, …                   a write, acknowledged before the next entry exists
#[tokio::test]
async fn people_write_while_an_import_runs() {
    let db = TestDb::open().await;
    let handle = (*db).clone();
    let entries = numbers(&db, 50).prepare(1, move |x| {
        let db = handle.clone();
        async move { insert(&db, 1_000 + x).await.map(|_| x).map_err(|_| rusqlite::Error::InvalidQuery) }
    });
    let report = soon(entries.run(insert_entry)).await.unwrap();
    assert_eq!((report.accepted, report.failed), (50, 0));
    assert_eq!(db.xs().await.len(), 100);
}

#[tokio::test]
async fn a_write_overtakes_the_batches_that_wait() {
    let db = TestDb::open().await;
    let gate = Gate::close(&db).await;
    let handle = (*db).clone();
    let import =
        tokio::spawn(
            async move { handle.import("numbers", stream::iter(0..10)).run(|tx, x| add(tx, *x)).await },
        );
    common::until("the batch waits", || db.stats().queue_depth.bulk == 1).await;
    let urgent = common::committed(insert(&db, 99).lane(Lane::Interactive)).await;
    gate.open().await;
    soon(urgent).await.unwrap();
    soon(import).await.unwrap().unwrap();
    assert_eq!(db.xs().await[0], 99);
}

#[tokio::test]
async fn a_dropped_import_finishes_its_batch_and_begins_no_other() {
    let db = TestDb::open().await;
    let handle = (*db).clone();
    let (begun, has_begun) = oneshot::channel();
    let (closed, is_closed) = oneshot::channel::<()>();
    let wait = async move {
        begun.send(()).unwrap();
        is_closed.await.unwrap();
    };
    let items = stream::once(wait).flat_map(|()| stream::iter(0..100));
    let import = tokio::spawn(async move {
        handle.import("numbers", items).batch(Batch::Fixed(10)).run(|tx, x| add(tx, *x)).await
    });
    has_begun.await.unwrap();
    let gate = Gate::close(&db).await;
    closed.send(()).unwrap();
    common::until("the batch waits", || db.stats().queue_depth.bulk == 1).await;
    import.abort();
    assert!(import.await.unwrap_err().is_cancelled());
    gate.open().await;
    db.execute("DELETE FROM child", ()).lane(Lane::Bulk).await.unwrap();
    assert_eq!(db.xs().await, (0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_import_that_stops_has_everything_in_its_report_that_is_in_the_database() {
    let db = TestDb::open().await;
    let gate = Gate::close(&db).await;
    // The first entry is on its way to the writer when the preparation of the second one fails.
    let import = db
        .import("stops", stream::iter(0..2_i64))
        .prepare(1, |x| async move { if x == 0 { Ok(x) } else { Err(rusqlite::Error::InvalidQuery) } })
        .on_error(OnError::StopAfter(1))
        .run(insert_entry);
    let import = tokio::spawn(import);
    common::until("its batch waits", || db.stats().queue_depth.bulk == 1).await;
    gate.open().await;
    let stopped = soon(import).await.unwrap().unwrap_err();
    assert!(matches!(stopped.failure, ImportFailure::TooManyFailures));
    assert_eq!((stopped.report.accepted, stopped.report.failed), (1, 1));
    assert_eq!(db.xs().await, [0]);
}

#[tokio::test]
async fn every_failure_of_the_last_batch_is_counted() {
    let db = TestDb::open().await;
    let all_clash = db.import("clashes", stream::iter([1_i64; 51])).batch(Batch::Fixed(51));
    let stopped = all_clash.on_error(OnError::StopAfter(1)).run(insert_entry).await.unwrap_err();
    assert_eq!((stopped.report.accepted, stopped.report.failed), (1, 50));
}

#[tokio::test]
async fn a_full_disk_is_the_environments_fault_and_no_entrys() {
    let db = TestDb::open().await;
    // As SQLite reports it where only the statement is undone, and the transaction stands.
    let import = numbers(&db, 3).lost_batches_max(2).run(|tx, x: &i64| {
        add(tx, *x)?;
        Err::<(), _>(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_FULL), None))
    });
    let stopped = soon(import).await.unwrap_err();
    assert!(matches!(stopped.failure, ImportFailure::BatchesLost { batches: 2, .. }), "{stopped:?}");
    assert_eq!((stopped.report.accepted, stopped.report.failed), (0, 0));
    assert!(db.xs().await.is_empty());
}
