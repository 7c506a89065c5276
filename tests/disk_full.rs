//! Honest Outcome and Self-Healing, where there is no space: writes are refused and come back by themselves, and
//! whatever was answered is true.
#![cfg(unix)]
#![allow(
    missing_docs,
    unsafe_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]
#![allow(clippy::async_yields_async, reason = "a command is sent first and waited for later")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::faults::{CrashImage, Fault, Faults, Of, Op, stored, xs};
use common::{Gate, HANG, Kind, check, committed, config_with, insert, plain, soon, until};
use rusqlite::ffi;
use solewriter::{Config, Database, Drain, NotStarted, Outcome, Retry, RolledBack, WriteError};

/// More than the cache holds, so that its pages go to the WAL before the COMMIT.
const LARGE: &str = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 300)
                     INSERT INTO big SELECT randomblob(3000) FROM n";

fn settings(config: &mut Config) {
    config.cache_bytes = 40_960;
    config.breaker_pause = Duration::from_millis(5);
}

fn no_space() -> Fault {
    Fault::new(Op::Write, Of::Wal, ffi::SQLITE_FULL)
}

fn close(db: &Database) {
    let report = db.blocking().shutdown(Drain::within(HANG)).unwrap();
    assert_eq!((report.stopped, report.wal_pages_left), (false, 0));
}

fn is_lost(error: &WriteError) {
    assert!(matches!(error, WriteError::RolledBack(RolledBack::GroupLost(_))), "{error:?}");
    assert_eq!((error.outcome(), error.retry()), (Outcome::RolledBack, Retry::Later));
    assert_eq!(error.sqlite_extended_code(), Some(ffi::SQLITE_FULL));
}

fn is_of_the_environment(error: &WriteError) {
    assert!(matches!(error, WriteError::RolledBack(RolledBack::Environment(_))), "{error:?}");
    assert_eq!((error.outcome(), error.retry()), (Outcome::RolledBack, Retry::Later));
    assert_eq!(error.sqlite_extended_code(), Some(ffi::SQLITE_FULL));
}

/// Writes are refused and reads go on, until there is space again.
async fn is_refused_until_there_is_space(db: &Database, faults: &Faults, seen: &[i64]) {
    until("writes are refused", || db.stats().is_refusing_writes).await;
    let refused = soon(insert(db, 99)).await.unwrap_err();
    assert!(matches!(refused, WriteError::NotStarted(NotStarted::DiskFull(_))), "{refused:?}");
    assert_eq!((refused.outcome(), refused.retry()), (Outcome::NotStarted, Retry::Later));
    assert_eq!(xs(db), seen, "reads go on");
    let probed = faults.failed();
    until("it probes again and again", || faults.failed() >= probed + 2).await;
    assert_eq!(CrashImage::take(db.path()).xs(), seen, "after a crash meanwhile");
    faults.heal();
    until("a probe brings writes back", || !db.stats().is_refusing_writes).await;
    insert(db, 99).await.unwrap();
}

#[tokio::test]
async fn no_space_at_commit_rolls_the_group_back_and_refuses_writes_until_there_is_some() {
    for spared in [0, 1, 3] {
        let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
        let db = faults.create(&dir, settings);
        let gate = Gate::close(&db).await;
        let mut sent = Vec::new();
        for (x, kind) in (1..).zip(Kind::ALL) {
            sent.push(kind.submit(&db, x).await);
        }
        faults.forget();
        faults.inject(no_space().after(spared));
        gate.open().await;
        for answer in sent {
            is_lost(&soon(answer).await.unwrap_err());
        }
        is_refused_until_there_is_space(&db, &faults, &[0]).await;
        close(&db);
        assert_eq!(stored(db.path()), [0, 99]);
    }
}

#[tokio::test]
async fn no_space_in_the_midst_of_a_statement_is_told_to_it_and_refuses_writes_until_there_is_some() {
    let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
    let db = faults.create(&dir, settings);
    db.execute("CREATE TABLE big (x)", ()).await.unwrap();
    let gate = Gate::close(&db).await;
    let once = Kind::Once.submit(&db, 1).await;
    let again = Kind::Statement.submit(&db, 2).await;
    let culprit = committed(db.execute(LARGE, ())).await;
    let late = Kind::Once.submit(&db, 3).await;
    faults.forget();
    faults.inject(no_space().after(9));
    gate.open().await;
    is_of_the_environment(&soon(culprit).await.unwrap_err());
    // Who has run can't be told that it has not, whether or not it could run again.
    is_lost(&soon(once).await.unwrap_err());
    is_lost(&soon(again).await.unwrap_err());
    // This one has not run.
    let late = soon(late).await.unwrap_err();
    assert!(matches!(late, WriteError::NotStarted(NotStarted::DiskFull(_))), "{late:?}");
    is_refused_until_there_is_space(&db, &faults, &[0]).await;
    assert_eq!(db.execute(LARGE, ()).await.unwrap(), 300);
    close(&db);
    assert_eq!(stored(db.path()), [0, 99]);
}

