//! What the writer does after a failure, as the [rules](crate::rules) say.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::breaker::Reason;
use super::group::{Group, Member, Round};
use super::store::{CommitError, Store};
use super::{SessionEnd, Writer, closed};
use crate::error::{Cause, NotStarted, RolledBack, Unknown};
use crate::failure::Failure;
use crate::holder::Phase;
use crate::message::Fate;
use crate::queue::Found;
use crate::rules::{
    self, AfterBegin, AfterCheckpoint, AfterCommit, AfterMaintenance, AfterProbe, Attempt, Culprit,
    FailedCommit, Look, Loss,
};
use crate::sync::lock;

/// Somebody else is in the way of the next group.
pub(super) struct Blocked {
    by: Obstacle,
    since: Instant,
}

/// What is in the way of the next group.
pub(super) enum Obstacle {
    /// Another process holds the write lock.
    ForeignLock(Cause),
    /// The WAL is full, and somebody keeps it from being begun anew.
    WalFull { wal_bytes: u64 },
}

/// How long to wait before the write lock is tried again. It costs microseconds, and a program that writes all
/// the time leaves the lock free for moments only: tried every 25 ms, it was met free once in a second.
const LOCK_POLL: Duration = Duration::from_millis(2);

/// How long to wait before a full WAL is tried again, which holds the write lock while it waits for readers.
const WAL_POLL: Duration = Duration::from_millis(25);

/// How long to wait before a look that failed is tried again.
const LOOK_PAUSE: Duration = Duration::from_millis(10);

impl Obstacle {
    fn refusal(&self) -> NotStarted {
        match self {
            Self::ForeignLock(cause) => NotStarted::Busy(cause.clone()),
            Self::WalFull { wal_bytes } => NotStarted::WalFull { wal_bytes: *wal_bytes },
        }
    }
}

impl Writer {
    /// A command has cost its group the transaction.
    pub(super) fn lose(
        &mut self,
        store: &mut impl Store,
        group: Group,
        culprit: Member,
        loss: Loss,
    ) -> ControlFlow<SessionEnd> {
        let label = &culprit.envelope.label;
        if loss == Loss::Unguarded {
            self.labels.guard(label);
        }
        tracing::debug!(label = &**label, ?loss, commands = group.members.len(), "group lost");
        let cause = loss_cause(loss, label);
        let has_predecessors = !group.members.is_empty();
        let plan = rules::after_loss(loss, group.attempt, culprit.can_run_again(), has_predecessors);
        let fit = store.roll_back();
        self.board.let_go();
        let hold = group.begun.elapsed();

        let mut again: VecDeque<Member> = self.answer_lost(group.members, &cause, hold).collect();
        let mut rounds = VecDeque::new();
        match plan.culprit {
            Culprit::InPlace => again.push_back(culprit),
            Culprit::Alone => rounds.push_back(alone(culprit)),
            Culprit::Answer => culprit.give_up(&self.board, Fate::Culprit, hold),
        }
        self.run_again(plan.others, again, rounds, group.rest);
        if plan.look != Look::Nothing {
            self.look = Some((plan.look, cause));
        }
        if fit && !plan.replace { ControlFlow::Continue(()) } else { ControlFlow::Break(SessionEnd::Replace) }
    }

    /// Lets those before the culprit run again, then the culprit where it is alone, then those after it.
    fn run_again(
        &mut self,
        attempt: Attempt,
        before: VecDeque<Member>,
        culprit: VecDeque<Round>,
        rest: VecDeque<Member>,
    ) {
        let in_rounds = |members: VecDeque<Member>| -> VecDeque<Round> {
            match attempt {
                Attempt::Alone => members.into_iter().map(alone).collect(),
                _ if members.is_empty() => VecDeque::new(),
                attempt => VecDeque::from([Round { attempt, members }]),
            }
        };
        let mut rounds = in_rounds(before);
        rounds.extend(culprit);
        rounds.extend(in_rounds(rest));
        let commands: usize = rounds.iter().map(|round| round.members.len()).sum();
        lock(&self.board.stats).commands.rerun += commands as u64;
        rounds.append(&mut self.rounds);
        self.rounds = rounds;
    }

