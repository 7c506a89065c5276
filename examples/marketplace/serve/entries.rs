//! The catalog: a page of a source, the search, a rename.

use std::num::NonZero;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::Shop;
use super::failure::Failure;
use super::search::{Found, Words, search_entries};
use crate::catalog::{Entry, Page, Rename, list_entries};
use crate::store::now;

const PAGE_ENTRIES: usize = 25;

#[derive(Deserialize)]
pub(super) struct ListQuery {
    /// A source's id or name.
    source: String,
    /// From 1.
    #[serde(default = "first_page")]
    page: NonZero<u32>,
}

fn first_page() -> NonZero<u32> {
    NonZero::<u32>::MIN
}

#[derive(Serialize)]
pub(super) struct Listed {
    source: String,
    page: NonZero<u32>,
    entries: Vec<Entry>,
}

/// `GET /entries?source=&page=`
pub(super) async fn list(
    State(shop): State<Arc<Shop>>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Listed>, Failure> {
    let Query(ListQuery { source, page }) = query?;
    let Some(source) = shop.source(&source) else {
        return Err(Failure::new(StatusCode::NOT_FOUND, "there is no such source"));
    };
    let source = source.id.clone();
    let offset = (page.get() as usize - 1) * PAGE_ENTRIES;
    let asked = Page { source_id: source.clone(), offset, limit: PAGE_ENTRIES };
    let entries = shop.writer.database.read("entries.list", move |tx| list_entries(tx, &asked)).await?;
    Ok(Json(Listed { source, page, entries }))
}

#[derive(Deserialize)]
pub(super) struct SearchQuery {
    q: String,
}

/// `GET /entries/search?q=`
pub(super) async fn search(
    State(shop): State<Arc<Shop>>,
    query: Result<Query<SearchQuery>, QueryRejection>,
) -> Result<Json<Vec<Found>>, Failure> {
    let Query(SearchQuery { q }) = query?;
    let words = Words::typed(&q)?;
    let found = shop
        .writer
        .database
        .read("entries.search", move |tx| search_entries(tx, &words, PAGE_ENTRIES))
        .await?;
    Ok(Json(found))
}

#[derive(Deserialize)]
pub(super) struct RenameBody {
    /// The source that the entry has to belong to, by its id or name.
    source: String,
    name: String,
}

/// `POST /entries/{id}/rename`
pub(super) async fn rename(
    State(shop): State<Arc<Shop>>,
    Path(entry_id): Path<String>,
    body: Result<Json<RenameBody>, JsonRejection>,
) -> Result<Json<Entry>, Failure> {
    let Json(RenameBody { source, name }) = body?;
    // A source that nobody knows is the wrong one.
    let source_id = shop.source(&source).map_or(source, |source| source.id.clone());
    let renamed = shop.writer.database.send(Rename { source_id, entry_id, name, at: now() }).await?;
    Ok(Json(renamed))
}
