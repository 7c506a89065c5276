//! Every way to be a bad neighbour × where it stands × what kind of command it is × what kind its neighbours are.
//!
//! In each case: the neighbours' answers and rows, the culprit's error and outcome, and who was run again. The one
//! exception of the contract, a `FnOnce` neighbour that had run in a group which SQLite itself rolled back, is
//! expected just there.

use std::mem::ManuallyDrop;
use std::time::Duration;

use rusqlite::{Connection, ffi};
use solewriter::{Committed, Config, Database, Outcome, Retry, RolledBack, WriteError, WriteTransaction};

use crate::common::{self, Answer, Gate, Kind, TestDb, add, committed, insert, soon};

/// What a hostile command does, after it has written a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Fails,
    FailsBeforeItWrites,
    Panics,
    OrRollback,
    OrRollbackSwallowedAndWrittenOn,
    HalfOfOrFail,
    RaiseFail,
    Interrupted,
    DeferredForeignKey,
    DiskFull,
    Forbidden(&'static str),
    ForbiddenCached(&'static str),
    LeavesStatement,
    LeavesWriteStatement,
    DdlThenFailure,
    CachedDdlThenFailure,
    HeaderThenFailure,
    NestedThenFailure,
}

use Way::*;

const WAYS: [Way; 26] = [
    Fails,
    FailsBeforeItWrites,
    Panics,
    OrRollback,
    OrRollbackSwallowedAndWrittenOn,
    HalfOfOrFail,
    RaiseFail,
    Interrupted,
    DeferredForeignKey,
    DiskFull,
    Forbidden("COMMIT"),
    Forbidden("ROLLBACK"),
    Forbidden("SAVEPOINT mine"),
    Forbidden("RELEASE solewriter"),
    Forbidden("PRAGMA query_only = 1"),
    Forbidden("PRAGMA defer_foreign_keys = 1"),
    Forbidden("ATTACH ':memory:' AS other"),
    Forbidden(" \n/* a comment */ COMMIT -- and another"),
    ForbiddenCached("COMMIT"),
    ForbiddenCached("BEGIN IMMEDIATE"),
    LeavesStatement,
    LeavesWriteStatement,
    DdlThenFailure,
    CachedDdlThenFailure,
    HeaderThenFailure,
    NestedThenFailure,
];

/// How the transaction ends where the way is taken in the midst of a group.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// The command alone is undone, whatever its guard.
    Undone,
    /// The whole transaction is lost.
    GroupLost,
}

impl Way {
    fn effect(self) -> Effect {
        match self {
            OrRollback
            | OrRollbackSwallowedAndWrittenOn
            | Interrupted
            | DiskFull
            | LeavesStatement
            | LeavesWriteStatement => Effect::GroupLost,
            _ => Effect::Undone,
        }
    }

    /// Runs on the writer.
    fn take(self, tx: &mut WriteTransaction<'_>) -> rusqlite::Result<usize> {
        if self == FailsBeforeItWrites {
            return add(tx, 0);
        }
        add(tx, 1_000)?;
        match self {
            Fails | FailsBeforeItWrites => add(tx, 0),
            Panics => panic!("boom"),
            OrRollback => tx.execute("INSERT OR ROLLBACK INTO t (x) VALUES (0)", ()),
            OrRollbackSwallowedAndWrittenOn => {
                tx.execute("INSERT OR ROLLBACK INTO t (x) VALUES (0)", ()).unwrap_err();
                // Each would commit by itself.
                let _vetoed = [add(tx, 1_001).is_err(), tx.execute_batch("CREATE TABLE more (x)").is_err()];
                Ok(1)
            }
            HalfOfOrFail => tx.execute("INSERT OR FAIL INTO t (x) VALUES (1001), (1002), (0)", ()),
            RaiseFail => tx.execute("INSERT INTO trap VALUES (1), (2), (3)", ()),
            Interrupted => tx.execute(
                "INSERT INTO t (x) WITH RECURSIVE n(i) AS (SELECT 2000 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n",
                (),
            ),
            DeferredForeignKey => tx.execute("INSERT INTO child VALUES (404)", ()),
            DiskFull => tx.execute("INSERT INTO big VALUES (randomblob(4000000))", ()),
            Forbidden(sql) => tx.execute_batch(sql).map(|()| 1),
            ForbiddenCached(sql) => tx.prepare_cached(sql)?.raw_execute(),
            LeavesStatement => {
                let mut statement = ManuallyDrop::new(tx.prepare("SELECT x FROM t UNION ALL SELECT 1")?);
                let mut rows = ManuallyDrop::new(statement.query(())?);
                rows.next().map(|_| 1)
            }
            LeavesWriteStatement => {
                let sql = "INSERT INTO t (x) VALUES (1001), (1002) RETURNING x";
                let mut statement = ManuallyDrop::new(tx.prepare(sql)?);
                let mut rows = ManuallyDrop::new(statement.query(())?);
                rows.next().map(|_| 1)
            }
            DdlThenFailure => {
                tx.execute_batch("CREATE TABLE more (x); ALTER TABLE big ADD COLUMN more; ANALYZE")?;
                add(tx, 0)
            }
            CachedDdlThenFailure => {
                tx.prepare_cached("CREATE TABLE IF NOT EXISTS more (x)")?.raw_execute()?;
                add(tx, 0)
            }
            HeaderThenFailure => {
                tx.execute_batch("PRAGMA user_version = 77")?;
                add(tx, 0)
            }
            NestedThenFailure => {
                tx.savepoint(|tx| add(tx, 1_001))?;
                tx.savepoint(|tx| {
                    add(tx, 1_002)?;
                    add(tx, 0)
                })
            }
        }
    }

