//! The marketplace as a small web service: the catalog, its search, renames, imports, and the dashboard of its
//! sole writer.
//!
//! `mod` is how it begins and ends, `entries` and `imports` are the routes, `running` knows the imports at work,
//! `search` asks the full-text index, `failure` is what errors become.

mod entries;
mod failure;
mod imports;
mod running;
mod search;
#[cfg(test)]
mod tests;

use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::Html;
use axum::routing::{get, post};
use futures_util::FutureExt;
use solewriter::http;

use crate::error::Error;
use crate::marketplace::{Marketplace, Source};
use crate::writer::SoleWriter;
use running::RunningImports;

/// What all routes share.
struct Shop {
    writer: Arc<SoleWriter>,
    sources: Vec<Arc<Source>>,
    imports: Arc<RunningImports>,
}

impl Shop {
    fn new(writer: SoleWriter, marketplace: &Marketplace) -> Arc<Shop> {
        let sources = marketplace.sources.clone();
        Arc::new(Shop { writer: Arc::new(writer), sources, imports: Arc::default() })
    }

    /// The source that people call by its id or its name.
    fn source(&self, called: &str) -> Option<&Arc<Source>> {
        self.sources.iter().find(|source| source.id == called || source.repo_name == called)
    }
}

/// Takes the address, before there is anything to serve.
///
/// # Errors
/// The address is no address, or somebody else has it.
pub(crate) fn bind(address: &str) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    // As Tokio needs it.
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// How long open answers may take once the service stops.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves the database at `db_path` until Ctrl-C; then cancels the imports, finishes what was accepted and closes
/// it. `work` is slept for each entry that is imported.
///
/// # Errors
/// What keeps the database from being opened, served or closed.
pub(crate) async fn serve(
    listener: TcpListener,
    db_path: &Path,
    marketplace: &Marketplace,
    work: Duration,
) -> Result<(), Error> {
    let listener = tokio::net::TcpListener::from_std(listener).map_err(Error::Serve)?;
    let address = listener.local_addr().map_err(Error::Serve)?;
    let shop = Shop::new(SoleWriter::open(db_path, work).await?, marketplace);
    let stopping = interrupted().boxed().shared();
    let operations = http::router_until(shop.writer.database.clone(), stopping.clone());
    println!("serving http://{address}/ and the dashboard http://{address}/ops/ until Ctrl-C");
    let app = router(Arc::clone(&shop), operations);
    let served = axum::serve(listener, app).with_graceful_shutdown(stopping.clone()).into_future();
    // Whoever has an answer open and does not read it would keep the server waiting.
    let patience = async {
        stopping.await;
        tokio::time::sleep(PATIENCE).await;
    };
    let served = tokio::select! {
        served = served => served,
        () = patience => Ok(()),
    };

    // Requests are finished now, imports would go on.
    shop.imports.cancel_all().await;
    let report = shop.writer.shutdown().await?;
    println!(
        "closed; commands not reached: {}, pages left in the WAL: {}",
        report.not_started, report.wal_pages_left
    );
    served.map_err(Error::Serve)
}

async fn interrupted() {
    if let Err(error) = tokio::signal::ctrl_c().await {
        eprintln!("cannot wait for Ctrl-C: {error}");
        std::future::pending::<()>().await;
    }
}

fn router(shop: Arc<Shop>, operations: Router) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/entries", get(entries::list))
        .route("/entries/search", get(entries::search))
        .route("/entries/{id}/rename", post(entries::rename))
        .route("/imports", get(imports::list).post(imports::start))
        .route("/imports/{id}", get(imports::show))
        .route("/imports/{id}/pause", post(imports::pause))
        .route("/imports/{id}/resume", post(imports::resume))
        .route("/imports/{id}/cancel", post(imports::cancel))
        .with_state(shop)
        .nest_service("/ops", operations)
}

/// The way to everything else.
async fn index(State(shop): State<Arc<Shop>>) -> Html<String> {
    let sources = shop.sources.iter().map(|source| {
        let (name, count) = (&source.repo_name, source.entry_count());
        format!("<li><a href=\"/entries?source={name}\">{name}</a>, {count} entries</li>\n")
    });
    Html(format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Marketplace</title>\n\
         <h1>Marketplace</h1>\n<ul>\n{}</ul>\n\
         <form action=\"/entries/search\"><label>Search <input name=\"q\"></label> <button>Go</button></form>\n\
         <p><a href=\"/imports\">Imports</a> · <a href=\"/ops/\">Dashboard</a></p></html>\n",
        sources.collect::<String>()
    ))
}
