//! What the service has measured of itself.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram as Hdr;
use serde::Serialize;

use crate::error::Outcome;
use crate::lane::{Lane, PerLane};
use crate::units::micros;

/// A snapshot of everything the service has measured since it was opened.
///
/// Durations serialise as microseconds under the name of the field plus `_us`.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// What became of the commands that were sent.
    pub commands: CommandCounts,
    /// Commands that wait now, by lane.
    pub queue_depth: PerLane<usize>,
    /// From submission to the start of a command, by lane.
    pub wait: PerLane<Durations>,
    /// From the start of a command to its end, by lane: what it adds to the hold of its group.
    pub run: PerLane<Durations>,
    /// From BEGIN IMMEDIATE to the end of COMMIT, for each group.
    pub hold: Durations,
    /// The COMMIT alone, for each group.
    pub commit: Durations,
    /// What the writer needed to begin the WAL anew, each time it could: everyone waits meanwhile.
    pub wal_restart: Durations,
    /// How many commands each committed group held. "Batching is active" is `group_commands.max > 1`.
    pub group_commands: Counts,
    /// The same by lane; groups without any command of a lane do not count there.
    pub group_size: PerLane<Counts>,
    /// Groups that were committed.
    pub groups_committed: u64,
    /// Groups that were rolled back, by SQLite or because their COMMIT failed.
    pub groups_lost: u64,
    /// Times the write connection was replaced, since it was in doubt or after maintenance.
    pub connections_replaced: u64,
    /// Groups before which another program had written.
    pub foreign_commits: u64,
    /// Times the writer found the write lock held by another program.
    pub foreign_waits: u64,
    /// How long the writer has waited for other programs in all, or left the write lock free for them.
    #[serde(rename = "foreign_wait_us", serialize_with = "micros")]
    pub foreign_wait: Duration,
    /// Whether commands wait now since the WAL has reached its limit, and somebody keeps it from being begun anew.
    pub is_wal_full: bool,
    /// Whether writes are refused now: after failures, on a full disk, or for good.
    pub is_refusing_writes: bool,
    /// What became of the entries of imports.
    pub import_entries: EntryCounts,
    /// Reads that were answered, whatever the answer.
    pub reads: u64,
    /// How long reads waited for their turn, until one of the connections was theirs to use.
    pub read_wait: Durations,
    /// Read-only connections that are in use now.
    pub readers_in_use: usize,
    /// Read-only connections that are open now.
    pub readers_open: usize,
    /// Pages in the WAL after the newest commit.
    pub wal_pages: u64,
    /// The largest number of pages the WAL has held.
    pub wal_pages_max: u64,
    /// The size of a page, in bytes.
    pub page_bytes: u64,
    /// Checkpoints that ran.
    pub checkpoints: u64,
    /// Checkpoints that left something in the WAL, since a reader or another process was in the way.
    pub checkpoints_blocked: u64,
    /// Times the WAL was begun anew from its start.
    pub wal_restarts: u64,
}

/// Everything that has been measured: the figures, and the distributions behind their percentiles.
#[derive(Clone, Default)]
#[cfg_attr(not(feature = "metrics"), expect(dead_code, reason = "only the figures are shown without it"))]
pub(crate) struct Measurements {
    pub(crate) stats: Stats,
    pub(crate) writer: WriterStats,
    pub(crate) read_wait: DurationHistogram,
}

#[cfg(feature = "metrics")]
impl Measurements {
    /// What was added since an earlier look at the same service: counters and distributions are those of the
    /// time in between, and what has a value at any time is as it is now.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let writer = self.writer.since(&earlier.writer);
        let read_wait = self.read_wait.since(&earlier.read_wait);
        let (now, then) = (&self.stats, &earlier.stats);
        let mut stats = Stats {
            reads: now.reads.saturating_sub(then.reads),
            read_wait: read_wait.summary(),
            checkpoints: now.checkpoints.saturating_sub(then.checkpoints),
            checkpoints_blocked: now.checkpoints_blocked.saturating_sub(then.checkpoints_blocked),
            wal_restarts: now.wal_restarts.saturating_sub(then.wal_restarts),
            import_entries: now.import_entries.since(&then.import_entries),
            ..now.clone()
        };
        writer.summarize(&mut stats);
        Self { stats, writer, read_wait }
    }
}

