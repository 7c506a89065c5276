//! `solewriter inspect` on every state that a database can lie in.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use serde_json::Value;
use solewriter::{Checkpoints, Config, Database, Drain};
use tempfile::TempDir;

use crate::common::{HANG, beside, plain, soon};
use crate::{json, solewriter, text};

const SUFFIXES: [&str; 5] = ["", "-wal", "-shm", "-journal", "-solewriter"];

/// All files of a directory, with their content and the time of their last change.
fn everything(directory: &Path) -> Vec<(PathBuf, SystemTime, Vec<u8>)> {
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files
        .map(|path| {
            let modified = path.metadata().unwrap().modified().unwrap();
            let content = content(&path);
            (path, modified, content)
        })
        .collect();
    files.sort();
    files
}

fn inspect(path: &Path) -> Output {
    solewriter([OsStr::new("inspect"), OsStr::new("--json"), path.as_os_str()]).output().unwrap()
}

/// Inspects a database that nobody writes to, and makes sure that nothing has changed.
fn inspect_untouched(path: &Path, status: i32) -> Value {
    let before = everything(path.parent().unwrap());
    let report = json(&inspect(path), status);
    let after = everything(path.parent().unwrap());
    let names = |files: &[(PathBuf, SystemTime, Vec<u8>)]| {
        files.iter().map(|(path, ..)| path.clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&before), names(&after));
    assert!(before == after, "a file was written to");
    report
}

/// What other systems do not tell.
fn only_on_unix(value: bool) -> Value {
    if cfg!(unix) { value.into() } else { Value::Null }
}

/// The content of a file that this process may have open as a database: read by another one, since closing it here
/// would drop the locks of the database.
fn content(path: &Path) -> Vec<u8> {
    if cfg!(unix) {
        let output = Command::new("cat").arg(path).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        output.stdout
    } else {
        fs::read(path).unwrap()
    }
}

fn advice(report: &Value) -> String {
    report["advice"].to_string()
}

/// A database that a service has created, filled and closed.
async fn closed(name: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    let db = filled(&path, Config::default()).await;
    soon(db.shutdown(Drain::within(HANG))).await.unwrap();
    (dir, path)
}

async fn filled(path: &Path, config: Config) -> Database {
    let db = Database::builder(path).config(config).open().await.unwrap();
    let schema = "CREATE TABLE parent (id INTEGER PRIMARY KEY);
        CREATE TABLE child (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES parent);
        CREATE INDEX child_parent ON child (parent);
        CREATE VIRTUAL TABLE words USING fts5 (word);
        INSERT INTO parent VALUES (1);
        INSERT INTO child VALUES (1, 1), (2, 1);
        INSERT INTO words VALUES ('tea');";
    db.write("fill", move |tx| tx.execute_batch(schema)).await.unwrap();
    db
}

/// The same files elsewhere, as a crash of their owner leaves them.
fn crashed(from: &Path, suffixes: &[&str]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    for suffix in suffixes {
        fs::write(beside(&path, suffix), content(&beside(from, suffix))).unwrap();
    }
    (dir, path)
}

#[tokio::test]
async fn a_closed_database_is_fine() {
    let (_dir, path) = closed("test.db").await;
    let report = inspect_untouched(&path, 0);
    assert_eq!(report["read"], "file_alone");
    assert_eq!(report["journal_mode"], "wal");
    assert_eq!(report["database_bytes"], path.metadata().unwrap().len());
    assert_eq!(report["integrity"]["found"], 0);
    assert_eq!(report["foreign_keys"]["found"], 0);
    assert_eq!(report["settings"]["encoding"], "UTF-8");
    assert_eq!(report["is_connected"], only_on_unix(false));
    if cfg!(target_os = "linux") {
        assert_eq!(report["sole_writer"]["state"], "free");
        assert_eq!(report["sole_writer"]["last_pid"], std::process::id());
    }
}

