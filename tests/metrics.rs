//! Published metrics are what the service has measured: all of it, once, for each recorder.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::Duration;

use common::{Gate, HANG, TestDb, insert, soon, until};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use solewriter::metrics::Publisher;
use solewriter::{Database, Drain, Lane};

/// What a recorder was given since the last look, by name and labels: `name{label=value}`, without `database`.
#[derive(Debug, Default)]
struct Given {
    counters: HashMap<String, u64>,
    gauges: HashMap<String, f64>,
    histograms: HashMap<String, Vec<f64>>,
}

/// A look at what a recorder was given for one database.
fn given(snapshotter: &Snapshotter, database: &str) -> Given {
    let mut given = Given::default();
    for (key, unit, help, value) in snapshotter.snapshot().into_vec() {
        let key = key.key();
        assert!(unit.is_some() && help.is_some(), "{key} is described");
        let labels: Vec<_> = key.labels().map(|label| (label.key(), label.value())).collect();
        assert_eq!(labels[0].0, "database");
        if labels[0].1 != database {
            continue;
        }
        let name = labels[1..]
            .iter()
            .fold(key.name().to_owned(), |name, (label, value)| format!("{name}{{{label}={value}}}"));
        match value {
            DebugValue::Counter(value) => drop(given.counters.insert(name, value)),
            DebugValue::Gauge(value) => drop(given.gauges.insert(name, value.into_inner())),
            DebugValue::Histogram(values) => {
                given.histograms.insert(name, values.into_iter().map(|value| value.into_inner()).collect());
            }
        }
    }
    given
}

/// A recorder that only this test writes to.
struct Local {
    recorder: DebuggingRecorder,
    snapshotter: Snapshotter,
}

impl Local {
    fn new() -> Self {
        let recorder = DebuggingRecorder::new();
        Self { snapshotter: recorder.snapshotter(), recorder }
    }

    fn publish(&self, publisher: &Publisher) -> Given {
        metrics::with_local_recorder(&self.recorder, || publisher.publish());
        given(&self.snapshotter, "solewriter")
    }
}

/// Some are committed, one fails, one is withdrawn, one reads. Until the gate is opened, all that is measured of
/// them stays as it is.
async fn work(db: &Database) -> Gate {
    for x in 0..4 {
        insert(db, x).await.unwrap();
    }
    insert(db, 9).lane(Lane::Bulk).await.unwrap();
    insert(db, 9).await.unwrap_err();
    let gate = Gate::close(db).await;
    let late = insert(db, 10).deadline(Duration::from_millis(1));
    soon(late).await.unwrap_err();
    gate.open().await;
    // After it the writer has met the one that was withdrawn.
    insert(db, 11).await.unwrap();
    db.read("count", |tx| tx.query_row("SELECT count(*) FROM t", (), |row| row.get::<_, i64>(0)))
        .await
        .unwrap();
    Gate::close(db).await
}

#[test]
fn threads_that_publish_at_the_same_time_count_nothing_twice() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let db = runtime.block_on(TestDb::open());
    let (local, publisher) = (Local::new(), Publisher::new(&db));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                metrics::with_local_recorder(&local.recorder, || (0..30).for_each(|_| publisher.publish()));
            });
        }
        let insert = |x: i64| db.blocking().execute("INSERT INTO t (x) VALUES (?1)", (x,)).wait();
        (0..100).for_each(|x| assert_eq!(insert(x).unwrap(), 1));
    });
    let given = local.publish(&publisher);
    let stats = db.stats();
    assert_eq!(given.counters["solewriter_commands_total{outcome=committed}"], stats.commands.committed);
    assert_eq!(given.histograms["solewriter_commit_seconds"].len() as u64, stats.commit.count);
}

