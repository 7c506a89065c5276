//! What a child does, from its seed alone: so the parent knows what belongs into the file.

use std::time::Duration;

use fastrand::Rng;
use serde::{Deserialize, Serialize};
use solewriter::{Config, Durability, Lane, WriteTransaction};

use super::points::{self, Point};
use crate::common::Kind;

/// A command is `parts` rows, and a closure counts in `tasks` too. Nothing is unique, so what happens twice is seen.
pub(crate) const SCHEMA: &str = "
    CREATE TABLE tasks (task INTEGER PRIMARY KEY, closures INTEGER NOT NULL DEFAULT 0, newest INTEGER);
    CREATE TABLE parts (
        id INTEGER PRIMARY KEY,
        task INTEGER NOT NULL REFERENCES tasks DEFERRABLE INITIALLY DEFERRED,
        seq INTEGER NOT NULL,
        part INTEGER NOT NULL,
        pad BLOB);
    CREATE INDEX parts_by_command ON parts (task, seq, part);
    CREATE TABLE entries (id INTEGER PRIMARY KEY, entry INTEGER NOT NULL, half INTEGER NOT NULL);";

/// The tasks of each child; each has numbers of its own.
pub(crate) const TASKS: i64 = 12;

pub(crate) const IMPORT: &str = "entries";

const PART: &str = "INSERT INTO parts (task, seq, part, pad) VALUES (?1, ?2, ?3, zeroblob(?4))";
const COUNT: &str = "UPDATE tasks SET closures = closures + 1, newest = ?2 WHERE task = ?1";
const BREAK: &str = "INSERT INTO parts (task, seq, part) VALUES (NULL, 0, 0)";
const BREAK_ALL: &str = "INSERT OR ROLLBACK INTO parts (task, seq, part) VALUES (NULL, 0, 0)";

/// What happens to a child, beside its commands and the faults that its own VFS makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peril {
    /// It is killed.
    Kill,
    /// The power of its disk is cut.
    PowerCut,
    /// Calls of the system fail.
    FailingCalls,
    /// SQLite may have hardly more memory than it has, now and then.
    HeapLimit,
    /// Its memory grows until the system kills it.
    OutOfMemory,
}

impl Peril {
    const ALL: [Self; 5] =
        [Self::Kill, Self::PowerCut, Self::FailingCalls, Self::HeapLimit, Self::OutOfMemory];

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|peril| format!("{peril:?}") == name)
    }

    /// Whether commands can fail that are good, or nobody knows of them.
    fn is_felt(self) -> bool {
        matches!(self, Self::PowerCut | Self::FailingCalls | Self::HeapLimit)
    }
}

/// One life of a child.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) seed: u64,
    pub(crate) number: u32,
    pub(crate) peril: Peril,
    /// Where it kills itself.
    pub(crate) point: Option<Point>,
    /// Some of its commands make SQLite roll back the whole group.
    pub(crate) is_hostile: bool,
    /// Syncs of its WAL fail now and then. All of it is `FULL` then: a fence settles what that leaves open.
    pub(crate) is_failing: bool,
    /// How many commands of a task are on their way at a time.
    pub(crate) depth: usize,
}

impl Run {
    pub(crate) fn new(seed: u64, number: u32, point: Option<Point>) -> Self {
        let mut rng = rng([seed, number.into(), 0, 0]);
        let (hostile, failing) = (rng.bool(), rng.u8(0..4) == 0);
        let is_failing = point.is_some_and(Point::is_of_fence) || (point.is_none() && failing);
        Self {
            seed,
            number,
            peril: Peril::Kill,
            point,
            is_hostile: point == Some(Point::InReplay) || (hostile && !is_failing),
            is_failing,
            depth: rng.usize(1..7),
        }
    }

    pub(crate) fn amid(self, peril: Peril) -> Self {
        Self { peril, ..self }
    }

    /// For what need not be known to the parent.
    pub(crate) fn rng(&self) -> Rng {
        rng([self.seed, self.number.into(), 1, 0])
    }

    pub(crate) fn config(&self) -> Config {
        let mut rng = self.rng();
        let is_checkpoint = matches!(self.point, Some(Point::CheckpointWrite | Point::CheckpointSync));
        // The WAL is begun anew all the time: beside the writer, or by the writer before anybody else can.
        let wal_target_kib = if is_checkpoint || rng.bool() { 2_048 } else { rng.u64(64..256) };
        // With so few pages a transaction writes into the WAL before it commits, and in a queue this short most wait
        // for room. Neither where the point is about a COMMIT, or about what its tasks hear of it.
        let is_of_commit = self.point.is_some_and(Point::is_of_commit);
        let mut is_tight = || rng.u8(0..4) == 0 && !is_of_commit;
        let (spills, waits) = (is_tight(), is_tight());
        Config {
            checkpoint_pages: rng.u32(10..60),
            wal_target_bytes: wal_target_kib * 1024,
            group_commands_max: if rng.bool() { rng.usize(2..10) } else { 4_096 },
            bulk_hold_target: Duration::from_millis(2),
            cache_bytes: if spills { 16 * 1024 } else { 1024 * 1024 },
            queue_commands_max: if waits { 8 } else { 16_384 },
            readers: 2,
            // What is mapped is not written by calls.
            mmap_bytes: 0,
            readers_overflow: 1,
            ..Config::default()
        }
    }

