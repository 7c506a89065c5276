//! Metrics for Prometheus: a `/metrics` page that publishes before it renders.
//!
//! `cargo run --example prometheus --features metrics` asks itself for the page once, checks and prints it, and
//! ends. In a service, the router is nested where Prometheus may reach it.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use solewriter::metrics::{COMMANDS_BUCKETS, Publisher, SECONDS_BUCKETS};
use solewriter::{Database, Drain};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[derive(Clone)]
struct Metrics {
    publisher: Arc<Publisher>,
    prometheus: PrometheusHandle,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS_BUCKETS)?
        .set_buckets_for_metric(Matcher::Suffix("_commands".into()), &COMMANDS_BUCKETS)?
        .build_recorder();
    let prometheus = recorder.handle();
    // Whatever else in the process uses the `metrics` facade is on the same page.
    metrics::set_global_recorder(recorder)?;

    let directory = tempfile::tempdir()?;
    let db = Database::open(directory.path().join("notes.db")).await?;
    db.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL)", ()).await?;
    for text in ["first", "second", "third"] {
        db.execute("INSERT INTO notes (text) VALUES (?1)", (text,)).label("notes.add").await?;
    }

    let publisher = Arc::new(Publisher::new(&db).database("notes"));
    let router =
        Router::new().route("/metrics", get(metrics_page)).with_state(Metrics { publisher, prometheus });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let serving = tokio::spawn(async move { axum::serve(listener, router).await });

    let page = scrape(address).await?;
    println!("{page}");
    for line in [
        r#"solewriter_commands_total{database="notes",outcome="committed"} 4"#,
        r#"solewriter_queue_wait_seconds_count{database="notes",lane="interactive"} 4"#,
        r#"solewriter_group_commands_bucket{database="notes",le="1"} 4"#,
        r#"solewriter_refusing_writes{database="notes"} 0"#,
    ] {
        assert!(page.contains(line), "not on the page: {line}");
    }

    serving.abort();
    db.shutdown(Drain::within(Duration::from_secs(5))).await?;
    Ok(())
}

async fn metrics_page(State(metrics): State<Metrics>) -> impl IntoResponse {
    metrics.publisher.publish();
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.prometheus.render())
}

/// What Prometheus does every few seconds.
async fn scrape(address: std::net::SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await?;
    Ok(page)
}
