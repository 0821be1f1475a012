//! The mutable side: pods, assignments and bindings of one node, joined into a [`Snapshot`](super::Snapshot).

use std::net::IpAddr;

use identity_crd::{AzureAssignedIdentity, AzureIdentityBinding};

use super::Published;
use crate::{object::ObjectKey, pod::Pod};

/// How a node decides. Must agree with the controller's [`assign::Options`](crate::assign::Options).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The predecessor's matching: bindings and identities of other namespaces count.
    pub cluster_wide: bool,
    /// Assignments without `podUID`, as the predecessor wrote them, count by name. Unsafe when a pod is re-created under
    /// the same name.
    pub without_pod_uid: bool,
}

/// A binding, trimmed to what tells whether an assignment is still to be expected.
#[derive(Clone, Debug)]
pub struct Binding {}

impl From<&AzureIdentityBinding> for Binding {
    fn from(binding: &AzureIdentityBinding) -> Self {
        let _ = binding;
        Self {}
    }
}

/// Everything one node knows, joined. One task owns it; readers have the [`Published`] snapshots.
#[derive(Debug, Default)]
pub struct NodeIndex {
    options: Options,
}

impl NodeIndex {
    /// An empty index.
    pub fn new(options: Options) -> Self {
        Self { options }
    }

    /// The node's own addresses, which are refused.
    pub fn set_node_addresses(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        let _ = (addresses.into_iter().count(), &self.options);
    }

    /// A pod of this node appeared or changed.
    pub fn apply_pod(&mut self, pod: Pod) {
        let _ = (pod, &self.options);
    }

    /// A pod is gone.
    pub fn delete_pod(&mut self, key: &ObjectKey) {
        let _ = (key, &self.options);
    }

    /// These are all pods of this node.
    pub fn reset_pods(&mut self, pods: Vec<Pod>) {
        let _ = (pods, &self.options);
    }

    /// An assignment of this node appeared or changed. What a node cannot serve is kept aside with the reason, for
    /// explanations; the answer says why, for the log.
    pub fn apply_assignment(&mut self, object: &AzureAssignedIdentity) {
        let _ = (object, &self.options);
    }

    /// An assignment is gone.
    pub fn delete_assignment(&mut self, key: &ObjectKey) {
        let _ = (key, &self.options);
    }

    /// These are all assignments of this node.
    pub fn reset_assignments(&mut self, objects: &[AzureAssignedIdentity]) {
        let _ = (objects, &self.options);
    }

    /// A binding appeared or changed.
    pub fn apply_binding(&mut self, binding: Binding) {
        let _ = (binding, &self.options);
    }

    /// A binding is gone.
    pub fn delete_binding(&mut self, key: &ObjectKey) {
        let _ = (key, &self.options);
    }

    /// These are all bindings.
    pub fn reset_bindings(&mut self, bindings: Vec<Binding>) {
        let _ = (bindings, &self.options);
    }

    /// Makes a snapshot current if anything changed that a decision could depend on. Answers whether it did.
    pub fn publish(&mut self, to: &Published) -> bool {
        let _ = (to, &self.options);
        false
    }
}
