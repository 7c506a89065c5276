//! What crosses to the writer: a command with its options, and the answer that comes back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tracing::Span;

use crate::command::Work;
use crate::config::Durability;
use crate::error::{NotStarted, Outcome, RolledBack, Unknown, WriteError};
use crate::label::Label;
use crate::lane::Lane;
use crate::queue::AtomicU8;
use crate::rules::{Guard, Loss};
use crate::sync::{drop_quietly, quietly};
use crate::token::CommitToken;
use crate::transaction::{Fault, WriteTransaction};

/// A command on its way to the writer.
pub(crate) struct Envelope {
    pub(crate) job: Box<dyn Job>,
    pub(crate) kind: Kind,
    pub(crate) label: Label,
    pub(crate) lane: Lane,
    pub(crate) durability: Durability,
    pub(crate) bytes: u32,
    pub(crate) submitted: Instant,
    pub(crate) deadline: Option<Instant>,
    /// Only where the caller may take the command back while it waits.
    pub(crate) claim: Option<Arc<Claim>>,
    /// The span of the command, a child of the caller's.
    pub(crate) span: Span,
}

impl Envelope {
    /// Decides that the command starts; false if its caller has taken it back.
    pub(crate) fn start(&self) -> bool {
        self.claim.as_ref().is_none_or(|claim| claim.start())
    }

    /// Whether its caller has not taken it back.
    pub(crate) fn waits(&self) -> bool {
        self.claim.as_ref().is_none_or(|claim| !claim.is_withdrawn())
    }

    pub(crate) fn is_expired(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| now >= deadline)
    }

    /// Answers the caller. What the caller's types do when they are dropped must not end the thread.
    pub(crate) fn answer(self, fate: Fate) {
        let job = self.job;
        quietly(|| job.answer(fate));
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
pub(crate) trait Job: Send {
    /// Runs the command and keeps its result until the fate of the group is known.
    fn run(&mut self, tx: &mut WriteTransaction<'_>, guard: Guard) -> Step;

    /// Answers the caller, exactly once.
    fn answer(self: Box<Self>, fate: Fate);
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
pub(crate) struct Pending<W: Work> {
    work: W,
    result: Option<Result<W::Output, WriteError<W::Error>>>,
    reply: oneshot::Sender<Reply<W>>,
}

impl<W: Work> Pending<W> {
    pub(crate) fn channel(work: W) -> (Box<dyn Job>, oneshot::Receiver<Reply<W>>) {
        let (reply, receiver) = oneshot::channel();
        (Box::new(Self { work, result: None, reply }), receiver)
    }
}

impl<W: Work> Job for Pending<W> {
    fn run(&mut self, tx: &mut WriteTransaction<'_>, guard: Guard) -> Step {
        if let Some(earlier) = self.result.take() {
            drop_quietly(earlier);
        }
        let ran = match W::KIND {
            Kind::Once | Kind::Rerunnable => tx.run(guard, |tx| self.work.run(tx)),
            Kind::Maintenance => tx.run_outside(|tx| self.work.run(tx)),
        };
        let (result, step) = match ran {
            Ok(value) => (Ok(value), Step::Done),
            Err(Fault { error, loss: None }) => (Err(error), Step::Undone),
            Err(Fault { error, loss: Some(loss) }) => (Err(error), Step::Lost(loss)),
        };
        self.result = Some(result);
        step
    }

    fn answer(self: Box<Self>, fate: Fate) {
        let own = self.result.unwrap_or(Err(WriteError::Unknown(Unknown::WriterLost)));
        let reply = match fate {
            Fate::Committed(token, timing) => own.map(|value| Committed { value, token, timing }),
            Fate::Culprit => Err(own.err().unwrap_or(WriteError::Unknown(Unknown::WriterLost))),
            Fate::NotStarted(reason) => Err(reason.into()),
            Fate::RolledBack(reason) => Err(reason.into()),
            Fate::Unknown(reason) => Err(reason.into()),
        };
        // A caller that dropped its future has no use for the answer.
        drop(self.reply.send(reply));
    }
}
