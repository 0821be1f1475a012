//! Of a grant. Whether its binding allows it is for whoever can look that up; who may write what, the admission policy's.

use super::{at_most_characters, at_most_items, fits, given, time_box};
use crate::{AzureIdentityGrantSpec, Violation, form, rules};

impl AzureIdentityGrantSpec {
    /// Everything that keeps this grant from meaning something.
    pub fn validate(&self) -> Vec<Violation> {
        let mut out = Vec::new();
        at_most_characters("bindingName", Some(&self.binding_name), rules::MAX_OBJECT_NAME, &mut out);
        at_most_characters("podName", self.pod_name.as_ref(), rules::MAX_OBJECT_NAME, &mut out);
        at_most_characters("reason", Some(&self.reason), rules::MAX_REASON, &mut out);
        at_most_characters("duration", Some(&self.duration), rules::MAX_SHORT, &mut out);
        at_most_characters("requestedBy", Some(&self.requested_by), rules::MAX_USER, &mut out);
        time_box::names("requesterGroups", self.requester_groups.as_ref(), rules::MAX_GROUP, &mut out);
        at_most_items("approvals", self.approvals.len(), rules::MAX_APPROVALS, &mut out);
        for (i, approval) in self.approvals.iter().enumerate() {
            at_most_characters(&format!("approvals[{i}].by"), Some(&approval.by), rules::MAX_USER, &mut out);
            time_box::names(&format!("approvals[{i}].groups"), approval.groups.as_ref(), rules::MAX_GROUP, &mut out);
            let reason = format!("approvals[{i}].reason");
            at_most_characters(&reason, approval.reason.as_ref(), rules::MAX_REASON, &mut out);
        }
        for (field, withdrawal) in [("denied", &self.denied), ("revoked", &self.revoked)] {
            let Some(withdrawal) = withdrawal else { continue };
            at_most_characters(&format!("{field}.by"), Some(&withdrawal.by), rules::MAX_USER, &mut out);
            at_most_characters(&format!("{field}.reason"), withdrawal.reason.as_ref(), rules::MAX_REASON, &mut out);
        }

        rules::BINDING_NAME.unless(form::is_object_name(&self.binding_name), &mut out);
        rules::POD_NAME.unless(fits(given(self.pod_name.as_ref()), form::is_object_name), &mut out);
        rules::REASON.unless(form::says_something(&self.reason), &mut out);
        rules::GRANT_DURATION.unless(time_box::is_duration(&self.duration, rules::MAX_GRANT_HOURS), &mut out);
        rules::REQUESTED_BY.unless(!self.requested_by.is_empty(), &mut out);
        let others = self.approvals.iter().all(|a| !a.by.is_empty() && a.by != self.requested_by);
        rules::APPROVED_BY.unless(others, &mut out);
        rules::DENIED_BY.unless(self.denied.as_ref().is_none_or(|d| !d.by.is_empty()), &mut out);
        rules::REVOKED_BY.unless(self.revoked.as_ref().is_none_or(|r| !r.by.is_empty()), &mut out);
        out
    }
}
