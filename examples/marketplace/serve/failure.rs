//! What errors become: a status, and a JSON object that says why.

use std::error::Error as StdError;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use solewriter::{ReadError, Retry, WriteError};

use super::search::SearchError;
use crate::catalog::RenameError;
use crate::error::with_causes;

/// An answer that is none.
#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    reason: String,
}

impl Failure {
    pub(super) fn new(status: StatusCode, reason: impl Into<String>) -> Failure {
        Failure { status, reason: reason.into() }
    }

    /// What is not the client's fault: to be tried again, or to be mended by whoever reads our output.
    fn ours(error: &(dyn StdError + 'static), retry: Retry) -> Failure {
        eprintln!("{}", with_causes(error));
        match retry {
            Retry::Now | Retry::Later => Failure::new(StatusCode::SERVICE_UNAVAILABLE, "try again later"),
            _ => Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the request could not be answered"),
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "error": self.reason }))).into_response()
    }
}

impl From<WriteError<RenameError>> for Failure {
    fn from(error: WriteError<RenameError>) -> Failure {
        match &error {
            WriteError::Command(refused @ RenameError::NotFound) => {
                Failure::new(StatusCode::NOT_FOUND, refused.to_string())
            }
            WriteError::Command(refused @ (RenameError::WrongSource | RenameError::BadName { .. })) => {
                Failure::new(StatusCode::BAD_REQUEST, refused.to_string())
            }
            _ => Failure::ours(&error, error.retry()),
        }
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Failure {
        Failure::ours(&error, error.retry())
    }
}

impl From<SearchError> for Failure {
    fn from(error: SearchError) -> Failure {
        Failure::new(StatusCode::BAD_REQUEST, error.to_string())
    }
}

impl From<JsonRejection> for Failure {
    fn from(rejection: JsonRejection) -> Failure {
        Failure::new(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for Failure {
    fn from(rejection: QueryRejection) -> Failure {
        Failure::new(rejection.status(), rejection.body_text())
    }
}
