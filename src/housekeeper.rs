//! The thread beside the writer: routine checkpoints off the commit path, and a warning while somebody holds
//! the writer for too long.
//!
//! It sleeps without a timer while nothing is written.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ffi};

use crate::board::{Board, Tried};
use crate::config::Config;
use crate::connection::{self, CheckpointMode, Checkpointed};
use crate::error::{Cause, NotStarted};
use crate::failure::Failure;
use crate::holder::Phase;
use crate::identity::FileIdentities;
use crate::message::Fate;
use crate::queue::Queue;
use crate::rules;
use crate::sqlite_ffi;
use crate::sync::lock;
use crate::write_back::WriteBack;

/// The writer's line to the housekeeper.
///
/// Checkpoints go back and forth between the two: the writer says that the WAL has grown; the housekeeper
/// copies it into the database file while the writer goes on, syncs the file, and says that it is done; the
/// writer copies the little that was added meanwhile and begins the WAL anew, between two groups.
#[derive(Default)]
pub(crate) struct Housekeeping {
    wanted: Mutex<Wanted>,
    changed: Condvar,
    watching: AtomicBool,
    /// Held while the housekeeper checkpoints: SQLite refuses a second checkpoint without waiting.
    checkpointing: Mutex<Restarts>,
    /// The WAL is copied but for what was added meanwhile, or what somebody still reads.
    restart: AtomicBool,
    /// A checkpoint has failed: nobody may try another before every connection is opened anew.
    failed: Mutex<Option<Cause>>,
    /// A reader was in the way when the WAL was to begin anew, and will be tried again later.
    pinned: AtomicBool,
    #[cfg(feature = "sabotage")]
    pub(crate) retries: AtomicBool,
}

/// How often the writer tries to begin the WAL anew: each try in vain costs it some waiting.
#[derive(Default)]
struct Restarts {
    blocked_in_a_row: u32,
    checkpoints_to_wait: u32,
}

impl Restarts {
    fn succeeded(&mut self) {
        *self = Self::default();
    }

    fn blocked(&mut self) {
        self.checkpoints_to_wait = 1 << self.blocked_in_a_row.min(4);
        self.blocked_in_a_row += 1;
    }

    /// After a checkpoint: whether it is time for the next try.
    fn is_due(&mut self) -> bool {
        self.checkpoints_to_wait = self.checkpoints_to_wait.saturating_sub(1);
        self.checkpoints_to_wait == 0
    }
}

#[derive(Default)]
struct Wanted {
    checkpoint: bool,
    watch: bool,
    stop: bool,
}

impl Housekeeping {
    /// The writer begins a group: somebody should look whether it ends.
    pub(crate) fn watch(&self) {
        if !self.watching.load(Ordering::Relaxed) && !self.watching.swap(true, Ordering::AcqRel) {
            self.tell(|wanted| wanted.watch = true);
        }
    }

    /// The WAL has grown: checkpoint it.
    pub(crate) fn checkpoint(&self) {
        self.tell(|wanted| wanted.checkpoint = true);
    }

    /// Whether the writer should begin the WAL anew. No checkpoint begins until it has [done](Self::restart)
    /// so.
    pub(crate) fn restart_is_due(&self) -> bool {
        self.restart.load(Ordering::Acquire)
    }

    /// Whether beginning the WAL anew has no chance before the next checkpoint.
    pub(crate) fn is_pinned(&self) -> bool {
        self.pinned.load(Ordering::Acquire)
    }

    /// The writer begins the WAL anew after a later checkpoint.
    pub(crate) fn postpone_restart(&self) {
        self.restart.store(false, Ordering::Release);
    }

    /// Lets the writer begin the WAL anew, after a checkpoint that may be running; `restart` tells whether it
    /// was possible.
    pub(crate) fn restart(&self, restart: impl FnOnce() -> bool) {
        let mut restarts = lock(&self.checkpointing);
        // To begin the WAL anew is a checkpoint too, and the one that was running may have failed.
        let restarted = self.failure().is_none() && restart();
        if restarted {
            restarts.succeeded()
        } else {
            restarts.blocked()
        }
        self.pinned.store(!restarted, Ordering::Release);
        self.restart.store(false, Ordering::Release);
    }

    /// A checkpoint has failed: it is tried again later, or not before everything is opened anew.
    pub(crate) fn checkpoint_failed(&self, error: rusqlite::Error) {
        if rules::checkpoint_can_wait(Failure::of(&error)) {
            tracing::warn!(%error, "a checkpoint found no space, and is tried again later");
        } else {
            self.fail(error.into());
        }
    }

