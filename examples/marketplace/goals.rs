//! This project's own goals for the sole writer, far beyond the guide's, and whether a run met them.

use std::fmt;

use crate::figures::{Figures, Finished};

const MAX_HOLD_MS: f64 = 50.0;
const RENAME_P99_MS: f64 = 50.0;
/// How much later than the first of several equal imports the last may be done.
const SPREAD_PERCENT: f64 = 10.0;

/// How much longer this many imports at once may take than one alone.
fn wall_ratio(imports: usize) -> f64 {
    if imports <= 3 { 1.2 } else { 1.3 }
}

/// A goal, what came of it, and whether that is enough.
#[derive(Debug)]
pub(crate) struct Goal {
    text: String,
    found: String,
    is_met: bool,
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.is_met { "met" } else { "missed" };
        write!(f, "goal {}: {}, {verdict}", self.text, self.found)
    }
}

/// The goals that the runs tell about; none without a run of the mode `writer`.
///
/// `has_work` says whether the imports mostly wait (`--work-ms`). Imports that mostly compute share the
/// machine's cores, so several can't be as fast as one alone whoever writes, and end as their sizes and the
/// scheduler have it: the goals about that are left out.
pub(crate) fn goals(runs: &[Finished], has_work: bool) -> Vec<Goal> {
    let figures = |name| runs.iter().find(|run| run.name == name).map(Figures::of);
    let Some(writer) = figures("writer") else {
        return Vec::new();
    };
    let mut goals = of_one_run(&writer);
    if has_work && writer.imports > 1 {
        goals.push(Goal {
            text: format!("last of {} imports done < {SPREAD_PERCENT} % after the first", writer.imports),
            found: format!("{} %", writer.spread_percent),
            is_met: writer.spread_percent < SPREAD_PERCENT,
        });
    }
    if let Some(alone) = figures("writer_alone").filter(|_| has_work) {
        goals.push(as_fast_as_alone(&writer, &alone));
    }
    goals
}

fn of_one_run(writer: &Figures) -> Vec<Goal> {
    let entries = writer.imported + writer.failed;
    let mut goals = vec![
        Goal {
            text: format!("max hold < {MAX_HOLD_MS} ms"),
            found: format!("{} ms", writer.max_hold_ms),
            is_met: writer.max_hold_ms < MAX_HOLD_MS,
        },
        Goal {
            text: "every entry imported, but poisoned ones".to_owned(),
            found: format!("{} of {entries}, {} poisoned", writer.imported, writer.poisoned),
            is_met: writer.failed == writer.poisoned,
        },
        Goal {
            text: "no locked errors".to_owned(),
            found: writer.locked_errors.to_string(),
            is_met: writer.locked_errors == 0,
        },
    ];
    if writer.renames + writer.renames_failed > 0 {
        let goal = Goal {
            text: format!("rename p99 < {RENAME_P99_MS} ms"),
            found: format!("{} ms", writer.rename_p99_ms),
            is_met: writer.rename_p99_ms < RENAME_P99_MS,
        };
        goals.insert(1, goal);
    }
    goals
}

fn as_fast_as_alone(writer: &Figures, alone: &Figures) -> Goal {
    let (ratio, goal) = (writer.wall_s / alone.wall_s, wall_ratio(writer.imports));
    Goal {
        text: format!("wall of {} imports <= {goal} x that of one alone", writer.imports),
        found: format!("{} s / {} s = {ratio:.2}", writer.wall_s, alone.wall_s),
        is_met: ratio <= goal,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::measured::{Imported, Latencies, Load, Measured, Round, Rounds, WriteFigures};
    use crate::verify::Verification;

    fn run(name: &'static str, imports: usize, wall: Duration) -> Finished {
        let mut first = Rounds::default();
        let imported = Imported { imported: 9, failed: 1, ..Imported::default() };
        first.add(Round { wall, first_done: Duration::from_secs(2), imported });
        let measured = Measured {
            imports,
            first,
            again: Rounds::default(),
            writes: WriteFigures { hold_max: Duration::from_millis(50), ..WriteFigures::default() },
            renames: Load { latencies: Latencies::default(), done: 1, ..Load::default() },
            reads: Load::default(),
        };
        Finished { name, measured, poisoned: 1, verification: Verification::default() }
    }

    #[test]
    fn a_goal_is_met_or_missed_by_its_figure() {
        let runs = [
            run("single", 5, Duration::from_secs(9)),
            run("writer", 5, Duration::from_secs(3)),
            run("writer_alone", 1, Duration::from_secs(2)),
        ];
        let lines: Vec<_> = goals(&runs, true).iter().map(ToString::to_string).collect();
        let expected = [
            "goal max hold < 50 ms: 50 ms, missed",
            "goal rename p99 < 50 ms: 0 ms, met",
            "goal every entry imported, but poisoned ones: 9 of 10, 1 poisoned, met",
            "goal no locked errors: 0, met",
            "goal last of 5 imports done < 10 % after the first: 50 %, missed",
            "goal wall of 5 imports <= 1.3 x that of one alone: 3 s / 2 s = 1.50, missed",
        ];
        assert_eq!(lines, expected);
        assert_eq!(goals(&runs, false).len(), 4);
        assert!(goals(&runs[..1], true).is_empty());
    }
}
