//! Imports: everything slow happens before the writer, then batches stream through the bulk lane.
//!
//! `mod` is what can be called, `settings` what can be chosen, `driver` what happens in which order, `batch` what
//! runs on the writer, `record` what is written down with it, `journal` the way there, `skip` leaves out what is
//! there already, `running` and `control` are for those who look on, and `report` is what is told.

mod batch;
mod control;
mod driver;
mod journal;
pub(crate) mod record;
mod report;
mod running;
mod settings;
mod skip;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::stream::{self, Stream, StreamExt};
use tokio::sync::watch;

use crate::label::Label;
use crate::service::Service;
use crate::sync::block_on;
use crate::transaction::WriteTransaction;

pub use control::ImportControl;
use driver::{Driver, Strings};
pub use record::{ImportId, ImportRecord, ImportState, RecordedFailure};
pub use report::{EntryError, FailedEntry, ImportError, ImportFailure, ImportReport, LostBatch, Progress};
pub(crate) use running::Imports;
pub use running::{ImportFigures, ImportStatus};
use settings::Settings;
use skip::Skip;

/// How entries are put together into batches, each in a transaction of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Batch {
    /// As many as fit into `bulk_hold_target`, and at least one, whatever an entry takes (the default).
    #[default]
    Adaptive,
    /// This many, however long they hold the write lock.
    Fixed(usize),
}

/// What an import does about entries that fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// Leaves them out, reports them and goes on (the default).
    #[default]
    Skip,
    /// Leaves them out and stops once this many have failed; what was imported by then stays.
    StopAfter(u64),
    /// Imports all entries in one transaction, or none of them.
    ///
    /// Nothing else can be written while that transaction runs, and all entries wait in memory for it, so
    /// there may be at most [`ALL_OR_NOTHING_ENTRIES_MAX`] of them.
    AllOrNothing,
}

/// The most entries an import with [`OnError::AllOrNothing`] may have.
pub const ALL_OR_NOTHING_ENTRIES_MAX: usize = 10_000;

/// An import that has not begun yet.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let db = solewriter::Database::open(dir.path().join("app.db")).await?;
/// db.execute("CREATE TABLE words (word TEXT PRIMARY KEY, length INTEGER CHECK (length > 0))", ()).await?;
/// let report = db
///     .import("words", futures_util::stream::iter(["tea", "", "cake"]))
///     .prepare(4, |word| async move { Ok::<_, rusqlite::Error>((word, word.len() as i64)) })
///     .run(|tx, (word, length)| tx.execute("INSERT INTO words VALUES (?1, ?2)", (word, length)))
///     .await?;
/// assert_eq!((report.accepted, report.failed), (2, 1));
/// assert_eq!(report.failures[0].index, 1);
/// # Ok(()) }
/// ```
#[must_use = "an import begins when its run is awaited"]
pub struct Import<S> {
    service: Arc<Service>,
    items: S,
    settings: Settings,
    skip: Skip,
}

impl<S: Stream> Import<S> {
    pub(crate) fn new(service: Arc<Service>, label: Label, items: S) -> Self {
        Self { service, items, settings: Settings::new(label), skip: Skip::default() }
    }

    /// Prepares each item before it goes to the writer, up to `concurrency` at a time, in order.
    ///
    /// Here belongs everything slow: download, hash, parse. It runs within the task that awaits the import;
    /// give work that blocks to `spawn_blocking`. An entry that fails here fails alone.
    pub fn prepare<F, P, I, E>(
        self,
        concurrency: usize,
        prepare: F,
    ) -> Import<Prepared<impl Stream<Item = Result<I, E>>>>
    where
        F: FnMut(S::Item) -> P,
        P: Future<Output = Result<I, E>>,
    {
        let items = self.skip.clone().apply(self.items).map(prepare).buffered(concurrency.max(1));
        Import { service: self.service, items: Prepared(items), settings: self.settings, skip: self.skip }
    }
}

impl<S> Import<S> {
    /// Says which import it is, so that it happens once, however often it is begun.
    ///
    /// Each batch writes down how far the import is, in its own transaction. Run again under the same id, after
    /// its process was killed, say, the import goes on there: give it the stream from the start, in the same
    /// order, and it leaves out what is settled, unprepared; nothing is imported twice and nothing is lost.
    /// Entries that have failed are settled too. An import that is complete does nothing any more;
    /// [`Database::forget_import`](crate::Database::forget_import) lets it begin anew.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let db = solewriter::Database::open(dir.path().join("app.db")).await?;
    /// db.execute("CREATE TABLE words (word TEXT)", ()).await?;
    /// for skipped in [0, 2] {
    ///     let report = db
    ///         .import("words", futures_util::stream::iter(["tea", "cake"]))
    ///         .id("words-of-monday")
    ///         .run(|tx, word| tx.execute("INSERT INTO words VALUES (?1)", [word]))
    ///         .await?;
    ///     assert_eq!(report.skipped, skipped);
    /// }
    /// let count: i64 = db.read("count", |tx| tx.query_row("SELECT count(*) FROM words", (), |row| row.get(0))).await?;
    /// assert_eq!(count, 2);
    /// # Ok(()) }
    /// ```
    pub fn id(mut self, id: impl Into<ImportId>) -> Self {
        self.settings.id = Some(id.into());
        self
    }

    /// Chooses the size of the batches.
    pub fn batch(mut self, batch: Batch) -> Self {
        self.settings.batch = batch;
        self
    }

    /// Chooses what to do about entries that fail.
    pub fn on_error(mut self, on_error: OnError) -> Self {
        self.settings.on_error = on_error;
        self
    }

