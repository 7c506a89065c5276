//! Damaged files: the service opens and uses them without a panic, a crash or a hang, and whatever it answers is true.
//!
//! A child process opens one damaged file after the other, so that a crash is noticed and laid at the door of its
//! seed. Of an acknowledged row nothing can be demanded where SQLite's own check finds damage at the end: the row
//! may have gone to a page that something else believes to be its own.

mod case;
mod child;
mod damage;
mod good;
mod imports;
mod ops;
mod report;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use child::{Ended, Worker};
use report::Mode;

use crate::common::foreign;
use crate::common::proof::{Proof, Tally, Wrong};

/// No file takes this long unless something hangs.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn whatever_is_damaged_every_answer_is_true() {
    let mut proof = Proof::new("damaged_files", 2_000, 10_000);
    let workers = Workers::new(Mode::Truthful, LIMIT);
    proof.run(|seed| workers.run(seed));
    for (name, mode, runs, limit) in [
        ("row_deleted", Mode::RowDeleted, 100, LIMIT),
        ("ack_before_commit", Mode::AckBeforeCommit, 100, LIMIT),
        ("panic", Mode::Panic, 100, LIMIT),
        ("crash", Mode::Crash, 1, LIMIT),
        ("hang", Mode::Hang, 1, Duration::from_millis(100)),
    ] {
        let workers = Workers::new(mode, limit);
        proof.canary(name, runs, |seed| workers.run(seed));
    }
    for (name, value) in workers.figures() {
        proof.figure(&name, value);
    }
    proof.finish();
}

#[test]
fn a_process_that_may_crash() {
    child::serve();
}

/// The other program that keeps a damaged database open.
#[test]
fn a_process_of_its_own() {
    foreign::serve();
}

/// Processes that use damaged files, as many as there are cases at a time.
struct Workers {
    mode: Mode,
    limit: Duration,
    idle: Mutex<Vec<Worker>>,
    figures: Mutex<BTreeMap<String, u64>>,
}

impl Workers {
    fn new(mode: Mode, limit: Duration) -> Self {
        let figures = ["panics", "crashes", "hangs"].map(|name| (name.into(), 0));
        Self { mode, limit, idle: Mutex::default(), figures: Mutex::new(figures.into()) }
    }

    fn run(&self, seed: u64) -> Tally {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut worker = idle.unwrap_or_else(|| Worker::start(self.mode));
        let mut tally = Tally::default();
        tally.cases = 1;
        match worker.run(seed, self.limit) {
            Ended::Reported(report) => {
                tally.checks = report.checks;
                for (how, what) in report.wrong {
                    tally.wrong(how, || format!("seed {seed}: {what}"));
                }
                self.add(report.figures);
                self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
            }
            Ended::Crashed(status) => {
                self.add([("crashes".into(), 1)].into());
                tally.wrong(Wrong::Broken, || format!("seed {seed}: the process ended with {status}"));
            }
            Ended::Hung => {
                self.add([("hangs".into(), 1)].into());
                tally.wrong(Wrong::Broken, || format!("seed {seed}: nothing after {:?}", self.limit));
            }
        }
        tally
    }

    fn add(&self, figures: BTreeMap<String, u64>) {
        let mut sum = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, value) in figures {
            *sum.entry(name).or_default() += value;
        }
    }

    fn figures(&self) -> BTreeMap<String, u64> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
