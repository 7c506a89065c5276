//! Honest Outcome where memory runs out: SQLite's own, at a limit that is just above what it uses, and that of the
//! process, which the system kills then.
//!
//! A case is a process, a run is the life of a file. Canary: a service that acknowledges before COMMIT.
#![cfg(target_os = "linux")]

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fastrand::Rng;
use solewriter::Sabotage;

use crate::common::in_memory_dir;
use crate::common::proof::{self, Proof, Tally, Wrong};
use crate::process::child::Orders;
use crate::process::plan::{Peril, Run};
use crate::process::verify::Ledger;
use crate::process::{self, When, create, open};

/// Processes in the life of a file.
const LIVES: u32 = 6;

#[test]
fn where_sqlite_has_no_memory_every_answer_is_true() {
    let mut proof = Proof::new("heap_limits", 48, 1_002);
    proof.run(|seed| live_with_little_heap(seed, None));
    let is_met = proof.tally.counted("without_memory") > 0 || proof.is_replay();
    proof.tally.check(is_met, Wrong::Broken, || "no command was without memory".into());
    let sabotage = Sabotage::AckBeforeCommit;
    proof.canary(sabotage, 20, |seed| live_with_little_heap(seed, Some(sabotage)).only(Wrong::Lost));
    proof.finish();
}

fn live_with_little_heap(seed: u64, sabotage: Option<Sabotage>) -> Tally {
    let (mut rng, mut tally, mut ledger) = (Rng::with_seed(seed), Tally::default(), Ledger::default());
    let dir = in_memory_dir();
    let path = dir.path().join("test.db");
    create(&path, LIVES as usize);
    for number in 0..LIVES {
        let run = Run::new(seed, number, None).amid(Peril::HeapLimit);
        let orders = Orders { path: path.clone(), run, sabotage };
        let when = When::Said(rng.usize(0..3_000), Duration::from_micros(rng.u64(0..3_000)));
        // It may have stopped writing, with answers that say so.
        let ended = process::run(&orders, &[], when, Some(Duration::from_secs(5)), process::kill);
        let (told, status) = (ended.told(), ended.status);
        tally.cases += 1;
        tally.check(status.signal() == Some(9) || status.success(), Wrong::Broken, || {
            format!("{run:?}: {status}")
        });
        told.count_in(&mut tally);
        tally.add("without_memory", told.without_memory);
        tally.add("stopped", told.end.as_ref().is_some_and(|end| end.contains("stopped: true")).into());
        ledger.verify(&open(&path), &run, &told, &mut tally);
        if tally.wrongs() > 0 {
            break;
        }
    }
    tally.add("unanswered_present", ledger.unanswered);
    tally
}

#[test]
fn what_was_answered_holds_after_the_system_has_killed_for_memory() {
    const NAME: &str = "out_of_memory";
    if let Err(reason) = Group::make("probe") {
        return proof::skip(NAME, reason);
    }
    let mut proof = Proof::new(NAME, 12, 120);
    proof.run_in_turn(|seed| live_until_memory_is_full(seed, None));
    let sabotage = Sabotage::AckBeforeCommit;
    proof.canary(sabotage, 20, |seed| live_until_memory_is_full(seed, Some(sabotage)).only(Wrong::Lost));
    proof.finish();
}

fn live_until_memory_is_full(seed: u64, sabotage: Option<Sabotage>) -> Tally {
    let (mut tally, mut ledger) = (Tally::default(), Ledger::default());
    // On a disk: files in memory would count too.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    create(&path, LIVES as usize);
    for number in 0..LIVES {
        let run = Run::new(seed, number, None).amid(Peril::OutOfMemory);
        let orders = Orders { path: path.clone(), run, sabotage };
        let group = Group::make(&format!("{seed}-{number}")).unwrap();
        let enter = [
            "sh".into(),
            "-c".into(),
            "echo $$ >\"$0\" && exec \"$@\"".into(),
            group.processes().into_os_string(),
        ];
        let ended = process::run(&orders, &enter, When::Never, None, process::kill);
        let (told, status) = (ended.told(), ended.status);
        tally.cases += 1;
        tally.check(status.signal() == Some(9), Wrong::Broken, || format!("{run:?}: {status}"));
        told.count_in(&mut tally);
        ledger.verify(&open(&path), &run, &told, &mut tally);
        if tally.wrongs() > 0 {
            break;
        }
    }
    tally.add("unanswered_present", ledger.unanswered);
    tally
}

/// A control group with little memory, which goes away with this.
struct Group {
    dir: PathBuf,
}

impl Group {
    const BYTES: &str = "67108864";

    /// The reason if there can be none.
    fn make(name: &str) -> Result<Self, String> {
        let root = Path::new("/sys/fs/cgroup");
        let is_unified = root.join("cgroup.controllers").exists();
        let (parent, limit) = if is_unified {
            (root.into(), "memory.max")
        } else {
            (root.join("memory"), "memory.limit_in_bytes")
        };
        let group = Self { dir: parent.join(format!("solewriter-{}-{name}", std::process::id())) };
        std::fs::create_dir(&group.dir).map_err(|error| format!("no control group can be made: {error}"))?;
        std::fs::write(group.dir.join(limit), Self::BYTES)
            .map_err(|error| format!("memory can't be limited: {error}"))?;
        Ok(group)
    }

    fn processes(&self) -> PathBuf {
        self.dir.join("cgroup.procs")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // It has no processes any more.
        drop(std::fs::remove_dir(&self.dir));
    }
}
