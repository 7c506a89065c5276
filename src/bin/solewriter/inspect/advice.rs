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

#[cfg(test)]
mod tests {
    use super::super::locks::Users;
    use super::super::wal::Wal;
    use super::*;
    use crate::pragmas::Check;

    type Change = Box<dyn Fn(&mut Report)>;

    /// A database that nothing is to be said about.
    fn report() -> Report {
        Report {
            path: "test.db".into(),
            read: How::InPlace,
            journal_mode: JournalMode::Wal,
            database_bytes: 4096,
            wal_bytes: Some(0),
            shm_bytes: Some(32_768),
            journal_bytes: None,
            wal: Some(Wal { frames: 0, frames_in_use: Some(0), frames_not_checkpointed: Some(0) }),
            users: Users {
                sole_writer: SoleWriter::Held { pid: Some(7) },
                is_connected: Some(true),
                connected: vec![7],
                writing: None,
            },
            settings: Some(Settings {
                page_bytes: 4096,
                pages: 1_000,
                free_pages: 100,
                auto_vacuum: AutoVacuum::None,
                encoding: "UTF-8".into(),
                user_version: 0,
                application_id: 0,
                schema_version: 1,
                tables: 1,
                indexes: 1,
                analyzed: true,
            }),
            integrity: Check::default(),
            foreign_keys: Check::default(),
            advice: Vec::new(),
        }
    }

    #[test]
    fn there_is_one_piece_of_advice_for_each_thing() {
        assert_eq!(on(&report()), Vec::<String>::new());
        let large = |left| {
            move |report: &mut Report| {
                report.wal_bytes = Some(480 << 20);
                report.wal = Some(Wal {
                    frames: 120_000,
                    frames_in_use: Some(left),
                    frames_not_checkpointed: Some(left),
                });
            }
        };
        let settings = |set: fn(&mut Settings)| {
            move |report: &mut Report| {
                if let Some(settings) = &mut report.settings {
                    set(settings);
                }
            }
        };
        let cases: [(&str, Change); 12] = [
            ("The file is damaged", Box::new(|report| report.integrity.found = 1)),
            ("Foreign keys are violated", Box::new(|report| report.foreign_keys.found = 1)),
            (
                "could not be finished",
                Box::new(|report| report.integrity.error = Some("no such function".into())),
            ),
            ("Not in WAL mode", Box::new(|report| report.journal_mode = JournalMode::Rollback)),
            ("A copy was inspected", Box::new(|report| report.read = How::Copy)),
            ("120,000 frames that are not checkpointed", Box::new(large(120_000))),
            ("once grew to 480.00 MiB", Box::new(large(10))),
            ("have it open (8, 9)", Box::new(|report| report.users.connected = vec![7, 8, 9])),
            ("60 % of the file", Box::new(settings(|settings| settings.free_pages = 600))),
            ("auto_vacuum is full", Box::new(settings(|settings| settings.auto_vacuum = AutoVacuum::Full))),
            ("Pages have 1024 bytes", Box::new(settings(|settings| settings.page_bytes = 1024))),
            ("no statistics", Box::new(settings(|settings| settings.analyzed = false))),
        ];
        for (wanted, change) in cases {
            let mut report = report();
            change(&mut report);
            let advice = on(&report);
            assert!(advice.len() == 1 && advice[0].contains(wanted), "{wanted}: {advice:?}");
        }
    }
}
