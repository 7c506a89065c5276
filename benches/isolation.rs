//! What isolation costs: the same insert as one statement, typed command, closure that may run again, and
//! closure that runs once; and with a share of commands that fail.
//!
//! Prints one line of figures for each workload. `benches/against.sh` runs it side by side with another commit.
#![allow(missing_docs, reason = "a program, not a library")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};
use solewriter::{Command, Config, Database, Drain, Durability, WriteTransaction};

type Error = Box<dyn std::error::Error + Send + Sync>;

const SCHEMA: &str =
    "CREATE TABLE events (id INTEGER PRIMARY KEY, client INTEGER NOT NULL, text TEXT NOT NULL);
     CREATE TABLE taken (name INTEGER PRIMARY KEY);
     INSERT INTO taken VALUES (1)";
const INSERT: &str = "INSERT INTO events (client, text) VALUES (?1, ?2)";
const CLASH: &str = "INSERT INTO taken VALUES (1)";
const TEXT: &str =
    "one row of about a hundred bytes, as a service writes it: who did what, where, when, and why";

#[derive(Parser)]
struct Options {
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Workload::value_variants().to_vec())]
    workload: Vec<Workload>,
    #[arg(long, value_delimiter = ',', default_values_t = [64, 512])]
    clients: Vec<usize>,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// `full` or `normal`.
    #[arg(long, default_value = "full")]
    durability: String,
    /// Where the database is made.
    #[arg(long)]
    directory: Option<PathBuf>,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// `execute`.
    Statement,
    /// `send`.
    Typed,
    /// `write_rerunnable`.
    Rerunnable,
    /// `write`.
    Once,
    /// `write_rerunnable`, of which 1 in 100 fails before it has written.
    FailsEarly,
    /// `write_rerunnable`, of which 1 in 100 fails after it has written.
    FailsLate,
    /// As `fails-late`, under one label with those that succeed.
    FailsUnnamed,
}

#[derive(Serialize, Deserialize)]
struct Add {
    client: i64,
}

impl Command for Add {
    const NAME: &'static str = "events.add";
    type Output = usize;
    type Error = rusqlite::Error;

    fn apply(&self, tx: &mut WriteTransaction<'_>) -> rusqlite::Result<usize> {
        tx.execute(INSERT, (self.client, TEXT))
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let options = Options::parse();
    let durability = match options.durability.as_str() {
        "normal" => Durability::Normal,
        _ => Durability::Full,
    };
    for &workload in &options.workload {
        for &clients in &options.clients {
            let directory = match &options.directory {
                Some(directory) => tempfile::tempdir_in(directory)?,
                // On the disk the project is built on: in memory every sync would be free.
                None => tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?,
            };
            let config = Config { durability, ..Config::default() };
            let db = Database::builder(directory.path().join("bench.db")).config(config).open().await?;
            db.write("schema", |tx| tx.execute_batch(SCHEMA)).await?;
            let length = Duration::from_secs_f64(options.seconds);
            // The first part teaches the service which labels fail.
            run(&db, workload, clients, length / 10).await?;
            let (started, commands) = (Instant::now(), run(&db, workload, clients, length).await?);
            let per_second = commands as f64 / started.elapsed().as_secs_f64();
            let name =
                workload.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
            println!("{name} {clients} {per_second:.0}");
            db.shutdown(Drain::within(Duration::from_secs(30))).await?;
        }
    }
    Ok(())
}

/// Lets each client send one command after the other; returns how many were answered.
async fn run(db: &Database, workload: Workload, clients: usize, length: Duration) -> Result<u64, Error> {
    let started = Instant::now();
    let tasks: Vec<_> = (0..clients as i64)
        .map(|client| {
            let db = db.clone();
            tokio::spawn(async move {
                let mut answered = 0_u64;
                while started.elapsed() < length {
                    let fails = (answered + client as u64 * 7).is_multiple_of(100);
                    send(&db, workload, client, fails).await;
                    answered += 1;
                }
                answered
            })
        })
        .collect();
    let mut answered = 0;
    for task in tasks {
        answered += task.await?;
    }
    Ok(answered)
}

async fn send(db: &Database, workload: Workload, client: i64, fails: bool) {
    let add = move |tx: &mut WriteTransaction<'_>| tx.execute(INSERT, (client, TEXT));
    let early = |tx: &mut WriteTransaction<'_>| tx.execute(CLASH, ());
    let late = move |tx: &mut WriteTransaction<'_>| {
        tx.execute(INSERT, (client, TEXT))?;
        tx.execute(CLASH, ())
    };
    let sent = match workload {
        Workload::Statement => db.execute(INSERT, (client, TEXT)).await,
        Workload::Typed => db.send(Add { client }).await,
        Workload::Once => db.write("once", add).await,
        Workload::FailsEarly if fails => db.write_rerunnable("fails", early).await,
        Workload::FailsLate if fails => db.write_rerunnable("fails", late).await,
        Workload::FailsUnnamed if fails => db.write_rerunnable("add", late).await,
        _ => db.write_rerunnable("add", add).await,
    };
    let expected =
        fails && matches!(workload, Workload::FailsEarly | Workload::FailsLate | Workload::FailsUnnamed);
    assert_eq!(sent.is_err(), expected, "{sent:?}");
}
