//! Honest Outcome, where the file looks damaged: a read error is told from damage by a check of the whole file; a
//! damaged one is never written again, nor repaired, and can be read for what is left.
#![cfg(unix)]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::io::{Seek, SeekFrom, Write as _};
use std::path::Path;

use common::faults::{By, Fault, Faults, Of, Op, stored, xs};
use common::{Gate, HANG, Kind, beside, committed, insert, plain, soon, until};
use rusqlite::ffi;
use solewriter::{Database, Drain, NotStarted, Outcome, Retry, RolledBack, WriteError};

/// Puts rows into a table of its own, and leaves nothing in a cache or in the WAL.
fn fill(path: &Path) {
    let connection = plain(path);
    let rows = "CREATE TABLE other (id INTEGER PRIMARY KEY, x);
                WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 200)
                INSERT INTO other (x) SELECT randomblob(1000) FROM n";
    connection.execute_batch(rows).unwrap();
}

fn create(dir: &tempfile::TempDir) -> (Faults, Database) {
    let faults = Faults::register();
    let db = faults.create(dir, |_| ());
    db.blocking().shutdown(Drain::within(HANG)).unwrap();
    fill(db.path());
    let db = faults.open(db.path(), |config| config.breaker_failures = u32::MAX);
    (faults, db)
}

fn is_damage(error: &WriteError) {
    assert!(matches!(error, WriteError::RolledBack(RolledBack::Environment(_))), "{error:?}");
    assert_eq!((error.outcome(), error.retry()), (Outcome::RolledBack, Retry::Later));
    let code = error.sqlite_extended_code().unwrap() & 0xff;
    assert!(code == ffi::SQLITE_CORRUPT || code == ffi::SQLITE_IOERR, "{error:?}");
}

// Group:  1 (again)  reads a page, which looks damaged  2 (again)
// The connection is replaced, a check of the whole file finds nothing: 1 and 2 run again.
#[tokio::test]
async fn a_read_that_fails_in_a_way_that_looks_like_damage_costs_its_command_only() {
    for kind in [Kind::Rerunnable, Kind::Once] {
        let dir = tempfile::tempdir().unwrap();
        let (faults, db) = create(&dir);
        let gate = Gate::close(&db).await;
        let first = Kind::Statement.submit(&db, 1).await;
        let injected = faults.clone();
        let update = move |tx: &mut solewriter::WriteTransaction<'_>| {
            let damage = Fault::new(Op::Read, Of::Database, ffi::SQLITE_IOERR_CORRUPTFS);
            injected.inject(damage.by(By::Writer).once());
            tx.execute("UPDATE other SET x = 1", ())
        };
        let culprit = match kind {
            Kind::Once => committed(db.write("other.update", update)).await,
            _ => committed(db.write_rerunnable("other.update", update)).await,
        };
        let last = Kind::Statement.submit(&db, 2).await;
        faults.forget();
        gate.open().await;
        is_damage(&soon(culprit).await.unwrap_err());
        assert_eq!(faults.failed(), 1);
        soon(first).await.unwrap();
        soon(last).await.unwrap();
        assert_eq!(xs(&db), [0, 1, 2]);
        let stats = db.stats();
        assert_eq!((stats.connections_replaced, stats.is_refusing_writes), (1, false));
        let after = faults.after_failure();
        let checked = after.iter().filter(|call| (call.op, call.of) == (Op::Read, Of::Database)).count();
        assert!(checked > 50, "the whole file was read: {checked}");
        assert_eq!(db.execute("UPDATE other SET x = 2", ()).await.unwrap(), 200);
        assert!(!db.blocking().shutdown(Drain::within(HANG)).unwrap().stopped);
        assert_eq!(stored(db.path()), [0, 1, 2]);
    }
}

/// Fails a command by a read that looks like damage, and injects `next` at that moment.
async fn disturb_the_check(faults: &Faults, db: &Database, next: impl Fn() -> Fault + Send + Sync + 'static) {
    let (injected, then) = (faults.clone(), faults.clone());
    let update = db.write("other.update", move |tx| {
        let damage = Fault::new(Op::Read, Of::Database, ffi::SQLITE_IOERR_CORRUPTFS).by(By::Writer).once();
        injected.forget();
        injected.inject(damage.then(move || then.inject(next())));
        tx.execute("UPDATE other SET x = 1", ())
    });
    is_damage(&update.await.unwrap_err());
}

#[tokio::test]
async fn while_the_check_can_not_be_done_nothing_is_written() {
    for spared in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let (faults, db) = create(&dir);
        // Meets the connection while it is replaced, or the check, or a later group.
        let lock = move || Fault::new(Op::Lock, Of::Database, ffi::SQLITE_IOERR_SHMLOCK);
        disturb_the_check(&faults, &db, move || lock().by(By::Writer).after(spared).once()).await;
        // Where it met the COMMIT of this one, a fence has told that it is safe to retry.
        if let Err(lost) = soon(insert(&db, 1)).await {
            assert_eq!(lost.outcome(), Outcome::RolledBack, "{lost:?}");
            soon(insert(&db, 1)).await.unwrap();
        }
        let calls = faults.calls();
        // The check is what reads much; it has ended before anything is written.
        let first_write = calls.iter().position(|call| call.op == Op::Write).unwrap();
        let reads = calls[..first_write].iter().filter(|call| (call.op, call.of) == (Op::Read, Of::Database));
        assert!(reads.count() > 50, "written before the check has ended, after {spared} locks");
        assert_eq!(xs(&db), [0, 1]);
        assert!(!db.blocking().shutdown(Drain::within(HANG)).unwrap().stopped);
        assert_eq!(stored(db.path()), [0, 1]);
    }
}

