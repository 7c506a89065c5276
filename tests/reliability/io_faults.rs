//! T2: an I/O error at every call. A workload that is the same each time is run once to count the calls of the VFS,
//! whoever makes them; then again for each call, which fails: once, or from then on together with its like, or
//! together with all others. Whatever happens, every answer is true, and it is *unknown* only where the contract
//! says so.
//!
//! A run is given by its seed. In its short form the test takes every seventh call of two workloads; begun at the seeds
//! 3601, 7201, … (`SOLEWRITER_SEED`) it takes the calls between them, and then other workloads.

mod contract;
mod script;

use std::collections::{BTreeMap, HashSet};
use std::ffi::c_int;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use solewriter::{Database, Durability, OpenErrorReason, Sabotage};

use crate::common::disk::{Disk, Image};
use crate::common::faults::{CODES, Call, Faults, Hit, Lasts};
use crate::common::proof::{Proof, Tally, Wrong, is_long};
use crate::common::{HANG, Kind, config_with, in_memory_dir, soon};
use crate::ledger::{Answered, End, Ledger, PER_TASK, Told, examine};
use crate::workload::{Manner, Notes, Order, close, create_with, open};

use contract::Seen;
use script::{Answers, PAGE_BYTES, Rests, Script, read};

/// A run of the test takes every seventh call of a workload.
const STRIDE: usize = 7;

/// No workload makes more calls than this.
const CALLS_MAX: usize = 2_100;

const LASTS: [Lasts; 3] = [Lasts::Once, Lasts::ForItsKind, Lasts::ForAll];

/// Seeds for the calls of one stride through a workload, with each duration and each code.
const SEEDS_PER_STRIDE: usize = CALLS_MAX / STRIDE * LASTS.len() * CODES.len();

/// What fails in a run.
#[derive(Clone, Copy, Debug)]
struct Case {
    workload: u64,
    /// How many calls come before the one that fails.
    spared: usize,
    lasts: Lasts,
    code: fn(Call) -> c_int,
    is_second_code: bool,
}

impl Case {
    /// Two workloads by turns, stride after stride until all calls have failed; then the next two.
    fn of_seed(seed: u64) -> Self {
        let index = usize::try_from(seed.saturating_sub(1)).unwrap();
        let (stride, index) = (index / SEEDS_PER_STRIDE, index % SEEDS_PER_STRIDE);
        let (index, code) = (index / CODES.len(), index % CODES.len());
        let (index, lasts) = (index / LASTS.len(), index % LASTS.len());
        let workload = stride % 2 + stride / (2 * STRIDE) * 2;
        Self {
            workload: workload as u64,
            spared: index * STRIDE + stride / 2 % STRIDE,
            lasts: LASTS[lasts],
            code: CODES[code],
            is_second_code: code > 0,
        }
    }

    /// The call that should fail; `None` if there is none, or if it can't fail in that way.
    fn target(&self, counted: &Counted) -> Option<Call> {
        let call = *counted.calls.get(self.spared)?;
        (!self.is_second_code || (self.code)(call) != CODES[0](call)).then_some(call)
    }
}

/// How it goes if nothing fails.
struct Counted {
    script: Script,
    calls: Vec<Call>,
    /// How many there are at each rest.
    rests: Vec<usize>,
}

impl Counted {
    /// Runs a workload, unless that has been done.
    fn of(workload: u64) -> Arc<Self> {
        static COUNTED: Mutex<BTreeMap<u64, Arc<Counted>>> = Mutex::new(BTreeMap::new());
        let mut counted = COUNTED.lock().unwrap();
        counted.entry(workload).or_insert_with(|| Arc::new(Self::count(workload))).clone()
    }

    fn count(workload: u64) -> Self {
        let script = Script::new(workload);
        let (dir, faults, ledger) = (in_memory_dir(), Faults::register(), Ledger::default());
        let path = dir.path().join("test.db");
        create_with(&path, PAGE_BYTES);
        faults.record();
        let db = open(&path, &faults, script.config(Lasts::Once), None).unwrap();
        let mut rests = Rests::Counted(Vec::new());
        let recorded = || faults.recorded();
        let notes = Notes { ledger: &ledger, recorded: &recorded };
        let answers = block_on(script.run(&db, &faults, Lasts::Once, &mut rests, notes));
        close(db, &mut Tally::default());
        assert!(answers.commands.iter().all(|answered| answered.is_as_it_should()), "{answers:?}");
        let Rests::Counted(rests) = rests else { unreachable!("it counts") };
        let calls = faults.calls();
        assert!((300..=CALLS_MAX).contains(&calls.len()), "{} calls", calls.len());
        Self { script, calls, rests }
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(future)
}

/// Runs a workload once more, and something fails.
pub(crate) fn live(seed: u64, sabotage: Option<Sabotage>) -> Tally {
    let case = Case::of_seed(seed);
    let counted = Counted::of(case.workload);
    match case.target(&counted) {
        Some(target) => Life::new(case, &counted, seed).live(target, sabotage),
        None => Tally::default(),
    }
}

struct Life<'c> {
    case: Case,
    counted: &'c Counted,
    rng: Rng,
    faults: Faults,
    ledger: Ledger,
    tally: Tally,
}

