//! What happens in which order: prepared entries gather while a batch is on its way, one batch at a time.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{Stream, StreamExt};
use tokio::sync::watch;

use super::batch::{self, BatchDone, Chunk, Culprit, Entry, Extent, is_environmental};
use super::report::{EntryError, FailedEntry, ImportError, ImportFailure, ImportReport, LostBatch, Progress};
use super::{ALL_OR_NOTHING_ENTRIES_MAX, Batch, OnError};
use crate::command::Rerunnable;
use crate::error::{NotStarted, WriteError};
use crate::label::Label;
use crate::lane::Lane;
use crate::message::Committed;
use crate::service::Service;
use crate::sync::sleep;
use crate::transaction::WriteTransaction;
use crate::write::{Async, Write};

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

pub(super) struct Settings {
    pub(super) label: Label,
    pub(super) batch: Batch,
    pub(super) on_error: OnError,
    pub(super) buffer: usize,
    pub(super) lost_batches_max: u32,
    pub(super) failures_kept: usize,
}

impl Settings {
    pub(super) fn new(label: Label) -> Self {
        Self {
            label,
            batch: Batch::default(),
            on_error: OnError::default(),
            buffer: 256,
            lost_batches_max: 5,
            failures_kept: 1_000,
        }
    }

    /// How many prepared entries may wait.
    fn buffer(&self) -> usize {
        match (self.on_error, self.batch) {
            // One more than allowed, to see that there are too many.
            (OnError::AllOrNothing, _) => ALL_OR_NOTHING_ENTRIES_MAX + 1,
            (_, Batch::Fixed(entries)) => self.buffer.max(entries),
            (_, Batch::Adaptive) => self.buffer,
        }
    }

    /// How many entries make a batch that need not wait for more.
    fn chunk_min(&self) -> usize {
        match (self.on_error, self.batch) {
            (OnError::AllOrNothing, _) => usize::MAX,
            (_, Batch::Fixed(entries)) => entries.max(1),
            (_, Batch::Adaptive) => 1,
        }
    }

    fn chunk_max(&self) -> usize {
        match (self.on_error, self.batch) {
            (OnError::Skip | OnError::StopAfter(_), Batch::Fixed(entries)) => entries.max(1),
            _ => usize::MAX,
        }
    }
}

pub(super) struct Driver<F, O, E> {
    service: Arc<Service>,
    settings: Settings,
    progress: watch::Sender<Progress>,
    apply: Arc<F>,
    observe: O,
    report: ImportReport<E>,
    lost_in_a_row: u32,
    /// What the last batches' COMMITs took, on average: not available to entries.
    commit: Duration,
}

type Reply<T, E> = Result<Committed<BatchDone<T, E>>, WriteError<Culprit<E>>>;
type InFlight<T, E> = Pin<Box<dyn Future<Output = Reply<T, E>> + Send>>;

