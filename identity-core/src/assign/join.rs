//! Pods × bindings × identities: which assignments are wanted, kept up to date change by change.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use identity_crd::{AzureIdentity, AzureIdentityBinding, BEHAVIOR_ANNOTATION, BEHAVIOR_NAMESPACED, BINDING_LABEL};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{
    BindingState, IdentityState, Index, Pair, PodState, Relist, StatusTarget,
    object::{assignment_key, embed_binding, embed_identity},
};
use crate::{
    explain::{Recorder, Silent},
    lookup::{Identity, ObjectRef},
    object::ObjectKey,
    pod::Pod,
    selector::{Selection, reaches},
};

pub(super) fn key_of(meta: &ObjectMeta) -> ObjectKey {
    ObjectRef::from(meta).key()
}

impl Index {
    pub(super) fn relist(&mut self, list: Relist) {
        match list {
            Relist::Pods(pods) => {
                let listed: HashSet<ObjectKey> = pods.iter().map(Pod::key).collect();
                for key in &gone(self.pods.keys(), &listed) {
                    self.remove_pod(key);
                }
                for pod in pods {
                    self.set_pod(pod);
                }
                self.listed[0] = true;
            }
            Relist::Identities(objects) => {
                let listed = objects.iter().map(|o| key_of(&o.metadata)).collect();
                for key in &gone(self.identities.keys(), &listed) {
                    self.remove_identity(key);
                }
                for object in objects {
                    self.set_identity(Box::new(object));
                }
                self.listed[1] = true;
            }
            Relist::Bindings(objects) => {
                let listed = objects.iter().map(|o| key_of(&o.metadata)).collect();
                for key in &gone(self.bindings.keys(), &listed) {
                    self.remove_binding(key);
                }
                for object in objects {
                    self.set_binding(Box::new(object));
                }
                self.listed[2] = true;
            }
            Relist::Assigned(objects) => {
                self.observe_all(&objects);
                self.listed[3] = true;
            }
            Relist::Grants(objects) => self.relist_grants(objects),
        }
    }

    pub(super) fn set_pod(&mut self, pod: Pod) {
        let key = pod.key();
        let mut selected = match self.pods.get(&key) {
            Some(state) if state.pod == pod => return,
            // The same name, another pod.
            Some(state) if state.pod.reference.uid != pod.reference.uid => {
                self.remove_pod(&key);
                BTreeMap::new()
            }
            Some(_) => {
                self.unfile_pod(&key);
                self.pods.remove(&key).map(|state| state.selected).unwrap_or_default()
            }
            None => BTreeMap::new(),
        };
        // A finished pod is selected by nothing.
        let mut selecting: BTreeSet<ObjectKey> = BTreeSet::new();
        if !pod.phase.is_finished() {
            selecting.extend(
                self.catalog
                    .candidates(&pod)
                    .filter(|b| self.bindings.get(*b).is_some_and(|b| b.selection.selects(&pod)))
                    .cloned(),
            );
        }
        selected.retain(|binding, assignment| {
            let keep = selecting.contains(binding);
            if !keep {
                unselect(&mut self.bindings, &mut self.statuses.dirty, binding, &key);
                self.wanted.remove(assignment);
                self.dirty.insert(assignment.clone());
            }
            keep
        });
        for binding in selecting {
            if selected.contains_key(&binding) {
                continue;
            }
            let Some(state) = self.bindings.get_mut(&binding) else { continue };
            state.pods.insert(key.clone());
            self.statuses.dirty.insert(StatusTarget::Binding(binding.clone()));
            selected.insert(binding, assignment_key(&pod.reference, &state.object));
        }
        let pairs: Vec<_> = selected.iter().map(|(b, a)| (b.clone(), a.clone())).collect();
        self.file_pod(&key, &pod);
        self.pods.insert(key.clone(), PodState { pod, selected });
        for (binding, assignment) in pairs {
            self.judge(&key, &binding, &assignment);
        }
    }

