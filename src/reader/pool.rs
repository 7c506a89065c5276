//! The pool: one queue of reads in front of connections that have no bound of their own.
//!
//! A reader that has done its work looks into the queue itself, on its own thread, right after the closure and
//! before the answer. So a caller that drops its future neither loses the connection nor hands it out while it is
//! still at work; and under load nobody has to wake a reader.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::pins::{Pin, Pins, Wake};
use super::thread::{Counted, Reader, post};
use super::waiting::Waiting;
use crate::config::Config;
use crate::connection::Location;
use crate::error::{Cause, OpenErrorReason, ReadEnd};
use crate::identity::FileIdentities;
use crate::label::Label;
use crate::stats::{DurationHistogram, Stats};
use crate::sync::{after, block_on, drop_quietly, lock};

/// How long reads that were ended have to come to an end.
const END_GRACE: Duration = Duration::from_millis(500);
/// Where a reader has looked for work within this time, reads are short, and the next one comes in a moment.
const MOMENT: Duration = Duration::from_micros(200);

pub(crate) struct ReaderPool {
    location: Location,
    config: Config,
    /// As many reads as this can run at the same time; more only take turns.
    cores: usize,
    pins: Arc<Pins>,
    /// The files that the service has open, `None` if they could not be looked at.
    files: Mutex<Option<FileIdentities>>,
    state: Mutex<PoolState>,
    /// Told when a connection has been closed or given back.
    given_back: Condvar,
    /// Whether a connection could not be closed.
    leaked: AtomicBool,
    reads: AtomicU64,
}

#[derive(Default)]
struct PoolState {
    /// The most recently used last: its caches are warm, so it goes first.
    idle: Vec<Reader>,
    /// Idle, in use, and being opened or closed.
    open: usize,
    /// How many of those in use hold a snapshot, and mostly do nothing.
    snapshots: usize,
    /// What waits for a reader, by its number in the order of arrival.
    queue: BTreeMap<u64, Queued>,
    next_number: u64,
    /// When a reader has last come for more work.
    came: Option<Instant>,
    wait: DurationHistogram,
    /// No read may begin for now.
    suspended: bool,
    closed: bool,
}

/// A read, or a snapshot with all its reads.
pub(super) trait Work: Send {
    /// Runs on the thread of a reader. Returns whether the connection is fit for the next read.
    fn run(
        &mut self,
        reader: &mut Reader,
        connection: &mut Connection,
        pin: &Pin,
        pool: &Arc<ReaderPool>,
    ) -> bool;

    /// What is left to do once the connection has been given back.
    fn answer(self: Box<Self>);

    /// Answers instead of running, since there is no reader.
    fn refuse(self: Box<Self>, cause: Cause);
}

/// Work on its way to a reader.
pub(super) struct Order {
    pub(super) label: Label,
    pub(super) asked: Instant,
    /// Tells the thread of a snapshot, which may be waiting for the next read.
    pub(super) wake: Option<Wake>,
    pub(super) work: Box<dyn Work>,
}

struct Queued {
    order: Order,
    /// It has waited long enough for the readers at work.
    hurried: bool,
}

/// Work with its reader, registered as this pin.
struct Assigned {
    reader: Reader,
    work: Box<dyn Work>,
    pin: Pin,
}

/// What becomes of a reader that has done its work.
enum Next {
    Work(Assigned),
    Idle,
    Close(Reader),
}

/// A reader that is free, or the right to start one, which is counted as open.
enum Free {
    Idle(Reader),
    New,
}

impl PoolState {
    fn in_use(&self) -> usize {
        self.open - self.idle.len()
    }

    /// Whether to wait for a reader at work: it is there sooner than another one is woken, and where all cores
    /// read already, another one would only slow them down.
    fn counts_on_readers(&self, cores: usize) -> bool {
        self.in_use().saturating_sub(self.snapshots) >= cores
            && self.came.is_some_and(|came| came.elapsed() < MOMENT)
    }

    /// The work that has waited longest and a reader for it; those in `old` are to be closed.
    fn assign(&mut self, pool: &ReaderPool, old: &mut Vec<Reader>) -> Option<(u64, Order, Free)> {
        let (&number, first) = self.queue.first_key_value()?;
        let hurried = first.hurried;
        if self.suspended || (!hurried && self.counts_on_readers(pool.cores)) {
            return None;
        }
        let free = self.free_reader(&pool.config, hurried, old)?;
        let order = self.queue.remove(&number)?.order;
        Some((number, order, free))
    }

    fn free_reader(&mut self, config: &Config, hurried: bool, old: &mut Vec<Reader>) -> Option<Free> {
        while let Some(reader) = self.idle.pop() {
            if reader.is_younger_than(config.reader_age_max) {
                return Some(Free::Idle(reader));
            }
            old.push(reader);
        }
        let overflow = if hurried { config.readers_overflow } else { 0 };
        if self.open >= config.readers + overflow {
            return None;
        }
        self.open += 1;
        Some(Free::New)
    }

    /// Gives work to a reader.
    fn hand(&mut self, order: Order, reader: Reader, pins: &Arc<Pins>) -> Assigned {
        self.wait.record(order.asked.elapsed());
        self.snapshots += usize::from(order.wake.is_some());
        // Registered before anybody can close or suspend the pool, so that to end all reads means this one too.
        let pin = pins.add(order.label, &reader.watchdog, order.wake);
        Assigned { reader, work: order.work, pin }
    }
}

