//! The cure: the same work through solewriter. One thread writes, and the slow work happens before it is
//! asked to.

use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use futures_util::stream;
use indicatif::ProgressBar;
use solewriter::{
    Command, Database, Drain, FailedEntry, ImportReport, ImportRun, Lane, ShutdownReport, WriteTransaction,
};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use uuid::Uuid;

use crate::catalog::{Entry, Page, Rename, RenameError, list_entries, rename_entry};
use crate::cli::Options;
use crate::error::{Error, with_causes};
use crate::load::{answer_to_failure, answer_to_list, answer_to_rename};
use crate::marketplace::{EntrySource, Marketplace, Source};
use crate::measured::{Answer, GroupSizes, Imported, Measured, WriteFigures};
use crate::prepare::{PreparedEntry, prepare};
use crate::service::{Service, drive};
use crate::store::{import_entry, now, record_failure};

/// Entries of one import that are on their way to the writer at the same time.
const PREPARED_AT_ONCE: usize = 2;
const SHUTDOWN_MAX: Duration = Duration::from_secs(10);

/// Runs the imports and the load on one sole writer.
///
/// # Errors
/// What keeps the database from being opened or shut down, or an import from reaching its end.
pub(crate) async fn run(
    options: &Options,
    marketplace: &Marketplace,
    db_path: &Path,
    imports: usize,
) -> Result<Measured, Error> {
    let service = Arc::new(SoleWriter::open(db_path, options.work()).await?);
    let measured = drive(&service, options, marketplace, imports).await;
    service.shutdown().await?;
    measured
}

/// The marketplace's database behind its sole writer.
pub(crate) struct SoleWriter {
    pub(crate) database: Database,
    work: Duration,
    /// Permits to hash, for all imports together.
    hashers: Semaphore,
}

impl Command for Rename {
    const NAME: &'static str = "entry.rename";
    type Output = Entry;
    type Error = RenameError;

    fn apply(&self, tx: &mut WriteTransaction<'_>) -> Result<Entry, RenameError> {
        rename_entry(tx, self)
    }
}

impl Service for SoleWriter {
    async fn import(self: Arc<Self>, source: Arc<Source>, progress: ProgressBar) -> Result<Imported, Error> {
        let import_id = Uuid::new_v4().to_string();
        let run = self.import_run(&source, &import_id, progress);
        let report = run.await.map_err(|error| Error::Import(Box::new(error)))?;
        self.record_failures(&source, &report).await?;
        let failed: usize =
            report.failures.iter().map(|failure| entry_at(&source, failure.index).entry_count()).sum();
        Ok(Imported {
            imported: (source.entry_count() - failed) as u64,
            failed: failed as u64,
            batches: report.batches,
            locked_errors: report.batches_busy,
        })
    }

    async fn rename(self: Arc<Self>, rename: Rename) -> Answer {
        match self.database.send(rename.clone()).await {
            Ok(entry) => answer_to_rename(&rename, &entry),
            Err(error) => answer_to_failure(&error),
        }
    }

    async fn list(self: Arc<Self>, page: Page) -> Answer {
        let read = self.database.read("entries.list", move |tx| {
            let entries = list_entries(tx, &page)?;
            Ok(answer_to_list(&page, &entries))
        });
        read.await.unwrap_or_else(|error| answer_to_failure(&error))
    }

    fn figures(&self) -> WriteFigures {
        let stats = self.database.stats();
        let (people, imports) = (stats.wait.interactive, stats.wait.bulk);
        WriteFigures {
            hold_p99: stats.hold.p99,
            hold_max: stats.hold.max,
            // Each lane has a distribution of its own; the worse one counts.
            wait_p99: people.p99.max(imports.p99),
            wait_max: people.max.max(imports.max),
            group_sizes: Some(GroupSizes { mean: stats.group_commands.mean, max: stats.group_commands.max }),
        }
    }
}

impl SoleWriter {
    /// Opens the database; `work` is slept for each entry that is imported.
    ///
    /// # Errors
    /// What keeps the database from being opened.
    pub(crate) async fn open(db_path: &Path, work: Duration) -> Result<SoleWriter, Error> {
        let database = Database::open(db_path).await?;
        Ok(SoleWriter { database, work, hashers: Semaphore::new(hashers_max()) })
    }