    /// Limits how many prepared entries gather while a batch is on its way, which may hold as many again.
    /// Default: 256, and up to 8,192 where entries take so little time that a batch has room for more.
    pub fn buffer(mut self, entries: usize) -> Self {
        self.settings.buffer = Some(entries.max(1));
        self
    }

    /// Limits how many batches in a row may be lost for reasons outside of their entries, such as a full disk
    /// or a database that another process keeps locked, before the import gives up. Default: 5.
    ///
    /// Between two tries it pauses, for 50 ms at first and up to 2 s.
    pub fn lost_batches_max(mut self, batches: u32) -> Self {
        self.settings.lost_batches_max = batches.max(1);
        self
    }

    /// Limits how many failed entries the report keeps with their errors; all are counted. Default: 1,000.
    pub fn failures_kept(mut self, failures: usize) -> Self {
        self.settings.failures_kept = failures;
        self
    }

    /// Imports every entry with `apply`, each completely or not at all.
    ///
    /// `apply` may be run again for an entry whose batch was lost, so it must be free of effects outside the
    /// transaction. Its error, or its panic, costs that entry alone.
    ///
    /// # Errors
    /// [`ImportError`], with the report up to then, if the import stopped before the end of the stream.
    ///
    /// # Cancel safety
    /// Dropped, the batch on its way to the writer is finished, and nothing after it begins.
    pub fn run<'i, F, T, E>(self, apply: F) -> ImportRun<'i, E>
    where
        S: Entries<E> + Send + 'i,
        F: Fn(&mut WriteTransaction<'_>, &S::Entry) -> Result<T, E> + Send + Sync + 'static,
        T: Send + 'static,
        E: std::error::Error + Send + Sync + 'static,
    {
        self.run_observed(apply, |_, _| ())
    }

    /// As [`run`](Self::run), and tells `observe` the outcome of every entry, by its index in the stream,
    /// once that outcome is final: a value only after its COMMIT.
    ///
    /// Write the observer in place: a closure bound to a variable first is inferred for one lifetime only, and
    /// the compiler then finds it "not general enough".
    ///
    /// # Errors
    /// As with [`run`](Self::run).
    ///
    /// # Cancel safety
    /// As that of [`run`](Self::run).
    pub fn run_observed<'i, F, O, T, E>(self, apply: F, observe: O) -> ImportRun<'i, E>
    where
        S: Entries<E> + Send + 'i,
        F: Fn(&mut WriteTransaction<'_>, &S::Entry) -> Result<T, E> + Send + Sync + 'static,
        O: FnMut(u64, Result<T, &EntryError<E>>) + Send + 'i,
        T: Send + 'static,
        E: std::error::Error + Send + Sync + 'static,
    {
        let (progress, control) = (watch::Sender::new(Progress::default()), ImportControl::new());
        let receiver = progress.subscribe();
        let strings = Strings { progress, control: control.clone(), skip: self.skip.clone() };
        let driver = Driver::new(self.service, self.settings, strings, apply, observe);
        let driver = Box::pin(driver.run(self.items.entries(self.skip)));
        ImportRun { driver, progress: receiver, control }
    }
}

impl<S> fmt::Debug for Import<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Import").field("label", &self.settings.label).finish_non_exhaustive()
    }
}

/// A stream whose items are entries, or the errors of their preparation.
pub trait Entries<E> {
    /// What the writer gets to see of an item.
    type Entry: Send + Sync + 'static;

    #[doc(hidden)]
    fn entries(self, skip: Skip) -> impl Stream<Item = Result<Self::Entry, E>> + Send;
}

impl<S, E> Entries<E> for S
where
    S: Stream<Item: Send + Sync + 'static> + Send,
{
    type Entry = S::Item;

    fn entries(self, skip: Skip) -> impl Stream<Item = Result<Self::Entry, E>> + Send {
        skip.apply(self).map(Ok)
    }
}

/// The items of an [`Import`] after their preparation.
#[derive(Debug)]
pub struct Prepared<S>(S);

impl<S, I, E> Entries<E> for Prepared<S>
where
    S: Stream<Item = Result<I, E>> + Send,
    I: Send + Sync + 'static,
{
    type Entry = I;

    /// What is left out was left out before the preparation.
    fn entries(self, _: Skip) -> impl Stream<Item = Result<I, E>> + Send {
        self.0
    }
}

type ImportResult<E> = Result<ImportReport<E>, ImportError<E>>;

/// An import, begun when first awaited.
#[must_use = "an import begins when its run is awaited"]
pub struct ImportRun<'i, E> {
    driver: Pin<Box<dyn Future<Output = ImportResult<E>> + Send + 'i>>,
    progress: watch::Receiver<Progress>,
    control: ImportControl,
}

impl<E> ImportRun<'_, E> {
    /// Pauses, resumes and cancels the import from elsewhere.
    #[must_use]
    pub fn control(&self) -> ImportControl {
        self.control.clone()
    }

    /// How far the import is: the newest state at each poll, until the import ends.
    pub fn progress(&self) -> impl Stream<Item = Progress> + Send + use<E> {
        stream::unfold(self.progress.clone(), |mut progress| async move {
            progress.changed().await.ok()?;
            let newest = progress.borrow_and_update().clone();
            Some((newest, progress))
        })
    }

    /// Blocks the thread until the import has ended; needs no runtime.
    ///
    /// # Errors
    /// As awaiting it.
    pub fn wait(self) -> Result<ImportReport<E>, ImportError<E>> {
        block_on(self.driver)
    }
}

impl<E> Future for ImportRun<'_, E> {
    type Output = Result<ImportReport<E>, ImportError<E>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.driver.as_mut().poll(context)
    }
}

impl<E> fmt::Debug for ImportRun<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImportRun").field("progress", &*self.progress.borrow()).finish_non_exhaustive()
    }
}
