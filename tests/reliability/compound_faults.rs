//! T5: one misfortune after another. The power goes, what is left is opened, calls fail meanwhile, the power goes
//! again, also in the midst of the recovery, and so on.

use fastrand::Rng;
use rusqlite::ffi;
use solewriter::Sabotage;

use super::ledger::{Answered, End, Ledger, examine};
use super::workload::{Notes, Workload, close, create, drive, lively, open};
use crate::common::disk::{Disk, Image};
use crate::common::faults::{Fault, Faults, Of, Op};
use crate::common::in_memory_dir;
use crate::common::proof::{Proof, Tally};

/// How often the power goes in one run.
const LIVES: i64 = 5;

/// A call that fails at some time, once or a few times.
fn any_call_fails(rng: &mut Rng) -> Fault {
    let (op, code) = [
        (Op::Read, ffi::SQLITE_IOERR_READ),
        (Op::Write, ffi::SQLITE_IOERR_WRITE),
        (Op::Write, ffi::SQLITE_FULL),
        (Op::Sync, ffi::SQLITE_IOERR_FSYNC),
        (Op::Truncate, ffi::SQLITE_IOERR_TRUNCATE),
        (Op::Lock, ffi::SQLITE_IOERR_SHMLOCK),
        (Op::Open, ffi::SQLITE_CANTOPEN),
    ][rng.usize(0..7)];
    let of = if rng.bool() { Of::Wal } else { Of::Database };
    let spared = [0, rng.u32(0..10), rng.u32(0..100)][rng.usize(0..3)];
    Fault::new(op, of, code).after(spared).times(rng.u32(1..4))
}

fn a_commit_fails(rng: &mut Rng) -> Fault {
    Fault::new(Op::Sync, Of::Wal, ffi::SQLITE_IOERR_FSYNC).after(rng.u32(0..20)).once()
}

/// Runs one seed again.
pub(crate) fn replay(seed: u64) -> Tally {
    live(seed, any_call_fails, None)
}

fn live(seed: u64, misfortune: fn(&mut Rng) -> Fault, sabotage: Option<Sabotage>) -> Tally {
    let (mut rng, mut tally) = (Rng::with_seed(seed), Tally::default());
    let dir = in_memory_dir();
    let path = dir.path().join("test.db");
    create(&path, &mut rng);
    let image_path = dir.path().join("image.db");
    let mut answers = Vec::<Answered>::new();
    for life in 0..LIVES {
        let before = Image::read(&path);
        let (faults, ledger) = (Faults::register(), Ledger::default());
        for _ in 0..rng.u32(0..4) {
            faults.inject(misfortune(&mut rng));
        }
        faults.record();
        match open(&path, &faults, lively(&mut rng), sabotage) {
            Ok(db) => {
                let recorded = || faults.recorded();
                let workload = Workload {
                    tasks: 3,
                    commands: 10,
                    normal: [0, 30][rng.usize(0..2)],
                    first_task: 1 + life * 3,
                    ..Workload::default()
                };
                drive(&db, workload, &mut rng, Notes { ledger: &ledger, recorded: &recorded });
                close(db, &mut tally);
            }
            Err(_) => tally.add("refused", 1),
        }
        tally.add("failed", faults.failed() as u64);
        answers.extend(ledger.answers());
        let record = faults.take_record();
        if record.is_empty() {
            continue;
        }
        let goes_at = rng.usize(0..record.len());
        let mut left = before.clone();
        let mut disk = Disk::new(before);
        for (done, recorded) in record.iter().enumerate() {
            disk.apply(recorded, &mut rng);
            if done == goes_at {
                left = disk.power_loss(&mut rng);
                left.write(&image_path);
            } else if rng.u8(0..10) == 0 {
                disk.power_loss(&mut rng).write(&image_path);
            } else {
                continue;
            }
            examine(&image_path, &answers, done + 1, End::PowerLoss, &mut tally);
        }
        // What was said until then holds for what comes, whatever that is; the rest has not been said.
        answers.retain(|answered| answered.at <= goes_at + 1);
        answers.iter_mut().for_each(|answered| answered.at = 0);
        left.write(&path);
    }
    tally
}

#[test]
fn compound_faults() {
    let mut proof = Proof::new("compound_faults", 5_000, 50_000);
    proof.run(replay);
    proof.canary(Sabotage::NoFence, 300, |seed| live(seed, a_commit_fails, Some(Sabotage::NoFence)));
    proof.finish();
}
