//! Other programs write the same file: their locks are waited for within limits, their commits and their schema
//! are seen, and they are not starved.
#![cfg(unix)]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use common::foreign::{self, Foreign};
use common::proof::{Proof, Tally, Wrong};
use common::{
    Add, Answer, HANG, Kind, TestDb, add, committed, config_with, count, insert, plain, soon, until,
};
use fastrand::Rng;
use rusqlite::{Connection, ffi};
#[cfg(feature = "sabotage")]
use solewriter::Sabotage;
use solewriter::{Builder, Database, Drain, NotStarted, OnDrop, Outcome, Phase, Retry, WriteError};

#[test]
fn a_process_of_its_own() {
    foreign::serve();
}

/// A service whose write lock another process holds.
async fn locked_out(busy_timeout: Duration) -> (TestDb, Foreign) {
    let db = TestDb::open_with(|config| config.busy_timeout = busy_timeout).await;
    let mut foreign = Foreign::start(db.path());
    foreign.run("BEGIN IMMEDIATE");
    (db, foreign)
}

/// Waits until the writer has met the lock.
async fn waits_for_the_lock(db: &Database) {
    until("the writer waits for the lock", || db.stats().foreign_waits > 0).await;
}

fn is_deadline(error: &WriteError) -> bool {
    matches!(error, WriteError::NotStarted(NotStarted::DeadlineExceeded { .. }))
}

/// Polls a future on a thread that has no Tokio runtime.
fn poll_without_runtime<F: IntoFuture>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    assert!(tokio::runtime::Handle::try_current().is_err());
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future.into_future());
    let began = Instant::now();
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        assert!(began.elapsed() < HANG, "it hangs");
        std::thread::park_timeout(HANG);
    }
}