/// What became of the entries of imports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct EntryCounts {
    /// Committed.
    pub accepted: u64,
    /// Failed, in their preparation or at the writer.
    pub failed: u64,
}

#[cfg(feature = "metrics")]
impl EntryCounts {
    fn since(&self, earlier: &Self) -> Self {
        Self {
            accepted: self.accepted.saturating_sub(earlier.accepted),
            failed: self.failed.saturating_sub(earlier.failed),
        }
    }
}

/// What became of the commands that were sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CommandCounts {
    /// Committed.
    pub committed: u64,
    /// Failed by themselves and rolled back: their own error, a panic, a foreign key.
    pub failed: u64,
    /// Rolled back together with the group for a reason outside of them.
    pub rolled_back: u64,
    /// Answered with an unknown outcome.
    pub unknown: u64,
    /// Accepted, but the writer never ran them: expired when their turn came, busy, closed.
    pub not_started: u64,
    /// Taken back by the caller before they started: dropped, or expired while the writer was busy.
    pub withdrawn: u64,
    /// Refused at the door: no room, too large, closed.
    pub refused: u64,
    /// Run again since their group was lost; a command that was lost twice counts twice.
    pub rerun: u64,
}

impl CommandCounts {
    pub(crate) fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::NotStarted => self.not_started += 1,
            Outcome::RolledBack => self.rolled_back += 1,
            Outcome::Unknown => self.unknown += 1,
        }
    }

    #[cfg(feature = "metrics")]
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self {
            committed: self.committed.saturating_sub(earlier.committed),
            failed: self.failed.saturating_sub(earlier.failed),
            rolled_back: self.rolled_back.saturating_sub(earlier.rolled_back),
            unknown: self.unknown.saturating_sub(earlier.unknown),
            not_started: self.not_started.saturating_sub(earlier.not_started),
            withdrawn: self.withdrawn.saturating_sub(earlier.withdrawn),
            refused: self.refused.saturating_sub(earlier.refused),
            rerun: self.rerun.saturating_sub(earlier.rerun),
        }
    }
}

/// A distribution of durations. Percentiles are exact to 1 %.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Durations {
    /// How many were recorded.
    pub count: u64,
    /// The median.
    #[serde(rename = "p50_us", serialize_with = "micros")]
    pub p50: Duration,
    /// 99 of 100 were at most this.
    #[serde(rename = "p99_us", serialize_with = "micros")]
    pub p99: Duration,
    /// 999 of 1,000 were at most this.
    #[serde(rename = "p999_us", serialize_with = "micros")]
    pub p999: Duration,
    /// The largest.
    #[serde(rename = "max_us", serialize_with = "micros")]
    pub max: Duration,
}

/// A distribution of counts. Percentiles are exact to 1 %.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Counts {
    /// How many were recorded.
    pub count: u64,
    /// The average.
    pub mean: f64,
    /// The median.
    pub p50: u64,
    /// 99 of 100 were at most this.
    pub p99: u64,
    /// The largest.
    pub max: u64,
}

/// A histogram of durations between 1 µs and 1 h; longer ones count as an hour.
#[derive(Clone)]
pub(crate) struct DurationHistogram(Hdr<u64>);

impl Default for DurationHistogram {
    fn default() -> Self {
        Self(histogram(1_000, 3_600_000_000_000))
    }
}

