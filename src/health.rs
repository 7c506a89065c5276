//! Whether the service is well, and if not, why and what to do about it.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{Config, HealthLimits};
use crate::holder::{Holder, Phase};
use crate::import::{ImportFigures, ImportStatus};
use crate::label::Label;
use crate::lane::{Lane, PerLane};
use crate::reading::Reading;
use crate::stats::Stats;
use crate::units::{micros, millis};

/// How a service is, in one look. It serialises as an object; durations carry their unit in their name.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Health {
    /// The worst of the reasons; healthy if there is none.
    pub state: HealthState,
    /// What is wrong, the worst first.
    pub reasons: Vec<HealthReason>,
    /// Who holds the writer now.
    pub holder: Option<Holder>,
    /// Commands that wait now, by lane.
    pub queue_depth: PerLane<usize>,
    /// How many commands may wait in each lane.
    pub queue_capacity: usize,
    /// The command that has waited the longest.
    pub oldest_waiter: Option<Waiter>,
    /// The size of the WAL after the newest commit.
    pub wal_bytes: u64,
    /// The size beyond which nothing is written.
    pub wal_limit_bytes: u64,
    /// The oldest read or snapshot: what keeps the WAL from being begun anew.
    pub oldest_read: Option<Reading>,
    /// Read-only connections that are in use now.
    pub readers_in_use: usize,
    /// How many there may be.
    pub readers_max: usize,
    /// Whether writes are refused, and why.
    pub breaker: BreakerState,
    /// Groups before which another program had written.
    pub foreign_commits: u64,
    /// How long the writer has waited for other programs in all, or left the write lock free for them.
    #[serde(rename = "foreign_wait_us", serialize_with = "micros")]
    pub foreign_wait: Duration,
    /// The imports that ended within the last hour.
    pub imports: ImportFigures,
}

/// How well a service is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    /// All is well.
    #[default]
    Healthy,
    /// It works, and somebody should look.
    Degraded,
    /// Writes don't get through.
    Failing,
}

impl HealthState {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Failing => "failing",
        }
    }
}

impl fmt::Display for HealthState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something that is wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HealthReason {
    /// What kind of trouble it is; docs/operations.md has a section for each.
    pub kind: Trouble,
    /// How bad it is.
    pub state: HealthState,
    /// What is wrong, with names and figures.
    pub message: String,
    /// What to do next.
    pub action: &'static str,
}

/// What can be wrong with a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Trouble {
    /// The service was closed.
    Closed,
    /// Writing has stopped for good.
    Stopped,
    /// Writes are refused until a probe succeeds.
    RefusingWrites,
    /// Somebody holds the writer for long.
    LongHold,
    /// Another program holds the write lock.
    ForeignLock,
    /// A lane is nearly full.
    QueueFilling,
    /// A command has waited for long.
    LongWait,
    /// The WAL comes near its limit, or has reached it, and nothing is written.
    WalLarge,
    /// A read or a snapshot pins a WAL that has outgrown its target.
    WalPinned,
    /// Every read-only connection is in use.
    ReadersBusy,
    /// An import loses its batches.
    ImportStuck,
}

/// A command that waits to be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Waiter {
    /// The label of the command.
    pub label: Label,
    /// The lane it waits in.
    pub lane: Lane,
    /// How long it has waited.
    #[serde(rename = "waited_ms", serialize_with = "millis")]
    pub waited: Duration,
}

/// Whether writes go through.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
#[non_exhaustive]
pub enum BreakerState {
    /// They do.
    #[default]
    Closed,
    /// They are refused until a small commit of the service's own succeeds.
    Open {
        /// SQLite's message.
        cause: String,
        /// Since when.
        #[serde(rename = "since_ms", serialize_with = "millis")]
        since: Duration,
    },
    /// They are refused for good.
    Stopped {
        /// SQLite's message.
        cause: String,
    },
}

/// What is looked at, at one moment; of a fork, which has no service, nothing.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) stats: Stats,
    pub(crate) holder: Option<Holder>,
    pub(crate) oldest_waiter: Option<Waiter>,
    pub(crate) oldest_read: Option<Reading>,
    pub(crate) breaker: BreakerState,
    pub(crate) imports: ImportFigures,
    pub(crate) running_imports: Vec<ImportStatus>,
}

impl Health {
    pub(crate) fn assess(seen: Seen, is_closed: bool, config: &Config) -> Self {
        let mut reasons = reasons(&seen, config);
        reasons.extend(is_closed.then(closed));
        reasons.sort_by_key(|reason| std::cmp::Reverse(reason.state));
        let Seen { stats, holder, oldest_waiter, oldest_read, breaker, imports, .. } = seen;
        Self {
            state: reasons.first().map_or(HealthState::Healthy, |reason| reason.state),
            reasons,
            holder,
            queue_depth: stats.queue_depth,
            queue_capacity: config.queue_commands_max,
            oldest_waiter,
            wal_bytes: stats.wal_pages * stats.page_bytes,
            wal_limit_bytes: config.wal_limit_bytes,
            oldest_read,
            readers_in_use: stats.readers_in_use,
            readers_max: config.readers + config.readers_overflow,
            breaker,
            foreign_commits: stats.foreign_commits,
            foreign_wait: stats.foreign_wait,
            imports,
        }
    }
}