    pub(super) fn remove_pod(&mut self, key: &ObjectKey) {
        self.unfile_pod(key);
        let Some(state) = self.pods.remove(key) else { return };
        for (binding, assignment) in state.selected {
            unselect(&mut self.bindings, &mut self.statuses.dirty, &binding, key);
            self.wanted.remove(&assignment);
            self.dirty.insert(assignment);
        }
        // Assignments of it that nothing wants may be there too, and become orphans now.
        let left = self.observed_of(key);
        self.dirty.extend(left);
    }

    pub(super) fn set_identity(&mut self, object: Box<AzureIdentity>) {
        let key = key_of(&object.metadata);
        let embedded = embed_identity(&object);
        let namespaced = object
            .metadata
            .annotations
            .as_ref()
            .and_then(|a| a.get(BEHAVIOR_ANNOTATION))
            .is_some_and(|behavior| behavior == BEHAVIOR_NAMESPACED);
        self.statuses.dirty.insert(StatusTarget::Identity(key.clone()));
        if let Some(state) = self.identities.get_mut(&key)
            && state.embedded == embedded
            && state.namespaced == namespaced
        {
            state.object = object;
            return;
        }
        let usable = Identity::read(&object, self.options.cluster_wide).map(|_| ());
        let former = self.identities.remove(&key);
        if former.as_ref().is_some_and(|state| state.embedded.metadata.uid != embedded.metadata.uid) {
            // Another one of that name: what is under way concerns its predecessor.
            let target = StatusTarget::Identity(key.clone());
            self.statuses.forget(&target);
            self.statuses.dirty.insert(target);
        }
        let credential =
            former.filter(|state| state.embedded.metadata == embedded.metadata).and_then(|state| state.credential);
        self.identities.insert(key.clone(), IdentityState { object, embedded, namespaced, usable, credential });
        self.identity_changed(&key);
    }

    pub(super) fn remove_identity(&mut self, key: &ObjectKey) {
        if self.identities.remove(key).is_some() {
            self.statuses.forget(&StatusTarget::Identity(key.clone()));
            self.identity_changed(key);
        }
    }

    fn identity_changed(&mut self, key: &ObjectKey) {
        for binding in self.naming.get(key).cloned().unwrap_or_default() {
            self.judge_all(&binding);
            self.boxes.dirty.insert(binding.clone());
            self.statuses.dirty.insert(StatusTarget::Binding(binding));
        }
    }

    pub(super) fn set_binding(&mut self, object: Box<AzureIdentityBinding>) {
        let key = key_of(&object.metadata);
        let embedded = embed_binding(&object);
        if let Some(state) = self.bindings.get_mut(&key)
            && state.embedded == embedded
        {
            if object.metadata.deletion_timestamp != state.object.metadata.deletion_timestamp {
                self.grants.binding_changed(&key);
            }
            state.object = object;
            self.statuses.dirty.insert(StatusTarget::Binding(key));
            return;
        }
        let recreated =
            self.bindings.get(&key).is_some_and(|state| state.embedded.metadata.uid != embedded.metadata.uid);
        if recreated {
            self.remove_binding(&key);
        }
        let old = self.bindings.remove(&key);
        if let Some(old) = &old {
            self.unfile_binding(&key, old);
        }
        let selection = Selection::from(&object.spec);
        self.catalog.insert(&key, &selection);
        let identity = object
            .spec
            .azure_identity
            .as_deref()
            .filter(|name| !name.is_empty())
            .map(|name| ObjectKey { namespace: Arc::clone(&key.namespace), name: name.into() });
        if let Some(identity) = &identity {
            self.naming.entry(identity.clone()).or_default().insert(key.clone());
        }
        let pods = self.selected_by(&key, &selection);
        for pod in old.iter().flat_map(|old| old.pods.difference(&pods)) {
            self.unselect_pod(pod, &key);
        }
        for pod in &pods {
            if let Some(state) = self.pods.get_mut(pod) {
                state.selected.entry(key.clone()).or_insert_with(|| assignment_key(&state.pod.reference, &object));
            }
        }
        self.bindings.insert(key.clone(), BindingState { object, embedded, selection, identity, pods });
        self.judge_all(&key);
        self.boxes.dirty.insert(key.clone());
        self.grants.binding_changed(&key);
        self.statuses.dirty.insert(StatusTarget::Binding(key));
    }