    /// Answers those that can't run again, and gives back the others.
    fn answer_lost(
        &self,
        members: Vec<Member>,
        cause: &Cause,
        hold: Duration,
    ) -> impl Iterator<Item = Member> + use<> {
        let (again, lost): (Vec<_>, Vec<_>) = members.into_iter().partition(Member::can_run_again);
        lock(&self.board.stats).groups_lost += 1;
        self.answer_all(lost, hold, || Fate::RolledBack(RolledBack::GroupLost(cause.clone())));
        again.into_iter()
    }

    fn answer_all(&self, members: Vec<Member>, hold: Duration, fate: impl Fn() -> Fate) {
        for member in members {
            member.give_up(&self.board, fate(), hold);
        }
    }

    /// The write lock could not be had. No command has been taken out of the queue for it.
    pub(super) fn begin_failed(&mut self, error: rusqlite::Error) -> ControlFlow<SessionEnd> {
        let after = rules::after_begin(Failure::of(&error));
        let cause = Cause::from(error);
        match after {
            AfterBegin::Wait => {
                if self.blocked.is_none() {
                    lock(&self.board.stats).foreign_waits += 1;
                }
                self.see_foreign_writer();
                self.block(Obstacle::ForeignLock(cause));
                ControlFlow::Continue(())
            }
            AfterBegin::Retry { replace, look } => {
                self.board.let_go();
                self.look = Some((look, cause.clone()));
                self.note_failure(cause);
                if replace { ControlFlow::Break(SessionEnd::Replace) } else { ControlFlow::Continue(()) }
            }
        }
    }

    pub(super) fn see_foreign_writer(&mut self) {
        if self.foreign.seen.replace(Instant::now()).is_none() {
            self.foreign.gap = Instant::now();
        }
    }

    pub(super) fn block(&mut self, by: Obstacle) {
        let since = self.blocked.as_ref().map_or_else(Instant::now, |blocked| blocked.since);
        let is_foreign = matches!(by, Obstacle::ForeignLock(_));
        {
            let mut stats = lock(&self.board.stats);
            stats.foreign_since = is_foreign.then_some(since);
            stats.is_wal_full = !is_foreign;
        }
        self.blocked = Some(Blocked { by, since });
    }

    /// Nobody is in the way any more, or nobody waits.
    pub(super) fn unblock(&mut self) {
        if self.blocked.take().is_some() {
            let mut stats = lock(&self.board.stats);
            let waited = stats.foreign_since.take().map_or(Duration::ZERO, |since| since.elapsed());
            stats.foreign_wait += waited;
            stats.is_wal_full = false;
        }
    }

    /// Waits a little for who is in the way, and answers those whose time is up meanwhile.
    pub(super) fn wait_in_line(&mut self) {
        let Some(blocked) = &self.blocked else { return };
        let pause = match blocked.by {
            Obstacle::ForeignLock(_) => LOCK_POLL,
            Obstacle::WalFull { .. } => WAL_POLL,
        };
        let since = blocked.since;
        self.pause_until(Instant::now() + pause);
        let now = Instant::now();
        let patience = self.config.busy_timeout;
        let given_up = |submitted: Instant| now - submitted.max(since).min(now) >= patience;
        let late = self.queue.take(|next| next.is_expired(now) || given_up(next.submitted));
        for envelope in late {
            let reason = match (&self.blocked, envelope.is_expired(now)) {
                (Some(blocked), false) => blocked.by.refusal(),
                _ => NotStarted::DeadlineExceeded { waited: now - envelope.submitted },
            };
            self.turn_away(envelope, reason);
        }
        self.give_up_expired(now);
        // A full WAL keeps nothing from running again.
        if now - since >= patience
            && let Some(Blocked { by: Obstacle::ForeignLock(cause), .. }) = &self.blocked
        {
            let cause = cause.clone();
            self.give_up_rounds(&cause);
        }
        if self.rounds.is_empty() && self.queue.look(|lanes| lanes.is_empty()) {
            self.unblock();
            self.board.let_go();
        }
    }

