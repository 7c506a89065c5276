//! Everything that can be seen of a service, without keeping it open.

use std::sync::Arc;

use crate::board::Board;
use crate::fork::Generation;
use crate::holder::Holder;
use crate::queue::QueueDepth;
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
    /// In a fork every lock here may be held for ever.
    generation: Generation,
}

impl Meter {
    pub(crate) fn new(board: Arc<Board>, readers: Arc<ReaderPool>, depth: QueueDepth) -> Self {
        Self { board, readers, depth, generation: Generation::current() }
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
        let mut stats = Stats { queue_depth: self.depth.read(), ..Stats::default() };
        let writer = self.board.measure(&mut stats);
        let read_wait = self.readers.measure(&mut stats);
        Measurements { stats, writer, read_wait }
    }

    pub(crate) fn holder(&self) -> Option<Holder> {
        if self.is_forked() { None } else { self.board.holder() }
    }

    pub(crate) fn oldest_read(&self) -> Option<Reading> {
        if self.is_forked() { None } else { self.readers.pins().oldest() }
    }

    /// Ready when everything is closed.
    #[cfg(feature = "metrics")]
    pub(crate) async fn closed(&self) {
        let mut closed = self.board.closed.subscribe();
        // An error would mean that the sender is gone, which is in the board.
        drop(closed.wait_for(Option::is_some).await);
    }
}
