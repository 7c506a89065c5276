//! Honest Outcome and Self-Healing, where room runs out again and again: on a real file system that is full, at
//! `max_page_count`, at the limit of the size of files. Whatever was answered is true, and writes come back.
//!
//! A case is a fill. What each answer is called is in `tests/disk_full.rs`.
#![allow(unsafe_code, reason = "limits are set by calls of the system")]

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use solewriter::{Builder, Database, Drain, Sabotage};

use crate::common::proof::{self, Proof, Tally, Wrong};
use crate::common::{HANG, config_with, plain};
use crate::traffic::{COUNTS, Load, Pulse, SCHEMA, Traffic};

const NAME: &str = "disk_full";

#[test]
fn whatever_room_runs_out_every_answer_is_true_and_writes_come_back() {
    if let Err(reason) = Disk::mount(1 << 20) {
        return proof::skip(NAME, format!("no tmpfs can be mounted: {reason}"));
    }
    let mut proof = Proof::new(NAME, 80, 8_000);
    proof.run(live);
    let sabotage = Sabotage::AckBeforeCommit;
    proof.canary(sabotage, 20, |seed| live_on_a_disk(seed, Some(sabotage)));
    proof.finish();
}

fn live(seed: u64) -> Tally {
    match seed % 6 {
        4 => live_below_a_page_limit(seed),
        5 => live_below_a_file_limit(seed),
        _ => live_on_a_disk(seed, None),
    }
}

fn load(rng: &mut Rng) -> Load {
    Load {
        clients: rng.u64(1..9),
        blob_bytes_max: [1_000, 6_000, 30_000][rng.usize(0..3)],
        some_normal: rng.bool(),
        import: rng.u8(0..4) > 0,
        leaks: false,
    }
}

/// Settings under which checkpoints, spilled pages and probes all meet the limit.
fn builder(rng: &mut Rng, path: &Path) -> Builder {
    Database::builder(path).config(config_with(|config| {
        config.cache_bytes = [40_960, 1 << 20][rng.usize(0..2)];
        config.breaker_pause = Duration::from_millis(rng.u64(1..6));
        config.checkpoint_pages = rng.u32(10..300);
        config.wal_target_bytes = rng.u64(1..9) << 17;
        (config.readers, config.readers_overflow) = (2, 2);
    }))
}

fn open(rng: &mut Rng, path: &Path, sabotage: Option<Sabotage>) -> Database {
    plain(path).execute_batch(SCHEMA).unwrap();
    let builder = builder(rng, path);
    let builder = sabotage.into_iter().fold(builder, Builder::sabotage);
    builder.open_blocking().unwrap()
}

/// A file system of a few megabytes, which goes away with this.
struct Disk {
    dir: tempfile::TempDir,
    bytes: u64,
}

impl Disk {
    /// The reason if there can be none.
    fn mount(bytes: u64) -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        mount(&dir, &format!("size={bytes}"))?;
        Ok(Self { dir, bytes })
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("test.db")
    }

    fn ballast(&self) -> PathBuf {
        self.dir.path().join("ballast")
    }

    /// Takes all the space that is left.
    fn fill(&self) {
        let full = std::fs::write(self.ballast(), vec![1; 32 << 20]).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::StorageFull);
    }

    /// What an operator does: deletes what is not needed, and grants more.
    fn grow(&mut self, bytes: u64) {
        if let Err(error) = std::fs::remove_file(self.ballast()) {
            assert_eq!(error.kind(), ErrorKind::NotFound);
        }
        self.bytes += bytes;
        mount(&self.dir, &format!("remount,size={}", self.bytes)).unwrap();
    }
}

fn mount(dir: &tempfile::TempDir, options: &str) -> Result<(), String> {
    let mut mount = Command::new("mount");
    match mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(dir.path()).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default().into()),
        Err(error) => Err(error.to_string()),
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.dir.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || thread::panicking());
    }
}

fn live_on_a_disk(seed: u64, sabotage: Option<Sabotage>) -> Tally {
    let (mut rng, mut tally) = (Rng::with_seed(seed), Tally::default());
    let mut disk = Disk::mount(rng.u64(2..7) << 19).unwrap();
    let db = open(&mut rng, &disk.path(), sabotage);
    let load = load(&mut rng);
    let traffic = Traffic::start(&db, seed, load);
    for fill in 1..=rng.u64(1..5) {
        let (acks, failures) = (rng.u64(0..60), rng.u64(1..60));
        let (acked, failed) = (traffic.pulse.acked(), traffic.pulse.failed());
        let meets = |pulse: &Pulse| pulse.acked() >= acked + acks || pulse.failed() > failed;
        tally.check(traffic.wait_until(meets), Wrong::Broken, || format!("fill {fill}: nothing goes on"));
        // Else by its own doing, where that does not take for ever.
        if rng.bool() || load.blob_bytes_max < 5_000 {
            disk.fill();
        }
        let is_full = traffic.wait_until(|pulse| pulse.failed() >= failed + failures);
        tally.check(is_full, Wrong::Broken, || format!("fill {fill}: it never fills up"));
        thread::sleep(Duration::from_micros(rng.u64(0..8_000)));
        // Asked before, since it can be full again in no time.
        let acked = traffic.pulse.acked();
        disk.grow(rng.u64(2..7) << 19);
        let resumes = traffic.wait_until(|pulse| pulse.acked() > acked);
        tally.check(resumes, Wrong::Broken, || {
            format!("fill {fill}: nothing is written again: {:?}", db.health())
        });
        tally.cases += 1;
        if tally.wrongs() > 0 {
            break;
        }
    }
    // It may be full again by its own doing, and there is more to come: how the import ended, the last checkpoint,
    // the connection that looks.
    disk.grow(8 << 20);
    let told = traffic.end();
    // A file system without space is settled, never in doubt.
    tally.check(told.unknown.is_empty(), Wrong::Broken, || format!("unknown: {:?}", told.unknown));
    let report = db.blocking().shutdown(Drain::within(HANG)).unwrap();
    let is_orderly = (report.stopped, report.wal_pages_left) == (false, 0);
    tally.check(is_orderly, Wrong::Broken, || format!("{report:?}"));
    told.compare(&disk.path(), &mut tally);
    told.check_reads(&mut tally);
    told.count(&mut tally);
    tally.add("disks", 1);
    tally
}

