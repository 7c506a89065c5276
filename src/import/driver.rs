//! What happens in which order: prepared entries gather while a batch is on its way, one batch at a time.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::stream::{Stream, StreamExt};
use tokio::sync::watch;
use tokio::task::yield_now;

use super::batch::{self, BatchDone, BatchFault, Chunk, Entry, EntryFault, is_environmental};
use super::control::{ImportControl, Wish};
use super::journal::Journal;
use super::record::{Begun, ImportState};
use super::report::{EntryError, FailedEntry, ImportError, ImportFailure, ImportReport, LostBatch, Progress};
use super::running::Ended;
use super::settings::Settings;
use super::skip::Skip;
use super::{ALL_OR_NOTHING_ENTRIES_MAX, OnError};
use crate::command::Rerunnable;
use crate::error::{NotStarted, Outcome, WriteError};
use crate::failed::{FailedCommand, Reason};
use crate::lane::Lane;
use crate::message::{Committed, Timing};
use crate::rules::Guard;
use crate::service::Service;
use crate::sync::{after, sleep};
use crate::transaction::WriteTransaction;
use crate::write::{Async, Write};

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// How many failed preparations are at most kept before they are written down.
const UNPREPARED_MAX: usize = 256;

/// For how many batches each entry keeps a savepoint of its own after one has failed half-way.
const GUARDED_BATCHES: u32 = 16;

/// While checkpoints have to catch up, a batch waits: else the writer would have to do it, and everyone would wait.
const CROWDED_PAUSE: Duration = Duration::from_millis(5);
const CROWDED_PAUSE_MAX: Duration = Duration::from_secs(1);

/// After so many entries others get their turn, however fast they come.
const YIELD_EVERY: u64 = 64;

/// What others hold of an import too.
pub(super) struct Strings {
    pub(super) progress: watch::Sender<Progress>,
    pub(super) control: ImportControl,
    pub(super) skip: Skip,
}

pub(super) struct Driver<F, O, E> {
    service: Arc<Service>,
    settings: Settings,
    strings: Strings,
    wishes: watch::Receiver<Wish>,
    journal: Journal,
    apply: Arc<F>,
    observe: O,
    report: ImportReport<E>,
    /// How many entries of the stream have come.
    arrived: u64,
    lost_in_a_row: u32,
    /// What the last batches' COMMITs took, on average: not available to entries.
    commit: Duration,
    /// How many prepared entries may wait.
    buffer: usize,
    /// For so many batches more each entry has a savepoint of its own.
    guarded_batches: u32,
}

type Reply<T, E> = Result<Committed<BatchDone<T, E>>, WriteError<BatchFault<E>>>;
type InFlight<T, E> = Pin<Box<dyn Future<Output = Reply<T, E>> + Send>>;

