//! How a shutdown is asked for, and how it went.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::holder::Phase;

/// How long a shutdown may take.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    pub(crate) limit: Duration,
}

impl Drain {
    /// Finishes what was accepted, for at most this long; what has not started by then never runs.
    #[must_use]
    pub fn within(limit: Duration) -> Self {
        Self { limit }
    }
}

/// How a shutdown went. Every accepted command has been answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Accepted commands that were not reached within the limit and never ran.
    pub not_started: u64,
    /// Pages left in the WAL, zero unless a reader or another process kept it; the next open recovers them.
    pub wal_pages_left: u64,
    /// Whether writing had stopped before, because of a failure.
    pub stopped: bool,
}

/// The service could not be closed within the limit: the writer is still at work, in user code most likely.
///
/// Whether that command is committed is not known. The file stays locked until it returns; then the shutdown
/// goes on in the background.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ShutdownError {
    /// What the writer is doing.
    pub still_running: Option<Phase>,
}

impl fmt::Display for ShutdownError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.still_running {
            Some(phase) => write!(f, "the service could not be closed in time; the writer is at: {phase}"),
            None => f.write_str("the service could not be closed in time"),
        }
    }
}

impl std::error::Error for ShutdownError {}
