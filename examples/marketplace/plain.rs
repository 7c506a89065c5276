//! The guide's "before" and "after", with plain rusqlite connections: every import and every rename brings
//! its own, and SQLite's busy handler decides who is next. The slow work sits inside the transactions, as it
//! did there.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::task::{JoinError, spawn_blocking};
use uuid::Uuid;

use crate::catalog::{Entry, Page, Rename, RenameError, list_entries, rename_entry};
use crate::cli::Options;
use crate::error::{Error, is_locked, with_causes};
use crate::load::{answer_to_failure, answer_to_list, answer_to_rename};
use crate::marketplace::{EntrySource, Marketplace, Source};
use crate::measured::{Answer, Imported, Latencies, Measured, WriteFigures};
use crate::prepare::prepare;
use crate::seed::connect;
use crate::service::{Service, drive};
use crate::store::{import_entry, now, record_failure};

const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
const IMPORT_BUSY_TIMEOUT: Duration = Duration::from_secs(30);
/// The guide's batch.
const BATCH_ENTRIES: usize = 10;

/// How an import is cut into transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transactions {
    /// One for the whole import: the guide's "before".
    Single,
    /// One for every ten entries: the guide's "after".
    Batched,
}

/// Runs the imports and the load on plain connections.
///
/// # Errors
/// SQLite's, if a connection can't be opened; what fails later is counted.
pub(crate) async fn run(
    transactions: Transactions,
    options: &Options,
    marketplace: &Marketplace,
    db_path: &Path,
    imports: usize,
) -> Result<Measured, Error> {
    let service = Arc::new(Plain {
        db_path: db_path.to_owned(),
        transactions,
        work: options.work(),
        idle: Mutex::default(),
        holds: Mutex::default(),
        waits: Mutex::default(),
    });
    drive(&service, options, marketplace, imports).await
}

struct Plain {
    db_path: PathBuf,
    transactions: Transactions,
    work: Duration,
    /// Connections that no request uses now. Each request takes one or opens one, so none ever waits for
    /// another's.
    idle: Mutex<Vec<Connection>>,
    holds: Mutex<Latencies>,
    waits: Mutex<Latencies>,
}

impl Service for Plain {
    async fn import(self: Arc<Self>, source: Arc<Source>, progress: ProgressBar) -> Result<Imported, Error> {
        spawn_blocking(move || self.import_source(&source, &progress)).await?
    }

    async fn rename(self: Arc<Self>, rename: Rename) -> Answer {
        let renamed = spawn_blocking(move || match self.rename_one(&rename) {
            Ok(entry) => answer_to_rename(&rename, &entry),
            Err(error) => answer_to_failure(&error),
        });
        renamed.await.unwrap_or_else(panicked)
    }

    async fn list(self: Arc<Self>, page: Page) -> Answer {
        let listed = spawn_blocking(move || {
            match self.with_connection(|connection| list_entries(connection, &page)) {
                Ok(entries) => answer_to_list(&page, &entries),
                Err(error) => answer_to_failure(&error),
            }
        });
        listed.await.unwrap_or_else(panicked)
    }

    fn figures(&self) -> WriteFigures {
        let (holds, waits) = (lock(&self.holds), lock(&self.waits));
        WriteFigures {
            hold_p99: holds.quantile(0.99),
            hold_max: holds.max(),
            wait_p99: waits.quantile(0.99),
            wait_max: waits.max(),
            group_sizes: None,
        }
    }
}

impl Plain {
    fn import_source(&self, source: &Source, progress: &ProgressBar) -> Result<Imported, Error> {
        let mut connection = connect(&self.db_path, IMPORT_BUSY_TIMEOUT)?;
        let import_id = Uuid::new_v4().to_string();
        let mut total = Imported::default();
        for batch in self.batches(&source.entries) {
            let entries = batch.iter().map(EntrySource::entry_count).sum::<usize>() as u64;
            let imported = self.import_batch(&mut connection, batch, &import_id);
            total.add(imported.unwrap_or_else(|error| failed_batch(entries, &error)));
            progress.inc(entries);
        }
        Ok(total)
    }

