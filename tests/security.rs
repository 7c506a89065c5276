//! What SQL, values and files from others can't do, and what is never shown: the values of the callers.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::error::Error;
use std::fmt::Write as _;
use std::io;
use std::sync::{Mutex, Once};
use std::time::Duration;

use common::{Gate, TestDb, add, committed, insert, soon};
use rusqlite::ffi;
use serde::{Deserialize, Serialize};
use solewriter::{Command, Database, ReadError, WriteError, WriteTransaction};
use tracing_subscriber::fmt::format::FmtSpan;

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

/// Everything that anyone in this process has said, on every level.
static SAID: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Said;

impl io::Write for Said {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        SAID.lock().unwrap().extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn listen() {
    static START: Once = Once::new();
    START.call_once(|| {
        let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE);
        subscriber.with_span_events(FmtSpan::FULL).with_ansi(false).with_writer(|| Said).init();
    });
}

const SECRET: &str = "b0und-v4lue";
const SECRET_NUMBER: i64 = 771_625_543_287;

/// A command whose fields are secret.
#[derive(Serialize, Deserialize)]
struct Keep {
    secret: String,
    number: i64,
}

impl Command for Keep {
    const NAME: &'static str = "vault.keep";
    type Output = usize;
    type Error = rusqlite::Error;

    fn apply(&self, tx: &mut WriteTransaction<'_>) -> rusqlite::Result<usize> {
        tx.execute("INSERT INTO vault (secret, number) VALUES (?1, ?2)", (&self.secret, self.number))
    }
}

fn keep() -> Keep {
    Keep { secret: SECRET.into(), number: SECRET_NUMBER }
}

const VAULT: &str = "
    CREATE TABLE vault (
        id INTEGER PRIMARY KEY,
        secret TEXT NOT NULL UNIQUE CHECK (length(secret) < 20),
        number INTEGER CHECK (number > 10)
    ) STRICT;
    CREATE VIRTUAL TABLE search USING fts5 (body);";

