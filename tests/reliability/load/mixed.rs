//! Many clients with commands of every kind, and a queue that is full most of the time.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use solewriter::{
    Command, Database, Drain, Lane, NotStarted, OnDrop, Outcome, PerLane, WriteError, WriteTransaction,
};

use super::{Latencies, Service, runtime};
use crate::common::proof::{Tally, Wrong};
use crate::common::{HANG, plain, soon};

const CLIENTS: u64 = 64;
const STEPS: u64 = 25;

/// What waits in a lane at most, as far as the test knows.
const COMMANDS_MAX: usize = 24;
const BYTES_MAX: usize = 64 << 10;
/// The largest payload of a command that is counted.
const PAYLOAD_MAX: usize = BYTES_MAX / 4;
const GROUP_MAX: usize = 16;

/// What waits, counted beside the service: a command from its acceptance to its start.
#[derive(Default)]
struct Shadow {
    commands: [AtomicI64; 3],
    bytes: [AtomicI64; 3],
    /// Bytes of payloads that are anywhere in memory.
    alive: AtomicI64,
    highest: [AtomicI64; 3],
    checks: AtomicU64,
    broken: AtomicU64,
}

impl Shadow {
    /// Counted after the service has accepted it, and so never too early.
    fn accepted(&self, lane: Lane, bytes: usize) {
        let (commands, bytes) = self.count(lane, 1, bytes as i64);
        self.highest[0].fetch_max(commands, Ordering::Relaxed);
        self.highest[1].fetch_max(bytes, Ordering::Relaxed);
        // One may have left the queue, and not have begun yet.
        self.check(commands <= COMMANDS_MAX as i64 + 1 && bytes <= (BYTES_MAX + PAYLOAD_MAX) as i64);
    }

    fn started(&self, lane: Lane, bytes: usize) {
        self.count(lane, -1, -(bytes as i64));
    }

    fn count(&self, lane: Lane, commands: i64, bytes: i64) -> (i64, i64) {
        let add = |counter: &AtomicI64, more| counter.fetch_add(more, Ordering::SeqCst) + more;
        (add(&self.commands[lane as usize], commands), add(&self.bytes[lane as usize], bytes))
    }

    fn check(&self, holds: bool) {
        self.checks.fetch_add(1, Ordering::Relaxed);
        self.broken.fetch_add((!holds).into(), Ordering::Relaxed);
    }

    /// What the service says of itself at any moment, and what is in memory for it.
    fn sample(&self, db: &Database) {
        let (stats, health) = (db.stats(), db.health());
        let is_bounded = |depth: &PerLane<usize>| Lane::ALL.iter().all(|lane| depth[*lane] <= COMMANDS_MAX);
        self.check(is_bounded(&stats.queue_depth) && is_bounded(&health.queue_depth));
        self.check(stats.group_commands.max <= GROUP_MAX as u64);
        let alive = self.alive.load(Ordering::SeqCst);
        self.highest[2].fetch_max(alive, Ordering::Relaxed);
        // In the lanes, with those who wait for room, and in the group that runs.
        self.check(alive <= (3 * BYTES_MAX + (CLIENTS as usize + GROUP_MAX) * PAYLOAD_MAX) as i64);
    }
}

/// What a command carries.
struct Payload {
    bytes: Vec<u8>,
    shadow: Arc<Shadow>,
    lane: Lane,
    has_started: AtomicBool,
}

impl Payload {
    fn new(rng: &mut fastrand::Rng, shadow: &Arc<Shadow>, lane: Lane) -> Self {
        let length = if rng.u8(..10) == 0 { rng.usize(..PAYLOAD_MAX) } else { rng.usize(..2_000) };
        shadow.alive.fetch_add(length as i64, Ordering::SeqCst);
        Self { bytes: vec![b'x'; length], shadow: shadow.clone(), lane, has_started: AtomicBool::new(false) }
    }

    /// It may run again.
    fn start(&self) {
        if !self.has_started.swap(true, Ordering::SeqCst) {
            self.shadow.started(self.lane, self.bytes.len());
        }
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        self.shadow.alive.fetch_sub(self.bytes.len() as i64, Ordering::SeqCst);
    }
}

