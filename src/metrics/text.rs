//! The same metrics as a page in Prometheus's text format, straight from what the service has counted.
//!
//! Nothing is kept between two pages, and a page costs the same whatever has happened since the last: an exporter
//! of the facade takes the values of a histogram one by one, two for each command.

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric as Sample, MetricFamily, MetricType,
};
use prometheus::{Error, TextEncoder};

use super::table::{METRICS, Metric, Observed, Source};
use super::{COMMANDS_BUCKETS, SECONDS_BUCKETS};

/// The content type of the page.
pub(crate) const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Every metric of a database, under this name.
pub(super) fn render(observed: &Observed<'_>, database: &str) -> Result<String, Error> {
    let families: Vec<_> = METRICS.iter().map(|metric| family(metric, observed, database)).collect();
    TextEncoder::new().encode_to_string(&families)
}

fn family(metric: &Metric, observed: &Observed<'_>, database: &str) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(metric.name.into());
    family.set_help(metric.help.into());
    let sample = |label| {
        let mut sample = Sample::default();
        let own = metric.label.map(|name| pair(name, label));
        sample.set_label([Some(pair("database", database)), own].into_iter().flatten().collect());
        sample
    };
    let samples = match metric.source {
        Source::Counter(read) => {
            family.set_field_type(MetricType::COUNTER);
            let counter = |(label, total): (&'static str, u64)| {
                let (mut sample, mut counter) = (sample(label), Counter::default());
                counter.set_value(total as f64);
                sample.set_counter(counter);
                sample
            };
            read(observed).into_iter().map(counter).collect()
        }
        Source::Gauge(read) => {
            family.set_field_type(MetricType::GAUGE);
            let gauge = |(label, value)| {
                let (mut sample, mut gauge) = (sample(label), Gauge::default());
                gauge.set_value(value);
                sample.set_gauge(gauge);
                sample
            };
            read(observed).into_iter().map(gauge).collect()
        }
        Source::Histogram(read) => {
            family.set_field_type(MetricType::HISTOGRAM);
            let bounds: &[f64] =
                if metric.name.ends_with("_seconds") { &SECONDS_BUCKETS } else { &COMMANDS_BUCKETS };
            let histogram = |(label, values): (&'static str, Vec<(f64, u64)>)| {
                let mut sample = sample(label);
                sample.set_histogram(histogram(&values, bounds));
                sample
            };
            read(observed).into_iter().map(histogram).collect()
        }
    };
    family.set_metric(samples);
    family
}

/// Buckets that each hold what the smaller ones do, as Prometheus wants them.
fn histogram(values: &[(f64, u64)], bounds: &[f64]) -> Histogram {
    let up_to = |bound: f64| values.iter().filter(|(value, _)| *value <= bound).map(|(_, count)| count).sum();
    let bucket = |bound: &f64| {
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(up_to(*bound));
        bucket
    };
    let mut histogram = Histogram::default();
    histogram.set_bucket(bounds.iter().map(bucket).collect());
    histogram.set_sample_count(up_to(f64::INFINITY));
    histogram.set_sample_sum(values.iter().map(|(value, count)| value * *count as f64).sum());
    histogram
}

fn pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.into());
    pair.set_value(value.into());
    pair
}
