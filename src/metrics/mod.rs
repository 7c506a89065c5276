//! What the service measures, for the recorder of the [`metrics`] facade, and so for Prometheus and others.
//!
//! Nothing is recorded while a command runs. A [`Publisher`] now and then hands over what the service measures
//! anyway: counters are raised by what was added since the last time, gauges are set, and histograms get what
//! was added to the service's own, which are exact to 1 %. So a command costs the writer the same with it and
//! without. The names are listed in the [operations guide](crate::guide::operations#metrics).
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("app.db");
//! use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
//! use solewriter::Database;
//! use solewriter::metrics::{COMMANDS_BUCKETS, Publisher, SECONDS_BUCKETS};
//!
//! let recorder = PrometheusBuilder::new()
//!     .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS_BUCKETS)?
//!     .set_buckets_for_metric(Matcher::Suffix("_commands".into()), &COMMANDS_BUCKETS)?
//!     .build_recorder();
//! let prometheus = recorder.handle();
//! ::metrics::set_global_recorder(recorder)?;
//!
//! let db = Database::open(&path).await?;
//! let publisher = Publisher::new(&db).database("app");
//! db.execute("CREATE TABLE notes (text TEXT)", ()).await?;
//!
//! publisher.publish(); // before each scrape
//! let page = prometheus.render();
//! assert!(page.contains(r#"solewriter_commands_total{database="app",outcome="committed"} 1"#), "{page}");
//! # Ok(()) }
//! ```
//!
//! [`metrics`]: ::metrics

mod table;
#[cfg(test)]
mod tests;
#[cfg(feature = "http")]
mod text;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::metrics::{Key, Label, Level, Metadata, Recorder, SharedString, with_recorder};
use tokio::time::MissedTickBehavior;

use crate::config::Config;
use crate::database::Database;
use crate::health::Health;
use crate::meter::Meter;
use crate::stats::{Measurements, Stats};
use crate::sync::lock;
use table::{METRICS, Metric, Observed, Source};
#[cfg(feature = "http")]
pub(crate) use text::CONTENT_TYPE;

/// Buckets for the histograms of seconds: from the run of a short command to the longest waits the default
/// limits allow.
///
/// Exporters that have to be told buckets want them for the suffix `_seconds`. What has no buckets,
/// metrics-exporter-prometheus renders as a summary, which can't be added up over instances.
pub const SECONDS_BUCKETS: [f64; 18] = [
    1e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0,
    30.0,
];

/// Buckets for the histograms of commands, whose names end in `_commands`: up to the largest group of the
/// default [`Config`].
pub const COMMANDS_BUCKETS: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 256.0, 1024.0, 2048.0, 4096.0];

/// Hands what a database measures to the recorder of the `metrics` facade. See the [module](self).
///
/// A publisher does not keep its database open. One is enough for each database and recorder: a second one that
/// publishes to the same recorder counts everything twice.
pub struct Publisher {
    meter: Meter,
    config: Config,
    database: SharedString,
    /// As of the last time.
    published: Mutex<Measurements>,
}

impl Publisher {
    /// A publisher for the database behind this handle. The first time it publishes what was measured since the
    /// database was opened.
    ///
    /// The label `database` is the [`name`](Config::name) that was configured, until
    /// [`database`](Self::database) says otherwise.
    #[must_use]
    pub fn new(db: &Database) -> Self {
        Self {
            meter: db.service().meter.clone(),
            config: db.config().clone(),
            database: Arc::<str>::from(db.config().name.as_str()).into(),
            published: Mutex::default(),
        }
    }

    /// Sets the label `database`.
    ///
    /// Databases of one process need names that differ: of two with the same name the counters would be added
    /// up, and of each gauge the value that was published last would be seen.
    #[must_use]
    pub fn database(mut self, name: impl Into<Arc<str>>) -> Self {
        self.database = name.into().into();
        self
    }

