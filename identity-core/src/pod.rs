//! A pod, trimmed to what selection and lookup need.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use crate::object::ObjectKey;

/// Which pod: namespace, name and UID. A pod re-created under the same name is another pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodRef {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// UID.
    pub uid: Arc<str>,
    /// Service account it runs as, which never changes; empty when nobody said.
    pub service_account: Arc<str>,
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

/// A pod object lacks what identifies it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pod {namespace}/{name} has no {field}; the API server sets it, a source that is not one must")]
pub struct PodError {
    /// Namespace, as far as known.
    pub namespace: String,
    /// Name, as far as known.
    pub name: String,
    /// The missing field.
    pub field: &'static str,
}

impl TryFrom<&k8s_openapi::api::core::v1::Pod> for Pod {
    type Error = PodError;

    /// Trims a pod. Addresses that do not parse are left out, `status.podIP` counts even when `podIPs` lacks it, and
    /// IPv4-mapped addresses become IPv4.
    fn try_from(pod: &k8s_openapi::api::core::v1::Pod) -> Result<Self, PodError> {
        let (meta, spec, status) = (&pod.metadata, pod.spec.as_ref(), pod.status.as_ref());
        let field = |value: Option<&String>, field| {
            value.filter(|v| !v.is_empty()).map(|v| Arc::from(v.as_str())).ok_or_else(|| PodError {
                namespace: meta.namespace.clone().unwrap_or_default(),
                name: meta.name.clone().unwrap_or_default(),
                field,
            })
        };
        let mut addresses: Vec<IpAddr> = Vec::new();
        let listed = status.and_then(|s| s.pod_ips.as_deref()).unwrap_or_default().iter().map(|ip| ip.ip.as_str());
        for text in listed.chain(status.and_then(|s| s.pod_ip.as_deref())) {
            if let Ok(address) = text.parse::<IpAddr>().map(|a| a.to_canonical())
                && !addresses.contains(&address)
            {
                addresses.push(address);
            }
        }
        let service_account: Arc<str> =
            spec.and_then(|s| s.service_account_name.as_deref()).filter(|s| !s.is_empty()).unwrap_or("default").into();
        Ok(Self {
            reference: Arc::new(PodRef {
                namespace: field(meta.namespace.as_ref(), "metadata.namespace")?,
                name: field(meta.name.as_ref(), "metadata.name")?,
                uid: field(meta.uid.as_ref(), "metadata.uid")?,
                service_account: Arc::clone(&service_account),
            }),
            node: spec.and_then(|s| s.node_name.as_deref()).filter(|n| !n.is_empty()).map(Arc::from),
            labels: meta.labels.clone().unwrap_or_default(),
            service_account,
            addresses,
            phase: match status.and_then(|s| s.phase.as_deref()) {
                Some("Running") => PodPhase::Running,
                Some("Succeeded") => PodPhase::Succeeded,
                Some("Failed") => PodPhase::Failed,
                Some("Unknown") => PodPhase::Unknown,
                _ => PodPhase::Pending,
            },
            host_network: spec.and_then(|s| s.host_network).unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
        })
    }
}

impl Pod {
    /// Namespace and name.
    pub fn key(&self) -> ObjectKey {
        ObjectKey { namespace: Arc::clone(&self.reference.namespace), name: Arc::clone(&self.reference.name) }
    }
}
