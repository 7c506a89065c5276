//! What the writer lets everyone see: who holds it, what it measured, how far it got, whether it still writes.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use crate::config::{Checkpoints, Config};
use crate::error::Cause;
use crate::failed::{FailedCommand, FailedCommands, Reason};
use crate::health::BreakerState;
use crate::holder::{Holder, Phase};
use crate::message::{Envelope, Fate, Ticket};
use crate::shutdown::ShutdownReport;
use crate::stats::{Stats, WriterStats};
use crate::sync::lock;
use crate::token::CommitToken;
use crate::watchdog::Watchdog;

/// Shared by the writer, the housekeeper and every handle.
pub(crate) struct Board {
    /// Which opening of the database this is.
    opening: u64,
    groups: AtomicU64,
    holder: Mutex<Option<Held>>,
    stopped: Mutex<Option<Cause>>,
    /// Why writes are refused for now, and since when.
    refusing: Mutex<Option<(Cause, Instant)>>,
    watchdog: Mutex<Option<Watchdog>>,
    drain_until: Mutex<Option<Instant>>,
    pub(crate) stats: Mutex<WriterStats>,
    failed: FailedCommands,
    pub(crate) wal: WalGauge,
    /// Commands that never reached the queue, and commands taken back from it.
    refused: AtomicU64,
    withdrawn: AtomicU64,
    /// Set once, when everything is closed.
    pub(crate) closed: watch::Sender<Option<ShutdownReport>>,
}

impl Board {
    pub(crate) fn new() -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            opening: u64::try_from(since_1970.as_micros()).unwrap_or_default(),
            groups: AtomicU64::new(0),
            holder: Mutex::default(),
            stopped: Mutex::default(),
            refusing: Mutex::default(),
            watchdog: Mutex::default(),
            drain_until: Mutex::default(),
            stats: Mutex::default(),
            failed: FailedCommands::default(),
            wal: WalGauge::default(),
            refused: AtomicU64::new(0),
            withdrawn: AtomicU64::new(0),
            closed: watch::Sender::new(None),
        }
    }

    /// The token of the newest commit.
    pub(crate) fn last_commit(&self) -> CommitToken {
        CommitToken { opening: self.opening, group: self.groups.load(Ordering::Acquire) }
    }

    /// Counts a commit; only the writer does.
    pub(crate) fn committed(&self) -> CommitToken {
        let group = self.groups.fetch_add(1, Ordering::AcqRel) + 1;
        CommitToken { opening: self.opening, group }
    }

    /// Writing has stopped for good, for this reason; the first one stays.
    pub(crate) fn stop(&self, cause: Cause) {
        tracing::error!(error = %cause.as_sqlite(), "the service has stopped writing");
        lock(&self.stopped).get_or_insert(cause);
    }

    pub(crate) fn stopped(&self) -> Option<Cause> {
        lock(&self.stopped).clone()
    }

    /// Writes are refused for this reason from now on, or no longer.
    pub(crate) fn set_refusing(&self, cause: Option<Cause>) {
        *lock(&self.refusing) = cause.map(|cause| (cause, Instant::now()));
    }

    pub(crate) fn breaker(&self) -> BreakerState {
        if let Some(cause) = &*lock(&self.stopped) {
            return BreakerState::Stopped { cause: cause.as_sqlite().to_string() };
        }
        match &*lock(&self.refusing) {
            Some((cause, since)) => {
                BreakerState::Open { cause: cause.as_sqlite().to_string(), since: since.elapsed() }
            }
            None => BreakerState::Closed,
        }
    }

    /// The watchdog of the newest write connection.
    pub(crate) fn set_watchdog(&self, watchdog: Watchdog) {
        *lock(&self.watchdog) = Some(watchdog);
    }

    /// Ends the statement of a command that the writer runs now, and those to come.
    pub(crate) fn interrupt(&self) {
        if let Some(watchdog) = &*lock(&self.watchdog) {
            watchdog.end();
        }
    }

    /// Until when accepted commands are finished once the service closes; the first word counts.
    pub(crate) fn set_drain_until(&self, limit: Instant) {
        lock(&self.drain_until).get_or_insert(limit);
    }

    pub(crate) fn drain_until(&self) -> Option<Instant> {
        *lock(&self.drain_until)
    }

    /// Answers a command that is not committed: counts it and keeps its reason for those who look.
    pub(crate) fn give_up(&self, envelope: Envelope, fate: Fate, tried: Tried) {
        let outcome = fate.outcome();
        {
            let mut stats = lock(&self.stats);
            match fate {
                Fate::Culprit => stats.commands.failed += 1,
                _ => stats.commands.count(outcome),
            }
        }
        let reason = match &fate {
            // Without a reason of its own it is told by the import it belongs to.
            Fate::Culprit => tried.reason.map(|reason| *reason),
            fate => Some(Reason::of_fate(fate)),
        };
        if let Some(reason) = reason {
            let Ticket { label, lane, .. } = &*envelope;
            let failed = FailedCommand::new(label.clone(), *lane, outcome, reason);
            // Before the answer: who has it will find it here.
            self.failed.push(failed.tried(tried.attempts, tried.wait, tried.hold));
        }
        envelope.answer(fate);
    }

    /// Keeps a failure that is answered otherwise.
    pub(crate) fn note_failed(&self, failed: FailedCommand) {
        self.failed.push(failed);
    }

    pub(crate) fn recent_failures(&self) -> Vec<FailedCommand> {
        self.failed.list()
    }

    pub(crate) fn count_withdrawn(&self) {
        self.withdrawn.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// The writer begins to hold the write lock, or goes on to another phase of holding it.
    pub(crate) fn hold(&self, phase: Phase, now: Instant) {
        let mut holder = lock(&self.holder);
        let since = holder.as_ref().map_or(now, |held| held.since);
        *holder = Some(Held { phase, since, phase_since: now });
    }

    /// The writer has let go.
    pub(crate) fn let_go(&self) {
        *lock(&self.holder) = None;
    }

    pub(crate) fn holder(&self) -> Option<Holder> {
        lock(&self.holder).as_ref().map(|held| Holder {
            phase: held.phase.clone(),
            held: held.since.elapsed(),
            in_phase: held.phase_since.elapsed(),
        })
    }

    /// Sets what is known here; returns the distributions behind it.
    pub(crate) fn measure(&self, stats: &mut Stats) -> WriterStats {
        // Percentiles take longer than a copy, and the writer waits for this lock.
        let mut writer = lock(&self.stats).clone();
        writer.commands.refused = self.refused.load(Ordering::Relaxed);
        writer.commands.withdrawn = self.withdrawn.load(Ordering::Relaxed);
        writer.summarize(stats);
        stats.is_refusing_writes = lock(&self.refusing).is_some() || lock(&self.stopped).is_some();
        stats.wal_pages = self.wal.pages();
        stats.wal_pages_max = self.wal.pages_max.load(Ordering::Relaxed);
        stats.page_bytes = self.wal.page_bytes();
        stats.checkpoints = self.wal.checkpoints.load(Ordering::Relaxed);
        stats.checkpoints_blocked = self.wal.checkpoints_blocked.load(Ordering::Relaxed);
        stats.wal_restarts = self.wal.restarts.load(Ordering::Relaxed);
        writer
    }
}

