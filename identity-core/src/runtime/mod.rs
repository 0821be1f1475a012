//! The engine on real parts: objects come from Kubernetes watches or a directory of manifests, actions become requests or
//! files, and a lease says who may write.
//!
//! | room | what it does |
//! |---|---|
//! | [`source`] | watches, or a directory by inotify, as one stream of [`source::Update`]s |
//! | [`lease`] | a pure machine that says who leads, its drivers, and the [`lease::Fence`] every write passes |
//! | [`audit_events`] | Events that count tokens, written as somebody else decides |
//! | [`checkpoints`] | where a node's audit journal is, said at the API server |
//! | [`executor`] | carries out actions: server-side apply with preconditions, or files in the state directory |
//! | [`controller`] | the controller's one task: index, plans, what is under way |
//! | [`node`] | the node's one task: node index, published snapshots |
//! | [`identities`] | identities by name, read without a lock |
//! | [`secrets`] | Secrets by name, followed |
//! | [`token_request`] | tokens of pods' service accounts, for one audience |
//!
//! Time comes from a [`Clock`] that the binary passes in; waiting uses tokio's timers.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use identity_core::{lookup::Published, runtime::{node, source::Source}};
//! use tokio::sync::watch;
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let source = Source::manifests("manifests", "state");
//! let published = Arc::new(Published::default());
//! let (synced, _ready) = watch::channel(false);
//! node::run(node::Config::new("node-1"), source, published, synced, CancellationToken::new()).await?;
//! # Ok(()) }
//! ```

pub mod audit_events;
mod backoff;
pub mod checkpoints;
mod clock;
pub mod controller;
pub mod executor;
mod follow;
pub mod identities;
pub mod lease;
pub mod node;
pub mod observe;
pub mod request;
pub mod secrets;
pub mod source;
mod state_dir;
#[cfg(test)]
mod testing;
pub mod token_request;
mod trim;

pub use backoff::Backoff;
pub use clock::Clock;
pub use request::client;
pub use state_dir::StateDir;

/// Field manager of everything that is written to the API server.
pub const FIELD_MANAGER: &str = "entra-pod-identity";
