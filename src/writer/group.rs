//! One group: BEGIN, the commands, COMMIT, the answers.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::labels::Labels;
use super::store::{Ran, Store};
use super::{SessionEnd, Writer, closed};
use crate::board::{Board, Tried};
use crate::config::{Config, Durability};
use crate::error::{NotStarted, Outcome, RolledBack, Unknown};
use crate::failed::{FailedCommand, Reason};
use crate::herald::Callers;
use crate::holder::Phase;
use crate::lane::{Lane, PerLane};
use crate::message::{Envelope, Fate, Kind, Step, Ticket, Timing};
use crate::rules::{Attempt, Guard, Look, Loss};
use crate::sync::lock;

/// Those who wait for room need not wait longer for it than this, as far as it is known.
const QUICK: Duration = Duration::from_micros(100);

/// The commands that one COMMIT makes durable.
pub(super) struct Group {
    pub(super) attempt: Attempt,
    pub(super) begun: Instant,
    /// The end of the last command: what follows begins then.
    now: Instant,
    pub(super) durability: Durability,
    pub(super) members: Vec<Member>,
    /// Those still to run again.
    pub(super) rest: VecDeque<Member>,
    /// The most urgent lane of its commands.
    lane: Lane,
    /// Whether a command in it can't run again, so that nobody may cost the group its transaction.
    has_once: bool,
    /// Whether its only command may run into its deadline, and would take neighbours with it.
    is_solo: bool,
    /// Time that its lane has not been charged for.
    spent: Option<(Lane, Duration)>,
}

/// A command of a group.
pub(super) struct Member {
    pub(super) envelope: Envelope,
    pub(super) step: Step,
    /// From submission to its first start.
    wait: Duration,
    run: Duration,
    /// How often it has run.
    attempts: u32,
    /// Why it failed when it last ran.
    reason: Option<Box<Reason>>,
}

/// Commands that have run, and run again together or alone.
pub(super) struct Round {
    pub(super) attempt: Attempt,
    pub(super) members: VecDeque<Member>,
}

impl Round {
    pub(super) fn into_members(self) -> impl Iterator<Item = Member> {
        self.members.into_iter()
    }
}

impl Member {
    fn new(envelope: Envelope, now: Instant) -> Self {
        let wait = now.saturating_duration_since(envelope.submitted);
        Self { envelope, step: Step::Undone, wait, run: Duration::ZERO, attempts: 0, reason: None }
    }

    /// It has run, its group was lost, and its time is up before it could run again.
    pub(super) fn give_up_at_deadline(self, board: &Board) {
        let ran = RolledBack::DeadlineExceeded { ran: self.run };
        self.give_up(board, Fate::RolledBack(ran), Duration::ZERO);
    }

    /// It is not committed; `hold` is how long its group held the write lock.
    pub(super) fn give_up(self, board: &Board, fate: Fate, hold: Duration) {
        let reason = self.reason.filter(|_| matches!(fate, Fate::Culprit));
        board.give_up(self.envelope, fate, Tried { reason, attempts: self.attempts, wait: self.wait, hold });
    }

    pub(super) fn can_run_again(&self) -> bool {
        self.envelope.kind == Kind::Rerunnable
    }
}

impl Group {
    fn begin(attempt: Attempt, durability: Durability, rest: VecDeque<Member>, members: Vec<Member>) -> Self {
        let now = Instant::now();
        Self {
            attempt,
            begun: now,
            now,
            durability,
            members,
            rest,
            lane: Lane::Maintenance,
            has_once: false,
            is_solo: false,
            spent: None,
        }
    }

    /// Whether a command that waits may join.
    fn admits(&self, next: &Ticket, labels: &Labels, config: &Config) -> bool {
        if next.durability > self.durability || next.kind == Kind::Maintenance {
            return false;
        }
        if self.members.is_empty() {
            return true;
        }
        let hold_max = if self.is_interactive() || next.lane == Lane::Interactive {
            config.group_hold_max
        } else {
            config.bulk_hold_target
        };
        let expected = labels.expect(&next.label);
        !self.is_solo
            && self.members.len() < config.group_commands_max
            && self.now - self.begun + expected.unwrap_or_default() < hold_max
            && !is_solo(next, expected, self.now, config)
    }

