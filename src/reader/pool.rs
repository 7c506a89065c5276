//! The pool: a bounded checkout in front of connections that have no bound of their own.
//!
//! A connection goes back into the pool on its own thread, right after the closure and before the answer: so
//! a caller that drops its future neither loses the connection nor hands it out while it is still at work.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_rusqlite::Connection as ReaderThread;

use crate::config::Config;
use crate::connection::{self, Location, Role};
use crate::error::{OpenErrorReason, ReadError};
use crate::stats::{DurationHistogram, Stats};
use crate::sync::{block_on, block_on_until, lock};
use crate::transaction::{ReadTransaction, panic_message, read_transaction};
use crate::user_code::UserCode;

pub(crate) struct ReaderPool {
    location: Location,
    config: Config,
    /// One permit for each read that may run at a time.
    permits: Arc<Semaphore>,
    state: Mutex<PoolState>,
    /// Told when a connection has been closed.
    fewer: Condvar,
    wait: Mutex<DurationHistogram>,
    reads: AtomicU64,
}

#[derive(Default)]
struct PoolState {
    /// The most recently used last: its caches are warm, so it goes first.
    idle: Vec<Reader>,
    /// Idle and in use.
    open: usize,
    closed: bool,
}

/// An open connection.
struct Reader {
    thread: ReaderThread,
    user_code: UserCode,
    opened: Instant,
}

impl ReaderPool {
    pub(crate) fn open(location: Location, config: Config) -> Result<Arc<Self>, OpenErrorReason> {
        let pool = Self {
            permits: Arc::new(Semaphore::new(config.readers + config.readers_overflow)),
            location,
            config,
            state: Mutex::default(),
            fewer: Condvar::new(),
            wait: Mutex::default(),
            reads: AtomicU64::new(0),
        };
        for _ in 0..pool.config.readers {
            let reader = block_on(pool.open_reader())?;
            let mut state = lock(&pool.state);
            state.idle.push(reader);
            state.open += 1;
        }
        Ok(Arc::new(pool))
    }

    /// Waits for the right to read; `None` once the pool is closed. First come, first served.
    ///
    /// Cancel safety: dropped before it is ready, nothing is taken.
    pub(crate) async fn permit(self: &Arc<Self>) -> Option<ReadPermit> {
        let asked = Instant::now();
        let permit = self.permits.clone().acquire_owned().await.ok()?;
        lock(&self.wait).record(asked.elapsed());
        Some(ReadPermit { pool: self.clone(), _permit: permit })
    }

    /// The connection to use next, opened if there is none idle; the caller holds a permit.
    async fn check_out(self: &Arc<Self>) -> Result<Reader, CheckOutError> {
        {
            let mut state = lock(&self.state);
            if state.closed {
                return Err(CheckOutError::Closed);
            }
            while let Some(reader) = state.idle.pop() {
                if reader.opened.elapsed() < self.config.reader_age_max {
                    return Ok(reader);
                }
                // Its thread closes it.
                state.open -= 1;
            }
            state.open += 1;
        }
        let opening = Opening { pool: self, done: false };
        let reader = self.open_reader().await.map_err(CheckOutError::Open)?;
        opening.done();
        Ok(reader)
    }

    /// Opens a connection on a thread of its own: reading the file must not block the runtime.
    async fn open_reader(&self) -> Result<Reader, OpenErrorReason> {
        let (path, flags) = (&self.location.path, Role::Reader.flags());
        let thread = match &self.location.vfs {
            Some(vfs) => ReaderThread::open_with_flags_and_vfs(path, flags, vfs).await,
            None => ReaderThread::open_with_flags(path, flags).await,
        }?;
        let (location, config) = (self.location.clone(), self.config.clone());
        let prepared = thread.call(move |connection| {
            name_thread(&format!("{}-read", config.name));
            connection::configure(connection, Role::Reader, &location, &config)?;
            Ok::<_, OpenErrorReason>(UserCode::guard(connection)?)
        });
        match prepared.await {
            Ok(user_code) => Ok(Reader { thread, user_code, opened: Instant::now() }),
            Err(tokio_rusqlite::Error::Error(reason)) => Err(reason),
            Err(_) => Err(OpenErrorReason::Io(std::io::Error::other("the thread of a reader ended"))),
        }
    }

    fn check_in(&self, reader: Reader, connection: &mut Connection, fit: bool) {
        let mut state = lock(&self.state);
        let young = reader.opened.elapsed() < self.config.reader_age_max;
        if fit && young && !state.closed && state.idle.len() < self.config.readers {
            state.idle.push(reader);
            return;
        }
        drop(state);
        close_in_place(connection);
        self.count_closed();
    }

    fn count_closed(&self) {
        lock(&self.state).open -= 1;
        self.fewer.notify_all();
    }

