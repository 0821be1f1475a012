//! The mutable side: pods, assignments and bindings of one node, joined into a [`Snapshot`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use identity_crd::{AzureAssignedIdentity, AzureIdentityBinding, ConditionStatus, find_condition};
use jiff::Timestamp;
use smallvec::SmallVec;

use super::{
    Assignment, AssignmentError, Decision, Instant, ObjectRef, Published, Request, Snapshot,
    entry::{Candidate, Expected, Other, PodEntry, Slot, Terms, View},
    exception::{Exception, Exceptions},
    shared::Shared,
};
use crate::{
    assign,
    explain::{Explanation, Recorder, Silent, Tree, Verdict},
    object::ObjectKey,
    pod::Pod,
    selector::{Catalog, Selection, reaches},
};

/// How a node decides. Must agree with the controller's [`assign::Options`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The predecessor's matching: bindings and identities of other namespaces count.
    pub cluster_wide: bool,
    /// Assignments without `podUID`, as the predecessor wrote them, count by name. Unsafe when a pod is re-created under
    /// the same name.
    pub without_pod_uid: bool,
    /// Namespaces whose `AzurePodIdentityException`s count: pods that they match get the node's own identities.
    pub exception_namespaces: BTreeSet<String>,
}

/// A binding, trimmed to what tells whether an assignment is still to be expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The `AzureIdentityBinding`.
    pub object: ObjectRef,
    /// Name of its identity.
    pub identity: Box<str>,
    /// What it selects by.
    pub selection: Selection,
    /// Weight.
    pub weight: i32,
    /// Whether the controller has said (of this generation) that no assignment comes of it as things are: its identity is
    /// missing or unusable. What a pod has otherwise does not wait for it; a pod that has nothing else is held all the same,
    /// since manifests are often applied in this order.
    pub hopeless: bool,
}

impl From<&AzureIdentityBinding> for Binding {
    fn from(binding: &AzureIdentityBinding) -> Self {
        let conditions = binding.status.as_ref().map_or(&[][..], |s| &s.conditions);
        let said = |type_: &str, reason: Option<&str>| {
            find_condition(conditions, type_).is_some_and(|c| {
                c.status == ConditionStatus::False
                    && reason.is_none_or(|r| c.reason == r)
                    && (c.observed_generation.is_none() || c.observed_generation == binding.metadata.generation)
            })
        };
        Self {
            object: ObjectRef::from(&binding.metadata),
            identity: binding.spec.azure_identity.as_deref().unwrap_or_default().into(),
            selection: Selection::from(&binding.spec),
            weight: binding.spec.weight.unwrap_or_default(),
            hopeless: said(assign::IDENTITY_FOUND, None) || said(assign::VALID, Some(assign::IDENTITY_UNUSABLE)),
        }
    }
}

#[derive(Debug)]
struct HeldPod {
    pod: Pod,
    entry: Option<Arc<PodEntry>>,
}

/// An assignment as received: usable or not, and for which pod by name.
#[derive(Debug)]
struct HeldAssignment {
    pod: ObjectKey,
    read: Result<Candidate, AssignmentError>,
}

/// Everything one node knows, joined. One task owns it; readers have the [`Published`] snapshots.
///
/// A change costs what depends on it: a pod its own candidate bindings, an assignment its pod, a binding the pods of this
/// node.
#[derive(Debug)]
pub struct NodeIndex {
    options: Options,
    node: HashSet<IpAddr>,
    pods: HashMap<ObjectKey, HeldPod>,
    claims: HashMap<IpAddr, Vec<ObjectKey>>,
    assignments: HashMap<ObjectKey, HeldAssignment>,
    of_pod: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
    bindings: HashMap<ObjectKey, Binding>,
    catalog: Catalog,
    exceptions: Exceptions,
    shared: Shared,
    dirty_pods: BTreeSet<ObjectKey>,
    dirty_addresses: BTreeSet<IpAddr>,
    snapshot: Snapshot,
    changed: bool,
}

impl Default for NodeIndex {
    fn default() -> Self {
        Self::new(Options::default())
    }
}

impl NodeIndex {
    /// An empty index.
    pub fn new(options: Options) -> Self {
        Self {
            catalog: Catalog::new(options.cluster_wide),
            exceptions: Exceptions::new(options.exception_namespaces.clone()),
            options,
            node: HashSet::new(),
            pods: HashMap::new(),
            claims: HashMap::new(),
            assignments: HashMap::new(),
            of_pod: HashMap::new(),
            bindings: HashMap::new(),
            shared: Shared::default(),
            dirty_pods: BTreeSet::new(),
            dirty_addresses: BTreeSet::new(),
            snapshot: Snapshot::default(),
            changed: false,
        }
    }

