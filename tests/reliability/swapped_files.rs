//! No acks into the void, at any moment: the files are deleted, renamed or replaced while clients, an import and
//! readers are at work, from outside or from within a transaction, or while other connections are opened by name; or
//! another program deletes the WAL, since this process has lost its locks.
//!
//! A case is a swap. What is demanded:
//! - Whatever was acknowledged is in the files that the service has opened, which hard links keep here.
//! - Nothing that was sent after a swap is acknowledged, and no group whose COMMIT began after it.
//! - The files that are there afterwards are not touched, not even by the close.
//! - A read sees what was acknowledged, or fails.
//!
//! A program that deletes the WAL copies it before, and a commit can fall in between, and be acknowledged before the
//! name is gone. Only what was on its way while that program closed the files may be missing afterwards.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use solewriter::{Builder, Config, Database, Drain, Sabotage};
use tempfile::TempDir;

use crate::common::foreign::{self, Foreign};
use crate::common::proof::{Proof, Tally, Wrong};
use crate::common::{HANG, beside, config_with, plain};
use crate::traffic::{Load, Pulse, SCHEMA, Told, Traffic, sorted};

const ENTRY: &str = "swapped_files::a_process_of_its_own";

#[test]
fn a_process_of_its_own() {
    foreign::serve();
}

#[test]
fn whatever_is_swapped_and_whenever_nothing_is_acknowledged_into_the_void() {
    let mut proof = Proof::new("swapped_files", 400, 20_000);
    proof.run(|seed| live(seed, None));
    let sabotage = Sabotage::NoFileCheck;
    proof.canary(sabotage, 50, |seed| live(seed, Some(sabotage)));
    proof.finish();
}

fn live(seed: u64, sabotage: Option<Sabotage>) -> Tally {
    let mut rng = Rng::with_seed(seed);
    match rng.u8(0..8) {
        0 => lose_the_locks(seed, &mut rng, sabotage),
        1 => swap_and_put_back(seed, &mut rng, sabotage),
        _ => swap(seed, &mut rng, sabotage),
    }
}

const FILES: [&str; 3] = ["", "-wal", "-shm"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Deleted,
    Renamed,
    Replaced,
}

