//! Keeps the WAL small: asks for checkpoints, begins it anew between two groups, and writes nothing where it
//! has grown beyond all measure.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Writer;
use super::recovery::Obstacle;
use super::store::Store;
use crate::config::Checkpoints;
use crate::connection;
use crate::holder::Phase;
use crate::housekeeper::LEFT_TO_WRITER;
use crate::sync::lock;

/// How long the writer waits for readers to leave the WAL when it begins it anew.
const RESTART_WAIT: Duration = Duration::from_millis(20);

/// The same once the WAL has reached its target.
const RESTART_WAIT_AT_TARGET: Duration = Duration::from_millis(100);

/// Groups of more commands than this show that many would wait.
const FEW: f64 = 8.0;

/// Reads that have just begun are spared when the WAL has reached its limit.
const SPARED_READ_AGE: Duration = Duration::from_secs(1);

impl Writer {
    /// After a group: lets the WAL be checkpointed, or begins it anew.
    pub(super) fn tend_wal(&mut self, store: &mut impl Store) {
        if self.board.stopped().is_some() {
            // Frames whose sync may have failed must not reach the database file.
            return;
        }
        let pages = store.wal_pages();
        if pages < self.board.wal.pages() {
            // SQLite has begun it anew by itself, as it does when it is wholly copied and unread.
            self.board.wal.restarts.fetch_add(1, Ordering::Relaxed);
            self.board.wal.set_copied(0);
            self.wal_pages_seen = 0;
        }
        self.board.wal.set_pages(pages);
        if self.config.checkpoints == Checkpoints::External {
            return;
        }
        let is_full = self.board.wal.bytes() >= self.config.wal_target_bytes;
        let is_due = self.housekeeping.restart_is_due();
        if is_full && (is_due || !self.housekeeping.is_pinned()) {
            self.restart_wal(store, RESTART_WAIT_AT_TARGET);
        } else if is_due {
            if self.has_time_for_restart() {
                self.restart_wal(store, RESTART_WAIT);
            } else {
                self.housekeeping.postpone_restart();
            }
        } else if self.is_time_for_checkpoint() {
            self.wal_pages_seen = pages;
            self.housekeeping.checkpoint();
        }
    }

    /// A checkpoint syncs the database file, and a COMMIT that syncs the WAL meanwhile waits for it. Few commands at a
    /// time wait for less with many short checkpoints. Of many at a time each short one would meet as many as a long one.
    fn is_time_for_checkpoint(&self) -> bool {
        let wal = &self.board.wal;
        let pages = u64::from(self.config.checkpoint_pages);
        let pages = if self.is_light_load() { pages.div_ceil(4) } else { pages };
        // The last one left too much to begin the WAL anew.
        let was_not_enough = (LEFT_TO_WRITER..wal.pages()).contains(&wal.pages_left());
        wal.pages() - self.wal_pages_seen >= pages
            || (was_not_enough && wal.is_near_target(&self.config) && !wal.is_pinned())
    }

    /// Whether the WAL should begin anew after this checkpoint, and not after the next.
    ///
    /// Everyone waits until what was written during the checkpoint is copied and synced. That takes about as long however
    /// much was written before it, so where many would wait it is done as rarely as the target allows; but not where each
    /// COMMIT syncs the WAL, since a file that grows takes twice as long to sync as one that is written over.
    fn has_time_for_restart(&self) -> bool {
        let wal = &self.board.wal;
        let is_time = !self.unsynced_groups || self.is_light_load() || wal.is_near_target(&self.config);
        is_time && wal.pages_left() < 2 * LEFT_TO_WRITER
    }

    fn is_light_load(&self) -> bool {
        self.usual_group <= FEW
    }

    /// Whether nothing may be written for now: the WAL is at its limit, and somebody keeps it there.
    pub(super) fn is_wal_full(&mut self, store: &mut impl Store) -> bool {
        if self.board.wal.bytes() < self.config.wal_limit_bytes || !self.rounds.is_empty() {
            return false;
        }
        if let Err(cause) = store.check_files() {
            // The last group was committed long ago, and a checkpoint into somebody else's database corrupts it.
            self.board.stop(cause);
            return true;
        }
        // Whoever checkpoints, our own reads must not keep it from that.
        self.pins.end_older_than(SPARED_READ_AGE);
        let has_room = match self.config.checkpoints {
            Checkpoints::Service => {
                self.restart_wal(store, RESTART_WAIT_AT_TARGET);
                self.board.wal.bytes() < self.config.wal_limit_bytes
            }
            // Once all of it is copied and unread, the next commit begins it anew.
            Checkpoints::External => {
                store.wal_backlog().is_ok_and(|backlog| backlog.copied_pages >= backlog.wal_pages)
            }
        };
        if !has_room && self.board.stopped().is_none() && self.housekeeping.failure().is_none() {
            self.block(Obstacle::WalFull { wal_bytes: self.board.wal.bytes() });
        }
        !has_room
    }

    fn restart_wal(&mut self, store: &mut impl Store, wait: Duration) {
        self.board.hold(Phase::Checkpoint, Instant::now());
        self.housekeeping.clone().restart(|| self.try_restart(store, wait));
        self.board.let_go();
        self.board.wal.set_pinned(self.housekeeping.is_pinned());
        self.wal_pages_seen = self.board.wal.pages();
    }

    /// Copies what is left and makes the next commit begin the WAL anew; false if a reader is in the way, or there
    /// is no space.
    fn try_restart(&mut self, store: &mut impl Store, wait: Duration) -> bool {
        let started = Instant::now();
        let restarted = match store.restart_wal(wait) {
            Ok(done) if done.blocked => {
                self.board.wal.checkpoints_blocked.fetch_add(1, Ordering::Relaxed);
                false
            }
            Ok(_) => {
                self.board.wal.restarts.fetch_add(1, Ordering::Relaxed);
                lock(&self.board.stats).wal_restart.record(started.elapsed());
                connection::reset_wal_pages();
                self.board.wal.set_copied(0);
                self.board.wal.set_pages(0);
                // It syncs the WAL before it copies, and nothing is left in it.
                self.unsynced_groups = false;
                true
            }
            Err(error) => {
                self.housekeeping.checkpoint_failed(error);
                false
            }
        };
        tracing::debug!(took_us = started.elapsed().as_micros(), restarted, "wal restart");
        restarted
    }
}
