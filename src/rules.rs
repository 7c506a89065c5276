//! What to do after each result: the contract of failure, as tables. Pure: no clock, no SQLite.
//!
//! The code that talks to SQLite says what it has seen and does what stands here.

use crate::failure::Failure;

/// How a command is kept from harming its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    /// Not at all: if it fails after it has written, its group is run again. For commands that can run again.
    Bare,
    /// By a savepoint around it.
    Savepoint,
}

/// What can be seen of the transaction after user code has run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) guard: Guard,
    /// Whether the code returned `Ok`.
    pub(crate) ok: bool,
    /// What it failed of.
    pub(crate) failure: Failure,
    /// SQLite has ended the transaction by itself: FULL, IOERR, NOMEM, an interrupted write, `OR ROLLBACK`
    /// (<https://www.sqlite.org/lang_transaction.html>).
    pub(crate) ended: bool,
    /// The code has left a statement half-stepped.
    pub(crate) statement_open: bool,
    /// A savepoint that the code had asked for could not be ended.
    pub(crate) savepoint_stuck: bool,
    /// COMMIT would fail now, for a deferred foreign key.
    pub(crate) foreign_key_violated: bool,
    /// It may have written: a row was changed, or something else than reads and DML was prepared.
    pub(crate) wrote: bool,
}

/// What becomes of a command that has run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterCommand {
    /// Its writes are in the transaction.
    Keep,
    /// It failed, and nothing of it is in the transaction.
    Leave,
    /// It is undone alone, by its savepoint.
    Undo,
    /// The transaction can't be saved.
    Lose(Loss),
}

/// How a command has cost its group the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// It failed without a savepoint after it had written.
    Unguarded,
    /// It made SQLite end the transaction by itself.
    Command,
    /// The environment failed it, or its time was up.
    Environment(Failure),
    /// It left a statement half-stepped.
    StatementOpen,
    /// A savepoint statement of the service failed: what the transaction holds is in doubt.
    Savepoint,
}

/// After a command, before its savepoint is released and before the next one starts.
pub(crate) fn after_command(seen: &Seen) -> AfterCommand {
    use AfterCommand::{Keep, Leave, Lose, Undo};
    match *seen {
        Seen { failure: Failure::Corrupt, ok: false, .. } => Lose(Loss::Environment(Failure::Corrupt)),
        Seen { ended: true, ok: false, failure, .. } if failure.is_environmental() => {
            Lose(Loss::Environment(failure))
        }
        Seen { ended: true, .. } => Lose(Loss::Command),
        Seen { savepoint_stuck: true, .. } => Lose(Loss::Savepoint),
        Seen { statement_open: true, .. } => Lose(Loss::StatementOpen),
        Seen { ok: true, foreign_key_violated: false, .. } => Keep,
        Seen { guard: Guard::Savepoint, .. } => Undo,
        // With a violated key it has written, whatever the counters say.
        Seen { guard: Guard::Bare, wrote: false, foreign_key_violated: false, .. } => Leave,
        Seen { guard: Guard::Bare, .. } => Lose(Loss::Unguarded),
    }
}

/// How often the commands of a group have been tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// For the first time, without savepoints where that is safe.
    First,
    /// For the second time, each with a savepoint.
    Guarded,
    /// One command in a group of its own.
    Alone,
}

/// What becomes of the command that has cost its group the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Culprit {
    /// It gets its own error.
    Answer,
    /// It runs again in its place among the others: its error may rest on one before it.
    InPlace,
    /// It runs again in a group of its own, after those before it: its error may rest on one of them.
    Alone,
}

/// What the writer looks at before it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Nothing is in doubt.
    Nothing,
    /// Whether a small commit of its own succeeds.
    Probe,
    /// Whether the database is damaged.
    QuickCheck,
}

/// What follows from a lost transaction, which is rolled back first. Those that can't run again are answered
/// as rolled back; the others run again, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AfterLoss {
    pub(crate) culprit: Culprit,
    /// How the others are run again.
    pub(crate) others: Attempt,
    /// Whether the connection is in doubt.
    pub(crate) replace: bool,
    pub(crate) look: Look,
}

