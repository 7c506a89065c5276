//! One caller floods a lane; others send one command at a time, in the other lanes and in the same.
//!
//! Lanes are kept apart, labels are not. Within a lane it is first come, first served: who is accepted waits for what
//! the queue holds before it, and for nothing that comes later. In another lane, for what the shares of the lanes say.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use solewriter::{Database, Drain, Lane, NotStarted, Stats, WriteError};

use super::{Latencies, Service, runtime};
use crate::common::proof::{Proof, Tally, Wrong};
use crate::common::{HANG, plain, soon};

/// What a command of the flood takes at least.
const COST: Duration = Duration::from_micros(300);
const GROUP_HOLD: Duration = Duration::from_millis(10);
const BULK_HOLD: Duration = Duration::from_millis(4);
const BYTES_MAX: usize = 1 << 20;
/// Commands of each who is not of the flood.
const QUIET: u64 = 8;

/// What is printed of all runs.
#[derive(Default)]
pub(super) struct Figures {
    latencies: Latencies,
    flood: AtomicU64,
    ahead_max: AtomicU64,
    ahead_same_lane_max: AtomicU64,
    groups_max: AtomicU64,
    full: AtomicU64,
    speed: Mutex<Vec<f64>>,
}

impl Figures {
    pub(super) fn tell(&self, proof: &mut Proof) {
        let counts = [
            ("flood", &self.flood),
            ("ahead_max", &self.ahead_max),
            ("ahead_same_lane_max", &self.ahead_same_lane_max),
            ("groups_max", &self.groups_max),
            ("queue_full", &self.full),
        ];
        for (name, count) in counts {
            proof.figure(name, count.load(Ordering::Relaxed));
        }
        let speed = self.speed.lock().unwrap_or_else(PoisonError::into_inner);
        proof.figure("commits/s", (speed.iter().sum::<f64>() / speed.len().max(1) as f64) as u64);
        self.latencies.tell(proof);
    }
}

/// What all callers of a run share.
struct Run {
    db: Database,
    lane: Lane,
    payload_bytes: usize,
    /// Commands of the flood that have run.
    ran: AtomicU64,
    acknowledged: AtomicU64,
    over: AtomicBool,
}

/// A command of somebody who is not of the flood.
struct Quiet {
    lane: Lane,
    /// Commands of the flood that ran between its acceptance and its start.
    ahead: u64,
    /// Groups that were committed from its acceptance on, its own included.
    groups: u64,
    took: Duration,
}

/// Floods a lane; with `astray` those who should be in other lanes are in the same.
pub(super) fn run(seed: u64, astray: bool, figures: &Figures) -> Tally {
    let mut rng = fastrand::Rng::with_seed(seed);
    let lane = Lane::ALL[rng.usize(..3)];
    // Enough to be told from fairness, whatever the lane.
    let room = if astray { 3_000 } else { rng.usize(20..200) };
    let senders = rng.usize(4..40);
    let payload_bytes = if rng.bool() { BYTES_MAX / rng.usize(1..5) } else { 100 };
    let payload_bytes = if astray { 100 } else { payload_bytes };
    let service = Service::open(|config| {
        config.queue_commands_max = room;
        config.queue_bytes_max = BYTES_MAX;
        config.queue_wait_max = HANG;
        config.group_hold_max = GROUP_HOLD;
        config.bulk_hold_target = BULK_HOLD;
    });
    let db = service.db.clone();
    db.blocking().execute("CREATE TABLE t (x)", ()).wait().unwrap();
    let run = Arc::new(Run {
        db: db.clone(),
        lane,
        payload_bytes,
        ran: AtomicU64::new(0),
        acknowledged: AtomicU64::new(0),
        over: AtomicBool::new(false),
    });
    let began = Instant::now();
    let quiet: Vec<Quiet> = runtime().block_on(async {
        let flood: Vec<_> = (0..senders).map(|_| tokio::spawn(pour(run.clone()))).collect();
        // It has filled its lane: somebody waits for room.
        while run.try_one().is_ok() || run.ran.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let callers = Lane::ALL.map(|lane| tokio::spawn(call(run.clone(), lane, astray)));
        let mut quiet = Vec::new();
        for caller in callers {
            quiet.append(&mut soon(caller).await.unwrap());
        }
        // A lane that is full says so at once.
        for _ in 0..10 {
            if let Err(error) = run.try_one() {
                assert!(matches!(error, WriteError::NotStarted(NotStarted::QueueFull { lane: full }) if full == lane));
                figures.full.fetch_add(1, Ordering::Relaxed);
            }
        }
        run.over.store(true, Ordering::SeqCst);
        for sender in flood {
            soon(sender).await.unwrap();
        }
        quiet
    });
    let took = began.elapsed();
    db.blocking().shutdown(Drain::within(HANG)).unwrap();
    let stats = db.stats();
    figures
        .speed
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(stats.groups_committed as f64 / took.as_secs_f64());
    figures.flood.fetch_add(run.ran.load(Ordering::SeqCst), Ordering::Relaxed);
    let mut tally = Tally::default();
    for quiet in &quiet {
        let ahead_max =
            if quiet.lane == lane { room as u64 + 1 } else { ahead_max(quiet.lane, lane, &stats) };
        let is_fair = quiet.ahead <= ahead_max;
        tally.check(is_fair, Wrong::Broken, || {
            let Quiet { lane: own, ahead, .. } = quiet;
            format!(
                "seed {seed}: in {own}, {ahead} commands of a flood in {lane} went first, and not {ahead_max}"
            )
        });
        let most = if quiet.lane == lane { &figures.ahead_same_lane_max } else { &figures.ahead_max };
        most.fetch_max(quiet.ahead, Ordering::Relaxed);
        if quiet.lane == Lane::Interactive && lane != Lane::Interactive {
            figures.groups_max.fetch_max(quiet.groups, Ordering::Relaxed);
            // The one that runs, its own, and one that had just been committed.
            tally.check(quiet.groups <= 3, Wrong::Broken, || format!("seed {seed}: {} groups", quiet.groups));
        }
    }
    tally.cases = quiet.len() as u64;
    figures.latencies.add(quiet.iter().filter(|quiet| quiet.lane != lane).map(|quiet| quiet.took).collect());
    check_rows(&mut tally, &service, run.acknowledged.load(Ordering::SeqCst) + quiet.len() as u64);
    tally
}

