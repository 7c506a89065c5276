//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Tools for SQLite databases that have a sole writer.
///
/// Exit status: 0 if all is well, 1 if problems were found, 2 if the command line or a file is not usable.
#[derive(Debug, Parser)]
#[command(name = "solewriter", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Inspect(Inspect),
}

/// Says what is in a database file, who has it open, whether it is intact, and what to do about it.
///
/// Changes nothing: not the database, nor its -wal, -shm and lock files. Another process may write meanwhile. The
/// checks read the whole file; while they do, they are a reader like any other: a WAL is not begun anew, and
/// without a WAL no writer can commit.
#[derive(Args, Debug)]
pub(crate) struct Inspect {
    /// The database.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// Write a JSON object instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
