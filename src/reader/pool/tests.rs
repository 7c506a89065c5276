#![allow(clippy::unwrap_used, clippy::mem_forget)]

use std::path::Path;
use std::pin::Pin;
use std::sync::mpsc;

use super::*;
use crate::connection::{self, Role};
use crate::error::ReadError;
use crate::reader::{HeldSnapshot, Request};
use crate::sync::block_on_until;
use crate::transaction::ReadTransaction;
use crate::write::OnDrop;

/// No test takes this long unless something hangs.
const HANG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(20);

const ENDLESS: &str =
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";

/// The answer of a read that has been asked for.
type Answer<T> = Pin<Box<dyn Future<Output = Result<T, ReadError>>>>;

struct TestPool {
    pool: Arc<ReaderPool>,
    writer: Connection,
    dir: tempfile::TempDir,
}

impl TestPool {
    fn open() -> Self {
        Self::with_readers(2)
    }

    fn with_readers(readers: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let location = Location::new(&dir.path().join("test.db"));
        let config = Config { readers, readers_overflow: 1, ..Config::default() };
        std::fs::write(&location.path, "").unwrap();
        let writer = connection::open(&location, Role::Writer, &config, &|| Ok(())).unwrap();
        writer.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1)").unwrap();
        Self { pool: ReaderPool::open(location, config).unwrap(), writer, dir }
    }

    fn read<T: Send + 'static>(
        &self,
        label: &'static str,
        closure: impl FnOnce(&ReadTransaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Answer<T> {
        let read = self.pool.read(request(label), closure);
        if let Some(waiting) = &read.waiting {
            waiting.hurry();
        }
        Box::pin(async { read.answered(after(HANG)).await.unwrap() })
    }

    /// A read that runs a statement that never ends.
    fn endless(&self, label: &'static str) -> Answer<i64> {
        let (reading, begun) = mpsc::channel();
        let read = self.read(label, move |tx| {
            reading.send(()).unwrap();
            tx.query_row(ENDLESS, (), |row| row.get(0))
        });
        begun.recv_timeout(HANG).unwrap();
        read
    }

    fn snapshot(&self) -> HeldSnapshot {
        self.pool.hold("snapshot".into(), Instant::now(), HANG).wait(after(HANG)).unwrap().unwrap().unwrap()
    }
}

fn request(label: &'static str) -> Request {
    Request { label: label.into(), asked: Instant::now(), deadline: None, on_drop: OnDrop::Finish }
}

fn answer<T>(running: impl Future<Output = T>) -> T {
    block_on_until(running, after(HANG)).unwrap()
}

fn one(tx: &ReadTransaction<'_>) -> rusqlite::Result<i64> {
    tx.query_row("SELECT x FROM t", (), |row| row.get(0))
}

/// How many files of the directory this process has open.
fn open_files(directory: &Path) -> usize {
    let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    open.filter_map(|file| std::fs::read_link(file.path()).ok())
        .filter(|to| to.starts_with(directory))
        .count()
}

// Reads                       Writer thread
// one idle, one snapshot over
//                             suspend → nothing is open, the WAL is as it was
// a read is asked for: waits
//                             the guard is dropped
// the read runs
#[test]
fn a_suspended_pool_has_no_connection_leaves_the_wal_and_lets_reads_wait() {
    let db = TestPool::open();
    assert_eq!(answer(db.read("before", one)).unwrap(), 1);
    drop(db.snapshot());
    let suspended = db.pool.suspend(after(HANG)).unwrap();
    connection::leave_wal_alone(&db.writer);
    let TestPool { pool, writer, dir } = db;
    assert!(connection::close(writer));
    assert_eq!(open_files(dir.path()), 0);
    let wal = dir.path().join("test.db-wal");
    assert!(std::fs::metadata(&wal).unwrap().len() > 0, "no checkpoint has run");

    let writer = connection::open(&pool.location, Role::Writer, &pool.config, &|| Ok(())).unwrap();
    let db = TestPool { pool, writer, dir };
    let mut waiting = db.read("waits", one);
    assert!(block_on_until(&mut waiting, after(SHORT)).is_none());
    drop(suspended);
    assert_eq!(answer(waiting).unwrap(), 1);
}

// Reads                          Writer thread
// SELECT, for ever; a snapshot
//                                suspend: waits until its limit, then ends both
// Ended, SnapshotEnded
#[test]
fn suspending_waits_for_reads_and_snapshots_until_its_limit_and_then_ends_them() {
    let db = TestPool::open();
    let endless = db.endless("endless");
    let snapshot = db.snapshot();
    let began = Instant::now();
    let suspended = db.pool.suspend(after(2 * SHORT));
    assert!(suspended.is_some() && began.elapsed() >= 2 * SHORT);
    assert_eq!(lock(&db.pool.state).open, 0);
    let ended = answer(endless).unwrap_err();
    assert!(matches!(ended, ReadError::Ended { why: ReadEnd::Reopened, .. }), "{ended:?}");
    let request =
        Request { label: "late".into(), asked: Instant::now(), deadline: None, on_drop: OnDrop::Finish };
    let ended = answer(answer(snapshot.turn()).read(request, one)).unwrap_err();
    assert!(matches!(ended, ReadError::SnapshotEnded { why: ReadEnd::Reopened, .. }), "{ended:?}");
    drop(suspended);
    assert_eq!(answer(db.read("after", one)).unwrap(), 1);
}

