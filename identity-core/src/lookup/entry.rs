//! One pod's part of a decision.

use std::sync::Arc;

use jiff::Timestamp;
use smallvec::SmallVec;

use super::{
    Allow, Assignment, CredentialSource, Decision, Deny, FederatedSubject, Federation, Identity, Instant, ObjectRef,
    Request, RequestedIdentity, Source, Wait, audience, time,
};
use crate::{
    explain::{Recorder, Verdict},
    pod::PodRef,
    schedule::{Gate, Passage},
};

/// What is known about an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// One pod has it, which has one assignment and no other to come: what most are. So all that a decision reads is here
    /// or shared by many pods, and a random one of 100,000 addresses costs few cache misses.
    Sole(Sole),
    /// Something else.
    Other(Other),
}

/// What is less common about an address. An enum of its own, so that a [`Slot`] is no larger than a [`Sole`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Other {
    /// One pod has it.
    Pod(Arc<PodEntry>),
    /// Several pods claim it.
    Ambiguous,
    /// The node has it, or a pod that shares the node's network.
    Host,
}

/// A pod with one assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sole {
    pod: Arc<PodRef>,
    candidate: Candidate,
}

/// What a pod may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodEntry {
    pub(super) pod: Arc<PodRef>,
    /// Assignments that count, the highest weight first.
    pub(super) assignments: SmallVec<[Candidate; 2]>,
    /// Bindings that select the pod and have no assignment yet.
    pub(super) expected: Box<[Expected]>,
    /// A binding selects the pod whose identity is missing or unusable. Nothing waits for it as long as the pod has another.
    pub(super) stuck: bool,
    /// The exception that exempts it.
    pub(super) exempt: Option<Arc<ObjectRef>>,
}

/// An assignment that counts, and what is decided by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) assignment: Arc<Assignment>,
    pub(super) terms: Arc<Terms>,
}

/// What an assignment says about a request, the same for all pods of a binding and shared by them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) identity: Arc<Identity>,
    pub(super) audiences: Box<[Box<str>]>,
    pub(super) weight: i32,
    pub(super) ready: bool,
    pub(super) gate: Option<Arc<Gate>>,
}

impl Candidate {
    /// The same for one pod: an identity whose assertion is the pod's own token (type 3, subject `Pod`) becomes that pod's.
    pub(super) fn of(&self, pod: &Arc<PodRef>) -> Self {
        let CredentialSource::Federated(federation) = &self.terms.identity.credential else { return self.clone() };
        if federation.subject != FederatedSubject::Pod {
            return self.clone();
        }
        let mut identity = Identity::clone(&self.terms.identity);
        let federation = Federation { pod: Some(Arc::clone(pod)), ..federation.clone() };
        identity.credential = CredentialSource::Federated(federation);
        let assignment = Assignment { identity: Arc::new(identity), ..Assignment::clone(&self.assignment) };
        Self { terms: Arc::new(Terms::from(&assignment)), assignment: Arc::new(assignment) }
    }
}

