//! Bounded Everything, for the time of a read: its deadline, its age, and the caller that goes away.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use common::{HANG, TestDb, insert, soon, until};
use futures_util::FutureExt;
use rusqlite::ffi;
use solewriter::{Config, OnDrop, ReadEnd, ReadError, ReadTransaction, Retry};

const SHORT: Duration = Duration::from_millis(50);

/// Counts for ever.
const ENDLESS: &str =
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";

fn endless(tx: &ReadTransaction<'_>) -> rusqlite::Result<i64> {
    tx.query_row(ENDLESS, (), |row| row.get(0))
}

fn one(tx: &ReadTransaction<'_>) -> rusqlite::Result<i64> {
    tx.query_row("SELECT 1", (), |row| row.get(0))
}

fn interrupted(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::OperationInterrupted)
}

/// A database with a single connection to read with.
async fn one_reader(set: impl FnOnce(&mut Config)) -> TestDb {
    TestDb::open_with(|config| {
        (config.readers, config.readers_overflow) = (1, 0);
        config.read_age_max = HANG;
        set(config);
    })
    .await
}

#[tokio::test]
async fn a_statement_that_runs_past_the_deadline_is_interrupted() {
    let db = one_reader(|_| ()).await;
    let began = Instant::now();
    let error = soon(db.read("endless", endless).deadline(SHORT)).await.unwrap_err();
    let ReadError::DeadlineExceeded { ran: Some(ran), .. } = error else { panic!("{error:?}") };
    assert!(ran >= SHORT / 2 && began.elapsed() >= SHORT, "{ran:?}");
    assert_eq!(error.retry(), Retry::Later);
    assert_eq!(soon(db.read("next", one)).await.unwrap(), 1, "the next read has its own time");
}

// Caller                        Reader (the only one)
//                               holds, until told to go on
// read with a deadline: waits
// deadline passes → error
//                               goes on, ends
// the closure has never run
#[tokio::test]
async fn a_deadline_that_passes_while_the_read_waits_for_a_connection_is_answered_then() {
    let db = one_reader(|_| ()).await;
    let (go_on, wait) = mpsc::channel::<()>();
    let mut holds = db.read("holds", move |_| Ok(wait.recv_timeout(HANG))).into_future();
    assert!((&mut holds).now_or_never().is_none());
    let (ran, was_run) = mpsc::channel();
    let late = db.read("late", move |_| Ok(ran.send(()))).deadline(SHORT);
    let error = soon(late).await.unwrap_err();
    let ReadError::DeadlineExceeded { waited, ran: None } = error else { panic!("{error:?}") };
    assert!(waited >= SHORT && waited < Config::default().reader_wait_max, "{waited:?}");
    go_on.send(()).unwrap();
    soon(holds).await.unwrap().unwrap();
    assert_eq!(was_run.recv(), Err(mpsc::RecvError));
}

#[test]
fn a_deadline_needs_no_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { readers: 1, readers_overflow: 0, ..Config::default() };
    let db = solewriter::Database::builder(dir.path().join("test.db")).config(config);
    let db = db.open_blocking().unwrap().blocking();
    let ran = db.read("endless", endless).deadline(SHORT).wait();
    assert!(matches!(ran, Err(ReadError::DeadlineExceeded { ran: Some(_), .. })), "{ran:?}");
    let inner = db.clone();
    let waited = db.read("outer", move |_| Ok(inner.read("inner", one).deadline(SHORT).wait()));
    let waited = waited.wait().unwrap();
    assert!(matches!(waited, Err(ReadError::DeadlineExceeded { ran: None, .. })), "{waited:?}");
}

