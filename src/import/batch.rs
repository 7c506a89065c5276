//! What runs on the writer: a piece of an import, in one command.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::record::{self, Advance};
use crate::error::{RolledBack, WriteError};
use crate::failed::Reason;
use crate::rules::{Guard, Loss};
use crate::sync::drop_quietly;
use crate::transaction::{Fault, WriteTransaction};

/// An entry and its place in the stream.
pub(super) struct Entry<I> {
    pub(super) index: u64,
    pub(super) item: I,
}

/// Entries that are on their way to the writer.
///
/// They are shared, not moved: a batch that is lost through no fault of its own is sent again.
pub(super) struct Chunk<I> {
    entries: Arc<Vec<Entry<I>>>,
    /// The place in the stream after everything that has come up to the last entry.
    end_entry: u64,
    /// Those in between whose preparation failed, and that are not written down yet.
    unprepared: Vec<u64>,
    /// Where the next batch begins; those before are done.
    from: usize,
    /// Entries that have failed by taking a whole transaction with them: left out from now on.
    left_out: Vec<(usize, Reason)>,
}

impl<I> Clone for Chunk<I> {
    fn clone(&self) -> Self {
        Self {
            entries: self.entries.clone(),
            end_entry: self.end_entry,
            unprepared: self.unprepared.clone(),
            from: self.from,
            left_out: self.left_out.clone(),
        }
    }
}

impl<I> Chunk<I> {
    pub(super) fn new(entries: Vec<Entry<I>>, end_entry: u64, unprepared: Vec<u64>) -> Self {
        Self { entries: Arc::new(entries), end_entry, unprepared, from: 0, left_out: Vec::new() }
    }

    pub(super) fn is_done(&self) -> bool {
        self.from == self.entries.len()
    }

    /// A batch up to `position` is committed.
    pub(super) fn advance_to(&mut self, position: usize) {
        let next_entry = self.entry_at(position);
        self.from = position;
        self.unprepared.retain(|entry| *entry >= next_entry);
    }

    pub(super) fn leave_out(&mut self, position: usize, reason: Reason) -> u64 {
        self.left_out.push((position, reason));
        self.entries[position].index
    }

    fn rest(&self) -> impl Iterator<Item = (usize, &Entry<I>)> {
        let rest = self.entries.iter().enumerate().skip(self.from);
        rest.filter(|(position, _)| self.left_out.iter().all(|(left_out, _)| left_out != position))
    }

    /// The place in the stream that a position in the chunk stands for.
    fn entry_at(&self, position: usize) -> u64 {
        self.entries.get(position).map_or(self.end_entry, |entry| entry.index)
    }

    /// What the record has to say of a batch up to `end`, beside what it says of it itself: the failures that
    /// were known before it was sent.
    fn known_failures(&self, end: usize) -> impl Iterator<Item = (u64, Reason)> {
        let next_entry = self.entry_at(end);
        let unprepared = self.unprepared.iter().filter(move |entry| **entry < next_entry);
        let left_out = self.left_out.iter().filter(move |(position, _)| (self.from..end).contains(position));
        unprepared
            .map(|entry| (*entry, Reason::unprepared()))
            .chain(left_out.map(|(position, reason)| (self.entries[*position].index, reason.clone())))
    }
}

/// The record of the import, and what it does not know yet.
#[derive(Clone, Copy)]
pub(super) struct Bookmark {
    pub(super) number: i64,
    pub(super) batches_lost: u64,
    pub(super) hold_max: Duration,
}

/// When a batch ends.
#[derive(Clone, Copy)]
pub(super) enum Extent {
    /// When it has taken this long, with what an average entry would add; at least one entry is tried.
    Budget(Duration),
    /// At the end of its chunk.
    Chunk,
    /// At the end of its chunk, and all of it is undone if one entry fails.
    AllOrNothing,
}

/// What a batch has done, if its group commits.
pub(super) struct BatchDone<T, E> {
    pub(super) outcomes: Outcomes<T, E>,
    /// The position in the chunk where the next batch begins.
    pub(super) end: usize,
    pub(super) run: Duration,
    /// An entry failed half-way, and some were applied again.
    pub(super) was_undone: bool,
}

/// An entry that failed, with the reason as it may be shown.
pub(super) struct EntryFault<E> {
    pub(super) error: WriteError<E>,
    pub(super) reason: Reason,
}

/// Why nothing of a batch is kept.
pub(super) enum BatchFault<E> {
    /// The entry at this position.
    Entry(usize, EntryFault<E>),
    /// The record could not be written.
    Record(rusqlite::Error),
}

/// So many entries share a savepoint where none is expected to fail half-way.
const RUN_MAX: usize = 64;

