//! Long readers: whoever pins the WAL, it grows to its limit and no further; then writes wait or are refused, and once
//! the reader has gone they go on and the WAL is begun anew.
//!
//! Small writes all the time. Long reads, snapshots and another process pin the WAL in turns, for some groups or until
//! it is full. Each command looks at the size of the -wal file on the writer's own thread, so no group is missed.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use solewriter::{
    Blocking, BlockingDatabase, Config, Database, Drain, NotStarted, Outcome, ReadEnd, ReadError, Snapshot,
    Stats, WriteError,
};

use crate::common::foreign::{self, Foreign};
use crate::common::proof::{Proof, Tally, Wrong};
use crate::common::{HANG, beside, in_memory_dir, plain};

const WRITERS: u64 = 3;
const GROUP_MAX: usize = 4;
/// A row goes to its leaf, which may be split, up to the root, and the first page counts pages.
const PAGES_OF_COMMAND_MAX: u64 = 4;
const FRAME_HEADER_BYTES: u64 = 24;
const WAL_HEADER_BYTES: u64 = 32;

/// How long a write waits for room in the WAL.
const PATIENCE: Duration = Duration::from_millis(100);

/// Reads that are younger are spared when the WAL is full.
const SPARED: Duration = Duration::from_secs(1);

/// How often the WAL is pinned in a run.
const TURNS: usize = 5;

#[test]
fn a_pinned_wal_keeps_to_its_limit_and_shrinks_afterwards() {
    let mut proof = Proof::new("long_reader", 1_000, 100_000);
    let figures = Figures::default();
    proof.run(|seed| run(seed, true, &figures));
    proof.canary("no_limit", 10, |seed| run(seed, false, &Figures::default()));
    figures.tell(&mut proof);
    proof.finish();
}

#[test]
fn a_process_of_its_own() {
    foreign::serve();
}

#[derive(Default)]
struct Figures {
    wal_bytes_max: AtomicU64,
    over_limit_max: AtomicU64,
    groups_to_shrink_max: AtomicU64,
    turns: AtomicU64,
    full: AtomicU64,
    refused: AtomicU64,
    reads_ended: AtomicU64,
}

impl Figures {
    fn tell(&self, proof: &mut Proof) {
        for (name, value) in [
            ("wal_bytes_max", &self.wal_bytes_max),
            ("over_limit_max", &self.over_limit_max),
            ("groups_to_shrink_max", &self.groups_to_shrink_max),
            ("turns", &self.turns),
            ("full", &self.full),
            ("refused", &self.refused),
            ("reads_ended", &self.reads_ended),
        ] {
            proof.figure(name, value.load(Ordering::Relaxed));
        }
    }
}

/// What the sizes of a run are.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    page_bytes: u64,
    target_bytes: u64,
    limit_bytes: u64,
}

impl Sizes {
    /// The size of a -wal file with so many bytes of pages.
    fn file_of(self, bytes: u64) -> u64 {
        WAL_HEADER_BYTES + bytes.div_ceil(self.page_bytes) * (self.page_bytes + FRAME_HEADER_BYTES)
    }

    fn group_max(self) -> u64 {
        GROUP_MAX as u64 * PAGES_OF_COMMAND_MAX * self.page_bytes
    }

    /// The largest file there may be: a group begins below the limit.
    fn allowed_bytes(self) -> u64 {
        self.file_of(self.limit_bytes + self.group_max())
    }

    /// Every group adds a page at least, and at the limit the WAL is begun anew.
    fn groups_to_shrink_max(self) -> u64 {
        self.limit_bytes / self.page_bytes + 2
    }
}

/// After the WAL was let go: from which group on, and how often it had been begun anew by then.
#[derive(Clone, Copy, Debug, Default)]
struct LetGo {
    restarts: u64,
    group: Option<u64>,
}

/// What the commands see.
struct Watch {
    db: Mutex<Option<Database>>,
    wal: PathBuf,
    sizes: Sizes,
    let_go: Mutex<Option<LetGo>>,
    /// What was found, and how large the file was at most.
    tally: Mutex<Tally>,
    wal_bytes_max: AtomicU64,
    groups_to_shrink_max: AtomicU64,
    over: AtomicBool,
}

