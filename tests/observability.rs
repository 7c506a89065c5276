//! What the service lets everyone see. What it must never show is in `leaks`.
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
