//! `AzurePodIdentityException`: pods whose own requests go to the node's own metadata service.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use identity_crd::AzurePodIdentityException;

use super::ObjectRef;
use crate::{explain::Recorder, object::ObjectKey, pod::Pod};

/// An exception, trimmed to what it exempts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exception {
    /// The `AzurePodIdentityException`.
    pub object: Arc<ObjectRef>,
    /// Labels, any one of which a pod must have: the key as it is, the value without ASCII case (predecessor §3.6).
    pub labels: Box<[(Box<str>, Box<str>)]>,
}

impl From<&AzurePodIdentityException> for Exception {
    fn from(exception: &AzurePodIdentityException) -> Self {
        let labels = exception.spec.pod_labels.iter().flatten();
        Self {
            object: Arc::new(ObjectRef::from(&exception.metadata)),
            labels: labels.map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect(),
        }
    }
}

impl Exception {
    /// Whether it exempts a pod: one of its own namespace, with any one of its labels.
    pub fn exempts(&self, pod: &Pod) -> bool {
        self.object.namespace == pod.reference.namespace
            && self
                .labels
                .iter()
                .any(|(key, value)| pod.labels.get(&**key).is_some_and(|label| label.eq_ignore_ascii_case(value)))
    }
}

/// The exceptions of the namespaces in which they count.
#[derive(Debug, Default)]
pub(super) struct Exceptions {
    namespaces: BTreeSet<String>,
    held: BTreeMap<ObjectKey, Exception>,
}

impl Exceptions {
    pub(super) fn new(namespaces: BTreeSet<String>) -> Self {
        Self { namespaces, held: BTreeMap::new() }
    }

    /// Takes in an exception. Answers what pods may be concerned: those that either exempts.
    pub(super) fn apply(&mut self, exception: Exception) -> Vec<Exception> {
        if !self.namespaces.contains(&*exception.object.namespace) {
            return Vec::new();
        }
        let former = self.held.insert(exception.object.key(), exception.clone());
        if former.as_ref() == Some(&exception) {
            return Vec::new();
        }
        former.into_iter().chain([exception]).collect()
    }

    pub(super) fn delete(&mut self, key: &ObjectKey) -> Option<Exception> {
        self.held.remove(key)
    }

    /// Those of a namespace.
    pub(super) fn of(&self, namespace: &str) -> Vec<ObjectKey> {
        self.held.keys().filter(|key| *key.namespace == *namespace).cloned().collect()
    }

    /// The first that exempts a pod.
    pub(super) fn exempting<R: Recorder>(&self, pod: &Pod, recorder: &mut R) -> Option<Arc<ObjectRef>> {
        if self.held.is_empty() {
            return None;
        }
        let exception = self.held.values().find(|exception| exception.exempts(pod))?;
        recorder.note(|| format!("exception {} matches the pod's labels", exception.object.key()));
        Some(Arc::clone(&exception.object))
    }
}
