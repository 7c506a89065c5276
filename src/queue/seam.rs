//! What the queue is built from. Unit tests put a controlled scheduler in its place (`tests.rs`).

#[cfg(not(test))]
mod real {
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize};
    pub(crate) use std::sync::{Mutex, MutexGuard};
    pub(crate) use std::thread::yield_now;

    pub(crate) use flume::{Receiver, Sender, unbounded};
    pub(crate) use tokio::sync::{Semaphore, TryAcquireError};

    pub(crate) use crate::sync::lock;
}

#[cfg(not(test))]
pub(crate) use real::*;

#[cfg(test)]
pub(crate) use super::tests::scheduled::*;
