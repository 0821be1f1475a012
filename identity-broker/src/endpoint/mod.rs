//! The endpoint as pods see it: small services, one inside the other.
//!
//! `Respond( Normalise( Dispatch ) )` — errors become HTTP in `Respond`, the path is decided in `Normalise`, the header
//! check comes before everything else in `Dispatch`, which then gives each route to its own flow: [`forms`] are read into
//! one `TokenRequest`, the flow of a token is `token`, that of the tenant `tenant`, the rest of the metadata service is
//! behind [`metadata::Metadata`].

mod authority;
mod body;
mod broker;
mod error;
pub mod forms;
mod layers;
mod limits;
pub mod metadata;
pub mod target;
mod tenant;
mod token;

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use identity_core::pod::PodRef;
use jiff::Timestamp;

pub(crate) use broker::pod_of;

pub use body::{Body, BoxError, RequestBody};
pub use broker::{Broker, BrokerConfig, OnAuditFailure};
pub use error::{
    EndpointError, JSON, RateLimit, Retry, Row, SERVER_NAME,
    table::{TABLE, error_table},
};
pub use forms::{TokenRequest, imds_request, posted::form_body, require_metadata};
pub use layers::{Dispatch, Normalise, RemoteParent, Respond, RespondFuture, Routed};
pub use limits::{LimitsConfig, Rate};
pub use target::{CanonicalPath, Route, TargetError};

/// The path of a request in the one form in which it is routed and forwarded: [`CanonicalPath::new`] by the name that
/// fuzz targets know.
pub fn path_normalise(path: &str) -> Result<CanonicalPath, TargetError> {
    CanonicalPath::new(path)
}

/// One connection of a pod.
#[derive(Debug)]
pub struct Connection {
    /// The caller's address.
    pub peer: SocketAddr,
    /// Where it was going before it was redirected, if that is known.
    pub destination: Option<SocketAddr>,
    /// When it was accepted.
    pub since: Timestamp,
    /// The pod its first decision was for.
    pinned: OnceLock<Arc<PodRef>>,
    /// What its address has used up.
    account: Arc<limits::Account>,
    /// How long it is not to be served yet, because its address opens too many.
    pub(crate) pause: Duration,
}

impl Connection {
    /// A connection that no decision has been made for.
    fn new(
        peer: SocketAddr,
        destination: Option<SocketAddr>,
        since: Timestamp,
        account: Arc<limits::Account>,
        pause: Duration,
    ) -> Arc<Self> {
        Arc::new(Self { peer, destination, since, pinned: OnceLock::new(), account, pause })
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

/// The service of one connection.
pub type Stack<D, T, A, C> = Respond<Normalise<Dispatch<D, T, A, C>>>;
