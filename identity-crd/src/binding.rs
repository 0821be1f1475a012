//! `AzureIdentityBinding`: which pods may use an identity.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::{Condition, TimeBox, rules};

/// Gives the pods it selects the use of one `AzureIdentity` of its namespace.
///
/// `selector`, `podSelector` and `serviceAccounts` are ANDed; a binding that gives none of them selects nothing.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "aadpodidentity.k8s.io",
    version = "v1",
    kind = "AzureIdentityBinding",
    plural = "azureidentitybindings",
    singular = "azureidentitybinding",
    namespaced,
    status = "AzureIdentityBindingStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"AzureIdentity","type":"string","jsonPath":".spec.azureIdentity"}"#,
    printcolumn = r#"{"name":"Selector","type":"string","jsonPath":".spec.selector"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Open","type":"string","jsonPath":".status.conditions[?(@.type==\"Open\")].status","priority":1}"#,
    printcolumn = r#"{"name":"Next-Transition","type":"string","jsonPath":".status.nextTransition","priority":1}"#,
    printcolumn = r#"{"name":"Pods","type":"integer","jsonPath":".status.matchedPods","priority":1}"#,
    printcolumn = r#"{"name":"ClientID","type":"string","jsonPath":".spec.clientID","priority":1}"#
)]
#[x_kube(
    validation = rules::AZURE_IDENTITY.rule(),
    validation = rules::PINNED_CLIENT_ID.rule(),
    validation = rules::SELECTOR.rule(),
    validation = rules::WEIGHT.rule(),
    validation = rules::POD_SELECTOR.rule(),
    validation = rules::POD_SELECTOR_LABELS.rule(),
    validation = rules::POD_SELECTOR_EXPRESSIONS.rule(),
    validation = rules::SERVICE_ACCOUNTS.rule(),
    validation = rules::AUDIENCES.rule()
)]
#[serde(rename_all = "camelCase")]
pub struct AzureIdentityBindingSpec {
    /// Name of the `AzureIdentity`, in the binding's own namespace.
    #[schemars(length(max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub azure_identity: Option<String>,

    /// The client id that the identity must have. While it has another, or none, nothing is assigned through this binding,
    /// so that this is a binding of that client id, whatever becomes of the name. Any when absent.
    #[schemars(length(max = 256))]
    #[serde(rename = "clientID", default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,

    /// Value of the pod label `aadpodidbinding`, compared for equality.
    #[schemars(length(max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,

    /// Which identity a request that names none gets: the highest weight wins. Absent means 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<i32>,

    /// Label selector over the pod's labels. Present but empty selects nothing.
    #[schemars(schema_with = "pod_selector")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,

    /// Names of service accounts, one of which the pod must run as. An empty list is as if absent.
    #[schemars(length(max = 64), inner(length(max = 253)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_accounts: Option<Vec<String>>,

    /// The only resources (audiences) that pods may ask for through this binding; empty or absent = any.
    #[schemars(length(max = 64), inner(length(max = 512)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audiences: Option<Vec<String>>,

    /// When the identity may be used through this binding; always when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_box: Option<TimeBox>,
}

impl AzureIdentityBindingSpec {
    /// Whether an identity with this client id is one that the binding may be of: without `clientID` any, otherwise the one
    /// that has it, in whatever case its letters are written. A `clientID` that is empty is no identity's.
    pub fn may_be_of(&self, client_id: Option<&str>) -> bool {
        let Some(pinned) = &self.client_id else { return true };
        !pinned.is_empty() && client_id.is_some_and(|id| id.eq_ignore_ascii_case(pinned))
    }
}

/// What the controller last saw of a binding.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AzureIdentityBindingStatus {
    /// Unused; kept for the predecessor's objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_replicas: Option<i32>,
    /// `Valid`: the spec means something; `IdentityFound`: the identity exists and has the client id that is
    /// asked for; `Open`: its time box is open.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Number of pods that the binding selects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matched_pods: Option<i32>,
    /// When the time box opens or closes next, RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_transition: Option<String>,
    /// Until when tokens that were handed out before the box closed may still work, RFC 3339: Entra cannot take them
    /// back.
    #[schemars(extend("format" = "date-time"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual_until: Option<String>,
}

/// The schema of `meta/v1` LabelSelector with the bounds that let the API server estimate the cost of the rules.
fn pod_selector(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "description": "Label selector over the pod's labels. Present but empty selects nothing.",
        "type": "object",
        "nullable": true,
        "properties": {
            "matchLabels": {
                "description": "Labels that the pod must have, all of them.",
                "type": "object",
                "maxProperties": rules::MAX_SELECTOR_TERMS,
                "additionalProperties": {"type": "string", "maxLength": rules::MAX_LABEL},
            },
            "matchExpressions": {
                "description": "Conditions on the pod's labels, all of which must hold.",
                "type": "array",
                "maxItems": rules::MAX_SELECTOR_TERMS,
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": {"description": "Key of the label.", "type": "string", "maxLength": rules::MAX_LABEL_KEY},
                        "operator": {
                            "description": "In, NotIn, Exists or DoesNotExist.", "type": "string", "maxLength": 63},
                        "values": {
                            "description": "For In and NotIn: the values.",
                            "type": "array",
                            "maxItems": rules::MAX_SELECTOR_TERMS,
                            "items": {"type": "string", "maxLength": rules::MAX_LABEL},
                        },
                    },
                },
            },
        },
    })
}
