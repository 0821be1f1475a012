//! `AzurePodIdentityException`: pods that are let through to the node's own identities.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// Lets the pods of its namespace that carry any one of `podLabels` use the node's own identities. Honoured only in
/// the namespaces that the operator lists.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "aadpodidentity.k8s.io",
    version = "v1",
    kind = "AzurePodIdentityException",
    plural = "azurepodidentityexceptions",
    singular = "azurepodidentityexception",
    namespaced,
    status = "AzurePodIdentityExceptionStatus",
    derive = "PartialEq",
    derive = "Default"
)]
#[serde(rename_all = "camelCase")]
pub struct AzurePodIdentityExceptionSpec {
    /// A pod that has any one of these labels (key exact, value without case) is excepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_labels: Option<BTreeMap<String, String>>,
}

/// Unused; kept for the predecessor's objects.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AzurePodIdentityExceptionStatus {
    /// Unused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
}
