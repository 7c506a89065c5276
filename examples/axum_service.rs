//! A small HTTP service: the handle is the state, errors become status codes, Ctrl-C closes in order.
//!
//! `cargo run --example axum_service [ADDRESS]`, then
//! `curl -d 'buy tea' localhost:3000/notes` and `curl localhost:3000/notes`.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use solewriter::{Database, Drain, ReadError, Retry, Stats, WriteError};

#[derive(Serialize)]
struct Note {
    id: i64,
    text: String,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt::init();
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".into());
    let directory = tempfile::tempdir()?;
    let db = Database::open(directory.path().join("notes.db")).await?;
    db.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL CHECK (text <> ''))", ())
        .await?;

    let router = Router::new()
        .route("/notes", get(list).post(add))
        .route("/notes/{id}", get(show).delete(remove))
        .route("/stats", get(stats))
        .with_state(db.clone());
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, router).with_graceful_shutdown(interrupted()).await?;

    // Requests are finished now; so is, within the limit, every write that was accepted.
    let report = db.shutdown(Drain::within(Duration::from_secs(10))).await?;
    println!("closed; {} commands were not reached", report.not_started);
    Ok(())
}

async fn list(State(db): State<Database>) -> Result<Json<Vec<Note>>, Failure> {
    let notes =
        db.read("notes.list", |tx| tx.query_all("SELECT id, text FROM notes ORDER BY id", (), note)).await?;
    Ok(Json(notes))
}

async fn show(State(db): State<Database>, Path(id): Path<i64>) -> Result<Json<Note>, Failure> {
    let note = db
        .read("notes.show", move |tx| tx.query_row("SELECT id, text FROM notes WHERE id = ?1", [id], note))
        .await?;
    Ok(Json(note))
}

/// If the client goes away before the note is written, it is written all the same: the default.
async fn add(State(db): State<Database>, text: String) -> Result<(StatusCode, Json<Note>), Failure> {
    let mut notes = db
        .execute_returning("INSERT INTO notes (text) VALUES (?1) RETURNING id, text", (text,), note)
        .label("notes.add")
        .deadline(Duration::from_secs(5))
        .await?;
    let note = notes.pop().ok_or(Failure(StatusCode::INTERNAL_SERVER_ERROR))?;
    Ok((StatusCode::CREATED, Json(note)))
}

async fn remove(State(db): State<Database>, Path(id): Path<i64>) -> Result<StatusCode, Failure> {
    let removed = db.execute("DELETE FROM notes WHERE id = ?1", (id,)).label("notes.remove").await?;
    Ok(if removed == 1 { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND })
}

async fn stats(State(db): State<Database>) -> Json<Stats> {
    Json(db.stats())
}

fn note(row: &rusqlite::Row<'_>) -> rusqlite::Result<Note> {
    Ok(Note { id: row.get(0)?, text: row.get(1)? })
}

/// An error of the database as HTTP tells it.
struct Failure(StatusCode);

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        tracing::warn!(%error, outcome = ?error.outcome(), "write failed");
        Self(match (&error, error.retry()) {
            (WriteError::Command(cause), _)
                if cause.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) =>
            {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            (_, Retry::Now | Retry::Later) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        })
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        Self(match (&error, error.retry()) {
            (ReadError::Query(rusqlite::Error::QueryReturnedNoRows), _) => StatusCode::NOT_FOUND,
            (_, Retry::Now | Retry::Later) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        })
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

async fn interrupted() {
    if let Err(error) = tokio::signal::ctrl_c().await {
        tracing::error!(%error, "cannot wait for Ctrl-C");
        std::future::pending::<()>().await;
    }
}
