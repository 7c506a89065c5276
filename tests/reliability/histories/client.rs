//! What the tasks do, and how they write it down.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use fastrand::Rng;
use futures_util::stream;
use solewriter::{
    CommitToken, Database, Durability, Lane, Outcome, ReadError, RolledBack, Work, Write, WriteError,
};
use tokio::sync::Semaphore;

use crate::common::Kind;
use crate::common::proof::{Tally, Wrong};

use super::bank::{Glance, OR_ROLLBACK, Spite, TOUCH, Transfer, touched};
use super::operation::{Actor, Did, Operation, Read, Saw, Wrote, id, now};

/// What all actors of a round share.
pub(super) struct Shared {
    pub(super) db: Database,
    /// Operations that are still to be done.
    budget: AtomicI64,
    /// Imports that are to be begun; closed when the tasks have ended.
    pub(super) imports: Semaphore,
    snapshots: AtomicU32,
    /// Of somebody's newest write, for others to read after.
    token: Mutex<Option<CommitToken>>,
    load: Load,
    turns: Semaphore,
}

/// What the tasks do, and how much at the same time.
pub(super) struct Load {
    /// How many tasks act at the same time; what they have sent before goes on. With few, the writer is idle at times,
    /// and somebody looks at once at what it has just answered; with all, groups are large.
    at_once: usize,
    /// How many of 1,000 operations are writes.
    writes: u16,
    /// How many of 1,000 commands fail.
    spiteful: u16,
    /// How many of 1,000 commands ask for `FULL`.
    full: u16,
}

impl Load {
    pub(super) fn random(rng: &mut Rng) -> Self {
        Self {
            at_once: [2, 8, 64, 64][rng.usize(0..4)],
            writes: [50, 200, 500, 700][rng.usize(0..4)],
            spiteful: rng.u16(5..30),
            full: [0, 30, 1_000][rng.usize(0..3)],
        }
    }
}

impl Shared {
    pub(super) fn new(db: Database, operations: u64, load: Load) -> Self {
        Self {
            db,
            budget: AtomicI64::new(operations.try_into().unwrap()),
            imports: Semaphore::new(0),
            snapshots: AtomicU32::new(0),
            token: Mutex::new(None),
            turns: Semaphore::new(load.at_once),
            load,
        }
    }

    fn begins_another(&self) -> bool {
        self.budget.fetch_sub(1, Ordering::Relaxed) > 0
    }

    /// Asks for an import.
    fn order_import(&self) {
        self.budget.fetch_sub(ENTRIES.into(), Ordering::Relaxed);
        self.imports.add_permits(1);
    }

    fn spite(&self, rng: &mut Rng) -> Option<Spite> {
        (rng.u16(0..1_000) < self.load.spiteful).then(|| Spite::ALL[rng.usize(0..Spite::ALL.len())])
    }
}

/// What one actor has done, and which of its answers can't be right.
#[derive(Default)]
pub(super) struct Record {
    pub(super) operations: Vec<Operation>,
    pub(super) tally: Tally,
}

type Answer = Pin<Box<dyn Future<Output = Result<(Wrote, CommitToken), WriteError>> + Send>>;

/// A command that is on its way.
struct Sent {
    invoked: u64,
    number: u32,
    lane: Lane,
    kind: Kind,
    is_spiteful: bool,
    answer: Answer,
}

/// A task that sends commands without waiting for each, and reads.
pub(super) struct Client {
    shared: Arc<Shared>,
    by: Actor,
    rng: Rng,
    number: u32,
    sent: VecDeque<Sent>,
    /// How many commands it has on their way before it waits for them.
    depth: usize,
    record: Record,
}

impl Client {
    pub(super) fn new(shared: Arc<Shared>, by: Actor, rng: Rng) -> Self {
        let (sent, record) = (VecDeque::new(), Record::default());
        Self { shared, by, rng, number: 0, sent, depth: 1, record }
    }

    pub(super) async fn run(mut self) -> Record {
        let shared = self.shared.clone();
        while let Ok(_turn) = shared.turns.acquire().await
            && self.act().await
        {}
        self.settle().await;
        self.record
    }

