//! No acks into the void: a database whose files are deleted, renamed or replaced while the service has them open.
//!
//! SQLite goes on to say `Ok` then, and the writes are lost. The files that are there afterwards belong to
//! somebody else: the service must leave them as they are. At random moments, many times:
//! `tests/reliability/swapped_files.rs`.
#![cfg(unix)]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::mem_forget, reason = "a test")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use common::faults::{By, Fault, Faults, Of, Op};
use common::foreign::{self, Foreign};
use common::{HANG, add, beside, config_with, count, insert, plain, soon};
use rusqlite::ffi;
use solewriter::{Database, Drain, NotStarted, Outcome, ReadError, Retry, Unknown, WriteError};
use tempfile::TempDir;

#[test]
fn a_process_of_its_own() {
    foreign::serve();
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Deleted,
    Renamed,
    Replaced,
}

/// What the service does when the file is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// Nothing; then a command comes.
    Idle,
    /// Nothing; then it is closed.
    IdleUntilClosed,
    /// A command runs, in a transaction that has written.
    InACommand,
    /// One commit follows the other.
    BusyWriting,
    /// Nothing; then the next command makes it open another connection.
    BeforeAReplacement,
}

const FILES: [(&str, &str); 3] =
    [("", "the database file"), ("-wal", "the -wal file"), ("-shm", "the -shm file")];
const CHANGES: [(Change, &str); 3] = [
    (Change::Deleted, "deleted or renamed"),
    (Change::Renamed, "deleted or renamed"),
    (Change::Replaced, "replaced by another"),
];
const MOMENTS: [Moment; 5] = [
    Moment::Idle,
    Moment::IdleUntilClosed,
    Moment::InACommand,
    Moment::BusyWriting,
    Moment::BeforeAReplacement,
];

impl Change {
    /// By the hand of others: a copy made in this process would cost it its locks.
    fn make(self, file: &Path) {
        let other = beside(file, ".other");
        match self {
            Self::Deleted => fs::remove_file(file).unwrap(),
            Self::Renamed => fs::rename(file, other).unwrap(),
            Self::Replaced => {
                assert!(Command::new("cp").args([file, &other]).status().unwrap().success());
                fs::rename(other, file).unwrap();
            }
        }
    }
}

/// What is there under the names of the files, and in them. Only once nobody has them open here.
fn contents(path: &Path) -> Vec<Option<Vec<u8>>> {
    FILES.iter().map(|(suffix, _)| fs::read(beside(path, suffix)).ok()).collect()
}

async fn open(dir: &TempDir) -> (Database, PathBuf) {
    let path = dir.path().join("test.db");
    let config = config_with(|config| (config.readers, config.readers_overflow) = (1, 2));
    let db = Database::builder(&path).config(config).open().await.unwrap();
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x UNIQUE)", ()).await.unwrap();
    for x in 0..3 {
        insert(&db, x).await.unwrap();
    }
    (db, path)
}

fn is_stopped(error: &WriteError) -> bool {
    matches!(error, WriteError::NotStarted(NotStarted::Stopped(_)))
        && (error.outcome(), error.retry()) == (Outcome::NotStarted, Retry::Never)
}

/// Fails unless the error says that the files were changed, which one, and how.
fn assert_names(error: &WriteError, what: &str, how: &str) {
    let WriteError::Unknown(Unknown::FilesReplaced(cause)) = error else { panic!("{error:?}") };
    let said = cause.as_sqlite().to_string();
    assert!(said.contains(what) && said.contains(how), "{said}");
    assert_eq!((error.outcome(), error.retry()), (Outcome::Unknown, Retry::AfterChecking));
    assert_eq!(error.sqlite_extended_code(), Some(ffi::SQLITE_READONLY_DBMOVED));
}

/// A command that leaves its connection unfit for another.
async fn leak_a_statement(db: &Database) -> Result<(), WriteError> {
    let leak = db.write("leak", |tx| {
        let mut statement = tx.prepare("INSERT INTO t (x) VALUES (100), (101) RETURNING x")?;
        let mut rows = statement.query(())?;
        rows.next()?;
        std::mem::forget(rows);
        std::mem::forget(statement);
        Ok(())
    });
    soon(leak).await
}

