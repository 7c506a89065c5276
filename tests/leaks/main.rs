//! What nobody is shown: the values of the callers, and where another database lies.
//!
//! Secrets that can be recognised are bound in every kind of command and read, which then fails in every way that is
//! easily reached. What comes of it is searched for them, as text, in hex and in base 10: errors with all that is behind
//! them, events and spans, health, figures, the last failures, records of imports, metrics and every route.
#![allow(
    missing_docs,
    missing_debug_implementations,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::mem_forget,
    clippy::panic,
    reason = "a test"
)]

#[path = "../common/mod.rs"]
mod common;
mod secrets;
mod seen;
mod sent;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use common::{Gate, HANG, TestDb, add, committed, config_with, plain, soon, until};
use futures_util::stream;
use rusqlite::{Connection, OpenFlags, ffi, params_from_iter};
use secrets::{FOLDER, INTEGER, TEXT, assert_clean, bound, found_in};
use seen::{assert_said, listen, look};
use sent::{CLASH, CLASH_AND_ROLL_BACK, KEPT, KEPT_TOO, Sent, VAULT, WAYS, run, told, unsent};
use solewriter::{
    ConnectionRole, Database, Drain, NotStarted, OnDrop, ReadError, RolledBack, WriteError, WriteTransaction,
};
use tempfile::TempDir;

/// Nearly endless, as far as a test is concerned.
const FOR_EVER: &str = "WITH RECURSIVE n(i) AS (SELECT ?3 UNION ALL SELECT i + 1 FROM n) \
     SELECT max(i) FROM n WHERE ?1 <> ?2 AND ?4 > 0";

/// Long enough for a slow machine to begin, short enough to be waited for.
const SHORT: Duration = Duration::from_millis(150);

async fn vault() -> TestDb {
    let db = TestDb::open_with(|config| {
        config.value_bytes_max = 1 << 20;
        config.hold_warning = Duration::from_millis(10);
    })
    .await;
    db.write("schema", |tx| tx.execute_batch(VAULT)).await.unwrap();
    db.execute(KEPT, bound()).await.unwrap();
    db.write("leaks.kept", |tx| tx.execute(KEPT_TOO, params_from_iter(bound()))).await.unwrap();
    db
}

