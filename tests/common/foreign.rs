//! Another program that has the database open: this test binary, run again as a process of its own.
//!
//! A test file that uses it has a test [`ENTRY`], which calls [`serve`].

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rusqlite::Connection;

/// The test that is the other program.
pub(crate) const ENTRY: &str = "a_process_of_its_own";

const PATH: &str = "SOLEWRITER_TEST_FOREIGN";
const ANSWER: &str = "answer:";

/// A process with a plain connection, which does as it is told. It is killed when this is dropped.
pub(crate) struct Foreign {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Foreign {
    pub(crate) fn start(path: &Path) -> Self {
        Self::start_as(ENTRY, path)
    }

    /// Where the test [`ENTRY`] is in a module.
    pub(crate) fn start_in(module: &str, path: &Path) -> Self {
        Self::start_as(&format!("{module}::{ENTRY}"), path)
    }

    /// Runs another test than [`ENTRY`]; it finds the path in [`path`].
    pub(crate) fn start_as(entry: &str, path: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", entry, "--nocapture"]).env(PATH, path);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, stdin, lines }
    }

    /// Has it run some SQL, or one of its other words; returns what it answers.
    pub(crate) fn ask(&mut self, what: &str) -> String {
        self.tell(what);
        self.answer()
    }

    /// As [`ask`](Self::ask), where nothing but success is expected.
    pub(crate) fn run(&mut self, sql: &str) {
        assert_eq!(self.ask(sql), "ok", "{sql}");
    }

    pub(crate) fn tell(&mut self, what: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        writeln!(stdin, "{}", what.replace('\n', " ")).unwrap();
    }

    pub(crate) fn answer(&mut self) -> String {
        // Together with what the test harness prints.
        let mut lines = self.lines.by_ref().map(Result::unwrap);
        let line = lines.find(|line| line.contains(ANSWER)).expect("the other process is gone");
        line.split_once(ANSWER).unwrap().1.to_owned()
    }

    /// Lets it close its connection and end.
    pub(crate) fn close(mut self) {
        drop(self.stdin.take());
        let limit = Instant::now() + super::HANG;
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None => assert!(Instant::now() < limit, "the other process does not end"),
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        assert!(status.success());
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The database that the other process is to open; `None` in the tests' own process.
pub(crate) fn path() -> Option<PathBuf> {
    std::env::var_os(PATH).map(PathBuf::from)
}

/// What the other process does: runs each line as SQL, until its input ends. Nothing in the tests' own process.
pub(crate) fn serve() {
    let Some(path) = path() else { return };
    let connection = super::plain(&path);
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let answer = match line.split_once(' ') {
            Some(("duel", how)) => {
                let (millis, rows) = how.split_once(' ').unwrap();
                duel(&connection, Duration::from_millis(millis.parse().unwrap()), rows.parse().unwrap())
            }
            _ => connection.execute_batch(&line).map_or_else(|error| error.to_string(), |()| "ok".into()),
        };
        println!("{ANSWER}{answer}");
    }
    connection.close().unwrap();
}

/// Inserts one row after the other, from a million on, in transactions of so many; returns how many, and the longest
/// wait for a transaction in microseconds.
fn duel(connection: &Connection, time: Duration, at_once: i64) -> String {
    let (began, mut rows, mut longest) = (Instant::now(), 0, Duration::ZERO);
    while began.elapsed() < time {
        let asked = Instant::now();
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        longest = longest.max(asked.elapsed());
        for row in rows..rows + at_once {
            connection.execute("INSERT INTO t (x) VALUES (?1)", [1_000_000 + row]).unwrap();
        }
        connection.execute_batch("COMMIT").unwrap();
        rows += at_once;
    }
    format!("{rows} {}", longest.as_micros())
}