    /// Answers those that were to run again, and whose time is up.
    fn give_up_expired(&mut self, now: Instant) {
        for round in &mut self.rounds {
            let (expired, left): (VecDeque<_>, VecDeque<_>) =
                round.members.drain(..).partition(|member| member.envelope.is_expired(now));
            round.members = left;
            for member in expired {
                member.give_up_at_deadline(&self.board);
            }
        }
        self.rounds.retain(|round| !round.members.is_empty());
    }

    /// COMMIT has failed: the transaction is still open, or a fence settles what became of it, or nobody knows.
    pub(super) fn commit_failed(
        &mut self,
        store: &mut impl Store,
        group: Group,
        error: CommitError,
    ) -> ControlFlow<SessionEnd> {
        let CommitError { error, nothing_written } = error;
        let failure = Failure::of(&error);
        let cause = Cause::from(error);
        tracing::warn!(error = %cause.as_sqlite(), commands = group.members.len(), "COMMIT failed");
        let seen = FailedCommit { failure, nothing_written, unsynced_groups: self.unsynced_groups };
        let after = rules::after_failed_commit(&seen, group.attempt);
        let fit = store.roll_back();
        match after {
            AfterCommit::RunAlone => {
                let hold = group.begun.elapsed();
                let again = self.answer_lost(group.members, &cause, hold).collect();
                self.run_again(Attempt::Alone, again, VecDeque::new(), group.rest);
            }
            AfterCommit::RollBack => self.roll_back_all(group, &cause),
            AfterCommit::Stop => return self.stop_in_doubt(group, cause),
            AfterCommit::Fence => {
                self.board.hold(Phase::Recover, Instant::now());
                match store.probe() {
                    Ok(()) => {
                        self.unsynced_groups = false;
                        self.roll_back_all(group, &cause);
                        self.note_failure(cause);
                    }
                    Err(error) => {
                        let failed = rules::after_failed_probe(
                            Failure::of(&error),
                            Some(failure),
                            self.unsynced_groups,
                        );
                        match failed {
                            AfterProbe::DiskFull => {
                                self.roll_back_all(group, &cause);
                                self.refuse_writes(Reason::DiskFull, cause);
                            }
                            AfterProbe::CountFailure | AfterProbe::Stop => {
                                return self.stop_in_doubt(group, cause);
                            }
                        }
                    }
                }
            }
        }
        self.board.let_go();
        if fit { ControlFlow::Continue(()) } else { ControlFlow::Break(SessionEnd::Replace) }
    }

    /// Everyone is told that nothing of the group is in the database.
    fn roll_back_all(&mut self, group: Group, cause: &Cause) {
        lock(&self.board.stats).groups_lost += 1;
        let hold = group.begun.elapsed();
        let members = group.members.into_iter().chain(group.rest).collect();
        self.answer_all(members, hold, || Fate::RolledBack(RolledBack::GroupLost(cause.clone())));
    }

    /// Nobody can tell whether the group is committed: its frames may be there after a crash.
    fn stop_in_doubt(&mut self, group: Group, cause: Cause) -> ControlFlow<SessionEnd> {
        self.stop_with(group, cause.clone(), || Fate::Unknown(Unknown::CommitFailed(cause.clone())))
    }

    /// The group was committed, into files that nobody will find.
    pub(super) fn files_were_replaced(&mut self, group: Group, cause: Cause) -> ControlFlow<SessionEnd> {
        self.stop_with(group, cause.clone(), || Fate::Unknown(Unknown::FilesReplaced(cause.clone())))
    }

