//! No Re-entrancy Deadlock: a command that calls its own service gets an error, not a hang.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use common::{TestDb, add, soon};
use solewriter::{NotStarted, Outcome, WriteError};

#[tokio::test]
async fn a_command_that_writes_through_its_own_service_is_refused() {
    let db = TestDb::open().await;
    let own = db.blocking();
    let refused = soon(db.write("outer", move |tx| {
        add(tx, 1)?;
        Ok([
            own.execute("DELETE FROM t", ()).wait(),
            own.execute("DELETE FROM t", ()).try_submit().map(|_| 0),
        ])
    }))
    .await
    .unwrap();
    for refused in refused.map(Result::unwrap_err) {
        assert!(matches!(refused, WriteError::NotStarted(NotStarted::Reentrant)), "{refused:?}");
        assert_eq!(refused.outcome(), Outcome::NotStarted);
    }
    assert_eq!(db.xs().await, [1], "the outer command is none the worse");
}

#[tokio::test]
async fn a_command_may_read_through_its_own_service_and_sees_what_is_committed() {
    let db = TestDb::open().await;
    let own = db.blocking();
    let seen = soon(db.write("outer", move |tx| {
        add(tx, 1)?;
        let rows =
            own.read("count", |tx| tx.query_row("SELECT count(*) FROM t", (), |row| row.get::<_, i64>(0)));
        Ok(rows.wait().unwrap())
    }))
    .await
    .unwrap();
    assert_eq!(seen, 0);
}

#[tokio::test]
async fn a_command_may_write_to_another_database() {
    let (db, other) = (TestDb::open().await, TestDb::open().await);
    let elsewhere = other.blocking();
    soon(db.write("outer", move |tx| {
        elsewhere.write("inner", |tx| add(tx, 2)).wait().unwrap();
        add(tx, 1)
    }))
    .await
    .unwrap();
    assert_eq!((db.xs().await, other.xs().await), (vec![1], vec![2]));
}