    /// The node's own addresses, which are refused.
    pub fn set_node_addresses(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        let addresses: HashSet<IpAddr> = addresses.into_iter().map(|a| a.to_canonical()).collect();
        self.dirty_addresses.extend(self.node.symmetric_difference(&addresses));
        self.node = addresses;
    }

    /// Namespaces whose exceptions count.
    pub const fn exception_namespaces(&self) -> &BTreeSet<String> {
        &self.options.exception_namespaces
    }

    /// A pod of this node appeared or changed.
    pub fn apply_pod(&mut self, pod: Pod) {
        let key = pod.key();
        if self.pods.get(&key).is_some_and(|held| held.pod == pod) {
            return;
        }
        self.delete_pod(&key);
        // A finished pod's address may belong to another already.
        if !pod.phase.is_finished() {
            for address in &pod.addresses {
                let claims = self.claims.entry(*address).or_default();
                // Listed twice, it is still one pod's.
                if claims.last() != Some(&key) {
                    claims.push(key.clone());
                }
                self.dirty_addresses.insert(*address);
            }
        }
        self.dirty_pods.insert(key.clone());
        self.pods.insert(key, HeldPod { pod, entry: None });
    }

    /// A pod is gone.
    pub fn delete_pod(&mut self, key: &ObjectKey) {
        let Some(held) = self.pods.remove(key) else { return };
        for address in &held.pod.addresses {
            if let Some(claims) = self.claims.get_mut(address) {
                claims.retain(|k| k != key);
                if claims.is_empty() {
                    self.claims.remove(address);
                }
            }
            self.dirty_addresses.insert(*address);
        }
        self.dirty_pods.remove(key);
    }

    /// These are all pods of this node.
    pub fn reset_pods(&mut self, pods: Vec<Pod>) {
        let listed: HashSet<ObjectKey> = pods.iter().map(Pod::key).collect();
        for key in gone(&self.pods, &listed) {
            self.delete_pod(&key);
        }
        for pod in pods {
            self.apply_pod(pod);
        }
    }

    /// An assignment of this node appeared or changed. One that a node cannot serve is kept aside for explanations; the
    /// answer says why, for the log.
    pub fn apply_assignment(&mut self, object: &AzureAssignedIdentity) -> Result<(), AssignmentError> {
        let binding = object.spec.azure_binding_ref.as_ref().map(|binding| ObjectRef::from(&binding.metadata).key());
        let shared = &mut self.shared;
        let read = Assignment::read_with(object, &self.options, |of_binding, of_identity| {
            shared.gate(binding?, of_binding, of_identity)
        });
        let read = read.map(|mut assignment| {
            assignment.identity = shared.identity(assignment.identity);
            let terms = shared.terms(assignment.binding.key(), Terms::from(&assignment));
            Candidate { assignment: Arc::new(assignment), terms }
        });
        let key = ObjectRef::from(&object.metadata).key();
        let name = |n: Option<&String>| n.map_or("", String::as_str).to_owned();
        let pod = ObjectKey::new(name(object.spec.pod_namespace.as_ref()), name(object.spec.pod.as_ref()));
        self.delete_assignment(&key);
        self.of_pod.entry(pod.clone()).or_default().insert(key.clone());
        self.touch(&pod);
        let result = read.as_ref().map(|_| ()).map_err(Clone::clone);
        self.assignments.insert(key, HeldAssignment { pod, read });
        self.shared.changed();
        result
    }

    /// An assignment is gone.
    pub fn delete_assignment(&mut self, key: &ObjectKey) {
        let Some(held) = self.assignments.remove(key) else { return };
        if let Some(keys) = self.of_pod.get_mut(&held.pod) {
            keys.remove(key);
            if keys.is_empty() {
                self.of_pod.remove(&held.pod);
            }
        }
        self.touch(&held.pod);
        drop(held);
        self.shared.changed();
    }

    /// The assignment of that name, if there is one that can be served.
    pub fn assignment(&self, key: &ObjectKey) -> Option<&Arc<Assignment>> {
        self.assignments.get(key)?.read.as_ref().ok().map(|candidate| &candidate.assignment)
    }

    /// These are all assignments of this node. Answers those that it cannot serve, with the reason.
    pub fn reset_assignments(&mut self, objects: &[AzureAssignedIdentity]) -> Vec<(ObjectKey, AssignmentError)> {
        let listed: HashSet<ObjectKey> = objects.iter().map(|o| ObjectRef::from(&o.metadata).key()).collect();
        for key in gone(&self.assignments, &listed) {
            self.delete_assignment(&key);
        }
        self.shared.sweep();
        objects
            .iter()
            .filter_map(|o| Some((ObjectRef::from(&o.metadata).key(), self.apply_assignment(o).err()?)))
            .collect()
    }

