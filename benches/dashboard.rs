//! What the open dashboard costs a busy service: CPU time of the process per acknowledged command, at a steady rate,
//! with nobody looking and with a page that is open.
//!
//! `cargo bench --bench dashboard --features http -- --rounds 10 --seconds 4`
#![allow(missing_docs, reason = "a program, not a library")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use comfy_table::Table;
use futures_util::future::join_all;
use rustix::time::{ClockId, clock_gettime};
use solewriter::{Database, Drain, http};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

const TEXT: &str =
    "one row of about a hundred bytes, as a service writes it: who did what, where, when, and why";

type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(Parser)]
struct Options {
    /// Writes per second.
    #[arg(long, default_value_t = 50_000)]
    rate: u64,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Rounds of one measurement each with the page closed and open; they take turns at being the first.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How many pages are open.
    #[arg(long, default_value_t = 1)]
    pages: usize,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let options = Options::parse();
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let db = Database::open(directory.path().join("bench.db")).await?;
    db.execute(
        "CREATE TABLE events (id INTEGER PRIMARY KEY, client INTEGER NOT NULL, text TEXT NOT NULL)",
        (),
    )
    .await?;

    // The first measurement would pay for growing the file and the caches.
    measure(&db, &options).await?;
    let (mut closed, mut open) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        for is_open in [round % 2 == 1, round % 2 == 0] {
            if is_open {
                let pages = Pages::open(&db, options.pages).await?;
                open.push(measure(&db, &options).await?);
                pages.close().await;
            } else {
                closed.push(measure(&db, &options).await?);
            }
        }
    }
    report(&options, &closed, &open);
    db.shutdown(Drain::within(Duration::from_secs(60))).await?;
    Ok(())
}

/// A server of its own, so that nothing is sampled once its pages are closed. Those who look are in this process:
/// their work counts too.
struct Pages(Vec<JoinHandle<()>>);

impl Pages {
    async fn open(db: &Database, count: usize) -> Result<Self, Error> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let server = axum::serve(listener, http::router(db.clone())).into_future();
        let mut tasks = vec![tokio::spawn(async move { drop(server.await) })];
        for _ in 0..count {
            let mut page = TcpStream::connect(address).await?;
            page.write_all(b"GET /events HTTP/1.1\r\nHost: bench\r\n\r\n").await?;
            tasks.push(tokio::spawn(async move {
                let mut received = vec![0; 1 << 16];
                while page.read(&mut received).await.is_ok_and(|bytes| bytes > 0) {}
            }));
        }
        Ok(Self(tasks))
    }

    async fn close(self) {
        for task in self.0 {
            task.abort();
        }
        // Until the last tick of the sampler has found that its router is gone.
        tokio::time::sleep(Duration::from_millis(1500)).await;
    }
}

struct Figures {
    cpu_ns_per_command: f64,
    commands_per_second: f64,
}

/// Writes at a steady rate, whether or not answers come in time.
async fn measure(db: &Database, options: &Options) -> Result<Figures, Error> {
    const PER_SECOND: u64 = 500;
    let acknowledged = Arc::new(AtomicU64::new(0));
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / PER_SECOND as u32);
    let (began, cpu) = (Instant::now(), cpu());
    let mut tasks = JoinSet::new();
    while began.elapsed().as_secs_f64() < options.seconds {
        ticks.tick().await;
        let (db, acknowledged) = (db.clone(), acknowledged.clone());
        let count = options.rate / PER_SECOND;
        tasks.spawn(async move {
            let insert =
                || db.execute("INSERT INTO events (client, text) VALUES (?1, ?2)", (count as i64, TEXT));
            let answers = join_all((0..count).map(|_| insert().into_future())).await;
            acknowledged
                .fetch_add(answers.iter().filter(|answer| answer.is_ok()).count() as u64, Ordering::Relaxed);
        });
        while tasks.try_join_next().transpose()?.is_some() {}
    }
    while tasks.join_next().await.transpose()?.is_some() {}
    let (took, commands) = (began.elapsed().as_secs_f64(), acknowledged.load(Ordering::Relaxed) as f64);
    Ok(Figures {
        cpu_ns_per_command: (self::cpu() - cpu).as_nanos() as f64 / commands,
        commands_per_second: commands / took,
    })
}

/// The time that all threads of this process have computed.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn report(options: &Options, closed: &[Figures], open: &[Figures]) {
    let mut table = Table::new();
    table.set_header(["page", "commands/s", "CPU per command, ns: median (range)"]);
    for (name, figures) in [("closed", closed), ("open", open)] {
        let cpu = sorted(figures.iter().map(|figures| figures.cpu_ns_per_command));
        let rate = sorted(figures.iter().map(|figures| figures.commands_per_second));
        table.add_row([name.into(), format!("{:.0}", median(&rate)), spread(&cpu, 0)]);
    }
    println!("{table}");
    let ratios =
        closed.iter().zip(open).map(|(closed, open)| open.cpu_ns_per_command / closed.cpu_ns_per_command);
    println!(
        "open / closed, {} rounds, {} page(s): {}",
        options.rounds,
        options.pages,
        spread(&sorted(ratios), 3)
    );
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    } else {
        sorted[middle]
    }
}

fn spread(sorted: &[f64], digits: usize) -> String {
    let (low, high) = (sorted[0], sorted[sorted.len() - 1]);
    format!("{:.digits$} ({low:.digits$}–{high:.digits$})", median(sorted))
}
