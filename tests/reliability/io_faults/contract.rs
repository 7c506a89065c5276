//! What a failing environment may cost: docs/guarantees.md, "Honest Outcome" and "Self-Healing".

use std::ffi::c_int;

use rusqlite::ffi;
use solewriter::{ImportFailure, NotStarted, Outcome, Unknown, WriteError};

use super::script::{Answered, Answers, Script};
use crate::common::faults::{By, Call, Lasts, Of, Op};
use crate::common::proof::{Tally, Wrong};

impl Answered {
    /// Whether it is answered as if nothing had failed.
    pub(super) fn is_as_it_should(&self) -> bool {
        self.should_succeed.is_none_or(|should_succeed| self.answer.is_ok() == should_succeed)
    }

    pub(super) fn is_stopped(&self) -> bool {
        matches!(&self.answer, Err(WriteError::NotStarted(NotStarted::Stopped(_))))
    }

    fn is_unknown(&self) -> bool {
        self.answer.as_ref().is_err_and(|error| error.outcome() == Outcome::Unknown)
    }
}

/// What was seen of a run in which a call has failed.
pub(super) struct Seen<'r> {
    pub(super) script: &'r Script,
    pub(super) lasts: Lasts,
    /// The first call that failed, and with what.
    pub(super) hit: Call,
    pub(super) code: c_int,
    pub(super) calls: &'r [Call],
    pub(super) open_failed: bool,
    pub(super) answers: &'r Answers,
    pub(super) stopped: bool,
    /// Whether a read at the end could be done, if one was tried when nothing failed any more.
    pub(super) reads: Option<bool>,
}

impl Seen<'_> {
    pub(super) fn check(&self, tally: &mut Tally) {
        self.check_unknown(tally);
        self.check_service(tally);
        self.check_import(tally);
        let declined = self.answers.commands.iter().filter(|answered| !answered.is_as_it_should()).count();
        tally.add("declined", declined as u64);
        tally.add("reads_failed", self.answers.reads_failed);
    }

    fn example(&self, what: &str) -> String {
        let failed = self.calls.iter().filter(|call| call.failed).count();
        let Self { hit: Call { op, of, by, .. }, lasts, answers, stopped, .. } = self;
        let odd = answers.commands.iter().filter(|answered| !answered.is_as_it_should());
        let odd: Vec<_> =
            odd.map(|Answered { order, answer, .. }| format!("{order:?}: {answer:?}")).collect();
        format!("{what}: {op:?} of {of:?} by {by:?} {lasts:?} ({failed} calls), stopped: {stopped}, {odd:#?}")
    }

    /// Unknown is what a COMMIT has left that failed and that no fence could settle: one group, and the last one.
    fn check_unknown(&self, tally: &mut Tally) {
        let commands = &self.answers.commands;
        let unknown: Vec<_> = commands.iter().filter(|answered| answered.is_unknown()).collect();
        for answered in &unknown {
            let is_commit = matches!(answered.answer, Err(WriteError::Unknown(Unknown::CommitFailed(_))));
            tally.check(is_commit, Wrong::Broken, || self.example("unknown, and not for its COMMIT"));
        }
        let is_batch_unknown = self.import_failure().is_some_and(
            |failure| matches!(failure, ImportFailure::Writer(error) if error.outcome() == Outcome::Unknown),
        );
        let batch_step = is_batch_unknown.then_some(self.answers.import_step);
        let steps: Vec<_> = unknown.iter().map(|answered| answered.step).chain(batch_step).collect();
        let Some(&first) = steps.first() else { return };
        tally.add("unknown_runs", 1);
        tally.check(self.may_be_unknown(), Wrong::Broken, || self.example("unknown without need"));
        let is_one_group =
            steps.len() <= self.script.config.group_commands_max && steps.iter().all(|step| *step == first);
        tally.check(is_one_group, Wrong::Broken, || self.example("unknown are more than one group"));
        tally.check(self.stopped, Wrong::Broken, || self.example("unknown, and writing goes on"));
        let last = unknown.last().map_or(0, |answered| answered.order.command);
        let acked = |answered: &&Answered| answered.answer.is_ok() && answered.order.command > last;
        let none_later = !commands.iter().any(|answered| acked(&answered) && answered.step >= first);
        tally.check(none_later, Wrong::Broken, || self.example("unknown, and acknowledged afterwards"));
    }

    /// Whether a COMMIT and its fence may have failed; or its sync alone, after groups that were not synced.
    fn may_be_unknown(&self) -> bool {
        let failed = |is_meant: fn(&Call) -> bool| {
            self.calls.iter().filter(move |call| call.failed && is_meant(call)).count()
        };
        let syncs = failed(|call| (call.op, call.of) == (Op::Sync, Of::Wal));
        let of_the_writer = failed(|call| call.by == By::Writer);
        (!self.script.is_full && syncs > 0) || (self.lasts != Lasts::Once && of_the_writer > 1)
    }

    fn check_service(&self, tally: &mut Tally) {
        let commands = &self.answers.commands;
        let is_served = || commands.iter().all(Answered::is_as_it_should);
        let only_readers_failed =
            !self.open_failed && self.calls.iter().all(|call| !call.failed || call.by == By::Other);
        if only_readers_failed {
            let is_unharmed = is_served() && !self.stopped;
            tally.check(is_unharmed, Wrong::Broken, || self.example("a reader's failure harms the writer"));
        }
        if self.lasts == Lasts::Once && self.script.is_full {
            tally.check(!self.stopped, Wrong::Broken, || self.example("one failure stops writing"));
            let lost = commands.iter().filter(|answered| !answered.is_as_it_should()).count();
            let is_one_group = lost <= self.script.config.group_commands_max;
            tally.check(is_one_group, Wrong::Broken, || self.example("one failure costs more than a group"));
        }
        // The last command was sent when nothing failed any more.
        if let Some(last) = commands.last().filter(|answered| answered.step == usize::MAX) {
            let is_healed = last.answer.is_ok() || (self.stopped && last.is_stopped());
            tally.check(is_healed, Wrong::Broken, || self.example("it does not heal"));
        }
        let reads = self.reads.unwrap_or(true);
        tally.check(reads, Wrong::Broken, || self.example("reads do not go on"));
        let only_space_is_missing =
            self.hit.op == Op::Write && self.code == ffi::SQLITE_FULL && self.lasts != Lasts::ForAll;
        if only_space_is_missing {
            let passes = !self.stopped && !commands.iter().any(Answered::is_unknown);
            tally.check(passes, Wrong::Broken, || self.example("a full disk is not waited for"));
        }
    }

    fn import_failure(&self) -> Option<&ImportFailure> {
        Some(&self.answers.import.as_ref()?.as_ref().err()?.failure)
    }

    /// What passes is borne.
    fn check_import(&self, tally: &mut Tally) {
        let is_due = self.lasts == Lasts::Once && !self.stopped;
        if is_due && let Some(failure) = self.import_failure() {
            tally.wrong(Wrong::Broken, || self.example(&format!("the import has stopped: {failure:?}")));
        }
    }
}