/// How many commands of a flood in another lane may go before a command, from what the lanes are promised and from what
/// commands have really taken.
fn ahead_max(own: Lane, flood: Lane, stats: &Stats) -> u64 {
    let share = match own {
        Lane::Interactive => 100,
        Lane::Bulk => 20,
        Lane::Maintenance => 5,
    };
    // It pays for its own last command and for this one, and for a COMMIT each, out of its share.
    let paid = 2 * (stats.run[own].max + stats.commit.max) * (100 - share) / share;
    // The rest of the group that runs, and what the other lane has earned by waiting.
    let rest = GROUP_HOLD + 2 * BULK_HOLD.max(stats.run[flood].max);
    let time = paid + rest;
    u64::try_from(time.as_nanos() / COST.as_nanos()).unwrap() + 2
}

impl Run {
    /// A command of the flood, if there is room.
    fn try_one(self: &Arc<Self>) -> Result<(), WriteError> {
        self.one().try_submit().map(|receipt| {
            let run = self.clone();
            tokio::spawn(async move {
                soon(receipt).await.unwrap();
                run.acknowledged.fetch_add(1, Ordering::SeqCst);
            });
        })
    }

    fn one(
        self: &Arc<Self>,
    ) -> solewriter::Write<'_, impl solewriter::Work<Output = usize, Error = rusqlite::Error>> {
        let (run, blob) = (self.clone(), vec![0_u8; self.payload_bytes]);
        let command = self.db.write("flood", move |tx| {
            run.ran.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(COST);
            tx.execute("INSERT INTO t VALUES (?1)", [blob.len() as i64])
        });
        command.lane(self.lane).payload_bytes(self.payload_bytes)
    }
}

/// Sends one command after the other, and does not wait for answers.
async fn pour(run: Arc<Run>) {
    let mut receipts = VecDeque::new();
    while !run.over.load(Ordering::SeqCst) {
        receipts.push_back(soon(run.one().submit()).await.unwrap());
        while receipts.len() > 100 {
            soon(receipts.pop_front().unwrap()).await.unwrap();
            run.acknowledged.fetch_add(1, Ordering::SeqCst);
        }
    }
    for receipt in receipts {
        soon(receipt).await.unwrap();
        run.acknowledged.fetch_add(1, Ordering::SeqCst);
    }
}

/// Sends one command at a time, and waits for its answer.
async fn call(run: Arc<Run>, lane: Lane, astray: bool) -> Vec<Quiet> {
    let mut all = Vec::new();
    for _ in 0..QUIET {
        let ran_at_start = Arc::new(AtomicU64::new(0));
        let (noted, counted) = (ran_at_start.clone(), run.clone());
        let command = run.db.write_rerunnable(format!("quiet in {lane}"), move |tx| {
            noted.store(counted.ran.load(Ordering::SeqCst), Ordering::SeqCst);
            tx.execute("INSERT INTO t VALUES ('quiet')", ())
        });
        let began = Instant::now();
        let receipt = soon(command.lane(if astray { run.lane } else { lane }).submit()).await.unwrap();
        // After it is accepted, and so never too early.
        let ran = run.ran.load(Ordering::SeqCst);
        let groups = run.db.stats().groups_committed;
        let committed = soon(receipt.committed()).await.unwrap();
        all.push(Quiet {
            lane,
            ahead: ran_at_start.load(Ordering::SeqCst).saturating_sub(ran),
            groups: committed.token.group().saturating_sub(groups),
            took: began.elapsed(),
        });
    }
    all
}

fn check_rows(tally: &mut Tally, service: &Service, acknowledged: u64) {
    let connection = plain(&service.dir.path().join("load.db"));
    let rows: i64 = connection.query_row("SELECT count(*) FROM t", (), |row| row.get(0)).unwrap();
    let rows = rows.cast_unsigned();
    tally.check(rows >= acknowledged, Wrong::Lost, || format!("{rows} of {acknowledged}"));
    tally.check(rows <= acknowledged, Wrong::Ghost, || format!("{rows} of {acknowledged}"));
}
