//! T1: the power goes after any call that changes a file. Whatever the disk makes of what was not synced,
//! everything acknowledged as durable is there, whole, and nothing that was answered as not applied.
//!
//! T3: a sync fails, and the system has dropped what it was to write: those pages count as clean, and the next sync
//! succeeds without them. Whatever is acknowledged afterwards must not rest on them.
//!
//! T4: a checkpoint fails, after others that a reader kept from copying everything.

use fastrand::Rng;
use rusqlite::{Connection, OpenFlags, ffi};
use solewriter::{Durability, Sabotage};

use super::ledger::{End, Ledger, SCHEMA, Told, examine};
use super::workload::{Notes, Workload, close, create, drive, lively, open};
use crate::common::disk::{Disk, Image};
use crate::common::faults::{By, Fault, Faults, Of, Op};
use crate::common::in_memory_dir;
use crate::common::proof::{Proof, Tally};

/// The life of a service, and what it meets.
struct Life {
    workload: Workload,
    /// The service makes the database, too.
    is_new: bool,
    /// What fails, if anything does.
    misfortune: fn(&mut Rng) -> Vec<Fault>,
    /// Another connection has the database open all the time, so that the wal-index outlives ours.
    neighbour: bool,
    /// How many changes there are to one look at what the power would leave: more lives show more than every
    /// moment of a few.
    changes_per_look: u32,
    sabotage: Option<Sabotage>,
}

impl Default for Life {
    fn default() -> Self {
        Self {
            workload: Workload::default(),
            is_new: false,
            misfortune: |_| Vec::new(),
            neighbour: false,
            changes_per_look: 3,
            sabotage: None,
        }
    }
}

impl Life {
    fn broken(self, how: Sabotage) -> Self {
        Self { sabotage: Some(how), ..self }
    }

    /// Lets the service live once, and looks at what a power loss would leave at some moments of it.
    fn live(&self, seed: u64) -> Tally {
        let (mut rng, mut tally) = (Rng::with_seed(seed), Tally::default());
        let (dir, faults, ledger) = (in_memory_dir(), Faults::register(), Ledger::default());
        let path = dir.path().join("test.db");
        let before = if self.is_new {
            Image::empty()
        } else {
            create(&path, &mut rng);
            Image::read(&path)
        };
        faults.record();
        let db = open(&path, &faults, lively(&mut rng), self.sabotage).unwrap();
        let neighbour = self.neighbour.then(|| {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags_and_vfs(&path, flags, faults.name()).unwrap();
            connection.execute_batch("SELECT count(*) FROM part").unwrap();
            connection
        });
        for fault in (self.misfortune)(&mut rng) {
            faults.inject(fault);
        }
        let recorded = || faults.recorded();
        if self.is_new {
            db.blocking().write("schema", |tx| tx.execute_batch(SCHEMA)).wait().unwrap();
            ledger.note(0, Told::Acked(Durability::Full), recorded());
        }
        drive(&db, self.workload, &mut rng, Notes { ledger: &ledger, recorded: &recorded });
        let report = close(db, &mut tally);
        drop(neighbour);

        let (record, answers) = (faults.take_record(), ledger.answers());
        let unknown = answers.iter().filter(|answered| answered.told == Told::Unknown).count();
        for (what, count) in
            [("failed", faults.failed()), ("stopped", usize::from(report.stopped)), ("unknown", unknown)]
        {
            tally.add(what, count as u64);
        }
        let image_path = dir.path().join("image.db");
        let mut disk = Disk::new(before);
        for (done, recorded) in record.iter().enumerate() {
            disk.apply(recorded, &mut rng);
            if rng.u32(0..self.changes_per_look) == 0 || done + 1 == record.len() {
                disk.power_loss(&mut rng).write(&image_path);
                examine(&image_path, &answers, done + 1, End::PowerLoss, &mut tally);
            }
        }
        tally
    }
}

fn nothing_fails(seed: u64) -> Life {
    // A durable command among others that are not.
    let workload = Workload { normal: if seed.is_multiple_of(4) { 30 } else { 0 }, ..Workload::default() };
    Life { workload, is_new: seed.is_multiple_of(3), ..Life::default() }
}

