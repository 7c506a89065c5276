//! No Re-entrancy Deadlock: a command that calls its own service gets an error, not a hang.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::{Gate, HANG, TestDb, add, committed, insert, soon};
use solewriter::{Lane, NotStarted, Outcome, PerLane, Phase, Retry, WriteError};

#[tokio::test]
async fn a_command_that_writes_through_its_own_service_is_refused() {
    let db = TestDb::open().await;
    let own = db.blocking();
    let refused = soon(db.write("outer", move |tx| {
        add(tx, 1)?;
        Ok([
            own.execute("DELETE FROM t", ()).wait(),
            own.execute("DELETE FROM t", ()).try_submit().map(|_| 0),
        ])
    }))
    .await
    .unwrap();
    for refused in refused.map(Result::unwrap_err) {
        assert!(matches!(refused, WriteError::NotStarted(NotStarted::Reentrant)), "{refused:?}");
        assert_eq!(refused.outcome(), Outcome::NotStarted);
    }
    assert_eq!(db.xs().await, [1], "the outer command is none the worse");
}

#[tokio::test]
async fn a_command_may_read_through_its_own_service_and_sees_what_is_committed() {
    let db = TestDb::open().await;
    let own = db.blocking();
    let seen = soon(db.write("outer", move |tx| {
        add(tx, 1)?;
        let rows =
            own.read("count", |tx| tx.query_row("SELECT count(*) FROM t", (), |row| row.get::<_, i64>(0)));
        Ok(rows.wait().unwrap())
    }))
    .await
    .unwrap();
    assert_eq!(seen, 0);
}

#[tokio::test]
async fn a_command_may_write_to_another_database() {
    let (db, other) = (TestDb::open().await, TestDb::open().await);
    let elsewhere = other.blocking();
    soon(db.write("outer", move |tx| {
        elsewhere.write("inner", |tx| add(tx, 2)).wait().unwrap();
        add(tx, 1)
    }))
    .await
    .unwrap();
    assert_eq!((db.xs().await, other.xs().await), (vec![1], vec![2]));
}

const WAIT_MAX: Duration = Duration::from_millis(200);

/// What is taken back late is looked for at intervals, on a machine that others use too.
const SLACK: Duration = Duration::from_secs(2);

async fn impatient() -> TestDb {
    TestDb::open_with(|config| {
        config.command_wait_max = WAIT_MAX;
        // It has nothing to do with this.
        config.hold_warning = 10 * HANG;
    })
    .await
}

/// Fails unless the command was taken back in time; returns who held the writer.
fn holder_of(error: &WriteError) -> Phase {
    let WriteError::NotStarted(NotStarted::WaitedTooLong { waited, holder }) = error else {
        panic!("{error:?}")
    };
    assert!((WAIT_MAX..WAIT_MAX + SLACK).contains(waited), "{waited:?}");
    assert_eq!((error.outcome(), error.retry()), (Outcome::NotStarted, Retry::Later));
    holder.clone()
}

fn assert_held_by(error: &WriteError, by: &str) {
    let holder = holder_of(error);
    assert!(matches!(&holder, Phase::Command { label, .. } if **label == *by), "{holder:?}");
    assert!(error.to_string().contains(by), "{error}");
}

// Writer                              Another thread
// "outer" runs, waits for the thread
//                                     "inner" is accepted, waits for the writer
//                                     WaitedTooLong: outer holds it
// outer goes on and commits
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_waits_for_another_thread_which_waits_for_the_writer_ends_in_an_error() {
    let db = impatient().await;
    let (asked, asks) = mpsc::channel::<mpsc::Sender<WriteError>>();
    let blocking = db.blocking();
    let thread = std::thread::spawn(move || {
        let answer = asks.recv().unwrap();
        answer.send(blocking.write("inner", |tx| add(tx, 10)).wait().unwrap_err()).unwrap();
    });
    let began = Instant::now();
    let outer = db.write("outer", move |tx| {
        add(tx, 1)?;
        let (answer, answered) = mpsc::channel();
        asked.send(answer).unwrap();
        let inner = answered.recv_timeout(HANG).unwrap();
        add(tx, 2)?;
        Ok(inner)
    });
    let inner = soon(outer).await.unwrap();
    println!(
        "reentrancy: indirect, blocking: command_wait_max {WAIT_MAX:?}, ended after {:?}",
        began.elapsed()
    );
    assert_held_by(&inner, "outer");
    thread.join().unwrap();

    // The same through a task of the runtime.
    let handle = (*db).clone();
    let runtime = tokio::runtime::Handle::current();
    let began = Instant::now();
    let outer = db.write("async outer", move |tx| {
        add(tx, 3)?;
        let (answer, answered) = mpsc::channel();
        runtime.spawn(async move {
            let inner = handle.write("inner", |tx| add(tx, 30)).await;
            answer.send(inner.unwrap_err()).unwrap();
        });
        let inner = answered.recv_timeout(HANG).unwrap();
        add(tx, 4)?;
        Ok(inner)
    });
    let inner = soon(outer).await.unwrap();
    println!("reentrancy: indirect, async: command_wait_max {WAIT_MAX:?}, ended after {:?}", began.elapsed());
    assert_held_by(&inner, "async outer");
    assert_eq!(db.xs().await, [1, 2, 3, 4], "both outer commands are whole, and no inner one ran");
    let counts = db.stats().commands;
    assert_eq!((counts.not_started, counts.refused, counts.withdrawn), (2, 0, 0));
    assert_eq!(db.stats().queue_depth.interactive, 0);
}

