//! T1: the power goes after any call that changes a file. Whatever the disk makes of what was not synced,
//! everything acknowledged as durable is there, whole, and nothing that was answered as not applied.

use fastrand::Rng;
use solewriter::Sabotage;

use super::ledger::{End, Ledger, examine};
use super::workload::{Notes, Workload, close, create, directory, drive, lively, open};
use crate::common::disk::{Disk, Image};
use crate::common::faults::Faults;
use crate::common::proof::{Proof, Tally};

/// Runs the service once and looks at what a power loss would leave after each call.
fn live(seed: u64, sabotage: Option<Sabotage>) -> Tally {
    let mut rng = Rng::with_seed(seed);
    let (dir, faults, ledger) = (directory(), Faults::register(), Ledger::default());
    let path = create(&dir, &mut rng);
    let before = Image::read(&path);
    faults.record();
    let db = open(&path, &faults, lively(&mut rng), sabotage).unwrap();
    let recorded = || faults.recorded();
    drive(&db, Workload::default(), &mut rng, Notes { ledger: &ledger, recorded: &recorded });
    let mut tally = Tally::default();
    close(db, &mut tally);

    let (record, answers) = (faults.take_record(), ledger.answers());
    let image_path = dir.path().join("image.db");
    let mut disk = Disk::new(before);
    for (done, recorded) in record.iter().enumerate() {
        disk.apply(recorded, &mut rng);
        // More lives show more than every moment of a few.
        if rng.u8(0..3) > 0 {
            continue;
        }
        disk.power_loss(&mut rng).write(&image_path);
        examine(&image_path, &answers, done + 1, End::PowerLoss, &mut tally);
    }
    tally
}

#[test]
fn power_loss() {
    let mut proof = Proof::new("power_loss", 20_000, 100_000);
    proof.run(|seed| live(seed, None));
    proof.canary("NormalForFull", 20, |seed| live(seed, Some(Sabotage::NormalForFull)));
    proof.canary("AckBeforeCommit", 20, |seed| live(seed, Some(Sabotage::AckBeforeCommit)));
    proof.finish();
}
