//! Plain HTTP/1.1: from a listener to a service of [`Call`]s and back, with bounds on everything a client controls.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{CONTENT_TYPE, HOST},
};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::Semaphore,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::{ServiceExt as _, util::BoxCloneSyncService};

use super::{
    clock::Clock,
    fault::{Fault, ServiceName},
    log::{Open, RequestLog},
};

/// The largest body that is read; a token request with a chain of certificates takes a tenth of it.
const LARGEST_BODY: usize = 64 * 1024;
/// Connections of one listener.
const CONNECTIONS: usize = 1024;
/// For a TLS handshake, the head of a request and its body, each.
const PATIENCE: Duration = Duration::from_secs(30);
/// For connections that are still busy when the emulator stops.
const GRACE: Duration = Duration::from_millis(500);

/// One request, read completely.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    /// As sent, not decoded.
    pub(super) path: String,
    pub(super) query: Pairs,
    pub(super) headers: HeaderMap,
    /// The body's fields when it is a form.
    pub(super) form: Option<Pairs>,
    /// The body.
    pub(super) body: Bytes,
    /// Host (and port) that the client meant.
    pub(super) host: String,
    pub(super) caller: SocketAddr,
    pub(super) received: Timestamp,
}

impl Call {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The host without its port, in lower case.
    pub(super) fn host_name(&self) -> String {
        let host = match self.host.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
            _ => &self.host,
        };
        host.to_ascii_lowercase()
    }
}

/// Decoded name-value pairs in their order.
#[derive(Clone, Debug, Default)]
pub(super) struct Pairs(pub(super) Vec<(String, String)>);

impl Pairs {
    pub(super) fn parse(encoded: &[u8]) -> Self {
        Self(form_urlencoded::parse(encoded).map(|(name, value)| (name.into_owned(), value.into_owned())).collect())
    }

    /// The value of `name`; an empty one counts as not given.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }

    /// A name that is given more than once.
    pub(super) fn duplicate(&self) -> Option<&str> {
        self.0.iter().enumerate().find_map(|(index, (name, _))| {
            self.0[..index].iter().any(|(earlier, _)| earlier == name).then_some(name.as_str())
        })
    }
}

/// What a service answers.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) body: Bytes,
    /// The service's own code of an error, for the request log.
    pub(super) error_code: Option<String>,
    /// None of it is sent: the connection is closed.
    pub(super) unsent: bool,
}

impl Reply {
    pub(super) fn json(status: StatusCode, body: &Value) -> Self {
        Self {
            status,
            headers: vec![(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"))],
            body: Bytes::from(body.to_string()),
            error_code: None,
            unsent: false,
        }
    }

    pub(super) fn text(status: StatusCode, body: &str) -> Self {
        Self {
            status,
            headers: vec![(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))],
            body: Bytes::from(body.to_owned()),
            error_code: None,
            unsent: false,
        }
    }

    pub(super) fn with_code(mut self, code: impl Into<String>) -> Self {
        self.error_code = Some(code.into());
        self
    }

    pub(super) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// No answer, for a reason that the request log has: where Azure has nobody to answer.
    pub(super) fn none(code: &str) -> Self {
        Self { unsent: true, ..Self::text(StatusCode::OK, "").with_code(code) }
    }

    /// The real service does this and the emulator does not: said so that nobody mistakes it for an answer of Azure.
    pub(super) fn not_emulated(service: ServiceName, what: &str) -> Self {
        tracing::error!(?service, operation = what, "operation is not emulated");
        let message = format!("The {service:?} emulator does not support this operation: {what}");
        let body = serde_json::json!({"error": "not_emulated", "error_description": message, "operation": what});
        Self::json(StatusCode::NOT_IMPLEMENTED, &body).with_code("not_emulated")
    }
}

/// A reply, and the fault that made or delayed it.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) reply: Reply,
    pub(super) fault: Option<Fault>,
}

/// The connection is closed without an answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Dropped {
    /// By a fault.
    #[error("connection dropped by the fault {0}")]
    Fault(Fault),
    /// There is nobody to answer: [`Reply::none`].
    #[error("connection dropped: nobody answers here")]
    Nobody,
}

/// A service behind its faults.
pub(super) type Stack = BoxCloneSyncService<Call, Answered, Dropped>;

/// A service of a listener: requests for the hosts that it takes are its own.
pub(super) struct Route {
    pub(super) service: ServiceName,
    /// Given a host without port, in lower case.
    pub(super) takes: Box<dyn Fn(&str) -> bool + Send + Sync>,
    pub(super) stack: Stack,
}

impl Route {
    /// A service for every host.
    pub(super) fn all(service: ServiceName, stack: Stack) -> Self {
        Self { service, takes: Box::new(|_| true), stack }
    }
}

/// One listener with what it serves: the first service that takes a request's host, the last one when none does.
pub(super) struct Front {
    pub(super) tls: Option<TlsAcceptor>,
    pub(super) routes: Vec<Route>,
    pub(super) clock: Clock,
    pub(super) log: Arc<RequestLog>,
}

impl Front {
    /// For messages: what most of it is.
    fn name(&self) -> Option<ServiceName> {
        self.routes.last().map(|route| route.service)
    }