pub(crate) fn after_loss(
    loss: Loss,
    attempt: Attempt,
    culprit_can_run_again: bool,
    culprit_has_predecessors: bool,
) -> AfterLoss {
    let once_more = culprit_can_run_again && culprit_has_predecessors;
    let culprit = match loss {
        Loss::Unguarded => Culprit::InPlace,
        Loss::Command | Loss::Savepoint if once_more => Culprit::Alone,
        Loss::Command | Loss::Savepoint | Loss::Environment(_) | Loss::StatementOpen => Culprit::Answer,
    };
    let others = match attempt {
        Attempt::First => Attempt::Guarded,
        Attempt::Guarded | Attempt::Alone => Attempt::Alone,
    };
    let (replace, look) = match loss {
        Loss::Unguarded | Loss::Command => (false, Look::Nothing),
        Loss::StatementOpen | Loss::Savepoint => (true, Look::Nothing),
        Loss::Environment(failure) => after_environment(failure),
    };
    AfterLoss { culprit, others, replace, look }
}

/// Whether the environment's failure puts the connection, the disk or the file in doubt.
fn after_environment(failure: Failure) -> (bool, Look) {
    match failure {
        Failure::Command | Failure::Interrupted => (false, Look::Nothing),
        // Holding the write lock, nobody can be in the way: a bug of ours, or of the file system.
        Failure::Busy => (true, Look::Nothing),
        Failure::DiskFull | Failure::Memory => (false, Look::Probe),
        Failure::Write | Failure::Read | Failure::Io => (true, Look::Probe),
        Failure::Corrupt => (true, Look::QuickCheck),
    }
}

/// What follows from a BEGIN that failed. Nothing has started, so commands stay queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterBegin {
    /// Another process holds the lock: try again, until the commands' time is up.
    Wait,
    /// The environment failed: count it, look at it, and try again.
    Retry { replace: bool, look: Look },
}

pub(crate) fn after_begin(failure: Failure) -> AfterBegin {
    match failure {
        Failure::Busy => AfterBegin::Wait,
        Failure::Command => AfterBegin::Retry { replace: true, look: Look::Probe },
        failure => {
            let (replace, look) = after_environment(failure);
            AfterBegin::Retry { replace, look: if look == Look::Nothing { Look::Probe } else { look } }
        }
    }
}

/// What can be seen after a COMMIT that failed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FailedCommit {
    pub(crate) failure: Failure,
    /// The transaction is still open, or the service's own commit hook refused it.
    pub(crate) nothing_written: bool,
    /// Groups have been committed since the WAL was last synced: with `synchronous=NORMAL`.
    pub(crate) unsynced_groups: bool,
}

/// What follows from a COMMIT that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterCommit {
    /// Roll back; those that can run again do so one by one, to find the one that can't be committed.
    RunAlone,
    /// Roll back; everyone is answered as rolled back.
    RollBack,
    /// The rows are invisible, and may be back after a crash: a fence settles it.
    Fence,
    /// Nothing can settle it: everyone is answered as unknown, and writing stops.
    Stop,
}

pub(crate) fn after_failed_commit(seen: &FailedCommit, attempt: Attempt) -> AfterCommit {
    let may_have_synced_in_vain =
        !matches!(seen.failure, Failure::DiskFull | Failure::Write | Failure::Read | Failure::Busy);
    match seen {
        FailedCommit { nothing_written: true, .. } if attempt == Attempt::Alone => AfterCommit::RollBack,
        FailedCommit { nothing_written: true, .. } => AfterCommit::RunAlone,
        // The failed sync may have dropped frames of those groups, and a later sync would not tell.
        FailedCommit { unsynced_groups: true, .. } if may_have_synced_in_vain => AfterCommit::Stop,
        _ => AfterCommit::Fence,
    }
}

/// What follows from a fence or a probe, the service's own small commit, that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterProbe {
    /// There is no space: refuse writes until a probe succeeds. Frames are written in order, so a COMMIT that
    /// found no space has not written its last one, and can't be back after a crash.
    DiskFull,
    /// Writes are refused once this has happened often enough in a row.
    CountFailure,
    /// Writing stops.
    Stop,
}

