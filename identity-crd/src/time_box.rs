//! When a binding or an identity may be used.

use std::time::Duration;

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::{ForeignFields, form, rules};

/// Static bounds, recurring windows, and grants for the time in between.
///
/// The bounds always hold. Open while any window is open; without windows, always.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[x_kube(
    validation = rules::NOT_BEFORE.rule(),
    validation = rules::NOT_AFTER.rule(),
    validation = rules::BOUNDS.rule(),
    validation = rules::CLOSED_SOMETIMES.rule()
)]
#[serde(rename_all = "camelCase")]
pub struct TimeBox {
    /// The first instant of the box, RFC 3339 with an offset, such as `2026-12-01T00:00:00Z`.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<String>,
    /// The instant at which the box closes for good, RFC 3339 with an offset.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
    /// When it is open within the bounds: while any of these is. None = always.
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub windows: Option<Vec<Window>>,
    /// Just-in-time access by `AzureIdentityGrant` (on a binding only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<GrantPolicy>,
    /// What this version does not know: with any of it the box is closed.
    #[schemars(skip)]
    #[serde(flatten)]
    pub foreign: ForeignFields,
}

/// A recurring window of time.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[x_kube(
    validation = rules::SCHEDULE.rule(),
    validation = rules::DURATION.rule(),
    validation = rules::TIME_ZONE.rule(),
    validation = rules::EXCLUDE_DATES.rule()
)]
#[serde(rename_all = "camelCase")]
pub struct Window {
    /// The instants at which it opens, as cron: minute, hour, day of month, month, day of week (seconds may come
    /// first).
    #[schemars(length(max = 256))]
    #[serde(default)]
    pub schedule: String,
    /// How long it stays open, elapsed time: hours, minutes and seconds, such as `1h30m`.
    #[schemars(length(max = 32))]
    #[serde(default)]
    pub duration: String,
    /// IANA name of the time zone of `schedule` and `excludeDates`, such as `America/Los_Angeles`; UTC when absent.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// Dates (`2026-12-25`) on which it does not open, by the local date of the opening.
    #[schemars(length(max = 64), inner(length(max = 32)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclude_dates: Option<Vec<String>>,
    /// What this version does not know: with any of it the whole box is closed.
    #[schemars(skip)]
    #[serde(flatten)]
    pub foreign: ForeignFields,
}

/// Whether and how a binding is opened by `AzureIdentityGrant`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[x_kube(
    validation = rules::MAX_DURATION.rule(),
    validation = rules::MIN_APPROVALS.rule(),
    validation = rules::ENOUGH_APPROVERS.rule()
)]
#[serde(rename_all = "camelCase")]
pub struct GrantPolicy {
    /// `true`: open only with an active grant, and within a window if any are given. Otherwise: within a window or
    /// with an active grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required: Option<bool>,
    /// The longest duration that a grant may ask for, such as `2h`.
    #[schemars(length(max = 32))]
    #[serde(default)]
    pub max_duration: String,
    /// How many different approvers a grant needs; 1 when absent, 0 = none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_approvals: Option<i32>,
    /// Who may approve and deny; nobody when empty or absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approvers: Option<Approvers>,
    /// What this version does not know: with any of it the whole box is closed.
    #[schemars(skip)]
    #[serde(flatten)]
    pub foreign: ForeignFields,
}

/// Who may approve grants of a binding.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[x_kube(
    validation = rules::APPROVING_USERS.rule(),
    validation = rules::APPROVING_GROUPS.rule()
)]
#[serde(rename_all = "camelCase")]
pub struct Approvers {
    /// User names, as the API server knows them (`kubectl auth whoami`).
    #[schemars(length(max = 64), inner(length(max = 512)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<Vec<String>>,
    /// Groups, as the API server knows them: with Entra sign-in, the object ids of directory groups.
    #[schemars(length(max = 64), inner(length(max = 256)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<String>>,
    /// What this version does not know: with any of it the whole box is closed.
    #[schemars(skip)]
    #[serde(flatten)]
    pub foreign: ForeignFields,
}

impl TimeBox {
    /// JSON paths below the box of the fields that this version does not know, such as `windows[1].timezone`. With any of
    /// them the box is closed: nobody here can tell what they forbid.
    ///
    /// ```
    /// # fn main() -> serde_json::Result<()> {
    /// let newer: identity_crd::TimeBox = serde_json::from_str(r#"{"windows": [{"schedule": "0 0 * * *", "onlyIf": {}}]}"#)?;
    /// assert_eq!(newer.foreign_fields(), ["windows[0].onlyIf"]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn foreign_fields(&self) -> Vec<String> {
        let below = |part: &str, foreign: &ForeignFields| {
            foreign.names().map(|name| format!("{part}{name}")).collect::<Vec<_>>()
        };
        let mut out = below("", &self.foreign);
        for (i, window) in self.windows.iter().flatten().enumerate() {
            out.extend(below(&format!("windows[{i}]."), &window.foreign));
        }
        if let Some(grant) = &self.grant {
            out.extend(below("grant.", &grant.foreign));
            out.extend(grant.approvers.iter().flat_map(|a| below("grant.approvers.", &a.foreign)));
        }
        out
    }
}

impl GrantPolicy {
    /// Whether the binding is open only with a grant.
    pub fn required(&self) -> bool {
        self.required.unwrap_or(false)
    }

    /// How many different approvers a grant needs.
    pub fn min_approvals(&self) -> u32 {
        self.min_approvals.map_or(1, |n| u32::try_from(n).unwrap_or(u32::MAX))
    }

    /// Whether somebody of this name, who has shown to be in these groups, may approve.
    pub fn may_approve(&self, user: &str, groups: &[String]) -> bool {
        self.approvers.as_ref().is_some_and(|approvers| {
            approvers.users.iter().flatten().any(|u| u == user)
                || approvers.groups.iter().flatten().any(|g| groups.contains(g))
        })
    }
}

/// A duration as the fields of this group write it: hours, minutes and seconds, in that order, such as `1h30m`; `None`
/// for anything else, and for nothing at all.
///
/// ```
/// use std::time::Duration;
///
/// assert_eq!(identity_crd::parse_duration("1h30m"), Some(Duration::from_secs(5400)));
/// assert_eq!(identity_crd::parse_duration("90"), None);
/// ```
pub fn parse_duration(text: &str) -> Option<Duration> {
    form::duration_seconds(text).map(Duration::from_secs)
}
