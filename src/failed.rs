//! The last commands that failed, for whoever looks at a running service.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use rusqlite::ffi;
use serde::Serialize;

use crate::error::{NotStarted, Outcome, RolledBack, Unknown, WriteError, sqlite_extended_code};
use crate::label::Label;
use crate::lane::Lane;
use crate::message::Fate;
use crate::sync::lock;
use crate::units::{micros, unix_millis};

/// A command that failed, or an entry of an import.
///
/// It names what the program and the schema name: labels, constraints, result codes; never a bound value.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct FailedCommand {
    /// When it was answered.
    #[serde(rename = "failed_at_ms", serialize_with = "unix_millis")]
    pub at: SystemTime,
    /// The label of the command or the import.
    pub label: Label,
    /// The lane it came from.
    pub lane: Lane,
    /// The entry's place in the stream of its import, from 0.
    pub entry: Option<u64>,
    /// What became of it.
    pub outcome: Outcome,
    /// Why it failed, in words.
    pub reason: Cow<'static, str>,
    /// SQLite's extended result code, if there is one behind it (<https://www.sqlite.org/rescode.html>).
    pub extended_code: Option<i32>,
    /// The constraint that failed, as the schema names it: `orders.id` for a unique one, say. An unnamed CHECK has none.
    pub constraint: Option<String>,
    /// How often it was run; 0 if it never was.
    pub attempts: u32,
    /// From submission to its first start, or to its answer if it never ran.
    #[serde(rename = "wait_us", serialize_with = "micros")]
    pub wait: Duration,
    /// How long its group held the write lock until it was committed or rolled back.
    #[serde(rename = "hold_us", serialize_with = "micros")]
    pub hold: Duration,
}

impl FailedCommand {
    pub(crate) fn new(label: Label, lane: Lane, outcome: Outcome, reason: Reason) -> Self {
        let Reason { text, extended_code, constraint } = reason;
        Self {
            at: SystemTime::now(),
            label,
            lane,
            entry: None,
            outcome,
            reason: text,
            extended_code,
            constraint,
            attempts: 0,
            wait: Duration::ZERO,
            hold: Duration::ZERO,
        }
    }

    pub(crate) fn tried(self, attempts: u32, wait: Duration, hold: Duration) -> Self {
        Self { attempts, wait, hold, ..self }
    }

    pub(crate) fn of_entry(self, index: u64) -> Self {
        Self { entry: Some(index), ..self }
    }
}

/// Why a command failed, as it was seen while its error was still at hand.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reason {
    pub(crate) text: Cow<'static, str>,
    pub(crate) extended_code: Option<i32>,
    pub(crate) constraint: Option<String>,
}

impl Reason {
    /// The reason behind an error; `code` and `message` are SQLite's, where it had a hand in it.
    pub(crate) fn new<E>(error: &WriteError<E>, code: i32, message: Option<&str>) -> Self {
        let (code, constraint) = match error {
            WriteError::RolledBack(RolledBack::ForeignKey) => (ffi::SQLITE_CONSTRAINT_FOREIGNKEY, None),
            _ => (code, message.and_then(|message| constraint(code, message))),
        };
        let extended_code = (code != ffi::SQLITE_OK).then_some(code);
        let text = match error {
            WriteError::Command(_) | WriteError::RolledBack(RolledBack::Environment(_)) => {
                extended_code.map_or("its own error", ffi::code_to_str)
            }
            WriteError::NotStarted(reason) => not_started(reason),
            WriteError::RolledBack(reason) => rolled_back(reason),
            WriteError::Unknown(reason) => unknown(reason),
        };
        Self { text: text.into(), extended_code, constraint }
    }

    /// The reason of an entry that never reached the writer.
    pub(crate) fn unprepared() -> Self {
        Self { text: "its preparation failed".into(), ..Self::default() }
    }

