//! Samples as they are taken, as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderValue, StatusCode};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::sample::Sample;
use super::{EVENT_STREAMS_MAX, Operations};

/// How long a browser waits before it connects again.
const RETRY: Duration = Duration::from_secs(2);

pub(super) async fn events(State(operations): State<Arc<Operations>>) -> Response {
    let Ok(place) = operations.streams.clone().try_acquire_owned() else {
        let message = format!("{EVENT_STREAMS_MAX} event streams are open, and no more are allowed\n");
        return (StatusCode::SERVICE_UNAVAILABLE, message).into_response();
    };
    let (meter, stopping) = (operations.db.service().meter.clone(), operations.stopping.clone());
    let over = async move {
        tokio::select! {
            () = meter.closed() => (),
            () = stopping => (),
        }
    };
    let stream =
        Stream { samples: operations.sampler.subscribe(), charts: None, over: over.boxed(), _place: place };
    let events = Sse::new(futures_util::stream::unfold(stream, Stream::next));
    // Else it would say `no-cache`, which lets a browser keep them.
    let mut answer = events.into_response();
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// A client that listens. It keeps nothing waiting: what it does not take in time is replaced by what is newer.
struct Stream {
    samples: watch::Receiver<Option<Arc<Sample>>>,
    /// The sample whose charts are still to be sent.
    charts: Option<Arc<Sample>>,
    over: BoxFuture<'static, ()>,
    _place: OwnedSemaphorePermit,
}

impl Stream {
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        if let Some(sample) = self.charts.take() {
            let event = Event::default().event("charts").data(sample.charts());
            return Some((Ok(event), self));
        }
        let sample = tokio::select! {
            // A sample that is there already is sent before the end.
            biased;
            changed = self.samples.changed() => changed.ok().and_then(|()| self.samples.borrow_and_update().clone()),
            () = &mut self.over => None,
        }?;
        let event = Event::default().event("sample").id(sample.number.to_string()).retry(RETRY);
        let event = event.data(&sample.document);
        self.charts = Some(sample);
        Some((Ok(event), self))
    }
}
