//! Who holds the writer.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::label::Label;
use crate::lane::Lane;
use crate::units::millis;

/// Who holds the writer now, and since when.
///
/// Durations serialise as milliseconds under the name of the field plus `_ms`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Holder {
    /// What the writer is doing.
    pub phase: Phase,
    /// How long the write lock has been held, or waited for.
    #[serde(rename = "held_ms", serialize_with = "millis")]
    pub held: Duration,
    /// How long the writer has been in this phase.
    #[serde(rename = "in_phase_ms", serialize_with = "millis")]
    pub in_phase: Duration,
}

/// What the writer does while it holds, or waits for, the write lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Phase {
    /// It waits for another process to release the lock.
    Begin,
    /// It runs a command.
    Command {
        /// The label of the command.
        label: Label,
        /// The lane it came from.
        lane: Lane,
    },
    /// It commits.
    Commit,
    /// It begins the WAL anew.
    Checkpoint,
    /// It finds out, after a failure, whether it can write.
    Recover,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Begin => f.write_str("waiting for another process"),
            Self::Command { label, lane } => write!(f, "{label} ({lane})"),
            Self::Commit => f.write_str("commit"),
            Self::Recover => f.write_str("recovery after a failure"),
            Self::Checkpoint => f.write_str("checkpoint"),
        }
    }
}