impl DurationHistogram {
    pub(crate) fn record(&mut self, duration: Duration) {
        self.0.saturating_record(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn summary(&self) -> Durations {
        let at = |quantile| Duration::from_nanos(self.0.value_at_quantile(quantile));
        Durations {
            count: self.0.len(),
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: Duration::from_nanos(self.0.max()),
        }
    }

    /// What all of them have recorded.
    #[cfg(feature = "http")]
    pub(crate) fn sum(lanes: &PerLane<Self>) -> Self {
        let mut sum = lanes.interactive.clone();
        for lane in [Lane::Bulk, Lane::Maintenance] {
            let added = sum.0.add(&lanes[lane].0);
            debug_assert!(added.is_ok(), "all have the same bounds");
        }
        sum
    }

    /// The values in seconds, and how many there are of each.
    #[cfg(feature = "metrics")]
    pub(crate) fn seconds(&self) -> Vec<(f64, u64)> {
        values(&self.0).map(|(nanos, count)| (Duration::from_nanos(nanos).as_secs_f64(), count)).collect()
    }

    /// What was recorded since an earlier state of this histogram. Its largest value is exact to 1 %.
    #[cfg(feature = "metrics")]
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self(since(&self.0, &earlier.0))
    }
}

/// A histogram of counts up to a million.
#[derive(Clone)]
pub(crate) struct CountHistogram(Hdr<u64>);

impl Default for CountHistogram {
    fn default() -> Self {
        Self(histogram(1, 1_000_000))
    }
}

impl CountHistogram {
    pub(crate) fn record(&mut self, count: u64) {
        self.0.saturating_record(count);
    }

    pub(crate) fn summary(&self) -> Counts {
        Counts {
            count: self.0.len(),
            mean: self.0.mean(),
            p50: self.0.value_at_quantile(0.5),
            p99: self.0.value_at_quantile(0.99),
            max: self.0.max(),
        }
    }

    /// The counts, and how many there are of each.
    #[cfg(feature = "metrics")]
    pub(crate) fn counts(&self) -> Vec<(f64, u64)> {
        values(&self.0).map(|(value, count)| (value as f64, count)).collect()
    }

    /// What was recorded since an earlier state of this histogram. Its largest value is exact to 1 %.
    #[cfg(feature = "metrics")]
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self(since(&self.0, &earlier.0))
    }
}

fn histogram(low: u64, high: u64) -> Hdr<u64> {
    #[expect(clippy::expect_used, reason = "constant bounds, checked by every test")]
    Hdr::new_with_bounds(low, high, 2).expect("low is at least 1 and high at least twice as much")
}

/// Each value stands for those within 1 % that are counted with it, and is in their middle.
#[cfg(feature = "metrics")]
fn values(histogram: &Hdr<u64>) -> impl Iterator<Item = (u64, u64)> {
    histogram
        .iter_recorded()
        .map(|value| (histogram.median_equivalent(value.value_iterated_to()), value.count_at_value()))
}

#[cfg(feature = "metrics")]
fn since(now: &Hdr<u64>, earlier: &Hdr<u64>) -> Hdr<u64> {
    let mut added = now.clone();
    // It fails where `earlier` holds more, which is then no earlier state of this one. The largest value of one that
    // was emptied is not zero.
    if added.subtract(earlier).is_err() || added.is_empty() { Hdr::new_from(now) } else { added }
}

/// What the writer thread measures; locked once for each group.
#[derive(Clone, Default)]
pub(crate) struct WriterStats {
    pub(crate) commands: CommandCounts,
    pub(crate) wait: PerLane<DurationHistogram>,
    pub(crate) run: PerLane<DurationHistogram>,
    pub(crate) hold: DurationHistogram,
    pub(crate) commit: DurationHistogram,
    pub(crate) wal_restart: DurationHistogram,
    pub(crate) group_commands: CountHistogram,
    pub(crate) group_size: PerLane<CountHistogram>,
    pub(crate) groups_committed: u64,
    pub(crate) groups_lost: u64,
    pub(crate) connections_replaced: u64,
    pub(crate) foreign_commits: u64,
    pub(crate) foreign_waits: u64,
    pub(crate) foreign_wait: Duration,
    /// Since when the writer has been waiting for another program now.
    pub(crate) foreign_since: Option<Instant>,
    pub(crate) is_wal_full: bool,
}