#[tokio::test]
async fn a_database_that_a_service_has_open_is_read_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    let db = filled(&path, Config::default()).await;
    // The newest row is in the WAL only.
    db.execute("INSERT INTO child VALUES (3, 1)", ()).await.unwrap();
    let report = inspect_untouched(&path, 0);
    assert_eq!(report["read"], "in_place");
    assert_eq!(report["settings"]["tables"], 8, "with those behind the virtual one: {report:#}");
    assert_eq!(report["is_connected"], only_on_unix(true));
    let wal_frames = report["wal"]["frames"].as_u64().unwrap();
    assert!(wal_frames > 0);
    if cfg!(unix) {
        let in_use = report["wal"]["frames_in_use"].as_u64().unwrap();
        assert_eq!(in_use, db.stats().wal_pages);
        assert_eq!(report["wal"]["frames_not_checkpointed"], in_use);
    }
    if cfg!(target_os = "linux") {
        assert_eq!(report["sole_writer"]["state"], "held");
        assert_eq!(report["sole_writer"]["pid"], std::process::id());
        assert_eq!(report["connected"], serde_json::json!([std::process::id()]));
    }
    soon(db.shutdown(Drain::within(HANG))).await.unwrap();
}

#[tokio::test]
async fn what_is_checkpointed_is_told_from_what_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    let db = filled(&path, Config::default()).await;
    let other = plain(&path);
    let (pages, copied): (i64, i64) =
        other.query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |row| Ok((row.get(1)?, row.get(2)?))).unwrap();
    db.execute("INSERT INTO child VALUES (3, 1)", ()).await.unwrap();
    let wal = &inspect_untouched(&path, 0)["wal"];
    if cfg!(unix) {
        let in_use = i64::try_from(db.stats().wal_pages).unwrap();
        // A writer begins a WAL anew that is checkpointed to its end.
        let new = if in_use > pages { in_use - copied } else { in_use };
        assert_eq!(wal["frames_not_checkpointed"], new, "{wal}");
    }
    drop(other);
    soon(db.shutdown(Drain::within(HANG))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_writes_all_the_time_is_not_disturbed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    let db = filled(&path, Config::default()).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn({
        let (db, stop) = (db.clone(), stop.clone());
        async move {
            let mut rows = 0;
            while !stop.load(Ordering::Relaxed) {
                db.execute("INSERT INTO child (parent) VALUES (1)", ()).await.unwrap();
                rows += 1;
            }
            rows
        }
    });
    for _ in 0..10 {
        let asked = path.clone();
        let output = tokio::task::spawn_blocking(move || inspect(&asked)).await.unwrap();
        let report = json(&output, 0);
        assert_eq!(report["integrity"]["found"], 0);
    }
    stop.store(true, Ordering::Relaxed);
    let rows = soon(writing).await.unwrap();
    let kept: i64 = db
        .read("count", |tx| tx.query_row("SELECT count(*) - 2 FROM child", (), |row| row.get(0)))
        .await
        .unwrap();
    assert_eq!(rows, kept);
    assert_eq!(db.stats().foreign_waits, 0);
    soon(db.shutdown(Drain::within(HANG))).await.unwrap();
}

#[tokio::test]
async fn a_database_whose_owner_was_killed_is_read_with_its_wal() {
    let dir = tempfile::tempdir().unwrap();
    let original = dir.path().join("original.db");
    let db = filled(&original, Config::default()).await;
    for (suffixes, read) in [
        (&["", "-wal"][..], "copy"),
        (&["", "-wal", "-shm"], "in_place"),
        (&["", "-wal", "-shm", "-solewriter"], "in_place"),
    ] {
        let (_dir, path) = crashed(&original, suffixes);
        let report = inspect_untouched(&path, 0);
        assert_eq!(report["read"], read, "{suffixes:?}");
        assert_eq!(report["settings"]["tables"], 8, "what is in the WAL only is seen: {suffixes:?}");
        assert_eq!(report["is_connected"], only_on_unix(false));
        if cfg!(unix) {
            assert_eq!(report["wal"]["frames_in_use"], db.stats().wal_pages);
        }
        assert_eq!(advice(&report).contains("A copy was inspected"), read == "copy");
    }
    soon(db.shutdown(Drain::within(HANG))).await.unwrap();
}