/// How long each of some expired commands took to be answered.
fn report(how: &str, mut took: Vec<Duration>) {
    took.sort();
    let (median, max) = (took[took.len() / 2], took[took.len() - 1]);
    println!(
        "deadline of 50 ms behind a foreign lock, {how}: median {median:?}, max {max:?}, n={}",
        took.len()
    );
    // Any of them where the machine has nothing else to do.
    assert!(median < Duration::from_millis(100) && max < Duration::from_secs(1), "{how}: {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_behind_a_foreign_lock_is_answered_in_time_however_its_caller_waits() {
    const DEADLINE: Duration = Duration::from_millis(50);
    const RUNS: u64 = 10;
    let (db, mut foreign) = locked_out(HANG).await;
    let mut took = Vec::new();
    for x in 0..RUNS {
        let asked = Instant::now();
        let error = soon(insert(&db, x as i64).deadline(DEADLINE)).await.unwrap_err();
        took.push(asked.elapsed());
        assert!(is_deadline(&error), "{error:?}");
        assert_eq!((error.outcome(), error.retry()), (Outcome::NotStarted, Retry::Later));
    }
    report("async", took);

    type Wait = fn(&Database) -> Result<usize, WriteError>;
    let others: [(&str, Wait); 2] = [
        ("blocking", |db| {
            db.blocking().execute("INSERT INTO t (x) VALUES (1)", ()).deadline(DEADLINE).wait()
        }),
        ("polled without a runtime", |db| poll_without_runtime(insert(db, 1).deadline(DEADLINE))),
    ];
    for (how, wait) in others {
        let handle = (*db).clone();
        let thread = std::thread::spawn(move || {
            let run = |_| {
                let asked = Instant::now();
                let error = wait(&handle).unwrap_err();
                assert!(is_deadline(&error), "{error:?}");
                asked.elapsed()
            };
            (0..RUNS).map(run).collect()
        });
        report(how, thread.join().unwrap());
    }
    foreign.run("COMMIT");
    soon(insert(&db, 100)).await.unwrap();
    assert_eq!(db.xs().await, [100], "what was too late never ran");
    let counts = db.stats().commands;
    assert_eq!(counts.not_started + counts.withdrawn, 3 * RUNS, "{counts:?}");
}

#[tokio::test]
async fn commands_without_a_deadline_wait_for_the_lock_and_then_run_in_order() {
    let (db, mut foreign) = locked_out(HANG).await;
    let mut answers = Vec::new();
    for x in 0..50 {
        answers.push(committed(insert(&db, x)).await);
    }
    waits_for_the_lock(&db).await;
    // Longer than the pauses between two tries.
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert!(matches!(db.holder().unwrap().phase, Phase::Begin), "{:?}", db.holder());
    assert_eq!(db.stats().queue_depth.interactive, 50, "none was taken up");
    assert!(db.xs().await.is_empty(), "reads go on");
    foreign.run("INSERT INTO t (x) VALUES (-1); COMMIT");
    for answer in answers {
        soon(answer).await.unwrap();
    }
    assert_eq!(db.xs().await, (-1..50).collect::<Vec<_>>());
    let stats = db.stats();
    assert_eq!((stats.foreign_waits, stats.foreign_commits), (1, 1));
}

#[tokio::test]
async fn beyond_the_busy_timeout_a_command_never_runs_and_the_next_has_a_time_of_its_own() {
    const PATIENCE: Duration = Duration::from_millis(300);
    let (db, mut foreign) = locked_out(PATIENCE).await;
    for x in 0..2 {
        let asked = Instant::now();
        let busy = soon(insert(&db, x)).await.unwrap_err();
        let took = asked.elapsed();
        assert!(matches!(busy, WriteError::NotStarted(NotStarted::Busy(_))), "{busy:?}");
        assert_eq!((busy.outcome(), busy.retry()), (Outcome::NotStarted, Retry::Later));
        assert_eq!(busy.sqlite_extended_code(), Some(ffi::SQLITE_BUSY));
        println!("busy timeout of {PATIENCE:?}: answered after {took:?}");
        assert!((PATIENCE..PATIENCE + Duration::from_secs(1)).contains(&took), "{took:?}");
    }
    let patient = committed(insert(&db, 2)).await;
    foreign.run("COMMIT");
    soon(patient).await.unwrap();
    assert_eq!(db.xs().await, [2]);
    assert_eq!((db.stats().commands.not_started, db.stats().queue_depth.interactive), (2, 0));
}

// Foreign process                Service
// BEGIN IMMEDIATE
//                                "kept" waits, the writer meets the lock
//                                "withdrawn" is accepted and dropped, "late" expires, "more" is accepted
// COMMIT
//                                kept, more
#[tokio::test]
async fn while_the_writer_waits_for_the_lock_it_accepts_withdraws_and_expires() {
    let (db, mut foreign) = locked_out(HANG).await;
    let kept = committed(insert(&db, 1)).await;
    waits_for_the_lock(&db).await;
    drop(insert(&db, 2).on_drop(OnDrop::Withdraw).submit().await.unwrap());
    let late = soon(insert(&db, 3).deadline(Duration::from_millis(20))).await.unwrap_err();
    assert!(is_deadline(&late), "{late:?}");
    let more: Answer = committed(db.send(Add { x: 4 })).await;
    let own = committed(db.write("own", |tx| add(tx, 5))).await;
    foreign.run("COMMIT");
    for answer in [kept, more, own] {
        soon(answer).await.unwrap();
    }
    assert_eq!(db.xs().await, [1, 4, 5]);
    let stats = db.stats();
    // The late one is taken back by its caller or by the writer, whoever looks first.
    let counts = stats.commands;
    assert!(counts.withdrawn >= 1 && counts.withdrawn + counts.not_started == 2, "{counts:?}");
    assert_eq!(stats.queue_depth.interactive, 0);
}

#[tokio::test]
async fn while_the_writer_waits_for_the_lock_the_service_closes_within_its_limit() {
    const LIMIT: Duration = Duration::from_millis(200);
    let (db, mut foreign) = locked_out(HANG).await;
    let mut answers = Vec::new();
    for x in 0..3 {
        answers.push(committed(insert(&db, x)).await);
    }
    waits_for_the_lock(&db).await;
    let asked = Instant::now();
    let report = soon(db.shutdown(Drain::within(LIMIT))).await.unwrap();
    let took = asked.elapsed();
    println!("shutdown within {LIMIT:?} behind a foreign lock: closed after {took:?}");
    for answer in answers {
        let error = soon(answer).await.unwrap_err();
        assert!(matches!(error, WriteError::NotStarted(NotStarted::Closed)), "{error:?}");
    }
    assert_eq!((report.not_started, report.stopped), (3, false));
    assert!(report.wal_pages_left > 0, "the lock keeps it from being emptied: {report:?}");
    // The grace for code that is interrupted, and a slow machine.
    assert!(took < LIMIT + Duration::from_secs(2), "{took:?}");
    foreign.run("INSERT INTO t (x) VALUES (7); COMMIT");
    foreign.close();
    assert_eq!(count(&db.plain()), 1);
}

/// One duel at a time: they take all there is.
static ARENA: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

// Both insert as fast as they can: the service from many tasks, the other process one row at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_duel_nobody_starves_and_no_row_is_lost_on_either_side() {
    const TIME: Duration = Duration::from_secs(2);
    const TASKS: i64 = 64;
    let _alone = ARENA.lock().await;
    let db = TestDb::open_with(|config| {
        config.foreign_gap_interval = Duration::from_millis(200);
        config.busy_timeout = HANG;
    })
    .await;
    let mut foreign = Foreign::start(db.path());
    // It is seen once it has written.
    foreign.run("INSERT INTO t (x) VALUES (-1)");
    let ended = Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (db, ended) = ((*db).clone(), ended.clone());
            tokio::spawn(async move {
                let (mut rows, mut longest) = (0, Duration::ZERO);
                while !ended.load(Ordering::Relaxed) {
                    let asked = Instant::now();
                    insert(&db, rows * TASKS + task).await.unwrap();
                    longest = longest.max(asked.elapsed());
                    rows += 1;
                }
                (rows, longest)
            })
        })
        .collect();
    until("the service is at work", || db.stats().groups_committed > 10).await;
    foreign.tell(&format!("duel {} 1", TIME.as_millis()));
    let said = tokio::task::spawn_blocking(move || (foreign.answer(), foreign)).await.unwrap();
    ended.store(true, Ordering::Relaxed);
    let (theirs, longest) = said.0.split_once(' ').unwrap();
    let theirs = theirs.parse::<i64>().unwrap();
    let their_longest = Duration::from_micros(longest.parse().unwrap());
    let (mut ours, mut our_longest) = (0, Duration::ZERO);
    for task in tasks {
        let (rows, longest) = soon(task).await.unwrap();
        ours += rows;
        our_longest = our_longest.max(longest);
    }
    let stats = db.stats();
    println!(
        "duel of {TIME:?}: foreign {theirs} rows, longest wait {their_longest:?}; \
         service {ours} rows, longest wait {our_longest:?}; foreign_commits {}, foreign_waits {}",
        stats.foreign_commits, stats.foreign_waits
    );
    assert!(theirs >= 5 && ours >= 5 * TASKS, "foreign {theirs}, service {ours}");
    // A gap of 110 ms every 200 ms, met by polls up to 100 ms apart: 410 ms. Without gaps it was 0.9 s to 1.7 s;
    // and the service waited as long while it tried the lock every 25 ms only.
    let limit = Duration::from_millis(800);
    assert!(their_longest < limit && our_longest < limit, "{their_longest:?}, {our_longest:?}");
    assert!(stats.foreign_commits > 0 && stats.foreign_waits > 0);
    assert!(stats.foreign_commits <= theirs as u64 + 1);
    let plain = db.plain();
    assert_eq!(count(&plain), ours + theirs + 1);
    let of_theirs = "SELECT count(*) FROM t WHERE x >= 1000000";
    assert_eq!(plain.query_row(of_theirs, (), |row| row.get::<_, i64>(0)).unwrap(), theirs);
}