#[tokio::test]
async fn a_deadline_that_has_passed_at_once_lets_nothing_run() {
    let db = one_reader(|_| ()).await;
    let ran = Arc::new(AtomicBool::new(false));
    let flag = ran.clone();
    let read = db.read("late", move |_| Ok(flag.swap(true, Ordering::SeqCst)));
    let error = soon(read.deadline(Duration::ZERO)).await.unwrap_err();
    assert!(matches!(error, ReadError::DeadlineExceeded { ran: None, .. }), "{error:?}");
    assert!(!ran.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_closure_that_has_a_value_all_the_same_gets_it_to_its_caller() {
    let db = one_reader(|_| ()).await;
    let read = db.read("swallows", |tx| Ok(interrupted(&endless(tx).unwrap_err()))).deadline(SHORT);
    assert!(soon(read).await.unwrap());
}

#[tokio::test]
async fn an_error_of_the_closures_own_is_not_taken_for_the_limit() {
    let db = one_reader(|_| ()).await;
    let read = db.read("fails", |_| {
        std::thread::sleep(2 * SHORT);
        Err::<(), _>(rusqlite::Error::QueryReturnedNoRows)
    });
    let error = soon(read.deadline(SHORT)).await.unwrap_err();
    assert!(matches!(error, ReadError::Query(rusqlite::Error::QueryReturnedNoRows)), "{error:?}");
}

#[tokio::test]
async fn an_interrupt_shows_through_the_closures_own_type_of_error() {
    #[derive(Debug)]
    struct Failed;
    let db = one_reader(|_| ()).await;
    let read = db.read_or_reject("typed", |tx| endless(tx).map_err(|_| Failed));
    let error = soon(read.deadline(SHORT)).await.unwrap_err();
    assert!(matches!(error, ReadError::DeadlineExceeded { .. }), "{error:?}");
}

// Rust code can't be interrupted. A short statement is over before SQLite looks at the clock, so it is refused
// before it begins.
#[tokio::test]
async fn after_rust_code_that_took_too_long_no_further_statement_runs() {
    let db = one_reader(|_| ()).await;
    let read = db.read("slow", |tx| {
        one(tx)?;
        std::thread::sleep(2 * SHORT);
        let refused = [one(tx), tx.prepare("SELECT 2")?.query_row((), |row| row.get(0))];
        Ok(refused.map(|refused| refused.is_err_and(|error| interrupted(&error))))
    });
    let error = soon(read.deadline(SHORT)).await.unwrap_err();
    assert!(matches!(error, ReadError::DeadlineExceeded { ran: Some(_), .. }), "{error:?}");

    let read = db.read("slow", |tx| {
        std::thread::sleep(2 * SHORT);
        Ok(one(tx).is_err_and(|error| interrupted(&error)))
    });
    assert!(soon(read.deadline(SHORT)).await.unwrap());
}

#[tokio::test]
async fn a_read_without_a_deadline_is_ended_at_the_age_limit() {
    let db = one_reader(|config| config.read_age_max = SHORT).await;
    let error = soon(db.read("endless", endless)).await.unwrap_err();
    let ReadError::Ended { age, why: ReadEnd::AgeLimit } = error else { panic!("{error:?}") };
    assert!(age >= SHORT, "{age:?}");
    assert_eq!(error.retry(), Retry::Never);
    assert_eq!(soon(db.read("next", one)).await.unwrap(), 1);
}

#[tokio::test]
async fn a_deadline_replaces_the_age_limit() {
    let db = one_reader(|config| config.read_age_max = SHORT).await;
    let read = db.read("slow", |tx| {
        std::thread::sleep(2 * SHORT);
        one(tx)
    });
    assert_eq!(soon(read.deadline(HANG)).await.unwrap(), 1);
}

// The connection is the only one, so it comes free only when the endless statement has been interrupted.
#[tokio::test]
async fn a_read_to_be_withdrawn_is_interrupted_when_its_future_is_dropped() {
    let db = one_reader(|_| ()).await;
    let (reading, begun) = mpsc::channel();
    let read = db.read("endless", move |tx| {
        reading.send(()).unwrap();
        endless(tx)
    });
    let mut read = read.on_drop(OnDrop::Withdraw).into_future();
    assert!((&mut read).now_or_never().is_none());
    until("it reads", || begun.try_recv().is_ok()).await;
    drop(read);
    assert_eq!(soon(db.read("next", one)).await.unwrap(), 1);
    assert_eq!(db.stats().reads, 2);
}

#[tokio::test]
async fn a_read_that_has_ended_can_be_withdrawn_without_harm_to_the_next() {
    let db = one_reader(|_| ()).await;
    for _ in 0..100 {
        let mut read = db.read("one", one).on_drop(OnDrop::Withdraw).into_future();
        let _begun = (&mut read).now_or_never();
        drop(read);
        let statement = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 2000) \
                         SELECT count(*) FROM n";
        let next = db.read("next", move |tx| tx.query_row(statement, (), |row| row.get::<_, i64>(0)));
        assert_eq!(soon(next).await.unwrap(), 2000);
    }
}

#[tokio::test]
async fn the_oldest_read_is_named_while_it_lasts() {
    let db = TestDb::open().await;
    assert_eq!(db.oldest_read(), None);
    let mut go_ons = Vec::new();
    let mut reads = Vec::new();
    for label in ["first", "second"] {
        let (go_on, wait) = mpsc::channel::<()>();
        let mut read = db.read(label, move |_| Ok(wait.recv_timeout(HANG))).into_future();
        assert!((&mut read).now_or_never().is_none());
        go_ons.push(go_on);
        reads.push(read);
    }
    for (expected, (go_on, read)) in ["first", "second"].into_iter().zip(go_ons.into_iter().zip(reads)) {
        let oldest = db.oldest_read().unwrap();
        assert_eq!(&*oldest.label, expected);
        assert!(db.oldest_read().unwrap().age >= oldest.age);
        go_on.send(()).unwrap();
        soon(read).await.unwrap().unwrap();
    }
    assert_eq!(db.oldest_read(), None);
}

// Reader                        Shutdown, within 0.1 s
// SELECT, for ever
//                               waits
//                               the limit passes → interrupt
// ReadError::Closed
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_ends_a_read_that_goes_on_past_its_limit() {
    let db = one_reader(|_| ()).await;
    insert(&db, 1).await.unwrap();
    let (reading, begun) = mpsc::channel();
    let handle = (*db).clone();
    let read = tokio::spawn(async move {
        let read = handle.read("endless", move |tx| {
            reading.send(()).unwrap();
            endless(tx)
        });
        read.await
    });
    until("it reads", || begun.try_recv().is_ok()).await;
    let report = soon(db.shutdown(solewriter::Drain::within(2 * SHORT))).await.unwrap();
    assert_eq!(report.wal_pages_left, 0);
    let error = soon(read).await.unwrap().unwrap_err();
    assert!(matches!(error, ReadError::Closed), "{error:?}");
}

#[test]
fn every_error_says_what_to_do() {
    let age = Duration::from_secs(30);
    let errors: [(ReadError, Retry, &str); 7] = [
        (ReadError::DeadlineExceeded { waited: age, ran: None }, Retry::Later, "waiting"),
        (ReadError::DeadlineExceeded { waited: age, ran: Some(age) }, Retry::Later, "running"),
        (ReadError::Ended { age, why: ReadEnd::AgeLimit }, Retry::Never, "age limit"),
        (ReadError::Ended { age, why: ReadEnd::WalLimit }, Retry::Later, "WAL"),
        (ReadError::Ended { age, why: ReadEnd::Reopened }, Retry::Now, "anew"),
        (ReadError::SnapshotEnded { age, why: ReadEnd::Broken }, Retry::Never, "take a new one"),
        (ReadError::Forked, Retry::Never, "fork; open the database in it"),
    ];
    for (error, retry, text) in errors {
        assert_eq!(error.retry(), retry, "{error:?}");
        assert!(error.to_string().contains(text), "{error}");
        assert_eq!(error.sqlite_extended_code(), None);
    }
    let busy = rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_BUSY_RECOVERY), None);
    let busy: ReadError = ReadError::Connection(busy.into());
    assert_eq!((busy.retry(), busy.sqlite_extended_code()), (Retry::Later, Some(ffi::SQLITE_BUSY_RECOVERY)));
}
