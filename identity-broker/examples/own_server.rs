//! The token service in a server of one's own: next to other routes, behind whatever accepts the connections.
//!
//! ```text
//! cargo run -p identity-broker --example own_server
//! curl -H Metadata:true 'http://127.0.0.1:2579/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net'
//! ```
//!
//! No pod has an address yet, so that the answer, after five seconds, is 503 and says so.

use std::sync::Arc;

use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use identity_broker::{AuditSink, Broker, BrokerConfig, Clock, Decide, LogAudit, Metrics, Tokens};
use tokio::net::TcpListener;

/// The ten lines. What `identity_broker::serve` does beyond them: it refuses whoever was not redirected, limits
/// connections and heads, and drains them when it stops.
async fn mount<D: Decide, T: Tokens, A: AuditSink, C: Clock>(
    listener: TcpListener,
    broker: Arc<Broker<D, T, A, C>>,
) -> std::io::Result<()> {
    loop {
        let (stream, peer) = listener.accept().await?;
        let token_service = broker.stack(broker.connection(peer));
        let connection =
            http1::Builder::new().serve_connection(TokioIo::new(stream), TowerToHyperService::new(token_service));
        tokio::spawn(connection);
    }
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let broker = Broker::new(
        Arc::new(identity_core::lookup::Published::default()),
        no_tokens::NoTokens,
        LogAudit,
        || jiff::Timestamp::UNIX_EPOCH,
        BrokerConfig::default(),
        Arc::new(Metrics::default()),
    );
    mount(TcpListener::bind("127.0.0.1:2579").await?, broker).await
}

/// Stands for `identity_broker::Manager` over `identity_broker::Azure`.
mod no_tokens {
    use std::{sync::Arc, time::Duration};

    use identity_broker::{Freshness, Token, TokenError, Tokens};
    use identity_core::lookup::Identity;

    pub(super) struct NoTokens;

    impl Tokens for NoTokens {
        fn ready(&self, _: &Arc<Identity>, _: &str) -> Option<Result<Arc<Token>, TokenError>> {
            None
        }

        async fn get(&self, _: &Arc<Identity>, _: &str, _: Freshness) -> Result<Arc<Token>, TokenError> {
            let message = "this example has no upstream".to_owned();
            Err(TokenError::Unavailable { message, retry_after: Duration::from_mins(1) })
        }
    }
}
