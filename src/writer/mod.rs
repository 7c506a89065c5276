//! The writer: one thread, one connection, one loop. Synchronous; it needs no runtime.
//!
//! `mod` is the loop, `group` runs one group, `recovery` does what the [rules](crate::rules) say after a
//! failure, `store` talks to SQLite, `wal` keeps the WAL small; `breaker` and `labels` are pure.

mod breaker;
mod group;
mod labels;
mod recovery;
#[cfg(feature = "sabotage")]
mod sabotaged;
mod store;
#[cfg(test)]
mod tests;
mod wal;

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ffi};

use crate::board::{Board, Tried};
use crate::config::Config;
use crate::connection::{self, CheckpointMode, Location, Role};
use crate::error::{Cause, NotStarted, OpenErrorReason, RolledBack};
use crate::failure::Failure;
use crate::herald::Herald;
use crate::housekeeper::Housekeeping;
use crate::identity::FileIdentities;
use crate::import::Imports;
use crate::message::{Envelope, Fate};
use crate::queue::{Found, Queue};
use crate::reader::Pins;
use crate::rules::{self, Look};
use crate::sync::{after, lock};
use crate::transaction::panic_message;
use crate::user_code::UserCode;
use crate::watchdog::Watchdog;

use breaker::Breaker;
use group::{Member, Round};
use labels::Labels;
use recovery::Blocked;
use store::{Session, Store};

/// Everything of the writer that outlives a connection.
pub(crate) struct Writer {
    queue: Arc<Queue>,
    labels: Labels,
    board: Arc<Board>,
    housekeeping: Arc<Housekeeping>,
    pins: Arc<Pins>,
    herald: Arc<Herald>,
    config: Config,
    /// Commands that have run and whose group was lost: they run again before anything else.
    rounds: VecDeque<Round>,
    /// What must be looked at before anything is written, and why.
    look: Option<(Look, Cause)>,
    breaker: Breaker,
    /// The connection is in doubt and could not be replaced yet.
    is_unfit: bool,
    /// Somebody else is in the way.
    blocked: Option<Blocked>,
    foreign: ForeignWriter,
    /// Groups have been committed since the WAL was last synced.
    pub(crate) unsynced_groups: bool,
    /// Set when the service closes: what is not finished by then is answered as not started.
    drain_until: Option<Instant>,
    not_reached: u64,
    /// How many commands a group has, of late: an average.
    usual_group: f64,
    /// The room of the last group, for the next.
    members: Vec<Member>,
    /// The size of the WAL when a checkpoint was last asked for.
    wal_pages_seen: u64,
    #[cfg(feature = "sabotage")]
    pub(crate) sabotage: Option<crate::sabotage::Sabotage>,
}

/// What is known of another program that writes.
struct ForeignWriter {
    seen: Option<Instant>,
    /// When the write lock was last free for as long as it takes to be met by SQLite's polling.
    gap: Instant,
}

/// A foreign writer that has not been seen for so long is taken to have gone.
const FOREIGN_MEMORY: Duration = Duration::from_secs(60);

/// How long to wait before a connection that could not be opened is tried again.
const UNFIT_PAUSE: Duration = Duration::from_millis(10);

/// A write connection and what guards it.
pub(crate) struct WriteConnection {
    connection: Connection,
    user_code: UserCode,
    watchdog: Watchdog,
    files: Arc<FileIdentities>,
    page_bytes: u64,
    /// Nobody knows whether all of the WAL is durable.
    wal_is_in_doubt: bool,
}

impl WriteConnection {
    /// `is_ours` as with [`connection::open`].
    pub(crate) fn open(
        location: &Location,
        config: &Config,
        board: &Board,
        is_ours: &dyn Fn() -> Result<(), Cause>,
    ) -> Result<Self, OpenErrorReason> {
        let connection = connection::open(location, Role::Writer, config, is_ours)?;
        match Self::guard(&connection, location) {
            Ok((user_code, watchdog, files, page_bytes)) => {
                board.wal.set_page_bytes(page_bytes);
                board.set_watchdog(watchdog.clone());
                Ok(Self { connection, user_code, watchdog, files, page_bytes, wal_is_in_doubt: false })
            }
            Err(reason) => {
                connection::refuse(connection, location);
                Err(reason)
            }
        }
    }

