//! The services of a connection: errors become answers, the path is decided, each form gets what is its own.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::future::{Either, Ready, ready};
use http::{HeaderMap, Method, Request, Response, request::Parts};
use http_body_util::{BodyExt, Limited};
use tower::Service;
use tracing::{Span, field::Empty};

use super::{
    Connection,
    body::{Body, BoxError, RequestBody},
    broker::{Broker, Who},
    error::EndpointError,
    forms::{app_service, imds, info, posted, require_metadata},
    limits::Limits,
    metadata::{self, MetadataCaller, MetadataRequest},
    target::{self, CanonicalPath, MAX_TARGET, Route, TargetError},
};
use crate::{audit::AuditSink, clock::Clock, decide::Decide, metrics::Metrics, tokens::Tokens};

/// A request whose path has been decided.
#[derive(Debug)]
pub struct Routed {
    /// What the path means.
    pub route: Route,
    /// The request.
    pub parts: Parts,
    /// Its body, unread, for the routes that have one.
    pub body: Option<RequestBody>,
}

// === Respond ===

/// What refusals of one connection are counted with.
#[derive(Debug)]
pub(super) struct Refusals {
    pub(super) metrics: Arc<Metrics>,
    pub(super) limits: Arc<Limits>,
    pub(super) connection: Arc<Connection>,
    pub(super) remote_parent: Option<RemoteParent>,
}

/// Makes the span of a request part of the trace that its headers name, if they name one. Called only when somebody listens
/// to spans, before the span is entered. What a pod sends there proves nothing: it must not decide what is kept.
pub type RemoteParent = fn(&Span, &HeaderMap);

impl Refusals {
    /// From the request to its answer. Of no cost to speak of unless somebody listens. What it is about is known later.
    fn span<B>(&self, request: &Request<B>) -> Span {
        let span = tracing::debug_span!(
            "request",
            peer = %self.connection.peer,
            accepted = %self.connection.since,
            method = Empty,
            route = Empty,
            namespace = Empty,
            pod = Empty,
            pod_uid = Empty,
            binding = Empty,
            identity = Empty,
            resource = Empty,
            source = Empty,
            reason = Empty,
            status = Empty,
        );
        if !span.is_disabled() {
            // Any other word is the pod's own.
            let known = [Method::GET, Method::POST, Method::HEAD, Method::PUT, Method::DELETE];
            let method = known.iter().find(|known| *known == request.method()).map_or("other", Method::as_str);
            span.record("method", method);
            if let Some(adopt) = self.remote_parent {
                adopt(&span, request.headers());
            }
        }
        span
    }
}

/// Turns errors into answers and counts them: outside of it a request cannot fail.
#[derive(Clone, Debug)]
pub struct Respond<S> {
    inner: S,
    refusals: Arc<Refusals>,
}

impl<S> Respond<S> {
    /// Around `inner`.
    pub(super) fn new(inner: S, refusals: Refusals) -> Self {
        Self { inner, refusals: Arc::new(refusals) }
    }
}

impl<S, B> Service<Request<B>> for Respond<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = EndpointError>,
    S::Future: Unpin,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = RespondFuture<S::Future>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // All services of the stack are always ready; limits are theirs to answer.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let span = self.refusals.span(&request);
        let inner = span.in_scope(|| self.inner.call(request));
        RespondFuture { inner, refusals: Arc::clone(&self.refusals), held: None, span }
    }
}

/// Of [`Respond`].
#[derive(Debug)]
pub struct RespondFuture<F> {
    inner: F,
    refusals: Arc<Refusals>,
    /// An answer that is held back.
    held: Option<Held>,
    /// From the request to its answer.
    span: Span,
}

#[derive(Debug)]
struct Held {
    until: Pin<Box<tokio::time::Sleep>>,
    response: Option<Response<Body>>,
}

impl<F> Future for RespondFuture<F>
where
    F: Future<Output = Result<Response<Body>, EndpointError>> + Unpin,
{
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.span.is_disabled() {
            return self.answer(cx);
        }
        let span = self.span.clone();
        let entered = span.enter();
        let polled = self.answer(cx);
        if let Poll::Ready(Ok(response)) = &polled {
            span.record("status", i64::from(response.status().as_u16()));
            tracing::debug!("answered");
        }
        drop(entered);
        polled
    }
}

impl<F> RespondFuture<F>
where
    F: Future<Output = Result<Response<Body>, EndpointError>> + Unpin,
{
    fn answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<Body>, Infallible>> {
        loop {
            if let Some(Held { until, response }) = &mut self.held {
                std::task::ready!(until.as_mut().poll(cx));
                // Polled again after it is done, it would have nothing to answer.
                return response.take().map_or(Poll::Pending, |response| Poll::Ready(Ok(response)));
            }
            let error = match std::task::ready!(Pin::new(&mut self.inner).poll(cx)) {
                Ok(response) => return Poll::Ready(Ok(response)),
                Err(error) => error,
            };
            let Refusals { metrics, limits, connection, .. } = &*self.refusals;
            let reason = error.reason();
            metrics.request(reason);
            if !self.span.is_disabled() {
                self.span.record("reason", reason.as_str());
            }
            let pause = if error.is_cheap() { limits.cheap(&connection.account) } else { Duration::ZERO };
            let response = error.into_response();
            if pause.is_zero() {
                return Poll::Ready(Ok(response));
            }
            self.held = Some(Held { until: Box::pin(tokio::time::sleep(pause)), response: Some(response) });
        }
    }
}

// === Normalise ===

/// Decides the path, once.
#[derive(Clone, Copy, Debug)]
pub struct Normalise<S> {
    inner: S,
}

