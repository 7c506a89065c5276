//! Read-Only Readers: a read can't write, whatever it tries, and says so by its type.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use common::{TestDb, insert};
use rusqlite::ffi;
use solewriter::{ReadError, Retry};

async fn try_in_a_read(db: &TestDb, sql: &'static str) -> ReadError {
    db.read("tries", |tx| tx.prepare(sql)?.raw_execute()).await.expect_err(sql)
}

#[tokio::test]
async fn a_read_that_writes_gets_an_error_of_its_own_type() {
    let db = TestDb::open().await;
    insert(&db, 1).await.unwrap();
    for sql in [
        "INSERT INTO t (x) VALUES (2)",
        "INSERT OR REPLACE INTO t (x) VALUES (1)",
        "UPDATE t SET x = 2",
        "DELETE FROM t",
        "CREATE TABLE more (x)",
        "CREATE INDEX t_x ON t (x)",
        "DROP TABLE t",
        "ALTER TABLE t ADD COLUMN y",
        "PRAGMA user_version = 7",
    ] {
        let error = try_in_a_read(&db, sql).await;
        assert!(matches!(error, ReadError::ReadOnly(_)), "{sql}: {error:?}");
        assert_eq!(error.sqlite_extended_code().map(|code| code & 0xff), Some(ffi::SQLITE_READONLY), "{sql}");
        assert_eq!(error.retry(), Retry::Never);
    }
    assert_eq!(db.xs().await, [1]);
    db.execute("INSERT INTO t (x) SELECT user_version FROM pragma_user_version", ()).await.unwrap();
    assert_eq!(db.xs().await, [1, 0]);
}

#[tokio::test]
async fn a_read_can_neither_end_its_transaction_nor_lift_its_limits() {
    let db = TestDb::open().await;
    for sql in [
        "BEGIN IMMEDIATE",
        "COMMIT",
        "-- end\nROLLBACK",
        "SAVEPOINT mine",
        "ATTACH ':memory:' AS other",
        "DETACH main",
        "CREATE TEMP TABLE mine (x)",
        "PRAGMA query_only = OFF",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA wal_checkpoint(TRUNCATE)",
    ] {
        let error = try_in_a_read(&db, sql).await;
        assert!(matches!(error, ReadError::Query(_)), "{sql}: {error:?}");
        assert_eq!(error.sqlite_extended_code(), Some(ffi::SQLITE_AUTH), "{sql}");
    }
}

// What is in the cache of statements is not prepared again, so the authorizer would not see it.
#[tokio::test]
async fn a_read_does_not_find_the_statements_of_the_service_in_its_cache() {
    let db = TestDb::open().await;
    assert!(db.xs().await.is_empty(), "a read has begun and ended on the connection that is used next");
    for sql in ["BEGIN", "ROLLBACK", "COMMIT"] {
        let found = db.read("finds", |tx| tx.prepare_cached(sql)?.execute(())).await.expect_err(sql);
        assert_eq!(found.sqlite_extended_code(), Some(ffi::SQLITE_AUTH), "{sql}: {found:?}");
    }
}

#[tokio::test]
async fn what_only_reads_is_allowed() {
    let db = TestDb::open().await;
    let columns = "SELECT count(*) FROM pragma_table_info('t')";
    let columns = db.read("columns", |tx| tx.query_row(columns, (), |row| row.get::<_, i64>(0))).await;
    assert_eq!(columns.unwrap(), 2);
}
