//! Reads: a bounded pool of read-only connections, each on a thread of tokio-rusqlite.

mod pins;
mod pool;
mod running;
mod snapshot;
mod thread;
mod waiting;

// For the writer: it names who pins the WAL, and closes every reader while it opens the database anew.
pub(crate) use pins::Pins;
pub(crate) use pool::ReaderPool;
pub(crate) use running::Request;
pub(crate) use snapshot::HeldSnapshot;