fn error_is_clean(place: &str, error: &(dyn std::error::Error + 'static)) {
    assert_clean(place, &told(error).text);
}

#[tokio::test]
async fn no_bound_value_is_shown_whatever_is_sent_and_however_it_fails() {
    listen();
    let db = vault().await;
    for (sql, code) in WAYS {
        for sent in Sent::ALL {
            let place = format!("{sent:?} of {sql}");
            let Err(failed) = sent.send(&db, sql).await else { panic!("{place} did not fail") };
            assert_clean(&place, &failed.text);
            if sent.is_command() {
                assert_eq!(failed.code, code, "{place} has failed in another way: {}", failed.text);
            }
        }
        written_down_is_clean(&db).await;
    }
    look(&db).await;
    assert_clean("what is not sent yet", &unsent(&db).await);
    let said = ["execute", "leaks.once", "leaks.nested", "leaks.again", "leaks.typed", "leaks.import"];
    assert_said(&said);
    assert_said(&["leaks.maintain", "leaks.read", "group committed", "group lost"]);
    records_are_served(&db).await;
}

/// The failures alone: there are only 64 of them.
async fn written_down_is_clean(db: &Database) {
    assert_clean("the last failures", &format!("{:?}", db.recent_failures()));
    assert_clean("the records of imports", &format!("{:?}", db.import_records(100).await.unwrap()));
}

/// The dashboard reads the records of imports after its first sample.
#[cfg(feature = "http")]
async fn records_are_served(db: &Database) {
    let router = solewriter::http::router(db.clone());
    let mut answer = String::new();
    while !answer.contains("leaks.import") {
        tokio::time::sleep(Duration::from_millis(100)).await;
        answer = seen::routes::answer(&router, "/stats.json").await;
    }
    assert_clean("/stats.json", &answer);
    seen::routes::look(&router).await;
}

#[cfg(not(feature = "http"))]
async fn records_are_served(_: &Database) {}

#[tokio::test]
async fn a_value_that_is_too_large_is_not_shown() {
    listen();
    let db = vault().await;
    let large = || TEXT.repeat(100_000);
    let by_code = |place: &str, error: &(dyn std::error::Error + 'static)| {
        error_is_clean(place, error);
        assert_eq!(told(error).code, Some(ffi::SQLITE_TOOBIG), "{place}");
    };
    by_code("execute", &db.execute("INSERT INTO named VALUES (?1, 1)", (large(),)).await.unwrap_err());
    let once = db.write("leaks.large", move |tx| tx.execute("INSERT INTO named VALUES (?1, 1)", [large()]));
    by_code("write", &once.await.unwrap_err());
    let maintain =
        db.maintain("leaks.large", move |m| m.execute("INSERT INTO named VALUES (?1, 1)", [large()]));
    by_code("maintain", &maintain.await.unwrap_err());
    let read = db.read("leaks.large", move |tx| tx.query_row("SELECT ?1", [large()], |_| Ok(())));
    by_code("read", &read.await.unwrap_err());
    // Too large for the queue.
    let refused = db.execute(CLASH, bound()).payload_bytes(usize::MAX).await.unwrap_err();
    assert!(matches!(refused, WriteError::NotStarted(NotStarted::TooLarge { .. })), "{refused:?}");
    error_is_clean("a command that is too large", &refused);
    look(&db).await;
    assert_said(&["leaks.large"]);
}

#[tokio::test]
async fn what_is_ended_panics_or_leaks_a_statement_shows_no_bound_value() {
    listen();
    let db = vault().await;
    let ended =
        |error: &WriteError| matches!(error, WriteError::RolledBack(RolledBack::DeadlineExceeded { .. }));
    let execute = soon(db.execute(FOR_EVER, bound()).deadline(SHORT)).await.unwrap_err();
    assert!(ended(&execute), "{execute:?}");
    error_is_clean("execute, ended", &execute);
    let select = |tx: &mut WriteTransaction<'_>| {
        tx.query_row(FOR_EVER, params_from_iter(bound()), |row| row.get::<_, i64>(0))
    };
    let once = soon(db.write("leaks.ended", select).deadline(SHORT)).await.unwrap_err();
    assert!(ended(&once), "{once:?}");
    error_is_clean("write, ended", &once);
    let maintain =
        db.maintain("leaks.ended", |m| m.query_row(FOR_EVER, params_from_iter(bound()), |_| Ok(())));
    error_is_clean("maintain, ended", &soon(maintain.deadline(SHORT)).await.unwrap_err());
    let read = || db.read("leaks.ended", |tx| tx.query_row(FOR_EVER, params_from_iter(bound()), |_| Ok(())));
    error_is_clean("read, ended", &soon(read().deadline(SHORT)).await.unwrap_err());
    drop(tokio::time::timeout(SHORT, read().on_drop(OnDrop::Withdraw).into_future()).await);
    let snapshot = db.snapshot("leaks.snapshot").age_max(SHORT).await.unwrap();
    let late = snapshot.read(|tx| tx.query_row(FOR_EVER, params_from_iter(bound()), |_| Ok(())));
    error_is_clean("snapshot, ended", &soon(late).await.unwrap_err());

    // A panic that is not the user's own text: an error of rusqlite, unwrapped.
    let once = db.write("leaks.panics", |tx| Ok(run(tx, CLASH).unwrap()));
    error_is_clean("write, panicked", &soon(once).await.unwrap_err());
    let again = db.write_rerunnable("leaks.panics", |tx| Ok(run(tx, CLASH).unwrap()));
    error_is_clean("write_rerunnable, panicked", &soon(again).await.unwrap_err());
    let maintain = db.maintain("leaks.panics", |m| Ok(m.execute(CLASH, params_from_iter(bound())).unwrap()));
    error_is_clean("maintain, panicked", &soon(maintain).await.unwrap_err());
    let read = db.read("leaks.panics", |tx| {
        Ok(tx
            .query_row("SELECT ?1, ?2, ?3, ?4", params_from_iter(bound()), |row| row.get::<_, i64>(0))
            .unwrap())
    });
    error_is_clean("read, panicked", &soon(read).await.unwrap_err());
    let import = db.import("leaks.panics", stream::iter([bound()]));
    let report = import
        .run(|tx, entry| Ok::<_, rusqlite::Error>(tx.execute(CLASH, params_from_iter(entry)).unwrap()))
        .await
        .unwrap();
    assert_eq!(report.failed, 1);
    error_is_clean("import, panicked", &report.failures[0].error);

    let leaks = db.write("leaks.statement", |tx| {
        let mut statement = tx.prepare("SELECT ?1, ?2, ?3, ?4 UNION ALL SELECT 1, 2, 3, 4")?;
        let mut rows = statement.query(params_from_iter(bound()))?;
        rows.next()?;
        std::mem::forget(rows);
        std::mem::forget(statement);
        Ok(())
    });
    error_is_clean("write, with a statement left", &soon(leaks).await.unwrap_err());

    // An entry whose preparation fails, which never gets to the writer.
    let import = db.import("leaks.unprepared", stream::iter([bound()]));
    let unprepared = import.prepare(1, |_| async { Err::<Vec<()>, _>(rusqlite::Error::InvalidQuery) });
    let report = unprepared.run(|_, _| Ok(())).await.unwrap();
    error_is_clean("an entry that was not prepared", &report.failures[0].error);
    look(&db).await;
    assert_said(&["leaks.ended", "leaks.panics", "leaks.statement", "leaks.unprepared", "replaced"]);
}

