//! What is asked of the service: the same, in the same order and with the same pauses each time, so that the calls
//! come in the same order as far as threads allow.

use std::slice;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use futures_util::future::join_all;
use solewriter::{
    Config, Database, Durability, ImportError, ImportReport, Lane, ReadError, Snapshot, WriteError,
};
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::common::faults::{Faults, Lasts};
use crate::common::{HANG, Kind, config_with, soon};
use crate::ledger::{PER_TASK, parts};
use crate::workload::{Manner, Notes, Order, accept, import};

pub(super) const PAGE_BYTES: u32 = 1_024;

/// Room for the pages of all commands but one: what does not fit is written before its COMMIT. With less, the calls
/// would depend on other runs at the same time, as connections may take pages from each other's caches
/// (`SQLITE_ENABLE_MEMORY_MANAGEMENT`).
const CACHE_BYTES: u64 = 32_768;

/// How many entries the import has.
const ENTRIES: i64 = 12;

/// How long nothing is called before all is taken to be at rest, where calls are counted.
const COUNTED_AT_REST: Duration = Duration::from_millis(100);

/// The same where it is known how many calls there should be.
const AT_REST: Duration = Duration::from_millis(30);

/// Something that the client does.
#[derive(Debug)]
enum Step {
    /// Commands that wait together while a gate holds the writer, so that the same groups form.
    Burst(Vec<Order>),
    /// A command that finds the writer idle.
    Alone(Order),
    Read,
    TakeSnapshot,
    DropSnapshot,
    Import,
    /// Waits for all that goes on beside the client; the checkpointer too, where it works at such times only.
    Rest,
}

/// A workload and the settings of the service.
pub(super) struct Script {
    pub(super) config: Config,
    /// Whether every command asks for `FULL`.
    pub(super) is_full: bool,
    /// Whether the checkpointer works while the client rests and at no other time.
    takes_turns: bool,
    steps: Vec<Step>,
}

/// An answer to a command.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) order: Order,
    /// The step that it was sent in.
    pub(super) step: usize,
    /// What it should be if nothing fails; either, where a neighbour may cost a command its only run.
    pub(super) should_succeed: Option<bool>,
    pub(super) answer: Result<(), WriteError>,
}

pub(super) type Imported = Result<ImportReport<rusqlite::Error>, ImportError<rusqlite::Error>>;

/// What was answered to a script.
#[derive(Debug, Default)]
pub(super) struct Answers {
    pub(super) commands: Vec<Answered>,
    pub(super) import: Option<Imported>,
    /// The step of the import.
    pub(super) import_step: usize,
    pub(super) reads_failed: u64,
}

/// How many calls there are at each rest.
pub(super) enum Rests<'c> {
    Counted(Vec<usize>),
    Known {
        calls: slice::Iter<'c, usize>,
        /// How many of them were not made in this run.
        missing: usize,
    },
    /// Nobody waits.
    None,
}

