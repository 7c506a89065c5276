//! What to do about what was found.

use indicatif::{HumanBytes, HumanCount};

use super::Report;
use super::files::JournalMode;
use super::locks::SoleWriter;
use super::reading::How;
use crate::pragmas::{AutoVacuum, Settings};

/// A WAL of this size is not the usual: a service begins it anew every 4,000 pages.
const MANY_WAL_BYTES: u64 = 64 << 20;

/// From how much free space on, in percent of the file and in bytes, VACUUM is worth its time.
const MUCH_FREE_PERCENT: u64 = 25;
const MUCH_FREE_BYTES: u64 = 1 << 20;

/// The page size SQLite has chosen since 2016.
const USUAL_PAGE_BYTES: u64 = 4096;

/// One sentence or two for each thing that could be better, the worst first.
pub(super) fn on(report: &Report) -> Vec<String> {
    let mut advice = Vec::new();
    damage(report, &mut advice);
    journal(report, &mut advice);
    users(report, &mut advice);
    if let Some(settings) = &report.settings {
        space(settings, &mut advice);
    }
    advice
}

fn damage(report: &Report, advice: &mut Vec<String>) {
    if report.integrity.found > 0 {
        advice.push(
            "The file is damaged. Stop writing to it, keep a copy with its -wal file, and restore a backup; without \
             one, the .recover command of the sqlite3 shell saves what it can."
                .into(),
        );
    }
    if report.foreign_keys.found > 0 {
        advice.push(format!(
            "Foreign keys are violated (in {} places): somebody wrote with foreign_keys off, which is SQLite's default. \
             Delete the rows or add what they refer to; a service has it on.",
            HumanCount(report.foreign_keys.found)
        ));
    }
    if report.integrity.error.is_some() || report.foreign_keys.error.is_some() {
        advice.push("A check could not be finished, so nobody can say yet that the file is fine.".into());
    }
}

fn journal(report: &Report, advice: &mut Vec<String>) {
    if report.journal_mode == JournalMode::Rollback {
        advice.push(
            "Not in WAL mode: readers and writers stand in each other's way. Open it once with solewriter, which \
             sets the mode for good."
                .into(),
        );
    }
    if report.read == How::Copy {
        advice.push(
            "A copy was inspected, as it is after recovery: the last process that wrote did not close the database. \
             The next one that opens it will recover it."
                .into(),
        );
    }
    let Some(wal) = report.wal else { return };
    let bytes = report.wal_bytes.unwrap_or_default();
    if let Some(left) = wal.frames_not_checkpointed.filter(|_| bytes >= MANY_WAL_BYTES)
        && left * 2 >= wal.frames
    {
        advice.push(format!(
            "The WAL has {} frames that are not checkpointed, and {}: a reader pins it, or nobody checkpoints. Find \
             reads that never end (`Database::oldest_read`), and end them.",
            HumanCount(left),
            HumanBytes(bytes)
        ));
    } else if bytes >= MANY_WAL_BYTES {
        advice.push(format!(
            "The WAL file once grew to {} and keeps that size. A shutdown of the service gives it back.",
            HumanBytes(bytes)
        ));
    }
}

fn users(report: &Report, advice: &mut Vec<String>) {
    let users = &report.users;
    let sole_writer = users.sole_writer.held_by();
    let others: Vec<_> = users.connected.iter().filter(|&&pid| Some(pid) != sole_writer).collect();
    if let (false, SoleWriter::Held { .. }) = (others.is_empty(), users.sole_writer) {
        advice.push(format!(
            "Other processes than the sole writer have it open ({}): what they write costs the service waits, and \
             what they read for long pins the WAL.",
            list(&others)
        ));
    }
}

fn space(settings: &Settings, advice: &mut Vec<String>) {
    let Settings { page_bytes, pages, free_pages, auto_vacuum, .. } = *settings;
    let free_bytes = free_pages * page_bytes;
    if free_bytes >= MUCH_FREE_BYTES && free_pages * 100 >= pages * MUCH_FREE_PERCENT {
        let cure = match auto_vacuum {
            AutoVacuum::Incremental => "PRAGMA incremental_vacuum gives it back bit by bit, VACUUM at once",
            _ => "VACUUM pays, through `Database::maintain` while a service runs",
        };
        let percent = free_pages * 100 / pages;
        advice.push(format!("{percent} % of the file, {}, are free pages: {cure}.", HumanBytes(free_bytes)));
    }
    if auto_vacuum == AutoVacuum::Full {
        advice.push(
            "auto_vacuum is full: each commit that frees pages moves others. Incremental, or VACUUM now and then, \
             costs writers less."
                .into(),
        );
    }
    if page_bytes < USUAL_PAGE_BYTES {
        advice.push(format!(
            "Pages have {page_bytes} bytes: each commit writes more of them than with {USUAL_PAGE_BYTES}. Only VACUUM \
             outside of WAL mode changes the size."
        ));
    }
    if settings.indexes > 0 && !settings.analyzed {
        advice.push(
            "The query planner has no statistics. Run PRAGMA optimize now and then, as `Maintenance::optimize` does."
                .into(),
        );
    }
}

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}