impl<F, O, E> Driver<F, O, E>
where
    E: std::error::Error + Send + Sync + 'static,
{
    pub(super) fn new(
        service: Arc<Service>,
        settings: Settings,
        progress: watch::Sender<Progress>,
        apply: F,
        observe: O,
    ) -> Self {
        let report = ImportReport::new(settings.label.clone());
        Self {
            service,
            settings,
            progress,
            apply: Arc::new(apply),
            observe,
            report,
            lost_in_a_row: 0,
            commit: Duration::ZERO,
        }
    }

    pub(super) async fn run<I, T>(
        mut self,
        entries: impl Stream<Item = Result<I, E>> + Send,
    ) -> Result<ImportReport<E>, ImportError<E>>
    where
        I: Send + Sync + 'static,
        T: Send + 'static,
        F: Fn(&mut WriteTransaction<'_>, &I) -> Result<T, E> + Send + Sync + 'static,
        O: FnMut(u64, Result<T, &EntryError<E>>),
    {
        let started = Instant::now();
        let ended = self.drive(entries).await;
        self.report.total = started.elapsed();
        let ImportReport { label, accepted, failed, batches, .. } = &self.report;
        tracing::info!(%label, accepted, failed, batches, complete = ended.is_ok(), "import ended");
        match ended {
            Ok(()) => Ok(self.report),
            Err(failure) => Err(ImportError { report: Box::new(self.report), failure }),
        }
    }

    async fn drive<I, T>(
        &mut self,
        entries: impl Stream<Item = Result<I, E>> + Send,
    ) -> Result<(), ImportFailure>
    where
        I: Send + Sync + 'static,
        T: Send + 'static,
        F: Fn(&mut WriteTransaction<'_>, &I) -> Result<T, E> + Send + Sync + 'static,
        O: FnMut(u64, Result<T, &EntryError<E>>),
    {
        let total = entries.size_hint().1.map(|entries| entries as u64);
        self.progress.send_modify(|progress| progress.total = total);
        let mut entries = pin!(entries.zip(futures_util::stream::iter(0_u64..)).fuse());
        let mut ready = Vec::new();
        let mut chunk: Option<Chunk<I>> = None;
        let mut in_flight: Option<InFlight<T, E>> = None;
        loop {
            if in_flight.is_none() {
                // Not before: what is in flight may be committed, and belongs into the report.
                self.check_failures()?;
                if chunk.is_none() {
                    chunk = self.next_chunk(&mut ready, entries.is_done())?;
                }
                in_flight = chunk.as_ref().map(|chunk| self.send(chunk.clone()));
            }
            if in_flight.is_none() && entries.is_done() {
                return Ok(());
            }
            let goes_on = self.check_failures().is_ok() && !entries.is_done();
            let has_room = goes_on && ready.len() < self.settings.buffer();
            tokio::select! {
                biased;
                reply = answer(&mut in_flight) => {
                    in_flight = None;
                    if let Some(sent) = &mut chunk {
                        self.settle(sent, reply).await?;
                        chunk = chunk.filter(|chunk| !chunk.is_done());
                    }
                }
                entry = entries.next(), if has_room => match entry {
                    Some((Ok(item), index)) => ready.push(Entry { index, item }),
                    Some((Err(error), index)) => self.fail(index, EntryError::Prepare(error)),
                    None => {}
                },
            }
        }
    }

    /// The entries of the next batch, if enough have gathered or no more will come.
    fn next_chunk<I>(
        &self,
        ready: &mut Vec<Entry<I>>,
        ended: bool,
    ) -> Result<Option<Chunk<I>>, ImportFailure> {
        let all_or_nothing = self.settings.on_error == OnError::AllOrNothing;
        if all_or_nothing && ready.len() > ALL_OR_NOTHING_ENTRIES_MAX {
            return Err(ImportFailure::TooManyEntries);
        }
        if ready.is_empty() || (ready.len() < self.settings.chunk_min() && !ended) {
            return Ok(None);
        }
        let rest = ready.split_off(ready.len().min(self.settings.chunk_max()));
        Ok(Some(Chunk::new(std::mem::replace(ready, rest))))
    }

    fn extent(&self) -> Extent {
        let target = self.service.config.bulk_hold_target;
        match (self.settings.on_error, self.settings.batch) {
            (OnError::AllOrNothing, _) => Extent::AllOrNothing,
            (_, Batch::Fixed(_)) => Extent::Chunk,
            // Where COMMIT alone takes longer than the target, a batch still has to be worth it.
            (_, Batch::Adaptive) => Extent::Budget(target.saturating_sub(self.commit).max(target / 4)),
        }
    }

    fn send<I, T>(&self, chunk: Chunk<I>) -> InFlight<T, E>
    where
        I: Send + Sync + 'static,
        T: Send + 'static,
        F: Fn(&mut WriteTransaction<'_>, &I) -> Result<T, E> + Send + Sync + 'static,
    {
        let (service, label) = (self.service.clone(), self.settings.label.clone());
        let (extent, apply) = (self.extent(), self.apply.clone());
        let work = move |tx: &mut WriteTransaction<'_>| batch::run(tx, &chunk, extent, &*apply);
        Box::pin(async move {
            let batch: Write<'_, _, Async> = Write::new(&service, label, Lane::Bulk, Rerunnable::new(work));
            batch.committed().await
        })
    }

    /// Draws the consequences of an answer.
    async fn settle<I, T>(&mut self, chunk: &mut Chunk<I>, reply: Reply<T, E>) -> Result<(), ImportFailure>
    where
        O: FnMut(u64, Result<T, &EntryError<E>>),
    {
        match reply {
            Ok(committed) => {
                chunk.advance_to(committed.value.end);
                self.accept(committed);
                Ok(())
            }
            Err(WriteError::Command(Culprit { position, error })) => {
                if is_environmental(&error) {
                    let extended_code = error.sqlite_extended_code();
                    return self.retry(WriteError::Command(LostBatch { extended_code })).await;
                }
                self.fail(chunk.leave_out(position), EntryError::Write(error));
                Ok(())
            }
            Err(error) => {
                let error = error.map_command(|_| LostBatch { extended_code: None });
                match &error {
                    WriteError::NotStarted(
                        NotStarted::QueueFull { .. }
                        | NotStarted::DeadlineExceeded { .. }
                        | NotStarted::WaitedTooLong { .. }
                        | NotStarted::Busy(_)
                        | NotStarted::DiskFull(_)
                        | NotStarted::WalFull { .. }
                        | NotStarted::Unavailable(_),
                    )
                    | WriteError::RolledBack(_) => self.retry(error).await,
                    // Closed, stopped, too large: no better next time. Unknown: a retry could import twice.
                    _ => Err(ImportFailure::Writer(error)),
                }
            }
        }
    }

    fn accept<T>(&mut self, committed: Committed<BatchDone<T, E>>)
    where
        O: FnMut(u64, Result<T, &EntryError<E>>),
    {
        let Committed { value: done, timing, .. } = committed;
        self.lost_in_a_row = 0;
        self.commit = (self.commit * 7 + timing.hold.saturating_sub(done.run)) / 8;
        self.report.batches += 1;
        self.report.hold_max = self.report.hold_max.max(timing.hold);
        self.report.wait_max = self.report.wait_max.max(timing.wait);
        tracing::debug!(
            label = %self.report.label,
            entries = done.outcomes.len(),
            hold_us = timing.hold.as_micros(),
            "import batch committed"
        );
        for (index, outcome) in done.outcomes {
            match outcome {
                Ok(value) => {
                    self.report.accepted += 1;
                    (self.observe)(index, Ok(value));
                }
                Err(error) => self.fail(index, EntryError::Write(error)),
            }
        }
        self.tell_progress();
    }

    fn fail<T>(&mut self, index: u64, error: EntryError<E>)
    where
        O: FnMut(u64, Result<T, &EntryError<E>>),
    {
        self.report.failed += 1;
        (self.observe)(index, Err(&error));
        if self.report.failures.len() < self.settings.failures_kept {
            self.report.failures.push(FailedEntry { index, error });
        }
        self.tell_progress();
    }

    /// Whether the import may go on after the failures so far.
    fn check_failures(&self) -> Result<(), ImportFailure> {
        match self.settings.on_error {
            OnError::AllOrNothing if self.report.failed > 0 => Err(ImportFailure::EntryFailed),
            OnError::StopAfter(limit) if self.report.failed >= limit => Err(ImportFailure::TooManyFailures),
            OnError::AllOrNothing | OnError::StopAfter(_) | OnError::Skip => Ok(()),
        }
    }

    /// Pauses before the same batch is sent again, unless too many were lost in a row.
    async fn retry(&mut self, last: WriteError<LostBatch>) -> Result<(), ImportFailure> {
        self.report.batches_lost += 1;
        if matches!(last, WriteError::NotStarted(NotStarted::Busy(_))) {
            self.report.batches_busy += 1;
        }
        self.lost_in_a_row += 1;
        if self.lost_in_a_row >= self.settings.lost_batches_max {
            return Err(ImportFailure::BatchesLost { batches: self.lost_in_a_row, last });
        }
        let pause = PAUSE_MAX.min(PAUSE_MIN * (1 << (self.lost_in_a_row - 1).min(8)));
        tracing::warn!(label = %self.report.label, error = %last, pause_ms = pause.as_millis(), "import batch lost");
        sleep(pause).await;
        Ok(())
    }

    fn tell_progress(&self) {
        self.progress.send_modify(|progress| {
            progress.accepted = self.report.accepted;
            progress.failed = self.report.failed;
            progress.batches = self.report.batches;
        });
    }
}

/// The answer of the batch in flight; none comes while there is none.
async fn answer<T, E>(in_flight: &mut Option<InFlight<T, E>>) -> Reply<T, E> {
    match in_flight {
        Some(batch) => batch.await,
        None => std::future::pending().await,
    }
}