// Reads
// gated, endless, endless: every connection is in use
// withdrawn, one, two: in the queue
// withdrawn is dropped
// the gate opens: the reader of gated runs one, then two
#[test]
fn a_reader_that_has_done_its_work_takes_what_has_waited_longest_and_still_is_wanted() {
    let db = TestPool::open();
    let (open_gate, gate) = mpsc::channel();
    let gated = db.read("gated", move |_| Ok(gate.recv_timeout(HANG).is_ok()));
    let endless = ["second", "third"].map(|label| db.endless(label));
    let (ran, order) = mpsc::channel();
    let waits = ["withdrawn", "one", "two"].map(|label| {
        let ran = ran.clone();
        db.read(label, move |_| Ok(ran.send(label).is_ok()))
    });
    assert_eq!(lock(&db.pool.state).queue.len(), 3);
    let [withdrawn, one, two] = waits;
    drop(withdrawn);
    assert_eq!(lock(&db.pool.state).queue.len(), 2, "what nobody waits for leaves the queue");
    open_gate.send(()).unwrap();
    assert!(answer(two).unwrap() && answer(one).unwrap() && answer(gated).unwrap());
    assert_eq!(order.try_iter().collect::<Vec<_>>(), ["one", "two"]);
    db.pool.pins().end_all(ReadEnd::Closed);
    for read in endless {
        assert!(answer(read).is_err());
    }
    assert!(db.pool.wait_until(after(HANG), |state| state.open == 2), "the one too many is closed");
}

// Reads
// one after the other, the last a moment ago; as many as there are cores run
// another one: waits for them, though a connection is idle
// a while later it counts on them no more
#[test]
fn where_all_cores_read_a_read_waits_for_the_readers_at_work_but_not_for_long() {
    let cores = available_parallelism().unwrap().get();
    let db = TestPool::with_readers(cores + 1);
    let endless: Vec<_> = (0..cores).map(|_| db.endless("endless")).collect();
    lock(&db.pool.state).came = Some(after(HANG));
    let read = db.pool.read(request("counts on them"), one);
    assert_eq!(lock(&db.pool.state).idle.len(), 1);
    assert_eq!(lock(&db.pool.state).queue.len(), 1);
    assert_eq!(read.wait(after(HANG)).unwrap().unwrap(), 1);

    lock(&db.pool.state).came = Instant::now().checked_sub(MOMENT);
    let read = db.pool.read(request("does not"), one);
    assert!(read.waiting.is_none(), "the reader at work has not come for a while");
    assert_eq!(read.wait(after(HANG)).unwrap().unwrap(), 1);
    db.pool.pins().end_all(ReadEnd::Closed);
    for read in endless {
        assert!(answer(read).is_err());
    }
}

#[test]
fn user_code_that_does_not_return_keeps_the_pool_from_being_suspended_and_reads_go_on() {
    let db = TestPool::open();
    let (go_on, wait) = mpsc::channel::<()>();
    let holds = db.read("holds", move |_| Ok(wait.recv_timeout(HANG).is_ok()));
    assert!(db.pool.suspend(after(SHORT)).is_none());
    assert_eq!(answer(db.read("after", one)).unwrap(), 1);
    go_on.send(()).unwrap();
    assert!(answer(holds).unwrap());
    assert!(db.pool.suspend(after(HANG)).is_some());
}

#[test]
fn a_connection_with_a_leaked_statement_is_closed_like_any_other() {
    let db = TestPool::open();
    let leaks = db.read("leaks", |tx| {
        std::mem::forget(tx.prepare("SELECT x FROM t")?);
        Ok(())
    });
    answer(leaks).unwrap();
    drop(db.pool.suspend(after(HANG)).unwrap());
    assert_eq!(answer(db.read("after", one)).unwrap(), 1);
}

// Reads                     Writer thread
// old: SELECT, for ever
// snapshot: idle
// (time passes)
// young: SELECT, for ever
//                           ends what is older than the snapshot
// old, snapshot: WalLimit
//                           (young still runs)
#[test]
fn what_is_older_than_an_age_is_ended_and_what_is_younger_is_not() {
    let db = TestPool::open();
    let old = db.endless("old");
    let snapshot = db.snapshot();
    std::thread::sleep(2 * SHORT);
    let young = db.endless("young");
    let pins = db.pool.pins();
    assert_eq!(&*pins.oldest().unwrap().label, "old");
    assert_eq!(pins.end_older_than(snapshot.age() - SHORT), 2);
    let ended = answer(old).unwrap_err();
    assert!(matches!(ended, ReadError::Ended { why: ReadEnd::WalLimit, .. }), "{ended:?}");
    while &*pins.oldest().unwrap().label != "young" {
        assert!(snapshot.age() < HANG, "the snapshot does not end");
        std::thread::yield_now();
    }
    assert!(block_on_until(young, after(SHORT)).is_none(), "the young one goes on");
    assert_eq!(answer(db.read("next", one)).unwrap(), 1, "the next read is not meant");
    pins.end_all(ReadEnd::Closed);
}
