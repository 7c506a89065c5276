//! Wakes those who wait for an answer.
//!
//! To wake a task from another thread takes the writer as long as to run its command: it goes through a queue that all
//! threads of the runtime share. So the runtime itself wakes its tasks, of which it is told for many at once.

use std::sync::OnceLock;
use std::task::Waker;

use tokio::runtime::{Handle, Id};

use crate::sync::quietly;

/// Fewer are woken at once: a task more would only come in between.
const FEW: usize = 16;

/// As many are woken by one task, so that the threads of a runtime share the work.
const CHUNK: usize = 128;

/// The runtime that wakes its own tasks: the first in which a task has sent a command.
#[derive(Default)]
pub(crate) struct Herald {
    runtime: OnceLock<Handle>,
}

impl Herald {
    /// The runtime, which is the one at hand if there is none yet.
    pub(crate) fn runtime(&self) -> Option<Id> {
        if let Some(runtime) = self.runtime.get() {
            return Some(runtime.id());
        }
        // Only the tasks of a runtime need its threads: one that is blocked on a future goes on without.
        tokio::task::try_id()?;
        let here = Handle::try_current().ok()?;
        Some(self.runtime.get_or_init(|| here).id())
    }

    pub(crate) fn wake(&self, mut callers: Callers) {
        if let Some(runtime) = self.runtime.get()
            && callers.0.len() > FEW
        {
            while callers.0.len() > CHUNK {
                let some = Callers(callers.0.split_off(callers.0.len() - CHUNK));
                runtime.spawn(async move { drop(some) });
            }
            runtime.spawn(async move { drop(callers) });
        }
    }
}

/// Whether a task of this runtime is at work here.
pub(crate) fn is_in_task_of(runtime: Option<Id>) -> bool {
    runtime.is_some_and(|runtime| {
        tokio::task::try_id().is_some() && Handle::try_current().is_ok_and(|here| here.id() == runtime)
    })
}

/// Those to be woken. Dropping them does it, so that a runtime that ends before it gets to it forgets nobody.
#[derive(Default)]
pub(crate) struct Callers(Vec<Waker>);

impl Callers {
    pub(crate) fn add(&mut self, caller: Waker) {
        self.0.push(caller);
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        for caller in self.0.drain(..) {
            quietly(|| caller.wake());
        }
    }
}
