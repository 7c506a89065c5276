//! One unchanging state of the database over several reads.

use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::time::Duration;

use crate::error::ReadError;
use crate::label::Label;
use crate::read::{Patience, Read};
use crate::reader::HeldSnapshot;
use crate::service::Service;
use crate::transaction::ReadTransaction;
use crate::write::{Async, Blocking};

/// A snapshot that has not been taken yet: set what it needs, then await it.
///
/// # Cancel safety
/// Dropped before it is ready, no snapshot is held.
#[must_use = "a snapshot is taken when it is awaited"]
pub struct OpenSnapshot<'db, M = Async> {
    service: &'db Service,
    label: Label,
    wait_max: Duration,
    age_max: Duration,
    mode: PhantomData<M>,
}

impl<'db, M> OpenSnapshot<'db, M> {
    pub(crate) fn new(service: &'db Service, label: Label) -> Self {
        let (wait_max, age_max) = (service.config.reader_wait_max, service.config.read_age_max);
        Self { service, label, wait_max, age_max, mode: PhantomData }
    }

    /// Limits the wait for a connection; `reader_wait_max` unless set.
    pub fn wait_max(mut self, wait_max: Duration) -> Self {
        self.wait_max = wait_max;
        self
    }

    /// Limits the age of the snapshot; `read_age_max` unless set. The longer it is held, the more the WAL
    /// grows.
    pub fn age_max(mut self, age_max: Duration) -> Self {
        self.age_max = age_max;
        self
    }

    fn refuse_in_a_fork(&self) -> Result<(), ReadError> {
        if self.service.is_forked() { Err(ReadError::Forked) } else { Ok(()) }
    }
}

impl<'db> IntoFuture for OpenSnapshot<'db> {
    type Output = Result<Snapshot, ReadError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'db>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            self.refuse_in_a_fork()?;
            let patience = Patience::new(self.wait_max, None);
            let held = self.service.readers.hold(self.label, patience.asked, self.age_max);
            let held = held.answered(patience.limit).await.ok_or_else(|| patience.is_over())?;
            Ok(Snapshot::new(held.unwrap_or(Err(ReadError::Closed))?, self.wait_max))
        })
    }
}

impl OpenSnapshot<'_, Blocking> {
    /// Blocks until the snapshot is taken.
    ///
    /// # Errors
    /// [`ReadError`] tells what stood in the way.
    pub fn wait(self) -> Result<Snapshot<Blocking>, ReadError> {
        self.refuse_in_a_fork()?;
        let patience = Patience::new(self.wait_max, None);
        let held = self.service.readers.hold(self.label, patience.asked, self.age_max);
        let held = held.wait(patience.limit).ok_or_else(|| patience.is_over())?;
        Ok(Snapshot::new(held.unwrap_or(Err(ReadError::Closed))?, self.wait_max))
    }
}

impl<M> fmt::Debug for OpenSnapshot<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenSnapshot").field("label", &self.label).finish_non_exhaustive()
    }
}

/// One unchanging state of the database, for several reads.
///
/// It takes one connection of the pool and pins the WAL: nothing written since can be checkpointed away. So
/// it is ended at its age limit, whether or not anyone reads from it; when the WAL reaches its hard limit; and
/// when the service closes, which it does not keep from closing. Dropping it gives the connection back,
/// without blocking.
///
/// Its reads run one at a time. A read that fails or panics leaves the snapshot as it is.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let db = solewriter::Database::open(dir.path().join("app.db")).await?;
/// db.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)", ()).await?;
/// let snapshot = db.snapshot("orders.report").await?;
/// db.execute("INSERT INTO orders VALUES (1)", ()).await?;
///
/// let count = "SELECT count(*) FROM orders";
/// let then: i64 = snapshot.read(move |tx| tx.query_row(count, (), |row| row.get(0))).await?;
/// let now: i64 = db.read("orders.count", move |tx| tx.query_row(count, (), |row| row.get(0))).await?;
/// assert_eq!((then, now), (0, 1));
/// # Ok(()) }
/// ```
#[must_use = "a snapshot ends when it is dropped"]
pub struct Snapshot<M = Async> {
    held: HeldSnapshot,
    wait_max: Duration,
    mode: PhantomData<fn() -> M>,
}

impl<M> Snapshot<M> {
    fn new(held: HeldSnapshot, wait_max: Duration) -> Self {
        Self { held, wait_max, mode: PhantomData }
    }

    /// Runs a closure on the state that the snapshot holds.
    ///
    /// # Errors
    /// [`ReadError::SnapshotEnded`] says why the state can't be read any more; else as
    /// [`Database::read`](crate::Database::read).
    ///
    /// # Cancel safety
    /// As that of [`Read`].
    pub fn read<F, T>(&self, closure: F) -> Read<'_, F, M>
    where
        F: FnOnce(&ReadTransaction<'_>) -> rusqlite::Result<T> + Send + 'static,
        T: Send + 'static,
    {
        Read::in_snapshot(&self.held, self.wait_max, closure)
    }

    /// As [`read`](Self::read), for closures with an error type of their own.
    ///
    /// # Errors
    /// [`ReadError::Query`] holds the closure's own error.
    pub fn read_or_reject<F, T, E>(&self, closure: F) -> Read<'_, F, M>
    where
        F: FnOnce(&ReadTransaction<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        Read::in_snapshot(&self.held, self.wait_max, closure)
    }

    /// The label it was taken with.
    #[must_use]
    pub fn label(&self) -> &Label {
        self.held.label()
    }

    /// How long ago it was taken.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.held.age()
    }
}

impl<M> fmt::Debug for Snapshot<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("label", self.label())
            .field("age", &self.age())
            .finish_non_exhaustive()
    }
}
