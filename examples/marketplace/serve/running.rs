//! The imports at work: which source each is of, and how to stop it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use indicatif::ProgressBar;
use solewriter::{ImportControl, ImportFailure};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::error::with_causes;
use crate::marketplace::Source;
use crate::writer::SoleWriter;

/// The imports that were begun here and have not ended, by id.
#[derive(Default)]
pub(super) struct RunningImports(Mutex<HashMap<String, Running>>);

struct Running {
    source_id: String,
    control: ImportControl,
    /// Until somebody waits for it.
    task: Option<JoinHandle<()>>,
}

/// The place of an import among those at work, which it leaves when this is dropped.
struct Place {
    all: Arc<RunningImports>,
    id: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        // Waits for the lock: it is in the map by then.
        self.all.lock().remove(&self.id);
    }
}

impl RunningImports {
    /// Begins an import in the background and returns its id; `None` while one of the same source is at work.
    pub(super) fn start(self: &Arc<Self>, writer: &Arc<SoleWriter>, source: &Arc<Source>) -> Option<String> {
        let mut imports = self.lock();
        if imports.values().any(|running| running.source_id == source.id) {
            return None;
        }
        let id = format!("{}.{}", source.repo_name, Uuid::new_v4().simple());
        let run = writer.import_run(source, &id, ProgressBar::hidden());
        let control = run.control();
        let task = tokio::spawn({
            let (all, writer, source, id) =
                (Arc::clone(self), Arc::clone(writer), Arc::clone(source), id.clone());
            async move {
                let place = Place { all, id };
                let ended = run.await;
                // It is written down, and another one of the source may begin.
                drop(place);
                let report = match ended {
                    Ok(report) => report,
                    Err(stopped) => {
                        if !matches!(stopped.failure, ImportFailure::Cancelled) {
                            eprintln!("{}", with_causes(&stopped));
                        }
                        *stopped.report
                    }
                };
                if let Err(error) = writer.record_failures(&source, &report).await {
                    eprintln!("{}", with_causes(&error));
                }
            }
        });
        imports.insert(id.clone(), Running { source_id: source.id.clone(), control, task: Some(task) });
        Some(id)
    }

    pub(super) fn control(&self, id: &str) -> Option<ImportControl> {
        self.lock().get(id).map(|running| running.control.clone())
    }

    /// Lets the batches on their way finish, and ends all imports.
    pub(super) async fn cancel_all(&self) {
        for running in self.lock().values() {
            running.control.cancel();
        }
        self.ended().await;
    }

    /// Waits for those that are at work now.
    pub(super) async fn ended(&self) {
        let tasks: Vec<_> = self.lock().values_mut().filter_map(|running| running.task.take()).collect();
        for task in tasks {
            if let Err(error) = task.await {
                eprintln!("{}", with_causes(&error));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Running>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
