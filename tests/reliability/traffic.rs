//! What goes on in a service while something happens to it: clients that write pairs and read them back, and an
//! import; and what they were told, to be compared with a file.

use std::mem::ManuallyDrop;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fastrand::Rng;
use rusqlite::Connection;
use solewriter::{
    Committed, Database, Durability, ImportControl, ImportFailure, NotStarted, Outcome, Retry, WriteError,
    WriteTransaction,
};

use crate::common::proof::{Tally, Wrong};
use crate::common::{HANG, plain};

/// What the traffic needs: each pair is a row in `a` and one in `b`.
pub(crate) const SCHEMA: &str = "CREATE TABLE a (x INTEGER PRIMARY KEY, space);
     CREATE TABLE b (x INTEGER PRIMARY KEY, space);
     CREATE TABLE entries (entry INTEGER NOT NULL, space)";

const IMPORT: &str = "entries";

/// How much of it there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) clients: u64,
    /// The largest blob that comes with a row.
    pub(crate) blob_bytes_max: u64,
    /// Whether some of the commands survive only a crash of the process.
    pub(crate) some_normal: bool,
    pub(crate) import: bool,
    /// Whether some of the commands leave a statement open, so that the connection is replaced.
    pub(crate) leaks: bool,
}

/// What is known while it goes on.
#[derive(Default)]
pub(crate) struct Pulse {
    acked: AtomicU64,
    failed: AtomicU64,
    stopped: AtomicBool,
    /// What the test does meanwhile, as it pleases.
    phase: AtomicU8,
    ends: AtomicBool,
}

impl Pulse {
    /// How many pairs and entries were acknowledged up to now.
    pub(crate) fn acked(&self) -> u64 {
        self.acked.load(Ordering::Acquire)
    }

    /// How many pairs were not.
    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Acquire)
    }

    /// What is sent and answered from now on is known to be in this phase of the test; it begins in 0.
    pub(crate) fn enter(&self, phase: u8) {
        self.phase.store(phase, Ordering::SeqCst);
    }

    fn phase(&self) -> u8 {
        self.phase.load(Ordering::SeqCst)
    }

    /// Whether somebody was told that writing has stopped.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
}

/// A pair that was acknowledged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acked {
    pub(crate) x: i64,
    /// The number of its group.
    pub(crate) group: u64,
    /// In which phases of the test it was sent and answered.
    pub(crate) sent: u8,
    pub(crate) answered: u8,
}

/// What everybody was told.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) acked: Vec<Acked>,
    pub(crate) not_applied: Vec<i64>,
    pub(crate) unknown: Vec<i64>,
    /// Pairs that a read did not see after they were acknowledged.
    unseen: Vec<i64>,
    /// How many reads failed.
    pub(crate) reads_failed: u64,
    /// Entries that the import was told are committed, and in which phase.
    pub(crate) imported: Vec<(u64, u8)>,
    /// An entry that failed by itself, which none does; or an import that ended in a way it should not.
    odd: Vec<String>,
}

pub(crate) struct Traffic {
    pub(crate) pulse: Arc<Pulse>,
    clients: JoinHandle<Told>,
    import: Option<(ImportControl, JoinHandle<Told>)>,
}

impl Traffic {
    pub(crate) fn start(db: &Database, seed: u64, load: Load) -> Self {
        let pulse = Arc::<Pulse>::default();
        let clients = {
            let (db, pulse) = (db.clone(), pulse.clone());
            thread::spawn(move || run_clients(&db, &pulse, seed, load))
        };
        let import = load.import.then(|| start_import(db, pulse.clone(), seed, load));
        Self { pulse, clients, import }
    }

    /// Ends it, and tells what everybody was told.
    pub(crate) fn end(self) -> Told {
        self.pulse.ends.store(true, Ordering::Release);
        let mut told = self.clients.join().unwrap();
        if let Some((control, import)) = self.import {
            control.cancel();
            // Where nothing can be written, it would try for ever to write down that it was cancelled.
            if soon(|| import.is_finished()) {
                let Told { imported, odd, .. } = import.join().unwrap();
                (told.imported, told.odd) = (imported, odd);
            } else {
                told.odd.push("it does not end".into());
            }
        }
        told
    }

    /// Waits until `holds`; false if it does not in a long time, or writing has stopped for good.
    pub(crate) fn wait_until(&self, holds: impl Fn(&Pulse) -> bool) -> bool {
        const ACKS_MAX: u64 = 15_000;
        let acks_max = self.pulse.acked() + ACKS_MAX;
        let is_over = || self.pulse.acked() > acks_max || self.pulse.is_stopped();
        soon(|| holds(&self.pulse) || is_over()) && holds(&self.pulse)
    }
}

