//! What was sent to a service and what it answered, and whether a file agrees.
//!
//! A command writes some rows into `part`, and triggers write as many into `mirror` and count them in `total`: so a
//! command that is there in part shows in many ways.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Mutex;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension};
use solewriter::{Durability, Outcome, WriteError};

use crate::common::proof::{Tally, Wrong};

pub(crate) const SCHEMA: &str = "
    CREATE TABLE part (command INTEGER, part INTEGER, payload BLOB, PRIMARY KEY (command, part));
    CREATE TABLE mirror (command INTEGER, part INTEGER, bytes INTEGER, PRIMARY KEY (command, part)) WITHOUT ROWID;
    CREATE TABLE total (parts INTEGER, bytes INTEGER);
    CREATE TABLE filler (id INTEGER PRIMARY KEY, payload BLOB);
    CREATE INDEX by_size ON part (length(payload));
    CREATE TRIGGER added AFTER INSERT ON part BEGIN
        INSERT INTO mirror VALUES (new.command, new.part, length(new.payload));
        UPDATE total SET parts = parts + 1, bytes = bytes + length(new.payload);
    END;
    INSERT INTO total VALUES (0, 0);
    INSERT INTO part VALUES (0, 0, 'there from the start');";

/// The first number of the entries of an import; those of commands are below.
pub(crate) const IMPORT: i64 = 1_000_000_000;

/// How the commands of two tasks are told apart.
pub(crate) const PER_TASK: i64 = 1_000_000;

/// How many rows a command writes.
pub(crate) fn parts(command: i64) -> i64 {
    1 + command % 4
}

/// What it writes into a row.
pub(crate) fn payload(command: i64, part: i64) -> Vec<u8> {
    let bytes = [20, 60, 200, 700, 40, 2_000, 90][((command * 7 + part * 3) % 7) as usize];
    vec![(command * 31 + part) as u8; bytes]
}

pub(crate) const INSERT: &str = "INSERT INTO part VALUES (?1, ?2, ?3)";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Acked(Durability),
    NotApplied,
    Unknown,
}

/// An answer, and how much had been recorded of the files when it was there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answered {
    pub(crate) command: i64,
    pub(crate) told: Told,
    pub(crate) at: usize,
}

/// Every answer of a service.
#[derive(Debug, Default)]
pub(crate) struct Ledger(Mutex<Vec<Answered>>);

impl Ledger {
    pub(crate) fn answered<T, E>(
        &self,
        command: i64,
        durability: Durability,
        answer: &Result<T, WriteError<E>>,
        at: usize,
    ) {
        let told = match answer {
            Ok(_) => Told::Acked(durability),
            Err(error) if error.outcome() == Outcome::Unknown => Told::Unknown,
            Err(_) => Told::NotApplied,
        };
        self.note(command, told, at);
    }

    pub(crate) fn note(&self, command: i64, told: Told, at: usize) {
        self.0.lock().unwrap().push(Answered { command, told, at });
    }

    /// Everything that was answered, in the order of the answers.
    pub(crate) fn answers(&self) -> Vec<Answered> {
        let mut answers = self.0.lock().unwrap().clone();
        answers.sort_by_key(|answered| answered.at);
        answers
    }
}

/// How a file was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The process ended: whatever was committed is there.
    Kill,
    /// So did the machine: whatever was acknowledged as durable is there.
    PowerLoss,
}

/// Compares a file that nobody has open, and that was left when `recorded` changes were recorded, with the answers.
/// Returns the commands that are there.
pub(crate) fn examine(
    path: &Path,
    answers: &[Answered],
    recorded: usize,
    end: End,
    tally: &mut Tally,
) -> HashSet<i64> {
    tally.cases += 1;
    try_examine(path, answers, recorded, end, tally).unwrap_or_else(|error| {
        tally.wrong(Wrong::Corrupt, || format!("{error}, after {recorded} changes"));
        HashSet::new()
    })
}

