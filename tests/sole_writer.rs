//! Sole Writer: one service per file in a process, and one process per file.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Gate, HANG, TestDb, beside, config_with, insert, soon};
use solewriter::{Config, Database, Drain, OpenError, OpenErrorReason};

async fn open(path: impl AsRef<Path>, set: impl FnOnce(&mut Config)) -> Result<Database, OpenError> {
    Database::builder(path).config(config_with(set)).open().await
}

#[tokio::test]
async fn every_path_to_a_file_leads_to_the_same_service() {
    let db = TestDb::open().await;
    let dir = db.path().parent().unwrap();
    let roundabout = dir.join("..").join(dir.file_name().unwrap()).join("./test.db");
    let mut paths = vec![db.path().to_owned(), roundabout];
    #[cfg(unix)]
    {
        let link = dir.join("link.db");
        std::os::unix::fs::symlink(db.path(), &link).unwrap();
        paths.push(link);
    }
    let gate = Gate::close(&db).await;
    for path in &paths {
        let other = open(path, |_| ()).await.unwrap();
        assert_eq!(other.path(), db.path());
        assert!(gate.holds(&other), "the gate of one is the gate of all");
    }
    gate.open().await;
    for (x, path) in (0..).zip(&paths) {
        insert(&open(path, |_| ()).await.unwrap(), x).await.unwrap();
    }
    assert_eq!(db.xs().await, (0..3).take(paths.len()).collect::<Vec<_>>());
    assert!(!beside(&dir.join("link.db"), "-solewriter").exists(), "one file, one lock");
}

#[tokio::test]
async fn opens_at_the_same_moment_get_the_same_service() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new.db");
    let opens: Vec<_> = (0..8).map(|_| tokio::spawn(Database::builder(&path).open())).collect();
    let mut handles = Vec::new();
    for handle in opens {
        handles.push(soon(handle).await.unwrap().unwrap());
    }
    handles[0].execute("CREATE TABLE t (x)", ()).await.unwrap();
    for handle in &handles {
        handle.execute("INSERT INTO t VALUES (1)", ()).await.unwrap();
    }
    assert_eq!(handles[7].stats().commands.committed, 9);
    handles[0].shutdown(Drain::within(HANG)).await.unwrap();
}

#[tokio::test]
async fn an_open_with_another_option_is_refused_by_the_name_of_the_option() {
    let db = TestDb::open().await;
    let refused = open(db.path(), |config| config.group_commands_max = 7).await.unwrap_err();
    assert!(matches!(refused.reason, OpenErrorReason::OptionDiffers { option: "group_commands_max" }));
    assert!(refused.to_string().contains("group_commands_max"), "{refused}");
    let vfs = Database::builder(db.path()).config(config_with(|_| ())).vfs("unix-none").open().await;
    assert!(matches!(vfs.unwrap_err().reason, OpenErrorReason::OptionDiffers { option: "vfs" }));
    insert(&db, 1).await.unwrap();
}

#[tokio::test]
async fn two_databases_have_nothing_in_common() {
    let (one, two) = (TestDb::open().await, TestDb::open().await);
    let gate = Gate::close(&one).await;
    soon(insert(&two, 1)).await.unwrap();
    common::until("nobody holds the other", || two.holder().is_none()).await;
    gate.open().await;
    assert_eq!((one.xs().await, two.xs().await), (vec![], vec![1]));
    one.shutdown(Drain::within(HANG)).await.unwrap();
    insert(&two, 2).await.unwrap();
}

/// Tells the child process of the test below which file to hold.
const HOLD: &str = "SOLEWRITER_TEST_HOLD";

/// Another process that has the database open; it closes it when it is told anything.
///
/// Its output must stay open, else it dies of a broken pipe.
fn another_process(path: &Path) -> (Child, impl BufRead + use<>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "another_process_keeps_us_out_and_is_named", "--nocapture"])
        .env(HOLD, path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let is_ready = output.by_ref().lines().any(|line| line.unwrap().contains("ready"));
    assert!(is_ready, "the child opens the database");
    (child, output)
}

fn hold(path: &Path) {
    let db = Database::builder(path).open_blocking().unwrap().blocking();
    db.execute("CREATE TABLE theirs (x)", ()).wait().unwrap();
    println!("ready");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    db.shutdown(Drain::within(HANG)).unwrap();
}

