//! The workloads, each once for every system.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Error;
use crate::command::Command;
use crate::ledger::Ledger;
use crate::load::{Load, OpenLoop, closed_loop};
use crate::marketplace::{ENTRIES_PER_IMPORT, Entry, RENAMES_PER_S};
use crate::measuring::{Measuring, Outcome};
use crate::options::{Options, Workload};
use crate::recorder::{Latencies, Recorded};
use crate::rows::Row;
use crate::system::System;

/// The clients of what is not a closed loop; those of a closed loop count from 0.
const ARRIVALS: i64 = 1_000_000;
const IMPORTER: i64 = 2_000_000;
const CALIBRATION: i64 = 3_000_000;

/// Inserts a second while others read, or an import runs. Every system can do as many, so that none of them is measured
/// while its own backlog grows.
pub const INSERTS_BESIDE_PER_S: f64 = 200.0;
/// The clients that find out the capacity before an open loop.
const CALIBRATION_CLIENTS: i64 = 512;
/// The part of the capacity that an open loop asks for.
const OPEN_LOOP_SHARE: f64 = 0.5;
/// Catalog entries of an importer for each second: more than any system imports.
const ENTRIES_PER_S: f64 = 1_000.0;
/// What a workload has done.
pub(crate) struct Done {
    pub(crate) outcome: Outcome,
    pub(crate) errors: u64,
    pub(crate) first_error: Option<String>,
}

impl Done {
    /// A load that the workload is about, and one that ran beside it.
    fn new(elapsed: Duration, load: Load, beside: Option<Load>) -> Self {
        let outcome = Outcome {
            elapsed,
            acknowledged: load.acknowledged(),
            acknowledged_beside: beside.as_ref().map_or(0, Load::acknowledged),
            latencies: load.recorded.latencies.clone(),
        };
        let errors = load.errors() + beside.as_ref().map_or(0, Load::errors);
        let first_error = load.recorded.first_error.or(beside.and_then(|beside| beside.recorded.first_error));
        Self { outcome, errors, first_error }
    }

    /// Imports, and the load beside them, whose latency it is about.
    fn beside(elapsed: Duration, acknowledged: u64, beside: Load) -> Self {
        let acknowledged_beside = beside.acknowledged();
        let errors = beside.errors();
        let Recorded { latencies, first_error, .. } = beside.recorded;
        Self {
            outcome: Outcome { elapsed, acknowledged, acknowledged_beside, latencies },
            errors,
            first_error,
        }
    }
}

/// How much arrives in an open loop: half of what a closed loop reaches on the same database.
pub(crate) async fn rate<S: System>(
    system: &Arc<S>,
    options: &Options,
    ledger: &mut Ledger,
) -> Result<f64, Error> {
    if options.workload != Workload::OpenLoop {
        return Ok(0.0);
    }
    let begun = Instant::now();
    let clients = CALIBRATION..CALIBRATION + CALIBRATION_CLIENTS;
    let load = closed_loop(system, Command::Insert, clients, options.length()).await?;
    load.note(ledger);
    Ok(load.acknowledged() as f64 / begun.elapsed().as_secs_f64() * OPEN_LOOP_SHARE)
}

/// The catalog entries of each importer: whole imports.
pub(crate) fn entries(options: &Options) -> i64 {
    let imports = (ENTRIES_PER_S * options.seconds) as i64 / ENTRIES_PER_IMPORT;
    imports.max(1) * ENTRIES_PER_IMPORT
}

pub(crate) async fn run<S: System>(
    system: Arc<S>,
    options: &Options,
    rate: f64,
    measuring: &Measuring,
    ledger: &mut Ledger,
) -> Result<Done, Error> {
    let command = match options.workload {
        Workload::Insert => Command::Insert,
        Workload::Closure => Command::InsertInClosure,
        Workload::ReadModifyWrite => Command::Deposit,
        Workload::Mixed => Command::Mixed,
        Workload::Reads => return reads(&system, options, measuring, ledger).await,
        Workload::OpenLoop => return open_loop(&system, options, rate, measuring, ledger).await,
        Workload::Import => return import(&*system, options, measuring, ledger).await,
        Workload::ImportBeside => return import_beside(&system, options, measuring, ledger).await,
        Workload::Marketplace => return marketplace(&system, options, measuring, ledger).await,
    };
    let load = closed_loop(&system, command, 0..options.clients as i64, options.length()).await?;
    let elapsed = measuring.elapsed();
    load.note(ledger);
    Ok(Done::new(elapsed, load, None))
}