#[tokio::test]
async fn what_waits_or_is_lost_with_its_group_shows_no_bound_value() {
    listen();
    let db = vault().await;
    let gate = Gate::close(&db).await;
    // The first can't run again, so it is lost with its group.
    let lost = committed(db.write("leaks.lost", |tx| {
        run(tx, "DELETE FROM vault WHERE words <> ?1 AND bytes <> ?2 AND number <> ?3 AND measure <> ?4")
    }))
    .await;
    let culprit = committed(db.execute(CLASH_AND_ROLL_BACK, bound())).await;
    let deferred = committed(db.execute("INSERT INTO owed VALUES (?3 + 1, ?1 || ?2 || ?4)", bound())).await;
    let late = soon(db.execute(CLASH, bound()).deadline(SHORT)).await.unwrap_err();
    error_is_clean("a command that waited", &late);
    drop(db.execute(CLASH, bound()).on_drop(OnDrop::Withdraw).submit().await.unwrap());
    let report = db.read("leaks.report", |tx| {
        tx.query_row("SELECT ?1, ?2, ?3, ?4", params_from_iter(bound()), |_| Ok(()))
    });
    report.await.unwrap();
    look(&db).await;
    gate.open().await;
    error_is_clean("a neighbour", &soon(lost).await.unwrap_err());
    error_is_clean("a culprit", &soon(culprit).await.unwrap_err());
    error_is_clean("a deferred foreign key", &soon(deferred).await.unwrap_err());
    look(&db).await;

    let hasty = TestDb::open_with(|config| {
        config.command_wait_max = SHORT;
        config.busy_timeout = SHORT;
    })
    .await;
    let gate = Gate::close(&hasty).await;
    let waits = soon(hasty.execute("INSERT INTO t (x) VALUES (?1 || ?2 || ?3 || ?4)", bound()));
    error_is_clean("a command that waited too long", &waits.await.unwrap_err());
    gate.open().await;
    let other = hasty.plain();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let locked = soon(hasty.execute("INSERT INTO t (x) VALUES (?1 || ?2 || ?3 || ?4)", bound()));
    error_is_clean("a command that met a lock", &locked.await.unwrap_err());
    drop(other);
    look(&hasty).await;
    hasty.shutdown(Drain::within(HANG)).await.unwrap();
    let closed = hasty.execute("INSERT INTO t (x) VALUES (?1 || ?2 || ?3 || ?4)", bound());
    error_is_clean("a command after the close", &closed.await.unwrap_err());
    look(&hasty).await;
    assert_said(&["leaks.lost", "the writer is being held for long"]);
}

