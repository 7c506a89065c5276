//! What the routes answer, and that they only tell.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod common;

use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Request, Response, StatusCode, header};
use common::{Gate, HANG, TestDb, insert, soon, until};
use futures_util::{StreamExt, stream};
use serde_json::Value;
use solewriter::{Database, Drain, http};
use tower::ServiceExt;

const ROUTES: [&str; 9] = [
    "/",
    "/dashboard.css",
    "/dashboard.js",
    "/icon.svg",
    "/health",
    "/health/database-lock-stats",
    "/metrics",
    "/stats.json",
    "/events",
];

async fn ask(router: &Router, method: Method, path: &str) -> Response<Body> {
    let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
    soon(router.clone().oneshot(request)).await.unwrap()
}

async fn get(router: &Router, path: &str) -> Response<Body> {
    ask(router, Method::GET, path).await
}

async fn text(answer: Response<Body>) -> String {
    let bytes = soon(axum::body::to_bytes(answer.into_body(), usize::MAX)).await.unwrap();
    String::from_utf8(bytes.into()).unwrap()
}

async fn json(router: &Router, path: &str) -> Value {
    serde_json::from_str(&text(get(router, path).await).await).unwrap()
}

/// An event stream, read by events.
struct Events {
    body: axum::body::BodyDataStream,
    read: String,
}

impl Events {
    async fn open(router: &Router, path: &str) -> Self {
        let answer = get(router, path).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()[header::CONTENT_TYPE], "text/event-stream");
        Self { body: answer.into_body().into_data_stream(), read: String::new() }
    }

    /// The next event: its name and its data; `None` at the end of the stream.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((event, rest)) = self.read.split_once("\n\n") {
                let field =
                    |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
                let event = (field("event:").into(), serde_json::from_str(field("data:")).unwrap());
                self.read = rest.into();
                return Some(event);
            }
            let bytes: Bytes = soon(self.body.next()).await?.unwrap();
            self.read.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }

    async fn sample(&mut self) -> Option<Value> {
        loop {
            let (name, data) = self.next().await?;
            if name == "sample" {
                return Some(data);
            }
        }
    }
}