impl From<&Assignment> for Terms {
    fn from(assignment: &Assignment) -> Self {
        Self {
            identity: Arc::clone(&assignment.identity),
            audiences: assignment.binding_audiences.clone(),
            weight: assignment.weight,
            ready: assignment.ready,
            gate: assignment.gate.clone(),
        }
    }
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
fn names(requested: RequestedIdentity<'_>, candidate: &Candidate) -> bool {
    let identity = &candidate.terms.identity;
    let (id, wanted) = match requested {
        RequestedIdentity::Default => return false,
        RequestedIdentity::ClientId(wanted) => (&identity.client_id, wanted),
        RequestedIdentity::ObjectId(wanted) => (&identity.object_id, wanted),
        RequestedIdentity::ResourceId(wanted) => (&identity.resource_id, wanted),
    };
    id.as_ref().is_some_and(|id| id.eq_ignore_ascii_case(wanted))
}

impl Slot {
    /// The one pod that has the address.
    pub(super) fn pod(&self) -> Option<&Arc<PodRef>> {
        match self {
            Self::Sole(sole) => Some(&sole.pod),
            Self::Other(Other::Pod(entry)) => Some(&entry.pod),
            Self::Other(Other::Ambiguous | Other::Host) => None,
        }
    }
}

impl From<&Arc<PodEntry>> for Slot {
    fn from(entry: &Arc<PodEntry>) -> Self {
        match (&*entry.assignments, &*entry.expected, &entry.exempt) {
            ([sole], [], None) => Self::Sole(Sole { pod: Arc::clone(&entry.pod), candidate: sole.clone() }),
            _ => Self::Other(Other::Pod(Arc::clone(entry))),
        }
    }
}

/// One pod's part of a snapshot, wherever it is kept.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) pod: &'a Arc<PodRef>,
    assignments: &'a [Candidate],
    expected: &'a [Expected],
    stuck: bool,
    exempt: Option<&'a Arc<ObjectRef>>,
}

impl<'a> From<&'a PodEntry> for View<'a> {
    fn from(entry: &'a PodEntry) -> Self {
        let PodEntry { pod, assignments, expected, stuck, exempt } = entry;
        Self { pod, assignments, expected, stuck: *stuck, exempt: exempt.as_ref() }
    }
}

impl<'a> From<&'a Sole> for View<'a> {
    #[inline]
    fn from(sole: &'a Sole) -> Self {
        fetch(&sole.pod, &sole.candidate.assignment);
        let assignments = std::slice::from_ref(&sole.candidate);
        Self { pod: &sole.pod, assignments, expected: &[], stuck: false, exempt: None }
    }
}

/// An answer counts as a use of both, which are far apart in memory: has them fetched together, not one after the other.
#[inline]
fn fetch(pod: &Arc<PodRef>, assignment: &Arc<Assignment>) {
    std::hint::black_box((Arc::strong_count(pod), Arc::strong_count(assignment)));
}

/// Whether both are one identity.
fn same(one: &Arc<Identity>, other: &Arc<Identity>) -> bool {
    Arc::ptr_eq(one, other) || one.object.is(&other.object)
}

