//! SIGKILL of a real process, at random moments and at named points: every answer it has given holds.
//!
//! A child runs the service under load and says each answer into a pipe as soon as it has it; what is in a pipe
//! survives. After each kill the parent looks at the file, and the next child goes on with it. A case is a kill, a
//! run is the life of a file. Where a child dies is in `points`, what it does in `plan`, what must hold afterwards
//! in `verify`.
//!
//! Canaries: a service that acknowledges before COMMIT, one that settles a failed sync without a fence, and edits of
//! the file by hand, each of which must be noticed for what it is.

mod child;
mod edits;
mod plan;
mod points;
mod verify;

use std::io::Read;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use rusqlite::Connection;
use rusqlite::config::DbConfig;
use solewriter::Sabotage;

use self::child::Orders;
use self::plan::{Run, SCHEMA, TASKS};
use self::points::Point;
use self::verify::{Answer, Ledger, Told};
use crate::common::proof::{Proof, Tally, Wrong};
use crate::common::{HANG, in_memory_dir};

/// Kills at no point of the child's own choice, in the life of a file.
const RANDOM_KILLS: usize = 11;

/// So many files are kept in which something is wrong.
const KEPT_MAX: u64 = 3;

#[test]
fn what_was_answered_holds_after_a_kill_at_any_moment() {
    let mut proof = Proof::new("kills", 200, 2_000);
    let figures = Figures::default();
    proof.run(|seed| live(seed, &every_point(seed), None, &figures));
    figures.add_to(&mut proof);
    if proof.tally.wrongs() > 0 {
        return proof.finish();
    }
    let ignored = Figures::default();
    let random = [None; 4];
    let in_commit = [Point::BetweenCommitWrites, Point::BeforeCommit].map(Some);
    let early_acks = [random.as_slice(), in_commit.as_slice()].concat();
    proof.canary("ack_before_commit", 10, |seed| {
        only(Wrong::Lost, live(seed, &early_acks, Some(Sabotage::AckBeforeCommit), &ignored))
    });
    proof.canary("no_fence", 100, |seed| {
        only(Wrong::Ghost, live(seed, &[Some(Point::AfterFence)], Some(Sabotage::NoFence), &ignored))
    });
    proof.canary_tally("edits", &edit(proof.seed()));
    proof.finish();
}

#[test]
fn a_process_of_its_own() {
    child::serve();
}

/// Each named point and some random kills, in random order. There is nothing to recover at first.
fn every_point(seed: u64) -> Vec<Option<Point>> {
    let mut points: Vec<_> = Point::ALL.into_iter().map(Some).collect();
    points.resize(Point::ALL.len() + RANDOM_KILLS, None);
    Rng::with_seed(seed).shuffle(&mut points);
    if points[0] == Some(Point::Recovery) {
        points.swap(0, 1);
    }
    points
}

/// A canary counts only if it is noticed for what it is.
fn only(how: Wrong, tally: Tally) -> Tally {
    if tally.count(how) > 0 { tally } else { Tally::default() }
}

/// What was seen over all lives.
#[derive(Default)]
struct Figures {
    kept: AtomicU64,
    acked: AtomicU64,
    refused: AtomicU64,
    unknown: AtomicU64,
    unanswered: AtomicU64,
    points: [AtomicU64; Point::ALL.len()],
}

impl Figures {
    fn note(&self, told: &Told) {
        let add = |sum: &AtomicU64, more| sum.fetch_add(more, Ordering::Relaxed);
        add(&self.acked, told.count(Answer::Acked));
        add(&self.refused, told.count(Answer::Refused));
        add(&self.unknown, told.count(Answer::Unknown));
        if let Some(point) = told.died {
            add(&self.points[point as usize], 1);
        }
    }

    fn add_to(&self, proof: &mut Proof) {
        let hits = self.points.each_ref().map(|hits| hits.load(Ordering::Relaxed));
        let hit = hits.iter().filter(|hits| **hits > 0).count();
        let never: Vec<_> = Point::ALL.into_iter().filter(|point| hits[*point as usize] == 0).collect();
        let holds = never.is_empty() || proof.is_replay();
        proof.tally.check(holds, Wrong::Broken, || format!("never killed at {never:?}"));
        proof.figure("points", format_args!("{hit}/{}", hits.len()));
        proof.figure("at_points", hits.iter().sum::<u64>());
        for (name, sum) in [
            ("acked", &self.acked),
            ("refused", &self.refused),
            ("unknown", &self.unknown),
            ("unanswered_present", &self.unanswered),
        ] {
            proof.figure(name, sum.load(Ordering::Relaxed));
        }
    }
}

