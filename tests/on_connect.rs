//! What a service asks for on every connection it opens.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::mem_forget, reason = "a test")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{HANG, config_with};
use rusqlite::Connection;
use rusqlite::functions::FunctionFlags;
use solewriter::{
    BlockingDatabase, Builder, ConnectionRole, Database, Drain, OpenErrorReason as Reason, ReadError,
    WriteError,
};
use tempfile::TempDir;

fn builder(dir: &TempDir) -> Builder {
    Database::builder(dir.path().join("test.db")).config(config_with(|_| ()))
}

fn open(builder: Builder) -> BlockingDatabase {
    builder.open_blocking().unwrap().blocking()
}

fn close(db: &BlockingDatabase) {
    db.shutdown(Drain::within(HANG)).unwrap();
    common::check(db.database().path());
}

fn refused(builder: Builder) -> Reason {
    builder.open_blocking().expect_err("it is refused").reason
}

fn function(connection: &Connection, flags: FunctionFlags) -> rusqlite::Result<()> {
    connection.create_scalar_function("twice", 1, flags, |context| Ok(context.get::<i64>(0)? * 2))
}

fn twice(connection: &Connection, _: ConnectionRole) -> rusqlite::Result<()> {
    function(connection, FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC)
}

fn nothing(_: &Connection, _: ConnectionRole) -> rusqlite::Result<()> {
    Ok(())
}

fn answer(db: &BlockingDatabase) -> i64 {
    db.read("twice", |tx| tx.query_row("SELECT twice(21)", (), |row| row.get(0))).wait().unwrap()
}

#[test]
fn it_runs_on_every_connection_also_on_those_that_replace_another() {
    let dir = tempfile::tempdir().unwrap();
    let (writers, readers) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (writers.clone(), readers.clone());
    let one_reader = config_with(|config| config.readers = 1);
    let db = open(builder(&dir).config(one_reader).on_connect(move |connection, role| {
        match role {
            ConnectionRole::Writer => counts.0.fetch_add(1, Ordering::Relaxed),
            ConnectionRole::Reader => counts.1.fetch_add(1, Ordering::Relaxed),
        };
        connection.create_collation("backwards", |a, b| b.cmp(a))?;
        twice(connection, role)
    }));
    let opened = (writers.load(Ordering::Relaxed), readers.load(Ordering::Relaxed));
    assert_eq!(opened, (1, 1), "the checkpointer runs no user code");
    db.execute("CREATE TABLE t (x TEXT COLLATE backwards PRIMARY KEY)", ()).wait().unwrap();
    db.execute("INSERT INTO t VALUES ('a'), ('b'), (twice(21))", ()).wait().unwrap();
    // A reader whose closure panicked is replaced, and so is a writer with a half-stepped statement.
    let panicked = db.read("panics", |_| -> rusqlite::Result<()> { panic!("on purpose") }).wait();
    assert!(matches!(panicked, Err(ReadError::Panicked(_))));
    let leaked = db.write("leaks", |tx| {
        let mut statement = tx.prepare("SELECT x FROM t")?;
        let mut rows = statement.query(())?;
        rows.next()?;
        std::mem::forget(rows);
        std::mem::forget(statement);
        Ok(())
    });
    assert!(matches!(leaked.wait(), Err(WriteError::RolledBack(_))));
    db.execute("INSERT INTO t VALUES (twice(1))", ()).wait().unwrap();
    let first =
        || db.read("all", |tx| tx.query_all("SELECT x FROM t ORDER BY x", (), |row| row.get(0))).wait();
    let reads: Vec<Vec<String>> = (0..2).map(|_| first().unwrap()).collect();
    assert!(reads.iter().all(|xs| xs == &["b", "a", "42", "2"]), "{reads:?}");
    assert_eq!((writers.load(Ordering::Relaxed), readers.load(Ordering::Relaxed)), (2, 2));
    // A plain connection of another kind knows no such collation.
    db.execute("DROP TABLE t", ()).wait().unwrap();
    close(&db);
}

#[test]
fn a_second_open_may_ask_for_the_same_hook_or_for_none() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(builder(&dir).on_connect(twice));
    assert_eq!(answer(&open(builder(&dir))), 42, "none: it takes what is there");
    assert_eq!(answer(&open(builder(&dir).on_connect(twice))), 42, "a function is the same by its type");
    assert!(matches!(
        refused(builder(&dir).on_connect(nothing)),
        Reason::OptionDiffers { option: "on_connect" }
    ));
    close(&db);

    let state = String::from("twice");
    let with_state = builder(&dir).on_connect(move |connection, _| {
        connection.create_scalar_function(state.as_str(), 1, FunctionFlags::SQLITE_UTF8, |context| {
            Ok(context.get::<i64>(0)? * 2)
        })
    });
    let db = open(with_state.clone());
    assert_eq!(answer(&open(with_state)), 42, "the same builder has the same hook");
    close(&db);

    let db = open(builder(&dir));
    assert!(matches!(
        refused(builder(&dir).on_connect(twice)),
        Reason::OptionDiffers { option: "on_connect" }
    ));
    close(&db);
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().all(|entry| entry.unwrap().file_name() == "test.db-solewriter")
}

