//! The handle.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use futures_util::Stream;
use rusqlite::{Connection, Row};

use crate::command::{
    Command, Execute, ExecuteReturning, Once, Outside, Parameters, Rerunnable, Typed, Work,
};
use crate::config::Config;
use crate::connection::Location;
use crate::error::{OpenError, OpenErrorReason, ReadError, WriteError};
use crate::failed::FailedCommand;
use crate::health::Health;
use crate::holder::Holder;
use crate::import::{Import, ImportControl, ImportId, ImportRecord, ImportState, ImportStatus, record};
use crate::label::Label;
use crate::lane::Lane;
use crate::maintenance::{Maintain, Maintenance};
use crate::on_connect::{ConnectionRole, OnConnect};
use crate::open;
use crate::read::Read;
use crate::reading::Reading;
#[cfg(feature = "sabotage")]
use crate::sabotage::Sabotage;
use crate::service::Service;
use crate::shutdown::{Drain, ShutdownError, ShutdownReport};
use crate::snapshot::OpenSnapshot;
use crate::stats::Stats;
use crate::token::CommitToken;
use crate::transaction::{ReadTransaction, WriteTransaction};
use crate::write::{Receipt, Write};

/// A handle of an open database: cheap to clone, to be shared by everything that reads or writes.
///
/// All handles of one file in one process share one writer thread and one pool of readers. When the last one
/// is dropped, the database is closed in the background; a process that exits right then loses what was not
/// yet acknowledged, so end with [`shutdown`](Self::shutdown).
#[derive(Clone)]
pub struct Database {
    service: Arc<Service>,
}