/// Waits until `holds`; false if it does not in a long time.
fn soon(holds: impl Fn() -> bool) -> bool {
    let limit = Instant::now() + HANG;
    while !holds() {
        if Instant::now() > limit {
            return false;
        }
        thread::sleep(Duration::from_micros(200));
    }
    true
}

/// All clients on one thread: what matters is that they wait together.
fn run_clients(db: &Database, pulse: &Pulse, seed: u64, load: Load) -> Told {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let clients = (0..load.clients).map(|number| run_client(db, pulse, seed, number, load));
    let mut sum = Told::default();
    for told in runtime.block_on(futures_util::future::join_all(clients)) {
        sum.acked.extend(told.acked);
        sum.not_applied.extend(told.not_applied);
        sum.unknown.extend(told.unknown);
        sum.unseen.extend(told.unseen);
        sum.reads_failed += told.reads_failed;
    }
    sum
}

async fn run_client(db: &Database, pulse: &Pulse, seed: u64, number: u64, load: Load) -> Told {
    let mut rng = Rng::with_seed(seed ^ (number + 1).rotate_left(32));
    let mut told = Told::default();
    let first = number.cast_signed() * 1_000_000;
    for x in first.. {
        if pulse.ends.load(Ordering::Acquire) {
            break;
        }
        let sent = pulse.phase();
        match send_pair(db, &mut rng, x, load).await {
            Ok(committed) => {
                let (group, answered) = (committed.token.group(), pulse.phase());
                told.acked.push(Acked { x, group, sent, answered });
                pulse.acked.fetch_add(1, Ordering::AcqRel);
                if rng.u8(0..4) == 0 {
                    read_back(db, x, &mut told).await;
                }
            }
            Err(error) => {
                match error.outcome() {
                    Outcome::Unknown => told.unknown.push(x),
                    Outcome::NotStarted | Outcome::RolledBack => told.not_applied.push(x),
                }
                pulse.failed.fetch_add(1, Ordering::AcqRel);
                if matches!(error, WriteError::NotStarted(NotStarted::Stopped(_))) {
                    pulse.stopped.store(true, Ordering::Release);
                    break;
                }
                // As one does who is told to try later.
                tokio::time::sleep(Duration::from_micros(rng.u64(100..2_000))).await;
            }
        }
    }
    told
}

async fn send_pair(db: &Database, rng: &mut Rng, x: i64, load: Load) -> Result<Committed<usize>, WriteError> {
    let space = rng.u64(0..=load.blob_bytes_max).cast_signed();
    let leaks = load.leaks && rng.u8(0..30) == 0;
    let pair = move |tx: &mut WriteTransaction<'_>| {
        tx.execute("INSERT INTO a VALUES (?1, randomblob(?2))", [x, space])?;
        if leaks {
            let mut statement = ManuallyDrop::new(tx.prepare("SELECT 1 UNION ALL SELECT 2")?);
            ManuallyDrop::new(statement.query(())?).next()?;
        }
        tx.execute("INSERT INTO b VALUES (?1, randomblob(?2))", [x, space / 8])
    };
    let is_normal = load.some_normal && rng.bool();
    let durability = if is_normal { Durability::Normal } else { Durability::Full };
    if rng.bool() {
        db.write("once", pair).durability(durability).committed().await
    } else {
        db.write_rerunnable("again", pair).durability(durability).committed().await
    }
}

/// What was acknowledged is there for the next read, if that can be had.
async fn read_back(db: &Database, x: i64, told: &mut Told) {
    let count = "SELECT (SELECT count(*) FROM a WHERE x = ?1) + (SELECT count(*) FROM b WHERE x = ?1)";
    match db.read("read back", move |tx| tx.query_row(count, [x], |row| row.get::<_, i64>(0))).await {
        Ok(2) => {}
        Ok(_) => told.unseen.push(x),
        Err(_) => told.reads_failed += 1,
    }
}

