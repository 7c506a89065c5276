//! The last commands that failed: named by what the program and the schema name, never by a bound value.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

mod common;

use std::time::Duration;

use common::{Gate, Kind, TestDb, add, committed, insert, soon};
use futures_util::stream;
use rusqlite::ffi;
use solewriter::{Database, FailedCommand, Lane, OnError, Outcome, WriteTransaction};

const SECRET: &str = "s3cr3t";

fn last(db: &Database) -> FailedCommand {
    db.recent_failures().pop().expect("a failure")
}

#[tokio::test]
async fn a_constraint_is_named_as_the_schema_does_whatever_kind_of_command_broke_it() {
    let db = TestDb::open().await;
    insert(&db, 7).await.unwrap();
    assert!(db.recent_failures().is_empty(), "what succeeds is not in it");
    for (kind, label) in [
        (Kind::Once, "once"),
        (Kind::Rerunnable, "again"),
        (Kind::Typed, "t.add"),
        (Kind::Statement, "execute"),
    ] {
        soon(kind.submit(&db, 7).await).await.unwrap_err();
        let failed = last(&db);
        assert_eq!((&*failed.label, failed.lane, failed.entry), (label, Lane::Interactive, None));
        assert_eq!(failed.outcome, Outcome::RolledBack);
        assert_eq!(failed.extended_code, Some(ffi::SQLITE_CONSTRAINT_UNIQUE));
        assert_eq!(failed.constraint.as_deref(), Some("t.x"));
        assert_eq!(failed.attempts, 1);
        assert!(failed.hold > Duration::ZERO && failed.at.elapsed().unwrap() < common::HANG);
    }
    assert_eq!(db.recent_failures().len(), 4);
}

#[tokio::test]
async fn every_kind_of_constraint_is_told_and_no_value_with_it() {
    let db = TestDb::open().await;
    db.write("schema", |tx| {
        tx.execute_batch(
            "CREATE TABLE c (id INTEGER PRIMARY KEY, n NOT NULL,
                 p CONSTRAINT short CHECK (length(p) < 3) CHECK (p <> '7700'));
             CREATE TRIGGER refuse BEFORE INSERT ON c WHEN NEW.id = 5
             BEGIN SELECT RAISE(ABORT, 'no ' || NEW.n); END;",
        )
    })
    .await
    .unwrap();
    let insert = "INSERT INTO c VALUES (?1, ?2, ?3)";
    db.execute(insert, (1, SECRET, "a")).await.unwrap();
    let cases = [
        ((1, Some(SECRET), "a"), ffi::SQLITE_CONSTRAINT_PRIMARYKEY, Some("c.id")),
        ((2, None, "a"), ffi::SQLITE_CONSTRAINT_NOTNULL, Some("c.n")),
        ((3, Some("x"), SECRET), ffi::SQLITE_CONSTRAINT_CHECK, Some("short")),
        ((4, Some("x"), "7700"), ffi::SQLITE_CONSTRAINT_CHECK, Some("short")),
        ((5, Some(SECRET), "a"), ffi::SQLITE_CONSTRAINT_TRIGGER, None),
    ];
    for (row, code, constraint) in cases {
        db.execute(insert, row).await.unwrap_err();
        let failed = last(&db);
        assert_eq!((failed.extended_code, failed.constraint.as_deref()), (Some(code), constraint));
    }
    let orphan = |tx: &mut WriteTransaction<'_>| tx.execute("INSERT INTO child VALUES (?1)", [77_001]);
    db.write("orphan", orphan).await.unwrap_err();
    assert_eq!(last(&db).extended_code, Some(ffi::SQLITE_CONSTRAINT_FOREIGNKEY));
    db.write("panics", |_| -> rusqlite::Result<()> { panic!("{SECRET}") }).await.unwrap_err();
    assert_eq!((last(&db).extended_code, &*last(&db).reason), (None, "it panicked"));
    let own = db.write_or_reject("own", |_| Err::<(), _>(std::io::Error::other(SECRET))).await;
    own.unwrap_err();
    assert_eq!((last(&db).extended_code, &*last(&db).reason), (None, "its own error"));

    let shown =
        format!("{:?} {}", db.recent_failures(), serde_json::to_string(&db.recent_failures()).unwrap());
    assert!(!shown.contains(SECRET) && !shown.contains("77001"), "{shown}");
}

