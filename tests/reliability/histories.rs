//! Histories: 64 tasks, imports, snapshots and another process work on one database, and all that they did and saw
//! must fit into one order, which is that of real time too.
//!
//! Every write takes a number from a counter in the database, so the order of all writes is known, and `checker` judges
//! millions of operations in a few passes. Neighbours fail on purpose, so that groups are run again, and the WAL is
//! begun anew all the time. The canary is a service that answers before COMMIT; those of the checker are in `planted`.

mod bank;
mod checker;
mod client;
mod foreign;
mod operation;
mod planted;

use std::any::Any;
use std::path::Path;
use std::sync::{Arc, Once};
use std::time::Duration;

use fastrand::Rng;
use rusqlite::Connection;
use solewriter::{Config, Database, Drain, Durability, Sabotage, Stats};
use tokio::task::JoinSet;

use crate::common::proof::{Proof, Tally, is_long};
use crate::common::{HANG, check, in_memory_dir};

use bank::Stored;
use checker::History;
use client::{Client, Load, Shared};
use foreign::OtherProcess;
use operation::{Actor, Did, FOREIGN, Operation};

const TASKS: Actor = 64;
const IMPORTS: Actor = 2;

/// No round takes this long unless something hangs.
const ROUND_MAX: Duration = Duration::from_secs(1_800);

#[test]
fn histories() {
    hush();
    let mut proof = Proof::new("histories", 500_000, 5_000_000);
    // Those of the other process come on top.
    let operations = if is_long() { 900_000 } else { 90_000 };
    let mut figures = Figures::default();
    proof.run_in_turn(|seed| {
        let round = Round::run(seed, operations, None);
        figures.add(&round);
        let tally = round.judge();
        if tally.wrongs() > 0 {
            eprintln!("wrong with seed {seed}");
        }
        tally
    });
    figures.print(&mut proof);
    proof.canary("ack-before-commit", 20, |seed| {
        Round::run(seed, 10_000, Some(Sabotage::AckBeforeCommit)).judge()
    });
    proof.finish();
}

/// What was recorded with one database.
struct Round {
    history: History,
    tally: Tally,
    stats: Stats,
}

impl Round {
    fn run(seed: u64, operations: u64, sabotage: Option<Sabotage>) -> Self {
        let mut rng = Rng::with_seed(seed);
        let directory = in_memory_dir();
        let path = directory.path().join("test.db");
        let config = config(&mut rng);
        create(&path);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let mut builder = Database::builder(&path).config(config);
        // A broken service keeps its last transaction open, and the other process out.
        let mut other = None;
        match sabotage {
            Some(how) => builder = builder.sabotage(how),
            None => other = Some(OtherProcess::start(&path, seed)),
        }
        let db = builder.open_blocking().unwrap();
        let shared = Arc::new(Shared::new(db.clone(), operations, Load::random(&mut rng)));
        let (mut operations, tally) = runtime.block_on(work(&shared, &mut rng));
        operations.extend(other.into_iter().flat_map(OtherProcess::finish));
        let stats = db.stats();
        db.blocking().shutdown(Drain::within(HANG)).unwrap();
        check(&path);
        let stored = Stored::load(&Connection::open(&path).unwrap()).unwrap();
        Self { history: History { operations, stored }, tally, stats }
    }

    /// Says what is wrong in it.
    fn judge(mut self) -> Tally {
        self.tally.merge(checker::check(&self.history));
        self.tally
    }
}

/// Lets all actors of this process do what they do.
async fn work(shared: &Arc<Shared>, rng: &mut Rng) -> (Vec<Operation>, Tally) {
    let (mut clients, mut imports) = (JoinSet::new(), JoinSet::new());
    for by in 0..TASKS {
        clients.spawn(Client::new(shared.clone(), by, rng.fork()).run());
    }
    for by in TASKS..TASKS + IMPORTS {
        imports.spawn(client::import(shared.clone(), by, rng.fork()));
    }
    let mut records = tokio::time::timeout(ROUND_MAX, clients.join_all()).await.expect("it hangs");
    shared.imports.close();
    records.extend(tokio::time::timeout(ROUND_MAX, imports.join_all()).await.expect("it hangs"));
    let (mut operations, mut tally) = (Vec::new(), Tally::default());
    for record in records {
        operations.extend(record.operations);
        tally.merge(record.tally);
    }
    (operations, tally)
}