#[tokio::test]
async fn counters_and_gauges_are_those_of_the_stats() {
    let db = TestDb::open().await;
    let gate = work(&db).await;
    let stats = db.stats();
    let given = Local::new().publish(&Publisher::new(&db));
    let outcome = |outcome: &str| given.counters[&format!("solewriter_commands_total{{outcome={outcome}}}")];
    assert_eq!(outcome("committed"), stats.commands.committed);
    assert_eq!((outcome("failed"), outcome("withdrawn")), (1, 1));
    for (name, value) in [
        ("commands_total{outcome=refused}", stats.commands.refused),
        ("commands_total{outcome=unknown}", 0),
        ("groups_total{result=committed}", stats.groups_committed),
        ("groups_total{result=lost}", stats.groups_lost),
        ("commands_rerun_total", stats.commands.rerun),
        ("reads_total", 1),
        ("wal_restarts_total", stats.wal_restarts),
        ("foreign_commits_total", stats.foreign_commits),
    ] {
        assert_eq!(given.counters[&format!("solewriter_{name}")], value, "{name}");
    }
    for (name, value) in [
        ("queue_depth{lane=interactive}", 0.0),
        ("queue_capacity{lane=bulk}", db.config().queue_commands_max as f64),
        ("wal_bytes", (stats.wal_pages * stats.page_bytes) as f64),
        ("wal_limit_bytes", db.config().wal_limit_bytes as f64),
        ("readers_open", stats.readers_open as f64),
        ("readers_max", (db.config().readers + db.config().readers_overflow) as f64),
        ("refusing_writes", 0.0),
        ("oldest_read_seconds", 0.0),
    ] {
        assert_eq!(given.gauges[&format!("solewriter_{name}")], value, "{name}");
    }
    assert!(stats.wal_pages > 0);
    gate.open().await;
}

#[tokio::test]
async fn histograms_hold_every_command_and_group_in_seconds() {
    let db = TestDb::open().await;
    let gate = work(&db).await;
    let stats = db.stats();
    let given = Local::new().publish(&Publisher::new(&db));
    let of = |name: &str| &given.histograms[&format!("solewriter_{name}")];
    for lane in Lane::ALL {
        assert_eq!(of(&format!("queue_wait_seconds{{lane={lane}}}")).len() as u64, stats.wait[lane].count);
        assert_eq!(of(&format!("command_run_seconds{{lane={lane}}}")).len() as u64, stats.run[lane].count);
    }
    assert_eq!(of("hold_seconds").len() as u64, stats.hold.count);
    assert_eq!(of("commit_seconds").len() as u64, stats.commit.count);
    assert_eq!(of("wal_restart_seconds").len() as u64, stats.wal_restart.count);
    assert_eq!(of("read_wait_seconds").len() as u64, stats.read_wait.count);
    let commands: f64 = of("group_commands").iter().sum();
    assert_eq!(commands, stats.group_commands.mean * stats.group_commands.count as f64);
    let longest = of("hold_seconds").iter().copied().fold(0.0, f64::max);
    assert!((longest / stats.hold.max.as_secs_f64() - 1.0).abs() < 0.01, "{longest} s of {:?}", stats.hold);
    gate.open().await;
}

#[tokio::test]
async fn who_holds_the_writer_and_what_waits_shows_while_it_lasts() {
    let db = TestDb::open().await;
    let (local, publisher) = (Local::new(), Publisher::new(&db));
    let gate = Gate::close(&db).await;
    let waits = insert(&db, 1).submit().await.unwrap();
    let held = local.publish(&publisher).gauges;
    assert!(held["solewriter_holder_seconds{phase=command}"] > 0.0);
    assert_eq!(held["solewriter_holder_seconds{phase=commit}"], 0.0);
    assert_eq!(held["solewriter_queue_depth{lane=interactive}"], 1.0);
    gate.open().await;
    soon(waits).await.unwrap();
    until("the writer is idle", || db.holder().is_none()).await;
    let idle = local.publish(&publisher).gauges;
    assert_eq!(idle["solewriter_holder_seconds{phase=command}"], 0.0);
    assert_eq!(idle["solewriter_queue_depth{lane=interactive}"], 0.0);
}

