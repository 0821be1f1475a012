//! Who decides. A seam, so that the endpoint is tested without a node's index.

use event_listener::EventListener;
use identity_core::lookup::{Caller, Decision, Published, Request};
use jiff::Timestamp;

/// Decides requests and tells when a decision may have changed.
pub trait Decide: Send + Sync + 'static {
    /// What `caller` gets for `request` at `now`, by what is known at this instant.
    fn decide(&self, caller: &Caller<'_>, request: &Request<'_>, now: Timestamp) -> Decision;

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

impl<D: Decide> Decide for std::sync::Arc<D> {
    fn decide(&self, caller: &Caller<'_>, request: &Request<'_>, now: Timestamp) -> Decision {
        D::decide(self, caller, request, now)
    }

    fn changed(&self) -> EventListener {
        D::changed(self)
    }
}