    fn is_own_error(self, error: &WriteError) -> bool {
        let code = error.sqlite_extended_code();
        match self {
            Panics => matches!(error, WriteError::RolledBack(RolledBack::Panicked(why)) if why == "boom"),
            OrRollbackSwallowedAndWrittenOn => {
                matches!(error, WriteError::RolledBack(RolledBack::TransactionEnded))
            }
            RaiseFail => {
                matches!(error, WriteError::Command(_)) && code == Some(ffi::SQLITE_CONSTRAINT_TRIGGER)
            }
            Interrupted => matches!(error, WriteError::RolledBack(RolledBack::DeadlineExceeded { .. })),
            DeferredForeignKey => matches!(error, WriteError::RolledBack(RolledBack::ForeignKey)),
            DiskFull => {
                matches!(error, WriteError::RolledBack(RolledBack::Environment(_)))
                    && code == Some(ffi::SQLITE_FULL)
            }
            Forbidden(_) | ForbiddenCached(_) => {
                matches!(error, WriteError::Command(_)) && code == Some(ffi::SQLITE_AUTH)
            }
            LeavesStatement | LeavesWriteStatement => {
                matches!(error, WriteError::RolledBack(RolledBack::StatementLeftOpen))
            }
            _ => matches!(error, WriteError::Command(_)) && code == Some(ffi::SQLITE_CONSTRAINT_UNIQUE),
        }
    }
}

/// As many pages as the schema and some rows need, and too few for a large value.
const PAGES_MAX: u32 = 400;

async fn open() -> TestDb {
    let db = TestDb::open_prepared(
        |config: &mut Config| config.readers = 1,
        |connection: &Connection| connection.pragma_update(None, "max_page_count", PAGES_MAX),
    )
    .await;
    db.write("schema", |tx| {
        tx.execute_batch(
            "CREATE TABLE big (line BLOB);
             CREATE TABLE trap (n);
             CREATE TRIGGER trap AFTER INSERT ON trap WHEN new.n = 3
                 BEGIN SELECT RAISE(FAIL, 'trapped'); END;
             INSERT INTO t (x) VALUES (0)",
        )
    })
    .await
    .unwrap();
    db
}

/// Submits the culprit.
async fn submit(db: &Database, way: Way, kind: Kind) -> Answer {
    let label = format!("{way:?}");
    let deadline = if way == Interrupted { Duration::from_millis(150) } else { common::HANG };
    match kind {
        Kind::Once => committed(db.write(label, move |tx| way.take(tx)).deadline(deadline)).await,
        _ => committed(db.write_rerunnable(label, move |tx| way.take(tx)).deadline(deadline)).await,
    }
}

/// Makes the label known as a quick one: else a command with so short a deadline would run alone.
async fn teach(db: &Database) {
    for _ in 0..64 {
        db.write(format!("{Interrupted:?}"), |_| Ok(())).await.unwrap();
    }
}

/// What a neighbour answers: how many rows it has changed.
fn is_committed(answer: Result<Committed<usize>, WriteError>) -> bool {
    match answer {
        Ok(committed) => {
            assert_eq!(committed.value, 1, "rows changed");
            true
        }
        Err(error) => {
            assert!(matches!(error, WriteError::RolledBack(RolledBack::GroupLost(_))), "{error:?}");
            assert_eq!(error.outcome(), Outcome::RolledBack);
            assert_ne!(error.retry(), Retry::Never);
            false
        }
    }
}

