//! Holds the documents against the table.

use std::collections::BTreeSet;

use ::metrics::Unit;

use super::table::{METRICS, Metric, Observed, Source};
use crate::config::Config;
use crate::health::{Health, Seen};
use crate::stats::Measurements;

const OPERATIONS: &str = include_str!("../../docs/operations.md");
const ALERTS: &str = include_str!("../../docs/alerts.yml");

/// The kind of a metric, and the values of its label.
fn shape(metric: &Metric) -> (&'static str, Vec<&'static str>) {
    fn labels<T>(series: Vec<(&'static str, T)>) -> Vec<&'static str> {
        series.into_iter().map(|(value, _)| value).collect()
    }
    let config = Config::default();
    let nothing = Observed {
        added: Measurements::default(),
        holder: None,
        oldest_read: None,
        health: Health::assess(Seen::default(), false, &config),
        imports_running: 0,
        config: &config,
    };
    match metric.source {
        Source::Counter(read) => ("counter", labels(read(&nothing))),
        Source::Gauge(read) => ("gauge", labels(read(&nothing))),
        Source::Histogram(read) => ("histogram", labels(read(&nothing))),
    }
}

/// The row of a metric in the document.
fn row(metric: &Metric) -> String {
    let (kind, values) = shape(metric);
    let unit = match metric.unit {
        Unit::Seconds => "seconds",
        Unit::Bytes => "bytes",
        _ => "–",
    };
    let label =
        metric.label.map_or_else(|| "–".into(), |label| format!("`{label}`: `{}`", values.join("`, `")));
    format!("| `{}` | {kind} | {unit} | {label} | {} |", metric.name, metric.help)
}

#[test]
fn the_documented_table_is_this_one() {
    let documented: Vec<_> = OPERATIONS.lines().filter(|line| line.starts_with("| `solewriter_")).collect();
    let rows: Vec<_> = METRICS.iter().map(row).collect();
    assert_eq!(documented, rows, "the rows should be:\n{}", rows.join("\n"));
}

#[test]
fn names_follow_the_conventions_of_prometheus() {
    for metric in METRICS {
        let (kind, values) = shape(metric);
        assert_eq!(metric.name.ends_with("_total"), kind == "counter", "{}", metric.name);
        let ending = match metric.unit {
            Unit::Seconds => "_seconds",
            Unit::Bytes => "_bytes",
            _ => "",
        };
        assert!(metric.name.ends_with(ending), "{}", metric.name);
        assert_eq!(metric.label.is_none(), values == [""], "{}", metric.name);
    }
    let names: BTreeSet<_> = METRICS.iter().map(|metric| metric.name).collect();
    assert_eq!(names.len(), METRICS.len(), "each name stands for one metric");
}

#[test]
fn the_alert_rules_ask_for_metrics_that_there_are() {
    let words = ALERTS.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let asked: BTreeSet<_> = words.filter(|word| word.starts_with("solewriter_")).collect();
    assert!(!asked.is_empty());
    for name in asked {
        let is_known = METRICS.iter().any(|metric| match name.strip_prefix(metric.name) {
            Some("") => true,
            Some("_bucket" | "_sum" | "_count") => shape(metric).0 == "histogram",
            _ => false,
        });
        assert!(is_known, "{name}");
    }
}
