//! Good files to be damaged: made by the service itself, each with what its tables hold.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use rusqlite::Connection;
use solewriter::{
    Batch, BlockingDatabase, Database, Drain, ImportError, ImportReport, OnError, WriteTransaction,
};

use crate::common::{HANG, beside, config_with, in_memory_dir, plain};

/// The bytes of a database; what is `None` is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Files {
    pub(super) db: Vec<u8>,
    pub(super) wal: Option<Vec<u8>>,
    pub(super) shm: Option<Vec<u8>>,
}

impl Files {
    pub(super) fn read(path: &Path) -> Self {
        let read = |suffix| std::fs::read(beside(path, suffix)).ok();
        Self { db: read("").unwrap_or_default(), wal: read("-wal"), shm: read("-shm") }
    }

    pub(super) fn write(&self, path: &Path) {
        std::fs::write(path, &self.db).unwrap();
        for (suffix, bytes) in [("-wal", &self.wal), ("-shm", &self.shm)] {
            if let Some(bytes) = bytes {
                std::fs::write(beside(path, suffix), bytes).unwrap();
            }
        }
    }
}

/// Which good file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Kind {
    pub(super) page_bytes: usize,
    /// Whether its trees have several levels.
    is_large: bool,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    /// Closed in order.
    Closed,
    /// Closed in order, without a WAL from then on.
    RollbackJournal,
    /// As a crash leaves it: committed frames in the -wal, a part of them copied already.
    Hot,
    /// The same, with the -shm file.
    HotWithSharedMemory,
}

impl Kind {
    pub(super) fn any(rng: &mut fastrand::Rng) -> Self {
        use State::{Closed, Hot, HotWithSharedMemory, RollbackJournal};
        let states = [Closed, Closed, Closed, RollbackJournal, Hot, Hot, HotWithSharedMemory];
        Self {
            page_bytes: [512, 1024, 4096][rng.usize(..3)],
            is_large: rng.bool(),
            state: states[rng.usize(..states.len())],
        }
    }

    pub(super) fn is_hot(self) -> bool {
        matches!(self.state, State::Hot | State::HotWithSharedMemory)
    }
}

/// A good file, and a look at each of its tables.
pub(super) struct Good {
    pub(super) files: Files,
    /// What [`LOOKS`] say.
    pub(super) seen: Vec<String>,
    /// Rows of `large` and `blobs` have ids up to this.
    pub(super) ids: i64,
}

const SCHEMA: &str = "
    CREATE TABLE small (id INTEGER PRIMARY KEY, x TEXT);
    CREATE TABLE large (id INTEGER PRIMARY KEY, k TEXT NOT NULL UNIQUE, body TEXT);
    CREATE INDEX large_body ON large (body, k);
    CREATE TABLE keyed (k TEXT PRIMARY KEY, v TEXT) WITHOUT ROWID;
    CREATE TABLE blobs (id INTEGER PRIMARY KEY, x BLOB);
    CREATE TABLE first_half (id INTEGER PRIMARY KEY, x TEXT);
    CREATE TABLE second_half (id INTEGER PRIMARY KEY, x TEXT);
    CREATE TABLE noted (id INTEGER PRIMARY KEY, x TEXT);
    CREATE TRIGGER note AFTER INSERT ON small BEGIN INSERT INTO noted VALUES (new.id, new.x); END;
    CREATE VIRTUAL TABLE words USING fts5(x);
    CREATE TABLE imported (entry INTEGER NOT NULL, x TEXT);
    CREATE INDEX imported_entry ON imported (entry);";

/// Tables whose columns are read as they are named there.
pub(super) const TABLES: [&str; 7] =
    ["sqlite_schema", "small", "large", "keyed", "blobs", "imported", "solewriter_imports"];

/// One query for each table: all of its rows, and some of what is in them.
pub(super) const LOOKS: [&str; 11] = [
    "SELECT count(*) || ' ' || total(id) || ' ' || total(length(x)) FROM small",
    "SELECT count(*) || ' ' || total(id) || ' ' || total(length(body)) FROM large NOT INDEXED",
    "SELECT count(*) || ' ' || count(DISTINCT k) || ' ' || max(body) FROM large INDEXED BY large_body WHERE body > ''",
    "SELECT count(*) || ' ' || total(length(v)) FROM keyed",
    "SELECT count(*) || ' ' || total(length(x)) || ' ' || max(x) FROM blobs",
    "SELECT count(*) || ' ' || total(id) FROM first_half",
    "SELECT count(*) || ' ' || total(id) FROM second_half",
    "SELECT count(*) || ' ' || total(length(x)) FROM noted",
    "SELECT count(*) || ' ' || total(rowid) FROM words WHERE words MATCH 'word'",
    "SELECT count(*) || ' ' || count(DISTINCT entry) || ' ' || total(length(x)) FROM imported",
    "SELECT number || ' ' || id || ' ' || next_entry || ' ' || accepted || ' ' || failed FROM solewriter_imports",
];

/// The import of every file, which has come some way.
pub(super) const IMPORT: &str = "an import to go on with";

/// How many entries it has in all.
pub(super) const ENTRIES: i64 = 300;

/// Of these entries, every one fails.
const BAD_ENTRY: i64 = 17;

pub(super) fn is_good_entry(entry: i64) -> bool {
    entry % BAD_ENTRY != 0
}