    pub(super) fn remove_binding(&mut self, key: &ObjectKey) {
        let Some(state) = self.bindings.remove(key) else { return };
        self.unfile_binding(key, &state);
        for pod in &state.pods {
            self.unselect_pod(pod, key);
        }
        self.statuses.forget(&StatusTarget::Binding(key.clone()));
        self.boxes.forget(key);
        self.grants.binding_changed(key);
    }

    fn unselect_pod(&mut self, pod: &ObjectKey, binding: &ObjectKey) {
        if let Some(assignment) = self.pods.get_mut(pod).and_then(|state| state.selected.remove(binding)) {
            self.wanted.remove(&assignment);
            self.dirty.insert(assignment);
        }
    }

    fn unfile_binding(&mut self, key: &ObjectKey, state: &BindingState) {
        self.catalog.remove(key, &state.selection);
        if let Some(identity) = &state.identity
            && let Some(bindings) = self.naming.get_mut(identity)
        {
            bindings.remove(key);
            if bindings.is_empty() {
                self.naming.remove(identity);
            }
        }
    }

    /// Pods that a binding selects.
    fn selected_by(&self, binding: &ObjectKey, selection: &Selection) -> BTreeSet<ObjectKey> {
        let Some(ward) = self.wards.get(self.catalog.scope(&binding.namespace)) else { return BTreeSet::new() };
        let candidates = match selection.necessary_label() {
            Some(label) => ward.by_label.get(label),
            None => Some(&ward.all),
        };
        let selects = |key: &&ObjectKey| {
            self.pods.get(*key).is_some_and(|s| !s.pod.phase.is_finished() && selection.selects(&s.pod))
        };
        candidates.into_iter().flatten().filter(selects).cloned().collect()
    }

    fn file_pod(&mut self, key: &ObjectKey, pod: &Pod) {
        let ward = self.wards.entry(Arc::from(self.catalog.scope(&key.namespace))).or_default();
        ward.all.insert(key.clone());
        if let Some(label) = pod.labels.get(BINDING_LABEL) {
            ward.by_label.entry(label.as_str().into()).or_default().insert(key.clone());
        }
    }

    fn unfile_pod(&mut self, key: &ObjectKey) {
        let scope = self.catalog.scope(&key.namespace);
        let Some(ward) = self.wards.get_mut(scope) else { return };
        ward.all.remove(key);
        if let Some(label) = self.pods.get(key).and_then(|state| state.pod.labels.get(BINDING_LABEL))
            && let Some(pods) = ward.by_label.get_mut(label.as_str())
        {
            pods.remove(key);
            if pods.is_empty() {
                ward.by_label.remove(label.as_str());
            }
        }
        if ward.all.is_empty() {
            self.wards.remove(scope);
        }
    }

    fn judge_all(&mut self, binding: &ObjectKey) {
        let pods: Vec<ObjectKey> =
            self.bindings.get(binding).map(|state| state.pods.iter().cloned().collect()).unwrap_or_default();
        for pod in pods {
            if let Some(assignment) = self.pods.get(&pod).and_then(|state| state.selected.get(binding)).cloned() {
                self.judge(&pod, binding, &assignment);
            }
        }
    }

    /// Whether a pair that selection has brought together is to be assigned; either way its assignment is looked at again.
    fn judge(&mut self, pod: &ObjectKey, binding: &ObjectKey, assignment: &ObjectKey) {
        let wanted = match (self.pods.get(pod), self.bindings.get(binding)) {
            (Some(pod), Some(binding)) => {
                eligible(&pod.pod, &mut Silent) && self.granted(&pod.pod, binding, &mut Silent)
            }
            _ => false,
        };
        if wanted {
            self.wanted.insert(assignment.clone(), Pair { pod: pod.clone(), binding: binding.clone() });
        } else {
            self.wanted.remove(assignment);
        }
        self.dirty.insert(assignment.clone());
    }