    /// Whether somebody waits for the COMMIT.
    fn is_interactive(&self) -> bool {
        self.lane == Lane::Interactive
    }

    /// How the next command is kept from harming the others.
    fn guard(&self, member: &Member, labels: &Labels) -> Guard {
        let is_bare = self.attempt == Attempt::First
            && member.can_run_again()
            && !self.has_once
            && !labels.keeps_savepoint(&member.envelope.label);
        if is_bare { Guard::Bare } else { Guard::Savepoint }
    }

    fn size(&self) -> PerLane<u64> {
        let mut size = PerLane::<u64>::default();
        for member in &self.members {
            size[member.envelope.lane] += 1;
        }
        size
    }
}

/// Whether a command may be interrupted by its deadline, which takes the whole transaction with it: it has
/// little time left, and may need much of it for all that is known.
fn is_solo(next: &Ticket, expected: Option<Duration>, now: Instant, config: &Config) -> bool {
    next.deadline.is_some_and(|deadline| {
        let left = deadline.saturating_duration_since(now);
        left < config.group_hold_max * 2 && expected.is_none_or(|expected| expected * 4 > left)
    })
}

impl Writer {
    /// Runs the next group: of what must run again, or of what waits.
    pub(super) fn run_next(&mut self, store: &mut impl Store) -> ControlFlow<SessionEnd> {
        let (attempt, durability) = match self.rounds.front() {
            Some(round) => (round.attempt, round.durability()),
            None => {
                let labels = &self.labels;
                let head = self.queue.look(|lanes| {
                    let expected = |next: &Envelope| labels.expect(&next.label).unwrap_or_default();
                    let lane = lanes.next(false, expected)?;
                    lanes.head(lane).map(|next| (lane, next.kind, next.durability))
                });
                match head {
                    // Withdrawn meanwhile.
                    None => return ControlFlow::Continue(()),
                    Some((lane, Kind::Maintenance, _)) => return self.run_maintenance(store, lane),
                    Some((_, _, durability)) => (Attempt::First, durability),
                }
            }
        };
        let began = Instant::now();
        self.board.hold(Phase::Begin, began);
        self.housekeeping.watch();
        // Before any command is taken: while the lock can't be had, their callers may take them back.
        if let Err(error) = store.begin(durability) {
            return self.begin_failed(error);
        }
        self.unblock();
        if store.saw_foreign_commit() {
            lock(&self.board.stats).foreign_commits += 1;
            self.see_foreign_writer();
        }
        let rest = match attempt {
            Attempt::First => VecDeque::new(),
            Attempt::Guarded | Attempt::Alone => {
                self.rounds.pop_front().map(|round| round.members).unwrap_or_default()
            }
        };
        let members = std::mem::take(&mut self.members);
        self.run_group(store, Group::begin(attempt, durability, rest, members))
    }

    fn run_group(&mut self, store: &mut impl Store, mut group: Group) -> ControlFlow<SessionEnd> {
        while let Some(mut member) = self.next_member(&mut group) {
            self.run_member(store, &mut group, &mut member);
            if let Step::Lost(loss) = member.step {
                return self.lose(store, group, member, loss);
            }
            group.members.push(member);
        }
        if group.members.is_empty() {
            // Those that waited when the group began have been taken back, or are too late.
            let fit = store.roll_back();
            self.board.let_go();
            return if fit { ControlFlow::Continue(()) } else { ControlFlow::Break(SessionEnd::Replace) };
        }
        self.commit(store, group)
    }

    fn next_member(&mut self, group: &mut Group) -> Option<Member> {
        match group.attempt {
            Attempt::First => self.next_command(group).map(|envelope| Member::new(envelope, group.now)),
            Attempt::Guarded | Attempt::Alone => loop {
                let member = group.rest.pop_front()?;
                if !member.envelope.is_expired(group.now) {
                    return Some(member);
                }
                member.give_up_at_deadline(&self.board);
            },
        }
    }