impl Script {
    pub(super) fn new(workload: u64) -> Self {
        let mut rng = Rng::with_seed(workload);
        let is_full = workload.is_multiple_of(2);
        let takes_turns = workload % 4 < 2;
        let config = config_with(|config| {
            config.mmap_bytes = 0;
            (config.readers, config.readers_overflow) = (1, 0);
            config.group_commands_max = rng.usize(4..8);
            config.statement_cache_capacity = 16;
            config.cache_bytes = CACHE_BYTES;
            config.checkpoint_pages = [8, 30, 60][rng.usize(0..3)];
            // The writer waits for a checkpoint once the WAL is so large.
            config.wal_target_bytes = if takes_turns { 4 << 20 } else { 65_536 };
            config.busy_timeout = HANG;
            config.breaker_failures = 3;
            config.breaker_pause = Duration::from_millis(1);
        });
        let mut writer = Orders { next: PER_TASK, is_full, rng };
        let steps = vec![
            writer.burst(&[
                (Kind::Statement, Manner::Good),
                (Kind::Typed, Manner::Good),
                (Kind::Once, Manner::Nests),
                (Kind::Rerunnable, Manner::Churns),
            ]),
            Step::Rest,
            Step::Alone(writer.order(Kind::Statement, Manner::Good)),
            Step::Rest,
            writer.burst(&[
                (Kind::Rerunnable, Manner::Good),
                (Kind::Once, Manner::Good),
                (Kind::Rerunnable, Manner::FailsAtTheEnd),
                (Kind::Typed, Manner::Good),
                (Kind::Once, Manner::Panics),
                (Kind::Rerunnable, Manner::RollsBackEverything),
                (Kind::Statement, Manner::Good),
                (Kind::Once, Manner::KeepsHalf),
            ]),
            Step::Rest,
            Step::TakeSnapshot,
            writer.burst(&[
                (Kind::Typed, Manner::Good),
                (Kind::Rerunnable, Manner::Churns),
                (Kind::Statement, Manner::Good),
            ]),
            Step::Rest,
            Step::DropSnapshot,
            Step::Read,
            Step::Import,
            Step::Rest,
            writer.burst(&[
                (Kind::Once, Manner::Nests),
                (Kind::Rerunnable, Manner::Spills),
                (Kind::Typed, Manner::Good),
            ]),
            Step::Rest,
        ];
        Self { config, is_full, takes_turns, steps }
    }

    /// The settings under which calls fail so often.
    pub(super) fn config(&self, lasts: Lasts) -> Config {
        let mut config = self.config.clone();
        if lasts != Lasts::Once {
            // A lock that can't be had need not be waited for.
            config.busy_timeout = Duration::from_millis(10);
        }
        config
    }

    /// Has the service do all of it.
    pub(super) async fn run(
        &self,
        db: &Database,
        faults: &Faults,
        lasts: Lasts,
        rests: &mut Rests<'_>,
        notes: Notes<'_>,
    ) -> Answers {
        let mut client = Client { db, faults, notes, snapshot: None, answers: Answers::default() };
        faults.hold_checkpointer(self.takes_turns);
        for (step, what) in self.steps.iter().enumerate() {
            match what {
                Step::Burst(orders) => client.burst(step, orders).await,
                Step::Alone(order) => client.send(step, &[*order], || ()).await,
                Step::Read => {
                    client.answers.reads_failed += u64::from(soon(read(db)).await.is_err());
                }
                Step::TakeSnapshot => client.take_snapshot().await,
                Step::DropSnapshot => client.drop_snapshot().await,
                Step::Import => {
                    // What does not pass need not be waited for.
                    let lost_batches_max = if lasts == Lasts::Once { 4 } else { 1 };
                    client.answers.import_step = step;
                    client.answers.import = Some(soon(import(db, ENTRIES, lost_batches_max, notes)).await);
                }
                // The writer has something to do after its answers; then it is the checkpointer's turn.
                Step::Rest => {
                    rests.rest(faults).await;
                    faults.hold_checkpointer(false);
                    rests.rest(faults).await;
                    faults.hold_checkpointer(self.takes_turns);
                }
            }
        }
        faults.hold_checkpointer(false);
        client.answers
    }
}

/// Makes commands, numbered in the order of their making.
struct Orders {
    next: i64,
    is_full: bool,
    rng: Rng,
}

impl Orders {
    fn burst(&mut self, commands: &[(Kind, Manner)]) -> Step {
        let mut commands = commands.to_vec();
        self.rng.shuffle(&mut commands);
        Step::Burst(commands.into_iter().map(|(kind, manner)| self.order(kind, manner)).collect())
    }

    fn order(&mut self, kind: Kind, manner: Manner) -> Order {
        // A single statement writes a single row.
        while kind == Kind::Statement && parts(self.next) != 1 {
            self.next += 1;
        }
        let command = self.next;
        self.next += 1;
        let is_normal = !self.is_full && self.rng.bool();
        let durability = if is_normal { Durability::Normal } else { Durability::Full };
        Order { command, kind, manner, durability }
    }
}