    /// Whether a binding that selects the pod has an identity to give to it.
    pub(super) fn granted<R: Recorder>(&self, pod: &Pod, binding: &BindingState, recorder: &mut R) -> bool {
        let Some(name) = &binding.identity else {
            return recorder.check(false, || "it names no identity: give spec.azureIdentity".into());
        };
        let Some(identity) = self.identities.get(name) else {
            return recorder.check(false, || format!("identity {name} does not exist: create it"));
        };
        if let Some(wrong) = other_client_id(binding, identity) {
            return recorder.check(false, || wrong.words(name));
        }
        if let Err(error) = &identity.usable {
            return recorder.check(false, || format!("identity {name} cannot be used: {error}"));
        }
        recorder.check(!identity.namespaced || name.namespace == pod.reference.namespace, || {
            if identity.namespaced {
                format!("identity {name} is restricted to its own namespace ({BEHAVIOR_ANNOTATION})")
            } else {
                format!("identity {name} can be used")
            }
        })
    }

    /// Whether `binding` selects `pod`, namespaces included.
    pub(super) fn selects<R: Recorder>(
        &self,
        key: &ObjectKey,
        binding: &BindingState,
        pod: &Pod,
        recorder: &mut R,
    ) -> bool {
        reaches(&key.namespace, pod, self.options.cluster_wide, recorder)
            && binding.selection.selects_because(pod, recorder)
    }
}

/// The client id that a binding asks for, and the one that its identity has instead.
pub(super) struct OtherClientId<'a> {
    wanted: &'a str,
    has: Option<&'a str>,
}

/// What is wrong when a binding says which client id its identity has, and it has not.
///
/// Not a matter of form: who had the right to that client id alone could write such a binding
/// ([`identity_crd::policies::delegation`]), so that it must never become one of another identity.
pub(super) fn other_client_id<'a>(binding: &'a BindingState, identity: &'a IdentityState) -> Option<OtherClientId<'a>> {
    let (spec, has) = (&binding.object.spec, identity.object.spec.client_id.as_deref());
    let wanted = spec.client_id.as_deref().filter(|_| !spec.may_be_of(has))?;
    Some(OtherClientId { wanted, has: has.filter(|id| !id.is_empty()) })
}

impl OtherClientId<'_> {
    pub(super) fn words(&self, identity: &ObjectKey) -> String {
        let has = self.has.map_or_else(|| "says none".into(), |id| format!("has client id `{id}`"));
        format!(
            "spec.clientID: the binding is for client id `{}`, and AzureIdentity `{}` {has}: nothing is assigned until they \
             are the same",
            self.wanted, identity.name
        )
    }
}

/// Whether a pod can be assigned anything.
pub(super) fn eligible<R: Recorder>(pod: &Pod, recorder: &mut R) -> bool {
    recorder.check(!pod.phase.is_finished(), || {
        if pod.phase.is_finished() {
            format!("it has finished ({:?})", pod.phase)
        } else {
            "it has not finished".into()
        }
    }) && recorder.check(!pod.host_network, || {
        if pod.host_network {
            "it shares the node's network, where pods cannot be told apart: such pods get no identity".into()
        } else {
            "it has a network of its own".into()
        }
    }) && recorder.check(pod.node.is_some(), || {
        pod.node
            .as_ref()
            .map_or_else(|| "it is not scheduled to a node yet".into(), |node| format!("it is on node {node}"))
    })
}

fn unselect(
    bindings: &mut std::collections::HashMap<ObjectKey, BindingState>,
    statuses: &mut BTreeSet<StatusTarget>,
    binding: &ObjectKey,
    pod: &ObjectKey,
) {
    if let Some(state) = bindings.get_mut(binding) {
        state.pods.remove(pod);
        statuses.insert(StatusTarget::Binding(binding.clone()));
    }
}

pub(super) fn gone<'a>(held: impl Iterator<Item = &'a ObjectKey>, listed: &HashSet<ObjectKey>) -> Vec<ObjectKey> {
    held.filter(|key| !listed.contains(*key)).cloned().collect()
}
