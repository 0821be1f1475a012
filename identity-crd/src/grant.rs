//! `AzureIdentityGrant`: a request to open a binding for a while, its approvals, and what became of it.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::{Condition, rules};

/// Asks that an `AzureIdentityBinding` of this namespace with a `timeBox.grant` be opened for a while.
///
/// Who asked, approved, denied and revoked is proven by a ValidatingAdmissionPolicy; without it the controller
/// activates nothing. Deleting an active grant revokes it.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[kube(
    group = "aadpodidentity.k8s.io",
    version = "v1alpha1",
    kind = "AzureIdentityGrant",
    plural = "azureidentitygrants",
    singular = "azureidentitygrant",
    namespaced,
    status = "AzureIdentityGrantStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"Binding","type":"string","jsonPath":".spec.bindingName"}"#,
    printcolumn = r#"{"name":"Requested-By","type":"string","jsonPath":".spec.requestedBy"}"#,
    printcolumn = r#"{"name":"Approved-By","type":"string","jsonPath":".spec.approvals[*].by"}"#,
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Until","type":"string","jsonPath":".status.activeUntil"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Pod","type":"string","jsonPath":".spec.podName","priority":1}"#,
    printcolumn = r#"{"name":"Duration","type":"string","jsonPath":".spec.duration","priority":1}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".spec.reason","priority":1}"#
)]
#[x_kube(
    validation = rules::BINDING_NAME.rule(),
    validation = rules::POD_NAME.rule(),
    validation = rules::REASON.rule(),
    validation = rules::GRANT_DURATION.rule(),
    validation = rules::REQUESTED_BY.rule(),
    validation = rules::APPROVED_BY.rule(),
    validation = rules::DENIED_BY.rule(),
    validation = rules::REVOKED_BY.rule()
)]
#[serde(rename_all = "camelCase")]
pub struct AzureIdentityGrantSpec {
    /// Name of the `AzureIdentityBinding`, in the grant's own namespace.
    #[schemars(length(max = 253))]
    #[serde(default)]
    pub binding_name: String,
    /// Only for the pod of this name; for every pod of the binding when absent.
    #[schemars(length(max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_name: Option<String>,
    /// Why, for those who approve and for the audit.
    #[schemars(length(max = 1024))]
    #[serde(default)]
    pub reason: String,
    /// How long, counted from the activation: hours, minutes and seconds, such as `30m`.
    #[schemars(length(max = 32))]
    #[serde(default)]
    pub duration: String,
    /// Who asks: the name of whoever creates this, as the API server knows it.
    #[schemars(length(max = 512))]
    #[serde(default)]
    pub requested_by: String,
    /// Groups that the requester is in and wants to be known for.
    #[schemars(length(max = 64), inner(length(max = 256)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requester_groups: Option<Vec<String>>,
    /// Who approved. Each approver adds one entry, about itself.
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["by".into()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<Approval>,
    /// Refused before it was active, by an approver or the requester. Set once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denied: Option<Withdrawal>,
    /// Ended before its time, by an approver or the requester. Set once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Withdrawal>,
}

/// One approver's word.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct Approval {
    /// Who approves: the name of whoever adds this, as the API server knows it.
    #[schemars(length(max = 512))]
    #[serde(default)]
    pub by: String,
    /// The groups that the approver is in and that make it one.
    #[schemars(length(max = 64), inner(length(max = 256)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<String>>,
    /// Why, for whoever asked and for the audit. Stays as it was said, like the rest of the entry.
    #[schemars(length(max = 1024))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Who took a grant back.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct Withdrawal {
    /// Whose word it is: the name of whoever sets this, as the API server knows it.
    #[schemars(length(max = 512))]
    #[serde(default)]
    pub by: String,
    /// Why, for people.
    #[schemars(length(max = 1024))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How far a grant has got. All but `Pending` and `Active` are final.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum GrantPhase {
    /// Waiting for approvals.
    #[default]
    Pending,
    /// Gives access until `activeUntil`.
    Active,
    /// Its time is over.
    Expired,
    /// Somebody said no before it was active.
    Denied,
    /// Somebody ended it.
    Revoked,
    /// It cannot be honoured: the binding is gone or allows no such grant, or nothing proves who asked.
    Refused,
}

impl GrantPhase {
    /// The word in `status.phase`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Active => "Active",
            Self::Expired => "Expired",
            Self::Denied => "Denied",
            Self::Revoked => "Revoked",
            Self::Refused => "Refused",
        }
    }

    /// Whether nothing can change any more.
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Pending | Self::Active)
    }
}

/// What the controller made of a grant. Times are the controller's.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AzureIdentityGrantStatus {
    /// How far it has got; absent until the controller has seen it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<GrantPhase>,
    /// When it was activated, RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_from: Option<String>,
    /// When it ends or has ended, RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_until: Option<String>,
    /// UID of the binding for which it was activated: one re-created under the same name is another.
    #[serde(rename = "bindingUID", default, skip_serializing_if = "Option::is_none")]
    pub binding_uid: Option<String>,
    /// `Valid`: the spec means something; `Approved`: enough approvers have approved; `Active`: it gives access now.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}
