//! Pods and assignments of one node in, immutable [`Snapshot`] out; `(caller, request, now)` → [`Decision`].
//!
//! [`NodeIndex`] joins what is watched and publishes snapshots; requests are decided on them without a lock, an
//! allocation or a scan. A pod's addresses lead to what that pod, by its UID, may have: its assignments, and the bindings
//! whose assignment is still to come.
//!
//! Rules, in the order in which they are applied:
//! 1. an address that nobody, or more than one pod, has: [`Wait`]; one of the node, or of a pod in the node's network:
//!    [`Deny::HostNetwork`]; one that now belongs to another pod than the connection began with:
//!    [`Deny::AddressChangedHands`];
//! 2. a pod that an exception of a listed namespace exempts: [`Source::Exception`], whatever it asks for;
//! 3. no assignment: [`Wait::Assignment`] when a binding selects the pod, even one whose identity is missing, else
//!    [`Deny::NoBinding`];
//! 4. the identity: the one that the request names (ids without ASCII case), else that of the highest weight; two
//!    identities with the highest weight are [`Deny::MultipleIdentities`]; one that may still come and would change the
//!    answer is waited for, so that a pod that starts is not given a lesser identity for a while;
//! 5. the audience: any binding to that identity that allows the resource (and the identity must allow it too), else
//!    [`Deny::Audience`]. Another identity is never tried;
//! 6. the time: of these bindings one whose time box, and the identity's, is open at `now`, where a grant opens it or must
//!    (see [`schedule`](crate::schedule)), else [`Deny::Closed`]. No clock that goes back reopens what was closed: the
//!    latest `now` of the process lives in the index and is part of every snapshot ([`HighWater`]).

mod audience;
mod convert;
mod decision;
mod entry;
mod exception;
mod node_index;
mod published;
mod shared;
mod table;
mod time;

pub use convert::{AssignmentError, IdentityError};
pub use decision::{
    Allow, Assignment, Caller, CredentialSource, Decision, Deny, FederatedSubject, Federation, Granted, Identity,
    ObjectRef, Request, RequestedIdentity, SecretKeyRef, Source, VaultObject, VaultRef, Wait,
};
pub use exception::Exception;
pub use node_index::{Binding, NodeIndex, Options};
pub use published::Published;

use std::sync::Arc;

use jiff::Timestamp;

use crate::{
    explain::{Explanation, Recorder, Silent, Tree, Verdict},
    schedule::HighWater,
};
use entry::{Other, Slot, View};
use table::Table;

/// Everything a node needs to decide, frozen. Cheap to share; a change makes a new one.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    addresses: Table,
    /// Not frozen: one for all snapshots of an index.
    clock: Arc<HighWater>,
}

/// The instant of a decision.
#[derive(Clone, Copy, Debug)]
struct Instant<'a> {
    now: Timestamp,
    clock: &'a HighWater,
    /// Whether it is the process's own time, and not one that somebody wants explained.
    counts: bool,
}

impl Instant<'_> {
    /// The latest so far. Asked for only where a time box stands, so that others share no variable.
    fn latest(&self) -> Timestamp {
        if self.counts { self.clock.pass(self.now) } else { self.clock.latest().max(self.now) }
    }
}

impl Snapshot {
    /// Decides what `caller` gets for `request` at `now`. No I/O, and no allocation but for the first that asks after a time
    /// box has opened or closed.
    pub fn decide(&self, caller: &Caller<'_>, request: &Request<'_>, now: Timestamp) -> Decision {
        let instant = Instant { now, clock: &self.clock, counts: true };
        self.decide_because(caller, request, &instant, &mut Silent)
    }

    /// Takes note that it is `now`, for a clock that may go back before anybody asks: to be called about every second.
    pub fn pass(&self, now: Timestamp) {
        self.clock.pass(now);
    }

    /// [`decide`](Self::decide), with its reasons.
    pub fn explain(&self, caller: &Caller<'_>, request: &Request<'_>, now: Timestamp) -> (Decision, Explanation) {
        let mut tree = Tree::new(format!("{} may have a token for `{}`", caller.address, request.resource));
        let instant = Instant { now, clock: &self.clock, counts: false };
        let decision = self.decide_because(caller, request, &instant, &mut tree);
        let verdict = match decision {
            Decision::Allow(_) => Verdict::Yes,
            Decision::Wait(_) => Verdict::Note,
            Decision::Deny(_) => Verdict::No,
        };
        (decision, tree.finish(verdict))
    }

    fn decide_because<R: Recorder>(
        &self,
        caller: &Caller<'_>,
        request: &Request<'_>,
        instant: &Instant<'_>,
        recorder: &mut R,
    ) -> Decision {
        match self.addresses.get(caller.address.to_canonical()) {
            None => {
                recorder.note(|| "no pod of this node has the address (yet)".into());
                Decision::Wait(Wait::UnknownAddress)
            }
            Some(Slot::Other(Other::Ambiguous)) => {
                recorder.note(|| "more than one pod has the address".into());
                Decision::Wait(Wait::AmbiguousAddress)
            }
            Some(Slot::Other(Other::Host)) => {
                recorder.line(Verdict::No, || "the address is the node's, or of a pod in the node's network".into());
                Decision::Deny(Deny::HostNetwork)
            }
            Some(Slot::Sole(sole)) => decide_for(sole.into(), caller, request, instant, recorder),
            Some(Slot::Other(Other::Pod(entry))) => decide_for((&**entry).into(), caller, request, instant, recorder),
        }
    }

    /// The pod that has an address, when exactly one does and it is not in the node's network.
    pub fn pod_at(&self, address: std::net::IpAddr) -> Option<&Arc<crate::pod::PodRef>> {
        self.addresses.get(address.to_canonical())?.pod()
    }
}

fn decide_for<R: Recorder>(
    pod: View<'_>,
    caller: &Caller<'_>,
    request: &Request<'_>,
    instant: &Instant<'_>,
    recorder: &mut R,
) -> Decision {
    recorder
        .line(Verdict::Yes, || format!("pod {}/{} ({}) has the address", pod.pod.namespace, pod.pod.name, pod.pod.uid));
    if caller.pinned.is_some_and(|uid| *uid != *pod.pod.uid) {
        recorder.line(Verdict::No, || "the connection began with another pod".into());
        return Decision::Deny(Deny::AddressChangedHands);
    }
    pod.decide(request, instant, recorder)
}
