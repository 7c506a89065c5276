//! How a run went.

use std::fs;
use std::path::Path;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;
use solewriter::Stats;

use super::foreign::ForeignReport;
use super::load::Site;
use super::verify::Verification;
use crate::{Refusal, output};

/// Everything a run has to tell.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    /// With it the same pairs fail again.
    pub(crate) seed: u64,
    pub(crate) seconds: f64,
    /// Pairs of rows that were acknowledged, by writers and imports.
    pub(crate) acknowledged: u64,
    /// How many of them were imported.
    pub(crate) imported: u64,
    pub(crate) ops_per_s: f64,
    /// From sending a write to its acknowledgement; imports have none.
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) p999_us: u64,
    pub(crate) max_us: u64,
    pub(crate) failed_by_intent: u64,
    pub(crate) not_started: u64,
    pub(crate) rolled_back: u64,
    pub(crate) unknown: u64,
    /// Writes that found the database locked for too long.
    pub(crate) locked_errors: u64,
    pub(crate) reads: u64,
    pub(crate) reads_failed: u64,
    /// Reads that saw half a pair, or not what had been acknowledged before.
    pub(crate) bad_reads: u64,
    /// Imports whose report did not agree with what they were given.
    pub(crate) bad_reports: u64,
    /// Tasks that panicked outside of a command, or did not come to an end.
    pub(crate) tasks_lost: u64,
    /// There was somebody to write, and nothing was acknowledged.
    pub(crate) nothing_acknowledged: bool,
    /// The first failure that was not intended.
    pub(crate) first_failure: Option<String>,
    pub(crate) foreign_acknowledged: u64,
    pub(crate) foreign_locked_errors: u64,
    pub(crate) foreign_first_failure: Option<String>,
    pub(crate) commands_per_group: f64,
    pub(crate) wal_max_bytes: u64,
    /// The most memory the process has had at once; `None` where the system does not tell.
    pub(crate) rss_max_bytes: Option<u64>,
    #[serde(flatten)]
    pub(crate) verification: Verification,
}

impl Report {
    pub(crate) fn new(site: &Site, took: Duration, stats: &Stats, wal_max_bytes: u64) -> Self {
        let measured = &site.measured;
        let done = measured.committed.get() + measured.imported.get();
        Self {
            seed: site.seed,
            seconds: took.as_secs_f64(),
            imported: measured.imported.get(),
            ops_per_s: done as f64 / took.as_secs_f64(),
            p50_us: measured.quantile_us(0.5),
            p99_us: measured.quantile_us(0.99),
            p999_us: measured.quantile_us(0.999),
            max_us: measured.quantile_us(1.0),
            failed_by_intent: measured.failed_by_intent.get(),
            not_started: measured.not_started.get(),
            rolled_back: measured.rolled_back.get(),
            unknown: measured.unknown.get(),
            locked_errors: measured.locked_errors.get(),
            reads: measured.reads.get(),
            reads_failed: measured.reads_failed.get(),
            bad_reads: measured.bad_reads.get(),
            bad_reports: measured.bad_reports.get(),
            first_failure: measured.first_failure.get().cloned(),
            commands_per_group: stats.group_commands.mean,
            wal_max_bytes,
            rss_max_bytes: rss_max_bytes(),
            ..Self::default()
        }
    }

    pub(crate) fn add_foreign(&mut self, report: ForeignReport) {
        self.foreign_acknowledged += report.acknowledged;
        self.foreign_locked_errors += report.locked_errors;
        self.foreign_first_failure = self.foreign_first_failure.take().or(report.failure);
    }

    /// Whether everything that was answered and read was true.
    pub(crate) fn is_fine(&self) -> bool {
        let wrong = [self.bad_reads, self.bad_reports, self.tasks_lost];
        self.verification.is_fine() && wrong == [0; 3] && !self.nothing_acknowledged
    }

    /// Writes the report for people, and as JSON if asked: to a file, or with `-` instead to the standard output.
    pub(crate) fn print(&self, json: Option<&Path>) -> Result<(), Refusal> {
        let Some(file) = json else { return Ok(output::print(&self.text())?) };
        let json = output::json(self)?;
        if file == Path::new("-") {
            output::note(&self.text());
            return Ok(output::print(&json)?);
        }
        output::print(&self.text())?;
        let written = fs::write(file, json + "\n");
        written.map_err(|error| format!("{} can't be written: {error}", file.display()).into())
    }

    fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.add_rows(self.rows());
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut text = table.to_string();
        let failures =
            [("first failure", &self.first_failure), ("a foreign writer", &self.foreign_first_failure)];
        for (what, failure) in failures {
            if let Some(failure) = failure {
                text += &format!("\n{what}: {failure}");
            }
        }
        let unreadable = self.verification.unreadable.iter();
        text.extend(unreadable.map(|error| format!("\nrows could not be read: {error}")));
        if self.nothing_acknowledged {
            text += "\nnothing was acknowledged";
        }
        for damage in &self.verification.integrity.first {
            text += &format!("\ndamage: {damage}");
        }
        text += &if self.is_fine() {
            "\nEvery answer was true.".to_owned()
        } else {
            format!("\nWRONG: not every answer was true. Seed {}.", self.seed)
        };
        text
    }

    fn rows(&self) -> Vec<[String; 2]> {
        let found = &self.verification;
        let count = |count: u64| HumanCount(count).to_string();
        let micros = |micros| millis(Duration::from_micros(micros));
        let rows = [
            ("writes/s", count(self.ops_per_s as u64)),
            ("latency p50", micros(self.p50_us)),
            ("latency p99", micros(self.p99_us)),
            ("latency p99.9", micros(self.p999_us)),
            ("latency max", micros(self.max_us)),
            ("commands per COMMIT, mean", format!("{:.1}", self.commands_per_group)),
            ("acknowledged", count(self.acknowledged)),
            ("  of them imported", count(self.imported)),
            ("failed on purpose", count(self.failed_by_intent)),
            ("not started", count(self.not_started)),
            ("rolled back", count(self.rolled_back)),
            ("unknown", count(self.unknown)),
            ("refused as locked", count(self.locked_errors)),
            ("reads", count(self.reads)),
            ("reads that failed", count(self.reads_failed)),
            ("reads that were wrong", count(self.bad_reads)),
            ("rows of other programs", count(self.foreign_acknowledged)),
            ("  refused as locked", count(self.foreign_locked_errors)),
            ("WAL, at most", HumanBytes(self.wal_max_bytes).to_string()),
            (
                "memory, at most",
                self.rss_max_bytes.map_or("unknown".into(), |bytes| HumanBytes(bytes).to_string()),
            ),
            ("verified", count(found.verified)),
            ("lost", count(found.lost + found.foreign_lost)),
            ("half applied", count(found.half_applied)),
            ("unexpected", count(found.unexpected)),
            ("integrity", if found.integrity.is_fine() { "ok".into() } else { "DAMAGED".into() }),
            ("violated foreign keys", count(found.foreign_keys.found)),
        ];
        rows.map(|(name, value)| [name.to_owned(), value]).into()
    }
}

/// A duration as milliseconds.
pub(crate) fn millis(duration: Duration) -> String {
    let millis = duration.as_secs_f64() * 1_000.0;
    if millis < 10.0 { format!("{millis:.2} ms") } else { format!("{millis:.0} ms") }
}

/// The most memory this process has had at once.
#[cfg(target_os = "linux")]
fn rss_max_bytes() -> Option<u64> {
    let status = procfs::process::Process::myself().ok()?.status().ok()?;
    status.vmhwm.map(|kib| kib * 1024)
}

#[cfg(not(target_os = "linux"))]
fn rss_max_bytes() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anything_false_makes_the_run_fail() {
        assert!(Report::default().is_fine());
        let with = |set: fn(&mut Report)| {
            let mut report = Report::default();
            set(&mut report);
            report
        };
        let wrong: [fn(&mut Report); 6] = [
            |report| report.verification.lost = 1,
            |report| report.verification.half_applied = 1,
            |report| report.verification.unexpected = 1,
            |report| report.verification.foreign_lost = 1,
            |report| report.verification.integrity.found = 1,
            |report| report.bad_reads = 1,
        ];
        for set in wrong {
            let report = with(set);
            assert!(!report.is_fine(), "{report:?}");
            assert!(report.text().contains("WRONG"));
        }
    }
}
