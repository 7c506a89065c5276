//! What is written down of each import, in tables of the service's own: how far it is, so that it can go on
//! after a crash, and how it went.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, ToSql};
use serde::Serialize;

use super::running::Ended;
use crate::failed::Reason;
use crate::label::Label;
use crate::transaction::{ReadTransaction, WriteTransaction};
use crate::units::{from_unix_millis, micros, to_unix_millis, unix_millis};

/// Which import it is: the same id again means the same import, to go on with.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ImportId(#[serde(serialize_with = "as_str")] Arc<str>);

fn as_str<S: serde::Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

impl ImportId {
    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for ImportId {
    fn from(id: &str) -> Self {
        Self(id.into())
    }
}

impl From<String> for ImportId {
    fn from(id: String) -> Self {
        Self(id.into())
    }
}

impl Borrow<str> for ImportId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ImportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ImportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// How an import stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ImportState {
    /// It is at work.
    Running,
    /// It waits to be resumed.
    Paused,
    /// It has come to the end of its stream.
    Complete,
    /// Somebody cancelled it.
    Cancelled,
    /// It stopped before the end of its stream: too many failures, or the writer took no more.
    Stopped,
    /// Its process ended or its future was dropped before it could write down its end.
    Interrupted,
}

impl ImportState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Complete => "complete",
            Self::Cancelled => "cancelled",
            Self::Stopped => "stopped",
            Self::Interrupted => "interrupted",
        }
    }

    /// The state of a record whose import does not run now.
    fn of_record(state: &str) -> Self {
        match state {
            "complete" => Self::Complete,
            "cancelled" => Self::Cancelled,
            "stopped" => Self::Stopped,
            _ => Self::Interrupted,
        }
    }
}

impl fmt::Display for ImportState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is written down of an import, over all of its runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ImportRecord {
    /// Which import it is.
    pub id: ImportId,
    /// Its label.
    pub label: Label,
    /// How it stands.
    pub state: ImportState,
    /// When its last run began.
    #[serde(rename = "started_at_ms", serialize_with = "unix_millis")]
    pub started_at: SystemTime,
    /// When its last run ended.
    #[serde(rename = "ended_at_ms", serialize_with = "optional_unix_millis")]
    pub ended_at: Option<SystemTime>,
    /// The resume token: every entry of the stream before this one is settled, imported or failed.
    pub next_entry: u64,
    /// Entries that are committed.
    pub accepted: u64,
    /// Entries that failed and left nothing behind.
    pub failed: u64,
    /// Batches that were committed.
    pub batches: u64,
    /// Batches that were lost and tried again.
    pub batches_lost: u64,
    /// The longest a batch's group held the write lock, but for the last batch of a run that was interrupted.
    #[serde(rename = "hold_max_us", serialize_with = "micros")]
    pub hold_max: Duration,
    /// The last entries that failed, up to ten.
    pub failures: Vec<RecordedFailure>,
}

fn optional_unix_millis<S: serde::Serializer>(
    time: &Option<SystemTime>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    time.map(to_unix_millis).serialize(serializer)
}

/// An entry that failed, as it is written down: without any bound value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RecordedFailure {
    /// Its place in the stream, from 0.
    pub entry: u64,
    /// Why it failed, in words.
    pub reason: String,
    /// SQLite's extended result code, if there is one behind it.
    pub extended_code: Option<i32>,
    /// The constraint that failed, as the schema names it.
    pub constraint: Option<String>,
}

/// How many failures of an import are written down.
const FAILURES_KEPT: usize = 10;

/// Of imports without an id of their own this many records are kept; nobody can go on with them.
const UNNAMED_KEPT: u32 = 1_000;

// A number is never given twice: a batch of an import whose record was deleted must not find that of another.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS solewriter_imports (
        number       INTEGER PRIMARY KEY AUTOINCREMENT,
        id           TEXT NOT NULL UNIQUE,
        is_named     INTEGER NOT NULL,
        label        TEXT NOT NULL,
        state        TEXT NOT NULL,
        started_at   INTEGER NOT NULL,
        ended_at     INTEGER,
        next_entry   INTEGER NOT NULL DEFAULT 0,
        accepted     INTEGER NOT NULL DEFAULT 0,
        failed       INTEGER NOT NULL DEFAULT 0,
        batches      INTEGER NOT NULL DEFAULT 0,
        batches_lost INTEGER NOT NULL DEFAULT 0,
        hold_max_us  INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE INDEX IF NOT EXISTS solewriter_imports_ended ON solewriter_imports (ended_at);
    CREATE TABLE IF NOT EXISTS solewriter_import_failures (
        import          INTEGER NOT NULL,
        entry           INTEGER NOT NULL,
        reason          TEXT NOT NULL,
        extended_code   INTEGER,
        constraint_name TEXT,
        PRIMARY KEY (import, entry)
    ) STRICT, WITHOUT ROWID;";

const HAS_TABLE: &str = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'solewriter_imports'";

/// Where an import begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    pub(super) number: i64,
    pub(super) next_entry: u64,
    pub(super) is_complete: bool,
}

