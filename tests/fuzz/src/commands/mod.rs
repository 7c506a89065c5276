//! Bytes are taken for a life of a service: its settings, what is sent to it, and which calls of the VFS fail
//! meanwhile. Every answer must be one that its command can get, and what the end of the process or of the machine
//! leaves must be what the answers say.
//!
//! What each command comes to by itself is known, since each has rows of its own (`ledger.rs`).

mod hostile;
mod life;
mod plan;

use arbitrary::{Arbitrary, Unstructured};
use solewriter::Sabotage;

use crate::common::proof::Tally;
use crate::frame;
use life::Life;
use plan::Plan;

/// Lives once.
pub fn run(bytes: &[u8]) {
    let Some(plan) = plan(bytes) else { return };
    frame::show(&plan);
    let tally = Life::new(&plan, frame::canary().map(sabotage)).live();
    frame::judge(tally, &plan);
}

/// The same, for who has bytes but no libFuzzer.
#[allow(dead_code, reason = "that is the reliability tests")]
pub(crate) fn live(bytes: &[u8], sabotage: Option<Sabotage>) -> Tally {
    plan(bytes).map_or_else(Tally::default, |plan| Life::new(&plan, sabotage).live())
}

/// Where the bytes end, the plan does.
fn plan(bytes: &[u8]) -> Option<Plan> {
    Plan::arbitrary(&mut Unstructured::new(bytes)).ok()
}

fn sabotage(canary: &str) -> Sabotage {
    match canary {
        "AckBeforeCommit" => Sabotage::AckBeforeCommit,
        "NormalForFull" => Sabotage::NormalForFull,
        "NoAutocommitCheck" => Sabotage::NoAutocommitCheck,
        "NoFence" => Sabotage::NoFence,
        "FenceAfterNormal" => Sabotage::FenceAfterNormal,
        "RetryCheckpoints" => Sabotage::RetryCheckpoints,
        unknown => panic!("there is no canary {unknown}"),
    }
}
