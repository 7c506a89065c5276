//! What SQL, values and files from others can't do.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::error::Error;
use std::fmt::Write as _;

use common::{Gate, TestDb, committed, insert, soon};
use rusqlite::ffi;
use solewriter::{Database, Drain, ReadError, WriteError};

fn text_of(error: &dyn Error) -> String {
    let mut text = format!("{error:?} ");
    let mut next = Some(error);
    while let Some(error) = next {
        write!(text, "{error} ").unwrap();
        next = error.source();
    }
    text
}

async fn refused(db: &TestDb, sql: &'static str) -> WriteError {
    db.write("hostile", move |tx| tx.execute_batch(sql)).await.expect_err(sql)
}

const FULL_TEXT: &str = "
    CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT NOT NULL);
    CREATE VIRTUAL TABLE search USING fts5 (body, content = 'notes', content_rowid = 'id');
    CREATE TRIGGER noted AFTER INSERT ON notes BEGIN
        INSERT INTO search (rowid, body) VALUES (new.id, new.body);
    END;
    CREATE TRIGGER changed AFTER UPDATE ON notes BEGIN
        INSERT INTO search (search, rowid, body) VALUES ('delete', old.id, old.body);
        INSERT INTO search (rowid, body) VALUES (new.id, new.body);
    END;";

async fn found(db: &TestDb, word: &'static str) -> Vec<i64> {
    let rowids = "SELECT rowid FROM search WHERE search MATCH ?1 ORDER BY rowid";
    db.read("search", move |tx| tx.query_all(rowids, [word], |row| row.get(0))).await.unwrap()
}

#[tokio::test]
async fn full_text_search_that_triggers_keep_up_works_though_the_schema_is_not_trusted() {
    let db = TestDb::open().await;
    assert!(!db.config().trusted_schema);
    db.write("schema", |tx| tx.execute_batch(FULL_TEXT)).await.unwrap();
    db.execute("INSERT INTO notes (body) VALUES ('green tea'), ('black tea')", ()).await.unwrap();
    assert_eq!((found(&db, "tea").await, found(&db, "green").await), (vec![1, 2], vec![1]));
    db.execute("UPDATE notes SET body = 'white tea' WHERE id = 1", ()).await.unwrap();
    assert_eq!((found(&db, "tea").await, found(&db, "green").await), (vec![1, 2], vec![]));
    db.write("rebuild", |tx| tx.execute_batch("INSERT INTO search (search) VALUES ('rebuild')"))
        .await
        .unwrap();
    assert_eq!(found(&db, "white").await, [1]);
}

#[tokio::test]
async fn what_could_corrupt_the_file_is_refused() {
    let db = TestDb::open().await;
    db.write("schema", |tx| tx.execute_batch(FULL_TEXT)).await.unwrap();
    for sql in [
        // The shadow tables of an index, and the schema as a table.
        "UPDATE search_data SET block = x'00'",
        "DELETE FROM search_idx",
        "DROP TABLE search_config",
        "UPDATE sqlite_schema SET sql = 'x'",
        "DELETE FROM sqlite_schema",
        "INSERT INTO sqlite_dbpage (pgno, data) VALUES (1, zeroblob(4096))",
    ] {
        refused(&db, sql).await;
    }
    for sql in ["PRAGMA writable_schema = ON", "PRAGMA trusted_schema = ON", "PRAGMA schema_version = 1"] {
        assert_eq!(refused(&db, sql).await.sqlite_extended_code(), Some(ffi::SQLITE_AUTH), "{sql}");
    }
    insert(&db, 1).await.unwrap();
}

// rusqlite's authorizer panics at a name that is no UTF-8, which ends the process where panics abort (damaged_files,
// seed 8).
#[tokio::test]
async fn a_schema_whose_names_are_no_utf_8_can_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    let schema =
        "CREATE TABLE t (cafE TEXT); CREATE TRIGGER cafE AFTER INSERT ON t BEGIN DELETE FROM t WHERE 0; END";
    common::plain(&path).execute_batch(schema).unwrap();
    let mut file = std::fs::read(&path).unwrap();
    let places: Vec<_> = (0..file.len()).filter(|place| file[*place..].starts_with(b"cafE")).collect();
    // As Latin-1 has it.
    places.iter().for_each(|place| file[place + 3] = 0xe9);
    assert_eq!(places.len(), 3, "in the table, and twice for the trigger");
    std::fs::write(&path, file).unwrap();
    let db = Database::open(&path).await.unwrap();
    db.execute("INSERT INTO t VALUES ('tea')", ()).await.unwrap();
    let all = |tx: &solewriter::ReadTransaction<'_>| {
        tx.query_row("SELECT * FROM t", (), |row| row.get::<_, String>(0))
    };
    assert_eq!(db.read("all", all).await.unwrap(), "tea");
    let refused = db.write("ends", |tx| tx.execute_batch("COMMIT")).await.unwrap_err();
    assert_eq!(refused.sqlite_extended_code(), Some(ffi::SQLITE_AUTH));
}