    fn guard(
        connection: &Connection,
        location: &Location,
    ) -> Result<(UserCode, Watchdog, Arc<FileIdentities>, u64), OpenErrorReason> {
        connection::watch_wal(connection);
        let page_bytes = connection::page_bytes(connection)?;
        let user_code = UserCode::guard(connection)?;
        let watchdog = Watchdog::watch(connection)?;
        connection::read_schema(connection)?;
        connection::require_wal_index(connection)?;
        let files = Arc::new(FileIdentities::record(&location.path).map_err(OpenErrorReason::Io)?);
        Ok((user_code, watchdog, files, page_bytes))
    }

    /// Makes durable what an earlier opening has left in the WAL, where nobody else writes.
    pub(crate) fn make_wal_durable(&mut self) -> rusqlite::Result<()> {
        self.wal_is_in_doubt = !connection::make_wal_durable(&self.connection, self.page_bytes)?;
        Ok(())
    }

    pub(crate) fn wal_is_in_doubt(&self) -> bool {
        self.wal_is_in_doubt
    }

    /// Reads what is written down of the imports of earlier openings.
    pub(crate) fn recall_imports(&self, imports: &Imports) {
        imports.recall(&self.connection);
    }

    /// Empties the WAL and closes. Returns the pages that are left in it.
    pub(crate) fn close(self, board: &Board, wait: Duration) -> rusqlite::Result<u64> {
        let done = connection::checkpoint(&self.connection, CheckpointMode::Truncate, wait);
        match &done {
            Ok(done) => board.wal.set_pages(if done.blocked { done.wal_pages } else { 0 }),
            // The close must not try once more.
            Err(_) => connection::leave_wal_alone(&self.connection),
        }
        connection::close(self.connection);
        done.map(|_| board.wal.pages())
    }

    /// Closes and leaves the WAL for the next open to recover: frames whose sync may have failed must not reach
    /// the database file. Returns what the files were.
    pub(crate) fn close_as_it_is(self) -> Arc<FileIdentities> {
        connection::leave_wal_alone(&self.connection);
        connection::close(self.connection);
        self.files
    }

    /// Closes and leaves the files as they were found: the open has failed.
    pub(crate) fn refuse(self, location: &Location) {
        connection::refuse(self.connection, location);
    }

    /// How much of the WAL has been copied, by whomever, as the shared wal-index says.
    pub(crate) fn wal_pages_copied(&self) -> rusqlite::Result<u64> {
        let backlog = connection::checkpoint(&self.connection, CheckpointMode::Noop, Duration::ZERO)?;
        Ok(backlog.copied_pages)
    }

    pub(crate) fn files(&self) -> Arc<FileIdentities> {
        self.files.clone()
    }

    /// Whether the files are still those that were opened.
    ///
    /// # Errors
    /// Which file is not.
    pub(crate) fn check_files(&self) -> Result<(), Cause> {
        self.files.check().map_err(Cause::from)
    }

    /// Copies what can be copied and syncs the database file. What finds no space there stays in the WAL.
    pub(crate) fn checkpoint(&self) -> rusqlite::Result<()> {
        match connection::checkpoint(&self.connection, CheckpointMode::Passive, Duration::ZERO) {
            Err(error) if !rules::checkpoint_can_wait(Failure::of(&error)) => return Err(error),
            _ => {}
        }
        crate::sqlite_ffi::sync_database_file(&self.connection)
    }
}

/// Why a session with a connection ended.
#[derive(Debug, PartialEq, Eq)]
enum SessionEnd {
    /// The service is closing and everything is answered.
    Drained,
    /// The connection is in doubt: go on with another.
    Replace,
    /// The wal-index is in doubt: close every connection, then go on.
    Reopen,
    /// Writing has stopped for good.
    Stopped,
}

/// Why the writer no longer serves.
pub(crate) enum Served {
    /// The service is closing and everything is answered.
    Drained(Option<WriteConnection>),
    /// Every connection of the service must be closed, without a checkpoint, and opened anew.
    Reopen(WriteConnection),
}

impl Writer {
    pub(crate) fn new(
        queue: Arc<Queue>,
        board: Arc<Board>,
        housekeeping: Arc<Housekeeping>,
        pins: Arc<Pins>,
        herald: Arc<Herald>,
        config: Config,
    ) -> Self {
        Self {
            queue,
            labels: Labels::default(),
            board,
            housekeeping,
            pins,
            herald,
            rounds: VecDeque::new(),
            look: None,
            is_unfit: false,
            breaker: Breaker::new(&config),
            blocked: None,
            foreign: ForeignWriter { seen: None, gap: Instant::now() },
            unsynced_groups: false,
            drain_until: None,
            not_reached: 0,
            usual_group: 0.0,
            members: Vec::new(),
            wal_pages_seen: 0,
            #[cfg(feature = "sabotage")]
            sabotage: None,
            config,
        }
    }

