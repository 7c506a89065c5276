//! The pool: a bounded checkout in front of connections that have no bound of their own.
//!
//! A connection goes back into the pool on its own thread, right after the closure and before the answer: so
//! a caller that drops its future neither loses the connection nor hands it out while it is still at work.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_rusqlite::Connection as ReaderThread;

use super::pins::{Pin, Pins, Wake};
use super::thread::{Counted, Reader, post};
use crate::config::Config;
use crate::connection::Location;
use crate::error::{Cause, OpenErrorReason, ReadEnd};
use crate::identity::FileIdentities;
use crate::label::Label;
use crate::stats::{DurationHistogram, Stats};
use crate::sync::{after, block_on, lock};

/// How long reads that were ended have to come to an end.
const END_GRACE: Duration = Duration::from_millis(500);

pub(crate) struct ReaderPool {
    location: Location,
    config: Config,
    /// One permit for each read that may run at a time.
    permits: Arc<Semaphore>,
    pins: Arc<Pins>,
    /// The files that the service has open, `None` if they could not be looked at.
    files: Mutex<Option<FileIdentities>>,
    state: Mutex<PoolState>,
    /// Told when a connection has been closed or given back.
    given_back: Condvar,
    /// Told when reads may begin again.
    resumed: Notify,
    /// Whether a connection could not be closed.
    leaked: AtomicBool,
    wait: Mutex<DurationHistogram>,
    reads: AtomicU64,
}

#[derive(Default)]
struct PoolState {
    /// The most recently used last: its caches are warm, so it goes first.
    idle: Vec<Reader>,
    /// Idle, in use, and being opened or closed.
    open: usize,
    /// No read may begin for now.
    suspended: bool,
    closed: bool,
}

impl PoolState {
    fn in_use(&self) -> usize {
        self.open - self.idle.len()
    }
}

impl ReaderPool {
    pub(crate) fn open(location: Location, config: Config) -> Result<Arc<Self>, OpenErrorReason> {
        let pool = Arc::new(Self {
            permits: Arc::new(Semaphore::new(config.readers + config.readers_overflow)),
            files: Mutex::new(FileIdentities::record(&location.path).ok()),
            location,
            config,
            pins: Arc::default(),
            state: Mutex::default(),
            given_back: Condvar::new(),
            resumed: Notify::new(),
            leaked: AtomicBool::new(false),
            wait: Mutex::default(),
            reads: AtomicU64::new(0),
        });
        for _ in 0..pool.config.readers {
            pool.open_idle()?;
        }
        Ok(pool)
    }

    fn open_idle(self: &Arc<Self>) -> Result<(), OpenErrorReason> {
        lock(&self.state).open += 1;
        let mut reader = self.start_reader().map_err(OpenErrorReason::Sqlite)?;
        let (pool, thread) = (self.clone(), reader.thread.clone());
        let opened = block_on(thread.call(move |connection| {
            reader.open(connection, &pool, pool.config.busy_timeout).map(|()| reader)
        }));
        let reader = opened.map_err(|error| match error {
            tokio_rusqlite::Error::Error(reason) => reason,
            _ => OpenErrorReason::Io(std::io::Error::other("the thread of a reader ended")),
        })?;
        lock(&self.state).idle.push(reader);
        Ok(())
    }

    /// The caller has counted it as open.
    fn start_reader(self: &Arc<Self>) -> Result<Reader, Cause> {
        Reader::start(Counted::new(Arc::downgrade(self)))
    }

