//! What runs on the writer: a piece of an import, in one command.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{RolledBack, WriteError};
use crate::rules::Guard;
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
    /// Where the next batch begins; those before are done.
    from: usize,
    /// Entries that have failed by taking a whole transaction with them: left out from now on.
    left_out: Vec<usize>,
}

impl<I> Clone for Chunk<I> {
    fn clone(&self) -> Self {
        Self { entries: self.entries.clone(), from: self.from, left_out: self.left_out.clone() }
    }
}

impl<I> Chunk<I> {
    pub(super) fn new(entries: Vec<Entry<I>>) -> Self {
        Self { entries: Arc::new(entries), from: 0, left_out: Vec::new() }
    }

    pub(super) fn is_done(&self) -> bool {
        self.from == self.entries.len()
    }

    pub(super) fn advance_to(&mut self, position: usize) {
        self.from = position;
    }

    pub(super) fn leave_out(&mut self, position: usize) -> u64 {
        self.left_out.push(position);
        self.entries[position].index
    }

    fn rest(&self) -> impl Iterator<Item = (usize, &Entry<I>)> {
        let rest = self.entries.iter().enumerate().skip(self.from);
        rest.filter(|(position, _)| !self.left_out.contains(position))
    }
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
    pub(super) outcomes: Vec<(u64, Result<T, WriteError<E>>)>,
    /// The position in the chunk where the next batch begins.
    pub(super) end: usize,
    pub(super) run: Duration,
}

/// An entry because of which nothing of the batch is kept.
pub(super) struct Culprit<E> {
    pub(super) position: usize,
    pub(super) error: WriteError<E>,
}

/// Applies the next entries of a chunk, each isolated from the others.
pub(super) fn run<I, T, E>(
    tx: &mut WriteTransaction<'_>,
    chunk: &Chunk<I>,
    extent: Extent,
    apply: &impl Fn(&mut WriteTransaction<'_>, &I) -> Result<T, E>,
) -> Result<BatchDone<T, E>, Culprit<E>>
where
    E: std::error::Error + 'static,
{
    let started = Instant::now();
    let mut outcomes = Vec::new();
    let mut end = chunk.entries.len();
    for (position, entry) in chunk.rest() {
        if is_spent(extent, started.elapsed(), outcomes.len()) {
            end = position;
            break;
        }
        let outcome = match tx.run(Guard::Savepoint, |tx| apply(tx, &entry.item)) {
            Ok(value) => Ok(value),
            Err(Fault { error, loss })
                if loss.is_some() || is_environmental(&error) || matches!(extent, Extent::AllOrNothing) =>
            {
                return Err(Culprit { position, error });
            }
            Err(Fault { error, .. }) => Err(error),
        };
        outcomes.push((entry.index, outcome));
    }
    Ok(BatchDone { outcomes, end, run: started.elapsed() })
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

fn is_spent(extent: Extent, elapsed: Duration, done: usize) -> bool {
    match (extent, u32::try_from(done)) {
        (Extent::Budget(budget), Ok(done)) if done > 0 => elapsed + elapsed / done > budget,
        _ => false,
    }
}