    fn stop_with(&mut self, group: Group, cause: Cause, fate: impl Fn() -> Fate) -> ControlFlow<SessionEnd> {
        self.board.stop(cause.clone());
        self.board.let_go();
        lock(&self.board.stats).groups_lost += 1;
        let hold = group.begun.elapsed();
        self.answer_all(group.members, hold, fate);
        self.answer_all(group.rest.into(), hold, || Fate::RolledBack(RolledBack::GroupLost(cause.clone())));
        ControlFlow::Break(SessionEnd::Stopped)
    }

    /// The environment has failed maintenance, whose statements commit by themselves.
    pub(super) fn maintenance_failed(&mut self, failure: Failure) {
        let cause = loss_cause(Loss::Environment(failure), "of maintenance");
        match rules::after_failed_maintenance(failure, self.unsynced_groups) {
            AfterMaintenance::Look(Look::Nothing) => {}
            AfterMaintenance::Look(look) => self.look = Some((look, cause)),
            AfterMaintenance::Stop => self.board.stop(cause),
        }
    }

    /// A checkpoint has failed, on this thread or beside it.
    pub(super) fn checkpoint_failed(&mut self, cause: Cause) -> SessionEnd {
        match rules::after_failed_checkpoint(self.unsynced_groups) {
            AfterCheckpoint::Reopen => SessionEnd::Reopen,
            AfterCheckpoint::Stop => {
                self.board.stop(cause);
                SessionEnd::Stopped
            }
        }
    }

    /// Finds out what a failure means before anything is written again.
    pub(super) fn look(
        &mut self,
        store: &mut impl Store,
        look: Look,
        cause: Cause,
    ) -> ControlFlow<SessionEnd> {
        self.board.hold(Phase::Recover, Instant::now());
        self.housekeeping.watch();
        let flow = match look {
            Look::Nothing => ControlFlow::Continue(()),
            Look::Probe => self.probe(store),
            Look::QuickCheck => self.quick_check(store, cause),
        };
        self.board.let_go();
        flow
    }

    fn probe(&mut self, store: &mut impl Store) -> ControlFlow<SessionEnd> {
        let Err(error) = store.probe() else {
            self.unsynced_groups = false;
            if self.breaker.succeeded() {
                tracing::info!("the database can be written again");
                // Checkpoints may have wanted the same space, and need it more than a WAL that grows.
                self.wal_pages_seen = 0;
            }
            self.board.set_refusing(None);
            return ControlFlow::Continue(());
        };
        let failure = Failure::of(&error);
        let cause = Cause::from(error);
        if failure == Failure::Busy && self.breaker.probe_at().is_none() {
            // Another process writes: BEGIN waits for it.
            return ControlFlow::Continue(());
        }
        match rules::after_failed_probe(failure, None, self.unsynced_groups) {
            AfterProbe::DiskFull => self.refuse_writes(Reason::DiskFull, cause),
            AfterProbe::CountFailure => {
                self.note_failure(cause.clone());
                if self.breaker.probe_at().is_none() {
                    self.look = Some((Look::Probe, cause));
                    self.pause_until(Instant::now() + LOOK_PAUSE);
                }
            }
            AfterProbe::Stop => {
                self.board.stop(cause);
                return ControlFlow::Break(SessionEnd::Stopped);
            }
        }
        ControlFlow::Continue(())
    }

    /// A read error too looks like damage; a damaged database is never written again, nor repaired.
    fn quick_check(&mut self, store: &mut impl Store, cause: Cause) -> ControlFlow<SessionEnd> {
        match store.is_intact() {
            Ok(true) => {
                tracing::warn!(error = %cause.as_sqlite(), "the database looked damaged, and is not");
                self.note_failure(cause);
            }
            Ok(false) => {
                self.board.stop(cause);
                return ControlFlow::Break(SessionEnd::Stopped);
            }
            Err(error) if Failure::of(&error) == Failure::Corrupt => {
                self.board.stop(error.into());
                return ControlFlow::Break(SessionEnd::Stopped);
            }
            // It would fail again: of a full-text index that is damaged too, for one. What nobody can tell is not
            // written to.
            Err(error) if !Failure::of(&error).is_environmental() => {
                tracing::error!(%error, "the check of a database that looks damaged can't be done");
                self.board.stop(cause);
                return ControlFlow::Break(SessionEnd::Stopped);
            }
            Err(error) => {
                self.note_failure(error.into());
                // Not before the check is done.
                self.look = Some((Look::QuickCheck, cause));
                self.pause_until(Instant::now() + LOOK_PAUSE);
            }
        }
        ControlFlow::Continue(())
    }

