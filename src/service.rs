//! A running service: the writer thread and what stands around it, from start to orderly end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use crate::board::Board;
use crate::config::{Checkpoints, Config};
use crate::connection::{self, Location, Role};
use crate::error::{Cause, OpenErrorReason};
use crate::fork::Generation;
use crate::health::Health;
use crate::herald::Herald;
use crate::housekeeper::{Housekeeper, Housekeeping};
use crate::identity::FileIdentities;
use crate::import::Imports;
use crate::meter::Meter;
use crate::queue::{self, Outbox, Queue, QueueDepth};
use crate::reader::ReaderPool;
use crate::shutdown::{Drain, ShutdownError, ShutdownReport};
use crate::stats::Stats;
use crate::sync::{after, block_on_until, until};
use crate::writer::{Served, WriteConnection, Writer};

/// How long a shutdown waits for code that it has interrupted.
const INTERRUPT_GRACE: Duration = Duration::from_secs(1);

/// How long the last checkpoint waits for readers that are not ours: another process, or a statement that a
/// command leaked. The next open recovers what stays in the WAL.
const LAST_CHECKPOINT_WAIT: Duration = Duration::from_secs(1);

/// How long reads may go on before every connection is opened anew; then they are interrupted.
const REOPEN_WAIT: Duration = Duration::from_secs(1);

/// The service of a fork is the parent's: it goes on there.
const NOTHING_TO_CLOSE: ShutdownReport = ShutdownReport { not_started: 0, wal_pages_left: 0, stopped: false };

/// What all handles of a database share. Dropping it closes the database in the background.
pub(crate) struct Service {
    /// Shared so that a fork can keep it from being dropped.
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) board: Arc<Board>,
    pub(crate) readers: Arc<ReaderPool>,
    pub(crate) imports: Arc<Imports>,
    pub(crate) herald: Arc<Herald>,
    pub(crate) config: Config,
    pub(crate) location: Location,
    generation: Generation,
    pub(crate) meter: Meter,
    closing: AtomicBool,
    writer_thread: ThreadId,
}

impl Service {
    /// Opens every connection and starts the threads. What is `held`, locks that is, is dropped once everything
    /// is closed again, or the open has failed.
    pub(crate) fn start(
        location: Location,
        config: Config,
        held: impl Send + 'static,
    ) -> Result<Arc<Self>, OpenErrorReason> {
        let (outbox, queue) = queue::open(&config);
        let board = Arc::new(Board::new());
        let (ready, started) = mpsc::sync_channel(1);
        let imports = Arc::new(Imports::default());
        let looked_at = Arc::downgrade(&queue);
        let herald = Arc::new(Herald::default());
        let life = WriterThread { location, config, board, queue, imports, herald: herald.clone(), held };
        let (location, config, board) = (life.location.clone(), life.config.clone(), life.board.clone());
        let imports = life.imports.clone();
        let thread = std::thread::Builder::new()
            .name(format!("{}-writer", config.name))
            .spawn(move || life.run(&ready))
            .map_err(OpenErrorReason::Io)?;
        let readers = started.recv().unwrap_or_else(|_| {
            Err(OpenErrorReason::Io(std::io::Error::other("the writer thread ended while it opened")))
        })?;
        Ok(Arc::new(Self {
            meter: Meter::new(
                board.clone(),
                readers.clone(),
                QueueDepth::of(&outbox),
                looked_at,
                imports.clone(),
            ),
            outbox: Arc::new(outbox),
            board,
            readers,
            imports,
            herald,
            config,
            location,
            generation: Generation::current(),
            closing: AtomicBool::new(false),
            writer_thread: thread.thread().id(),
        }))
    }

    /// Whether this process is a fork of the one that opened the database: there are no threads behind the
    /// service here, and each of its locks may be held by one for ever.
    pub(crate) fn is_forked(&self) -> bool {
        self.generation.is_past()
    }

    /// Whether this is the writer thread, which would wait for itself.
    pub(crate) fn on_writer_thread(&self) -> bool {
        std::thread::current().id() == self.writer_thread
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Accepts nothing more; the writer finishes what was accepted, and everything is closed.
    fn close(&self) {
        if !self.closing.swap(true, Ordering::AcqRel) {
            self.outbox.close();
        }
    }

    pub(crate) fn begin_shutdown(&self, limit: Instant) {
        self.board.set_drain_until(limit);
        self.close();
    }

    /// Ready when everything is closed.
    pub(crate) async fn closed(&self) -> ShutdownReport {
        let mut closed = self.board.closed.subscribe();
        let report = closed.wait_for(Option::is_some).await.ok().and_then(|report| report.clone());
        match report {
            Some(report) => report,
            // The sender is in the board, which `self` keeps.
            None => std::future::pending().await,
        }
    }

    pub(crate) async fn shutdown(&self, drain: Drain) -> Result<ShutdownReport, ShutdownError> {
        if self.is_forked() {
            return Ok(NOTHING_TO_CLOSE);
        }
        let limit = after(drain.limit);
        self.begin_shutdown(limit);
        if self.on_writer_thread() {
            // It would wait for the command that asks for it.
            return Err(self.still_running());
        }
        if let Some(report) = until(limit, self.closed()).await {
            return Ok(report);
        }
        self.board.interrupt();
        let report = until(after(INTERRUPT_GRACE), self.closed()).await;
        report.ok_or_else(|| self.still_running())
    }

    pub(crate) fn shutdown_blocking(&self, drain: Drain) -> Result<ShutdownReport, ShutdownError> {
        if self.is_forked() {
            return Ok(NOTHING_TO_CLOSE);
        }
        let limit = after(drain.limit);
        self.begin_shutdown(limit);
        if self.on_writer_thread() {
            // It would wait for the command that asks for it.
            return Err(self.still_running());
        }
        if let Some(report) = block_on_until(self.closed(), limit) {
            return Ok(report);
        }
        self.board.interrupt();
        block_on_until(self.closed(), after(INTERRUPT_GRACE)).ok_or_else(|| self.still_running())
    }

    fn still_running(&self) -> ShutdownError {
        ShutdownError { still_running: self.board.holder().map(|holder| holder.phase) }
    }
}

impl Service {
    /// How the service is; a fork finds it closed.
    pub(crate) fn health(&self) -> Health {
        self.health_by(self.meter.measure().stats)
    }

