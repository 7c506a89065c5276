//! A read on its way.

use std::fmt;
use std::future::IntoFuture;
use std::marker::PhantomData;
use std::pin::Pin;
use std::time::{Duration, Instant};

use tracing::{Instrument, debug_span};

use crate::error::ReadError;
use crate::label::Label;
use crate::reader::{HeldSnapshot, Request};
use crate::service::Service;
use crate::sync::{after, block_on, block_on_until, until};
use crate::token::CommitToken;
use crate::transaction::ReadTransaction;
use crate::write::{Async, Blocking, OnDrop};

/// A read that has not begun yet: set what it needs, then await it.
///
/// The closure sees one unchanging state of the database that holds every write acknowledged before; or that
/// of the [`Snapshot`](crate::Snapshot) it was made from.
///
/// # Cancel safety
/// Dropped while it waits for a connection, the closure never runs. Dropped later, it runs to its end and
/// only the answer is lost, unless [`on_drop`](Self::on_drop) asks for a withdrawal.
#[must_use = "a read begins when it is awaited"]
pub struct Read<'db, F, M = Async> {
    source: Source<'db>,
    closure: F,
    label: Label,
    wait_max: Duration,
    deadline: Option<Duration>,
    on_drop: OnDrop,
    after: Option<CommitToken>,
    mode: PhantomData<M>,
}

/// Where a read gets its connection.
enum Source<'db> {
    Pool(&'db Service),
    Snapshot(&'db HeldSnapshot),
}

impl<'db, F, M> Read<'db, F, M> {
    pub(crate) fn new(service: &'db Service, label: Label, after: Option<CommitToken>, closure: F) -> Self {
        let wait_max = service.config.reader_wait_max;
        Self { after, ..Self::of(Source::Pool(service), label, wait_max, closure) }
    }

    pub(crate) fn in_snapshot(snapshot: &'db HeldSnapshot, wait_max: Duration, closure: F) -> Self {
        Self::of(Source::Snapshot(snapshot), snapshot.label().clone(), wait_max, closure)
    }

    fn of(source: Source<'db>, label: Label, wait_max: Duration, closure: F) -> Self {
        let (deadline, on_drop, after) = (None, OnDrop::Finish, None);
        Self { source, closure, label, wait_max, deadline, on_drop, after, mode: PhantomData }
    }

    /// Limits the wait for a connection, or for another read of the same snapshot; `reader_wait_max` unless
    /// set.
    pub fn wait_max(mut self, wait_max: Duration) -> Self {
        self.wait_max = wait_max;
        self
    }

    /// Limits the time the read takes from when it is awaited: waiting for a connection, and running.
    ///
    /// It replaces the age limit `read_age_max`, and may be longer; the age of a snapshot ends its reads all
    /// the same. A statement that runs then is interrupted. Rust code can't be, but the next statement it asks
    /// for is. A closure that returns `Ok` all the same gets its `Ok`. Polled outside of a Tokio runtime, the wait
    /// for a connection has no timer and so no limit; the run has.
    pub fn deadline(mut self, time: Duration) -> Self {
        self.deadline = Some(time);
        self
    }

    /// Chooses what becomes of the read if its future is dropped while it runs: with [`OnDrop::Withdraw`] its
    /// statement is interrupted.
    pub fn on_drop(mut self, on_drop: OnDrop) -> Self {
        self.on_drop = on_drop;
        self
    }

    /// Fails in a fork of the process, and if the token can't say anything about this opening of the database.
    ///
    /// A token of this opening names a commit that has happened, and SQLite shows every commit to each read
    /// that begins after it: so there is nothing to wait for.
    fn check_token<E>(&self) -> Result<(), ReadError<E>> {
        let Source::Pool(service) = &self.source else { return Ok(()) };
        if service.is_forked() {
            return Err(ReadError::Forked);
        }
        let Some(token) = self.after else { return Ok(()) };
        let known = service.board.last_commit();
        if token.partial_cmp(&known).is_none_or(std::cmp::Ordering::is_gt) {
            return Err(ReadError::ForeignToken);
        }
        Ok(())
    }

    fn patience(&self) -> Patience {
        Patience::new(self.wait_max, self.deadline)
    }

    fn request(&self, patience: Patience) -> Request {
        let (label, on_drop) = (self.label.clone(), self.on_drop);
        Request { label, asked: patience.asked, deadline: patience.deadline, on_drop }
    }
}

/// How long something waits for a connection.
#[derive(Clone, Copy)]
pub(crate) struct Patience {
    pub(crate) asked: Instant,
    deadline: Option<Instant>,
    pub(crate) limit: Instant,
}

impl Patience {
    pub(crate) fn new(wait_max: Duration, deadline: Option<Duration>) -> Self {
        let deadline = deadline.map(after);
        let limit = after(wait_max);
        Self {
            asked: Instant::now(),
            deadline,
            limit: deadline.map_or(limit, |deadline| deadline.min(limit)),
        }
    }

    /// What it means that the limit has passed.
    pub(crate) fn is_over<E>(self) -> ReadError<E> {
        let waited = self.asked.elapsed();
        match self.deadline {
            Some(deadline) if deadline <= self.limit => ReadError::DeadlineExceeded { waited, ran: None },
            _ => ReadError::NoReader { waited },
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
        let span = debug_span!("read", label = &*self.label);
        let read = async move {
            self.check_token()?;
            let patience = self.patience();
            let request = self.request(patience);
            match self.source {
                Source::Pool(service) => {
                    let read = service.readers.read(request, self.closure).answered(patience.limit);
                    read.await.unwrap_or_else(|| Err(patience.is_over()))
                }
                Source::Snapshot(snapshot) => {
                    let turn = until(patience.limit, snapshot.turn()).await;
                    turn.ok_or_else(|| patience.is_over())?.read(request, self.closure).await
                }
            }
        };
        Box::pin(read.instrument(span))
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
        let patience = self.patience();
        let request = self.request(patience);
        match self.source {
            Source::Pool(service) => {
                let read = service.readers.read(request, self.closure).wait(patience.limit);
                read.unwrap_or_else(|| Err(patience.is_over()))
            }
            Source::Snapshot(snapshot) => {
                let turn = block_on_until(snapshot.turn(), patience.limit);
                block_on(turn.ok_or_else(|| patience.is_over())?.read(request, self.closure))
            }
        }
    }
}

impl<F, M> fmt::Debug for Read<'_, F, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Read").field("label", &self.label).finish_non_exhaustive()
    }
}
