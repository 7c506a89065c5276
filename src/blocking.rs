//! The same surface for threads without a runtime.

use std::borrow::Cow;

use futures_util::stream;
use rusqlite::Row;

use crate::command::{Command, Execute, ExecuteReturning, Once, Outside, Parameters, Rerunnable, Typed};
use crate::database::Database;
use crate::error::{ReadError, WriteError};
use crate::import::{Import, ImportId, ImportRecord};
use crate::label::Label;
use crate::lane::Lane;
use crate::maintenance::{Maintain, Maintenance};
use crate::read::Read;
use crate::shutdown::{Drain, ShutdownError, ShutdownReport};
use crate::snapshot::OpenSnapshot;
use crate::sync::block_on;
use crate::token::CommitToken;
use crate::transaction::{ReadTransaction, WriteTransaction};
use crate::write::{Blocking, Receipt, Write};

/// A handle for threads: every request ends in `wait()` instead of `.await`.
///
/// It blocks the thread, so it is not for async tasks. It needs no runtime.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("app.db");
/// let db = solewriter::Database::builder(&path).open_blocking()?.blocking();
/// db.execute("CREATE TABLE t (x)", ()).wait()?;
/// db.write("t.add", |tx| tx.execute("INSERT INTO t VALUES (?1)", [1])).wait()?;
/// let count: i64 = db.read("t.count", |tx| tx.query_row("SELECT count(*) FROM t", (), |row| row.get(0))).wait()?;
/// assert_eq!(count, 1);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct BlockingDatabase {
    database: Database,
}

impl Database {
    /// The same surface for threads without a runtime.
    #[must_use]
    pub fn blocking(&self) -> BlockingDatabase {
        BlockingDatabase { database: self.clone() }
    }
}

impl BlockingDatabase {
    /// The same handle for async tasks.
    #[must_use]
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// As [`Database::write`].
    ///
    /// # Errors
    /// [`WriteError`] tells whether the command ran and whether it is committed.
    pub fn write<F, T>(
        &self,
        label: impl Into<Label>,
        closure: F,
    ) -> Write<'_, Once<F, T, rusqlite::Error>, Blocking>
    where
        F: FnOnce(&mut WriteTransaction<'_>) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        self.write_or_reject(label, closure)
    }

    /// As [`Database::write_or_reject`].
    ///
    /// # Errors
    /// [`WriteError::Command`] holds the closure's own error.
    pub fn write_or_reject<F, T, E>(
        &self,
        label: impl Into<Label>,
        closure: F,
    ) -> Write<'_, Once<F, T, E>, Blocking>
    where
        F: FnOnce(&mut WriteTransaction<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        self.database.request(label, Lane::Interactive, Once::new(closure))
    }

    /// As [`Database::write_rerunnable`].
    ///
    /// # Errors
    /// [`WriteError`] tells whether the command ran and whether it is committed.
    pub fn write_rerunnable<F, T>(
        &self,
        label: impl Into<Label>,
        closure: F,
    ) -> Write<'_, Rerunnable<F, T, rusqlite::Error>, Blocking>
    where
        F: Fn(&mut WriteTransaction<'_>) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        self.database.request(label, Lane::Interactive, Rerunnable::new(closure))
    }

