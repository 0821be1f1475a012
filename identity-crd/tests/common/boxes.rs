//! Time boxes and grants.

#![expect(clippy::needless_pass_by_value, reason = "reads better in the table")]

use serde_json::{Value, json};

use super::{
    Case,
    Expect::{self, Accepted, Refused, TooMuch},
    binding, managed, many, merge,
};

fn boxed(time_box: Value) -> Value {
    binding(json!({"timeBox": time_box}))
}

fn window(change: Value) -> Value {
    boxed(json!({"windows": [merge(json!({"schedule": "0 0 * * MON-FRI", "duration": "1h"}), &change)]}))
}

fn grant_of(change: Value) -> Value {
    let people = json!({"users": ["ann", "bob"], "groups": ["0a0b"]});
    boxed(json!({"grant": merge(json!({"required": true, "maxDuration": "2h", "approvers": people}), &change)}))
}

fn grant(change: Value) -> Value {
    merge(json!({"bindingName": "demo", "reason": "incident 1", "duration": "30m", "requestedBy": "ann"}), &change)
}

pub(super) fn cases() -> Vec<Case> {
    let identity = |name, spec, expect: Expect| Case { name, kind: "AzureIdentity", spec, expect };
    let of_binding = |name, spec, expect: Expect| Case { name, kind: "AzureIdentityBinding", spec, expect };
    let of_grant = |name, spec, expect: Expect| Case { name, kind: "AzureIdentityGrant", spec, expect };
    let mut cases = vec![
        of_binding("an empty box is always open", boxed(json!({})), Accepted),
        of_binding("no windows are as if absent", boxed(json!({"windows": []})), Accepted),
        of_binding(
            "all of a box",
            boxed(json!({
                "notBefore": "2026-12-01T00:00:00Z", "notAfter": "2027-06-30T23:59:59.999+02:00",
                "windows": [
                    {"schedule": "0 0 * * MON-FRI", "duration": "1h", "timeZone": "America/Los_Angeles", "excludeDates": ["2026-12-25"]},
                    {"schedule": "0 */15 8-17 1,15 JAN ?", "duration": "1h30m15s"}],
                "grant": {"required": true, "maxDuration": "2h", "minApprovals": 1, "approvers": {"users": [], "groups": []}},
            })),
            Accepted,
        ),
        of_binding(
            "the sudo case",
            boxed(json!({"windows": [{"schedule": "0 0 * * *", "duration": "1h"}], "grant": {"maxDuration": "1h"}})),
            Accepted,
        ),
        of_binding(
            "a grant that nobody needs to approve",
            grant_of(json!({"minApprovals": 0, "approvers": null})),
            Accepted,
        ),
        of_binding("a group makes enough approvers", grant_of(json!({"minApprovals": 3})), Accepted),
        of_binding("the 29th of February", window(json!({"excludeDates": ["2028-02-29"]})), Accepted),
        of_binding("the longest window", window(json!({"duration": "744h"})), Accepted),
        identity("a box of an identity", managed(json!({"timeBox": {"notAfter": "2027-01-01T00:00:00Z"}})), Accepted),
        identity(
            "a grant of an identity",
            managed(json!({"timeBox": {"grant": {"required": true, "maxDuration": "1h"}}})),
            Refused(&["spec.timeBox.grant"]),
        ),
        identity(
            "a wrong window of an identity",
            managed(json!({"timeBox": {"windows": [{"schedule": "0 0 * * *", "duration": "0s"}]}})),
            Refused(&["spec.timeBox.windows[0].duration"]),
        ),
        // Bounds
        of_binding(
            "a day is not an instant",
            boxed(json!({"notBefore": "2026-12-01"})),
            Refused(&["spec.timeBox.notBefore"]),
        ),
        of_binding(
            "local time is not an instant",
            boxed(json!({"notAfter": "2026-12-01T00:00:00"})),
            Refused(&["spec.timeBox.notAfter"]),
        ),
        of_binding(
            "an empty bound is not for ever",
            boxed(json!({"notAfter": ""})),
            Refused(&["spec.timeBox.notAfter"]),
        ),
        of_binding(
            "a day that there is not",
            boxed(json!({"notAfter": "2027-02-29T00:00:00Z"})),
            Refused(&["spec.timeBox.notAfter"]),
        ),
        of_binding(
            "an end before the beginning",
            boxed(json!({"notBefore": "2026-12-01T00:00:00Z", "notAfter": "2026-12-01T00:30:00+01:00"})),
            Refused(&["spec.timeBox.notAfter"]),
        ),
        of_binding(
            "an end at the beginning",
            boxed(json!({"notBefore": "2026-12-01T00:00:00Z", "notAfter": "2026-12-01T00:00:00Z"})),
            Refused(&["spec.timeBox.notAfter"]),
        ),
        // Windows
        of_binding(
            "an empty window",
            boxed(json!({"windows": [{}]})),
            Refused(&["spec.timeBox.windows[0].schedule", "spec.timeBox.windows[0].duration"]),
        ),
        of_binding(
            "a schedule of four fields",
            window(json!({"schedule": "0 0 * *"})),
            Refused(&["spec.timeBox.windows[0].schedule"]),
        ),
        of_binding("a nickname", window(json!({"schedule": "@daily"})), Refused(&["spec.timeBox.windows[0].schedule"])),
        of_binding("an empty zone", window(json!({"timeZone": ""})), Refused(&["spec.timeBox.windows[0].timeZone"])),
        of_binding(
            "a zone of two words",
            window(json!({"timeZone": "Los Angeles"})),
            Refused(&["spec.timeBox.windows[0].timeZone"]),
        ),
        of_binding(
            "a date that there is not",
            window(json!({"excludeDates": ["2026-12-25", "2026-11-31"]})),
            Refused(&["spec.timeBox.windows[0].excludeDates"]),
        ),
        of_binding(
            "a date of another form",
            window(json!({"excludeDates": ["25.12.2026"]})),
            Refused(&["spec.timeBox.windows[0].excludeDates"]),
        ),
        of_binding(
            "the second of two windows",
            boxed(
                json!({"windows": [{"schedule": "0 0 * * *", "duration": "1h"}, {"schedule": "0 0 * * *", "duration": "1d"}]}),
            ),
            Refused(&["spec.timeBox.windows[1].duration"]),
        ),
        // Grants of a binding
        of_binding(
            "a grant that opens nothing",
            grant_of(json!({"required": null})),
            Refused(&["spec.timeBox.windows"]),
        ),
        of_binding(
            "a grant without a limit",
            grant_of(json!({"maxDuration": null})),
            Refused(&["spec.timeBox.grant.maxDuration"]),
        ),
        of_binding(
            "a grant of eight days",
            grant_of(json!({"maxDuration": "169h"})),
            Refused(&["spec.timeBox.grant.maxDuration"]),
        ),
        of_binding(
            "fewer approvals than none",
            grant_of(json!({"minApprovals": -1})),
            Refused(&["spec.timeBox.grant.minApprovals"]),
        ),
        of_binding(
            "more approvals than fit",
            grant_of(json!({"minApprovals": 17})),
            Refused(&["spec.timeBox.grant.minApprovals"]),
        ),
        of_binding(
            "too few people to approve",
            grant_of(json!({"minApprovals": 2, "approvers": {"users": ["ann"]}})),
            Refused(&["spec.timeBox.grant.approvers.users"]),
        ),
        of_binding(
            "an approver without a name",
            grant_of(json!({"approvers": {"users": ["ann", ""]}})),
            Refused(&["spec.timeBox.grant.approvers.users"]),
        ),
        of_binding(
            "a group without a name",
            grant_of(json!({"approvers": {"groups": [""]}})),
            Refused(&["spec.timeBox.grant.approvers.groups"]),
        ),
        // Limits
        of_binding(
            "17 windows",
            boxed(json!({"windows": vec![json!({"schedule": "0 0 * * *", "duration": "1h"}); 17]})),
            TooMuch("spec.timeBox.windows"),
        ),
        of_binding(
            "65 dates",
            window(json!({"excludeDates": vec!["2026-12-25"; 65]})),
            TooMuch("spec.timeBox.windows[0].excludeDates"),
        ),
        of_binding(
            "a long schedule",
            window(json!({"schedule": format!("0 0 * * {}", "1,".repeat(150))})),
            TooMuch("spec.timeBox.windows[0].schedule"),
        ),
        of_binding(
            "65 approvers",
            grant_of(json!({"approvers": {"users": many(65)}})),
            TooMuch("spec.timeBox.grant.approvers.users"),
        ),
        // Grants
        of_grant("a request", grant(json!({})), Accepted),
        of_grant("a request for one pod", grant(json!({"podName": "web-0", "requesterGroups": ["team"]})), Accepted),
        of_grant(
            "an approved request",
            grant(json!({"approvals": [{"by": "bob", "groups": ["0a0b"]}, {"by": "system:serviceaccount:ci:deploy"}]})),
            Accepted,
        ),
        of_grant("a denied request", grant(json!({"denied": {"by": "bob", "reason": "not now"}})), Accepted),
        of_grant("a revoked grant", grant(json!({"revoked": {"by": "ann"}})), Accepted),
        of_grant(
            "a request for nothing",
            json!({}),
            Refused(&["spec.bindingName", "spec.reason", "spec.duration", "spec.requestedBy"]),
        ),
        of_grant("a reason that says nothing", grant(json!({"reason": " \n"})), Refused(&["spec.reason"])),
        of_grant(
            "a binding of another namespace",
            grant(json!({"bindingName": "other/demo"})),
            Refused(&["spec.bindingName"]),
        ),
        of_grant("a pod that there is not", grant(json!({"podName": "Web"})), Refused(&["spec.podName"])),
        of_grant(
            "an approval by the requester",
            grant(json!({"approvals": [{"by": "ann"}]})),
            Refused(&["spec.approvals"]),
        ),
        of_grant("an approval by nobody", grant(json!({"approvals": [{}]})), Refused(&["spec.approvals"])),
        of_grant("a denial by nobody", grant(json!({"denied": {}})), Refused(&["spec.denied.by"])),
        of_grant("a revocation by nobody", grant(json!({"revoked": {"reason": "x"}})), Refused(&["spec.revoked.by"])),
        of_grant("a long reason", grant(json!({"reason": "a".repeat(1025)})), TooMuch("spec.reason")),
        of_grant(
            "17 approvals",
            grant(json!({"approvals": many(17).into_iter().map(|by| json!({"by": by})).collect::<Vec<_>>()})),
            TooMuch("spec.approvals"),
        ),
    ];
    for (name, duration) in [
        ("no duration", ""),
        ("a duration of zero", "0h0m0s"),
        ("a negative duration", "-1h"),
        ("a duration in days", "1d"),
        ("a duration without a unit", "3600"),
        ("a duration with a fraction", "1.5h"),
        ("a duration in the wrong order", "30m1h"),
    ] {
        cases.push(of_binding(
            name,
            window(json!({"duration": duration})),
            Refused(&["spec.timeBox.windows[0].duration"]),
        ));
        cases.push(of_grant(name, grant(json!({"duration": duration})), Refused(&["spec.duration"])));
        cases.push(of_binding(
            name,
            grant_of(json!({"maxDuration": duration})),
            Refused(&["spec.timeBox.grant.maxDuration"]),
        ));
    }
    cases.push(of_binding(
        "a window of 32 days",
        window(json!({"duration": "744h1s"})),
        Refused(&["spec.timeBox.windows[0].duration"]),
    ));
    cases.push(of_grant("a grant of eight days", grant(json!({"duration": "169h"})), Refused(&["spec.duration"])));
    cases
}
