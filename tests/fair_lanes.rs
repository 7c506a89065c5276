//! Fair Lanes: interactive goes first, and bulk and maintenance do not starve.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::time::Duration;

use common::{Add, Gate, TestDb, add, committed, insert, soon};
use solewriter::Lane;

#[tokio::test]
async fn interactive_commands_overtake_bulk_commands_that_wait() {
    let db = TestDb::open().await;
    let gate = Gate::close(&db).await;
    let mut answers = Vec::new();
    // Bulk has waited for no other lane yet, so it is owed nothing.
    for (x, lane) in [(1, Lane::Bulk), (2, Lane::Bulk), (3, Lane::Interactive), (4, Lane::Interactive)] {
        answers.push(committed(insert(&db, x).lane(lane)).await);
    }
    gate.open().await;
    let mut groups = Vec::new();
    for answer in answers {
        groups.push(soon(answer).await.unwrap().token);
    }
    let xs = db.xs().await;
    assert_eq!(xs[..2], [3, 4], "{xs:?}");
    assert_eq!(groups[2], groups[3]);
}

#[tokio::test]
async fn a_group_that_somebody_waits_for_takes_in_no_bulk_command_beyond_its_share() {
    let db = TestDb::open().await;
    // So that the writer knows how long one takes, which is more than bulk is owed below.
    let slow = |x| {
        db.write("slow", move |tx| {
            std::thread::sleep(Duration::from_millis(50));
            add(tx, x)
        })
        .lane(Lane::Bulk)
    };
    slow(0).await.unwrap();
    let gate = Gate::close(&db).await;
    let bulk = committed(slow(1)).await;
    let interactive = committed(insert(&db, 2)).await;
    gate.open().await;
    let (bulk, interactive) = (soon(bulk).await.unwrap(), soon(interactive).await.unwrap());
    assert!(interactive.token < bulk.token);
    assert_eq!(db.xs().await, [0, 2, 1]);
}

/// Lets commands of `lane` wait behind thousands of interactive ones: they finish long before these are through.
async fn does_not_starve(lane: Lane) {
    let db = TestDb::open_with(|config| config.group_hold_max = Duration::from_millis(5)).await;
    let gate = Gate::close(&db).await;
    let (mut flood, mut others) = (Vec::new(), Vec::new());
    for _ in 0..3_000 {
        let busy = db.write("flood", |_| {
            std::thread::sleep(Duration::from_micros(50));
            Ok(())
        });
        flood.push(committed(busy).await);
    }
    for x in 0..10 {
        others.push(committed(db.send(Add { x }).lane(lane)).await);
    }
    gate.open().await;
    let last_of_flood = soon(flood.pop().unwrap()).await.unwrap().token;
    for other in others {
        assert!(soon(other).await.unwrap().token < last_of_flood, "{lane} waited for all of the flood");
    }
    for busy in flood {
        soon(busy).await.unwrap();
    }
}

#[tokio::test]
async fn bulk_does_not_starve_under_an_interactive_flood() {
    does_not_starve(Lane::Bulk).await;
}

#[tokio::test]
async fn maintenance_does_not_starve_under_an_interactive_flood() {
    does_not_starve(Lane::Maintenance).await;
}

// The COMMITs of groups of the maintenance lane were charged to the bulk lane, whose debts stay.
#[tokio::test]
async fn bulk_does_not_pay_for_what_maintenance_has_committed() {
    let db = TestDb::open_with(|config| config.group_commands_max = 1).await;
    let nothing = |lane| db.write("nothing", |tx| tx.execute("UPDATE t SET x = x + 1", ())).lane(lane);
    insert(&db, 1).await.unwrap();
    let gate = Gate::close(&db).await;
    let mut answers = Vec::new();
    for _ in 0..3_000 {
        answers.push(committed(nothing(Lane::Maintenance)).await);
    }
    gate.open().await;
    for answer in answers {
        soon(answer).await.unwrap();
    }
    let gate = Gate::close(&db).await;
    let mut flood = Vec::new();
    for _ in 0..600 {
        flood.push(committed(nothing(Lane::Interactive)).await);
    }
    let bulk = committed(nothing(Lane::Bulk)).await;
    gate.open().await;
    let last_of_flood = soon(flood.pop().unwrap()).await.unwrap().token;
    assert!(soon(bulk).await.unwrap().token < last_of_flood, "bulk waited for all of the flood");
}
