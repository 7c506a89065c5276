//! The dashboard in a real browser. Skipped where chromedriver is not installed, unless the environment variable
//! `SOLEWRITER_BROWSER` is `required`.
#![allow(
    missing_docs,
    missing_debug_implementations,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test"
)]

mod browser;
#[path = "../common/mod.rs"]
mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use browser::Browser;
use common::{Gate, TestDb, committed, insert, soon};
use fantoccini::key::Key;
use futures_util::{FutureExt, stream};
use serde_json::{Value, json};
use solewriter::{Database, http};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;

/// A server of the dashboard, behind a prefix.
struct Server {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<std::io::Result<()>>,
}

impl Server {
    async fn start(db: &Database, address: &str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let stopping = async move { drop(stopped.await) }.boxed().shared();
        let app = Router::new().nest_service("/ops", http::router_until(db.clone(), stopping.clone()));
        let serving = axum::serve(listener, app).with_graceful_shutdown(stopping).into_future();
        Self { address, stop, serving: tokio::spawn(serving) }
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        soon(self.serving).await.unwrap().unwrap();
    }
}

/// A page that shows samples.
struct Page {
    browser: Browser,
    server: Server,
}

impl Page {
    async fn open(db: &Database) -> Option<Self> {
        let browser = Browser::open().await?;
        let server = Server::start(db, "127.0.0.1:0").await;
        browser.client.goto(&format!("http://{}/ops", server.address)).await.unwrap();
        let page = Self { browser, server };
        page.until("document.getElementById('sample').innerText !== '–'").await;
        page.until("document.querySelector('#chart-writes svg')").await;
        Some(page)
    }

    async fn until(&self, script: &str) {
        self.browser.until(script).await;
    }

    /// Waits until an element shows a text.
    async fn shows(&self, id: &str, text: &str) {
        self.until(&format!("document.getElementById('{id}').innerText.includes({})", json!(text))).await;
    }

    /// Nothing went wrong in the browser, and nobody else was asked for anything.
    async fn is_quiet(&self) {
        assert_eq!(self.browser.console().await, Vec::<Value>::new());
        let hosts = self.browser.hosts().await;
        let ours = self.server.address.to_string();
        assert!(hosts.contains_key(&ours) && hosts.len() == 1, "{hosts:?}");
    }
}

/// The number in a text such as "1,234", "5.11 ms" or "64 MiB", in the unit of the field.
fn parse(text: &str) -> f64 {
    let (digits, unit) = text.split_once(' ').unwrap_or((text, ""));
    let factor = match unit {
        "" | "µs" | "B" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        "min" => 60e6,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        unit => panic!("{unit}"),
    };
    digits.replace(',', "").parse::<f64>().unwrap_or_else(|_| panic!("{text}")) * factor
}

#[tokio::test]
async fn the_numbers_on_the_page_are_those_of_stats_json_of_the_same_sample() {
    let db = TestDb::open().await;
    for x in 0..1_500 {
        drop(insert(&db, x).submit().await.unwrap());
    }
    let Some(page) = Page::open(&db).await else { return };
    let mut compared = 0;
    for x in 2_000.. {
        insert(&db, x).await.unwrap();
        // Both in one turn of the page's loop of events, so that no sample comes in between.
        let script = "const fields = [...document.querySelectorAll('[data-field]')].map((place) =>
                [place.dataset.field, place.dataset.as, place.dataset.raw, place.innerText]);
            const request = new XMLHttpRequest();
            request.open('GET', '/ops/stats.json', false);
            request.send();
            return { sample: Number(document.getElementById('sample').innerText), fields, answer: request.responseText }";
        let seen = page.browser.run(script).await;
        let told: Value = serde_json::from_str(seen["answer"].as_str().unwrap()).unwrap();
        if seen["sample"] != told["sample"] {
            continue;
        }
        let fields = seen["fields"].as_array().unwrap();
        assert!(fields.len() > 40, "{fields:?}");
        for field in fields {
            let [path, kind, raw, text] = [0, 1, 2, 3].map(|at| field[at].as_str().unwrap());
            let value =
                told.pointer(&format!("/{}", path.replace('.', "/"))).unwrap_or_else(|| panic!("{path}"));
            let value = value.as_f64().unwrap();
            // serde_json reads the last digit of a fraction as it happens.
            assert!(
                (raw.parse::<f64>().unwrap() - value).abs() <= 1e-12 * value.abs(),
                "{path}: {raw} for {value}"
            );
            let scale = if kind == "seconds" { 1e6 } else { 1.0 };
            let shown = parse(text) / if text.ends_with('s') { scale } else { 1.0 };
            let rounding = if kind == "rate" { 0.5 } else { 0.005 };
            assert!((shown - value).abs() <= rounding + 0.006 * value.abs(), "{path}: {text} for {value}");
        }
        let count = told["stats"]["commands"]["committed"].as_u64().unwrap();
        assert!(count >= 1_500, "{count}");
        compared += 1;
        if compared == 3 {
            break;
        }
        let next = told["sample"].as_u64().unwrap() + 1;
        page.until(&format!("Number(document.getElementById('sample').innerText) >= {next}")).await;
    }
    page.is_quiet().await;
}