/// Every rule, one after the other.
fn reasons(seen: &Seen, config: &Config) -> Vec<HealthReason> {
    let limits = &config.health;
    let mut reasons = Vec::new();
    reasons.extend(breaker(&seen.breaker));
    reasons.extend(seen.holder.as_ref().and_then(|holder| hold(holder, config)));
    reasons
        .extend(Lane::ALL.into_iter().filter_map(|lane| queue(seen.stats.queue_depth[lane], lane, config)));
    reasons.extend(seen.oldest_waiter.as_ref().and_then(|waiter| wait(waiter, limits)));
    reasons.extend(wal(seen, config));
    reasons.extend(pin(seen, config));
    reasons.extend(readers(&seen.stats, config));
    reasons.extend(seen.running_imports.iter().filter_map(|import| stuck_import(import, limits)));
    reasons
}

fn closed() -> HealthReason {
    HealthReason {
        kind: Trouble::Closed,
        state: HealthState::Failing,
        message: "the service was closed".into(),
        action: "open the database again, or stop sending traffic here",
    }
}

fn breaker(breaker: &BreakerState) -> Option<HealthReason> {
    match breaker {
        BreakerState::Closed => None,
        BreakerState::Open { cause, since } => Some(HealthReason {
            kind: Trouble::RefusingWrites,
            state: HealthState::Failing,
            message: format!("writes have been refused for {}: {cause}", span(*since)),
            action: "make room on the disk or cure its errors; writes go on by themselves once a probe succeeds",
        }),
        BreakerState::Stopped { cause } => Some(HealthReason {
            kind: Trouble::Stopped,
            state: HealthState::Failing,
            message: format!("writing has stopped for good: {cause}"),
            action: "check the disk and the files, then restart the service; restore a backup if the file is damaged",
        }),
    }
}

fn hold(holder: &Holder, config: &Config) -> Option<HealthReason> {
    if holder.held < config.hold_warning {
        return None;
    }
    let state =
        if holder.held >= config.health.hold_failing { HealthState::Failing } else { HealthState::Degraded };
    let held = span(holder.held);
    Some(match &holder.phase {
        Phase::Begin => HealthReason {
            kind: Trouble::ForeignLock,
            state,
            message: format!("another program has held the write lock for {held}"),
            action: "find the other program that writes this file and end its transaction",
        },
        phase => HealthReason {
            kind: Trouble::LongHold,
            state,
            message: format!("the writer has been held for {held}, now by {phase}"),
            action: "move slow work out of that command, cut it into smaller ones, or give it a deadline",
        },
    })
}

fn queue(depth: usize, lane: Lane, config: &Config) -> Option<HealthReason> {
    let (capacity, percent) = (config.queue_commands_max, config.health.queue_degraded_percent);
    (depth.saturating_mul(100) >= capacity.saturating_mul(percent.into())).then(|| HealthReason {
        kind: Trouble::QueueFilling,
        state: HealthState::Degraded,
        message: format!("{depth} of {capacity} commands wait in the {lane} lane"),
        action: "send less, or find what slows the writer; callers wait for room, and are refused when it does not come",
    })
}

fn wait(waiter: &Waiter, limits: &HealthLimits) -> Option<HealthReason> {
    (waiter.waited >= limits.wait_degraded).then(|| HealthReason {
        kind: Trouble::LongWait,
        state: HealthState::Degraded,
        message: format!("`{}` has waited {} in the {} lane", waiter.label, span(waiter.waited), waiter.lane),
        action: "look who holds the writer, or what floods the lanes before it",
    })
}

fn wal(seen: &Seen, config: &Config) -> Option<HealthReason> {
    let bytes = seen.stats.wal_pages * seen.stats.page_bytes;
    let percent = u64::from(config.health.wal_degraded_percent);
    // A WAL at its limit is begun anew by the next write, unless somebody pins it.
    let state = if seen.stats.is_wal_full { HealthState::Failing } else { HealthState::Degraded };
    (bytes.saturating_mul(100) >= config.wal_limit_bytes.saturating_mul(percent)).then(|| HealthReason {
        kind: Trouble::WalLarge,
        state,
        message: format!(
            "the WAL has {} MiB of the {} it may have",
            bytes >> 20,
            config.wal_limit_bytes >> 20
        ),
        action: "end what pins it: a long read, a snapshot, another program; at the limit nothing is written",
    })
}

fn pin(seen: &Seen, config: &Config) -> Option<HealthReason> {
    let read = seen.oldest_read.as_ref()?;
    let outgrown = seen.stats.wal_pages * seen.stats.page_bytes >= config.wal_target_bytes;
    (read.age >= config.health.read_degraded && outgrown).then(|| HealthReason {
        kind: Trouble::WalPinned,
        state: HealthState::Degraded,
        message: format!("reader `{}` pins the WAL since {}", read.label, span(read.age)),
        action: "end it, make it shorter, or raise wal_target_bytes",
    })
}

fn readers(stats: &Stats, config: &Config) -> Option<HealthReason> {
    let max = config.readers + config.readers_overflow;
    (stats.readers_in_use >= max).then(|| HealthReason {
        kind: Trouble::ReadersBusy,
        state: HealthState::Degraded,
        message: format!("all {max} readers are in use"),
        action: "make reads shorter, hold fewer snapshots, or raise readers",
    })
}

fn stuck_import(import: &ImportStatus, limits: &HealthLimits) -> Option<HealthReason> {
    (import.progress.lost_in_a_row >= limits.import_lost_batches_degraded).then(|| HealthReason {
        kind: Trouble::ImportStuck,
        state: HealthState::Degraded,
        message: format!(
            "import `{}` has lost {} batches in a row",
            import.id, import.progress.lost_in_a_row
        ),
        action: "look at its failures; it tries again by itself until lost_batches_max",
    })
}

/// A duration for people.
fn span(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{} ms", duration.as_millis()),
        seconds @ 1..120 => format!("{seconds} s"),
        seconds => format!("{} min", seconds / 60),
    }
}
