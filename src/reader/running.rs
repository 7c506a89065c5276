//! One read at work: its limits, its closure, and what it is answered.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin as Pinning;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::pins::{Pin, Pinned};
use super::pool::{Order, ReaderPool, Work};
use super::thread::Reader;
use super::waiting::Submitted;
use crate::error::{Cause, ReadEnd, ReadError};
use crate::failure::Failure;
use crate::label::Label;
use crate::sync::{after, lock};
use crate::transaction::{ReadTransaction, end_read, panic_message, read_transaction};
use crate::user_code::UserCode;
use crate::watchdog::Watchdog;
use crate::write::OnDrop;

/// What is asked of a read.
pub(crate) struct Request {
    pub(crate) label: Label,
    /// When it began to wait for a connection.
    pub(crate) asked: Instant,
    pub(crate) deadline: Option<Instant>,
    pub(crate) on_drop: OnDrop,
}

impl ReaderPool {
    /// Runs a closure on a connection of the pool; without a deadline, for `read_age_max` at most.
    pub(crate) fn read<F, T, E>(self: &Arc<Self>, request: Request, closure: F) -> Submitted<Running<T, E>>
    where
        F: FnOnce(&ReadTransaction<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        let (label, asked) = (request.label.clone(), request.asked);
        let (task, answer) = Task::new(request, closure, None);
        let work = Box::new(SingleRead::Waits(task));
        Submitted { waiting: self.submit(Order { label, asked, wake: None, work }), answer }
    }
}

/// A read outside of a snapshot.
enum SingleRead<F, T, E> {
    Waits(Task<F, T, E>),
    Ran(Finished<F, T, E>),
    Answered,
}

impl<F, T, E> Work for SingleRead<F, T, E>
where
    F: FnOnce(&ReadTransaction<'_>) -> Result<T, E> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    fn run(
        &mut self,
        reader: &mut Reader,
        connection: &mut Connection,
        pin: &Pin,
        pool: &Arc<ReaderPool>,
    ) -> bool {
        let Self::Waits(task) = std::mem::replace(self, Self::Answered) else { return true };
        let bound = task.bound(after(pool.config().read_age_max));
        let watchdog = reader.watchdog.clone();
        watchdog.limit(Some(bound.moment));
        let begun = reader.begin(connection, pool, bound.moment);
        let finished = match (begun, reader.user_code()) {
            (Ok(()), Some(user_code)) => task
                .run(&Place { connection, user_code, watchdog: &watchdog, pin, is_snapshot: false }, bound),
            (begun, _) => task.refuse(begun.err(), &watchdog, pin, bound),
        };
        watchdog.limit(None);
        pool.count_read();
        let fit = end_read(connection) && finished.fit;
        *self = Self::Ran(finished);
        fit
    }

    fn answer(self: Box<Self>) {
        if let Self::Ran(finished) = *self {
            finished.answer();
        }
    }

    fn refuse(self: Box<Self>, cause: Cause) {
        if let Self::Waits(task) = *self {
            task.finish(ReadError::Connection(cause)).answer();
        }
    }
}

/// Where a read runs: in a transaction that has begun.
pub(super) struct Place<'c> {
    pub(super) connection: &'c Connection,
    pub(super) user_code: &'c UserCode,
    pub(super) watchdog: &'c Watchdog,
    pub(super) pin: &'c Pin,
    pub(super) is_snapshot: bool,
}

/// The moment at which a read is ended.
#[derive(Clone, Copy)]
pub(super) struct Bound {
    moment: Instant,
    /// It is the read's own, not that of its age.
    is_deadline: bool,
}

impl Bound {
    fn has_passed(self) -> bool {
        Instant::now() >= self.moment
    }
}

/// A read on its way to its connection.
pub(super) struct Task<F, T, E> {
    closure: F,
    request: Request,
    withdrawal: Option<Arc<Withdrawal>>,
    reply: oneshot::Sender<Result<T, ReadError<E>>>,
}

