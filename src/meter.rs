//! Everything that can be seen of a service, without keeping it open.

use std::sync::{Arc, Weak};
use std::time::Instant;

use crate::board::Board;
use crate::config::HealthLimits;
use crate::failed::FailedCommand;
use crate::fork::Generation;
use crate::health::{Seen, Waiter};
use crate::holder::Holder;
use crate::import::{ImportControl, ImportId, ImportStatus, Imports};
use crate::lane::Lane;
use crate::queue::{Queue, QueueDepth};
use crate::reader::ReaderPool;
use crate::reading::Reading;
use crate::stats::{Measurements, Stats};

/// Reads what a service measures. It outlives the service, so that what is measured while the service closes
/// can be read too.
#[derive(Clone)]
pub(crate) struct Meter {
    board: Arc<Board>,
    readers: Arc<ReaderPool>,
    depth: QueueDepth,
    /// Only to look at: what is sent after the writer has gone must be dropped with it.
    queue: Weak<Queue>,
    imports: Arc<Imports>,
    #[cfg_attr(not(feature = "http"), expect(dead_code, reason = "only the dashboard asks for it"))]
    opened: Instant,
    /// In a fork every lock here may be held for ever.
    generation: Generation,
}

impl Meter {
    pub(crate) fn new(
        board: Arc<Board>,
        readers: Arc<ReaderPool>,
        depth: QueueDepth,
        queue: Weak<Queue>,
        imports: Arc<Imports>,
    ) -> Self {
        Self {
            board,
            readers,
            depth,
            queue,
            imports,
            opened: Instant::now(),
            generation: Generation::current(),
        }
    }

    /// Whether this process is a fork, where nothing can be seen of the service.
    pub(crate) fn is_forked(&self) -> bool {
        self.generation.is_past()
    }

    /// The figures and the distributions behind them, as of now.
    pub(crate) fn measure(&self) -> Measurements {
        if self.is_forked() {
            return Measurements::default();
        }
        let mut stats = Stats {
            queue_depth: self.depth.read(),
            import_entries: self.imports.entries(),
            ..Stats::default()
        };
        let writer = self.board.measure(&mut stats);
        let read_wait = self.readers.measure(&mut stats);
        Measurements { stats, writer, read_wait }
    }

    pub(crate) fn holder(&self) -> Option<Holder> {
        if self.is_forked() { None } else { self.board.holder() }
    }

    /// The command that has waited the longest.
    fn oldest_waiter(&self) -> Option<Waiter> {
        let now = Instant::now();
        self.queue.upgrade()?.look(|lanes| {
            let waiting =
                Lane::ALL.into_iter().filter_map(|lane| lanes.first(lane, |waiting| waiting.waits()));
            let oldest = waiting.min_by_key(|waiting| waiting.submitted)?;
            let waited = now.saturating_duration_since(oldest.submitted);
            Some(Waiter { label: oldest.label.clone(), lane: oldest.lane, waited })
        })
    }

    pub(crate) fn recent_failures(&self) -> Vec<FailedCommand> {
        if self.is_forked() { Vec::new() } else { self.board.recent_failures() }
    }

    pub(crate) fn import_control(&self, id: &ImportId) -> Option<ImportControl> {
        if self.is_forked() { None } else { self.imports.control(id) }
    }

    pub(crate) fn imports(&self) -> Vec<ImportStatus> {
        if self.is_forked() { Vec::new() } else { self.imports.running() }
    }

    /// What the health of the service is told from; the figures are of now.
    pub(crate) fn look(&self, stats: Stats, limits: &HealthLimits) -> Seen {
        if self.is_forked() {
            return Seen::default();
        }
        Seen {
            stats,
            holder: self.holder(),
            oldest_waiter: self.oldest_waiter(),
            oldest_read: self.oldest_read(),
            breaker: self.board.breaker(),
            imports: self.imports.figures(limits.import_duration_degraded),
            running_imports: self.imports.running(),
        }
    }

    pub(crate) fn oldest_read(&self) -> Option<Reading> {
        if self.is_forked() { None } else { self.readers.pins().oldest() }
    }

    /// How long ago the database was opened.
    #[cfg(feature = "http")]
    pub(crate) fn age(&self) -> std::time::Duration {
        self.opened.elapsed()
    }

    /// Whether everything is closed.
    #[cfg(feature = "metrics")]
    pub(crate) fn is_closed(&self) -> bool {
        self.board.closed.borrow().is_some()
    }

    /// Ready when everything is closed.
    #[cfg(feature = "metrics")]
    pub(crate) async fn closed(&self) {
        let mut closed = self.board.closed.subscribe();
        // An error would mean that the sender is gone, which is in the board.
        drop(closed.wait_for(Option::is_some).await);
    }
}
