//! What the charts remember: five minutes, a point for each second.

use std::time::{Duration, Instant};

use super::sample::Interval;
use crate::config::Config;
use crate::lane::PerLane;
use crate::stats::{Durations, Stats};

/// How far back the charts go.
pub(super) const KEPT: Duration = Duration::from_secs(300);

/// What lies further apart was not watched in between.
pub(super) const GAP: Duration = Duration::from_millis(2500);

/// The points that are charted, and what they are measured against.
#[derive(Clone)]
pub(super) struct History {
    /// The time of the newest sample.
    pub(super) now: Instant,
    /// The oldest first.
    pub(super) points: Vec<Point>,
    pub(super) wal_target_bytes: u64,
    pub(super) wal_limit_bytes: u64,
    pub(super) readers_max: usize,
}

/// One second.
#[derive(Clone)]
pub(super) struct Point {
    pub(super) at: Instant,
    pub(super) commits_per_second: f64,
    pub(super) failures_per_second: f64,
    pub(super) wait: Durations,
    pub(super) hold: Durations,
    pub(super) group_mean: f64,
    pub(super) group_max: f64,
    pub(super) queue_depth: PerLane<usize>,
    pub(super) wal_bytes: u64,
    pub(super) readers_in_use: usize,
}

impl Point {
    pub(super) fn new(at: Instant, interval: &Interval, stats: &Stats) -> Self {
        Self {
            at,
            commits_per_second: interval.commits_per_second,
            failures_per_second: interval.failures_per_second,
            wait: interval.wait,
            hold: interval.hold,
            group_mean: interval.group_commands.mean,
            group_max: interval.group_commands.max as f64,
            queue_depth: stats.queue_depth,
            wal_bytes: stats.wal_pages * stats.page_bytes,
            readers_in_use: stats.readers_in_use,
        }
    }
}

impl History {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            now: Instant::now(),
            points: Vec::new(),
            wal_target_bytes: config.wal_target_bytes,
            wal_limit_bytes: config.wal_limit_bytes,
            readers_max: config.readers + config.readers_overflow,
        }
    }

    /// Goes on to `now`, with a point for it if there is one.
    pub(super) fn advance(&mut self, now: Instant, point: Option<Point>) {
        self.now = now;
        self.points.retain(|point| now.saturating_duration_since(point.at) <= KEPT);
        self.points.extend(point);
    }
}
