//! The report for people.

use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{HumanBytes, HumanCount};

use super::Report;
use super::files::JournalMode;
use super::locks::{SoleWriter, Users};
use super::reading::How;
use super::wal::Wal;
use crate::pragmas::{AutoVacuum, Check, Settings, Violation};

pub(super) fn of(report: &Report) -> String {
    let mut facts = Facts::default();
    files(report, &mut facts);
    users(&report.users, &mut facts);
    match &report.settings {
        Some(settings) => self::settings(settings, &mut facts),
        None => facts.add("settings", "can't be read"),
    }
    facts.add("integrity", outcome(&report.integrity, "problems"));
    facts.add("foreign keys", outcome(&report.foreign_keys, "violations"));
    let mut text = format!("{}\n{}", report.path, facts.table());
    section(&mut text, "damage", report.integrity.first.iter().map(String::clone));
    section(&mut text, "violated foreign keys", report.foreign_keys.first.iter().map(violation));
    section(&mut text, "advice", report.advice.iter().map(String::clone));
    // Names come from the file, which may come from someone else: they must not command the terminal.
    text.replace(|c: char| c.is_control() && c != '\n', "\u{fffd}")
}

/// Two columns.
#[derive(Default)]
struct Facts(Vec<[String; 2]>);

impl Facts {
    fn add(&mut self, name: &str, value: impl Into<String>) {
        self.0.push([name.to_owned(), value.into()]);
    }

    fn table(self) -> String {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled)
            .add_rows(self.0);
        table.trim_fmt()
    }
}

fn files(report: &Report, facts: &mut Facts) {
    let mode = match report.journal_mode {
        JournalMode::Wal => "wal",
        JournalMode::Rollback => "rollback (delete, truncate or persist, as each connection chooses)",
    };
    facts.add("journal mode", mode);
    facts.add(
        "read",
        match report.read {
            How::InPlace => "in place",
            How::FileAlone => "in place, without locks: nothing is in a WAL",
            How::Copy => "from a copy in the temporary directory, gone again: the files need recovery",
        },
    );
    let sizes = [
        ("database", Some(report.database_bytes)),
        ("-wal", report.wal_bytes),
        ("-shm", report.shm_bytes),
        ("-journal", report.journal_bytes),
    ];
    for (name, bytes) in sizes {
        if let Some(bytes) = bytes {
            facts.add(name, HumanBytes(bytes).to_string());
        }
    }
    if let Some(wal) = report.wal {
        facts.add("WAL frames", frames(wal));
    }
}

fn frames(wal: Wal) -> String {
    let count =
        |frames: Option<u64>| frames.map_or("unknown".into(), |frames| HumanCount(frames).to_string());
    format!(
        "{} in the file, in use: {}, not checkpointed: {}",
        HumanCount(wal.frames),
        count(wal.frames_in_use),
        count(wal.frames_not_checkpointed)
    )
}

fn users(users: &Users, facts: &mut Facts) {
    let process = |pid: Option<u32>| pid.map_or("an unknown process".into(), |pid| format!("process {pid}"));
    facts.add(
        "sole writer",
        match users.sole_writer {
            SoleWriter::Never => "none: no service has opened it here".into(),
            SoleWriter::Free { last_pid: None } => "none".into(),
            SoleWriter::Free { last_pid } => format!("none, the last was {}", process(last_pid)),
            SoleWriter::Held { pid } => process(pid),
            SoleWriter::Unknown { last_pid: None } => "unknown".into(),
            SoleWriter::Unknown { last_pid } => {
                format!("unknown, the last was or still is {}", process(last_pid))
            }
        },
    );
    let pids: Vec<_> = users.connected.iter().map(u32::to_string).collect();
    facts.add(
        "WAL open in",
        match users.is_connected {
            _ if !pids.is_empty() => format!("process {}", pids.join(", ")),
            Some(true) => "an unknown process".into(),
            Some(false) => "no process".into(),
            None => "unknown".into(),
        },
    );
    if let Some(pid) = users.writing {
        facts.add("write lock", format!("process {pid}, at that moment"));
    }
}

fn settings(settings: &Settings, facts: &mut Facts) {
    facts.add("page size", format!("{} bytes", settings.page_bytes));
    let free = HumanCount(settings.free_pages);
    facts.add("pages", format!("{}, {free} of them free", HumanCount(settings.pages)));
    facts.add(
        "auto_vacuum",
        match settings.auto_vacuum {
            AutoVacuum::None => "none",
            AutoVacuum::Full => "full",
            AutoVacuum::Incremental => "incremental",
        },
    );
    facts.add("encoding", settings.encoding.as_str());
    facts.add("schema", format!("{} tables, {} indexes", settings.tables, settings.indexes));
    facts.add("user_version", settings.user_version.to_string());
    facts.add("application_id", settings.application_id.to_string());
    facts.add("schema_version", settings.schema_version.to_string());
}

fn outcome<T>(check: &Check<T>, what: &str) -> String {
    match &check.error {
        Some(error) => format!("{what}: {}, then: {error}", HumanCount(check.found)),
        None if check.found == 0 => "ok".into(),
        None => format!("{what}: {}", HumanCount(check.found)),
    }
}

fn violation(violation: &Violation) -> String {
    let Violation { table, rowid, parent } = violation;
    match rowid {
        Some(rowid) => format!("row {rowid} of {table} refers to no row of {parent}"),
        None => format!("a row of {table} refers to no row of {parent}"),
    }
}

fn section(text: &mut String, title: &str, lines: impl Iterator<Item = String>) {
    let lines: Vec<_> = lines.map(|line| format!("\n  - {line}")).collect();
    if !lines.is_empty() {
        *text += &format!("\n\n{title}:{}", lines.concat());
    }
}
