//! The comparison with peers: runs every system with every workload, in turns, and tells what came out.
//!
//! `matrix` is what is measured, `run` one measurement, `summary` what several come to, `table` and `plot` how it is
//! shown, and `goals` what it is held against.

mod goals;
mod matrix;
mod plot;
mod run;
mod summary;
mod table;

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use peers_common::{Error, Workload};

use crate::matrix::Cell;
use crate::run::Runner;
use crate::summary::{Results, Summary};

/// Compares solewriter with its peers and with raw SQLite.
#[derive(Debug, Parser)]
struct Options {
    /// One short round, fewer clients, a smaller import, and without turso.
    #[arg(long)]
    quick: bool,
    /// Writes the figures here.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Draws single-row inserts here.
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Only these workloads.
    #[arg(long, value_delimiter = ',')]
    workload: Vec<Workload>,
    /// Only these systems.
    #[arg(long, value_delimiter = ',')]
    system: Vec<String>,
    /// Only these numbers of clients.
    #[arg(long, value_delimiter = ',')]
    clients: Vec<usize>,
    /// Rounds; in each, every system takes its turn. Default: 5; 1 with --quick.
    #[arg(long)]
    rounds: Option<usize>,
    /// How long each measurement lasts. Default: 1; 0.5 with --quick.
    #[arg(long)]
    seconds: Option<f64>,
    /// Rows of an import. Default: 1,000,000; 100,000 with --quick.
    #[arg(long)]
    rows: Option<i64>,
    /// Where the databases are made: on a disk, since a file system in memory would make every sync free.
    #[arg(long)]
    directory: PathBuf,
}

fn main() -> Result<(), Error> {
    let options = Options::parse();
    let runner = Runner {
        programs: std::env::current_exe()?.parent().ok_or("the program is in no folder")?.into(),
        directory: options.directory.clone(),
        seconds: options.seconds.unwrap_or(if options.quick { 0.5 } else { 1.0 }),
        rows: options.rows.unwrap_or(if options.quick { 100_000 } else { 1_000_000 }),
        time_limit: Duration::from_secs(180),
    };
    let rounds = options.rounds.unwrap_or(if options.quick { 1 } else { 5 });
    let cells = selected(&options);
    std::fs::create_dir_all(&options.directory)?;
    let mut results = Results::default();
    for (number, cell) in cells.iter().enumerate() {
        eprintln!("{}/{} {cell}", number + 1, cells.len());
        results.add(measure(&runner, cell, rounds));
    }
    println!("{}", table::figures(&results));
    println!("{}", table::goals(&results));
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_vec_pretty(&results.figures().collect::<Vec<_>>())?)?;
    }
    if let Some(file) = &options.svg {
        std::fs::write(file, plot::draw(&results)?)?;
    }
    Ok(())
}

fn selected(options: &Options) -> Vec<Cell> {
    let mut cells = matrix::cells(options.quick);
    cells.retain(|cell| options.workload.is_empty() || options.workload.contains(&cell.workload));
    cells.retain(|cell| options.clients.is_empty() || options.clients.contains(&cell.clients));
    for cell in &mut cells {
        let names = &options.system;
        cell.systems.retain(|system| names.is_empty() || names.iter().any(|name| name == system.name));
    }
    cells.retain(|cell| !cell.systems.is_empty());
    cells
}

/// Every system of the cell, round by round; who goes first goes last in the next round.
fn measure(runner: &Runner, cell: &Cell, rounds: usize) -> Vec<Summary> {
    let mut systems: Vec<_> = cell.systems.iter().map(|system| (system, Vec::new(), 0)).collect();
    for _ in 0..rounds {
        for (system, measured, failed) in &mut systems {
            match runner.run(cell, system) {
                Ok(figures) => measured.push(figures),
                Err(error) => {
                    eprintln!("  {} failed: {error}", system.name);
                    *failed += 1;
                }
            }
        }
        systems.rotate_left(1);
    }
    // In the order of the matrix again.
    systems.rotate_right(rounds % cell.systems.len());
    systems
        .into_iter()
        .filter_map(|(system, measured, failed)| Summary::of(system, &measured, failed))
        .collect()
}
