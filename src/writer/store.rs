//! What the writer does to the database, step by step: the only place between the rules and SQLite.

use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, ffi};

use super::WriteConnection;
use crate::config::{Config, Durability};
use crate::connection::{self, CheckpointMode, Checkpointed};
use crate::error::Cause;
use crate::failed::Reason;
use crate::failure::Failure;
use crate::message::{Kind, Step, Ticket};
use crate::rules::Guard;
use crate::transaction::TransactionControl;

/// A database as the writer needs it. Tests put one in its place that fails as they please.
pub(super) trait Store {
    /// Takes the write lock; never waits for it.
    fn begin(&mut self, durability: Durability) -> rusqlite::Result<()>;

    /// Whether another program has committed since the last group. Within a transaction only.
    fn saw_foreign_commit(&mut self) -> bool;

    /// Runs a command.
    fn run(&mut self, command: &Ticket, guard: Guard, now: Instant) -> Ran;

    /// Returns whether there was anything to write: SQLite neither writes nor syncs for a transaction that has
    /// changed nothing.
    fn commit(&mut self) -> Result<bool, CommitError>;

    /// Leaves no transaction behind; false if the connection is not fit for another.
    fn roll_back(&mut self) -> bool;

    /// Whether the files are still those that were opened.
    ///
    /// # Errors
    /// Which file is not.
    fn check_files(&self) -> Result<(), Cause>;

    /// Makes a small commit of the service's own durable. It overwrites what a COMMIT that failed has left.
    fn probe(&mut self) -> rusqlite::Result<()>;

    /// Whether the database is undamaged.
    fn is_intact(&mut self) -> rusqlite::Result<bool>;

    /// Copies what is left of the WAL and lets the next commit begin it anew, waiting for readers.
    fn restart_wal(&mut self, wait: Duration) -> rusqlite::Result<Checkpointed>;

    /// How much of the WAL somebody else has copied.
    fn wal_backlog(&mut self) -> rusqlite::Result<Checkpointed>;

    /// The pages in the WAL after the newest commit.
    fn wal_pages(&self) -> u64;
}

/// A command that has run.
pub(super) struct Ran {
    pub(super) step: Step,
    /// Why it failed, if it did.
    pub(super) reason: Option<Box<Reason>>,
}

/// A COMMIT that failed.
pub(super) struct CommitError {
    pub(super) error: rusqlite::Error,
    /// The transaction is still open, or our own hook refused the commit: nothing was written.
    pub(super) nothing_written: bool,
}

/// A write connection at work.
pub(super) struct Session<'c> {
    connection: &'c Connection,
    writer: &'c WriteConnection,
    control: TransactionControl<'c>,
    config: &'c Config,
    /// What `synchronous` is set to.
    durability: Durability,
    /// What SQLite's counter of foreign commits was at the last look.
    data_version: Option<i64>,
}

impl<'c> Session<'c> {
    pub(super) fn begin(writer: &'c WriteConnection, config: &'c Config) -> rusqlite::Result<Self> {
        let connection = &writer.connection;
        let WriteConnection { user_code, watchdog, .. } = writer;
        watchdog.pause(true);
        let capacity = config.statement_cache_capacity;
        Ok(Self {
            connection,
            writer,
            control: TransactionControl::prepare(connection, user_code, watchdog, capacity)?,
            config,
            durability: config.durability,
            data_version: None,
        })
    }

    fn set_durability(&mut self, durability: Durability) -> rusqlite::Result<()> {
        if self.durability != durability {
            connection::set_durability(self.connection, durability)?;
            self.durability = durability;
        }
        Ok(())
    }

    /// Durable, and patient with other processes. The connection is given up afterwards.
    fn prepare_for_maintenance(&mut self) -> rusqlite::Result<()> {
        self.set_durability(Durability::Full)?;
        self.connection.busy_timeout(self.config.busy_timeout)
    }

    fn try_probe(&mut self) -> rusqlite::Result<()> {
        self.set_durability(Durability::Full)?;
        self.control.begin()?;
        connection::rewrite_user_version(self.connection)?;
        self.control.commit()
    }
}

impl Store for Session<'_> {
    fn begin(&mut self, durability: Durability) -> rusqlite::Result<()> {
        self.set_durability(durability)?;
        self.control.begin()
    }

    fn saw_foreign_commit(&mut self) -> bool {
        let Ok(now) = self.control.data_version() else { return false };
        self.data_version.replace(now).is_some_and(|before| before != now)
    }

    fn run(&mut self, command: &Ticket, guard: Guard, now: Instant) -> Ran {
        self.writer.watchdog.limit(command.deadline);
        if command.kind == Kind::Maintenance
            && let Err(error) = self.prepare_for_maintenance()
        {
            tracing::error!(%error, "maintenance goes on without waiting for locks");
        }
        let mut tx = self.control.transaction(now);
        let step = command.span.in_scope(|| command.job.run(&mut tx, guard));
        Ran { step, reason: tx.take_reason() }
    }

    fn commit(&mut self) -> Result<bool, CommitError> {
        let before = connection::wal_commits();
        let committed = self.control.commit().map_err(|error| CommitError {
            nothing_written: !self.connection.is_autocommit() || is_commit_veto(&error),
            error,
        });
        committed.map(|()| connection::wal_commits() != before)
    }

    fn roll_back(&mut self) -> bool {
        if self.connection.is_autocommit() {
            // What has ended the transaction may have emptied SQLite's cache, as if somebody else had written.
            self.data_version = None;
        }
        let rolled_back = self.control.roll_back();
        if let Err(error) = &rolled_back {
            tracing::error!(%error, "ROLLBACK failed");
        }
        rolled_back.is_ok() && self.connection.is_autocommit() && !self.connection.is_busy()
    }

    fn check_files(&self) -> Result<(), Cause> {
        self.writer.check_files()
    }

    fn probe(&mut self) -> rusqlite::Result<()> {
        let limit = Instant::now() + self.config.busy_timeout;
        loop {
            let probed = self.try_probe();
            let Err(error) = probed else { return Ok(()) };
            self.roll_back();
            // Somebody who commits meanwhile overwrites what has failed just as well, and lets us in soon.
            if Failure::of(&error) != Failure::Busy || Instant::now() >= limit {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn is_intact(&mut self) -> rusqlite::Result<bool> {
        connection::is_intact(self.connection)
    }

    fn restart_wal(&mut self, wait: Duration) -> rusqlite::Result<Checkpointed> {
        connection::checkpoint(self.connection, CheckpointMode::Restart, wait)
    }

    fn wal_backlog(&mut self) -> rusqlite::Result<Checkpointed> {
        connection::checkpoint(self.connection, CheckpointMode::Noop, Duration::ZERO)
    }

    fn wal_pages(&self) -> u64 {
        connection::wal_pages()
    }
}

/// Whether our own commit hook refused the commit, which leaves nothing behind.
fn is_commit_veto(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|error| {
        error.code == ErrorCode::ConstraintViolation
            && error.extended_code == ffi::SQLITE_CONSTRAINT_COMMITHOOK
    })
}
