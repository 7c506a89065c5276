//! What is done to a file, at random: to its bytes, or to the records of its imports by SQL.

use std::fmt::Write as _;
use std::path::Path;

use rusqlite::Connection;

use super::good::{Files, Goods, IMPORT, Kind};

/// SQLite writes and syncs the -wal file in frames with a header of this size, behind one for the whole file.
pub(super) const WAL_HEADER_BYTES: usize = 32;
pub(super) const FRAME_HEADER_BYTES: usize = 24;
const SECTOR_BYTES: usize = 512;

/// What can be demanded of a damaged file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    /// Everything is there: what is damaged is not looked at by whoever opens the file alone.
    Nothing,
    /// The state after some earlier commit: frames of the -wal have checksums.
    Commits,
    /// The tables are intact but for the records of the imports.
    Records,
    /// No more than SQLite's own check tells.
    Anything,
}

/// What was done to a file.
pub(super) struct Damage {
    pub(super) what: String,
    pub(super) reach: Reach,
    /// The -shm file is damaged while another process uses it.
    pub(super) is_in_use: bool,
    /// To be run once the file is written.
    sql: Option<String>,
}

impl Damage {
    pub(super) fn new(reach: Reach, what: impl Into<String>) -> Self {
        Self { what: what.into(), reach, is_in_use: false, sql: None }
    }

    pub(super) fn and(self, next: Self) -> Self {
        let what = if self.what.is_empty() { next.what } else { format!("{}, {}", self.what, next.what) };
        Self { what, reach: self.reach.max(next.reach), is_in_use: false, sql: next.sql.or(self.sql) }
    }

    /// The -shm file will be damaged while another process uses it.
    pub(super) fn of_shared_memory_in_use() -> Self {
        Self { is_in_use: true, ..Self::new(Reach::Anything, "shm in use") }
    }

    /// Does what needs SQL.
    pub(super) fn finish(&self, path: &Path) {
        let Some(sql) = &self.sql else { return };
        let connection = Connection::open(path).unwrap();
        connection.set_prepared_statement_cache_capacity(0);
        connection.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        connection.close().unwrap();
    }
}

/// Damages a file somehow.
pub(super) fn damage(rng: &mut fastrand::Rng, kind: Kind, goods: &Goods, files: &mut Files) -> Damage {
    let mut damage = Damage::new(Reach::Nothing, "");
    match rng.u8(..100) {
        0 => return Damage::new(Reach::Nothing, "nothing"),
        1..10 if !kind.is_hot() => return record(rng),
        _ => {}
    }
    for _ in 0..[1, 1, 1, 2, 4][rng.usize(..5)] {
        let once = match rng.u8(..100) {
            0..8 => mix(rng, goods, files),
            8..15 if files.shm.is_some() => shared_memory(rng, files),
            8..50 if files.wal.is_some() => wal(rng, kind.page_bytes, files),
            _ => database(rng, kind.page_bytes, files),
        };
        damage = damage.and(once);
    }
    damage
}

/// A place somewhere in a file; 0 in an empty one.
fn place(rng: &mut fastrand::Rng, bytes: &[u8]) -> usize {
    if bytes.is_empty() { 0 } else { rng.usize(..bytes.len()) }
}

fn flip(rng: &mut fastrand::Rng, bytes: &mut [u8], from: usize, to: usize) -> String {
    let to = to.min(bytes.len());
    if from >= to {
        return "no bit".into();
    }
    let mut what = String::from("bits of bytes");
    for _ in 0..[1, 1, 1, 2, 8][rng.usize(..5)] {
        let at = rng.usize(from..to);
        bytes[at] ^= 1 << rng.u8(..8);
        write!(what, " {at}").unwrap();
    }
    what
}

fn fill(bytes: &mut [u8], from: usize, to: usize, with: impl FnMut() -> u8) {
    let to = to.min(bytes.len());
    if from < to {
        bytes[from..to].fill_with(with);
    }
}

fn copy(bytes: &mut [u8], from: usize, to: usize, count: usize) {
    if from + count <= bytes.len() && to + count <= bytes.len() {
        bytes.copy_within(from..from + count, to);
    }
}

fn swap(bytes: &mut [u8], one: usize, other: usize, count: usize) {
    if one.abs_diff(other) >= count && one.max(other) + count <= bytes.len() {
        for at in 0..count {
            bytes.swap(one + at, other + at);
        }
    }
}

/// Makes a name in the schema one that is no text.
fn name(rng: &mut fastrand::Rng, bytes: &mut [u8]) -> String {
    let name =
        ["large_body", "note ", "words", "body", "x TEXT", "id INTEGER", "imported", "hold_max_us", "blobs"];
    let name = name[rng.usize(..name.len())].as_bytes();
    let places: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(name)).collect();
    for place in &places {
        bytes[*place] ^= 0x80;
    }
    format!("{} of {}", places.len(), String::from_utf8_lossy(name))
}