/// Inserts both of its rows, or nothing.
#[derive(Serialize, Deserialize)]
struct Pair {
    id: u64,
}

impl Command for Pair {
    const NAME: &'static str = "typed";
    type Output = usize;
    type Error = rusqlite::Error;

    fn apply(&self, tx: &mut WriteTransaction<'_>) -> rusqlite::Result<usize> {
        insert(tx, self.id, b"")
    }
}

fn insert(tx: &mut WriteTransaction<'_>, id: u64, bytes: &[u8]) -> rusqlite::Result<usize> {
    tx.execute("INSERT INTO first_half VALUES (?1, ?2)", (id.cast_signed(), bytes))?;
    tx.execute("INSERT INTO second_half VALUES (?1)", [id.cast_signed()])
}

/// What became of the commands of a client.
#[derive(Default)]
struct Seen {
    answers: HashMap<u64, Outcome>,
    acknowledged: Vec<u64>,
    accepted: u64,
    answered: u64,
    /// Given back before they were answered.
    withdrawn: u64,
    refused: u64,
    latencies: Vec<Duration>,
    broken: Vec<String>,
}

impl Seen {
    fn answer(&mut self, id: u64, answer: Result<usize, WriteError>) {
        self.answered += 1;
        match answer {
            Ok(_) => self.acknowledged.push(id),
            Err(error) => {
                let is_expected = match &error {
                    WriteError::Command(_) => id.is_multiple_of(10),
                    WriteError::NotStarted(NotStarted::DeadlineExceeded { .. }) => true,
                    WriteError::RolledBack(_) => error.outcome() == Outcome::RolledBack,
                    _ => false,
                };
                if !is_expected {
                    self.broken.push(format!("{id}: {error:?}"));
                }
                self.answers.insert(id, error.outcome());
            }
        }
    }
}

struct Client {
    db: Database,
    rng: fastrand::Rng,
    shadow: Arc<Shadow>,
    next_id: u64,
    seen: Seen,
}

type Answer = std::pin::Pin<Box<dyn Future<Output = Result<usize, WriteError>> + Send>>;

impl Client {
    fn lane(&mut self) -> Lane {
        [Lane::Interactive, Lane::Interactive, Lane::Bulk, Lane::Maintenance][self.rng.usize(..4)]
    }

    /// Commands whose id ends with a zero fail.
    fn id(&mut self) -> u64 {
        self.next_id += if self.next_id % 10 == 9 && self.rng.u8(..8) > 0 { 2 } else { 1 };
        self.next_id
    }

