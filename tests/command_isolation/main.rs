//! Command Isolation: a command that fails costs no neighbour its result.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]
#![allow(clippy::async_yields_async, reason = "a command is sent first and waited for later")]

#[path = "../common/mod.rs"]
mod common;
mod matrix;

use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};

use common::{Answer, Gate, Kind, TestDb, add, committed, insert, soon};
use futures_util::FutureExt;
use rusqlite::ffi;
use solewriter::{Committed, Durability, Lane, Outcome, Retry, RolledBack, WriteError, WriteTransaction};

type Answered = Result<Committed<usize>, WriteError>;

/// Lets three commands wait together: `culprit` at `position`, and two neighbours that insert 1 and 2.
async fn among_neighbours(
    db: &TestDb,
    neighbours: Kind,
    position: usize,
    culprit: impl Future<Output = Answer>,
) -> (WriteError, [Answered; 2]) {
    let gate = Gate::close(db).await;
    let mut before = Vec::new();
    for x in [1, 2].into_iter().take(position) {
        before.push(neighbours.submit(db, x).await);
    }
    let culprit = culprit.await;
    for x in [1, 2].into_iter().skip(position) {
        before.push(neighbours.submit(db, x).await);
    }
    gate.open().await;
    let culprit = soon(culprit).await.unwrap_err();
    let [first, second] = before.try_into().ok().unwrap();
    (culprit, [soon(first).await, soon(second).await])
}

/// As [`among_neighbours`], at every position and with every kind of neighbour: these must not notice.
async fn spares_its_neighbours(
    db: &TestDb,
    culprit: impl AsyncFn() -> Answer,
    is_own_error: impl Fn(&WriteError) -> bool,
) {
    let kept = db.xs().await;
    for neighbours in Kind::ALL {
        for position in 0..3 {
            let (error, [first, second]) = among_neighbours(db, neighbours, position, culprit()).await;
            assert!(is_own_error(&error), "{error:?}");
            assert_eq!(first.unwrap().token, second.unwrap().token, "they were one group");
            assert_eq!(db.xs().await, [&kept[..], &[1, 2]].concat(), "{neighbours:?}, {position}");
            db.execute("DELETE FROM t WHERE x IN (1, 2)", ()).await.unwrap();
        }
    }
}

fn is_unique(error: &WriteError) -> bool {
    matches!(error, WriteError::Command(_))
        && error.sqlite_extended_code() == Some(ffi::SQLITE_CONSTRAINT_UNIQUE)
}

#[tokio::test]
async fn a_failing_command_leaves_its_neighbours_committed() {
    let db = TestDb::open().await;
    insert(&db, 0).await.unwrap();
    for kind in Kind::ALL {
        spares_its_neighbours(&db, async || kind.submit(&db, 0).await, is_unique).await;
    }
}

#[tokio::test]
async fn a_panicking_command_leaves_its_neighbours_committed() {
    let db = TestDb::open().await;
    let panicking = async || {
        committed(db.write("panics", |tx| {
            let rows = add(tx, 9)?;
            if rows == 1 {
                panic!("boom")
            }
            Ok(rows)
        }))
        .await
    };
    let with_its_message = |error: &WriteError| matches!(error, WriteError::RolledBack(RolledBack::Panicked(why)) if why == "boom");
    spares_its_neighbours(&db, panicking, with_its_message).await;
}

#[tokio::test]
async fn a_deferred_foreign_key_is_blamed_on_the_command_that_broke_it() {
    let db = TestDb::open().await;
    let orphan = async || committed(db.execute("INSERT INTO child VALUES (99)", ())).await;
    let by_name = |error: &WriteError| matches!(error, WriteError::RolledBack(RolledBack::ForeignKey));
    spares_its_neighbours(&db, orphan, by_name).await;
}

