//! The writer: one thread, one connection, one loop. Synchronous; it needs no runtime.

mod forecast;
mod group;
mod lanes;

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ffi};

use crate::board::Board;
use crate::config::{Config, Durability};
use crate::connection::{self, CheckpointMode, Location, Role};
use crate::error::{NotStarted, OpenErrorReason, Outcome};
use crate::holder::Phase;
use crate::housekeeper::Housekeeping;
use crate::inbox::{Inbox, Message};
use crate::message::{Envelope, Fate};
use crate::sync::{after, lock};
use crate::transaction::{TransactionControl, UserCode, panic_message};

use forecast::Forecast;
use lanes::Lanes;

/// How long the writer waits for readers to leave the WAL when it begins it anew.
const RESTART_WAIT: Duration = Duration::from_millis(20);

/// The same once the WAL has reached its target.
const RESTART_WAIT_AT_TARGET: Duration = Duration::from_millis(100);

/// Everything of the writer that outlives a connection.
pub(crate) struct Writer {
    inbox: Inbox,
    lanes: Lanes<Envelope>,
    forecast: Forecast,
    board: Arc<Board>,
    housekeeping: Arc<Housekeeping>,
    config: Config,
    location: Location,
    /// Set when the service closes: what is not finished by then is answered as not started.
    drain_until: Option<Instant>,
    not_reached: u64,
    /// The size of the WAL when a checkpoint was last asked for.
    wal_pages_seen: u64,
}

/// A write connection and what guards it.
pub(crate) struct WriteConnection {
    connection: Connection,
    user_code: UserCode,
}

impl WriteConnection {
    pub(crate) fn open(location: &Location, config: &Config, board: &Board) -> Result<Self, OpenErrorReason> {
        let connection = connection::open(location, Role::Writer, config)?;
        connection::watch_wal(&connection);
        board.wal.set_page_bytes(connection::page_bytes(&connection)?);
        let user_code = UserCode::guard(&connection)?;
        board.set_interrupt(connection.get_interrupt_handle());
        Ok(Self { connection, user_code })
    }
}

/// Why a session with a connection ended.
enum SessionEnd {
    /// The service is closing and everything is answered.
    Drained,
    /// The connection is in doubt: go on with another.
    Replace,
    /// Writing has stopped for good.
    Stopped,
}

/// One connection at work.
struct Session<'c> {
    connection: &'c Connection,
    control: TransactionControl<'c>,
    /// What `synchronous` is set to.
    durability: Durability,
}

impl Writer {
    pub(crate) fn new(
        inbox: Inbox,
        board: Arc<Board>,
        housekeeping: Arc<Housekeeping>,
        config: Config,
        location: Location,
    ) -> Self {
        Self {
            inbox,
            lanes: Lanes::new(&config),
            forecast: Forecast::default(),
            board,
            housekeeping,
            config,
            location,
            drain_until: None,
            not_reached: 0,
            wal_pages_seen: 0,
        }
    }

