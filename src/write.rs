//! A write on its way: what can be asked of it, and the ways to wait for it.

use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::runtime::Id;
use tokio::time::{Sleep, sleep_until};
use tracing::{Level, Span};

use crate::command::Work;
use crate::config::Durability;
use crate::error::{NotStarted, WriteError};
use crate::label::Label;
use crate::lane::Lane;
use crate::message::{Claim, Committed, Envelope, Pending, Reply, Ticket};
use crate::queue::Admission;
use crate::service::Service;
use crate::sync::{after, block_on, block_on_until, until};

/// What becomes of a command or a read whose future or receipt is dropped after it was accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDrop {
    /// It runs; only its answer is lost (the default).
    #[default]
    Finish,
    /// It is taken back if it has not started; else a command runs, and a read is interrupted.
    Withdraw,
}

/// Marks a request whose answer is awaited.
#[derive(Debug)]
pub enum Async {}

/// Marks a request whose answer blocks the thread.
#[derive(Debug)]
pub enum Blocking {}

/// A command that has not been sent yet: set what it needs, then await it.
///
/// Awaiting it waits for room in its lane, then for the COMMIT of the group it joins.
///
/// # Cancel safety
/// Dropped before its lane accepted it, the command never runs. Dropped later, it runs and may commit, and
/// only the answer is lost, unless [`on_drop`](Self::on_drop) asks for a withdrawal. The transaction is never
/// left open.
#[must_use = "a command is sent when it is awaited or submitted"]
pub struct Write<'db, W: Work, M = Async> {
    service: &'db Service,
    work: W,
    options: Options,
    mode: PhantomData<M>,
}

struct Options {
    label: Label,
    lane: Lane,
    durability: Durability,
    deadline: Option<Duration>,
    on_drop: OnDrop,
    payload_bytes: usize,
}

impl<'db, W: Work, M> Write<'db, W, M> {
    pub(crate) fn new(service: &'db Service, label: Label, lane: Lane, work: W) -> Self {
        let options = Options {
            label,
            lane,
            durability: service.config.durability,
            deadline: None,
            on_drop: OnDrop::Finish,
            payload_bytes: work.payload_bytes(),
        };
        Self { service, work, options, mode: PhantomData }
    }

    /// Names the command in spans, warnings, statistics and errors.
    pub fn label(mut self, label: impl Into<Label>) -> Self {
        self.options.label = label.into();
        self
    }

    /// Chooses the lane the command waits in.
    pub fn lane(mut self, lane: Lane) -> Self {
        self.options.lane = lane;
        self
    }

