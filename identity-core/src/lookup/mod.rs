//! Pods and assignments of one node in, immutable [`Snapshot`] out; `(caller, request, now)` → [`Decision`].

mod decision;
mod node_index;
mod published;

pub use decision::{
    Allow, Assignment, Caller, Decision, Deny, Identity, ObjectRef, Request, RequestedIdentity, SecretKeyRef, Source,
    Wait,
};
pub use node_index::{Binding, NodeIndex, Options};
pub use published::Published;

use jiff::Timestamp;

/// Everything a node needs to decide, frozen. Cheap to share; a change makes a new one.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {}

impl Snapshot {
    /// Decides what `caller` gets for `request` at `now`. No I/O, no allocation.
    pub fn decide(&self, caller: &Caller<'_>, request: &Request<'_>, now: Timestamp) -> Decision {
        let _ = (caller, request, now);
        Decision::Wait(Wait::UnknownAddress)
    }
}
