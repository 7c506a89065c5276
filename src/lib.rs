//! solewriter: the sole writer of a SQLite database.

mod label;
mod lane;

mod blocking;
mod command;
mod database;
mod import;
mod read;
mod write;

mod config;
mod error;
mod token;
mod transaction;

mod open;
mod registry;
mod service;
mod sidecar;

mod board;
mod housekeeper;
mod inbox;
mod message;
mod reader;
mod stats;
mod writer;

mod connection;
mod sqlite_ffi;
mod sync;

pub use blocking::BlockingDatabase;
pub use board::{Holder, Phase};
pub use command::{Command, Execute, ExecuteReturning, Once, Parameters, Rerunnable, Typed, Work};
pub use config::{Config, ConfigError, Durability};
pub use database::{Builder, Database};
pub use error::{
    Cause, NotStarted, OpenError, OpenErrorReason, Outcome, ReadError, Retry, RolledBack, ShutdownError,
    Unknown, WriteError,
};
pub use import::{
    ALL_OR_NOTHING_ENTRIES_MAX, Batch, Entries, EntryError, FailedEntry, Import, ImportError, ImportFailure,
    ImportReport, ImportRun, LostBatch, OnError, Prepared, Progress,
};
pub use label::Label;
pub use lane::{Lane, PerLane};
pub use message::{Committed, Timing};
pub use read::Read;
pub use rusqlite;
pub use service::{Drain, ShutdownReport};
pub use stats::{CommandCounts, Counts, Durations, Stats};
pub use token::CommitToken;
pub use transaction::{ReadTransaction, WriteTransaction};
pub use write::{Async, Blocking, OnDrop, Receipt, Write, WriteFuture};