    /// Where the point is about a fence, a group must not be the import's alone, of which no task is told.
    pub(crate) fn has_import(&self) -> bool {
        !self.point.is_some_and(Point::is_of_fence)
    }

    pub(crate) fn tasks(&self) -> std::ops::Range<i64> {
        let first = i64::from(self.number) * TASKS;
        first..first + TASKS
    }

    pub(crate) fn command(&self, task: i64, seq: i64) -> Planned {
        let mut rng = rng([self.seed, 2, task.cast_unsigned(), seq.cast_unsigned()]);
        let kind = Kind::ALL[rng.usize(0..4)];
        let end = match rng.u8(0..40) {
            0 | 1 => End::FailsHalfway,
            2 if self.is_hostile => End::RollsBackAll,
            _ => End::Good,
        };
        let parts = rng.i64(1..5);
        let pad = if rng.u8(0..12) == 0 { rng.i64(0..6_000) } else { rng.i64(0..60) };
        // A power cut may take what was answered as `NORMAL`.
        let is_full = self.is_failing || self.peril == Peril::PowerCut;
        let durability = if is_full || rng.bool() { Durability::Full } else { Durability::Normal };
        let lane = if task % 4 == 3 { Lane::Bulk } else { Lane::Interactive };
        Planned { kind, durability, lane, doing: Doing { task, seq, parts, pad, end } }
    }

    /// Whether a good command may be answered as not applied.
    ///
    /// A `FnOnce` closure that had run in a group which SQLite rolled back can't run again; and a fence settles a
    /// sync that failed by undoing its group.
    pub(crate) fn may_be_undone(&self, planned: &Planned) -> bool {
        self.is_failing || self.peril.is_felt() || (self.is_hostile && planned.kind == Kind::Once)
    }

    /// Whether a command may be answered as one of which nobody knows.
    pub(crate) fn may_be_unknown(&self) -> bool {
        self.point == Some(Point::InDoubt) || self.peril.is_felt()
    }
}

fn rng(from: [u64; 4]) -> Rng {
    let mix = |seed: u64, part: u64| (seed ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    Rng::with_seed(from.into_iter().fold(1, mix))
}

/// A command, and how it is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planned {
    pub(crate) kind: Kind,
    pub(crate) durability: Durability,
    pub(crate) lane: Lane,
    pub(crate) doing: Doing,
}

impl Planned {
    pub(crate) fn is_good(&self) -> bool {
        self.doing.end == End::Good
    }

    /// Whether it counts in `tasks`.
    pub(crate) fn counts(&self) -> bool {
        self.kind != Kind::Statement
    }
}

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum End {
    Good,
    FailsHalfway,
    RollsBackAll,
}

/// What a command does.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Doing {
    pub(crate) task: i64,
    pub(crate) seq: i64,
    pub(crate) parts: i64,
    pad: i64,
    end: End,
}

impl Doing {
    pub(crate) fn run(&self, tx: &mut WriteTransaction<'_>, is_again: bool) -> rusqlite::Result<()> {
        points::command_begins(is_again);
        for part in 0..self.parts {
            tx.execute(PART, (self.task, self.seq, part, self.pad))?;
            points::pass(Point::InCommand);
        }
        match self.end {
            End::Good => tx.execute(COUNT, (self.task, self.seq)),
            End::FailsHalfway => tx.execute(BREAK, ()),
            End::RollsBackAll => tx.execute(BREAK_ALL, ()),
        }
        .map(|_| ())
    }

    /// The same in one statement, without the count.
    pub(crate) fn sql(&self) -> String {
        let Self { task, seq, parts, pad, end } = self;
        let or = match end {
            End::Good => "",
            End::FailsHalfway => "OR FAIL",
            End::RollsBackAll => "OR ROLLBACK",
        };
        let mut rows: Vec<_> =
            (0..*parts).map(|part| format!("({task}, {seq}, {part}, zeroblob({pad}))")).collect();
        if *end != End::Good {
            rows.push("(NULL, 0, 0, NULL)".into());
        }
        format!("INSERT {or} INTO parts (task, seq, part, pad) VALUES {}", rows.join(", "))
    }
}

impl solewriter::Command for Doing {
    const NAME: &'static str = "doing";
    type Output = ();
    type Error = rusqlite::Error;

    fn apply(&self, tx: &mut WriteTransaction<'_>) -> rusqlite::Result<()> {
        self.run(tx, false)
    }
}

/// An entry of the import by its fate: imported, unprepared, or refused half-way.
pub(crate) fn is_good_entry(entry: i64) -> bool {
    entry % 13 != 5 && entry % 17 != 3
}

pub(crate) async fn prepare_entry(entry: i64) -> rusqlite::Result<i64> {
    if entry % 13 == 5 { Err(rusqlite::Error::InvalidQuery) } else { Ok(entry) }
}

pub(crate) fn import_entry(tx: &mut WriteTransaction<'_>, entry: &i64) -> rusqlite::Result<()> {
    tx.execute("INSERT INTO entries (entry, half) VALUES (?1, 0)", [entry])?;
    points::pass(Point::InImportBatch);
    if entry % 17 == 3 {
        return Err(rusqlite::Error::InvalidQuery);
    }
    tx.execute("INSERT INTO entries (entry, half) VALUES (?1, 1)", [entry])?;
    Ok(())
}
