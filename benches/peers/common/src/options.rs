//! What is measured, as a command line says it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};

/// One measurement of one system.
#[derive(Clone, Debug, Parser)]
pub struct Options {
    /// Which system.
    #[arg(long)]
    pub system: String,
    /// Which load.
    #[arg(long)]
    pub workload: Workload,
    /// How many tasks wait for their answers at the same time.
    #[arg(long, default_value_t = 1)]
    pub clients: usize,
    /// When a write is acknowledged.
    #[arg(long)]
    pub durability: Durability,
    /// How long the load lasts; an import ends with its last row.
    #[arg(long, default_value_t = 1.0)]
    pub seconds: f64,
    /// How many rows an import has.
    #[arg(long, default_value_t = 1_000_000)]
    pub rows: i64,
    /// Where the database is made, in a folder of its own that is removed afterwards.
    #[arg(long)]
    pub directory: PathBuf,
}

impl Options {
    /// How long the load lasts.
    #[must_use]
    pub fn length(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

/// What `PRAGMA synchronous` is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Acknowledged writes survive power loss.
    Full,
    /// Acknowledged writes survive a crash of the process.
    Normal,
}

impl Durability {
    /// As SQLite spells it.
    #[must_use]
    pub fn pragma(self) -> &'static str {
        match self {
            Self::Full => "FULL",
            Self::Normal => "NORMAL",
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.pragma())
    }
}

/// A kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Each client inserts one row after the other.
    Insert,
    /// The same through the closure of a system that has another way for single statements.
    Closure,
    /// Each client reads a balance, writes it and inserts a row, all in one transaction.
    ReadModifyWrite,
    /// Each client reads nine rows by their key, then inserts one.
    Mixed,
    /// Each client reads rows by their key, while 200 inserts a second arrive.
    Reads,
    /// One import, from the first row to the closed database.
    Import,
    /// One import, while 200 inserts a second arrive; the latency is theirs.
    ImportBeside,
    /// Each client imports marketplace entries, while 20 renames a second arrive; the latency is theirs.
    Marketplace,
    /// Inserts arrive at half of the rate that a closed loop has reached before.
    OpenLoop,
}

impl Workload {
    /// How many connections the readers have together; the same for every system that has readers of its own.
    #[must_use]
    pub fn readers(self) -> usize {
        match self {
            Self::Mixed | Self::Reads => 8,
            _ => 0,
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Insert => "insert",
            Self::Closure => "closure",
            Self::ReadModifyWrite => "read-modify-write",
            Self::Mixed => "mixed",
            Self::Reads => "reads",
            Self::Import => "import",
            Self::ImportBeside => "import-beside",
            Self::Marketplace => "marketplace",
            Self::OpenLoop => "open-loop",
        })
    }
}