    /// As [`Database::execute`].
    ///
    /// # Errors
    /// [`WriteError`] tells whether the statement ran and whether it is committed.
    pub fn execute(
        &self,
        sql: impl Into<Cow<'static, str>>,
        parameters: impl Parameters,
    ) -> Write<'_, Execute, Blocking> {
        self.database.request("execute", Lane::Interactive, Execute::new(sql.into(), parameters))
    }

    /// As [`Database::execute_returning`].
    ///
    /// # Errors
    /// [`WriteError`] tells whether the statement ran and whether it is committed.
    pub fn execute_returning<F, T>(
        &self,
        sql: impl Into<Cow<'static, str>>,
        parameters: impl Parameters,
        map: F,
    ) -> Write<'_, ExecuteReturning<F>, Blocking>
    where
        F: Fn(&Row<'_>) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        let work = ExecuteReturning::new(Execute::new(sql.into(), parameters), map);
        self.database.request("execute_returning", Lane::Interactive, work)
    }

    /// As [`Database::send`].
    ///
    /// # Errors
    /// [`WriteError::Command`] holds the command's own error.
    pub fn send<C: Command>(&self, command: C) -> Write<'_, Typed<C>, Blocking> {
        self.database.request(C::NAME, C::LANE, Typed(command))
    }

    /// As [`Database::submit`].
    ///
    /// # Errors
    /// [`WriteError::NotStarted`] if it could not be accepted.
    pub fn submit<C: Command>(
        &self,
        command: C,
    ) -> Result<Receipt<Typed<C>, Blocking>, WriteError<C::Error>> {
        self.send(command).submit()
    }

    /// As [`Database::read`].
    ///
    /// # Errors
    /// [`ReadError`](crate::ReadError) tells what stood in the way.
    pub fn read<F, T>(&self, label: impl Into<Label>, closure: F) -> Read<'_, F, Blocking>
    where
        F: FnOnce(&ReadTransaction<'_>) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        Read::new(self.database.service(), label.into(), None, closure)
    }

    /// As [`Database::read_or_reject`].
    ///
    /// # Errors
    /// [`ReadError::Query`](crate::ReadError::Query) holds the closure's own error.
    pub fn read_or_reject<F, T, E>(&self, label: impl Into<Label>, closure: F) -> Read<'_, F, Blocking>
    where
        F: FnOnce(&ReadTransaction<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        Read::new(self.database.service(), label.into(), None, closure)
    }

    /// As [`Database::read_after`].
    ///
    /// # Errors
    /// [`ReadError::ForeignToken`](crate::ReadError::ForeignToken) if the token is from another opening.
    pub fn read_after<F, T>(
        &self,
        token: CommitToken,
        label: impl Into<Label>,
        closure: F,
    ) -> Read<'_, F, Blocking>
    where
        F: FnOnce(&ReadTransaction<'_>) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        Read::new(self.database.service(), label.into(), Some(token), closure)
    }

    /// As [`Database::maintain`].
    ///
    /// # Errors
    /// [`MaintenanceError`](crate::MaintenanceError) tells whether it ran.
    pub fn maintain<F, T>(
        &self,
        label: impl Into<Label>,
        closure: F,
    ) -> Maintain<'_, Outside<F, T, rusqlite::Error>, Blocking>
    where
        F: FnOnce(&mut Maintenance<'_, '_>) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        Maintain::new(self.database.service(), label.into(), Outside::new(closure))
    }

    /// As [`Database::snapshot`]; end it with [`OpenSnapshot::wait`].
    pub fn snapshot(&self, label: impl Into<Label>) -> OpenSnapshot<'_, Blocking> {
        OpenSnapshot::new(self.database.service(), label.into())
    }

    /// As [`Database::import`], from an iterator; end it with [`ImportRun::wait`](crate::ImportRun::wait).
    pub fn import<I: IntoIterator>(
        &self,
        label: impl Into<Label>,
        items: I,
    ) -> Import<stream::Iter<I::IntoIter>> {
        self.database.import(label, stream::iter(items))
    }

    /// As [`Database::import_records`].
    ///
    /// # Errors
    /// [`ReadError`] tells what stood in the way.
    pub fn import_records(&self, limit: usize) -> Result<Vec<ImportRecord>, ReadError> {
        block_on(self.database.import_records(limit))
    }

    /// As [`Database::forget_import`].
    ///
    /// # Errors
    /// As with [`write`](Self::write).
    pub fn forget_import(&self, id: impl Into<ImportId>) -> Result<bool, WriteError> {
        block_on(self.database.forget_import(id))
    }

    /// As [`Database::shutdown`].
    ///
    /// # Errors
    /// [`ShutdownError`] if user code still runs on the writer thread after the limit.
    pub fn shutdown(&self, drain: Drain) -> Result<ShutdownReport, ShutdownError> {
        self.database.service().shutdown_blocking(drain)
    }
}