#[test]
fn another_process_keeps_us_out_and_is_named() {
    if let Some(path) = std::env::var_os(HOLD) {
        return hold(Path::new(&path));
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shared.db");
    let (mut child, _output) = another_process(&path);
    let refused = Database::builder(&path).open_blocking().unwrap_err();
    let pid = child.id();
    assert!(
        matches!(refused.reason, OpenErrorReason::HeldByProcess { pid: Some(held) } if held == pid),
        "{refused}"
    );
    assert!(refused.to_string().contains(&pid.to_string()), "{refused}");
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(child.wait().unwrap().success());
    let db = Database::builder(&path).open_blocking().unwrap().blocking();
    db.execute("INSERT INTO theirs VALUES (1)", ()).wait().unwrap();
    db.shutdown(Drain::within(HANG)).unwrap();

    // A process that dies leaves its lock file and not its lock.
    let (mut child, _output) = another_process(&dir.path().join("killed.db"));
    child.kill().unwrap();
    child.wait().unwrap();
    let db = Database::builder(dir.path().join("killed.db")).open_blocking().unwrap().blocking();
    db.execute("INSERT INTO theirs VALUES (1)", ()).wait().unwrap();
    db.shutdown(Drain::within(HANG)).unwrap();
}

#[tokio::test]
async fn after_a_shutdown_the_file_can_be_opened_again_with_other_options() {
    let db = TestDb::open().await;
    insert(&db, 1).await.unwrap();
    let before = db.stats().groups_committed;
    db.shutdown(Drain::within(HANG)).await.unwrap();
    let again = open(db.path(), |config| config.group_commands_max = 7).await.unwrap();
    insert(&again, 2).await.unwrap();
    assert!(before > 1 && again.stats().groups_committed == 1, "a new service");
    again.shutdown(Drain::within(HANG)).await.unwrap();
}

#[tokio::test]
async fn an_open_during_our_own_shutdown_waits_for_it() {
    let db = TestDb::open().await;
    let gate = Gate::close(&db).await;
    let closing = (*db).clone();
    let shutdown = tokio::spawn(async move { closing.shutdown(Drain::within(HANG)).await });
    common::until("it closes", || insert(&db, 1).try_submit().is_err()).await;
    let hasty = open(db.path(), |config| config.shutdown_wait_max = Duration::from_millis(10)).await;
    assert!(matches!(hasty.unwrap_err().reason, OpenErrorReason::StillClosing));
    let path = db.path().to_owned();
    let patient = tokio::spawn(async move { open(path, |_| ()).await });
    gate.open().await;
    soon(shutdown).await.unwrap().unwrap();
    let again = soon(patient).await.unwrap().unwrap();
    insert(&again, 1_000).await.unwrap();
    again.shutdown(Drain::within(HANG)).await.unwrap();
}

#[cfg(unix)]
#[tokio::test]
async fn the_files_are_for_their_owner_only_and_the_lock_file_stays_the_same_file() {
    use std::os::unix::fs::MetadataExt;
    let db = TestDb::open().await;
    let lock = beside(db.path(), "-solewriter");
    for file in [db.path(), &lock, &beside(db.path(), "-wal"), &beside(db.path(), "-shm")] {
        assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600, "{}", file.display());
    }
    let inode = lock.metadata().unwrap().ino();
    db.shutdown(Drain::within(HANG)).await.unwrap();
    assert_eq!(lock.metadata().unwrap().ino(), inode, "unlinked, two processes could both lock it");
    let again = open(db.path(), |_| ()).await.unwrap();
    again.shutdown(Drain::within(HANG)).await.unwrap();
    assert_eq!(lock.metadata().unwrap().ino(), inode);
}

#[cfg(unix)]
#[tokio::test]
async fn a_lock_file_that_leads_to_another_file_is_refused_and_that_file_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (path, other) = (dir.path().join("test.db"), dir.path().join("other"));
    std::fs::write(&other, "precious").unwrap();
    std::os::unix::fs::symlink(&other, beside(&path, "-solewriter")).unwrap();
    let refused = open(&path, |_| ()).await.unwrap_err();
    assert!(matches!(refused.reason, OpenErrorReason::Io(_)), "{refused:?}");
    assert_eq!(std::fs::read_to_string(&other).unwrap(), "precious");
}
