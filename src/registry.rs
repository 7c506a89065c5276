//! One service per file in this process, whatever path it is opened by. With the number of forks, the only
//! global state.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, LazyLock, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use file_id::FileId;

use crate::error::OpenErrorReason;
use crate::fork::Generation;
use crate::service::Service;
use crate::sidecar::Sidecar;
use crate::sync::{after, lock};

static REGISTRY: LazyLock<Mutex<Registry>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct Registry {
    slots: HashMap<FileId, Arc<Slot>>,
    /// The locks against other processes. They are kept here for forks, which must close what they inherit.
    sidecars: HashMap<FileId, Sidecar>,
}

/// The place of one file.
struct Slot {
    /// The process it belongs to. In a fork of that nobody gives it back, and its mutex may be held for ever by
    /// a thread that was not copied.
    generation: Generation,
    state: Mutex<SlotState>,
    changed: Condvar,
}

impl Slot {
    fn vacant() -> Self {
        Self { generation: Generation::current(), state: Mutex::default(), changed: Condvar::new() }
    }
}

#[derive(Default)]
enum SlotState {
    #[default]
    Vacant,
    /// Being opened, or open, or being closed: the service is there only while it is open.
    Taken(Weak<Service>),
}

/// What an open finds.
pub(crate) enum Found {
    /// The file is open in this process.
    Open(Arc<Service>),
    /// The file is not open; it is this caller's to open.
    Vacant(Claimed),
    /// The file was open in the process that this one is a fork of.
    OpenBeforeFork,
}

/// Finds the service of a file, or claims the file; waits for a service that is being opened or closed.
pub(crate) fn find(id: FileId, wait_max: Duration) -> Result<Found, OpenErrorReason> {
    across_fork::watch().map_err(OpenErrorReason::Io)?;
    let slot = lock(&REGISTRY).slots.entry(id).or_insert_with(|| Arc::new(Slot::vacant())).clone();
    if slot.generation.is_past() {
        return Ok(Found::OpenBeforeFork);
    }
    let limit = after(wait_max);
    let mut state = lock(&slot.state);
    loop {
        match &*state {
            SlotState::Vacant => {
                *state = SlotState::Taken(Weak::new());
                drop(state);
                return Ok(Found::Vacant(Claimed { id, slot }));
            }
            SlotState::Taken(service) => {
                if let Some(service) = service.upgrade().filter(|service| !service.is_closing()) {
                    return Ok(Found::Open(service));
                }
            }
        }
        let left = limit.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(OpenErrorReason::StillClosing);
        }
        state = slot.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// The place of a file, as long as this process has anything open of it; dropped, the file is free again.
pub(crate) struct Claimed {
    id: FileId,
    slot: Arc<Slot>,
}

impl Claimed {
    /// Keeps the lock against other processes until the file is free again.
    pub(crate) fn keep(&self, sidecar: Sidecar) {
        lock(&REGISTRY).sidecars.insert(self.id, sidecar);
    }

    /// A way to publish the service after the claim itself has moved to the writer thread.
    pub(crate) fn publisher(&self) -> Publisher {
        Publisher(self.slot.clone())
    }
}

/// See [`Claimed::publisher`].
pub(crate) struct Publisher(Arc<Slot>);

impl Publisher {
    /// Lets other opens of the file find the service.
    pub(crate) fn publish(self, service: &Arc<Service>) {
        self.0.set(SlotState::Taken(Arc::downgrade(service)));
    }
}

impl Slot {
    fn set(&self, state: SlotState) {
        *lock(&self.state) = state;
        self.changed.notify_all();
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        let mut registry = lock(&REGISTRY);
        // In this order: first another process may open the file, then another open in this one.
        if let Some(sidecar) = registry.sidecars.remove(&self.id) {
            sidecar.release();
        }
        self.slot.set(SlotState::Vacant);
        // The map and this claim: nobody else waits for the slot, and under the lock nobody can begin to.
        if Arc::strong_count(&self.slot) == 2 {
            registry.slots.remove(&self.id);
        }
    }
}

/// A fork happens while the registry is locked, so that its copy is whole; and it closes the lock files, so that
/// they are the parent's alone.
#[cfg(unix)]
mod across_fork {
    use std::cell::RefCell;
    use std::sync::MutexGuard;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::{REGISTRY, Registry};
    use crate::fork::Generation;
    use crate::sqlite_ffi;
    use crate::sync::lock;

    thread_local! {
        static HELD: RefCell<Option<MutexGuard<'static, Registry>>> = const { RefCell::new(None) };
    }

    /// Watches for forks from now on.
    pub(super) fn watch() -> std::io::Result<()> {
        // Not a `Once`: a fork while another thread is in it would wait for that thread for ever.
        static WATCHED: AtomicBool = AtomicBool::new(false);
        if WATCHED.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        sqlite_ffi::at_fork(prepare, parent, child).inspect_err(|_| WATCHED.store(false, Ordering::Relaxed))
    }

    extern "C" fn prepare() {
        let registry = lock(&REGISTRY);
        // A thread that is ending has no place left for the guard: it forks without.
        let _is_ending = HELD.try_with(|held| held.replace(Some(registry))).is_err();
    }

    extern "C" fn parent() {
        let _is_ending = HELD.try_with(|held| held.replace(None)).is_err();
    }

    extern "C" fn child() {
        Generation::begin_next();
        let _is_ending = HELD.try_with(|held| {
            if let Some(mut registry) = held.take() {
                registry.sidecars.clear();
            }
        });
    }
}

#[cfg(not(unix))]
mod across_fork {
    /// There are no forks here.
    pub(super) fn watch() -> std::io::Result<()> {
        Ok(())
    }
}
