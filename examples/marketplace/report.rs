//! What a run is told as: a line about the marketplace, a table beside the guide's figures, what the database
//! holds.

use std::time::Duration;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};

use crate::cli::{Options, Run};
use crate::figures::{Figures, Finished};
use crate::marketplace::Marketplace;
use crate::verify::Verification;

/// What the marketplace is made of, in a few lines.
pub(crate) fn marketplace(marketplace: &Marketplace, entries_asked: usize) -> String {
    let sources = &marketplace.sources;
    let each = sources.first().map_or(0, |source| source.entry_count());
    let composites =
        sources.iter().flat_map(|source| &source.entries).filter(|entry| !entry.children.is_empty());
    let composites = composites.count();
    let (crates, folders) = (marketplace.crates, marketplace.folders);
    let mut text = format!("marketplace {}\n", marketplace.root.display());
    text += &format!("  {} sources of {each} entries: {crates} crates", sources.len());
    if composites > 0 {
        text += &format!(", {composites} of them composites with others of their repository as children");
    }
    if folders > 0 {
        text += &format!(
            "\n  there are no more crates, so the {folders} largest folders are entries of their own"
        );
    }
    if each < entries_asked {
        text += &format!(
            "\n  {entries_asked} entries a source were asked for, but there is nothing more to import"
        );
    }
    text
}

/// What is going to be run, and for how long.
pub(crate) fn beginning(run: Run, options: &Options) -> String {
    let time = match options.repeat_for() {
        Duration::ZERO => ", one round".to_owned(),
        time => format!(" for {} s", time.as_secs()),
    };
    format!(
        "running {}{time}; imports at once: {}, renames/s: {}, reads/s: {}",
        run.name,
        run.imports,
        options.renames_per_s,
        options.reads_per_s(),
    )
}

/// The figures of all runs, one column each, beside the guide's.
pub(crate) fn table(runs: &[Finished]) -> Table {
    let figures: Vec<Figures> = runs.iter().map(Figures::of).collect();
    let has_reimports = figures.iter().any(|figures| figures.reimport_rounds > 0);
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    let names = runs.iter().map(|run| run.name);
    table.set_header(["mode"].into_iter().chain(names).chain(["guide before", "guide goal"]));
    let reimports = REIMPORT_ROWS.iter().filter(|_| has_reimports);
    for row in IMPORT_ROWS.iter().chain(reimports).chain(&LOAD_ROWS) {
        let values = figures.iter().map(row.value);
        let guide = [row.before, row.goal].map(str::to_owned);
        table.add_row(std::iter::once(row.title.to_owned()).chain(values).chain(guide));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

struct Row {
    title: &'static str,
    value: fn(&Figures) -> String,
    /// What the guide measured before its cure.
    before: &'static str,
    goal: &'static str,
}

impl Row {
    const fn new(title: &'static str, value: fn(&Figures) -> String) -> Row {
        Row { title, value, before: "", goal: "" }
    }

    const fn beside(self, before: &'static str, goal: &'static str) -> Row {
        Row { before, goal, ..self }
    }
}

const IMPORT_ROWS: [Row; 9] = [
    Row::new("imports at once", |f| f.imports.to_string()),
    Row::new("entries imported / failed", |f| format!("{} / {}", f.imported, f.failed)),
    Row::new("success, %", |f| f.success_percent.to_string()).beside("98", "> 99.5"),
    Row::new("wall, s", |f| short(f.wall_s)),
    Row::new("last done after the first, %", |f| short(f.spread_percent)),
    Row::new("entries/s", |f| short(f.entries_per_s)),
    Row::new("imports per 3 s", |f| short(f.imports_per_3_s)).beside("1", "3"),
    Row::new("batches", |f| f.batches.to_string()),
    Row::new("entries a batch, mean", |f| short(f.batch_entries_mean)),
];

const REIMPORT_ROWS: [Row; 3] = [
    Row::new("re-imports of all sources", |f| f.reimport_rounds.to_string()),
    Row::new("re-imported / failed", |f| format!("{} / {}", f.reimport_imported, f.reimport_failed)),
    Row::new("re-imported entries/s", |f| short(f.reimport_entries_per_s)),
];

const LOAD_ROWS: [Row; 10] = [
    Row::new("max hold of the lock, ms", |f| short(f.max_hold_ms)).beside("3000–4000", "< 500"),
    Row::new("p99 hold, ms", |f| short(f.p99_hold_ms)),
    Row::new("wait for it p99 / max, ms", |f| pair(f.p99_wait_ms, f.max_wait_ms)),
    Row::new("writes a COMMIT mean / max", group_sizes),
    Row::new("renames done / failed", |f| format!("{} / {}", f.renames, f.renames_failed)),
    Row::new("rename p99, ms", |f| short(f.rename_p99_ms)).beside("3000–4000", "< 500"),
    Row::new("rename p50 / max, ms", |f| pair(f.rename_p50_ms, f.rename_max_ms)),
    Row::new("reads done / failed", |f| format!("{} / {}", f.reads, f.reads_failed)),
    Row::new("read p99, ms", |f| short(f.read_p99_ms)),
    Row::new("locked errors", |f| f.locked_errors.to_string()).beside("", "0"),
];

fn group_sizes(figures: &Figures) -> String {
    match (figures.group_commands_mean, figures.group_commands_max) {
        (Some(mean), Some(max)) => format!("{} / {max}", short(mean)),
        // A plain transaction is nobody else's.
        _ => "1 / 1".to_owned(),
    }
}

fn pair(first: f64, second: f64) -> String {
    format!("{} / {}", short(first), short(second))
}

/// Three digits, or all before the point.
fn short(value: f64) -> String {
    match value {
        ..9.995 => format!("{value:.2}"),
        ..99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// What the database says about one run, and the first failure of each kind of request.
pub(crate) fn verification(run: &Finished) -> String {
    let Verification { imported, not_imported, problems } = &run.verification;
    let mut text =
        format!("the database of {} holds {imported} imported entries and {not_imported} others", run.name);
    text += if problems.is_empty() {
        ":\n  the report, rows, statuses, hashes, memberships and search indexes agree"
    } else {
        "; it is WRONG:"
    };
    for problem in problems {
        text += &format!("\n  {problem}");
    }
    let loads = [("rename", &run.measured.renames), ("read", &run.measured.reads)];
    for (what, load) in loads {
        if let Some(failure) = &load.first_failure {
            text += &format!("\n  first failed {what}: {failure}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_long_as_they_are_worth() {
        assert_eq!(pair(0.0, 8.784), "0.00 / 8.78");
        assert_eq!(pair(9.999, 42.47), "10.0 / 42.5");
        assert_eq!(pair(99.99, 10_018.82), "100 / 10019");
    }
}