#[tokio::test]
async fn no_space_for_a_moment_costs_the_statement_only() {
    let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
    let db = faults.create(&dir, settings);
    db.execute("CREATE TABLE big (x)", ()).await.unwrap();
    let gate = Gate::close(&db).await;
    let again = Kind::Statement.submit(&db, 1).await;
    let culprit = committed(db.execute(LARGE, ())).await;
    let late = Kind::Once.submit(&db, 2).await;
    faults.inject(no_space().after(9).once());
    gate.open().await;
    is_of_the_environment(&soon(culprit).await.unwrap_err());
    soon(again).await.unwrap();
    soon(late).await.unwrap();
    assert!(!db.stats().is_refusing_writes);
    close(&db);
    assert_eq!(stored(db.path()), [0, 1, 2]);
}

// One large row and many small ones: SQLite rolls everything back for the one and only the statement for the
// other.
#[tokio::test]
async fn a_command_too_large_for_the_database_is_told_so_and_nobody_else_notices() {
    let large_row = "INSERT INTO big VALUES (zeroblob(4000000))";
    let many_rows = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 4000)
                     INSERT INTO big SELECT randomblob(1000) FROM n";
    let mut checks = 0;
    for sql in [large_row, many_rows] {
        for kind in [Kind::Once, Kind::Rerunnable, Kind::Statement] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("test.db");
            let schema = "CREATE TABLE t (id INTEGER PRIMARY KEY, x UNIQUE); CREATE TABLE big (x)";
            plain(&path).execute_batch(schema).unwrap();
            let builder = Database::builder(&path).config(config_with(|_| ())).on_connect(|connection, _| {
                connection.query_row("PRAGMA max_page_count = 200", (), |_| Ok(()))
            });
            let db = builder.open().await.unwrap();
            let gate = Gate::close(&db).await;
            let before = Kind::Statement.submit(&db, 1).await;
            let culprit = match kind {
                Kind::Once => committed(db.write("large", move |tx| tx.execute(sql, ()))).await,
                Kind::Rerunnable => {
                    committed(db.write_rerunnable("large", move |tx| tx.execute(sql, ()))).await
                }
                _ => committed(db.execute(sql, ())).await,
            };
            let after = Kind::Once.submit(&db, 2).await;
            gate.open().await;
            is_of_the_environment(&soon(culprit).await.unwrap_err());
            soon(before).await.unwrap();
            soon(after).await.unwrap();
            assert!(!db.stats().is_refusing_writes, "{kind:?}");
            assert_eq!(xs(&db), [1, 2]);
            close(&db);
            assert_eq!(stored(&path), [1, 2]);
            checks += 3;
        }
    }
    println!("disk_full: cases=6 checks={checks} lost=0 half=0 ghost=0");
}

/// What a series of commands was told, to be compared with the file.
#[derive(Default)]
struct Told {
    committed: Vec<i64>,
    not_applied: Vec<i64>,
    unknown: Vec<i64>,
}

/// Writes the same number into two tables, with a blob that takes some space.
fn pair(db: &Database, x: i64) -> Result<(), WriteError> {
    let blocking = db.blocking();
    let both = blocking.write("pair", move |tx| {
        tx.execute("INSERT INTO a (x, space) VALUES (?1, randomblob(20000))", [x])?;
        tx.execute("INSERT INTO b (x) VALUES (?1)", [x])?;
        Ok(())
    });
    both.wait()
}

impl Told {
    fn send(&mut self, db: &Database, x: i64) -> Result<(), WriteError> {
        let answer = pair(db, x);
        match answer.as_ref().err().map(WriteError::outcome) {
            None => self.committed.push(x),
            Some(Outcome::Unknown) => self.unknown.push(x),
            Some(Outcome::NotStarted | Outcome::RolledBack) => self.not_applied.push(x),
        }
        answer
    }

    /// Compares with the file, and tells how many were lost, half there, or back.
    fn compare(&self, path: &Path, what: &str) {
        check(path);
        let connection = plain(path);
        let all = |table| -> Vec<i64> {
            let mut rows = connection.prepare(&format!("SELECT x FROM {table} ORDER BY x")).unwrap();
            rows.query_map((), |row| row.get(0)).unwrap().map(Result::unwrap).collect()
        };
        let (a, b) = (all("a"), all("b"));
        let count = |xs: &[i64], wrong: &dyn Fn(&i64) -> bool| xs.iter().filter(|x| wrong(x)).count();
        let lost = count(&self.committed, &|x| !a.contains(x));
        let half = count(&a, &|x| !b.contains(x)) + count(&b, &|x| !a.contains(x));
        let ghost = count(&self.not_applied, &|x| a.contains(x));
        let checks = self.committed.len() + self.not_applied.len() + a.len() + b.len();
        let (acked, unknown) = (self.committed.len(), self.unknown.len());
        println!(
            "disk_full: {what} cases=1 checks={checks} acked={acked} unknown={unknown} lost={lost} half={half} ghost={ghost}"
        );
        assert_eq!((lost, half, ghost), (0, 0, 0));
    }
}