    /// Counts a failure of the environment.
    pub(super) fn note_failure(&mut self, cause: Cause) {
        if self.breaker.failed(cause.clone(), Instant::now()) {
            self.begin_refusing(cause);
        }
    }

    fn refuse_writes(&mut self, reason: Reason, cause: Cause) {
        if self.breaker.trip(reason, cause.clone(), Instant::now()) {
            self.begin_refusing(cause);
        }
    }

    fn begin_refusing(&mut self, cause: Cause) {
        tracing::error!(error = %cause.as_sqlite(), "writes are refused until a probe succeeds");
        self.board.set_refusing(Some(cause.clone()));
        self.give_up_rounds(&cause);
    }

    /// Refuses what waits and what comes until the next probe is due, then probes.
    pub(super) fn refuse_until_probed(&mut self, store: &mut impl Store) -> ControlFlow<SessionEnd> {
        let (Some(probe_at), Some(refusal)) = (self.breaker.probe_at(), self.breaker.refusal()) else {
            return ControlFlow::Continue(());
        };
        if let Some(cause) = self.breaker.cause() {
            self.give_up_rounds(&cause);
        }
        match self.queue.wait(Some(probe_at)) {
            Found::Command => {
                self.refuse(|| refusal.clone());
                ControlFlow::Continue(())
            }
            Found::Nothing if self.is_unfit => ControlFlow::Break(SessionEnd::Replace),
            Found::Nothing => {
                // What must be looked at comes before a probe, which writes.
                let probe = || (Look::Probe, self.breaker.cause().unwrap_or_else(closed));
                let (look, cause) = self.look.take().unwrap_or_else(probe);
                self.look(store, look, cause)
            }
            Found::End => ControlFlow::Break(SessionEnd::Drained),
        }
    }
}

fn alone(member: Member) -> Round {
    Round { attempt: Attempt::Alone, members: VecDeque::from([member]) }
}

/// What the neighbours of a culprit are told.
fn loss_cause(loss: Loss, label: &str) -> Cause {
    use rusqlite::ffi;
    let (code, what) = match loss {
        Loss::Environment(Failure::DiskFull) => (ffi::SQLITE_FULL, "found no space"),
        Loss::Environment(Failure::Write | Failure::Read | Failure::Io) => {
            (ffi::SQLITE_IOERR, "met an I/O error")
        }
        Loss::Environment(Failure::Memory) => (ffi::SQLITE_NOMEM, "found no memory"),
        Loss::Environment(Failure::Corrupt) => (ffi::SQLITE_CORRUPT, "met what looks like damage"),
        Loss::Environment(Failure::Busy) => (ffi::SQLITE_BUSY, "met a lock"),
        Loss::Environment(Failure::Interrupted) => (ffi::SQLITE_ABORT_ROLLBACK, "was interrupted"),
        Loss::StatementOpen => (ffi::SQLITE_ABORT_ROLLBACK, "left a statement half-stepped"),
        Loss::Savepoint => (ffi::SQLITE_ABORT_ROLLBACK, "lost its savepoint"),
        Loss::Unguarded | Loss::Command | Loss::Environment(Failure::Command) => {
            (ffi::SQLITE_ABORT_ROLLBACK, "ended the transaction")
        }
    };
    let message = format!("command {label} {what}");
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(message)).into()
}
