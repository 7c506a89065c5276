//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

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
    Stress(Stress),
    Dashboard(Dashboard),
    #[command(hide = true)]
    StressForeign(StressForeign),
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

/// Puts a database under stress, and then looks for every row that was acknowledged.
///
/// Writers, readers and imports work as fast as they can, other processes write to the same file, and some commands
/// fail half-way on purpose. Ctrl-C ends it early, with all checks. Exit status 1 if an acknowledged row is lost, a
/// command is half applied, a failed one is there, or a read was wrong. The file grows by some 30 bytes a write.
#[derive(Args, Debug)]
pub(crate) struct Stress {
    #[command(flatten)]
    pub(crate) load: Load,

    /// For how long, such as 90s, 10m or 2h.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub(crate) duration: Duration,

    /// Write the figures to FILE as a JSON object, or to the standard output for -.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// Serves the dashboard of a database under stress, for a look at it.
///
/// As `stress`, until Ctrl-C, and with the same checks at the end.
#[derive(Args, Debug)]
pub(crate) struct Dashboard {
    /// Where to listen. Nothing here asks who looks: keep to addresses that only you can reach.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,

    #[command(flatten)]
    pub(crate) load: Load,

    /// For how long, such as 90s, 10m or 2h. Default: until Ctrl-C.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) duration: Option<Duration>,

    /// Write the figures to FILE as a JSON object, or to the standard output for -.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// What the database has to bear.
#[derive(Args, Debug)]
pub(crate) struct Load {
    /// Use and keep this database: a new file, or that of an earlier run, on the disk that matters. Default: a
    /// temporary one.
    #[arg(long, value_name = "FILE")]
    pub(crate) path: Option<PathBuf>,

    /// Tasks that each send one write after the other.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = number)]
    pub(crate) writers: usize,

    /// Tasks that each look at what was just acknowledged.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = number)]
    pub(crate) readers: usize,

    /// Imports at once.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = number)]
    pub(crate) imports: usize,

    /// Other processes that write to the same file, each a row every few milliseconds.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = number)]
    pub(crate) foreign_writers: usize,

    /// The share of commands that fail half-way, by a constraint, a panic or an error of their own.
    #[arg(long, value_name = "PERCENT", default_value = "1%", value_parser = percent)]
    pub(crate) poison: f64,

    /// What an acknowledged write survives.
    #[arg(long, value_enum, default_value_t = Durability::Full)]
    pub(crate) durability: Durability,

    /// Decides which commands fail. Default: another one each time.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

/// What an acknowledged write survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Durability {
    /// A power failure.
    Full,
    /// A crash of the process.
    Normal,
}

impl From<Durability> for solewriter::Durability {
    fn from(durability: Durability) -> Self {
        match durability {
            Durability::Full => Self::Full,
            Durability::Normal => Self::Normal,
        }
    }
}

/// Is one of the other processes of a stress run.
#[derive(Args, Debug)]
pub(crate) struct StressForeign {
    pub(crate) file: PathBuf,
    pub(crate) source: i64,
}

/// How many of something: not so many that nothing else would fit.
fn number(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 0..=10_000) => Ok(number),
        _ => Err("must be a number from 0 to 10000".into()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be more than 0".into()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(error.to_string()),
    }
}

/// A percentage, with or without its sign.
fn percent(text: &str) -> Result<f64, String> {
    match text.strip_suffix('%').unwrap_or(text).trim().parse() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent),
        _ => Err("must be a percentage from 0% to 100%".into()),
    }
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