    /// Does a few things in a row; false if there is nothing left to do.
    async fn act(&mut self) -> bool {
        for _ in 0..self.rng.u8(1..10) {
            if !self.shared.begins_another() {
                return false;
            }
            let is_write = self.rng.u16(0..1_000) < self.shared.load.writes;
            match self.rng.u16(0..2_000) {
                0 => self.shared.order_import(),
                _ if is_write => self.write().await,
                1..100 => self.snapshot().await,
                100..400 => {
                    let token = *self.shared.token.lock().unwrap_or_else(PoisonError::into_inner);
                    self.read(token).await;
                }
                _ => self.read(None).await,
            }
        }
        true
    }

    async fn write(&mut self) {
        self.send().await;
        if self.sent.len() >= self.depth {
            self.settle().await;
            self.depth = [1, 1, 2, 4, 8, 16, 32][self.rng.usize(0..7)];
        }
    }

    async fn send(&mut self) {
        let Self { shared, rng, .. } = self;
        let number = self.number;
        self.number += 1;
        let lane = [Lane::Interactive, Lane::Interactive, Lane::Bulk, Lane::Maintenance][rng.usize(0..4)];
        let kind = Kind::ALL[rng.usize(0..4)];
        let durability =
            if rng.u16(0..1_000) < shared.load.full { Durability::Full } else { Durability::Normal };
        let spite = shared.spite(rng);
        let transfer = Transfer { spite, ..Transfer::random(id(self.by, number), rng) };
        // Its name says whether it fails, or does not: the writer learns from names.
        let label = if spite.is_some() && rng.bool() { "spite" } else { "transfer" };
        let invoked = now();
        let db = &shared.db;
        let answer = match kind {
            Kind::Once => {
                let write = db.write(label, move |tx| transfer.run(tx));
                submit(write.lane(lane).durability(durability), |wrote| wrote).await
            }
            Kind::Rerunnable => {
                let write = db.write_rerunnable(label, move |tx| transfer.run(tx));
                submit(write.lane(lane).durability(durability), |wrote| wrote).await
            }
            Kind::Typed => {
                let write = db.send(transfer).label(label);
                submit(write.lane(lane).durability(durability), |wrote| wrote).await
            }
            Kind::Statement => {
                let write = match spite {
                    Some(_) => db.execute_returning(OR_ROLLBACK, (transfer.id,), touched),
                    None => db.execute_returning(TOUCH, (transfer.id, i64::from(transfer.from)), touched),
                };
                submit(write.lane(lane).durability(durability), |rows: Vec<_>| rows[0]).await
            }
        };
        self.sent.push_back(Sent { invoked, number, lane, kind, is_spiteful: spite.is_some(), answer });
    }

    /// Waits for every command that is on its way.
    async fn settle(&mut self) {
        let mut newest = None;
        while let Some(Sent { invoked, number, lane, kind, is_spiteful, answer }) = self.sent.pop_front() {
            let answer = answer.await;
            let completed = now();
            let is_expected = is_expected(&answer, kind, is_spiteful);
            self.record.tally.check(is_expected, Wrong::Broken, || {
                format!("{kind:?}, to fail: {is_spiteful}, was answered {:?}", answer.as_ref().map(drop))
            });
            let did = match answer {
                Ok((wrote, token)) => {
                    newest = Some(token);
                    Did::Wrote(Wrote { group: Some(token.group()), ..wrote })
                }
                Err(_) => Did::Failed,
            };
            self.record.operations.push(Operation { invoked, completed, by: self.by, number, lane, did });
        }
        if newest.is_some() {
            *self.shared.token.lock().unwrap_or_else(PoisonError::into_inner) = newest;
        }
    }

    async fn read(&mut self, after: Option<CommitToken>) {
        let (glance, db) = (Glance::random(&mut self.rng), &self.shared.db);
        let invoked = now();
        let saw = match after {
            Some(token) => db.read_after(token, "look", move |tx| glance.look(tx)).await,
            None => db.read("look", move |tx| glance.look(tx)).await,
        };
        let completed = now();
        self.saw(invoked, completed, saw, after.map(CommitToken::group), None);
    }

