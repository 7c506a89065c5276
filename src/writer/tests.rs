//! The writer over a store that fails as a seed pleases: what it does after each failure, thousands of times.
//!
//! Properties, for every seed, in the line `writer_simulation`: each accepted command is answered exactly once; what was answered `Ok` is in the
//! store, whole and once; what was answered as not started or rolled back is not, and can't be back after a
//! power loss; nothing is acknowledged once the store can lose it; two runs of a seed are the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use rusqlite::ffi;

use super::store::{CommitError, Ran, Store};
use super::{SessionEnd, Writer};
use crate::board::Board;
use crate::config::{Config, Durability};
use crate::connection::Checkpointed;
use crate::error::{Cause, Unknown};
use crate::failure::Failure;
use crate::herald::Herald;
use crate::housekeeper::Housekeeping;
use crate::label::Label;
use crate::lane::Lane;
use crate::message::{Caller, Claim, Envelope, Fate, Job, Kind, Step, Ticket};
use crate::proof::{Proof, Tally, Wrong};
use crate::queue::{self, Admission, Outbox};
use crate::reader::Pins;
use crate::rules::{self, AfterCommand, Guard, Loss, Seen};
use crate::transaction::WriteTransaction;

/// What a command does by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nature {
    Good,
    WritesNothing,
    FailsEarly,
    FailsLate,
    EndsTransaction,
    LeavesStatementOpen,
}

const NATURES: [Nature; 6] = [
    Nature::Good,
    Nature::WritesNothing,
    Nature::FailsEarly,
    Nature::FailsLate,
    Nature::EndsTransaction,
    Nature::LeavesStatementOpen,
];

/// A half of what a command writes.
type Cell = (u64, bool);

/// What can be known of a file from outside of the writer.
#[derive(Default)]
struct File {
    committed: Vec<Cell>,
    /// Frames of a COMMIT that failed: back after a power loss, until they are overwritten.
    may_be_back: Vec<Cell>,
    /// Groups have been committed without a sync since the last one.
    unsynced: bool,
    /// A sync has failed and may have dropped what those groups wrote: what is acknowledged from now on can be
    /// lost.
    poisoned: bool,
    /// The file was replaced: whatever is committed from now on is lost.
    replaced: bool,
    /// Commits that were acknowledged although they can be lost.
    acknowledged_in_vain: u64,
}

/// A database in memory whose every step may fail.
struct FakeStore {
    rng: Rng,
    /// Failures per thousand steps.
    fault_rate: u32,
    natures: BTreeMap<String, (u64, Nature)>,
    file: File,
    transaction: Option<(Durability, Vec<Cell>)>,
    fit: bool,
    wal_pages: u64,
    /// Whether each command had written something and returned `Ok` when it last ran.
    has_written: BTreeMap<u64, bool>,
    /// Whether a small commit overwrites what a failed one has left.
    fences_work: bool,
    /// Whether replaced files are noticed.
    looks_at_files: bool,
}

fn error(code: i32) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)
}

impl FakeStore {
    fn fails(&mut self) -> bool {
        self.rng.u32(0..1_000) < self.fault_rate
    }

    fn environment(&mut self) -> i32 {
        let codes = [
            ffi::SQLITE_FULL,
            ffi::SQLITE_IOERR_WRITE,
            ffi::SQLITE_IOERR_READ,
            ffi::SQLITE_NOMEM,
            ffi::SQLITE_CORRUPT,
            ffi::SQLITE_INTERRUPT,
        ];
        codes[self.rng.usize(0..codes.len())]
    }

    fn sync_has_failed(&mut self) {
        self.file.poisoned |= self.file.unsynced;
    }

    fn step(&mut self, guard: Guard, id: u64, nature: Nature) -> Step {
        let mut seen = Seen {
            guard,
            ok: matches!(nature, Nature::Good | Nature::WritesNothing),
            failure: Failure::Command,
            ended: false,
            statement_open: nature == Nature::LeavesStatementOpen,
            savepoint_stuck: false,
            foreign_key_violated: false,
            wrote: false,
        };
        let Some((_, cells)) = &mut self.transaction else { panic!("a command without a transaction") };
        let savepoint = cells.len();
        match nature {
            Nature::Good => cells.extend([(id, false), (id, true)]),
            Nature::WritesNothing | Nature::FailsEarly => {}
            _ => cells.push((id, false)),
        }
        seen.wrote = cells.len() > savepoint;
        if nature == Nature::EndsTransaction {
            self.transaction = None;
        } else if self.fails() {
            seen.ok = false;
            seen.failure = Failure::of_code(self.environment());
            if self.rng.bool() {
                self.transaction = None;
            }
        }
        seen.ended = self.transaction.is_none();
        let after = rules::after_command(&seen);
        match (after, &mut self.transaction) {
            (AfterCommand::Keep, _) => Step::Done,
            (AfterCommand::Leave, _) => Step::Undone,
            (AfterCommand::Undo, Some((_, cells))) => {
                cells.truncate(savepoint);
                Step::Undone
            }
            (AfterCommand::Undo, None) => panic!("a savepoint without a transaction"),
            (AfterCommand::Lose(loss), _) => {
                self.fit &= loss != Loss::StatementOpen;
                Step::Lost(loss)
            }
        }
    }
}

