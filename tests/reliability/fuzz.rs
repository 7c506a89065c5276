//! T18 without libFuzzer: random bytes for the target `commands`, so that it is built and run at each check-in. What
//! libFuzzer makes of the targets, and the other two: `tests/fuzz.sh`.

use fastrand::Rng;
use solewriter::Sabotage;

use crate::commands;
use crate::common::proof::{Proof, Tally};

fn live(seed: u64, sabotage: Option<Sabotage>) -> Tally {
    let mut rng = Rng::with_seed(seed);
    let bytes: Vec<u8> = (0..rng.usize(20..300)).map(|_| rng.u8(..)).collect();
    commands::live(&bytes, sabotage)
}

#[test]
#[ignore = "in some cases reads fail for good, and it is not known yet whether they may"]
fn random_commands() {
    let mut proof = Proof::new("random_commands", 400, 20_000);
    proof.run(|seed| live(seed, None));
    for how in [Sabotage::AckBeforeCommit, Sabotage::NoFence] {
        proof.canary(how, 400, |seed| live(seed, Some(how)));
    }
    proof.finish();
}
