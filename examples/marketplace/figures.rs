//! The figures of a run: as JSON gives them, and as the table and the goals take them.

use std::time::Duration;

use serde::Serialize;

use crate::measured::Measured;
use crate::verify::Verification;

/// One finished run, with what its database looked like afterwards.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) name: &'static str,
    pub(crate) measured: Measured,
    /// Entries that were made so that they can't be imported.
    pub(crate) poisoned: u64,
    pub(crate) verification: Verification,
}

/// The figures, rounded to two decimals; without a prefix, those of imports are of the first round.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) imports: usize,
    pub(crate) imported: u64,
    pub(crate) failed: u64,
    pub(crate) success_percent: f64,
    pub(crate) wall_s: f64,
    /// How much later than the first import the last one was done.
    pub(crate) spread_percent: f64,
    pub(crate) entries_per_s: f64,
    pub(crate) imports_per_3_s: f64,
    pub(crate) batches: u64,
    pub(crate) batch_entries_mean: f64,
    pub(crate) reimport_rounds: u64,
    pub(crate) reimport_wall_s: f64,
    pub(crate) reimport_entries_per_s: f64,
    pub(crate) reimport_imported: u64,
    pub(crate) reimport_failed: u64,
    pub(crate) max_hold_ms: f64,
    pub(crate) p99_hold_ms: f64,
    pub(crate) max_wait_ms: f64,
    pub(crate) p99_wait_ms: f64,
    pub(crate) group_commands_mean: Option<f64>,
    pub(crate) group_commands_max: Option<u64>,
    pub(crate) renames: u64,
    pub(crate) renames_failed: u64,
    pub(crate) rename_p50_ms: f64,
    pub(crate) rename_p99_ms: f64,
    pub(crate) rename_max_ms: f64,
    pub(crate) reads: u64,
    pub(crate) reads_failed: u64,
    pub(crate) read_p99_ms: f64,
    pub(crate) locked_errors: u64,
    pub(crate) poisoned: u64,
    pub(crate) verified: bool,
}

impl Figures {
    /// The figures of one run.
    pub(crate) fn of(finished: &Finished) -> Figures {
        let Measured { imports, first, again, writes, renames, reads } = &finished.measured;
        let wall_s = first.wall.as_secs_f64();
        let entries = first.imported.imported + first.imported.failed;
        let groups = writes.group_sizes;
        Figures {
            imports: *imports,
            imported: first.imported.imported,
            failed: first.imported.failed,
            success_percent: rounded(100.0 * ratio(first.imported.imported, entries)),
            wall_s: rounded(wall_s),
            spread_percent: rounded(first.spread_percent()),
            entries_per_s: rounded(first.entries_per_s()),
            imports_per_3_s: rounded(3.0 * *imports as f64 / wall_s),
            batches: first.imported.batches,
            batch_entries_mean: rounded(ratio(entries, first.imported.batches)),
            reimport_rounds: again.count,
            reimport_wall_s: rounded(again.wall.as_secs_f64()),
            reimport_entries_per_s: rounded(again.entries_per_s()),
            reimport_imported: again.imported.imported,
            reimport_failed: again.imported.failed,
            max_hold_ms: ms(writes.hold_max),
            p99_hold_ms: ms(writes.hold_p99),
            max_wait_ms: ms(writes.wait_max),
            p99_wait_ms: ms(writes.wait_p99),
            group_commands_mean: groups.map(|sizes| rounded(sizes.mean)),
            group_commands_max: groups.map(|sizes| sizes.max),
            renames: renames.done,
            renames_failed: renames.failed + renames.locked_errors,
            rename_p50_ms: ms(renames.latencies.quantile(0.50)),
            rename_p99_ms: ms(renames.latencies.quantile(0.99)),
            rename_max_ms: ms(renames.latencies.max()),
            reads: reads.done,
            reads_failed: reads.failed + reads.locked_errors,
            read_p99_ms: ms(reads.latencies.quantile(0.99)),
            locked_errors: finished.measured.locked_errors(),
            poisoned: finished.poisoned,
            verified: finished.verification.problems.is_empty(),
        }
    }
}

fn ms(duration: Duration) -> f64 {
    rounded(duration.as_secs_f64() * 1000.0)
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// Zero of nothing is zero.
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_two_decimals() {
        assert_eq!(ms(Duration::from_micros(1_234_567)), 1234.57);
        assert_eq!(rounded(100.0 * ratio(299, 300)), 99.67);
        assert_eq!(ratio(0, 0), 0.0);
    }
}