    /// Waits for a connection to read with. First come, first served.
    ///
    /// Cancel safety: dropped before it is ready, nothing is taken.
    pub(crate) async fn check_out(self: &Arc<Self>) -> Result<CheckedOut, CheckOutError> {
        let asked = Instant::now();
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| CheckOutError::Closed)?;
        let reader = loop {
            // Made before the look, so that no word to go on is missed in between.
            let resumed = self.resumed.notified();
            if let Some(reader) = self.take_reader()? {
                break reader;
            }
            resumed.await;
        };
        lock(&self.wait).record(asked.elapsed());
        Ok(CheckedOut { pool: self.clone(), reader: Some(reader), _permit: permit })
    }

    /// The connection to use next, or one to be opened; `None` while the pool is suspended.
    fn take_reader(self: &Arc<Self>) -> Result<Option<Reader>, CheckOutError> {
        let mut state = lock(&self.state);
        if state.closed {
            return Err(CheckOutError::Closed);
        }
        if state.suspended {
            return Ok(None);
        }
        let mut old = Vec::new();
        while let Some(reader) = state.idle.pop() {
            if reader.is_younger_than(self.config.reader_age_max) {
                drop(state);
                self.close_all(old);
                return Ok(Some(reader));
            }
            old.push(reader);
        }
        state.open += 1;
        drop(state);
        self.close_all(old);
        self.start_reader().map(Some).map_err(CheckOutError::Connection)
    }

    /// On the thread of the reader, which runs no user code any more.
    fn check_in(&self, reader: Reader, connection: &mut Connection, fit: bool) {
        let surplus = if fit { self.make_idle(reader) } else { Some(reader) };
        if let Some(reader) = surplus {
            reader.close(connection, self);
        }
    }

    /// As `check_in`, on any thread, for a reader that was not used.
    fn give_back(self: &Arc<Self>, reader: Reader) {
        self.close_all(self.make_idle(reader));
    }

    /// Takes a reader back; returns it if it is to be closed.
    fn make_idle(&self, reader: Reader) -> Option<Reader> {
        let mut state = lock(&self.state);
        let young = reader.is_younger_than(self.config.reader_age_max);
        if !young || state.closed || state.suspended || state.idle.len() >= self.config.readers {
            return Some(reader);
        }
        state.idle.push(reader);
        drop(state);
        self.given_back.notify_all();
        None
    }

    /// Lets the threads of these readers close their connections.
    fn close_all(self: &Arc<Self>, readers: impl IntoIterator<Item = Reader>) {
        for reader in readers {
            let (pool, thread) = (self.clone(), reader.thread.clone());
            post(&thread, move |connection| reader.close(connection, &pool));
        }
    }

    /// Fails if one of the names leads to another file by now: what is opened there is not the database.
    pub(super) fn check_files(&self) -> Result<(), Cause> {
        lock(&self.files).as_ref().map_or(Ok(()), |files| files.check().map_err(Cause::from))
    }

    pub(super) fn count_closed(&self) {
        lock(&self.state).open -= 1;
        self.given_back.notify_all();
    }

    /// Takes note of whether a connection is really closed.
    pub(super) fn note_closed(&self, closed: bool) {
        if !closed {
            self.leaked.store(true, Ordering::Release);
        }
    }

    pub(super) fn count_read(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    /// Who reads now.
    pub(crate) fn pins(&self) -> Arc<Pins> {
        self.pins.clone()
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    pub(super) fn location(&self) -> &Location {
        &self.location
    }

    /// Waits until `limit` for the pool to become so; false if it did not.
    fn wait_until(&self, limit: Instant, holds: impl Fn(&PoolState) -> bool) -> bool {
        let mut state = lock(&self.state);
        while !holds(&state) {
            let left = limit.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.given_back.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Takes what is idle out of the pool and closes it.
    fn close_idle(self: &Arc<Self>, mut state: MutexGuard<'_, PoolState>) {
        let idle = std::mem::take(&mut state.idle);
        drop(state);
        self.close_all(idle);
    }

    /// Closes every connection, without a checkpoint, and lets no read begin until the guard is dropped; those
    /// that are asked for wait, first come, first served.
    ///
    /// Waits until `limit` for the reads that run and for the snapshots that are held, then ends them. `None`
    /// if user code still holds a connection a moment later, or one could not be closed: reads go on then, and a
    /// connection to the file may be open.
    pub(crate) fn suspend(self: &Arc<Self>, limit: Instant) -> Option<Suspended> {
        lock(&self.state).suspended = true;
        // From here on, so that reads go on whatever happens.
        let suspended = Suspended { pool: self.clone() };
        if !self.wait_until(limit, |state| state.in_use() == 0) {
            self.pins.end_all(ReadEnd::Reopened);
        }
        self.close_idle(lock(&self.state));
        let all_closed = self.wait_until(after(END_GRACE), |state| state.open == 0);
        (all_closed && !self.leaked.load(Ordering::Acquire)).then_some(suspended)
    }

    /// Lets no more reads begin, ends snapshots, and waits for the reads that run; shortly before `limit` they
    /// are ended too.
    pub(crate) fn close(self: &Arc<Self>, limit: Instant) {
        self.permits.close();
        let mut state = lock(&self.state);
        state.closed = true;
        self.close_idle(state);
        self.resumed.notify_waiters();
        self.pins.end_snapshots(ReadEnd::Closed);
        let patience = limit.checked_sub(END_GRACE).unwrap_or(limit);
        if self.wait_until(patience, |state| state.open == 0) {
            return;
        }
        self.pins.end_all(ReadEnd::Closed);
        if !self.wait_until(limit, |state| state.open == 0) {
            let readers = lock(&self.state).open;
            tracing::warn!(readers, "reads still run while the database is closed");
        }
    }

    /// Sets what is known here; returns the distribution of the waits.
    pub(crate) fn measure(&self, stats: &mut Stats) -> DurationHistogram {
        let wait = lock(&self.wait).clone();
        stats.reads = self.reads.load(Ordering::Relaxed);
        stats.read_wait = wait.summary();
        let state = lock(&self.state);
        stats.readers_open = state.open;
        stats.readers_in_use = state.in_use();
        wait
    }
}

/// While this lives, the pool has no connection and lets no read begin.
#[must_use = "reads go on when this is dropped"]
pub(crate) struct Suspended {
    pool: Arc<ReaderPool>,
}

impl Suspended {
    /// The database has been opened anew: with every connection closed, another process may have emptied the WAL
    /// and deleted it.
    pub(crate) fn opened_anew(&self) {
        *lock(&self.pool.files) = FileIdentities::record(&self.pool.location.path).ok();
    }
}

impl Drop for Suspended {
    fn drop(&mut self) {
        lock(&self.pool.state).suspended = false;
        self.pool.resumed.notify_waiters();
    }
}

/// Why there is no connection to read with.
pub(crate) enum CheckOutError {
    Closed,
    Connection(Cause),
}

/// The right to one read or one snapshot, and the connection for it.
pub(crate) struct CheckedOut {
    pool: Arc<ReaderPool>,
    /// Taken when it goes to work.
    reader: Option<Reader>,
    _permit: OwnedSemaphorePermit,
}

impl CheckedOut {
    pub(super) fn pool(&self) -> &Arc<ReaderPool> {
        &self.pool
    }

    /// Sends work to the thread of the connection. What it was checked out for is registered as this pin.
    ///
    /// The work returns whether the connection is fit for the next read, and what is left to do once it has
    /// been given back: to answer.
    pub(super) fn work<A: FnOnce()>(
        mut self,
        label: Label,
        wake: Option<Wake>,
        work: impl FnOnce(&mut Reader, &mut Connection, &Pin, &Arc<ReaderPool>) -> (bool, A) + Send + 'static,
    ) {
        let Some(mut reader) = self.reader.take() else { return };
        let pin = self.pool.pins.add(label, &reader.watchdog, wake);
        let thread: ReaderThread = reader.thread.clone();
        post(&thread, move |connection| {
            let (fit, answer) = work(&mut reader, connection, &pin, &self.pool);
            drop(pin);
            self.pool.check_in(reader, connection, fit);
            drop(self);
            answer();
        });
    }
}

/// A connection that was not used after all goes back.
impl Drop for CheckedOut {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.take() {
            self.pool.give_back(reader);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::mem_forget)]

    use std::path::Path;
    use std::pin::pin;
    use std::sync::mpsc;

    use super::*;
    use crate::connection::{self, Role};
    use crate::error::ReadError;
    use crate::reader::{HeldSnapshot, Request, Running};
    use crate::sync::block_on_until;
    use crate::transaction::ReadTransaction;
    use crate::write::OnDrop;

    /// No test takes this long unless something hangs.
    const HANG: Duration = Duration::from_secs(30);
    const SHORT: Duration = Duration::from_millis(20);

    const ENDLESS: &str =
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";

    struct TestPool {
        pool: Arc<ReaderPool>,
        writer: Connection,
        dir: tempfile::TempDir,
    }

    impl TestPool {
        fn open() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let location = Location::new(&dir.path().join("test.db"));
            let config = Config { readers: 2, readers_overflow: 1, ..Config::default() };
            std::fs::write(&location.path, "").unwrap();
            let writer = connection::open(&location, Role::Writer, &config, &|| Ok(())).unwrap();
            writer.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1)").unwrap();
            Self { pool: ReaderPool::open(location, config).unwrap(), writer, dir }
        }

        fn check_out(&self) -> CheckedOut {
            block_on_until(self.pool.check_out(), after(HANG)).unwrap().ok().unwrap()
        }

        fn read<T: Send + 'static>(
            &self,
            label: &'static str,
            closure: impl FnOnce(&ReadTransaction<'_>) -> rusqlite::Result<T> + Send + 'static,
        ) -> Running<T, rusqlite::Error> {
            self.check_out().read(request(label), closure)
        }

        /// A read that runs a statement that never ends.
        fn endless(&self, label: &'static str) -> Running<i64, rusqlite::Error> {
            let (reading, begun) = mpsc::channel();
            let read = self.read(label, move |tx| {
                reading.send(()).unwrap();
                tx.query_row(ENDLESS, (), |row| row.get(0))
            });
            begun.recv_timeout(HANG).unwrap();
            read
        }

        fn snapshot(&self) -> HeldSnapshot {
            answer(self.check_out().hold("snapshot".into(), HANG)).unwrap().unwrap()
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
        let mut waiting = pin!(db.pool.check_out());
        assert!(block_on_until(waiting.as_mut(), after(SHORT)).is_none());
        drop(suspended);
        let reader = answer(waiting).ok().unwrap();
        assert_eq!(answer(reader.read(request("waits"), one)).unwrap(), 1);
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

    #[test]
    fn a_connection_that_is_not_used_after_all_goes_back() {
        let db = TestPool::open();
        for _ in 0..10 {
            drop([db.check_out(), db.check_out(), db.check_out()]);
        }
        assert_eq!(lock(&db.pool.state).idle.len(), 2);
        assert!(db.pool.wait_until(after(HANG), |state| state.open == 2), "the one too many is closed");
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
}
