//! What is told of a service: whether it is well, and if not, why and what to do.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

mod common;

use std::time::Duration;

use common::{Gate, HANG, TestDb, add, committed, insert, soon, until};
use futures_util::stream;
use rusqlite::ffi;
use solewriter::{
    BreakerState, Config, Database, Drain, Health, HealthReason, HealthState, Lane, Phase, Trouble,
};

const TINY: Duration = Duration::from_nanos(1);

/// The reason of this kind, if the service gives it.
fn reason(health: &Health, kind: Trouble) -> Option<&HealthReason> {
    health.reasons.iter().find(|reason| reason.kind == kind)
}

/// Waits until the service gives a reason of this kind.
async fn troubled(db: &Database, kind: Trouble) -> (Health, HealthReason) {
    until(&format!("{kind:?}"), || reason(&db.health(), kind).is_some()).await;
    let health = db.health();
    let reason = reason(&health, kind).expect("it stays").clone();
    assert!(!reason.message.is_empty() && !reason.action.is_empty());
    assert!(health.state >= reason.state && health.state > HealthState::Healthy);
    (health, reason)
}

async fn is_well(db: &Database) {
    until("it is well again", || db.health().state == HealthState::Healthy).await;
    assert!(db.health().reasons.is_empty());
}

#[tokio::test]
async fn a_service_that_works_is_healthy_and_has_no_reasons() {
    let db = TestDb::open().await;
    insert(&db, 1).await.unwrap();
    let health = db.health();
    assert_eq!((health.state, health.reasons.len()), (HealthState::Healthy, 0));
    assert_eq!(health.breaker, BreakerState::Closed);
    assert!(health.holder.is_none() && health.oldest_waiter.is_none() && health.oldest_read.is_none());
    assert!(health.wal_bytes > 0 && health.wal_limit_bytes == Config::default().wal_limit_bytes);
    assert_eq!((health.readers_in_use, health.readers_max), (0, 15));

    let json = serde_json::to_value(&health).unwrap();
    assert_eq!(json["state"], "healthy");
    assert_eq!(json["breaker"]["state"], "closed");
    assert_eq!(json["imports"]["status"], "healthy");
    assert_eq!(json["imports"]["avg_import_duration_seconds"], 0.0);
    assert_eq!(json["queue_depth"]["bulk"], 0);
}

#[tokio::test]
async fn who_holds_the_writer_for_long_is_named_and_what_waits_behind_it() {
    let db = TestDb::open_with(|config| {
        config.hold_warning = Duration::from_millis(1);
        config.health.wait_degraded = TINY;
    })
    .await;
    let gate = Gate::close(&db).await;
    let waiting = committed(insert(&db, 1)).await;
    let (health, reason) = troubled(&db, Trouble::LongHold).await;
    assert_eq!((reason.state, health.state), (HealthState::Degraded, HealthState::Degraded));
    assert!(reason.message.contains("gate-"), "{}", reason.message);
    assert!(matches!(health.holder.unwrap().phase, Phase::Command { .. }));
    let (health, reason) = troubled(&db, Trouble::LongWait).await;
    assert!(reason.message.contains("`execute`"), "{}", reason.message);
    let waiter = health.oldest_waiter.unwrap();
    assert_eq!((&*waiter.label, waiter.lane), ("execute", Lane::Interactive));
    gate.open().await;
    soon(waiting).await.unwrap();
    is_well(&db).await;
}

#[tokio::test]
async fn a_hold_without_end_is_failing_and_the_worst_comes_first() {
    let db = TestDb::open_with(|config| {
        config.hold_warning = Duration::from_millis(1);
        config.health.hold_failing = Duration::from_millis(2);
        config.queue_commands_max = 5;
    })
    .await;
    let gate = Gate::close(&db).await;
    let mut waiting = Vec::new();
    for x in 0..4 {
        waiting.push(committed(insert(&db, x)).await);
    }
    let (health, reason) = troubled(&db, Trouble::QueueFilling).await;
    assert_eq!(reason.message, "4 of 5 commands wait in the interactive lane");
    assert_eq!((health.queue_depth.interactive, health.queue_capacity), (4, 5));
    until("it is failing", || db.health().state == HealthState::Failing).await;
    let kinds: Vec<_> = db.health().reasons.iter().map(|reason| reason.kind).collect();
    assert_eq!(kinds, [Trouble::LongHold, Trouble::QueueFilling]);
    gate.open().await;
    for answer in waiting {
        soon(answer).await.unwrap();
    }
    is_well(&db).await;
}

#[tokio::test]
async fn another_program_that_holds_the_lock_is_told_apart_and_its_time_is_counted() {
    let db = TestDb::open_with(|config| config.hold_warning = Duration::from_millis(1)).await;
    let other = db.plain();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let waiting = committed(insert(&db, 1)).await;
    let (health, reason) = troubled(&db, Trouble::ForeignLock).await;
    assert_eq!(reason.state, HealthState::Degraded);
    assert!(health.foreign_wait > Duration::ZERO, "it is counted while it lasts");
    other.execute_batch("INSERT INTO t (x) VALUES (7); COMMIT").unwrap();
    soon(waiting).await.unwrap();
    is_well(&db).await;
    let health = db.health();
    assert!(health.foreign_wait >= Duration::from_millis(1) && health.foreign_commits == 1, "{health:?}");
    assert_eq!(db.stats().foreign_wait, health.foreign_wait);
}

