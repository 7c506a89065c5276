//! Bounded Everything, for readers: how many there are, how long one waits, and what wears one out.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::mem_forget, reason = "a test")]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::ThreadId;
use std::time::Duration;

use common::{HANG, TestDb, soon, until};
use futures_util::FutureExt;
use solewriter::{Config, Database, ReadError, Retry};
use tokio::task::JoinHandle;

/// Reads that hold their connections until they are told to go on, or this is dropped.
struct HeldReads {
    go_on: Vec<mpsc::Sender<()>>,
    reads: Vec<JoinHandle<Result<ThreadId, ReadError>>>,
    running: Arc<AtomicUsize>,
}

impl HeldReads {
    async fn hold(db: &Database, count: usize) -> Self {
        let mut held = Self { go_on: Vec::new(), reads: Vec::new(), running: Arc::default() };
        for _ in 0..count {
            let (go_on, wait) = mpsc::channel::<()>();
            let (db, running) = (db.clone(), held.running.clone());
            held.go_on.push(go_on);
            held.reads.push(tokio::spawn(async move {
                db.read("holds", move |_| {
                    running.fetch_add(1, Ordering::SeqCst);
                    let _dropped = wait.recv_timeout(HANG);
                    Ok(std::thread::current().id())
                })
                .await
            }));
        }
        until("the reads run", || held.running.load(Ordering::SeqCst) == count).await;
        held
    }

    /// Ends all of them and returns the threads they ran on.
    async fn end(self) -> Vec<ThreadId> {
        drop(self.go_on);
        let mut threads = Vec::new();
        for read in self.reads {
            threads.push(soon(read).await.unwrap().unwrap());
        }
        threads
    }
}

async fn few_readers(set: impl FnOnce(&mut Config)) -> TestDb {
    TestDb::open_with(|config| {
        (config.readers, config.readers_overflow) = (2, 1);
        config.reader_wait_max = Duration::from_millis(50);
        set(config);
    })
    .await
}