impl Database {
    /// Opens the database at `path` with the default [`Config`], and creates it if there is none.
    ///
    /// A file that this process has open already, by whatever path, gives a handle of the same service.
    ///
    /// # Errors
    /// [`OpenError`] says what stood in the way; nothing was created or changed then.
    ///
    /// # Panics
    /// Outside of a Tokio runtime. [`Builder::open_blocking`] needs none.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("app.db");
    /// use solewriter::Database;
    ///
    /// let db = Database::open(&path).await?;
    /// db.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL)", ()).await?;
    /// let id = db
    ///     .write("notes.add", |tx| {
    ///         tx.execute("INSERT INTO notes (text) VALUES (?1)", ["first"])?;
    ///         Ok(tx.last_insert_rowid())
    ///     })
    ///     .await?;
    /// assert_eq!(id, 1);
    /// # Ok(()) }
    /// ```
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::builder(path).open().await
    }

    /// Prepares to open the database at `path` with settings of its own.
    pub fn builder(path: impl AsRef<Path>) -> Builder {
        Builder { location: Location::new(path.as_ref()), config: Config::default() }
    }

    /// Runs a closure on the writer thread and answers after the group it joined has been committed.
    ///
    /// The closure runs at most once, and alone: no other write happens meanwhile. So it must not wait for
    /// anything but the transaction it is given. What it returns as an error undoes all of its writes and
    /// none of its neighbours'.
    ///
    /// Where SQLite itself rolls back the transaction of the group after the closure has run, it can't run again:
    /// [`RolledBack::GroupLost`](crate::RolledBack::GroupLost), and a retry is safe. If the closure could run twice,
    /// [`write_rerunnable`](Self::write_rerunnable) spares you that.
    ///
    /// # Errors
    /// [`WriteError`] tells whether the command ran, whether it is committed, and whether to retry.
    ///
    /// # Cancel safety
    /// As that of [`Write`].
    pub fn write<F, T>(&self, label: impl Into<Label>, closure: F) -> Write<'_, Once<F, T, rusqlite::Error>>
    where
        F: FnOnce(&mut WriteTransaction<'_>) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        self.write_or_reject(label, closure)
    }

    /// As [`write`](Self::write), for closures that can refuse with an error type of their own.
    ///
    /// # Errors
    /// [`WriteError::Command`] holds the closure's own error; the rest as with `write`.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let db = solewriter::Database::open(dir.path().join("app.db")).await?;
    /// use solewriter::WriteError;
    ///
    /// #[derive(Debug, PartialEq)]
    /// enum Refusal { SoldOut, Sqlite(rusqlite::Error) }
    /// impl From<rusqlite::Error> for Refusal {
    ///     fn from(error: rusqlite::Error) -> Self { Self::Sqlite(error) }
    /// }
    ///
    /// db.execute("CREATE TABLE stock (item TEXT PRIMARY KEY, count INTEGER)", ()).await?;
    /// let refused = db
    ///     .write_or_reject("orders.place", |tx| {
    ///         let sold = tx.execute("UPDATE stock SET count = count - 1 WHERE item = 'tea' AND count > 0", ())?;
    ///         if sold == 1 { Ok(()) } else { Err(Refusal::SoldOut) }
    ///     })
    ///     .await;
    /// assert!(matches!(refused, Err(WriteError::Command(Refusal::SoldOut))));
    /// # Ok(()) }
    /// ```
    pub fn write_or_reject<F, T, E>(&self, label: impl Into<Label>, closure: F) -> Write<'_, Once<F, T, E>>
    where
        F: FnOnce(&mut WriteTransaction<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        self.request(label, Lane::Interactive, Once::new(closure))
    }

    /// As [`write`](Self::write), for closures that may be run again after a neighbour's failure.
    ///
    /// The closure must be free of effects outside the transaction; only its last run counts. In return it never
    /// loses its result to a neighbour, and costs no savepoint while its label does not fail half-way.
    ///
    /// # Errors
    /// As with `write`.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let db = solewriter::Database::open(dir.path().join("app.db")).await?;
    /// db.execute("CREATE TABLE hits (page TEXT PRIMARY KEY, count INTEGER NOT NULL)", ()).await?;
    /// let page = String::from("/");
    /// let count: i64 = db
    ///     .write_rerunnable("hits.count", move |tx| {
    ///         tx.execute("INSERT INTO hits VALUES (?1, 1) ON CONFLICT DO UPDATE SET count = count + 1", [&page])?;
    ///         tx.query_row("SELECT count FROM hits WHERE page = ?1", [&page], |row| row.get(0))
    ///     })
    ///     .await?;
    /// assert_eq!(count, 1);
    /// # Ok(()) }
    /// ```
    pub fn write_rerunnable<F, T>(
        &self,
        label: impl Into<Label>,
        closure: F,
    ) -> Write<'_, Rerunnable<F, T, rusqlite::Error>>
    where
        F: Fn(&mut WriteTransaction<'_>) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        self.request(label, Lane::Interactive, Rerunnable::new(closure))
    }

    /// Runs one statement and answers how many rows it changed: the shortest way to write.
    ///
    /// # Errors
    /// As with [`write`](Self::write).
    pub fn execute(
        &self,
        sql: impl Into<Cow<'static, str>>,
        parameters: impl Parameters,
    ) -> Write<'_, Execute> {
        self.request("execute", Lane::Interactive, Execute::new(sql.into(), parameters))
    }

    /// Runs one statement and answers with its rows, each mapped by `map`: for `RETURNING`.
    ///
    /// # Errors
    /// As with [`write`](Self::write).
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let db = solewriter::Database::open(dir.path().join("app.db")).await?;
    /// db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x TEXT)", ()).await?;
    /// let ids: Vec<i64> = db
    ///     .execute_returning("INSERT INTO t (x) VALUES (?1), (?2) RETURNING id", ("a", "b"), |row| row.get(0))
    ///     .await?;
    /// assert_eq!(ids, [1, 2]);
    /// # Ok(()) }
    /// ```
    pub fn execute_returning<F, T>(
        &self,
        sql: impl Into<Cow<'static, str>>,
        parameters: impl Parameters,
        map: F,
    ) -> Write<'_, ExecuteReturning<F>>
    where
        F: Fn(&Row<'_>) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        let statement = Execute::new(sql.into(), parameters);
        self.request("execute_returning", Lane::Interactive, ExecuteReturning::new(statement, map))
    }

    /// Runs a typed [`Command`] in its lane, under its name.
    ///
    /// # Errors
    /// [`WriteError::Command`] holds the command's own error; the rest as with [`write`](Self::write).
    pub fn send<C: Command>(&self, command: C) -> Write<'_, Typed<C>> {
        self.request(C::NAME, C::LANE, Typed(command))
    }

    /// Waits until a typed [`Command`] is accepted; the receipt waits for the COMMIT.
    ///
    /// Short for `send(command).submit()`, which every kind of write has.
    ///
    /// # Errors
    /// [`WriteError::NotStarted`] if it could not be accepted.
    ///
    /// # Cancel safety
    /// Dropped before it is ready, the command never runs.
    pub async fn submit<C: Command>(&self, command: C) -> Result<Receipt<Typed<C>>, WriteError<C::Error>> {
        self.send(command).submit().await
    }

    /// Runs a closure on a read-only connection. It sees every write that was acknowledged before.
    ///
    /// # Errors
    /// [`ReadError`](crate::ReadError) tells what stood in the way.
    ///
    /// # Cancel safety
    /// As that of [`Read`].
    pub fn read<F, T>(&self, label: impl Into<Label>, closure: F) -> Read<'_, F>
    where
        F: FnOnce(&ReadTransaction<'_>) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        Read::new(&self.service, label.into(), None, closure)
    }

    /// As [`read`](Self::read), for closures with an error type of their own.
    ///
    /// # Errors
    /// [`ReadError::Query`](crate::ReadError::Query) holds the closure's own error.
    pub fn read_or_reject<F, T, E>(&self, label: impl Into<Label>, closure: F) -> Read<'_, F>
    where
        F: FnOnce(&ReadTransaction<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        Read::new(&self.service, label.into(), None, closure)
    }

    /// As [`read`](Self::read), and sees at least the commit of `token`, which another task may have made.
    ///
    /// # Errors
    /// [`ReadError::ForeignToken`](crate::ReadError::ForeignToken) if the token is from another opening of
    /// the database.
    pub fn read_after<F, T>(&self, token: CommitToken, label: impl Into<Label>, closure: F) -> Read<'_, F>
    where
        F: FnOnce(&ReadTransaction<'_>) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        Read::new(&self.service, label.into(), Some(token), closure)
    }

    /// Runs a closure on the write connection outside of any transaction, in the maintenance lane: for VACUUM,
    /// PRAGMA, ATTACH, and whatever else SQLite refuses within one.
    ///
    /// Nobody writes meanwhile. Afterwards the service goes on with a new connection, so what was set or attached
    /// is gone.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let db = solewriter::Database::open(dir.path().join("app.db")).await?;
    /// let problems = db
    ///     .maintain("nightly", |m| {
    ///         m.optimize()?;
    ///         m.vacuum()?;
    ///         m.integrity_check()
    ///     })
    ///     .await?;
    /// assert!(problems.is_empty());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`MaintenanceError`](crate::MaintenanceError): each statement stands by itself, so those before the one
    /// that failed have had their effect.
    pub fn maintain<F, T>(
        &self,
        label: impl Into<Label>,
        closure: F,
    ) -> Maintain<'_, Outside<F, T, rusqlite::Error>>
    where
        F: FnOnce(&mut Maintenance<'_, '_>) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        Maintain::new(&self.service, label.into(), Outside::new(closure))
    }

    /// Takes a snapshot: one unchanging state of the database for several reads. It holds every write that was
    /// acknowledged before.
    ///
    /// # Errors
    /// [`ReadError`](crate::ReadError) tells what stood in the way.
    ///
    /// # Cancel safety
    /// As that of [`OpenSnapshot`].
    pub fn snapshot(&self, label: impl Into<Label>) -> OpenSnapshot<'_> {
        OpenSnapshot::new(&self.service, label.into())
    }

    /// Prepares to import the items of a stream through the bulk lane.
    pub fn import<S: Stream>(&self, label: impl Into<Label>, items: S) -> Import<S> {
        Import::new(self.service.clone(), label.into(), items)
    }

    /// What the service has measured since it was opened.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.service.meter.measure().stats
    }

    /// Who holds the writer now, and since when; `None` while it is idle.
    #[must_use]
    pub fn holder(&self) -> Option<Holder> {
        self.service.meter.holder()
    }

    /// How the service is: its state, what is wrong and what to do about it, and the figures behind.
    ///
    /// [`Config::health`] has the limits.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let db = solewriter::Database::open(dir.path().join("app.db")).await?;
    /// use solewriter::HealthState;
    ///
    /// let health = db.health();
    /// for reason in &health.reasons {
    ///     eprintln!("{}: {}; {}", reason.state, reason.message, reason.action);
    /// }
    /// assert_eq!(health.state, HealthState::Healthy);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn health(&self) -> Health {
        self.service.health()
    }

    /// The last commands that the writer answered with an error and import entries that failed, the oldest first,
    /// up to 64; without any bound value. What was refused at the door or taken back by its caller never reached
    /// the writer: [`stats`](Self::stats) counts it.
    #[must_use]
    pub fn recent_failures(&self) -> Vec<FailedCommand> {
        self.service.meter.recent_failures()
    }

    /// The imports that run now, the oldest first.
    #[must_use]
    pub fn imports(&self) -> Vec<ImportStatus> {
        self.service.meter.imports()
    }

    /// The control of an import that runs now.
    #[must_use]
    pub fn import_control(&self, id: &ImportId) -> Option<ImportControl> {
        self.service.meter.import_control(id)
    }

    /// What is written down of the newest imports, up to `limit`, the newest first. One that runs now is as far
    /// as its last batch.
    ///
    /// The records are in the tables `solewriter_imports` and `solewriter_import_failures` of the database, which
    /// the first import creates. Those of imports with an [id](Import::id) stay until they are
    /// [forgotten](Self::forget_import); of others the newest 1,000 are kept.
    ///
    /// # Errors
    /// [`ReadError`] tells what stood in the way.
    ///
    /// # Cancel safety
    /// As that of [`Read`].
    pub async fn import_records(&self, limit: usize) -> Result<Vec<ImportRecord>, ReadError> {
        let list = || self.read("solewriter.imports", move |tx| record::list(tx, limit));
        let ran = self.service.meter.imports();
        let mut records = list().await?;
        let runs = self.service.meter.imports();
        let has_ended = |id: &ImportId| {
            ran.iter().any(|import| import.id == *id) && runs.iter().all(|import| import.id != *id)
        };
        if records.iter().any(|record| record.state == ImportState::Interrupted && has_ended(&record.id)) {
            // It has written down its end since.
            records = list().await?;
        }
        for record in &mut records {
            if let Some(running) = runs.iter().find(|import| import.id == record.id) {
                record.state = running.state;
            }
        }
        Ok(records)
    }

    /// Removes the record of an import, so that its id can be imported anew; true if there was one.
    ///
    /// The record of an import that runs now is needed: the import stops with
    /// [`ImportFailure::Record`](crate::ImportFailure::Record) when it is gone.
    ///
    /// # Errors
    /// As with [`write`](Self::write).
    ///
    /// # Cancel safety
    /// As that of [`Write`].
    pub async fn forget_import(&self, id: impl Into<ImportId>) -> Result<bool, WriteError> {
        let id = id.into();
        self.write_rerunnable("solewriter.forget_import", move |tx| record::forget(tx, &id)).await
    }

    /// The oldest read in progress or snapshot that is held: what keeps the WAL from being begun anew; `None`
    /// while nobody reads.
    #[must_use]
    pub fn oldest_read(&self) -> Option<Reading> {
        self.service.meter.oldest_read()
    }

    /// The canonical path of the database file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.service.location.path
    }

    /// The settings the service runs with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.service.config
    }

    /// Accepts nothing more, finishes what was accepted within the limit, answers everyone, empties the WAL
    /// and closes the file. Every other handle finds the service closed.
    ///
    /// In a fork of the process that opened the database there is nothing to close, and nothing is done.
    ///
    /// # Errors
    /// [`ShutdownError`] if user code still runs on the writer thread after the limit.
    ///
    /// # Cancel safety
    /// Dropped, the shutdown goes on in the background.
    pub async fn shutdown(&self, drain: Drain) -> Result<ShutdownReport, ShutdownError> {
        self.service.shutdown(drain).await
    }

    pub(crate) fn service(&self) -> &Service {
        &self.service
    }

    pub(crate) fn request<W: Work, M>(
        &self,
        label: impl Into<Label>,
        lane: Lane,
        work: W,
    ) -> Write<'_, W, M> {
        Write::new(&self.service, label.into(), lane, work)
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("path", &self.path()).finish_non_exhaustive()
    }
}

