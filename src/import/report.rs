//! What an import tells: how far it is, and how it went.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::record::ImportId;
use crate::error::WriteError;
use crate::label::Label;
use crate::units::micros;

/// How far an import is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Progress {
    /// Entries that are committed.
    pub accepted: u64,
    /// Entries that have failed.
    pub failed: u64,
    /// Entries that earlier runs of the same import had settled.
    pub skipped: u64,
    /// How many entries there will be at most, those that are skipped included, where the stream can tell.
    pub total: Option<u64>,
    /// Batches that are committed.
    pub batches: u64,
    /// Batches that were lost and tried again.
    pub batches_lost: u64,
    /// How many of these in a row, up to now.
    pub lost_in_a_row: u32,
    /// The longest a batch's group held the write lock.
    #[serde(rename = "hold_max_us", serialize_with = "micros")]
    pub hold_max: Duration,
    /// The longest a batch waited for the writer.
    #[serde(rename = "wait_max_us", serialize_with = "micros")]
    pub wait_max: Duration,
}

/// How an import went, counted from what was committed, not from what was tried.
#[derive(Debug)]
#[non_exhaustive]
pub struct ImportReport<E> {
    /// Which import it is; made up if it was given no id.
    pub id: ImportId,
    /// The label of the import.
    pub label: Label,
    /// Entries that are committed.
    pub accepted: u64,
    /// Entries that failed and left nothing behind.
    pub failed: u64,
    /// Entries that earlier runs of the same import had settled; they count nowhere else.
    pub skipped: u64,
    /// The first entries that failed, up to `failures_kept`, in the order of their failure.
    pub failures: Vec<FailedEntry<E>>,
    /// Batches that were committed.
    pub batches: u64,
    /// Batches that were lost and tried again.
    pub batches_lost: u64,
    /// How many of these found the write lock held by another process for longer than `busy_timeout`.
    pub batches_busy: u64,
    /// The longest a batch's group held the write lock.
    pub hold_max: Duration,
    /// The longest a batch waited for the writer.
    pub wait_max: Duration,
    /// From the first poll to the last answer.
    pub total: Duration,
}

impl<E> ImportReport<E> {
    pub(super) fn new(id: ImportId, label: Label) -> Self {
        Self {
            id,
            label,
            accepted: 0,
            failed: 0,
            skipped: 0,
            failures: Vec::new(),
            batches: 0,
            batches_lost: 0,
            batches_busy: 0,
            hold_max: Duration::ZERO,
            wait_max: Duration::ZERO,
            total: Duration::ZERO,
        }
    }
}

/// An entry that failed.
#[derive(Debug)]
#[non_exhaustive]
pub struct FailedEntry<E> {
    /// Its place in the stream, from 0.
    pub index: u64,
    /// Why it failed.
    pub error: EntryError<E>,
}

/// Why an entry failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum EntryError<E> {
    /// Its preparation returned this error; the writer never saw it.
    Prepare(E),
    /// It could not be written; [`WriteError::Command`] holds the error of `apply`.
    Write(WriteError<E>),
}

impl<E> fmt::Display for EntryError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prepare(_) => f.write_str("the entry could not be prepared"),
            Self::Write(_) => f.write_str("the entry could not be written"),
        }
    }
}

impl<E: StdError + 'static> StdError for EntryError<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Prepare(error) => Some(error),
            Self::Write(error) => Some(error),
        }
    }
}

/// An import that stopped before the end of its stream.
#[derive(Debug)]
pub struct ImportError<E> {
    /// How far it came; everything in it is committed.
    pub report: Box<ImportReport<E>>,
    /// Why it stopped.
    pub failure: ImportFailure,
}

/// Why an import stopped.
#[derive(Debug)]
#[non_exhaustive]
pub enum ImportFailure {
    /// As many entries failed as [`OnError::StopAfter`](super::OnError::StopAfter) allows.
    TooManyFailures,
    /// An entry of an all-or-nothing import failed; nothing was imported. The report names the entry.
    EntryFailed,
    /// An all-or-nothing import had more entries than
    /// [`ALL_OR_NOTHING_ENTRIES_MAX`](super::ALL_OR_NOTHING_ENTRIES_MAX); nothing was imported.
    TooManyEntries,
    /// This many batches in a row were lost for a reason outside of their entries. The last one is not
    /// imported, and importing the rest later is safe.
    BatchesLost {
        /// How many.
        batches: u32,
        /// Why the last one was.
        last: WriteError<LostBatch>,
    },
    /// The writer does not take batches any more, or the outcome of the last one is unknown.
    ///
    /// Run again under the same [id](super::Import::id), the import goes on after what is committed.
    Writer(WriteError<LostBatch>),
    /// The stream ended before the entry up to which earlier runs of the same import have come: it is not the same
    /// stream, or it was cut off. Nothing of it was imported.
    StreamTooShort {
        /// How many entries more there should have been, at least.
        missing: u64,
    },
    /// Its [control](super::ImportControl) cancelled it; those imported stay.
    Cancelled,
    /// An import of the same id runs already; this one has done nothing.
    AlreadyRunning,
    /// The import could not write down how far it is. The batch it tried that with is not imported.
    Record(rusqlite::Error),
}

impl From<WriteError<LostBatch>> for ImportFailure {
    fn from(error: WriteError<LostBatch>) -> Self {
        Self::Writer(error)
    }
}

impl<E> fmt::Display for ImportError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ImportReport { label, accepted, failed, .. } = &*self.report;
        write!(f, "import {label} stopped after {accepted} entries and {failed} failures: {}", self.failure)
    }
}

impl fmt::Display for ImportFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyFailures => f.write_str("too many entries failed; those imported stay"),
            Self::EntryFailed => f.write_str("an entry failed, so nothing was imported"),
            Self::TooManyEntries => f.write_str("too many entries for one transaction; nothing was imported"),
            Self::BatchesLost { batches, .. } => {
                write!(f, "{batches} batches in a row were lost; import the rest later")
            }
            Self::Writer(_) => f.write_str("the writer takes no more batches"),
            Self::StreamTooShort { missing } => {
                write!(f, "the stream ended {missing} entries before the place where it was to go on")
            }
            Self::Cancelled => f.write_str("it was cancelled; those imported stay"),
            Self::AlreadyRunning => f.write_str("an import of the same id runs already"),
            Self::Record(_) => f.write_str("how far it is could not be written down"),
        }
    }
}

impl<E: fmt::Debug> StdError for ImportError<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.failure {
            ImportFailure::BatchesLost { last, .. } => Some(last),
            ImportFailure::Writer(error) => Some(error),
            ImportFailure::Record(error) => Some(error),
            _ => None,
        }
    }
}

/// SQLite ended the transaction of a batch for a reason outside of its entries: a full disk, say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LostBatch {
    /// SQLite's extended result code.
    pub extended_code: Option<i32>,
}

impl fmt::Display for LostBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.extended_code {
            Some(code) => write!(f, "SQLite ended the transaction with result code {code}"),
            None => f.write_str("SQLite ended the transaction"),
        }
    }
}

impl StdError for LostBatch {}