impl Watch {
    fn wal_bytes(&self) -> u64 {
        std::fs::metadata(&self.wal).map_or(0, |wal| wal.len())
    }

    /// On the thread of the writer, in the midst of a group.
    fn look(&self) {
        let bytes = self.wal_bytes();
        self.wal_bytes_max.fetch_max(bytes, Ordering::Relaxed);
        let allowed = self.sizes.allowed_bytes();
        self.check(bytes <= allowed, || format!("the WAL has {bytes} bytes, {allowed} are allowed"));
        let mut let_go = lock(&self.let_go);
        let Some(LetGo { restarts, group }) = *let_go else { return };
        let stats = lock(&self.db).as_ref().map(Database::stats).unwrap_or_default();
        let first = group.unwrap_or(stats.groups_committed);
        let groups = stats.groups_committed - first;
        let most = self.sizes.groups_to_shrink_max();
        if stats.wal_restarts == restarts {
            *let_go = Some(LetGo { restarts, group: Some(first) });
            self.check(groups <= most, || format!("not begun anew after {groups} groups, {:?}", self.sizes));
        } else {
            self.groups_to_shrink_max.fetch_max(groups, Ordering::Relaxed);
            *let_go = None;
        }
    }

    fn check(&self, holds: bool, what: impl FnOnce() -> String) {
        lock(&self.tally).check(holds, Wrong::Broken, what);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Somebody who reads for long.
enum Pin {
    Foreign(Foreign),
    Snapshot(Snapshot<Blocking>),
    Read { release: mpsc::Sender<()>, thread: JoinHandle<Result<i64, ReadError>> },
}

const COUNT: &str = "SELECT count(*) FROM log";

impl Pin {
    fn begin(rng: &mut fastrand::Rng, db: &BlockingDatabase, foreign: &mut Option<Foreign>) -> Self {
        match (rng.u8(..3), foreign.take()) {
            (0, Some(mut foreign)) => {
                foreign.run("BEGIN; SELECT count(*) FROM log");
                Self::Foreign(foreign)
            }
            (1, left) => {
                *foreign = left;
                let snapshot = db.snapshot("held").wait().unwrap();
                snapshot.read(|tx| tx.query_row(COUNT, (), |row| row.get::<_, i64>(0))).wait().unwrap();
                Self::Snapshot(snapshot)
            }
            (_, left) => {
                *foreign = left;
                let ((release, released), (pinned, is_pinned)) = (mpsc::channel(), mpsc::channel());
                let db = db.clone();
                let thread = std::thread::spawn(move || {
                    let read = db.read("long", move |tx| {
                        loop {
                            let count = tx.query_row(COUNT, (), |row| row.get::<_, i64>(0))?;
                            // Only the first time somebody waits for it.
                            let _is_known = pinned.send(()).is_err();
                            // An error means that time is up, or that the test has failed.
                            if released.recv_timeout(Duration::from_millis(5))
                                != Err(mpsc::RecvTimeoutError::Timeout)
                            {
                                return Ok(count);
                            }
                        }
                    });
                    read.wait()
                });
                is_pinned.recv_timeout(HANG).expect("the read begins");
                Self::Read { release, thread }
            }
        }
    }

    /// Whether the service has ended it.
    fn has_ended(&self) -> bool {
        match self {
            Self::Foreign(_) => false,
            Self::Snapshot(snapshot) => snapshot.read(|_| Ok(())).wait().is_err(),
            Self::Read { thread, .. } => thread.is_finished(),
        }
    }

    /// Ends it. Returns how the service has, where it was faster.
    fn end(self, foreign: &mut Option<Foreign>) -> Option<ReadError> {
        match self {
            Self::Foreign(mut other) => {
                other.run("COMMIT");
                *foreign = Some(other);
                None
            }
            Self::Snapshot(snapshot) => snapshot.read(|_| Ok(())).wait().err(),
            Self::Read { release, thread } => {
                let _was_ended = release.send(()).is_err();
                thread.join().unwrap().err()
            }
        }
    }
}

/// The commands of one writer.
#[derive(Default)]
struct Written {
    acknowledged: Vec<i64>,
    refused: Vec<i64>,
}

fn write(watch: &Arc<Watch>, db: &BlockingDatabase, first_id: i64) -> Written {
    let mut written = Written::default();
    for id in first_id.. {
        if watch.over.load(Ordering::SeqCst) {
            break;
        }
        let looked = watch.clone();
        let insert = db.write_rerunnable("log", move |tx| {
            looked.look();
            tx.execute("INSERT INTO log VALUES (?1, zeroblob(?2))", (id, 50 + id % 400))
        });
        let asked = Instant::now();
        match insert.wait() {
            Ok(_) => written.acknowledged.push(id),
            Err(error) => {
                let limit = watch.sizes.limit_bytes;
                let is_true = matches!(error, WriteError::NotStarted(NotStarted::WalFull { wal_bytes }) if wal_bytes >= limit);
                let has_waited = asked.elapsed() >= PATIENCE;
                let is_told = is_true && has_waited && error.outcome() == Outcome::NotStarted;
                watch.check(is_told, || format!("{error:?} after {:?}", asked.elapsed()));
                written.refused.push(id);
            }
        }
    }
    written
}

/// Writes and pins; the service has a limit, or not.
fn run(seed: u64, has_limit: bool, figures: &Figures) -> Tally {
    let mut rng = fastrand::Rng::with_seed(seed);
    let page_bytes = [1_024, 4_096][rng.usize(..2)];
    let target_bytes = 64 << 10;
    let sizes = Sizes { page_bytes, target_bytes, limit_bytes: target_bytes + (rng.u64(32..128) << 10) };
    let dir = in_memory_dir();
    let path = dir.path().join("log.db");
    let schema =
        format!("PRAGMA page_size = {page_bytes}; CREATE TABLE log (id INTEGER PRIMARY KEY, line BLOB)");
    plain(&path).execute_batch(&schema).unwrap();
    let config = Config {
        wal_target_bytes: sizes.target_bytes,
        wal_limit_bytes: if has_limit { sizes.limit_bytes } else { 1 << 30 },
        checkpoint_pages: rng.u32(4..20),
        group_commands_max: GROUP_MAX,
        busy_timeout: PATIENCE,
        read_age_max: 10 * HANG,
        ..Config::default()
    };
    let db = Database::builder(&path).config(config).open_blocking().unwrap();
    let watch = Arc::new(Watch {
        db: Mutex::new(Some(db.clone())),
        wal: beside(&path, "-wal"),
        sizes,
        let_go: Mutex::default(),
        tally: Mutex::default(),
        wal_bytes_max: AtomicU64::new(0),
        groups_to_shrink_max: AtomicU64::new(0),
        over: AtomicBool::new(false),
    });
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (watch, db) = (watch.clone(), db.blocking());
            let first = i64::try_from(writer).unwrap() * 10_000_000;
            std::thread::spawn(move || write(&watch, &db, first))
        })
        .collect();
    let mut foreign = Some(Foreign::start_in("long_reader", &path));
    for _ in 0..TURNS {
        turn(&mut rng, &db, &watch, &mut foreign, figures);
    }
    watch.over.store(true, Ordering::SeqCst);
    let written: Vec<Written> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
    // The commands that have run hold the last handles.
    *lock(&watch.db) = None;
    let stats = db.stats();
    db.blocking().shutdown(Drain::within(HANG)).unwrap();
    if let Some(foreign) = foreign {
        foreign.close();
    }
    figures.wal_bytes_max.fetch_max(watch.wal_bytes_max.load(Ordering::Relaxed), Ordering::Relaxed);
    let over_limit =
        watch.wal_bytes_max.load(Ordering::Relaxed).saturating_sub(sizes.file_of(sizes.limit_bytes));
    figures.over_limit_max.fetch_max(over_limit, Ordering::Relaxed);
    figures
        .groups_to_shrink_max
        .fetch_max(watch.groups_to_shrink_max.load(Ordering::Relaxed), Ordering::Relaxed);
    let mut tally = std::mem::take(&mut *lock(&watch.tally));
    tally.cases = stats.groups_committed;
    check_rows(&mut tally, &path, &written, figures);
    tally
}

