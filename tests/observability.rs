//! What the service lets everyone see, and what it must never show: the values of the callers.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::fmt::{Debug, Write as _};
use std::sync::{Mutex, Once};
use std::time::Duration;

use common::{Gate, TestDb, add, committed, insert, soon, until};
use solewriter::{Lane, Phase};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Instrument, Level, Subscriber, info_span};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

/// Everything that any test of this file made the service say. The tests find their own by label.
static SAID: Mutex<Vec<Said>> = Mutex::new(Vec::new());

#[derive(Clone, Debug)]
struct Said {
    level: Level,
    name: &'static str,
    parent: Option<&'static str>,
    fields: String,
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.fields, "{}={value:?} ", field.name()).unwrap();
    }
}

struct Capture;

impl Capture {
    /// Writer and readers have threads of their own, so only a subscriber of the whole process hears them.
    fn everything() {
        static START: Once = Once::new();
        START.call_once(|| {
            let subscriber = tracing_subscriber::registry().with(Capture);
            tracing::subscriber::set_global_default(subscriber).unwrap();
        });
    }

    fn said(metadata: &'static tracing::Metadata<'static>, parent: Option<&'static str>) -> Said {
        Said { level: *metadata.level(), name: metadata.name(), parent, fields: String::new() }
    }
}

impl<S: Subscriber + for<'s> LookupSpan<'s>> Layer<S> for Capture {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let parent = context.span(id).and_then(|span| span.parent().map(|parent| parent.name()));
        let mut said = Self::said(attributes.metadata(), parent);
        attributes.record(&mut said);
        SAID.lock().unwrap().push(said);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let mut said = Self::said(context.span(id).unwrap().metadata(), None);
        values.record(&mut said);
        SAID.lock().unwrap().push(said);
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let parent = context.event_span(event).map(|span| span.name());
        let mut said = Self::said(event.metadata(), parent);
        event.record(&mut said);
        SAID.lock().unwrap().push(said);
    }
}

fn said_of(label: &str) -> Vec<Said> {
    let said = SAID.lock().unwrap();
    said.iter().filter(|said| said.fields.contains(&format!("label=\"{label}\""))).cloned().collect()
}

#[tokio::test]
async fn who_holds_the_writer_can_be_asked_at_any_time() {
    let db = TestDb::open().await;
    until("nobody holds it", || db.holder().is_none()).await;
    let gate = Gate::close(&db).await;
    let holder = db.holder().unwrap();
    assert!(matches!(&holder.phase, Phase::Command { lane: Lane::Bulk, .. }), "{holder:?}");
    assert!(holder.held >= holder.in_phase);
    assert!(db.holder().unwrap().held > holder.held, "it goes on");
    gate.open().await;
    until("nobody holds it", || db.holder().is_none()).await;
}

#[tokio::test]
async fn a_long_hold_is_warned_about_by_label_while_it_lasts() {
    Capture::everything();
    let db = TestDb::open_with(|config| config.hold_warning = Duration::from_millis(50)).await;
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let slow = committed(db.write("report.slow", move |_| {
        wait.recv_timeout(common::HANG).unwrap();
        Ok(())
    }))
    .await;
    let warnings = || said_of("report.slow").into_iter().filter(|said| said.level == Level::WARN).count();
    until("it is warned about, and again when it has taken twice as long", || warnings() >= 2).await;
    assert!(db.holder().is_some(), "it still holds the writer");
    go_on.send(()).unwrap();
    soon(slow).await.unwrap();
}

#[tokio::test]
async fn each_command_has_a_span_below_that_of_its_caller() {
    Capture::everything();
    let db = TestDb::open().await;
    let write = async {
        db.write("spanned", |tx| {
            tracing::info!(label = "spanned", "said inside");
            add(tx, 1)
        })
        .await
    };
    write.instrument(info_span!("caller")).await.unwrap();
    let said = said_of("spanned");
    let span = said.iter().find(|said| said.name == "command").unwrap();
    assert_eq!((span.level, span.parent), (Level::DEBUG, Some("caller")), "{span:?}");
    assert!(span.fields.contains("lane=interactive"), "{span:?}");
    let inside = said.iter().find(|said| said.fields.contains("said inside")).unwrap();
    assert_eq!(inside.parent, Some("command"), "the writer enters it");
    let read = async { db.read("spanned.read", |_| Ok(())).await };
    read.instrument(info_span!("caller")).await.unwrap();
    assert_eq!(said_of("spanned.read")[0].parent, Some("caller"));
}

const SECRET: &str = "b0und-v4lue";

