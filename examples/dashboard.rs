//! The dashboard of a small service at work, with a password in front.
//!
//! `DASHBOARD_PASSWORD=... cargo run --features http --example dashboard [ADDRESS]`, then open
//! <http://localhost:3000/ops/> as `operator`. Ctrl-C closes in order.

use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum_extra::TypedHeader;
use axum_extra::headers::Authorization;
use axum_extra::headers::authorization::Basic;
use futures_util::{FutureExt, stream};
use sha2::{Digest, Sha256};
use solewriter::{Database, Drain, Lane, http};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt::init();
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".into());
    let password = std::env::var("DASHBOARD_PASSWORD").map_err(|_| "DASHBOARD_PASSWORD is not set")?;
    let directory = tempfile::tempdir()?;
    let db = Database::open(directory.path().join("shop.db")).await?;
    db.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, item TEXT NOT NULL, reference UNIQUE)", ())
        .await?;

    let stopping = interrupted().boxed().shared();
    let operations = http::router_until(db.clone(), stopping.clone())
        .layer(from_fn_with_state(digest(&password), authenticate));
    let app = Router::new().nest_service("/ops", operations);
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("the dashboard is at http://{}/ops/", listener.local_addr()?);
    let work = tokio::spawn(customers(db.clone()));
    let imports = tokio::spawn(import_again_and_again(db.clone()));
    let served = axum::serve(listener, app).with_graceful_shutdown(stopping.clone()).into_future();
    // Whoever has an answer open and does not read it would keep the server waiting.
    let patience = async {
        stopping.await;
        tokio::time::sleep(Duration::from_secs(5)).await;
    };
    tokio::select! {
        served = served => served?,
        () = patience => {}
    }

    work.abort();
    imports.abort();
    db.shutdown(Drain::within(Duration::from_secs(10))).await?;
    Ok(())
}

/// Lets through who knows the password. Browsers ask for it and send it with everything the page fetches.
async fn authenticate(
    State(expected): State<[u8; 32]>,
    credentials: Option<TypedHeader<Authorization<Basic>>>,
    request: Request,
    next: Next,
) -> Response {
    // Digests, so that the time it takes tells nothing about the password.
    let is_operator =
        credentials.is_some_and(|sent| sent.username() == "operator" && digest(sent.password()) == expected);
    if is_operator {
        return next.run(request).await;
    }
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=\"operations\"")]).into_response()
}

fn digest(password: &str) -> [u8; 32] {
    Sha256::digest(password).into()
}

/// Some traffic to look at: customers who order in waves, now and then the same thing twice.
async fn customers(db: Database) {
    for wave in 0_u64.. {
        let orders = 10 + (wave % 50);
        for order in 0..orders {
            let db = db.clone();
            tokio::spawn(async move {
                // One reference in 8,000 has been there before: a failure to look at.
                let reference = if fastrand::u32(..8_000) == 0 { 1 } else { wave * 1_000 + order };
                let sql = "INSERT INTO orders (item, reference) VALUES ('tea', ?1)";
                drop(db.execute(sql, (reference as i64,)).label("orders.place").await);
                let count = |tx: &solewriter::ReadTransaction<'_>| {
                    tx.query_row("SELECT max(id) FROM orders", (), |row| row.get::<_, i64>(0))
                };
                drop(db.read("orders.newest", count).await);
            });
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn import_again_and_again(db: Database) {
    loop {
        let entries = stream::iter(0..2_000_i64);
        let import = db.import("orders.history", entries).prepare(4, |n: i64| async move {
            tokio::time::sleep(Duration::from_millis(15)).await;
            Ok::<_, rusqlite::Error>(n)
        });
        drop(import.run(|tx, n| tx.execute("INSERT INTO orders (item) VALUES (?1)", [n])).await);
        drop(db.execute("DELETE FROM orders WHERE id % 2", ()).lane(Lane::Maintenance).await);
    }
}

async fn interrupted() {
    if let Err(error) = tokio::signal::ctrl_c().await {
        tracing::error!(%error, "cannot wait for Ctrl-C");
        std::future::pending::<()>().await;
    }
}