fn pairs(path: &Path) {
    plain(path)
        .execute_batch(
            "CREATE TABLE a (x INTEGER PRIMARY KEY, space);
             CREATE TABLE b (x INTEGER PRIMARY KEY, y DEFAULT (randomblob(100)))",
        )
        .unwrap();
}

/// A file system of a few megabytes, which goes away with this.
struct TinyDisk(tempfile::TempDir);

impl TinyDisk {
    /// The reason if there can be none.
    fn mount() -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"]).arg(dir.path());
        match mount.output() {
            Ok(output) if output.status.success() => Ok(Self(dir)),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("test.db")
    }

    /// Takes all the space that is left.
    fn fill(&self) -> PathBuf {
        let ballast = self.0.path().join("ballast");
        let full = std::fs::write(&ballast, vec![1; 16 << 20]).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        ballast
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_disk_that_fills_up_and_is_freed_loses_nothing_and_is_written_again() {
    let disk = match TinyDisk::mount() {
        Ok(disk) => disk,
        Err(reason) => return println!("SKIP: no tmpfs can be mounted: {reason}"),
    };
    let path = disk.path();
    pairs(&path);
    let db = Database::builder(&path).config(config_with(settings)).open_blocking().unwrap();
    let (mut told, mut x) = (Told::default(), 0);
    for _ in 0..3 {
        // By its own doing first, then by another file that takes what is left.
        let ballast = (x > 0).then(|| disk.fill());
        let refused = loop {
            x += 1;
            if let Err(error) = told.send(&db, x) {
                break error;
            }
            assert!(x < 1_000, "it never fills up");
        };
        assert!(matches!(refused.outcome(), Outcome::RolledBack | Outcome::NotStarted), "{refused:?}");
        assert_eq!(refused.retry(), Retry::Later, "{refused:?}");
        x += 1;
        // A command that needs a page less than the one before may still find it.
        if let Err(refused) = told.send(&db, x) {
            assert_eq!(refused.retry(), Retry::Later, "{refused:?}");
        }
        let reads = |tx: &solewriter::ReadTransaction<'_>| {
            tx.query_row("SELECT count(*) FROM a", (), |row| row.get::<_, i64>(0))
        };
        assert_eq!(db.read("reads go on", reads).await.unwrap(), told.committed.len() as i64);
        match ballast {
            Some(ballast) => std::fs::remove_file(ballast).unwrap(),
            // What makes room here is the operator, who grants more.
            None => {
                let mut mount = Command::new("mount");
                mount.args(["-o", "remount,size=6m"]).arg(disk.0.path());
                assert!(mount.status().unwrap().success());
            }
        }
        until("a probe brings writes back", || !db.stats().is_refusing_writes).await;
        x += 1;
        told.send(&db, x).unwrap();
    }
    assert!(!db.blocking().shutdown(Drain::within(HANG)).unwrap().stopped);
    told.compare(&path, "tmpfs resumed=3");
}

const LIMITED: &str = "SOLEWRITER_TEST_FILE_SIZE_LIMIT";

// The limit is of a whole process, so the test runs itself anew as a child, which ignores the signal that would
// end it.
#[test]
fn a_limit_of_the_size_of_files_is_met_like_a_failing_disk() {
    if let Ok(path) = std::env::var(LIMITED) {
        return write_up_to_the_limit(Path::new(&path));
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    pairs(&path);
    let this = std::thread::current().name().unwrap().to_owned();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &this, "--nocapture", "--test-threads=1"])
        .env(LIMITED, &path)
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{output}\n{}", String::from_utf8_lossy(&child.stderr));
    let numbers = |what: &str| -> Vec<i64> {
        let line = output.lines().find_map(|line| line.split(what).nth(1)).expect("the child tells");
        line.split_whitespace().map(|x| x.parse().unwrap()).collect()
    };
    let told = Told {
        committed: numbers("committed:"),
        not_applied: numbers("not applied:"),
        unknown: numbers("unknown:"),
    };
    assert!(told.committed.len() > 10 && told.not_applied.len() + told.unknown.len() > 10);
    told.compare(&path, "rlimit");
}

fn write_up_to_the_limit(path: &Path) {
    let db = Database::builder(path).config(config_with(settings)).open_blocking().unwrap();
    // SAFETY: plain calls of the system, with a value on the stack; no handler runs for an ignored signal.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
    }
    let mut told = Told::default();
    for x in 1..=100 {
        if let Err(error) = told.send(&db, x) {
            assert_ne!(error.outcome() == Outcome::Unknown, error.retry() == Retry::Later, "{error:?}");
            println!("{error}");
        }
    }
    let report = db.blocking().shutdown(Drain::within(HANG)).unwrap();
    println!("{report:?}");
    for (what, xs) in
        [("committed:", &told.committed), ("not applied:", &told.not_applied), ("unknown:", &told.unknown)]
    {
        let xs: Vec<_> = xs.iter().map(i64::to_string).collect();
        println!("{what} {}", xs.join(" "));
    }
}