    /// Chooses how much the acknowledged command survives. A group is as durable as its first command, and a
    /// more demanding command begins the next group.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.options.durability = durability;
        self
    }

    /// Limits the time from now until the command has run; waiting for room, for its turn and for the write lock
    /// of another process included.
    ///
    /// A command that has not started by then never runs. In one that has, SQLite ends the statement that is at
    /// work and begins no other, and the command is rolled back; Rust code and COMMIT are not interrupted, and a
    /// command that returns `Ok` all the same is committed. As ending a statement that writes costs the whole
    /// transaction, a command with little time left runs in a group of its own, unless its label is known as quick.
    pub fn deadline(mut self, time: Duration) -> Self {
        self.options.deadline = Some(time);
        self
    }

    /// Chooses what becomes of the command if its future or receipt is dropped.
    pub fn on_drop(mut self, on_drop: OnDrop) -> Self {
        self.options.on_drop = on_drop;
        self
    }

    /// Says how many bytes the command takes while it waits, where the size of the closure does not tell.
    pub fn payload_bytes(mut self, bytes: usize) -> Self {
        self.options.payload_bytes = bytes;
        self
    }

    /// Sends the command if its lane has room now; never waits.
    ///
    /// # Errors
    /// [`WriteError::NotStarted`]: full, too large, closed, stopped, or sent from inside another command.
    pub fn try_submit(self) -> Result<Receipt<W, M>, WriteError<W::Error>> {
        let (service, lane) = (self.service, self.options.lane);
        match self.dispatch()? {
            Dispatch::Accepted(receipt) => Ok(receipt),
            Dispatch::Full(..) => Err(refuse(service, NotStarted::QueueFull { lane })),
        }
    }

    /// Hands the command over if there is room.
    fn dispatch(self) -> Result<Dispatch<'db, W, M>, WriteError<W::Error>> {
        let service = self.service;
        if service.is_forked() {
            return Err(refuse(service, NotStarted::Forked));
        }
        if service.on_writer_thread() {
            return Err(refuse(service, NotStarted::Reentrant));
        }
        let (envelope, receipt) = self.seal();
        match service.outbox.try_send(envelope) {
            Ok(Admission::Accepted) => Ok(Dispatch::Accepted(receipt)),
            Ok(Admission::Full(envelope)) => Ok(Dispatch::Full(Queueing { envelope, receipt, service })),
            Err(reason) => Err(refuse(service, reason)),
        }
    }

    fn seal(self) -> (Envelope, Receipt<W, M>) {
        let Options { label, lane, durability, deadline, on_drop, payload_bytes } = self.options;
        let span = if tracing::span_enabled!(Level::DEBUG) {
            tracing::debug_span!("command", label = &*label, %lane)
        } else {
            Span::none()
        };
        let ticket = Arc::new(Ticket {
            kind: W::KIND,
            label,
            lane,
            durability,
            // What does not fit is refused as too large.
            bytes: u32::try_from(payload_bytes).unwrap_or(u32::MAX),
            submitted: Instant::now(),
            deadline: deadline.map(after),
            span,
            claim: Claim::default(),
            job: Pending::new(self.work),
        });
        let receipt = Receipt {
            deadline: ticket.deadline,
            ticket: ticket.clone(),
            herald: self.service.herald.runtime(),
            on_drop,
            timer: None,
            mode: PhantomData,
        };
        (Envelope::new(ticket), receipt)
    }
}

/// What became of a command at the door.
enum Dispatch<'db, W: Work, M> {
    Accepted(Receipt<W, M>),
    Full(Queueing<'db, W, M>),
}

/// A command whose lane had no room.
struct Queueing<'db, W: Work, M> {
    envelope: Envelope,
    receipt: Receipt<W, M>,
    service: &'db Service,
}

impl<W: Work, M> Queueing<'_, W, M> {
    /// How long to wait for room, and what it means if there is none until then.
    fn patience(&self) -> (Instant, NotStarted) {
        let submitted = self.envelope.submitted;
        let limit = submitted + self.service.config.queue_wait_max;
        match self.receipt.deadline {
            Some(deadline) if deadline < limit => {
                let waited = deadline - submitted;
                (deadline, NotStarted::DeadlineExceeded { waited })
            }
            _ => (limit, NotStarted::QueueFull { lane: self.envelope.lane }),
        }
    }

    async fn accepted(self) -> Result<Receipt<W, M>, WriteError<W::Error>> {
        let (limit, otherwise) = self.patience();
        let accepted = until(limit, self.service.outbox.send(self.envelope)).await;
        match accepted.unwrap_or(Err(otherwise)) {
            Ok(()) => Ok(self.receipt),
            Err(reason) => Err(refuse(self.service, reason)),
        }
    }

    fn accepted_blocking(self) -> Result<Receipt<W, M>, WriteError<W::Error>> {
        let (limit, otherwise) = self.patience();
        let accepted = block_on_until(self.service.outbox.send(self.envelope), limit);
        match accepted.unwrap_or(Err(otherwise)) {
            Ok(()) => Ok(self.receipt),
            Err(reason) => Err(refuse(self.service, reason)),
        }
    }
}

/// A command that never ran, counted.
fn refuse<E>(service: &Service, reason: NotStarted) -> WriteError<E> {
    service.board.count_refused();
    reason.into()
}

