//! Every metric: its name, label, unit and meaning, and where its values come from.
//!
//! The table in docs/operations.md is written from this one, and a test holds it to that.

use std::time::Duration;

use ::metrics::Unit;

use crate::config::Config;
use crate::health::{Health, HealthState};
use crate::holder::{Holder, Phase};
use crate::lane::Lane;
use crate::reading::Reading;
use crate::stats::Measurements;

/// What is published at one time.
pub(super) struct Observed<'a> {
    /// What was added since the last time; what has a value at any time is as it is now.
    pub(super) added: Measurements,
    pub(super) holder: Option<Holder>,
    pub(super) oldest_read: Option<Reading>,
    pub(super) health: Health,
    pub(super) imports_running: usize,
    pub(super) config: &'a Config,
}

pub(super) struct Metric {
    pub(super) name: &'static str,
    /// The name of its label beside `database`.
    pub(super) label: Option<&'static str>,
    pub(super) unit: Unit,
    pub(super) help: &'static str,
    pub(super) source: Source,
}

/// Where the values come from, one for each value of the label.
pub(super) enum Source {
    /// What to add.
    Counter(fn(&Observed<'_>) -> Series<u64>),
    /// What it is now.
    Gauge(fn(&Observed<'_>) -> Series<f64>),
    /// What to add: values, and how many of each.
    Histogram(fn(&Observed<'_>) -> Series<Values>),
}

/// Values by that of the label.
type Series<T> = Vec<(&'static str, T)>;

/// Values, and how many of each.
type Values = Vec<(f64, u64)>;

pub(super) const METRICS: &[Metric] = &[
    Metric {
        name: "solewriter_commands_total",
        label: Some("outcome"),
        unit: Unit::Count,
        help: "Commands by what became of them. A rate of `unknown` above zero needs a look at once.",
        source: Source::Counter(|observed| {
            let counts = &observed.added.stats.commands;
            vec![
                ("committed", counts.committed),
                ("failed", counts.failed),
                ("rolled_back", counts.rolled_back),
                ("unknown", counts.unknown),
                ("not_started", counts.not_started),
                ("withdrawn", counts.withdrawn),
                ("refused", counts.refused),
            ]
        }),
    },
    Metric {
        name: "solewriter_commands_rerun_total",
        label: None,
        unit: Unit::Count,
        help: "Commands that were run again since their group was lost.",
        source: Source::Counter(|observed| one(observed.added.stats.commands.rerun)),
    },
    Metric {
        name: "solewriter_queue_depth",
        label: Some("lane"),
        unit: Unit::Count,
        help: "Commands that wait now.",
        source: Source::Gauge(|observed| per_lane(|lane| observed.added.stats.queue_depth[lane] as f64)),
    },
    Metric {
        name: "solewriter_queue_capacity",
        label: Some("lane"),
        unit: Unit::Count,
        help: "How many commands may wait: `queue_commands_max`.",
        source: Source::Gauge(|observed| per_lane(|_| observed.config.queue_commands_max as f64)),
    },
    Metric {
        name: "solewriter_queue_wait_seconds",
        label: Some("lane"),
        unit: Unit::Seconds,
        help: "From the submission of a command to its start.",
        source: Source::Histogram(|observed| per_lane(|lane| observed.added.writer.wait[lane].seconds())),
    },
    Metric {
        name: "solewriter_command_run_seconds",
        label: Some("lane"),
        unit: Unit::Seconds,
        help: "From the start of a command to its end.",
        source: Source::Histogram(|observed| per_lane(|lane| observed.added.writer.run[lane].seconds())),
    },
    Metric {
        name: "solewriter_groups_total",
        label: Some("result"),
        unit: Unit::Count,
        help: "Groups of commands that shared a COMMIT, by whether it succeeded.",
        source: Source::Counter(|observed| {
            let stats = &observed.added.stats;
            vec![("committed", stats.groups_committed), ("lost", stats.groups_lost)]
        }),
    },
    Metric {
        name: "solewriter_group_commands",
        label: None,
        unit: Unit::Count,
        help: "How many commands each committed group held.",
        source: Source::Histogram(|observed| one(observed.added.writer.group_commands.counts())),
    },
    Metric {
        name: "solewriter_group_lane_commands",
        label: Some("lane"),
        unit: Unit::Count,
        help: "How many commands of a lane each committed group held that held any.",
        source: Source::Histogram(|observed| {
            per_lane(|lane| observed.added.writer.group_size[lane].counts())
        }),
    },
    Metric {
        name: "solewriter_hold_seconds",
        label: None,
        unit: Unit::Seconds,
        help: "From BEGIN IMMEDIATE to the end of COMMIT, for each group.",
        source: Source::Histogram(|observed| one(observed.added.writer.hold.seconds())),
    },
    Metric {
        name: "solewriter_commit_seconds",
        label: None,
        unit: Unit::Seconds,
        help: "The COMMIT alone, for each group.",
        source: Source::Histogram(|observed| one(observed.added.writer.commit.seconds())),
    },
    Metric {
        name: "solewriter_wal_restart_seconds",
        label: None,
        unit: Unit::Seconds,
        help: "What the writer needed to begin the WAL anew, each time it could: everyone waits meanwhile.",
        source: Source::Histogram(|observed| one(observed.added.writer.wal_restart.seconds())),
    },
    Metric {
        name: "solewriter_holder_seconds",
        label: Some("phase"),
        unit: Unit::Seconds,
        help: "For how long the writer has held the write lock, or waited for it, by what it does; 0 while it does \
               something else.",
        source: Source::Gauge(holder_by_phase),
    },
    Metric {
        name: "solewriter_refusing_writes",
        label: None,
        unit: Unit::Count,
        help: "1 while writes are refused: after failures, on a full disk, or for good; else 0.",
        source: Source::Gauge(|observed| one(f64::from(u8::from(observed.added.stats.is_refusing_writes)))),
    },
    Metric {
        name: "solewriter_connections_replaced_total",
        label: None,
        unit: Unit::Count,
        help: "Times the write connection was replaced, since it was in doubt or after maintenance.",
        source: Source::Counter(|observed| one(observed.added.stats.connections_replaced)),
    },
    Metric {
        name: "solewriter_foreign_commits_total",
        label: None,
        unit: Unit::Count,
        help: "Groups before which another program had written.",
        source: Source::Counter(|observed| one(observed.added.stats.foreign_commits)),
    },
    Metric {
        name: "solewriter_foreign_waits_total",
        label: None,
        unit: Unit::Count,
        help: "Times the writer found the write lock held by another program.",
        source: Source::Counter(|observed| one(observed.added.stats.foreign_waits)),
    },
    Metric {
        name: "solewriter_foreign_wait_seconds",
        label: None,
        unit: Unit::Seconds,
        help: "How long the writer has waited for other programs in all, or left the write lock free for them.",
        source: Source::Gauge(|observed| one(observed.health.foreign_wait.as_secs_f64())),
    },
    Metric {
        name: "solewriter_health",
        label: Some("state"),
        unit: Unit::Count,
        help: "1 for the state the service is in, 0 for the others.",
        source: Source::Gauge(health_by_state),
    },
    Metric {
        name: "solewriter_imports_running",
        label: None,
        unit: Unit::Count,
        help: "Imports that run now, or are paused.",
        source: Source::Gauge(|observed| one(observed.imports_running as f64)),
    },
    Metric {
        name: "solewriter_import_entries_total",
        label: Some("outcome"),
        unit: Unit::Count,
        help: "Entries of imports by what became of them.",
        source: Source::Counter(|observed| {
            let entries = &observed.added.stats.import_entries;
            vec![("committed", entries.accepted), ("failed", entries.failed)]
        }),
    },
    Metric {
        name: "solewriter_imports_last_hour",
        label: None,
        unit: Unit::Count,
        help: "Imports that ended within the last hour, whatever their end.",
        source: Source::Gauge(|observed| one(observed.health.imports.total_imports_last_hour as f64)),
    },
    Metric {
        name: "solewriter_import_longest_seconds",
        label: None,
        unit: Unit::Seconds,
        help: "How long the longest import of the last hour took.",
        source: Source::Gauge(|observed| one(observed.health.imports.max_import_duration_seconds)),
    },
    Metric {
        name: "solewriter_reads_total",
        label: None,
        unit: Unit::Count,
        help: "Reads that were answered, whatever the answer.",
        source: Source::Counter(|observed| one(observed.added.stats.reads)),
    },
    Metric {
        name: "solewriter_read_wait_seconds",
        label: None,
        unit: Unit::Seconds,
        help: "How long reads waited for a connection.",
        source: Source::Histogram(|observed| one(observed.added.read_wait.seconds())),
    },
    Metric {
        name: "solewriter_oldest_read_seconds",
        label: None,
        unit: Unit::Seconds,
        help: "The age of the oldest read or snapshot, which pins the WAL; 0 while nobody reads.",
        source: Source::Gauge(|observed| {
            one(observed.oldest_read.as_ref().map_or(Duration::ZERO, |reading| reading.age).as_secs_f64())
        }),
    },
    Metric {
        name: "solewriter_readers_in_use",
        label: None,
        unit: Unit::Count,
        help: "Read-only connections that are in use now.",
        source: Source::Gauge(|observed| one(observed.added.stats.readers_in_use as f64)),
    },
    Metric {
        name: "solewriter_readers_open",
        label: None,
        unit: Unit::Count,
        help: "Read-only connections that are open now.",
        source: Source::Gauge(|observed| one(observed.added.stats.readers_open as f64)),
    },
    Metric {
        name: "solewriter_readers_max",
        label: None,
        unit: Unit::Count,
        help: "How many reads may run at a time: `readers` and `readers_overflow`.",
        source: Source::Gauge(|observed| {
            one((observed.config.readers + observed.config.readers_overflow) as f64)
        }),
    },
    Metric {
        name: "solewriter_wal_bytes",
        label: None,
        unit: Unit::Bytes,
        help: "The pages in the WAL after the newest commit.",
        source: Source::Gauge(|observed| {
            let stats = &observed.added.stats;
            one((stats.wal_pages * stats.page_bytes) as f64)
        }),
    },
    Metric {
        name: "solewriter_wal_peak_bytes",
        label: None,
        unit: Unit::Bytes,
        help: "The most the WAL has held since the database was opened.",
        source: Source::Gauge(|observed| {
            let stats = &observed.added.stats;
            one((stats.wal_pages_max * stats.page_bytes) as f64)
        }),
    },
    Metric {
        name: "solewriter_wal_limit_bytes",
        label: None,
        unit: Unit::Bytes,
        help: "The size beyond which nothing is written: `wal_limit_bytes`.",
        source: Source::Gauge(|observed| one(observed.config.wal_limit_bytes as f64)),
    },
    Metric {
        name: "solewriter_checkpoints_total",
        label: None,
        unit: Unit::Count,
        help: "Checkpoints that ran beside the writer.",
        source: Source::Counter(|observed| one(observed.added.stats.checkpoints)),
    },
    Metric {
        name: "solewriter_checkpoints_blocked_total",
        label: None,
        unit: Unit::Count,
        help: "Checkpoints, on either thread, that left something in the WAL: a reader or another process was in \
               the way.",
        source: Source::Counter(|observed| one(observed.added.stats.checkpoints_blocked)),
    },
    Metric {
        name: "solewriter_wal_restarts_total",
        label: None,
        unit: Unit::Count,
        help: "Times the WAL was begun anew from its start.",
        source: Source::Counter(|observed| one(observed.added.stats.wal_restarts)),
    },
];

/// The series of a metric without a label of its own.
fn one<T>(value: T) -> Series<T> {
    vec![("", value)]
}

fn per_lane<T>(value: impl Fn(Lane) -> T) -> Series<T> {
    Lane::ALL.into_iter().map(|lane| (lane.name(), value(lane))).collect()
}

fn holder_by_phase(observed: &Observed<'_>) -> Series<f64> {
    let held = observed.holder.as_ref().map(|holder| (phase_name(&holder.phase), holder.held.as_secs_f64()));
    let seconds = |phase| held.map_or(0.0, |(held_in, seconds)| if held_in == phase { seconds } else { 0.0 });
    ["begin", "command", "commit", "checkpoint", "recover"].map(|phase| (phase, seconds(phase))).into()
}

fn health_by_state(observed: &Observed<'_>) -> Series<f64> {
    let states = [HealthState::Healthy, HealthState::Degraded, HealthState::Failing];
    states.map(|state| (state.name(), f64::from(u8::from(state == observed.health.state)))).into()
}

fn phase_name(phase: &Phase) -> &'static str {
    match phase {
        Phase::Begin => "begin",
        Phase::Command { .. } => "command",
        Phase::Commit => "commit",
        Phase::Checkpoint => "checkpoint",
        Phase::Recover => "recover",
    }
}
