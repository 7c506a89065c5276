//! Durable Acks on real file systems whose power is cut: ext4 and XFS in a file on a loop device, shut down as a whole
//! without what is in their logs, unmounted, and mounted again.
//!
//! The shutdown is a call of these file systems, made for such tests: from then on nothing reaches the disk, and all
//! that was not written by then is gone. A case is a cut, a run is the life of a file system. The process lives on for a
//! moment, as it would not if the power were cut, and what it answers then does not count: a sync that is under way on
//! ext4 while it is shut down can return as if it were done. Only root can do this.
//!
//! Canary: a service that does not sync.
#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "the shutdown is a call of the system")]

use std::ffi::OsStr;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use fastrand::Rng;
use rustix::ioctl::{Setter, ioctl, opcode};
use solewriter::Sabotage;

use crate::common::proof::{self, Proof, Tally, Wrong};
use crate::process::child::Orders;
use crate::process::plan::{Peril, Run};
use crate::process::verify::Ledger;
use crate::process::{self, When, create, open};

/// Cuts in the life of a file system.
const CUTS: u32 = 8;

#[test]
fn what_was_answered_outlives_a_power_cut_on_ext4() {
    prove("power_cuts_ext4", FileSystem { mkfs: "mkfs.ext4", mebibytes: 64 });
}

#[test]
fn what_was_answered_outlives_a_power_cut_on_xfs() {
    // Its tools refuse a smaller one.
    prove("power_cuts_xfs", FileSystem { mkfs: "mkfs.xfs", mebibytes: 300 });
}

fn prove(name: &'static str, file_system: FileSystem) {
    if let Err(reason) = Disk::make(file_system) {
        return proof::skip(name, reason);
    }
    let mut proof = Proof::new(name, 16, 152);
    proof.run_in_turn(|seed| live(seed, file_system, None));
    let sabotage = Sabotage::NormalForFull;
    proof.canary(sabotage, 10, |seed| live(seed, file_system, Some(sabotage)).only(Wrong::Lost));
    proof.finish();
}

fn live(seed: u64, file_system: FileSystem, sabotage: Option<Sabotage>) -> Tally {
    let (mut rng, mut tally, mut ledger) = (Rng::with_seed(seed), Tally::default(), Ledger::default());
    let disk = Disk::make(file_system).unwrap();
    let path = disk.path();
    create(&path, CUTS as usize);
    File::open(&path).unwrap().sync_all().unwrap();
    File::open(disk.mount_point()).unwrap().sync_all().unwrap();
    for number in 0..CUTS {
        let run = Run::new(seed, number, None).amid(Peril::PowerCut);
        let orders = Orders { path: path.clone(), run, sabotage };
        let when = When::random(&mut rng);
        let respite = Duration::from_micros(rng.u64(0..20_000));
        let mut cut_at = Duration::MAX;
        let strike = |child: &mut Child| {
            cut_at = process::now();
            disk.cut();
            std::thread::sleep(respite);
            // It may have ended, as nothing can be written.
            child.kill().unwrap();
        };
        let ended = process::run(&orders, &[], when, None, strike);
        let (told, status) = (ended.told_until(cut_at), ended.status);
        tally.cases += 1;
        tally.check(status.code().is_none_or(|code| code == 0), Wrong::Broken, || {
            format!("{run:?}: {status}")
        });
        told.count_in(&mut tally);
        disk.remount();
        ledger.verify(&open(&path), &run, &told, &mut tally);
        if tally.wrongs() > 0 {
            break;
        }
    }
    tally.add("unanswered_present", ledger.unanswered);
    tally
}

#[derive(Clone, Copy)]
struct FileSystem {
    mkfs: &'static str,
    mebibytes: u64,
}

/// A file system in a file, which goes away with this.
struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    /// The reason if there can be none.
    fn make(FileSystem { mkfs, mebibytes }: FileSystem) -> Result<Self, String> {
        let disk = Self { dir: tempfile::tempdir().unwrap() };
        File::create(disk.image()).unwrap().set_len(mebibytes << 20).unwrap();
        std::fs::create_dir(disk.mount_point()).unwrap();
        system(mkfs, [OsStr::new("-q"), disk.image().as_os_str()])?;
        disk.mount()?;
        Ok(disk)
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn mount_point(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }

    fn path(&self) -> PathBuf {
        self.mount_point().join("test.db")
    }

    fn mount(&self) -> Result<(), String> {
        system(
            "mount",
            ["-o".as_ref(), "loop".as_ref(), self.image().as_os_str(), self.mount_point().as_os_str()],
        )
    }

    fn unmount(&self) -> Result<(), String> {
        system("umount", [self.mount_point()])
    }

    /// Shuts the file system down, without writing what is in its log.
    fn cut(&self) {
        const NO_LOG_FLUSH: u32 = 2;
        let root = File::open(self.mount_point()).unwrap();
        // SAFETY: this is what the call is in ext4 and XFS, which takes its flags from a number of this size.
        let cut =
            unsafe { ioctl(&root, Setter::<{ opcode::read::<u32>(b'X', 125) }, u32>::new(NO_LOG_FLUSH)) };
        cut.unwrap();
    }

    /// What a reboot does: what was in memory is gone, and the log is replayed.
    fn remount(&self) {
        self.unmount().unwrap();
        self.mount().unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // It is not mounted if it could not be.
        drop(self.unmount());
    }
}

fn system(program: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<(), String> {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("{program}: {}", said.lines().next().unwrap_or_default()))
        }
        Err(error) => Err(format!("{program}: {error}")),
    }
}