impl Store for FakeStore {
    fn begin(&mut self, durability: Durability) -> rusqlite::Result<()> {
        assert!(self.transaction.is_none(), "a transaction within a transaction");
        assert!(self.fit, "a transaction on a connection in doubt");
        if self.fails() {
            let code = if self.rng.bool() { ffi::SQLITE_BUSY } else { self.environment() };
            return Err(error(code));
        }
        self.transaction = Some((durability, Vec::new()));
        Ok(())
    }

    fn saw_foreign_commit(&mut self) -> bool {
        false
    }

    fn run(&mut self, command: &Ticket, guard: Guard, _: Instant) -> Ran {
        let (id, nature) = self.natures[&*command.label];
        if guard == Guard::Bare {
            assert_eq!(command.kind, Kind::Rerunnable, "only what can run again runs without a savepoint");
        }
        if guard == Guard::Savepoint && self.rng.u32(0..10_000) < self.fault_rate {
            self.fit = false;
            return Ran { step: Step::Lost(Loss::Savepoint), reason: None };
        }
        let step = self.step(guard, id, nature);
        let has_written = step == Step::Done && nature == Nature::Good;
        self.has_written.insert(id, has_written);
        Ran { step, reason: None }
    }

    fn commit(&mut self) -> Result<bool, CommitError> {
        let fails = self.fails();
        let Some((durability, cells)) = self.transaction.take() else { panic!("COMMIT without BEGIN") };
        if cells.is_empty() {
            // Neither written nor synced, and nothing overwritten.
            return Ok(false);
        }
        if !fails {
            self.file.committed.extend(&cells);
            self.file.may_be_back.clear();
            if self.file.poisoned || self.file.replaced {
                self.file.acknowledged_in_vain += 1;
            }
            self.file.unsynced = durability == Durability::Normal;
            self.wal_pages += 1;
            return Ok(true);
        }
        let codes = [
            ffi::SQLITE_BUSY,
            ffi::SQLITE_FULL,
            ffi::SQLITE_IOERR_WRITE,
            ffi::SQLITE_IOERR_READ,
            ffi::SQLITE_IOERR_FSYNC,
        ];
        let code = codes[self.rng.usize(0..codes.len())];
        match code {
            ffi::SQLITE_BUSY => self.transaction = Some((durability, cells)),
            // Frames are written in order: the last one, which commits, has not been.
            ffi::SQLITE_FULL => {}
            ffi::SQLITE_IOERR_FSYNC => {
                self.file.may_be_back = cells;
                self.sync_has_failed();
            }
            _ => self.file.may_be_back = cells,
        }
        Err(CommitError { error: error(code), nothing_written: code == ffi::SQLITE_BUSY })
    }

    fn roll_back(&mut self) -> bool {
        self.transaction = None;
        self.fit
    }

    fn check_files(&self) -> Result<(), Cause> {
        if self.file.replaced && self.looks_at_files {
            Err(error(ffi::SQLITE_READONLY_DBMOVED).into())
        } else {
            Ok(())
        }
    }

    fn probe(&mut self) -> rusqlite::Result<()> {
        assert!(self.transaction.is_none(), "a probe within a transaction");
        // What has failed once tends to fail again.
        if self.rng.u32(0..1_000) < self.fault_rate * 4 {
            let codes = [
                ffi::SQLITE_FULL,
                ffi::SQLITE_IOERR_WRITE,
                ffi::SQLITE_IOERR_SHMLOCK,
                ffi::SQLITE_IOERR_FSYNC,
            ];
            let code = codes[self.rng.usize(0..codes.len())];
            if code == ffi::SQLITE_IOERR_FSYNC {
                self.sync_has_failed();
            }
            return Err(error(code));
        }
        if self.fences_work {
            self.file.may_be_back.clear();
        }
        self.file.unsynced = false;
        Ok(())
    }

    fn is_intact(&mut self) -> rusqlite::Result<bool> {
        Ok(self.rng.u32(0..10) > 0)
    }

    fn restart_wal(&mut self, _: Duration) -> rusqlite::Result<Checkpointed> {
        Ok(Checkpointed { blocked: false, wal_pages: 0, copied_pages: 0 })
    }

