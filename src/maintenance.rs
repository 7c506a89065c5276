//! Work that SQLite does outside of transactions only: VACUUM, PRAGMA, ATTACH.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use rusqlite::{Params, Row};

use crate::command::Work;
use crate::connection;
use crate::error::MaintenanceError;
use crate::label::Label;
use crate::lane::Lane;
use crate::service::Service;
use crate::transaction::WriteTransaction;
use crate::write::{Async, Blocking, Write};

/// The write connection, outside of any transaction: every statement commits by itself.
///
/// Journal mode, locking mode, `synchronous` and checkpoints stay the service's. Whatever else is set or
/// attached is gone afterwards: the service goes on with a new connection. A file that is attached must exist.
pub struct Maintenance<'tx, 'c> {
    tx: &'tx mut WriteTransaction<'c>,
}

impl<'tx, 'c> Maintenance<'tx, 'c> {
    pub(crate) fn new(tx: &'tx mut WriteTransaction<'c>) -> Self {
        Self { tx }
    }

    /// Rebuilds the database file, and gives unused space back to the file system.
    ///
    /// The whole database goes through the WAL, so it can grow to its size for a while
    /// (<https://www.sqlite.org/lang_vacuum.html>). Holds the writer for as long as it takes.
    ///
    /// # Errors
    /// SQLite's; the database is unchanged then.
    pub fn vacuum(&mut self) -> rusqlite::Result<()> {
        self.tx.execute_batch("VACUUM")
    }

    /// Lets SQLite bring the statistics of its query planner up to date, where it thinks it worth it
    /// (<https://www.sqlite.org/pragma.html#pragma_optimize>).
    ///
    /// # Errors
    /// SQLite's.
    pub fn optimize(&mut self) -> rusqlite::Result<()> {
        self.tx.execute_batch(connection::OPTIMIZE)
    }

    /// Looks for damage, and returns what was found: nothing, if all is well. Reads the whole database.
    ///
    /// # Errors
    /// SQLite's.
    pub fn integrity_check(&mut self) -> rusqlite::Result<Vec<String>> {
        let mut found = self.tx.query_all(connection::INTEGRITY_CHECK, (), connection::problem)?;
        found.retain(|line| line != "ok");
        Ok(found)
    }

    /// Runs several statements without parameters.
    ///
    /// # Errors
    /// SQLite's, at the first statement that fails; those before it stand.
    pub fn execute_batch(&mut self, sql: &str) -> rusqlite::Result<()> {
        self.tx.execute_batch(sql)
    }

    /// Runs one statement and returns how many rows it changed.
    ///
    /// # Errors
    /// SQLite's; [`rusqlite::Error::ExecuteReturnedResults`] if the statement gives rows.
    pub fn execute<P: Params>(&mut self, sql: &str, params: P) -> rusqlite::Result<usize> {
        self.tx.execute(sql, params)
    }

    /// The first row of a query, or of a pragma, mapped by `map`.
    ///
    /// # Errors
    /// [`rusqlite::Error::QueryReturnedNoRows`] if there is none; SQLite's or the mapping's otherwise.
    pub fn query_row<T, P, F>(&mut self, sql: &str, params: P, map: F) -> rusqlite::Result<T>
    where
        P: Params,
        F: FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    {
        self.tx.query_row(sql, params, map)
    }

    /// All rows of a query, or of a pragma, each mapped by `map`.
    ///
    /// # Errors
    /// SQLite's or the mapping's.
    pub fn query_all<T, P, F>(&mut self, sql: &str, params: P, map: F) -> rusqlite::Result<Vec<T>>
    where
        P: Params,
        F: FnMut(&Row<'_>) -> rusqlite::Result<T>,
    {
        self.tx.query_all(sql, params, map)
    }
}

impl fmt::Debug for Maintenance<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Maintenance").finish_non_exhaustive()
    }
}

/// Maintenance that has not been sent yet: set what it needs, then await it.
///
/// It waits in the maintenance lane and then runs alone, between two groups.
///
/// # Cancel safety
/// As that of [`Write`].
#[must_use = "maintenance is sent when it is awaited"]
pub struct Maintain<'db, W: Work, M = Async> {
    write: Write<'db, W, M>,
}

impl<'db, W: Work, M> Maintain<'db, W, M> {
    pub(crate) fn new(service: &'db Service, label: Label, work: W) -> Self {
        Self { write: Write::new(service, label, Lane::Maintenance, work) }
    }

    /// Limits the time from now until it ends: waiting, and the statement that runs, which is interrupted.
    pub fn deadline(mut self, time: Duration) -> Self {
        self.write = self.write.deadline(time);
        self
    }

    /// Chooses the lane it waits in.
    pub fn lane(mut self, lane: Lane) -> Self {
        self.write = self.write.lane(lane);
        self
    }
}

impl<'db, W: Work> IntoFuture for Maintain<'db, W, Async> {
    type Output = Result<W::Output, MaintenanceError<W::Error>>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'db>>;

    fn into_future(self) -> Self::IntoFuture {
        let write = self.write.into_future();
        Box::pin(async move { write.await.map_err(MaintenanceError::from) })
    }
}

impl<W: Work> Maintain<'_, W, Blocking> {
    /// Blocks until it has ended and returns its value.
    ///
    /// # Errors
    /// [`MaintenanceError`] tells whether it ran.
    pub fn wait(self) -> Result<W::Output, MaintenanceError<W::Error>> {
        self.write.wait().map_err(MaintenanceError::from)
    }
}

impl<W: Work, M> fmt::Debug for Maintain<'_, W, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Maintain").finish_non_exhaustive()
    }
}
