//! Where a child can kill itself. Nothing here reaches into the service: closures end their own process, or the VFS
//! does, in the midst of a call.
//!
//! A transaction of the writer is seen by the write lock of the WAL, which is slot 0 of its shared memory.

use std::fs::File;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, OnceLock};

use fastrand::Rng;
use rusqlite::ffi;
use rustix::process::{Signal, getpid, kill_process};

use super::plan::Run;
use crate::common::HANG;
use crate::common::faults::{By, Fault, Faults, Of, Op, ShmLock};
use crate::process;

/// A moment in the life of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    /// After BEGIN, before any command.
    Begun,
    InCommand,
    /// After a command, before the next.
    BetweenCommands,
    /// In a command that runs again, since its group was lost.
    InReplay,
    /// Before the first write of a COMMIT.
    BeforeCommit,
    BetweenCommitWrites,
    CommitSync,
    /// After COMMIT, before anybody is answered.
    AfterCommit,
    CheckpointWrite,
    CheckpointSync,
    /// The writer copies what is left of the WAL.
    RestartWrite,
    /// The WAL may be begun anew, or is.
    Restarted,
    /// The first writes into a WAL that is begun anew.
    NewWal,
    /// In the fence after a sync that failed.
    Fence,
    /// Once the group of such a sync is told that it is not applied.
    AfterFence,
    /// Once it is told that nobody knows, as the fence has failed too.
    InDoubt,
    InImportBatch,
    /// In the recovery of what the last kill has left.
    Recovery,
    /// In the last checkpoint, of an orderly shutdown.
    Close,
}

impl Point {
    pub(crate) const ALL: [Self; 19] = [
        Self::Begun,
        Self::InCommand,
        Self::BetweenCommands,
        Self::InReplay,
        Self::BeforeCommit,
        Self::BetweenCommitWrites,
        Self::CommitSync,
        Self::AfterCommit,
        Self::CheckpointWrite,
        Self::CheckpointSync,
        Self::RestartWrite,
        Self::Restarted,
        Self::NewWal,
        Self::Fence,
        Self::AfterFence,
        Self::InDoubt,
        Self::InImportBatch,
        Self::Recovery,
        Self::Close,
    ];

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|point| format!("{point:?}") == name)
    }

    /// Whether it needs a sync of a COMMIT that fails.
    pub(crate) fn is_of_fence(self) -> bool {
        matches!(self, Self::Fence | Self::AfterFence | Self::InDoubt)
    }

    /// Whether it needs a COMMIT that writes all there is to write.
    pub(crate) fn is_of_commit(self) -> bool {
        let is_within = matches!(self, Self::BeforeCommit | Self::BetweenCommitWrites | Self::CommitSync);
        is_within || self == Self::AfterCommit || self.is_of_fence()
    }

    /// How often it may be passed before the child dies there.
    fn spared(self, rng: &mut Rng) -> i64 {
        let most = match self {
            Self::InCommand | Self::BetweenCommands | Self::InImportBatch => 500,
            Self::CheckpointWrite => 100,
            Self::InReplay => 40,
            Self::RestartWrite => 30,
            Self::Recovery => 12,
            Self::CheckpointSync | Self::Restarted | Self::NewWal => 10,
            Self::Close => 3,
            // Groups.
            _ => 50,
        };
        rng.i64(0..most)
    }
}

/// Syncs of a failing child succeed this often, then one fails.
const SYNCS_BETWEEN_FAILURES: i64 = 10;

/// What is known in a child of the point at which it dies.
struct Armed {
    run: Run,
    faults: Faults,
    rng: Mutex<Rng>,
    spared: AtomicI64,
    /// Closures that have begun since BEGIN.
    commands: AtomicU32,
    /// The writer holds the lock of checkpoints.
    is_checkpoint: AtomicBool,
    /// The sync has failed that the point is about.
    has_failed: AtomicBool,
    /// The parent knows of a command that a fence has undone it.
    was_told: Mutex<bool>,
    told: Condvar,
}

static ARMED: OnceLock<Armed> = OnceLock::new();
static PIPE: OnceLock<File> = OnceLock::new();

