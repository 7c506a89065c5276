//! Waiting for a reader, and for how long.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::pool::ReaderPool;
use crate::sync::{after, block_on, block_on_until, has_timer, until};

/// So long a read counts on the readers at work; then it gets another one, as far as there may be more.
const PATIENCE: Duration = Duration::from_millis(2);

/// Work in the queue of the pool, which it leaves when this is dropped.
pub(crate) struct Waiting {
    pool: Arc<ReaderPool>,
    number: u64,
}

impl Waiting {
    pub(super) fn new(pool: Arc<ReaderPool>, number: u64) -> Self {
        Self { pool, number }
    }

    /// Counts on the readers at work no longer.
    pub(super) fn hurry(&self) {
        self.pool.hurry(self.number);
    }

    /// Leaves the queue; false if the work has left it before, for a reader.
    fn leave(&self) -> bool {
        self.pool.withdraw(self.number)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Work that was submitted, by its answer.
pub(crate) struct Submitted<A> {
    pub(super) answer: A,
    pub(super) waiting: Option<Waiting>,
}

impl<A: Future + Unpin> Submitted<A> {
    /// Waits for the answer; `None` if the work had not begun by `limit`, and then it never does.
    ///
    /// Outside of a Tokio runtime there is no timer, and so no limit.
    ///
    /// Cancel safety: dropped while it waits for a reader, the work never begins.
    pub(crate) async fn answered(self, limit: Instant) -> Option<A::Output> {
        let Self { mut answer, waiting } = self;
        if let Some(waiting) = waiting {
            if has_timer()
                && let Some(output) = until(after(PATIENCE).min(limit), &mut answer).await
            {
                return Some(output);
            }
            waiting.hurry();
            if let Some(output) = until(limit, &mut answer).await {
                return Some(output);
            }
            if waiting.leave() {
                return None;
            }
        }
        Some(answer.await)
    }

    /// As [`answered`](Self::answered), blocking.
    pub(crate) fn wait(self, limit: Instant) -> Option<A::Output> {
        let Self { mut answer, waiting } = self;
        if let Some(waiting) = waiting {
            if let Some(output) = block_on_until(&mut answer, after(PATIENCE).min(limit)) {
                return Some(output);
            }
            waiting.hurry();
            if let Some(output) = block_on_until(&mut answer, limit) {
                return Some(output);
            }
            if waiting.leave() {
                return None;
            }
        }
        Some(block_on(answer))
    }
}