    /// The reason in what a command is told that did not fail by itself.
    pub(crate) fn of_fate(fate: &Fate) -> Self {
        let (text, cause) = match fate {
            Fate::NotStarted(reason) => (not_started(reason), reason.cause()),
            Fate::RolledBack(reason) => (rolled_back(reason), reason.cause()),
            Fate::Unknown(reason) => (unknown(reason), reason.cause()),
            Fate::Committed(..) | Fate::Culprit => ("its own error", None),
        };
        Self { text: text.into(), extended_code: cause.and_then(sqlite_extended_code), constraint: None }
    }
}

fn not_started(reason: &NotStarted) -> &'static str {
    match reason {
        NotStarted::DeadlineExceeded { .. } => "its deadline passed while it waited",
        NotStarted::WaitedTooLong { .. } => "it waited for too long",
        NotStarted::Busy(_) => "another process kept the write lock",
        NotStarted::DiskFull(_) => "the disk is full",
        NotStarted::WalFull { .. } => "the WAL is full",
        NotStarted::Unavailable(_) => "writes are refused after failures",
        NotStarted::Stopped(_) => "the service has stopped writing",
        NotStarted::Closed => "the service was closed",
        // Refused at the door: they don't come here.
        NotStarted::QueueFull { .. }
        | NotStarted::TooLarge { .. }
        | NotStarted::Reentrant
        | NotStarted::Forked => "it was refused",
    }
}

fn rolled_back(reason: &RolledBack) -> &'static str {
    match reason {
        RolledBack::Panicked(_) => "it panicked",
        RolledBack::ForeignKey => "it left a foreign key violated",
        RolledBack::TransactionEnded => "it made SQLite end the transaction",
        RolledBack::TransactionLeftOpen => "it left a transaction open",
        RolledBack::StatementLeftOpen => "it left a statement half-stepped",
        RolledBack::DeadlineExceeded { .. } => "its deadline passed while it ran",
        RolledBack::Interrupted => "the service was closed while it ran",
        RolledBack::Environment(_) => "the environment failed it",
        RolledBack::GroupLost(_) => "the transaction of its group was lost",
    }
}

fn unknown(reason: &Unknown) -> &'static str {
    match reason {
        Unknown::CommitFailed(_) => "COMMIT failed, and its effect is not known",
        Unknown::FilesReplaced(_) => "the files were replaced while it was committed",
        Unknown::WriterLost => "the writer thread ended",
    }
}

/// What SQLite names after "constraint failed: ". Messages of triggers are left out: a trigger can put values
/// into them.
fn constraint(code: i32, message: &str) -> Option<String> {
    const LENGTH_MAX: usize = 200;
    let names_schema = matches!(
        code,
        ffi::SQLITE_CONSTRAINT_UNIQUE
            | ffi::SQLITE_CONSTRAINT_PRIMARYKEY
            | ffi::SQLITE_CONSTRAINT_ROWID
            | ffi::SQLITE_CONSTRAINT_NOTNULL
            | ffi::SQLITE_CONSTRAINT_CHECK
    );
    let (_, name) = message.split_once("constraint failed: ").filter(|_| names_schema)?;
    // An unnamed CHECK is called by its text, which is no name and may have literals in it.
    let is_name =
        code != ffi::SQLITE_CONSTRAINT_CHECK || name.chars().all(|c| c.is_alphanumeric() || c == '_');
    is_name.then(|| name.chars().take(LENGTH_MAX).collect())
}

/// The last ones, the oldest first.
#[derive(Default)]
pub(crate) struct FailedCommands(Mutex<VecDeque<FailedCommand>>);

/// How many failures are kept.
const KEPT: usize = 64;

impl FailedCommands {
    pub(crate) fn push(&self, failed: FailedCommand) {
        let mut kept = lock(&self.0);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(failed);
    }

    pub(crate) fn list(&self) -> Vec<FailedCommand> {
        lock(&self.0).iter().cloned().collect()
    }
}