#[tokio::test]
async fn a_wal_that_was_left_checkpointed_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    let config = Config { checkpoints: Checkpoints::External, ..Config::default() };
    let db = filled(&path, config).await;
    soon(db.shutdown(Drain::within(HANG))).await.unwrap();
    assert!(beside(&path, "-wal").metadata().unwrap().len() > 0);
    let report = inspect_untouched(&path, 0);
    assert_eq!(report["settings"]["tables"], 8);
}

#[test]
fn a_database_with_a_rollback_journal_is_advised_to_use_a_wal() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    let connection = plain(&path);
    connection.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1)").unwrap();
    for _open_and_closed in 0..2 {
        let report = inspect_untouched(&path, 0);
        assert_eq!((&report["read"], &report["journal_mode"]), (&"in_place".into(), &"rollback".into()));
        assert!(advice(&report).contains("Not in WAL mode"));
    }
}

#[test]
fn a_transaction_that_a_crash_left_half_written_is_rolled_back_in_a_copy() {
    let dir = tempfile::tempdir().unwrap();
    let original = dir.path().join("original.db");
    let connection = plain(&original);
    // A cache this small writes pages to the file before the COMMIT.
    connection.execute_batch("PRAGMA cache_size = 1; CREATE TABLE t (x)").unwrap();
    let fill = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
        INSERT INTO t SELECT randomblob(500) FROM n";
    connection.execute_batch(&format!("{fill}; BEGIN; UPDATE t SET x = randomblob(500)")).unwrap();
    let (_dir, path) = crashed(&original, &["", "-journal"]);
    let report = inspect_untouched(&path, 0);
    assert_eq!(report["read"], "copy");
    assert_eq!(report["integrity"]["found"], 0);
}

#[tokio::test]
async fn violated_foreign_keys_are_a_problem() {
    let (_dir, path) = closed("test.db").await;
    let connection = plain(&path);
    connection.execute_batch("PRAGMA foreign_keys = off; INSERT INTO child VALUES (7, 99)").unwrap();
    connection.close().unwrap();
    let report = inspect_untouched(&path, 1);
    assert_eq!(report["foreign_keys"]["found"], 1);
    let first = serde_json::json!({ "table": "child", "rowid": 7, "parent": "parent" });
    assert_eq!(report["foreign_keys"]["first"][0], first);
    assert!(advice(&report).contains("Foreign keys are violated"));
    assert!(!report.to_string().contains("99"), "no content of a row is told");
    let output = solewriter([OsStr::new("inspect"), path.as_os_str()]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("row 7 of child refers to no row of parent"));
}

#[tokio::test]
async fn damage_is_a_problem_and_not_an_error() {
    let (_dir, path) = closed("test.db").await;
    let page = 4096;
    let intact = fs::read(&path).unwrap();
    // The schema, and then a table.
    for damaged in [100..200, page..2 * page] {
        let mut bytes = intact.clone();
        bytes[damaged.clone()].fill(0xff);
        fs::write(&path, bytes).unwrap();
        let report = inspect_untouched(&path, 1);
        let integrity = &report["integrity"];
        assert!(integrity["found"] != 0 || integrity["error"].is_string(), "{damaged:?}: {report:#}");
    }
}

#[tokio::test]
async fn much_free_space_is_worth_a_vacuum() {
    let (_dir, path) = closed("test.db").await;
    let connection = plain(&path);
    connection.execute_batch("CREATE TABLE much AS SELECT zeroblob(4000000) AS x; DROP TABLE much").unwrap();
    connection.close().unwrap();
    let report = inspect_untouched(&path, 0);
    assert!(report["settings"]["free_pages"].as_u64().unwrap() > 900);
    assert!(advice(&report).contains("VACUUM pays"));
}

