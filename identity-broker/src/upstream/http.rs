//! The HTTP clients to Entra (TLS only) and to the node's IMDS (plain): bounded in time and size.

use std::{io, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use thiserror::Error;
use tracing::{Instrument as _, Span, field::Empty};

/// The largest answer read, in bytes. A token with many groups is about 20 kB.
const MAX_BODY: usize = 256 * 1024;
const CONNECT: Duration = Duration::from_secs(3);

/// Why there was no answer. Holds nothing of the request.
#[derive(Debug, Error)]
pub(crate) enum TransportError {
    /// No connection, or TLS failed.
    #[error("no connection to {host}: {reason}")]
    Connect {
        /// Where to.
        host: String,
        /// Innermost cause.
        reason: String,
    },
    /// The connection broke, or the answer was no HTTP or too large.
    #[error("the exchange with {host} failed: {reason}")]
    Exchange {
        /// Where to.
        host: String,
        /// Innermost cause.
        reason: String,
    },
    /// No answer in time.
    #[error("no answer from {host} within {seconds} s")]
    Timeout {
        /// Where to.
        host: String,
        /// How long was waited.
        seconds: u64,
    },
}

/// How names are found.
#[cfg(not(test))]
type Connector = HttpConnector;

/// In unit tests every host is this one: an emulator may be called as the real service is.
#[cfg(test)]
type Connector = HttpConnector<loopback::Loopback>;

#[cfg(test)]
mod loopback {
    use std::{
        convert::Infallible,
        future::{Ready, ready},
        iter,
        net::{Ipv4Addr, SocketAddr},
        task::{Context, Poll},
    };

    use hyper_util::client::legacy::connect::dns::Name;

    #[derive(Clone, Debug)]
    pub(super) struct Loopback;

    impl tower::Service<Name> for Loopback {
        type Response = iter::Once<SocketAddr>;
        type Error = Infallible;
        type Future = Ready<Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Name) -> Self::Future {
            ready(Ok(iter::once((Ipv4Addr::LOCALHOST, 0).into())))
        }
    }
}

/// Clients of both upstreams.
#[derive(Clone, Debug)]
pub(crate) struct Clients {
    tls: Client<HttpsConnector<Connector>, Full<Bytes>>,
    plain: Client<Connector, Full<Bytes>>,
    timeout: Duration,
}

impl Clients {
    pub(crate) fn new(tls: rustls::ClientConfig, timeout: Duration) -> Self {
        let connector = || {
            #[cfg(not(test))]
            let mut connector = HttpConnector::new();
            #[cfg(test)]
            let mut connector = HttpConnector::new_with_resolver(loopback::Loopback);
            connector.set_connect_timeout(Some(CONNECT));
            connector.set_nodelay(true);
            connector
        };
        let mut inner = connector();
        inner.enforce_http(false);
        let https = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_http1()
            .wrap_connector(inner);
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_timer(TokioTimer::new()).pool_idle_timeout(Duration::from_mins(1)).pool_max_idle_per_host(4);
        Self { tls: builder.build(https), plain: builder.build(connector()), timeout }
    }

    /// Sends over TLS; anything but https is an error.
    pub(crate) async fn tls(&self, request: Request<Vec<u8>>) -> Result<Response<Vec<u8>>, TransportError> {
        let request = request.map(|body| Full::new(Bytes::from(body)));
        let (host, span) = (host(&request), span(&request));
        self.bounded(host.clone(), async { collect(&host, self.tls.request(request).await).await })
            .instrument(span)
            .await
    }

    /// Sends in the clear: only to the node's own IMDS, and never a credential.
    pub(crate) async fn plain(&self, request: Request<Vec<u8>>) -> Result<Response<Vec<u8>>, TransportError> {
        let request = request.map(|body| Full::new(Bytes::from(body)));
        let (host, span) = (host(&request), span(&request));
        self.bounded(host.clone(), async { collect(&host, self.plain.request(request).await).await })
            .instrument(span)
            .await
    }

    async fn bounded<T>(
        &self,
        host: String,
        exchange: impl Future<Output = Result<T, TransportError>>,
    ) -> Result<T, TransportError> {
        tracing::trace!("asking");
        let Ok(done) = tokio::time::timeout(self.timeout, exchange).await else {
            failed("no answer in time");
            return Err(TransportError::Timeout { host, seconds: self.timeout.as_secs() });
        };
        done
    }
}

/// One exchange: with whom, and how it ended. Neither what was sent nor what was answered, the path and the query included.
fn span<B>(request: &Request<B>) -> Span {
    let span = tracing::debug_span!(
        "upstream",
        host = Empty,
        method = Empty,
        correlation_id = Empty,
        status = Empty,
        error = Empty
    );
    if !span.is_disabled() {
        span.record("host", host(request)).record("method", request.method().as_str());
        if let Some(id) = request.headers().get("client-request-id").and_then(|id| id.to_str().ok()) {
            span.record("correlation_id", id);
        }
    }
    span
}

fn failed(why: &'static str) {
    if tracing::span_enabled!(tracing::Level::DEBUG) {
        Span::current().record("error", why);
    }
    tracing::trace!("{why}");
}

fn host<B>(request: &Request<B>) -> String {
    request.uri().authority().map_or_else(String::new, ToString::to_string)
}

async fn collect(
    host: &str,
    answer: Result<Response<hyper::body::Incoming>, hyper_util::client::legacy::Error>,
) -> Result<Response<Vec<u8>>, TransportError> {
    let host = || host.to_owned();
    let answer = answer.map_err(|error| {
        let reason = innermost(&error);
        if error.is_connect() {
            failed("no connection");
            TransportError::Connect { host: host(), reason }
        } else {
            failed("the connection broke");
            TransportError::Exchange { host: host(), reason }
        }
    })?;
    let status = i64::from(answer.status().as_u16());
    if tracing::span_enabled!(tracing::Level::DEBUG) {
        Span::current().record("status", status);
    }
    tracing::trace!(status, "answered");
    let (parts, body) = answer.into_parts();
    let body = Limited::new(body, MAX_BODY)
        .collect()
        .await
        .map_err(|error| TransportError::Exchange { host: host(), reason: innermost(&*error) })?;
    Ok(Response::from_parts(parts, body.to_bytes().into()))
}

/// The last error of the chain: the one that says what happened.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last: &(dyn std::error::Error + 'static) = error;
    let mut steps = 0;
    while let Some(next) = last.source().or_else(|| custom(last)) {
        last = next;
        steps += 1;
        if steps > 16 {
            break;
        }
    }
    last.to_string()
}

/// An I/O error hides what it wraps from `source`.
fn custom<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a (dyn std::error::Error + 'static)> {
    let inner = error.downcast_ref::<io::Error>()?.get_ref()?;
    let inner: &(dyn std::error::Error + 'static) = inner;
    Some(inner)
}
