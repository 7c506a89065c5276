//! Everything that others than the caller get to see of a service.

use std::io;
use std::sync::{Mutex, Once};

use serde::Serialize;
use solewriter::Database;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::secrets::assert_clean;

/// What anyone in this process has said, on every level.
static SAID: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Said;

impl io::Write for Said {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        SAID.lock().unwrap().extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writer and readers have threads of their own, so only a subscriber of the whole process hears them.
pub(crate) fn listen() {
    static START: Once = Once::new();
    START.call_once(|| {
        let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE);
        subscriber.with_span_events(FmtSpan::FULL).with_ansi(false).with_writer(|| Said).init();
    });
}

/// Parts of the statements that are sent.
const STATEMENTS: [&str; 4] = ["INTO vault", "INTO named", "SELECT ?1", "ATTACH ?1"];

/// Fails if there is a secret in what anyone can look at, or a statement.
fn assert_shown(place: &str, text: &str) {
    assert_clean(place, text);
    for part in STATEMENTS {
        assert!(!text.contains(part), "{place} shows a statement:\n{text}");
    }
}

/// Fails if there is a secret in what was said, or if one of these words is not.
pub(crate) fn assert_said(words: &[&str]) {
    let said = String::from_utf8(SAID.lock().unwrap().clone()).unwrap();
    for word in words {
        assert!(said.contains(word), "it was not listened to: {word}");
    }
    said.lines().filter(|line| !line.is_empty()).for_each(|line| assert_shown("what was said", line));
}

fn written(place: &str, seen: &(impl std::fmt::Debug + Serialize)) {
    assert_shown(place, &format!("{seen:?}"));
    assert_shown(place, &serde_json::to_string(seen).unwrap());
}

/// Looks at all that a handle tells of a database, at the metrics and at every route, and fails if there is a secret
/// anywhere.
pub(crate) async fn look(db: &Database) {
    written("health", &db.health());
    written("stats", &db.stats());
    written("the last failures", &db.recent_failures());
    written("who holds the writer", &db.holder());
    written("the oldest read", &db.oldest_read());
    written("the imports", &db.imports());
    match db.import_records(100).await {
        Ok(records) => written("the records of imports", &records),
        Err(error) => assert_clean("the records of imports", &crate::sent::told(&error).text),
    }
    assert_clean("the configuration", &format!("{:?}", db.config()));
    #[cfg(feature = "metrics")]
    assert_shown("the metrics", &published(db));
    #[cfg(feature = "http")]
    routes::look(&solewriter::http::router(db.clone())).await;
}

/// What a recorder is given: names, labels, units, descriptions and values.
#[cfg(feature = "metrics")]
fn published(db: &Database) -> String {
    let recorder = metrics_util::debugging::DebuggingRecorder::new();
    metrics::with_local_recorder(&recorder, || solewriter::metrics::Publisher::new(db).publish());
    format!("{:?}", recorder.snapshotter().snapshot().into_vec())
}

#[cfg(feature = "http")]
pub(crate) mod routes {
    use axum::Router;
    use axum::body::Body;
    use axum::http::Request;
    use futures_util::StreamExt;
    use tower::ServiceExt;

    use super::assert_shown;
    use crate::common::soon;

    const ROUTES: [&str; 10] = [
        "/",
        "/dashboard.css",
        "/dashboard.js",
        "/icon.svg",
        "/health",
        "/health/database-lock-stats",
        "/metrics",
        "/stats.json",
        "/events",
        "/nowhere",
    ];

    pub(crate) async fn look(router: &Router) {
        for path in ROUTES {
            assert_shown(path, &answer(router, path).await);
        }
    }

    /// The headers and the body of an answer; of a stream of events, which does not end, one of each kind.
    pub(crate) async fn answer(router: &Router, path: &str) -> String {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = soon(router.clone().oneshot(request)).await.unwrap();
        let mut text = format!("{} {:?}\n", answer.status(), answer.headers());
        let mut body = answer.into_body().into_data_stream();
        while let Some(bytes) = soon(body.next()).await {
            text.push_str(&String::from_utf8_lossy(&bytes.unwrap()));
            if path == "/events" && text.contains("event: charts") && text.ends_with("\n\n") {
                break;
            }
        }
        text
    }
}
