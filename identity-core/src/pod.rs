//! A pod, trimmed to what selection and lookup need.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

/// Which pod: namespace, name and UID. A pod re-created under the same name is another pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodRef {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// UID.
    pub uid: Arc<str>,
}

/// `status.phase` of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PodPhase {
    /// Accepted; init containers run in this phase.
    #[default]
    Pending,
    /// Running.
    Running,
    /// All containers ended well.
    Succeeded,
    /// All containers ended, one of them badly.
    Failed,
    /// Its node cannot be reached.
    Unknown,
}

impl PodPhase {
    /// Whether the pod has finished for good: its address may already belong to another.
    pub const fn is_finished(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Which pod.
    pub reference: Arc<PodRef>,
    /// Node it is bound to, if any yet.
    pub node: Option<Arc<str>>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Service account it runs as (`default` when the spec names none).
    pub service_account: Arc<str>,
    /// Every address in `status.podIPs` (and `status.podIP`).
    pub addresses: Vec<IpAddr>,
    /// Phase.
    pub phase: PodPhase,
    /// Whether it shares the node's network: such a pod is refused.
    pub host_network: bool,
    /// Whether `metadata.deletionTimestamp` is set.
    pub deleting: bool,
}