/// Runs one case; returns how many commands that were sent after the change were acknowledged.
async fn swap(suffix: &str, what: &str, (change, how): (Change, &str), moment: Moment) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let (db, path) = open(&dir).await;
    let file = beside(&path, suffix);
    let mut false_acks = 0;
    let mut rows_acked = 3;
    match moment {
        Moment::IdleUntilClosed => change.make(&file),
        Moment::Idle => {
            change.make(&file);
            match soon(insert(&db, 10)).await {
                Ok(_) => false_acks += 1,
                Err(error) => assert_names(&error, what, how),
            }
        }
        Moment::InACommand => {
            let (begun, has_begun) = mpsc::channel();
            let (go_on, told) = mpsc::channel::<()>();
            let command = db.write("slow", move |tx| {
                add(tx, 10)?;
                begun.send(()).unwrap();
                told.recv_timeout(HANG).unwrap();
                add(tx, 11)
            });
            let running = command.submit().await.unwrap();
            has_begun.recv_timeout(HANG).unwrap();
            change.make(&file);
            go_on.send(()).unwrap();
            match soon(running).await {
                Ok(_) => false_acks += 1,
                Err(error) => assert_names(&error, what, how),
            }
        }
        Moment::BusyWriting => {
            let changed = Arc::new(AtomicBool::new(false));
            let tasks: Vec<_> = (0..4)
                .map(|task| {
                    let (db, changed) = (db.clone(), changed.clone());
                    tokio::spawn(async move {
                        let (mut acked, mut false_acks, mut x) = (0, 0, 1_000 * (task + 1));
                        loop {
                            let was_changed = changed.load(Ordering::SeqCst);
                            match insert(&db, x).await {
                                Ok(_) if was_changed => false_acks += 1,
                                Ok(_) => acked += 1,
                                Err(error) => return (acked, false_acks, error),
                            }
                            x += 1;
                            assert!(false_acks < 100, "it never stops");
                        }
                    })
                })
                .collect();
            common::until("it is busy", || db.stats().groups_committed > 20).await;
            change.make(&file);
            changed.store(true, Ordering::SeqCst);
            let mut unknown = 0;
            for task in tasks {
                let (acked, falsely, error) = soon(task).await.unwrap();
                rows_acked += acked;
                false_acks += falsely;
                if !is_stopped(&error) {
                    assert_names(&error, what, how);
                    unknown += 1;
                }
            }
            assert!(unknown > 0 || false_acks > 0);
        }
        Moment::BeforeAReplacement => {
            change.make(&file);
            let leaked = leak_a_statement(&db).await;
            assert!(leaked.is_err(), "{leaked:?}");
            match soon(insert(&db, 10)).await {
                Ok(_) => false_acks += 1,
                Err(error) if is_stopped(&error) => {}
                Err(error) => assert_names(&error, what, how),
            }
        }
    }
    if moment != Moment::IdleUntilClosed {
        match soon(insert(&db, 20)).await {
            Ok(_) => false_acks += 1,
            Err(error) => assert!(is_stopped(&error), "{error:?}"),
        }
        assert!(db.stats().is_refusing_writes || false_acks > 0);
    }
    read_all(&db, rows_acked, (suffix, change, moment)).await;
    // Nobody writes any more, and this is another process.
    let copy = dir.path().join("kept");
    fs::create_dir(&copy).unwrap();
    for (suffix, _) in FILES {
        // What is missing stays missing.
        let _copied = Command::new("cp").args([beside(&path, suffix), copy.clone()]).output().unwrap();
    }
    let report = soon(db.shutdown(Drain::within(HANG))).await.unwrap();
    assert!(report.stopped || false_acks > 0, "{suffix} {change:?} {moment:?}: {report:?}");
    let (kept, left) = (contents(&copy.join("test.db")), contents(&path));
    for ((suffix_left, _), (kept, left)) in FILES.iter().zip(kept.iter().zip(&left)) {
        // The -shm file holds the locks and marks of readers too.
        let is_same = if *suffix_left == "-shm" && suffix != "-shm" {
            kept.is_some() == left.is_some()
        } else {
            kept == left
        };
        assert!(is_same, "{suffix} {change:?} {moment:?}: the close changed the file {suffix_left:?}");
    }
    false_acks
}