/// `settles_commit` says that the fate of a failed COMMIT depends on it.
pub(crate) fn after_failed_probe(
    failure: Failure,
    settles_commit: Option<Failure>,
    unsynced_groups: bool,
) -> AfterProbe {
    match (settles_commit, failure) {
        (None | Some(Failure::DiskFull), Failure::DiskFull) => AfterProbe::DiskFull,
        (Some(_), _) => AfterProbe::Stop,
        // As for a COMMIT: the sync that failed may have dropped what other groups wrote.
        (None, Failure::Io) if unsynced_groups => AfterProbe::Stop,
        (None, _) => AfterProbe::CountFailure,
    }
}

/// What follows from maintenance that has failed. Its statements commit by themselves, so any of them may have been
/// a COMMIT that failed: the next commit overwrites what it left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterMaintenance {
    Look(Look),
    /// As for a COMMIT after groups that were not synced.
    Stop,
}

pub(crate) fn after_failed_maintenance(failure: Failure, unsynced_groups: bool) -> AfterMaintenance {
    match failure {
        Failure::Io | Failure::Memory if unsynced_groups => AfterMaintenance::Stop,
        failure => AfterMaintenance::Look(after_environment(failure).1),
    }
}

/// What follows from a checkpoint that failed, and can't wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterCheckpoint {
    /// Close every connection without a checkpoint and open them anew: a retry on the same wal-index can
    /// corrupt the database at the next power loss.
    Reopen,
    /// Writing stops: what the failed sync dropped may belong to groups that are nowhere else.
    Stop,
}

/// Whether a checkpoint that failed may simply be tried again later, on the same wal-index.
pub(crate) fn checkpoint_can_wait(failure: Failure) -> bool {
    // Only writes find no space. What they wrote before is still to be synced, and none of it was dropped.
    failure == Failure::DiskFull
}