#[tokio::test]
async fn no_bound_value_is_in_an_error_or_in_what_is_said() {
    listen();
    let db = TestDb::open_with(|config| config.hold_warning = Duration::from_millis(10)).await;
    db.write("schema", |tx| tx.execute_batch(VAULT)).await.unwrap();
    let mut shown = String::new();
    let mut show = |error: &dyn Error| {
        let text = text_of(error);
        assert!(!text.contains(SECRET) && !text.contains(&SECRET_NUMBER.to_string()), "{text}");
        shown.push_str(&text);
    };
    db.send(keep()).await.unwrap();
    // Constraints of every kind, by every kind of command.
    show(&db.send(keep()).await.unwrap_err());
    let statement = |sql: &'static str| db.execute(sql, (SECRET, SECRET_NUMBER));
    for sql in [
        "INSERT INTO vault (secret, number) VALUES (?1, ?2)",
        "INSERT OR ROLLBACK INTO vault (secret, number) VALUES (?1, ?2)",
        "INSERT OR FAIL INTO vault (secret, number) VALUES (?1, ?2)",
        "INSERT INTO vault (secret) VALUES (?1 || ?2 || ?1)",
        "INSERT INTO vault (secret, number) VALUES (?1 || 'x', -?2)",
        "INSERT INTO vault (number, secret) VALUES (?1, ?2)",
        "INSERT INTO vault (secret, number) VALUES (NULL, ?2 || ?1)",
        "INSERT INTO child VALUES (?2 || ?1)",
        "INSERT INTO vault (secret) VALUES (json_extract(?1, '$.' || ?2))",
        "SELECT abs(-9223372036854775808), ?1, ?2",
        "SELECT ?1, ?2, ?3",
        "INSERT INTO nowhere VALUES (?1, ?2)",
    ] {
        show(&statement(sql).await.expect_err(sql));
    }
    let once = db.write("vault.once", |tx| {
        tx.execute("INSERT INTO vault (secret, number) VALUES (?1, ?2)", (SECRET, SECRET_NUMBER))
    });
    show(&once.await.unwrap_err());
    show(&db.write_rerunnable("vault.again", |tx| keep().apply(tx)).await.unwrap_err());
    // A panic that is not the user's own message: rusqlite's error inside an `unwrap`.
    let unwraps = db.write_rerunnable("vault.unwraps", |tx| Ok(keep().apply(tx).unwrap()));
    let panicked = unwraps.await.unwrap_err();
    assert!(matches!(&panicked, WriteError::RolledBack(solewriter::RolledBack::Panicked(_))));
    show(&panicked);
    let as_number = db.execute_returning("SELECT ?1", (SECRET,), |row| row.get::<_, i64>(0));
    show(&as_number.await.unwrap_err());
    // A deadline, a neighbour that loses the group, and a long hold.
    let gate = Gate::close(&db).await;
    let lost = committed(statement("DELETE FROM vault WHERE secret <> ?1 AND number <> ?2")).await;
    let culprit =
        committed(statement("INSERT OR ROLLBACK INTO vault (secret, number) VALUES (?1, ?2)")).await;
    show(&soon(statement("SELECT ?1, ?2").deadline(Duration::from_millis(30))).await.unwrap_err());
    gate.open().await;
    if let Err(error) = soon(lost).await {
        show(&error);
    }
    show(&soon(culprit).await.unwrap_err());
    // Reads.
    let write_on_reader = |tx: &solewriter::ReadTransaction<'_>| {
        tx.prepare("DELETE FROM vault WHERE secret = ?1")?.execute([SECRET])
    };
    show(&db.read("vault.read", write_on_reader).await.unwrap_err());
    let as_number = |tx: &solewriter::ReadTransaction<'_>| {
        tx.query_row("SELECT secret FROM vault WHERE number = ?1", [SECRET_NUMBER], |row| {
            row.get::<_, i64>(0)
        })
    };
    show(&db.read("vault.read", as_number).await.unwrap_err());
    show(&db.read("vault.read", move |tx| Ok(as_number(tx).unwrap())).await.unwrap_err());
    // Imports.
    let import = db.import("vault.import", futures_util::stream::iter([SECRET; 3]));
    let report = import
        .run(|tx, secret| {
            tx.execute("INSERT INTO vault (secret, number) VALUES (?1, ?2)", (secret, SECRET_NUMBER))
        })
        .await
        .unwrap();
    assert_eq!(report.failed, 3);
    report.failures.iter().for_each(|failure| show(&failure.error));
    write!(shown, "{db:?} {report:?} {:?} {:?}", db.stats(), statement("SELECT ?1, ?2"), db = *db).unwrap();
    assert!(!shown.contains(SECRET) && !shown.contains(&SECRET_NUMBER.to_string()), "{shown}");

    // SQLite itself puts a part of a full-text query into its message. It is in the answer to the one who
    // asked, and is not said to anyone else.
    let query = db.execute("SELECT * FROM search WHERE search MATCH ?1 || ':x'", ("b0und",));
    let answer = text_of(&query.await.unwrap_err());
    assert!(answer.contains("b0und"), "this has changed, and docs/guarantees.md says otherwise: {answer}");

    db.write("last", |tx| add(tx, 1)).await.unwrap();
    let said = String::from_utf8(SAID.lock().unwrap().clone()).unwrap();
    for label in
        ["vault.keep", "vault.once", "vault.unwraps", "vault.read", "vault.import", "group committed"]
    {
        assert!(said.contains(label), "it was not listened to: {label}");
    }
    for secret in [SECRET, "b0und", &SECRET_NUMBER.to_string()] {
        let leaks: Vec<&str> = said.lines().filter(|line| line.contains(secret)).collect();
        assert!(leaks.is_empty(), "{leaks:?}");
    }
}