#[tokio::test]
async fn a_snapshot_that_pins_a_large_wal_is_named() {
    let db = TestDb::open_with(|config| {
        (config.wal_target_bytes, config.wal_limit_bytes) = (1 << 16, 1 << 20);
        config.health.read_degraded = TINY;
        config.health.wal_degraded_percent = 20;
        (config.readers, config.readers_overflow) = (1, 0);
        // The writer waits for whoever pins a WAL that is above its target: not for long.
        config.busy_timeout = Duration::from_millis(10);
    })
    .await;
    let snapshot = db.snapshot("report").await.unwrap();
    let (health, reason) = troubled(&db, Trouble::ReadersBusy).await;
    assert_eq!(reason.message, "all 1 readers are in use");
    assert_eq!(&*health.oldest_read.unwrap().label, "report");
    let mut x = 0;
    while db.health().wal_bytes < 300_000 {
        insert(&db, x).await.unwrap();
        x += 1;
    }
    let (_, reason) = troubled(&db, Trouble::WalPinned).await;
    assert!(reason.message.starts_with("reader `report` pins the WAL since "), "{}", reason.message);
    troubled(&db, Trouble::WalLarge).await;
    drop(snapshot);
    until("the WAL begins anew", || {
        db.blocking().execute("UPDATE t SET x = -x", ()).wait().unwrap();
        db.health().state == HealthState::Healthy
    })
    .await;
}

#[tokio::test]
async fn a_full_wal_that_another_program_pins_is_failing_while_somebody_waits() {
    let db = TestDb::open_with(|config| {
        (config.wal_target_bytes, config.wal_limit_bytes) = (1 << 16, 1 << 17);
    })
    .await;
    let other = db.plain();
    other.execute_batch("BEGIN; SELECT * FROM t").unwrap();
    let (mut x, mut waiting) = (0, Vec::new());
    while db.health().state != HealthState::Failing {
        waiting.push(committed(insert(&db, x)).await);
        x += 1;
        tokio::task::yield_now().await;
    }
    let (_, reason) = troubled(&db, Trouble::WalLarge).await;
    assert_eq!(reason.state, HealthState::Failing);
    other.execute_batch("COMMIT").unwrap();
    for answer in waiting {
        soon(answer).await.unwrap();
    }
    until("nobody waits", || db.health().state < HealthState::Failing).await;
}

#[tokio::test]
async fn who_was_taken_back_waits_no_longer() {
    let db = TestDb::open().await;
    let gate = Gate::close(&db).await;
    insert(&db, 1).deadline(Duration::from_millis(1)).await.unwrap_err();
    assert!(db.health().oldest_waiter.is_none());
    let waiting = committed(db.write("waits", |_| Ok(()))).await;
    assert_eq!(&*db.health().oldest_waiter.unwrap().label, "waits");
    gate.open().await;
    soon(waiting).await.unwrap();
}

#[tokio::test]
async fn an_import_that_loses_its_batches_is_named() {
    let db = TestDb::open_with(|config| {
        config.busy_timeout = TINY;
        config.health.import_lost_batches_degraded = 1;
    })
    .await;
    let import = db.import("numbers", stream::iter(0..3_i64)).id("stuck").lost_batches_max(1_000);
    let run = import.run(|tx, x| add(tx, *x));
    let other = db.plain();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let others = async {
        let (_, reason) = troubled(&db, Trouble::ImportStuck).await;
        assert!(reason.message.starts_with("import `stuck` has lost "), "{}", reason.message);
        other.execute_batch("COMMIT").unwrap();
    };
    let (report, ()) = soon(async { tokio::join!(run, others) }).await;
    assert_eq!(report.unwrap().accepted, 3);
    is_well(&db).await;
}

#[tokio::test]
async fn a_closed_service_is_failing() {
    let db = TestDb::open().await;
    db.shutdown(Drain::within(HANG)).await.unwrap();
    let (health, reason) = troubled(&db, Trouble::Closed).await;
    assert_eq!((health.state, reason.state), (HealthState::Failing, HealthState::Failing));
}

#[cfg(unix)]
mod faults {
    use super::*;
    use common::faults::{Fault, Faults, Of, Op};

    #[tokio::test]
    async fn refused_writes_are_failing_until_a_probe_succeeds() {
        let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
        let db = faults.create(&dir, |config| config.breaker_pause = Duration::from_millis(5));
        faults.inject(Fault::new(Op::Write, Of::Wal, ffi::SQLITE_FULL));
        insert(&db, 1).await.unwrap_err();
        let (health, reason) = troubled(&db, Trouble::RefusingWrites).await;
        assert_eq!(health.state, HealthState::Failing);
        assert!(matches!(&health.breaker, BreakerState::Open { cause, .. } if cause.contains("full")));
        assert!(reason.message.contains("full"), "{}", reason.message);
        faults.heal();
        is_well(&db).await;
        assert_eq!(db.health().breaker, BreakerState::Closed);
        insert(&db, 2).await.unwrap();
    }

    #[tokio::test]
    async fn a_service_that_has_stopped_writing_is_failing_for_good() {
        let (dir, faults) = (tempfile::tempdir().unwrap(), Faults::register());
        let db = faults.create(&dir, |_| ());
        faults.inject(Fault::new(Op::Sync, Of::Wal, ffi::SQLITE_IOERR_FSYNC));
        insert(&db, 1).await.unwrap_err();
        let (health, _) = troubled(&db, Trouble::Stopped).await;
        assert_eq!(health.state, HealthState::Failing);
        assert!(matches!(health.breaker, BreakerState::Stopped { .. }));
        faults.heal();
        let failed = db.recent_failures().pop().unwrap();
        assert_eq!(failed.outcome, solewriter::Outcome::Unknown);
        assert_eq!(failed.extended_code, Some(ffi::SQLITE_IOERR_FSYNC));
    }
}
