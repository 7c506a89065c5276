//! What a system has to be able to do.

use std::path::{Path, PathBuf};

use crate::Error;
use crate::marketplace::{ENTRIES_PER_TRANSACTION, Entry};
use crate::options::Durability;
use crate::rows::Row;
use crate::statement::Statement;

/// How many rows of an import a system without imports of its own commits at a time.
pub const IMPORT_BATCH: usize = 10_000;

/// What a system is opened with; everything else is as its own documentation advises.
#[derive(Clone, Debug)]
pub struct Setup {
    pub path: PathBuf,
    pub durability: Durability,
    /// How many connections read; 0 if the workload has no reads.
    pub readers: usize,
}

/// A way to use SQLite from async Rust.
///
/// `Ok` is the acknowledgement: what it covers has to be there when the database is looked at afterwards.
pub trait System: Sized + Send + Sync + 'static {
    /// Makes the database.
    fn open(setup: &Setup) -> impl Future<Output = Result<Self, Error>> + Send;

    /// Runs the statements of a schema.
    fn run_script(&self, sql: &'static str) -> impl Future<Output = Result<(), Error>> + Send;

    /// Inserts a row: one statement, a transaction of its own.
    fn insert(&self, row: Row) -> impl Future<Output = Result<(), Error>> + Send;

    /// Inserts a row through a closure. Most systems have no other way, or no such way.
    fn insert_in_closure(&self, row: Row) -> impl Future<Output = Result<(), Error>> + Send {
        self.insert(row)
    }

    /// In one transaction: reads the balance of the row's account, writes it plus one, and inserts the row.
    fn deposit(&self, row: Row) -> impl Future<Output = Result<(), Error>> + Send;

    /// Reads the text of an item, and returns its length.
    fn read(&self, id: i64) -> impl Future<Output = Result<usize, Error>> + Send;

    /// Runs one statement, a transaction of its own.
    fn execute(&self, statement: Statement) -> impl Future<Output = Result<(), Error>> + Send;

    /// Runs statements in one transaction.
    fn transaction(&self, statements: Vec<Statement>) -> impl Future<Output = Result<(), Error>> + Send;

    /// Imports rows: what has no import of its own commits [`IMPORT_BATCH`] of them at a time.
    fn import(
        &self,
        rows: impl Iterator<Item = Row> + Send + 'static,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Imports marketplace entries, and returns those that failed: what has no import of its own runs a transaction
    /// for ten entries, as the scenario asks, and a failed one costs its own.
    fn import_entries(&self, entries: Vec<Entry>) -> impl Future<Output = Vec<(Entry, Error)>> + Send {
        async move {
            let mut failed = Vec::new();
            for batch in entries.chunks(ENTRIES_PER_TRANSACTION) {
                let statements = batch.iter().flat_map(Entry::statements).collect();
                if let Err(error) = self.transaction(statements).await {
                    let error = error.to_string();
                    failed.extend(batch.iter().map(|entry| (*entry, error.clone().into())));
                }
            }
            failed
        }
    }

    /// Ends everything and closes the file.
    fn close(self) -> impl Future<Output = Result<(), Error>> + Send;

    /// The rows of a query of two integers, asked in a new connection after the close.
    fn pairs(path: &Path, sql: &'static str) -> impl Future<Output = Result<Vec<(i64, i64)>, Error>> + Send;
}
