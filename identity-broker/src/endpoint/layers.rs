//! The services in front of the token service.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::future::{Either, Ready, ready};
use http::{Method, Request, Response, request::Parts};
use http_body_util::Full;
use tower::Service;

use super::{
    error::EndpointError,
    target::{self, MAX_TARGET, Route, TargetError},
};
use crate::metrics::Metrics;

/// A request whose path has been decided. Its body is never read: no method of the endpoint has one.
#[derive(Debug)]
pub struct Routed {
    /// What the path means.
    pub route: Route,
    /// The request.
    pub parts: Parts,
}

// === Respond ===

/// Turns errors into answers and counts them: outside of it a request cannot fail.
#[derive(Clone, Debug)]
pub struct Respond<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S> Respond<S> {
    /// Around `inner`.
    pub const fn new(inner: S, metrics: Arc<Metrics>) -> Self {
        Self { inner, metrics }
    }
}

impl<S, R> Service<R> for Respond<S>
where
    S: Service<R, Response = Response<Full<Bytes>>, Error = EndpointError>,
    S::Future: Unpin,
{
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = RespondFuture<S::Future>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // All services of the stack are always ready; limits are theirs to answer.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        RespondFuture { inner: self.inner.call(request), metrics: Arc::clone(&self.metrics) }
    }
}

/// Of [`Respond`].
#[derive(Debug)]
pub struct RespondFuture<F> {
    inner: F,
    metrics: Arc<Metrics>,
}

impl<F> Future for RespondFuture<F>
where
    F: Future<Output = Result<Response<Full<Bytes>>, EndpointError>> + Unpin,
{
    type Output = Result<Response<Full<Bytes>>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.inner).poll(cx).map(|outcome| {
            Ok(outcome.unwrap_or_else(|error| {
                self.metrics.request(error.reason());
                error.into_response()
            }))
        })
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
    S: Service<Routed, Response = Response<Full<Bytes>>, Error = EndpointError>,
{
    type Response = Response<Full<Bytes>>;
    type Error = EndpointError;
    type Future = Either<Ready<Result<Self::Response, EndpointError>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), EndpointError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (parts, _) = request.into_parts();
        match decide(&parts) {
            Ok(route) => Either::Right(self.inner.call(Routed { route, parts })),
            Err(error) => Either::Left(ready(Err(error.into()))),
        }
    }
}

fn decide(parts: &Parts) -> Result<Route, TargetError> {
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

// === RequireMetadata ===

/// Answers everything that is not the token path; lets through what carries `Metadata: true` and is no proxy's.
#[derive(Clone, Copy, Debug)]
pub struct RequireMetadata<S> {
    inner: S,
}

impl<S> RequireMetadata<S> {
    /// In front of `inner`.
    pub const fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S> Service<Routed> for RequireMetadata<S>
where
    S: Service<Routed, Response = Response<Full<Bytes>>, Error = EndpointError>,
{
    type Response = Response<Full<Bytes>>;
    type Error = EndpointError;
    type Future = Either<Ready<Result<Self::Response, EndpointError>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), EndpointError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Routed) -> Self::Future {
        match check(&request) {
            Ok(()) => Either::Right(self.inner.call(request)),
            Err(error) => Either::Left(ready(Err(error))),
        }
    }
}

fn check(request: &Routed) -> Result<(), EndpointError> {
    match request.route {
        // Without a look at the header: MSAL .NET takes 400 here for "the newer protocol is there".
        Route::NewerProtocol | Route::OtherIdentity => return Err(EndpointError::NotFound),
        Route::Other => return Err(EndpointError::Blocked),
        Route::Token => {}
    }
    let headers = &request.parts.headers;
    let mut metadata = headers.get_all("metadata").iter();
    let present = metadata.next().is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"true"));
    if !present || metadata.next().is_some() {
        return Err(EndpointError::MetadataHeader);
    }
    if headers.contains_key("x-forwarded-for") {
        return Err(EndpointError::Forwarded);
    }
    if request.parts.method != Method::GET {
        return Err(EndpointError::Method);
    }
    Ok(())
}
