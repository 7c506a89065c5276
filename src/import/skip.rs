//! Leaves out what earlier runs of an import have settled, before any work is spent on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::stream::{Stream, StreamExt};
use tokio::task::yield_now;

/// How many entries at the start of a stream are left out: set once the record has been read, which is after the
/// stream was put together and before it is polled.
#[derive(Clone, Debug, Default)]
#[doc(hidden)]
pub struct Skip(Arc<AtomicU64>);

/// After so many entries that were left out others get their turn.
const YIELD_EVERY: u64 = 1_024;

impl Skip {
    pub(super) fn set(&self, entries: u64) {
        self.0.store(entries, Ordering::Release);
    }

    /// How many are still to be left out.
    pub(super) fn left(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    pub(super) fn apply<S: Stream>(self, items: S) -> impl Stream<Item = S::Item> {
        items.skip_while(move |_| {
            let left = self.left();
            self.set(left.saturating_sub(1));
            async move {
                if left % YIELD_EVERY == 1 {
                    yield_now().await;
                }
                left > 0
            }
        })
    }
}