impl View<'_> {
    /// Exempted pods are not decided about. For all others: identity first (named, or by weight), audience second, time
    /// third; what the chosen identity does not allow is refused, never looked for elsewhere.
    #[inline]
    pub(super) fn decide<R: Recorder>(
        &self,
        request: &Request<'_>,
        instant: &Instant<'_>,
        recorder: &mut R,
    ) -> Decision {
        if let Some(exception) = self.exempt {
            recorder.line(Verdict::Yes, || {
                format!("exception {} exempts the pod: its request goes to the node's own endpoint", exception.key())
            });
            return Decision::Allow(Allow {
                pod: Arc::clone(self.pod),
                source: Source::Exception(Arc::clone(exception)),
                until: None,
            });
        }
        if self.assignments.is_empty() {
            if self.expected.is_empty() && !self.stuck {
                recorder.line(Verdict::No, || "no binding selects the pod".into());
                return Decision::Deny(Deny::NoBinding(Arc::clone(self.pod)));
            }
            return self.wait(recorder, || "its first assignment is still to come".into());
        }
        match request.identity {
            RequestedIdentity::Default => self.decide_by_weight(request, instant, recorder),
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
                    return Decision::Deny(Deny::IdentityNotFound(Arc::clone(self.pod)));
                }
                self.decide_among(request, instant, |a| names(named, a), recorder)
            }
        }
    }

    fn decide_by_weight<R: Recorder>(
        &self,
        request: &Request<'_>,
        instant: &Instant<'_>,
        recorder: &mut R,
    ) -> Decision {
        let highest = &self.assignments[0];
        let (top, chosen) = (highest.terms.weight, &highest.terms.identity);
        let identity = &chosen.object;
        if self.expected.iter().any(|e| e.weight > top) {
            return self.wait(recorder, || format!("a binding with a weight over {top} has no assignment yet"));
        }
        let leading = self.assignments[1..].iter().map(|a| &a.terms).take_while(|terms| terms.weight == top);
        if let Some(other) = leading.map(|terms| &terms.identity).find(|other| !same(other, chosen)) {
            recorder.line(Verdict::No, || {
                format!(
                    "the request names no identity, and {}/{} and {}/{} share the highest weight {top}: give one of \
                     their bindings a higher weight, or name one in the request",
                    identity.namespace, identity.name, other.object.namespace, other.object.name
                )
            });
            return Decision::Deny(Deny::MultipleIdentities(Arc::clone(self.pod)));
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
        self.decide_among(request, instant, |a| same(&a.terms.identity, chosen), recorder)
    }

    /// Any of these assignments that allows the resource, and is open, will do.
    fn decide_among<R: Recorder>(
        &self,
        request: &Request<'_>,
        instant: &Instant<'_>,
        chosen: impl Fn(&Candidate) -> bool,
        recorder: &mut R,
    ) -> Decision {
        let (mut refused, mut closed, mut pending) = (None, None::<(Timestamp, _, _, _)>, false);
        for Candidate { assignment, terms } in self.assignments.iter().filter(|a| chosen(a)) {
            recorder.open(|| {
                let (identity, binding) = (&assignment.identity.object, &assignment.binding);
                format!(
                    "identity {}/{} through binding {}/{} (weight {})",
                    identity.namespace, identity.name, binding.namespace, binding.name, assignment.weight
                )
            });
            let allowed = audience::allows(&terms.identity.audiences, request.resource, "identity", recorder)
                && audience::allows(&terms.audiences, request.resource, "binding", recorder);
            if !allowed {
                refused = refused.or(Some(assignment));
                // Another binding to this identity may allow it.
                pending |= self.expected.iter().any(|e| e.is_for(&terms.identity.object));
                recorder.close(Verdict::No);
                continue;
            }
            let until = match terms.gate.as_deref().map(|gate| time::passage(gate, assignment, instant, recorder)) {
                None => None,
                Some(Passage::Open { until, .. }) => until,
                Some(Passage::Closed { opens, reason }) => {
                    // The one that opens first; what never opens by itself comes last.
                    let at = opens.unwrap_or(Timestamp::MAX);
                    if closed.is_none_or(|(first, ..)| at < first) {
                        closed = Some((at, assignment, opens, reason));
                    }
                    pending |= self.expected.iter().any(|e| e.is_for(&terms.identity.object));
                    recorder.close(Verdict::No);
                    continue;
                }
            };
            if terms.ready {
                recorder.close(Verdict::Yes);
                if self.assignments.len() > 1 {
                    fetch(self.pod, assignment);
                }
                return Decision::Allow(Allow {
                    pod: Arc::clone(self.pod),
                    source: Source::Assignment(Arc::clone(assignment)),
                    until,
                });
            }
            recorder.line(Verdict::No, || "the assignment is not usable yet (status is not Assigned)".into());
            recorder.close(Verdict::No);
            pending = true;
        }
        let pod = || Arc::clone(self.pod);
        match (closed, refused) {
            (Some((_, assignment, opens, reason)), _) if !pending => {
                Decision::Deny(Deny::Closed { pod: pod(), assignment: Arc::clone(assignment), opens, reason })
            }
            (None, Some(refused)) if !pending => Decision::Deny(Deny::Audience(pod(), Arc::clone(refused))),
            _ => self.wait(recorder, || "an assignment that may allow it is still to come".into()),
        }
    }

    fn wait<R: Recorder>(&self, recorder: &mut R, why: impl FnOnce() -> String) -> Decision {
        recorder.line(Verdict::Note, why);
        Decision::Wait(Wait::Assignment(Arc::clone(self.pod)))
    }
}
