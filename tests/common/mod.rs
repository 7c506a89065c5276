//! What the test files share: a database that checks itself, and a gate that holds its writer.
#![allow(
    dead_code,
    missing_docs,
    missing_debug_implementations,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "each test file uses a part of this"
)]

#[cfg(unix)]
pub(crate) mod disk;
#[cfg(unix)]
pub(crate) mod faults;
#[cfg(unix)]
pub(crate) mod foreign;
pub(crate) mod proof;

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use solewriter::{
    Command, Committed, Config, Database, Drain, Durability, Execute, Lane, Phase, Work, Write, WriteError,
    WriteTransaction,
};
use tempfile::TempDir;

/// No test takes this long unless something hangs.
pub(crate) const HANG: Duration = Duration::from_secs(30);

/// An open database in a directory of its own, with `t (id, x UNIQUE)`, `parent` and `child`, whose foreign
/// key is deferred.
///
/// When it goes away, SQLite checks the file; when the test has failed, the file is kept.
pub(crate) struct TestDb {
    db: Database,
    dir: Option<TempDir>,
}

impl TestDb {
    pub(crate) async fn open() -> Self {
        Self::open_with(|_| ()).await
    }

    pub(crate) async fn open_with(set: impl FnOnce(&mut Config)) -> Self {
        Self::open_prepared(set, |_| Ok(())).await
    }

    /// With something done to every connection before the service makes its own settings.
    pub(crate) async fn open_prepared(
        set: impl FnOnce(&mut Config),
        prepare: fn(&Connection) -> rusqlite::Result<()>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let builder = Database::builder(dir.path().join("test.db")).config(config_with(set));
        let db = builder.on_connect(move |connection, _| prepare(connection)).open().await.unwrap();
        db.write("schema", |tx| {
            tx.execute_batch(
                "CREATE TABLE t (id INTEGER PRIMARY KEY, x UNIQUE);
                 CREATE TABLE parent (id INTEGER PRIMARY KEY);
                 CREATE TABLE child (
                     parent INTEGER NOT NULL REFERENCES parent DEFERRABLE INITIALLY DEFERRED);",
            )
        })
        .await
        .unwrap();
        Self { db, dir: Some(dir) }
    }

    /// The values of `t`, in the order of their insertion.
    pub(crate) async fn xs(&self) -> Vec<i64> {
        let all = |tx: &solewriter::ReadTransaction<'_>| {
            tx.query_all("SELECT x FROM t ORDER BY id", (), |row| row.get(0))
        };
        self.db.read("xs", all).await.unwrap()
    }

    /// A connection that is none of the service's.
    pub(crate) fn plain(&self) -> Connection {
        plain(self.path())
    }

    pub(crate) fn wal_bytes(&self) -> u64 {
        std::fs::metadata(beside(self.path(), "-wal")).map_or(0, |wal| wal.len())
    }
}

impl Deref for TestDb {
    type Target = Database;

    fn deref(&self) -> &Database {
        &self.db
    }
}

impl Drop for TestDb {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let kept = self.dir.take().map(TempDir::keep);
            eprintln!("kept: {kept:?}");
            return;
        }
        self.db.blocking().shutdown(Drain::within(HANG)).expect("the service closes");
        check(self.path());
    }
}

/// Settings under which no slow machine ends a group before its time.
pub(crate) fn config_with(set: impl FnOnce(&mut Config)) -> Config {
    let calm = Duration::from_secs(20);
    let mut config = Config { group_hold_max: calm, bulk_hold_target: calm, ..Config::default() };
    set(&mut config);
    config
}

/// A directory in memory, where that is possible: what becomes of a disk is not the subject, or is made up.
pub(crate) fn in_memory_dir() -> TempDir {
    let (memory, mut named) = (Path::new("/dev/shm"), tempfile::Builder::new());
    named.prefix("solewriter-");
    if memory.is_dir() { named.tempdir_in(memory) } else { named.tempdir() }.unwrap()
}

pub(crate) fn plain(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(HANG).unwrap();
    connection
}

/// Fails unless SQLite finds the file intact and every foreign key satisfied.
pub(crate) fn check(path: &Path) {
    let connection = plain(path);
    let intact: String = connection.query_row("PRAGMA integrity_check", (), |row| row.get(0)).unwrap();
    assert_eq!(intact, "ok");
    let mut violations = connection.prepare("PRAGMA foreign_key_check").unwrap();
    assert!(!violations.exists(()).unwrap(), "a foreign key is violated");
}

