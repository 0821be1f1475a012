//! The endpoint as pods see it: small services, one inside the other.
//!
//! `Respond( Normalise( RequireMetadata( TokenService ) ) )` — errors become HTTP in `Respond`, the path is decided in
//! `Normalise`, the header check comes before everything else on the token path, and `TokenService` does the rest.

mod error;
mod layers;
pub mod query;
pub mod target;
mod token;

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use identity_core::pod::PodRef;
use jiff::Timestamp;

pub use error::{EndpointError, JSON, SERVER_NAME};
pub use layers::{Normalise, RequireMetadata, Respond, Routed};
pub use token::{Broker, BrokerConfig, OnAuditFailure, TokenService};

/// One connection of a pod.
#[derive(Debug)]
pub struct Connection {
    /// The caller's address.
    pub peer: SocketAddr,
    /// The pod its first decision was for.
    pinned: OnceLock<Arc<PodRef>>,
    /// When it was accepted.
    pub since: Timestamp,
}

impl Connection {
    /// A connection that no decision has been made for.
    pub fn new(peer: SocketAddr, since: Timestamp) -> Arc<Self> {
        Arc::new(Self { peer, pinned: OnceLock::new(), since })
    }

    /// UID of the pod that the connection is pinned to.
    pub fn pinned(&self) -> Option<&str> {
        self.pinned.get().map(|pod| &*pod.uid)
    }

    /// Pins it to `pod`, unless it is pinned already.
    pub(crate) fn pin(&self, pod: &Arc<PodRef>) {
        let _ = self.pinned.set(Arc::clone(pod));
    }
}

/// The services of one connection.
pub type Stack<D, T, A, C> = Respond<Normalise<RequireMetadata<TokenService<D, T, A, C>>>>;
