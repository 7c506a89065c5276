//! What can be chosen for an import, and what follows from it for its batches.

use std::time::Duration;

use super::batch::Extent;
use super::record::ImportId;
use super::{ALL_OR_NOTHING_ENTRIES_MAX, Batch, OnError};
use crate::label::Label;

const BUFFER: usize = 256;

/// What takes so little time takes little memory too.
const BUFFER_MAX: usize = 8_192;

pub(super) struct Settings {
    pub(super) label: Label,
    /// Given by the caller, who may run the import again under it.
    pub(super) id: Option<ImportId>,
    pub(super) batch: Batch,
    pub(super) on_error: OnError,
    /// If it was chosen.
    pub(super) buffer: Option<usize>,
    pub(super) lost_batches_max: u32,
    pub(super) failures_kept: usize,
}

impl Settings {
    pub(super) fn new(label: Label) -> Self {
        Self {
            label,
            id: None,
            batch: Batch::default(),
            on_error: OnError::default(),
            buffer: None,
            lost_batches_max: 5,
            failures_kept: 1_000,
        }
    }

    /// How many prepared entries may wait at first.
    pub(super) fn buffer(&self) -> usize {
        let buffer = self.buffer.unwrap_or(BUFFER);
        match (self.on_error, self.batch) {
            // One more than allowed, to see that there are too many.
            (OnError::AllOrNothing, _) => ALL_OR_NOTHING_ENTRIES_MAX + 1,
            (_, Batch::Fixed(entries)) => buffer.max(entries),
            (_, Batch::Adaptive) => buffer,
        }
    }

    /// How many may wait where they take so little time that more fit into a batch.
    pub(super) fn buffer_max(&self) -> usize {
        match (self.batch, self.buffer) {
            (Batch::Adaptive, None) => BUFFER_MAX,
            _ => 0,
        }
    }

    /// How many entries make a batch that need not wait for more.
    pub(super) fn chunk_min(&self) -> usize {
        match (self.on_error, self.batch) {
            (OnError::AllOrNothing, _) => usize::MAX,
            (_, Batch::Fixed(entries)) => entries.max(1),
            (_, Batch::Adaptive) => 1,
        }
    }

    pub(super) fn chunk_max(&self) -> usize {
        match (self.on_error, self.batch) {
            (OnError::Skip | OnError::StopAfter(_), Batch::Fixed(entries)) => entries.max(1),
            _ => usize::MAX,
        }
    }

    /// When a batch ends, where its COMMIT is expected to take so long.
    pub(super) fn extent(&self, hold_target: Duration, commit: Duration) -> Extent {
        match (self.on_error, self.batch) {
            (OnError::AllOrNothing, _) => Extent::AllOrNothing,
            (_, Batch::Fixed(_)) => Extent::Chunk,
            // Where COMMIT alone takes longer than the target, a batch still has to be worth it.
            (_, Batch::Adaptive) => Extent::Budget(hold_target.saturating_sub(commit).max(hold_target / 4)),
        }
    }
}
