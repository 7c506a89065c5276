//! Who reads now, and so keeps the WAL from being begun anew; and the ways to end them.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::error::ReadEnd;
use crate::label::Label;
use crate::reading::Reading;
use crate::sync::lock;
use crate::watchdog::Watchdog;

/// Every read in progress and every snapshot that is held, the oldest first.
///
/// Its lock is taken once when a read gets its connection and once when it ends. While it is held, whoever is
/// in the registry has not ended, so to end it can't meet the next read on its connection. What is logged is
/// logged afterwards: who listens to that may ask who reads.
#[derive(Default)]
pub(crate) struct Pins(Mutex<Vec<Arc<Pinned>>>);

/// A read or a snapshot with its connection.
pub(crate) struct Pinned {
    label: Label,
    since: Instant,
    watchdog: Watchdog,
    /// Why the service ended it, and how old it was then; the first word counts.
    ended: OnceLock<(ReadEnd, Duration)>,
    /// Tells a snapshot's thread, which may be waiting for the next read; a single read has none.
    wake: Option<Wake>,
}

/// Called under the lock of the registry: it may only send.
pub(super) type Wake = Box<dyn Fn() + Send + Sync>;

impl Pins {
    /// Registers a read or a snapshot that gets its connection now.
    pub(super) fn add(self: &Arc<Self>, label: Label, watchdog: &Watchdog, wake: Option<Wake>) -> Pin {
        let mut pins = lock(&self.0);
        // Under the lock, so that the order is that of age.
        let since = Instant::now();
        let (watchdog, ended) = (watchdog.clone(), OnceLock::new());
        let pinned = Arc::new(Pinned { label, since, watchdog, ended, wake });
        pins.push(pinned.clone());
        Pin { pins: self.clone(), pinned }
    }

    /// The read or snapshot that is the oldest.
    pub(crate) fn oldest(&self) -> Option<Reading> {
        lock(&self.0).first().map(|pin| Reading { label: pin.label.clone(), age: pin.age() })
    }

    /// Ends the reads and snapshots older than this, since the WAL has reached its limit. Returns how many
    /// were told; each is gone a moment later, unless Rust code of its own holds it up.
    pub(crate) fn end_older_than(&self, age: Duration) -> usize {
        self.tell(|pin| pin.age() > age, |pin| pin.end(ReadEnd::WalLimit))
    }

    /// Ends every read and every snapshot.
    pub(super) fn end_all(&self, why: ReadEnd) {
        self.tell(|_| true, |pin| pin.end(why));
    }

    /// Ends every snapshot; a read that runs in one is finished before.
    pub(super) fn end_snapshots(&self, why: ReadEnd) {
        self.tell(|pin| pin.wake.is_some(), |pin| pin.retire(why));
    }

    /// Tells those that are meant; `what` returns whether this was the first word. Returns how many were told.
    fn tell(&self, whom: impl Fn(&Pinned) -> bool, what: impl Fn(&Pinned) -> bool) -> usize {
        let told: Vec<_> = {
            let pins = lock(&self.0);
            pins.iter().filter(|pin| whom(pin)).map(|pin| (pin.clone(), what(pin))).collect()
        };
        told.iter().filter(|(_, first)| *first).for_each(|(pin, _)| pin.report());
        told.len()
    }
}

impl Pinned {
    pub(super) fn label(&self) -> &Label {
        &self.label
    }

    pub(super) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Why the service ended it and how old it was then, if it did.
    pub(super) fn ended(&self) -> Option<(ReadEnd, Duration)> {
        self.ended.get().copied()
    }

    /// Notes that it has ended for this reason, unless there is one already.
    pub(super) fn note_end(&self, why: ReadEnd) {
        if self.set_end(why) {
            self.report();
        }
    }

    /// Whether this is the first reason.
    fn set_end(&self, why: ReadEnd) -> bool {
        self.ended.set((why, self.age())).is_ok()
    }

    fn report(&self) {
        if let Some((why, age)) = self.ended()
            && why != ReadEnd::Closed
        {
            let label = &*self.label;
            tracing::warn!(label, age_ms = age.as_millis(), %why, "a read or a snapshot was ended");
        }
    }

    /// Ends the statement that runs and every later one.
    fn end(&self, why: ReadEnd) -> bool {
        // First the reason: the thread looks for it once a statement was interrupted.
        let first = self.set_end(why);
        self.watchdog.end();
        self.wake();
        first
    }

    /// Ends a snapshot before its next read.
    fn retire(&self, why: ReadEnd) -> bool {
        let first = self.set_end(why);
        self.wake();
        first
    }

    fn wake(&self) {
        if let Some(wake) = &self.wake {
            wake();
        }
    }
}

/// The place of a read or a snapshot in the registry, which it leaves when this is dropped.
pub(super) struct Pin {
    pins: Arc<Pins>,
    pinned: Arc<Pinned>,
}

impl Pin {
    pub(super) fn pinned(&self) -> &Arc<Pinned> {
        &self.pinned
    }

    pub(super) fn is_snapshot(&self) -> bool {
        self.pinned.wake.is_some()
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        lock(&self.pins.0).retain(|pin| !Arc::ptr_eq(pin, &self.pinned));
        // Nobody can end it any more, and the next read on this connection is not meant.
        self.pinned.watchdog.resume();
    }
}