    /// Serves until `shutdown`.
    pub(super) async fn serve(self, listener: TcpListener, shutdown: CancellationToken) {
        let front = Arc::new(self);
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (place, listener.accept().await)
            };
            let (place, accepted) = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = accepted => accepted,
                Some(_) = connections.join_next() => continue,
            };
            match accepted {
                Ok((stream, caller)) => {
                    let (front, shutdown) = (Arc::clone(&front), shutdown.clone());
                    connections.spawn(async move {
                        let _place = place;
                        let _ = stream.set_nodelay(true);
                        front.connection(stream, caller, shutdown).await;
                    });
                }
                Err(error) => {
                    // Out of descriptors, usually: accepting again at once would spin.
                    tracing::warn!(service = ?front.name(), %error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        drop(listener);
        let _ = tokio::time::timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
        connections.shutdown().await;
    }

    async fn connection(
        self: Arc<Self>,
        stream: tokio::net::TcpStream,
        caller: SocketAddr,
        shutdown: CancellationToken,
    ) {
        match &self.tls {
            None => self.requests(stream, caller, shutdown).await,
            Some(acceptor) => match tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => self.requests(stream, caller, shutdown).await,
                Ok(Err(error)) => tracing::debug!(service = ?self.name(), %caller, %error, "TLS handshake failed"),
                Err(_) => tracing::debug!(service = ?self.name(), %caller, "TLS handshake took too long"),
            },
        }
    }

    async fn requests(
        self: &Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        caller: SocketAddr,
        shutdown: CancellationToken,
    ) {
        let service = hyper::service::service_fn(|request| Arc::clone(self).request(request, caller));
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .max_buf_size(LARGEST_BODY)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(service = ?self.name(), %caller, %error, "connection ended");
        }
    }

    async fn request(
        self: Arc<Self>,
        request: Request<Incoming>,
        caller: SocketAddr,
    ) -> Result<Response<Full<Bytes>>, Dropped> {
        let received = self.clock.now();
        let (head, body) = request.into_parts();
        let host = head.uri.host().map_or_else(
            || head.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default().to_owned(),
            str::to_owned,
        );
        let mut call = Call {
            method: head.method,
            path: head.uri.path().to_owned(),
            query: Pairs::parse(head.uri.query().unwrap_or_default().as_bytes()),
            headers: head.headers,
            form: None,
            body: Bytes::new(),
            host,
            caller,
            received,
        };
        let body = tokio::time::timeout(PATIENCE, Limited::new(body, LARGEST_BODY).collect()).await;
        let refused = match body {
            Ok(Ok(body)) => {
                let form = call.header("content-type").is_some_and(|kind| {
                    kind.split(';').next().unwrap_or_default().trim() == "application/x-www-form-urlencoded"
                });
                call.body = body.to_bytes();
                call.form = form.then(|| Pairs::parse(&call.body));
                None
            }
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
                Some(Reply::text(StatusCode::PAYLOAD_TOO_LARGE, "Request body is too large"))
            }
            Ok(Err(_)) => Some(Reply::text(StatusCode::BAD_REQUEST, "Request body cannot be read")),
            Err(_) => Some(Reply::text(StatusCode::REQUEST_TIMEOUT, "Request body took too long")),
        };
        // Should the client leave before it is answered, the request is recorded nevertheless when this is dropped.
        let host = call.host_name();
        let taken = self.routes.iter().find(|route| (route.takes)(&host)).or(self.routes.last());
        let Some(Route { service, stack, .. }) = taken else {
            return Ok(respond(Reply::text(StatusCode::NOT_FOUND, "Nothing is served here")));
        };
        let open = Open::new(Arc::clone(&self.log), *service, &call);
        let answered = match refused {
            Some(reply) => Ok(Answered { reply, fault: None }),
            None => stack.clone().oneshot(call).await,
        };
        match answered {
            Ok(Answered { reply, fault }) if reply.unsent => {
                open.close(0, reply.error_code, fault);
                Err(Dropped::Nobody)
            }
            Ok(Answered { reply, fault }) => {
                open.close(reply.status.as_u16(), reply.error_code.clone(), fault);
                Ok(respond(reply))
            }
            Err(dropped) => {
                let fault = if let Dropped::Fault(fault) = dropped { Some(fault) } else { None };
                open.close(0, None, fault);
                Err(dropped)
            }
        }
    }
}

fn respond(reply: Reply) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(reply.body));
    *response.status_mut() = reply.status;
    response.headers_mut().extend(reply.headers);
    response
}

/// A service that never fails, from a function.
pub(super) fn service<F, R>(
    answer: F,
) -> impl tower::Service<
    Call,
    Response = Reply,
    Error = Infallible,
    Future = impl Future<Output = Result<Reply, Infallible>> + Send,
> + Clone
+ Send
+ Sync
+ 'static
where
    F: Fn(Call) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Reply> + Send,
{
    tower::service_fn(move |call| {
        let reply = answer(call);
        async move { Ok(reply.await) }
    })
}

/// Binds, with an error that names the address.
pub(super) async fn bind(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}
