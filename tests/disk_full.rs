//! Honest Outcome and Self-Healing, where there is no space: writes are refused and come back by themselves, and
//! whatever was answered is true. Real disks, and many of them: `tests/reliability/disk_full.rs`.
#![cfg(unix)]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]
#![allow(clippy::async_yields_async, reason = "a command is sent first and waited for later")]

mod common;

use std::time::Duration;

use common::faults::{By, CrashImage, Fault, Faults, Of, Op, stored, xs};
use common::{Gate, HANG, Kind, committed, config_with, insert, plain, soon, until};
use rusqlite::ffi;
use solewriter::{Config, Database, Drain, Durability, NotStarted, Outcome, Retry, RolledBack, WriteError};

/// More than the cache holds, so that its pages go to the WAL before the COMMIT.
const LARGE: &str = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 300)
                     INSERT INTO big SELECT randomblob(3000) FROM n";

fn settings(config: &mut Config) {
    config.cache_bytes = 40_960;
    config.breaker_pause = Duration::from_millis(5);
}

fn no_space() -> Fault {
    Fault::new(Op::Write, Of::Wal, ffi::SQLITE_FULL)
}

fn close(db: &Database) {
    let report = db.blocking().shutdown(Drain::within(HANG)).unwrap();
    assert_eq!((report.stopped, report.wal_pages_left), (false, 0));
}

fn is_lost(error: &WriteError) {
    assert!(matches!(error, WriteError::RolledBack(RolledBack::GroupLost(_))), "{error:?}");
    assert_eq!((error.outcome(), error.retry()), (Outcome::RolledBack, Retry::Later));
    assert_eq!(error.sqlite_extended_code(), Some(ffi::SQLITE_FULL));
}

fn is_of_the_environment(error: &WriteError) {
    assert!(matches!(error, WriteError::RolledBack(RolledBack::Environment(_))), "{error:?}");
    assert_eq!((error.outcome(), error.retry()), (Outcome::RolledBack, Retry::Later));
    assert_eq!(error.sqlite_extended_code(), Some(ffi::SQLITE_FULL));
}

/// Writes are refused and reads go on, until there is space again.
async fn is_refused_until_there_is_space(db: &Database, faults: &Faults, seen: &[i64]) {
    until("writes are refused", || db.stats().is_refusing_writes).await;
    let refused = soon(insert(db, 99)).await.unwrap_err();
    assert!(matches!(refused, WriteError::NotStarted(NotStarted::DiskFull(_))), "{refused:?}");
    assert_eq!((refused.outcome(), refused.retry()), (Outcome::NotStarted, Retry::Later));
    assert_eq!(xs(db), seen, "reads go on");
    let probed = faults.failed();
    until("it probes again and again", || faults.failed() >= probed + 2).await;
    assert_eq!(CrashImage::take(db.path()).xs(), seen, "after a crash meanwhile");
    faults.heal();
    until("a probe brings writes back", || !db.stats().is_refusing_writes).await;
    insert(db, 99).await.unwrap();
    assert_eq!(db.stats().foreign_commits, 0, "nobody else was there");
}

#[tokio::test]
async fn no_space_at_commit_rolls_the_group_back_and_refuses_writes_until_there_is_some() {
    for spared in [0, 1, 3] {
        let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
        let db = faults.create(&dir, settings);
        let gate = Gate::close(&db).await;
        let mut sent = Vec::new();
        for (x, kind) in (1..).zip(Kind::ALL) {
            sent.push(kind.submit(&db, x).await);
        }
        faults.forget();
        faults.inject(no_space().after(spared));
        gate.open().await;
        for answer in sent {
            is_lost(&soon(answer).await.unwrap_err());
        }
        is_refused_until_there_is_space(&db, &faults, &[0]).await;
        close(&db);
        assert_eq!(stored(db.path()), [0, 99]);
    }
}

#[tokio::test]
async fn no_space_in_the_midst_of_a_statement_is_told_to_it_and_refuses_writes_until_there_is_some() {
    let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
    let db = faults.create(&dir, settings);
    db.execute("CREATE TABLE big (x)", ()).await.unwrap();
    let gate = Gate::close(&db).await;
    let once = Kind::Once.submit(&db, 1).await;
    let again = Kind::Statement.submit(&db, 2).await;
    let culprit = committed(db.execute(LARGE, ())).await;
    let late = Kind::Once.submit(&db, 3).await;
    faults.forget();
    faults.inject(no_space().after(9));
    gate.open().await;
    is_of_the_environment(&soon(culprit).await.unwrap_err());
    // Who has run can't be told that it has not, whether or not it could run again.
    is_lost(&soon(once).await.unwrap_err());
    is_lost(&soon(again).await.unwrap_err());
    // This one has not run.
    let late = soon(late).await.unwrap_err();
    assert!(matches!(late, WriteError::NotStarted(NotStarted::DiskFull(_))), "{late:?}");
    is_refused_until_there_is_space(&db, &faults, &[0]).await;
    assert_eq!(db.execute(LARGE, ()).await.unwrap(), 300);
    close(&db);
    assert_eq!(stored(db.path()), [0, 99]);
}

