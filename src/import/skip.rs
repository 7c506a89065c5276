//! Leaves out what earlier runs of an import have settled, before any work is spent on it.

use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::stream::{Stream, StreamExt};

/// How many entries at the start of a stream are left out: set once the record has been read, which is after the
/// stream was put together and before it is polled.
#[derive(Clone, Debug, Default)]
#[doc(hidden)]
pub struct Skip(Arc<AtomicU64>);

impl Skip {
    pub(super) fn set(&self, entries: u64) {
        self.0.store(entries, Ordering::Release);
    }

    pub(super) fn apply<S: Stream>(self, items: S) -> impl Stream<Item = S::Item> {
        items.skip_while(move |_| self.is_next_left_out())
    }

    fn is_next_left_out(&self) -> Ready<bool> {
        let left = self.0.load(Ordering::Acquire);
        self.0.store(left.saturating_sub(1), Ordering::Release);
        ready(left > 0)
    }
}