fn try_examine(
    path: &Path,
    answers: &[Answered],
    recorded: usize,
    end: End,
    tally: &mut Tally,
) -> rusqlite::Result<HashSet<i64>> {
    let connection = Connection::open(path)?;
    // The image is thrown away: no shared memory, no last checkpoint.
    connection.execute_batch("PRAGMA locking_mode = EXCLUSIVE; PRAGMA synchronous = OFF")?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    let intact: String = connection.query_row("PRAGMA integrity_check", (), |row| row.get(0))?;
    tally.check(intact == "ok", Wrong::Corrupt, || format!("{intact}, after {recorded} changes"));
    let schema = "SELECT count(*) > 0 FROM sqlite_schema WHERE name = 'part'";
    if !connection.query_row(schema, (), |row| row.get(0))? {
        // The power went before the tables were there. The first command is the one that makes them.
        for Answered { told, at, .. } in answers {
            let is_acked = matches!(told, Told::Acked(Durability::Full)) && *at <= recorded;
            tally.check(!is_acked, Wrong::Lost, || format!("every table, after {recorded} changes"));
        }
        return Ok(HashSet::new());
    }
    let found = found(&connection)?;
    for (command, found) in &found {
        let whole = found.parts == parts(*command) && found.mirrored == found.parts;
        tally.check(*command == 0 || whole, Wrong::Half, || format!("command {command}: {found:?}"));
    }
    let sums = "SELECT (SELECT count(*) FROM part), (SELECT sum(length(payload)) FROM part), parts, bytes FROM total";
    let (parts, bytes, parts_counted, bytes_counted): (i64, i64, i64, i64) =
        connection.query_row(sums, (), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
    tally.check(parts == parts_counted, Wrong::Half, || format!("{parts} rows, {parts_counted} counted"));
    tally.check(bytes == bytes_counted, Wrong::Half, || format!("{bytes} bytes, {bytes_counted} counted"));
    let is_there = |command: &i64| found.contains_key(command);
    let mut newest_there = HashMap::<i64, i64>::new();
    for command in found.keys() {
        let newest = newest_there.entry(command / PER_TASK).or_default();
        *newest = (*newest).max(*command);
    }
    for Answered { command, told, at } in answers {
        let is_told = *at <= recorded;
        let there = is_there(command);
        let example = || format!("command {command}, told {told:?} at {at}, after {recorded} changes");
        match told {
            Told::Acked(durability) => {
                let must_be_there = is_told && (end == End::Kill || *durability == Durability::Full);
                tally.check(there || !must_be_there, Wrong::Lost, example);
                // What one task has sent takes effect in that order, and is lost from its end.
                let has_successor =
                    newest_there.get(&(command / PER_TASK)).is_some_and(|newest| newest > command);
                tally.check(there || !has_successor, Wrong::Broken, || format!("a hole: {}", example()));
            }
            Told::NotApplied => {
                tally.check(!there || !is_told, Wrong::Ghost, example);
            }
            Told::Unknown => tally.checks += 1,
        }
    }
    check_import(&connection, &found, tally)?;
    Ok(found.into_keys().collect())
}

/// What is there of a command.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    parts: i64,
    mirrored: i64,
}

fn found(connection: &Connection) -> rusqlite::Result<HashMap<i64, Found>> {
    let mut found = HashMap::<i64, Found>::new();
    let mut parts = connection.prepare("SELECT command, count(*) FROM part GROUP BY command")?;
    for row in parts.query_map((), |row| Ok((row.get(0)?, row.get(1)?)))? {
        let (command, parts) = row?;
        found.entry(command).or_default().parts = parts;
    }
    let mut mirrored = connection.prepare("SELECT command, count(*) FROM mirror GROUP BY command")?;
    for row in mirrored.query_map((), |row| Ok((row.get(0)?, row.get(1)?)))? {
        let (command, mirrored) = row?;
        found.entry(command).or_default().mirrored = mirrored;
    }
    Ok(found)
}

/// What is written down of the import is what is there of it.
fn check_import(
    connection: &Connection,
    found: &HashMap<i64, Found>,
    tally: &mut Tally,
) -> rusqlite::Result<()> {
    let has_record = "SELECT 1 FROM sqlite_schema WHERE name = 'solewriter_imports'";
    let next_entry: Option<i64> = match connection.query_row(has_record, (), |_| Ok(())).optional()? {
        Some(()) => connection
            .query_row("SELECT next_entry FROM solewriter_imports", (), |row| row.get(0))
            .optional()?,
        None => None,
    };
    let next_entry = next_entry.unwrap_or(0);
    let imported = found.keys().filter(|command| **command >= IMPORT).count() as i64;
    let settled = (IMPORT..IMPORT + next_entry).filter(|entry| !entry_fails(*entry));
    let (wanted, there) = settled
        .fold((0, 0), |(wanted, there), entry| (wanted + 1, there + i64::from(found.contains_key(&entry))));
    let agrees = wanted == there && there == imported;
    tally.check(agrees, Wrong::Half, || {
        format!("{next_entry} entries are settled, {there} of {wanted} are there, {imported} in all")
    });
    Ok(())
}

/// Whether an entry of the import is a bad one.
pub(crate) fn entry_fails(entry: i64) -> bool {
    entry % 13 == 5
}