impl ReaderPool {
    pub(crate) fn open(location: Location, config: Config) -> Result<Arc<Self>, OpenErrorReason> {
        let pool = Arc::new(Self {
            files: Mutex::new(FileIdentities::record(&location.path).ok()),
            location,
            config,
            cores: available_parallelism().map_or(1, usize::from),
            pins: Arc::default(),
            state: Mutex::default(),
            given_back: Condvar::new(),
            leaked: AtomicBool::new(false),
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

    /// Takes work on, first come, first served. Returns its place in the queue if it waits there.
    ///
    /// Once the pool is closed, work is dropped, and what waits for its answer learns of it so.
    pub(super) fn submit(self: &Arc<Self>, order: Order) -> Option<Waiting> {
        let mut state = lock(&self.state);
        if state.closed {
            drop(state);
            drop(order);
            return None;
        }
        let number = state.next_number;
        state.next_number += 1;
        state.queue.insert(number, Queued { order, hurried: false });
        self.dispatch(state);
        let waits = lock(&self.state).queue.contains_key(&number);
        waits.then(|| Waiting::new(self.clone(), number))
    }

    /// Work that has waited for the readers at work goes to another one, which may be started for it.
    pub(super) fn hurry(self: &Arc<Self>, number: u64) {
        let mut state = lock(&self.state);
        if let Some(queued) = state.queue.get_mut(&number) {
            queued.hurried = true;
            self.dispatch(state);
        }
    }

    /// Takes work out of the queue; false if it is not there any more.
    pub(super) fn withdraw(&self, number: u64) -> bool {
        let queued = lock(&self.state).queue.remove(&number);
        queued.is_some()
    }

    /// Sends what waits to readers, for as long as there are any for it.
    fn dispatch<'p>(self: &'p Arc<Self>, mut state: MutexGuard<'p, PoolState>) {
        loop {
            let mut old = Vec::new();
            let Some((number, order, free)) = state.assign(self, &mut old) else {
                drop(state);
                self.close_all(old);
                return;
            };
            match free {
                Free::Idle(reader) => {
                    let assigned = state.hand(order, reader, &self.pins);
                    drop(state);
                    self.send(assigned);
                }
                Free::New => {
                    drop(state);
                    if !self.send_to_new(number, order) {
                        return self.close_all(old);
                    }
                }
            }
            self.close_all(old);
            state = lock(&self.state);
        }
    }

    /// False if no reader could be started: the work waits for another one then, or fails if there is none.
    fn send_to_new(self: &Arc<Self>, number: u64, order: Order) -> bool {
        let started = self.start_reader();
        let mut state = lock(&self.state);
        match started {
            Ok(reader) if !state.suspended && !state.closed => {
                let assigned = state.hand(order, reader, &self.pins);
                drop(state);
                self.send(assigned);
                return true;
            }
            Err(cause) if state.open == 0 => {
                drop(state);
                order.work.refuse(cause);
            }
            // A reader that may not begin is dropped after the lock, which its count takes.
            _unused => {
                if state.closed {
                    drop(state);
                    drop_quietly(order);
                } else {
                    state.queue.insert(number, Queued { order, hurried: true });
                    drop(state);
                }
            }
        }
        false
    }

    fn send(self: &Arc<Self>, assigned: Assigned) {
        let (pool, thread) = (self.clone(), assigned.reader.thread.clone());
        post(&thread, move |connection| pool.serve(assigned, connection));
    }

    /// Works until the queue is empty, on the thread of the reader.
    fn serve(self: &Arc<Self>, mut assigned: Assigned, connection: &mut Connection) {
        loop {
            let Assigned { mut reader, mut work, pin } = assigned;
            let fit = work.run(&mut reader, connection, &pin, self);
            let was_snapshot = pin.is_snapshot();
            drop(pin);
            if !fit || !reader.is_younger_than(self.config.reader_age_max) {
                reader.retire(connection, self);
            }
            match self.come_for_more(reader, was_snapshot) {
                Next::Work(next) => {
                    work.answer();
                    assigned = next;
                }
                Next::Idle => return work.answer(),
                Next::Close(mut reader) => {
                    reader.retire(connection, self);
                    drop(reader);
                    work.answer();
                    return self.dispatch(lock(&self.state));
                }
            }
        }
    }

    fn come_for_more(&self, reader: Reader, was_snapshot: bool) -> Next {
        let mut state = lock(&self.state);
        state.snapshots -= usize::from(was_snapshot);
        state.came = Some(Instant::now());
        if state.closed || state.suspended {
            return Next::Close(reader);
        }
        if let Some((_, queued)) = state.queue.pop_first() {
            return Next::Work(state.hand(queued.order, reader, &self.pins));
        }
        if !reader.is_open() || state.idle.len() >= self.config.readers {
            return Next::Close(reader);
        }
        state.idle.push(reader);
        drop(state);
        self.given_back.notify_all();
        Next::Idle
    }

    /// Lets the threads of these readers close their connections.
    fn close_all(self: &Arc<Self>, readers: impl IntoIterator<Item = Reader>) {
        for mut reader in readers {
            let (pool, thread) = (self.clone(), reader.thread.clone());
            post(&thread, move |connection| {
                reader.retire(connection, &pool);
                drop(reader);
                pool.dispatch(lock(&pool.state));
            });
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
        let mut state = lock(&self.state);
        state.closed = true;
        let waiting = std::mem::take(&mut state.queue);
        self.close_idle(state);
        waiting.into_values().for_each(drop_quietly);
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
        stats.reads = self.reads.load(Ordering::Relaxed);
        let state = lock(&self.state);
        stats.readers_open = state.open;
        stats.readers_in_use = state.in_use();
        let wait = state.wait.clone();
        drop(state);
        stats.read_wait = wait.summary();
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
        let mut state = lock(&self.pool.state);
        state.suspended = false;
        self.pool.dispatch(state);
    }
}

#[cfg(test)]
mod tests;