    /// A binding appeared or changed.
    pub fn apply_binding(&mut self, binding: Binding) {
        let key = binding.object.key();
        if self.bindings.get(&key) == Some(&binding) {
            return;
        }
        self.delete_binding(&key);
        self.catalog.insert(&key, &binding.selection);
        self.touch_selected(&binding);
        self.bindings.insert(key, binding);
    }

    /// A binding is gone.
    pub fn delete_binding(&mut self, key: &ObjectKey) {
        let Some(binding) = self.bindings.remove(key) else { return };
        self.catalog.remove(key, &binding.selection);
        self.touch_selected(&binding);
    }

    /// These are all bindings.
    pub fn reset_bindings(&mut self, bindings: Vec<Binding>) {
        let listed: HashSet<ObjectKey> = bindings.iter().map(|b| b.object.key()).collect();
        for key in gone(&self.bindings, &listed) {
            self.delete_binding(&key);
        }
        for binding in bindings {
            self.apply_binding(binding);
        }
    }

    /// An exception appeared or changed. In a namespace that is not listed it counts for nothing.
    pub fn apply_exception(&mut self, exception: Exception) {
        for concerned in self.exceptions.apply(exception) {
            self.touch_exempted(&concerned);
        }
    }

    /// An exception is gone.
    pub fn delete_exception(&mut self, key: &ObjectKey) {
        if let Some(former) = self.exceptions.delete(key) {
            self.touch_exempted(&former);
        }
    }

    /// These are all exceptions of a namespace.
    pub fn reset_exceptions(&mut self, namespace: &str, exceptions: Vec<Exception>) {
        let listed: HashSet<ObjectKey> = exceptions.iter().map(|e| e.object.key()).collect();
        for key in self.exceptions.of(namespace) {
            if !listed.contains(&key) {
                self.delete_exception(&key);
            }
        }
        for exception in exceptions {
            self.apply_exception(exception);
        }
    }

    /// Makes a snapshot current if anything changed that a decision could depend on. Answers whether it did.
    pub fn publish(&mut self, to: &Published) -> bool {
        self.join();
        let changed = std::mem::take(&mut self.changed);
        if changed {
            to.publish(self.snapshot.clone());
        }
        changed
    }

    /// The snapshot of this instant.
    pub fn snapshot(&mut self) -> Snapshot {
        self.join();
        self.snapshot.clone()
    }

    /// How often it was worked out whether a time box that is in use is open: once for each box and transition after which anybody asked,
    /// however many pods have it.
    pub fn searches(&self) -> u64 {
        self.shared.searches()
    }

    #[cfg(test)]
    pub(super) const fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Why a pod of this node would get what it gets for a request, and what of it this node knows.
    pub fn explain(&mut self, key: &ObjectKey, request: &Request<'_>, now: Timestamp) -> Explanation {
        self.join();
        let mut tree = Tree::new(format!("pod {key} may have a token for `{}`", request.resource));
        let Some(held) = self.pods.get(key) else {
            tree.line(Verdict::No, || "this node does not know the pod".into());
            return tree.finish(Verdict::No);
        };
        for address in &held.pod.addresses {
            tree.open(|| format!("address {address}"));
            let slot = self.slot(*address, &mut tree);
            let whose = slot.as_ref().and_then(Slot::pod) == Some(&held.pod.reference);
            tree.close(whose.into());
        }
        if held.pod.addresses.is_empty() {
            tree.note(|| "it has no address yet".into());
        }
        if held.pod.phase.is_finished() {
            tree.line(Verdict::No, || format!("it has finished ({:?})", held.pod.phase));
            return tree.finish(Verdict::No);
        }
        if held.pod.host_network {
            tree.line(Verdict::No, || "it shares the node's network: such pods are refused".into());
            return tree.finish(Verdict::No);
        }
        let entry = self.entry(&held.pod, &mut tree);
        let instant = Instant { now, clock: &self.snapshot.clock, counts: false };
        let verdict = match View::from(&entry).decide(request, &instant, &mut tree) {
            Decision::Allow(_) => Verdict::Yes,
            Decision::Wait(_) => Verdict::Note,
            Decision::Deny(_) => Verdict::No,
        };
        tree.finish(verdict)
    }

    fn touch(&mut self, pod: &ObjectKey) {
        if self.pods.contains_key(pod) {
            self.dirty_pods.insert(pod.clone());
        }
    }

