//! `solewriter inspect`: what is in a file, who has it open, whether it is intact, and what to do about it.
//!
//! `files` says what lies on the disk, `wal` and `locks` read it and who uses it, `reading` opens it so that
//! nothing changes, `advice` draws the conclusions, and `text` tells them.

mod advice;
mod files;
mod locks;
mod reading;
mod text;
mod wal;

use std::path::Path;

use rusqlite::{Connection, ErrorCode};
use serde::Serialize;

use crate::cli::Inspect;
use crate::pragmas::{self, Check, Settings, Violation};
use crate::{Refusal, Verdict, output};
pub(crate) use files::beside;
use files::{Files, JournalMode};
use locks::Users;
use reading::How;
use wal::Wal;

/// Everything there is to say about a database.
#[derive(Debug, Serialize)]
struct Report {
    /// As text: JSON has no other bytes.
    path: String,
    /// How the file was read without a change to it.
    read: How,
    journal_mode: JournalMode,
    database_bytes: u64,
    wal_bytes: Option<u64>,
    shm_bytes: Option<u64>,
    journal_bytes: Option<u64>,
    wal: Option<Wal>,
    #[serde(flatten)]
    users: Users,
    /// `None` if not even that could be read.
    settings: Option<Settings>,
    integrity: Check<String>,
    foreign_keys: Check<Violation>,
    advice: Vec<String>,
}

/// What SQLite says.
struct Examined {
    settings: Option<Settings>,
    integrity: Check<String>,
    foreign_keys: Check<Violation>,
}

/// Asks a database something without a change to it.
pub(crate) fn read<T>(path: &Path, ask: impl Fn(&Connection) -> rusqlite::Result<T>) -> Result<T, Refusal> {
    let (answer, _how) = reading::read(&files::find(path)?, ask)?;
    Ok(answer)
}

pub(crate) fn run(options: &Inspect) -> Result<Verdict, Refusal> {
    let report = inspect(&options.file)?;
    let text = if options.json { output::json(&report)? } else { text::of(&report) };
    output::print(&text)?;
    let is_fine = report.integrity.is_fine() && report.foreign_keys.is_fine();
    Ok(if is_fine { Verdict::Fine } else { Verdict::Problems })
}

fn inspect(path: &Path) -> Result<Report, Refusal> {
    let path = files::find(path)?;
    // All that is read from the files directly is read now, while this process has no SQLite connection: closing a
    // descriptor would drop the locks of that connection
    // (https://www.sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_).
    let files = Files::look(&path)?;
    let users = locks::users(&path);
    let wal = wal::read(&path, &users)?;
    let (examined, read) = reading::read(&path, examine)?;
    let mut report = Report {
        path: path.display().to_string(),
        read,
        journal_mode: files.journal_mode,
        database_bytes: files.database.bytes,
        wal_bytes: files.wal.map(|wal| wal.bytes),
        shm_bytes: files.shm.map(|shm| shm.bytes),
        journal_bytes: files.journal.map(|journal| journal.bytes),
        wal,
        users,
        settings: examined.settings,
        integrity: examined.integrity,
        foreign_keys: examined.foreign_keys,
        advice: Vec::new(),
    };
    report.advice = advice::on(&report);
    Ok(report)
}

/// Asks SQLite for everything; damage is a finding, not an error.
fn examine(connection: &Connection) -> rusqlite::Result<Examined> {
    let settings = match pragmas::settings(connection) {
        Ok(settings) => Some(settings),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt) => None,
        Err(error) => return Err(error),
    };
    let integrity = pragmas::integrity_check(connection);
    let foreign_keys = pragmas::foreign_key_check(connection);
    Ok(Examined { settings, integrity, foreign_keys })
}
