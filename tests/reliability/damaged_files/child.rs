//! The process that uses damaged files, one after the other, and the parent that notices what becomes of it.

use std::io::{BufRead, BufReader, Write};
use std::panic::PanicHookInfo;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::case;
use super::good::Goods;
use super::report::{Mode, Report};
use crate::common::in_memory_dir;

/// The test that is the child.
const ENTRY: &str = "damaged_files::a_process_that_may_crash";

const MODE: &str = "SOLEWRITER_TEST_DAMAGED_FILES";
const ANSWER: &str = "answer:";

/// A process of its own, which is killed when this is dropped.
pub(super) struct Worker {
    child: Child,
    stdin: ChildStdin,
    answers: Receiver<String>,
}

/// What became of a case in another process.
pub(super) enum Ended {
    Reported(Report),
    Crashed(String),
    Hung,
}

impl Worker {
    pub(super) fn start(mode: Mode) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", ENTRY, "--nocapture"]).env(MODE, serde_json::to_string(&mode).unwrap());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, answers) = mpsc::channel();
        std::thread::spawn(move || {
            // Together with what the test harness prints.
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some((_, answer)) = line.split_once(ANSWER)
                    && sender.send(answer.to_owned()).is_err()
                {
                    return;
                }
            }
        });
        Self { child, stdin, answers }
    }

    /// Has a case run, for at most `limit`. After anything but a report the process is of no use any more.
    pub(super) fn run(&mut self, seed: u64, limit: Duration) -> Ended {
        if writeln!(self.stdin, "{seed}").is_err() {
            return self.crashed();
        }
        match self.answers.recv_timeout(limit) {
            Ok(report) => Ended::Reported(serde_json::from_str(&report).unwrap()),
            Err(RecvTimeoutError::Timeout) => Ended::Hung,
            Err(RecvTimeoutError::Disconnected) => self.crashed(),
        }
    }

    fn crashed(&mut self) -> Ended {
        Ended::Crashed(self.child.wait().unwrap().to_string())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What has panicked, in any thread, since it was last asked.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn note_panic(info: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let what = format!("{} panicked: {info}", thread.name().unwrap_or("a thread"));
    PANICS.lock().unwrap_or_else(PoisonError::into_inner).push(what);
}

/// What the child does: a case for each seed that it reads. Nothing in the tests' own process.
pub(super) fn serve() {
    let Ok(mode) = std::env::var(MODE) else { return };
    let mode = serde_json::from_str(&mode).unwrap();
    std::panic::set_hook(Box::new(note_panic));
    let (goods, directory) = (Goods::default(), in_memory_dir());
    for line in std::io::stdin().lines() {
        let seed = line.unwrap().parse().unwrap();
        match mode {
            Mode::Crash => std::process::abort(),
            Mode::Hang => std::thread::park(),
            _ => {}
        }
        let mut report = case::run(seed, mode, &goods, directory.path());
        let panics = std::mem::take(&mut *PANICS.lock().unwrap_or_else(PoisonError::into_inner));
        report.panicked(panics);
        println!("{ANSWER}{}", serde_json::to_string(&report).unwrap());
    }
}
