//! The surface for threads: the same promises without a runtime.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::{Add, HANG, add, check, config_with};
use rusqlite::Error::QueryReturnedNoRows;
use solewriter::{
    BlockingDatabase, Config, Database, Drain, Lane, NotStarted, ReadError, RolledBack, WriteError,
};

/// Runs a test on plain threads.
fn with_database(set: impl FnOnce(&mut Config), test: impl FnOnce(&BlockingDatabase)) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    let db = Database::builder(&path).config(config_with(set)).open_blocking().unwrap().blocking();
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x UNIQUE)", ()).wait().unwrap();
    test(&db);
    db.shutdown(Drain::within(HANG)).unwrap();
    check(&path);
}

fn xs(db: &BlockingDatabase) -> Vec<i64> {
    db.read("xs", |tx| tx.query_all("SELECT x FROM t ORDER BY id", (), |row| row.get(0))).wait().unwrap()
}

/// A gate for threads: returns when the writer is held; dropping the sender opens it.
fn hold(db: &BlockingDatabase) -> mpsc::Sender<()> {
    let (open, wait) = mpsc::channel::<()>();
    let (reached, is_reached) = mpsc::channel();
    let gate = db.write("gate", move |_| {
        reached.send(()).unwrap();
        let _is_dropped = wait.recv_timeout(HANG).is_err();
        Ok(())
    });
    drop(gate.lane(Lane::Bulk).submit().unwrap());
    is_reached.recv_timeout(HANG).unwrap();
    open
}

#[test]
fn every_kind_of_request_works_without_a_runtime() {
    with_database(
        |_| (),
        |db| {
            db.write("once", |tx| add(tx, 1)).wait().unwrap();
            db.write_rerunnable("again", |tx| add(tx, 2)).wait().unwrap();
            db.send(Add { x: 3 }).wait().unwrap();
            db.submit(Add { x: 4 }).unwrap().wait().unwrap();
            let ids = db.execute_returning("INSERT INTO t (x) VALUES (5) RETURNING id", (), |row| {
                row.get::<_, i64>(0)
            });
            assert_eq!(ids.wait().unwrap(), [5]);
            let token = db.execute("DELETE FROM t WHERE x = 1", ()).committed().unwrap().token;
            let rows = db.read_after(token, "count", |tx| {
                tx.query_row("SELECT count(*) FROM t", (), |row| row.get::<_, i64>(0))
            });
            assert_eq!(rows.wait().unwrap(), 4);
            assert_eq!(xs(db), [2, 3, 4, 5]);
        },
    );
}

#[test]
fn every_kind_of_error_works_without_a_runtime() {
    with_database(
        |_| (),
        |db| {
            let own = db.write_or_reject("rejects", |_| Err::<(), _>("no")).wait();
            assert!(matches!(own, Err(WriteError::Command("no"))));
            let panicked = db.write("panics", |_| -> rusqlite::Result<()> { panic!("boom") }).wait();
            assert!(matches!(panicked, Err(WriteError::RolledBack(RolledBack::Panicked(_)))));
            let read = db.read("fails", |_| Err::<(), _>(QueryReturnedNoRows)).wait();
            assert!(matches!(read, Err(ReadError::Query(QueryReturnedNoRows))));
            let read = db.read_or_reject("fails", |_| Err::<(), _>("no")).wait();
            assert!(matches!(read, Err(ReadError::Query("no"))));
        },
    );
}

#[test]
fn deadlines_and_the_wait_for_room_end_without_a_timer() {
    let short_queue = |config: &mut Config| {
        config.queue_commands_max = 1;
        config.queue_wait_max = Duration::from_millis(20);
    };
    with_database(short_queue, |db| {
        let open = hold(db);
        let expired = db.send(Add { x: 1 }).deadline(Duration::from_millis(10)).wait();
        assert!(matches!(expired, Err(WriteError::NotStarted(NotStarted::DeadlineExceeded { .. }))));
        // It still takes its place in the lane until the writer throws it out.
        let full = db.send(Add { x: 2 }).wait();
        assert!(matches!(full, Err(WriteError::NotStarted(NotStarted::QueueFull { .. }))), "{full:?}");
        drop(open);
        db.send(Add { x: 3 }).deadline(HANG).wait().unwrap();
        assert_eq!(xs(db), [3]);
    });
}

#[test]
fn threads_share_commits_as_tasks_do() {
    with_database(
        |_| (),
        |db| {
            thread::scope(|scope| {
                for thread in 0..8 {
                    scope.spawn(move || {
                        (0..50)
                            .for_each(|x| assert_eq!(db.send(Add { x: thread * 100 + x }).wait().unwrap(), 1))
                    });
                }
            });
            assert_eq!(xs(db).len(), 400);
            assert_eq!(db.database().stats().commands.committed, 401);
        },
    );
}

#[test]
fn an_import_runs_without_a_runtime() {
    with_database(
        |_| (),
        |db| {
            let report = db.import("numbers", 0..1_000_i64).run(|tx, x| add(tx, *x)).wait().unwrap();
            assert_eq!((report.accepted, report.failed), (1_000, 0));
            assert_eq!(xs(db).len(), 1_000);
        },
    );
}
