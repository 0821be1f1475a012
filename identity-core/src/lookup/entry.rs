//! One pod's part of a decision.

use std::sync::Arc;

use super::{Allow, Assignment, Decision, Deny, ObjectRef, Request, RequestedIdentity, Source, Wait, audience};
use crate::{
    explain::{Recorder, Verdict},
    pod::PodRef,
};

/// What a pod may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodEntry {
    pub(super) pod: Arc<PodRef>,
    /// Assignments that count, the highest weight first.
    pub(super) assignments: Box<[Arc<Assignment>]>,
    /// Bindings that select the pod and have no assignment yet.
    pub(super) expected: Box<[Expected]>,
}

/// An assignment that is still to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) binding: ObjectRef,
    /// Name of the identity, which is in the binding's namespace.
    pub(super) identity: Box<str>,
    pub(super) weight: i32,
}

impl Expected {
    fn is_for(&self, identity: &ObjectRef) -> bool {
        self.binding.namespace == identity.namespace && *self.identity == *identity.name
    }
}

/// Whether a request that names an identity names this one.
fn names(requested: RequestedIdentity<'_>, assignment: &Assignment) -> bool {
    let identity = &assignment.identity;
    let (id, wanted) = match requested {
        RequestedIdentity::Default => return false,
        RequestedIdentity::ClientId(wanted) => (&identity.client_id, wanted),
        RequestedIdentity::ObjectId(wanted) => (&identity.object_id, wanted),
        RequestedIdentity::ResourceId(wanted) => (&identity.resource_id, wanted),
    };
    id.as_ref().is_some_and(|id| id.eq_ignore_ascii_case(wanted))
}

impl PodEntry {
    /// Identity first (named, or by weight), audience second: what the chosen identity does not allow is refused, never
    /// looked for elsewhere.
    pub(super) fn decide<R: Recorder>(&self, request: &Request<'_>, recorder: &mut R) -> Decision {
        if self.assignments.is_empty() {
            if self.expected.is_empty() {
                recorder.line(Verdict::No, || "no binding selects the pod".into());
                return Decision::Deny(Deny::NoBinding(Arc::clone(&self.pod)));
            }
            return self.wait(recorder, || "its first assignment is still to come".into());
        }
        match request.identity {
            RequestedIdentity::Default => self.decide_by_weight(request, recorder),
            named => {
                if !self.assignments.iter().any(|a| names(named, a)) {
                    // The node knows the identity of a binding by its name only.
                    if !self.expected.is_empty() {
                        return self.wait(recorder, || {
                            "no assignment has the identity that was asked for, but one is still to come".into()
                        });
                    }
                    recorder.line(Verdict::No, || {
                        let (kind, id) = match named {
                            RequestedIdentity::ClientId(id) => ("client id", id),
                            RequestedIdentity::ObjectId(id) => ("object id", id),
                            RequestedIdentity::ResourceId(id) => ("resource id", id),
                            RequestedIdentity::Default => ("", ""),
                        };
                        format!("none of the pod's identities has the {kind} `{id}`")
                    });
                    return Decision::Deny(Deny::IdentityNotFound(Arc::clone(&self.pod)));
                }
                self.decide_among(request, |a| names(named, a), recorder)
            }
        }
    }

    fn decide_by_weight<R: Recorder>(&self, request: &Request<'_>, recorder: &mut R) -> Decision {
        let highest = &self.assignments[0];
        let (top, identity) = (highest.weight, &highest.identity.object);
        if self.expected.iter().any(|e| e.weight > top) {
            return self.wait(recorder, || format!("a binding with a weight over {top} has no assignment yet"));
        }
        if let Some(other) =
            self.assignments.iter().take_while(|a| a.weight == top).find(|a| !a.identity.object.is(identity))
        {
            recorder.line(Verdict::No, || {
                format!(
                    "the request names no identity, and {}/{} and {}/{} share the highest weight {top}: give one of \
                     their bindings a higher weight, or name one in the request",
                    identity.namespace, identity.name, other.identity.object.namespace, other.identity.object.name
                )
            });
            return Decision::Deny(Deny::MultipleIdentities(Arc::clone(&self.pod)));
        }
        if self.expected.iter().any(|e| e.weight == top && !e.is_for(identity)) {
            return self.wait(recorder, || format!("another identity's binding of weight {top} has no assignment yet"));
        }
        recorder.line(Verdict::Yes, || {
            format!(
                "the request names no identity: {}/{} has the highest weight ({top})",
                identity.namespace, identity.name
            )
        });
        self.decide_among(request, |a| a.identity.object.is(identity), recorder)
    }

    /// Any of these assignments that allows the resource will do.
    fn decide_among<R: Recorder>(
        &self,
        request: &Request<'_>,
        candidate: impl Fn(&Assignment) -> bool,
        recorder: &mut R,
    ) -> Decision {
        let (mut refused, mut pending) = (None, false);
        for assignment in self.assignments.iter().filter(|a| candidate(a)) {
            let describe = || {
                let (identity, binding) = (&assignment.identity.object, &assignment.binding);
                format!(
                    "identity {}/{} through binding {}/{} (weight {})",
                    identity.namespace, identity.name, binding.namespace, binding.name, assignment.weight
                )
            };
            recorder.open(describe);
            let allowed = audience::allows(&assignment.identity.audiences, request.resource, "identity", recorder)
                && audience::allows(&assignment.binding_audiences, request.resource, "binding", recorder);
            if !allowed {
                refused = refused.or(Some(assignment));
                // Another binding to this identity may allow it.
                pending |= self.expected.iter().any(|e| e.is_for(&assignment.identity.object));
                recorder.close(Verdict::No);
            } else if assignment.ready {
                recorder.close(Verdict::Yes);
                return Decision::Allow(Allow {
                    pod: Arc::clone(&self.pod),
                    source: Source::Assignment(Arc::clone(assignment)),
                    until: None,
                });
            } else {
                recorder.line(Verdict::No, || "the assignment is not usable yet (status is not Assigned)".into());
                recorder.close(Verdict::No);
                pending = true;
            }
        }
        match refused {
            Some(refused) if !pending => {
                Decision::Deny(Deny::Audience(Arc::clone(&self.pod), Arc::clone(refused)))
            }
            _ => self.wait(recorder, || "an assignment that may allow it is still to come".into()),
        }
    }

    fn wait<R: Recorder>(&self, recorder: &mut R, why: impl FnOnce() -> String) -> Decision {
        recorder.line(Verdict::Note, why);
        Decision::Wait(Wait::Assignment(Arc::clone(&self.pod)))
    }
}
