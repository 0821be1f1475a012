//! Rules of `AzureIdentityGrant`. Who may write what is the admission policy's business.

use super::{Check, MAX_GRANT_HOURS, duration, form};
use crate::form as pattern;

pub(crate) const BINDING_NAME: Check = Check {
    field: "bindingName",
    message: "the name of an AzureIdentityBinding of this namespace is needed: lower-case letters, digits, `-` and `.`",
    required: false,
    cel: || format!("self.bindingName.matches(r'{}')", pattern::OBJECT_NAME),
};

pub(crate) const POD_NAME: Check = Check {
    field: "podName",
    message: "not a name that a pod can have: lower-case letters, digits, `-` and `.`; leave it out for every pod of the \
              binding",
    required: false,
    cel: || form("podName", pattern::OBJECT_NAME),
};

pub(crate) const REASON: Check = Check {
    field: "reason",
    message: "say why, for those who approve and for the audit",
    required: true,
    cel: || format!("self.reason.matches(r'{}')", pattern::SAYS_SOMETHING),
};

pub(crate) const GRANT_DURATION: Check = Check {
    field: "duration",
    message: "a duration of up to 168h is needed: hours, minutes and seconds, such as 30m",
    required: false,
    cel: || duration("self.duration", MAX_GRANT_HOURS),
};

pub(crate) const REQUESTED_BY: Check = Check {
    field: "requestedBy",
    message: "your own name is needed, as the API server knows it (`kubectl auth whoami`)",
    required: true,
    cel: || "self.requestedBy != ''".into(),
};

pub(crate) const APPROVED_BY: Check = Check {
    field: "approvals",
    message: "an approval names nobody, or the requester, who cannot approve",
    required: false,
    cel: || "!has(self.approvals) || self.approvals.all(a, a.by != '' && a.by != self.requestedBy)".into(),
};

pub(crate) const DENIED_BY: Check = Check {
    field: "denied.by",
    message: "your own name is needed, as the API server knows it (`kubectl auth whoami`)",
    required: true,
    cel: || "!has(self.denied) || self.denied.by != ''".into(),
};

pub(crate) const REVOKED_BY: Check = Check {
    field: "revoked.by",
    message: "your own name is needed, as the API server knows it (`kubectl auth whoami`)",
    required: true,
    cel: || "!has(self.revoked) || self.revoked.by != ''".into(),
};
