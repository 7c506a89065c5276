//! The command line.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};

use crate::scan::Shape;

/// List reads that arrive per second, as many as the guide's renames.
const READS_PER_S: u32 = 20;

/// Imports the crates that cargo has unpacked on this machine into a marketplace database, several sources at
/// once, while people rename entries and list them, and shows how long everyone waited.
#[derive(Debug, Parser)]
#[command(name = "marketplace")]
pub(crate) struct Options {
    /// Scan this folder instead of cargo's registry sources.
    #[arg(long, value_name = "DIR")]
    pub(crate) from: Option<PathBuf>,

    /// Who writes.
    #[arg(long, value_enum, default_value_t = Mode::Writer)]
    pub(crate) mode: Mode,

    /// Run the first import round in every mode in turn, and one import alone.
    #[arg(long, conflicts_with_all = ["mode", "seconds"])]
    pub(crate) compare: bool,

    /// Milliseconds of other work per entry, slept; a source's entries are then prepared one after the other.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(..=60_000))]
    work_ms: Option<u64>,

    /// Sources that are imported at once.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    imports: u16,

    /// Entries in a source.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    entries: u16,

    /// Renames that arrive per second.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(..=10_000))]
    pub(crate) renames_per_s: u32,

    /// Begin no further import after this long.
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,

    /// Make one entry in a hundred break a constraint half-way through its statements.
    #[arg(long)]
    pub(crate) poison: bool,

    /// Keep the database at PATH, which must not exist; a comparison adds the mode to the name. Default: a
    /// temporary folder, removed at the end.
    #[arg(long, value_name = "PATH")]
    pub(crate) db: Option<PathBuf>,

    /// Then keep serving the database at ADDRESS, such as 127.0.0.1:8080, until Ctrl-C: the catalog, imports, the
    /// dashboard. Who reaches the address may change the catalog. Needs the feature `http`.
    #[arg(long, value_name = "ADDRESS", conflicts_with = "compare")]
    pub(crate) serve: Option<String>,

    /// Write the figures to FILE, too.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// Who writes, and with how many transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Plain connections, one transaction per import: the guide's "before".
    Single,
    /// Plain connections, one transaction per ten entries: the guide's "after".
    Batched,
    /// solewriter.
    Writer,
}

/// One run of the program: a mode with a number of imports at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) name: &'static str,
    pub(crate) mode: Mode,
    pub(crate) imports: usize,
}

impl Options {
    /// The command line's options; a bad one ends the program with a message and status 2.
    pub(crate) fn from_args() -> Options {
        let options = Options::parse();
        if let Err(message) = options.check() {
            Options::refuse(message);
        }
        options
    }

    /// Ends the program with a message and status 2.
    pub(crate) fn refuse(message: String) -> ! {
        Options::command().error(ErrorKind::ValueValidation, message).exit()
    }

    fn check(&self) -> Result<(), String> {
        if self.serve.is_some() && !cfg!(feature = "http") {
            let command = "cargo run --release --example marketplace --features http -- --serve ADDRESS";
            return Err(format!(
                "--serve: this program was built without the feature `http`; run\n  {command}"
            ));
        }
        if let Some(from) = &self.from
            && !from.is_dir()
        {
            return Err(format!("--from: {} is not a folder", from.display()));
        }
        let files = self.runs().into_iter().filter_map(|run| self.db_path(run));
        for file in files {
            check_new_file("--db", &file)?;
            if file.exists() {
                let file = file.display();
                return Err(format!("--db: {file} exists; a run needs a new database"));
            }
        }
        match &self.json {
            Some(json) => check_new_file("--json", json),
            None => Ok(()),
        }
    }

    /// What is to be run, in turn.
    pub(crate) fn runs(&self) -> Vec<Run> {
        let imports = usize::from(self.imports);
        let run = |name, mode, imports| Run { name, mode, imports };
        if !self.compare {
            return vec![run(self.mode.name(), self.mode, imports)];
        }
        let mut runs: Vec<_> =
            Mode::value_variants().iter().map(|&mode| run(mode.name(), mode, imports)).collect();
        runs.push(run("writer_alone", Mode::Writer, 1));
        runs
    }

    /// Where the database of `run` is to be kept, if at all.
    pub(crate) fn db_path(&self, run: Run) -> Option<PathBuf> {
        let path = self.db.clone()?;
        if !self.compare {
            return Some(path);
        }
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let mut name = format!("{stem}-{}", run.name);
        if let Some(extension) = path.extension() {
            name = format!("{name}.{}", extension.to_string_lossy());
        }
        Some(path.with_file_name(name))
    }

    pub(crate) fn shape(&self) -> Shape {
        Shape { sources: self.imports.into(), entries_per_source: self.entries.into() }
    }

    /// The work per entry beside the hashing.
    pub(crate) fn work(&self) -> Duration {
        Duration::from_millis(self.work_ms.unwrap_or(0))
    }

    pub(crate) fn reads_per_s(&self) -> u32 {
        READS_PER_S
    }

    /// How long imports are repeated: not at all in a comparison.
    pub(crate) fn repeat_for(&self) -> Duration {
        if self.compare { Duration::ZERO } else { Duration::from_secs(self.seconds) }
    }
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::Single => "single",
            Mode::Batched => "batched",
            Mode::Writer => "writer",
        }
    }
}

/// Finds out before the run what would only show after it.
fn check_new_file(option: &str, file: &Path) -> Result<(), String> {
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if file.is_dir() {
        return Err(format!("{option}: {} is a folder", file.display()));
    }
    if !folder.is_dir() {
        return Err(format!("{option}: there is no folder {}", folder.display()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(args: &[&str]) -> Result<Options, clap::Error> {
        Options::try_parse_from([&["marketplace"], args].concat())
    }

    #[test]
    fn the_command_line_is_sound() {
        Options::command().debug_assert();
    }

    #[test]
    fn bad_values_are_refused() {
        for args in [["--imports", "0"], ["--entries", "none"], ["--mode", "fast"]] {
            let error = options(&args).expect_err("it is a bad value");
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn a_comparison_runs_every_mode_and_the_writer_alone() {
        let options = options(&["--compare", "--db", "kept/run.db"]).expect("good options");
        let runs = options.runs();
        let names: Vec<_> = runs.iter().map(|run| run.name).collect();
        assert_eq!(names, ["single", "batched", "writer", "writer_alone"]);
        assert_eq!(runs[3].imports, 1);
        let path = options.db_path(runs[1]);
        assert_eq!(path, Some(PathBuf::from("kept/run-batched.db")));
    }
}
