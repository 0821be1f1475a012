//! The exchange with the node's own metadata service.
//!
//! Each request has a connection of its own: there are a few in a second, over a link inside the host, and so no request can
//! meet a connection that has gone stale, none is ever repeated, and ending one is closing its connection. Redirects are
//! answers like any other.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header::RETRY_AFTER, uri::PathAndQuery};
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use thiserror::Error;
use tokio::time::Instant;
use tracing::{Instrument as _, field::Empty};

use super::{
    body::{Carried, carry},
    headers,
    path::MetadataPath,
    policy::Verb,
    turns::{Place, Refused, Shares, Turns},
};
use crate::metrics::Metrics;

/// Bounds of one exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// For a connection to the service.
    pub connect: Duration,
    /// For the head of the answer, the connection included.
    pub head: Duration,
    /// For the whole answer.
    pub whole: Duration,
    /// The largest answer, in bytes. The service's own are some tens of thousands.
    pub most: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            // Scheduled events may take two minutes when they are asked for the first time (its documentation); nobody here waits
            // so long, and the next request finds them.
            head: Duration::from_secs(10),
            whole: Duration::from_secs(30),
            most: 1024 * 1024,
        }
    }
}

/// Why the service has not answered.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ProxyError {
    /// Too many requests, of this pod or of all.
    #[error("too many requests to the node's metadata service; try again in {} ms", .0.retry_after.as_millis())]
    Share(Refused),
    /// No connection, or it broke.
    #[error("the node's metadata service cannot be asked: {0}")]
    Connection(String),
    /// No answer in time.
    #[error("the node's metadata service has not answered within {} s", .0.as_secs())]
    Late(Duration),
    /// Not an answer that can be passed on.
    #[error("the node's metadata service answered what cannot be passed on: {0}")]
    Answer(&'static str),
}

/// One request for the service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask<'a> {
    pub(super) verb: Verb,
    /// Path, and query as sent.
    pub(super) target: &'a PathAndQuery,
    /// As the pod sent them.
    pub(super) headers: &'a HeaderMap,
}

/// Asks the node's metadata service within bounds. Cheap to clone; clones share turns.
#[derive(Clone, Debug)]
pub(super) struct Proxy {
    client: Client<HttpConnector, Full<Bytes>>,
    endpoint: Uri,
    turns: Turns,
    bounds: Bounds,
    name: &'static str,
    metrics: Arc<Metrics>,
}

impl Proxy {
    /// `endpoint`: scheme and authority of the service. `name`: what exchanges are counted as.
    pub(super) fn new(
        endpoint: Uri,
        shares: Shares,
        bounds: Bounds,
        name: &'static str,
        metrics: Arc<Metrics>,
    ) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(bounds.connect));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .retry_canceled_requests(false)
            .build(connector);
        Self { client, endpoint, turns: Turns::new(shares), bounds, name, metrics }
    }

    /// Takes a place for a request of the pod with this UID.
    pub(super) fn enter(&self, pod: &Arc<str>) -> Result<Place, ProxyError> {
        self.turns.enter(pod).map_err(ProxyError::Share)
    }

    /// Asks, when it is the pod's turn. Dropping the future, or the answer's body, ends the exchange.
    pub(super) async fn ask(
        &self,
        place: Place,
        ask: Ask<'_>,
        body: Bytes,
    ) -> Result<Response<Option<Carried>>, ProxyError> {
        place.turn().await.map_err(ProxyError::Share)?;
        let begin = Instant::now();
        // What a pod asks for is its own: neither path nor query is said.
        let span = tracing::debug_span!("upstream", host = Empty, method = %ask.verb, status = Empty, error = Empty);
        let answer = self.exchange(ask, body).instrument(span.clone()).await;
        if !span.is_disabled() {
            span.record("host", self.endpoint.authority().map_or("", |authority| authority.as_str()));
            match &answer {
                Ok(answer) => span.record("status", i64::from(answer.status().as_u16())),
                Err(_) => span.record("error", "no answer"),
            };
        }
        tracing::trace!(parent: &span, answered = answer.is_ok(), "the metadata service was asked");
        drop(span);
        let outcome = match &answer {
            Ok(answer) if answer.status().is_success() => "ok",
            Ok(_) => "refused",
            Err(_) => "failed",
        };
        self.metrics.upstream(self.name, outcome, begin.elapsed());
        self.answer(answer?, begin + self.bounds.whole, place)
    }

    async fn exchange(&self, ask: Ask<'_>, body: Bytes) -> Result<Response<Incoming>, ProxyError> {
        let mut uri = self.endpoint.clone().into_parts();
        uri.path_and_query = Some(ask.target.clone());
        let uri = Uri::from_parts(uri).map_err(|_| ProxyError::Connection("its address is not a URL".to_owned()))?;
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = ask.verb.into();
        *request.uri_mut() = uri;
        *request.headers_mut() = headers::of_request(ask.headers);
        match tokio::time::timeout(self.bounds.head, self.client.request(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(ProxyError::Connection(innermost(&error))),
            Err(_) => Err(ProxyError::Late(self.bounds.head)),
        }
    }

    fn answer(
        &self,
        answer: Response<Incoming>,
        deadline: Instant,
        place: Place,
    ) -> Result<Response<Option<Carried>>, ProxyError> {
        let status = answer.status();
        if status.is_informational() {
            return Err(ProxyError::Answer("a switch of protocols"));
        }
        let length = answer.body().size_hint().exact();
        if length.is_some_and(|length| usize::try_from(length).map_or(true, |length| length > self.bounds.most)) {
            return Err(ProxyError::Answer("it is too large"));
        }
        let (parts, body) = answer.into_parts();
        let bodiless = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let mut headers = headers::of_answer(&parts.headers, length.filter(|_| !bodiless));
        if status == StatusCode::TOO_MANY_REQUESTS {
            // The service says this without saying when to come again, and some SDKs then do not.
            let wait = headers.get(RETRY_AFTER).and_then(seconds).unwrap_or(1).max(1);
            headers.insert(RETRY_AFTER, HeaderValue::from(wait));
            self.turns.pause(Duration::from_secs(wait));
        }
        let body = (!bodiless && !body.is_end_stream()).then(|| carry(body, self.bounds.most, deadline, place));
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }
}

impl From<Verb> for http::Method {
    fn from(verb: Verb) -> Self {
        match verb {
            Verb::Get => Self::GET,
            Verb::Post => Self::POST,
        }
    }
}

/// Where a request goes: the path that was decided on, and the query byte for byte.
pub(super) fn target(path: &MetadataPath, query: Option<&str>) -> Option<PathAndQuery> {
    match query {
        Some(query) => format!("{path}?{query}").parse().ok(),
        None => path.as_str().parse().ok(),
    }
}

fn seconds(value: &HeaderValue) -> Option<u64> {
    value.to_str().ok()?.trim().parse().ok()
}

/// The last error of the chain: the one that says what happened. Holds nothing of the request.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    for _ in 0..16 {
        let hidden = || {
            last.downcast_ref::<io::Error>()
                .and_then(io::Error::get_ref)
                .map(|inner| inner as &(dyn std::error::Error + 'static))
        };
        match last.source().or_else(hidden) {
            Some(next) => last = next,
            None => break,
        }
    }
    last.to_string()
}
