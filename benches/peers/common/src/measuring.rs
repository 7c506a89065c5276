//! What is measured of the process and of the WAL while a load runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use procfs::process::{ClearRefs, Process};
use rustix::time::{ClockId, clock_gettime};

use crate::Error;
use crate::figures::Figures;
use crate::options::Options;
use crate::recorder::Latencies;

/// How often the size of the WAL is looked at.
const WAL_INTERVAL: Duration = Duration::from_millis(2);

/// A measurement that runs.
pub struct Measuring {
    started: Instant,
    cpu: Duration,
    wal: WalSampler,
}

/// What a load has come to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Until the last acknowledgement.
    pub elapsed: Duration,
    /// What the workload is about.
    pub acknowledged: u64,
    /// What was acknowledged besides: it took CPU time too.
    pub acknowledged_beside: u64,
    pub latencies: Latencies,
}

impl Measuring {
    /// Begins; what came before, such as filling the tables, does not count.
    ///
    /// # Errors
    /// If the kernel does not tell, or the sampler gets no thread.
    pub fn begin(database: &Path) -> Result<Self, Error> {
        Process::myself()?.clear_refs(ClearRefs::PeakRSS)?;
        let wal = WalSampler::begin(database)?;
        Ok(Self { started: Instant::now(), cpu: cpu_time(), wal })
    }

    /// How long it has run.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Ends; errors and lost rows are still to be counted.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn end(self, options: &Options, outcome: &Outcome) -> Result<Figures, Error> {
        let cpu = cpu_time() - self.cpu;
        let peak = Process::myself()?.status()?.vmhwm.ok_or("the kernel tells no peak RSS")?;
        let commands = outcome.acknowledged + outcome.acknowledged_beside;
        Ok(Figures {
            workload: options.workload,
            system: options.system.clone(),
            clients: options.clients,
            durability: options.durability,
            ops_per_s: outcome.acknowledged as f64 / outcome.elapsed.as_secs_f64(),
            p50_us: outcome.latencies.quantile_us(0.5),
            p99_us: outcome.latencies.quantile_us(0.99),
            p999_us: outcome.latencies.quantile_us(0.999),
            max_us: outcome.latencies.max_us(),
            errors: 0,
            lost: 0,
            cpu_us_per_command: cpu.as_secs_f64() * 1e6 / commands.max(1) as f64,
            peak_rss_bytes: peak * 1024,
            wal_max_bytes: self.wal.end(),
        })
    }
}

/// CPU time of all threads, that of the load included; it is the same for every system.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Looks at the size of the WAL again and again: it shrinks, and the largest counts.
struct WalSampler {
    has_ended: Arc<AtomicBool>,
    max_bytes: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl WalSampler {
    fn begin(database: &Path) -> Result<Self, Error> {
        let (has_ended, max_bytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = thread::Builder::new().name("wal-sampler".into()).spawn({
            let (has_ended, max_bytes) = (Arc::clone(&has_ended), Arc::clone(&max_bytes));
            let logs = logs(database);
            move || {
                while !has_ended.load(Ordering::Relaxed) {
                    max_bytes.fetch_max(size(&logs), Ordering::Relaxed);
                    thread::sleep(WAL_INTERVAL);
                }
            }
        })?;
        Ok(Self { has_ended, max_bytes, thread: Some(thread) })
    }

    fn end(mut self) -> u64 {
        self.stop();
        self.max_bytes.load(Ordering::Relaxed)
    }

    fn stop(&mut self) {
        self.has_ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It can't panic, and there is nothing to do about it here.
            drop(thread.join());
        }
    }
}

impl Drop for WalSampler {
    fn drop(&mut self) {
        self.stop();
    }
}

/// SQLite's WAL, and the logical log that turso has with `BEGIN CONCURRENT`.
fn logs(database: &Path) -> [PathBuf; 2] {
    ["-wal", "-log"].map(|suffix| {
        let mut name = database.as_os_str().to_owned();
        name.push(suffix);
        name.into()
    })
}

fn size(logs: &[PathBuf]) -> u64 {
    logs.iter().filter_map(|log| log.metadata().ok()).map(|metadata| metadata.len()).sum()
}