#[tokio::test]
async fn every_route_answers_get_and_head_and_refuses_what_could_change_something() {
    let db = TestDb::open().await;
    let router = http::router(db.clone());
    for path in ROUTES {
        for method in [Method::GET, Method::HEAD] {
            assert_eq!(ask(&router, method.clone(), path).await.status(), StatusCode::OK, "{method} {path}");
        }
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            let answer = ask(&router, method.clone(), path).await;
            assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
        }
    }
    assert_eq!(get(&router, "/secrets").await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn every_answer_tells_the_browser_to_load_nothing_from_elsewhere() {
    let db = TestDb::open().await;
    let router = http::router(db.clone());
    let mut answers = Vec::new();
    for path in ROUTES.into_iter().chain(["/secrets"]) {
        answers.push((path, get(&router, path).await));
    }
    answers.push(("POST /health", ask(&router, Method::POST, "/health").await));
    for (path, answer) in answers {
        let header =
            |name| answer.headers().get(name).unwrap_or_else(|| panic!("{path}: {name}")).to_str().unwrap();
        let policy = header("content-security-policy");
        let rules: Vec<_> = policy.split("; ").collect();
        for rule in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ] {
            assert!(rules.contains(&rule), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{path}: {policy}");
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert_eq!(header("referrer-policy"), "no-referrer");
        assert_eq!(header("cross-origin-resource-policy"), "same-origin");
        let is_file = ["css", "js", "svg"].iter().any(|end| path.ends_with(&format!(".{end}")));
        assert_eq!(header("cache-control"), if is_file { "private, no-cache" } else { "no-store" }, "{path}");
    }
}

#[tokio::test]
async fn a_file_of_the_page_is_sent_again_only_when_it_has_changed() {
    let db = TestDb::open().await;
    let router = http::router(db.clone());
    for path in ["/dashboard.css", "/dashboard.js", "/icon.svg"] {
        let tag = get(&router, path).await.headers()[header::ETAG].clone();
        let again = Request::get(path).header(header::IF_NONE_MATCH, tag).body(Body::empty()).unwrap();
        let answer = router.clone().oneshot(again).await.unwrap();
        assert_eq!(answer.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(text(answer).await, "");
    }
}

#[tokio::test]
async fn the_page_finds_its_files_behind_any_prefix() {
    let db = TestDb::open().await;
    let service = http::router(db.clone());
    let at_root = service.clone();
    let nested: Router = Router::new()
        .nest_service("/ops", service.clone())
        .nest("/plain", service.clone())
        .nest_service("/deep/er", service);
    for (router, page, folder) in [
        (&at_root, "/", "/"),
        (&nested, "/ops", "/ops/"),
        (&nested, "/ops/", "/ops/"),
        (&nested, "/plain", "/plain/"),
        (&nested, "/deep/er", "/deep/er/"),
        (&nested, "/deep/er/?from=mail", "/deep/er/"),
    ] {
        let answer = get(router, page).await;
        assert_eq!(answer.status(), StatusCode::OK, "{page}");
        let page_text = text(answer).await;
        let links: Vec<_> = page_text.split(['"']).filter(|part| part.starts_with("./")).collect();
        assert!(links.len() >= 7, "{links:?}");
        assert!(!page_text.contains("{base}"));
        let parent = &page[..=page.find('?').map_or(page, |at| &page[..at]).rfind('/').unwrap()];
        for link in links {
            let path = format!("{parent}{}", link.trim_start_matches("./"));
            assert!(path.starts_with(folder), "{path}");
            assert_eq!(get(router, &path).await.status(), StatusCode::OK, "{page}: {path}");
        }
    }
}

#[tokio::test]
async fn health_is_200_while_writes_get_through_and_503_when_they_do_not() {
    let db = TestDb::open_with(|config| config.hold_warning = Duration::from_millis(20)).await;
    let router = http::router(db.clone());
    let healthy = get(&router, "/health").await;
    assert_eq!(healthy.status(), StatusCode::OK);
    let healthy: Value = serde_json::from_str(&text(healthy).await).unwrap();
    assert_eq!((&healthy["state"], healthy["reasons"].as_array().unwrap().len()), (&"healthy".into(), 0));

    let gate = Gate::close(&db).await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    let degraded = get(&router, "/health").await;
    assert_eq!(degraded.status(), StatusCode::OK, "somebody should look, and it works");
    let degraded: Value = serde_json::from_str(&text(degraded).await).unwrap();
    assert_eq!(degraded["state"], "degraded");
    assert_eq!(degraded["reasons"][0]["kind"], "long_hold");
    assert!(degraded["reasons"][0]["action"].as_str().unwrap().contains("deadline"));
    assert!(degraded["holder"]["held_ms"].as_u64().unwrap() >= 20);
    gate.open().await;

    db.shutdown(Drain::within(HANG)).await.unwrap();
    let failing = get(&router, "/health").await;
    assert_eq!(failing.status(), StatusCode::SERVICE_UNAVAILABLE);
    let failing: Value = serde_json::from_str(&text(failing).await).unwrap();
    assert_eq!((&failing["state"], &failing["reasons"][0]["kind"]), (&"failing".into(), &"closed".into()));
}

#[tokio::test]
async fn lock_stats_have_the_fields_that_monitoring_asks_for_and_wait_and_hold_apart() {
    let db =
        TestDb::open_with(|config| config.health.import_duration_degraded = Duration::from_secs(3600)).await;
    let router = http::router(db.clone());
    let empty = json(&router, "/health/database-lock-stats").await;
    assert_eq!(empty["total_imports_last_hour"], 0);
    assert_eq!(empty["avg_import_duration_seconds"], 0.0);
    assert_eq!(empty["max_import_duration_seconds"], 0.0);
    assert_eq!(empty["status"], "healthy");

    for from in [0, 100] {
        let import = db.import("catalog", stream::iter(from..from + 100));
        soon(import.run(|tx, x: &i64| tx.execute("INSERT INTO t (x) VALUES (?1)", [x]))).await.unwrap();
    }
    let stats = json(&router, "/health/database-lock-stats").await;
    assert_eq!(stats["total_imports_last_hour"], 2);
    assert!(stats["avg_import_duration_seconds"].as_f64().unwrap() > 0.0);
    assert!(stats["max_import_duration_seconds"].as_f64().unwrap() > 0.0);
    assert!(stats["max_batch_hold_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!((&stats["status"], &stats["imports_running"]), (&"healthy".into(), &0.into()));
    assert!(stats["hold"]["max_us"].as_u64().unwrap() > 0);
    assert!(stats["queue_wait"]["bulk"]["count"].as_u64().unwrap() >= 2);
    assert!(stats["group_commands"]["count"].as_u64().unwrap() > 0);
    assert_eq!(stats["batching_was_seen"], stats["group_commands"]["max"].as_u64().unwrap() > 1);
}

#[tokio::test]
async fn a_long_import_degrades_the_lock_stats() {
    let db =
        TestDb::open_with(|config| config.health.import_duration_degraded = Duration::from_nanos(1)).await;
    let import = db.import("catalog", stream::iter([1]));
    soon(import.run(|tx, x: &i64| tx.execute("INSERT INTO t (x) VALUES (?1)", [x]))).await.unwrap();
    let stats = json(&http::router(db.clone()), "/health/database-lock-stats").await;
    assert_eq!(stats["status"], "degraded");
}

#[tokio::test]
async fn metrics_are_for_prometheus_and_two_databases_do_not_mix() {
    let (one, two) = (
        TestDb::open_with(|config| config.name = "one".into()).await,
        TestDb::open_with(|config| config.name = "two".into()).await,
    );
    let both: Router = Router::new()
        .nest_service("/one", http::router(one.clone()))
        .nest_service("/two", http::router(two.clone()));
    for x in 0..5 {
        insert(&one, x).await.unwrap();
    }
    let committed = |name: &str, count: u32| {
        format!("solewriter_commands_total{{database=\"{name}\",outcome=\"committed\"}} {count}")
    };
    // The schema is the first.
    for scrape in 0..2 {
        let answer = get(&both, "/one/metrics").await;
        assert!(
            answer.headers()[header::CONTENT_TYPE].to_str().unwrap().starts_with("text/plain; version=0.0.4")
        );
        let page = text(answer).await;
        assert!(page.contains(&committed("one", 6)), "scrape {scrape}: {page}");
        assert!(page.contains("# TYPE solewriter_hold_seconds histogram"), "{page}");
        assert!(!page.contains("\"two\""), "{page}");
    }
    let page = text(get(&both, "/two/metrics").await).await;
    assert!(page.contains(&committed("two", 1)) && !page.contains("\"one\""), "{page}");
    for (path, name, count) in [("/one/stats.json", "one", 6), ("/two/stats.json", "two", 1)] {
        let sample = json(&both, path).await;
        assert_eq!(
            (&sample["database"], &sample["stats"]["commands"]["committed"]),
            (&name.into(), &count.into())
        );
        assert_eq!(sample["sample"], 1, "each counts its own");
    }
}

#[tokio::test]
async fn events_bring_the_document_of_stats_json_once_a_second() {
    let db = TestDb::open().await;
    let router = http::router(db.clone());
    let first = text(get(&router, "/stats.json").await).await;
    let mut events = Events::open(&router, "/events").await;
    let sample = events.sample().await.unwrap();
    assert_eq!(sample, serde_json::from_str::<Value>(&first).unwrap(), "it is there at once");
    let (name, charts) = events.next().await.unwrap();
    assert_eq!((name.as_str(), &charts["sample"]), ("charts", &sample["sample"]));
    let names: Vec<_> = charts["charts"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["depth", "group", "hold", "readers", "wait", "wal", "writes"]);

    insert(&db, 1).await.unwrap();
    let mut number = sample["sample"].as_u64();
    let next = loop {
        let next = events.sample().await.unwrap();
        assert!(next["sample"].as_u64() > number, "they go on");
        number = next["sample"].as_u64();
        if next["stats"]["commands"]["committed"] == 2 {
            break next;
        }
    };
    assert_eq!(next["interval"]["commands"]["committed"], 1);
    let seconds = next["interval"]["seconds"].as_f64().unwrap();
    let rate = next["interval"]["commits_per_second"].as_f64().unwrap();
    assert!((rate * seconds - 1.0).abs() < 1e-6, "{rate} in {seconds}");
}

#[tokio::test]
async fn the_drawings_need_no_style_and_no_script() {
    let db = TestDb::open().await;
    insert(&db, 1).await.unwrap();
    let router = http::router(db.clone());
    let mut events = Events::open(&router, "/events").await;
    let style = text(get(&router, "/dashboard.css").await).await;
    let charts = loop {
        let (name, data) = events.next().await.unwrap();
        if name == "charts" {
            break data;
        }
    };
    for (id, chart) in charts["charts"].as_object().unwrap() {
        let svg = chart["svg"].as_str().unwrap();
        assert!(svg.starts_with("<svg ") && svg.contains("<polyline"), "{id}: {svg}");
        for forbidden in ["style", "script", "href", "<image", " on"] {
            assert!(!svg.contains(forbidden), "{id} contains {forbidden}");
        }
        assert!(chart["label"].as_str().unwrap().contains("over the last five minutes"), "{chart}");
        // The page has a colour of its own theme for each that is drawn.
        for part in svg.split("stroke=\"").skip(1) {
            let colour = part.split('"').next().unwrap();
            assert!(style.contains(&format!("[stroke=\"{colour}\"]")), "{id}: {colour}");
        }
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_gets_the_newest_sample_and_holds_nobody_up() {
    let db = TestDb::open().await;
    let router = http::router(db.clone());
    let mut slow = Events::open(&router, "/events").await;
    let mut quick = Events::open(&router, "/events").await;
    let first = slow.sample().await.unwrap()["sample"].as_u64().unwrap();
    let mut newest = 0;
    while newest < first + 3 {
        newest = quick.sample().await.unwrap()["sample"].as_u64().unwrap();
    }
    assert!(slow.sample().await.unwrap()["sample"].as_u64().unwrap() >= newest);
}

#[tokio::test]
async fn event_streams_are_limited_and_give_their_place_back() {
    let db = TestDb::open().await;
    let router = http::router(db.clone());
    let mut open = Vec::new();
    for _ in 0..http::EVENT_STREAMS_MAX {
        open.push(Events::open(&router, "/events").await);
    }
    let refused = get(&router, "/events").await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(text(refused).await.contains("64 event streams"));
    assert_eq!(get(&router, "/health").await.status(), StatusCode::OK);
    drop(open.pop());
    Events::open(&router, "/events").await;
}

#[tokio::test]
async fn events_end_when_the_database_is_closed_and_the_page_still_says_so() {
    let db = TestDb::open().await;
    let router = http::router(db.clone());
    let mut events = Events::open(&router, "/events").await;
    events.sample().await.unwrap();
    db.shutdown(Drain::within(HANG)).await.unwrap();
    while events.next().await.is_some() {}

    let mut again = Events::open(&router, "/events").await;
    again.sample().await.expect("it tells once more how things are");
    while again.next().await.is_some() {}
    let failing = async {
        while json(&router, "/stats.json").await["health"]["state"] != "failing" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon(failing).await;
}

#[tokio::test]
async fn a_server_that_stops_gracefully_does_not_wait_for_event_streams() {
    let db = TestDb::open().await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stopping = futures_util::FutureExt::shared(async move { drop(stopped.await) });
    let app = http::router_until(db.clone(), stopping.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(axum::serve(listener, app).with_graceful_shutdown(stopping).into_future());
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET /events HTTP/1.1\r\nHost: {address}\r\n\r\n");
    tokio::io::AsyncWriteExt::write_all(&mut client, request.as_bytes()).await.unwrap();
    let mut begin = [0; 64];
    assert!(soon(tokio::io::AsyncReadExt::read(&mut client, &mut begin)).await.unwrap() > 0);
    stop.send(()).unwrap();
    soon(server).await.unwrap().unwrap();
    insert(&db, 1).await.expect("the database is still open");
}

#[tokio::test]
async fn a_layer_in_front_guards_every_route() {
    async fn guard(
        headers: HeaderMap,
        request: axum::extract::Request,
        next: axum::middleware::Next,
    ) -> Response<Body> {
        if headers.get(header::AUTHORIZATION).is_some_and(|sent| sent == "Bearer sesame") {
            return next.run(request).await;
        }
        axum::response::IntoResponse::into_response(StatusCode::UNAUTHORIZED)
    }
    let db = TestDb::open().await;
    let guarded = http::router(db.clone()).layer(axum::middleware::from_fn(guard));
    let app: Router = Router::new().nest_service("/ops", guarded);
    for path in ROUTES.into_iter().chain(["/secrets"]) {
        let path = format!("/ops{path}");
        assert_eq!(get(&app, &path).await.status(), StatusCode::UNAUTHORIZED, "{path}");
        let with =
            Request::get(&path).header(header::AUTHORIZATION, "Bearer sesame").body(Body::empty()).unwrap();
        assert_ne!(app.clone().oneshot(with).await.unwrap().status(), StatusCode::UNAUTHORIZED, "{path}");
    }
}

#[tokio::test]
async fn a_router_that_is_dropped_leaves_nothing_behind_that_keeps_the_database_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let db = Database::open(&path).await.unwrap();
    let router = http::router(db);
    let mut events = Events::open(&router, "/events").await;
    events.sample().await.unwrap();
    drop(router);
    while events.next().await.is_some() {}
    // The lock of the file is free again once everything is closed.
    until("the database closes", || std::fs::metadata(common::beside(&path, "-wal")).is_err()).await;
}