    /// Lets no more reads begin, and waits until `limit` for those that run.
    pub(crate) fn close(self: &Arc<Self>, limit: Instant) {
        self.permits.close();
        let idle = {
            let mut state = lock(&self.state);
            state.closed = true;
            std::mem::take(&mut state.idle)
        };
        for reader in idle {
            let pool = self.clone();
            let close = reader.thread.call_raw(move |connection| {
                close_in_place(connection);
                pool.count_closed();
            });
            // An idle thread that does not answer has nothing left to close.
            if let Some(Err(_)) = block_on_until(close, limit) {
                self.count_closed();
            }
        }
        let mut state = lock(&self.state);
        while state.open > 0 {
            let left = limit.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let readers = state.open;
                drop(state);
                tracing::warn!(readers, "reads still run while the database is closed");
                return;
            }
            state = self.fewer.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(crate) fn pins(&self) -> std::sync::Arc<super::Pins> { Default::default() }
    pub(crate) fn suspend(&self, _limit: Instant) -> Option<()> { None }
    pub(crate) fn summarize(&self, stats: &mut Stats) {
        stats.reads = self.reads.load(Ordering::Relaxed);
        stats.read_wait = lock(&self.wait).summary();
        let state = lock(&self.state);
        stats.readers_open = state.open;
        stats.readers_in_use = state.open - state.idle.len();
    }
}

/// Closes the connection of a reader thread on that thread, and at once: the thread itself ends when its
/// last handle is gone, at a moment that nobody can wait for.
fn close_in_place(connection: &mut Connection) {
    match Connection::open_in_memory() {
        Ok(placeholder) => connection::close(std::mem::replace(connection, placeholder)),
        Err(error) => tracing::warn!(%error, "a reader is closed later, with its thread"),
    }
}

/// Counts a connection that is being opened, unless that fails or its caller gives up.
struct Opening<'p> {
    pool: &'p ReaderPool,
    done: bool,
}

impl Opening<'_> {
    fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.pool.count_closed();
        }
    }
}

/// Threads of tokio-rusqlite carry the name of the thread that made them; this tells them apart.
fn name_thread(name: &str) {
    #[cfg(target_os = "linux")]
    if let Ok(name) = std::ffi::CString::new(name) {
        // A name is only for the eyes: without it the thread works as well.
        let _unnamed = rustix::thread::set_name(&name).is_err();
    }
    #[cfg(not(target_os = "linux"))]
    let _ = name;
}

enum CheckOutError {
    Closed,
    Open(OpenErrorReason),
}

/// The right to one read.
pub(crate) struct ReadPermit {
    pool: Arc<ReaderPool>,
    _permit: OwnedSemaphorePermit,
}

impl ReadPermit {
    /// Runs `read` on a connection of the pool.
    ///
    /// Cancel safety: dropped while it runs, the closure runs to its end and its answer is lost.
    pub(crate) async fn read<T, E>(
        self,
        read: impl FnOnce(&ReadTransaction<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, ReadError<E>>
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        let reader = self.pool.check_out().await.map_err(|error| match error {
            CheckOutError::Closed => ReadError::Closed,
            CheckOutError::Open(reason) => ReadError::Connection(reason.into()),
        })?;
        let thread = reader.thread.clone();
        let (reply, answer) = oneshot::channel();
        let ran = thread.call_raw(move |connection| {
            let result = read_transaction(connection, &reader.user_code, read);
            let fit = matches!(result, Ok(Ok(_))) && !connection.is_busy();
            self.pool.reads.fetch_add(1, Ordering::Relaxed);
            self.pool.check_in(reader, connection, fit);
            drop(self);
            // Where nobody waits any more, the value is dropped here. Its type is the user's, and may panic,
            // which must not end the thread.
            let sent = catch_unwind(AssertUnwindSafe(|| drop(reply.send(to_answer(result)))));
            if sent.is_err() {
                tracing::error!("dropping the answer of a read panicked");
            }
        });
        match ran.await {
            Ok(()) => answer.await.unwrap_or(Err(ReadError::Closed)),
            Err(_) => Err(ReadError::Closed),
        }
    }
}

fn to_answer<T, E: 'static>(
    result: rusqlite::Result<std::thread::Result<Result<T, E>>>,
) -> Result<T, ReadError<E>> {
    match result {
        Ok(Ok(Ok(value))) => Ok(value),
        Ok(Ok(Err(error))) if tried_to_write(&error) => Err(ReadError::ReadOnly(error)),
        Ok(Ok(Err(error))) => Err(ReadError::Query(error)),
        Ok(Err(panic)) => Err(ReadError::Panicked(panic_message(panic))),
        Err(error) => Err(ReadError::Connection(error.into())),
    }
}

fn tried_to_write<E: 'static>(error: &E) -> bool {
    let error = (error as &dyn std::any::Any).downcast_ref::<rusqlite::Error>();
    error.and_then(rusqlite::Error::sqlite_error_code) == Some(rusqlite::ErrorCode::ReadOnly)
}