impl<F, O, E> Driver<F, O, E>
where
    E: std::error::Error + Send + Sync + 'static,
{
    pub(super) fn new(
        service: Arc<Service>,
        settings: Settings,
        strings: Strings,
        apply: F,
        observe: O,
    ) -> Self {
        let label = settings.label.clone();
        let buffer = settings.buffer();
        let id = settings.id.clone().unwrap_or_else(|| service.imports.new_id(&label));
        Self {
            wishes: strings.control.wishes(),
            journal: Journal::new(service.clone(), id.clone(), settings.id.is_some(), label.clone()),
            report: ImportReport::new(id, label),
            service,
            settings,
            strings,
            apply: Arc::new(apply),
            observe,
            arrived: 0,
            lost_in_a_row: 0,
            commit: Duration::ZERO,
            buffer,
            guarded_batches: 0,
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
        let ended = self.drive_registered(entries).await;
        self.report.total = started.elapsed();
        let ImportReport { id, label, accepted, failed, batches, .. } = &self.report;
        tracing::info!(%id, %label, accepted, failed, batches, complete = ended.is_ok(), "import ended");
        match ended {
            Ok(()) => Ok(self.report),
            Err(failure) => Err(ImportError { report: Box::new(self.report), failure }),
        }
    }

    /// Runs the import where everyone can see it, and writes down how it began and ended.
    async fn drive_registered<I, T>(
        &mut self,
        entries: impl Stream<Item = Result<I, E>> + Send,
    ) -> Result<(), ImportFailure>
    where
        I: Send + Sync + 'static,
        T: Send + 'static,
        F: Fn(&mut WriteTransaction<'_>, &I) -> Result<T, E> + Send + Sync + 'static,
        O: FnMut(u64, Result<T, &EntryError<E>>),
    {
        let started = Instant::now();
        let imports = self.service.imports.clone();
        let (id, label) = (self.report.id.clone(), self.report.label.clone());
        let (control, progress) = (self.strings.control.clone(), self.strings.progress.clone());
        if self.service.is_forked() {
            return Err(ImportFailure::Writer(NotStarted::Forked.into()));
        }
        let Some(_registered) = imports.begin(id, label, control, progress) else {
            return Err(ImportFailure::AlreadyRunning);
        };
        let begun = self.begin().await?;
        self.report.skipped = begun.next_entry;
        self.arrived = begun.next_entry;
        self.lost_in_a_row = 0;
        self.tell_progress();
        if begun.is_complete {
            return Ok(());
        }
        self.strings.skip.set(begun.next_entry);
        let ended = self.drive(entries).await;
        self.end(&ended).await;
        let hold_max = self.report.hold_max;
        imports.note_ended(Ended { at: SystemTime::now(), took: started.elapsed(), hold_max });
        ended
    }

    async fn begin(&mut self) -> Result<Begun, ImportFailure> {
        loop {
            self.check_cancelled()?;
            match self.journal.begin().await {
                Ok(begun) => return Ok(begun),
                Err(error) => self.bear(recording_failed(error)).await?,
            }
        }
    }

    /// What is imported stays imported, whether this works or not.
    async fn end(&mut self, ended: &Result<(), ImportFailure>) {
        let state = match ended {
            Ok(()) => ImportState::Complete,
            Err(ImportFailure::Cancelled) => ImportState::Cancelled,
            Err(_) => ImportState::Stopped,
        };
        while let Err(error) = self.journal.end(state, self.arrived).await {
            if let Err(error) = self.bear(recording_failed(error)).await {
                tracing::warn!(id = %self.report.id, %error, "the end of an import could not be written down");
                return;
            }
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
        self.strings.progress.send_modify(|progress| progress.total = total);
        let mut entries = pin!(entries.fuse());
        let mut ready = Vec::new();
        let mut chunk: Option<Chunk<I>> = None;
        let mut in_flight: Option<InFlight<T, E>> = None;
        loop {
            let wish = *self.wishes.borrow_and_update();
            if in_flight.is_none() {
                // Not before: what is in flight may be committed, and belongs into the report.
                self.check_cancelled()?;
                self.check_failures()?;
                if chunk.is_none() {
                    chunk = self.next_chunk(&mut ready, entries.is_done())?;
                }
                in_flight =
                    chunk.as_ref().filter(|_| wish == Wish::Run).map(|chunk| self.send(chunk.clone()));
            }
            if in_flight.is_none() && chunk.is_none() && entries.is_done() {
                return self.check_end();
            }
            let goes_on = wish == Wish::Run && self.check_failures().is_ok() && !entries.is_done();
            let has_room = goes_on && ready.len() < self.buffer && !self.has_many_unprepared();
            if self.arrived.is_multiple_of(YIELD_EVERY) {
                yield_now().await;
            }
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
                    Some(Ok(item)) => {
                        ready.push(Entry { index: self.arrived, item });
                        self.arrived += 1;
                    }
                    Some(Err(error)) => {
                        self.fail_unprepared(self.arrived, error);
                        self.arrived += 1;
                    }
                    None => {}
                },
                // The sender is in `strings`.
                _ = self.wishes.changed() => {}
            }
        }
    }

    /// The entries of the next batch, if enough have gathered or no more will come.
    fn next_chunk<I>(
        &mut self,
        ready: &mut Vec<Entry<I>>,
        ended: bool,
    ) -> Result<Option<Chunk<I>>, ImportFailure> {
        let all_or_nothing = self.settings.on_error == OnError::AllOrNothing;
        if all_or_nothing && ready.len() > ALL_OR_NOTHING_ENTRIES_MAX {
            return Err(ImportFailure::TooManyEntries);
        }
        let is_worth_a_batch = !ready.is_empty() && (ready.len() >= self.settings.chunk_min() || ended);
        if !is_worth_a_batch && !self.has_many_unprepared() {
            return Ok(None);
        }
        let rest = ready.split_off(ready.len().min(self.settings.chunk_max()));
        let end_entry = rest.first().map_or(self.arrived, |entry| entry.index);
        let unprepared = self.journal.take_unprepared(end_entry);
        Ok(Some(Chunk::new(std::mem::replace(ready, rest), end_entry, unprepared)))
    }

    /// Whether so many preparations have failed that they are to be written down, with a batch of nothing else if
    /// need be.
    fn has_many_unprepared(&self) -> bool {
        self.journal.unprepared_count() >= UNPREPARED_MAX
    }

    /// At the end of the stream: whether it was the whole one.
    fn check_end(&self) -> Result<(), ImportFailure> {
        match self.strings.skip.left() {
            0 => {
                self.strings.progress.send_modify(|progress| progress.total = Some(self.arrived));
                Ok(())
            }
            missing => Err(ImportFailure::StreamTooShort { missing }),
        }
    }

    fn send<I, T>(&self, chunk: Chunk<I>) -> InFlight<T, E>
    where
        I: Send + Sync + 'static,
        T: Send + 'static,
        F: Fn(&mut WriteTransaction<'_>, &I) -> Result<T, E> + Send + Sync + 'static,
    {
        let (service, label) = (self.service.clone(), self.settings.label.clone());
        let extent = self.settings.extent(service.config.bulk_hold_target, self.commit);
        let guard = if self.guarded_batches > 0 { Guard::Savepoint } else { Guard::Bare };
        let (bookmark, apply) = (self.journal.bookmark(), self.apply.clone());
        let work =
            move |tx: &mut WriteTransaction<'_>| batch::run(tx, &chunk, extent, guard, bookmark, &*apply);
        Box::pin(async move {
            let limit = after(CROWDED_PAUSE_MAX);
            while service.board.wal.is_crowded(&service.config) && Instant::now() < limit {
                sleep(CROWDED_PAUSE).await;
            }
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
                self.learn(&committed.value, chunk.is_done());
                self.accept(committed);
                Ok(())
            }
            Err(WriteError::Command(BatchFault::Entry(position, EntryFault { error, reason }))) => {
                if is_environmental(&error) {
                    let extended_code = error.sqlite_extended_code();
                    return self.bear(WriteError::Command(LostBatch { extended_code }).into()).await;
                }
                let index = chunk.leave_out(position, reason.clone());
                self.fail_applied(index, error, reason, Timing::default());
                Ok(())
            }
            Err(WriteError::Command(BatchFault::Record(error))) => Err(ImportFailure::Record(error)),
            Err(error) => self.bear(error.map_command(|_| LostBatch { extended_code: None }).into()).await,
        }
    }

    /// Learns from a batch how to make the next ones.
    fn learn<T>(&mut self, done: &BatchDone<T, E>, was_all: bool) {
        self.guarded_batches =
            if done.was_undone { GUARDED_BATCHES } else { self.guarded_batches.saturating_sub(1) };
        if was_all && done.run < self.service.config.bulk_hold_target / 2 {
            // There was time for more.
            self.buffer = self.buffer.max((self.buffer * 2).min(self.settings.buffer_max()));
        }
    }

    fn accept<T>(&mut self, committed: Committed<BatchDone<T, E>>)
    where
        O: FnMut(u64, Result<T, &EntryError<E>>),
    {
        let Committed { value: done, timing, .. } = committed;
        self.lost_in_a_row = 0;
        self.commit = (self.commit * 7 + timing.hold.saturating_sub(done.run)) / 8;
        self.journal.batch_committed(timing.hold);
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
                    self.service.imports.count_accepted();
                    (self.observe)(index, Ok(value));
                }
                Err(EntryFault { error, reason }) => self.fail_applied(index, error, reason, timing),
            }
        }
        self.tell_progress();
    }

    fn fail_unprepared<T>(&mut self, index: u64, error: E)
    where
        O: FnMut(u64, Result<T, &EntryError<E>>),
    {
        self.journal.unprepared(index);
        self.note_failed(index, Outcome::NotStarted, Reason::unprepared(), 0, Timing::default());
        self.fail(index, EntryError::Prepare(error));
    }

    fn fail_applied<T>(&mut self, index: u64, error: WriteError<E>, reason: Reason, timing: Timing)
    where
        O: FnMut(u64, Result<T, &EntryError<E>>),
    {
        self.note_failed(index, error.outcome(), reason, 1, timing);
        self.fail(index, EntryError::Write(error));
    }

    /// Shows a failure to those who look at the service.
    fn note_failed(&self, index: u64, outcome: Outcome, reason: Reason, attempts: u32, timing: Timing) {
        let failed = FailedCommand::new(self.report.label.clone(), Lane::Bulk, outcome, reason);
        let failed = failed.of_entry(index).tried(attempts, timing.wait, timing.hold);
        self.service.board.note_failed(failed);
    }

    fn fail<T>(&mut self, index: u64, error: EntryError<E>)
    where
        O: FnMut(u64, Result<T, &EntryError<E>>),
    {
        self.report.failed += 1;
        self.service.imports.count_failed();
        (self.observe)(index, Err(&error));
        if self.report.failures.len() < self.settings.failures_kept {
            self.report.failures.push(FailedEntry { index, error });
        }
        self.tell_progress();
    }

    fn check_cancelled(&self) -> Result<(), ImportFailure> {
        if self.strings.control.is_cancelled() { Err(ImportFailure::Cancelled) } else { Ok(()) }
    }

    /// Whether the import may go on after the failures so far.
    fn check_failures(&self) -> Result<(), ImportFailure> {
        match self.settings.on_error {
            OnError::AllOrNothing if self.report.failed > 0 => Err(ImportFailure::EntryFailed),
            OnError::StopAfter(limit) if self.report.failed >= limit => Err(ImportFailure::TooManyFailures),
            OnError::AllOrNothing | OnError::StopAfter(_) | OnError::Skip => Ok(()),
        }
    }

    /// Pauses after a loss that may pass, unless too many came in a row; then the same is sent again.
    async fn bear(&mut self, failure: ImportFailure) -> Result<(), ImportFailure> {
        let ImportFailure::Writer(last) = failure else { return Err(failure) };
        if !may_pass(&last) {
            return Err(ImportFailure::Writer(last));
        }
        self.journal.batch_lost();
        self.report.batches_lost += 1;
        if matches!(last, WriteError::NotStarted(NotStarted::Busy(_))) {
            self.report.batches_busy += 1;
        }
        self.lost_in_a_row += 1;
        self.tell_progress();
        if self.lost_in_a_row >= self.settings.lost_batches_max {
            return Err(ImportFailure::BatchesLost { batches: self.lost_in_a_row, last });
        }
        let pause = PAUSE_MAX.min(PAUSE_MIN * (1 << (self.lost_in_a_row - 1).min(8)));
        tracing::warn!(label = %self.report.label, error = %last, pause_ms = pause.as_millis(), "import batch lost");
        tokio::select! {
            () = sleep(pause) => {}
            _ = self.wishes.wait_for(|wish| *wish == Wish::Cancel) => {}
        }
        Ok(())
    }

    fn tell_progress(&self) {
        let report = &self.report;
        self.strings.progress.send_modify(|progress| {
            progress.accepted = report.accepted;
            progress.failed = report.failed;
            progress.skipped = report.skipped;
            progress.batches = report.batches;
            progress.batches_lost = report.batches_lost;
            progress.lost_in_a_row = self.lost_in_a_row;
            progress.hold_max = report.hold_max;
            progress.wait_max = report.wait_max;
        });
    }
}

/// Whether the same may succeed later, and can't have happened already.
fn may_pass(error: &WriteError<LostBatch>) -> bool {
    matches!(
        error,
        WriteError::Command(_)
            | WriteError::NotStarted(
                NotStarted::QueueFull { .. }
                    | NotStarted::DeadlineExceeded { .. }
                    | NotStarted::WaitedTooLong { .. }
                    | NotStarted::Busy(_)
                    | NotStarted::DiskFull(_)
                    | NotStarted::WalFull { .. }
                    | NotStarted::Unavailable(_)
            )
            | WriteError::RolledBack(_)
    )
}

/// What a failure to write the record means.
fn recording_failed(error: WriteError) -> ImportFailure {
    match error {
        WriteError::Command(error) => ImportFailure::Record(error),
        error => error.map_command(|_| LostBatch { extended_code: None }).into(),
    }
}

/// The answer of the batch in flight; none comes while there is none.
async fn answer<T, E>(in_flight: &mut Option<InFlight<T, E>>) -> Reply<T, E> {
    match in_flight {
        Some(batch) => batch.await,
        None => std::future::pending().await,
    }
}
