//! Honest Outcome, where COMMIT fails: everyone in the group learns of it, and what was answered as rolled back
//! never comes back, whatever the failed COMMIT has left in the WAL.
#![cfg(unix)]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]
#![allow(clippy::async_yields_async, reason = "a command is sent first and waited for later")]

mod common;

use std::path::Path;
use std::sync::{Arc, Mutex};

use common::disk::{Disk, Image};
use common::faults::{By, CrashImage, Fault, Faults, Of, Op, stored, xs};
use common::{Gate, HANG, Kind, beside, in_memory_dir, insert, soon};
use rusqlite::ffi;
use solewriter::{
    Database, Drain, Durability, NotStarted, Outcome, Retry, RolledBack, ShutdownReport, Unknown, WriteError,
};

/// Lets one command of each kind wait together, which insert `from` and the numbers after it, and has `fault`
/// meet their COMMIT.
async fn fail_a_group(db: &Database, faults: &Faults, from: i64, fault: Fault) -> Vec<Option<WriteError>> {
    let gate = Gate::close(db).await;
    let mut sent = Vec::new();
    for (x, kind) in (from..).zip(Kind::ALL) {
        sent.push(kind.submit(db, x).await);
    }
    faults.forget();
    faults.inject(fault);
    gate.open().await;
    let mut answers = Vec::new();
    for answer in sent {
        answers.push(soon(answer).await.err());
    }
    answers
}

fn is_lost(error: &WriteError, code: i32) {
    assert!(matches!(error, WriteError::RolledBack(RolledBack::GroupLost(_))), "{error:?}");
    assert_eq!((error.outcome(), error.retry()), (Outcome::RolledBack, Retry::Later));
    assert_eq!(error.sqlite_extended_code(), Some(code));
}

fn is_unknown(error: &WriteError, code: i32) {
    assert!(matches!(error, WriteError::Unknown(Unknown::CommitFailed(_))), "{error:?}");
    assert_eq!((error.outcome(), error.retry()), (Outcome::Unknown, Retry::AfterChecking));
    assert_eq!(error.sqlite_extended_code(), Some(code));
}

fn close(db: &Database) -> ShutdownReport {
    db.blocking().shutdown(Drain::within(HANG)).unwrap()
}

/// Writing has stopped for good although nothing fails any more, reads go on, and a close touches neither the
/// database file nor the WAL.
async fn is_stopped(db: &Database, faults: &Faults, seen: &[i64]) {
    faults.heal();
    for _ in 0..2 {
        let refused = insert(db, 99).await.unwrap_err();
        assert!(matches!(refused, WriteError::NotStarted(NotStarted::Stopped(_))), "{refused:?}");
        assert_eq!(refused.retry(), Retry::Never);
    }
    assert_eq!(xs(db), seen, "reads go on");
    assert!(db.stats().is_refusing_writes);
    let wal = beside(db.path(), "-wal");
    let before = bytes(&wal);
    faults.forget();
    let report = close(db);
    assert!(report.stopped && report.wal_pages_left > 0, "{report:?}");
    assert_eq!(faults.count(Op::Write, Of::Database), 0, "no checkpoint");
    assert_eq!((faults.count(Op::Write, Of::Wal), faults.count(Op::Truncate, Of::Wal)), (0, 0));
    assert!(before == bytes(&wal), "the WAL is as it was");
}

fn bytes(wal: &Path) -> Vec<u8> {
    std::fs::read(wal).unwrap()
}

// Writer                              Disk
// COMMIT: frames written
//         sync fails                  a crash now: the rows are there
// fence: a commit of its own          a crash now: they are not
// answers "rolled back"
#[tokio::test]
async fn a_failed_sync_costs_the_group_its_commit_for_good_and_the_service_goes_on() {
    let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
    let db = faults.create(&dir, |_| ());
    let path = db.path().to_owned();
    insert(&db, 10).await.unwrap();
    let image = Arc::new(Mutex::new(None));
    let (taken, of) = (image.clone(), path.clone());
    let fault = Fault::new(Op::Sync, Of::Wal, ffi::SQLITE_IOERR_FSYNC).by(By::Writer).once();
    let fault = fault.then(move || *taken.lock().unwrap() = Some(CrashImage::take(&of)));
    for error in fail_a_group(&db, &faults, 1, fault).await {
        is_lost(&error.unwrap(), ffi::SQLITE_IOERR_FSYNC);
    }
    let (before, after) = (image.lock().unwrap().take().unwrap(), CrashImage::take(&path));
    assert_eq!(before.xs(), [0, 10, 1, 2, 3, 4], "this is what the fence is for");
    assert_eq!(after.xs(), [0, 10], "the fence has settled it");
    assert_eq!(xs(&db), [0, 10]);
    let stats = db.stats();
    assert_eq!((stats.groups_lost, stats.commands.rolled_back, stats.is_refusing_writes), (1, 4, false));
    for kind in Kind::ALL {
        soon(kind.submit(&db, 20 + kind as i64).await).await.unwrap();
    }
    let report = close(&db);
    assert_eq!((report.stopped, report.wal_pages_left), (false, 0));
    assert_eq!(stored(&path), [0, 10, 20, 21, 22, 23]);
}