/// Reads with the connection that was open all the time, and with new ones: they see every acknowledged row, or
/// fail.
async fn read_all(db: &Database, rows_acked: i64, case: (&str, Change, Moment)) {
    let rows = |tx: &solewriter::ReadTransaction<'_>| {
        tx.query_row("SELECT count(*) FROM t", (), |row| row.get::<_, i64>(0))
    };
    let (mut held, mut failed) = (Vec::new(), 0);
    for _ in 0..3 {
        match soon(db.snapshot("held")).await {
            Ok(snapshot) => {
                match soon(snapshot.read(rows)).await {
                    Ok(seen) => assert!(seen >= rows_acked, "{case:?}: {seen} of {rows_acked} rows"),
                    Err(_) => failed += 1,
                }
                held.push(snapshot);
            }
            Err(error) => {
                assert!(matches!(error, ReadError::Connection(_)), "{case:?}: {error:?}");
                failed += 1;
            }
        }
    }
    assert!(failed < 3, "{case:?}: the connection that was open all the time can still read");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_file_is_swapped_nothing_is_acknowledged_and_the_other_files_stay_as_they_are() {
    let (mut cases, mut false_acks, mut bad) = (0, 0, Vec::new());
    for moment in MOMENTS {
        for (suffix, what) in FILES {
            for change in CHANGES {
                let falsely = swap(suffix, what, change, moment).await;
                if falsely > 0 {
                    bad.push((moment, suffix, change.0));
                }
                cases += 1;
                false_acks += falsely;
            }
        }
    }
    assert_eq!((cases, false_acks), (45, 0), "{bad:?}");
}

/// Opens the files as any backup tool might, in the process that has them open: each close costs it its locks
/// (<https://www.sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_>).
///
/// For a SQLite that is older than 3.51 the database file alone is enough. Later ones look for locks of others on
/// the -shm file too, before they take themselves for the last user.
fn lose_the_locks(path: &Path) {
    for (suffix, _) in FILES {
        drop(fs::File::open(beside(path, suffix)).unwrap());
    }
}

// This process                          Another
// three rows are acknowledged
// opens and closes the files
//                                       opens it, inserts two rows, closes: it takes itself for the last user,
//                                       so it empties the WAL and deletes it
// a commit is not acknowledged
// closes                                (its two rows are still there)
#[tokio::test]
async fn where_the_process_has_lost_its_locks_the_rows_of_others_survive() {
    for writes_afterwards in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (db, path) = open(&dir).await;
        lose_the_locks(&path);
        let mut foreign = Foreign::start(&path);
        foreign.run("INSERT INTO t (x) VALUES (1000), (1001)");
        foreign.close();
        assert!(!beside(&path, "-wal").exists(), "it took itself for the last user");
        if writes_afterwards {
            let error = soon(insert(&db, 10)).await.unwrap_err();
            assert_names(&error, "the -wal file", "deleted or renamed");
            assert!(is_stopped(&soon(insert(&db, 11)).await.unwrap_err()));
        }
        // Somebody else goes on with a WAL of his own.
        let mut foreign = Foreign::start(&path);
        foreign.run("INSERT INTO t (x) VALUES (1002); UPDATE t SET x = -x");
        let report = soon(db.shutdown(Drain::within(HANG))).await.unwrap();
        assert!(report.stopped, "{report:?}");
        foreign.run("INSERT INTO t (x) VALUES (1003)");
        foreign.close();
        common::check(&path);
        assert_eq!(count(&plain(&path)), 7, "three of ours, four of theirs");
    }
}