/// A disk that fails, in one way after the other.
#[cfg(unix)]
#[tokio::test]
async fn a_disk_that_fails_has_nobody_shown_a_bound_value() {
    use common::faults::{By, Fault, Faults, Of, Op};
    listen();
    for (op, of, code) in [
        (Op::Write, Of::Wal, ffi::SQLITE_FULL),
        (Op::Write, Of::Wal, ffi::SQLITE_IOERR_WRITE),
        (Op::Sync, Of::Wal, ffi::SQLITE_IOERR_FSYNC),
        (Op::Lock, Of::Database, ffi::SQLITE_IOERR_SHMLOCK),
        (Op::Read, Of::Database, ffi::SQLITE_CORRUPT),
    ] {
        let (dir, faults) = (common::in_memory_dir(), Faults::register());
        let db = faults.create(&dir, |config| config.breaker_pause = Duration::from_millis(5));
        faults.inject(Fault::new(op, of, code).by(By::Writer));
        for sent in Sent::ALL {
            let sql = "INSERT INTO t (x) VALUES (?1 || ?2 || ?3 || ?4)";
            if let Err(failed) = sent.send(&db, sql).await {
                assert_clean(&format!("{sent:?} where {op:?} of {of:?} fails"), &failed.text);
            }
        }
        look(&db).await;
        faults.heal();
        drop(db.shutdown(Drain::within(HANG)).await);
    }
    assert_said(&["writes are refused until a probe succeeds", "the service has stopped writing"]);
}

fn folder() -> TempDir {
    tempfile::Builder::new().prefix(FOLDER).tempdir().unwrap()
}

#[tokio::test]
async fn nobody_is_told_where_another_database_lies() {
    listen();
    let db = TestDb::open_with(|config| config.busy_timeout = SHORT).await;
    let folder = folder();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (other, noise, missing) = (file("other.db"), file("noise.db"), file("missing.db"));
    plain(other.as_ref()).execute_batch("CREATE TABLE kept (x UNIQUE)").unwrap();
    std::fs::write(&noise, [b'x'; 4096]).unwrap();
    for (sql, file, code) in [
        ("ATTACH ?1 AS other", &missing, ffi::SQLITE_CANTOPEN),
        ("ATTACH ?1 AS other", &noise, ffi::SQLITE_NOTADB),
        ("VACUUM INTO ?1", &other, ffi::SQLITE_ERROR),
        ("VACUUM INTO ?1", &file("nowhere/copy.db"), ffi::SQLITE_CANTOPEN),
    ] {
        let path = file.clone();
        let refused = db.maintain("leaks.attach", move |m| m.execute(sql, [path])).await.unwrap_err();
        assert_clean(sql, &told(&refused).text);
        assert_eq!(told(&refused).code.map(|code| code & 0xff), Some(code), "{sql}: {refused:?}");
        let path = file.clone();
        let command = db.write("leaks.attach", move |tx| tx.execute(sql, [path])).await.unwrap_err();
        assert_clean(sql, &told(&command).text);
        let path = file.clone();
        let read = db.read("leaks.attach", move |tx| tx.prepare(sql)?.execute([path])).await.unwrap_err();
        assert_clean(sql, &told(&read).text);
    }
    // Attached, and then something fails in it.
    let lock = plain(other.as_ref());
    for (sql, is_locked) in [
        ("INSERT INTO other.kept VALUES (?1), (?1)", false),
        ("INSERT INTO other.nowhere VALUES (?1)", false),
        ("INSERT INTO other.kept VALUES (?1)", true),
    ] {
        if is_locked {
            lock.execute_batch("BEGIN EXCLUSIVE").unwrap();
        }
        let path = other.clone();
        let failed = db.maintain("leaks.attach", move |m| {
            m.execute("ATTACH ?1 AS other", [path])?;
            m.execute(sql, [TEXT])
        });
        error_is_clean(sql, &soon(failed).await.unwrap_err());
    }
    // By a command itself: what the environment fails is told by its code alone.
    let opens = |path: String| Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map(drop);
    let path = missing.clone();
    let once = db.write("leaks.opens", move |_| opens(path)).await.unwrap_err();
    assert!(matches!(once, WriteError::RolledBack(RolledBack::Environment(_))), "{once:?}");
    error_is_clean("a command that opens another database", &once);
    let path = missing.clone();
    let again = db.write_rerunnable("leaks.opens", move |_| opens(path.clone())).await.unwrap_err();
    error_is_clean("a command that opens another database", &again);
    let import = db.import("leaks.opens", stream::iter([missing])).lost_batches_max(1);
    let import = import.run(move |_, path: &String| opens(path.clone())).await.unwrap_err();
    error_is_clean("an import that opens another database", &import);
    look(&db).await;
    assert_said(&["leaks.attach", "leaks.opens", "the database looked damaged, and is not"]);
}