#[tokio::test]
async fn a_command_that_ran_more_than_once_says_so() {
    let db = TestDb::open().await;
    let gate = Gate::close(&db).await;
    let good = committed(insert(&db, 1)).await;
    // Without a savepoint of its own it costs its group, then it runs again alone.
    let half = committed(db.write_rerunnable("half", |tx| {
        add(tx, 2)?;
        add(tx, 1)
    }))
    .await;
    gate.open().await;
    soon(good).await.unwrap();
    soon(half).await.unwrap_err();
    let failed = last(&db);
    assert_eq!((&*failed.label, failed.attempts, failed.outcome), ("half", 2, Outcome::RolledBack));
    assert!(failed.wait > Duration::ZERO);
    assert_eq!(db.xs().await, [1]);
}

#[tokio::test]
async fn a_command_that_never_ran_says_so() {
    let db = TestDb::open_with(|config| config.command_wait_max = Duration::from_millis(20)).await;
    let gate = Gate::close(&db).await;
    soon(committed(insert(&db, 1)).await).await.unwrap_err();
    let failed = last(&db);
    assert_eq!((&*failed.reason, failed.outcome), ("it waited for too long", Outcome::NotStarted));
    assert_eq!((failed.attempts, failed.hold), (0, Duration::ZERO));
    assert!(failed.wait >= Duration::from_millis(20));
    gate.open().await;
}

#[tokio::test]
async fn an_entry_of_an_import_is_named_by_its_place() {
    let db = TestDb::open().await;
    insert(&db, 3).await.unwrap();
    let prepare = |x: i64| async move { if x == 1 { Err(rusqlite::Error::InvalidQuery) } else { Ok(x) } };
    let import = db.import("numbers", stream::iter(0..5_i64)).prepare(1, prepare);
    let report = import.run(|tx, x| add(tx, *x)).await.unwrap();
    assert_eq!(report.failed, 2);
    let failures = db.recent_failures();
    let entries: Vec<_> = failures.iter().map(|failed| (failed.entry, failed.lane)).collect();
    assert_eq!(entries, [(Some(1), Lane::Bulk), (Some(3), Lane::Bulk)]);
    assert_eq!(failures[0].outcome, Outcome::NotStarted);
    assert_eq!(failures[1].constraint.as_deref(), Some("t.x"));
}

#[tokio::test]
async fn an_entry_that_costs_its_whole_batch_is_told_once() {
    let db = TestDb::open().await;
    insert(&db, 3).await.unwrap();
    let all = db.import("numbers", stream::iter(0..5_i64)).on_error(OnError::AllOrNothing);
    soon(all.run(|tx, x| add(tx, *x))).await.unwrap_err();
    let ends = db.import("numbers", stream::iter(10..13_i64));
    let ends = ends.run(|tx, x| {
        if *x == 11 { tx.execute("INSERT OR ROLLBACK INTO t (x) VALUES (3)", ()) } else { add(tx, *x) }
    });
    assert_eq!(soon(ends).await.unwrap().failed, 1);
    let failures = db.recent_failures();
    let told: Vec<_> = failures.iter().map(|failed| (failed.entry, failed.constraint.as_deref())).collect();
    assert_eq!(told, [(Some(3), Some("t.x")), (Some(1), Some("t.x"))]);
}

#[tokio::test]
async fn the_last_64_are_kept() {
    let db = TestDb::open().await;
    insert(&db, 0).await.unwrap();
    for _ in 0..100 {
        db.write("clash", |tx| add(tx, 0)).await.unwrap_err();
    }
    db.write("newest", |tx| add(tx, 0)).await.unwrap_err();
    let failures = db.recent_failures();
    assert_eq!(failures.len(), 64);
    assert_eq!(&*failures[63].label, "newest");
    assert!(failures.is_sorted_by_key(|failed| failed.at));
}