    /// Writes what has changed since the last time into the current recorder: the one of the innermost
    /// [`with_local_recorder`](::metrics::with_local_recorder), or the global one.
    ///
    /// Call it before each scrape; or let [`run`](Self::run) do it, where an exporter pushes or serves by
    /// itself. Without a recorder the values are lost, so install it first. The work is proportional to the number of
    /// values that exporters take one by one, two for each command; see the
    /// [operations guide](crate::guide::operations#what-publishing-costs).
    ///
    /// In a fork of the process that opened the database nothing is published.
    pub fn publish(&self) {
        if self.meter.is_forked() {
            return;
        }
        let (added, stats) = {
            // From before the measuring: what two threads publish must not overlap.
            let mut published = lock(&self.published);
            let now = self.meter.measure();
            let (added, stats) = (now.since(&published), now.stats.clone());
            *published = now;
            (added, stats)
        };
        let observed = self.observe(added, stats);
        with_recorder(|recorder| {
            for metric in METRICS {
                self.write(recorder, metric, &observed);
            }
        });
    }

    /// What is published: of counters and distributions what was `added`, all else as it is now.
    fn observe(&self, added: Measurements, now: Stats) -> Observed<'_> {
        let seen = self.meter.look(now, &self.config.health);
        Observed {
            added,
            holder: seen.holder.clone(),
            oldest_read: seen.oldest_read.clone(),
            imports_running: seen.running_imports.len(),
            health: Health::assess(seen, self.meter.is_closed(), &self.config),
            config: &self.config,
        }
    }

    /// Everything since the database was opened, as a page for Prometheus: apart from what is published.
    #[cfg(feature = "http")]
    pub(crate) fn page(&self) -> Result<String, prometheus::Error> {
        let now = self.meter.measure();
        let stats = now.stats.clone();
        text::render(&self.observe(now, stats), &self.database)
    }

    fn write(&self, recorder: &dyn Recorder, metric: &Metric, observed: &Observed<'_>) {
        const METADATA: Metadata<'_> = Metadata::new("solewriter", Level::INFO, Some("solewriter"));
        let (name, unit, help) = (metric.name.into(), Some(metric.unit), metric.help.into());
        match metric.source {
            Source::Counter(read) => {
                recorder.describe_counter(name, unit, help);
                for (label, added) in read(observed) {
                    recorder.register_counter(&self.key(metric, label), &METADATA).increment(added);
                }
            }
            Source::Gauge(read) => {
                recorder.describe_gauge(name, unit, help);
                for (label, value) in read(observed) {
                    recorder.register_gauge(&self.key(metric, label), &METADATA).set(value);
                }
            }
            Source::Histogram(read) => {
                recorder.describe_histogram(name, unit, help);
                for (label, values) in read(observed) {
                    let histogram = recorder.register_histogram(&self.key(metric, label), &METADATA);
                    for (value, count) in values {
                        histogram.record_many(value, usize::try_from(count).unwrap_or(usize::MAX));
                    }
                }
            }
        }
    }

    fn key(&self, metric: &Metric, value: &'static str) -> Key {
        let database = Label::new("database", self.database.clone());
        let own = metric.label.map(|name| Label::new(name, value));
        Key::from_parts(metric.name, [Some(database), own].into_iter().flatten().collect::<Vec<_>>())
    }

    /// Publishes to the global recorder, now and at every interval, and ends with the last figures when the
    /// database is closed. To be spawned.
    ///
    /// # Panics
    /// If the interval is zero, and outside of a Tokio runtime with time enabled.
    ///
    /// # Cancel safety
    /// Dropped, it publishes nothing more.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let db = solewriter::Database::open(dir.path().join("app.db")).await?;
    /// use std::time::Duration;
    /// use solewriter::Drain;
    /// use solewriter::metrics::Publisher;
    ///
    /// let publishing = tokio::spawn(Publisher::new(&db).run(Duration::from_secs(1)));
    /// db.shutdown(Drain::within(Duration::from_secs(5))).await?;
    /// publishing.await?;
    /// # Ok(()) }
    /// ```
    pub async fn run(self, interval: Duration) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_closed = tokio::select! {
                () = self.meter.closed() => true,
                _ = ticks.tick() => false,
            };
            self.publish();
            if is_closed {
                return;
            }
        }
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("database", &self.database).finish_non_exhaustive()
    }
}