/// The life of a file: one child after the other is killed, until something is wrong.
fn live(seed: u64, points: &[Option<Point>], sabotage: Option<Sabotage>, figures: &Figures) -> Tally {
    let mut tally = Tally::default();
    let mut ledger = Ledger::default();
    let mut rng = Rng::with_seed(seed);
    let dir = in_memory_dir();
    let path = dir.path().join("test.db");
    create(&path, points.len());
    let mut witness: Option<Witness> = None;
    for (number, point) in (0..).zip(points) {
        let run = Run::new(seed, number, *point);
        if rng.u8(0..3) == 0 && run.point != Some(Point::Recovery) {
            witness.get_or_insert_with(|| Witness { connection: open(&path), has_looked: false });
        }
        let orders = Orders { path: path.clone(), run, sabotage };
        let Killed { told, status } = run_and_kill(&orders, When::new(run.point, &mut rng));
        tally.cases += 1;
        tally.check(told.end.is_none() && status.signal() == Some(9), Wrong::Broken, || {
            format!("{run:?} was not killed: {status}, {:?}", told.end)
        });
        for (how, what) in &told.wrongs {
            tally.wrong(*how, || what.clone());
        }
        let next = points.get(number as usize + 1);
        if rng.bool() || next == Some(&Some(Point::Recovery)) {
            witness.take().into_iter().for_each(Witness::leave);
        }
        match &mut witness {
            Some(witness) => ledger.verify(witness.look(), &run, &told, &mut tally),
            None => ledger.verify(&open(&path), &run, &told, &mut tally),
        }
        figures.note(&told);
        if tally.wrongs() > 0 {
            if sabotage.is_none() && figures.kept.fetch_add(1, Ordering::Relaxed) < KEPT_MAX {
                eprintln!("with seed {seed}: {run:?}, kept: {}", dir.keep().display());
            }
            break;
        }
    }
    figures.unanswered.fetch_add(ledger.unanswered, Ordering::Relaxed);
    tally
}

/// Another program that has the file open while a child is killed, and so keeps the wal-index alive: there is no
/// recovery then.
///
/// What a COMMIT has written that was killed is not in that wal-index, yet a recovery would find it. So one who has
/// seen that it is not there overwrites it before the last one closes, by a small commit.
struct Witness {
    connection: Connection,
    has_looked: bool,
}

impl Witness {
    fn look(&mut self) -> &Connection {
        self.has_looked = true;
        &self.connection
    }

    fn leave(self) {
        if self.has_looked {
            let commit = "UPDATE tasks SET closures = closures WHERE task = 0";
            assert_eq!(self.connection.execute(commit, ()).unwrap(), 1);
        }
    }
}

/// Edits what a child has left that was killed.
fn edit(seed: u64) -> Tally {
    let dir = in_memory_dir();
    let path = dir.path().join("test.db");
    create(&path, 2);
    let is_plain = |run: &Run| !run.is_hostile && !run.is_failing;
    let run = (seed..).map(|seed| Run::new(seed, 0, None)).find(is_plain).unwrap();
    let orders = Orders { path: path.clone(), run, sabotage: None };
    let Killed { told, .. } = run_and_kill(&orders, When::Said(2_000, Duration::ZERO));
    edits::edit(&open(&path), &run, &told)
}

fn create(path: &Path, lives: usize) {
    let connection = Connection::open(path).unwrap();
    connection
        .execute_batch(&format!("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; {SCHEMA}"))
        .unwrap();
    let mut tasks = connection.prepare("INSERT INTO tasks (task) VALUES (?1)").unwrap();
    for task in 0..i64::try_from(lives).unwrap() * TASKS {
        tasks.execute([task]).unwrap();
    }
}

/// Opens a file and leaves its WAL to the next service.
fn open(path: &Path) -> Connection {
    let connection = crate::common::plain(path);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
    // Opens the WAL.
    connection.query_row("SELECT count(*) FROM sqlite_schema", (), |_| Ok(())).unwrap();
    connection
}

/// What is left of a child.
struct Killed {
    told: Told,
    status: ExitStatus,
}

/// When the parent kills a child.
#[derive(Clone, Copy, Debug)]
enum When {
    /// While it begins, perhaps.
    After(Duration),
    /// So long after it has said so many words.
    Said(usize, Duration),
    /// It kills itself.
    Never,
}

impl When {
    fn new(point: Option<Point>, rng: &mut Rng) -> Self {
        match (point, rng.u8(0..4)) {
            // It may find too little to recover.
            (Some(Point::Recovery), _) => Self::Said(100, Duration::ZERO),
            (Some(_), _) => Self::Never,
            (None, 0) => Self::After(Duration::from_micros(rng.u64(0..80_000))),
            (None, _) => Self::Said(rng.usize(0..1_500), Duration::from_micros(rng.u64(0..3_000))),
        }
    }
}

fn run_and_kill(orders: &Orders, when: When) -> Killed {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "kills::a_process_of_its_own", "--nocapture"]).envs(orders.environment());
    let mut child = Reaped(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
    let said = listen(child.0.stdout.take().unwrap());
    let began = Instant::now();
    let mut heard = Vec::new();
    let mut words = 0;
    let mut is_killed = false;
    let mut kill_at = match when {
        When::After(time) => Some(began + time),
        When::Said(..) | When::Never => None,
    };
    loop {
        let limit = kill_at.unwrap_or(began + HANG).saturating_duration_since(Instant::now());
        match said.recv_timeout(limit) {
            Ok(more) => {
                words += more.iter().filter(|byte| **byte == b'@').count();
                heard.extend(more);
            }
            Err(RecvTimeoutError::Timeout) if kill_at.is_some() => {
                child.0.kill().unwrap();
                (is_killed, kill_at) = (true, None);
            }
            Err(RecvTimeoutError::Timeout) => panic!("it hangs: {orders:?}"),
            // All of it is heard once it is dead.
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if let When::Said(wanted, then) = when
            && words > wanted
            && kill_at.is_none()
            && !is_killed
        {
            kill_at = Some(Instant::now() + then);
        }
    }
    Killed { told: Told::parse(&heard), status: child.0.wait().unwrap() }
}

/// The words of a child as they come.
fn listen(mut pipe: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut words = vec![0; 65_536];
        while let Ok(bytes @ 1..) = pipe.read(&mut words) {
            if sender.send(words[..bytes].to_vec()).is_err() {
                break;
            }
        }
    });
    receiver
}

/// A child that does not outlive its parent.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
