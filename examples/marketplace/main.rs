//! The main job: a marketplace import while people work.
//!
//! Scans the crates that cargo has unpacked, imports them as several sources at once through a real schema
//! with search indexes and triggers, and measures what the people who rename and list entries meanwhile have
//! to wait. `--compare` does the same with plain connections first, and `--serve` goes on as a web service.

#![cfg_attr(test, allow(clippy::expect_used))]

mod cli;
mod error;

// The marketplace on disk.
mod manifest;
mod marketplace;
mod prepare;
mod scan;

// The marketplace in the database.
mod catalog;
mod seed;
mod store;
mod verify;

// A run: what every mode shares, then the modes.
mod load;
mod measured;
mod service;

mod plain;
mod writer;

#[cfg(feature = "http")]
mod serve;

mod figures;
mod goals;
mod report;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crate::cli::{Mode, Options, Run};
use crate::error::Error;
use crate::figures::{Figures, Finished};
use crate::marketplace::Marketplace;
use crate::measured::Measured;
use crate::plain::Transactions;
use crate::prepare::{PreparedEntry, prepare};
use crate::verify::Verification;

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::from_args();
    match run(&options).await {
        Ok(runs) if runs.iter().all(is_right) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {}", error::with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

fn is_right(run: &Finished) -> bool {
    run.verification.problems.is_empty()
}

async fn run(options: &Options) -> Result<Vec<Finished>, Error> {
    // Now, and not after the run: the address may be taken.
    #[cfg(feature = "http")]
    let listener = options.serve.as_deref().map(|address| {
        serve::bind(address).unwrap_or_else(|error| Options::refuse(format!("--serve {address}: {error}")))
    });
    let marketplace = scan(options)?;
    let asked = options.shape().entries_per_source;
    println!("{}", report::marketplace(&marketplace, asked));
    // Also brings the files into the system's cache, so that every mode finds them there.
    let expected = expected(&marketplace)?;
    let temporary = tempfile::tempdir().map_err(|source| Error::Io { path: std::env::temp_dir(), source })?;
    let db_path =
        |run: Run| options.db_path(run).unwrap_or_else(|| temporary.path().join(format!("{}.db", run.name)));
    let mut finished = Vec::new();
    for run in options.runs() {
        eprintln!("{}", report::beginning(run, options));
        finished.push(run_one(run, options, &marketplace, &expected, &db_path(run)).await?);
    }
    println!("{}", report::table(&finished));
    for run in &finished {
        println!("{}", report::verification(run));
    }
    for goal in goals::goals(&finished, !options.work().is_zero()) {
        println!("{goal}");
    }
    if let Some(path) = &options.json {
        write_json(path, options, &finished)?;
    }
    #[cfg(feature = "http")]
    if let (Some(listener), Some(&run)) = (listener, options.runs().last()) {
        serve::serve(listener, &db_path(run), &marketplace, options.work()).await?;
    }
    Ok(finished)
}

fn scan(options: &Options) -> Result<Marketplace, Error> {
    let root = match &options.from {
        Some(dir) => dir.clone(),
        None => scan::registry_sources()?,
    };
    let mut marketplace = scan::scan(&root, options.shape())?;
    if options.poison {
        for source in marketplace.sources.iter_mut().filter_map(Arc::get_mut) {
            source.poison();
        }
    }
    Ok(marketplace)
}

/// Every entry as it has to be found in the database.
fn expected(marketplace: &Marketplace) -> Result<Vec<PreparedEntry>, Error> {
    let entries = marketplace.sources.iter().flat_map(|source| &source.entries);
    Ok(entries.map(prepare).collect::<Result<_, _>>()?)
}

/// Makes a new database, runs one mode on it, and looks into it afterwards.
async fn run_one(
    run: Run,
    options: &Options,
    marketplace: &Marketplace,
    expected: &[PreparedEntry],
    db_path: &Path,
) -> Result<Finished, Error> {
    seed::create(db_path, marketplace)?;
    let measured = run_mode(run, options, marketplace, db_path).await?;
    let mut verification = verify(db_path, expected)?;
    verification.compare_with(&measured);
    let sources = marketplace.sources.iter().take(run.imports);
    let poisoned = sources.map(|source| source.poisoned_count() as u64).sum();
    Ok(Finished { name: run.name, measured, poisoned, verification })
}

async fn run_mode(
    run: Run,
    options: &Options,
    marketplace: &Marketplace,
    db_path: &Path,
) -> Result<Measured, Error> {
    let transactions = match run.mode {
        Mode::Writer => return writer::run(options, marketplace, db_path, run.imports).await,
        Mode::Single => Transactions::Single,
        Mode::Batched => Transactions::Batched,
    };
    plain::run(transactions, options, marketplace, db_path, run.imports).await
}

fn verify(db_path: &Path, expected: &[PreparedEntry]) -> Result<Verification, Error> {
    let connection = seed::connect(db_path, Duration::from_secs(10))?;
    let mut verification = verify::verify(&connection, expected)?;
    if let Err(error) = verify::verify_search(&connection) {
        let problem = format!("the search indexes: {error}");
        verification.problems.push(problem);
    }
    Ok(verification)
}

/// One object of figures, or with `--compare` one per run under its name.
fn write_json(path: &Path, options: &Options, runs: &[Finished]) -> Result<(), Error> {
    let figures: BTreeMap<_, _> = runs.iter().map(|run| (run.name, Figures::of(run))).collect();
    let json = match figures.values().next() {
        Some(only) if !options.compare => serde_json::to_string_pretty(only),
        _ => serde_json::to_string_pretty(&figures),
    };
    let io_error = |source| Error::Io { path: path.to_owned(), source };
    let json = json.map_err(|error| io_error(error.into()))?;
    fs::write(path, json + "\n").map_err(io_error)
}
