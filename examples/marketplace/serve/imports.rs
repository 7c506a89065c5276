//! Imports: begin one, look how far it is, pause it, let it go on, cancel it.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use solewriter::{ImportControl, ImportRecord, ImportStatus};

use super::Shop;
use super::failure::Failure;

/// How many records are looked through, the newest first.
const RECORDS_MAX: usize = 1_000;

#[derive(Deserialize)]
pub(super) struct StartBody {
    /// A source's id or name.
    source: String,
}

/// `POST /imports`: it goes on in the background, under the id in the answer.
pub(super) async fn start(
    State(shop): State<Arc<Shop>>,
    body: Result<Json<StartBody>, JsonRejection>,
) -> Result<(StatusCode, Json<Value>), Failure> {
    let Json(StartBody { source }) = body?;
    let Some(source) = shop.source(&source) else {
        return Err(Failure::new(StatusCode::NOT_FOUND, "there is no such source"));
    };
    let Some(id) = shop.imports.start(&shop.writer, source) else {
        return Err(Failure::new(StatusCode::CONFLICT, "the source is being imported"));
    };
    Ok((StatusCode::ACCEPTED, Json(json!({ "id": id }))))
}

#[derive(Serialize)]
pub(super) struct Imports {
    /// As they are now.
    running: Vec<ImportStatus>,
    /// As they are written down; those that run are as far as their last batch.
    records: Vec<ImportRecord>,
}

/// `GET /imports`
pub(super) async fn list(State(shop): State<Arc<Shop>>) -> Result<Json<Imports>, Failure> {
    let running = shop.writer.database.imports();
    let records = shop.writer.database.import_records(RECORDS_MAX).await?;
    Ok(Json(Imports { running, records }))
}

#[derive(Serialize)]
pub(super) struct Import {
    running: Option<ImportStatus>,
    record: Option<ImportRecord>,
}

/// `GET /imports/{id}`: both parts are null for the moment until it is at work.
pub(super) async fn show(
    State(shop): State<Arc<Shop>>,
    Path(id): Path<String>,
) -> Result<Json<Import>, Failure> {
    let running = shop.writer.database.imports().into_iter().find(|import| import.id.as_str() == id);
    let record = record(&shop, &id).await?;
    if running.is_none() && record.is_none() && shop.imports.control(&id).is_none() {
        return Err(not_found());
    }
    Ok(Json(Import { running, record }))
}

/// `POST /imports/{id}/pause`
pub(super) async fn pause(
    State(shop): State<Arc<Shop>>,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    control(&shop, &id, ImportControl::pause).await
}

/// `POST /imports/{id}/resume`
pub(super) async fn resume(
    State(shop): State<Arc<Shop>>,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    control(&shop, &id, ImportControl::resume).await
}

/// `POST /imports/{id}/cancel`
pub(super) async fn cancel(
    State(shop): State<Arc<Shop>>,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    control(&shop, &id, ImportControl::cancel).await
}

async fn control(shop: &Shop, id: &str, wish: fn(&ImportControl)) -> Result<StatusCode, Failure> {
    if let Some(control) = shop.imports.control(id) {
        wish(&control);
        return Ok(StatusCode::NO_CONTENT);
    }
    match record(shop, id).await? {
        Some(_) => Err(Failure::new(StatusCode::CONFLICT, "the import has ended")),
        None => Err(not_found()),
    }
}

async fn record(shop: &Shop, id: &str) -> Result<Option<ImportRecord>, Failure> {
    let records = shop.writer.database.import_records(RECORDS_MAX).await?;
    Ok(records.into_iter().find(|record| record.id.as_str() == id))
}

fn not_found() -> Failure {
    Failure::new(StatusCode::NOT_FOUND, "there is no such import")
}