/// What the service has told of rows.
#[derive(Default)]
struct Told {
    acked: Vec<i64>,
    not_applied: Vec<i64>,
    unseen: Vec<i64>,
    longest: Duration,
}

/// Inserts as fast as it can, and looks now and then whether an acknowledged row is there for others.
async fn insert_and_look(db: &Database, task: u64, seed: u64, others: &Connection, ended: Instant) -> Told {
    let (mut rng, mut told) = (Rng::with_seed(seed ^ (task + 1).rotate_left(32)), Told::default());
    for x in 10_000 * task.cast_signed().. {
        if Instant::now() >= ended {
            break;
        }
        let asked = Instant::now();
        // A deadline may pass while the other program holds the lock.
        let answer = if rng.u8(0..8) == 0 {
            insert(db, x).deadline(Duration::from_micros(rng.u64(1..20_000))).await
        } else {
            let receipt = Kind::ALL[rng.usize(0..4)].submit(db, x).await;
            receipt.await.map(|committed| committed.value)
        };
        told.longest = told.longest.max(asked.elapsed());
        if let Err(error) = answer {
            assert_ne!(error.outcome(), Outcome::Unknown, "{error:?}");
            told.not_applied.push(x);
            continue;
        }
        told.acked.push(x);
        let mut row = others.prepare_cached("SELECT 1 FROM t WHERE x = ?1").unwrap();
        if rng.u8(0..8) == 0 && !row.exists([x]).unwrap() {
            told.unseen.push(x);
        }
    }
    told
}