    /// Serves until the service closes; returns the connection for the last checkpoint.
    pub(crate) fn run(&mut self, mut writer: WriteConnection) -> WriteConnection {
        loop {
            match catch_unwind(AssertUnwindSafe(|| self.serve(&writer))) {
                Ok(Ok(SessionEnd::Drained)) => return writer,
                Ok(Ok(SessionEnd::Replace)) => writer = self.replace(writer),
                Ok(Ok(SessionEnd::Stopped)) => break,
                Ok(Err(error)) => {
                    self.board.stop(error.into());
                    break;
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
        while self.wait().is_continue() {
            self.refuse_if_stopped();
        }
        writer
    }

    /// Opens a new connection, then closes the old one: the last close would delete the WAL.
    fn replace(&self, old: WriteConnection) -> WriteConnection {
        match WriteConnection::open(&self.location, &self.config, &self.board) {
            Ok(new) => {
                tracing::warn!("the write connection was replaced");
                connection::close(old.connection);
                new
            }
            Err(reason) => {
                self.board.stop(reason.into());
                old
            }
        }
    }

    fn serve(&mut self, writer: &WriteConnection) -> rusqlite::Result<SessionEnd> {
        let mut session = Session {
            connection: &writer.connection,
            control: TransactionControl::prepare(&writer.connection, &writer.user_code)?,
            durability: self.config.durability,
        };
        while self.wait().is_continue() {
            if self.refuse_if_stopped() {
                return Ok(SessionEnd::Stopped);
            }
            if self.drain_until.is_some_and(|limit| Instant::now() >= limit) {
                self.not_reached += self.refuse_all(|| NotStarted::Closed);
                continue;
            }
            if self.run_group(&mut session).is_break() {
                return Ok(SessionEnd::Replace);
            }
            self.tend_wal(session.connection);
        }
        Ok(SessionEnd::Drained)
    }

    /// Once writing has stopped, it stays stopped until the database is opened anew.
    fn refuse_if_stopped(&mut self) -> bool {
        let Some(cause) = self.board.stopped() else { return false };
        self.refuse_all(|| NotStarted::Stopped(cause.clone()));
        true
    }

    /// Waits until a command waits in a lane; breaks when there will be none.
    fn wait(&mut self) -> ControlFlow<()> {
        self.take_in();
        while self.lanes.is_empty() {
            let message = match self.drain_until {
                None => self.inbox.wait().unwrap_or(Message::Close),
                Some(_) => match self.inbox.next_before_close() {
                    Some(message) => message,
                    None => return ControlFlow::Break(()),
                },
            };
            self.accept(message);
            self.linger();
            self.take_in();
        }
        ControlFlow::Continue(())
    }

    /// Gives a first command company, if the configuration asks for it.
    fn linger(&mut self) {
        if self.config.group_linger.is_zero() || self.drain_until.is_some() {
            return;
        }
        let limit = after(self.config.group_linger);
        while let Some(message) = self.inbox.wait_until(limit) {
            self.accept(message);
        }
    }

    /// Sorts what has arrived into the lanes.
    fn take_in(&mut self) {
        let arrived: Vec<Message> = self.inbox.drain().collect();
        for message in arrived {
            self.accept(message);
        }
    }

    fn accept(&mut self, message: Message) {
        match message {
            Message::Command(envelope) => self.lanes.push(envelope.lane, envelope),
            Message::Close => {
                let limit = self.board.drain_until();
                let limit = limit.unwrap_or_else(|| after(self.config.shutdown_wait_max));
                self.drain_until = Some(limit);
            }
        }
    }

    /// Answers everything that waits: it never ran. Returns how many that were.
    fn refuse_all(&mut self, reason: impl Fn() -> NotStarted) -> u64 {
        let waiting: Vec<Envelope> = self.lanes.take_all().collect();
        let count = waiting.len() as u64;
        for envelope in waiting {
            self.inbox.release(envelope.lane, envelope.bytes);
            self.answer(envelope, Fate::NotStarted(reason()), Outcome::NotStarted);
        }
        count
    }

    /// Accepted commands that the close came too early for.
    pub(crate) fn not_reached(&self) -> u64 {
        self.not_reached
    }

    /// Answers a command that is in no group, and counts it.
    fn answer(&self, envelope: Envelope, fate: Fate, outcome: Outcome) {
        lock(&self.board.stats).commands.count(outcome);
        group::answer(envelope.job, fate);
    }

    /// After a group: lets the WAL be checkpointed, or begins it anew.
    fn tend_wal(&mut self, connection: &Connection) {
        if self.board.stopped().is_some() {
            // Frames whose sync may have failed must not reach the database file.
            return;
        }
        let pages = connection::wal_pages();
        if pages < self.board.wal.pages() {
            // SQLite has begun it anew by itself, as it does when it is wholly copied and unread.
            self.board.wal.restarts.fetch_add(1, Ordering::Relaxed);
            self.wal_pages_seen = 0;
        }
        self.board.wal.set_pages(pages);
        let is_full = self.board.wal.bytes() >= self.config.wal_target_bytes;
        if self.housekeeping.restart_is_due() || (is_full && !self.housekeeping.is_pinned()) {
            self.board.hold(Phase::Checkpoint);
            let wait = if is_full { RESTART_WAIT_AT_TARGET } else { RESTART_WAIT };
            self.housekeeping.clone().restart(|| self.restart_wal(connection, wait));
            self.board.let_go();
            self.wal_pages_seen = self.board.wal.pages();
        } else if pages - self.wal_pages_seen >= self.config.checkpoint_pages.into() {
            self.wal_pages_seen = pages;
            self.housekeeping.checkpoint();
        }
    }

    /// Copies what is left and makes the next commit begin the WAL anew; false if a reader is in the way.
    fn restart_wal(&self, connection: &Connection, wait: Duration) -> bool {
        let started = Instant::now();
        let done = connection::checkpoint(connection, CheckpointMode::Restart, wait, &self.config);
        let restarted = match done {
            Ok(done) if done.blocked => {
                self.board.wal.checkpoints_blocked.fetch_add(1, Ordering::Relaxed);
                false
            }
            Ok(_) => {
                self.board.wal.restarts.fetch_add(1, Ordering::Relaxed);
                connection::reset_wal_pages();
                self.board.wal.set_pages(0);
                true
            }
            Err(error) => {
                self.board.stop(error.into());
                false
            }
        };
        tracing::debug!(took_us = started.elapsed().as_micros(), restarted, "wal restart");
        restarted
    }
}

impl WriteConnection {
    /// Empties the WAL and closes. Returns the pages that are left in it.
    pub(crate) fn close(self, config: &Config, board: &Board, wait: Duration) -> rusqlite::Result<u64> {
        let done = match board.stopped() {
            None => {
                connection::checkpoint(&self.connection, CheckpointMode::Truncate, wait, config).map(Some)
            }
            Some(_) => Ok(None),
        };
        match done {
            Ok(Some(done)) => board.wal.set_pages(if done.blocked { done.wal_pages } else { 0 }),
            // Frames whose sync may have failed must not reach the database file.
            Ok(None) | Err(_) => connection::leave_wal_alone(&self.connection),
        }
        connection::close(self.connection);
        done.map(|_| board.wal.pages())
    }
}
