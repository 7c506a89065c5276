//! Another process that writes and reads the same file, by a plain connection.

use std::fs::File;
use std::io::{BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fastrand::Rng;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use solewriter::Lane;

use crate::common::foreign::{Foreign, path};
use crate::common::{HANG, beside};

use super::bank::{Glance, Transfer};
use super::operation::{Did, FOREIGN, Operation, Read, id, now};

/// The other process, as the test sees it.
pub(super) struct OtherProcess {
    process: Foreign,
    history: PathBuf,
}

impl OtherProcess {
    pub(super) fn start(path: &Path, seed: u64) -> Self {
        let entry = "histories::foreign::a_process_of_its_own";
        let mut process = Foreign::start_as(entry, path);
        process.tell(&seed.to_string());
        Self { process, history: beside(path, "-history") }
    }

    /// Ends it, and takes over its history.
    pub(super) fn finish(self) -> Vec<Operation> {
        self.process.close();
        let history = std::fs::read_to_string(&self.history).unwrap();
        serde_json::Deserializer::from_str(&history).into_iter().map(Result::unwrap).collect()
    }
}

/// Writes and reads until its input ends. Nothing in the tests' own process.
#[test]
fn a_process_of_its_own() {
    let Some(path) = path() else { return };
    let mut seed = String::new();
    std::io::stdin().read_line(&mut seed).unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let over = is_over.clone();
    std::thread::spawn(move || {
        // Whatever ends the input ends the work.
        drop(std::io::stdin().read_to_end(&mut Vec::new()));
        over.store(true, Ordering::Relaxed);
    });
    let mut process = Process::open(&path, seed.trim().parse().unwrap());
    while !is_over.load(Ordering::Relaxed) {
        process.act().unwrap();
    }
    process.history.flush().unwrap();
}

struct Process {
    connection: Connection,
    rng: Rng,
    number: u32,
    /// An operation in each line.
    history: BufWriter<File>,
}

impl Process {
    fn open(path: &Path, seed: u64) -> Self {
        let connection = Connection::open(path).unwrap();
        // SQLite's own handler polls up to 100 ms apart, and would hardly ever meet the lock free.
        connection
            .busy_handler(Some(|tries| {
                let pause = Duration::from_micros(500);
                std::thread::sleep(pause);
                pause * tries.unsigned_abs() < HANG
            }))
            .unwrap();
        let rng = Rng::with_seed(seed);
        let history = BufWriter::new(File::create(beside(path, "-history")).unwrap());
        Self { connection, rng, number: 0, history }
    }

    fn act(&mut self) -> rusqlite::Result<()> {
        let number = self.number;
        self.number += 1;
        let invoked = now();
        let did = match self.rng.u8(0..100) {
            0..50 => self.write(number)?,
            _ => self.read()?,
        };
        let completed = now();
        let lane = Lane::default();
        let operation = Operation { invoked, completed, by: FOREIGN, number, lane, did };
        serde_json::to_writer(&mut self.history, &operation).unwrap();
        self.history.write_all(b"\n").unwrap();
        if self.rng.u8(0..6) == 0 {
            std::thread::sleep(Duration::from_millis(self.rng.u64(0..10)));
        }
        Ok(())
    }

    fn write(&mut self, number: u32) -> rusqlite::Result<Did> {
        let transfer = Transfer::random(id(FOREIGN, number), &mut self.rng);
        let changes_its_mind = self.rng.u8(0..10) == 0;
        Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate).and_then(|transaction| {
            let wrote = transfer.run(&mut &*transaction)?;
            if changes_its_mind {
                transaction.rollback()?;
                return Ok(Did::Failed);
            }
            transaction.commit()?;
            Ok(Did::Wrote(wrote))
        })
    }

    fn read(&mut self) -> rusqlite::Result<Did> {
        let glance = Glance::random(&mut self.rng);
        let transaction = self.connection.unchecked_transaction()?;
        let saw = glance.look(&&*transaction)?;
        transaction.commit()?;
        Ok(Did::Read(Read { saw, after: None, snapshot: None }))
    }
}
