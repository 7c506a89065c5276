//! What a run measures, whichever mode does the writing.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Latencies in microseconds, to three significant digits.
#[derive(Debug, Clone)]
pub(crate) struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Latencies {
        let hour = Duration::from_secs(3600);
        #[expect(clippy::expect_used, reason = "constant bounds, checked by every run")]
        let histogram = Histogram::new_with_max(micros(hour), 3).expect("an hour is more than 2 µs");
        Latencies(histogram)
    }
}

impl Latencies {
    /// Records one latency; more than an hour counts as an hour.
    pub(crate) fn record(&mut self, latency: Duration) {
        self.0.saturating_record(micros(latency));
    }

    pub(crate) fn max(&self) -> Duration {
        Duration::from_micros(self.0.max())
    }

    /// The latency that `quantile` (0 to 1) of all stay within; zero if there are none.
    pub(crate) fn quantile(&self, quantile: f64) -> Duration {
        Duration::from_micros(self.0.value_at_quantile(quantile))
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// What became of one import of one source, by what was committed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Imported {
    /// Catalog entries, children of composites included.
    pub(crate) imported: u64,
    pub(crate) failed: u64,
    /// Transactions.
    pub(crate) batches: u64,
    /// Transactions that never got the lock.
    pub(crate) locked_errors: u64,
}

impl Imported {
    pub(crate) fn add(&mut self, other: Imported) {
        self.imported += other.imported;
        self.failed += other.failed;
        self.batches += other.batches;
        self.locked_errors += other.locked_errors;
    }
}

/// One round of imports.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Round {
    /// From its start until its last import is done.
    pub(crate) wall: Duration,
    /// From its start until its first import is done.
    pub(crate) first_done: Duration,
    pub(crate) imported: Imported,
}

/// Rounds of imports; in one round every source is imported once, all at the same time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rounds {
    pub(crate) count: u64,
    /// From the start of a round until its last import is done, over all rounds.
    pub(crate) wall: Duration,
    /// The same until its first import is done.
    pub(crate) first_done: Duration,
    pub(crate) imported: Imported,
}

impl Rounds {
    pub(crate) fn add(&mut self, round: Round) {
        self.count += 1;
        self.wall += round.wall;
        self.first_done += round.first_done;
        self.imported.add(round.imported);
    }

    /// How much later than the first import of a round the last one is done, in percent.
    pub(crate) fn spread_percent(&self) -> f64 {
        if self.first_done.is_zero() {
            return 0.0;
        }
        100.0 * (self.wall.as_secs_f64() / self.first_done.as_secs_f64() - 1.0)
    }

    /// Entries imported per second; zero if there was no round.
    pub(crate) fn entries_per_s(&self) -> f64 {
        if self.wall.is_zero() {
            return 0.0;
        }
        self.imported.imported as f64 / self.wall.as_secs_f64()
    }
}

/// What the write path itself shows: every write transaction of the run, imports and renames alike.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct WriteFigures {
    /// From the lock's being taken to the end of COMMIT.
    pub(crate) hold_p99: Duration,
    pub(crate) hold_max: Duration,
    /// From asking for the lock (or from submission) until the work starts.
    pub(crate) wait_p99: Duration,
    pub(crate) wait_max: Duration,
    /// How many commands one COMMIT made durable, where commits are shared.
    pub(crate) group_sizes: Option<GroupSizes>,
}

/// Commands per COMMIT.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GroupSizes {
    pub(crate) mean: f64,
    /// The most of one lane.
    pub(crate) max: u64,
}

/// What became of one request of the load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    /// SQLite answered that the database is locked.
    Locked,
    /// Any other failure, as text.
    Failed(String),
}

/// One kind of request over the whole run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Load {
    /// From the *scheduled* arrival to the answer, whatever the answer is: a refusal after ten seconds was
    /// ten seconds of waiting.
    pub(crate) latencies: Latencies,
    pub(crate) done: u64,
    pub(crate) locked_errors: u64,
    pub(crate) failed: u64,
    pub(crate) first_failure: Option<String>,
}

impl Load {
    pub(crate) fn record(&mut self, latency: Duration, answer: Answer) {
        self.latencies.record(latency);
        match answer {
            Answer::Done => self.done += 1,
            Answer::Locked => self.locked_errors += 1,
            Answer::Failed(failure) => {
                self.failed += 1;
                self.first_failure.get_or_insert(failure);
            }
        }
    }
}

/// Everything that one run in one mode measured.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    /// How many sources were imported at once.
    pub(crate) imports: usize,
    pub(crate) first: Rounds,
    /// Re-imports of the same sources; none in a comparison.
    pub(crate) again: Rounds,
    pub(crate) writes: WriteFigures,
    pub(crate) renames: Load,
    pub(crate) reads: Load,
}

impl Measured {
    /// Requests and transactions that SQLite refused because the database was locked.
    pub(crate) fn locked_errors(&self) -> u64 {
        self.first.imported.locked_errors
            + self.again.imported.locked_errors
            + self.renames.locked_errors
            + self.reads.locked_errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_counts_with_the_time_it_took() {
        let mut load = Load::default();
        load.record(Duration::from_millis(1), Answer::Done);
        load.record(Duration::from_secs(10), Answer::Locked);
        assert_eq!((load.done, load.locked_errors), (1, 1));
        assert!(load.latencies.max() >= Duration::from_secs(10));
    }

    #[test]
    fn no_round_has_no_speed_and_no_spread() {
        assert_eq!(Rounds::default().entries_per_s(), 0.0);
        assert_eq!(Rounds::default().spread_percent(), 0.0);
    }

    #[test]
    fn the_spread_is_what_the_last_import_takes_longer_than_the_first() {
        let (wall, first_done) = (Duration::from_millis(4_500), Duration::from_secs(4));
        let mut rounds = Rounds::default();
        rounds.add(Round { wall, first_done, ..Round::default() });
        assert_eq!(rounds.spread_percent(), 12.5);
    }
}