    /// The same, by figures that were measured just now.
    pub(crate) fn health_by(&self, stats: Stats) -> Health {
        let is_closed = self.is_forked() || self.is_closing();
        Health::assess(self.meter.look(stats, &self.config.health), is_closed, &self.config)
    }
}

impl Drop for Service {
    #[expect(clippy::mem_forget, reason = "see below")]
    fn drop(&mut self) {
        if self.is_forked() {
            // What would be closed is the parent's, and what would be told, and how, is behind locks.
            std::mem::forget((self.outbox.clone(), self.board.clone(), self.readers.clone()));
        } else {
            self.begin_shutdown(after(self.config.shutdown_wait_max));
        }
    }
}

/// What the writer thread owns.
struct WriterThread<H> {
    location: Location,
    config: Config,
    board: Arc<Board>,
    queue: Arc<Queue>,
    imports: Arc<Imports>,
    herald: Arc<Herald>,
    held: H,
}

type Ready = mpsc::SyncSender<Result<Arc<ReaderPool>, OpenErrorReason>>;

impl<H> WriterThread<H> {
    fn run(self, ready: &Ready) {
        let housekeeping = Arc::new(Housekeeping::default());
        let (connection, housekeeper, readers) = match self.open(&housekeeping) {
            Ok(opened) => opened,
            Err(reason) => {
                // The opener must find the file free again when it learns of the failure.
                drop(self);
                return drop(ready.send(Err(reason)));
            }
        };
        if ready.send(Ok(readers.clone())).is_err() {
            return;
        }
        let mut writer = Writer::new(
            self.queue.clone(),
            self.board.clone(),
            housekeeping.clone(),
            readers.pins(),
            self.herald.clone(),
            self.config.clone(),
        );
        writer.unsynced_groups = connection.wal_is_in_doubt();
        #[cfg(feature = "sabotage")]
        {
            writer.sabotage = self.location.sabotage;
            let retries = self.location.sabotage == Some(crate::sabotage::Sabotage::RetryCheckpoints);
            housekeeping.retries.store(retries, std::sync::atomic::Ordering::Relaxed);
        }
        let (mut connection, mut housekeeper) = (Some(connection), Some(housekeeper));
        loop {
            match writer.run(connection, &self.location) {
                Served::Drained(last) => {
                    connection = last;
                    break;
                }
                Served::Reopen(old) => {
                    (connection, housekeeper) = self.reopen(old, housekeeper, &housekeeping, &readers);
                }
            }
        }
        let limit = self.board.drain_until().unwrap_or_else(Instant::now) + INTERRUPT_GRACE;
        // Readers first: the WAL can be emptied only when nobody reads from it.
        readers.close(limit);
        if let Some(housekeeper) = housekeeper {
            housekeeper.stop();
        }
        let report = ShutdownReport {
            not_started: writer.not_reached(),
            wal_pages_left: self.close(connection, &housekeeping, limit),
            stopped: self.board.stopped().is_some(),
        };
        let Self { board, held, .. } = self;
        drop((writer, held));
        board.closed.send_replace(Some(report));
    }

    /// Closes the write connection, the last one; returns the pages that are left in the WAL.
    fn close(&self, connection: Option<WriteConnection>, housekeeping: &Housekeeping, limit: Instant) -> u64 {
        let Some(connection) = connection else { return self.board.wal.pages() };
        if let Err(cause) = connection.check_files() {
            // What is there now is somebody else's: a checkpoint could overwrite it, and the last close would
            // delete a -wal file that is not ours.
            self.board.stop(cause);
        }
        let in_doubt = self.board.stopped().is_some() || housekeeping.failure().is_some();
        if in_doubt || self.config.checkpoints == Checkpoints::External {
            connection.close_as_it_is();
            return self.board.wal.pages();
        }
        // Half of what is left, so that the report is there before the caller stops waiting for it.
        let wait = LAST_CHECKPOINT_WAIT.min(limit.saturating_duration_since(Instant::now()) / 2);
        connection.close(&self.board, wait).unwrap_or_else(|error| {
            tracing::error!(%error, "the last checkpoint failed; the next open recovers the WAL");
            self.board.wal.pages()
        })
    }

