//! SIGKILL of a real process, at random moments and at named points: every answer it has given holds.
//!
//! A case is a kill of a child (`process`), a run is the life of a file.
//!
//! Canaries: a service that acknowledges before COMMIT, one that settles a failed sync without a fence, and edits of
//! the file by hand, each of which must be noticed for what it is.

mod edits;

use std::os::unix::process::ExitStatusExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use rusqlite::Connection;
use solewriter::Sabotage;

use crate::common::in_memory_dir;
use crate::common::proof::{Proof, Tally, Wrong};
use crate::process::child::Orders;
use crate::process::plan::Run;
use crate::process::points::Point;
use crate::process::verify::Ledger;
use crate::process::{self, When, create, open};

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
    points: [AtomicU64; Point::ALL.len()],
}

impl Figures {
    fn note(&self, died: Option<Point>) {
        if let Some(point) = died {
            self.points[point as usize].fetch_add(1, Ordering::Relaxed);
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
        let ended = process::run(&orders, &[], when(run.point, &mut rng), None, process::kill);
        let (told, status) = (ended.told(), ended.status);
        tally.cases += 1;
        let ended = (&told.end, &told.unopened);
        tally.check(ended == (&None, &None) && status.signal() == Some(9), Wrong::Broken, || {
            format!("{run:?} was not killed: {status}, {ended:?}")
        });
        told.count_in(&mut tally);
        let next = points.get(number as usize + 1);
        if rng.bool() || next == Some(&Some(Point::Recovery)) {
            witness.take().into_iter().for_each(Witness::leave);
        }
        match &mut witness {
            Some(witness) => ledger.verify(witness.look(), &run, &told, &mut tally),
            None => ledger.verify(&open(&path), &run, &told, &mut tally),
        }
        figures.note(told.died);
        if tally.wrongs() > 0 {
            if sabotage.is_none() && figures.kept.fetch_add(1, Ordering::Relaxed) < KEPT_MAX {
                eprintln!("with seed {seed}: {run:?}, kept: {}", dir.keep().display());
            }
            break;
        }
    }
    tally.add("unanswered_present", ledger.unanswered);
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
    let ended = process::run(&orders, &[], When::Said(2_000, Duration::ZERO), None, process::kill);
    let told = ended.told();
    edits::edit(&open(&path), &run, &told)
}

/// When a child is killed that goes for a point.
fn when(point: Option<Point>, rng: &mut Rng) -> When {
    match point {
        // It may find too little to recover.
        Some(Point::Recovery) => When::Said(100, Duration::ZERO),
        Some(_) => When::Never,
        None => When::random(rng),
    }
}