    /// Sends a command that is counted, of one kind or the other.
    async fn submit(&mut self) -> Option<(u64, Answer)> {
        let (id, lane) = (self.id(), self.lane());
        let payload = Payload::new(&mut self.rng, &self.shadow, lane);
        let length = payload.bytes.len();
        // Now and then one that takes its time.
        let pause = if self.rng.u8(..16) == 0 { Duration::from_millis(1) } else { Duration::ZERO };
        let work = move |tx: &mut WriteTransaction<'_>| {
            payload.start();
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
            let inserted = insert(tx, id, &payload.bytes)?;
            if id.is_multiple_of(10) { Err(rusqlite::Error::InvalidQuery) } else { Ok(inserted) }
        };
        let db = self.db.clone();
        let submitted: Result<Answer, WriteError> = match self.rng.u8(..4) {
            0 => {
                let write = db.write("once", work).lane(lane).payload_bytes(length);
                write.submit().await.map(|receipt| Box::pin(receipt) as Answer)
            }
            1 => {
                let write = db.write("tried", work).lane(lane).payload_bytes(length);
                write.try_submit().map(|receipt| Box::pin(receipt) as Answer)
            }
            _ => {
                let write = db.write_rerunnable("again", work).lane(lane).payload_bytes(length);
                write.submit().await.map(|receipt| Box::pin(receipt) as Answer)
            }
        };
        match submitted {
            Ok(answer) => {
                self.shadow.accepted(lane, length);
                self.seen.accepted += 1;
                Some((id, answer))
            }
            Err(WriteError::NotStarted(NotStarted::QueueFull { lane: full })) if full == lane => {
                self.seen.refused += 1;
                self.seen.answers.insert(id, Outcome::NotStarted);
                None
            }
            Err(error) => {
                self.seen.broken.push(format!("{id}: {error:?}"));
                None
            }
        }
    }

    async fn step(&mut self) {
        let db = self.db.clone();
        match self.rng.u8(..10) {
            0..5 => self.some(1).await,
            5..7 => {
                let count = self.rng.usize(2..9);
                self.some(count).await;
            }
            7 => self.uncounted().await,
            8 => {
                let lane = self.lane();
                let id = self.id();
                let withdrawn = db.send(Pair { id }).lane(lane).on_drop(OnDrop::Withdraw).submit().await;
                self.seen.withdrawn += 1;
                self.seen.answers.insert(id, Outcome::Unknown);
                drop(withdrawn.unwrap());
            }
            _ => {
                if let Some(id) = self.seen.acknowledged.last().copied() {
                    let own = db.read("own", move |tx| {
                        let count = "SELECT count(*) FROM second_half WHERE id = ?1";
                        tx.query_row(count, [id.cast_signed()], |row| row.get::<_, i64>(0))
                    });
                    let found = soon(own).await;
                    if !matches!(found, Ok(1)) {
                        self.seen.broken.push(format!("{id} is acknowledged, and a read finds {found:?}"));
                    }
                }
            }
        }
    }

    /// One or several that wait together.
    async fn some(&mut self, count: usize) {
        let began = Instant::now();
        let mut answers = Vec::new();
        for _ in 0..count {
            answers.extend(self.submit().await);
        }
        for (id, answer) in answers {
            let answer = soon(answer).await;
            self.seen.answer(id, answer);
        }
        self.seen.latencies.push(began.elapsed());
    }

    /// What can't tell when it starts, or never does.
    async fn uncounted(&mut self) {
        let (db, id, lane) = (self.db.clone(), self.id(), self.lane());
        let send = db.send(Pair { id }).lane(lane);
        let send =
            if self.rng.bool() { send.deadline(Duration::from_micros(self.rng.u64(..3_000))) } else { send };
        match send.submit().await {
            Ok(receipt) => {
                self.seen.accepted += 1;
                let answer = soon(receipt).await;
                self.seen.answer(id, answer);
            }
            // Its time was up before there was room.
            Err(error @ WriteError::NotStarted(NotStarted::DeadlineExceeded { .. })) => {
                self.seen.refused += 1;
                self.seen.answers.insert(id, error.outcome());
            }
            Err(error) => self.seen.broken.push(format!("{id}: {error:?}")),
        }
    }
}

/// Runs all clients; the service has `factor` times as much room as the test knows.
pub(super) fn run(seed: u64, factor: usize, latencies: &Latencies) -> Tally {
    let service = Service::open(|config| {
        config.queue_commands_max = COMMANDS_MAX * factor;
        config.queue_bytes_max = BYTES_MAX * factor;
        config.group_commands_max = GROUP_MAX;
        config.queue_wait_max = HANG;
    });
    let db = service.db.clone();
    let schema = "CREATE TABLE first_half (id INTEGER, x BLOB); CREATE TABLE second_half (id INTEGER);
                  CREATE INDEX second_id ON second_half (id)";
    db.blocking().write("schema", |tx| tx.execute_batch(schema)).wait().unwrap();
    let before = db.stats().commands.committed;
    let shadow = Arc::new(Shadow::default());
    let over = Arc::new(AtomicBool::new(false));
    let sampler = {
        let (db, shadow, over) = (db.clone(), shadow.clone(), over.clone());
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                shadow.sample(&db);
                std::thread::sleep(Duration::from_micros(500));
            }
        })
    };
    let all: Vec<Seen> = runtime().block_on(async {
        let clients = (0..CLIENTS).map(|client| {
            let rng = fastrand::Rng::with_seed(seed * CLIENTS + client);
            let next_id = (client + 1) * 1_000_000;
            let mut client =
                Client { db: db.clone(), rng, shadow: shadow.clone(), next_id, seen: Seen::default() };
            tokio::spawn(async move {
                for _ in 0..STEPS {
                    client.step().await;
                }
                client.seen
            })
        });
        let clients: Vec<_> = clients.collect();
        let mut all = Vec::new();
        for client in clients {
            all.push(client.await.unwrap());
        }
        all
    });
    over.store(true, Ordering::Relaxed);
    sampler.join().unwrap();
    let mut tally = Tally::default();
    // What was withdrawn may still be on its way to its end.
    db.blocking().write("last", |_| Ok(())).wait().unwrap();
    let report = db.blocking().shutdown(Drain::within(HANG)).unwrap();
    let stats = db.stats();
    check_counts(&mut tally, &all, &stats, before);
    tally.check(report.not_started == 0, Wrong::Broken, || format!("{report:?}"));
    check_rows(&mut tally, &service, &all);
    tally.checks += shadow.checks.load(Ordering::Relaxed);
    let highest = shadow.highest.each_ref().map(|highest| highest.load(Ordering::Relaxed));
    for _ in 0..shadow.broken.load(Ordering::Relaxed) {
        tally.wrong(Wrong::Broken, || format!("seed {seed}: a limit; at most {highest:?}"));
    }
    for seen in all {
        tally.cases += seen.accepted + seen.withdrawn + seen.refused;
        for broken in seen.broken {
            tally.wrong(Wrong::Broken, || format!("seed {seed}: {broken}"));
        }
        latencies.add(seen.latencies);
    }
    tally
}