/// Changes the bytes of any file: some that are flipped, lost, zeroed, in the wrong place, or too many.
fn anywhere(rng: &mut fastrand::Rng, bytes: &mut Vec<u8>, block: usize) -> String {
    let at = place(rng, bytes);
    let (from, to) = (at / block * block, place(rng, bytes) / block * block);
    match rng.u8(..8) {
        0..2 => {
            let end = bytes.len();
            flip(rng, bytes, 0, end)
        }
        2 => {
            let length = rng.usize(1..200);
            fill(bytes, at, at + length, || rng.u8(..));
            format!("{length} random bytes at {at}")
        }
        3 => {
            let length = if rng.u8(..20) == 0 { rng.usize(..2).min(bytes.len()) } else { at };
            bytes.truncate(length);
            format!("cut off at {length}")
        }
        4 => {
            let ones = rng.bool();
            fill(bytes, from, from + block, || if ones { 0xff } else { 0 });
            format!("{block} bytes at {from} are all the same")
        }
        5 => {
            copy(bytes, from, to, block);
            format!("{block} bytes of {from} at {to}")
        }
        6 => {
            swap(bytes, from, to, block);
            format!("{block} bytes of {from} and {to} swapped")
        }
        _ => append(rng, bytes),
    }
}

fn append(rng: &mut fastrand::Rng, bytes: &mut Vec<u8>) -> String {
    let length = rng.usize(1..9_000);
    let zeros = rng.bool();
    bytes.extend((0..length).map(|_| if zeros { 0 } else { rng.u8(..) }));
    format!("{length} bytes more")
}

/// Fields of the database header: <https://www.sqlite.org/fileformat.html#the_database_header>.
const HEADER_FIELDS: [(&str, usize, usize); 14] = [
    ("page size", 16, 2),
    ("versions", 18, 2),
    ("reserved", 20, 1),
    ("payload fractions", 21, 3),
    ("change counter", 24, 4),
    ("page count", 28, 4),
    ("freelist", 32, 4),
    ("freelist count", 36, 4),
    ("schema cookie", 40, 4),
    ("schema format", 44, 4),
    ("largest root page", 52, 4),
    ("encoding", 56, 4),
    ("incremental vacuum", 64, 4),
    ("valid for", 92, 4),
];

fn database(rng: &mut fastrand::Rng, page_bytes: usize, files: &mut Files) -> Damage {
    let bytes = &mut files.db;
    let pages = (bytes.len() / page_bytes).max(1);
    // Of the first page too, which begins with the header of the file.
    let page = rng.usize(..pages) * page_bytes;
    let tree = if page == 0 { 100 } else { page };
    let what = match rng.u8(..11) {
        0 => flip(rng, bytes, 0, 100),
        1 => {
            let (name, at, count) = HEADER_FIELDS[rng.usize(..HEADER_FIELDS.len())];
            let value =
                [0, 1, 2, 3, 0x7f, 0xff, 0x7fff_ffff, 0x8000_0000, u32::MAX, pages as u32, rng.u32(..)];
            let value = value[rng.usize(..value.len())];
            let value = &value.to_be_bytes()[4 - count..];
            if let Some(field) = bytes.get_mut(at..at + count) {
                field.copy_from_slice(value);
            }
            format!("{name} is {value:?}")
        }
        2 => flip(rng, bytes, tree, tree + 12),
        // The pointers to the cells, and what follows.
        3 => flip(rng, bytes, tree + 8, tree + 60),
        4 => {
            let block = if rng.bool() { page_bytes } else { SECTOR_BYTES };
            anywhere(rng, bytes, block)
        }
        // The first pages hold the schema.
        5 => flip(rng, bytes, 100, 4 * page_bytes),
        6 => name(rng, bytes),
        _ => anywhere(rng, bytes, page_bytes),
    };
    Damage::new(Reach::Anything, format!("db: {what}"))
}

fn wal(rng: &mut fastrand::Rng, page_bytes: usize, files: &mut Files) -> Damage {
    let Some(bytes) = &mut files.wal else { return Damage::new(Reach::Nothing, "no wal") };
    let frame_bytes = FRAME_HEADER_BYTES + page_bytes;
    let frames = bytes.len().saturating_sub(WAL_HEADER_BYTES) / frame_bytes;
    let frame = |rng: &mut fastrand::Rng| WAL_HEADER_BYTES + rng.usize(..frames.max(1)) * frame_bytes;
    let (one, other) = (frame(rng), frame(rng));
    let what = match rng.u8(..8) {
        0 => flip(rng, bytes, 0, WAL_HEADER_BYTES),
        1 => flip(rng, bytes, one, one + FRAME_HEADER_BYTES),
        2 => flip(rng, bytes, one + FRAME_HEADER_BYTES, one + frame_bytes),
        3 => {
            swap(bytes, one, other, frame_bytes);
            format!("frames at {one} and {other} swapped")
        }
        4 => {
            copy(bytes, one, other, frame_bytes);
            format!("frame at {one} again at {other}")
        }
        5 => return Damage::new(Reach::Nothing, format!("wal: {}", append(rng, bytes))),
        _ => anywhere(rng, bytes, SECTOR_BYTES),
    };
    Damage::new(Reach::Commits, format!("wal: {what}"))
}

