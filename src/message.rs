//! What crosses to the writer: a command with its options, and the answer that comes back.

use std::ops::Deref;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::runtime::Id;
use tracing::Span;

use crate::command::Work;
use crate::config::Durability;
use crate::error::{NotStarted, Outcome, RolledBack, Unknown, WriteError};
use crate::herald::{Callers, is_in_task_of};
use crate::label::Label;
use crate::lane::Lane;
use crate::queue::AtomicU8;
use crate::rules::{Guard, Loss};
use crate::sync::{drop_quietly, lock, quietly};
use crate::token::CommitToken;
use crate::transaction::{Fault, WriteTransaction};

/// A command with its options: shared by the writer, which runs and answers it, and by its caller, who waits for the
/// answer. In one allocation, made and as a rule freed by the caller, since the writer's time is everyone's.
pub(crate) struct Ticket<J: ?Sized = dyn Job> {
    pub(crate) kind: Kind,
    pub(crate) label: Label,
    pub(crate) lane: Lane,
    pub(crate) durability: Durability,
    pub(crate) bytes: u32,
    pub(crate) submitted: Instant,
    pub(crate) deadline: Option<Instant>,
    /// The span of the command, a child of the caller's.
    pub(crate) span: Span,
    pub(crate) claim: Claim,
    pub(crate) job: J,
}

impl<J: ?Sized> Ticket<J> {
    /// Decides that the command starts; false if its caller has taken it back.
    pub(crate) fn start(&self) -> bool {
        self.claim.start()
    }

    /// Whether its caller has not taken it back.
    pub(crate) fn waits(&self) -> bool {
        !self.claim.is_withdrawn()
    }

    pub(crate) fn is_expired(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| now >= deadline)
    }
}

/// The writer's hold on a command. Whoever has it must answer; dropped without, it says that nobody ever will.
pub(crate) struct Envelope(Option<Arc<Ticket>>);

impl Envelope {
    pub(crate) fn new(ticket: Arc<Ticket>) -> Self {
        Self(Some(ticket))
    }

    /// Answers the caller.
    pub(crate) fn answer(mut self, fate: Fate) {
        if let Some(caller) = self.settle(fate) {
            quietly(|| caller.waker.wake());
        }
    }

    /// Answers a caller who may be woken together with others.
    pub(crate) fn answer_among(mut self, fate: Fate, callers: &mut Callers) {
        match self.settle(fate) {
            Some(Caller { waker, by_herald: true }) => callers.add(waker),
            Some(Caller { waker, by_herald: false }) => quietly(|| waker.wake()),
            None => {}
        }
    }

    fn settle(&mut self, fate: Fate) -> Option<Caller> {
        let ticket = self.0.take()?;
        let caller = ticket.job.answer(fate);
        // What the caller's types do when they are dropped must not end the thread.
        drop_quietly(ticket);
        caller
    }
}

impl Deref for Envelope {
    type Target = Ticket;

    fn deref(&self) -> &Ticket {
        match &self.0 {
            Some(ticket) => ticket,
            None => unreachable!("it is gone with the answer"),
        }
    }
}

impl Drop for Envelope {
    fn drop(&mut self) {
        if let Some(caller) = self.settle(Fate::Unknown(Unknown::WriterLost)) {
            quietly(|| caller.waker.wake());
        }
    }
}

/// How a command may be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Once, in a transaction it shares with others.
    Once,
    /// As often as it takes, in a transaction it shares with others.
    Rerunnable,
    /// Once, outside of any transaction.
    Maintenance,
}

/// Whether a waiting command is still the caller's or already the writer's: decided once, by whoever is first.
#[derive(Default)]
pub(crate) struct Claim(AtomicU8);

const WAITING: u8 = 0;
const STARTED: u8 = 1;
const WITHDRAWN: u8 = 2;

impl Claim {
    /// The writer takes the command; false if the caller has taken it back.
    pub(crate) fn start(&self) -> bool {
        self.decide(STARTED)
    }

    /// The caller takes the command back; false if the writer has started it.
    pub(crate) fn withdraw(&self) -> bool {
        self.decide(WITHDRAWN)
    }

    fn is_withdrawn(&self) -> bool {
        self.0.load(Ordering::Acquire) == WITHDRAWN
    }