impl<'db, W: Work> Write<'db, W, Async> {
    /// Waits until the command is accepted, not until it is committed; the receipt waits for that.
    ///
    /// Commands that one task submits one after the other into one lane take effect in that order.
    ///
    /// # Errors
    /// [`WriteError::NotStarted`]: no room within `queue_wait_max` or the deadline, too large, closed,
    /// stopped, or sent from inside another command.
    ///
    /// # Cancel safety
    /// Dropped before it is ready, the command never runs.
    pub async fn submit(self) -> Result<Receipt<W>, WriteError<W::Error>> {
        match self.dispatch()? {
            Dispatch::Accepted(receipt) => Ok(receipt),
            Dispatch::Full(queueing) => queueing.accepted().await,
        }
    }

    /// Waits for the COMMIT, and answers with the token of the commit and the timing of the command too.
    ///
    /// # Errors
    /// As awaiting the command itself.
    ///
    /// # Cancel safety
    /// As that of [`Write`].
    pub async fn committed(self) -> Result<Committed<W::Output>, WriteError<W::Error>> {
        self.submit().await?.committed().await
    }
}

impl<W: Work> Write<'_, W, Blocking> {
    /// Blocks until the command is committed and returns its value.
    ///
    /// # Errors
    /// [`WriteError`] tells whether the command ran and whether it is committed.
    pub fn wait(self) -> Result<W::Output, WriteError<W::Error>> {
        self.committed().map(|committed| committed.value)
    }

    /// Blocks until the command is committed; answers with the token of the commit and the timing too.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn committed(self) -> Result<Committed<W::Output>, WriteError<W::Error>> {
        self.submit()?.committed()
    }

    /// Blocks until the command is accepted, not until it is committed; the receipt waits for that.
    ///
    /// # Errors
    /// As [`submit`](Write::submit) of the async form.
    pub fn submit(self) -> Result<Receipt<W, Blocking>, WriteError<W::Error>> {
        match self.dispatch()? {
            Dispatch::Accepted(receipt) => Ok(receipt),
            Dispatch::Full(queueing) => queueing.accepted_blocking(),
        }
    }
}

impl<'db, W: Work> IntoFuture for Write<'db, W, Async> {
    type Output = Result<W::Output, WriteError<W::Error>>;
    type IntoFuture = WriteFuture<'db, W>;

    fn into_future(self) -> Self::IntoFuture {
        WriteFuture(State::Unsent(Some(self)))
    }
}

/// The future of a [`Write`].
pub struct WriteFuture<'db, W: Work>(State<'db, W>);

enum State<'db, W: Work> {
    /// Taken at the first poll.
    Unsent(Option<Write<'db, W>>),
    /// Only where the lane was full, so that the usual way allocates nothing for it.
    WaitingForRoom(WaitingForRoom<'db, W>),
    Accepted(Receipt<W>),
}

type WaitingForRoom<'db, W> =
    Pin<Box<dyn Future<Output = Result<Receipt<W>, WriteError<<W as Work>::Error>>> + Send + 'db>>;

// Nothing in it is pinned in place: the waiting future is boxed.
impl<W: Work> Unpin for WriteFuture<'_, W> {}

impl<W: Work> Future for WriteFuture<'_, W> {
    type Output = Result<W::Output, WriteError<W::Error>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            self.0 = match &mut self.0 {
                State::Accepted(receipt) => return Pin::new(receipt).poll(context),
                State::WaitingForRoom(accepted) => State::Accepted(ready!(accepted.as_mut().poll(context))?),
                State::Unsent(write) => {
                    let Some(write) = write.take() else { unreachable!("polled again after it was ready") };
                    match write.dispatch()? {
                        Dispatch::Accepted(receipt) => State::Accepted(receipt),
                        Dispatch::Full(queueing) => State::WaitingForRoom(Box::pin(queueing.accepted())),
                    }
                }
            };
        }
    }
}