/// Where the database may have so many pages: what has no room in it fails, and nobody else notices.
fn live_below_a_page_limit(seed: u64) -> Tally {
    let (mut rng, mut tally) = (Rng::with_seed(seed), Tally::default());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    plain(&path).execute_batch(SCHEMA).unwrap();
    let pages = rng.u32(100..600);
    let builder = builder(&mut rng, &path).on_connect(move |connection, _| {
        connection.query_row(&format!("PRAGMA max_page_count = {pages}"), (), |_| Ok(()))
    });
    let db = builder.open_blocking().unwrap();
    let traffic = Traffic::start(&db, seed, load(&mut rng));
    for fill in 1..=rng.u64(1..5) {
        let failures = rng.u64(1..60);
        let failed = traffic.pulse.failed();
        let is_full = traffic.wait_until(|pulse| pulse.failed() >= failed + failures);
        tally.check(is_full, Wrong::Broken, || format!("fill {fill}: it never fills up"));
        let acked = traffic.pulse.acked();
        // To write less takes no room.
        let blocking = db.blocking();
        let freed = blocking.write_rerunnable("free", |tx| {
            tx.execute_batch(
                "UPDATE a SET space = NULL; UPDATE b SET space = NULL; UPDATE entries SET space = NULL",
            )
        });
        let freed = freed.wait();
        tally.check(freed.is_ok(), Wrong::Broken, || format!("fill {fill}: {freed:?}"));
        let resumes = traffic.wait_until(|pulse| pulse.acked() > acked);
        tally.check(resumes, Wrong::Broken, || format!("fill {fill}: nothing is written again"));
        tally.cases += 1;
    }
    let told = traffic.end();
    tally.check(told.unknown.is_empty(), Wrong::Broken, || format!("unknown: {:?}", told.unknown));
    let report = db.blocking().shutdown(Drain::within(HANG)).unwrap();
    tally.check(!report.stopped, Wrong::Broken, || format!("{report:?}"));
    told.compare(&path, &mut tally);
    told.check_reads(&mut tally);
    told.count(&mut tally);
    tally.add("page_limits", 1);
    tally
}

const LIMITED: &str = "SOLEWRITER_TEST_FILE_SIZE_LIMIT";

/// The limit is of a whole process: a run of this binary of its own, which ignores the signal that would end it.
fn live_below_a_file_limit(seed: u64) -> Tally {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "disk_full::a_process_below_a_limit", "--nocapture"]);
    let output = child.env(LIMITED, seed.to_string()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let numbers = said.lines().find_map(|line| line.split("limited:").nth(1)).and_then(|line| {
        line.split_whitespace().map(|number| number.parse().ok()).collect::<Option<Vec<u64>>>()
    });
    let mut tally = Tally::of_one_case();
    let Some([checks, counts @ ..]) = numbers.as_deref() else {
        tally.wrong(Wrong::Broken, || format!("{said}\n{}", String::from_utf8_lossy(&output.stderr)));
        return tally;
    };
    tally.checks = *checks;
    for (what, count) in COUNTS.into_iter().zip(counts) {
        tally.add(what, *count);
    }
    tally.add("file_limits", 1);
    tally
}

/// To a file that must not grow the system says EFBIG, which is to SQLite a disk that fails: writing may stop, with
/// answers that say so, and the next opening finds every row.
#[test]
fn a_process_below_a_limit() {
    let Ok(seed) = std::env::var(LIMITED) else { return };
    let seed = seed.parse().unwrap();
    let (mut rng, mut tally) = (Rng::with_seed(seed), Tally::default());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    let db = open(&mut rng, &path, None);
    // SAFETY: no handler runs for an ignored signal, nor for the one that ends a process that hangs.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        libc::alarm(4 * HANG.as_secs() as u32);
    }
    limit_file_size(rng.u64(3..40) << 15);
    let traffic = Traffic::start(&db, seed, load(&mut rng));
    let failures = rng.u64(1..60);
    let is_full = traffic.wait_until(|pulse| pulse.failed() >= failures);
    let is_stopped = || traffic.pulse.is_stopped();
    tally.check(is_full || is_stopped(), Wrong::Broken, || "the limit is not met".into());
    limit_file_size(libc::RLIM_INFINITY);
    let acked = traffic.pulse.acked();
    let resumes = traffic.wait_until(|pulse| pulse.acked() > acked);
    tally.check(resumes || is_stopped(), Wrong::Broken, || "nothing is written again".into());
    let told = traffic.end();
    db.blocking().shutdown(Drain::within(HANG)).unwrap();
    told.compare(&path, &mut tally);
    told.check_reads(&mut tally);
    assert_eq!(tally.wrongs(), 0, "{tally:#?}");
    told.count(&mut tally);
    let numbers = COUNTS.map(|what| tally.counted(what).to_string());
    println!("limited: {} {}", tally.checks, numbers.join(" "));
}

fn limit_file_size(bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: a plain call of the system, with a value on the stack.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) }, 0);
}
