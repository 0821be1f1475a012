//! Assignments as they are on the server: what the watch says, joined with the answers to our own writes, which may arrive
//! before it.

use std::collections::{HashMap, HashSet};

use identity_crd::AzureAssignedIdentity;

use super::{
    Index, MANAGED_BY_LABEL, MANAGED_BY_VALUE, Precondition, ToldReason,
    join::{gone, key_of},
    object::relevant,
    plan::Hold,
};
use crate::object::ObjectKey;

/// An assignment that is there.
#[derive(Debug)]
pub(super) struct Observed {
    /// What of it is compared.
    pub(super) content: AzureAssignedIdentity,
    pub(super) version: Precondition,
    /// Carries our mark.
    pub(super) ours: bool,
    /// Being deleted: it only waits for its finalizers.
    pub(super) deleting: bool,
    /// For which pod, by name.
    pub(super) pod: ObjectKey,
}

impl Observed {
    /// UID of the pod that owns it, if one does.
    pub(super) fn owner(&self) -> Option<&str> {
        self.content.metadata.owner_references.as_ref()?.first().map(|owner| owner.uid.as_str())
    }
}

impl From<&AzureAssignedIdentity> for Observed {
    fn from(object: &AzureAssignedIdentity) -> Self {
        let (meta, spec) = (&object.metadata, &object.spec);
        Self {
            content: relevant(object),
            version: Precondition {
                uid: meta.uid.clone().unwrap_or_default(),
                resource_version: meta.resource_version.clone().unwrap_or_default(),
            },
            ours: meta.labels.as_ref().and_then(|l| l.get(MANAGED_BY_LABEL)).is_some_and(|v| v == MANAGED_BY_VALUE),
            deleting: meta.deletion_timestamp.is_some(),
            pod: ObjectKey::new(
                spec.pod_namespace.as_deref().or(meta.namespace.as_deref()).unwrap_or_default(),
                spec.pod.as_deref().unwrap_or_default(),
            ),
        }
    }
}

/// Whether `version` is older than `held`. Resource versions are integers that grow (Kubernetes 1.35 made that a promise,
/// KEP-5504); where they are not, what comes last counts as newest.
pub(super) fn older(version: &Precondition, held: &Precondition) -> bool {
    let number = |p: &Precondition| p.resource_version.parse::<u128>().ok();
    matches!((number(version), number(held)), (Some(a), Some(b)) if a < b)
}

impl Index {
    pub(super) fn observe(&mut self, object: &AzureAssignedIdentity) {
        let tried = self.holds.contains_key(&key_of(&object.metadata));
        self.observe_tried(object, tried);
    }

    /// `tried`: this index has asked for it.
    pub(super) fn observe_tried(&mut self, object: &AzureAssignedIdentity, tried: bool) {
        let key = key_of(&object.metadata);
        let seen = Observed::from(object);
        // A late word of something that was deleted at our request.
        if self.buried.get(&key).is_some_and(|uids| uids.contains(&seen.version.uid)) && !seen.deleting {
            return;
        }
        if self.observed.get(&key).is_some_and(|held| older(&seen.version, &held.version)) {
            return;
        }
        if self.observed.get(&key).is_none_or(|held| held.version != seen.version) {
            self.release(&key);
        }
        if tried && seen.ours && !seen.deleting && !self.observed.contains_key(&key) {
            self.told.happened(ToldReason::Assigned, object);
        }
        self.forget_pod(&key);
        self.by_pod.entry(seen.pod.clone()).or_default().insert(key.clone());
        self.observed.insert(key.clone(), seen);
        self.dirty.insert(key);
    }

    pub(super) fn observe_deleted(&mut self, key: &ObjectKey, uid: Option<&str>) {
        if let Some(uids) = self.buried.get_mut(key) {
            uids.retain(|buried| uid.is_some_and(|uid| uid != buried));
            if uids.is_empty() {
                self.buried.remove(key);
            }
        }
        self.release(key);
        if uid.is_none_or(|uid| self.observed.get(key).is_some_and(|held| held.version.uid == uid)) {
            self.forget_observed(key);
        }
        self.dirty.insert(key.clone());
    }

    pub(super) fn observe_all(&mut self, objects: &[AzureAssignedIdentity]) {
        let uids: HashMap<ObjectKey, Option<&String>> =
            objects.iter().map(|o| (key_of(&o.metadata), o.metadata.uid.as_ref())).collect();
        // A list that is older than a deletion has the object still; of what it lacks no late word can come.
        self.buried.retain(|key, buried| {
            buried.retain(|uid| uids.get(key) == Some(&Some(uid)));
            !buried.is_empty()
        });
        let listed: HashSet<ObjectKey> = uids.into_keys().collect();
        for key in gone(self.observed.keys(), &listed) {
            self.observe_deleted(&key, None);
        }
        // What waits for a newer version of something that the list does not have has waited long enough.
        for key in gone(self.holds.keys(), &listed) {
            self.release(&key);
            self.dirty.insert(key);
        }
        for object in objects {
            self.observe(object);
        }
    }

    /// A deletion that we asked for was done.
    pub(super) fn bury(&mut self, key: &ObjectKey, uid: &str) {
        if self.observed.get(key).is_some_and(|held| held.version.uid == uid) {
            self.forget_observed(key);
            self.buried.entry(key.clone()).or_default().push(uid.to_owned());
        }
    }

    pub(super) fn forget_observed(&mut self, key: &ObjectKey) {
        self.forget_pod(key);
        if let Some(held) = self.observed.remove(key).filter(|held| held.ours) {
            self.told.happened(ToldReason::Unassigned, &held.content);
        }
        self.orphans.remove(key);
    }

    fn forget_pod(&mut self, key: &ObjectKey) {
        let Some(pod) = self.observed.get(key).map(|held| held.pod.clone()) else { return };
        if let Some(keys) = self.by_pod.get_mut(&pod) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_pod.remove(&pod);
            }
        }
    }

    /// Assignments that are there for a pod of this name.
    pub(super) fn observed_of(&self, pod: &ObjectKey) -> Vec<ObjectKey> {
        self.by_pod.get(pod).into_iter().flatten().cloned().collect()
    }

    /// Lets go of what waits for a newer version.
    fn release(&mut self, key: &ObjectKey) {
        if let Some(Hold::Conflicted { .. }) = self.holds.get(key) {
            self.holds.remove(key);
        }
    }
}
