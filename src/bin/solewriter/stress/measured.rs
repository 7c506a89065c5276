//! What is counted and measured while a run goes on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use solewriter::rusqlite::ffi::{SQLITE_BUSY, SQLITE_LOCKED};
use solewriter::{Outcome, RolledBack, WriteError};

use super::ledger::Expected;
use super::pair::{PairError, Poison};

/// Counters that everyone adds to.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) committed: Count,
    pub(crate) imported: Count,
    pub(crate) failed_by_intent: Count,
    pub(crate) not_started: Count,
    pub(crate) rolled_back: Count,
    pub(crate) unknown: Count,
    pub(crate) locked_errors: Count,
    pub(crate) reads: Count,
    pub(crate) reads_failed: Count,
    /// Reads that saw what no reader may see.
    pub(crate) bad_reads: Count,
    /// Imports whose report does not agree with what they were given.
    pub(crate) bad_reports: Count,
    /// The first failure that nobody intended.
    pub(crate) first_failure: OnceLock<String>,
    latencies: Mutex<Latencies>,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Latencies of acknowledged writes in nanoseconds: of all, and of those since somebody last looked.
#[derive(Debug)]
struct Latencies {
    all: Histogram<u64>,
    now: Histogram<u64>,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { all: histogram(), now: histogram() }
    }
}

fn histogram() -> Histogram<u64> {
    #[expect(clippy::expect_used, reason = "constant bounds, checked by every run")]
    Histogram::new_with_bounds(1_000, 3_600_000_000_000, 3)
        .expect("low is at least 1 and high at least twice as much")
}

impl Measured {
    /// Counts an acknowledged write.
    pub(crate) fn acknowledged(&self, latency: Duration) {
        self.committed.add(1);
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        lock(&self.latencies).now.saturating_record(nanos);
    }

    /// Counts a write that was refused, and says what must be found of it.
    pub(crate) fn refused(&self, error: &WriteError<PairError>, poison: Option<Poison>) -> Expected {
        let outcome = error.outcome();
        let is_own =
            matches!(error, WriteError::Command(_) | WriteError::RolledBack(RolledBack::Panicked(_)));
        if let (true, Some(_)) = (is_own, poison) {
            self.failed_by_intent.add(1);
            return Expected::None;
        }
        if matches!(error.sqlite_extended_code().map(|code| code & 0xff), Some(SQLITE_BUSY | SQLITE_LOCKED)) {
            self.locked_errors.add(1);
        }
        self.first_failure.get_or_init(|| in_full(error));
        match outcome {
            Outcome::NotStarted => self.not_started.add(1),
            Outcome::RolledBack => self.rolled_back.add(1),
            Outcome::Unknown => self.unknown.add(1),
        }
        if outcome == Outcome::Unknown { Expected::BothOrNone } else { Expected::None }
    }

    /// What 99 of 100 writes took at most since this was last asked.
    pub(crate) fn p99_now(&self) -> Duration {
        let mut latencies = lock(&self.latencies);
        let p99 = latencies.now.value_at_quantile(0.99);
        latencies.gather();
        Duration::from_nanos(p99)
    }

    /// What this share of all writes, from 0 to 1, took at most, in microseconds.
    pub(crate) fn quantile_us(&self, quantile: f64) -> u64 {
        let mut latencies = lock(&self.latencies);
        latencies.gather();
        latencies.all.value_at_quantile(quantile) / 1_000
    }
}

impl Latencies {
    fn gather(&mut self) {
        let Self { all, now } = self;
        #[expect(clippy::expect_used, reason = "both have the same bounds")]
        all.add(&*now).expect("what fits into one fits into the other");
        now.reset();
    }
}

/// An error with what is behind it.
pub(crate) fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