/// Every command was answered once, and counted once.
fn check_counts(tally: &mut Tally, all: &[Seen], stats: &solewriter::Stats, before: u64) {
    let sum = |of: fn(&Seen) -> u64| all.iter().map(of).sum::<u64>();
    let (accepted, answered, withdrawn) =
        (sum(|seen| seen.accepted), sum(|seen| seen.answered), sum(|seen| seen.withdrawn));
    tally.check(accepted == answered, Wrong::Broken, || format!("{accepted} accepted, {answered} answered"));
    let counts = stats.commands;
    let settled = counts.committed
        + counts.failed
        + counts.rolled_back
        + counts.unknown
        + counts.not_started
        + counts.withdrawn;
    // The last one is the test's own.
    let sent = before + accepted + withdrawn + 1;
    tally.check(settled == sent, Wrong::Broken, || format!("{sent} were sent, {counts:?}"));
    let refused = sum(|seen| seen.refused);
    tally.check(counts.refused == refused, Wrong::Broken, || format!("{refused} were refused, {counts:?}"));
    let empty = Lane::ALL.iter().all(|lane| stats.queue_depth[*lane] == 0);
    tally.check(empty, Wrong::Broken, || format!("room is lost: {:?}", stats.queue_depth));
}

fn check_rows(tally: &mut Tally, service: &Service, all: &[Seen]) {
    let connection = plain(&service.dir.path().join("load.db"));
    let rows = |table: &str| {
        let mut statement =
            connection.prepare(&format!("SELECT id, count(*) FROM {table} GROUP BY id")).unwrap();
        let rows =
            statement.query_map((), |row| Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get::<_, i64>(1)?)));
        rows.unwrap().collect::<rusqlite::Result<HashMap<_, _>>>().unwrap()
    };
    let halves = [rows("first_half"), rows("second_half")];
    let mut known = 0;
    for seen in all {
        let acknowledged = seen.acknowledged.iter().map(|id| (*id, None));
        for (id, outcome) in
            acknowledged.chain(seen.answers.iter().map(|(id, outcome)| (*id, Some(*outcome))))
        {
            let found = halves.each_ref().map(|half| half.get(&id).copied().unwrap_or(0));
            known += u64::from(found != [0, 0]);
            let how = match (outcome, found) {
                (None, [1, 1])
                | (Some(Outcome::NotStarted | Outcome::RolledBack), [0, 0])
                | (Some(Outcome::Unknown), [0, 0] | [1, 1]) => None,
                (None, [0, 0]) => Some(Wrong::Lost),
                (Some(Outcome::NotStarted | Outcome::RolledBack), [1, 1]) => Some(Wrong::Ghost),
                (_, [first, second]) if first != second => Some(Wrong::Half),
                _ => Some(Wrong::Broken),
            };
            tally.checks += 1;
            if let Some(how) = how {
                tally.wrong(how, || format!("{id}, {outcome:?}: {found:?}"));
            }
        }
    }
    tally.check(known == halves[0].len() as u64, Wrong::Ghost, || "rows of nobody".into());
}