    fn decide(&self, state: u8) -> bool {
        self.0.compare_exchange(WAITING, state, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// A command without its types.
pub(crate) trait Job: Send + Sync {
    /// Runs the command and keeps its result until the fate of the group is known.
    fn run(&self, tx: &mut WriteTransaction<'_>, guard: Guard) -> Step;

    /// Answers, exactly once; returns the caller, if it is asleep.
    fn answer(&self, fate: Fate) -> Option<Caller>;
}

/// Somebody who waits for an answer.
pub(crate) struct Caller {
    pub(crate) waker: Waker,
    /// It is a task of the [herald](crate::herald::Herald)'s runtime.
    pub(crate) by_herald: bool,
}

/// What the transaction looks like after a command has run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// The command's writes are in it.
    Done,
    /// The command failed and nothing of it is in the transaction.
    Undone,
    /// The transaction can't be saved.
    Lost(Loss),
}

/// What became of a command.
pub(crate) enum Fate {
    /// The group was committed: the answer is the command's own result, value or error.
    Committed(CommitToken, Timing),
    /// The command lost the group: the answer is its own error.
    Culprit,
    /// It never ran.
    NotStarted(NotStarted),
    /// It was rolled back for a reason outside of it.
    RolledBack(RolledBack),
    /// Nobody knows.
    Unknown(Unknown),
}

impl Fate {
    /// What becomes of a command that is told this, unless its group is committed.
    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Self::NotStarted(_) => Outcome::NotStarted,
            Self::Committed(..) | Self::Culprit | Self::RolledBack(_) => Outcome::RolledBack,
            Self::Unknown(_) => Outcome::Unknown,
        }
    }
}

/// How long a command waited, and how long its group held the write lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// From submission to the start of the command.
    pub wait: Duration,
    /// From the BEGIN of the group to the end of its COMMIT.
    pub hold: Duration,
}

/// A value together with the commit that made it durable.
#[derive(Clone, Debug)]
pub struct Committed<T> {
    /// What the command answered.
    pub value: T,
    /// The commit; [`Database::read_after`](crate::Database::read_after) takes it.
    pub token: CommitToken,
    /// How long the command waited and its group held the write lock.
    pub timing: Timing,
}

pub(crate) type Reply<W> = Result<Committed<<W as Work>::Output>, WriteError<<W as Work>::Error>>;

/// A command whose caller waits for the answer.
///
/// Both locks are free whenever they are asked for, but for moments: the first is the writer's until the answer is
/// there, and then the caller's.
pub(crate) struct Pending<W: Work> {
    command: Mutex<Ran<W>>,
    answer: Mutex<Answer>,
}

/// The work, and what came of it when it last ran.
struct Ran<W: Work> {
    work: Option<W>,
    result: Option<Result<W::Output, WriteError<W::Error>>>,
}

/// What became of the command, until the caller takes it.
#[derive(Default)]
struct Answer {
    fate: Option<Fate>,
    caller: Option<Caller>,
}

impl<W: Work> Pending<W> {
    pub(crate) fn new(work: W) -> Self {
        let command = Mutex::new(Ran { work: Some(work), result: None });
        Self { command, answer: Mutex::default() }
    }

    /// Ready, once, when the writer has answered. `herald` is the runtime that wakes its own tasks.
    pub(crate) fn poll(&self, context: &Context<'_>, herald: Option<Id>) -> Poll<Reply<W>> {
        let fate = {
            let mut answer = lock(&self.answer);
            match answer.fate.take() {
                Some(fate) => fate,
                None => {
                    let waker = context.waker().clone();
                    answer.caller = Some(Caller { waker, by_herald: is_in_task_of(herald) });
                    return Poll::Pending;
                }
            }
        };
        let (work, result) = {
            let mut command = lock(&self.command);
            (command.work.take(), command.result.take())
        };
        // Here and not on the writer's thread, whose time it would take.
        drop_quietly(work);
        let result = result.unwrap_or(Err(WriteError::Unknown(Unknown::WriterLost)));
        Poll::Ready(match fate {
            Fate::Committed(token, timing) => result.map(|value| Committed { value, token, timing }),
            Fate::Culprit => Err(result.err().unwrap_or(WriteError::Unknown(Unknown::WriterLost))),
            Fate::NotStarted(reason) => Err(reason.into()),
            Fate::RolledBack(reason) => Err(reason.into()),
            Fate::Unknown(reason) => Err(reason.into()),
        })
    }
}

impl<W: Work> Job for Pending<W> {
    fn run(&self, tx: &mut WriteTransaction<'_>, guard: Guard) -> Step {
        let mut command = lock(&self.command);
        let Ran { work: Some(work), result } = &mut *command else {
            unreachable!("the caller takes the work back with the answer")
        };
        if let Some(earlier) = result.take() {
            drop_quietly(earlier);
        }
        let ran = match W::KIND {
            Kind::Once | Kind::Rerunnable => tx.run(guard, |tx| work.run(tx)),
            Kind::Maintenance => tx.run_outside(|tx| work.run(tx)),
        };
        let (ran, step) = match ran {
            Ok(value) => (Ok(value), Step::Done),
            Err(Fault { error, loss: None }) => (Err(error), Step::Undone),
            Err(Fault { error, loss: Some(loss) }) => (Err(error), Step::Lost(loss)),
        };
        *result = Some(ran);
        step
    }

    fn answer(&self, fate: Fate) -> Option<Caller> {
        if !matches!(fate, Fate::Committed(..)) {
            // What it holds is free again when it is known that it won't run, whenever the caller asks.
            let work = lock(&self.command).work.take();
            drop_quietly(work);
        }
        let mut answer = lock(&self.answer);
        answer.fate = Some(fate);
        answer.caller.take()
    }
}
