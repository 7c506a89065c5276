//! What the figures are held against, as ratios within one run where it can be.

use std::fmt;

use peers_common::Durability::{Full, Normal};
use peers_common::{Figures, Workload};

use crate::summary::{Place, Results};

pub(crate) struct Goal {
    pub(crate) name: &'static str,
    pub(crate) wanted: Wanted,
    /// `×` is a ratio.
    pub(crate) unit: &'static str,
    /// `None` if this run has not measured it.
    pub(crate) measure: fn(&Results) -> Option<f64>,
}

#[derive(Clone, Copy)]
pub(crate) enum Wanted {
    AtLeast(f64),
    AtMost(f64),
}

impl Wanted {
    pub(crate) fn is_met_by(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, "≥ {least}"),
            Self::AtMost(most) => write!(f, "≤ {most}"),
        }
    }
}

pub(crate) const GOALS: [Goal; 19] = [
    Goal {
        name: "single rows, FULL, 64 clients: throughput against the best peer",
        wanted: Wanted::AtLeast(28.0),
        unit: "×",
        measure: |results| against_peers(results, (Workload::Insert, 64, Full)),
    },
    Goal {
        name: "single rows, FULL, 512 clients: throughput against the best peer",
        wanted: Wanted::AtLeast(80.0),
        unit: "×",
        measure: |results| against_peers(results, (Workload::Insert, 512, Full)),
    },
    Goal {
        name: "single rows, NORMAL, 512 clients: throughput against the best peer",
        wanted: Wanted::AtLeast(11.0),
        unit: "×",
        measure: |results| against_peers(results, (Workload::Insert, 512, Normal)),
    },
    Goal {
        name: "single rows, NORMAL, 512 clients: throughput against raw transactions of 512",
        wanted: Wanted::AtLeast(0.85),
        unit: "×",
        measure: |results| against_limit(results, (Workload::Insert, 512, Normal)),
    },
    Goal {
        name: "one client, FULL: p50 against the best peer",
        wanted: Wanted::AtMost(1.0),
        unit: "×",
        measure: |results| latency_against_peers(results, (Workload::Insert, 1, Full), |f| f.p50_us),
    },
    Goal {
        name: "one client, NORMAL: p50 against the best peer",
        wanted: Wanted::AtMost(0.9),
        unit: "×",
        measure: |results| latency_against_peers(results, (Workload::Insert, 1, Normal), |f| f.p50_us),
    },
    Goal {
        name: "4,096 clients, FULL: throughput against its own peak",
        wanted: Wanted::AtLeast(0.85),
        unit: "×",
        measure: |results| against_own_peak(results, (Workload::Insert, 4096, Full)),
    },
    Goal {
        name: "4,096 clients, NORMAL: throughput against its own peak",
        wanted: Wanted::AtLeast(0.85),
        unit: "×",
        measure: |results| against_own_peak(results, (Workload::Insert, 4096, Normal)),
    },
    Goal {
        name: "closures, NORMAL, 512 clients: throughput against raw transactions of 512",
        wanted: Wanted::AtLeast(0.6),
        unit: "×",
        measure: |results| against_limit(results, (Workload::Closure, 512, Normal)),
    },
    Goal {
        name: "closures of 3 statements, FULL, 64 clients: throughput against the best peer",
        wanted: Wanted::AtLeast(20.0),
        unit: "×",
        measure: |results| against_peers(results, (Workload::ReadModifyWrite, 64, Full)),
    },
    Goal {
        name: "reads while writing, FULL, 8 tasks: throughput against the best peer",
        wanted: Wanted::AtLeast(1.0),
        unit: "×",
        measure: |results| against_peers(results, (Workload::Reads, 8, Full)),
    },
    Goal {
        name: "reads while writing, FULL, 8 tasks: p99 against the best peer",
        wanted: Wanted::AtMost(0.9),
        unit: "×",
        measure: |results| latency_against_peers(results, (Workload::Reads, 8, Full), |f| f.p99_us),
    },
    Goal {
        name: "import, FULL: throughput against one raw transaction, with the last checkpoint of both",
        wanted: Wanted::AtLeast(0.8),
        unit: "×",
        measure: |results| against_limit(results, (Workload::Import, 1, Full)),
    },
    Goal {
        name: "import, FULL: p99 of interactive inserts meanwhile, 200 a second",
        wanted: Wanted::AtMost(30.0),
        unit: "ms",
        measure: |results| Some(results.ours((Workload::ImportBeside, 1, Full))?.p99_us / 1000.0),
    },
    Goal {
        name: "single rows, FULL, 512 clients: p99 / p50",
        wanted: Wanted::AtMost(3.0),
        unit: "×",
        measure: |results| spread(results, (Workload::Insert, 512, Full)),
    },
    Goal {
        name: "single rows, NORMAL, 512 clients: p99 / p50",
        wanted: Wanted::AtMost(3.0),
        unit: "×",
        measure: |results| spread(results, (Workload::Insert, 512, Normal)),
    },
    Goal {
        name: "single rows, FULL, 512 clients: p99.9",
        wanted: Wanted::AtMost(15.0),
        unit: "ms",
        measure: |results| Some(results.ours((Workload::Insert, 512, Full))?.p999_us / 1000.0),
    },
    Goal {
        name: "single rows, NORMAL, 512 clients: p99.9",
        wanted: Wanted::AtMost(15.0),
        unit: "ms",
        measure: |results| Some(results.ours((Workload::Insert, 512, Normal))?.p999_us / 1000.0),
    },
    Goal {
        name: "any workload: the largest WAL at any moment",
        wanted: Wanted::AtMost(70.4),
        unit: "MiB",
        measure: largest_wal,
    },
];

fn against_peers(results: &Results, place: Place) -> Option<f64> {
    Some(results.ours(place)?.ops_per_s / results.fastest_peer(place)?.ops_per_s)
}

fn against_limit(results: &Results, place: Place) -> Option<f64> {
    Some(results.ours(place)?.ops_per_s / results.limit(place)?.ops_per_s)
}

fn latency_against_peers(results: &Results, place: Place, latency: fn(&Figures) -> f64) -> Option<f64> {
    Some(latency(results.ours(place)?) / latency(results.quickest_peer(place, latency)?))
}

/// Against the highest throughput with any number of clients.
fn against_own_peak(results: &Results, place: Place) -> Option<f64> {
    let ours = results.ours(place)?;
    let same = results.figures().filter(|figures| {
        (&figures.system, figures.workload, figures.durability)
            == (&ours.system, ours.workload, ours.durability)
    });
    let peak = same.map(|figures| figures.ops_per_s).reduce(f64::max)?;
    Some(ours.ops_per_s / peak)
}

fn spread(results: &Results, place: Place) -> Option<f64> {
    let ours = results.ours(place)?;
    Some(ours.p99_us / ours.p50_us)
}

fn largest_wal(results: &Results) -> Option<f64> {
    let bytes = results.all_ours().map(|figures| figures.wal_max_bytes).max()?;
    Some(bytes as f64 / (1024.0 * 1024.0))
}