    fn wal_backlog(&mut self) -> rusqlite::Result<Checkpointed> {
        Ok(Checkpointed { blocked: false, wal_pages: 0, copied_pages: 0 })
    }

    fn wal_pages(&self) -> u64 {
        self.wal_pages
    }
}

/// What each command was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Committed,
    OwnError,
    NotStarted,
    RolledBack,
    Unknown,
}

type Answers = Arc<Mutex<BTreeMap<u64, Vec<Told>>>>;

struct Noted {
    id: u64,
    answers: Answers,
}

impl Job for Noted {
    fn run(&self, _: &mut WriteTransaction<'_>, _: Guard) -> Step {
        unreachable!("the store runs it")
    }

    fn answer(&self, fate: Fate) -> Option<Caller> {
        let told = match fate {
            Fate::Committed(..) => Told::Committed,
            Fate::Culprit => Told::OwnError,
            Fate::NotStarted(_) => Told::NotStarted,
            Fate::RolledBack(_) => Told::RolledBack,
            // Dropped: no answer.
            Fate::Unknown(Unknown::WriterLost) => return None,
            Fate::Unknown(_) => Told::Unknown,
        };
        self.answers.lock().unwrap().entry(self.id).or_default().push(told);
        None
    }
}

/// A writer that breaks a rule: the properties must show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Canary {
    /// The fence overwrites nothing.
    NoFence,
    /// Groups that are not synced are forgotten.
    ForgetsUnsyncedGroups,
    /// The files are not looked at.
    IgnoresReplacedFiles,
}

/// What is left of a life.
struct Left {
    answers: BTreeMap<u64, Vec<Told>>,
    has_written: BTreeMap<u64, bool>,
    file: File,
}

/// A life of the writer: commands come in bursts, the store fails, at the end everything is closed.
struct Life {
    rng: Rng,
    outbox: Outbox,
    writer: Writer,
    store: FakeStore,
    answers: Answers,
    sent: u64,
    /// One for each life: what lanes earn by waiting is measured in real time, and not repeatable.
    lane: Lane,
    canary: Option<Canary>,
}

impl Life {
    fn new(seed: u64, canary: Option<Canary>) -> Self {
        let mut rng = Rng::with_seed(seed);
        let config = Config {
            group_hold_max: Duration::from_secs(20),
            bulk_hold_target: Duration::from_secs(20),
            busy_timeout: Duration::from_micros(1),
            breaker_pause: Duration::from_micros(1),
            breaker_failures: rng.u32(1..4),
            ..Config::default()
        };
        let (outbox, queue) = queue::open(&config);
        let writer = Writer::new(
            queue,
            Arc::new(Board::new()),
            Arc::new(Housekeeping::default()),
            Arc::new(Pins::default()),
            Arc::new(Herald::default()),
            config,
        );
        let store = FakeStore {
            fault_rate: [0, 5, 50, 200][rng.usize(0..4)],
            rng: rng.fork(),
            natures: BTreeMap::new(),
            file: File::default(),
            transaction: None,
            fit: true,
            wal_pages: 0,
            has_written: BTreeMap::new(),
            fences_work: canary != Some(Canary::NoFence),
            looks_at_files: canary != Some(Canary::IgnoresReplacedFiles),
        };
        let lane = Lane::ALL[rng.usize(0..3)];
        Self { rng, outbox, writer, store, answers: Answers::default(), sent: 0, lane, canary }
    }

    fn send(&mut self) {
        let id = self.sent;
        self.sent += 1;
        let nature =
            if self.rng.u8(0..4) > 0 { Nature::Good } else { NATURES[self.rng.usize(0..NATURES.len())] };
        // A few labels, so that some learn that they fail; the store finds the command by its whole label.
        let label = format!("{nature:?} {id}");
        self.store.natures.insert(label.clone(), (id, nature));
        let ticket = Ticket {
            kind: if self.rng.u8(0..4) == 0 { Kind::Once } else { Kind::Rerunnable },
            label: Label::from(label),
            lane: self.lane,
            durability: if self.rng.u8(0..4) == 0 { Durability::Normal } else { Durability::Full },
            bytes: 1,
            submitted: Instant::now(),
            deadline: (self.rng.u8(0..20) == 0).then(Instant::now),
            span: tracing::Span::none(),
            claim: Claim::default(),
            job: Noted { id, answers: self.answers.clone() },
        };
        let envelope = Envelope::new(Arc::new(ticket));
        assert!(matches!(self.outbox.try_send(envelope), Ok(Admission::Accepted)));
    }

