//! A store that breaks a promise on purpose: see [`Sabotage`].

use std::time::{Duration, Instant};

use rusqlite::ffi;

use super::store::{CommitError, Ran, Store};
use crate::config::Durability;
use crate::connection::Checkpointed;
use crate::error::Cause;
use crate::message::{Step, Ticket};
use crate::rules::{Guard, Loss};
use crate::sabotage::Sabotage;

pub(super) struct Sabotaged<S: Store> {
    store: S,
    how: Sabotage,
    /// A transaction that everyone was told is committed.
    is_owed: bool,
}

impl<S: Store> Sabotaged<S> {
    pub(super) fn new(store: S, how: Sabotage) -> Self {
        Self { store, how, is_owed: false }
    }

    /// Commits what should be committed already.
    fn catch_up(&mut self) {
        if std::mem::take(&mut self.is_owed) && self.store.commit().is_err() {
            self.store.roll_back();
        }
    }
}

impl<S: Store> Drop for Sabotaged<S> {
    fn drop(&mut self) {
        self.catch_up();
    }
}

impl<S: Store> Store for Sabotaged<S> {
    fn begin(&mut self, durability: Durability) -> rusqlite::Result<()> {
        self.catch_up();
        let is_weak = self.how == Sabotage::NormalForFull;
        self.store.begin(if is_weak { Durability::Normal } else { durability })
    }

    fn saw_foreign_commit(&mut self) -> bool {
        self.store.saw_foreign_commit()
    }

    fn run(&mut self, command: &Ticket, guard: Guard, now: Instant) -> Ran {
        self.catch_up();
        let mut ran = self.store.run(command, guard, now);
        if self.how == Sabotage::NoAutocommitCheck && ran.step == Step::Lost(Loss::Command) {
            ran.step = Step::Undone;
        }
        ran
    }

    fn commit(&mut self) -> Result<bool, CommitError> {
        if self.how == Sabotage::AckBeforeCommit {
            self.is_owed = true;
            return Ok(true);
        }
        self.store.commit().map_err(|failed| match self.how {
            // As if nothing could have been synced in vain.
            Sabotage::FenceAfterNormal => {
                let unwritten = ffi::Error::new(ffi::SQLITE_IOERR_WRITE);
                CommitError { error: rusqlite::Error::SqliteFailure(unwritten, None), ..failed }
            }
            _ => failed,
        })
    }

    fn roll_back(&mut self) -> bool {
        self.store.roll_back()
    }

    fn check_files(&self) -> Result<(), Cause> {
        if self.how == Sabotage::NoFileCheck { Ok(()) } else { self.store.check_files() }
    }

    fn probe(&mut self) -> rusqlite::Result<()> {
        self.catch_up();
        if self.how == Sabotage::NoFence { Ok(()) } else { self.store.probe() }
    }

    fn is_intact(&mut self) -> rusqlite::Result<bool> {
        self.catch_up();
        self.store.is_intact()
    }

    fn restart_wal(&mut self, wait: Duration) -> rusqlite::Result<Checkpointed> {
        self.catch_up();
        self.store.restart_wal(wait)
    }

    fn wal_backlog(&mut self) -> rusqlite::Result<Checkpointed> {
        self.store.wal_backlog()
    }

    fn wal_pages(&self) -> u64 {
        self.store.wal_pages()
    }
}
