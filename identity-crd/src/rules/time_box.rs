//! Rules of `timeBox`, each of the struct that has the field. Whether a cron expression or the name of a zone means
//! something is for whoever has a calendar.

use super::{Check, MAX_APPROVALS, MAX_GRANT_HOURS, MAX_WINDOW_HOURS, duration};
use crate::form as pattern;

const BOUND: &str =
    "not an instant; write date, time and offset (RFC 3339), such as 2026-12-01T00:00:00Z, or leave it out";

fn bound(field: &str) -> String {
    format!("!has(self.{field}) || self.{field}.matches(r'{}')", pattern::INSTANT)
}

pub(crate) const NOT_BEFORE: Check =
    Check { field: "notBefore", message: BOUND, required: false, cel: || bound("notBefore") };

pub(crate) const NOT_AFTER: Check =
    Check { field: "notAfter", message: BOUND, required: false, cel: || bound("notAfter") };

pub(crate) const BOUNDS: Check = Check {
    field: "notAfter",
    message: "not after notBefore, so that it would never be open; swap them, or correct one",
    required: false,
    cel: || {
        format!(
            "!has(self.notBefore) || !has(self.notAfter) || !self.notBefore.matches(r'{0}') || \
             !self.notAfter.matches(r'{0}') || timestamp(self.notAfter) > timestamp(self.notBefore)",
            pattern::INSTANT
        )
    },
};

pub(crate) const CLOSED_SOMETIMES: Check = Check {
    field: "windows",
    message: "a grant that is not required opens the binding between windows, and without windows it is always open; give \
              windows, or set grant.required: true",
    required: true,
    cel: || {
        "!has(self.grant) || (has(self.grant.required) && self.grant.required) || \
         (has(self.windows) && size(self.windows) > 0)"
            .into()
    },
};

pub(crate) const SCHEDULE: Check = Check {
    field: "schedule",
    message: "not a cron expression; write minute, hour, day of month, month and day of week, such as 0 0 * * MON-FRI",
    required: false,
    cel: || format!("self.schedule.matches(r'{}')", pattern::SCHEDULE),
};

pub(crate) const DURATION: Check = Check {
    field: "duration",
    message: "a duration of up to 744h is needed: hours, minutes and seconds, such as 1h30m; for longer use notBefore and \
              notAfter",
    required: false,
    cel: || duration("self.duration", MAX_WINDOW_HOURS),
};

pub(crate) const TIME_ZONE: Check = Check {
    field: "timeZone",
    message: "not the name of a time zone; write an IANA name, such as America/Los_Angeles, or leave it out for UTC",
    required: false,
    cel: || format!("!has(self.timeZone) || self.timeZone.matches(r'{}')", pattern::TIME_ZONE),
};

pub(crate) const EXCLUDE_DATES: Check = Check {
    field: "excludeDates",
    message: "an entry is not a date; write year, month and day, such as 2026-12-25",
    required: false,
    cel: || format!("!has(self.excludeDates) || self.excludeDates.all(d, d.matches(r'{}'))", pattern::DATE),
};

pub(crate) const MAX_DURATION: Check = Check {
    field: "maxDuration",
    message: "the longest duration of a grant is needed, up to 168h: hours, minutes and seconds, such as 2h",
    required: false,
    cel: || duration("self.maxDuration", MAX_GRANT_HOURS),
};

pub(crate) const MIN_APPROVALS: Check = Check {
    field: "minApprovals",
    message: "use a number of approvers from 1 to 16, or 0 for grants that nobody approves",
    required: false,
    cel: || format!("!has(self.minApprovals) || (self.minApprovals >= 0 && self.minApprovals <= {MAX_APPROVALS})"),
};

pub(crate) const ENOUGH_APPROVERS: Check = Check {
    field: "approvers.users",
    message: "fewer people than minApprovals, so that no grant could ever be approved; name more, or a group",
    required: false,
    // Nobody at all is allowed to say: the operator shut it for now.
    cel: || {
        "!has(self.approvers) || !has(self.approvers.users) || size(self.approvers.users) == 0 || \
         (has(self.approvers.groups) && size(self.approvers.groups) > 0) || \
         size(self.approvers.users) >= (has(self.minApprovals) ? self.minApprovals : 1)"
            .into()
    },
};

const SOMEBODY: &str =
    "an entry is empty; write names as the API server knows them (`kubectl auth whoami` prints one's own)";

pub(crate) const APPROVING_USERS: Check = Check {
    field: "users",
    message: SOMEBODY,
    required: false,
    cel: || "!has(self.users) || self.users.all(u, u != '')".into(),
};

pub(crate) const APPROVING_GROUPS: Check = Check {
    field: "groups",
    message: SOMEBODY,
    required: false,
    cel: || "!has(self.groups) || self.groups.all(g, g != '')".into(),
};
