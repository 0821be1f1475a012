//! Who decides. A seam, so that the endpoint is tested without a node's index.

use std::sync::Arc;

use event_listener::EventListener;
use identity_core::{
    lookup::{Caller, Decision, Published, Request, RequestedIdentity},
    pod::PodRef,
};
use jiff::Timestamp;

use crate::endpoint::pod_of;

/// Decides requests and tells when a decision may have changed.
pub trait Decide: Send + Sync + 'static {
    /// What `caller` gets for `request` at `now`, by what is known at this instant.
    fn decide(&self, caller: &Caller<'_>, request: &Request<'_>, now: Timestamp) -> Decision;

    /// Whose the caller's address is, whatever that pod may have; the error is a decision that names no pod.
    fn identify(&self, caller: &Caller<'_>, now: Timestamp) -> Result<Arc<PodRef>, Decision> {
        let request = Request { resource: "", identity: RequestedIdentity::Default };
        let decision = self.decide(caller, &request, now);
        match pod_of(&decision) {
            Some(pod) => Ok(Arc::clone(pod)),
            None => Err(decision),
        }
    }

    /// Completes when what is known changes. Listen first, then [`decide`](Self::decide), then await.
    fn changed(&self) -> EventListener;
}

impl Decide for Published {
    fn decide(&self, caller: &Caller<'_>, request: &Request<'_>, now: Timestamp) -> Decision {
        self.load().decide(caller, request, now)
    }

    fn changed(&self) -> EventListener {
        Self::changed(self)
    }
}

impl<D: Decide> Decide for Arc<D> {
    fn decide(&self, caller: &Caller<'_>, request: &Request<'_>, now: Timestamp) -> Decision {
        D::decide(self, caller, request, now)
    }

    fn changed(&self) -> EventListener {
        D::changed(self)
    }
}
