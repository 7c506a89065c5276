//! Single-row durable writes: solewriter against tokio-rusqlite, side by side in one run.
//!
//! `cargo bench --bench writes -- --json FILE` writes the medians as an array of objects.
#![allow(missing_docs, reason = "a program, not a library")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;
use comfy_table::Table;
use hdrhistogram::Histogram;
use serde::Serialize;
use solewriter::{Config, Database, Drain, Durability};

type Error = Box<dyn std::error::Error + Send + Sync>;

const SCHEMA: &str =
    "CREATE TABLE events (id INTEGER PRIMARY KEY, client INTEGER NOT NULL, text TEXT NOT NULL)";
const INSERT: &str = "INSERT INTO events (client, text) VALUES (?1, ?2)";
const TEXT: &str =
    "one row of about a hundred bytes, as a service writes it: who did what, where, when, and why";

#[derive(Parser)]
struct Options {
    /// Numbers of clients, each of which waits for its answer before it sends the next row.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 64, 512])]
    clients: Vec<usize>,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Rounds; in each, every system takes its turn.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Writes the medians here.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum System {
    Solewriter,
    TokioRusqlite,
}

impl System {
    const ALL: [Self; 2] = [Self::Solewriter, Self::TokioRusqlite];

    fn name(self) -> &'static str {
        match self {
            Self::Solewriter => "solewriter",
            Self::TokioRusqlite => "tokio-rusqlite",
        }
    }
}

#[derive(Clone, Serialize)]
struct Figures {
    system: &'static str,
    clients: usize,
    durability: Durability,
    ops_per_s: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let options = Options::parse();
    let mut table = Table::new();
    table.load_style(comfy_table::presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "durability",
        "clients",
        "system",
        "ops/s",
        "min–max",
        "p50",
        "p99",
        "p99.9",
        "max",
        "ratio",
    ]);
    let mut medians = Vec::new();
    for durability in [Durability::Full, Durability::Normal] {
        for &clients in &options.clients {
            let mut rounds: [Vec<Figures>; 2] = Default::default();
            for _ in 0..options.rounds {
                for (system, results) in System::ALL.into_iter().zip(&mut rounds) {
                    results.push(measure(system, clients, durability, options.seconds).await?);
                }
            }
            let pair = rounds.map(median);
            for (median, spread) in &pair {
                let ratio = median.ops_per_s / pair[1].0.ops_per_s;
                table.add_row(row(median, *spread, ratio));
            }
            medians.extend(pair.map(|(median, _)| median));
        }
    }
    println!("{table}");
    if let Some(file) = options.json {
        std::fs::write(file, serde_json::to_vec_pretty(&medians)?)?;
    }
    Ok(())
}

/// The round with the median throughput, and the range of the throughput.
fn median(mut rounds: Vec<Figures>) -> (Figures, (f64, f64)) {
    rounds.sort_by(|a, b| a.ops_per_s.total_cmp(&b.ops_per_s));
    let spread = (rounds[0].ops_per_s, rounds[rounds.len() - 1].ops_per_s);
    (rounds.swap_remove(rounds.len() / 2), spread)
}

fn row(figures: &Figures, (min, max): (f64, f64), ratio: f64) -> Vec<String> {
    let durability = match figures.durability {
        Durability::Full => "FULL",
        Durability::Normal => "NORMAL",
    };
    let millis = |us: f64| format!("{:.2} ms", us / 1000.0);
    vec![
        durability.into(),
        figures.clients.to_string(),
        figures.system.into(),
        format!("{:.0}", figures.ops_per_s),
        format!("{min:.0}–{max:.0}"),
        millis(figures.p50_us),
        millis(figures.p99_us),
        millis(figures.p999_us),
        millis(figures.max_us),
        format!("{ratio:.1} ×"),
    ]
}

