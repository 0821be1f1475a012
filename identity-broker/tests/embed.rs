//! The token service in somebody else's server: axum, next to a route of its own.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]

mod support;

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{ConnectInfo, Request},
    routing::get,
};
use identity_broker::{Broker, BrokerConfig, Freshness, Manager, ManagerConfig, Metrics, Token, TokenError};
use identity_core::lookup::Identity;
use support::{bench::*, *};
use tower::ServiceExt as _;

struct Upstream;

impl identity_broker::Backend for Upstream {
    fn credential_version(&self, _: &Identity) -> u64 {
        0
    }

    async fn fetch(&self, identity: &Arc<Identity>, resource: &str, _: Freshness) -> Result<Token, TokenError> {
        Ok(Token::issued(&identity_broker::tokens::Issued {
            access_token: "token",
            resource,
            client_id: identity.client_id.as_deref(),
            expires_on: now() + jiff::SignedDuration::from_secs(3600),
            now: now(),
            credential: 0,
            request_id: None,
        }))
    }
}

#[tokio::test]
async fn in_axum() {
    let metrics = Arc::new(Metrics::default());
    let tokens = Manager::new(Upstream, now, ManagerConfig::default(), Arc::clone(&metrics));
    let rules = Rules::new(allow("p", identity("i", KIND)));
    let broker = Broker::new(rules, tokens, Records::default(), now, BrokerConfig::default(), metrics);

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // One service for each request: axum shows connections only by their peer.
    let app = Router::new().route("/healthz", get(async || "ok")).fallback(
        async move |ConnectInfo(peer): ConnectInfo<SocketAddr>, request: Request| {
            broker.stack(broker.connection(peer)).oneshot(request).await
        },
    );
    tokio::spawn(axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).into_future());

    let mut client = Client::connect(address).await;
    assert_eq!(client.exchange(&support::get("/healthz")).await.body, "ok");
    let answer = client.exchange(&token(QUERY)).await;
    assert_eq!((answer.status, &answer.json()["access_token"]), (200, &"token".into()));
    let form = "resource=x";
    let post = format!(
        "POST /oauth2/token HTTP/1.1\r\nHost: x\r\nMetadata: true\r\nContent-Length: {}\r\n\r\n{form}",
        form.len()
    );
    assert_eq!(client.exchange(&post).await.status, 200);
    assert_eq!(client.exchange(&support::get("/metadata/identity/nothing")).await.status, 404);
}