async fn reads<S: System>(
    system: &Arc<S>,
    options: &Options,
    measuring: &Measuring,
    ledger: &mut Ledger,
) -> Result<Done, Error> {
    let arrivals = OpenLoop::begin(system, Command::Insert, ARRIVALS, INSERTS_BESIDE_PER_S)?;
    let load = closed_loop(system, Command::Read, 0..options.clients as i64, options.length()).await?;
    let elapsed = measuring.elapsed();
    let beside = arrivals.end().await?;
    beside.note(ledger);
    Ok(Done::new(elapsed, load, Some(beside)))
}

async fn open_loop<S: System>(
    system: &Arc<S>,
    options: &Options,
    rate: f64,
    measuring: &Measuring,
    ledger: &mut Ledger,
) -> Result<Done, Error> {
    let arrivals = OpenLoop::begin(system, Command::Insert, ARRIVALS, rate)?;
    tokio::time::sleep(options.length()).await;
    let load = arrivals.end().await?;
    load.note(ledger);
    Ok(Done::new(measuring.elapsed(), load, None))
}

/// The latency is that of the import as a whole, up to its last acknowledgement.
async fn import<S: System>(
    system: &S,
    options: &Options,
    measuring: &Measuring,
    ledger: &mut Ledger,
) -> Result<Done, Error> {
    import_rows(system, options, ledger).await?;
    let elapsed = measuring.elapsed();
    let mut latencies = Latencies::new()?;
    latencies.record(elapsed, 1);
    let acknowledged = options.rows.unsigned_abs();
    let outcome = Outcome { elapsed, acknowledged, acknowledged_beside: 0, latencies };
    Ok(Done { outcome, errors: 0, first_error: None })
}

async fn import_beside<S: System>(
    system: &Arc<S>,
    options: &Options,
    measuring: &Measuring,
    ledger: &mut Ledger,
) -> Result<Done, Error> {
    let arrivals = OpenLoop::begin(system, Command::Insert, ARRIVALS, INSERTS_BESIDE_PER_S)?;
    import_rows(&**system, options, ledger).await?;
    let elapsed = measuring.elapsed();
    let beside = arrivals.end().await?;
    beside.note(ledger);
    let acknowledged = options.rows.unsigned_abs();
    Ok(Done::beside(elapsed, acknowledged, beside))
}

async fn import_rows<S: System>(system: &S, options: &Options, ledger: &mut Ledger) -> Result<(), Error> {
    let rows = (0..options.rows).map(|sequence| Row { client: IMPORTER, sequence });
    system.import(rows).await?;
    ledger.note(IMPORTER, options.rows, []);
    Ok(())
}

/// Each client imports a hundred entries of its catalog, then the next, until the time or its catalog is over.
async fn marketplace<S: System>(
    system: &Arc<S>,
    options: &Options,
    measuring: &Measuring,
    ledger: &mut Ledger,
) -> Result<Done, Error> {
    let (importers, entries) = (options.clients as i64, entries(options));
    let renames = OpenLoop::begin(system, Command::Rename { importers, entries }, ARRIVALS, RENAMES_PER_S)?;
    let (started, length) = (Instant::now(), options.length());
    let tasks: Vec<_> = (0..importers)
        .map(|importer| {
            let system = Arc::clone(system);
            tokio::spawn(async move {
                let (mut begun, mut failed) = (0, Vec::new());
                while begun < entries && started.elapsed() < length {
                    let import = begun..begun + ENTRIES_PER_IMPORT;
                    begun = import.end;
                    let import = import.map(|sequence| Entry { importer, sequence }).collect();
                    failed.extend(system.import_entries(import).await);
                }
                (importer, begun, failed)
            })
        })
        .collect();
    let (mut acknowledged, mut errors, mut first_error) = (0, 0, None);
    for task in tasks {
        let (importer, begun, failed) = task.await?;
        ledger.note(importer, begun, failed.iter().map(|(entry, _)| entry.sequence));
        acknowledged += begun.unsigned_abs() - failed.len() as u64;
        errors += failed.len() as u64;
        first_error = first_error.or(failed.first().map(|(_, error)| error.to_string()));
    }
    let elapsed = measuring.elapsed();
    let renames = renames.end().await?;
    let mut done = Done::beside(elapsed, acknowledged, renames);
    done.errors += errors;
    done.first_error = first_error.or(done.first_error);
    Ok(done)
}