#[tokio::test]
async fn publishing_twice_counts_nothing_twice() {
    let db = TestDb::open().await;
    let (local, publisher) = (Local::new(), Publisher::new(&db));
    insert(&db, 1).await.unwrap();
    local.publish(&publisher);
    let again = local.publish(&publisher);
    assert!(again.counters.values().all(|added| *added == 0), "{again:?}");
    assert!(again.histograms.values().all(Vec::is_empty), "{again:?}");
    insert(&db, 2).lane(Lane::Bulk).await.unwrap();
    let added = local.publish(&publisher);
    assert_eq!(added.counters["solewriter_commands_total{outcome=committed}"], 1);
    assert_eq!(added.histograms["solewriter_queue_wait_seconds{lane=bulk}"].len(), 1);
    assert_eq!(added.histograms["solewriter_queue_wait_seconds{lane=interactive}"].len(), 0);
    assert_eq!(added.histograms["solewriter_group_commands"], [1.0]);
}

#[tokio::test]
async fn two_publishers_with_a_recorder_each_do_not_share_anything() {
    const COMMITTED: &str = "solewriter_commands_total{outcome=committed}";
    let db = TestDb::open().await;
    let (first, second) = (Publisher::new(&db), Publisher::new(&db));
    let (mine, other) = (Local::new(), Local::new());
    let before = mine.publish(&first).counters[COMMITTED];
    insert(&db, 1).await.unwrap();
    assert_eq!(mine.publish(&first).counters[COMMITTED], 1);
    assert_eq!(other.publish(&second).counters[COMMITTED], before + 1);
}

#[tokio::test]
async fn two_databases_stay_apart_by_their_names() {
    let (orders, users) =
        (TestDb::open_with(|config| config.name = "orders".into()).await, TestDb::open().await);
    for x in 0..3 {
        insert(&orders, x).await.unwrap();
    }
    insert(&users, 1).await.unwrap();
    let recorder = DebuggingRecorder::new();
    metrics::with_local_recorder(&recorder, || {
        Publisher::new(&orders).publish();
        Publisher::new(&users).database("users").publish();
    });
    let keys: Vec<_> = recorder.snapshotter().snapshot().into_vec();
    let committed = |name: &str| {
        keys.iter().find_map(|(key, _, _, value)| {
            let labels: Vec<_> = key.key().labels().map(metrics::Label::value).collect();
            (labels == [name, "committed"] && key.key().name() == "solewriter_commands_total")
                .then_some(value)
        })
    };
    // The schema is one more.
    assert_eq!(committed("orders"), Some(&DebugValue::Counter(4)));
    assert_eq!(committed("users"), Some(&DebugValue::Counter(2)));
}

/// The recorder of this process; only tests of `run` need it.
fn global() -> &'static Snapshotter {
    static GLOBAL: OnceLock<Snapshotter> = OnceLock::new();
    GLOBAL.get_or_init(|| {
        let recorder = DebuggingRecorder::new();
        let snapshotter = recorder.snapshotter();
        recorder.install().unwrap();
        snapshotter
    })
}

// Database                          Publisher
//                                   publishes at once, then waits an hour
// insert
// the last handle is dropped
// the file is closed
//                                   publishes what was added, and ends
#[tokio::test]
async fn run_ends_with_the_last_figures_when_the_database_is_closed() {
    let snapshotter = global();
    let dir = tempfile::tempdir().unwrap();
    let db = Database::open(dir.path().join("test.db")).await.unwrap();
    let publishing = tokio::spawn(Publisher::new(&db).database("closing").run(Duration::from_secs(3600)));
    until("it has published", || !given(snapshotter, "closing").counters.is_empty()).await;
    db.execute("CREATE TABLE t (x)", ()).await.unwrap();
    drop(db);
    soon(publishing).await.unwrap();
    assert_eq!(given(snapshotter, "closing").counters["solewriter_commands_total{outcome=committed}"], 1);
}

#[tokio::test]
async fn a_publisher_does_not_keep_its_database_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.db");
    let db = Database::open(&path).await.unwrap();
    let publisher = Publisher::new(&db);
    db.execute("CREATE TABLE t (x)", ()).await.unwrap();
    db.shutdown(Drain::within(HANG)).await.unwrap();
    drop(db);
    let again = soon(Database::open(&path)).await.unwrap();
    let given = Local::new().publish(&publisher);
    assert_eq!(
        given.counters["solewriter_commands_total{outcome=committed}"], 1,
        "what was measured is still told"
    );
    assert_eq!(given.gauges["solewriter_readers_open"], 0.0);
    again.shutdown(Drain::within(HANG)).await.unwrap();
}
