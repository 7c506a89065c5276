//! What every system of the comparison shares: rows, SQL, load and measuring, without any SQLite of its own.
//!
//! `system` is what a system has to be able to do, `command` what clients send to it, `rows` and `marketplace` what is
//! written, `load` how clients and arrivals send, `workload` which loads there are, `measure` one measurement in its
//! order, `measuring` what the process and the WAL tell meanwhile, `ledger` what was acknowledged.
mod command;
mod figures;
mod ledger;
mod load;
pub mod marketplace;
mod measure;
mod measuring;
mod options;
mod recorder;
pub mod rows;
mod statement;
mod system;
mod workload;

pub use command::scattered;
pub use figures::Figures;
pub use ledger::{Ledger, Verdict};
pub use measure::measure;
pub use measuring::{Measuring, Outcome};
pub use options::{Durability, Options, Workload};
pub use recorder::Latencies;
pub use statement::{Statement, Value};
pub use system::{IMPORT_BATCH, Setup, System};
pub use workload::INSERTS_BESIDE_PER_S;

/// Any error; a measurement counts them, and nobody tells one from another.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