#[tokio::test]
async fn the_bar_of_an_import_moves() {
    let db = TestDb::open().await;
    let Some(page) = Page::open(&db).await else { return };
    let gate = Arc::new(Semaphore::new(0));
    let pass = gate.clone();
    let steps = db.import("steps", stream::iter(0..10)).id("steps").prepare(1, move |x: i64| {
        let pass = pass.clone();
        async move {
            pass.acquire().await.unwrap().forget();
            Ok::<_, rusqlite::Error>(x)
        }
    });
    let steps =
        tokio::spawn(steps.run(|tx, x| tx.execute("INSERT INTO t (x) VALUES (?1)", [x])).into_future());
    let never = stream::unfold((), |()| std::future::pending::<Option<(i64, ())>>());
    let endless = db.import("endless", never).id("endless");
    let endless =
        tokio::spawn(endless.run(|tx, x| tx.execute("INSERT INTO t (x) VALUES (?1)", [x])).into_future());

    let bar = "document.querySelector('[data-id=steps] progress')";
    page.until(&format!("{bar}?.value === 0 && {bar}.max === 10")).await;
    page.browser.run(&format!("window.bar = {bar}")).await;
    for (more, done) in [(3, 3), (4, 7)] {
        gate.add_permits(more);
        page.until(&format!("{bar}.value === {done}")).await;
        let detail = page.browser.run("return document.querySelector('[data-id=steps]').innerText").await;
        assert!(detail.as_str().unwrap().contains(&format!("{done} of 10 entries")), "{detail}");
    }
    assert_eq!(page.browser.run(&format!("return window.bar === {bar}")).await, true, "it is the same bar");
    page.until("document.querySelector('[data-id=endless] progress').matches(':indeterminate')").await;

    db.import_control(&"steps".into()).unwrap().pause();
    page.until("document.querySelector('[data-id=steps]').innerText.includes('paused')").await;
    db.import_control(&"steps".into()).unwrap().resume();
    gate.add_permits(3);
    soon(steps).await.unwrap().unwrap();
    db.import_control(&"endless".into()).unwrap().cancel();
    soon(endless).await.unwrap().unwrap_err();
    page.shows("no-imports", "No import runs").await;
    page.until("document.querySelectorAll('#records tr').length === 2").await;
    let records = page.browser.text("records").await;
    assert!(
        records.contains("steps") && records.contains("complete") && records.contains("cancelled"),
        "{records}"
    );
    page.is_quiet().await;
}

#[tokio::test]
async fn a_stalled_holder_shows_with_its_growing_age_and_the_reasons_for_it() {
    let db = TestDb::open_with(|config| config.hold_warning = Duration::from_millis(100)).await;
    let Some(page) = Page::open(&db).await else { return };
    assert_eq!(page.browser.text("health-state").await, "Healthy");
    let gate = Gate::close(&db).await;
    let label = db.holder().unwrap().phase.to_string().split(' ').next().unwrap().to_owned();
    let waiting = committed(insert(&db, 1).label("orders.place")).await;

    page.shows("holder", &label).await;
    page.shows("waiter", "orders.place").await;
    page.shows("health-state", "Degraded").await;
    page.shows("reasons", &label).await;
    page.shows("reasons", "Next: move slow work out of that command").await;
    page.shows("announcement", "Degraded").await;
    let age = "Number(document.getElementById('holder').dataset.heldMs)";
    let first = page.browser.run(&format!("return {age}")).await.as_f64().unwrap();
    page.until(&format!("{age} >= {first} + 1000")).await;

    gate.open().await;
    soon(waiting).await.unwrap();
    page.shows("health-state", "Healthy").await;
    page.shows("holder", "nobody").await;
    page.is_quiet().await;
}

#[tokio::test]
async fn failures_show_without_any_bound_value() {
    const SECRET: &str = "s3cr3t-card-number";
    let db = TestDb::open().await;
    let Some(page) = Page::open(&db).await else { return };
    page.shows("no-failures", "No command has failed").await;
    for _ in 0..2 {
        drop(db.execute("INSERT INTO t (x) VALUES (?1)", (SECRET,)).label("<b>cards</b>").await);
    }
    page.shows("failures", "<b>cards</b>").await;
    let failures = page.browser.text("failures").await;
    assert!(
        failures.contains("t.x") && failures.contains("2067") && failures.contains("rolled back"),
        "{failures}"
    );
    let source = page.browser.run("return document.documentElement.outerHTML").await;
    assert!(!source.as_str().unwrap().contains(SECRET), "{source}");
    page.is_quiet().await;
}

