//! Waiting and locking without a runtime.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// Locks, also after a panic elsewhere: what our mutexes hold is valid after every single step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The moment this far from now. What is too far for the clock is as good as never.
pub(crate) fn after(time: Duration) -> Instant {
    const NEVER: Duration = Duration::from_secs(30 * 365 * 86_400);
    Instant::now() + time.min(NEVER)
}

/// Does what drops values of the user's types: their destructors may panic, which must not end the thread.
pub(crate) fn quietly(drops: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(drops)).is_err() {
        tracing::error!("dropping a value of a command panicked");
    }
}

/// See [`quietly`].
pub(crate) fn drop_quietly<T>(value: T) {
    quietly(|| drop(value));
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread until it is ready or the time is up; `None` means the time is up.
pub(crate) fn block_on_until<F: Future>(future: F, limit: Instant) -> Option<F::Output> {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        match limit.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => thread::park_timeout(left),
            _ => return None,
        }
    }
}

/// Runs a future on this thread until it is ready.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    loop {
        // Nothing depends on the length of one round.
        let round = Instant::now() + Duration::from_secs(3600);
        if let Some(output) = block_on_until(future.as_mut(), round) {
            return output;
        }
    }
}

/// Whether there is a timer here, as in every Tokio runtime.
pub(crate) fn has_timer() -> bool {
    tokio::runtime::Handle::try_current().is_ok()
}

/// Waits for a future until `limit`; `None` means the time is up. Without a timer there is no limit.
pub(crate) async fn until<F: Future>(limit: Instant, future: F) -> Option<F::Output> {
    if has_timer() { tokio::time::timeout_at(limit.into(), future).await.ok() } else { Some(future.await) }
}

/// Pauses; outside of a Tokio runtime this blocks the thread.
pub(crate) async fn sleep(pause: Duration) {
    if has_timer() {
        tokio::time::sleep(pause).await;
    } else {
        thread::sleep(pause);
    }
}
