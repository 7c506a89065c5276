//! Every accepted command is answered, and its caller wakes, in whatever runtime it waits and however many wait with it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use common::{Gate, TestDb, insert, soon, until};
use solewriter::Database;
use tokio::runtime::{Builder, Runtime};

/// More than are woken one by one, and than one task wakes.
const MANY: usize = 300;

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn send_from_tasks(runtime: &Runtime, db: &Database, first: i64) -> Vec<tokio::task::JoinHandle<usize>> {
    let tasks = (first..first + MANY as i64).map(|x| {
        let db = db.clone();
        runtime.spawn(async move { insert(&db, x).await.unwrap() })
    });
    tasks.collect()
}

async fn until_waiting(db: &Database, count: usize) {
    until("all wait", || db.stats().queue_depth.interactive == count).await;
}

#[test]
fn tasks_of_several_runtimes_and_threads_are_all_answered() {
    let (first, second) = (runtime(), runtime());
    let db = second.block_on(TestDb::open());
    let gate = second.block_on(Gate::close(&db));
    let mut tasks = send_from_tasks(&first, &db, 0);
    second.block_on(until_waiting(&db, MANY));
    tasks.extend(send_from_tasks(&second, &db, MANY as i64));
    second.block_on(until_waiting(&db, 2 * MANY));
    let blocked = std::thread::spawn({
        let db = db.clone();
        move || db.blocking().execute("INSERT INTO t (x) VALUES (-1)", ()).wait().unwrap()
    });
    second.block_on(until_waiting(&db, 2 * MANY + 1));
    second.block_on(gate.open());
    for task in tasks {
        second.block_on(soon(task)).unwrap();
    }
    assert_eq!(blocked.join().unwrap(), 1);
    assert_eq!(second.block_on(db.xs()).len(), 2 * MANY + 1);
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

// The runtime that would have woken its tasks is gone; what they have left behind waits all the same.
#[test]
fn whoever_waits_is_woken_though_the_runtime_has_ended_in_which_it_began_to_wait() {
    let (first, second) = (runtime(), runtime());
    let db = second.block_on(TestDb::open());
    let gate = second.block_on(Gate::close(&db));
    let woken = Arc::new(Count::default());
    let (waker, sender) = (Waker::from(woken.clone()), db.clone());
    let begun = first.spawn(async move {
        let mut receipts = Vec::new();
        for x in 0..MANY as i64 {
            let command = sender.execute("INSERT INTO t (x) VALUES (?1)", (x,));
            let mut receipt = command.submit().await.unwrap();
            let first_poll = Pin::new(&mut receipt).poll(&mut Context::from_waker(&waker));
            assert!(matches!(first_poll, Poll::Pending));
            receipts.push(receipt);
        }
        receipts
    });
    let receipts = second.block_on(soon(begun)).unwrap();
    first.shutdown_background();
    second.block_on(gate.open());
    second.block_on(until("all are woken", || woken.0.load(Ordering::Relaxed) == MANY));
    for receipt in receipts {
        assert_eq!(second.block_on(soon(receipt)).unwrap(), 1);
    }
}
