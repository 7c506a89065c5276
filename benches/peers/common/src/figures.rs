//! What a measurement tells.

use serde::{Deserialize, Serialize};

use crate::options::{Durability, Workload};

/// One measurement, and in the output of the comparison what several of them come to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figures {
    pub workload: Workload,
    pub system: String,
    pub clients: usize,
    pub durability: Durability,
    /// What was acknowledged, a second; entries in the marketplace, rows in an import.
    pub ops_per_s: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
    /// Commands that were answered with an error, and rows that are there without an acknowledgement.
    pub errors: u64,
    /// Acknowledged, but absent.
    pub lost: u64,
    /// CPU time of the process, by everything that was acknowledged; making the load is in it.
    pub cpu_us_per_command: f64,
    pub peak_rss_bytes: u64,
    pub wal_max_bytes: u64,
}
