//! A fixed number of single-row writes, for counting instructions: `benches/monitoring.sh` runs it with the
//! service's measuring in and out.

use std::time::Duration;

use clap::Parser;
use solewriter::{Config, Database, Drain, Durability};

#[derive(Parser)]
struct Options {
    /// How many rows are written.
    #[arg(long, default_value_t = 10_000)]
    commands: i64,

    /// How many of them wait together.
    #[arg(long, default_value_t = 64)]
    together: i64,

    /// Cargo's own, without meaning here.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    // No sync: it would cost time and no instructions.
    let config = Config { durability: Durability::Normal, ..Config::default() };
    let db = Database::builder(directory.path().join("bench.db")).config(config).open().await?;
    db.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, at INTEGER NOT NULL)", ())
        .await?;
    let mut sent = 0;
    while sent < options.commands {
        let mut receipts = Vec::new();
        while receipts.len() < options.together as usize && sent < options.commands {
            let insert = "INSERT INTO events (kind, at) VALUES (?1, ?2)";
            receipts.push(db.execute(insert, ("opened", sent)).submit().await?);
            sent += 1;
        }
        for receipt in receipts {
            receipt.await?;
        }
    }
    db.shutdown(Drain::within(Duration::from_secs(60))).await?;
    Ok(())
}