#[tokio::test]
async fn what_a_hook_says_is_told_to_who_opens_the_database_and_to_nobody_else() {
    const WELL: u8 = 0;
    const FAILS: u8 = 1;
    const PANICS: u8 = 2;
    listen();
    let (dir, folder) = (tempfile::tempdir().unwrap(), folder());
    let missing = folder.path().join("missing.db").display().to_string();
    let state = Arc::new(AtomicU8::new(FAILS));
    let asked = state.clone();
    let hook = move |connection: &Connection, _: ConnectionRole| match asked.load(Ordering::Relaxed) {
        FAILS => connection.execute("ATTACH ?1 AS other", [&missing]).map(drop),
        PANICS => panic!("{missing}"),
        _ => Ok(()),
    };
    let config = config_with(|config| {
        (config.readers, config.readers_overflow) = (1, 0);
        config.breaker_failures = 1;
        config.breaker_pause = Duration::from_millis(5);
    });
    let builder = Database::builder(dir.path().join("test.db")).config(config).on_connect(hook);
    for how in [FAILS, PANICS] {
        state.store(how, Ordering::Relaxed);
        let refused = told(&builder.clone().open().await.unwrap_err()).text;
        assert!(!found_in(&refused).is_empty(), "who opens it is to learn why it can't be: {refused}");
    }
    state.store(WELL, Ordering::Relaxed);
    let db = builder.open().await.unwrap();
    for how in [FAILS, PANICS] {
        state.store(how, Ordering::Relaxed);
        cannot_open(&db).await;
        assert!(format!("{:?}", db.health()).contains("the hook for its connections"), "{:?}", db.health());
        state.store(WELL, Ordering::Relaxed);
        until("writes go on", || !db.stats().is_refusing_writes).await;
    }
    db.shutdown(Drain::within(HANG)).await.unwrap();
    assert_said(&["leaks.reopens"]);
}

/// A reader and the writer need new connections, which can't be opened.
async fn cannot_open(db: &Database) {
    let panics = db.read("leaks.reopens", |_| -> rusqlite::Result<()> { panic!("on purpose") });
    panics.await.unwrap_err();
    let read = soon(db.read("leaks.reopens", |_| Ok(()))).await.unwrap_err();
    assert!(matches!(read, ReadError::Connection(_)), "{read:?}");
    error_is_clean("a read without a connection", &read);
    soon(db.maintain("leaks.reopens", |m| m.execute_batch("ANALYZE"))).await.unwrap();
    until("writes are refused", || db.stats().is_refusing_writes).await;
    let write = soon(db.execute("CREATE TABLE IF NOT EXISTS u (x)", ())).await.unwrap_err();
    error_is_clean("a write without a connection", &write);
    look(db).await;
}