impl WriterStats {
    pub(crate) fn summarize(&self, stats: &mut Stats) {
        stats.commands = self.commands;
        stats.wait = PerLane::from_fn(|lane| self.wait[lane].summary());
        stats.run = PerLane::from_fn(|lane| self.run[lane].summary());
        stats.hold = self.hold.summary();
        stats.commit = self.commit.summary();
        stats.wal_restart = self.wal_restart.summary();
        stats.group_commands = self.group_commands.summary();
        stats.group_size = PerLane::from_fn(|lane| self.group_size[lane].summary());
        stats.groups_committed = self.groups_committed;
        stats.groups_lost = self.groups_lost;
        stats.connections_replaced = self.connections_replaced;
        stats.foreign_commits = self.foreign_commits;
        stats.foreign_waits = self.foreign_waits;
        stats.foreign_wait = self.foreign_wait_until_now();
        stats.is_wal_full = self.is_wal_full;
    }

    /// What was measured since an earlier state of this one.
    #[cfg(feature = "metrics")]
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let count = |of: fn(&Self) -> u64| of(self).saturating_sub(of(earlier));
        Self {
            commands: self.commands.since(&earlier.commands),
            wait: PerLane::from_fn(|lane| self.wait[lane].since(&earlier.wait[lane])),
            run: PerLane::from_fn(|lane| self.run[lane].since(&earlier.run[lane])),
            hold: self.hold.since(&earlier.hold),
            commit: self.commit.since(&earlier.commit),
            wal_restart: self.wal_restart.since(&earlier.wal_restart),
            group_commands: self.group_commands.since(&earlier.group_commands),
            group_size: PerLane::from_fn(|lane| self.group_size[lane].since(&earlier.group_size[lane])),
            groups_committed: count(|stats| stats.groups_committed),
            groups_lost: count(|stats| stats.groups_lost),
            connections_replaced: count(|stats| stats.connections_replaced),
            foreign_commits: count(|stats| stats.foreign_commits),
            foreign_waits: count(|stats| stats.foreign_waits),
            foreign_wait: self.foreign_wait_until_now().saturating_sub(earlier.foreign_wait_until_now()),
            foreign_since: None,
            is_wal_full: self.is_wal_full,
        }
    }

    fn foreign_wait_until_now(&self) -> Duration {
        self.foreign_wait + self.foreign_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    pub(crate) fn record_group_size(&mut self, size: &PerLane<u64>) {
        self.group_commands.record(size.interactive + size.bulk + size.maintenance);
        for lane in Lane::ALL {
            if size[lane] > 0 {
                self.group_size[lane].record(size[lane]);
            }
        }
    }
}

#[cfg(all(test, feature = "metrics"))]
mod tests {
    use super::*;

    fn measured(waits_ms: &[u64]) -> Measurements {
        let mut measured = Measurements::default();
        for ms in waits_ms {
            measured.writer.wait.bulk.record(Duration::from_millis(*ms));
            measured.writer.commands.committed += 1;
            measured.read_wait.record(Duration::from_millis(*ms));
            measured.stats.reads += 1;
        }
        measured.stats.readers_in_use = waits_ms.len();
        measured
    }

    fn nearly(duration: Duration, ms: f64) -> bool {
        (duration.as_secs_f64() * 1e3 / ms - 1.0).abs() < 0.01
    }

    #[test]
    fn what_was_added_since_is_counters_and_distributions_of_the_time_in_between() {
        let earlier = measured(&[1, 500, 500]);
        let now = measured(&[1, 500, 500, 30, 30, 80]);
        let added = now.since(&earlier).stats;
        assert_eq!((added.commands.committed, added.reads), (3, 3));
        assert_eq!(added.readers_in_use, 6, "as it is now");
        for waits in [added.wait.bulk, added.read_wait] {
            assert_eq!(waits.count, 3);
            assert!(nearly(waits.p50, 30.0) && nearly(waits.max, 80.0), "{waits:?}");
        }
        assert_eq!(now.since(&now).stats.wait.bulk, Durations::default());
    }

    #[test]
    fn what_is_no_earlier_look_at_the_same_service_adds_nothing() {
        let added = measured(&[10]).since(&measured(&[20, 20])).stats;
        assert_eq!((added.commands.committed, added.wait.bulk.count), (0, 0));
    }
}