/// An open that has not happened yet.
#[derive(Clone, Debug)]
#[must_use = "nothing is opened before `open`"]
pub struct Builder {
    location: Location,
    config: Config,
}

impl Builder {
    /// Sets every option at once, as read from a file, say.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Runs `hook` on every connection that user code will meet, now and whenever one is replaced: to register
    /// functions and collations, or to load extensions.
    ///
    /// It runs first, so the settings of this crate win over its own, and the authorizer does not stop it. What
    /// it loads is loaded once for each connection; loading is off again afterwards. It must leave no
    /// transaction open, and not write: connections are opened at any time. Functions that the schema itself
    /// uses, in a trigger or an index, must be marked as innocuous unless
    /// [`trusted_schema`](Config::trusted_schema) is on.
    ///
    /// A second open of the file in this process may ask for no hook, or for the same: one that holds no state
    /// is known by its type, any other only as a clone of the same `Builder`. If the hook fails or panics, the
    /// connection is not used: an open fails, and so does a read that needed a new connection.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("app.db");
    /// use solewriter::Database;
    ///
    /// let builder = Database::builder(&path)
    ///     .on_connect(|connection, _role| connection.pragma_update(None, "case_sensitive_like", true));
    /// let db = builder.open().await?;
    /// let alike: bool = db.read("like", |tx| tx.query_row("SELECT 'a' LIKE 'A'", (), |row| row.get(0))).await?;
    /// assert!(!alike);
    /// # Ok(()) }
    /// ```
    pub fn on_connect<F>(mut self, hook: F) -> Self
    where
        F: Fn(&Connection, ConnectionRole) -> rusqlite::Result<()> + Send + Sync + 'static,
    {
        self.location.on_connect = Some(OnConnect::new(hook));
        self
    }

    /// Names the SQLite VFS to open the file through; for tests that inject faults.
    #[doc(hidden)]
    pub fn vfs(mut self, name: impl Into<String>) -> Self {
        self.location.vfs = Some(name.into());
        self
    }

    /// Has the service break a promise; for tests that must notice.
    #[cfg(feature = "sabotage")]
    #[doc(hidden)]
    pub fn sabotage(mut self, how: Sabotage) -> Self {
        self.location.sabotage = Some(how);
        self
    }

    /// Opens the database without blocking the runtime.
    ///
    /// # Errors
    /// [`OpenError`] says what stood in the way; nothing was created or changed then.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    ///
    /// # Cancel safety
    /// Dropped, the open is finished in the background and the database is closed again.
    pub async fn open(self) -> Result<Database, OpenError> {
        let path = self.location.path.clone();
        let opened = tokio::task::spawn_blocking(move || self.open_blocking()).await;
        opened.unwrap_or_else(|error| {
            let reason = OpenErrorReason::Io(std::io::Error::other(error));
            Err(OpenError { path, reason })
        })
    }

    /// Opens the database on this thread; needs no runtime.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_blocking(self) -> Result<Database, OpenError> {
        open::open(self.location, self.config).map(|service| Database { service })
    }
}