/// Settings with which much happens, and that no slow machine makes fail.
fn config(rng: &mut Rng) -> Config {
    let pages = rng.u32(16..200);
    Config {
        durability: Durability::Normal,
        queue_wait_max: ROUND_MAX,
        command_wait_max: ROUND_MAX,
        reader_wait_max: ROUND_MAX,
        read_age_max: ROUND_MAX,
        busy_timeout: ROUND_MAX,
        // Pages of an unfinished group get into the WAL.
        cache_bytes: [8_192, 64 << 20][rng.usize(0..2)],
        mmap_bytes: [0, 256 << 20][rng.usize(0..2)],
        queue_commands_max: [16, 256, 16_384][rng.usize(0..3)],
        group_commands_max: [10, 100, 4_096][rng.usize(0..3)],
        readers: rng.usize(1..6),
        readers_overflow: rng.usize(0..6),
        // Readers are opened anew all the time.
        reader_age_max: Duration::from_millis([100, 3_600_000][rng.usize(0..2)]),
        checkpoint_pages: pages,
        wal_target_bytes: u64::from(pages) * 4_096 * 3,
        foreign_gap: Duration::from_millis(5),
        foreign_gap_interval: Duration::from_millis(100),
        ..Config::default()
    }
}

fn create(path: &Path) {
    let connection = Connection::open(path).unwrap();
    connection.pragma_update(None, "journal_mode", "wal").unwrap();
    bank::create(&connection).unwrap();
    connection.close().unwrap();
}

/// Thousands of hostile panics are no news.
fn hush() {
    static HUSHED: Once = Once::new();
    HUSHED.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let payload: &dyn Any = panic.payload();
            if payload.downcast_ref::<&str>() != Some(&bank::HOSTILE) {
                hook(panic);
            }
        }));
    });
}

/// How much of what has happened.
#[derive(Default)]
struct Figures {
    rounds: u64,
    writes: u64,
    failed: u64,
    reads: u64,
    snapshots: u64,
    imported: u64,
    foreign: u64,
    reruns: u64,
    groups: u64,
    groups_lost: u64,
    checkpoints: u64,
    wal_restarts: u64,
}

impl Figures {
    fn add(&mut self, Round { history, stats, .. }: &Round) {
        let count = |is: fn(&Operation) -> bool| {
            history.operations.iter().filter(|operation| is(operation)).count() as u64
        };
        self.rounds += 1;
        self.writes += count(|operation| operation.wrote().is_some());
        self.failed += count(|operation| matches!(operation.did, Did::Failed));
        self.reads += count(|operation| operation.read().is_some());
        self.snapshots += count(|operation| operation.read().is_some_and(|read| read.snapshot.is_some()));
        self.imported += stats.import_entries.accepted;
        self.foreign += count(|operation| operation.by == FOREIGN);
        self.reruns += stats.commands.rerun;
        self.groups += stats.groups_committed;
        self.groups_lost += stats.groups_lost;
        self.checkpoints += stats.checkpoints;
        self.wal_restarts += stats.wal_restarts;
    }

    fn print(&self, proof: &mut Proof) {
        proof.figure("histories", self.rounds);
        proof.figure("writes", self.writes);
        proof.figure("failed", self.failed);
        proof.figure("reads", self.reads);
        proof.figure("in_snapshots", self.snapshots);
        proof.figure("imported", self.imported);
        proof.figure("foreign", self.foreign);
        proof.figure("groups", self.groups);
        proof.figure("groups_lost", self.groups_lost);
        proof.figure("reruns", self.reruns);
        proof.figure("checkpoints", self.checkpoints);
        proof.figure("wal_restarts", self.wal_restarts);
    }
}
