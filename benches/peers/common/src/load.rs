//! Makes load: clients that wait for their answers, and arrivals that don't.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::Error;
use crate::command::Command;
use crate::ledger::Ledger;
use crate::recorder::{Recorded, Recorder};
use crate::system::System;

/// What a load has come to.
pub(crate) struct Load {
    command: Command,
    /// Each client, and how often it has sent the command.
    sent: Vec<(i64, i64)>,
    pub(crate) recorded: Recorded,
}

impl Load {
    pub(crate) fn errors(&self) -> u64 {
        self.recorded.failed.len() as u64
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        self.sent.iter().map(|(_, sent)| sent.unsigned_abs()).sum::<u64>() - self.errors()
    }

    /// Notes the rows that were written.
    pub(crate) fn note(&self, ledger: &mut Ledger) {
        for &(client, sent) in &self.sent {
            let newest = (0..sent).rev().find_map(|n| self.command.row(n));
            ledger.note(client, newest.map_or(0, |row| row + 1), []);
        }
        for &(client, n) in &self.recorded.failed {
            ledger.note(client, 0, self.command.row(n));
        }
    }
}

/// Lets each client send a command, wait for the answer and send the next, until the time is up.
pub(crate) async fn closed_loop<S: System>(
    system: &Arc<S>,
    command: Command,
    clients: Range<i64>,
    length: Duration,
) -> Result<Load, Error> {
    let recorder = Arc::new(Recorder::new()?);
    let started = Instant::now();
    let tasks: Vec<_> = clients
        .map(|client| {
            let (system, recorder) = (Arc::clone(system), Arc::clone(&recorder));
            tokio::spawn(async move {
                let mut sent = 0;
                while started.elapsed() < length {
                    let begun = Instant::now();
                    let result = command.send(&*system, client, sent).await;
                    recorder.record(client, sent, begun.elapsed(), result);
                    sent += 1;
                }
                (client, sent)
            })
        })
        .collect();
    let mut sent = Vec::with_capacity(tasks.len());
    for task in tasks {
        sent.push(task.await?);
    }
    Ok(Load { command, sent, recorded: recorder.take()? })
}

/// Commands that arrive whether or not the earlier ones have been answered.
pub(crate) struct OpenLoop {
    command: Command,
    client: i64,
    recorder: Arc<Recorder>,
    is_over: Arc<AtomicBool>,
    /// Tells how many have arrived.
    arrivals: JoinHandle<i64>,
    /// Ends when all of them are answered.
    answers: mpsc::Receiver<()>,
}

impl OpenLoop {
    /// Begins arrivals at random moments, `rate` a second on average. Latency counts from the moment an arrival was
    /// due, so that what waits before it is sent is not left out.
    pub(crate) fn begin<S: System>(
        system: &Arc<S>,
        command: Command,
        client: i64,
        rate: f64,
    ) -> Result<Self, Error> {
        let recorder = Arc::new(Recorder::new()?);
        let is_over = Arc::new(AtomicBool::new(false));
        let (pending, answers) = mpsc::channel(1);
        let runtime = Handle::current();
        // A thread of its own: the runtime's timers are good for milliseconds only.
        let arrivals = thread::Builder::new().name("arrivals".into()).spawn({
            let (system, recorder) = (Arc::clone(system), Arc::clone(&recorder));
            let is_over = Arc::clone(&is_over);
            move || {
                let mut arrivals = Arrivals::at(rate);
                let mut sent = 0;
                loop {
                    let due = arrivals.next_due();
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    if is_over.load(Ordering::Relaxed) {
                        return sent;
                    }
                    let (system, recorder) = (Arc::clone(&system), Arc::clone(&recorder));
                    let pending = pending.clone();
                    runtime.spawn(async move {
                        let result = command.send(&*system, client, sent).await;
                        recorder.record(client, sent, due.elapsed(), result);
                        drop((system, pending));
                    });
                    sent += 1;
                }
            }
        })?;
        Ok(Self { command, client, recorder, is_over, arrivals, answers })
    }

    /// Lets nothing more arrive and waits for the answers.
    pub(crate) async fn end(mut self) -> Result<Load, Error> {
        self.is_over.store(true, Ordering::Relaxed);
        while self.answers.recv().await.is_some() {}
        let sent = self.arrivals.join().map_err(|_| "the thread of the arrivals panicked")?;
        Ok(Load { command: self.command, sent: vec![(self.client, sent)], recorded: self.recorder.take()? })
    }
}

/// Moments at which something arrives, each independent of the one before.
struct Arrivals {
    rate: f64,
    due: Instant,
    random: fastrand::Rng,
}

impl Arrivals {
    fn at(rate: f64) -> Self {
        Self { rate, due: Instant::now(), random: fastrand::Rng::with_seed(1) }
    }

    fn next_due(&mut self) -> Instant {
        // Never the logarithm of zero.
        let gap = -(1.0 - self.random.f64()).ln() / self.rate;
        self.due += Duration::from_secs_f64(gap);
        self.due
    }
}
