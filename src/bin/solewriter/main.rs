//! `solewriter`: looks into a database, puts one under stress, and shows how that goes.
//!
//! Exit status: 0 if all is well, 1 if problems were found, 2 if the command line or a file is not usable.

mod cli;
mod dashboard;
mod inspect;
mod output;
mod pragmas;
mod stress;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};

/// What a command found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Fine,
    Problems,
}

/// Why a command could not do its work, in words for whoever typed it.
type Refusal = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let verdict = match Cli::parse().command {
        Command::Inspect(options) => inspect::run(&options),
        Command::Stress(options) => stress::run(&options),
        Command::Dashboard(options) => dashboard::run(&options),
        Command::StressForeign(options) => stress::run_foreign(&options),
    };
    match verdict {
        Ok(Verdict::Fine) => ExitCode::SUCCESS,
        Ok(Verdict::Problems) => ExitCode::from(1),
        Err(refusal) => {
            output::complain(&*refusal);
            ExitCode::from(2)
        }
    }
}