/// Runs the import, or goes on with it.
pub(super) fn import(
    db: &BlockingDatabase,
    on_error: OnError,
) -> Result<ImportReport<rusqlite::Error>, ImportError<rusqlite::Error>> {
    let import = db.import("import", 0..ENTRIES).id(IMPORT).batch(Batch::Fixed(40)).lost_batches_max(2);
    let apply = |tx: &mut WriteTransaction<'_>, entry: &i64| {
        if !is_good_entry(*entry) {
            return Err(rusqlite::Error::InvalidQuery);
        }
        tx.execute("INSERT INTO imported VALUES (?1, 'entry ' || ?1)", [entry])
    };
    import.on_error(on_error).run(apply).wait()
}

/// Good files, made when they are first asked for.
#[derive(Default)]
pub(super) struct Goods(RefCell<HashMap<Kind, Rc<Good>>>);

impl Goods {
    pub(super) fn get(&self, kind: Kind) -> Rc<Good> {
        let Kind { page_bytes, is_large, .. } = kind;
        if let Some(good) = self.0.borrow().get(&kind) {
            return good.clone();
        }
        let made = make(page_bytes, is_large);
        let mut goods = self.0.borrow_mut();
        goods.extend(
            made.into_iter().map(|(state, good)| (Kind { page_bytes, is_large, state }, Rc::new(good))),
        );
        goods[&kind].clone()
    }
}

/// Makes a database and keeps what it is in each of its states.
fn make(page_bytes: usize, is_large: bool) -> Vec<(State, Good)> {
    let directory = in_memory_dir();
    let path = directory.path().join("good.db");
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch(&format!("PRAGMA page_size = {page_bytes}; {SCHEMA}")).unwrap();
    connection.close().unwrap();
    let ids = if is_large { 1_200 } else { 40 };

    let db = open(&path);
    fill(&db, 0..ids / 2);
    import(&db, OnError::StopAfter(4)).unwrap_err();
    close(&db);
    // As it was, for a -wal from another time.
    let db = open(&path);
    fill(&db, ids / 2..ids * 3 / 4);
    plain(&path).query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |_| Ok(())).unwrap();
    fill(&db, ids * 3 / 4..ids);
    import(&db, OnError::StopAfter(4)).unwrap_err();
    let seen = look(&plain(&path));
    let good = |files| Good { files, seen: seen.clone(), ids };
    // Nothing is written, so this is what a crash would leave.
    let crashed = Files::read(&path);
    close(&db);
    let closed = Files::read(&path);
    assert!(crashed.wal.as_ref().is_some_and(|wal| wal.len() > 4 * page_bytes) && closed.wal.is_none());
    plain(&path).query_row("PRAGMA journal_mode = DELETE", (), |_| Ok(())).unwrap();
    let without_wal = Files::read(&path);
    vec![
        (State::Closed, good(closed)),
        (State::RollbackJournal, good(without_wal)),
        (State::Hot, good(Files { shm: None, ..crashed.clone() })),
        (State::HotWithSharedMemory, good(crashed)),
    ]
}

fn open(path: &Path) -> BlockingDatabase {
    // Only the checkpoint that is asked for.
    let config = config_with(|config| config.checkpoint_pages = u32::MAX);
    Database::builder(path).config(config).open_blocking().unwrap().blocking()
}

fn close(db: &BlockingDatabase) {
    db.shutdown(Drain::within(HANG)).unwrap();
}

fn fill(db: &BlockingDatabase, ids: std::ops::Range<i64>) {
    let rows = db.write("fill", move |tx| {
        for id in ids {
            let text = format!("word {id} {}", "x".repeat(usize::try_from(id % 50).unwrap()));
            if id % 10 == 0 {
                tx.execute("INSERT INTO small VALUES (?1, ?2)", (id, &text))?;
                tx.execute("INSERT INTO words (rowid, x) VALUES (?1, ?2)", (id, &text))?;
                let bytes = vec![b'b'; usize::try_from(id % 17).unwrap() * 700];
                tx.execute("INSERT INTO blobs VALUES (?1, ?2)", (id, &bytes))?;
            }
            tx.execute("INSERT INTO large VALUES (?1, 'key ' || ?1, ?2)", (id, &text))?;
            tx.execute("INSERT INTO keyed VALUES ('key ' || ?1, ?2)", (id, &text))?;
            tx.execute("INSERT INTO first_half VALUES (?1, ?2)", (id, &text))?;
            tx.execute("INSERT INTO second_half VALUES (?1, ?2)", (id, &text))?;
        }
        // Leaves free pages.
        tx.execute("DELETE FROM blobs WHERE id % 30 = 0", ())?;
        tx.execute("DELETE FROM large WHERE id % 5 = 0", ())
    });
    rows.wait().unwrap();
}

/// What is in each table, or why that can't be told.
pub(super) fn look(connection: &Connection) -> Vec<String> {
    let ask = |sql| connection.query_row(sql, (), |row| row.get(0));
    LOOKS.iter().map(|sql| ask(sql).unwrap_or_else(|error| error.to_string())).collect()
}

/// Names what is different.
pub(super) fn difference(good: &[String], seen: &[String]) -> String {
    let mut text = String::new();
    for ((good, seen), sql) in good.iter().zip(seen).zip(LOOKS).filter(|((good, seen), _)| good != seen) {
        write!(text, "`{good}` is `{seen}` in {}; ", sql.rsplit("FROM ").next().unwrap_or(sql)).unwrap();
    }
    text
}

/// How long a service may wait for others, short enough to try much.
pub(super) const PATIENCE: Duration = Duration::from_millis(300);