    fn fail(&self, cause: Cause) {
        tracing::error!(error = %cause.as_sqlite(), "a checkpoint failed");
        #[cfg(feature = "sabotage")]
        if self.retries.load(Ordering::Relaxed) {
            return;
        }
        lock(&self.failed).get_or_insert(cause);
    }

    /// Every connection was opened anew: checkpoints begin from the start.
    pub(crate) fn recovered(&self) {
        *lock(&self.failed) = None;
        *lock(&self.checkpointing) = Restarts::default();
        *lock(&self.wanted) = Wanted::default();
        for flag in [&self.restart, &self.pinned, &self.watching] {
            flag.store(false, Ordering::Release);
        }
    }

    /// Why no checkpoint may be tried.
    pub(crate) fn failure(&self) -> Option<Cause> {
        lock(&self.failed).clone()
    }

    fn tell(&self, what: impl FnOnce(&mut Wanted)) {
        what(&mut lock(&self.wanted));
        self.changed.notify_one();
    }
}

/// The running thread.
pub(crate) struct Housekeeper {
    line: Arc<Housekeeping>,
    thread: JoinHandle<()>,
}

impl Housekeeper {
    pub(crate) fn start(
        connection: Connection,
        files: Arc<FileIdentities>,
        line: Arc<Housekeeping>,
        board: Arc<Board>,
        queue: Arc<Queue>,
        config: Config,
    ) -> std::io::Result<Self> {
        let write_back = WriteBack::of(&files);
        let house = House { connection, files, write_back, line: line.clone(), board, queue, config };
        let name = format!("{}-checkpoint", house.config.name);
        let thread = std::thread::Builder::new().name(name).spawn(move || house.keep())?;
        Ok(Self { line, thread })
    }

    /// Ends the thread and its connection.
    pub(crate) fn stop(self) {
        self.line.tell(|wanted| wanted.stop = true);
        if self.thread.join().is_err() {
            tracing::error!("the checkpoint thread panicked");
        }
    }
}

/// So often a checkpoint goes after what was added while it was at work.
const PASSES_MAX: usize = 4;

/// As many pages the writer copies and syncs in a millisecond or two.
pub(crate) const LEFT_TO_WRITER: u64 = 256;

struct House {
    connection: Connection,
    files: Arc<FileIdentities>,
    write_back: WriteBack,
    line: Arc<Housekeeping>,
    board: Arc<Board>,
    queue: Arc<Queue>,
    config: Config,
}

impl House {
    fn keep(self) {
        let mut watch = Watch::default();
        loop {
            let wanted = self.wait();
            if wanted.stop {
                break;
            }
            if wanted.checkpoint && !self.line.restart_is_due() {
                let mut restarts = lock(&self.line.checkpointing);
                if self.checkpoint() && restarts.is_due() {
                    self.line.restart.store(true, Ordering::Release);
                    // It may be idle, and has the time.
                    self.queue.ring();
                }
            }
            self.take_back_the_late();
            if self.line.watching.load(Ordering::Acquire) && !watch.look(&self.board, &self.config) {
                self.line.watching.store(false, Ordering::Release);
                // A group may have begun before the writer could see that nobody watches.
                if self.board.holder().is_some() {
                    self.line.watching.store(true, Ordering::Release);
                }
            }
        }
        // Frames whose sync may have failed must not reach the database file (reliability: failed COMMIT).
        if self.board.stopped().is_some() || self.line.failure().is_some() {
            connection::leave_wal_alone(&self.connection);
        }
        connection::close(self.connection);
    }

    /// Waits for something to do; with a timer only while the writer is watched.
    fn wait(&self) -> Wanted {
        let mut wanted = lock(&self.line.wanted);
        while !(wanted.checkpoint || wanted.watch || wanted.stop) {
            if !self.line.watching.load(Ordering::Acquire) {
                wanted = self.line.changed.wait(wanted).unwrap_or_else(|error| error.into_inner());
                continue;
            }
            let pause = self.config.hold_warning.min(self.config.command_wait_max) / 4;
            let (guard, timeout) =
                self.line.changed.wait_timeout(wanted, pause).unwrap_or_else(|error| error.into_inner());
            wanted = guard;
            if timeout.timed_out() {
                break;
            }
        }
        std::mem::take(&mut *wanted)
    }

