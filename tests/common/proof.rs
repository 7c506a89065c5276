//! The frame of the reliability tests: how much each does, and the one line that it prints.
//!
//! `SOLEWRITER_RELIABILITY=long` asks for the figures that are reported; without it, for those of a check-in.
//! `SOLEWRITER_CASES` sets another number of cases, `SOLEWRITER_SEED` where they begin. Each run has a seed of its
//! own, the next one the next number; with `SOLEWRITER_SEED=<that of a run> SOLEWRITER_CASES=1` it is done again.
//! `SOLEWRITER_SKIPS=forbidden` makes a test fail that can't be done here.
#![allow(dead_code, clippy::panic, clippy::print_stderr, reason = "each test file uses a part of this")]

use std::collections::BTreeMap;
use std::fmt::{Debug, Display, Write as _};
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use serde::{Deserialize, Serialize};

/// How a file or an answer can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Wrong {
    /// Acknowledged and absent.
    Lost,
    /// A part of a command is there, and a part is not.
    Half,
    /// Answered as not applied, and there.
    Ghost,
    /// SQLite finds damage, or can't open the file.
    Corrupt,
    /// Any other promise that is not kept.
    Broken,
}

/// Examples that are kept of what is wrong.
const EXAMPLES_MAX: usize = 5;

/// What was seen in one run, or in many.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) cases: u64,
    pub(crate) checks: u64,
    wrong: [u64; 5],
    /// Whatever else was counted.
    counts: BTreeMap<&'static str, u64>,
    examples: Vec<String>,
}

impl Tally {
    /// Of a case in which nothing was seen yet.
    pub(crate) fn of_one_case() -> Self {
        Self { cases: 1, ..Self::default() }
    }

    pub(crate) fn wrong(&mut self, how: Wrong, example: impl FnOnce() -> String) {
        self.wrong[how as usize] += 1;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(format!("{how:?}: {}", example()));
        }
    }

    /// Leaves of what is wrong this alone.
    pub(crate) fn only(mut self, how: Wrong) -> Self {
        let count = self.count(how);
        self.wrong = [0; 5];
        self.wrong[how as usize] = count;
        self
    }

    /// Counts a check, and what it has found.
    pub(crate) fn check(&mut self, holds: bool, how: Wrong, example: impl FnOnce() -> String) {
        self.checks += 1;
        if !holds {
            self.wrong(how, example);
        }
    }

    /// Counts something that is told in the line.
    pub(crate) fn add(&mut self, what: &'static str, count: u64) {
        *self.counts.entry(what).or_default() += count;
    }

    /// How much of something was counted.
    pub(crate) fn counted(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or_default()
    }

    pub(crate) fn count(&self, how: Wrong) -> u64 {
        self.wrong[how as usize]
    }

    /// Everything that is wrong.
    pub(crate) fn wrongs(&self) -> u64 {
        self.wrong.iter().sum()
    }

    /// Whether there are as many cases as wanted, or nobody needs more to see that something is wrong.
    fn is_enough(&self, cases: u64) -> bool {
        self.cases >= cases || self.wrongs() >= EXAMPLES_MAX as u64
    }

    /// Whatever else was counted, by name.
    pub(crate) fn counts(&self) -> &BTreeMap<&'static str, u64> {
        &self.counts
    }

    /// Some of what is wrong.
    pub(crate) fn examples(&self) -> &[String] {
        &self.examples
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.cases += other.cases;
        self.checks += other.checks;
        for (sum, more) in self.wrong.iter_mut().zip(other.wrong) {
            *sum += more;
        }
        for (what, count) in other.counts {
            self.add(what, count);
        }
        self.examples.extend(other.examples);
        self.examples.truncate(EXAMPLES_MAX);
    }
}

/// A reliability test.
pub(crate) struct Proof {
    name: &'static str,
    seed: u64,
    wanted: u64,
    pub(crate) tally: Tally,
    figures: String,
}

impl Proof {
    /// `short` and `long` are numbers of cases, whatever a case is for this test.
    pub(crate) fn new(name: &'static str, short: u64, long: u64) -> Self {
        let wanted = setting("SOLEWRITER_CASES").unwrap_or(if is_long() { long } else { short });
        let seed = setting("SOLEWRITER_SEED").unwrap_or(1);
        Self { name, seed, wanted, tally: Tally::default(), figures: String::new() }
    }

    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// How many cases there should be.
    pub(crate) fn wanted(&self) -> u64 {
        self.wanted
    }

    /// Whether this is a run of a few cases, to replay one of them: too few to catch a canary.
    pub(crate) fn is_replay(&self) -> bool {
        setting("SOLEWRITER_CASES").is_some_and(|cases| cases < 100)
    }