/// Applies the next entries of a chunk, each isolated from the others.
///
/// With [`Guard::Bare`] a run of entries shares a savepoint; once one of them fails after it has written, its run is
/// undone and applied again, and from there on each entry has a savepoint of its own.
pub(super) fn run<I, T, E>(
    tx: &mut WriteTransaction<'_>,
    chunk: &Chunk<I>,
    extent: Extent,
    mut guard: Guard,
    bookmark: Bookmark,
    apply: &impl Fn(&mut WriteTransaction<'_>, &I) -> Result<T, E>,
) -> Result<BatchDone<T, E>, BatchFault<E>>
where
    E: std::error::Error + 'static,
{
    let pace = Pace { extent, started: Instant::now() };
    let rest: Vec<_> = chunk.rest().collect();
    let mut outcomes = Vec::with_capacity(rest.len());
    let mut was_undone = false;
    while outcomes.len() < rest.len() {
        let next = &rest[outcomes.len()..];
        let done = outcomes.len();
        let applied = match (guard, extent) {
            (Guard::Bare, Extent::Budget(_) | Extent::Chunk) => {
                let run = &next[..next.len().min(RUN_MAX)];
                match tx.savepoint(|tx| apply_each(tx, run, guard, pace, done, apply)) {
                    Err(Stop::Unguarded) => {
                        (guard, was_undone) = (Guard::Savepoint, true);
                        continue;
                    }
                    applied => applied,
                }
            }
            _ => apply_each(tx, next, guard, pace, done, apply),
        };
        match applied {
            Ok(applied) if applied.is_empty() => break,
            Ok(applied) => outcomes.extend(applied),
            Err(Stop::Entry(position, fault)) => {
                tx.is_told_by_the_import();
                return Err(BatchFault::Entry(position, fault));
            }
            Err(Stop::Unguarded) => unreachable!("it is applied again"),
            // A savepoint of the run itself; the first entry stands for it.
            Err(Stop::Savepoint(error)) => {
                tx.is_told_by_the_import();
                let error = RolledBack::GroupLost(error.into()).into();
                return Err(BatchFault::Entry(next[0].0, EntryFault { error, reason: Reason::default() }));
            }
        }
    }
    let end = rest.get(outcomes.len()).map_or(chunk.entries.len(), |(position, _)| *position);
    let by = advance(chunk, &outcomes, end, bookmark);
    record::advance(tx, bookmark.number, &by).map_err(BatchFault::Record)?;
    Ok(BatchDone { outcomes, end, run: pace.started.elapsed(), was_undone })
}

/// How fast the entries of a batch go.
#[derive(Clone, Copy)]
struct Pace {
    extent: Extent,
    started: Instant,
}

impl Pace {
    /// Whether one more entry would take too long, after so many.
    fn is_spent(self, done: usize) -> bool {
        match (self.extent, u32::try_from(done)) {
            (Extent::Budget(budget), Ok(done)) if done > 0 => {
                let elapsed = self.started.elapsed();
                elapsed + elapsed / done > budget
            }
            _ => false,
        }
    }
}

/// Why no further entry is applied.
enum Stop<E> {
    /// An entry has failed that had written, and had no savepoint of its own.
    Unguarded,
    /// The entry at this position costs the whole batch.
    Entry(usize, EntryFault<E>),
    /// The savepoint of a run failed.
    Savepoint(rusqlite::Error),
}

impl<E> From<rusqlite::Error> for Stop<E> {
    fn from(error: rusqlite::Error) -> Self {
        Self::Savepoint(error)
    }
}

type Outcomes<T, E> = Vec<(u64, Result<T, EntryFault<E>>)>;

/// Applies one entry after the other, until the time is up; `done` are done already.
fn apply_each<I, T, E>(
    tx: &mut WriteTransaction<'_>,
    entries: &[(usize, &Entry<I>)],
    guard: Guard,
    pace: Pace,
    done: usize,
    apply: &impl Fn(&mut WriteTransaction<'_>, &I) -> Result<T, E>,
) -> Result<Outcomes<T, E>, Stop<E>>
where
    E: std::error::Error + 'static,
{
    let is_all_or_nothing = matches!(pace.extent, Extent::AllOrNothing);
    let mut outcomes = Vec::with_capacity(entries.len());
    for &(position, entry) in entries {
        if pace.is_spent(done + outcomes.len()) {
            break;
        }
        let outcome = match tx.run(guard, |tx| apply(tx, &entry.item)) {
            Ok(value) => Ok(value),
            Err(Fault { error, loss }) => {
                let reason = tx.take_reason().map(|reason| *reason).unwrap_or_default();
                if loss == Some(Loss::Unguarded) && !is_all_or_nothing {
                    drop_quietly(error);
                    return Err(Stop::Unguarded);
                }
                let costs_all = loss.is_some() || is_environmental(&error) || is_all_or_nothing;
                let fault = EntryFault { error, reason };
                if costs_all {
                    return Err(Stop::Entry(position, fault));
                }
                Err(fault)
            }
        };
        outcomes.push((entry.index, outcome));
    }
    Ok(outcomes)
}

/// What the record has to say of a batch.
fn advance<I, T, E>(
    chunk: &Chunk<I>,
    outcomes: &[(u64, Result<T, EntryFault<E>>)],
    end: usize,
    bookmark: Bookmark,
) -> Advance {
    let failed = outcomes
        .iter()
        .filter_map(|(index, outcome)| outcome.as_ref().err().map(|fault| (*index, fault.reason.clone())));
    let mut failures: Vec<_> = failed.chain(chunk.known_failures(end)).collect();
    failures.sort_unstable_by_key(|(entry, _)| *entry);
    Advance {
        next_entry: chunk.entry_at(end),
        accepted: outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).count() as u64,
        batches: 1,
        failures,
        batches_lost: bookmark.batches_lost,
        hold_max: bookmark.hold_max,
    }
}

/// Whether the environment failed and not the entry, so that the same entry may succeed later.
///
/// SQLite need not end the transaction for it: a full disk may cost one statement only.
pub(super) fn is_environmental<E>(error: &WriteError<E>) -> bool {
    matches!(
        error,
        WriteError::RolledBack(
            RolledBack::GroupLost(_)
                | RolledBack::Environment(_)
                | RolledBack::Interrupted
                | RolledBack::DeadlineExceeded { .. }
        )
    )
}
