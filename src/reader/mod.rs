//! Reads: a bounded pool of read-only connections, each on a thread of tokio-rusqlite.

mod pins;
mod pool;

pub(crate) use pins::Pins;
pub(crate) use pool::ReaderPool;
