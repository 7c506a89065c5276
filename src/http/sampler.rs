//! Looks at the service once a second, while somebody looks at the samples.

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::history::{GAP, History, Point};
use super::sample::{Document, Interval, Sample};
use crate::database::Database;
use crate::import::{ImportId, ImportRecord};
use crate::stats::Measurements;
use crate::sync::lock;

/// From one sample to the next.
pub(super) const PERIOD: Duration = Duration::from_secs(1);

/// How long sampling goes on after the last look.
const LINGER: Duration = Duration::from_secs(30);

/// How many records of imports a sample has.
const RECORDS_MAX: usize = 10;

pub(super) struct Sampler {
    db: Database,
    /// The newest sample; a receiver that is slow misses those in between.
    samples: watch::Sender<Option<Arc<Sample>>>,
    state: Mutex<State>,
    records: Arc<Mutex<Records>>,
}

struct State {
    number: u64,
    taken: Instant,
    /// What the newest sample was measured from; that of the next tells what was added.
    measured: Measurements,
    history: Arc<History>,
    looked: Instant,
    task: Option<JoinHandle<()>>,
}

/// What is written down of the newest imports. It is read again only when an import has begun or ended.
#[derive(Default)]
struct Records {
    read: Vec<ImportRecord>,
    /// Which imports ran, and how many had ended, when they were read.
    as_of: Option<(Vec<ImportId>, u64)>,
    is_reading: bool,
}

impl Sampler {
    pub(super) fn new(db: Database) -> Self {
        let now = Instant::now();
        let state = State {
            number: 0,
            taken: now,
            measured: Measurements::default(),
            history: Arc::new(History::new(db.config())),
            looked: now,
            task: None,
        };
        Self { db, samples: watch::Sender::new(None), state: Mutex::new(state), records: Arc::default() }
    }

    /// The newest sample: at most a little older than a second.
    pub(super) fn newest(self: &Arc<Self>) -> Arc<Sample> {
        let mut state = lock(&self.state);
        state.looked = Instant::now();
        let newest = self.samples.borrow().clone().filter(|_| state.taken.elapsed() < GAP);
        let newest = newest.unwrap_or_else(|| self.take(&mut state));
        if state.task.as_ref().is_none_or(JoinHandle::is_finished) {
            state.task = Some(tokio::spawn(run(Arc::downgrade(self))));
        }
        newest
    }

    /// The newest sample now, and those to come.
    pub(super) fn subscribe(self: &Arc<Self>) -> watch::Receiver<Option<Arc<Sample>>> {
        let mut samples = self.samples.subscribe();
        drop(self.newest());
        samples.mark_changed();
        samples
    }

    /// Takes the next sample; false if nobody has looked for long.
    fn tick(&self) -> bool {
        let mut state = lock(&self.state);
        if self.samples.receiver_count() == 0 && state.looked.elapsed() > LINGER {
            // Under the lock: whoever looks next finds that there is none.
            state.task = None;
            return false;
        }
        self.take(&mut state);
        true
    }

    fn take(&self, state: &mut State) -> Arc<Sample> {
        let service = self.db.service();
        let (now, measured) = (Instant::now(), service.meter.measure());
        let added = measured.since(&state.measured);
        // The first one is about everything since the database was opened, however long that is.
        let took = if state.number == 0 { service.meter.age() } else { now - state.taken };
        let interval = Interval::new(&added, took);
        // A longer interval is no second to chart.
        let point = (took < GAP).then(|| Point::new(now, &interval, &measured.stats));
        Arc::make_mut(&mut state.history).advance(now, point);
        let health = service.health_by(measured.stats.clone());
        let imports = service.meter.imports();
        let running = imports.iter().map(|import| import.id.clone()).collect();
        self.read_records((running, service.imports.ended_in_all()));
        state.number += 1;
        let sample = Arc::new(Sample::new(
            &Document {
                sample: state.number,
                at: SystemTime::now(),
                database: &self.db.config().name,
                file: self.db.path().file_name().and_then(|name| name.to_str()).unwrap_or_default(),
                interval,
                stats: &measured.stats,
                wal_target_bytes: self.db.config().wal_target_bytes,
                health: &health,
                imports: &imports,
                import_records: &lock(&self.records).read,
                failures: &service.meter.recent_failures(),
            },
            state.history.clone(),
        ));
        (state.taken, state.measured) = (now, measured);
        self.samples.send_replace(Some(sample.clone()));
        sample
    }

    /// Reads the records of imports if others run or have ended than when they were read last. The read waits
    /// for its turn like any other; samples do not wait for it.
    fn read_records(&self, as_of: (Vec<ImportId>, u64)) {
        {
            let mut records = lock(&self.records);
            if records.is_reading || records.as_of.as_ref() == Some(&as_of) {
                return;
            }
            records.is_reading = true;
        }
        let (db, records) = (self.db.clone(), Reading(self.records.clone()));
        tokio::spawn(async move {
            // What can't be read now is asked for again with the next sample.
            if let Ok(read) = db.import_records(RECORDS_MAX).await {
                let mut records = lock(&records.0);
                (records.read, records.as_of) = (read, Some(as_of));
            }
        });
    }
}

/// Says that nobody reads the records any more, also if the task is dropped.
struct Reading(Arc<Mutex<Records>>);

impl Drop for Reading {
    fn drop(&mut self) {
        lock(&self.0).is_reading = false;
    }
}

/// Keeps sampling while somebody looks and the router is there.
async fn run(sampler: Weak<Sampler>) {
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + PERIOD, PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let Some(sampler) = sampler.upgrade() else { return };
        if !sampler.tick() {
            return;
        }
    }
}