#[cfg(unix)]
#[tokio::test]
async fn nobody_but_who_opens_a_database_is_told_its_folder() {
    use common::faults::{Fault, Faults, Of, Op};
    listen();
    let (dir, faults) = (folder(), Faults::register());
    let db = faults.create(&dir, |config| {
        (config.readers, config.readers_overflow) = (1, 0);
        config.breaker_failures = 1;
        config.breaker_pause = Duration::from_millis(5);
    });
    faults.inject(Fault::new(Op::Open, Of::Database, ffi::SQLITE_CANTOPEN));
    cannot_open(&db).await;
    faults.heal();
    until("writes go on", || !db.stats().is_refusing_writes).await;
    db.shutdown(Drain::within(HANG)).await.unwrap();
    look(&db).await;
    assert_said(&["leaks.reopens", "a reader was replaced", "writes are refused until a probe succeeds"]);
}

/// SQLite and rusqlite quote some values, and what callers say themselves is their own. It is in the answer to the one
/// who asked, as docs/guarantees.md says, and is not shown to anyone else.
#[tokio::test]
async fn what_is_quoted_to_its_caller_is_shown_to_nobody_else() {
    listen();
    let db = TestDb::open().await;
    let schema = "CREATE VIRTUAL TABLE search USING fts5 (body);
         CREATE TABLE told (x);
         CREATE TRIGGER tells BEFORE INSERT ON told BEGIN SELECT RAISE(ABORT, 'no ' || NEW.x); END;";
    db.write("schema", move |tx| tx.execute_batch(schema)).await.unwrap();
    let quoted = |error: &(dyn std::error::Error + 'static)| {
        let text = told(error).text;
        assert!(
            !found_in(&text).is_empty(),
            "this has changed, and docs/guarantees.md says otherwise: {text}"
        );
    };
    for sql in [
        "SELECT * FROM search WHERE search MATCH ?1 || ':x'",
        "SELECT json_extract('{}', ?1)",
        "INSERT INTO told VALUES (?1)",
    ] {
        quoted(&db.execute(sql, (TEXT,)).label("leaks.quoted").await.unwrap_err());
        quoted(&db.write("leaks.quoted", move |tx| tx.execute(sql, [TEXT])).await.unwrap_err());
        let import = db.import("leaks.quoted", stream::iter([TEXT]));
        let report = import.run(move |tx, text| tx.execute(sql, [text])).await.unwrap();
        quoted(&report.failures[0].error);
    }
    let number = db.execute_returning("SELECT ?1", (INTEGER,), |row| row.get::<_, u8>(0));
    quoted(&number.label("leaks.quoted").await.unwrap_err());
    quoted(
        &db.read("leaks.quoted", |tx| tx.query_row("SELECT ?1", [INTEGER], |row| row.get::<_, u8>(0)))
            .await
            .unwrap_err(),
    );
    // A value that is written into the text of a statement instead of being bound.
    let sql = format!("INSERT INTO t (x) VALES ('{TEXT}')");
    quoted(&db.execute(sql, ()).label("leaks.quoted").await.unwrap_err());
    // Words of the caller's own.
    quoted(&db.write("leaks.quoted", |_| -> rusqlite::Result<()> { panic!("{TEXT}") }).await.unwrap_err());
    quoted(&db.read("leaks.quoted", |_| -> rusqlite::Result<()> { panic!("{TEXT}") }).await.unwrap_err());
    let own = db.write_or_reject("leaks.quoted", |_| Err::<(), _>(std::io::Error::other(TEXT)));
    quoted(&own.await.unwrap_err());
    let path = PathBuf::from("/nowhere").join(FOLDER);
    let read = db.read("leaks.quoted", move |_| {
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map(drop)
    });
    quoted(&read.await.unwrap_err());
    look(&db).await;
    db.write("last", |tx| add(tx, 1)).await.unwrap();
    assert_said(&["leaks.quoted"]);
}
