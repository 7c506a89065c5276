//! The routes for programs: health, lock figures, metrics, the newest sample.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::Operations;
use crate::health::{HealthState, Waiter};
use crate::holder::Holder;
use crate::import::ImportFigures;
use crate::lane::PerLane;
use crate::metrics;
use crate::stats::{Counts, Durations};
use crate::units::micros;

pub(super) async fn health(State(operations): State<Arc<Operations>>) -> Response {
    let health = operations.db.health();
    let status = match health.state {
        HealthState::Healthy | HealthState::Degraded => StatusCode::OK,
        HealthState::Failing => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, json(&health)).into_response()
}

/// How long the write lock is held and waited for. The import figures stand first, under the names that
/// monitoring of SQLite services asks for.
#[derive(Serialize)]
struct LockStats {
    #[serde(flatten)]
    imports: ImportFigures,
    imports_running: usize,
    holder: Option<Holder>,
    oldest_waiter: Option<Waiter>,
    hold: Durations,
    commit: Durations,
    queue_wait: PerLane<Durations>,
    queue_depth: PerLane<usize>,
    group_commands: Counts,
    /// Whether any group since the open held more than one command.
    batching_was_seen: bool,
    groups_committed: u64,
    groups_lost: u64,
    foreign_waits: u64,
    #[serde(rename = "foreign_wait_us", serialize_with = "micros")]
    foreign_wait: Duration,
}

pub(super) async fn lock_stats(State(operations): State<Arc<Operations>>) -> Response {
    let service = operations.db.service();
    let stats = service.meter.measure().stats;
    let health = service.health_by(stats.clone());
    json(&LockStats {
        imports: health.imports,
        imports_running: service.meter.imports().len(),
        holder: health.holder,
        oldest_waiter: health.oldest_waiter,
        hold: stats.hold,
        commit: stats.commit,
        queue_wait: stats.wait,
        queue_depth: stats.queue_depth,
        group_commands: stats.group_commands,
        batching_was_seen: stats.group_commands.max > 1,
        groups_committed: stats.groups_committed,
        groups_lost: stats.groups_lost,
        foreign_waits: stats.foreign_waits,
        foreign_wait: stats.foreign_wait,
    })
}

pub(super) async fn metrics_page(State(operations): State<Arc<Operations>>) -> Response {
    match operations.publisher.page() {
        Ok(page) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], page).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics could not be rendered");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

pub(super) async fn stats(State(operations): State<Arc<Operations>>) -> Response {
    let sample = operations.sampler.newest();
    ([(CONTENT_TYPE, "application/json")], sample.document.to_string()).into_response()
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(text) => ([(CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "an answer could not be written as JSON");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