pub(crate) fn after_failed_checkpoint(unsynced_groups: bool) -> AfterCheckpoint {
    if unsynced_groups { AfterCheckpoint::Stop } else { AfterCheckpoint::Reopen }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEN: Seen = Seen {
        guard: Guard::Bare,
        ok: true,
        failure: Failure::Command,
        ended: false,
        statement_open: false,
        savepoint_stuck: false,
        foreign_key_violated: false,
        wrote: true,
    };
    const FAILED: Seen = Seen { ok: false, ..SEEN };

    #[test]
    fn a_command_is_kept_only_if_nothing_speaks_against_it() {
        use AfterCommand::{Keep, Leave, Lose, Undo};
        let guarded = |seen: Seen| Seen { guard: Guard::Savepoint, ..seen };
        let cases = [
            (SEEN, Keep),
            (guarded(SEEN), Keep),
            (Seen { wrote: false, ..FAILED }, Leave),
            (FAILED, Lose(Loss::Unguarded)),
            (guarded(FAILED), Undo),
            (Seen { foreign_key_violated: true, ..SEEN }, Lose(Loss::Unguarded)),
            (guarded(Seen { foreign_key_violated: true, ..SEEN }), Undo),
            (Seen { statement_open: true, ..SEEN }, Lose(Loss::StatementOpen)),
            (guarded(Seen { statement_open: true, ..FAILED }), Lose(Loss::StatementOpen)),
            (Seen { ended: true, ..SEEN }, Lose(Loss::Command)),
            (guarded(Seen { ended: true, ..FAILED }), Lose(Loss::Command)),
            (
                guarded(Seen { ended: true, failure: Failure::DiskFull, ..FAILED }),
                Lose(Loss::Environment(Failure::DiskFull)),
            ),
            (guarded(Seen { failure: Failure::DiskFull, ..FAILED }), Undo),
            (guarded(Seen { failure: Failure::Interrupted, ..FAILED }), Undo),
            (
                guarded(Seen { failure: Failure::Corrupt, ..FAILED }),
                Lose(Loss::Environment(Failure::Corrupt)),
            ),
        ];
        for (seen, expected) in cases {
            assert_eq!(after_command(&seen), expected, "{seen:?}");
        }
    }

    #[test]
    fn the_second_loss_of_a_group_leads_to_one_command_per_group() {
        let others = |attempt| after_loss(Loss::Command, attempt, true, true).others;
        assert_eq!(others(Attempt::First), Attempt::Guarded);
        assert_eq!(others(Attempt::Guarded), Attempt::Alone);
        assert_eq!(others(Attempt::Alone), Attempt::Alone);
    }

    #[test]
    fn an_error_that_may_rest_on_a_neighbour_is_not_believed_at_once() {
        let culprit = |again, before| after_loss(Loss::Command, Attempt::First, again, before).culprit;
        assert_eq!(culprit(true, true), Culprit::Alone);
        assert_eq!(culprit(true, false), Culprit::Answer);
        assert_eq!(culprit(false, true), Culprit::Answer);
        let unguarded = after_loss(Loss::Unguarded, Attempt::First, true, false);
        assert_eq!(unguarded.culprit, Culprit::InPlace);
    }

    #[test]
    fn only_a_failed_sync_after_unsynced_groups_is_beyond_a_fence() {
        let seen =
            |failure, unsynced_groups| FailedCommit { failure, nothing_written: false, unsynced_groups };
        for (failure, unsynced, expected) in [
            (Failure::Io, false, AfterCommit::Fence),
            (Failure::Io, true, AfterCommit::Stop),
            (Failure::Write, true, AfterCommit::Fence),
            (Failure::Read, true, AfterCommit::Fence),
            (Failure::Busy, true, AfterCommit::Fence),
            (Failure::DiskFull, true, AfterCommit::Fence),
            (Failure::Memory, true, AfterCommit::Stop),
        ] {
            assert_eq!(
                after_failed_commit(&seen(failure, unsynced), Attempt::First),
                expected,
                "{failure:?}"
            );
        }
        let open = FailedCommit { failure: Failure::Busy, nothing_written: true, unsynced_groups: true };
        assert_eq!(after_failed_commit(&open, Attempt::First), AfterCommit::RunAlone);
        assert_eq!(after_failed_commit(&open, Attempt::Alone), AfterCommit::RollBack);
    }

    #[test]
    fn maintenance_that_fails_is_taken_for_a_failed_commit() {
        use AfterMaintenance::{Look as Then, Stop};
        for (failure, unsynced, expected) in [
            (Failure::Command, true, Then(Look::Nothing)),
            (Failure::Interrupted, true, Then(Look::Nothing)),
            (Failure::Busy, true, Then(Look::Nothing)),
            (Failure::Io, false, Then(Look::Probe)),
            (Failure::Io, true, Stop),
            (Failure::Write, true, Then(Look::Probe)),
            (Failure::Read, true, Then(Look::Probe)),
            (Failure::DiskFull, true, Then(Look::Probe)),
            (Failure::Corrupt, false, Then(Look::QuickCheck)),
        ] {
            assert_eq!(after_failed_maintenance(failure, unsynced), expected, "{failure:?}");
        }
    }

    #[test]
    fn a_fence_that_fails_stops_writing_unless_only_space_is_missing() {
        use AfterProbe::{CountFailure, DiskFull, Stop};
        for (failure, settles, unsynced, expected) in [
            (Failure::Io, Some(Failure::Io), false, Stop),
            (Failure::DiskFull, Some(Failure::Io), false, Stop),
            (Failure::DiskFull, Some(Failure::DiskFull), true, DiskFull),
            (Failure::Io, Some(Failure::DiskFull), false, Stop),
            (Failure::DiskFull, None, false, DiskFull),
            (Failure::Io, None, false, CountFailure),
            (Failure::Io, None, true, Stop),
            (Failure::Read, None, true, CountFailure),
            (Failure::Busy, None, true, CountFailure),
        ] {
            assert_eq!(after_failed_probe(failure, settles, unsynced), expected, "{failure:?} {settles:?}");
        }
    }
}
