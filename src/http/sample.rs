//! What is told of one moment, as one document.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::charts;
use super::history::History;
use crate::failed::FailedCommand;
use crate::health::Health;
use crate::import::{ImportRecord, ImportStatus};
use crate::lane::PerLane;
use crate::stats::{CommandCounts, Counts, DurationHistogram, Durations, Measurements, Stats};
use crate::units::unix_millis;

/// Everything that the dashboard shows, and `/stats.json` answers.
#[derive(Serialize)]
pub(super) struct Document<'a> {
    /// Counts the samples of this router; the same number means the same document.
    pub(super) sample: u64,
    #[serde(rename = "at_ms", serialize_with = "unix_millis")]
    pub(super) at: SystemTime,
    /// The name of the configuration.
    pub(super) database: &'a str,
    /// The name of the database file, without its folder.
    pub(super) file: &'a str,
    pub(super) interval: Interval,
    pub(super) stats: &'a Stats,
    pub(super) wal_target_bytes: u64,
    pub(super) health: &'a Health,
    pub(super) imports: &'a [ImportStatus],
    pub(super) import_records: &'a [ImportRecord],
    pub(super) failures: &'a [FailedCommand],
}

/// What happened since the sample before, or since the database was opened.
#[derive(Clone, Serialize)]
pub(super) struct Interval {
    pub(super) seconds: f64,
    pub(super) commits_per_second: f64,
    /// Commands that were answered with anything but success.
    pub(super) failures_per_second: f64,
    pub(super) groups_per_second: f64,
    pub(super) reads_per_second: f64,
    pub(super) commands: CommandCounts,
    /// From submission to start, over all lanes.
    pub(super) wait: Durations,
    pub(super) wait_by_lane: PerLane<Durations>,
    pub(super) hold: Durations,
    pub(super) commit: Durations,
    pub(super) group_commands: Counts,
    pub(super) group_commands_by_lane: PerLane<Counts>,
    pub(super) read_wait: Durations,
}

impl Interval {
    pub(super) fn new(added: &Measurements, took: Duration) -> Self {
        let stats = &added.stats;
        let seconds = took.as_secs_f64();
        let rate = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let counts = stats.commands;
        let failures =
            counts.failed + counts.rolled_back + counts.unknown + counts.not_started + counts.refused;
        Self {
            seconds,
            commits_per_second: rate(counts.committed),
            failures_per_second: rate(failures),
            groups_per_second: rate(stats.groups_committed),
            reads_per_second: rate(stats.reads),
            commands: counts,
            wait: DurationHistogram::sum(&added.writer.wait).summary(),
            wait_by_lane: stats.wait,
            hold: stats.hold,
            commit: stats.commit,
            group_commands: stats.group_commands,
            group_commands_by_lane: stats.group_size,
            read_wait: stats.read_wait,
        }
    }
}

/// A sample as it is sent: written down once, whoever asks.
pub(super) struct Sample {
    pub(super) number: u64,
    pub(super) document: Arc<str>,
    history: Arc<History>,
    charts: OnceLock<Arc<str>>,
}

impl Sample {
    pub(super) fn new(document: &Document<'_>, history: Arc<History>) -> Self {
        let number = document.sample;
        let document = serde_json::to_string(document).unwrap_or_else(|error| {
            tracing::error!(%error, "a sample could not be written as JSON");
            "{}".into()
        });
        Self { number, document: document.into(), history, charts: OnceLock::new() }
    }

    /// The charts up to this sample; drawn when the first one asks for them.
    pub(super) fn charts(&self) -> Arc<str> {
        self.charts.get_or_init(|| charts::draw(self.number, &self.history).into()).clone()
    }
}