/// Where the words of this process go.
pub(crate) fn speak_into(pipe: File) {
    PIPE.set(pipe).unwrap();
}

/// Tells the parent, who has it for good once this returns, and since when it holds.
pub(crate) fn say(word: &str) {
    let now = process::now().as_nanos();
    let mut pipe = PIPE.get().unwrap();
    if pipe.write_all(format!("\n@{now} {word}\n").as_bytes()).is_err() {
        // The parent is gone.
        std::process::exit(1);
    }
}

fn die(point: Point) -> ! {
    say(&format!("died {point:?}"));
    kill_process(getpid(), Signal::KILL).unwrap();
    unreachable!("SIGKILL can't be survived")
}

/// Before the service is opened.
pub(crate) fn arm(run: Run, faults: &Faults) {
    let mut rng = run.rng();
    let spared = run.point.map_or(SYNCS_BETWEEN_FAILURES, |point| point.spared(&mut rng));
    let armed = Armed {
        run,
        faults: faults.clone(),
        rng: Mutex::new(rng),
        spared: AtomicI64::new(spared),
        commands: AtomicU32::new(0),
        is_checkpoint: AtomicBool::new(false),
        has_failed: AtomicBool::new(false),
        was_told: Mutex::new(false),
        told: Condvar::new(),
    };
    if run.point == Some(Point::Recovery) {
        armed.die_at(Op::Read, Of::Wal, By::Writer, spared);
    }
    assert!(ARMED.set(armed).is_ok());
}

/// Once the service is open.
pub(crate) fn opened() {
    let armed = ARMED.get().unwrap();
    armed.faults.heal();
    armed.faults.on_lock(|lock| ARMED.get().unwrap().locked(lock));
    let spared = armed.spared.load(Ordering::Relaxed);
    match armed.run.point {
        Some(Point::CheckpointWrite) => armed.die_at(Op::Write, Of::Database, By::Checkpointer, spared),
        Some(Point::CheckpointSync) => {
            let of = if armed.random(2) == 0 { Of::Database } else { Of::Wal };
            armed.die_at(Op::Sync, of, By::Checkpointer, spared);
        }
        Some(Point::RestartWrite) => armed.die_at(Op::Write, Of::Database, By::Writer, spared),
        _ => {}
    }
}

/// Everything is answered, and the service is about to be closed.
pub(crate) fn closing() {
    let armed = ARMED.get().unwrap();
    let spared = armed.spared.load(Ordering::Relaxed);
    armed.die_at(Op::Write, Of::Database, By::Writer, spared);
    armed.die_at(Op::Truncate, Of::Wal, By::Writer, 0);
}

/// Dies here, if it is time.
pub(crate) fn pass(point: Point) {
    if ARMED.get().unwrap().is_due(point) {
        die(point);
    }
}

/// A closure begins on the writer.
pub(crate) fn command_begins(is_again: bool) {
    let armed = ARMED.get().unwrap();
    if armed.commands.fetch_add(1, Ordering::Relaxed) > 0 {
        pass(Point::BetweenCommands);
    }
    if is_again {
        pass(Point::InReplay);
    }
    if armed.run.point == Some(Point::AfterFence) && armed.has_failed() {
        // Its group has its answer by now, which must have gone to the parent.
        let was_told = armed.was_told.lock().unwrap();
        let (_told, timeout) = armed.told.wait_timeout_while(was_told, HANG, |told| !*told).unwrap();
        assert!(!timeout.timed_out(), "nobody was told of the fence");
        die(Point::AfterFence);
    }
}

/// The parent knows of a command that a fence has undone it.
pub(crate) fn told_of_fence() {
    let armed = ARMED.get().unwrap();
    *armed.was_told.lock().unwrap() = true;
    armed.told.notify_all();
}

impl Armed {
    fn is_due(&self, point: Point) -> bool {
        self.run.point == Some(point) && self.spared.fetch_sub(1, Ordering::Relaxed) <= 0
    }

    fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }

    fn random(&self, below: u32) -> u32 {
        self.rng.lock().unwrap().u32(0..below)
    }

    /// Dies instead of a call.
    fn die_at(&self, op: Op, of: Of, by: By, spared: impl TryInto<u32>) {
        let Some(point) = self.run.point else { return };
        let spared = spared.try_into().unwrap_or(0);
        let fault = Fault::new(op, of, ffi::SQLITE_IOERR).by(by).after(spared).once();
        self.faults.inject(fault.then(move || die(point)));
    }

    /// Looks at the locks that the writer takes and gives back.
    fn locked(&self, lock: ShmLock) {
        const WRITE: (i32, i32) = (0, 1);
        const CHECKPOINT: (i32, i32) = (1, 1);
        /// All that readers hold which use the WAL.
        const READERS: (i32, i32) = (4, 4);
        if lock.by != By::Writer || !lock.is_exclusive {
            return;
        }
        let is_checkpoint = self.is_checkpoint.load(Ordering::Relaxed);
        match ((lock.slot, lock.slots), lock.is_held) {
            (CHECKPOINT, is_held) => self.is_checkpoint.store(is_held, Ordering::Relaxed),
            (WRITE, true) if !is_checkpoint => self.begun(),
            (WRITE, false) if !is_checkpoint => self.ended(),
            (READERS, false) => self.restarted(),
            _ => {}
        }
    }

    /// The transaction of a group or of a fence has begun.
    fn begun(&self) {
        self.commands.store(0, Ordering::Relaxed);
        self.faults.forget();
        pass(Point::Begun);
        match self.run.point {
            Some(point @ Point::BeforeCommit) if self.is_due(point) => {
                self.die_at(Op::Write, Of::Wal, By::Writer, 0);
            }
            Some(point @ Point::BetweenCommitWrites) if self.is_due(point) => {
                self.die_at(Op::Write, Of::Wal, By::Writer, 1 + self.random(6));
            }
            Some(point @ Point::CommitSync) if self.is_due(point) => {
                self.die_at(Op::Sync, Of::Wal, By::Writer, 0);
            }
            Some(point) if point.is_of_fence() && !self.has_failed() && self.is_due(point) => {
                self.fail_sync();
            }
            None if self.run.is_failing && self.spared.fetch_sub(1, Ordering::Relaxed) <= 0 => {
                self.fail_sync();
            }
            _ => {}
        }
    }

    /// It has ended, by COMMIT or ROLLBACK.
    fn ended(&self) {
        let has_written =
            self.faults.calls().iter().any(|call| {
                (call.op, call.of, call.by, call.failed) == (Op::Write, Of::Wal, By::Writer, false)
            });
        if has_written {
            pass(Point::AfterCommit);
        }
        // A group that wrote less than was waited for: the next one is another try.
        let is_of_commit = self.run.point.is_some_and(Point::is_of_commit);
        if (is_of_commit || self.run.is_failing) && !self.has_failed() {
            self.faults.heal();
        }
    }

    fn restarted(&self) {
        pass(Point::Restarted);
        if self.is_due(Point::NewWal) {
            self.die_at(Op::Write, Of::Wal, By::Writer, self.random(3));
        }
    }

    /// Has the sync of this COMMIT fail. It has written its frames then.
    fn fail_sync(&self) {
        let fail = || Fault::new(Op::Sync, Of::Wal, ffi::SQLITE_IOERR_FSYNC).by(By::Writer).once();
        self.faults.inject(fail().then(move || {
            let armed = ARMED.get().unwrap();
            match armed.run.point {
                // The point is reached.
                Some(_) => armed.has_failed.store(true, Ordering::Relaxed),
                None => armed.spared.store(SYNCS_BETWEEN_FAILURES, Ordering::Relaxed),
            }
            match (armed.run.point, armed.random(3)) {
                (Some(Point::Fence), 0) => armed.die_at(Op::Sync, Of::Wal, By::Writer, 0),
                (Some(Point::Fence), spared) => armed.die_at(Op::Write, Of::Wal, By::Writer, spared - 1),
                (Some(Point::InDoubt), 0) => {
                    let fault = Fault::new(Op::Write, Of::Wal, ffi::SQLITE_IOERR_WRITE);
                    armed.faults.inject(fault.by(By::Writer).once());
                }
                (Some(Point::InDoubt), _) => armed.faults.inject(fail()),
                _ => {}
            }
        }));
    }
}