    /// Serves until the service closes, or every connection must be opened anew. Without a connection writing
    /// has stopped.
    pub(crate) fn run(&mut self, mut writer: Option<WriteConnection>, location: &Location) -> Served {
        while let Some(connection) = &writer {
            match catch_unwind(AssertUnwindSafe(|| self.serve_with(connection))) {
                Ok(Ok(SessionEnd::Drained)) => return Served::Drained(writer),
                Ok(Ok(SessionEnd::Replace)) => writer = writer.map(|old| self.replace(old, location)),
                Ok(Ok(SessionEnd::Reopen)) => match writer {
                    Some(writer) => return Served::Reopen(writer),
                    None => break,
                },
                Ok(Ok(SessionEnd::Stopped)) => break,
                // Not even the service's own statements could be prepared.
                Ok(Err(error)) if self.queue.is_closing() => {
                    self.board.stop(error.into());
                    break;
                }
                Ok(Err(error)) => {
                    self.is_unfit = true;
                    self.note_failure(error.into());
                    self.pause_until(Instant::now() + UNFIT_PAUSE);
                    writer = writer.map(|old| self.replace(old, location));
                }
                // A bug of ours. The commands of its group are answered as unknown when they are dropped.
                Err(panic) => {
                    let bug = ffi::Error::new(ffi::SQLITE_INTERNAL);
                    let error = rusqlite::Error::SqliteFailure(bug, Some(panic_message(panic)));
                    self.board.stop(error.into());
                    break;
                }
            }
        }
        self.refuse_until_drained();
        Served::Drained(writer)
    }

    /// Opens a new connection, then closes the old one: the last close would delete the WAL.
    ///
    /// It is opened by name. So the files are looked at before, since the open itself can change a file, and
    /// afterwards, while the old connection keeps what it knows: a file that was put in the place of ours must not
    /// become the database.
    fn replace(&mut self, old: WriteConnection, location: &Location) -> WriteConnection {
        if let Err(cause) = old.check_files() {
            self.board.stop(cause);
            return old;
        }
        match WriteConnection::open(location, &self.config, &self.board, &|| old.check_files()) {
            Ok(new) => {
                if let Err(cause) = old.check_files() {
                    self.board.stop(cause);
                    new.close_as_it_is();
                    return old;
                }
                tracing::warn!("the write connection was replaced");
                lock(&self.board.stats).connections_replaced += 1;
                connection::close(old.connection);
                self.is_unfit = false;
                new
            }
            // It will be tried again, and nothing is written before.
            Err(reason) => {
                self.is_unfit = true;
                self.note_failure(reason.into());
                old
            }
        }
    }

    fn serve_with(&mut self, writer: &WriteConnection) -> rusqlite::Result<SessionEnd> {
        let config = self.config.clone();
        let mut session = Session::begin(writer, &config)?;
        #[cfg(feature = "sabotage")]
        if let Some(how) = self.sabotage {
            return Ok(self.serve(&mut sabotaged::Sabotaged::new(session, how)));
        }
        Ok(self.serve(&mut session))
    }

    /// Serves on one connection for as long as it is fit.
    fn serve(&mut self, store: &mut impl Store) -> SessionEnd {
        loop {
            if let ControlFlow::Break(end) = self.turn(store) {
                return end;
            }
        }
    }

    /// One turn: what stands in the way first, then one group, then the WAL.
    fn turn(&mut self, store: &mut impl Store) -> ControlFlow<SessionEnd> {
        if self.board.stopped().is_some() {
            return ControlFlow::Break(SessionEnd::Stopped);
        }
        if let Some(cause) = self.housekeeping.failure() {
            return ControlFlow::Break(self.checkpoint_failed(cause));
        }
        if self.breaker.probe_at().is_some() {
            return self.refuse_until_probed(store);
        }
        if self.is_unfit {
            self.pause_until(Instant::now() + UNFIT_PAUSE);
            return ControlFlow::Break(SessionEnd::Replace);
        }
        if let Some((look, cause)) = self.look.take() {
            return self.look(store, look, cause);
        }
        match self.wait() {
            Found::Command => {}
            Found::Nothing => {
                self.tend_wal(store);
                return ControlFlow::Continue(());
            }
            Found::End => return ControlFlow::Break(SessionEnd::Drained),
        }
        if self.drain_until().is_some_and(|limit| Instant::now() >= limit) {
            self.not_reached += self.refuse(|| NotStarted::Closed);
            self.give_up_rounds(&closed());
            return ControlFlow::Continue(());
        }
        if self.blocked.is_some() {
            self.wait_in_line();
        } else {
            self.leave_gap();
        }
        if self.is_wal_full(store) {
            return ControlFlow::Continue(());
        }
        self.run_next(store)?;
        self.tend_wal(store);
        ControlFlow::Continue(())
    }