    /// Cuts an import into transactions; composites stay whole.
    fn batches<'a>(&self, entries: &'a [EntrySource]) -> Vec<&'a [EntrySource]> {
        match self.transactions {
            Transactions::Single => vec![entries],
            Transactions::Batched => batches(entries, BATCH_ENTRIES),
        }
    }

    /// One transaction: an entry that fails is noted and skipped, an error of the transaction itself fails
    /// them all.
    fn import_batch(
        &self,
        connection: &mut Connection,
        batch: &[EntrySource],
        import_id: &str,
    ) -> rusqlite::Result<Imported> {
        let mut counts = Imported { batches: 1, ..Imported::default() };
        self.in_transaction(connection, |transaction| {
            for entry in batch {
                let entries = entry.entry_count() as u64;
                match self.import_one(transaction, entry, import_id) {
                    Ok(()) => counts.imported += entries,
                    Err(error) => {
                        let ids = entry.family().map(|member| member.id.as_str());
                        record_failure(&**transaction, ids, &with_causes(&error), &now())?;
                        counts.failed += entries;
                    }
                }
            }
            Ok(counts)
        })
    }

    fn import_one(
        &self,
        transaction: &mut Transaction<'_>,
        entry: &EntrySource,
        import_id: &str,
    ) -> Result<(), Error> {
        thread::sleep(entry.work(self.work));
        let prepared = prepare(entry)?;
        let savepoint = transaction.savepoint()?;
        import_entry(&*savepoint, &prepared, import_id, &now())?;
        savepoint.commit()?;
        Ok(())
    }

    fn rename_one(&self, rename: &Rename) -> Result<Entry, RenameError> {
        self.with_connection(|connection| {
            self.in_transaction(connection, |transaction| rename_entry(&**transaction, rename))
        })
    }

    /// Runs `work` in a transaction that has the lock from the start, and records how long it waited and
    /// held.
    fn in_transaction<T, E: From<rusqlite::Error>>(
        &self,
        connection: &mut Connection,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let asked = Instant::now();
        let begun = connection.transaction_with_behavior(TransactionBehavior::Immediate);
        lock(&self.waits).record(asked.elapsed());
        let mut transaction = begun?;
        let taken = Instant::now();
        let worked = work(&mut transaction).and_then(|value| {
            transaction.commit()?;
            Ok(value)
        });
        lock(&self.holds).record(taken.elapsed());
        worked
    }

    fn with_connection<T, E: From<rusqlite::Error>>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, E>,
    ) -> Result<T, E> {
        let idle = lock(&self.idle).pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => connect(&self.db_path, BUSY_TIMEOUT)?,
        };
        let worked = work(&mut connection);
        lock(&self.idle).push(connection);
        worked
    }
}

/// Consecutive entries with at most `entries_max` catalog entries together; one larger composite is a batch
/// by itself.
fn batches(entries: &[EntrySource], entries_max: usize) -> Vec<&[EntrySource]> {
    let mut batches = Vec::new();
    let (mut start, mut size) = (0, 0);
    for (position, entry) in entries.iter().enumerate() {
        if size + entry.entry_count() > entries_max && position > start {
            batches.push(&entries[start..position]);
            (start, size) = (position, 0);
        }
        size += entry.entry_count();
    }
    batches.push(&entries[start..]);
    batches
}

/// A batch whose transaction was lost: nothing of it was committed.
fn failed_batch(entries: u64, error: &rusqlite::Error) -> Imported {
    Imported {
        failed: entries,
        batches: 1,
        locked_errors: u64::from(is_locked(error)),
        ..Imported::default()
    }
}

fn panicked(error: JoinError) -> Answer {
    Answer::Failed(error.to_string())
}

/// Nothing behind these locks can be left half-done, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::marketplace::tests::entry;

    #[test]
    fn batches_hold_whole_composites_up_to_the_limit() {
        let family = || (0..3).map(|n| entry(&format!("child-{n}"), 1, vec![]));
        let composite = || entry("composite", 1, family().collect());
        let plain = || entry("plain", 1, vec![]);
        let entries = [plain(), composite(), plain(), plain(), composite()];
        let sizes: Vec<_> = batches(&entries, 5).iter().map(|batch| batch.len()).collect();
        assert_eq!(sizes, [2, 2, 1]);
    }
}
