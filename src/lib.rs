//! The sole writer of a SQLite database: group commit, isolated commands, fair lanes, honest errors.
//!
//! A [`Database`] is a handle that is cheap to clone. Behind it, one thread owns the only write connection of
//! the file and commits together what waits together; a bounded pool of read-only connections serves reads.
//!
//! - [`Database::write`] runs a closure as one transaction, [`Database::execute`] one statement,
//!   [`Database::send`] a typed [`Command`]. Each is a [`Write`]: set a lane, a deadline or a durability on it,
//!   then await it, or [`submit`](Write::submit) it and await the [`Receipt`] later.
//! - [`Database::read`] runs a closure on one unchanging state of the database, and [`Database::snapshot`] keeps
//!   that state for several reads.
//! - [`Database::maintain`] does what SQLite does outside of transactions only: VACUUM, PRAGMA, ATTACH.
//! - [`Database::import`] streams entries through the bulk lane in batches bounded by time.
//! - [`WriteError`] tells by its variant whether the command ran and whether it is committed.
//! - [`Database::stats`], [`Database::holder`] and [`Database::oldest_read`] tell what goes on.
//! - [`Database::blocking`] is the same surface for threads.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("app.db");
//! use solewriter::{Database, Drain, Lane};
//! use std::time::Duration;
//!
//! let db = Database::open(path).await?;
//! db.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)", ()).await?;
//! let done = db
//!     .write("notes.add", |tx| tx.execute("INSERT INTO notes (text) VALUES (?1)", ["first"]))
//!     .lane(Lane::Interactive)
//!     .deadline(Duration::from_secs(2))
//!     .committed()
//!     .await?;
//! let count: i64 = db
//!     .read_after(done.token, "notes.count", |tx| tx.query_row("SELECT count(*) FROM notes", (), |row| row.get(0)))
//!     .await?;
//! assert_eq!(count, 1);
//! db.shutdown(Drain::within(Duration::from_secs(5))).await?;
//! # Ok(()) }
//! ```
//!
//! The [`guide`] holds the guarantees, what happens in each kind of failure, the architecture and the decisions.

mod label;
mod lane;

mod blocking;
mod command;
mod database;
mod import;
mod maintenance;
mod read;
mod snapshot;
mod write;

mod config;
mod error;
mod herald;
mod holder;
mod reading;
mod shutdown;
mod token;
mod transaction;
mod user_code;

mod fork;
mod on_connect;
mod open;
mod registry;
mod service;
mod sidecar;

mod board;
mod failed;
mod health;
mod housekeeper;
mod meter;

#[cfg(feature = "metrics")]
pub mod metrics;

#[cfg(feature = "http")]
pub mod http;

mod message;
mod queue;
mod reader;
mod stats;
mod writer;

mod connection;
mod failure;
mod file_system;
mod identity;
mod rules;
#[cfg(feature = "sabotage")]
mod sabotage;
mod sqlite_ffi;
mod statements;
mod sync;
mod units;
mod watchdog;
mod write_back;

/// The frame of the reliability tests, for those that need what is inside.
#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test")]
#[path = "../tests/common/proof.rs"]
mod proof;

/// The documents of the repository's `docs` folder.
#[cfg(any(doc, doctest))]
pub mod guide {
    #[doc = include_str!("../docs/guarantees.md")]
    pub mod guarantees {}
    #[doc = include_str!("../docs/architecture.md")]
    pub mod architecture {}
    #[doc = include_str!("../docs/reliability.md")]
    pub mod reliability {}
    #[doc = include_str!("../docs/operations.md")]
    pub mod operations {}
    #[doc = include_str!("../docs/dashboard.md")]
    pub mod dashboard {}
    #[doc = include_str!("../docs/decisions.md")]
    pub mod decisions {}
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

pub use blocking::BlockingDatabase;
pub use command::{Command, Execute, ExecuteReturning, Once, Outside, Parameters, Rerunnable, Typed, Work};
pub use config::{Checkpoints, Config, ConfigError, Durability, HealthLimits};
pub use database::{Builder, Database};
pub use error::{
    Cause, MaintenanceError, NotStarted, OpenError, OpenErrorReason, Outcome, ReadEnd, ReadError, Retry,
    RolledBack, Unknown, WriteError,
};
pub use failed::FailedCommand;
pub use health::{BreakerState, Health, HealthReason, HealthState, Trouble, Waiter};
pub use holder::{Holder, Phase};
pub use import::{
    ALL_OR_NOTHING_ENTRIES_MAX, Batch, Entries, EntryError, FailedEntry, Import, ImportControl, ImportError,
    ImportFailure, ImportFigures, ImportId, ImportRecord, ImportReport, ImportRun, ImportState, ImportStatus,
    LostBatch, OnError, Prepared, Progress, RecordedFailure,
};
pub use label::Label;
pub use lane::{Lane, PerLane};
pub use maintenance::{Maintain, Maintenance};
pub use message::{Committed, Timing};
pub use on_connect::ConnectionRole;
pub use read::Read;
pub use reading::Reading;
pub use rusqlite;
#[cfg(feature = "sabotage")]
#[doc(hidden)]
pub use sabotage::Sabotage;
pub use shutdown::{Drain, ShutdownError, ShutdownReport};
pub use snapshot::{OpenSnapshot, Snapshot};
pub use stats::{CommandCounts, Counts, Durations, EntryCounts, Stats};
pub use token::CommitToken;
pub use transaction::{ReadTransaction, WriteTransaction};
pub use write::{Async, Blocking, OnDrop, Receipt, Write, WriteFuture};