#[tokio::test]
async fn no_extension_can_be_loaded_by_sql() {
    let db = TestDb::open().await;
    let load = "SELECT load_extension('x')";
    assert!(text_of(&refused(&db, load).await).contains("not authorized"));
    let read = db.read("hostile", move |tx| tx.query_row(load, (), |_| Ok(()))).await.unwrap_err();
    assert!(matches!(&read, ReadError::Query(_)) && text_of(&read).contains("not authorized"), "{read:?}");
}

#[tokio::test]
async fn a_value_that_is_too_long_fails_its_own_command_by_its_code() {
    let db = TestDb::open_with(|config| config.value_bytes_max = 1 << 20).await;
    let long = |bytes: usize| db.execute("INSERT INTO t (x) VALUES (?1)", (vec![0_u8; bytes],));
    let gate = Gate::close(&db).await;
    let before = committed(insert(&db, 1)).await;
    let bound = committed(long((1 << 20) + 1)).await;
    let made = committed(db.execute("INSERT INTO t (x) VALUES (zeroblob(1048577))", ())).await;
    let fits = committed(long((1 << 20) - 64)).await;
    let after = committed(insert(&db, 2)).await;
    gate.open().await;
    for too_long in [bound, made] {
        let error = soon(too_long).await.unwrap_err();
        assert!(matches!(error, WriteError::Command(_)), "{error:?}");
        assert_eq!(error.sqlite_extended_code(), Some(ffi::SQLITE_TOOBIG));
    }
    for neighbour in [before, fits, after] {
        soon(neighbour).await.unwrap();
    }
    let read = db.read("long", |tx| tx.query_row("SELECT zeroblob(1048577)", (), |_| Ok(()))).await;
    assert_eq!(read.unwrap_err().sqlite_extended_code(), Some(ffi::SQLITE_TOOBIG));
    let patterns = db.read("like", |tx| {
        tx.query_row("SELECT 'a' LIKE ?1", ["%".repeat(1_001)], |row| row.get::<_, bool>(0))
    });
    assert!(text_of(&patterns.await.unwrap_err()).contains("too complex"));
}

#[tokio::test]
async fn a_script_of_a_few_megabytes_runs_and_an_endless_one_does_not() {
    let db = TestDb::open().await;
    let script = |bytes: usize| {
        let mut script = "INSERT INTO t (x) VALUES (NULL);\n".repeat(10);
        script.push_str(&" ".repeat(bytes));
        script.push_str("INSERT INTO t (x) VALUES (NULL);");
        script
    };
    let run = |bytes| {
        let script = script(bytes);
        db.write("script", move |tx| tx.execute_batch(&script))
    };
    run(4 << 20).await.unwrap();
    assert_eq!(run(17 << 20).await.unwrap_err().sqlite_extended_code(), Some(ffi::SQLITE_TOOBIG));
}

// What SECURITY.md says about a file from someone else.
#[tokio::test]
async fn a_file_from_a_stranger_can_be_opened_with_more_care() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    common::plain(&path).execute_batch("CREATE TABLE t (x)").unwrap();
    let builder = Database::builder(&path).config(common::config_with(|config| config.mmap_bytes = 0));
    let careful = builder.on_connect(|connection, _| connection.pragma_update(None, "cell_size_check", true));
    let db = careful.open().await.unwrap();
    let settings = db.maintain("settings", |m| {
        let setting = |m: &mut solewriter::Maintenance<'_, '_>, sql| m.query_row(sql, (), |row| row.get(0));
        Ok::<(i64, i64), _>((setting(m, "PRAGMA cell_size_check")?, setting(m, "PRAGMA mmap_size")?))
    });
    assert_eq!(settings.await.unwrap(), (1, 0));
    db.shutdown(Drain::within(common::HANG)).await.unwrap();
}