#[tokio::test]
async fn no_space_for_a_moment_costs_the_statement_only() {
    let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
    let db = faults.create(&dir, settings);
    db.execute("CREATE TABLE big (x)", ()).await.unwrap();
    let gate = Gate::close(&db).await;
    let again = Kind::Statement.submit(&db, 1).await;
    let culprit = committed(db.execute(LARGE, ())).await;
    let late = Kind::Once.submit(&db, 2).await;
    faults.inject(no_space().after(9).once());
    gate.open().await;
    is_of_the_environment(&soon(culprit).await.unwrap_err());
    soon(again).await.unwrap();
    soon(late).await.unwrap();
    assert!(!db.stats().is_refusing_writes);
    close(&db);
    assert_eq!(stored(db.path()), [0, 1, 2]);
}

// One large row and many small ones: SQLite rolls everything back for the one and only the statement for the
// other.
#[tokio::test]
async fn a_command_too_large_for_the_database_is_told_so_and_nobody_else_notices() {
    let large_row = "INSERT INTO big VALUES (zeroblob(4000000))";
    let many_rows = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 4000)
                     INSERT INTO big SELECT randomblob(1000) FROM n";
    for sql in [large_row, many_rows] {
        for kind in [Kind::Once, Kind::Rerunnable, Kind::Statement] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("test.db");
            let schema = "CREATE TABLE t (id INTEGER PRIMARY KEY, x UNIQUE); CREATE TABLE big (x)";
            plain(&path).execute_batch(schema).unwrap();
            let builder = Database::builder(&path).config(config_with(|_| ())).on_connect(|connection, _| {
                connection.query_row("PRAGMA max_page_count = 200", (), |_| Ok(()))
            });
            let db = builder.open().await.unwrap();
            let gate = Gate::close(&db).await;
            let before = Kind::Statement.submit(&db, 1).await;
            let culprit = match kind {
                Kind::Once => committed(db.write("large", move |tx| tx.execute(sql, ()))).await,
                Kind::Rerunnable => {
                    committed(db.write_rerunnable("large", move |tx| tx.execute(sql, ()))).await
                }
                _ => committed(db.execute(sql, ())).await,
            };
            let after = Kind::Once.submit(&db, 2).await;
            gate.open().await;
            is_of_the_environment(&soon(culprit).await.unwrap_err());
            soon(before).await.unwrap();
            soon(after).await.unwrap();
            assert!(!db.stats().is_refusing_writes, "{kind:?}");
            assert_eq!(xs(&db), [1, 2]);
            close(&db);
            assert_eq!(stored(&path), [1, 2]);
        }
    }
}

// The WAL has room and the database file has none, until it has.
#[tokio::test]
async fn a_checkpoint_that_finds_no_space_is_tried_again_later_and_nobody_notices() {
    // Each group asks for a checkpoint; or the writer makes its own first, since the WAL has reached its target.
    for (by, checkpoint_pages, tries) in [(By::Checkpointer, 1, 3), (By::Writer, 20, 1)] {
        let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
        let db = faults.create(&dir, |config| {
            settings(config);
            (config.checkpoint_pages, config.wal_target_bytes) = (checkpoint_pages, 65_536);
        });
        faults.forget();
        faults.inject(Fault::new(Op::Write, Of::Database, ffi::SQLITE_FULL).by(by));
        let mut seen = vec![0];
        while faults.failed() < tries {
            seen.push(seen.len() as i64);
            // Groups that were not synced make no difference.
            let durability = if seen.len() % 2 == 0 { Durability::Normal } else { Durability::Full };
            soon(insert(&db, seen.len() as i64 - 1).durability(durability)).await.unwrap();
            assert!(seen.len() < 1_000, "no checkpoint is tried");
        }
        assert_eq!(xs(&db), seen, "reads go on");
        assert!(!faults.calls().iter().any(|call| call.op == Op::Open), "nothing is opened anew");
        assert_eq!(CrashImage::take(db.path()).xs(), seen);
        faults.heal();
        let restarts = db.stats().wal_restarts;
        while db.stats().wal_restarts == restarts {
            seen.push(seen.len() as i64);
            soon(insert(&db, seen.len() as i64 - 1)).await.unwrap();
            assert!(seen.len() < 2_000, "{by:?}: the WAL never begins anew");
        }
        let path = db.path().to_owned();
        close(&db);
        assert_eq!(stored(&path), seen);
    }
}

// Else a WAL that grows on takes the space that its own checkpoint needs.
#[tokio::test]
async fn once_there_is_space_again_the_wal_is_copied_first() {
    let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
    let db = faults.create(&dir, |config| {
        settings(config);
        config.checkpoint_pages = 40;
    });
    faults.inject(Fault::new(Op::Write, Of::Database, ffi::SQLITE_FULL));
    let mut x = 0;
    while faults.failed() == 0 {
        x += 1;
        soon(insert(&db, x)).await.unwrap();
        assert!(x < 1_000, "no checkpoint is tried");
    }
    faults.inject(no_space());
    while soon(insert(&db, x + 1)).await.is_ok() {
        x += 1;
    }
    until("writes are refused", || db.stats().is_refusing_writes).await;
    faults.heal();
    until("a probe brings writes back", || !db.stats().is_refusing_writes).await;
    insert(&db, x + 1).await.unwrap();
    until("the WAL is copied", || db.stats().checkpoints > 0).await;
    close(&db);
}