#[tokio::test]
async fn a_deferred_foreign_key_may_be_broken_and_mended_within_a_command() {
    let db = TestDb::open().await;
    db.write("family.add", |tx| {
        tx.execute("INSERT INTO child VALUES (1)", ())?;
        tx.execute("INSERT INTO parent VALUES (1)", ())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn what_makes_sqlite_roll_back_everything_is_blamed_on_its_command_and_retry_is_safe_for_others() {
    let db = TestDb::open().await;
    insert(&db, 0).await.unwrap();
    let culprit = async || committed(db.execute("INSERT OR ROLLBACK INTO t (x) VALUES (0)", ())).await;
    let (error, [first, second]) = among_neighbours(&db, Kind::Once, 2, culprit()).await;
    assert!(is_unique(&error), "{error:?}");
    for lost in [first, second] {
        let lost = lost.unwrap_err();
        assert!(matches!(lost, WriteError::RolledBack(RolledBack::GroupLost(_))), "{lost:?}");
        assert_eq!((lost.outcome(), lost.retry()), (Outcome::RolledBack, Retry::Now));
    }
    assert_eq!(db.xs().await, [0]);
    // Its own too: its error was believed only when it failed alone.
    assert_eq!(db.stats().groups_lost, 2);

    // Those that had not run by then do not notice.
    let (_, [lost, later]) = among_neighbours(&db, Kind::Once, 1, culprit()).await;
    assert!(matches!(lost, Err(WriteError::RolledBack(RolledBack::GroupLost(_)))), "{lost:?}");
    later.unwrap();
    assert_eq!(db.xs().await, [0, 2]);
}

#[tokio::test]
async fn a_command_that_swallows_a_whole_rollback_and_writes_on_leaves_nothing() {
    let db = TestDb::open().await;
    insert(&db, 0).await.unwrap();
    let lose_all = |tx: &mut WriteTransaction<'_>| {
        let _swallowed = tx.execute("INSERT OR ROLLBACK INTO t (x) VALUES (0)", ()).unwrap_err();
    };
    let swallowed = db
        .write("swallows", move |tx| {
            lose_all(tx);
            // Without a transaction each of these would commit by itself.
            let vetoed = add(tx, 5).unwrap_err();
            tx.execute_batch("CREATE TABLE more (x)").unwrap_err();
            Ok(vetoed.sqlite_error().map(|error| error.extended_code))
        })
        .await;
    assert!(matches!(swallowed, Err(WriteError::RolledBack(RolledBack::TransactionEnded))), "{swallowed:?}");
    let nested = db
        .write("swallows", move |tx| {
            tx.savepoint(|tx| {
                lose_all(tx);
                let _vetoed = add(tx, 6).is_err();
                Ok::<_, rusqlite::Error>(())
            })?;
            let _vetoed = add(tx, 7).is_err();
            Ok(())
        })
        .await;
    assert!(matches!(nested, Err(WriteError::RolledBack(RolledBack::TransactionEnded))), "{nested:?}");
    insert(&db, 8).await.unwrap();
    assert_eq!(db.xs().await, [0, 8]);
    assert!(!db.plain().table_exists(None, "more").unwrap());
}

/// SQL that would end the transaction, or change what outlives the command.
const FORBIDDEN: [&str; 20] = [
    "COMMIT",
    "commit;",
    " \n\tCOMMIT",
    "-- not a comment only\nCOMMIT",
    "/* nor */ END TRANSACTION",
    "ROLLBACK",
    "ROLLBACK TO solewriter",
    "RELEASE solewriter",
    "SAVEPOINT solewriter",
    "SAVEPOINT mine",
    "BEGIN",
    "BEGIN IMMEDIATE",
    "ATTACH ':memory:' AS other",
    "DETACH main",
    "VACUUM",
    "PRAGMA journal_mode = DELETE",
    "PRAGMA synchronous = OFF",
    "PRAGMA foreign_keys = OFF",
    "PRAGMA main.wal_checkpoint(TRUNCATE)",
    "PRAGMA wal_autocheckpoint = 1",
];

#[tokio::test]
async fn sql_that_would_end_the_transaction_is_refused_however_it_is_sent() {
    let db = TestDb::open().await;
    let ways: [fn(&mut WriteTransaction<'_>, &str) -> rusqlite::Result<()>; 4] = [
        |tx, sql| tx.execute_batch(sql),
        |tx, sql| tx.execute(sql, ()).map(drop),
        |tx, sql| tx.prepare(sql)?.raw_execute().map(drop),
        |tx, sql| tx.prepare_cached(sql)?.raw_execute().map(drop),
    ];
    for sql in FORBIDDEN {
        for run in ways {
            let try_it = async || {
                committed(db.write("tries", move |tx| {
                    add(tx, 9)?;
                    run(tx, sql).map(|()| 0)
                }))
                .await
            };
            let (error, neighbours) = among_neighbours(&db, Kind::Once, 1, try_it()).await;
            let expected = if sql == "VACUUM" { ffi::SQLITE_ERROR } else { ffi::SQLITE_AUTH };
            assert_eq!(error.sqlite_extended_code(), Some(expected), "{sql}: {error:?}");
            assert!(matches!(error, WriteError::Command(_)));
            neighbours.into_iter().for_each(|neighbour| assert!(neighbour.is_ok(), "{sql}"));
            assert_eq!(db.xs().await, [1, 2], "{sql}");
            db.execute("DELETE FROM t", ()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_swallowed_refusal_changes_nothing_for_the_command() {
    let db = TestDb::open().await;
    db.write("tries", |tx| {
        add(tx, 1)?;
        FORBIDDEN.into_iter().for_each(|sql| drop(tx.execute_batch(sql).unwrap_err()));
        add(tx, 2)
    })
    .await
    .unwrap();
    assert_eq!(db.xs().await, [1, 2]);
}

#[tokio::test]
async fn a_statement_left_half_stepped_fails_its_command_and_the_next_ones_go_on() {
    let db = TestDb::open().await;
    insert(&db, 0).await.unwrap();
    let leaked = db
        .write("leaks", |tx| {
            add(tx, 5)?;
            let mut statement = ManuallyDrop::new(tx.prepare("SELECT x FROM t UNION ALL SELECT 1")?);
            let mut rows = ManuallyDrop::new(statement.query(())?);
            rows.next().map(drop)
        })
        .await;
    assert!(matches!(leaked, Err(WriteError::RolledBack(RolledBack::StatementLeftOpen))), "{leaked:?}");
    for x in 1..10 {
        soon(insert(&db, x)).await.unwrap();
    }
    assert_eq!(db.xs().await, (0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_nested_part_that_fails_is_undone_and_the_command_goes_on() {
    let db = TestDb::open().await;
    insert(&db, 0).await.unwrap();
    db.write("nests", |tx| {
        add(tx, 1)?;
        let failed = tx.savepoint(|tx| {
            add(tx, 2)?;
            add(tx, 0)
        });
        failed.unwrap_err();
        tx.savepoint(|tx| {
            add(tx, 3)?;
            tx.savepoint(|tx| add(tx, 0)).unwrap_err();
            add(tx, 4)
        })
    })
    .await
    .unwrap();
    assert_eq!(db.xs().await, [0, 1, 3, 4]);
}

#[tokio::test]
async fn a_panic_in_a_nested_part_undoes_that_part() {
    let db = TestDb::open().await;
    let panicking_part = |tx: &mut WriteTransaction<'_>| {
        tx.savepoint(|tx| {
            let rows = add(tx, 2)?;
            if rows == 1 {
                panic!("nested")
            }
            Ok::<_, rusqlite::Error>(())
        })
    };
    db.write("catches", move |tx| {
        add(tx, 1)?;
        catch_unwind(AssertUnwindSafe(|| panicking_part(tx))).unwrap_err();
        tx.execute_batch("COMMIT").expect_err("the guard is up again");
        add(tx, 3)
    })
    .await
    .unwrap();
    assert_eq!(db.xs().await, [1, 3]);
    let panicked = db.write("panics", panicking_part).await;
    assert!(matches!(panicked, Err(WriteError::RolledBack(RolledBack::Panicked(_)))), "{panicked:?}");
}

#[tokio::test]
async fn a_command_does_not_see_the_rowid_of_another_ones_insert() {
    let db = TestDb::open().await;
    let gate = Gate::close(&db).await;
    let inserts = committed(insert(&db, 1)).await;
    let asks = committed(db.write("asks", |tx| Ok(tx.last_insert_rowid()))).await;
    let both = committed(db.write("both", |tx| {
        add(tx, 2)?;
        Ok(tx.last_insert_rowid())
    }))
    .await;
    let token = gate.open().await.token;
    let group = inserts.await.unwrap().token;
    assert!(group > token);
    let (asks, both) = (asks.await.unwrap(), both.await.unwrap());
    assert_eq!((asks.value, asks.token), (0, group));
    assert_eq!(both.value, 2);
}

// A UNIQUE clash with a neighbour that then is not committed would be a lie.
#[tokio::test]
async fn an_error_too_is_answered_only_after_the_commit_of_its_group() {
    let db = TestDb::open().await;
    let first = Gate::close(&db).await;
    let neighbour = committed(insert(&db, 1)).await;
    let mut clash = committed(insert(&db, 1)).await;
    let second = Gate::line_up(&db, Lane::Interactive, Durability::Full).await;
    first.open().await;
    let second = second.reached(&db).await;
    assert!((&mut clash).now_or_never().is_none(), "answered before COMMIT");
    second.open().await;
    assert!(is_unique(&soon(clash).await.unwrap_err()));
    neighbour.await.unwrap();
}

#[tokio::test]
async fn a_savepoint_after_a_swallowed_rollback_commits_nothing() {
    let db = TestDb::open().await;
    insert(&db, 1).await.unwrap();
    let error = db
        .write("swallows", |tx| {
            tx.execute("INSERT OR ROLLBACK INTO t (x) VALUES (1)", ()).expect_err("1 is there");
            tx.savepoint(|tx| add(tx, 666))
        })
        .await
        .unwrap_err();
    assert_eq!(error.outcome(), Outcome::RolledBack);
    assert_eq!(db.xs().await, [1]);
}

#[tokio::test]
async fn nothing_temporary_outlives_a_command_since_none_is_made() {
    let db = TestDb::open().await;
    for sql in [
        "CREATE TEMP TABLE t (x)",
        "CREATE TEMP VIEW t AS SELECT 1 AS x",
        "CREATE TEMP TRIGGER more AFTER INSERT ON main.t BEGIN INSERT INTO t (x) VALUES (new.x + 100); END",
        "CREATE TABLE temp.t (x)",
    ] {
        let refused = db.execute(sql, ()).await.unwrap_err();
        assert_eq!(refused.sqlite_extended_code(), Some(ffi::SQLITE_AUTH), "{sql}");
    }
    insert(&db, 1).await.unwrap();
    assert_eq!(db.xs().await, [1]);
}

/// A value whose destructor fails.
#[derive(Debug)]
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("dropped");
        }
    }
}

#[tokio::test]
async fn a_value_that_panics_when_it_is_dropped_costs_its_command_only() {
    let db = TestDb::open().await;
    let gate = Gate::close(&db).await;
    let before = committed(insert(&db, 1)).await;
    let culprit = db.write("bomb", |tx| {
        tx.execute("INSERT INTO child VALUES (404)", ())?;
        Ok(Bomb)
    });
    let culprit = culprit.submit().await.unwrap();
    // A caller that is gone leaves the value to the writer.
    drop(db.write("bomb", |_| Ok(Bomb)).submit().await.unwrap());
    let after = committed(insert(&db, 2)).await;
    gate.open().await;
    soon(before).await.unwrap();
    let error = soon(culprit).await.map(ManuallyDrop::new).unwrap_err();
    assert!(matches!(error, WriteError::RolledBack(RolledBack::Panicked(_))), "{error:?}");
    soon(after).await.unwrap();
    assert_eq!(db.xs().await, [1, 2]);
}

// `total_changes` does not see rows that a trigger has written before it fails with FAIL.
#[tokio::test]
async fn rows_that_a_failing_trigger_has_kept_are_undone() {
    let db = TestDb::open().await;
    db.write("schema", |tx| {
        tx.execute_batch(
            "CREATE TABLE log (v UNIQUE); CREATE TABLE source (v); CREATE TABLE a (x);
             INSERT INTO source VALUES (1), (2), (1);
             CREATE TRIGGER fill BEFORE INSERT ON a BEGIN INSERT OR FAIL INTO log SELECT v FROM source; END;",
        )
    })
    .await
    .unwrap();
    for _ in 0..2 {
        let gate = Gate::close(&db).await;
        let neighbour = committed(db.execute("INSERT INTO parent DEFAULT VALUES", ())).await;
        let culprit = committed(db.execute("INSERT INTO a VALUES (1)", ())).await;
        gate.open().await;
        soon(culprit).await.unwrap_err();
        soon(neighbour).await.unwrap();
        let kept: i64 = db.plain().query_row("SELECT count(*) FROM log", (), |row| row.get(0)).unwrap();
        assert_eq!(kept, 0, "rolled back means rolled back");
    }
}

// A connection that is closed loses its hooks first, and the end of a leaked statement that writes is a commit.
#[tokio::test]
async fn a_leaked_statement_that_writes_without_a_transaction_commits_nothing_when_it_is_closed() {
    let db = TestDb::open().await;
    insert(&db, 0).await.unwrap();
    let leaks = db.write("leaks", |tx| {
        tx.execute("INSERT OR ROLLBACK INTO t (x) VALUES (0)", ()).unwrap_err();
        let mut statement = ManuallyDrop::new(tx.prepare("INSERT INTO t (x) VALUES (5) RETURNING x")?);
        let mut rows = ManuallyDrop::new(statement.query(())?);
        rows.next().map(drop)
    });
    let error = soon(leaks).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::RolledBack, "{error:?}");
    insert(&db, 1).await.unwrap();
    assert_eq!(db.xs().await, [0, 1]);
}

// A virtual table has statements of its own on the connection, which must not be finalized as if they were leaked.
#[tokio::test]
async fn a_leaked_statement_of_a_virtual_table_harms_nobody() {
    let db = TestDb::open().await;
    db.execute("CREATE VIRTUAL TABLE notes USING fts5 (text)", ()).await.unwrap();
    db.execute("INSERT INTO notes VALUES ('one two'), ('two three')", ()).await.unwrap();
    let leak = |tx: &solewriter::ReadTransaction<'_>, sql: &str| {
        let mut statement = ManuallyDrop::new(tx.prepare(sql)?);
        let mut rows = ManuallyDrop::new(statement.query(())?);
        rows.next()?.map(|row| row.get_ref(0).map(|_| ())).transpose().map(drop)
    };
    for sql in ["SELECT text FROM notes WHERE notes MATCH 'two'", "SELECT name FROM pragma_table_info('t')"] {
        for _ in 0..3 {
            soon(db.write("leaks", move |tx| leak(tx, sql))).await.unwrap_err();
            soon(db.read("leaks", move |tx| leak(tx, sql))).await.unwrap();
            soon(db.execute("INSERT INTO notes VALUES ('two')", ())).await.unwrap();
        }
    }
    let found: i64 = db
        .read("count", |tx| {
            tx.query_row("SELECT count(*) FROM notes WHERE notes MATCH 'two'", (), |row| row.get(0))
        })
        .await
        .unwrap();
    assert_eq!(found, 8);
    // Its leaked connections keep the WAL: the test's own check at the end would wait for them.
    drop(soon(db.shutdown(solewriter::Drain::within(common::HANG))).await);
}

#[tokio::test]
async fn a_panic_with_a_value_that_panics_when_it_is_dropped_costs_its_command_only() {
    let db = TestDb::open().await;
    let culprit = db.write("bomb", |_| -> rusqlite::Result<()> { std::panic::panic_any(Bomb) });
    let error = soon(culprit).await.unwrap_err();
    assert!(matches!(error, WriteError::RolledBack(RolledBack::Panicked(_))), "{error:?}");
    insert(&db, 1).await.unwrap();
}

// A file that a command looks at by itself, and that is none: nothing is wrong with ours.
#[tokio::test]
async fn an_error_of_another_database_is_the_commands_own() {
    let db = TestDb::open().await;
    let dir = tempfile::tempdir().unwrap();
    let upload = dir.path().join("upload.db");
    std::fs::write(&upload, vec![b'x'; 4096]).unwrap();
    let looks = db.write("looks", move |tx| {
        add(tx, 1)?;
        rusqlite::Connection::open(&upload)?.query_row("SELECT 1 FROM sqlite_schema", (), |_| Ok(()))
    });
    let error = soon(looks).await.unwrap_err();
    assert!(matches!(error, WriteError::Command(_)), "{error:?}");
    assert_eq!(db.stats().connections_replaced, 0);
}