impl<S> Normalise<S> {
    /// In front of `inner`.
    pub const fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S, B> Service<Request<B>> for Normalise<S>
where
    S: Service<Routed, Response = Response<Body>, Error = EndpointError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = EndpointError;
    type Future = Either<Ready<Result<Self::Response, EndpointError>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), EndpointError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (parts, body) = request.into_parts();
        match route(&parts) {
            Ok(route) => {
                // The others have no body, and what a client sends all the same is dropped.
                let body = matches!(route, Route::Posted | Route::Other)
                    .then(|| Limited::new(body, metadata::MAX_BODY).boxed_unsync());
                Either::Right(self.inner.call(Routed { route, parts, body }))
            }
            Err(error) => Either::Left(ready(Err(error.into()))),
        }
    }
}

fn route(parts: &Parts) -> Result<Route, TargetError> {
    let uri = &parts.uri;
    // A target with a host in it is for a proxy, which this is not.
    if uri.authority().is_some() || uri.scheme().is_some() || parts.method == Method::CONNECT {
        return Err(TargetError::NotAPath);
    }
    if uri.path_and_query().is_some_and(|both| both.as_str().len() > MAX_TARGET) {
        return Err(TargetError::TooLong);
    }
    target::route(uri.path())
}

// === Dispatch ===

/// Gives each route what is its own. The header check comes before everything else.
#[derive(Debug)]
pub struct Dispatch<D, T, A, C> {
    broker: Arc<Broker<D, T, A, C>>,
    connection: Arc<Connection>,
}

impl<D, T, A, C> Dispatch<D, T, A, C> {
    pub(super) const fn new(broker: Arc<Broker<D, T, A, C>>, connection: Arc<Connection>) -> Self {
        Self { broker, connection }
    }
}

impl<D, T, A, C> Clone for Dispatch<D, T, A, C> {
    fn clone(&self) -> Self {
        Self { broker: Arc::clone(&self.broker), connection: Arc::clone(&self.connection) }
    }
}

type Outcome = Result<Response<Body>, EndpointError>;

impl<D, T, A, C> Service<Routed> for Dispatch<D, T, A, C>
where
    D: Decide,
    T: Tokens,
    A: AuditSink,
    C: Clock,
{
    type Response = Response<Body>;
    type Error = EndpointError;
    type Future = Either<Ready<Outcome>, Pin<Box<dyn Future<Output = Outcome> + Send>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), EndpointError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Routed) -> Self::Future {
        match self.dispatch(request) {
            Ok(outcome) => Either::Right(outcome),
            Err(error) => Either::Left(ready(Err(error))),
        }
    }
}

impl<D, T, A, C> Dispatch<D, T, A, C>
where
    D: Decide,
    T: Tokens,
    A: AuditSink,
    C: Clock,
{
    fn dispatch(
        &self,
        Routed { route, parts, body }: Routed,
    ) -> Result<Pin<Box<dyn Future<Output = Outcome> + Send>>, EndpointError> {
        let this = self.clone();
        if tracing::span_enabled!(tracing::Level::DEBUG) {
            Span::current().record("route", route.as_str());
        }
        tracing::trace!(route = route.as_str(), "asked");
        let query = parts.uri.query().unwrap_or_default();
        match route {
            Route::Token => {
                require_metadata(&parts.headers)?;
                only(&parts.method, &[Method::GET], "GET")?;
                let request = imds::parse(query)?;
                Ok(Box::pin(async move { this.broker.issue(&this.connection, &request).await }))
            }
            Route::Info => {
                require_metadata(&parts.headers)?;
                only(&parts.method, &[Method::GET], "GET")?;
                let request = info::parse(query)?;
                Ok(Box::pin(async move { this.broker.tenant(&this.connection, &request).await }))
            }
            Route::AppService => {
                let boxed = |error: EndpointError| EndpointError::AppService(Box::new(error));
                let request = app_service::require_header(&parts.headers)
                    .and_then(|()| only(&parts.method, &[Method::GET], "GET"))
                    .and_then(|()| Ok(app_service::parse(query)?))
                    .map_err(boxed)?;
                Ok(Box::pin(async move { this.broker.issue(&this.connection, &request).await.map_err(boxed) }))
            }
            Route::Posted => {
                require_metadata(&parts.headers)?;
                only(&parts.method, &[Method::GET, Method::POST], "GET, POST")?;
                let in_query = (parts.method == Method::GET).then(|| posted::parse(query)).transpose()?;
                Ok(Box::pin(async move {
                    let request = match (in_query, body) {
                        (Some(request), _) => request,
                        (None, Some(body)) => {
                            posted::receive(&parts.headers, body, this.broker.config.body_timeout).await?
                        }
                        (None, None) => posted::form_body(b"")?,
                    };
                    this.broker.issue(&this.connection, &request).await
                }))
            }
            // Without a look at the header: MSAL .NET takes 400 here for "the newer protocol is there".
            Route::NewerProtocol | Route::OtherIdentity => Err(EndpointError::NotFound),
            Route::Other => {
                let path = CanonicalPath::new(parts.uri.path())?;
                let body =
                    body.unwrap_or_else(|| http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync());
                let request = MetadataRequest { path, parts, body };
                Ok(Box::pin(async move {
                    let (broker, connection) = (&*this.broker, &*this.connection);
                    let identify = Box::new(Who { broker, connection });
                    let caller = MetadataCaller { address: connection.peer.ip(), identify };
                    broker.metadata.call(request, caller).await
                }))
            }
        }
    }
}

fn only(method: &Method, allowed: &[Method], allow: &'static str) -> Result<(), EndpointError> {
    if allowed.contains(method) { Ok(()) } else { Err(EndpointError::Method(allow)) }
}