impl<F, T, E> Task<F, T, E>
where
    F: FnOnce(&ReadTransaction<'_>) -> Result<T, E>,
    E: 'static,
{
    /// `snapshot` is the one it reads from, if it does.
    pub(super) fn new(request: Request, closure: F, snapshot: Option<Arc<Pinned>>) -> (Self, Running<T, E>) {
        let withdrawal = (request.on_drop == OnDrop::Withdraw).then(Arc::<Withdrawal>::default);
        let (reply, answer) = oneshot::channel();
        let running = Running { answer, withdrawal: withdrawal.clone(), snapshot };
        (Self { closure, request, withdrawal, reply }, running)
    }

    /// A deadline replaces the age limit of a single read, but not that of a snapshot.
    pub(super) fn bound(&self, age_limit: Instant) -> Bound {
        match self.request.deadline {
            Some(moment) => Bound { moment, is_deadline: true },
            None => Bound { moment: age_limit, is_deadline: false },
        }
    }

    pub(super) fn bound_in_snapshot(&self, age_limit: Instant) -> Bound {
        let bound = self.bound(age_limit);
        if bound.moment < age_limit { bound } else { Bound { moment: age_limit, is_deadline: false } }
    }

    /// Runs the closure under a limit of its own.
    pub(super) fn run_within(self, place: &Place<'_>, bound: Bound) -> Finished<F, T, E> {
        place.watchdog.limit(Some(bound.moment));
        let finished = self.run(place, bound);
        place.watchdog.limit(None);
        finished
    }

    /// Runs the closure. The watchdog has the bound.
    fn run(self, place: &Place<'_>, bound: Bound) -> Finished<F, T, E> {
        let Self { closure, request, withdrawal, reply } = self;
        let began = Instant::now();
        let wanted = withdrawal.as_ref().is_none_or(|withdrawal| withdrawal.start(place.watchdog));
        let runs = wanted && !(bound.is_deadline && bound.has_passed());
        let ran = read_transaction(place.connection, place.user_code, place.watchdog, |tx| {
            // One that does not run is dropped here, where a panic is caught.
            runs.then(|| closure(tx))
        });
        let interrupted = place.watchdog.take_interrupted();
        let wanted = withdrawal.is_none_or(|withdrawal| withdrawal.over(place.watchdog));
        let waited = began.saturating_duration_since(request.asked);
        let stopped = match runs {
            true if interrupted && wanted => Some(stopped(place, bound, waited, began.elapsed())),
            true => None,
            false => Some(ReadError::DeadlineExceeded { waited, ran: None }),
        };
        let fit = match &ran {
            Ok(Some(Err(error))) => !shows_a_sick_connection(error),
            Ok(_) => true,
            Err(_) => false,
        };
        Finished { outcome: Outcome::Ran { ran, stopped }, reply, fit }
    }

    /// Answers without having run the closure, since the transaction could not be begun.
    fn refuse(self, cause: Option<Cause>, watchdog: &Watchdog, pin: &Pin, bound: Bound) -> Finished<F, T, E> {
        let waited = self.request.asked.elapsed();
        let error = match (pin.pinned().ended(), cause) {
            (Some((ReadEnd::Closed, _)), _) | (_, None) => ReadError::Closed,
            (Some((why, age)), _) => ReadError::Ended { age, why },
            (None, Some(_)) if bound.is_deadline && bound.has_passed() => {
                ReadError::DeadlineExceeded { waited, ran: None }
            }
            (None, Some(cause)) => ReadError::Connection(cause),
        };
        // The next read on this thread has its own time.
        let _of_this_one = watchdog.take_interrupted();
        self.finish(error)
    }

    fn finish(self, error: ReadError<E>) -> Finished<F, T, E> {
        Finished { outcome: Outcome::Refused(error, self.closure), reply: self.reply, fit: false }
    }
}

/// Why a statement of the closure was interrupted.
fn stopped<E>(place: &Place<'_>, bound: Bound, waited: Duration, ran: Duration) -> ReadError<E> {
    let pinned = place.pin.pinned();
    if pinned.ended().is_none() {
        if bound.is_deadline {
            return ReadError::DeadlineExceeded { waited, ran: Some(ran) };
        }
        pinned.note_end(ReadEnd::AgeLimit);
    }
    let (why, age) = pinned.ended().unwrap_or((ReadEnd::AgeLimit, pinned.age()));
    match why {
        _ if place.is_snapshot => ReadError::SnapshotEnded { age, why },
        ReadEnd::Closed => ReadError::Closed,
        _ => ReadError::Ended { age, why },
    }
}

/// What is left of a read once its transaction has ended: to answer.
pub(super) struct Finished<F, T, E> {
    outcome: Outcome<F, T, E>,
    reply: oneshot::Sender<Result<T, ReadError<E>>>,
    /// Whether the connection is fit for another read.
    pub(super) fit: bool,
}

enum Outcome<F, T, E> {
    Ran { ran: std::thread::Result<Option<Result<T, E>>>, stopped: Option<ReadError<E>> },
    Refused(ReadError<E>, F),
}

impl<F, T, E: 'static> Finished<F, T, E> {
    pub(super) fn answer(self) {
        // Where nobody waits any more, the value is dropped here, and so is a closure that never ran. Their
        // types are the user's, and may panic, which must not end the thread.
        let sent = catch_unwind(AssertUnwindSafe(|| drop(self.reply.send(self.outcome.into_answer()))));
        if sent.is_err() {
            tracing::error!("dropping the answer of a read panicked");
        }
    }
}