#[test]
fn a_hook_that_fails_or_panics_fails_the_open_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    for at in [ConnectionRole::Writer, ConnectionRole::Reader] {
        let fails = builder(&dir).on_connect(move |connection, role| {
            if role == at { connection.execute_batch("SELECT nonsense()") } else { Ok(()) }
        });
        let error = fails.open_blocking().unwrap_err();
        assert!(
            matches!(&error.reason, Reason::OnConnect(cause) if cause.as_sqlite().to_string().contains("nonsense"))
        );
        assert!(error.to_string().contains("hook") && std::error::Error::source(&error).is_some(), "{error}");
        let panics = builder(&dir).on_connect(move |_, role| {
            assert!(role != at, "on purpose");
            Ok(())
        });
        let reason = refused(panics);
        assert!(
            matches!(&reason, Reason::OnConnectPanicked { message } if message == "on purpose"),
            "{reason:?}"
        );
    }
    assert!(matches!(
        refused(builder(&dir).on_connect(|connection, _| connection.execute_batch("BEGIN"))),
        Reason::OnConnect(_)
    ));
    // Where the writer was open already, it has made a database of the file; that of a failed writer is gone.
    let db = open(builder(&dir));
    close(&db);
    let fresh = tempfile::tempdir().unwrap();
    refused(builder(&fresh).on_connect(|_, _| panic!("on purpose")));
    assert!(is_empty(fresh.path()));
}

#[test]
fn a_reader_that_the_hook_fails_later_fails_its_read_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    // A writer and a reader, and then the replacement in question, which is tried twice.
    let replacement = [3, 4];
    let config = config_with(|config| config.readers = 1);
    let db = open(builder(&dir).config(config).on_connect(move |_, _| {
        let call = calls.fetch_add(1, Ordering::Relaxed) + 1;
        assert!(!replacement.contains(&call), "on purpose");
        Ok(())
    }));
    let read = || db.read("one", |tx| tx.query_row("SELECT 1", (), |row| row.get::<_, i64>(0))).wait();
    db.read("panics", |_| -> rusqlite::Result<()> { panic!("on purpose") }).wait().unwrap_err();
    let failed = read().unwrap_err();
    assert!(matches!(failed, ReadError::Connection(_)), "{failed:?}");
    assert_eq!(read().unwrap(), 1);
    close(&db);
}

#[test]
fn it_can_not_lift_what_guards_user_code() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(builder(&dir).on_connect(|connection, _| {
        // A statement cached here is found by its text, and was prepared before the authorizer was there.
        connection.prepare_cached("COMMIT")?;
        connection
            .authorizer(Some(|_: rusqlite::hooks::AuthContext<'_>| rusqlite::hooks::Authorization::Allow))?;
        connection.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_DEFENSIVE, false)?;
        // SAFETY: it is unsafe for the extensions that are loaded then, and none is.
        #[expect(unsafe_code, reason = "rusqlite marks it so")]
        unsafe {
            connection.load_extension_enable()
        }
    }));
    db.execute("CREATE TABLE t (x)", ()).wait().unwrap();
    let commit = db.write("commits", |tx| {
        tx.execute("INSERT INTO t VALUES (1)", ())?;
        tx.prepare_cached("COMMIT")?.execute(()).map(drop)
    });
    let refused = commit.wait().unwrap_err();
    assert_eq!(refused.sqlite_extended_code(), Some(rusqlite::ffi::SQLITE_AUTH), "{refused:?}");
    let load = "SELECT load_extension('x')";
    let refused = db.execute_returning(load, (), |_| Ok(())).wait().unwrap_err();
    let source = std::error::Error::source(&refused).unwrap().to_string();
    assert!(source.contains("not authorized"), "{source}");
    db.read("loads", move |tx| tx.query_row(load, (), |_| Ok(()))).wait().unwrap_err();
    db.execute("DELETE FROM sqlite_schema", ()).wait().unwrap_err();
    close(&db);
}

#[test]
fn a_function_that_the_schema_uses_must_be_innocuous_or_the_schema_trusted() {
    let innocuous = |connection: &Connection, _: ConnectionRole| {
        function(connection, FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_INNOCUOUS)
    };
    let read_view = |db: &BlockingDatabase| {
        db.read("view", |tx| tx.query_row("SELECT x FROM doubled", (), |row| row.get::<_, i64>(0))).wait()
    };
    let dir = tempfile::tempdir().unwrap();
    let db = open(builder(&dir).on_connect(twice));
    db.execute("CREATE VIEW doubled AS SELECT twice(21) AS x", ()).wait().unwrap();
    let refused = read_view(&db).unwrap_err();
    assert!(std::error::Error::source(&refused).unwrap().to_string().contains("unsafe use"), "{refused:?}");
    close(&db);
    let db = open(builder(&dir).on_connect(innocuous));
    assert_eq!(read_view(&db).unwrap(), 42);
    close(&db);
    let db = open(builder(&dir).config(config_with(|config| config.trusted_schema = true)).on_connect(twice));
    assert_eq!(read_view(&db).unwrap(), 42);
    close(&db);
}
