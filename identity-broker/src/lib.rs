//! The token broker: the managed-identity endpoint as tower services, the cache behind it, credentials, the clients of
//! Entra and of the node's IMDS, and the audit hook on the way of every token.
//!
//! ```text
//! accept ─ original destination ─ path ─ header ─ parameters ─ decide ─ Tokens::get ─ decide ─ audit ─ decide ─ answer
//! ```
//!
//! Nothing here reads the environment or the wall clock. A broker is put together from its parts:
//!
//! ```
//! use std::{collections::BTreeMap, sync::Arc};
//! use identity_broker::{
//!     Azure, Broker, BrokerConfig, Manager, ManagerConfig, Kernel, LogAudit, Metrics, SecretData, SecretSource,
//!     SecretSourceError, ServerConfig, UpstreamConfig, serve,
//! };
//! use identity_core::lookup::Published;
//!
//! struct NoSecrets;
//! impl SecretSource for NoSecrets {
//!     fn get<'a>(
//!         &'a self, _: &'a str, _: &'a str,
//!     ) -> futures::future::BoxFuture<'a, Result<SecretData, SecretSourceError>> {
//!         Box::pin(async { Err(SecretSourceError::NotFound) })
//!     }
//! }
//!
//! # async fn run(published: Arc<Published>, tls: rustls::ClientConfig, listener: tokio::net::TcpListener) {
//! let clock = || jiff::Timestamp::from_second(1_800_000_000).unwrap(); // a binary passes jiff::Timestamp::now
//! let metrics = Arc::new(Metrics::default());
//! let azure = Azure::new(UpstreamConfig::default(), tls, Arc::new(NoSecrets), clock, Arc::clone(&metrics));
//! let tokens = Manager::new(azure, clock, ManagerConfig::default(), Arc::clone(&metrics));
//! let broker = Broker::new(published, tokens, LogAudit, clock, BrokerConfig::default(), metrics);
//! let shutdown = tokio_util::sync::CancellationToken::new();
//! serve(listener, Kernel, broker, ServerConfig::default(), shutdown).await;
//! # }
//! ```
//!
//! A server of one's own mounts the service of each connection instead ([`Broker::stack`]; also `examples/own_server.rs`,
//! and `tests/embed.rs` for axum):
//!
//! ```
//! # use std::sync::Arc;
//! # use identity_broker::{AuditSink, Broker, Clock, Decide, Tokens};
//! # async fn mount<D: Decide, T: Tokens, A: AuditSink, C: Clock>(
//! #     listener: tokio::net::TcpListener, broker: Arc<Broker<D, T, A, C>>,
//! # ) -> std::io::Result<()> {
//! use hyper_util::{rt::TokioIo, service::TowerToHyperService};
//! loop {
//!     let (stream, peer) = listener.accept().await?;
//!     let token_service = TowerToHyperService::new(broker.stack(broker.connection(peer)));
//!     tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), token_service));
//! }
//! # }
//! ```

pub mod audit;
mod clock;
pub mod credentials;
mod decide;
mod digest;
pub mod endpoint;
pub mod federated;
pub mod metadata;
mod metrics;
mod secrets;
mod server;
mod shown;
pub mod tokens;
mod upstream;
pub mod vault;

pub use audit::{AuditError, AuditRecord, AuditSink, FanOut, LogAudit, Policy, TokenSource, Verdict};
pub use clock::Clock;
pub use credentials::{Checked, Checker, CredentialError, CredentialProblem, RotationConfig};
pub use decide::Decide;
pub use endpoint::{Broker, BrokerConfig, LimitsConfig, OnAuditFailure, Rate, error_table, metadata::Metadata};
pub use metrics::{Metrics, Reason, Turned, compat};
pub use secrets::{IdentitySource, SecretData, SecretSource, SecretSourceError};
pub use server::{Kernel, OriginalDestination, ServerConfig, serve};
pub use tokens::{Backend, Freshness, Manager, ManagerConfig, Notice, Shape, Token, TokenError, Tokens};
pub use upstream::{
    AuthorityError, AuthorityHosts, Azure, DEFAULT_AUTHORITY, DEFAULT_HOSTS, ImdsBudget, Sources, UpstreamConfig,
};