    /// Answers those who have waited for too long behind whoever holds the writer.
    ///
    /// The one that holds it may itself wait for one of them, through another thread.
    fn take_back_the_late(&self) {
        let Some(holder) = self.board.holder() else { return };
        let now = Instant::now();
        if self.board.drain_until().is_some_and(|limit| now >= limit) {
            // The service was to be closed by now, and perhaps nobody awaits it.
            self.board.interrupt();
        }
        let wait_max = self.config.command_wait_max;
        let late = self.queue.take(|next| match next.deadline {
            Some(deadline) => now >= deadline,
            None => now.saturating_duration_since(next.submitted) >= wait_max,
        });
        for envelope in late {
            if !envelope.start() {
                self.board.count_withdrawn();
                continue;
            }
            let waited = now.saturating_duration_since(envelope.submitted);
            let reason = match envelope.deadline {
                Some(_) => NotStarted::DeadlineExceeded { waited },
                None => NotStarted::WaitedTooLong { waited, holder: holder.phase.clone() },
            };
            self.board.give_up(envelope, Fate::NotStarted(reason), Tried::waited(waited));
        }
    }

    /// Copies what it can and syncs the file; false if that is not done.
    ///
    /// And then what was added meanwhile, which is less each time: what is left the writer copies and syncs, while
    /// everyone waits.
    fn checkpoint(&self) -> bool {
        for _ in 0..PASSES_MAX {
            let Some(done) = self.pass() else { return false };
            let wal = &self.board.wal;
            wal.set_copied(done.copied_pages);
            let is_pinned = done.blocked || done.copied_pages < done.wal_pages;
            if is_pinned || wal.pages_left() < LEFT_TO_WRITER {
                break;
            }
        }
        true
    }

    fn pass(&self) -> Option<Checkpointed> {
        if self.board.stopped().is_some() || self.line.failure().is_some() {
            return None;
        }
        if let Err(replaced) = self.files.check() {
            // What is copied into a database that somebody else uses by now, without this WAL, corrupts it.
            self.board.stop(replaced.into());
            self.queue.ring();
            return None;
        }
        let is_much = self.board.wal.pages_left() >= LEFT_TO_WRITER;
        let passive = CheckpointMode::Passive;
        let done = match connection::checkpoint(&self.connection, passive, Duration::ZERO) {
            Ok(done) => done,
            Err(error) => {
                self.line.checkpoint_failed(error);
                self.queue.ring();
                return None;
            }
        };
        // Beside a busy writer a checkpoint does not sync the file. Done here, the writer need not wait for it.
        if let Err(cause) = self.sync_database_file(is_much) {
            // A retry on the same wal-index can corrupt the database at the next power loss. The writer decides.
            self.line.fail(cause);
            self.queue.ring();
            return None;
        }
        tracing::debug!(wal_pages = done.wal_pages, copied_pages = done.copied_pages, "checkpoint");
        let wal = &self.board.wal;
        wal.checkpoints.fetch_add(1, Ordering::Relaxed);
        // A read that began one commit ago is enough to be in the way: the writer, which waits a little, decides.
        if done.blocked || done.copied_pages < done.wal_pages {
            wal.checkpoints_blocked.fetch_add(1, Ordering::Relaxed);
        }
        Some(done)
    }

    fn sync_database_file(&self, is_much: bool) -> Result<(), Cause> {
        if is_much {
            self.write_back.run().map_err(|error| {
                let failed = ffi::Error::new(ffi::SQLITE_IOERR_FSYNC);
                Cause::from(rusqlite::Error::SqliteFailure(failed, Some(error.to_string())))
            })?;
        }
        Ok(sqlite_ffi::sync_database_file(&self.connection)?)
    }
}

/// After so many looks at an idle writer in a row, nobody looks until it begins a group.
const IDLE_LOOKS: u32 = 4;

/// Warns while the writer is held for too long: at the limit, at twice the limit, and so on.
#[derive(Default)]
struct Watch {
    warned: u32,
    idle_looks: u32,
}

impl Watch {
    /// Looks once; false if the writer has been idle for long enough to stop looking.
    fn look(&mut self, board: &Board, config: &Config) -> bool {
        let Some(holder) = board.holder() else {
            self.warned = 0;
            self.idle_looks = (self.idle_looks + 1) % IDLE_LOOKS;
            return self.idle_looks > 0;
        };
        self.idle_looks = 0;
        if holder.held < config.hold_warning {
            self.warned = 0;
        } else if holder.held >= config.hold_warning.saturating_mul(1 << self.warned.min(20)) {
            self.warned += 1;
            let label = match &holder.phase {
                Phase::Command { label, .. } => Some(&**label),
                _ => None,
            };
            tracing::warn!(
                label,
                phase = %holder.phase,
                held_ms = holder.held.as_millis(),
                in_phase_ms = holder.in_phase.as_millis(),
                "the writer is being held for long"
            );
        }
        true
    }
}
