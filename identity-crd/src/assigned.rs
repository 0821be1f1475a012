//! `AzureAssignedIdentity`: one pod has one identity through one binding. Written by the controller only.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::{AzureIdentity, AzureIdentityBinding, ForeignFields};

/// The controller's word that a pod may use an identity; nodes decide from these alone.
///
/// Lives in the pod's namespace, owned by the pod. `status` is part of the object, not a subresource, so that one
/// write creates it complete.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "aadpodidentity.k8s.io",
    version = "v1",
    kind = "AzureAssignedIdentity",
    plural = "azureassignedidentities",
    singular = "azureassignedidentity",
    namespaced,
    derive = "PartialEq",
    derive = "Default",
    status = "AzureAssignedIdentityStatus",
    printcolumn = r#"{"name":"Pod","type":"string","jsonPath":".spec.pod"}"#,
    printcolumn = r#"{"name":"Binding","type":"string","jsonPath":".spec.azureBindingRef.metadata.name"}"#,
    printcolumn = r#"{"name":"Identity","type":"string","jsonPath":".spec.azureIdentityRef.metadata.name"}"#,
    printcolumn = r#"{"name":"Node","type":"string","jsonPath":".spec.nodename"}"#,
    printcolumn = r#"{"name":"Status","type":"string","jsonPath":".status.status"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct AzureAssignedIdentitySpec {
    /// The identity as it was when assigned, with its UID and generation.
    #[schemars(schema_with = "embedded_resource")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub azure_identity_ref: Option<Box<AzureIdentity>>,
    /// The binding as it was when assigned, with its UID and generation.
    #[schemars(schema_with = "embedded_resource")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub azure_binding_ref: Option<Box<AzureIdentityBinding>>,
    /// Name of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Namespace of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_namespace: Option<String>,
    /// UID of the pod: a pod re-created under the same name is another pod.
    #[serde(rename = "podUID", default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// Node the pod runs on. The key is all lower case, as in the predecessor.
    #[serde(rename = "nodename", default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// The active grant that opens the binding for this pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<AssignedGrant>,
    /// Unused; kept for the predecessor's objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
}

/// An active grant as nodes see it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct AssignedGrant {
    /// Name of the `AzureIdentityGrant`, in the pod's namespace.
    #[serde(default)]
    pub name: String,
    /// The instant at which it ends, RFC 3339; one that cannot be read is over.
    #[serde(default)]
    pub until: String,
    /// What this version does not know: with any of it the grant counts for nothing.
    #[schemars(skip)]
    #[serde(flatten)]
    pub foreign: ForeignFields,
}

impl AssignedGrant {
    /// The grant of this name that ends at this instant.
    pub fn new(name: impl Into<String>, until: impl Into<String>) -> Self {
        Self { name: name.into(), until: until.into(), foreign: ForeignFields::default() }
    }
}

/// How far an assignment has got, in the predecessor's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AssignedIdentityState {
    /// Written, not yet usable: what backs the identity is still being put in place.
    Created,
    /// Usable.
    Assigned,
}

impl AssignedIdentityState {
    /// The word in `status.status`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "Created",
            Self::Assigned => "Assigned",
        }
    }
}

/// State of an assignment.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AzureAssignedIdentityStatus {
    /// `Created` or `Assigned` (`Unassigned` and absent were written by the predecessor).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Always 1 when set; kept for the predecessor's objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_replicas: Option<i32>,
}

impl AzureAssignedIdentity {
    /// Whether the assignment may be used. Absent status counts, as in the predecessor (written before its 1.5).
    pub fn is_assigned(&self) -> bool {
        match self.status.as_ref().and_then(|s| s.status.as_deref()) {
            None | Some("") => true,
            Some(state) => state == AssignedIdentityState::Assigned.as_str(),
        }
    }
}

fn embedded_resource(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "nullable": true,
        "x-kubernetes-embedded-resource": true,
        "x-kubernetes-preserve-unknown-fields": true,
    })
}