    /// Lives until everything is answered.
    fn live(mut self) -> Left {
        for _ in 0..self.rng.u32(1..12) {
            for _ in 0..self.rng.u32(1..8) {
                self.send();
            }
            if self.rng.u32(0..300) == 0 {
                self.store.file.replaced = true;
            }
            if !self.turn_until_idle() {
                break;
            }
        }
        self.outbox.close();
        while self.turn() {}
        self.writer.refuse_until_drained();
        let answers = std::mem::take(&mut *self.answers.lock().unwrap());
        assert_eq!(answers.len() as u64, self.sent, "every command is answered");
        Left { answers, has_written: self.store.has_written, file: self.store.file }
    }

    /// Runs what waits; false if writing has stopped.
    fn turn_until_idle(&mut self) -> bool {
        while !self.writer.queue.look(|lanes| lanes.is_empty()) || !self.writer.rounds.is_empty() {
            if !self.turn() {
                return false;
            }
        }
        true
    }

    fn turn(&mut self) -> bool {
        if self.canary == Some(Canary::ForgetsUnsyncedGroups) {
            self.writer.unsynced_groups = false;
        }
        match self.writer.turn(&mut self.store) {
            ControlFlow::Continue(()) => true,
            ControlFlow::Break(SessionEnd::Replace | SessionEnd::Reopen) => {
                // As `replace` does, which may fail.
                self.writer.is_unfit = self.store.fails();
                if self.writer.is_unfit {
                    self.writer.note_failure(error(ffi::SQLITE_CANTOPEN).into());
                } else {
                    self.store.fit = true;
                }
                true
            }
            ControlFlow::Break(SessionEnd::Drained | SessionEnd::Stopped) => false,
        }
    }
}

/// Checks every answer.
fn judge(Left { answers, has_written, file }: &Left) -> Tally {
    let mut tally = Tally::of_one_case();
    for (id, told) in answers {
        let [told] = told[..] else {
            tally.check(false, Wrong::Broken, || format!("command {id} was told {told:?}"));
            continue;
        };
        let count = |cells: &[Cell], half| cells.iter().filter(|cell| **cell == (*id, half)).count();
        let halves = [false, true].map(|half| count(&file.committed, half));
        let ghosts = [false, true].map(|half| count(&file.may_be_back, half));
        let is_true = match told {
            // The answer is the command's own, value or error.
            Told::Committed if has_written.get(id) == Some(&true) => halves == [1, 1],
            Told::Committed => halves == [0, 0],
            Told::OwnError | Told::NotStarted | Told::RolledBack => (halves, ghosts) == ([0, 0], [0, 0]),
            Told::Unknown => halves == [1, 1] || halves == [0, 0],
        };
        let how = match (told, halves) {
            (_, [first, second]) if first != second => Wrong::Half,
            (Told::Committed, [0, 0]) => Wrong::Lost,
            (Told::Committed | Told::Unknown, _) => Wrong::Broken,
            (Told::OwnError | Told::NotStarted | Told::RolledBack, _) => Wrong::Ghost,
        };
        tally.check(is_true, how, || {
            format!("command {id} was told {told:?}: {halves:?} committed, {ghosts:?} may be back")
        });
    }
    let is_unknown = answers.values().any(|told| told[0] == Told::Unknown);
    // One group may have gone into a replaced file: it was answered as unknown.
    let in_vain = file.acknowledged_in_vain > u64::from(file.replaced && is_unknown);
    tally.check(!in_vain, Wrong::Lost, || "acknowledged, and can be lost".into());
    tally
}

fn live(seed: u64, canary: Option<Canary>) -> Left {
    let result = Arc::new(Mutex::new(None));
    // The queue of unit tests works under the scheduler only; here it has one thread to schedule.
    let lived = result.clone();
    shuttle::check_random(move || *lived.lock().unwrap() = Some(Life::new(seed, canary).live()), 1);
    let lived = result.lock().unwrap().take();
    lived.expect("it has lived")
}

#[test]
fn writer_simulation_whatever_the_store_does_every_answer_is_true() {
    let mut proof = Proof::new("writer_simulation", 2_000, 100_000);
    let told_in_all = Mutex::new(BTreeMap::<String, u64>::new());
    proof.run(|seed| {
        let left = live(seed, None);
        let mut tally = judge(&left);
        let again = live(seed, None);
        tally.check(again.answers == left.answers, Wrong::Broken, || "it is not repeatable".into());
        let mut told_in_all = told_in_all.lock().unwrap();
        for told in left.answers.values().flatten() {
            *told_in_all.entry(format!("told:{told:?}")).or_default() += 1;
        }
        tally
    });
    let told = told_in_all.into_inner().unwrap();
    assert!(told.len() == 5 || proof.is_replay(), "every answer occurs: {told:?}");
    for (what, count) in told {
        proof.figure(&what, count);
    }
    for canary in [Canary::NoFence, Canary::ForgetsUnsyncedGroups, Canary::IgnoresReplacedFiles] {
        proof.canary(canary, 3_000, |seed| judge(&live(seed, Some(canary))));
    }
    proof.finish();
}
