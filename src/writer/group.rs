//! One group: BEGIN, the commands, COMMIT, the answers.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use rusqlite::{ErrorCode, ffi};

use super::{Session, Writer};
use crate::config::Durability;
use crate::connection;
use crate::error::{Cause, NotStarted, Outcome, RolledBack, Unknown};
use crate::holder::Phase;
use crate::label::Label;
use crate::lane::{Lane, PerLane};
use crate::message::{Envelope, Fate, Job, Step, Timing};
use crate::sync::lock;

/// The commands that one COMMIT makes durable.
struct Group {
    begun: Instant,
    durability: Durability,
    members: Vec<Member>,
    /// Whether somebody waits for the COMMIT.
    is_interactive: bool,
}

/// A command that has run.
struct Member {
    job: Box<dyn Job>,
    label: Label,
    lane: Lane,
    step: Step,
    wait: Duration,
    run: Duration,
}

impl Group {
    fn begin(durability: Durability) -> Self {
        Self { begun: Instant::now(), durability, members: Vec::new(), is_interactive: false }
    }

    fn size(&self) -> PerLane<u64> {
        let mut size = PerLane::<u64>::default();
        for member in &self.members {
            size[member.lane] += 1;
        }
        size
    }
}

impl Writer {
    /// Runs one group of what waits. Breaks if the connection must be replaced.
    pub(super) fn run_group(&mut self, session: &mut Session<'_>) -> ControlFlow<()> {
        let Some(first) = self.next_command(None) else { return ControlFlow::Continue(()) };
        self.board.hold(Phase::Begin);
        self.housekeeping.watch();
        let group = Group::begin(first.durability);
        match self.begin(session, group.durability) {
            Ok(()) => self.run_commands(session, group, first),
            Err(error) => {
                self.board.let_go();
                self.fail_begin(first, error);
                ControlFlow::Continue(())
            }
        }
    }