/// Damages a -shm file that is in use, whose length nobody may change.
pub(super) fn flip_shared_memory(rng: &mut fastrand::Rng, bytes: &mut [u8]) -> String {
    let end = if rng.bool() { 136 } else { bytes.len() };
    let what = flip(rng, bytes, 0, end);
    format!("shm in use: {what}")
}

fn shared_memory(rng: &mut fastrand::Rng, files: &mut Files) -> Damage {
    let Some(bytes) = &mut files.shm else { return Damage::new(Reach::Nothing, "no shm") };
    // The header, twice, and what is known of checkpoints and readers; or anything.
    let what = if rng.bool() { flip(rng, bytes, 0, 136) } else { anywhere(rng, bytes, SECTOR_BYTES) };
    Damage::new(Reach::Nothing, format!("shm: {what}"))
}

/// A file of another database, or of another time, in the place of one of this.
fn mix(rng: &mut fastrand::Rng, goods: &Goods, files: &mut Files) -> Damage {
    let mut other = Kind::any(rng);
    while !other.is_hot() {
        other = Kind::any(rng);
    }
    let others = goods.get(other).files.clone();
    match rng.u8(..4) {
        0 => {
            files.db = others.db;
            Damage::new(Reach::Anything, format!("db of {other:?}"))
        }
        1..3 => {
            files.wal = others.wal;
            Damage::new(Reach::Anything, format!("wal of {other:?}"))
        }
        _ => {
            files.shm = others.shm.or_else(|| Some(vec![0xff; 40_000]));
            Damage::new(Reach::Nothing, format!("shm of {other:?}"))
        }
    }
}

/// What could be in the place of a number.
const NUMBERS: [i64; 9] = [i64::MIN, -1_000, -1, 0, 1, 7, 299, 1_000_000, i64::MAX];

/// Texts that are none, or mean nothing.
const TEXTS: [&str; 5] = [
    "''",
    "'what is this'",
    "CAST(x'ff80fe' AS TEXT)",
    "CAST(x'610062' AS TEXT)",
    "CAST(zeroblob(100) AS TEXT)",
];

/// Damages the records of the imports and nothing else, so that SQLite finds nothing wrong.
pub(super) fn record(rng: &mut fastrand::Rng) -> Damage {
    let number = NUMBERS[rng.usize(..NUMBERS.len())];
    let text = TEXTS[rng.usize(..TEXTS.len())];
    let integers = [
        "next_entry",
        "next_entry",
        "next_entry",
        "accepted",
        "failed",
        "batches",
        "batches_lost",
        "hold_max_us",
        "started_at",
        "ended_at",
        "is_named",
    ];
    let sql = match rng.u8(..13) {
        0..6 => {
            let column = integers[rng.usize(..integers.len())];
            format!("UPDATE solewriter_imports SET {column} = {number}")
        }
        6 => {
            // Two that are far apart.
            format!("UPDATE solewriter_imports SET started_at = {number}, ended_at = {}", i64::MAX)
        }
        7 => format!("UPDATE solewriter_imports SET {} = {text}", ["label", "state"][rng.usize(..2)]),
        8 => format!("UPDATE solewriter_import_failures SET reason = {text}, extended_code = {number}"),
        9 => format!(
            "INSERT INTO solewriter_imports (id, is_named, label, state, started_at, ended_at)
             SELECT value || {text}, 0, {text}, {text}, {number}, {} FROM json_each('[1, 2, 3]')",
            i64::MAX
        ),
        10 => format!(
            "INSERT INTO solewriter_imports (id, is_named, label, state, started_at, ended_at)
             WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 3000)
             SELECT 'import ' || i, i % 2, 'many', 'complete', {number}, {} FROM n",
            i64::MAX
        ),
        11 => {
            let others = [
                "CREATE TABLE solewriter_imports (x)",
                "CREATE TABLE solewriter_imports (number, id, next_entry, state, started_at, ended_at, hold_max_us)",
                "CREATE VIEW solewriter_imports AS SELECT 1 AS number, 'a' AS id",
                "CREATE VIRTUAL TABLE solewriter_imports USING fts5(id)",
                "CREATE TABLE solewriter_imports (id PRIMARY KEY) WITHOUT ROWID",
            ];
            format!("DROP TABLE solewriter_imports; {}", others[rng.usize(..others.len())])
        }
        _ => {
            let others = [
                "DROP TABLE solewriter_import_failures",
                "UPDATE sqlite_sequence SET seq = 9223372036854775807",
                "UPDATE sqlite_sequence SET seq = 'what is this'",
                "UPDATE solewriter_imports SET state = 'complete'",
                "UPDATE solewriter_imports SET number = -number",
                "CREATE TRIGGER solewriter_t BEFORE UPDATE ON solewriter_imports BEGIN SELECT RAISE(IGNORE); END",
                "CREATE TRIGGER solewriter_t BEFORE UPDATE ON solewriter_imports BEGIN SELECT RAISE(ROLLBACK, 'no'); END",
            ];
            others[rng.usize(..others.len())].into()
        }
    };
    Damage { sql: Some(sql.clone()), ..Damage::new(Reach::Records, format!("{IMPORT}: {sql}")) }
}