impl<W: Work> fmt::Debug for WriteFuture<'_, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteFuture").finish_non_exhaustive()
    }
}

impl<W: Work, M> fmt::Debug for Write<'_, W, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Write")
            .field("label", &self.options.label)
            .field("lane", &self.options.lane)
            .finish_non_exhaustive()
    }
}

/// An accepted command; await it for its answer.
///
/// # Cancel safety
/// Dropped, the command runs and its answer is lost, unless it was sent with [`OnDrop::Withdraw`].
#[must_use = "dropping a receipt loses the answer of its command"]
pub struct Receipt<W: Work, M = Async> {
    ticket: Arc<Ticket<Pending<W>>>,
    /// The runtime that wakes its own tasks.
    herald: Option<Id>,
    /// Until it has passed.
    deadline: Option<Instant>,
    on_drop: OnDrop,
    /// Made at the first poll, and only with a deadline.
    timer: Option<Pin<Box<Sleep>>>,
    mode: PhantomData<fn() -> M>,
}

impl<W: Work, M> Receipt<W, M> {
    /// Takes the command back because its deadline has passed; `None` if it has started.
    fn expire(&mut self) -> Option<WriteError<W::Error>> {
        let waited = || self.ticket.submitted.elapsed();
        self.ticket.claim.withdraw().then(|| NotStarted::DeadlineExceeded { waited: waited() }.into())
    }
}

impl<W: Work> Receipt<W, Async> {
    /// Waits for the COMMIT, and answers with the token of the commit and the timing of the command too.
    ///
    /// # Errors
    /// [`WriteError`] tells whether the command ran and whether it is committed.
    pub async fn committed(mut self) -> Result<Committed<W::Output>, WriteError<W::Error>> {
        std::future::poll_fn(|context| self.poll_committed(context)).await
    }

    fn poll_committed(&mut self, context: &mut Context<'_>) -> Poll<Reply<W>> {
        if let Poll::Ready(reply) = self.ticket.job.poll(context, self.herald) {
            return Poll::Ready(reply);
        }
        let Some(deadline) = self.deadline else { return Poll::Pending };
        // Without a Tokio timer the writer alone enforces the deadline, when it takes the command up.
        if tokio::runtime::Handle::try_current().is_err() {
            return Poll::Pending;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline.into())));
        ready!(timer.as_mut().poll(context));
        self.deadline = None;
        match self.expire() {
            Some(expired) => Poll::Ready(Err(expired)),
            None => Poll::Pending,
        }
    }
}

impl<W: Work> Receipt<W, Blocking> {
    /// Blocks until the command is committed and returns its value.
    ///
    /// # Errors
    /// [`WriteError`] tells whether the command ran and whether it is committed.
    pub fn wait(self) -> Result<W::Output, WriteError<W::Error>> {
        self.committed().map(|committed| committed.value)
    }

    /// Blocks until the command is committed; answers with the token of the commit and the timing too.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn committed(mut self) -> Result<Committed<W::Output>, WriteError<W::Error>> {
        let ticket = self.ticket.clone();
        let mut reply = std::future::poll_fn(|context| ticket.job.poll(context, None));
        if let Some(deadline) = self.deadline {
            if let Some(reply) = block_on_until(&mut reply, deadline) {
                return reply;
            }
            if let Some(expired) = self.expire() {
                return Err(expired);
            }
        }
        block_on(reply)
    }
}

impl<W: Work> Future for Receipt<W, Async> {
    type Output = Result<W::Output, WriteError<W::Error>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_committed(context).map_ok(|committed| committed.value)
    }
}

impl<W: Work, M> Drop for Receipt<W, M> {
    fn drop(&mut self) {
        if self.on_drop == OnDrop::Withdraw {
            // Has no effect on a command that has started or is answered.
            let _withdrawn = self.ticket.claim.withdraw();
        }
    }
}

impl<W: Work, M> fmt::Debug for Receipt<W, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt").finish_non_exhaustive()
    }
}
