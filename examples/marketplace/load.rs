//! The people who work while the import runs: an open-loop load of renames and list reads.
//!
//! Open loop means that requests arrive when they are due, however slow the earlier ones are, and that
//! latency counts from then. A client that waits for its answer before it asks again would hide just the
//! stalls that are looked for.

use std::error::Error;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

use crate::catalog::{Entry, Page, Rename};
use crate::error::{is_locked, with_causes};
use crate::marketplace::{EntrySource, Marketplace};
use crate::measured::{Answer, Load};
use crate::store::now;

/// Requests of one kind that may be on their way at once. Later arrivals then start late, but their clock
/// runs.
const OUTSTANDING_MAX: usize = 200;
const PAGE_ENTRIES: usize = 25;

/// Sends `request(0)`, `request(1)`, … at a rate of `per_second` until `stopped` turns true, and waits for
/// the answers.
///
/// Every request is a task of its own. A rate of zero sends nothing.
pub(crate) async fn open_loop<F, Fut>(per_second: u32, mut stopped: watch::Receiver<bool>, request: F) -> Load
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = Answer> + Send + 'static,
{
    let mut load = Load::default();
    if per_second == 0 {
        return load;
    }
    let interval = Duration::from_secs(1) / per_second;
    let mut outstanding = JoinSet::new();
    let mut scheduled = Instant::now();
    for arrival in 0.. {
        if !is_due_before_stop(scheduled, &mut stopped).await {
            break;
        }
        while let Some(answered) = outstanding.try_join_next() {
            record(&mut load, answered);
        }
        if outstanding.len() >= OUTSTANDING_MAX
            && let Some(answered) = outstanding.join_next().await
        {
            record(&mut load, answered);
        }
        outstanding.spawn(timed(scheduled, request(arrival)));
        scheduled += interval;
    }
    while let Some(answered) = outstanding.join_next().await {
        record(&mut load, answered);
    }
    load
}

/// Waits until `scheduled`; false if the load is stopped before. What is already due still goes out after the
/// stop.
async fn is_due_before_stop(scheduled: Instant, stopped: &mut watch::Receiver<bool>) -> bool {
    tokio::select! {
        biased;
        () = sleep_until(scheduled) => true,
        // An error means that nobody can stop us any more: a reason to stop, too.
        _ = stopped.wait_for(|stopped| *stopped) => false,
    }
}

async fn timed(scheduled: Instant, request: impl Future<Output = Answer>) -> (Duration, Answer) {
    let answer = request.await;
    (scheduled.elapsed(), answer)
}

fn record(load: &mut Load, answered: Result<(Duration, Answer), JoinError>) {
    match answered {
        Ok((latency, answer)) => load.record(latency, answer),
        Err(error) => {
            load.failed += 1;
            load.first_failure.get_or_insert(error.to_string());
        }
    }
}

/// What the load asks for: renames of real entries and pages of real sources, the same ones in every run.
#[derive(Debug)]
pub(crate) struct Requests {
    entries: Vec<Target>,
    pages: Vec<Page>,
}

#[derive(Debug)]
struct Target {
    source_id: String,
    entry_id: String,
    name: String,
}

impl Requests {
    /// Requests for the first `imports` sources, those that are being imported.
    pub(crate) fn of(marketplace: &Marketplace, imports: usize) -> Requests {
        let sources = &marketplace.sources[..imports.min(marketplace.sources.len())];
        let entries = sources.iter().flat_map(|source| {
            let target = |entry: &EntrySource| Target {
                source_id: source.id.clone(),
                entry_id: entry.id.clone(),
                name: entry.manifest.name.clone(),
            };
            source.all_entries().map(target)
        });
        let pages = sources.iter().flat_map(|source| {
            let offsets = (0..source.entry_count()).step_by(PAGE_ENTRIES);
            offsets.map(|offset| Page { source_id: source.id.clone(), offset, limit: PAGE_ENTRIES })
        });
        Requests { entries: entries.collect(), pages: pages.collect() }
    }

    /// The rename that arrives as number `arrival`: over the run it comes to all entries, in leaps over all
    /// sources.
    pub(crate) fn rename(&self, arrival: usize) -> Rename {
        // A prime that is no divisor of the count visits every entry before it repeats one.
        let target = &self.entries[arrival.wrapping_mul(7919) % self.entries.len()];
        Rename {
            source_id: target.source_id.clone(),
            entry_id: target.entry_id.clone(),
            name: renamed(&target.name, arrival),
            at: now(),
        }
    }

    /// The page that is listed as number `arrival`.
    pub(crate) fn page(&self, arrival: usize) -> Page {
        self.pages[arrival % self.pages.len()].clone()
    }
}

/// The answer to a rename that succeeded: it has to show the row that was asked for.
pub(crate) fn answer_to_rename(asked: &Rename, entry: &Entry) -> Answer {
    if (&entry.id, &entry.name) == (&asked.entry_id, &asked.name) {
        return Answer::Done;
    }
    Answer::Failed(format!("asked for {asked:?}, got {entry:?}"))
}

/// The answer to a list that succeeded: only pages that exist are asked for.
pub(crate) fn answer_to_list(asked: &Page, entries: &[Entry]) -> Answer {
    if entries.is_empty() {
        return Answer::Failed(format!("{asked:?} is empty"));
    }
    Answer::Done
}

/// The answer to a request that failed.
pub(crate) fn answer_to_failure(error: &(dyn Error + 'static)) -> Answer {
    if is_locked(error) { Answer::Locked } else { Answer::Failed(with_causes(error)) }
}

/// The real name with the rename's number, within the 100 characters that a name may have.
fn renamed(name: &str, arrival: usize) -> String {
    let suffix = format!(" ({arrival})");
    let name: String = name.chars().take(100 - suffix.len()).collect();
    name + &suffix
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn latency_counts_from_the_scheduled_arrival_and_a_slow_answer_stops_nobody() {
        let (stop, stopped) = watch::channel(false);
        let load = tokio::spawn(open_loop(10, stopped, |arrival| async move {
            let slow = if arrival == 0 { 3000 } else { 0 };
            tokio::time::sleep(Duration::from_millis(slow)).await;
            Answer::Done
        }));
        tokio::time::sleep(Duration::from_millis(950)).await;
        stop.send_replace(true);
        let load = load.await.expect("the load does not panic");
        assert_eq!(load.done, 10);
        assert!(load.latencies.quantile(0.5) < Duration::from_millis(10));
        assert!(load.latencies.max() >= Duration::from_secs(3));
    }

    #[test]
    fn a_long_name_stays_within_the_limit() {
        let name = renamed(&"x".repeat(100), 12);
        assert_eq!(name.len(), 100);
        assert!(name.ends_with(" (12)"));
    }
}