#[test]
fn power_loss() {
    let mut proof = Proof::new("power_loss", 20_000, 100_000);
    proof.run(|seed| nothing_fails(seed).live(seed));
    for how in [Sabotage::NormalForFull, Sabotage::AckBeforeCommit] {
        proof.canary(how, 20, |seed| nothing_fails(seed).broken(how).live(seed));
    }
    proof.finish();
}

fn sync_fails(of: Of, by: By, spared: u32) -> Fault {
    Fault::new(Op::Sync, of, ffi::SQLITE_IOERR_FSYNC).by(by).after(spared).once()
}

fn commits_fail(rng: &mut Rng) -> Vec<Fault> {
    (0..3).map(|_| sync_fails(Of::Wal, By::Writer, rng.u32(0..60))).collect()
}

fn syncs_fail(rng: &mut Rng) -> Vec<Fault> {
    let fault = |rng: &mut Rng| match rng.u8(0..4) {
        0 | 1 => sync_fails(Of::Wal, By::Writer, rng.u32(0..60)),
        2 => sync_fails(Of::Wal, By::Checkpointer, rng.u32(0..8)),
        _ => sync_fails(Of::Database, By::Checkpointer, rng.u32(0..8)),
    };
    (0..rng.u32(1..4)).map(|_| fault(rng)).collect()
}

fn syncs_fail_at_times(normal: u32) -> Life {
    let workload = Workload { normal, ..Workload::default() };
    Life { workload, misfortune: syncs_fail, changes_per_look: 8, ..Life::default() }
}

fn failed_syncs_of(seed: u64) -> Life {
    // Half of them with groups that were not synced before a sync fails.
    syncs_fail_at_times(if seed.is_multiple_of(2) { 40 } else { 0 })
}

#[test]
fn failed_syncs() {
    let mut proof = Proof::new("failed_syncs", 10_000, 50_000);
    proof.run(|seed| failed_syncs_of(seed).live(seed));
    for (how, normal) in [(Sabotage::NoFence, 0), (Sabotage::FenceAfterNormal, 60)] {
        let life = || Life { misfortune: commits_fail, ..syncs_fail_at_times(normal).broken(how) };
        proof.canary(how, 400, |seed| life().live(seed));
    }
    proof.finish();
}

fn checkpoints_fail(rng: &mut Rng) -> Vec<Fault> {
    let fault = |rng: &mut Rng| {
        let spared = rng.u32(0..10);
        match rng.u8(0..6) {
            0..3 => sync_fails(Of::Database, By::Checkpointer, spared),
            3 => sync_fails(Of::Database, By::Writer, spared / 2),
            4 => sync_fails(Of::Wal, By::Checkpointer, spared),
            _ => {
                let code = [ffi::SQLITE_IOERR_WRITE, ffi::SQLITE_FULL][rng.usize(0..2)];
                Fault::new(Op::Write, Of::Database, code).after(rng.u32(0..200)).once()
            }
        }
    };
    (0..rng.u32(1..4)).map(|_| fault(rng)).collect()
}

fn checkpoints_fail_at_times(seed: u64) -> Life {
    let normal = if seed.is_multiple_of(3) { 30 } else { 0 };
    Life {
        workload: Workload { normal, commands: 40, ..Workload::default() },
        misfortune: checkpoints_fail,
        neighbour: seed.is_multiple_of(5),
        changes_per_look: 8,
        ..Life::default()
    }
}

#[test]
fn checkpoint_failures() {
    let mut proof = Proof::new("checkpoint_failures", 10_000, 50_000);
    proof.run(|seed| checkpoints_fail_at_times(seed).live(seed));
    let how = Sabotage::RetryCheckpoints;
    proof.canary(how, 400, |seed| checkpoints_fail_at_times(seed).broken(how).live(seed));
    proof.finish();
}

/// Runs one seed of a test of this file again.
pub(crate) fn replay(name: &str, seed: u64) -> Option<Tally> {
    let life = match name {
        "power_loss" => nothing_fails(seed),
        "failed_syncs" => failed_syncs_of(seed),
        "checkpoint_failures" => checkpoints_fail_at_times(seed),
        _ => return None,
    };
    Some(life.live(seed))
}