/// Somebody pins the WAL for a while, and lets go.
fn turn(
    rng: &mut fastrand::Rng,
    db: &Database,
    watch: &Watch,
    foreign: &mut Option<Foreign>,
    figures: &Figures,
) {
    figures.turns.fetch_add(1, Ordering::Relaxed);
    let pin = Pin::begin(rng, &db.blocking(), foreign);
    let pinned = db.stats();
    // For some groups, or until the WAL is full; then until the service ends it, or not.
    let groups = if rng.u8(..3) == 0 { rng.u64(1..40) } else { u64::MAX };
    let stays = rng.u8(..3) == 0;
    let most = watch.sizes.groups_to_shrink_max();
    let is_over = |stats: &Stats| {
        let committed = stats.groups_committed - pinned.groups_committed;
        let is_full = stats.is_wal_full && !(stays && !matches!(pin, Pin::Foreign(_)) && !pin.has_ended());
        // Without a limit it is never full.
        committed >= groups || is_full || committed > 3 * most || pin.has_ended()
    };
    let began = Instant::now();
    let mut stats = db.stats();
    while !is_over(&stats) {
        assert!(began.elapsed() < HANG, "neither full nor written: {stats:?}");
        std::thread::sleep(Duration::from_millis(1));
        stats = db.stats();
    }
    figures.full.fetch_add(stats.is_wal_full.into(), Ordering::Relaxed);
    if let Some(error) = pin.end(foreign) {
        figures.reads_ended.fetch_add(1, Ordering::Relaxed);
        let is_true = match error {
            ReadError::Ended { age, why: ReadEnd::WalLimit }
            | ReadError::SnapshotEnded { age, why: ReadEnd::WalLimit } => age >= SPARED,
            _ => false,
        };
        watch.check(is_true, || format!("{error:?}"));
    }
    // From here on nobody is in the way. What was begun anew before does not count.
    let let_go = LetGo { restarts: db.stats().wal_restarts, group: None };
    *lock(&watch.let_go) = Some(let_go);
    let began = Instant::now();
    while lock(&watch.let_go).is_some() {
        assert!(began.elapsed() < HANG, "the WAL is never begun anew: {:?}", db.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
    // The command that has seen it was in the first group after it, which cuts the file to its target.
    let after = db.stats().groups_committed;
    while db.stats().groups_committed == after {
        assert!(began.elapsed() < HANG, "writes do not go on: {:?}", db.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
    let (bytes, target) =
        (watch.wal_bytes(), watch.sizes.file_of(watch.sizes.target_bytes + watch.sizes.group_max()));
    watch.check(bytes <= target, || format!("the WAL still has {bytes} bytes, {target} are its target"));
}

fn check_rows(tally: &mut Tally, path: &std::path::Path, written: &[Written], figures: &Figures) {
    let connection = plain(path);
    let mut statement = connection.prepare("SELECT id FROM log ORDER BY id").unwrap();
    let rows = statement.query_map((), |row| row.get::<_, i64>(0)).unwrap();
    let rows: Vec<i64> = rows.collect::<rusqlite::Result<_>>().unwrap();
    let is_there = |id: &i64| rows.binary_search(id).is_ok();
    let mut known = 0;
    for Written { acknowledged, refused } in written {
        figures.refused.fetch_add(refused.len() as u64, Ordering::Relaxed);
        known += acknowledged.len();
        for id in acknowledged {
            tally.check(is_there(id), Wrong::Lost, || format!("row {id}"));
        }
        for id in refused {
            tally.check(!is_there(id), Wrong::Ghost, || format!("row {id}"));
        }
    }
    tally.check(known == rows.len(), Wrong::Ghost, || format!("{} rows of {known}", rows.len()));
}