#[tokio::test]
async fn the_page_connects_again_when_the_service_restarts() {
    let db = TestDb::open().await;
    let Some(page) = Page::open(&db).await else { return };
    page.is_quiet().await;
    let Page { browser, server } = page;
    let address = server.address.to_string();
    server.stop().await;
    let words = "document.getElementById('connection').innerText";
    browser.until(&format!("{words}.includes('disconnected')")).await;
    for x in 0..5 {
        insert(&db, x).await.unwrap();
    }
    let server = Server::start(&db, &address).await;
    browser.until(&format!("{words} === 'live'")).await;
    let committed = "document.querySelector('[data-field=\"stats.commands.committed\"]').dataset.raw";
    browser.until(&format!("{committed} === '6'")).await;
    server.stop().await;
}

#[tokio::test]
async fn it_fits_a_phone_and_every_control_can_be_reached_by_key() {
    let db = TestDb::open().await;
    let long = "a.label.that.has.no.place.to.break.and.is.longer.than.any.phone.is.wide";
    for _ in 0..2 {
        drop(insert(&db, 1).label(long).await);
    }
    let import = db.import(long, stream::iter([7]));
    soon(import.run(|tx, x: &i64| tx.execute("INSERT INTO t (x) VALUES (?1)", [x]))).await.unwrap();
    let Some(page) = Page::open(&db).await else { return };
    page.until("document.querySelectorAll('#records tr').length === 1").await;
    let gate = Gate::close(&db).await;
    page.shows("holder", "gate").await;
    for width in [360, 768, 1440] {
        page.browser.set_size(width, 800).await;
        let widths = page.browser.run("return [document.documentElement.scrollWidth, document.documentElement.clientWidth, window.innerWidth]").await;
        assert_eq!(widths[0], widths[1], "nothing to scroll sideways");
        assert_eq!(widths[2], width);
    }
    gate.open().await;

    page.browser.run("document.activeElement.blur()").await;
    let script = "window.reached = new Set(); window.controls = [...document.querySelectorAll('a[href], button, [tabindex=\"0\"]')]
        .filter((control) => control.checkVisibility());
        document.addEventListener('focusin', ({ target }) => window.reached.add(target))";
    page.browser.run(script).await;
    let controls = page.browser.run("return window.controls.length").await.as_u64().unwrap();
    assert!(controls >= 9, "{controls}");
    for _ in 0..controls {
        page.browser.press(Key::Tab).await;
        let ring = page.browser.run("return getComputedStyle(document.activeElement).outlineStyle").await;
        assert_eq!(ring, "solid", "the focus can be seen");
    }
    let missed = "return window.controls.filter((control) => !window.reached.has(control)).map((missed) => missed.outerHTML)";
    assert_eq!(page.browser.run(missed).await, json!([]));
    page.is_quiet().await;
}

#[tokio::test]
async fn both_themes_can_be_read_and_the_choice_is_remembered() {
    // Texts whose contrast with the ground behind them is below 4.5.
    const FAINT_TEXTS: &str = "
        const channel = (value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
        const light = (colour) => {
            const [r, g, b] = colour.match(/[\\d.]+/g).map((value) => channel(value / 255));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const ground = (element) => {
            const colour = getComputedStyle(element).backgroundColor;
            return colour === 'rgba(0, 0, 0, 0)' ? ground(element.parentElement) : colour;
        };
        return [...document.querySelectorAll('body *')]
            .filter((element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
            .filter((element) => element.checkVisibility())
            .map((element) => {
                const style = getComputedStyle(element);
                const [a, b] = [element.namespaceURI.endsWith('svg') ? style.fill : style.color, ground(element)].map(light);
                return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.outerHTML];
            })
            .filter(([contrast]) => contrast < 4.5)";
    let db = TestDb::open_with(|config| config.hold_warning = Duration::from_millis(10)).await;
    for _ in 0..2 {
        drop(insert(&db, 1).await);
    }
    let Some(page) = Page::open(&db).await else { return };
    let gate = Gate::close(&db).await;
    page.shows("health-state", "Degraded").await;
    page.shows("reasons", "the writer has been held").await;
    let ground = "return getComputedStyle(document.body).backgroundColor";
    let mut grounds = Vec::new();
    for scheme in ["light", "dark"] {
        page.browser.prefer(scheme).await;
        grounds.push(page.browser.run(ground).await);
        assert_eq!(page.browser.run(FAINT_TEXTS).await, json!([]), "{scheme}");
    }
    assert_ne!(grounds[0], grounds[1]);
    gate.open().await;

    assert_eq!(page.browser.text("theme").await, "Light", "what it switches to");
    page.browser.run("document.getElementById('theme').click()").await;
    assert_eq!(page.browser.run(ground).await, grounds[0]);
    page.browser.client.refresh().await.unwrap();
    page.until("document.documentElement.dataset.theme === 'light'").await;
    assert_eq!(page.browser.run(ground).await, grounds[0], "remembered, against what the system prefers");
    page.is_quiet().await;
}