impl<'c> Life<'c> {
    fn new(case: Case, counted: &'c Counted, seed: u64) -> Self {
        Self {
            case,
            counted,
            rng: Rng::with_seed(seed),
            faults: Faults::register(),
            ledger: Ledger::default(),
            tally: Tally::default(),
        }
    }

    fn live(mut self, target: Call, sabotage: Option<Sabotage>) -> Tally {
        let dir = in_memory_dir();
        let path = dir.path().join("test.db");
        create_with(&path, PAGE_BYTES);
        let before = Image::read(&path);
        self.faults.record();
        if self.rng.bool() {
            self.faults.tear_writes();
        }
        self.faults.fail_after(self.case.spared, self.case.lasts, self.case.code);
        let Some((db, open_failed)) = self.open(&path, sabotage) else { return self.tally };
        let mut answers = self.run(&db, sabotage);
        let (heals_before_the_close, mut reads) = (self.rng.bool(), None);
        if heals_before_the_close {
            self.faults.heal();
            if self.faults.is_hit() {
                answers.commands.push(self.recover(&db));
                reads = Some(block_on(soon(read(&db))).is_ok());
            }
        }
        let report = close(db, &mut self.tally);
        self.faults.heal();

        let Some(hit) = self.faults.hit() else {
            self.tally.add("missed", 1);
            return self.tally;
        };
        self.tally.cases = 1;
        self.tally.add("strayed", u64::from(!hit.call.is_like(target)));
        self.tally.add("stopped", u64::from(report.stopped));
        self.tally.add("open_failed", u64::from(open_failed));
        let calls = self.faults.calls();
        Seen {
            script: &self.counted.script,
            lasts: self.case.lasts,
            hit: hit.call,
            code: (self.case.code)(hit.call),
            calls: &calls,
            open_failed,
            answers: &answers,
            stopped: report.stopped,
            reads,
        }
        .check(&mut self.tally);
        self.look_at_files(&path, before, hit);
        self.tally
    }

    /// Opens the database; once more if that fails, and then it must not.
    fn open(&mut self, path: &Path, sabotage: Option<Sabotage>) -> Option<(Database, bool)> {
        let config = self.counted.script.config(self.case.lasts);
        let error = match open(path, &self.faults, config.clone(), sabotage) {
            Ok(db) => return Some((db, false)),
            Err(error) => error,
        };
        let is_typed = matches!(
            error.reason,
            OpenErrorReason::Sqlite(_) | OpenErrorReason::NotADatabase(_) | OpenErrorReason::Pragma { .. }
        );
        let is_due = is_typed && self.faults.failed() > 0;
        self.tally.check(is_due, Wrong::Broken, || format!("an open failed: {error:?}"));
        self.faults.heal();
        match open(path, &self.faults, config, sabotage) {
            Ok(db) => Some((db, true)),
            Err(error) => {
                self.tally.wrong(Wrong::Broken, || format!("it can't be opened any more: {error:?}"));
                None
            }
        }
    }

    fn run(&self, db: &Database, sabotage: Option<Sabotage>) -> Answers {
        let Counted { script, rests, .. } = self.counted;
        // A service that is broken makes other calls.
        let mut rests = if sabotage.is_some() { Rests::None } else { Rests::known(rests) };
        let recorded = || self.faults.recorded();
        let notes = Notes { ledger: &self.ledger, recorded: &recorded };
        block_on(script.run(db, &self.faults, self.case.lasts, &mut rests, notes))
    }