    fn touch_selected(&mut self, binding: &Binding) {
        for (key, held) in &self.pods {
            if reaches(&binding.object.namespace, &held.pod, self.options.cluster_wide, &mut Silent)
                && binding.selection.selects(&held.pod)
            {
                self.dirty_pods.insert(key.clone());
            }
        }
    }

    fn touch_exempted(&mut self, exception: &Exception) {
        let exempted = self.pods.iter().filter(|(_, held)| exception.exempts(&held.pod));
        self.dirty_pods.extend(exempted.map(|(key, _)| key.clone()));
    }

    /// Brings the snapshot up to date with what changed.
    fn join(&mut self) {
        for key in std::mem::take(&mut self.dirty_pods) {
            let Some(held) = self.pods.get(&key) else { continue };
            let entry = self.entry(&held.pod, &mut Silent);
            if held.entry.as_deref() != Some(&entry) {
                self.dirty_addresses.extend(&held.pod.addresses);
                if let Some(held) = self.pods.get_mut(&key) {
                    held.entry = Some(Arc::new(entry));
                }
            }
        }
        for address in std::mem::take(&mut self.dirty_addresses) {
            let slot = self.slot(address, &mut Silent);
            self.changed |= self.snapshot.addresses.set(address, slot);
        }
    }

    /// Who has an address.
    fn slot<R: Recorder>(&self, address: IpAddr, recorder: &mut R) -> Option<Slot> {
        let claims = self.claims.get(&address).map_or(&[][..], Vec::as_slice);
        let mut pods = claims.iter().filter_map(|key| self.pods.get(key));
        if self.node.contains(&address) || pods.clone().any(|held| held.pod.host_network) {
            recorder.line(Verdict::No, || "is the node's own, or shared with it".into());
            return Some(Slot::Other(Other::Host));
        }
        let first = pods.next()?;
        if pods.next().is_some() {
            recorder.line(Verdict::No, || {
                let names: Vec<String> = claims.iter().map(ToString::to_string).collect();
                format!("is claimed by several pods: {}", names.join(", "))
            });
            return Some(Slot::Other(Other::Ambiguous));
        }
        first.entry.as_ref().map(Slot::from)
    }

    /// What a pod may have, by its UID.
    fn entry<R: Recorder>(&self, pod: &Pod, recorder: &mut R) -> PodEntry {
        let exempt = self.exceptions.exempting(pod, recorder);
        let mut assignments = SmallVec::<[Candidate; 2]>::new();
        for key in self.of_pod.get(&pod.key()).into_iter().flatten() {
            let Some(held) = self.assignments.get(key) else { continue };
            match &held.read {
                Ok(candidate)
                    if candidate.assignment.pod_uid.is_empty() || candidate.assignment.pod_uid == pod.reference.uid =>
                {
                    recorder.line(Verdict::Yes, || format!("assignment {key} counts"));
                    assignments.push(candidate.of(&pod.reference));
                }
                Ok(Candidate { assignment, .. }) => recorder.line(Verdict::No, || {
                    format!("assignment {key} is for another pod of this name ({})", assignment.pod_uid)
                }),
                Err(error) => recorder.line(Verdict::No, || format!("assignment {key} is not served: {error}")),
            }
        }
        assignments.sort_by(|Candidate { assignment: a, .. }, Candidate { assignment: b, .. }| {
            b.weight.cmp(&a.weight).then_with(|| a.object.key().cmp(&b.object.key()))
        });
        let (mut expected, mut stuck) = (BTreeMap::new(), false);
        for key in self.catalog.candidates(pod) {
            let Some(binding) = self.bindings.get(key) else { continue };
            if !binding.selection.selects(pod) || assignments.iter().any(|a| a.assignment.binding.is(&binding.object)) {
                continue;
            }
            if recorder.check(!binding.hopeless, || {
                format!(
                    "binding {key} selects the pod, and its identity `{}` is there and can be used",
                    binding.identity
                )
            }) {
                expected.insert(key, binding);
            } else {
                stuck = true;
            }
        }
        PodEntry {
            pod: Arc::clone(&pod.reference),
            assignments,
            expected: expected
                .into_values()
                .map(|b| Expected { binding: b.object.clone(), identity: b.identity.clone(), weight: b.weight })
                .collect(),
            stuck,
            exempt,
        }
    }
}

fn gone<T>(held: &HashMap<ObjectKey, T>, listed: &HashSet<ObjectKey>) -> Vec<ObjectKey> {
    held.keys().filter(|key| !listed.contains(*key)).cloned().collect()
}
