//! Load and flood: limits hold at every moment, every command is answered once, and nobody starves.
//!
//! What is promised is told in commands and groups, not in time: the times that are printed depend on the machine.

mod flood;
mod mixed;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use solewriter::{Config, Database};
use tempfile::TempDir;

use crate::common::in_memory_dir;
use crate::common::proof::Proof;

#[test]
fn under_load_limits_hold_and_every_command_is_answered_once() {
    let mut proof = Proof::new("load", 40_000, 1_500_000);
    let latencies = Latencies::default();
    proof.run(|seed| mixed::run(seed, 1, &latencies));
    // The service is told of more room than the test knows.
    proof.canary("larger_queue", 20, |seed| mixed::run(seed, 4, &Latencies::default()));
    latencies.tell(&mut proof);
    proof.finish();
}

#[test]
fn in_a_flood_nobody_starves() {
    let mut proof = Proof::new("flood", 480, 20_000);
    let figures = flood::Figures::default();
    proof.run(|seed| flood::run(seed, false, &figures));
    // Those who believe to be in a lane of their own are in that of the flood.
    proof.canary("in_the_flood", 20, |seed| flood::run(seed, true, &flood::Figures::default()));
    figures.tell(&mut proof);
    proof.finish();
}

/// A database of its own, with room for little.
struct Service {
    db: Database,
    dir: TempDir,
}

impl Service {
    fn open(set: impl FnOnce(&mut Config)) -> Self {
        let dir = in_memory_dir();
        let mut config = Config { command_wait_max: Duration::from_secs(60), ..Config::default() };
        set(&mut config);
        let db = Database::builder(dir.path().join("load.db")).config(config).open_blocking().unwrap();
        Self { db, dir }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// How long callers have waited for their answers.
#[derive(Default)]
struct Latencies(Mutex<Vec<Duration>>);

impl Latencies {
    fn add(&self, mut more: Vec<Duration>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).append(&mut more);
    }

    fn tell(&self, proof: &mut Proof) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.sort_unstable();
        for (name, per_mille) in [("p50", 500), ("p99", 990), ("p99.9", 999)] {
            let at = all.get(all.len().saturating_sub(1) * per_mille / 1_000).copied().unwrap_or_default();
            proof.figure(name, format_args!("{:.2}ms", at.as_secs_f64() * 1e3));
        }
    }
}