    /// Finishes what was accepted and closes the database.
    ///
    /// # Errors
    /// The writer was not done in time.
    pub(crate) async fn shutdown(&self) -> Result<ShutdownReport, Error> {
        Ok(self.database.shutdown(Drain::within(SHUTDOWN_MAX)).await?)
    }

    /// The import of a source, not begun yet, under the id that its rows bear too. `progress` advances by the
    /// entries as they are committed or have failed.
    pub(crate) fn import_run(
        self: &Arc<Self>,
        source: &Arc<Source>,
        import_id: &str,
        progress: ProgressBar,
    ) -> ImportRun<'static, Error> {
        let (entries, counted) = (Arc::clone(source), Arc::clone(source));
        let (writer, rows_id) = (Arc::clone(self), import_id.to_owned());
        self.database
            .import("marketplace.import", stream::iter(0..source.entries.len()))
            .id(import_id)
            .failures_kept(source.entries.len())
            .prepare(self.prepared_at_once(), move |position| {
                let (writer, entries) = (Arc::clone(&writer), Arc::clone(&entries));
                async move { writer.prepare(&entries, position).await }
            })
            .run_observed(
                move |tx, entry: &PreparedEntry| {
                    import_entry(tx, entry, &rows_id, &now()).map_err(Error::from)
                },
                move |index, _| progress.inc(entry_at(&counted, index).entry_count() as u64),
            )
    }

    /// Notes on the entries that failed, and on their children, why.
    ///
    /// # Errors
    /// The first note that could not be written.
    pub(crate) async fn record_failures(
        &self,
        source: &Source,
        report: &ImportReport<Error>,
    ) -> Result<(), Error> {
        for failure in &report.failures {
            self.record(entry_at(source, failure.index), failure).await?;
        }
        Ok(())
    }

    /// Work besides the hashing is the guide's, which takes an import's entries one after the other.
    fn prepared_at_once(&self) -> usize {
        if self.work.is_zero() { PREPARED_AT_ONCE } else { 1 }
    }

    /// Waits for the other work, then reads and hashes an entry's files on a thread that may block.
    async fn prepare(&self, source: &Arc<Source>, position: usize) -> Result<PreparedEntry, Error> {
        if !self.work.is_zero() {
            sleep(source.entries[position].work(self.work)).await;
        }
        // Held until the hash is done, and never refused: nobody closes the semaphore.
        let _permit = self.hashers.acquire().await;
        let source = Arc::clone(source);
        Ok(spawn_blocking(move || prepare(&source.entries[position])).await??)
    }

    /// Notes on an entry and its children why their import failed.
    async fn record(&self, entry: &EntrySource, failure: &FailedEntry<Error>) -> Result<(), Error> {
        let ids: Vec<String> = entry.family().map(|member| member.id.clone()).collect();
        let reason = with_causes(&failure.error);
        self.database
            .write("marketplace.record_failure", move |tx| {
                record_failure(tx, ids.iter().map(String::as_str), &reason, &now())
            })
            .lane(Lane::Bulk)
            .await?;
        Ok(())
    }
}

/// One core is the writer's: hashing on all of them would make everyone wait who renames.
fn hashers_max() -> usize {
    let cores = available_parallelism().map_or(1, NonZero::get);
    cores.saturating_sub(1).max(1)
}

/// The entry that an import counts as number `index`.
fn entry_at(source: &Source, index: u64) -> &EntrySource {
    &source.entries[index as usize]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::tests::marketplace;

    #[tokio::test]
    async fn a_poisoned_entry_fails_alone_and_says_why() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (mut marketplace, connection) = marketplace(dir.path());
        let mut source = marketplace.sources.remove(0);
        Arc::get_mut(&mut source).expect("nobody shares it").poison();

        let db_path = connection.path().expect("it is a file");
        let service = SoleWriter::open(db_path.as_ref(), Duration::ZERO).await.expect("it opens");
        let progress = ProgressBar::hidden();
        let import = Arc::new(service).import(Arc::clone(&source), progress.clone());
        let imported = import.await.expect("it reaches its end");
        assert_eq!((imported.imported, imported.failed, progress.position()), (2, 1, 3));

        let failed = "SELECT json_extract(metadata_json, '$.import_error') FROM marketplace_catalog_entries
                      WHERE status = 'new'";
        let reason: String = connection.query_one(failed, (), |row| row.get(0)).expect("one failed");
        assert!(reason.contains("CHECK constraint failed"), "{reason}");
    }
}
