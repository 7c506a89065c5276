//! One measurement: open, fill, load, close, and look for everything that was acknowledged.

use std::sync::Arc;

use crate::Error;
use crate::figures::Figures;
use crate::ledger::{Ledger, Verdict};
use crate::marketplace;
use crate::measuring::Measuring;
use crate::options::{Options, Workload};
use crate::rows;
use crate::statement::Statement;
use crate::system::{Setup, System};
use crate::workload::{self, Done};

/// Measures one system with one workload.
///
/// # Errors
/// What keeps the measurement from happening. Commands that fail are counted instead.
pub async fn measure<S: System>(options: &Options) -> Result<Figures, Error> {
    let folder = tempfile::tempdir_in(&options.directory)?;
    let setup = Setup {
        path: folder.path().join("bench.db"),
        durability: options.durability,
        readers: options.workload.readers(),
    };
    let system = S::open(&setup).await?;
    prepare(&system, options).await?;
    let system = Arc::new(system);
    let mut ledger = Ledger::default();
    let rate = workload::rate(&system, options, &mut ledger).await?;

    let measuring = Measuring::begin(&setup.path)?;
    let mut done = workload::run(Arc::clone(&system), options, rate, &measuring, &mut ledger).await?;
    let system = Arc::into_inner(system).ok_or("the load still holds the system")?;
    let figures = if options.workload == Workload::Import {
        // The raw import that it is compared with ends with its checkpoint.
        system.close().await?;
        done.outcome.elapsed = measuring.elapsed();
        measuring.end(options, &done.outcome)?
    } else {
        let figures = measuring.end(options, &done.outcome)?;
        system.close().await?;
        figures
    };
    let verdict = judge::<S>(&setup, options, &ledger).await?;
    Ok(conclude(figures, &done, verdict))
}

async fn prepare<S: System>(system: &S, options: &Options) -> Result<(), Error> {
    let transactions: Box<dyn Iterator<Item = Vec<Statement>> + Send> = match options.workload {
        Workload::Marketplace => {
            system.run_script(marketplace::SCHEMA).await?;
            Box::new(marketplace::seed(options.clients as i64, workload::entries(options)))
        }
        _ => {
            system.run_script(rows::SCHEMA).await?;
            Box::new(rows::seed())
        }
    };
    for transaction in transactions {
        system.transaction(transaction).await?;
    }
    Ok(())
}

/// Looks for everything that was acknowledged.
async fn judge<S: System>(setup: &Setup, options: &Options, ledger: &Ledger) -> Result<Verdict, Error> {
    let sql = match options.workload {
        Workload::Marketplace => marketplace::IMPORTED,
        _ => rows::SENT,
    };
    let there = S::pairs(&setup.path, sql).await?;
    let verdict = ledger.compare(&there);
    if options.workload != Workload::ReadModifyWrite {
        return Ok(verdict);
    }
    // Each row that is there has added one to a balance: a sum that is smaller has lost an update.
    let balances = S::pairs(&setup.path, rows::BALANCES).await?;
    let sum = balances.iter().map(|(_, balance)| balance.unsigned_abs()).sum::<u64>();
    let rows = there.len() as u64;
    Ok(Verdict {
        lost: verdict.lost + rows.saturating_sub(sum),
        surplus: verdict.surplus + sum.saturating_sub(rows),
    })
}

/// Adds what went wrong to the figures, and says it.
fn conclude(figures: Figures, done: &Done, verdict: Verdict) -> Figures {
    let name = format!("{} {} {}", figures.system, figures.workload, figures.durability);
    if let Some(error) = &done.first_error {
        eprintln!("{name}: {} errors, such as: {error}", done.errors);
    }
    if verdict != Verdict::default() {
        eprintln!("{name}: {} lost, {} there without an acknowledgement", verdict.lost, verdict.surplus);
    }
    Figures { errors: done.errors + verdict.surplus, lost: verdict.lost, ..figures }
}