#[tokio::test]
async fn names_that_mean_something_in_a_uri_are_only_names() {
    for name in ["a b.db", "what?mode=rw.db", "50%41.db", "#1.db", "ключ&x=y.db", "-wal", "a.db-wal"] {
        let (_dir, path) = closed(name).await;
        assert_eq!(inspect_untouched(&path, 0)["settings"]["tables"], 8, "{name}");
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_name_need_not_be_text() {
    use std::os::unix::ffi::OsStrExt;

    let (_dir, path) = closed("test.db").await;
    let renamed = path.with_file_name(OsStr::from_bytes(b"\xff\x1b[2J.db"));
    fs::rename(&path, &renamed).unwrap();
    assert_eq!(inspect_untouched(&renamed, 0)["settings"]["tables"], 8);
    let output = solewriter([OsStr::new("inspect"), renamed.as_os_str()]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(!output.stdout.contains(&0x1b), "what a name holds does not command the terminal");
}

#[cfg(unix)]
#[tokio::test]
async fn a_link_leads_to_the_files_beside_the_database() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    let db = filled(&path, Config::default()).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let link = elsewhere.path().join("link.db");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert_eq!(inspect_untouched(&link, 0)["settings"]["tables"], 8);
    soon(db.shutdown(Drain::within(HANG))).await.unwrap();
}

#[test]
fn an_empty_file_is_an_empty_database() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("empty.db");
    fs::write(&path, "").unwrap();
    assert_eq!(inspect_untouched(&path, 0)["settings"]["tables"], 0);
}

#[test]
fn what_is_no_database_is_refused_with_status_2() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("text"),
        "This is a text, and it is longer than the header of a database.".repeat(9),
    )
    .unwrap();
    fs::write(dir.path().join("short"), "x").unwrap();
    let cases = [
        ("missing", "there is no file"),
        (".", "is not a file"),
        ("text", "is not a SQLite database"),
        ("short", "is not a SQLite database"),
        ("text/below", "can't be read"),
    ];
    for (name, message) in cases {
        let path = dir.path().join(name);
        let before = fs::read_dir(dir.path()).unwrap().count();
        let output = inspect(&path);
        assert_eq!(output.status.code(), Some(2), "{name}");
        assert!(text(&output.stderr).contains(message), "{name}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty(), "{name}");
        assert_eq!(before, fs::read_dir(dir.path()).unwrap().count());
    }
}

#[test]
fn a_database_that_somebody_keeps_for_himself_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    let connection = plain(&path);
    connection
        .execute_batch(
            "PRAGMA locking_mode = exclusive; PRAGMA journal_mode = wal;
             CREATE TABLE t (x); INSERT INTO t VALUES (1)",
        )
        .unwrap();
    assert!(SUFFIXES.iter().all(|suffix| beside(&path, suffix).exists() == ["", "-wal"].contains(suffix)));
    let output = inspect(&path);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("keeps the database locked"), "{}", text(&output.stderr));
    assert!(!beside(&path, "-shm").exists());
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn other_programs_beside_the_sole_writer_are_named() {
    use crate::common::foreign::Foreign;

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    let db = filled(&path, Config::default()).await;
    let mut other = Foreign::start(&path);
    other.run("INSERT INTO child VALUES (3, 1)");
    let report = inspect_untouched(&path, 0);
    let (own, writing) = (std::process::id(), &report["writing"]);
    let connected: Vec<u32> = serde_json::from_value(report["connected"].clone()).unwrap();
    let others: Vec<_> = connected.into_iter().filter(|&pid| pid != own).collect();
    assert_eq!((others.len(), writing), (1, &Value::Null));
    assert!(advice(&report).contains(&format!("have it open ({})", others[0])), "{}", advice(&report));

    other.run("BEGIN IMMEDIATE");
    assert_eq!(inspect_untouched(&path, 0)["writing"], others[0]);
    other.run("ROLLBACK");
    other.close();
    soon(db.shutdown(Drain::within(HANG))).await.unwrap();
}

#[cfg(unix)]
#[tokio::test]
async fn what_a_killed_process_left_is_read_and_left_to_the_next_one() {
    use crate::common::foreign::Foreign;

    let (_dir, path) = closed("test.db").await;
    let mut killed = Foreign::start(&path);
    killed.run("INSERT INTO child VALUES (3, 1); CREATE TABLE late (x)");
    drop(killed);
    assert!(beside(&path, "-shm").exists() && beside(&path, "-wal").metadata().unwrap().len() > 0);
    for _nothing_has_changed in 0..2 {
        let report = inspect_untouched(&path, 0);
        assert_eq!(report["settings"]["tables"], 9);
        assert_eq!(report["is_connected"], false);
        assert_eq!(report["wal"]["frames_in_use"], report["wal"]["frames_not_checkpointed"]);
    }
}