#[tokio::test]
async fn whichever_write_of_a_commit_fails_nothing_of_its_group_is_there_now_or_after_a_crash() {
    let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
    // Each failure counts; what opens the breaker is another file's subject.
    let db = faults.create(&dir, |config| config.breaker_failures = u32::MAX);
    let path = db.path().to_owned();
    let mut cases = 0;
    for spared in 0.. {
        let fault = Fault::new(Op::Write, Of::Wal, ffi::SQLITE_IOERR_WRITE).after(spared).once();
        let answers = fail_a_group(&db, &faults, 1, fault).await;
        faults.heal();
        if faults.failed() == 0 {
            // A commit makes no more calls than this.
            assert!(answers.iter().all(Option::is_none));
            break;
        }
        cases += 1;
        for error in answers {
            is_lost(&error.unwrap(), ffi::SQLITE_IOERR_WRITE);
        }
        assert_eq!(xs(&db), [0]);
        assert_eq!(CrashImage::take(&path).xs(), [0], "after {spared} calls");
    }
    assert!(cases >= 4, "two pages, each with a header: {cases}");
    assert!(!close(&db).stopped);
    assert_eq!(stored(&path), [0, 1, 2, 3, 4]);
    println!("commit_failure: cases={cases} lost=0 half=0 ghost=0");
}

#[tokio::test]
async fn where_the_fence_fails_too_the_outcome_is_unknown_and_writing_stops() {
    let sync = || Fault::new(Op::Sync, Of::Wal, ffi::SQLITE_IOERR_FSYNC);
    for (fence, code) in [
        (None, ffi::SQLITE_IOERR_FSYNC),
        // Frames are there already: only space for the fence is missing.
        (Some(Fault::new(Op::Write, Of::Wal, ffi::SQLITE_FULL)), ffi::SQLITE_IOERR_FSYNC),
        (Some(Fault::new(Op::Write, Of::Wal, ffi::SQLITE_IOERR_WRITE)), ffi::SQLITE_IOERR_FSYNC),
    ] {
        let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
        let db = faults.create(&dir, |_| ());
        let path = db.path().to_owned();
        insert(&db, 10).await.unwrap();
        let fault = match fence {
            None => sync(),
            Some(fence) => {
                let (fence, injected) = (Mutex::new(Some(fence)), faults.clone());
                sync().once().then(move || injected.inject(fence.lock().unwrap().take().unwrap()))
            }
        };
        for error in fail_a_group(&db, &faults, 1, fault).await {
            is_unknown(&error.unwrap(), code);
        }
        assert_eq!(faults.failed(), 2, "COMMIT and the fence");
        assert_eq!(db.stats().commands.unknown, 4);
        is_stopped(&db, &faults, &[0, 10]).await;
        // What was acknowledged is there; the others may be, but all of them or none.
        let found = stored(&path);
        assert!(found == [0, 10] || found == [0, 10, 1, 2, 3, 4], "{found:?}");
        // Opened anew, it can be written again.
        let db = faults.open(&path, |_| ());
        insert(&db, 30).await.unwrap();
        assert!(!close(&db).stopped);
    }
}

#[tokio::test]
async fn after_groups_that_were_not_synced_a_failed_sync_stops_writing_at_once() {
    for empty_groups in [0, 2] {
        let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
        let db = faults.create(&dir, |_| ());
        insert(&db, 10).await.unwrap();
        insert(&db, 11).durability(Durability::Normal).await.unwrap();
        for _ in 0..empty_groups {
            // It asks for a sync and has nothing to sync, so that SQLite makes none.
            faults.forget();
            assert_eq!(db.execute("DELETE FROM t WHERE x = 99", ()).await.unwrap(), 0);
            assert_eq!(faults.count(Op::Sync, Of::Wal), 0);
        }
        let fault = Fault::new(Op::Sync, Of::Wal, ffi::SQLITE_IOERR_FSYNC).once();
        for error in fail_a_group(&db, &faults, 1, fault).await {
            is_unknown(&error.unwrap(), ffi::SQLITE_IOERR_FSYNC);
        }
        let after = faults.after_failure();
        let wrote = after.iter().any(|call| matches!(call.op, Op::Write | Op::Sync | Op::Truncate));
        assert!(!wrote, "a fence would prove nothing: {after:?}");
        is_stopped(&db, &faults, &[0, 10, 11]).await;
    }
}

