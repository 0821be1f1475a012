//! Which approvals count.

use std::collections::BTreeSet;

use identity_crd::{AzureIdentityGrantSpec, GrantPolicy};

use super::review::{Guard, Guards};

/// The approvals of a grant, judged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Approvals<'a> {
    /// Those who have approved and may.
    pub by: Vec<&'a str>,
    /// Entries that do not count, with the reason.
    pub ignored: Vec<(&'a str, &'static str)>,
    /// How many it takes.
    pub needed: usize,
}

impl Approvals<'_> {
    /// Whether there are enough.
    pub fn are_enough(&self) -> bool {
        self.by.len() >= self.needed
    }
}

/// Judges the approvals of a grant by its binding's policy: each approver counts once, the requester never.
pub fn approvals<'a>(spec: &'a AzureIdentityGrantSpec, policy: &GrantPolicy) -> Approvals<'a> {
    judge(spec, policy, Guards::ALL)
}

pub(super) fn judge<'a>(spec: &'a AzureIdentityGrantSpec, policy: &GrantPolicy, guards: Guards) -> Approvals<'a> {
    let needed = usize::try_from(policy.min_approvals()).unwrap_or(usize::MAX);
    let (mut seen, mut judged) = (BTreeSet::new(), Approvals { needed, ..Approvals::default() });
    for approval in &spec.approvals {
        let by = approval.by.as_str();
        let groups = approval.groups.as_deref().unwrap_or_default();
        let wrong = if by.is_empty() {
            Some("names nobody")
        } else if guards.fail(Guard::NotRequester, by == spec.requested_by) {
            Some("is the requester")
        } else if guards.fail(Guard::Approver, !policy.may_approve(by, groups)) {
            Some("is not among the binding's approvers")
        } else if guards.fail(Guard::Distinct, !seen.insert(by)) {
            Some("has approved before")
        } else {
            None
        };
        match wrong {
            Some(why) => judged.ignored.push((by, why)),
            None => judged.by.push(by),
        }
    }
    judged
}