/// Writes down that an import begins, or goes on.
pub(super) fn begin(
    tx: &mut WriteTransaction<'_>,
    id: &ImportId,
    is_named: bool,
    label: &Label,
    at: SystemTime,
    running: &[ImportId],
) -> rusqlite::Result<Begun> {
    if tx.query_row(HAS_TABLE, (), |_| Ok(())).optional()?.is_none() {
        tx.execute_batch(SCHEMA)?;
    }
    let known = tx
        .query_row(
            "SELECT number, next_entry, state, accepted, failed FROM solewriter_imports WHERE id = ?1",
            [&*id.0],
            begun,
        )
        .optional()?;
    if let Some(Begun { number, .. }) = known
        && is_named
    {
        // It may have begun without: from now on it must be kept.
        tx.execute("UPDATE solewriter_imports SET is_named = 1 WHERE number = ?1", [number])?;
    }
    match known {
        Some(begun) if begun.is_complete => Ok(begun),
        Some(begun) => {
            tx.execute(
                "UPDATE solewriter_imports SET state = 'running', label = ?2, started_at = ?3, ended_at = NULL
                 WHERE number = ?1",
                (begun.number, &**label, to_unix_millis(at)),
            )?;
            Ok(begun)
        }
        None => {
            forget_old(tx, running)?;
            tx.execute(
                "INSERT INTO solewriter_imports (id, is_named, label, state, started_at)
                 VALUES (?1, ?2, ?3, 'running', ?4)",
                (&*id.0, is_named, &**label, to_unix_millis(at)),
            )?;
            Ok(Begun { number: tx.last_insert_rowid(), next_entry: 0, is_complete: false })
        }
    }
}

/// Where a record says that its import goes on.
///
/// Every entry before that one was imported or has failed. A record of which this is not true is damaged, and to go on
/// there could leave entries out, or import them twice.
fn begun(row: &Row<'_>) -> rusqlite::Result<Begun> {
    let count = |column| row.get::<_, i64>(column).map(u64::try_from);
    let is_complete = row.get_ref(2)?.as_str()? == ImportState::Complete.as_str();
    match (count(1)?, count(3)?, count(4)?) {
        (Ok(next_entry), Ok(accepted), Ok(failed)) if accepted.checked_add(failed) == Some(next_entry) => {
            Ok(Begun { number: row.get(0)?, next_entry, is_complete })
        }
        _ => {
            let damaged =
                "the record of the import is damaged: `next_entry` is not `accepted` and `failed` together";
            Err(rusqlite::Error::FromSqlConversionFailure(1, Type::Integer, damaged.into()))
        }
    }
}

/// Keeps the table small. Records with an id of their own stay, since they say what must not be imported twice, and
/// those of imports that run, however long ago they began.
fn forget_old(tx: &mut WriteTransaction<'_>, running: &[ImportId]) -> rusqlite::Result<()> {
    let old: Vec<String> = tx.query_all(
        "SELECT id FROM solewriter_imports
         WHERE is_named = 0 AND number <= (SELECT max(number) - ?1 FROM solewriter_imports)",
        [UNNAMED_KEPT - 1],
        |row| row.get(0),
    )?;
    for id in old.into_iter().map(ImportId::from).filter(|id| !running.contains(id)) {
        forget(tx, &id)?;
    }
    Ok(())
}

/// What a batch has done.
#[derive(Debug, Default)]
pub(super) struct Advance {
    /// Every entry before this one is settled now.
    pub(super) next_entry: u64,
    pub(super) accepted: u64,
    pub(super) batches: u64,
    pub(super) failures: Vec<(u64, Reason)>,
    /// Of earlier batches, which are known only afterwards.
    pub(super) batches_lost: u64,
    pub(super) hold_max: Duration,
}

/// Writes down how far an import is: in the transaction of what it has imported, so that both are committed, or
/// neither.
pub(super) fn advance(tx: &mut WriteTransaction<'_>, number: i64, by: &Advance) -> rusqlite::Result<()> {
    let changed = tx.execute(
        "UPDATE solewriter_imports SET next_entry = ?2, accepted = accepted + ?3, failed = failed + ?4,
             batches = batches + ?5, batches_lost = batches_lost + ?6, hold_max_us = max(hold_max_us, ?7)
         WHERE number = ?1",
        (
            number,
            integer(by.next_entry),
            integer(by.accepted),
            integer(by.failures.len() as u64),
            integer(by.batches),
            integer(by.batches_lost),
            i64::try_from(by.hold_max.as_micros()).unwrap_or(i64::MAX),
        ),
    )?;
    if changed != 1 {
        // Somebody has deleted it, and with it what would keep a second run from importing twice.
        return Err(rusqlite::Error::StatementChangedRows(changed));
    }
    write_failures(tx, number, &by.failures)
}

