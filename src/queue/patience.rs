//! How the writer waits for the next command: awake for a moment, since to wake a thread takes longer than to run most
//! commands, then asleep.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{available_parallelism, yield_now};
use std::time::{Duration, Instant};

/// How long the writer stays awake: about as long as a caller that it has just answered needs to send the next command.
const AWAKE_MAX: Duration = Duration::from_micros(60);

/// After so many moments awake for nothing the writer falls asleep at once.
const VAIN_MAX: u32 = 4;

/// Now and then it tries all the same: once in so many waits.
const RETRY: u32 = 64;

/// Whether it has been worth while to stay awake.
pub(super) struct Patience {
    /// Waits in a row, up to now, in which nothing came while the writer was awake.
    in_vain: AtomicU32,
    /// With one core whoever stays awake keeps the others from sending.
    has_cores: bool,
}

impl Patience {
    pub(super) fn new() -> Self {
        let has_cores = available_parallelism().is_ok_and(|cores| cores.get() > 1);
        Self { in_vain: AtomicU32::new(0), has_cores }
    }

    /// Stays awake for a moment, if that is likely to be worth while, until `has_come`.
    pub(super) fn look_for(&self, has_come: impl Fn() -> bool) {
        // Only the writer waits.
        let in_vain = self.in_vain.load(Ordering::Relaxed);
        if !self.has_cores || (in_vain >= VAIN_MAX && !in_vain.is_multiple_of(RETRY)) {
            self.in_vain.store(in_vain.wrapping_add(1), Ordering::Relaxed);
            return;
        }
        let since = Instant::now();
        while since.elapsed() < AWAKE_MAX {
            if has_come() {
                return self.in_vain.store(0, Ordering::Relaxed);
            }
            // Whoever has something to do on this core goes first.
            yield_now();
        }
        self.in_vain.store(in_vain.wrapping_add(1), Ordering::Relaxed);
    }
}