async fn thread_of_a_read(db: &Database) -> ThreadId {
    soon(db.read("thread", |_| Ok(std::thread::current().id()))).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_limit_a_read_waits_and_then_fails() {
    let db = few_readers(|_| ()).await;
    let held = HeldReads::hold(&db, 3).await;
    assert_eq!((db.stats().readers_open, db.stats().readers_in_use), (3, 3));
    let refused = db.read("late", |_| Ok(())).await.unwrap_err();
    assert!(matches!(refused, ReadError::NoReader { .. }), "{refused:?}");
    assert_eq!(refused.retry(), Retry::Later);

    // One that is willing to wait gets the connection that comes free.
    let handle = (*db).clone();
    let waiting = tokio::spawn(async move { handle.read("waits", |_| Ok(())).wait_max(HANG).await });
    held.end().await;
    soon(waiting).await.unwrap().unwrap();
    assert_eq!((db.stats().readers_open, db.stats().readers_in_use), (2, 0), "the overflow was closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_connection_used_last_is_used_first() {
    let db = few_readers(|_| ()).await;
    let threads = HeldReads::hold(&db, 2).await.end().await;
    assert_ne!(threads[0], threads[1]);
    let warm = thread_of_a_read(&db).await;
    for _ in 0..10 {
        assert_eq!(thread_of_a_read(&db).await, warm);
    }
}

#[tokio::test]
async fn a_panic_costs_its_read_only_and_its_connection_is_replaced() {
    let db = few_readers(|_| ()).await;
    let thread = thread_of_a_read(&db).await;
    for _ in 0..10 {
        let panicked = db
            .read("panics", |tx| -> rusqlite::Result<()> {
                tx.prepare("SELECT 1")?;
                panic!("boom")
            })
            .await;
        assert!(matches!(&panicked, Err(ReadError::Panicked(why)) if why == "boom"), "{panicked:?}");
    }
    assert_ne!(thread_of_a_read(&db).await, thread);
    assert_eq!(db.stats().readers_in_use, 0);
}

#[tokio::test]
async fn a_connection_is_opened_anew_at_its_age() {
    let db = few_readers(|config| config.reader_age_max = Duration::from_millis(1)).await;
    let first = thread_of_a_read(&db).await;
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_ne!(thread_of_a_read(&db).await, first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_whose_futures_are_dropped_give_their_connections_back() {
    let db = few_readers(|_| ()).await;
    let held = HeldReads::hold(&db, 3).await;
    held.reads.iter().for_each(JoinHandle::abort);
    assert_eq!(db.stats().readers_in_use, 3, "they run to their end");
    drop(held);
    until("all are given back", || db.stats().readers_in_use == 0).await;
    HeldReads::hold(&db, 3).await.end().await;
}

#[tokio::test]
async fn a_read_that_is_dropped_while_it_waits_never_runs() {
    let db = few_readers(|_| ()).await;
    let held = HeldReads::hold(&db, 3).await;
    let (ran, was_run) = mpsc::channel();
    let waiting = db.read("waits", move |_| Ok(ran.send(()))).wait_max(HANG);
    assert!(tokio::time::timeout(Duration::from_millis(20), waiting.into_future()).await.is_err());
    held.end().await;
    thread_of_a_read(&db).await;
    assert_eq!(was_run.recv_timeout(HANG), Err(mpsc::RecvTimeoutError::Disconnected));
}

#[tokio::test]
async fn a_callers_own_error_stays_typed() {
    #[derive(Debug)]
    struct Absent;
    let db = few_readers(|_| ()).await;
    let absent = db.read_or_reject("find", |_| Err::<(), _>(Absent)).await;
    assert!(matches!(absent, Err(ReadError::Query(Absent))));
}

/// A value whose destructor fails.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("dropped");
    }
}

#[tokio::test]
async fn a_value_that_panics_when_it_is_dropped_costs_no_connection() {
    let db = few_readers(|config| config.readers_overflow = 0).await;
    let open = db.stats().readers_open;
    let (reading, begun) = mpsc::channel();
    let (go_on, wait) = mpsc::channel::<()>();
    let mut read = db
        .read("bomb", move |_| {
            reading.send(()).unwrap();
            wait.recv_timeout(common::HANG).unwrap();
            Ok(Bomb)
        })
        .into_future();
    assert!((&mut read).now_or_never().is_none());
    common::until("it reads", || begun.try_recv().is_ok()).await;
    drop(read);
    go_on.send(()).unwrap();
    for _ in 0..20 {
        soon(thread_of_a_read(&db)).await;
    }
    assert_eq!(db.stats().readers_open, open);
}

#[tokio::test]
async fn a_read_that_leaves_a_statement_half_stepped_has_its_connection_replaced() {
    let db = few_readers(|_| ()).await;
    let thread = thread_of_a_read(&db).await;
    let leaks = db.read("leaks", |tx| {
        let mut statement = tx.prepare("SELECT 1 UNION ALL SELECT 2")?;
        let mut rows = statement.query(())?;
        rows.next()?;
        std::mem::forget(rows);
        std::mem::forget(statement);
        Ok(std::thread::current().id())
    });
    assert_eq!(soon(leaks).await.unwrap(), thread);
    assert_ne!(thread_of_a_read(&db).await, thread);
    assert_eq!(db.stats().readers_in_use, 0);
    common::insert(&db, 1).await.unwrap();
    assert_eq!(db.xs().await, [1], "what was leaked pins nothing old");
}

#[tokio::test]
async fn reads_that_are_dropped_at_any_point_lose_no_connection() {
    // Old at once, so that each read opens a connection of its own.
    let db = few_readers(|config| config.reader_age_max = Duration::from_nanos(1)).await;
    for _ in 0..30 {
        let mut read = db.read("dropped", |_| Ok(())).wait_max(HANG).into_future();
        let _begun = (&mut read).now_or_never();
        drop(read);
    }
    soon(db.read("last", |_| Ok(())).wait_max(HANG)).await.unwrap();
    until("all are closed", || db.stats().readers_open == 0).await;
}
