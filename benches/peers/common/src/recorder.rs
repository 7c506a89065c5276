//! Records what each command took, from many tasks at once.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::Error;

/// The longest latency that is told from longer ones, in nanoseconds: an hour.
const LATENCY_MAX: u64 = 3_600_000_000_000;

/// Latencies in nanoseconds, with three significant figures.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Latencies {
    /// # Errors
    /// Never for these bounds; the histogram's.
    pub fn new() -> Result<Self, Error> {
        Ok(Self(Histogram::new_with_bounds(1, LATENCY_MAX, 3)?))
    }

    pub fn record(&mut self, latency: Duration, commands: u64) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.0.saturating_record_n(nanos, commands);
    }

    /// # Errors
    /// Never for equal bounds; the histogram's.
    pub fn add(&mut self, other: &Self) -> Result<(), Error> {
        Ok(self.0.add(&other.0)?)
    }

    pub(crate) fn quantile_us(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1000.0
    }

    pub(crate) fn max_us(&self) -> f64 {
        self.0.max() as f64 / 1000.0
    }
}

/// A histogram for 4,096 clients each would be most of the memory measured; a few are rarely waited for.
const SHARDS: usize = 8;

/// Where every task records.
pub(crate) struct Recorder([Mutex<Shard>; SHARDS]);

struct Shard {
    latencies: Latencies,
    failed: Vec<(i64, i64)>,
    first_error: Option<String>,
}

/// What all tasks have recorded.
pub(crate) struct Recorded {
    pub(crate) latencies: Latencies,
    /// Client and sequence of each command that failed.
    pub(crate) failed: Vec<(i64, i64)>,
    pub(crate) first_error: Option<String>,
}

impl Recorder {
    pub(crate) fn new() -> Result<Self, Error> {
        let empty = Latencies::new()?;
        let shard = || Mutex::new(Shard { latencies: empty.clone(), failed: Vec::new(), first_error: None });
        Ok(Self(std::array::from_fn(|_| shard())))
    }

    /// A failed command took its time too.
    pub(crate) fn record(&self, client: i64, sequence: i64, latency: Duration, result: Result<(), Error>) {
        let number = client.wrapping_add(sequence).unsigned_abs() as usize % SHARDS;
        let mut shard = self.0[number].lock().unwrap_or_else(PoisonError::into_inner);
        shard.latencies.record(latency, 1);
        if let Err(error) = result {
            shard.failed.push((client, sequence));
            shard.first_error.get_or_insert_with(|| error.to_string());
        }
    }

    pub(crate) fn take(&self) -> Result<Recorded, Error> {
        let mut all = Recorded { latencies: Latencies::new()?, failed: Vec::new(), first_error: None };
        for shard in &self.0 {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            all.latencies.add(&shard.latencies)?;
            all.failed.append(&mut shard.failed);
            all.first_error = all.first_error.or(shard.first_error.take());
        }
        Ok(all)
    }
}