    /// Now that nothing fails any more: sends a command until it is committed, or writing has stopped for good.
    fn recover(&mut self, db: &Database) -> script::Answered {
        let (faults, ledger) = (&self.faults, &self.ledger);
        let recorded = || faults.recorded();
        let notes = Notes { ledger, recorded: &recorded };
        let limit = Instant::now() + HANG;
        block_on(async {
            for command in 2 * PER_TASK.. {
                let order = order(command);
                let answer = soon(order.submit(db, notes).await).await;
                let answered =
                    script::Answered { order, step: usize::MAX, should_succeed: Some(true), answer };
                if answered.answer.is_ok() || answered.is_stopped() || Instant::now() > limit {
                    return answered;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            unreachable!("there are enough numbers");
        })
    }

    /// Looks at what the end of the process, or of the machine, leaves: at some moments after the failure, and at the
    /// end; and goes on with some of it.
    fn look_at_files(&mut self, path: &Path, before: Image, hit: Hit) {
        let (record, answers) = (self.faults.take_record(), self.ledger.answers());
        let (rng, image_path) = (&mut self.rng, path.with_file_name("image.db"));
        let mut files = Tally::default();
        let soon_after = record.len().min(hit.recorded + 8);
        let kills = [rng.usize(hit.recorded..=soon_after), rng.usize(hit.recorded..=record.len())];
        let losses = [rng.usize(hit.recorded..=soon_after), rng.usize(hit.recorded..=record.len())];
        let (mut disk, mut killed) = (Disk::new(before.clone()), before);
        for done in 0..=record.len() {
            if let Some(recorded) = done.checked_sub(1).map(|last| &record[last]) {
                disk.apply(recorded, rng);
                killed.apply(recorded);
            }
            for _ in kills.iter().filter(|at| **at == done) {
                killed.write(&image_path);
                examine(&image_path, &answers, done, End::Kill, &mut files);
            }
            for _ in losses.iter().filter(|at| **at == done) {
                disk.power_loss(rng).write(&image_path);
                examine(&image_path, &answers, done, End::PowerLoss, &mut files);
            }
        }
        let left = Image::read(path);
        files.check(left == killed, Wrong::Broken, || "the files are not what was recorded".into());
        let there = go_on(&left, &image_path, &answers, record.len(), End::Kill, &mut files);
        let lost = disk.power_loss(rng);
        go_on(&lost, &image_path, &answers, record.len(), End::PowerLoss, &mut files);
        let unknown = answers.iter().filter(|answered| answered.told == Told::Unknown);
        let present = unknown.clone().filter(|answered| there.contains(&answered.command));
        files.add("unknown", unknown.count() as u64);
        files.add("unknown_present", present.count() as u64);
        let images = std::mem::take(&mut files.cases);
        files.add("images", images);
        self.tally.merge(files);
    }
}

/// A good command.
fn order(command: i64) -> Order {
    Order { command, kind: Kind::Rerunnable, manner: Manner::Good, durability: Durability::Full }
}

/// Opens the service again on what was left, where nothing fails any more: it recovers, can write, and what was there
/// is there. Returns that.
fn go_on(
    image: &Image,
    path: &Path,
    answers: &[Answered],
    recorded: usize,
    end: End,
    files: &mut Tally,
) -> HashSet<i64> {
    image.write(path);
    let there = examine(path, answers, recorded, end, files);
    image.write(path);
    let config = config_with(|config| config.readers = 1);
    let db = match Database::builder(path).config(config).open_blocking() {
        Ok(db) => db,
        Err(error) => {
            files.wrong(Wrong::Broken, || format!("{end:?}: it can't be opened again: {error:?}"));
            return there;
        }
    };
    let ledger = Ledger::default();
    let notes = Notes { ledger: &ledger, recorded: &|| recorded };
    let answer = block_on(async { soon(order(3 * PER_TASK).submit(&db, notes).await).await });
    files.check(answer.is_ok(), Wrong::Broken, || format!("{end:?}: it can't be written: {answer:?}"));
    close(db, &mut Tally::default());
    let answers: Vec<_> = answers.iter().copied().chain(ledger.answers()).collect();
    let later = examine(path, &answers, recorded, end, files);
    files.check(there.is_subset(&later), Wrong::Lost, || format!("{end:?}: it was there, and is not"));
    files
        .check(later.len() <= there.len() + 1, Wrong::Ghost, || format!("{end:?}: it was not there, and is"));
    there
}

/// How many runs so many seeds give.
fn planned(seeds: u64) -> u64 {
    let is_run = |seed: &u64| {
        let case = Case::of_seed(*seed);
        case.target(&Counted::of(case.workload)).is_some()
    };
    (1..=seeds).filter(is_run).count() as u64
}

#[test]
fn io_faults() {
    let stride = SEEDS_PER_STRIDE as u64;
    let strides = if is_long() { 2 * 2 * STRIDE as u64 } else { 2 };
    let planned = planned(strides * stride);
    let mut proof = Proof::new("io_faults", planned, planned);
    proof.run_at_most(8 * proof.wanted() + stride, |seed| live(seed, None));
    for (how, shows) in [(Sabotage::NoFence, Wrong::Ghost), (Sabotage::AckBeforeCommit, Wrong::Lost)] {
        proof.canary(how, stride, |seed| live(seed, Some(how)).only(shows));
    }
    proof.finish();
}