    /// Waits until there is something to run.
    fn wait(&mut self) -> Found {
        if !self.rounds.is_empty() {
            return Found::Command;
        }
        let lingers = !self.config.group_linger.is_zero() && self.queue.look(|lanes| lanes.is_empty());
        let idle_since = Instant::now();
        let found = self.queue.wait(None);
        if lingers && found == Found::Command {
            self.queue.gather_until(after(self.config.group_linger));
        }
        if self.foreign.seen.is_some() && idle_since.elapsed() >= self.config.foreign_gap {
            self.foreign.gap = Instant::now();
        }
        found
    }

    /// Until when accepted commands are finished, once the service closes.
    fn drain_until(&mut self) -> Option<Instant> {
        if self.drain_until.is_none() && self.queue.is_closing() {
            let limit = self.board.drain_until();
            self.drain_until = Some(limit.unwrap_or_else(|| after(self.config.shutdown_wait_max)));
        }
        self.drain_until
    }

    /// Takes in what arrives until `limit`, and does nothing else.
    fn pause_until(&self, limit: Instant) {
        self.queue.gather_until(limit);
        // It returns early when the service closes.
        std::thread::sleep(limit.saturating_duration_since(Instant::now()));
    }

    /// SQLite's waiters poll up to 100 ms apart, and would never meet the lock free between two groups.
    fn leave_gap(&mut self) {
        let Some(seen) = self.foreign.seen else { return };
        let now = Instant::now();
        if now - seen > FOREIGN_MEMORY {
            self.foreign.seen = None;
        } else if now - self.foreign.gap >= self.config.foreign_gap_interval && self.rounds.is_empty() {
            self.pause_until(now + self.config.foreign_gap);
            self.foreign.gap = Instant::now();
            lock(&self.board.stats).foreign_wait += self.foreign.gap - now;
        }
    }

    /// Once writing has stopped, it stays stopped until the database is opened anew.
    fn refuse_until_drained(&mut self) {
        let stopped = self.board.stopped();
        let cause = stopped.unwrap_or_else(closed);
        self.give_up_rounds(&cause);
        self.board.let_go();
        while self.queue.wait(None) != Found::End {
            self.refuse(|| NotStarted::Stopped(cause.clone()));
        }
    }

    /// Answers everything that waits: it never ran. Returns how many that were.
    fn refuse(&self, reason: impl Fn() -> NotStarted) -> u64 {
        let waiting = self.queue.take(|_| true);
        let count = waiting.len() as u64;
        for envelope in waiting {
            self.turn_away(envelope, reason());
        }
        count
    }

    /// Answers those that have run and can't run again.
    fn give_up_rounds(&mut self, cause: &Cause) {
        for member in self.rounds.drain(..).flat_map(Round::into_members) {
            let fate = Fate::RolledBack(RolledBack::GroupLost(cause.clone()));
            member.give_up(&self.board, fate, Duration::ZERO);
        }
    }

    /// Accepted commands that the close came too early for.
    pub(crate) fn not_reached(&self) -> u64 {
        self.not_reached
    }

    /// Answers a command that waits, and never ran, unless its caller has taken it back.
    fn turn_away(&self, envelope: Envelope, reason: NotStarted) {
        if envelope.start() {
            let waited = envelope.submitted.elapsed();
            self.board.give_up(envelope, Fate::NotStarted(reason), Tried::waited(waited));
        } else {
            self.board.count_withdrawn();
        }
    }
}

/// Why what has run is not run again, where the service closes.
fn closed() -> Cause {
    let interrupted = ffi::Error::new(ffi::SQLITE_INTERRUPT);
    rusqlite::Error::SqliteFailure(interrupted, Some("the service was closed".into())).into()
}
