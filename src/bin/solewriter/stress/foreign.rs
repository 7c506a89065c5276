//! Other programs that write to the same file: this binary, run again, with a plain connection.

use std::error::Error;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use solewriter::rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::cli::StressForeign;
use crate::{Refusal, Verdict, output};

/// How long such a program waits for the write lock.
const PATIENCE: Duration = Duration::from_secs(10);

/// What such a program does between two writes: something else. One that does nothing else leaves the lock free for
/// moments only, and would be the only thing that is measured.
const PAUSE: Duration = Duration::from_millis(5);

/// What such a program tells when it ends.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ForeignReport {
    /// Rows that were committed, numbered from 0.
    pub(crate) acknowledged: u64,
    /// Times it waited for the write lock in vain.
    pub(crate) locked_errors: u64,
    /// What ended it before its time.
    pub(crate) failure: Option<String>,
}

/// A foreign writer at work.
pub(crate) struct Foreign {
    pub(crate) source: i64,
    child: Child,
}

impl Foreign {
    pub(crate) fn start(path: &Path, source: i64) -> io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("stress-foreign").arg(path).arg(source.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // The signal of Ctrl-C goes to a whole group. These end when they are told to, and report.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        Ok(Self { source, child: command.spawn()? })
    }

    fn report(self) -> Result<ForeignReport, Box<dyn Error>> {
        let output = self.child.wait_with_output()?;
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

/// Tells all of them to end, and waits for their reports. One that has none, since it was killed, say, has told of no
/// row that could be looked for.
pub(crate) fn finish(mut all: Vec<Foreign>) -> Vec<(i64, ForeignReport)> {
    for foreign in &mut all {
        drop(foreign.child.stdin.take());
    }
    let report = |foreign: Foreign| {
        let source = foreign.source;
        let report = foreign.report();
        let none = |error: Box<dyn Error>| {
            let failure = Some(format!("it gave no report: {error}"));
            ForeignReport { failure, ..ForeignReport::default() }
        };
        (source, report.unwrap_or_else(none))
    };
    all.into_iter().map(report).collect()
}

/// Is such a program, until its input ends: with its parent, however that ends.
pub(crate) fn run(options: &StressForeign) -> Result<Verdict, Refusal> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = stop.clone();
    thread::spawn(move || {
        // Nothing is ever said; the end is the message, and so is an error.
        drop(io::stdin().read_to_end(&mut Vec::new()));
        stopping.store(true, Ordering::Relaxed);
    });
    let mut report = ForeignReport::default();
    if let Err(error) = write(&options.file, options.source, &stop, &mut report) {
        report.failure = Some(error.to_string());
    }
    output::print(&output::json(&report)?)?;
    Ok(Verdict::Fine)
}

fn write(
    path: &Path,
    source: i64,
    stop: &AtomicBool,
    report: &mut ForeignReport,
) -> solewriter::rusqlite::Result<()> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.busy_timeout(PATIENCE)?;
    let mut insert = connection.prepare("INSERT INTO stress_foreign (source, seq) VALUES (?1, ?2)")?;
    while !stop.load(Ordering::Relaxed) {
        match insert.execute((source, report.acknowledged.cast_signed())) {
            Ok(_) => {
                report.acknowledged += 1;
                thread::sleep(PAUSE);
            }
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                report.locked_errors += 1
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