    /// Closes every connection of the service without a checkpoint and opens them anew, so that SQLite builds
    /// the wal-index anew: after a checkpoint that failed, the old one says that pages are safe that are not.
    fn reopen(
        &self,
        old: WriteConnection,
        housekeeper: Option<Housekeeper>,
        housekeeping: &Arc<Housekeeping>,
        readers: &Arc<ReaderPool>,
    ) -> (Option<WriteConnection>, Option<Housekeeper>) {
        if let Err(cause) = old.check_files() {
            // What would be opened is not what is closed.
            self.board.stop(cause);
            return (Some(old), housekeeper);
        }
        let cause = housekeeping.failure();
        let Some(suspended) = readers.suspend(Instant::now() + REOPEN_WAIT) else {
            // A read that does not end keeps the old wal-index alive.
            self.board.stop(cause.unwrap_or_else(lost_connection));
            return (Some(old), housekeeper);
        };
        if let Some(housekeeper) = housekeeper {
            housekeeper.stop();
        }
        let files = old.close_as_it_is();
        match self.open_anew(housekeeping, &files) {
            Ok((connection, housekeeper)) => {
                suspended.opened_anew();
                tracing::warn!("every connection was opened anew after a checkpoint that failed");
                (Some(connection), Some(housekeeper))
            }
            Err(reason) => {
                // That another file is there is worse than what made us open it anew.
                let is_replaced = files.check_database().is_err();
                self.board.stop(cause.filter(|_| !is_replaced).unwrap_or_else(|| reason.into()));
                (None, None)
            }
        }
    }

    /// It is opened by name, which must still be that of the same database: it is looked at before, since the open
    /// itself can change a file, and afterwards.
    fn open_anew(
        &self,
        housekeeping: &Arc<Housekeeping>,
        files: &FileIdentities,
    ) -> Result<(WriteConnection, Housekeeper), OpenErrorReason> {
        let is_ours = || files.check_database().map_err(Cause::from);
        is_ours().map_err(OpenErrorReason::Sqlite)?;
        let connection = WriteConnection::open(&self.location, &self.config, &self.board, &is_ours)?;
        if let Err(cause) = is_ours() {
            connection.close_as_it_is();
            return Err(OpenErrorReason::Sqlite(cause));
        }
        // Another process that has the file open has kept the old wal-index, where this is not zero. And a
        // checkpoint that fails again, now from the start, will not do better a third time.
        let checkpointed = match connection.wal_pages_copied() {
            Ok(0) => connection.checkpoint().map_err(OpenErrorReason::from),
            Ok(_) => Err(OpenErrorReason::Sqlite(lost_connection())),
            Err(error) => Err(error.into()),
        };
        let housekeeper = checkpointed.and_then(|()| {
            housekeeping.recovered();
            self.start_housekeeper(housekeeping, connection.files())
        });
        match housekeeper {
            Ok(housekeeper) => Ok((connection, housekeeper)),
            Err(reason) => {
                connection.close_as_it_is();
                Err(reason)
            }
        }
    }

    /// Opens everything at the start, so that a lack of file descriptors shows now and not under load.
    fn open(
        &self,
        housekeeping: &Arc<Housekeeping>,
    ) -> Result<(WriteConnection, Housekeeper, Arc<ReaderPool>), OpenErrorReason> {
        // The writer first: it recovers the WAL after a crash, which a reader can't.
        let mut connection = WriteConnection::open(&self.location, &self.config, &self.board, &|| Ok(()))?;
        if let Err(error) = connection.make_wal_durable() {
            connection.refuse(&self.location);
            return Err(error.into());
        }
        connection.recall_imports(&self.imports);
        let opened = ReaderPool::open(self.location.clone(), self.config.clone())
            .and_then(|readers| Ok((self.start_housekeeper(housekeeping, connection.files())?, readers)));
        match opened {
            Ok((housekeeper, readers)) => Ok((connection, housekeeper, readers)),
            Err(reason) => {
                connection.refuse(&self.location);
                Err(reason)
            }
        }
    }

    fn start_housekeeper(
        &self,
        housekeeping: &Arc<Housekeeping>,
        files: Arc<FileIdentities>,
    ) -> Result<Housekeeper, OpenErrorReason> {
        let is_ours = || files.check().map_err(Cause::from);
        let connection = connection::open(&self.location, Role::Checkpointer, &self.config, &is_ours)?;
        let (line, board, queue) = (housekeeping.clone(), self.board.clone(), self.queue.clone());
        Housekeeper::start(connection, files, line, board, queue, self.config.clone())
            .map_err(OpenErrorReason::Io)
    }
}

/// What is told where no error of SQLite says why.
fn lost_connection() -> Cause {
    let error = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR);
    let message = "after a checkpoint that failed, a reader or another process kept the wal-index alive";
    rusqlite::Error::SqliteFailure(error, Some(message.into())).into()
}
