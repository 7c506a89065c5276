//! Who works on the database during a run: writers, readers and imports, each a task in a closed loop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::stream;
use solewriter::{CommitToken, Database, EntryError, ImportError, ImportReport, Retry, WriteError};

use super::ledger::{Expected, Shared};
use super::measured::{Measured, in_full, lock};
use super::pair::{Pair, PairError, Poison, Way};

/// How long a task waits before it goes on after a failure that will not be over at once.
const PAUSE: Duration = Duration::from_millis(10);

/// After so many entries an import ends, and the next one begins.
const IMPORT_ENTRIES: usize = 10_000;

/// What all tasks share.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) db: Database,
    pub(crate) measured: Arc<Measured>,
    pub(crate) stop: Arc<AtomicBool>,
    /// In percent.
    pub(crate) poison: f64,
    pub(crate) seed: u64,
}

impl Site {
    /// A seed of its own for everyone, the same in each run with the same seed.
    fn seed_of(&self, source: i64) -> u64 {
        fastrand::Rng::with_seed(self.seed.wrapping_add(source.cast_unsigned())).u64(..)
    }

    fn pair(&self, source: i64, seq: u64) -> Pair {
        Pair { source, seq, poison: Poison::of(self.seed_of(source), seq, self.poison) }
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }
}

/// A writer as readers know it.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) source: i64,
    /// Its newest pair that was acknowledged.
    newest: Mutex<Option<(CommitToken, u64)>>,
}

impl Published {
    pub(crate) fn new(source: i64) -> Self {
        Self { source, newest: Mutex::default() }
    }
}

/// Writes one pair after the other, each in a way of its own.
pub(crate) async fn write(site: Site, published: Arc<Published>, ledger: Shared) {
    let mut rng = fastrand::Rng::with_seed(site.seed_of(published.source));
    while site.goes_on() {
        let seq = lock(&ledger).next();
        let pair = site.pair(published.source, seq);
        let asked = Instant::now();
        match pair.send(&site.db, Way::choose(&mut rng)).await {
            Ok(token) => {
                site.measured.acknowledged(asked.elapsed());
                lock(&ledger).answered(seq, Expected::Both);
                *lock(&published.newest) = Some((token, seq));
            }
            Err(error) => {
                lock(&ledger).answered(seq, site.measured.refused(&error, pair.poison));
                match (&error, error.retry()) {
                    (WriteError::NotStarted(_), Retry::Never) => break,
                    (WriteError::NotStarted(_) | WriteError::Unknown(_), _) => {
                        tokio::time::sleep(PAUSE).await
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Looks at what one writer or the other was acknowledged last: it must be there, in both halves, and what this
/// reader has seen once must never be gone.
pub(crate) async fn read(site: Site, writers: Vec<Arc<Published>>, number: u64) {
    let mut rng = fastrand::Rng::with_seed(site.seed.wrapping_sub(number));
    let mut seen = vec![0; writers.len()];
    while site.goes_on() && !writers.is_empty() {
        let index = rng.usize(..writers.len());
        let source = writers[index].source;
        let Some((token, acknowledged)) = *lock(&writers[index].newest) else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let newest = site.db.read_after(token, "stress.check", move |tx| {
            let newest: i64 = tx.query_row(
                "SELECT coalesce(max(seq), -1) FROM stress_halves WHERE source = ?1",
                [source],
                |row| row.get(0),
            )?;
            let halves: i64 = tx.query_row(
                "SELECT count(*) FROM stress_halves WHERE source = ?1 AND seq = ?2",
                (source, newest),
                |row| row.get(0),
            )?;
            Ok((newest, halves))
        });
        match newest.await {
            Ok((newest, halves)) => {
                site.measured.reads.add(1);
                if halves != 2 || newest < acknowledged.cast_signed() || newest < seen[index] {
                    site.measured.bad_reads.add(1);
                }
                seen[index] = newest;
            }
            Err(error) => {
                site.measured.reads_failed.add(1);
                site.measured.first_failure.get_or_init(|| in_full(&error));
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Imports one stream of pairs after the other.
pub(crate) async fn import(site: Site, source: i64, ledger: Shared) {
    while site.goes_on() {
        let first = lock(&ledger).sent();
        let entries = {
            let (site, ledger) = (site.clone(), ledger.clone());
            let next = move || site.goes_on().then(|| site.pair(source, lock(&ledger).next()));
            std::iter::from_fn(next).take(IMPORT_ENTRIES)
        };
        let run = site
            .db
            .import("stress.import", stream::iter(entries))
            .prepare(8, |pair| async move {
                // What takes time in a real import.
                tokio::task::yield_now().await;
                Ok::<_, PairError>(pair)
            })
            .failures_kept(0)
            .run_observed(
                |tx, pair: &Pair| pair.write(tx),
                |index, outcome| {
                    let seq = first + index;
                    let expected = match outcome {
                        Ok(()) => {
                            site.measured.imported.add(1);
                            Expected::Both
                        }
                        Err(EntryError::Write(error)) => {
                            site.measured.refused(error, site.pair(source, seq).poison)
                        }
                        Err(_) => Expected::None,
                    };
                    lock(&ledger).answered(seq, expected);
                },
            );
        let (report, pause) = match run.await {
            Ok(report) => {
                // What was handed out and is in no answer was taken for imported.
                lock(&ledger).close(first..first + report.accepted + report.failed);
                let handed_out = lock(&ledger).sent() - first;
                if report.accepted + report.failed != handed_out {
                    site.measured.bad_reports.add(1);
                }
                (report, Duration::ZERO)
            }
            Err(ImportError { report, failure }) => {
                site.measured.first_failure.get_or_init(|| failure.to_string());
                (*report, PAUSE)
            }
        };
        let ImportReport { batches_busy, .. } = report;
        site.measured.locked_errors.add(batches_busy);
        tokio::time::sleep(pause).await;
    }
}
