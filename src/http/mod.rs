//! How a service is, over HTTP: an axum [`Router`] with health, metrics, live figures and a dashboard.
//!
//! | route | answer |
//! |---|---|
//! | `GET /` | the dashboard, a page that needs nothing from anywhere else |
//! | `GET /health` | [`Health`] as JSON; status 503 while it is failing, else 200 |
//! | `GET /health/database-lock-stats` | how long the write lock is held and waited for, and the imports of the last hour |
//! | `GET /metrics` | the metrics of [`Publisher`], as text for Prometheus |
//! | `GET /stats.json` | the newest sample: everything that the dashboard shows |
//! | `GET /events` | each sample as it is taken, as server-sent events |
//!
//! It only tells: no route changes anything, and no answer has a bound value in it. Labels, constraints and the
//! name of the file are shown, so put your own authentication in front:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let db = solewriter::Database::open(dir.path().join("app.db")).await?;
//! use axum::extract::Request;
//! use axum::http::{StatusCode, header};
//! use axum::middleware::{Next, from_fn};
//! use axum::response::{IntoResponse, Response};
//!
//! /// Browsers ask for the name and the password; everything the page fetches then carries them too.
//! async fn authenticate(request: Request, next: Next) -> Response {
//!     // "operator:open sesame" in Base64; yours comes from the configuration.
//!     const EXPECTED: &str = "Basic b3BlcmF0b3I6b3BlbiBzZXNhbWU=";
//!     match request.headers().get(header::AUTHORIZATION) {
//!         Some(sent) if sent == EXPECTED => next.run(request).await,
//!         _ => (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic")]).into_response(),
//!     }
//! }
//!
//! let operations = solewriter::http::router(db.clone()).layer(from_fn(authenticate));
//! let app: axum::Router = axum::Router::new().nest_service("/ops", operations);
//! # use tower::ServiceExt;
//! # let request = |uri| axum::http::Request::get(uri);
//! # let answer = app.clone().oneshot(request("/ops/health").body(axum::body::Body::empty())?).await?;
//! # assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
//! # let with = request("/ops/health").header("authorization", "Basic b3BlcmF0b3I6b3BlbiBzZXNhbWU=");
//! # assert_eq!(app.oneshot(with.body(axum::body::Body::empty())?).await?.status(), StatusCode::OK);
//! # Ok(()) }
//! ```
//!
//! The [dashboard guide](crate::guide::dashboard) has the fields of a sample, and how to read the page.
//!
//! [`Health`]: crate::Health

mod answers;
mod charts;
mod drawing;
mod events;
mod headers;
mod history;
mod page;
mod sample;
mod sampler;
mod words;

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::middleware::map_response;
use axum::routing::get;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::Semaphore;

use crate::database::Database;
use crate::metrics::Publisher;
use sampler::Sampler;

/// How many event streams may be open at a time; more are refused with status 503.
pub const EVENT_STREAMS_MAX: usize = 64;

/// The routes that tell how the service behind `db` is.
///
/// Serve them at the root, or behind any prefix with [`nest_service`](Router::nest_service); the page is then found
/// with and without a slash at the end ([`nest`](Router::nest) knows only the one without). Routers of several
/// databases, each behind a prefix of its own, share nothing.
///
/// Figures are sampled once a second while somebody looks, and for half a minute after; a router that nobody
/// looks at costs nothing. It is a handle like any other: it keeps the database open.
/// Serve it on a Tokio runtime with time enabled, as axum does.
///
/// Event streams end when the database is closed. A server that finishes its requests before it closes
/// the database waits for them: use [`router_until`] there.
///
/// # Examples
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let db = solewriter::Database::open(dir.path().join("app.db")).await?;
/// use axum::http::{Request, StatusCode};
/// use tower::ServiceExt;
///
/// let app: axum::Router = axum::Router::new().nest_service("/ops", solewriter::http::router(db.clone()));
/// let health = app.oneshot(Request::get("/ops/health").body(axum::body::Body::empty())?).await?;
/// assert_eq!(health.status(), StatusCode::OK);
/// # Ok(()) }
/// ```
pub fn router(db: Database) -> Router {
    router_until(db, std::future::pending())
}

/// As [`router`], and its event streams end once `stopping` is ready too: give it what you give to
/// `axum::serve(..).with_graceful_shutdown(..)`, which waits for every open answer.
///
/// ```no_run
/// # async fn serve(listener: tokio::net::TcpListener, db: solewriter::Database) -> std::io::Result<()> {
/// use futures_util::FutureExt;
///
/// let stopping = async { drop(tokio::signal::ctrl_c().await) }.boxed().shared();
/// let app = axum::Router::new().nest_service("/ops", solewriter::http::router_until(db, stopping.clone()));
/// axum::serve(listener, app).with_graceful_shutdown(stopping).await
/// # }
/// ```
pub fn router_until(db: Database, stopping: impl Future<Output = ()> + Send + 'static) -> Router {
    let operations = Arc::new(Operations::new(db, stopping.boxed().shared()));
    Router::new()
        .route("/", get(page::page))
        .route("/dashboard.css", get(page::style))
        .route("/dashboard.js", get(page::script))
        .route("/icon.svg", get(page::icon))
        .route("/health", get(answers::health))
        .route("/health/database-lock-stats", get(answers::lock_stats))
        .route("/metrics", get(answers::metrics_page))
        .route("/stats.json", get(answers::stats))
        .route("/events", get(events::events))
        .layer(map_response(headers::secure))
        .with_state(operations)
}

/// What the routes share.
struct Operations {
    db: Database,
    sampler: Arc<Sampler>,
    streams: Arc<Semaphore>,
    stopping: Shared<BoxFuture<'static, ()>>,
    publisher: Publisher,
}

impl Operations {
    fn new(db: Database, stopping: Shared<BoxFuture<'static, ()>>) -> Self {
        Self {
            sampler: Arc::new(Sampler::new(db.clone())),
            streams: Arc::new(Semaphore::new(EVENT_STREAMS_MAX)),
            stopping,
            publisher: Publisher::new(&db),
            db,
        }
    }
}

impl fmt::Debug for Operations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operations").field("db", &self.db).finish_non_exhaustive()
    }
}
