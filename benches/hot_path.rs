//! The way of one command, from the handle to its answer, in groups of a fixed size: what `benches/instructions.sh`
//! counts the instructions of.
//!
//! The first command of each group holds the writer until all others wait, so every run does the same.
#![allow(missing_docs, reason = "a program, not a library")]

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};
use solewriter::{Command, Config, Database, Drain, Durability, WriteTransaction};

type Error = Box<dyn std::error::Error + Send + Sync>;

const SCHEMA: &str =
    "CREATE TABLE events (id INTEGER PRIMARY KEY, client INTEGER NOT NULL, text TEXT NOT NULL)";
const INSERT: &str = "INSERT INTO events (client, text) VALUES (?1, ?2)";
const TEXT: &str =
    "one row of about a hundred bytes, as a service writes it: who did what, where, when, and why";

#[derive(Parser)]
struct Options {
    #[arg(long, value_enum, default_value = "statement")]
    workload: Workload,
    #[arg(long, default_value_t = 100)]
    groups: usize,
    /// Commands of a group.
    #[arg(long, default_value_t = 512)]
    size: usize,
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
    /// `write`, which has a savepoint.
    Once,
    /// A loop over rusqlite, one transaction a group: the limit.
    Raw,
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

fn main() -> Result<(), Error> {
    let options = Options::parse();
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let path = directory.path().join("bench.db");
    match options.workload {
        Workload::Raw => raw(&path, &options),
        _ => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(ours(&path, &options)),
    }
}

async fn ours(path: &Path, options: &Options) -> Result<(), Error> {
    let never = Duration::from_secs(3_600);
    let config = Config {
        durability: Durability::Normal,
        // Whatever depends on the clock is out of the way, since the counting makes everything slow.
        group_hold_max: never,
        hold_warning: never,
        command_wait_max: never,
        checkpoint_pages: u32::MAX,
        ..Config::default()
    };
    let db = Database::builder(path).config(config).open().await?;
    db.execute(SCHEMA, ()).await?;
    for _ in 0..options.groups {
        let (open, gate) = mpsc::channel();
        let held =
            db.write_rerunnable("gate", move |_| Ok::<_, rusqlite::Error>(gate.recv())).submit().await?;
        match options.workload {
            Workload::Statement => {
                group(options, open, |client| db.execute(INSERT, (client, TEXT)).submit()).await?
            }
            Workload::Typed => group(options, open, |client| db.send(Add { client }).submit()).await?,
            _ => {
                let insert = |client| move |tx: &mut WriteTransaction<'_>| tx.execute(INSERT, (client, TEXT));
                group(options, open, |client| db.write("events.add", insert(client)).submit()).await?;
            }
        }
        held.await??;
    }
    db.shutdown(Drain::within(never)).await?;
    Ok(())
}

async fn group<R, S>(
    options: &Options,
    open: mpsc::Sender<()>,
    submit: impl Fn(i64) -> S,
) -> Result<(), Error>
where
    S: Future<Output = Result<R, solewriter::WriteError<rusqlite::Error>>>,
    R: IntoFuture<Output = Result<usize, solewriter::WriteError<rusqlite::Error>>>,
{
    let mut receipts = Vec::with_capacity(options.size);
    for client in 0..options.size as i64 {
        receipts.push(submit(client).await?);
    }
    open.send(())?;
    for receipt in receipts {
        receipt.await?;
    }
    Ok(())
}

fn raw(path: &Path, options: &Options) -> Result<(), Error> {
    let mut connection = rusqlite::Connection::open(path)?;
    connection.execute_batch(&format!(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 0; PRAGMA foreign_keys = ON;
         PRAGMA cache_size = -65536; PRAGMA mmap_size = 268435456; {SCHEMA}"
    ))?;
    for _ in 0..options.groups {
        let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        for client in 0..options.size as i64 {
            transaction.prepare_cached(INSERT)?.execute((client, TEXT))?;
        }
        transaction.commit()?;
    }
    Ok(())
}