    /// Takes the next command that may join `group` and can still run.
    fn next_command(&mut self, group: &mut Group) -> Option<Envelope> {
        loop {
            let (labels, config) = (&self.labels, &self.config);
            let spent = group.spent.take();
            let envelope = self.queue.next(|lanes| {
                let expected = |next: &Envelope| labels.expect(&next.label).unwrap_or_default();
                if let Some((lane, spent)) = spent {
                    lanes.spend(lane, spent, group.is_interactive(), expected);
                }
                let lane = lanes.next(group.is_interactive(), expected)?;
                lanes.head(lane).is_some_and(|next| group.admits(next, labels, config)).then_some(lane)
            })?;
            if let Some(envelope) = self.start(envelope, group.now) {
                return Some(envelope);
            }
        }
    }

    /// Decides that a command starts, unless its caller has taken it back or it is too late for it.
    fn start(&self, envelope: Envelope, now: Instant) -> Option<Envelope> {
        if !envelope.start() {
            // The caller knows.
            self.board.count_withdrawn();
            return None;
        }
        if envelope.is_expired(now) {
            let waited = envelope.submitted.elapsed();
            let late = NotStarted::DeadlineExceeded { waited };
            self.board.give_up(envelope, Fate::NotStarted(late), Tried::waited(waited));
            return None;
        }
        Some(envelope)
    }

    fn run_member(&mut self, store: &mut impl Store, group: &mut Group, member: &mut Member) {
        let guard = group.guard(member, &self.labels);
        let Ticket { label, lane, kind, .. } = &*member.envelope;
        let (label, lane) = (label.clone(), *lane);
        if (lane as u8) < group.lane as u8 {
            group.lane = lane;
        }
        group.has_once |= *kind == Kind::Once;
        let expected = self.labels.expect(&label);
        group.is_solo |=
            group.members.is_empty() && is_solo(&member.envelope, expected, group.now, &self.config);
        if expected.is_none_or(|expected| expected > QUICK) {
            self.queue.give_back_room();
        }
        if cfg!(not(solewriter_unmonitored)) {
            self.board.hold(Phase::Command { label: label.clone(), lane }, group.now);
        }
        Ran { step: member.step, reason: member.reason } = store.run(&member.envelope, guard, group.now);
        member.attempts += 1;
        let now = Instant::now();
        member.run = now - group.now;
        group.now = now;
        group.spent = Some((lane, member.run));
        self.labels.learn(&label, member.run, member.step != Step::Done);
    }

    fn commit(&mut self, store: &mut impl Store, mut group: Group) -> ControlFlow<SessionEnd> {
        let started = group.now;
        self.board.hold(Phase::Commit, started);
        let wrote = match store.commit() {
            Ok(wrote) => wrote,
            Err(error) => return self.commit_failed(store, group, error),
        };
        let ended = Instant::now();
        if let Err(cause) = store.check_files() {
            return self.files_were_replaced(group, cause);
        }
        let (commit, hold) = (ended - started, ended - group.begun);
        // Before the answers: who has its answer must not find itself the holder.
        self.board.let_go();
        if wrote {
            self.unsynced_groups = group.durability == Durability::Normal;
            self.breaker.succeeded();
        }
        self.charge(&group, commit);
        self.record_commit(&group, commit, hold);
        let token = self.board.committed();
        self.usual_group += (group.members.len() as f64 - self.usual_group) / 16.0;
        let mut callers = Callers::default();
        for mut member in group.members.drain(..) {
            if let Some(reason) = member.reason.take() {
                self.note_failed(&member, *reason, hold);
            }
            let committed = Fate::Committed(token, Timing { wait: member.wait, hold });
            member.envelope.answer_among(committed, &mut callers);
        }
        self.herald.wake(callers);
        self.members = group.members;
        ControlFlow::Continue(())
    }