struct Client<'a> {
    db: &'a Database,
    faults: &'a Faults,
    notes: Notes<'a>,
    snapshot: Option<Snapshot>,
    answers: Answers,
}

impl Client<'_> {
    async fn burst(&mut self, step: usize, orders: &[Order]) {
        if self.faults.is_hit() {
            // As below.
            self.snapshot = None;
        }
        let (release, wait) = mpsc::channel::<()>();
        let (reached, is_reached) = oneshot::channel();
        let gate = self.db.write("gate", move |_| {
            let _nobody_waits = reached.send(()).is_err();
            let _is_dropped = wait.recv_timeout(HANG).is_err();
            Ok(())
        });
        let gate = accept(gate.lane(Lane::Bulk), Durability::Normal).await;
        // It is dropped where it can't run.
        let _is_refused = soon(is_reached).await.is_err();
        self.send(step, orders, || drop(release)).await;
        if let Ok(gate) = gate {
            // It has nothing to lose.
            drop(soon(gate).await);
        }
    }

    /// Sends commands, and waits for their answers after `go`.
    async fn send(&mut self, step: usize, orders: &[Order], go: impl FnOnce()) {
        let mut answers = Vec::new();
        for order in orders {
            answers.push(order.submit(self.db, self.notes).await);
        }
        go();
        let faults = self.faults;
        let first_failure = async {
            while !faults.is_hit() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        let mut answers = Box::pin(soon(join_all(answers)));
        let answers = tokio::select! {
            biased;
            answers = &mut answers => answers,
            () = first_failure, if self.snapshot.is_some() => {
                // To open the database anew would wait for it.
                self.snapshot = None;
                answers.await
            }
        };
        let loses_once = orders.iter().any(|order| order.manner == Manner::RollsBackEverything);
        for (order, answer) in orders.iter().copied().zip(answers) {
            let may_be_lost = loses_once && order.kind == Kind::Once;
            let should_succeed = (!may_be_lost).then(|| order.manner.is_good());
            self.answers.commands.push(Answered { order, step, should_succeed, answer });
        }
    }

    async fn take_snapshot(&mut self) {
        match soon(self.db.snapshot("pin")).await {
            Ok(snapshot) => self.snapshot = Some(snapshot),
            Err(_) => self.answers.reads_failed += 1,
        }
    }

    async fn drop_snapshot(&mut self) {
        if let Some(snapshot) = self.snapshot.take() {
            let count = snapshot.read(|tx| tx.query_row("SELECT count(*) FROM part", (), |_| Ok(())));
            self.answers.reads_failed += u64::from(soon(count).await.is_err());
        }
    }
}

pub(super) async fn read(db: &Database) -> Result<(), ReadError> {
    db.read("total", |tx| tx.query_row("SELECT parts FROM total", (), |_| Ok(()))).await
}

impl<'c> Rests<'c> {
    /// Of a run like the one that was counted.
    pub(super) fn known(counted: &'c [usize]) -> Self {
        Self::Known { calls: counted.iter(), missing: 0 }
    }

    /// Waits until nothing is called any more, and counts; or until as much has been called.
    async fn rest(&mut self, faults: &Faults) {
        match self {
            Self::Counted(counted) => counted.push(until_at_rest(faults, usize::MAX, COUNTED_AT_REST).await),
            Self::Known { calls, missing } => {
                let calls = calls.next().expect("every run rests as often");
                let called = until_at_rest(faults, calls - *missing, AT_REST).await;
                *missing = calls.saturating_sub(called);
            }
            Self::None => {}
        }
    }
}

/// Waits for so many calls, unless before that there are none for this time, or one fails: then everything may go
/// another way. Returns how many there are.
async fn until_at_rest(faults: &Faults, calls: usize, at_rest: Duration) -> usize {
    let (mut called, mut since) = (faults.called(), Instant::now());
    while called < calls && since.elapsed() < at_rest && !faults.is_hit() {
        sleep(Duration::from_micros(100)).await;
        let now = faults.called();
        if now != called {
            (called, since) = (now, Instant::now());
        }
    }
    called
}