// SQLite's check tells of a page that it could not read in words, among what it takes for damage.
#[tokio::test]
async fn a_check_that_could_not_read_a_page_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let (faults, db) = create(&dir);
    let read = || Fault::new(Op::Read, Of::Database, ffi::SQLITE_IOERR_READ).by(By::Writer).after(20).once();
    disturb_the_check(&faults, &db, read).await;
    soon(insert(&db, 1)).await.unwrap();
    assert_eq!(faults.failed(), 2, "the check met the read that failed");
    assert_eq!(xs(&db), [0, 1]);
    assert!(!db.blocking().shutdown(Drain::within(HANG)).unwrap().stopped);
    assert_eq!(stored(db.path()), [0, 1]);
}

#[tokio::test]
async fn a_page_that_is_damaged_stops_writing_and_other_tables_are_still_read() {
    let dir = tempfile::tempdir().unwrap();
    let (_, db) = create(&dir);
    let path = db.path().to_owned();
    db.blocking().shutdown(Drain::within(HANG)).unwrap();
    // The last page belongs to the table that was filled last.
    let ask = |sql| u64::from(plain(&path).query_row(sql, (), |row| row.get::<_, u32>(0)).unwrap());
    let (page, page_bytes) = (ask("PRAGMA page_count"), ask("PRAGMA page_size"));
    let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start((page - 1) * page_bytes)).unwrap();
    file.write_all(&vec![0xff; 512]).unwrap();
    drop(file);

    let faults = Faults::register();
    let db = faults.open(&path, |_| ());
    insert(&db, 1).await.unwrap();
    let gate = Gate::close(&db).await;
    let neighbour = Kind::Statement.submit(&db, 2).await;
    let culprit = committed(db.execute("UPDATE other SET x = 1", ())).await;
    gate.open().await;
    is_damage(&soon(culprit).await.unwrap_err());
    // It can run again, but nothing is written any more.
    let lost = soon(neighbour).await.unwrap_err();
    assert!(matches!(lost, WriteError::RolledBack(RolledBack::GroupLost(_))), "{lost:?}");
    until("writing stops", || db.stats().is_refusing_writes).await;
    let refused = insert(&db, 3).await.unwrap_err();
    assert!(matches!(refused, WriteError::NotStarted(NotStarted::Stopped(_))), "{refused:?}");
    assert_eq!(refused.retry(), Retry::Never);
    assert_eq!(xs(&db), [0, 1], "other tables can be read");
    let damaged = db.read("other", |tx| tx.query_row("SELECT sum(length(x)) FROM other", (), |_| Ok(())));
    let damaged = damaged.await.unwrap_err();
    assert_eq!(damaged.sqlite_extended_code().map(|code| code & 0xff), Some(ffi::SQLITE_CORRUPT));
    faults.forget();
    let report = db.blocking().shutdown(Drain::within(HANG)).unwrap();
    assert!(report.stopped && report.wal_pages_left > 0, "{report:?}");
    let wrote = faults.calls().iter().any(|call| matches!(call.op, Op::Write | Op::Truncate));
    assert!(!wrote, "nothing is repaired");
    assert!(std::fs::metadata(beside(&path, "-wal")).unwrap().len() > 0);
    let bytes = std::fs::read(&path).unwrap();
    let start = usize::try_from((page - 1) * page_bytes).unwrap();
    assert!(bytes[start..start + 512].iter().all(|byte| *byte == 0xff), "the page is as it was");
}

// The check ran into an error of the full-text index each time, and was made again for ever (damaged_files, seed 10377).
#[tokio::test]
async fn damage_that_can_not_be_checked_stops_writing_too() {
    let dir = tempfile::tempdir().unwrap();
    let (faults, db) = create(&dir);
    let no_index =
        "CREATE VIRTUAL TABLE words USING fts5(word); UPDATE words_config SET v = 0 WHERE k = 'version'";
    plain(db.path()).execute_batch(no_index).unwrap();
    disturb_the_check(&faults, &db, || Fault::new(Op::Sync, Of::Other, ffi::SQLITE_IOERR_FSYNC)).await;
    until("writing stops", || db.stats().is_refusing_writes).await;
    let refused = insert(&db, 1).await.unwrap_err();
    assert!(matches!(refused, WriteError::NotStarted(NotStarted::Stopped(_))), "{refused:?}");
    assert_eq!(refused.sqlite_extended_code(), Some(ffi::SQLITE_CORRUPT));
    assert!(db.blocking().shutdown(Drain::within(HANG)).unwrap().stopped);
}