#[tokio::test]
async fn no_bound_value_is_ever_shown() {
    Capture::everything();
    let db = TestDb::open().await;
    let insert_secret = |kind: &str| {
        let sql = format!("INSERT {kind} INTO t (x) VALUES (?1)");
        db.execute(sql, (SECRET,)).label("secret")
    };
    insert_secret("").await.unwrap();
    let mut shown = String::new();
    let mut show = |error: &dyn std::error::Error| {
        write!(shown, "{error:?} ").unwrap();
        let mut next = Some(error);
        while let Some(error) = next {
            write!(shown, "{error} ").unwrap();
            next = error.source();
        }
    };
    show(&insert_secret("").await.unwrap_err());
    show(&insert_secret("OR FAIL").await.unwrap_err());
    show(&insert_secret("OR ROLLBACK").await.unwrap_err());
    show(&db.execute("INSERT INTO child VALUES (?1)", (SECRET,)).await.unwrap_err());
    show(&db.execute("INSERT INTO t (x) VALUES (?1, ?2)", (SECRET, SECRET)).await.unwrap_err());
    show(
        &db.execute("INSERT INTO t (x) VALUES (abs(?1 || -9223372036854775808))", (SECRET, 1))
            .await
            .unwrap_err(),
    );
    let as_number = db.execute_returning("SELECT ?1", (SECRET,), |row| row.get::<_, i64>(0));
    show(&as_number.await.unwrap_err());
    let gate = Gate::close(&db).await;
    // It can't run again, so it is lost with the group.
    let delete =
        |tx: &mut solewriter::WriteTransaction<'_>| tx.execute("DELETE FROM t WHERE x <> ?1", [SECRET]);
    let lost = committed(db.write("lost", delete)).await;
    let culprit = committed(insert_secret("OR ROLLBACK")).await;
    show(&soon(insert_secret("").deadline(Duration::from_millis(1))).await.unwrap_err());
    gate.open().await;
    show(&soon(lost).await.unwrap_err());
    show(&soon(culprit).await.unwrap_err());
    show(
        &db.read("secret", |tx| {
            tx.query_row("SELECT x FROM t WHERE x = ?1", [SECRET], |row| row.get::<_, i64>(0))
        })
        .await
        .unwrap_err(),
    );
    let import = db.import("secret", futures_util::stream::iter([SECRET; 3]));
    let report = import.run(|tx, x| tx.execute("INSERT INTO t (x) VALUES (?1)", [x])).await.unwrap();
    report.failures.iter().for_each(|failure| show(&failure.error));
    assert_eq!(report.failed, 3);
    write!(shown, "{:?} {report:?} {:?} {:?}", *db, db.stats(), db.execute("SELECT ?1", (SECRET,))).unwrap();
    assert!(!shown.contains(SECRET), "{shown}");
    let said = SAID.lock().unwrap();
    assert!(said.iter().any(|said| said.fields.contains("\"secret\"")), "the spans were seen");
    let leaks: Vec<_> = said.iter().filter(|said| said.fields.contains(SECRET)).collect();
    assert!(leaks.is_empty(), "{leaks:?}");
}

#[tokio::test]
async fn the_figures_can_be_computed_with() {
    let db = TestDb::open().await;
    let before = db.stats();
    let gate = Gate::close(&db).await;
    let bulk = committed(insert(&db, 0).lane(Lane::Bulk)).await;
    let mut interactive = Vec::new();
    for x in 1..=10 {
        interactive.push(committed(insert(&db, x)).await);
    }
    assert_eq!((db.stats().queue_depth.interactive, db.stats().queue_depth.bulk), (10, 1));
    gate.open().await;
    for answer in interactive.into_iter().chain([bulk]) {
        soon(answer).await.unwrap();
    }
    db.read("one", |_| Ok(())).await.unwrap();
    let after = db.stats();
    let groups = after.groups_committed - before.groups_committed;
    assert_eq!(after.hold.count - before.hold.count, groups);
    assert_eq!(after.commit.count - before.commit.count, groups);
    assert_eq!(after.wait.interactive.count - before.wait.interactive.count, 10);
    assert_eq!(after.run.bulk.count - before.run.bulk.count, 2, "the gate and one");
    assert_eq!(after.group_size.interactive.max, 10);
    assert!(after.wait.interactive.max >= after.wait.interactive.p50);
    assert_eq!((after.reads - before.reads, after.read_wait.count - before.read_wait.count), (1, 1));
    assert_eq!(after.readers_open, 5);
    assert!(after.wal_pages > 0 && after.wal_pages <= after.wal_pages_max && after.page_bytes >= 512);

    let json = serde_json::to_value(&after).unwrap();
    assert_eq!(json["hold"]["max_us"], u64::try_from(after.hold.max.as_micros()).unwrap());
    assert_eq!(json["commands"]["committed"], after.commands.committed);
}
