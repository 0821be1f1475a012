//! A reverse proxy between one controller and the API server: it marks the controller's requests (`User-Agent`), since two
//! replicas are the same user, and can keep writes back, as a slow network would. What has reached it goes on to the server
//! even when its sender is stopped or has given up: so a write can arrive long after the sender lost its lease.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    response::{IntoResponse as _, Response},
};
use http::{HeaderValue, Method, StatusCode, header};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use tokio::{net::TcpListener, sync::watch, task::AbortHandle};

pub(crate) struct Proxy {
    /// For the controller: no credentials, they are the proxy's.
    pub(crate) kubeconfig: PathBuf,
    shared: Arc<Shared>,
    server: AbortHandle,
}

struct Shared {
    name: HeaderValue,
    client: Client,
    holding: watch::Sender<bool>,
    /// `METHOD path` of what is kept back now.
    held: watch::Sender<Vec<String>>,
}

impl Proxy {
    /// Forwards with the credentials of `kubeconfig`, as `name`.
    pub(crate) async fn start(directory: &Path, kubeconfig: &Path, name: &str) -> Self {
        let config = Kubeconfig::read_from(kubeconfig).unwrap();
        let mut config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
        config.default_retry = false;
        let shared = Arc::new(Shared {
            name: HeaderValue::from_str(name).unwrap(),
            client: Client::try_from(config).unwrap(),
            holding: watch::channel(false).0,
            held: watch::channel(Vec::new()).0,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(forward).with_state(shared.clone());
        let task = tokio::spawn(async move { axum::serve(listener, router).await });
        let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": server}}],
            "users": [{"name": "c", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}]});
        let path = directory.join(format!("{name}.kubeconfig"));
        std::fs::write(&path, config.to_string()).unwrap();
        Self { kubeconfig: path, shared, server: task.abort_handle() }
    }

    /// From now on keeps back writes of assignments.
    pub(crate) fn hold(&self) {
        self.shared.holding.send_replace(true);
    }

    /// Lets go of what was kept back.
    pub(crate) fn release(&self) {
        self.shared.holding.send_replace(false);
    }

    /// What is kept back.
    pub(crate) fn held(&self) -> Vec<String> {
        self.shared.held.borrow().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn forward(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (mut parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, 1 << 20).await else { return StatusCode::BAD_REQUEST.into_response() };
    for hop in [header::HOST, header::CONTENT_LENGTH, header::CONNECTION, header::TRANSFER_ENCODING] {
        parts.headers.remove(hop);
    }
    parts.headers.insert(header::USER_AGENT, shared.name.clone());
    let write = parts.method != Method::GET && parts.uri.path().contains("/azureassignedidentities/");
    let line = format!("{} {}", parts.method, parts.uri.path());
    // A task of its own: it goes on when the controller's connection breaks.
    let sent = tokio::spawn(async move {
        if write && *shared.holding.borrow() {
            shared.held.send_modify(|held| held.push(line.clone()));
            let _ = shared.holding.subscribe().wait_for(|holding| !holding).await;
            shared.held.send_modify(|held| held.retain(|other| *other != line));
        }
        shared.client.send(http::Request::from_parts(parts, kube::client::Body::from(body))).await
    });
    match sent.await.expect("the task that forwards") {
        Ok(response) => response.map(Body::new),
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}
