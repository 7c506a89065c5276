//! Bounded Everything and Honest Outcome, in numbers: room that is given back is free again, and every accepted
//! command is counted exactly once.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::time::Duration;

use common::{Answer, Gate, HANG, TestDb, add, committed, insert, soon, until};
use solewriter::{Drain, Lane, NotStarted, OnDrop, RolledBack, WriteError};

const ROOM: usize = 40;
const WAIT_MAX: Duration = Duration::from_millis(200);
const LANES: [Lane; 3] = [Lane::Interactive, Lane::Bulk, Lane::Maintenance];

async fn impatient() -> TestDb {
    TestDb::open_with(|config| {
        config.queue_commands_max = ROOM;
        config.command_wait_max = WAIT_MAX;
    })
    .await
}

/// What the callers have seen.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    committed: u64,
    failed: u64,
    /// Not started, or taken back: who was first decides which.
    never_ran: u64,
    refused: u64,
}

impl Seen {
    fn accepted(&self) -> u64 {
        self.committed + self.failed + self.never_ran
    }

    fn add<T>(&mut self, answer: Result<T, WriteError>) {
        match answer {
            Ok(_) => self.committed += 1,
            Err(WriteError::Command(_) | WriteError::RolledBack(RolledBack::Panicked(_))) => self.failed += 1,
            Err(WriteError::NotStarted(_)) => self.never_ran += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
}

/// Fails unless the service has counted what the callers have seen, and nothing twice.
fn assert_counted(db: &TestDb, seen: &Seen, before: u64) {
    let counts = db.stats().commands;
    let counted = Seen {
        committed: counts.committed - before,
        failed: counts.failed,
        never_ran: counts.not_started + counts.withdrawn,
        refused: counts.refused,
    };
    assert_eq!(counted, *seen, "{counts:?}");
    assert_eq!((counts.rolled_back, counts.unknown), (0, 0), "{counts:?}");
    let depth = db.stats().queue_depth;
    assert_eq!(LANES.map(|lane| depth[lane]), [0; 3], "no room is lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn room_that_is_given_back_is_free_again_and_every_command_is_counted_once() {
    let db = impatient().await;
    let (mut seen, mut x) = (Seen::default(), 0);
    let mut next = || {
        x += 1;
        x
    };
    // The gate, and the schema.
    let before = db.stats().commands.committed + 1;
    let gate = Gate::close(&db).await;
    let (mut late, mut patient): (Vec<Answer>, Vec<Answer>) = Default::default();
    for lane in LANES {
        for _ in 0..5 {
            let clash = next();
            for _ in 0..2 {
                patient.push(committed(insert(&db, clash).lane(lane).deadline(HANG)).await);
            }
            let panics = db.write("panics", |_| -> rusqlite::Result<usize> { panic!("boom") });
            patient.push(committed(panics.lane(lane).deadline(HANG)).await);
            let withdrawn = insert(&db, next()).lane(lane).on_drop(OnDrop::Withdraw);
            drop(withdrawn.submit().await.unwrap());
            seen.never_ran += 1;
            let expires = insert(&db, next()).lane(lane).deadline(Duration::from_millis(20));
            late.push(committed(expires).await);
            late.push(committed(insert(&db, next()).lane(lane)).await);
        }
        while let Ok(receipt) = insert(&db, next()).lane(lane).try_submit() {
            late.push(Box::pin(receipt.committed()));
        }
        seen.refused += 1;
        assert_eq!(db.stats().queue_depth[lane], ROOM);
    }
    for answer in late {
        let answer = soon(answer).await;
        let is_late = matches!(
            answer,
            Err(WriteError::NotStarted(
                NotStarted::WaitedTooLong { .. } | NotStarted::DeadlineExceeded { .. }
            ))
        );
        assert!(is_late, "{answer:?}");
        seen.add(answer);
    }
    assert!(gate.holds(&db), "all of this while the writer was busy");
    for lane in LANES {
        until("the room is free again", || db.stats().queue_depth[lane] == 15).await;
        for _ in 15..ROOM {
            let more = insert(&db, next()).lane(lane).deadline(HANG).try_submit().unwrap();
            patient.push(Box::pin(more.committed()));
        }
        let full = insert(&db, next()).lane(lane).try_submit().unwrap_err();
        assert!(matches!(full, WriteError::NotStarted(NotStarted::QueueFull { .. })), "{full:?}");
        seen.refused += 1;
    }
    gate.open().await;
    for answer in patient {
        seen.add(soon(answer).await);
    }
    assert_counted(&db, &seen, before);
    assert_eq!((seen.committed, seen.failed), (3 * (5 + 25), 3 * 10));
    println!("fair_waiting: {} accepted, {seen:?}", seen.accepted());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_close_leaves_behind_is_counted_once_too() {
    let db = impatient().await;
    let (mut seen, before) = (Seen::default(), db.stats().commands.committed + 1);
    let gate = Gate::close(&db).await;
    let mut answers = Vec::new();
    for (x, lane) in (0..).zip(LANES.repeat(4)) {
        drop(insert(&db, 100 + x).lane(lane).on_drop(OnDrop::Withdraw).submit().await.unwrap());
        seen.never_ran += 1;
        answers.push(committed(insert(&db, x).lane(lane).deadline(HANG)).await);
    }
    let closing = db.shutdown(Drain::within(Duration::from_millis(20)));
    let (closed, ()) = tokio::join!(closing, async {
        tokio::time::sleep(Duration::from_millis(40)).await;
        gate.open().await;
    });
    let report = closed.unwrap();
    for answer in answers {
        let answer = soon(answer).await;
        assert!(matches!(answer, Err(WriteError::NotStarted(NotStarted::Closed))), "{answer:?}");
        seen.add(answer);
    }
    assert!(matches!(
        db.write("late", |tx| add(tx, 1)).await,
        Err(WriteError::NotStarted(NotStarted::Closed))
    ));
    seen.refused += 1;
    let counts = db.stats().commands;
    let never_ran = counts.not_started + counts.withdrawn;
    assert_eq!((never_ran, counts.refused, counts.committed), (seen.never_ran, seen.refused, before));
    println!("fair_waiting: closed with {} waiting: {report:?}, {counts:?}", seen.never_ran);
}