fn write_failures(
    tx: &mut WriteTransaction<'_>,
    number: i64,
    failures: &[(u64, Reason)],
) -> rusqlite::Result<()> {
    if failures.is_empty() {
        return Ok(());
    }
    for (entry, reason) in failures.iter().rev().take(FAILURES_KEPT) {
        let values: [&dyn ToSql; 5] =
            [&number, &integer(*entry), &reason.text, &reason.extended_code, &reason.constraint];
        tx.execute("INSERT OR REPLACE INTO solewriter_import_failures VALUES (?1, ?2, ?3, ?4, ?5)", values)?;
    }
    tx.execute(
        "DELETE FROM solewriter_import_failures WHERE import = ?1 AND entry NOT IN (
             SELECT entry FROM solewriter_import_failures WHERE import = ?1 ORDER BY entry DESC LIMIT ?2)",
        (number, FAILURES_KEPT as i64),
    )?;
    Ok(())
}

/// Writes down how an import ended.
pub(super) fn end(
    tx: &mut WriteTransaction<'_>,
    number: i64,
    state: ImportState,
    at: SystemTime,
) -> rusqlite::Result<()> {
    tx.execute(
        "UPDATE solewriter_imports SET state = ?2, ended_at = ?3 WHERE number = ?1",
        (number, state.as_str(), to_unix_millis(at)),
    )?;
    Ok(())
}

/// Removes the record of an import; true if there was one.
pub(crate) fn forget(tx: &mut WriteTransaction<'_>, id: &ImportId) -> rusqlite::Result<bool> {
    if tx.query_row(HAS_TABLE, (), |_| Ok(())).optional()?.is_none() {
        return Ok(false);
    }
    tx.execute(
        "DELETE FROM solewriter_import_failures
         WHERE import = (SELECT number FROM solewriter_imports WHERE id = ?1)",
        [&*id.0],
    )?;
    Ok(tx.execute("DELETE FROM solewriter_imports WHERE id = ?1", [&*id.0])? > 0)
}

/// The newest records, the newest first.
pub(crate) fn list(tx: &ReadTransaction<'_>, limit: usize) -> rusqlite::Result<Vec<ImportRecord>> {
    if tx.query_row(HAS_TABLE, (), |_| Ok(())).optional()?.is_none() {
        return Ok(Vec::new());
    }
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let numbered = tx.query_all(
        "SELECT number, id, label, state, started_at, ended_at, next_entry, accepted, failed, batches,
             batches_lost, hold_max_us
         FROM solewriter_imports ORDER BY started_at DESC, number DESC LIMIT ?1",
        [limit],
        |row| Ok((row.get::<_, i64>(0)?, record(row)?)),
    )?;
    let with_failures = numbered.into_iter().map(|(number, record)| {
        let failures = tx.query_all(
            "SELECT entry, reason, extended_code, constraint_name FROM solewriter_import_failures
             WHERE import = ?1 ORDER BY entry",
            [number],
            failure,
        )?;
        Ok(ImportRecord { failures, ..record })
    });
    with_failures.collect()
}

fn record(row: &Row<'_>) -> rusqlite::Result<ImportRecord> {
    let count = |column| row.get::<_, i64>(column).map(i64::unsigned_abs);
    Ok(ImportRecord {
        id: row.get::<_, String>(1)?.into(),
        label: row.get::<_, String>(2)?.into(),
        state: ImportState::of_record(row.get_ref(3)?.as_str()?),
        started_at: from_unix_millis(row.get(4)?),
        ended_at: row.get::<_, Option<i64>>(5)?.map(from_unix_millis),
        next_entry: count(6)?,
        accepted: count(7)?,
        failed: count(8)?,
        batches: count(9)?,
        batches_lost: count(10)?,
        hold_max: Duration::from_micros(count(11)?),
        failures: Vec::new(),
    })
}

fn failure(row: &Row<'_>) -> rusqlite::Result<RecordedFailure> {
    Ok(RecordedFailure {
        entry: row.get::<_, i64>(0)?.unsigned_abs(),
        reason: row.get(1)?,
        extended_code: row.get(2)?,
        constraint: row.get(3)?,
    })
}

/// The imports of earlier openings that ended within the last hour.
pub(super) fn ended_within(connection: &Connection, age: Duration) -> rusqlite::Result<Vec<Ended>> {
    if connection.query_row(HAS_TABLE, (), |_| Ok(())).optional()?.is_none() {
        return Ok(Vec::new());
    }
    let since = to_unix_millis(SystemTime::now()).saturating_sub_unsigned(age.as_millis() as u64);
    let mut statement = connection.prepare(
        "SELECT ended_at, started_at, hold_max_us FROM solewriter_imports WHERE ended_at >= ?1 ORDER BY ended_at",
    )?;
    let ended = statement.query_map([since], |row| {
        let (ended_at, started_at, hold_max): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let took = u64::try_from(ended_at.saturating_sub(started_at)).unwrap_or_default();
        let took = Duration::from_millis(took);
        let hold_max = Duration::from_micros(hold_max.unsigned_abs());
        Ok(Ended { at: from_unix_millis(ended_at), took, hold_max })
    })?;
    ended.collect()
}

/// SQLite's integers have a sign; no stream is that long.
fn integer(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
