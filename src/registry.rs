//! One service per file in this process, whatever path it is opened by. The only global state.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, LazyLock, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use file_id::FileId;

use crate::error::OpenErrorReason;
use crate::service::Service;
use crate::sync::{after, lock};

static REGISTRY: LazyLock<Mutex<HashMap<FileId, Arc<Slot>>>> = LazyLock::new(Mutex::default);

/// The place of one file.
#[derive(Default)]
struct Slot {
    state: Mutex<SlotState>,
    changed: Condvar,
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
}

/// Finds the service of a file, or claims the file; waits for a service that is being opened or closed.
pub(crate) fn find(id: FileId, wait_max: Duration) -> Result<Found, OpenErrorReason> {
    let slot = lock(&REGISTRY).entry(id).or_default().clone();
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
        self.slot.set(SlotState::Vacant);
        // The map and this claim: nobody else waits for the slot, and under the lock nobody can begin to.
        if Arc::strong_count(&self.slot) == 2 {
            registry.remove(&self.id);
        }
    }
}
