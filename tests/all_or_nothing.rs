//! All-or-Nothing Commands: a command's writes are all in one commit or nowhere.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use common::{TestDb, add, insert};
use rusqlite::Error::QueryReturnedNoRows;
use solewriter::{RolledBack, WriteError};

#[tokio::test]
async fn an_error_undoes_everything_the_command_wrote() {
    let db = TestDb::open().await;
    let failed = db
        .write("t.add", |tx| {
            add(tx, 1)?;
            tx.execute_batch("CREATE TABLE more (x); PRAGMA user_version = 7; INSERT INTO more VALUES (1)")?;
            Err::<(), _>(QueryReturnedNoRows)
        })
        .await;
    assert!(matches!(failed, Err(WriteError::Command(QueryReturnedNoRows))), "{failed:?}");
    assert!(db.xs().await.is_empty());
    let plain = db.plain();
    let version: i64 = plain.query_row("PRAGMA user_version", (), |row| row.get(0)).unwrap();
    assert_eq!((version, plain.table_exists(None, "more").unwrap()), (0, false));
}

#[tokio::test]
async fn a_callers_own_error_undoes_everything_and_stays_typed() {
    #[derive(Debug, PartialEq)]
    struct SoldOut;
    let db = TestDb::open().await;
    let failed = db
        .write_or_reject("t.add", |tx| {
            add(tx, 1).unwrap();
            Err::<(), _>(SoldOut)
        })
        .await;
    assert!(matches!(failed, Err(WriteError::Command(SoldOut))));
    assert!(db.xs().await.is_empty());
}

#[tokio::test]
async fn a_panic_undoes_everything_the_command_wrote() {
    let db = TestDb::open().await;
    let panicked = db
        .write("t.add", |tx| {
            add(tx, 1)?;
            if tx.changes() == 1 {
                panic!("half-way")
            }
            Ok(())
        })
        .await;
    assert!(matches!(panicked, Err(WriteError::RolledBack(RolledBack::Panicked(why))) if why == "half-way"));
    assert!(db.xs().await.is_empty());
}

#[tokio::test]
async fn a_statement_that_fails_at_a_later_row_keeps_no_earlier_row() {
    let db = TestDb::open().await;
    insert(&db, 3).await.unwrap();
    for insert in ["INSERT", "INSERT OR ABORT", "INSERT OR FAIL", "INSERT OR ROLLBACK"] {
        let sql = format!("{insert} INTO t (x) VALUES (1), (2), (3)");
        assert!(matches!(db.execute(sql, ()).await, Err(WriteError::Command(_))));
        assert_eq!(db.xs().await, [3], "{insert}");
    }
}

#[tokio::test]
async fn a_statement_with_returning_whose_mapping_fails_keeps_no_row() {
    let db = TestDb::open().await;
    let sql = "INSERT INTO t (x) VALUES (1), (2) RETURNING id, x";
    let as_text = db.execute_returning(sql, (), |row| row.get::<_, String>(1)).await;
    assert!(matches!(as_text, Err(WriteError::Command(_))), "{as_text:?}");
    assert!(db.xs().await.is_empty());
    let ids = db.execute_returning(sql, (), |row| row.get::<_, i64>(0)).await.unwrap();
    assert_eq!(ids, [1, 2]);
}
