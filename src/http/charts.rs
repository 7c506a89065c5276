//! What is charted: which lines, on which scale.

use std::collections::BTreeMap;
use std::time::Duration;

use plotters::style::RGBColor;
use serde::Serialize;

use super::drawing::{self, ACCENT, ALERT, FAINT, SECOND};
use super::history::{History, Point};
use super::words;
use crate::stats::Durations;

/// A chart over the last minutes.
pub(super) struct Chart {
    /// Where it goes on the page.
    id: &'static str,
    title: &'static str,
    pub(super) scale: Scale,
    pub(super) format: fn(f64) -> String,
    pub(super) lines: &'static [Line],
    pub(super) limits: &'static [Limit],
    /// Whether the area under the first line is filled.
    pub(super) is_filled: bool,
}

pub(super) enum Scale {
    /// From zero; the top is at least this.
    Linear { top: f64 },
    /// In steps by a factor, from a lowest value: what spans milliseconds to minutes can be seen together.
    Logarithmic { low: f64, factor: f64 },
}

/// A line of a chart; where it has no value there is a gap.
pub(super) struct Line {
    name: &'static str,
    pub(super) colour: RGBColor,
    pub(super) value: fn(&Point) -> Option<f64>,
}

/// A level that the lines are measured against.
pub(super) struct Limit {
    pub(super) name: &'static str,
    pub(super) colour: RGBColor,
    pub(super) value: fn(&History) -> f64,
}

const DURATIONS: Scale = Scale::Logarithmic { low: 10.0, factor: 10.0 };

const CHARTS: [Chart; 7] = [
    Chart {
        id: "writes",
        title: "Writes per second",
        scale: Scale::Linear { top: 10.0 },
        format: words::count,
        lines: &[
            Line { name: "committed", colour: ACCENT, value: |point| Some(point.commits_per_second) },
            Line {
                name: "failed",
                colour: ALERT,
                value: |point| (point.failures_per_second > 0.0).then_some(point.failures_per_second),
            },
        ],
        limits: &[],
        is_filled: true,
    },
    Chart {
        id: "wait",
        title: "Queue wait",
        scale: DURATIONS,
        format: words::micros,
        lines: &[
            Line { name: "max", colour: FAINT, value: |point| micros(&point.wait, point.wait.max) },
            Line { name: "p99", colour: SECOND, value: |point| micros(&point.wait, point.wait.p99) },
            Line { name: "p50", colour: ACCENT, value: |point| micros(&point.wait, point.wait.p50) },
        ],
        limits: &[],
        is_filled: false,
    },
    Chart {
        id: "hold",
        title: "Hold of the write lock",
        scale: DURATIONS,
        format: words::micros,
        lines: &[
            Line { name: "max", colour: FAINT, value: |point| micros(&point.hold, point.hold.max) },
            Line { name: "p99", colour: SECOND, value: |point| micros(&point.hold, point.hold.p99) },
            Line { name: "p50", colour: ACCENT, value: |point| micros(&point.hold, point.hold.p50) },
        ],
        limits: &[],
        is_filled: false,
    },
    Chart {
        id: "group",
        title: "Group size",
        scale: Scale::Linear { top: 4.0 },
        format: words::count,
        lines: &[
            Line { name: "largest", colour: FAINT, value: |point| of_groups(point, point.group_max) },
            Line { name: "average", colour: ACCENT, value: |point| of_groups(point, point.group_mean) },
        ],
        limits: &[],
        is_filled: false,
    },
    Chart {
        id: "depth",
        title: "Queue depth",
        scale: Scale::Linear { top: 4.0 },
        format: words::count,
        lines: &[
            Line {
                name: "maintenance",
                colour: FAINT,
                value: |point| Some(point.queue_depth.maintenance as f64),
            },
            Line { name: "bulk", colour: SECOND, value: |point| Some(point.queue_depth.bulk as f64) },
            Line {
                name: "interactive",
                colour: ACCENT,
                value: |point| Some(point.queue_depth.interactive as f64),
            },
        ],
        limits: &[],
        is_filled: false,
    },
    Chart {
        id: "wal",
        title: "WAL size",
        scale: Scale::Logarithmic { low: 4096.0, factor: 16.0 },
        format: words::bytes,
        lines: &[Line { name: "size", colour: ACCENT, value: |point| Some(point.wal_bytes as f64) }],
        limits: &[
            Limit { name: "target", colour: FAINT, value: |history| history.wal_target_bytes as f64 },
            Limit { name: "limit", colour: ALERT, value: |history| history.wal_limit_bytes as f64 },
        ],
        is_filled: true,
    },
    Chart {
        id: "readers",
        title: "Readers in use",
        scale: Scale::Linear { top: 4.0 },
        format: words::count,
        lines: &[Line { name: "in use", colour: ACCENT, value: |point| Some(point.readers_in_use as f64) }],
        limits: &[Limit { name: "all", colour: FAINT, value: |history| history.readers_max as f64 }],
        is_filled: true,
    },
];

/// A chart as it is sent: the drawing, and what it says in words.
#[derive(Serialize)]
struct Drawn {
    svg: String,
    label: String,
}

#[derive(Serialize)]
struct Drawings {
    sample: u64,
    charts: BTreeMap<&'static str, Drawn>,
}

/// Every chart, as JSON.
pub(super) fn draw(sample: u64, history: &History) -> String {
    let charts = CHARTS.iter().map(|chart| {
        let svg = drawing::draw(chart, history).unwrap_or_else(|error| {
            tracing::error!(error, chart = chart.id, "a chart could not be drawn");
            String::new()
        });
        (chart.id, Drawn { svg, label: chart.in_words(history) })
    });
    serde_json::to_string(&Drawings { sample, charts: charts.collect() }).unwrap_or_default()
}

impl Chart {
    /// For those who don't see the lines.
    fn in_words(&self, history: &History) -> String {
        let Some(newest) = history.points.last() else {
            return format!("{}: nothing was measured yet", self.title);
        };
        let lines = self.lines.iter().rev().map(|line| {
            let values = history.points.iter().filter_map(line.value);
            let highest = values.reduce(f64::max).map_or_else(|| "nothing".into(), self.format);
            let now = (line.value)(newest).map_or_else(|| "nothing".into(), self.format);
            format!("{} {now} now, at most {highest}", line.name)
        });
        let limits = self.limits.iter().map(|limit| {
            let value = (self.format)((limit.value)(history));
            format!("{} {value}", limit.name)
        });
        let parts: Vec<_> = lines.chain(limits).collect();
        format!("{} over the last five minutes: {}", self.title, parts.join("; "))
    }
}

/// A figure of a distribution in microseconds, if anything was recorded.
fn micros(recorded: &Durations, figure: Duration) -> Option<f64> {
    (recorded.count > 0).then_some(figure.as_secs_f64() * 1e6)
}

/// A figure about groups, if there was any.
fn of_groups(point: &Point, figure: f64) -> Option<f64> {
    (point.hold.count > 0).then_some(figure)
}