// "inner" waits in the bulk lane already, behind the gate, when "outer" overtakes it and waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_waited_already_when_its_holder_started_is_taken_back_too() {
    let db = impatient().await;
    let gate = Gate::close(&db).await;
    let inner = db.write("inner", |tx| add(tx, 10)).lane(Lane::Bulk).submit().await.unwrap();
    let (answer, answered) = mpsc::channel();
    tokio::spawn(async move { answer.send(inner.await).unwrap() });
    let outer = db.write("outer", move |tx| {
        add(tx, 1)?;
        let inner = answered.recv_timeout(HANG).unwrap();
        add(tx, 2)?;
        Ok(inner)
    });
    let outer = outer.submit().await.unwrap();
    gate.open().await;
    let inner = soon(outer).await.unwrap().unwrap_err();
    assert_held_by(&inner, "outer");
    assert_eq!(db.xs().await, [1, 2]);
    assert_eq!(db.stats().queue_depth, PerLane::default());
}

// The holder is at work for long, and waits for nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_has_waited_too_long_is_taken_back() {
    let db = impatient().await;
    let gate = Gate::close(&db).await;
    let asked = Instant::now();
    let late = committed(insert(&db, 1)).await;
    let patient = committed(insert(&db, 2).deadline(HANG)).await;
    let error = soon(late).await.unwrap_err();
    println!("reentrancy: behind a gate: command_wait_max {WAIT_MAX:?}, ended after {:?}", asked.elapsed());
    assert!(matches!(holder_of(&error), Phase::Command { label, .. } if label.starts_with("gate-")));
    let fresh = committed(insert(&db, 3)).await;
    assert!(gate.holds(&db), "what holds the writer is left alone");
    assert_eq!(db.stats().queue_depth.interactive, 2);
    gate.open().await;
    soon(patient).await.unwrap();
    soon(fresh).await.unwrap();
    assert_eq!(db.xs().await, [2, 3], "a deadline of its own takes the place of the limit");
}

// One short command after the other: nobody holds the writer for long, but there are too many.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_queue_that_is_merely_long_the_late_are_taken_back_and_the_others_run() {
    const COMMANDS: i64 = 60;
    let db = TestDb::open_with(|config| {
        config.command_wait_max = WAIT_MAX;
        config.group_commands_max = 1;
    })
    .await;
    let mut answers = Vec::new();
    for x in 0..COMMANDS {
        let short = db.write("short", move |tx| {
            // Its length is what matters here.
            std::thread::sleep(Duration::from_millis(10));
            add(tx, x)
        });
        answers.push(committed(short).await);
    }
    let (mut ran, mut late) = (Vec::new(), 0);
    for (x, answer) in (0..).zip(answers) {
        match soon(answer).await {
            Ok(_) => ran.push(x),
            Err(error) => {
                let holder = holder_of(&error);
                let names_a_short_one = match &holder {
                    Phase::Command { label, .. } => **label == *"short",
                    Phase::Begin | Phase::Commit => true,
                    _ => false,
                };
                assert!(names_a_short_one, "{holder:?}");
                late += 1;
            }
        }
    }
    println!("reentrancy: long queue: {} of {COMMANDS} ran, {late} were taken back", ran.len());
    assert!(ran.len() >= 5 && late >= 5);
    assert_eq!(db.xs().await, ran, "those that ran did so in order");
    let stats = db.stats();
    assert_eq!(stats.commands.not_started, late as u64);
    assert_eq!(stats.queue_depth.interactive, 0);
}