// A backup without the rows is put back while the service runs. Its readers are opened by name as they are needed.
#[tokio::test]
async fn a_read_never_sees_the_file_that_was_put_in_the_place_of_ours() {
    let dir = tempfile::tempdir().unwrap();
    let (db, path) = open(&dir).await;
    let backup = dir.path().join("backup.db");
    let old = plain(&backup);
    old.execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, x UNIQUE); INSERT INTO t (x) VALUES (77)")
        .unwrap();
    old.close().unwrap();
    // As one does who knows that they belong together.
    for suffix in ["-wal", "-shm"] {
        fs::remove_file(beside(&path, suffix)).unwrap();
    }
    fs::rename(&backup, &path).unwrap();
    let xs = |tx: &solewriter::ReadTransaction<'_>| {
        tx.query_all("SELECT x FROM t ORDER BY x", (), |row| row.get::<_, i64>(0))
    };
    let ours = db.snapshot("ours").await.unwrap();
    assert_eq!(soon(ours.read(xs)).await.unwrap(), [0, 1, 2]);
    let refused = soon(db.read("new", xs)).await.unwrap_err();
    assert!(matches!(&refused, ReadError::Connection(_)), "{refused:?}");
    assert_eq!(refused.sqlite_extended_code(), Some(ffi::SQLITE_READONLY_DBMOVED));
    drop(ours);
    common::until("its connection is given back", || db.stats().readers_in_use == 0).await;
    assert_eq!(soon(db.read("ours again", xs)).await.unwrap(), [0, 1, 2]);
    soon(db.shutdown(Drain::within(HANG))).await.unwrap();
    assert_eq!(count(&plain(&path)), 1);
}

// Another process               Writer
// reads, and pins the WAL
//                               writes until the WAL is full, waits
// (somebody deletes the WAL)
//                               does not try to copy it into the database any more, and stops
// reads no more
#[tokio::test]
async fn a_full_wal_that_is_no_longer_ours_is_not_copied_into_the_database() {
    const LIMIT_BYTES: u64 = 256 << 10;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    let config = config_with(|config| {
        config.wal_target_bytes = 64 << 10;
        config.wal_limit_bytes = LIMIT_BYTES;
        config.busy_timeout = HANG;
    });
    let db = Database::builder(&path).config(config).open().await.unwrap();
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x UNIQUE)", ()).await.unwrap();
    let mut foreign = Foreign::start(&path);
    foreign.run("BEGIN; SELECT * FROM t");
    let is_full = || {
        let stats = db.stats();
        stats.wal_pages * stats.page_bytes >= LIMIT_BYTES
    };
    for x in 0..10_000 {
        // It is measured after the answer, so the command that filled it may not see that yet.
        let receipt = insert(&db, x).deadline(HANG / 10).submit().await.unwrap();
        if soon(receipt).await.is_err() || is_full() {
            break;
        }
    }
    common::until("the WAL is full", is_full).await;
    let waiting = insert(&db, 1_000_000).submit().await.unwrap();
    fs::remove_file(beside(&path, "-wal")).unwrap();
    let kept = dir.path().join("kept");
    assert!(Command::new("cp").args([&path, &kept]).status().unwrap().success());
    let refused = soon(waiting).await.unwrap_err();
    assert!(is_stopped(&refused), "{refused:?}");
    foreign.run("COMMIT");
    assert!(soon(db.shutdown(Drain::within(HANG))).await.unwrap().stopped);
    assert!(fs::read(&path).unwrap() == fs::read(&kept).unwrap(), "the database was written to");
}