/// An import without an end, which goes on whatever batches it loses.
fn start_import(
    db: &Database,
    pulse: Arc<Pulse>,
    seed: u64,
    load: Load,
) -> (ImportControl, JoinHandle<Told>) {
    let db = db.clone();
    let mut rng = Rng::with_seed(!seed);
    let (told_control, control) = std::sync::mpsc::channel();
    let import = thread::spawn(move || {
        let blocking = db.blocking();
        let bytes_max = load.blob_bytes_max;
        let entries = (0_i64..).map(move |entry| (entry, rng.u64(0..=bytes_max).cast_signed()));
        let (mut imported, mut odd) = (Vec::new(), Vec::new());
        let run =
            blocking.import(IMPORT, entries).id(IMPORT).buffer(16).lost_batches_max(u32::MAX).run_observed(
                |tx, (entry, space): &(i64, i64)| {
                    tx.execute("INSERT INTO entries VALUES (?1, randomblob(?2))", [entry, space])
                },
                |index, outcome| match outcome {
                    Ok(_) => {
                        imported.push((index, pulse.phase()));
                        pulse.acked.fetch_add(1, Ordering::AcqRel);
                    }
                    Err(error) => odd.push(format!("entry {index}: {error}")),
                },
            );
        told_control.send(run.control()).unwrap();
        let ended = run.wait();
        match ended.map_err(|error| error.failure) {
            // It is stopped from outside, or the writer takes nothing any more.
            Err(ImportFailure::Cancelled) => {}
            Err(ImportFailure::Writer(error)) if error.retry() != Retry::Later => {}
            ended => odd.push(format!("it ended with {ended:?}")),
        }
        Told { imported, odd, ..Told::default() }
    });
    (control.recv().expect("the import begins"), import)
}

pub(crate) const COUNTS: [&str; 4] = ["acked", "imported", "not_applied", "unknown"];

impl Told {
    /// Counts what was told, under the names [`COUNTS`].
    pub(crate) fn count(&self, tally: &mut Tally) {
        tally.add("unseen", self.unseen.len() as u64);
        let Self { acked, not_applied, unknown, imported, .. } = self;
        let counts = [acked.len(), imported.len(), not_applied.len(), unknown.len()];
        for (what, count) in COUNTS.into_iter().zip(counts) {
            tally.add(what, count as u64);
        }
    }

    /// Takes out what was acknowledged in this phase or later.
    pub(crate) fn split_off(&mut self, phase: u8) -> Self {
        let is_before = |acked: &Acked| acked.answered < phase;
        let (before, acked) = std::mem::take(&mut self.acked).into_iter().partition(is_before);
        self.acked = before;
        let (before, imported) = self.imported.iter().partition(|(_, answered)| *answered < phase);
        self.imported = before;
        Self { acked, imported, ..Self::default() }
    }

    /// Compares with a file that nobody has open, as far as the file must hold all of it.
    pub(crate) fn compare(&self, path: &Path, tally: &mut Tally) {
        let connection = plain(path);
        let intact = connection.query_row("PRAGMA integrity_check", (), |row| row.get::<_, String>(0));
        let is_intact = intact.as_deref() == Ok("ok");
        tally.check(is_intact, Wrong::Corrupt, || format!("{intact:?}"));
        if !is_intact {
            return;
        }
        let (a, b) = (sorted(&connection, "SELECT x FROM a"), sorted(&connection, "SELECT x FROM b"));
        for Acked { x, .. } in &self.acked {
            let is_there = a.binary_search(x).is_ok();
            tally.check(is_there, Wrong::Lost, || format!("{x} was acknowledged"));
        }
        for x in a.iter().chain(&b) {
            let is_whole = a.binary_search(x).is_ok() && b.binary_search(x).is_ok();
            tally.check(is_whole, Wrong::Half, || format!("a half of {x} is there"));
        }
        for x in &self.not_applied {
            tally.check(a.binary_search(x).is_err(), Wrong::Ghost, || format!("{x} was not applied"));
        }
        self.compare_import(&connection, tally);
    }

    /// Whether each read has seen what was acknowledged before it.
    pub(crate) fn check_reads(&self, tally: &mut Tally) {
        tally.check(self.unseen.is_empty(), Wrong::Lost, || format!("not seen by a read: {:?}", self.unseen));
        tally.check(self.odd.is_empty(), Wrong::Broken, || format!("the import: {:?}", self.odd));
    }

    fn compare_import(&self, connection: &Connection, tally: &mut Tally) {
        let entries = sorted(connection, "SELECT entry FROM entries");
        for (index, _) in &self.imported {
            let is_there = entries.binary_search(&index.cast_signed()).is_ok();
            tally.check(is_there, Wrong::Lost, || format!("entry {index} was acknowledged"));
        }
        // Without an import there is no such table.
        let record = "SELECT next_entry FROM solewriter_imports";
        let next = connection.query_row(record, (), |row| row.get::<_, i64>(0)).unwrap_or(0);
        let is_exact = entries.iter().copied().eq(0..next);
        tally.check(is_exact, Wrong::Broken, || {
            format!("the record says {next} entries, there are {}: {entries:?}", entries.len())
        });
    }
}

pub(crate) fn sorted(connection: &Connection, sql: &str) -> Vec<i64> {
    let mut statement = connection.prepare(sql).unwrap();
    let found = statement.query_map((), |row| row.get(0)).unwrap().collect::<rusqlite::Result<Vec<i64>>>();
    let mut found = found.unwrap();
    found.sort_unstable();
    found
}