    /// Runs one seed after the other until there are as many cases as wanted; on each core at the same time.
    pub(crate) fn run(&mut self, run: impl Fn(u64) -> Tally + Sync) {
        self.run_at_most(u64::MAX, run);
    }

    /// As [`run`](Self::run), with at most `runs` seeds: not every one need give a case.
    pub(crate) fn run_at_most(&mut self, runs: u64, run: impl Fn(u64) -> Tally + Sync) {
        let wanted = self.wanted;
        let tally = run_seeds(self.seed, runs, |tally| tally.is_enough(wanted), run);
        self.tally.merge(tally);
    }

    /// As [`run`](Self::run), but one after the other: for runs that keep all cores busy by themselves.
    pub(crate) fn run_in_turn(&mut self, mut run: impl FnMut(u64) -> Tally) {
        let mut seeds = self.seed..;
        while !self.tally.is_enough(self.wanted)
            && let Some(seed) = seeds.next()
        {
            self.tally.merge(naming(seed, || run(seed)));
        }
    }

    /// Runs a broken service with one seed after the other, until the test has noticed; at most `runs` of them.
    pub(crate) fn canary(&mut self, name: impl Debug, runs: u64, run: impl Fn(u64) -> Tally + Sync) {
        if self.is_replay() {
            return;
        }
        let tally = run_seeds(self.seed, runs, |tally| tally.wrongs() > 0, run);
        self.canary_tally(name, &tally);
    }

    /// What a broken service has shown.
    pub(crate) fn canary_tally(&mut self, name: impl Debug, tally: &Tally) {
        self.figure(&format!("canary:{}", format!("{name:?}").trim_matches('"')), tally.wrongs());
        let Self { name: test, .. } = self;
        assert!(tally.wrongs() > 0, "{test}: nothing was noticed of {name:?}, in {} cases", tally.cases);
    }

    /// Adds a figure to the line.
    pub(crate) fn figure(&mut self, name: &str, value: impl Display) {
        write!(self.figures, " {name}={value}").expect("a string has room");
    }

    /// Prints the line.
    ///
    /// # Panics
    /// If anything is wrong, or there were too few cases.
    pub(crate) fn finish(self) {
        let Self { name, seed, wanted, tally, mut figures } = self;
        for (what, count) in &tally.counts {
            write!(figures, " {what}={count}").expect("a string has room");
        }
        let Tally { cases, checks, wrong: [lost, half, ghost, corrupt, broken], .. } = tally;
        print_line(&format!(
            "{name}: cases={cases} checks={checks} lost={lost} half={half} ghost={ghost} corrupt={corrupt} \
             seed={seed} broken={broken}{figures}"
        ));
        assert!(tally.wrongs() == 0, "{name}: {:#?}", tally.examples);
        assert!(cases >= wanted, "{name}: {cases} cases instead of {wanted}");
    }
}

/// Says why a test can't be done here.
///
/// # Panics
/// If nothing may be skipped.
pub(crate) fn skip(name: &str, reason: impl Display) {
    print_line(&format!("{name}: SKIP {reason}"));
    let forbidden = std::env::var_os("SOLEWRITER_SKIPS").is_some_and(|skips| skips == "forbidden");
    assert!(!forbidden, "{name} is skipped: {reason}");
}

pub(crate) fn is_long() -> bool {
    std::env::var_os("SOLEWRITER_RELIABILITY").is_some_and(|mode| mode == "long")
}

fn setting(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}: {value} is no number")))
}

/// Not captured by the test runner, which swallows what a test prints that succeeds.
fn print_line(line: &str) {
    // A test does not fail for want of somebody who reads its line.
    let _unread = writeln!(std::io::stderr(), "{line}").is_err();
}

fn run_seeds(
    first: u64,
    runs: u64,
    done: impl Fn(&Tally) -> bool + Sync,
    run: impl Fn(u64) -> Tally + Sync,
) -> Tally {
    let next = AtomicU64::new(0);
    let sum = Mutex::new(Tally::default());
    let work = || {
        while !done(&sum.lock().unwrap_or_else(PoisonError::into_inner)) {
            let begun = next.fetch_add(1, Ordering::Relaxed);
            if begun >= runs {
                break;
            }
            let seed = first + begun;
            let tally = naming(seed, || run(seed));
            sum.lock().unwrap_or_else(PoisonError::into_inner).merge(tally);
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..cores()).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            if let Err(panic) = thread.join() {
                resume_unwind(panic);
            }
        }
    });
    sum.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Says with which seed something was wrong, or a run has panicked.
fn naming(seed: u64, run: impl FnOnce() -> Tally) -> Tally {
    let mut tally = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        eprintln!("with seed {seed}");
        resume_unwind(panic)
    });
    tally.examples.iter_mut().for_each(|example| *example = format!("seed {seed}: {example}"));
    tally
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}