// Service                                    Somebody else
// a checkpoint fails: every connection is to
// be closed and opened anew
// waits for a read that goes on
//                                            puts a backup in the place of the files
// does not take it for its database
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_put_in_the_place_of_ours_is_not_opened_after_a_checkpoint_that_failed() {
    let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
    let db = faults.create(&dir, |config| config.checkpoint_pages = 1);
    let path = db.path().to_owned();
    let backup = dir.path().join("backup.db");
    let old = plain(&backup);
    old.execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, x UNIQUE); INSERT INTO t (x) VALUES (77)")
        .unwrap();
    old.close().unwrap();
    let written = fs::read(&backup).unwrap();

    let snapshot = db.snapshot("ended by the wish to close").await.unwrap();
    let (begun, has_begun) = mpsc::channel();
    let (end, wait) = mpsc::channel::<()>();
    let handle = db.clone();
    let read = tokio::spawn(async move {
        let read = handle.read("goes on", move |_| {
            begun.send(()).unwrap();
            let _is_dropped = wait.recv_timeout(HANG).is_err();
            Ok(())
        });
        read.await
    });
    common::until("the read runs", || has_begun.try_recv().is_ok()).await;
    faults.inject(Fault::new(Op::Sync, Of::Database, ffi::SQLITE_IOERR_FSYNC).once());
    soon(insert(&db, 1)).await.unwrap();
    while soon(snapshot.read(|_| Ok(()))).await.is_ok() {
        tokio::task::yield_now().await;
    }
    for suffix in ["-wal", "-shm"] {
        fs::remove_file(beside(&path, suffix)).unwrap();
    }
    fs::rename(&backup, &path).unwrap();
    end.send(()).unwrap();
    soon(read).await.unwrap().unwrap();
    let refused = soon(insert(&db, 2)).await.unwrap_err();
    assert!(is_stopped(&refused), "{refused:?}");
    assert_eq!(refused.sqlite_extended_code(), Some(ffi::SQLITE_READONLY_DBMOVED));
    assert!(soon(db.shutdown(Drain::within(HANG))).await.unwrap().stopped);
    assert!(fs::read(&path).unwrap() == written, "the backup was written to");
}

// Service                                    Somebody else
// is about to open another reader, and has
// looked at the files
//                                            puts another database in the place of ours
// opens it, looks again, goes no further
//
// For SQLite that would be another database, whose -shm file was left behind by others, and is begun anew: while our
// connections use it.
#[tokio::test]
async fn a_database_that_is_put_there_right_before_it_is_opened_is_not_looked_into() {
    for opens_by in [By::Other, By::Writer] {
        let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
        let db = faults.create(&dir, |config| (config.readers, config.readers_overflow) = (1, 2));
        let path = db.path().to_owned();
        insert(&db, 1).await.unwrap();
        let copy = dir.path().join("copy");
        assert!(Command::new("cp").args([&path, &copy]).status().unwrap().success());
        let swap = {
            let path = path.clone();
            move || fs::rename(&copy, &path).unwrap()
        };
        let held = db.snapshot("held").await.unwrap();
        faults.forget();
        faults.inject(Fault::none(Op::Open, Of::Database).by(opens_by).once().then(swap));
        if opens_by == By::Other {
            let refused = soon(db.read("new", |_| Ok(()))).await.unwrap_err();
            assert_eq!(refused.sqlite_extended_code(), Some(ffi::SQLITE_READONLY_DBMOVED));
        } else {
            leak_a_statement(&db).await.unwrap_err();
            let refused = soon(insert(&db, 2)).await.unwrap_err();
            assert!(is_stopped(&refused), "{refused:?}");
        }
        let calls = faults.calls().into_iter().skip_while(|call| call.op != Op::Open).skip(1);
        // Which comes first whenever a database is read. Its header is, by the open itself.
        let locks = calls.filter(|call| call.by == opens_by && call.op == Op::Lock);
        assert_eq!(locks.count(), 0, "{opens_by:?}");
        let count = |tx: &solewriter::ReadTransaction<'_>| {
            tx.query_row("SELECT count(*) FROM t", (), |row| row.get::<_, i64>(0))
        };
        assert_eq!(soon(held.read(count)).await.unwrap(), 2);
        drop(held);
        soon(db.shutdown(Drain::within(HANG))).await.unwrap();
    }
}

#[tokio::test]
async fn after_a_swap_the_database_can_be_opened_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (db, path) = open(&dir).await;
    Change::Replaced.make(&path);
    soon(insert(&db, 10)).await.unwrap_err();
    soon(db.shutdown(Drain::within(HANG))).await.unwrap();
    let db = Database::builder(&path).open().await.unwrap();
    soon(insert(&db, 11)).await.unwrap();
    db.shutdown(Drain::within(Duration::from_secs(5))).await.unwrap();
    common::check(&path);
    assert!(count(&plain(&path)) >= 4);
}
