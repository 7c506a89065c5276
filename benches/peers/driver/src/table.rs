//! The tables.

use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use peers_common::Figures;

use crate::goals::{GOALS, Goal};
use crate::summary::{Results, Summary};

/// Everything that was measured.
pub(crate) fn figures(results: &Results) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header([
        "workload",
        "durability",
        "clients",
        "system",
        "ops/s",
        "min–max",
        "÷ best peer",
        "÷ raw",
        "p50",
        "p99",
        "p99.9",
        "max",
        "CPU/op",
        "RSS",
        "WAL",
        "errors",
        "lost",
    ]);
    for cell in results.cells() {
        for summary in cell {
            table.add_row(row(results, summary));
        }
    }
    table
}

fn row(results: &Results, summary: &Summary) -> Vec<String> {
    let figures = &summary.figures;
    let place = (figures.workload, figures.clients, figures.durability);
    let ratio = |other: Option<&Figures>| {
        other.map_or_else(String::new, |other| format!("{:.2}", figures.ops_per_s / other.ops_per_s))
    };
    let (low, high) = summary.range;
    let errors = match summary.failed {
        0 => figures.errors.to_string(),
        failed => format!("{}, {failed} rounds failed", figures.errors),
    };
    vec![
        figures.workload.to_string(),
        figures.durability.to_string(),
        figures.clients.to_string(),
        figures.system.clone(),
        format!("{:.0}", figures.ops_per_s),
        format!("{low:.0}–{high:.0}"),
        ratio(results.fastest_peer(place)),
        ratio(results.limit(place)),
        millis(figures.p50_us),
        millis(figures.p99_us),
        millis(figures.p999_us),
        millis(figures.max_us),
        format!("{:.1} µs", figures.cpu_us_per_command),
        mebibytes(figures.peak_rss_bytes),
        mebibytes(figures.wal_max_bytes),
        errors,
        figures.lost.to_string(),
    ]
}

/// What the figures are held against.
pub(crate) fn goals(results: &Results) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["goal", "wanted", "measured", "met"]);
    for goal in GOALS {
        table.add_row(goal_row(results, &goal));
    }
    table
}

fn goal_row(results: &Results, goal: &Goal) -> [String; 4] {
    let measured = (goal.measure)(results);
    let met = match measured {
        None => "not measured",
        Some(value) if goal.wanted.is_met_by(value) => "yes",
        Some(_) => "no",
    };
    let measured = measured.map_or_else(String::new, |value| format!("{value:.2} {}", goal.unit));
    [goal.name.into(), format!("{} {}", goal.wanted, goal.unit), measured, met.into()]
}

fn millis(us: f64) -> String {
    format!("{:.3} ms", us / 1000.0)
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1024.0 * 1024.0))
}
