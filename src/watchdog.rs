//! Ends the statement that runs on a connection once its time is up.
//!
//! An interrupt from another thread could meet the next statement instead; the progress handler runs within
//! the statement itself (<https://www.sqlite.org/c3ref/progress_handler.html>).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use rusqlite::{Connection, ffi};

/// SQLite's virtual machine runs this many instructions between two looks: some tens of microseconds.
const INSTRUCTIONS: i32 = 1_000;

/// Watches one connection; a clone watches the same.
#[derive(Clone, Debug)]
pub(crate) struct Watchdog(Arc<Limit>);

#[derive(Debug)]
struct Limit {
    /// What the moments below are counted from, in nanoseconds.
    base: Instant,
    /// When the statements of the current caller end; `NEVER` without a limit.
    deadline: AtomicU64,
    /// Everything ends, whoever the caller is; set from other threads.
    end: AtomicBool,
    /// Nothing is ended now: the service's own statements must not be.
    paused: AtomicBool,
    /// Whether a statement has been ended since this was last asked.
    interrupted: AtomicBool,
}

const NEVER: u64 = u64::MAX;

impl Watchdog {
    /// Watches nothing until it is [set on](Self::set_on) a connection.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Limit {
            base: Instant::now(),
            deadline: AtomicU64::new(NEVER),
            end: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            interrupted: AtomicBool::new(false),
        }))
    }

    /// Watches a connection from now on.
    pub(crate) fn watch(connection: &Connection) -> rusqlite::Result<Self> {
        let watchdog = Self::new();
        watchdog.set_on(connection)?;
        Ok(watchdog)
    }

    /// Watches this connection too; it may be one that replaces another.
    pub(crate) fn set_on(&self, connection: &Connection) -> rusqlite::Result<()> {
        let limit = self.0.clone();
        connection.progress_handler(INSTRUCTIONS, Some(move || limit.interrupts()))
    }

    /// Refuses a statement whose time is up before it begins: a short one ends before SQLite looks.
    pub(crate) fn check(&self) -> rusqlite::Result<()> {
        if self.0.interrupts() {
            let interrupted = ffi::Error::new(ffi::SQLITE_INTERRUPT);
            return Err(rusqlite::Error::SqliteFailure(interrupted, None));
        }
        Ok(())
    }

    /// Whether a statement has been ended or refused since this was last asked.
    pub(crate) fn take_interrupted(&self) -> bool {
        self.0.interrupted.swap(false, Ordering::Relaxed)
    }

    /// Lets statements run until `deadline`; for good without one.
    pub(crate) fn limit(&self, deadline: Option<Instant>) {
        let nanos = deadline.map_or(NEVER, |deadline| self.0.nanos(deadline));
        self.0.deadline.store(nanos, Ordering::Relaxed);
    }

    /// Ends nothing while it is paused; for the thread of the connection. Returns whether it was.
    pub(crate) fn pause(&self, paused: bool) -> bool {
        let before = self.0.paused.load(Ordering::Relaxed);
        self.0.paused.store(paused, Ordering::Relaxed);
        before
    }

    /// Ends whatever runs from now on; for any thread to call. Lasts until [`resume`](Self::resume).
    pub(crate) fn end(&self) {
        self.0.end.store(true, Ordering::Relaxed);
    }

    /// Takes the word of [`end`](Self::end) back.
    pub(crate) fn resume(&self) {
        self.0.end.store(false, Ordering::Relaxed);
    }

    /// Whether statements are being ended by [`end`](Self::end).
    pub(crate) fn is_ended(&self) -> bool {
        self.0.end.load(Ordering::Relaxed)
    }

    /// Whether the deadline of the current caller has passed.
    pub(crate) fn deadline_has_passed(&self) -> bool {
        self.0.has_passed_at(self.0.deadline.load(Ordering::Relaxed))
    }
}

impl Limit {
    fn nanos(&self, moment: Instant) -> u64 {
        let nanos = moment.saturating_duration_since(self.base).as_nanos();
        u64::try_from(nanos).unwrap_or(NEVER - 1)
    }

    fn interrupts(&self) -> bool {
        if self.paused.load(Ordering::Relaxed) {
            return false;
        }
        let deadline = self.deadline.load(Ordering::Relaxed);
        let interrupts = self.end.load(Ordering::Relaxed) || self.has_passed_at(deadline);
        if interrupts {
            self.interrupted.store(true, Ordering::Relaxed);
        }
        interrupts
    }

    /// Reads the clock only where there is a limit.
    fn has_passed_at(&self, limit: u64) -> bool {
        limit != NEVER && self.nanos(Instant::now()) >= limit
    }
}