#[tokio::test]
async fn a_sync_that_succeeds_ends_the_doubt_about_groups_before_it() {
    let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
    let db = faults.create(&dir, |_| ());
    insert(&db, 10).durability(Durability::Normal).await.unwrap();
    insert(&db, 11).await.unwrap();
    let fault = Fault::new(Op::Sync, Of::Wal, ffi::SQLITE_IOERR_FSYNC).once();
    for error in fail_a_group(&db, &faults, 1, fault).await {
        is_lost(&error.unwrap(), ffi::SQLITE_IOERR_FSYNC);
    }
    insert(&db, 12).await.unwrap();
    assert!(!close(&db).stopped);
}

#[tokio::test]
async fn after_groups_that_were_not_synced_a_failed_write_is_still_settled_by_a_fence() {
    for code in [ffi::SQLITE_IOERR_WRITE, ffi::SQLITE_FULL] {
        let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
        let db = faults.create(&dir, |_| ());
        let path = db.path().to_owned();
        insert(&db, 10).durability(Durability::Normal).await.unwrap();
        let fault = Fault::new(Op::Write, Of::Wal, code).once();
        for error in fail_a_group(&db, &faults, 1, fault).await {
            is_lost(&error.unwrap(), code);
        }
        assert!(faults.after_failure().iter().any(|call| call.op == Op::Sync), "the fence is synced");
        insert(&db, 11).await.unwrap();
        assert!(!close(&db).stopped);
        assert_eq!(stored(&path), [0, 10, 11]);
    }
}

// A page that was written before the COMMIT, since the cache had no room, and changed again: its frame is written over,
// and COMMIT reads all frames since then to compute their checksums anew.
#[tokio::test]
async fn after_groups_that_were_not_synced_a_commit_that_can_not_read_is_still_settled_by_a_fence() {
    for code in [ffi::SQLITE_IOERR_READ, ffi::SQLITE_IOERR_SHORT_READ] {
        let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
        let db = faults.create(&dir, |config| config.cache_bytes = 40_960);
        let path = db.path().to_owned();
        db.execute("CREATE TABLE big (x)", ()).await.unwrap();
        insert(&db, 10).durability(Durability::Normal).await.unwrap();
        let injected = faults.clone();
        let large = db.write("large", move |tx| {
            tx.execute_batch(
                "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 100)
                 INSERT INTO big SELECT randomblob(3000) FROM n;
                 UPDATE big SET x = zeroblob(3000)",
            )?;
            injected.forget();
            injected.inject(Fault::new(Op::Read, Of::Wal, code).by(By::Writer).once());
            Ok(())
        });
        is_lost(&soon(large).await.unwrap_err(), code);
        assert_eq!(faults.failed(), 1);
        assert!(faults.after_failure().iter().any(|call| call.op == Op::Sync), "the fence is synced");
        insert(&db, 11).await.unwrap();
        assert!(!close(&db).stopped);
        assert_eq!(stored(&path), [0, 10, 11]);
    }
}

// Writer                                  Disk
// COMMIT of a NORMAL group                frames written, not synced
// COMMIT of a FULL group: its sync fails  the frames are dropped, and count as written
// stops; is opened anew                   the frames can still be read
// COMMIT of a FULL group                  its frames are synced: a crash now must not lose them
#[tokio::test]
async fn what_a_failed_sync_has_dropped_is_written_again_before_anything_rests_on_it() {
    let (dir, faults) = (in_memory_dir(), Faults::register());
    let db = faults.create(&dir, |_| ());
    let path = db.path().to_owned();
    close(&db);
    let before = Image::read(&path);
    faults.record();
    let db = faults.open(&path, |_| ());
    insert(&db, 1).durability(Durability::Normal).await.unwrap();
    faults.inject(Fault::new(Op::Sync, Of::Wal, ffi::SQLITE_IOERR_FSYNC).by(By::Writer).once());
    is_unknown(&insert(&db, 2).await.unwrap_err(), ffi::SQLITE_IOERR_FSYNC);
    assert!(close(&db).stopped);

    let db = faults.open(&path, |_| ());
    insert(&db, 3).await.unwrap();
    let answered = faults.recorded();
    close(&db);
    let record = faults.take_record();
    for seed in 0..100 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut disk = Disk::new(before.clone());
        let lost_at = rng.usize(answered..=record.len());
        record[..lost_at].iter().for_each(|recorded| disk.apply(recorded, &mut rng));
        let image = dir.path().join("image.db");
        disk.power_loss(&mut rng).write(&image);
        let stored = stored(&image);
        assert!(stored.contains(&3), "seed {seed}, after {lost_at} changes: {stored:?}");
    }
}
