//! Notices that this process is a fork of the one that opened a database.
//!
//! A fork has a copy of every handle and none of the threads behind it, and SQLite's connections must not be
//! used in it (<https://www.sqlite.org/howtocorrupt.html#_carrying_an_open_database_connection_across_a_fork_>).

use std::sync::atomic::{AtomicU64, Ordering};

/// How many forks lie between this process and the first of its line that opened a database.
static FORKS: AtomicU64 = AtomicU64::new(0);

/// One process of a line of forks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Generation(u64);

impl Generation {
    /// This process. One load: cheap enough for every command and every read.
    pub(crate) fn current() -> Self {
        Self(FORKS.load(Ordering::Relaxed))
    }

    /// Whether this is another process by now, a fork.
    pub(crate) fn is_past(self) -> bool {
        self != Self::current()
    }

    /// For the child of a fork to call, before anything else of this crate runs in it.
    #[cfg(unix)]
    pub(crate) fn begin_next() {
        FORKS.fetch_add(1, Ordering::Relaxed);
    }
}
