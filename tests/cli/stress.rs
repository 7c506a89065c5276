//! `solewriter stress`: its figures agree with the database it leaves, and it leaves other databases alone.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::common::{check, plain};
use crate::{json, solewriter, text};

fn stress(path: &Path, more: &[&str]) -> std::process::Command {
    let mut command = solewriter([OsStr::new("stress"), OsStr::new("--path"), path.as_os_str()]);
    command.args(["--json", "-"]).args(more);
    command
}

fn number(report: &Value, name: &str) -> i64 {
    report[name].as_i64().unwrap_or_else(|| panic!("{name}: {report:#}"))
}

#[test]
fn what_it_says_is_what_the_database_holds() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stress.db");
    let load = ["--duration", "1s", "--writers", "8", "--foreign-writers", "2", "--poison", "5%"];
    let mut acknowledged = 0;
    // The second run finds the rows of the first.
    for run in 1..=2 {
        let output = stress(&path, &load).output().unwrap();
        let report = json(&output, 0);
        let is_wrong = ["lost", "half_applied", "unexpected", "bad_reads", "foreign_lost", "unknown"];
        assert!(is_wrong.iter().all(|name| number(&report, name) == 0), "{report:#}");
        assert!(number(&report, "acknowledged") > 0 && number(&report, "imported") > 0, "{report:#}");
        assert!(number(&report, "failed_by_intent") > 0, "{report:#}");
        assert_eq!(report["acknowledged"], report["verified"]);
        let order = ["p50_us", "p99_us", "p999_us", "max_us"].map(|name| number(&report, name));
        assert!(order.is_sorted() && order[0] > 0, "{order:?}");
        assert!(number(&report, "wal_max_bytes") > 0 && report["ops_per_s"].as_f64().unwrap() > 0.0);
        assert_eq!(report["rss_max_bytes"].is_u64(), cfg!(target_os = "linux"));
        assert!(!text(&output.stderr).contains("panicked"), "what panics on purpose is not told");

        acknowledged += number(&report, "acknowledged");
        let connection = plain(&path);
        let count = |sql| connection.query_row(sql, (), |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(count("SELECT count(*) FROM stress_halves"), 2 * acknowledged);
        assert_eq!(
            count("SELECT count(*) FROM (SELECT DISTINCT source, seq FROM stress_halves)"),
            acknowledged
        );
        assert_eq!(count("SELECT count(*) FROM stress_sources"), run * (8 + 1 + 2));
    }
    check(&path);
}

#[test]
fn without_writers_there_is_nothing_to_verify() {
    let load = ["stress", "--duration", "100ms", "--writers", "0", "--imports", "0", "--json", "-"];
    let report = json(&solewriter(load).output().unwrap(), 0);
    assert_eq!((number(&report, "acknowledged"), number(&report, "verified")), (0, 0));
}

#[test]
fn figures_go_to_a_file_if_asked() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("figures.json");
    let load = ["stress", "--duration", "100ms", "--writers", "2", "--foreign-writers", "0", "--seed", "7"];
    let output = solewriter(load).arg("--json").arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("Every answer was true"));
    let report: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    assert_eq!(number(&report, "seed"), 7);
}

#[test]
fn files_that_hold_something_else_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("mine.db");
    plain(&database).execute_batch("CREATE TABLE mine (x)").unwrap();
    let notes = dir.path().join("notes.txt");
    fs::write(&notes, "not a database at all").unwrap();
    let before = [fs::read(&database).unwrap(), fs::read(&notes).unwrap()];
    for path in [&database, &notes, &dir.path().to_owned(), &dir.path().join("nowhere/stress.db")] {
        let output = stress(path, &["--duration", "100ms"]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", path.display());
        assert!(text(&output.stderr).starts_with("error: "), "{}", text(&output.stderr));
    }
    assert_eq!([fs::read(&database).unwrap(), fs::read(&notes).unwrap()], before);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no file came to be");
}

#[test]
fn bad_values_are_refused_with_status_2() {
    for args in [
        ["--duration", "soon"],
        ["--duration", "0s"],
        ["--writers", "-1"],
        ["--writers", "100000"],
        ["--poison", "101%"],
        ["--poison", "NaN"],
        ["--durability", "none"],
        ["--seed", "x"],
        ["--json", "/nowhere/at/all/figures.json"],
    ] {
        let output = solewriter(["stress"]).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_is_verified_all_the_same() {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use crate::common::{HANG, beside};

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stress.db");
    let mut command = stress(&path, &["--duration", "1h", "--writers", "4"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Once it writes.
    let limit = Instant::now() + HANG;
    while beside(&path, "-wal").metadata().map_or(0, |wal| wal.len()) < 100_000 {
        assert!(Instant::now() < limit, "it does not begin");
        std::thread::sleep(Duration::from_millis(1));
    }
    let interrupt = Command::new("kill").arg("-INT").arg(child.id().to_string()).status().unwrap();
    assert!(interrupt.success());
    let report = json(&child.wait_with_output().unwrap(), 0);
    assert!(number(&report, "acknowledged") > 0);
    assert_eq!(report["acknowledged"], report["verified"]);
    assert_eq!(report["foreign_first_failure"], Value::Null, "the other programs ended in order");
    assert!(!beside(&path, "-wal").exists(), "and everything is closed");
}
