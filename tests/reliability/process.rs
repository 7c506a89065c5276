//! A service in a process of its own, under load, which says each answer into a pipe as soon as it has it: what is in a
//! pipe survives. Something ends the process; its parent then looks at the file, and the next one goes on with it.
//!
//! What it does is in `plan`, from its seed alone, so the parent knows what belongs into the file; `child` does it,
//! `points` is where it can kill itself, and `verify` what must hold afterwards.

pub(crate) mod child;
pub(crate) mod plan;
pub(crate) mod points;
pub(crate) mod verify;

use std::ffi::OsString;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use rusqlite::Connection;
use rusqlite::config::DbConfig;

use self::child::Orders;
use self::plan::{SCHEMA, TASKS};
use self::verify::Told;
use crate::common::{HANG, plain};

#[test]
fn a_process_of_its_own() {
    child::serve();
}

/// The file that `lives` processes work on, one after the other.
pub(crate) fn create(path: &Path, lives: usize) {
    let connection = Connection::open(path).unwrap();
    connection
        .execute_batch(&format!("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; {SCHEMA}"))
        .unwrap();
    let mut tasks = connection.prepare("INSERT INTO tasks (task) VALUES (?1)").unwrap();
    for task in 0..i64::try_from(lives).unwrap() * TASKS {
        tasks.execute([task]).unwrap();
    }
}

/// Opens a file and leaves its WAL to the next service.
pub(crate) fn open(path: &Path) -> Connection {
    let connection = plain(path);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
    // Opens the WAL.
    connection.query_row("SELECT count(*) FROM sqlite_schema", (), |_| Ok(())).unwrap();
    connection
}

/// What is left of a process.
pub(crate) struct Ended {
    heard: Vec<u8>,
    pub(crate) status: ExitStatus,
}

impl Ended {
    pub(crate) fn told(&self) -> Told {
        self.told_until(Duration::MAX)
    }

    /// What it had said by a [moment](now).
    pub(crate) fn told_until(&self, end: Duration) -> Told {
        Told::parse(&self.heard, end)
    }
}

/// By the clock that all processes share.
pub(crate) fn now() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(now.tv_sec.cast_unsigned(), u32::try_from(now.tv_nsec).unwrap())
}

/// When the parent strikes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum When {
    /// While it begins, perhaps.
    After(Duration),
    /// So long after it has said so many words.
    Said(usize, Duration),
    /// It ends by itself.
    Never,
}

impl When {
    pub(crate) fn random(rng: &mut Rng) -> Self {
        match rng.u8(0..4) {
            0 => Self::After(Duration::from_micros(rng.u64(0..80_000))),
            _ => Self::Said(rng.usize(0..1_500), Duration::from_micros(rng.u64(0..3_000))),
        }
    }
}

/// Runs a process until it has ended, for which the parent sees by `strike`, at that moment.
///
/// `through` is a program that runs it, with its arguments. What has not said enough within `patience` is struck too.
///
/// # Panics
/// If it hangs.
pub(crate) fn run(
    orders: &Orders,
    through: &[OsString],
    when: When,
    patience: Option<Duration>,
    strike: impl FnOnce(&mut Child),
) -> Ended {
    let mut words = through.iter().cloned().chain([std::env::current_exe().unwrap().into()]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).args(["--exact", "process::a_process_of_its_own", "--nocapture"]);
    command.envs(orders.environment()).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = Reaped(command.spawn().unwrap());
    let said = listen(child.0.stdout.take().unwrap());
    let began = Instant::now();
    let mut heard = Vec::new();
    let mut words = 0;
    let mut strike = Some(strike);
    let mut strike_at = match when {
        When::After(time) => Some(began + time),
        When::Said(..) | When::Never => patience.map(|patience| began + patience),
    };
    let mut has_said_enough = false;
    loop {
        let limit = strike_at.unwrap_or(began + HANG).saturating_duration_since(Instant::now());
        match said.recv_timeout(limit) {
            Ok(more) => {
                words += more.iter().filter(|byte| **byte == b'@').count();
                heard.extend(more);
            }
            Err(RecvTimeoutError::Timeout) => {
                strike_at = None;
                match strike.take() {
                    Some(strike) if began.elapsed() < HANG => strike(&mut child.0),
                    _ => panic!("it hangs: {orders:?}"),
                }
            }
            // All of it is heard once it has ended.
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if let When::Said(wanted, then) = when
            && words > wanted
            && !has_said_enough
            && strike.is_some()
        {
            has_said_enough = true;
            strike_at = Some(Instant::now() + then);
        }
    }
    Ended { heard, status: child.0.wait().unwrap() }
}

/// What most parents do: SIGKILL.
pub(crate) fn kill(child: &mut Child) {
    child.kill().unwrap();
}

/// The words of a child as they come.
fn listen(mut pipe: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut words = vec![0; 65_536];
        while let Ok(bytes @ 1..) = pipe.read(&mut words) {
            if sender.send(words[..bytes].to_vec()).is_err() {
                break;
            }
        }
    });
    receiver
}

/// A child that does not outlive its parent.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
