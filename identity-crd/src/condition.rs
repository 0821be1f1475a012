//! Conditions, in the shape of `meta/v1` Condition.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Whether a condition holds.
#[derive(schemars::JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Not known.
    #[default]
    Unknown,
}

/// One aspect of an object's state (Kubernetes API conventions, "Typical status properties").
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Which aspect, in CamelCase.
    #[serde(rename = "type")]
    pub type_: String,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// The `metadata.generation` that was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When `status` last changed, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<String>,
    /// Why, one word in CamelCase.
    #[serde(default)]
    pub reason: String,
    /// Why, for a person: what, where, what to do.
    #[serde(default)]
    pub message: String,
}