/// One case: the culprit at `position` among `neighbours.len()` neighbours.
async fn case(db: &TestDb, way: Way, kind: Kind, neighbours: &[Kind], position: usize) {
    let what = format!("{way:?} ({kind:?}) at {position} of {neighbours:?}");
    let before = db.stats().commands;
    let gate = Gate::close(db).await;
    let mut answers = Vec::new();
    let mut culprit = None;
    for (place, neighbour) in neighbours.iter().enumerate() {
        if place == position {
            culprit = Some(submit(db, way, kind).await);
        }
        answers.push(neighbour.submit(db, 1 + place as i64).await);
    }
    if culprit.is_none() {
        culprit = Some(submit(db, way, kind).await);
    }
    gate.open().await;
    let error = soon(culprit.unwrap()).await.unwrap_err();
    assert!(way.is_own_error(&error), "{what}: {error:?}");
    assert_eq!(error.outcome(), Outcome::RolledBack, "{what}");

    let mut expected = vec![0];
    for (place, answer) in answers.into_iter().enumerate() {
        let is_lost =
            way.effect() == Effect::GroupLost && place < position && neighbours[place] == Kind::Once;
        assert_eq!(is_committed(soon(answer).await), !is_lost, "{what}: neighbour {place}");
        if !is_lost {
            expected.push(1 + place as i64);
        }
    }
    assert_eq!(db.xs().await, expected, "{what}");
    let rerun = db.stats().commands.rerun - before.rerun;
    let rerunnable_before = neighbours[..position].iter().filter(|kind| **kind != Kind::Once).count();
    if neighbours.contains(&Kind::Once) && way.effect() == Effect::Undone {
        assert_eq!(rerun, 0, "{what}: nobody may cost a `FnOnce` neighbour its run");
    }
    if way.effect() == Effect::GroupLost {
        assert!(rerun >= rerunnable_before as u64, "{what}: {rerun} were run again");
    }
    db.write("clean", |tx| {
        tx.execute("DELETE FROM t WHERE x <> 0", ())?;
        let left = "SELECT (SELECT count(*) FROM child) + (SELECT count(*) FROM big) + (SELECT count(*) FROM trap)
                    + (SELECT count(*) FROM sqlite_schema WHERE name = 'more') + (SELECT user_version FROM pragma_user_version)";
        assert_eq!(tx.query_row(left, (), |row| row.get::<_, i64>(0))?, 0);
        Ok(())
    })
    .await
    .unwrap_or_else(|error| panic!("{what}: something is left: {error:?}"));
}

/// The neighbours of one kind, and mixed with those that can't run again.
const NEIGHBOURHOODS: [&[Kind]; 6] = [
    &[],
    &[Kind::Statement, Kind::Statement],
    &[Kind::Typed, Kind::Typed],
    &[Kind::Rerunnable, Kind::Rerunnable],
    &[Kind::Once, Kind::Once],
    &[Kind::Statement, Kind::Once],
];

async fn all_cases(kind: Kind) {
    let db = open().await;
    for way in WAYS {
        for neighbours in NEIGHBOURHOODS {
            for position in 0..=neighbours.len() {
                if way == Interrupted {
                    teach(&db).await;
                }
                case(&db, way, kind, neighbours, position).await;
            }
        }
    }
}

#[tokio::test]
async fn no_command_that_can_run_again_costs_a_neighbour_its_result() {
    all_cases(Kind::Rerunnable).await;
}

#[tokio::test]
async fn no_command_that_runs_once_costs_a_neighbour_its_result() {
    all_cases(Kind::Once).await;
}

#[tokio::test]
async fn a_failure_without_a_trace_costs_no_second_run_and_one_with_traces_does() {
    for (way, reruns) in [(FailsBeforeItWrites, false), (Fails, true), (HalfOfOrFail, true)] {
        let db = open().await;
        let gate = Gate::close(&db).await;
        let neighbour = committed(insert(&db, 1)).await;
        let culprit = submit(&db, way, Kind::Rerunnable).await;
        gate.open().await;
        soon(culprit).await.unwrap_err();
        soon(neighbour).await.unwrap();
        assert_eq!(db.stats().commands.rerun > 0, reruns, "{way:?}");
    }
}

#[tokio::test]
async fn a_label_that_failed_half_way_keeps_its_savepoints() {
    let db = open().await;
    let groups = async || {
        let gate = Gate::close(&db).await;
        let neighbour = committed(insert(&db, 1)).await;
        let culprit = submit(&db, Fails, Kind::Rerunnable).await;
        gate.open().await;
        soon(culprit).await.unwrap_err();
        soon(neighbour).await.unwrap();
        db.execute("DELETE FROM t WHERE x = 1", ()).await.unwrap();
        db.stats().commands.rerun
    };
    let first = groups().await;
    assert!(first > 0, "the group was run again");
    for _ in 0..5 {
        assert_eq!(groups().await, first, "and never since");
    }
}
