//! A thread with its connection, which is opened there: reading the file must not block the runtime.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Weak;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use rusqlite::{Connection, ffi};
use tokio_rusqlite::Connection as ReaderThread;

use super::pool::ReaderPool;
use crate::config::Config;
use crate::connection::{self, Role};
use crate::error::{Cause, OpenErrorReason};
use crate::transaction::begin_read;
use crate::user_code::UserCode;
use crate::watchdog::Watchdog;

/// A thread that reads, and what is known of its connection.
pub(super) struct Reader {
    pub(super) thread: ReaderThread,
    /// Set on whatever connection the thread has.
    pub(super) watchdog: Watchdog,
    /// `None` until the thread has opened its connection.
    opened: Option<Opened>,
    _counted: Counted,
}

struct Opened {
    user_code: UserCode,
    at: Instant,
}

impl Reader {
    /// Starts a thread that has no connection to the file yet.
    pub(super) fn start(counted: Counted) -> Result<Self, Cause> {
        let placeholder = Connection::open_in_memory()?;
        // It panics where the system has no thread to give.
        let thread = catch_unwind(AssertUnwindSafe(|| ReaderThread::from(placeholder)));
        let thread = thread.map_err(|_| no_thread())?;
        Ok(Self { thread, watchdog: Watchdog::new(), opened: None, _counted: counted })
    }

    /// Whether it has a connection to the file.
    pub(super) fn is_open(&self) -> bool {
        self.opened.is_some()
    }

    pub(super) fn is_younger_than(&self, age: Duration) -> bool {
        self.opened.as_ref().is_none_or(|opened| opened.at.elapsed() < age)
    }

    /// The guard of the connection, which is there once a transaction has begun.
    pub(super) fn user_code(&self) -> Option<&UserCode> {
        self.opened.as_ref().map(|opened| &opened.user_code)
    }

    /// Begins a read transaction, with another connection if this one fails: what ails it may end with it.
    ///
    /// Waits for the locks of others until `limit`, and for `busy_timeout` at most. A statement that the
    /// watchdog interrupts is not tried again.
    pub(super) fn begin(
        &mut self,
        connection: &mut Connection,
        pool: &ReaderPool,
        limit: Instant,
    ) -> Result<(), Cause> {
        let Err(error) = self.try_begin(connection, pool, limit) else { return Ok(()) };
        if self.watchdog.check().is_err() {
            return Err(error);
        }
        tracing::warn!(error = %error.as_sqlite(), "a reader was replaced");
        self.opened = None;
        self.try_begin(connection, pool, limit)
    }

    fn try_begin(
        &mut self,
        connection: &mut Connection,
        pool: &ReaderPool,
        limit: Instant,
    ) -> Result<(), Cause> {
        let patience = pool.config().busy_timeout.min(limit.saturating_duration_since(Instant::now()));
        if self.opened.is_none() {
            self.open(connection, pool, patience)?;
        }
        connection.busy_timeout(patience)?;
        Ok(begin_read(connection)?)
    }

    /// Opens a connection in the place of the one that is there.
    pub(super) fn open(
        &mut self,
        connection: &mut Connection,
        pool: &ReaderPool,
        patience: Duration,
    ) -> Result<(), OpenErrorReason> {
        let config = Config { busy_timeout: patience, ..pool.config().clone() };
        name_thread(&format!("{}-read", config.name));
        // Before, since even a reader may make files beside it; and afterwards, since it is opened by name.
        pool.check_files().map_err(OpenErrorReason::Sqlite)?;
        let new = open_connection(pool, &config)?;
        if let Err(cause) = pool.check_files() {
            connection::leave_wal_alone(&new);
            connection::close(new);
            return Err(OpenErrorReason::Sqlite(cause));
        }
        self.watchdog.set_on(&new)?;
        let user_code = UserCode::guard(&new)?;
        pool.note_closed(connection::close(std::mem::replace(connection, new)));
        self.opened = Some(Opened { user_code, at: Instant::now() });
        Ok(())
    }

    /// Closes the connection at once, on its thread: the thread itself ends when its last handle is gone, at
    /// a moment that nobody can wait for. The next read opens another one.
    pub(super) fn retire(&mut self, connection: &mut Connection, pool: &ReaderPool) {
        self.opened = None;
        match Connection::open_in_memory() {
            Ok(placeholder) => {
                pool.note_closed(connection::close(std::mem::replace(connection, placeholder)));
            }
            Err(error) => {
                tracing::warn!(%error, "a reader is closed later, with its thread");
                pool.note_closed(false);
            }
        }
    }
}

fn open_connection(pool: &ReaderPool, config: &Config) -> Result<Connection, OpenErrorReason> {
    let connection = connection::open(pool.location(), Role::Reader, config, &|| pool.check_files())?;
    // What is to become of the WAL is for the writer to say.
    connection::leave_wal_alone(&connection);
    Ok(connection)
}

/// Hands work to a thread without waiting for it. What the thread can't take, since it has ended, is dropped.
pub(super) fn post(thread: &ReaderThread, work: impl FnOnce(&mut Connection) + Send + 'static) {
    // The first poll sends it.
    if let Some(Err(_)) = thread.call_raw(work).now_or_never() {
        tracing::error!("the thread of a reader has ended");
    }
}

fn no_thread() -> Cause {
    let nomem = ffi::Error::new(ffi::SQLITE_NOMEM);
    rusqlite::Error::SqliteFailure(nomem, Some("the system has no thread for a reader".into())).into()
}

/// Counts a reader as open for as long as it lives.
pub(super) struct Counted(Weak<ReaderPool>);

impl Counted {
    /// The caller has counted it.
    pub(super) fn new(pool: Weak<ReaderPool>) -> Self {
        Self(pool)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(pool) = self.0.upgrade() {
            pool.count_closed();
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
