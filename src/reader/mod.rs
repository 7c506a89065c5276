//! Reads: a bounded pool of read-only connections, each on a thread of tokio-rusqlite.

mod pool;

pub(crate) use pool::ReaderPool;
