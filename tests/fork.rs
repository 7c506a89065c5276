//! A fork of a process that has a database open: it can't harm the database, and is told so.
//!
//! Each test runs itself again in a process of its own, which forks. The fork ends by `_exit`, and by an alarm if
//! it hangs.
#![cfg(unix)]
#![allow(missing_docs, unsafe_code, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use common::HANG;
use solewriter::{
    BlockingDatabase, Database, Drain, NotStarted, OpenErrorReason as Reason, Outcome, ReadError, Retry,
    Stats, WriteError,
};

const CASE: &str = "SOLEWRITER_TEST_FORK";

/// Runs the test again in a process of its own, in which `case` answers with a directory.
fn in_own_process(test: &str) {
    let dir = tempfile::tempdir().unwrap();
    let output = own_process(test, dir.path()).output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

fn own_process(test: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(CASE, dir);
    command
}

fn case() -> Option<PathBuf> {
    std::env::var_os(CASE).map(PathBuf::from)
}

/// Runs `child` in a fork, and fails unless it returns.
fn fork(child: impl FnOnce()) {
    assert_eq!(wait(start_fork(child)), 0, "the fork failed, or hung (14)");
}

fn start_fork(child: impl FnOnce()) -> libc::pid_t {
    // SAFETY: the fork runs `child` on the only thread it has, and ends without running anything else. What the
    // other threads of this process held when it forked is what these tests are about.
    unsafe {
        match libc::fork() {
            0 => {
                libc::alarm(10);
                let failed = catch_unwind(AssertUnwindSafe(child)).is_err();
                libc::_exit(failed.into())
            }
            pid => pid,
        }
    }
}

fn wait(pid: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: it waits for a child of this process and stores its status on this stack frame.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    status
}

fn read_line(from: impl Read) {
    assert_ne!(BufReader::new(from).read_line(&mut String::new()).unwrap(), 0, "the other end is gone");
}

fn open(path: &Path) -> BlockingDatabase {
    let db = Database::builder(path).open_blocking().unwrap().blocking();
    db.execute("CREATE TABLE IF NOT EXISTS t (x)", ()).wait().unwrap();
    db
}

fn insert(db: &BlockingDatabase, x: i64) -> Result<usize, WriteError> {
    db.execute("INSERT INTO t VALUES (?1)", (x,)).wait()
}

fn count(db: &BlockingDatabase) -> Result<i64, ReadError> {
    db.read("count", |tx| tx.query_row("SELECT count(*) FROM t", (), |row| row.get(0))).wait()
}

fn close(db: &BlockingDatabase, rows: i64) {
    assert_eq!(count(db).unwrap(), rows);
    db.shutdown(Drain::within(HANG)).unwrap();
    common::check(db.database().path());
}

#[test]
fn a_handle_in_a_fork_refuses_and_the_parent_goes_on() {
    let Some(dir) = case() else {
        return in_own_process("a_handle_in_a_fork_refuses_and_the_parent_goes_on");
    };
    let db = open(&dir.join("test.db"));
    insert(&db, 1).unwrap();
    let handle = db.clone();
    fork(move || {
        let refused = insert(&handle, 2).unwrap_err();
        assert!(matches!(refused, WriteError::NotStarted(NotStarted::Forked)), "{refused:?}");
        assert_eq!((refused.outcome(), refused.retry()), (Outcome::NotStarted, Retry::Never));
        let refused = handle.write("more", |_| Ok(())).try_submit().unwrap_err();
        assert!(matches!(refused, WriteError::NotStarted(NotStarted::Forked)), "{refused:?}");
        let refused = count(&handle).unwrap_err();
        assert!(matches!(refused, ReadError::Forked), "{refused:?}");
        assert_eq!(refused.retry(), Retry::Never);
        let import =
            handle.import("import", [1, 2]).run(|tx, x| tx.execute("INSERT INTO t VALUES (?1)", [x]));
        assert!(import.wait().is_err());
        assert_eq!(handle.database().stats().groups_committed, Stats::default().groups_committed);
        assert!(handle.database().holder().is_none());
        let began = Instant::now();
        handle.shutdown(Drain::within(HANG)).unwrap();
        drop(handle);
        assert!(began.elapsed() < HANG / 10, "there is nothing to wait for");
    });
    insert(&db, 3).unwrap();
    // The last handle goes away in the fork, which closes nothing.
    let pid = start_fork(|| drop(db));
    let again = Database::builder(dir.join("test.db")).open_blocking().unwrap().blocking();
    assert_eq!(wait(pid), 0);
    insert(&again, 4).unwrap();
    close(&again, 3);
}

#[cfg(feature = "metrics")]
#[test]
fn a_fork_publishes_no_metrics() {
    let Some(dir) = case() else { return in_own_process("a_fork_publishes_no_metrics") };
    let db = open(&dir.join("test.db"));
    let publisher = solewriter::metrics::Publisher::new(db.database());
    let published = || {
        let recorder = metrics_util::debugging::DebuggingRecorder::new();
        metrics::with_local_recorder(&recorder, || publisher.publish());
        recorder.snapshotter().snapshot().into_vec().len()
    };
    fork(|| assert_eq!(published(), 0));
    assert_ne!(published(), 0);
    close(&db, 0);
}

#[test]
fn a_fork_does_not_open_what_its_parent_has_or_had_open() {
    let Some(dir) = case() else {
        return in_own_process("a_fork_does_not_open_what_its_parent_has_or_had_open");
    };
    let path = dir.join("test.db");
    let db = open(&path);
    let parent = std::process::id();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let in_fork = path.clone();
    let pid = start_fork(move || {
        let reason = Database::builder(&in_fork).open_blocking().unwrap_err().reason;
        assert!(matches!(reason, Reason::HeldByProcess { pid: Some(pid) } if pid == parent), "{reason:?}");
        (&theirs).write_all(b"refused\n").unwrap();
        read_line(&theirs);
        // SQLite's memory of the parent's locks is still in this process, and would keep it from taking any.
        let refused = Database::builder(&in_fork).open_blocking().unwrap_err();
        assert!(matches!(refused.reason, Reason::OpenBeforeFork), "{refused:?}");
        assert!(refused.to_string().contains("fork"), "{refused}");
    });
    read_line(&ours);
    insert(&db, 1).unwrap();
    close(&db, 1);
    (&ours).write_all(b"closed\n").unwrap();
    assert_eq!(wait(pid), 0);
    // Nobody else is kept out.
    close(&open(&path), 1);
}

#[test]
fn a_fork_opens_what_its_parent_has_not_open() {
    let Some(dir) = case() else { return in_own_process("a_fork_opens_what_its_parent_has_not_open") };
    let (path, before) = (dir.join("test.db"), dir.join("before.db"));
    close(&open(&before), 0);
    let db = open(&path);
    fork(|| {
        for path in [&before, &dir.join("new.db")] {
            let own = open(path);
            insert(&own, 1).unwrap();
            assert_eq!(count(&own).unwrap(), 1);
            // A fork of the fork.
            fork(|| assert!(matches!(count(&own), Err(ReadError::Forked))));
            close(&own, 1);
        }
    });
    close(&open(&before), 1);
    close(&db, 0);
}

/// While another thread opens and closes databases, a fork finds the registry whole. It gets as far as the lock
/// file, not to SQLite, which promises nothing in a fork of a process with several threads.
#[test]
fn a_fork_in_the_middle_of_other_opens_does_not_hang() {
    let Some(dir) = case() else {
        return in_own_process("a_fork_in_the_middle_of_other_opens_does_not_hang");
    };
    let path = dir.join("test.db");
    let db = open(&path);
    let forks_are_done = AtomicBool::new(false);
    let failed = std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !forks_are_done.load(Ordering::Relaxed) {
                    // The fastest way in and out of the registry: the service that is there already.
                    drop(Database::builder(&path).open_blocking().unwrap());
                }
            });
        }
        let mut statuses = (0..200).map(|_| {
            wait(start_fork(|| {
                let reason = Database::builder(&path).open_blocking().unwrap_err().reason;
                assert!(matches!(reason, Reason::HeldByProcess { .. }), "{reason:?}");
            }))
        });
        let failed = statuses.find(|&status| status != 0);
        forks_are_done.store(true, Ordering::Relaxed);
        failed
    });
    assert_eq!(failed, None, "a fork failed, or hung (14)");
    close(&db, 0);
}

/// Opens the database, forks, and waits to be killed; the fork says that it is there, and waits to be told.
fn open_fork_and_wait(dir: &Path) {
    let _db = open(&dir.join("test.db"));
    let pid = start_fork(|| {
        println!("ready");
        let mut told = String::new();
        std::io::stdin().read_line(&mut told).unwrap();
    });
    wait(pid);
}

#[test]
fn a_fork_that_outlives_its_parent_does_not_keep_the_lock() {
    const TEST: &str = "a_fork_that_outlives_its_parent_does_not_keep_the_lock";
    if let Some(dir) = case() {
        return open_fork_and_wait(&dir);
    }
    let dir = tempfile::tempdir().unwrap();
    let mut parent: Child =
        own_process(TEST, dir.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let stdin = parent.stdin.take().unwrap();
    let mut lines = BufReader::new(parent.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("ready")));
    parent.kill().unwrap();
    parent.wait().unwrap();
    close(&open(&dir.path().join("test.db")), 0);
    // The fork was there all the time: its end of the pipe closes only now.
    drop(stdin);
    assert!(lines.next().is_none());
}
