//! Honest Outcome where calls of the system fail: the real process runs under strace, which has the kernel's answer
//! replaced, so nothing of ours stands between SQLite and the failure.
//!
//! A case is a process in which at least one call was failed, a run is the life of a file. Calls on the database, its
//! WAL and its wal-index fail, once or from then on, and the process is killed later; whether it stops writing before
//! is its own affair, as long as what it has answered is true.
//!
//! Canary: a service that settles a failed sync without a fence.
#![cfg(target_os = "linux")]

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use fastrand::Rng;
use solewriter::Sabotage;

use crate::common::in_memory_dir;
use crate::common::proof::{self, Proof, Tally, Wrong};
use crate::process::child::Orders;
use crate::process::plan::{Peril, Run};
use crate::process::verify::Ledger;
use crate::process::{self, When, create, open};

const NAME: &str = "failing_calls";

/// Processes in the life of a file.
const LIVES: u32 = 6;

/// What may be failed, how, and how many of it a process makes in a moment.
const CALLS: [(&str, &str, u32); 10] = [
    ("fdatasync", "EIO", 40),
    ("fdatasync", "ENOSPC", 40),
    ("pwrite64", "EIO", 400),
    ("pwrite64", "ENOSPC", 400),
    ("ftruncate", "EIO", 4),
    ("fcntl", "EIO", 200),
    ("fcntl", "ENOLCK", 200),
    ("pread64", "EIO", 100),
    ("mmap", "ENOMEM", 6),
    ("openat", "EMFILE", 12),
];

#[test]
fn whatever_call_of_the_system_fails_every_answer_is_true() {
    if let Err(reason) = strace_works() {
        return proof::skip(NAME, reason);
    }
    let mut proof = Proof::new(NAME, 12, 300);
    proof.run(|seed| live(seed, None));
    let sabotage = Sabotage::NoFence;
    proof.canary(sabotage, 200, |seed| live(seed, Some(sabotage)).only(Wrong::Ghost));
    proof.finish();
}

fn strace_works() -> Result<(), String> {
    let injects =
        ["-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO", "true"];
    match Command::new("strace").args(injects).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default().into()),
        Err(error) => Err(format!("strace: {error}")),
    }
}

fn live(seed: u64, sabotage: Option<Sabotage>) -> Tally {
    let (mut rng, mut tally, mut ledger) = (Rng::with_seed(seed), Tally::default(), Ledger::default());
    let dir = in_memory_dir();
    let (path, trace) = (dir.path().join("test.db"), dir.path().join("trace"));
    create(&path, LIVES as usize);
    for number in 0..LIVES {
        let run = Run::new(seed, number, None).amid(Peril::FailingCalls);
        let (call, error, many) = match sabotage {
            Some(_) => CALLS[0],
            None => CALLS[rng.usize(0..CALLS.len())],
        };
        let nth = rng.u32(1..many);
        let again = ["", "+", "+7"][rng.usize(0..3)];
        let inject = format!("inject={call}:error={error}:when={nth}{again}");
        let orders = Orders { path: path.clone(), run, sabotage };
        let when = When::Said(rng.usize(0..1_500), Duration::from_micros(rng.u64(0..3_000)));
        // Where it can say nothing more, it is killed all the same.
        let patience = Duration::from_millis(rng.u64(500..2_500));
        let ended = process::run(
            &orders,
            &through_strace(&path, &trace, call, &inject),
            when,
            Some(patience),
            process::kill,
        );
        let (told, status) = (ended.told(), ended.status);
        let injected = std::fs::read_to_string(&trace).unwrap().matches("(INJECTED)").count() as u64;
        tally.cases += u64::from(injected > 0);
        tally.add("failed_calls", injected);
        tally.check(status.signal() == Some(9) || status.success(), Wrong::Broken, || {
            format!("{run:?} with {inject}: {status}")
        });
        told.count_in(&mut tally);
        tally.add("unopened", told.unopened.is_some().into());
        tally.add("ended", told.end.is_some().into());
        ledger.verify(&open(&path), &run, &told, &mut tally);
        if tally.wrongs() > 0 {
            eprintln!("with seed {seed}: {run:?} with {inject}");
            break;
        }
    }
    tally.add("unanswered_present", ledger.unanswered);
    tally
}

/// strace as a grandchild, so that the process is ours to kill.
fn through_strace(path: &Path, trace: &Path, call: &str, inject: &str) -> Vec<OsString> {
    let mut words: Vec<OsString> = ["strace", "-D", "-f", "-qq", "-o"].map(Into::into).into();
    words.push(trace.into());
    words.extend(["-e".into(), format!("trace={call}").into(), "-e".into(), inject.into()]);
    for suffix in ["", "-wal", "-shm"] {
        let mut file = OsString::from(path);
        file.push(suffix);
        words.extend(["-P".into(), file]);
    }
    words
}