impl<F, T, E: 'static> Outcome<F, T, E> {
    fn into_answer(self) -> Result<T, ReadError<E>> {
        match self {
            Self::Refused(error, _closure) => Err(error),
            Self::Ran { ran: Ok(Some(Ok(value))), .. } => Ok(value),
            Self::Ran { ran: Err(panic), .. } => Err(ReadError::Panicked(panic_message(panic))),
            Self::Ran { stopped: Some(stopped), .. } => Err(stopped),
            Self::Ran { ran: Ok(Some(Err(error))), .. } if tried_to_write(&error) => {
                Err(ReadError::ReadOnly(error))
            }
            Self::Ran { ran: Ok(Some(Err(error))), .. } => Err(ReadError::Query(error)),
            // Withdrawn: nobody waits for this.
            Self::Ran { ran: Ok(None), stopped: None } => Err(ReadError::Closed),
        }
    }
}

fn as_sqlite<E: 'static>(error: &E) -> Option<&rusqlite::Error> {
    (error as &dyn Any).downcast_ref()
}

fn tried_to_write<E: 'static>(error: &E) -> bool {
    as_sqlite(error).and_then(rusqlite::Error::sqlite_error_code) == Some(rusqlite::ErrorCode::ReadOnly)
}

/// Whether the next read should rather have another connection.
fn shows_a_sick_connection<E: 'static>(error: &E) -> bool {
    let failure = as_sqlite(error).map_or(Failure::Command, Failure::of);
    failure.is_environmental() && failure != Failure::Interrupted && !tried_to_write(error)
}

/// A read that waits for its answer.
pub(crate) struct Running<T, E> {
    answer: oneshot::Receiver<Result<T, ReadError<E>>>,
    withdrawal: Option<Arc<Withdrawal>>,
    snapshot: Option<Arc<Pinned>>,
}

impl<T, E> Future for Running<T, E> {
    type Output = Result<T, ReadError<E>>;

    fn poll(mut self: Pinning<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pinning::new(&mut self.answer).poll(context));
        self.withdrawal = None;
        Poll::Ready(answer.unwrap_or_else(|_| Err(self.lost())))
    }
}

impl<T, E> Running<T, E> {
    /// Why there is no answer to come: the closure was dropped and never ran.
    fn lost(&self) -> ReadError<E> {
        match &self.snapshot {
            Some(pinned) => {
                let (why, age) = pinned.ended().unwrap_or((ReadEnd::Broken, pinned.age()));
                ReadError::SnapshotEnded { age, why }
            }
            None => ReadError::Closed,
        }
    }
}

impl<T, E> Drop for Running<T, E> {
    fn drop(&mut self) {
        if let Some(withdrawal) = &self.withdrawal {
            withdrawal.withdraw();
        }
    }
}

/// Lets a dropped future end its read, and nothing but its read.
#[derive(Default)]
pub(super) struct Withdrawal(Mutex<Stage>);

#[derive(Default)]
enum Stage {
    #[default]
    Waiting,
    Runs(Watchdog),
    Withdrawn,
    Over,
}

impl Withdrawal {
    fn withdraw(&self) {
        let mut stage = lock(&self.0);
        match &*stage {
            Stage::Runs(watchdog) => watchdog.end(),
            Stage::Waiting => {}
            Stage::Withdrawn | Stage::Over => return,
        }
        *stage = Stage::Withdrawn;
    }

    /// Whether the read may begin.
    fn start(&self, watchdog: &Watchdog) -> bool {
        let mut stage = lock(&self.0);
        let waits = matches!(*stage, Stage::Waiting);
        if waits {
            *stage = Stage::Runs(watchdog.clone());
        }
        waits
    }

    /// The read has ended; false if it was withdrawn.
    fn over(&self, watchdog: &Watchdog) -> bool {
        let stage = std::mem::replace(&mut *lock(&self.0), Stage::Over);
        let withdrawn = matches!(stage, Stage::Withdrawn);
        if withdrawn {
            // Whoever else has ended the read meanwhile has left a note, which is looked for after this.
            watchdog.resume();
        }
        !withdrawn
    }
}
