//! Conditions, in the shape of `meta/v1` Condition.

use jiff::{Timestamp, Unit};
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

impl From<bool> for ConditionStatus {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
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
    #[schemars(extend("format" = "date-time"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<String>,
    /// Why, one word in CamelCase.
    #[serde(default)]
    pub reason: String,
    /// Why, for a person: what, where, what to do.
    #[serde(default)]
    pub message: String,
}

impl Condition {
    /// A condition without a transition time; [`set_condition`] fills that in.
    pub fn new(
        type_: impl Into<String>,
        status: impl Into<ConditionStatus>,
        reason: impl Into<String>,
        message: impl Into<String>,
        observed_generation: Option<i64>,
    ) -> Self {
        Self {
            type_: type_.into(),
            status: status.into(),
            observed_generation,
            last_transition_time: None,
            reason: reason.into(),
            message: message.into(),
        }
    }
}

/// Puts `condition` in place of the one of its type, or at the end. The transition time is `now` (whole seconds)
/// when `status` differs from before, else the one there was. Answers whether anything changed, so that a status
/// which says the same need not be written again.
///
/// ```
/// use identity_crd::{Condition, set_condition};
///
/// let (mut conditions, now) = (Vec::new(), jiff::Timestamp::UNIX_EPOCH);
/// assert!(set_condition(&mut conditions, Condition::new("Valid", true, "AsExpected", "", Some(1)), now));
/// assert!(!set_condition(&mut conditions, Condition::new("Valid", true, "AsExpected", "", Some(1)), now));
/// assert_eq!(conditions[0].last_transition_time.as_deref(), Some("1970-01-01T00:00:00Z"));
/// ```
pub fn set_condition(conditions: &mut Vec<Condition>, condition: Condition, now: Timestamp) -> bool {
    let current = conditions.iter_mut().find(|c| c.type_ == condition.type_);
    let since = current
        .as_ref()
        .filter(|c| c.status == condition.status)
        .and_then(|c| c.last_transition_time.clone())
        .unwrap_or_else(|| now.round(Unit::Second).unwrap_or(now).to_string());
    let condition = Condition { last_transition_time: Some(since), ..condition };
    match current {
        Some(current) if *current == condition => false,
        Some(current) => {
            *current = condition;
            true
        }
        None => {
            conditions.push(condition);
            true
        }
    }
}

/// The condition of a type.
pub fn find_condition<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let mut conditions = Vec::new();
        let valid = |status, message: &str| Condition::new("Valid", status, "Reason", message, Some(1));
        assert!(set_condition(&mut conditions, valid(true, "a"), at(0)));
        assert!(set_condition(&mut conditions, valid(true, "b"), at(60)), "the message changed");
        assert_eq!(conditions[0].last_transition_time.as_deref(), Some("1970-01-01T00:00:00Z"));
        assert!(set_condition(&mut conditions, valid(false, "b"), at(120)));
        assert_eq!(conditions[0].last_transition_time.as_deref(), Some("1970-01-01T00:02:00Z"));
        assert!(!set_condition(&mut conditions, valid(false, "b"), at(180)), "nothing changed");
        assert!(set_condition(&mut conditions, Condition::new("Other", true, "R", "", None), at(180)));
        assert_eq!(conditions.len(), 2);
        assert!(find_condition(&conditions, "Other").is_some());
    }
}