/// A duel of half a second.
fn duel(seed: u64, set: impl Fn(Builder) -> Builder) -> Tally {
    const TIME: Duration = Duration::from_millis(500);
    let mut rng = Rng::with_seed(seed);
    let (tasks, at_once) = ([1, 8, 64][rng.usize(0..3)], [1, 3, 40][rng.usize(0..3)]);
    let dir = common::in_memory_dir();
    let path = dir.path().join("test.db");
    plain(&path).execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, x UNIQUE)").unwrap();
    let db = set(Database::builder(&path).config(config_with(|config| {
        config.foreign_gap_interval = Duration::from_millis(200);
        config.checkpoint_pages = rng.u32(5..200);
        config.busy_timeout = HANG;
    })));
    let db = db.open_blocking().unwrap();
    let others = plain(&path);
    let mut foreign = Foreign::start(&path);
    // It is seen once it has written.
    foreign.run("INSERT INTO t (x) VALUES (-1)");
    let ended = Instant::now() + TIME;
    foreign.tell(&format!("duel {} {at_once}", TIME.as_millis()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let all = (0..tasks).map(|task| insert_and_look(&db, task, seed, &others, ended));
    let all = runtime.block_on(async { soon(futures_util::future::join_all(all)).await });
    // Before the other answers: the canary still holds the lock.
    assert!(!db.blocking().shutdown(Drain::within(HANG)).unwrap().stopped);
    let answer = foreign.answer();
    let (theirs, their_longest) = answer.split_once(' ').unwrap();
    let theirs = theirs.parse::<i64>().unwrap();
    foreign.close();
    drop(others);

    let mut tally = Tally::of_one_case();
    common::check(&path);
    let connection = plain(&path);
    let mut xs = connection.prepare("SELECT x FROM t ORDER BY x").unwrap();
    let xs: Vec<i64> = xs.query_map((), |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    for told in &all {
        for x in &told.acked {
            tally.check(xs.binary_search(x).is_ok(), Wrong::Lost, || format!("{x} was acknowledged"));
        }
        for x in &told.not_applied {
            tally.check(xs.binary_search(x).is_err(), Wrong::Ghost, || format!("{x} was not applied"));
        }
        let unseen = &told.unseen;
        tally.check(unseen.is_empty(), Wrong::Lost, || format!("acknowledged, and not seen: {unseen:?}"));
    }
    let of_theirs = xs.iter().filter(|x| **x >= 1_000_000).count() as i64;
    tally.check(of_theirs == theirs, Wrong::Lost, || format!("{of_theirs} of their {theirs} rows"));
    let ours: usize = all.iter().map(|told| told.acked.len()).sum();
    let is_fair = theirs > 0 && ours > 0;
    tally.check(is_fair, Wrong::Broken, || format!("one starves: {ours} rows against {theirs}"));
    let not_applied = all.iter().map(|told| told.not_applied.len()).sum::<usize>();
    tally.add("ours", ours as u64);
    tally.add("theirs", theirs.cast_unsigned());
    tally.add("too_late", not_applied as u64);
    let our_longest = all.iter().map(|told| told.longest).max().unwrap_or_default();
    println!("seed {seed}: longest wait {our_longest:?}, theirs {their_longest} µs");
    tally
}

#[test]
fn in_many_duels_every_acknowledged_row_is_there_for_everyone_at_once() {
    let _alone = ARENA.blocking_lock();
    let mut proof = Proof::new("foreign_duel", 6, 400);
    proof.run_in_turn(|seed| duel(seed, |builder| builder));
    #[cfg(feature = "sabotage")]
    proof.canary(Sabotage::AckBeforeCommit, 2, |seed| {
        duel(seed, |builder| builder.sabotage(Sabotage::AckBeforeCommit))
    });
    proof.finish();
}

#[tokio::test]
async fn a_schema_that_another_process_changes_is_seen_by_writes_and_reads() {
    let db = TestDb::open().await;
    let mut foreign = Foreign::start(db.path());
    let widths = async || {
        let width = |tx: &solewriter::ReadTransaction<'_>| Ok(tx.prepare("SELECT * FROM t")?.column_count());
        let wrote = db.execute_returning("INSERT INTO t DEFAULT VALUES RETURNING *", (), |row| {
            Ok(row.as_ref().column_count())
        });
        (soon(wrote).await.unwrap(), soon(db.read("width", width)).await.unwrap())
    };
    let first = widths().await;
    assert_eq!((first.0, first.1), (vec![2], 2));
    insert(&db, 1).await.unwrap();
    foreign.run("ALTER TABLE t ADD COLUMN note; CREATE TABLE theirs (x)");
    let second = widths().await;
    assert_eq!((second.0, second.1), (vec![3], 3));
    insert(&db, 2).await.unwrap();
    soon(db.execute("INSERT INTO theirs SELECT x FROM t WHERE note IS NULL", ())).await.unwrap();
    foreign.run("DROP TABLE theirs");
    let gone = soon(db.execute("INSERT INTO theirs SELECT x FROM t WHERE note IS NULL", ())).await;
    let gone = gone.unwrap_err();
    assert!(matches!(&gone, WriteError::Command(error) if error.to_string().contains("theirs")), "{gone:?}");
    // In the middle of a read the schema stays as it was.
    let snapshot = db.snapshot("old").await.unwrap();
    foreign.run("DROP TABLE child");
    let rows = |tx: &solewriter::ReadTransaction<'_>| {
        tx.query_row("SELECT count(*) FROM child", (), |row| row.get::<_, i64>(0))
    };
    assert_eq!(soon(snapshot.read(rows)).await.unwrap(), 0);
    assert!(soon(db.read("child", rows)).await.is_err());
    assert_eq!(db.stats().connections_replaced, 0);
}

#[tokio::test]
async fn what_another_process_commits_is_seen_by_the_next_read_and_the_next_command() {
    let db = TestDb::open().await;
    let mut foreign = Foreign::start(db.path());
    insert(&db, 1).await.unwrap();
    let snapshot = db.snapshot("before").await.unwrap();
    foreign.run("BEGIN IMMEDIATE; INSERT INTO t (x) VALUES (2)");
    assert_eq!(db.xs().await, [1], "not before it is committed");
    foreign.run("COMMIT");
    assert_eq!(db.xs().await, [1, 2]);
    let sum = |tx: &solewriter::ReadTransaction<'_>| {
        tx.query_row("SELECT sum(x) FROM t", (), |row| row.get::<_, i64>(0))
    };
    assert_eq!(soon(snapshot.read(sum)).await.unwrap(), 1, "a snapshot does not change");
    let seen = db.write("sum", |tx| tx.query_row("SELECT sum(x) FROM t", (), |row| row.get::<_, i64>(0)));
    assert_eq!(soon(seen).await.unwrap(), 3);
    let clash = soon(insert(&db, 2)).await.unwrap_err();
    assert_eq!(clash.sqlite_extended_code(), Some(ffi::SQLITE_CONSTRAINT_UNIQUE));
    assert_eq!(db.stats().foreign_commits, 1);
    // Ours are seen there.
    foreign.run("INSERT INTO t (x) SELECT 10 * max(x) FROM t");
    insert(&db, 3).await.unwrap();
    assert_eq!(db.xs().await, [1, 2, 20, 3]);
    assert_eq!(db.stats().foreign_commits, 2);
}