    /// Keeps the reason of a command that failed by itself; it is answered, and counted, with its group.
    fn note_failed(&self, member: &Member, reason: Reason, hold: Duration) {
        let Ticket { label, lane, .. } = &*member.envelope;
        let failed = FailedCommand::new(label.clone(), *lane, Outcome::RolledBack, reason);
        self.board.note_failed(failed.tried(member.attempts, member.wait, hold));
    }

    /// Charges the lanes for the last command and for the COMMIT, which the most urgent of them pays.
    fn charge(&mut self, group: &Group, commit: Duration) {
        let labels = &self.labels;
        let expected = |next: &Envelope| labels.expect(&next.label).unwrap_or_default();
        self.queue.look(|lanes| {
            for (lane, spent) in group.spent.into_iter().chain([(group.lane, commit)]) {
                lanes.spend(lane, spent, group.is_interactive(), expected);
            }
        });
    }

    fn record_commit(&self, group: &Group, commit: Duration, hold: Duration) {
        if cfg!(solewriter_unmonitored) {
            return;
        }
        tracing::debug!(
            commands = group.members.len(),
            hold_us = hold.as_micros(),
            commit_us = commit.as_micros(),
            "group committed"
        );
        let mut stats = lock(&self.board.stats);
        for member in &group.members {
            let lane = member.envelope.lane;
            stats.wait[lane].record(member.wait);
            stats.run[lane].record(member.run);
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

    /// Runs what must be outside of any transaction, and gives up its connection afterwards: nobody knows what
    /// it has set or attached.
    fn run_maintenance(&mut self, store: &mut impl Store, lane: Lane) -> ControlFlow<SessionEnd> {
        if self.unsynced_groups {
            // First a sync of what is not synced: else a failure of its own files could not be told from one of ours.
            self.look = Some((Look::Probe, closed()));
            return ControlFlow::Continue(());
        }
        let now = Instant::now();
        // It may have been taken back since it was seen, and another stand in its place.
        let is_maintenance = |next: &Envelope| next.kind == Kind::Maintenance;
        let envelope = self.queue.next(|lanes| lanes.head(lane).is_some_and(is_maintenance).then_some(lane));
        let Some(envelope) = envelope.and_then(|envelope| self.start(envelope, now)) else {
            return ControlFlow::Continue(());
        };
        self.queue.give_back_room();
        let mut member = Member::new(envelope, now);
        let label = member.envelope.label.clone();
        self.board.hold(Phase::Command { label, lane }, now);
        self.housekeeping.watch();
        Ran { step: member.step, reason: member.reason } = store.run(&member.envelope, Guard::Bare, now);
        member.attempts = 1;
        let files = store.check_files();
        self.board.let_go();
        let hold = now.elapsed();
        if let Err(cause) = files {
            self.board.stop(cause.clone());
            member.give_up(&self.board, Fate::Unknown(Unknown::FilesReplaced(cause)), hold);
            return ControlFlow::Break(SessionEnd::Stopped);
        }
        let step = member.step;
        {
            let mut stats = lock(&self.board.stats);
            stats.wait[lane].record(member.wait);
            stats.run[lane].record(hold);
            match step {
                Step::Done => stats.commands.committed += 1,
                Step::Undone | Step::Lost(_) => stats.commands.failed += 1,
            }
        }
        let labels = &self.labels;
        self.queue.look(|lanes| {
            lanes.spend(lane, hold, false, |next| labels.expect(&next.label).unwrap_or_default());
        });
        if let Some(reason) = member.reason.take() {
            self.note_failed(&member, *reason, hold);
        }
        member.envelope.answer(Fate::Committed(self.board.last_commit(), Timing { wait: member.wait, hold }));
        if let Step::Lost(Loss::Environment(failure)) = step {
            self.maintenance_failed(failure);
        }
        self.tend_wal(store);
        ControlFlow::Break(SessionEnd::Replace)
    }
}

impl Round {
    /// The most that one of its commands asks for.
    fn durability(&self) -> Durability {
        let durabilities = self.members.iter().map(|member| member.envelope.durability);
        durabilities.max().unwrap_or_default()
    }
}
