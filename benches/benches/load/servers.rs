//! The two servers that are not the product: the bare one it is compared with, and the upstream.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpListener;

use super::{TENANT, client_id};

/// Serves `size` bytes to whoever asks, with hyper and nothing else, on as many threads as the product has.
pub(crate) fn bare(listen: SocketAddr, size: usize) -> anyhow::Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    runtime.block_on(async {
        let body = Bytes::from(vec![b'x'; size]);
        serve(TcpListener::bind(listen).await?, move |_| answer(body.clone())).await
    })
}

/// An IMDS that answers at once, counting.
pub(crate) async fn upstream(listener: TcpListener, asked: Arc<AtomicU64>) -> anyhow::Result<()> {
    serve(listener, move |request| {
        asked.fetch_add(1, Ordering::Relaxed);
        let query = request.uri().query().unwrap_or_default();
        let get = |name: &str| {
            form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
        };
        let number = get("msi_res_id").and_then(|id| id.rsplit('-').next()?.parse().ok()).unwrap_or(0);
        // As long as those of Entra usually are. Nobody looks into it.
        let token = format!("eyJ0eXAiOiJKV1QiLCJhbGciOiJSUzI1NiJ9.{}", "QmVuY2htYXJr".repeat(105));
        let body = json!({
            "access_token": token, "client_id": client_id(number), "expires_in": "86399", "expires_on": "4102444800",
            "ext_expires_in": "86399", "not_before": "1700000000", "resource": get("resource"), "token_type": "Bearer",
            "tenant": TENANT,
        });
        answer(Bytes::from(body.to_string()))
    })
    .await
}

fn answer(body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    response
}

async fn serve(
    listener: TcpListener,
    respond: impl Fn(&Request<Incoming>) -> Response<Full<Bytes>> + Clone + Send + 'static,
) -> anyhow::Result<()> {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new());
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let respond = respond.clone();
        let service = service_fn(move |request| std::future::ready(Ok::<_, Infallible>(respond(&request))));
        let connection = http.serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            // A peer that leaves is none of our business.
            let _ = connection.await;
        });
    }
}