/// How far a command came that is given up.
#[derive(Default)]
pub(crate) struct Tried {
    /// Its own reason, where it failed by itself.
    pub(crate) reason: Option<Box<Reason>>,
    pub(crate) attempts: u32,
    pub(crate) wait: Duration,
    pub(crate) hold: Duration,
}

impl Tried {
    /// It never ran.
    pub(crate) fn waited(wait: Duration) -> Self {
        Self { wait, ..Self::default() }
    }
}

struct Held {
    phase: Phase,
    since: Instant,
    phase_since: Instant,
}

/// The size of the WAL, as the writer and the checkpoints last saw it.
#[derive(Default)]
pub(crate) struct WalGauge {
    pages: AtomicU64,
    pages_max: AtomicU64,
    page_bytes: AtomicU64,
    /// How many of them the last checkpoint has copied.
    copied: AtomicU64,
    /// Somebody reads what is to be written over.
    is_pinned: AtomicBool,
    pub(crate) checkpoints: AtomicU64,
    pub(crate) checkpoints_blocked: AtomicU64,
    pub(crate) restarts: AtomicU64,
}

impl WalGauge {
    pub(crate) fn set_page_bytes(&self, bytes: u64) {
        self.page_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn set_pages(&self, pages: u64) {
        self.pages.store(pages, Ordering::Relaxed);
        self.pages_max.fetch_max(pages, Ordering::Relaxed);
    }

    pub(crate) fn set_copied(&self, pages: u64) {
        self.copied.store(pages, Ordering::Relaxed);
    }

    /// The pages that no checkpoint has copied yet.
    pub(crate) fn pages_left(&self) -> u64 {
        self.pages().saturating_sub(self.copied.load(Ordering::Relaxed))
    }

    /// Whether what can wait should wait until a checkpoint has caught up.
    pub(crate) fn is_crowded(&self, config: &Config) -> bool {
        config.checkpoints == Checkpoints::Service && self.is_near_target(config) && !self.is_pinned()
    }

    pub(crate) fn set_pinned(&self, is_pinned: bool) {
        self.is_pinned.store(is_pinned, Ordering::Relaxed);
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.is_pinned.load(Ordering::Relaxed)
    }

    pub(crate) fn pages(&self) -> u64 {
        self.pages.load(Ordering::Relaxed)
    }

    pub(crate) fn page_bytes(&self) -> u64 {
        self.page_bytes.load(Ordering::Relaxed)
    }

    /// Whether another checkpoint might come too late for the target.
    pub(crate) fn is_near_target(&self, config: &Config) -> bool {
        self.bytes() >= config.wal_target_bytes / 4 * 3
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.pages() * self.page_bytes()
    }
}