/// What becomes of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Swap {
    One(&'static str, Change),
    /// In this order.
    All([&'static str; 3], Change),
    /// As one does who puts a backup back and knows that the others belong to the old file.
    Backup,
    /// The directory is renamed.
    Directory,
}

/// When it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// While everything goes on.
    Outside,
    /// Within a command, after it has written.
    InACommand,
    /// While nobody does anything.
    Idle,
}

impl Swap {
    fn random(rng: &mut Rng) -> Self {
        let change = [Change::Deleted, Change::Renamed, Change::Replaced][rng.usize(0..3)];
        match rng.u8(0..8) {
            0 => Self::Backup,
            1 => Self::Directory,
            2 | 3 => {
                let mut files = FILES;
                rng.shuffle(&mut files);
                Self::All(files, change)
            }
            _ => Self::One(FILES[rng.usize(0..3)], change),
        }
    }

    /// Calls `begun` once the first file is another. Opens and closes nothing: that would cost the process its locks.
    fn make(self, place: &Place, begun: impl FnOnce()) {
        let mut begun = Some(begun);
        let mut change = |file: &str, change| {
            let path = beside(&place.path, file);
            match change {
                Change::Deleted => fs::remove_file(path),
                Change::Renamed => fs::rename(&path, beside(&path, ".away")),
                Change::Replaced => fs::rename(beside(&place.copy, file), path),
            }
            .unwrap();
            if let Some(begun) = begun.take() {
                begun();
            }
        };
        match self {
            Self::One(file, how) => change(file, how),
            Self::All(files, how) => files.into_iter().for_each(|file| change(file, how)),
            Self::Backup => {
                change("-wal", Change::Deleted);
                change("-shm", Change::Deleted);
                change("", Change::Replaced);
            }
            Self::Directory => {
                let directory = place.path.parent().unwrap();
                fs::rename(directory, beside(directory, ".away")).unwrap();
                if let Some(begun) = begun.take() {
                    begun();
                }
            }
        }
    }

    /// Whether somebody else can use what is there now.
    fn leaves_a_place(self) -> bool {
        match self {
            Self::One(..) | Self::Directory => false,
            Self::All(..) | Self::Backup => true,
        }
    }
}

/// A database, other links to its files, and a copy that is put in their place.
struct Place {
    _dir: TempDir,
    path: PathBuf,
    kept: PathBuf,
    copy: PathBuf,
}

impl Place {
    /// Opens a service there, which has written.
    fn open(rng: &mut Rng, sabotage: Option<Sabotage>, set: impl FnOnce(&mut Config)) -> (Self, Database) {
        let dir = crate::common::in_memory_dir();
        let [home, kept, copy] = ["home", "kept", "copy"].map(|name| dir.path().join(name));
        for directory in [&home, &kept, &copy] {
            fs::create_dir(directory).unwrap();
        }
        let path = home.join("test.db");
        plain(&path).execute_batch(SCHEMA).unwrap();
        let builder = Database::builder(&path).config(config_with(|config| {
            config.checkpoint_pages = rng.u32(5..200);
            config.wal_target_bytes = 1 << 20;
            config.reader_age_max = Duration::from_millis(rng.u64(1..20));
            (config.readers, config.readers_overflow) = (1, 3);
            set(config);
        }));
        let db = sabotage.into_iter().fold(builder, Builder::sabotage).open_blocking().unwrap();
        db.blocking().execute("CREATE TABLE theirs (x)", ()).wait().unwrap();
        for file in ["", "-wal"] {
            fs::hard_link(beside(&path, file), kept.join(format!("test.db{file}"))).unwrap();
        }
        copy_files(&path, &copy);
        let [kept, copy] = [kept, copy].map(|directory| directory.join("test.db"));
        (Self { _dir: dir, path, kept, copy }, db)
    }
}

/// By another process, which has no locks to lose here. What is missing stays missing.
fn copy_files(path: &Path, directory: &Path) {
    let copied = Command::new("cp").args(FILES.map(|file| beside(path, file))).arg(directory).output();
    copied.expect("cp can be run");
}

/// What is there under the names of the files, and in them. Only where nobody has them open here.
fn contents(path: &Path) -> [Option<Vec<u8>>; 3] {
    FILES.map(|file| fs::read(beside(path, file)).ok())
}

fn load(rng: &mut Rng, leaks: bool) -> Load {
    let (clients, import) = (rng.u64(1..9), rng.bool());
    Load { clients, blob_bytes_max: 2_000, some_normal: rng.bool(), import, leaks }
}

/// Lets the traffic go on for a while.
fn go_on(db: &Database, traffic: &Traffic, rng: &mut Rng, tally: &mut Tally) {
    let acked = traffic.pulse.acked() + rng.u64(0..80);
    let goes_on = traffic.wait_until(|pulse| pulse.acked() >= acked);
    tally.check(goes_on, Wrong::Broken, || format!("nothing goes on: {:?}", db.health()));
    thread::sleep(Duration::from_micros(rng.u64(0..300)));
}

fn swap(seed: u64, rng: &mut Rng, sabotage: Option<Sabotage>) -> Tally {
    let mut tally = Tally::of_one_case();
    let swap = Swap::random(rng);
    // A checkpoint that is on its way goes on, into a database file that has kept its name, and nobody can tell from
    // outside when it is done.
    let keeps_database = matches!(swap, Swap::One("-wal" | "-shm", _));
    let is_copied = keeps_database && rng.bool();
    let (place, db) = Place::open(rng, sabotage, |config| {
        if keeps_database && !is_copied {
            config.checkpoint_pages = 1_000_000;
        }
    });
    let place = Arc::new(place);
    let moment = [Moment::Outside, Moment::InACommand, Moment::Idle][rng.usize(0..3)];
    let leaks = rng.bool();
    let traffic = Traffic::start(&db, seed, load(rng, leaks));
    go_on(&db, &traffic, rng, &mut tally);
    let pulse = traffic.pulse.clone();
    let (told, bound) = match moment {
        Moment::Outside => {
            let mut bound = 0;
            // One group may be between its COMMIT and its look at the files.
            swap.make(&place, || bound = mark(&pulse, &db) + 1);
            (end_once_stopped(traffic, sabotage, &mut tally), bound)
        }
        Moment::InACommand => {
            let (swaps, handle) = (place.clone(), db.clone());
            let (found, bound) = std::sync::mpsc::channel();
            let blocking = db.blocking();
            let mole = blocking.write("mole", move |tx| {
                tx.execute("INSERT INTO theirs VALUES (1)", ())?;
                swap.make(&swaps, || found.send(mark(&pulse, &handle)).unwrap());
                tx.execute("INSERT INTO theirs VALUES (2)", ())
            });
            let answer = mole.wait();
            tally.check(answer.is_err(), Wrong::Lost, || format!("{swap:?}: the mole was acknowledged"));
            (end_once_stopped(traffic, sabotage, &mut tally), bound.recv().unwrap())
        }
        Moment::Idle => {
            let told = traffic.end();
            let mut bound = 0;
            swap.make(&place, || bound = db.stats().groups_committed);
            (told, bound)
        }
    };
    judge_void(&told, bound, &mut tally, || format!("{swap:?} {moment:?}"));
    // Or the close is the first to see.
    for _ in 0..rng.u8(0..3) {
        let blocking = db.blocking();
        let late = blocking.execute("INSERT INTO theirs VALUES (3)", ()).wait();
        tally.check(late.is_err(), Wrong::Lost, || format!("{swap:?} {moment:?}: acknowledged afterwards"));
    }
    close_and_compare(&place, &db, swap, is_copied, &mut tally);
    told.compare(&place.kept, &mut tally);
    told.check_reads(&mut tally);
    told.count(&mut tally);
    tally
}

/// The phase after a swap.
const LATE: u8 = 2;

/// From now on commands are late. Returns how many groups are committed, and found in their place.
fn mark(pulse: &Pulse, db: &Database) -> u64 {
    pulse.enter(LATE);
    db.stats().groups_committed
}

/// Waits until the service has noticed; a broken one never does.
fn end_once_stopped(traffic: Traffic, sabotage: Option<Sabotage>, tally: &mut Tally) -> Told {
    if sabotage.is_none() {
        let stops = traffic.wait_until(Pulse::is_stopped);
        tally.check(stops, Wrong::Broken, || "it never notices".into());
    } else {
        thread::sleep(Duration::from_millis(5));
    }
    traffic.end()
}

/// Nothing that was sent after the swap, and no group that began after it, may be acknowledged.
fn judge_void(told: &Told, bound: u64, tally: &mut Tally, what: impl Fn() -> String) {
    for acked in &told.acked {
        let is_in_time = acked.sent < LATE && acked.group <= bound;
        tally.check(is_in_time, Wrong::Lost, || {
            format!("{}: acknowledged into the void: {acked:?}, groups up to {bound}", what())
        });
    }
}

/// Closes the service, and looks whether the files of others are as they were; not into a database file that may be
/// in the midst of a checkpoint.
fn close_and_compare(place: &Place, db: &Database, swap: Swap, is_copied: bool, tally: &mut Tally) {
    if swap.leaves_a_place() {
        // Somebody else goes to work there, and stays.
        let others = plain(&place.path);
        let work = "CREATE TABLE others (x); INSERT INTO others VALUES (1), (2)";
        let works = others.execute_batch(work);
        tally.check(works.is_ok(), Wrong::Broken, || format!("{swap:?}: {works:?}"));
        close(db, tally, swap);
        let intact = others.query_row("PRAGMA integrity_check", (), |row| row.get::<_, String>(0));
        tally.check(intact.as_deref() == Ok("ok"), Wrong::Corrupt, || format!("{swap:?}: {intact:?}"));
        drop(others);
        let rows = sorted(&plain(&place.path), "SELECT x FROM others");
        tally.check(rows == [1, 2], Wrong::Lost, || format!("{swap:?}: of others there is {rows:?}"));
        return;
    }
    let before = crate::common::in_memory_dir();
    copy_files(&place.path, before.path());
    close(db, tally, swap);
    let (before, after) = (contents(&before.path().join("test.db")), contents(&place.path));
    for (file, (before, after)) in FILES.into_iter().zip(before.iter().zip(&after)) {
        // The -shm file holds the locks and marks of readers too.
        let is_in_flux = file == "-shm" || (is_copied && file.is_empty());
        let is_same = if is_in_flux { before.is_some() == after.is_some() } else { before == after };
        tally.check(is_same, Wrong::Broken, || format!("{swap:?}: the close has changed {file:?}"));
    }
}

fn close(db: &Database, tally: &mut Tally, swap: Swap) {
    let report = db.blocking().shutdown(Drain::within(HANG)).unwrap();
    tally.check(report.stopped, Wrong::Broken, || format!("{swap:?}: {report:?}"));
}

/// A file or the directory is renamed, and put back a moment later. Either the service has noticed and stopped, or it
/// goes on; no row may be lost in the meantime.
fn swap_and_put_back(seed: u64, rng: &mut Rng, sabotage: Option<Sabotage>) -> Tally {
    let mut tally = Tally::of_one_case();
    let (place, db) = Place::open(rng, sabotage, |_| ());
    let directory = place.path.parent().unwrap().to_owned();
    let leaks = rng.bool();
    let traffic = Traffic::start(&db, seed, load(rng, leaks));
    for _ in 0..rng.u8(1..5) {
        if traffic.pulse.is_stopped() {
            break;
        }
        traffic.wait_until({
            let acked = traffic.pulse.acked() + rng.u64(0..40);
            move |pulse| pulse.acked() >= acked
        });
        let file = match rng.u8(0..4) {
            0 => directory.clone(),
            _ => beside(&place.path, FILES[rng.usize(0..3)]),
        };
        fs::rename(&file, beside(&file, ".away")).unwrap();
        let groups = db.stats().groups_committed;
        let away_max = [2, 50, 1_500][rng.usize(0..3)];
        thread::sleep(Duration::from_micros(rng.u64(0..away_max)));
        let more = db.stats().groups_committed - groups;
        fs::rename(beside(&file, ".away"), &file).unwrap();
        // One may have been found in its place before.
        tally.check(more <= 1, Wrong::Lost, || format!("{more} groups were acknowledged without {file:?}"));
        tally.add("put_back", 1);
    }
    let told = traffic.end();
    let report = db.blocking().shutdown(Drain::within(HANG)).unwrap();
    if !report.stopped {
        told.compare(&place.path, &mut tally);
        tally.add("unnoticed", 1);
    }
    told.compare(&place.kept, &mut tally);
    told.check_reads(&mut tally);
    told.count(&mut tally);
    tally
}

/// The phase in which another program closes the files, and may delete the WAL.
const CLOSING: u8 = 1;

// This process                          Another
// opens and closes the files            opens the database, and inserts
// clients are at work
//                                       closes: if it finds no lock at that moment, it takes itself for the last user,
//                                       so it empties the WAL and deletes it
// stops
//                                       opens the database, and inserts
// closes
//                                       inserts, closes
fn lose_the_locks(seed: u64, rng: &mut Rng, sabotage: Option<Sabotage>) -> Tally {
    let mut tally = Tally::of_one_case();
    // A checkpoint of our own that is in progress writes to the database file from a WAL that is gone.
    let (place, db) = Place::open(rng, sabotage, |config| {
        (config.checkpoint_pages, config.wal_target_bytes) = (1_000_000, 1 << 28);
    });
    // While nothing goes on here: a lock that is lost in the midst of a transaction is more than this is about.
    for file in FILES {
        drop(fs::File::open(beside(&place.path, file)).unwrap());
    }
    let mut other = Foreign::start_as(ENTRY, &place.path);
    other.run("INSERT INTO theirs VALUES (10)");
    let load = Load { clients: rng.u64(1..4), ..load(rng, false) };
    let traffic = Traffic::start(&db, seed, load);
    go_on(&db, &traffic, rng, &mut tally);
    traffic.pulse.enter(CLOSING);
    other.close();
    let bound = mark(&traffic.pulse, &db) + 1;
    // A reader of ours may have made another meanwhile, before it had looked at the files again.
    let inode = |path: &Path| fs::metadata(beside(path, "-wal")).ok().map(|wal| wal.ino());
    let is_deleted = inode(&place.path) != inode(&place.kept);
    let mut told = if is_deleted {
        end_once_stopped(traffic, sabotage, &mut tally)
    } else {
        go_on(&db, &traffic, rng, &mut tally);
        traffic.end()
    };
    told.count(&mut tally);
    let mut theirs = vec![10];
    if is_deleted {
        judge_void(&told, bound, &mut tally, || "the WAL was deleted".into());
        let mut other = Foreign::start_as(ENTRY, &place.path);
        other.run("INSERT INTO theirs VALUES (11)");
        let report = db.blocking().shutdown(Drain::within(HANG)).unwrap();
        tally.check(report.stopped, Wrong::Broken, || format!("the WAL was deleted: {report:?}"));
        other.run("INSERT INTO theirs VALUES (12)");
        other.close();
        theirs.extend([11, 12]);
        let on_its_way = told.split_off(CLOSING);
        let rows = sorted(&plain(&place.path), "SELECT x FROM a");
        let missing = on_its_way.acked.iter().filter(|acked| rows.binary_search(&acked.x).is_err());
        tally.add("lost_on_the_way", missing.count() as u64);
        tally.add("wal_deleted", 1);
    } else {
        let report = db.blocking().shutdown(Drain::within(HANG)).unwrap();
        tally.check(!report.stopped, Wrong::Broken, || format!("nothing was deleted: {report:?}"));
    }
    told.compare(&place.path, &mut tally);
    told.check_reads(&mut tally);
    let found = sorted(&plain(&place.path), "SELECT x FROM theirs");
    tally.check(found == theirs, Wrong::Lost, || format!("{found:?} instead of {theirs:?}"));
    tally.add("locks_lost", 1);
    tally
}
