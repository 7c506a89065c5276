//! The limits: loops on plain connections, without any queue, task or answer.

use std::cell::Cell;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use peers_common::rows::{self, ITEMS, Row, SCHEMA};
use peers_common::{
    Error, Figures, INSERTS_BESIDE_PER_S, Latencies, Ledger, Measuring, Options, Outcome, Workload, scattered,
};
use rusqlite::{Connection, Transaction};

use crate::steps;

/// Where solewriter begins its WAL anew at the latest: 64 MiB in pages of 4 KiB.
const WAL_PAGES_MAX: i32 = 64 * 1024 / 4;
/// The number of the one client that writes.
const WRITER: i64 = 0;

thread_local! {
    static WAL_PAGES: Cell<i32> = const { Cell::new(0) };
}

/// Measures a loop that commits `group` commands at a time.
///
/// # Errors
/// Any of SQLite's: a limit that has errors is none.
pub(crate) fn measure(options: &Options, group: usize) -> Result<Figures, Error> {
    let folder = tempfile::tempdir_in(&options.directory)?;
    let path = folder.path().join("bench.db");
    let mut connection = Connection::open(&path)?;
    steps::configure(&connection, options.durability)?;
    connection.execute_batch(SCHEMA)?;
    for transaction in rows::seed() {
        steps::in_transaction(&mut connection, |tx| {
            transaction.iter().try_for_each(|statement| steps::execute(tx, statement))
        })?;
    }
    // From here on checkpoints are ours, so that they keep the WAL to the target that solewriter has.
    connection.execute_batch("PRAGMA wal_autocheckpoint = 0; PRAGMA wal_checkpoint(RESTART)")?;
    connection.wal_hook(Some(|_, pages| {
        WAL_PAGES.set(pages);
        Ok(())
    }));

    let measuring = Measuring::begin(&path)?;
    let (outcome, written) = match options.workload {
        Workload::Insert | Workload::Closure => {
            write_groups(&mut connection, options, group, &measuring, |tx, row| steps::insert(tx, row))
        }
        Workload::ReadModifyWrite => {
            write_groups(&mut connection, options, group, &measuring, |tx, row| steps::deposit(tx, row))
        }
        Workload::Reads => read_beside_writer(&path, &mut connection, options, &measuring),
        Workload::Import => import(&mut connection, options, &measuring),
        other => Err(format!("there is no raw loop for {other}").into()),
    }?;
    let mut figures = measuring.end(options, &outcome)?;
    drop(connection);
    let mut ledger = Ledger::default();
    ledger.note(WRITER, written, []);
    let verdict = ledger.compare(&steps::pairs(&path, rows::SENT)?);
    (figures.lost, figures.errors) = (verdict.lost, verdict.surplus);
    Ok(figures)
}

/// Writes one group after the other until the time is up; each command takes as long as its group.
fn write_groups(
    connection: &mut Connection,
    options: &Options,
    group: usize,
    measuring: &Measuring,
    write: fn(&mut Transaction<'_>, Row) -> rusqlite::Result<()>,
) -> Result<(Outcome, i64), Error> {
    let mut latencies = Latencies::new()?;
    let (mut written, length) = (0, options.length());
    while measuring.elapsed() < length {
        let begun = Instant::now();
        let next = written + group as i64;
        steps::in_transaction(connection, |tx| {
            (written..next).try_for_each(|sequence| write(tx, Row { client: WRITER, sequence }))
        })?;
        written = next;
        latencies.record(begun.elapsed(), group as u64);
        keep_to_wal_target(connection)?;
    }
    let outcome = Outcome {
        elapsed: measuring.elapsed(),
        acknowledged: written.unsigned_abs(),
        acknowledged_beside: 0,
        latencies,
    };
    Ok((outcome, written))
}

fn keep_to_wal_target(connection: &Connection) -> rusqlite::Result<()> {
    if WAL_PAGES.get() >= WAL_PAGES_MAX {
        connection.query_row("PRAGMA wal_checkpoint(RESTART)", (), |_| Ok(()))?;
        WAL_PAGES.set(0);
    }
    Ok(())
}

/// Reads on a thread for each client, while this one inserts at a steady rate.
fn read_beside_writer(
    path: &Path,
    connection: &mut Connection,
    options: &Options,
    measuring: &Measuring,
) -> Result<(Outcome, i64), Error> {
    let (mut latencies, length) = (Latencies::new()?, options.length());
    let (is_over, reads) = (AtomicBool::new(false), AtomicI64::new(0));
    let mut written = 0;
    thread::scope(|scope| {
        let readers: Vec<_> = (0..options.clients as i64)
            .map(|client| {
                let (is_over, reads) = (&is_over, &reads);
                scope.spawn(move || read_until(path, options, client, is_over, reads))
            })
            .collect();
        while measuring.elapsed() < length {
            let due = Duration::from_secs_f64(written as f64 / INSERTS_BESIDE_PER_S);
            thread::sleep(due.saturating_sub(measuring.elapsed()));
            steps::insert(connection, Row { client: WRITER, sequence: written })?;
            written += 1;
            keep_to_wal_target(connection)?;
        }
        is_over.store(true, Ordering::Relaxed);
        for reader in readers {
            latencies.add(&reader.join().map_err(|_| "a reader panicked")??)?;
        }
        Ok::<_, Error>(())
    })?;
    let outcome = Outcome {
        elapsed: measuring.elapsed(),
        acknowledged: reads.into_inner().unsigned_abs(),
        acknowledged_beside: written.unsigned_abs(),
        latencies,
    };
    Ok((outcome, written))
}

fn read_until(
    path: &Path,
    options: &Options,
    client: i64,
    is_over: &AtomicBool,
    reads: &AtomicI64,
) -> Result<Latencies, Error> {
    let connection = Connection::open(path)?;
    steps::configure(&connection, options.durability)?;
    let (mut latencies, mut n) = (Latencies::new()?, 0);
    while !is_over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        steps::read(&connection, scattered(client, n) % ITEMS)?;
        latencies.record(begun.elapsed(), 1);
        n += 1;
    }
    reads.fetch_add(n, Ordering::Relaxed);
    Ok(latencies)
}

/// All rows in one transaction, and the checkpoint after it.
fn import(
    connection: &mut Connection,
    options: &Options,
    measuring: &Measuring,
) -> Result<(Outcome, i64), Error> {
    steps::in_transaction(connection, |tx| {
        (0..options.rows).try_for_each(|sequence| steps::insert(tx, Row { client: WRITER, sequence }))
    })?;
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(()))?;
    let mut latencies = Latencies::new()?;
    let elapsed = measuring.elapsed();
    latencies.record(elapsed, 1);
    let acknowledged = options.rows.unsigned_abs();
    Ok((Outcome { elapsed, acknowledged, acknowledged_beside: 0, latencies }, options.rows))
}