    /// Looks at one state several times, and goes on writing meanwhile.
    async fn snapshot(&mut self) {
        let invoked = now();
        let snapshot = self.shared.db.snapshot("look").await;
        let completed = now();
        let Ok(snapshot) = snapshot else {
            return self.record.tally.wrong(Wrong::Broken, || format!("no snapshot: {snapshot:?}"));
        };
        let name = self.shared.snapshots.fetch_add(1, Ordering::Relaxed);
        let reads = self.rng.u8(2..6);
        self.shared.budget.fetch_sub(i64::from(reads) - 1, Ordering::Relaxed);
        for _ in 0..reads {
            let glance = Glance::random(&mut self.rng);
            let saw = snapshot.read(move |tx| glance.look(tx)).await;
            // What was to be seen was decided when the snapshot was taken.
            self.saw(invoked, completed, saw, None, Some(name));
            if self.shared.begins_another() {
                self.write().await;
            }
        }
    }

    fn saw(
        &mut self,
        invoked: u64,
        completed: u64,
        saw: Result<Saw, ReadError>,
        after: Option<u64>,
        snapshot: Option<u32>,
    ) {
        let Ok(saw) = saw else {
            return self.record.tally.wrong(Wrong::Broken, || format!("a read was answered {saw:?}"));
        };
        let did = Did::Read(Read { saw, after, snapshot });
        let (by, lane, number) = (self.by, Lane::default(), self.number);
        self.record.operations.push(Operation { invoked, completed, by, number, lane, did });
        self.number += 1;
    }
}

async fn submit<W>(write: Write<'_, W>, wrote: fn(W::Output) -> Wrote) -> Answer
where
    W: Work<Error = rusqlite::Error>,
{
    let receipt = write.submit().await.unwrap();
    Box::pin(async move {
        let committed = receipt.committed().await?;
        Ok((wrote(committed.value), committed.token))
    })
}

/// Whether a command may be told this.
///
/// Those that were to fail do, and have left nothing; of the others only a closure that can't run again may be lost.
fn is_expected<T>(answer: &Result<T, WriteError>, kind: Kind, is_spiteful: bool) -> bool {
    match answer {
        Ok(_) => !is_spiteful,
        Err(WriteError::RolledBack(RolledBack::GroupLost(_))) => kind == Kind::Once,
        Err(error) => is_spiteful && error.outcome() == Outcome::RolledBack,
    }
}

/// How many entries an import has.
const ENTRIES: u32 = 300;

/// Imports whenever it is asked for; each entry is a write.
pub(super) async fn import(shared: Arc<Shared>, by: Actor, mut rng: Rng) -> Record {
    let mut record = Record::default();
    for first in (0..).step_by(ENTRIES as usize) {
        let Ok(asked) = shared.imports.acquire().await else { break };
        asked.forget();
        let transfers = (first..first + ENTRIES).map(|number| Transfer {
            spite: shared.spite(&mut rng),
            ..Transfer::random(id(by, number), &mut rng)
        });
        let transfers: Vec<_> = transfers.collect();
        // When each entry was asked for.
        let invoked = Arc::new(Mutex::new(Vec::new()));
        let asked = invoked.clone();
        let entries = transfers.clone().into_iter().inspect(move |_| {
            asked.lock().unwrap_or_else(PoisonError::into_inner).push(now());
        });
        let Record { operations, tally } = &mut record;
        let import = shared.db.import("transfers", stream::iter(entries));
        let run = import.run_observed(
            |tx, transfer: &Transfer| transfer.run(tx),
            |index, outcome| {
                let invoked = invoked.lock().unwrap_or_else(PoisonError::into_inner)[index as usize];
                let transfer = transfers[index as usize];
                let is_right = outcome.is_err() == transfer.spite.is_some();
                tally.check(is_right, Wrong::Broken, || format!("the entry {transfer:?} had {outcome:?}"));
                let did = outcome.map_or(Did::Failed, Did::Wrote);
                let (completed, number, lane) = (now(), first + index as u32, Lane::Bulk);
                operations.push(Operation { invoked, completed, by, number, lane, did });
            },
        );
        let ended = run.await;
        record.tally.check(ended.is_ok(), Wrong::Broken, || format!("an import ended with {ended:?}"));
    }
    record
}
