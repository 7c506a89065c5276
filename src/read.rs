//! A read on its way.

use std::fmt;
use std::future::IntoFuture;
use std::marker::PhantomData;
use std::pin::Pin;
use std::time::Duration;

use tracing::{Instrument, debug_span};

use crate::error::ReadError;
use crate::label::Label;
use crate::service::Service;
use crate::sync::{after, block_on, block_on_until, until};
use crate::token::CommitToken;
use crate::transaction::ReadTransaction;
use crate::write::{Async, Blocking};

/// A read that has not begun yet: set what it needs, then await it.
///
/// The closure sees one unchanging state of the database that holds every write acknowledged before.
///
/// # Cancel safety
/// Dropped while it waits for a connection, the closure never runs. Dropped later, it runs to its end and
/// only the answer is lost.
#[must_use = "a read begins when it is awaited"]
pub struct Read<'db, F, M = Async> {
    service: &'db Service,
    closure: F,
    label: Label,
    wait_max: Duration,
    after: Option<CommitToken>,
    mode: PhantomData<M>,
}

impl<'db, F, M> Read<'db, F, M> {
    pub(crate) fn new(service: &'db Service, label: Label, after: Option<CommitToken>, closure: F) -> Self {
        let wait_max = service.config.reader_wait_max;
        Self { service, closure, label, wait_max, after, mode: PhantomData }
    }

    /// Limits the wait for a connection; `reader_wait_max` unless set.
    pub fn wait_max(mut self, wait_max: Duration) -> Self {
        self.wait_max = wait_max;
        self
    }

    /// Fails in a fork of the process, and if the token can't say anything about this opening of the database.
    ///
    /// A token of this opening names a commit that has happened, and SQLite shows every commit to each read
    /// that begins after it: so there is nothing to wait for.
    fn check_token<E>(&self) -> Result<(), ReadError<E>> {
        if self.service.is_forked() {
            return Err(ReadError::Forked);
        }
        let known = self.service.board.last_commit();
        match self.after {
            Some(token) if token.partial_cmp(&known).is_none_or(std::cmp::Ordering::is_gt) => {
                Err(ReadError::ForeignToken)
            }
            _ => Ok(()),
        }
    }
}

impl<'db, F, T, E> IntoFuture for Read<'db, F, Async>
where
    F: FnOnce(&ReadTransaction<'_>) -> Result<T, E> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    type Output = Result<T, ReadError<E>>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'db>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            self.check_token()?;
            let span = debug_span!("read", label = &*self.label);
            let permit = until(after(self.wait_max), self.service.readers.permit()).await;
            let permit = permit.ok_or(ReadError::NoReader { waited: self.wait_max })?;
            permit.ok_or(ReadError::Closed)?.read(self.closure).instrument(span).await
        })
    }
}

impl<F, T, E> Read<'_, F, Blocking>
where
    F: FnOnce(&ReadTransaction<'_>) -> Result<T, E> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    /// Blocks until the read has ended and returns its value.
    ///
    /// # Errors
    /// [`ReadError`] tells what stood in the way.
    pub fn wait(self) -> Result<T, ReadError<E>> {
        self.check_token()?;
        let _span = debug_span!("read", label = &*self.label).entered();
        let permit = block_on_until(self.service.readers.permit(), after(self.wait_max));
        let permit = permit.ok_or(ReadError::NoReader { waited: self.wait_max })?;
        block_on(permit.ok_or(ReadError::Closed)?.read(self.closure))
    }
}

impl<F, M> fmt::Debug for Read<'_, F, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Read").field("label", &self.label).finish_non_exhaustive()
    }
}
