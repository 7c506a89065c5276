//! One measurement, in a process of its own.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use peers_common::{Durability, Error, Figures};

use crate::matrix::{Cell, System};

/// How often it is looked whether a measurement has ended.
const POLL: Duration = Duration::from_millis(20);

/// Runs measurements.
pub(crate) struct Runner {
    /// Where the programs are.
    pub(crate) programs: PathBuf,
    /// Where the databases are made.
    pub(crate) directory: PathBuf,
    pub(crate) seconds: f64,
    pub(crate) rows: i64,
    /// After which a measurement is given up.
    pub(crate) time_limit: Duration,
}

impl Runner {
    pub(crate) fn run(&self, cell: &Cell, system: &System) -> Result<Figures, Error> {
        let durability = match cell.durability {
            Durability::Full => "full",
            Durability::Normal => "normal",
        };
        let mut process = Command::new(self.programs.join(system.program))
            .args(["--system", system.name])
            .args(["--workload", &cell.workload.to_string()])
            .args(["--clients", &cell.clients.to_string()])
            .args(["--durability", durability])
            .args(["--seconds", &self.seconds.to_string()])
            .args(["--rows", &self.rows.to_string()])
            .arg("--directory")
            .arg(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{}: {error}", system.program))?;
        let begun = Instant::now();
        // It prints one line at its end, which the pipe has room for.
        let status = loop {
            if let Some(status) = process.try_wait()? {
                break status;
            }
            if begun.elapsed() > self.time_limit {
                process.kill()?;
                process.wait()?;
                return Err(format!("no end after {:?}", self.time_limit).into());
            }
            thread::sleep(POLL);
        };
        let mut output = String::new();
        if let Some(mut stdout) = process.stdout.take() {
            stdout.read_to_string(&mut output)?;
        }
        if !status.success() {
            return Err(status.to_string().into());
        }
        Ok(serde_json::from_str(&output)?)
    }
}
