//! T22: the seeds that have found something, run again.

use super::{compound_faults, io_faults, power_loss};
use crate::common::proof::{Proof, Tally};

const SEEDS: &str = include_str!("seeds.txt");

fn replay(name: &str, seed: u64) -> Tally {
    match name {
        "compound_faults" => compound_faults::replay(seed),
        "io_faults" => io_faults::live(seed, None),
        _ => power_loss::replay(name, seed).unwrap_or_else(|| panic!("{name}: there is no such test")),
    }
}

#[test]
fn seeds() {
    let seeds: Vec<_> = SEEDS.lines().filter(|line| !line.starts_with('#')).collect();
    // Each gives one case, or many.
    let wanted = seeds.len() as u64;
    let mut proof = Proof::new("seeds", wanted, wanted);
    for line in seeds {
        let (name, seed) = line.split_once(' ').expect("a name and a seed");
        proof.tally.merge(replay(name, seed.parse().expect("a number")));
        proof.tally.add("seeds", 1);
    }
    proof.finish();
}
