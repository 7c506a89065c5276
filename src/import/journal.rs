//! The way to the record of one import: it begins, its batches move it on, it ends.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::batch::Bookmark;
use super::record::{self, Advance, Begun, ImportId, ImportState};
use crate::command::Rerunnable;
use crate::error::WriteError;
use crate::failed::Reason;
use crate::label::Label;
use crate::lane::Lane;
use crate::service::Service;
use crate::transaction::WriteTransaction;
use crate::write::{Async, Write};

pub(super) struct Journal {
    service: Arc<Service>,
    id: ImportId,
    /// Whether somebody may go on with the import under its id.
    is_named: bool,
    label: Label,
    started_at: SystemTime,
    /// The number of the record, once there is one.
    number: i64,
    /// What the record does not know yet.
    batches_lost: u64,
    hold_max: Duration,
    unprepared: Vec<u64>,
}

impl Journal {
    pub(super) fn new(service: Arc<Service>, id: ImportId, is_named: bool, label: Label) -> Self {
        Self {
            service,
            id,
            is_named,
            label,
            started_at: SystemTime::now(),
            number: 0,
            batches_lost: 0,
            hold_max: Duration::ZERO,
            unprepared: Vec::new(),
        }
    }

    /// Writes down that the import begins, and learns where.
    pub(super) async fn begin(&mut self) -> Result<Begun, WriteError> {
        let (id, is_named, label, at) = (self.id.clone(), self.is_named, self.label.clone(), self.started_at);
        let running = self.service.imports.running_ids();
        let begun = self.write(move |tx| record::begin(tx, &id, is_named, &label, at, &running)).await?;
        self.number = begun.number;
        Ok(begun)
    }

    /// Writes down how the import ended. `arrived` is the end of the stream, if it has come.
    pub(super) async fn end(&mut self, state: ImportState, arrived: u64) -> Result<(), WriteError> {
        let (number, at) = (self.number, SystemTime::now());
        let last = (state == ImportState::Complete).then(|| self.last_advance(arrived));
        let written = self.write(move |tx| {
            if let Some(last) = &last {
                record::advance(tx, number, last)?;
            }
            record::end(tx, number, state, at)
        });
        written.await
    }

    /// What no batch has written down: what failed after the last one, and figures.
    fn last_advance(&self, arrived: u64) -> Advance {
        Advance {
            next_entry: arrived,
            accepted: 0,
            batches: 0,
            failures: self.unprepared.iter().map(|entry| (*entry, Reason::unprepared())).collect(),
            batches_lost: self.batches_lost,
            hold_max: self.hold_max,
        }
    }

    /// What the next batch writes down beside what it does.
    pub(super) fn bookmark(&self) -> Bookmark {
        Bookmark { number: self.number, batches_lost: self.batches_lost, hold_max: self.hold_max }
    }

    /// A batch was committed, and what was in its bookmark with it.
    pub(super) fn batch_committed(&mut self, hold: Duration) {
        self.batches_lost = 0;
        self.hold_max = self.hold_max.max(hold);
    }

    pub(super) fn batch_lost(&mut self) {
        self.batches_lost += 1;
    }

    /// The preparation of an entry failed.
    pub(super) fn unprepared(&mut self, entry: u64) {
        self.unprepared.push(entry);
    }

    /// Hands over those before `end_entry`: a chunk writes them down.
    pub(super) fn take_unprepared(&mut self, end_entry: u64) -> Vec<u64> {
        let later = self.unprepared.partition_point(|entry| *entry < end_entry);
        let rest = self.unprepared.split_off(later);
        std::mem::replace(&mut self.unprepared, rest)
    }

    /// How many entries whose preparation failed are not written down yet.
    pub(super) fn unprepared_count(&self) -> usize {
        self.unprepared.len()
    }

    /// Runs a statement of the import's own in its lane, under a label of its own: the writer learns how long a
    /// label takes, and batches take longer.
    fn write<T, F>(&self, work: F) -> impl Future<Output = Result<T, WriteError>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: Fn(&mut WriteTransaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        let service = self.service.clone();
        async move {
            let label = Label::from("solewriter.imports");
            let write: Write<'_, _, Async> = Write::new(&service, label, Lane::Bulk, Rerunnable::new(work));
            write.await
        }
    }
}
