//! The imports that run now, and the figures of those that have ended within the last hour.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use rusqlite::Connection;
use serde::Serialize;
use tokio::sync::watch;

use super::control::ImportControl;
use super::record::{self, ImportId, ImportState};
use super::report::Progress;
use crate::health::HealthState;
use crate::label::Label;
use crate::stats::EntryCounts;
use crate::sync::lock;
use crate::units::{millis, to_unix_millis, unix_millis};

/// An import that runs now. The fields of its [`Progress`] serialise beside the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ImportStatus {
    /// Which import it is.
    pub id: ImportId,
    /// Its label.
    pub label: Label,
    /// Running or paused.
    pub state: ImportState,
    /// When it began.
    #[serde(rename = "started_at_ms", serialize_with = "unix_millis")]
    pub started_at: SystemTime,
    /// How long it has been running.
    #[serde(rename = "elapsed_ms", serialize_with = "millis")]
    pub elapsed: Duration,
    /// How far it is.
    #[serde(flatten)]
    pub progress: Progress,
}

/// The imports that ended within the last hour, whatever their end; an empty hour has zeros and is healthy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ImportFigures {
    /// How many there were.
    pub total_imports_last_hour: u64,
    /// From the first poll to the last answer, on average, in seconds.
    pub avg_import_duration_seconds: f64,
    /// The longest, in seconds.
    pub max_import_duration_seconds: f64,
    /// The longest that a batch of theirs held the write lock, in seconds.
    pub max_batch_hold_seconds: f64,
    /// Degraded once the longest took `import_duration_degraded`; else healthy.
    pub status: HealthState,
}

const HOUR: Duration = Duration::from_secs(3600);

/// More than these are not kept apart: the figures are then about the newest of the hour.
const ENDED_MAX: usize = 10_000;

/// What all imports of a service have in common.
#[derive(Default)]
pub(crate) struct Imports {
    running: Mutex<Vec<Arc<Running>>>,
    ended: Mutex<VecDeque<Ended>>,
    begun: AtomicU64,
    ended_in_all: AtomicU64,
    accepted: AtomicU64,
    failed: AtomicU64,
}

/// An import at work.
pub(super) struct Running {
    pub(super) id: ImportId,
    label: Label,
    started_at: SystemTime,
    started: Instant,
    control: ImportControl,
    progress: watch::Sender<Progress>,
}

/// An import that has ended.
pub(super) struct Ended {
    pub(super) at: SystemTime,
    pub(super) took: Duration,
    /// The longest that a batch of it held the write lock.
    pub(super) hold_max: Duration,
}

impl Imports {
    /// An id for an import that was given none; no other has it.
    pub(super) fn new_id(&self, label: &Label) -> ImportId {
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        ImportId::from(format!("{label}-{}-{number}", to_unix_millis(SystemTime::now())))
    }

    /// Registers an import that begins; `None` if one of that id runs already.
    pub(super) fn begin(
        self: &Arc<Self>,
        id: ImportId,
        label: Label,
        control: ImportControl,
        progress: watch::Sender<Progress>,
    ) -> Option<Registered> {
        let mut running = lock(&self.running);
        if running.iter().any(|other| other.id == id) {
            return None;
        }
        let (started_at, started) = (SystemTime::now(), Instant::now());
        let import = Arc::new(Running { id, label, started_at, started, control, progress });
        running.push(import.clone());
        Some(Registered { imports: self.clone(), import })
    }

    pub(super) fn count_accepted(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn entries(&self) -> EntryCounts {
        EntryCounts {
            accepted: self.accepted.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }

    /// Those that run now, the oldest first.
    pub(crate) fn running(&self) -> Vec<ImportStatus> {
        lock(&self.running).iter().map(|import| import.status()).collect()
    }

    pub(super) fn running_ids(&self) -> Vec<ImportId> {
        lock(&self.running).iter().map(|import| import.id.clone()).collect()
    }

    pub(crate) fn control(&self, id: &ImportId) -> Option<ImportControl> {
        let running = lock(&self.running);
        running.iter().find(|import| import.id == *id).map(|import| import.control.clone())
    }

    /// What earlier openings have written down counts too. Figures are no reason not to open a database.
    pub(crate) fn recall(&self, connection: &Connection) {
        match record::ended_within(connection, HOUR) {
            Ok(ended) => ended.into_iter().for_each(|import| self.note_ended(import)),
            Err(error) => tracing::warn!(%error, "the records of earlier imports could not be read"),
        }
    }

    /// How many imports have ended, those of earlier openings that are remembered included.
    #[cfg(feature = "http")]
    pub(crate) fn ended_in_all(&self) -> u64 {
        self.ended_in_all.load(Ordering::Relaxed)
    }

    pub(super) fn note_ended(&self, import: Ended) {
        self.ended_in_all.fetch_add(1, Ordering::Relaxed);
        let mut ended = lock(&self.ended);
        if ended.len() == ENDED_MAX {
            ended.pop_front();
        }
        ended.push_back(import);
    }

    /// The figures of the last hour.
    pub(crate) fn figures(&self, degraded: Duration) -> ImportFigures {
        let now = SystemTime::now();
        let mut ended = lock(&self.ended);
        // A clock that was set back makes some look as if they were still to come: they stay.
        ended.retain(|import| now.duration_since(import.at).is_ok_and(|age| age <= HOUR) || import.at > now);
        let took = ended.iter().map(|import| import.took);
        let total = took.fold(Duration::ZERO, Duration::saturating_add);
        let max = ended.iter().map(|import| import.took).max().unwrap_or_default();
        let hold_max = ended.iter().map(|import| import.hold_max).max().unwrap_or_default();
        let count = ended.len();
        ImportFigures {
            total_imports_last_hour: count as u64,
            avg_import_duration_seconds: if count == 0 { 0.0 } else { total.as_secs_f64() / count as f64 },
            max_import_duration_seconds: max.as_secs_f64(),
            max_batch_hold_seconds: hold_max.as_secs_f64(),
            status: if max < degraded { HealthState::Healthy } else { HealthState::Degraded },
        }
    }
}

impl Running {
    fn status(&self) -> ImportStatus {
        let state = if self.control.is_paused() { ImportState::Paused } else { ImportState::Running };
        ImportStatus {
            id: self.id.clone(),
            label: self.label.clone(),
            state,
            started_at: self.started_at,
            elapsed: self.started.elapsed(),
            progress: self.progress.borrow().clone(),
        }
    }
}

/// The place of an import among those that run, which it leaves when this is dropped.
pub(super) struct Registered {
    imports: Arc<Imports>,
    pub(super) import: Arc<Running>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        lock(&self.imports.running).retain(|import| !Arc::ptr_eq(import, &self.import));
    }
}