/// The path of a file that SQLite or the service keeps beside the database.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

pub(crate) fn count(connection: &Connection) -> i64 {
    connection.query_row("SELECT count(*) FROM t", (), |row| row.get(0)).unwrap()
}

/// One statement that inserts `x`.
pub(crate) fn insert(db: &Database, x: i64) -> Write<'_, Execute> {
    db.execute("INSERT INTO t (x) VALUES (?1)", (x,))
}

/// Inserts `x` from inside a closure.
pub(crate) fn add(tx: &mut WriteTransaction<'_>, x: i64) -> rusqlite::Result<usize> {
    tx.execute("INSERT INTO t (x) VALUES (?1)", [x])
}

/// Waits for what must come soon.
pub(crate) async fn soon<F: IntoFuture>(future: F) -> F::Output {
    tokio::time::timeout(HANG, future.into_future()).await.expect("it hangs")
}

/// Waits until `holds` says so.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + HANG;
    while !holds() {
        assert!(Instant::now() < limit, "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A command that holds the writer until it is opened, or dropped.
pub(crate) struct Gate {
    label: String,
    release: mpsc::Sender<()>,
    held: Answer<()>,
}

impl Gate {
    /// Holds the writer in a group that takes in nobody else: what is sent meanwhile waits together and goes
    /// by lane and order afterwards.
    pub(crate) async fn close(db: &Database) -> Self {
        // Bulk, so that no other lane earns time by waiting for it; and a more demanding command, which all
        // others are, never joins.
        Self::line_up(db, Lane::Bulk, Durability::Normal).await.reached(db).await
    }

    /// Sends the gate to wait for its turn like any command.
    pub(crate) async fn line_up(db: &Database, lane: Lane, durability: Durability) -> Self {
        static GATES: AtomicU64 = AtomicU64::new(0);
        // A name of its own: the writer learns how long a label takes.
        let label = format!("gate-{}", GATES.fetch_add(1, Ordering::Relaxed));
        let (release, wait) = mpsc::channel::<()>();
        let command = db.write(label.clone(), move |_| {
            // An error means that the gate was dropped, which opens it too.
            let _is_dropped = wait.recv_timeout(HANG).is_err();
            Ok(())
        });
        let held = committed(command.lane(lane).durability(durability)).await;
        Self { label, release, held }
    }

    /// Waits until the gate holds the writer.
    pub(crate) async fn reached(self, db: &Database) -> Self {
        until("the gate holds the writer", || self.holds(db)).await;
        self
    }

    pub(crate) fn holds(&self, db: &Database) -> bool {
        let holder = db.holder().map(|holder| holder.phase);
        matches!(holder, Some(Phase::Command { label, .. }) if *label == *self.label)
    }

    /// Lets the writer go on, and waits for the commit of the gate's own group.
    pub(crate) async fn open(self) -> Committed<()> {
        self.release.send(()).unwrap();
        soon(self.held).await.unwrap()
    }
}

/// The typed command of these tests: inserts `x`.
#[derive(Serialize, Deserialize)]
pub(crate) struct Add {
    pub(crate) x: i64,
}

impl Command for Add {
    const NAME: &'static str = "t.add";
    type Output = usize;
    type Error = rusqlite::Error;

    fn apply(&self, tx: &mut WriteTransaction<'_>) -> rusqlite::Result<usize> {
        add(tx, self.x)
    }
}

/// The kinds of commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Once,
    Rerunnable,
    Typed,
    Statement,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Once, Self::Rerunnable, Self::Typed, Self::Statement];

    /// Submits a command of this kind that inserts `x`.
    pub(crate) async fn submit(self, db: &Database, x: i64) -> Answer {
        match self {
            Self::Once => committed(db.write("once", move |tx| add(tx, x))).await,
            Self::Rerunnable => committed(db.write_rerunnable("again", move |tx| add(tx, x))).await,
            Self::Typed => committed(db.send(Add { x })).await,
            Self::Statement => committed(insert(db, x)).await,
        }
    }
}

pub(crate) type Answer<T = usize> = Pin<Box<dyn Future<Output = Result<Committed<T>, WriteError>> + Send>>;

/// Submits a command and forgets its type.
pub(crate) async fn committed<W>(write: Write<'_, W>) -> Answer<W::Output>
where
    W: Work<Error = rusqlite::Error>,
{
    Box::pin(write.submit().await.unwrap().committed())
}