    /// Takes the next command that may join `group` and can still run.
    fn next_command(&mut self, group: Option<&Group>) -> Option<Envelope> {
        loop {
            let is_interactive = group.is_some_and(|group| group.is_interactive);
            let expected = |envelope: &Envelope| self.forecast.expect(&envelope.label);
            let lane = self.lanes.next(is_interactive, expected)?;
            if let (Some(group), Some(head)) = (group, self.lanes.head(lane))
                && !self.may_join(group, head)
            {
                return None;
            }
            let envelope = self.lanes.pop(lane)?;
            self.inbox.release(lane, envelope.bytes);
            if envelope.claim.as_ref().is_some_and(|claim| !claim.start()) {
                // The caller has taken it back and knows.
                self.board.count_withdrawn();
            } else if envelope.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                let waited = envelope.submitted.elapsed();
                let fate = Fate::NotStarted(NotStarted::DeadlineExceeded { waited });
                self.answer(envelope, fate, Outcome::NotStarted);
            } else {
                return Some(envelope);
            }
        }
    }

    /// Whether a group that has a command already has room, time and durability for another.
    fn may_join(&self, group: &Group, next: &Envelope) -> bool {
        let hold_max = if group.is_interactive || next.lane == Lane::Interactive {
            self.config.group_hold_max
        } else {
            self.config.bulk_hold_target
        };
        group.members.len() < self.config.group_commands_max
            && next.durability <= group.durability
            && group.begun.elapsed() + self.forecast.expect(&next.label) < hold_max
    }

    fn begin(&self, session: &mut Session<'_>, durability: Durability) -> rusqlite::Result<()> {
        if session.durability != durability {
            connection::set_durability(session.connection, durability)?;
            session.durability = durability;
        }
        session.control.begin()
    }

    /// Answers what has waited for the lock in vain: `first`, and all that waited with it.
    fn fail_begin(&mut self, first: Envelope, error: rusqlite::Error) {
        let busy = error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy);
        let cause = Cause::from(error);
        let reason = || if busy { NotStarted::Busy(cause.clone()) } else { NotStarted::Begin(cause.clone()) };
        self.answer(first, Fate::NotStarted(reason()), Outcome::NotStarted);
        self.refuse_all(reason);
    }

    fn run_commands(&mut self, session: &Session<'_>, mut group: Group, first: Envelope) -> ControlFlow<()> {
        let mut next = Some(first);
        while let Some(envelope) = next {
            let member = self.run_command(session, &mut group, envelope);
            if member.step == Step::TransactionLost {
                return self.lose(session, group, member);
            }
            group.members.push(member);
            // Interactive commands that have just arrived go before what waits.
            self.take_in();
            next = self.next_command(Some(&group));
        }
        self.commit(session, group)
    }

    fn run_command(&mut self, session: &Session<'_>, group: &mut Group, envelope: Envelope) -> Member {
        let Envelope { mut job, label, lane, submitted, span, .. } = envelope;
        let started = Instant::now();
        group.is_interactive |= lane == Lane::Interactive;
        self.board.hold(Phase::Command { label: label.clone(), lane });
        let step = span.in_scope(|| job.run(&mut session.control.transaction()));
        let run = started.elapsed();
        self.forecast.learn(&label, run);
        self.spend(lane, run, group);
        Member { job, label, lane, step, wait: started - submitted, run }
    }

    fn spend(&mut self, lane: Lane, spent: Duration, group: &Group) {
        let expected = |envelope: &Envelope| self.forecast.expect(&envelope.label);
        self.lanes.spend(lane, spent, group.is_interactive, expected);
    }

    fn commit(&mut self, session: &Session<'_>, group: Group) -> ControlFlow<()> {
        self.board.hold(Phase::Commit);
        let started = Instant::now();
        let result = session.control.commit();
        let (commit, hold) = (started.elapsed(), group.begun.elapsed());
        // Before the answers: who has its answer must not find itself the holder.
        self.board.let_go();
        let lane = if group.is_interactive { Lane::Interactive } else { Lane::Bulk };
        self.spend(lane, commit, &group);
        match result {
            Ok(()) => {
                self.record_commit(&group, commit, hold);
                let token = self.board.committed();
                for member in group.members {
                    answer(member.job, Fate::Committed(token, Timing { wait: member.wait, hold }));
                }
                ControlFlow::Continue(())
            }
            Err(error) => self.fail_commit(session, group, error),
        }
    }

    fn record_commit(&self, group: &Group, commit: Duration, hold: Duration) {
        tracing::debug!(
            commands = group.members.len(),
            hold_us = hold.as_micros(),
            commit_us = commit.as_micros(),
            "group committed"
        );
        let mut stats = lock(&self.board.stats);
        for member in &group.members {
            stats.wait[member.lane].record(member.wait);
            stats.run[member.lane].record(member.run);
            if member.step == Step::Done {
                stats.commands.committed += 1;
            } else {
                stats.commands.failed += 1;
            }
        }
        stats.commit.record(commit);
        stats.hold.record(hold);
        stats.record_group_size(&group.size());
        stats.groups_committed += 1;
    }

    /// A command took the transaction with it: it gets its own error, the others may be sent again.
    fn lose(&mut self, session: &Session<'_>, group: Group, culprit: Member) -> ControlFlow<()> {
        lock(&self.board.stats).commands.failed += 1;
        let cause = Cause::from(rusqlite::Error::SqliteFailure(
            ffi::Error::new(ffi::SQLITE_ABORT_ROLLBACK),
            Some(format!("command {} ended the transaction", culprit.label)),
        ));
        let flow = self.roll_back(session);
        answer(culprit.job, Fate::Culprit);
        self.answer_members(group, Outcome::RolledBack, || {
            Fate::RolledBack(RolledBack::GroupLost(cause.clone()))
        });
        flow
    }

    /// COMMIT failed: either the transaction is still open and can be rolled back, or nobody knows.
    fn fail_commit(
        &mut self,
        session: &Session<'_>,
        group: Group,
        error: rusqlite::Error,
    ) -> ControlFlow<()> {
        let certain = !session.connection.is_autocommit() || is_commit_veto(&error);
        let cause = Cause::from(error);
        let flow = self.roll_back(session);
        if certain {
            self.answer_members(group, Outcome::RolledBack, || {
                Fate::RolledBack(RolledBack::GroupLost(cause.clone()))
            });
            return flow;
        }
        // After a failed write or sync of the WAL the rows are invisible, and can be back after a crash.
        self.board.stop(cause.clone());
        self.answer_members(group, Outcome::Unknown, || Fate::Unknown(Unknown::CommitFailed(cause.clone())));
        ControlFlow::Continue(())
    }

    /// Leaves no transaction behind. Breaks if the connection is not fit for another.
    fn roll_back(&self, session: &Session<'_>) -> ControlFlow<()> {
        let rolled_back = session.control.roll_back();
        self.board.let_go();
        if let Err(error) = &rolled_back {
            tracing::error!(%error, "ROLLBACK failed");
        }
        if rolled_back.is_err() || session.connection.is_busy() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn answer_members(&self, group: Group, outcome: Outcome, fate: impl Fn() -> Fate) {
        {
            let mut stats = lock(&self.board.stats);
            stats.groups_lost += 1;
            group.members.iter().for_each(|_| stats.commands.count(outcome));
        }
        for member in group.members {
            answer(member.job, fate());
        }
    }
}

/// Whether our own commit hook refused the commit, which leaves nothing behind.
fn is_commit_veto(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|error| error.extended_code == ffi::SQLITE_CONSTRAINT_COMMITHOOK)
}

/// Answers one caller. What the caller's types do when they are dropped must not end the writer.
pub(super) fn answer(job: Box<dyn Job>, fate: Fate) {
    if catch_unwind(AssertUnwindSafe(|| job.answer(fate))).is_err() {
        tracing::error!("dropping the answer of a command panicked");
    }
}