async fn measure(
    system: System,
    clients: usize,
    durability: Durability,
    seconds: f64,
) -> Result<Figures, Error> {
    // On the disk the project is built on: a file system in memory would make every sync free.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let path = directory.path().join("bench.db");
    let length = Duration::from_secs_f64(seconds);
    let (latencies, elapsed) = match system {
        System::Solewriter => solewriter(&path, clients, durability, length).await?,
        System::TokioRusqlite => tokio_rusqlite(&path, clients, durability, length).await?,
    };
    let written: u64 = rusqlite::Connection::open(&path)?
        .query_row("SELECT count(*) FROM events", (), |row| row.get::<_, i64>(0))?
        .try_into()?;
    assert_eq!(written, latencies.len(), "every acknowledged row is there, and no other");
    let micros = |quantile| latencies.value_at_quantile(quantile) as f64 / 1000.0;
    Ok(Figures {
        system: system.name(),
        clients,
        durability,
        ops_per_s: latencies.len() as f64 / elapsed.as_secs_f64(),
        p50_us: micros(0.5),
        p99_us: micros(0.99),
        p999_us: micros(0.999),
        max_us: latencies.max() as f64 / 1000.0,
    })
}

async fn solewriter(
    path: &Path,
    clients: usize,
    durability: Durability,
    length: Duration,
) -> Result<(Histogram<u64>, Duration), Error> {
    let config = Config { durability, ..Config::default() };
    let db = Database::builder(path).config(config).open().await?;
    db.execute(SCHEMA, ()).await?;
    let measured = run_clients(db.clone(), clients, length).await?;
    db.shutdown(Drain::within(Duration::from_secs(30))).await?;
    Ok(measured)
}

async fn tokio_rusqlite(
    path: &Path,
    clients: usize,
    durability: Durability,
    length: Duration,
) -> Result<(Histogram<u64>, Duration), Error> {
    let synchronous = match durability {
        Durability::Full => "FULL",
        Durability::Normal => "NORMAL",
    };
    let connection = tokio_rusqlite::Connection::open(path).await?;
    connection
        .call(move |connection| {
            // What solewriter sets. Checkpoints stay automatic, since nothing else would run them here.
            connection.execute_batch(&format!(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = {synchronous}; PRAGMA foreign_keys = ON;
                 PRAGMA temp_store = MEMORY; PRAGMA cache_size = -65536; PRAGMA mmap_size = 268435456;
                 PRAGMA busy_timeout = 10000; {SCHEMA}"
            ))
        })
        .await?;
    let measured = run_clients(connection.clone(), clients, length).await?;
    connection.close().await?;
    Ok(measured)
}

trait Client: Clone + Send + Sync + 'static {
    fn insert(&self, client: i64) -> impl Future<Output = Result<(), Error>> + Send;
}

impl Client for Database {
    async fn insert(&self, client: i64) -> Result<(), Error> {
        self.execute(INSERT, (client, TEXT)).await?;
        Ok(())
    }
}

impl Client for tokio_rusqlite::Connection {
    async fn insert(&self, client: i64) -> Result<(), Error> {
        self.call(move |connection| connection.prepare_cached(INSERT)?.execute((client, TEXT))).await?;
        Ok(())
    }
}

/// Lets each client write one row after the other until the time is up, and collects what each row took.
async fn run_clients(
    system: impl Client,
    clients: usize,
    length: Duration,
) -> Result<(Histogram<u64>, Duration), Error> {
    let started = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let system = system.clone();
            tokio::spawn(async move {
                let mut latencies = Histogram::<u64>::new(3)?;
                while started.elapsed() < length {
                    let sent = Instant::now();
                    system.insert(client as i64).await?;
                    latencies.record(sent.elapsed().as_nanos() as u64)?;
                }
                Ok::<_, Error>(latencies)
            })
        })
        .collect();
    let mut all = Histogram::<u64>::new(3)?;
    for task in tasks {
        all.add(task.await??)?;
    }
    Ok((all, started.elapsed()))
}
