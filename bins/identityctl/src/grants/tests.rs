//! What is written and said, from tables.

use clap::Parser as _;
use identity_crd::{AzureIdentityBinding, AzureIdentityGrant};
use jiff::Timestamp;
use serde_json::{Value, from_value, json};

use super::{
    args::Request,
    cluster::{Edit, Known, Me},
    decide::{Word, new_grant, next},
    rows::{aligned, rows, tabbed},
    words::{by_itself, by_manifests, hours, left, policy, standing},
};
use crate::args::{Args, Command};

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// A Tuesday.
fn noon() -> Timestamp {
    at("2026-11-24T12:00:00Z")
}

fn binding(time_box: &Value) -> AzureIdentityBinding {
    from_value(json!({"apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding",
        "metadata": {"namespace": "demo", "name": "vault", "uid": "b"},
        "spec": {"azureIdentity": "i", "selector": "s", "timeBox": time_box}}))
    .unwrap()
}

fn two_approvals() -> AzureIdentityBinding {
    binding(&json!({"grant": {"required": true, "maxDuration": "2h", "minApprovals": 2,
        "approvers": {"users": ["bob"], "groups": ["sre", "leads"]}}}))
}

fn grant(name: &str, spec: &Value, status: &Value) -> AzureIdentityGrant {
    let mut base = json!({"bindingName": "vault", "reason": "incident 4711", "duration": "30m", "requestedBy": "ann"});
    for (key, value) in spec.as_object().unwrap() {
        base[key] = value.clone();
    }
    from_value(json!({"apiVersion": "aadpodidentity.k8s.io/v1alpha1", "kind": "AzureIdentityGrant",
        "metadata": {"namespace": "demo", "name": name, "uid": name, "creationTimestamp": "2026-11-24T11:00:00Z"},
        "spec": base, "status": status}))
    .unwrap()
}

fn person(name: &str, groups: &[&str]) -> Me {
    Me { name: name.into(), groups: groups.iter().map(|&group| group.into()).collect() }
}

fn asked(words: &[&str]) -> Request {
    let all = ["identityctl", "request", "vault", "--reason", "incident 4711", "--for"].iter().chain(words);
    let Command::Request(args) = Args::parse_from(all).command else { unreachable!() };
    *args
}

#[test]
fn what_is_asked_for() {
    let ann = person("ann", &["dev", "sre", "system:authenticated"]);
    let known = |binding| Known::There(Box::new(binding));
    let nobody = json!({"grant": {"required": true, "maxDuration": "2h", "approvers": {"users": []}}});
    let none = json!({"grant": {"required": true, "maxDuration": "2h", "minApprovals": 0}});
    let wrong = json!({"grant": {"required": true, "maxDuration": "2 hours", "approvers": {"users": ["bob"]}}});
    let windows = json!({"windows": [{"schedule": "0 22 * * *", "duration": "6h"}],
        "grant": {"required": true, "maxDuration": "2h", "approvers": {"users": ["bob"]}}});
    let over = json!({"notAfter": "2026-01-01T00:00:00Z", "grant": {"required": true, "maxDuration": "2h", "approvers": {"users": ["bob"]}}});
    let cases: [(&str, &[&str], Known); 14] = [
        ("as it should be", &["30m"], known(two_approvals())),
        ("the longest", &["2h", "--pod", "shell-0", "--name", "incident-4711"], known(two_approvals())),
        ("too long", &["2h1s"], known(two_approvals())),
        ("no binding", &["30m"], Known::Absent),
        ("an unreadable binding", &["30m"], Known::Unreadable),
        ("too long for any", &["169h"], Known::Unreadable),
        ("no such pod can be", &["30m", "--pod", "Shell_0"], Known::Unreadable),
        ("nobody can approve", &["30m"], known(binding(&nobody))),
        ("nobody needs to", &["30m"], known(binding(&none))),
        ("no grants", &["30m"], known(binding(&json!({})))),
        ("no time box", &["30m"], known(binding(&Value::Null))),
        ("a binding that cannot be read", &["30m"], known(binding(&wrong))),
        ("outside of its windows", &["30m"], known(binding(&windows))),
        ("for ever closed", &["30m"], known(binding(&over))),
    ];
    let said: Vec<_> = cases
        .iter()
        .map(|(what, words, known)| match new_grant(&asked(words), "demo", &ann, known, noon()) {
            Ok((grant, notes)) => {
                let meta = json!({"name": grant.metadata.name, "generateName": grant.metadata.generate_name, "namespace": grant.metadata.namespace});
                format!("{what}: {meta} {}\n    {notes:?}", serde_json::to_string(&grant.spec).unwrap())
            }
            Err(trouble) => format!("{what}: NO: {trouble}"),
        })
        .collect();
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn what_is_written_by_whom() {
    let vault = two_approvals();
    let by_bob = json!({"approvals": [{"by": "bob"}]});
    let active = json!({"phase": "Active", "activeUntil": "2026-11-24T12:30:00Z"});
    let none = json!({});
    let denied = json!({"denied": {"by": "bob"}});
    let (ann, bob) = (person("ann", &["sre"]), person("bob", &["dev"]));
    let (carla, eve) = (person("carla", &["dev", "sre"]), person("eve", &["dev"]));
    let cases = [
        (Word::Approve, &bob, &none, &none, true),
        (Word::Approve, &carla, &none, &none, true),
        (Word::Approve, &carla, &by_bob, &none, true),
        (Word::Approve, &carla, &none, &none, false),
        (Word::Approve, &bob, &by_bob, &none, true),
        (Word::Approve, &ann, &none, &none, true),
        (Word::Approve, &eve, &none, &none, true),
        (Word::Approve, &bob, &none, &active, true),
        (Word::Approve, &bob, &none, &json!({"phase": "Expired"}), true),
        (Word::Approve, &bob, &denied, &none, true),
        (Word::Deny, &bob, &none, &none, false),
        (Word::Deny, &bob, &none, &active, false),
        (Word::Deny, &ann, &denied, &none, false),
        (Word::Deny, &ann, &none, &json!({"phase": "Refused"}), false),
        (Word::Revoke, &ann, &none, &active, false),
        (Word::Revoke, &ann, &denied, &none, false),
        (Word::Revoke, &ann, &json!({"revoked": {"by": "bob"}}), &active, false),
    ];
    let said: Vec<_> = cases
        .iter()
        .map(|(word, me, spec, status, readable)| {
            let what = format!("{word:?} by {} of {spec} {}", me.name, status["phase"]);
            match next(*word, &grant("g", spec, status), readable.then_some(&vault), me, Some("enough")) {
                Ok(Edit::Spec(spec, done)) => format!("{what}: {spec}\n    {done}"),
                Ok(Edit::Nothing(why)) => format!("{what}: nothing\n    {why}"),
                Err(trouble) => format!("{what}: NO\n    {trouble}"),
            }
        })
        .collect();
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn where_it_stands() {
    let vault = two_approvals();
    let condition = |message: &str| json!([{"type": "Active", "status": "False", "message": message}]);
    let both = json!({"approvals": [{"by": "bob"}, {"by": "carla", "groups": ["sre"]}]});
    let none = json!({});
    let cases = [
        (&none, none.clone()),
        (&json!({"approvals": [{"by": "bob"}, {"by": "eve"}]}), json!({"phase": "Pending"})),
        (&both, none.clone()),
        (&both, json!({"phase": "Pending", "conditions": condition("the admission policy is missing")})),
        (&both, json!({"phase": "Active", "activeUntil": "2026-11-24T12:30:00Z"})),
        (&both, json!({"phase": "Active", "activeUntil": "2026-11-24T12:00:00Z"})),
        (&both, json!({"phase": "Active", "activeUntil": "soon"})),
        (&none, json!({"phase": "Denied", "conditions": condition("denied by bob: no")})),
        (&none, json!({"phase": "Refused", "conditions": condition("spec.duration: 3h is longer")})),
        (&none, json!({"phase": "Expired"})),
        (&json!({"denied": {"by": "bob"}}), json!({"phase": "Pending"})),
        (&json!({"revoked": {"by": "ann"}}), none.clone()),
    ];
    let said: Vec<_> = cases
        .iter()
        .flat_map(|(spec, status)| {
            let grant = grant("g", spec, status);
            let known = standing(&grant, policy(&vault), noon());
            let unknown = standing(&grant, None, noon());
            [format!("{spec} {status}\n    {known:?}"), format!("    {unknown:?}")]
        })
        .collect();
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn a_binding_without_its_grants() {
    let nightly = json!([{"schedule": "0 22 * * *", "duration": "6h"}]);
    let now = json!([{"schedule": "0 11 * * *", "duration": "6h"}]);
    let grant = json!({"maxDuration": "2h", "approvers": {"users": ["bob"]}});
    let required = json!({"required": true, "maxDuration": "2h", "approvers": {"users": ["bob"]}});
    let cases = [
        Value::Null,
        json!({"grant": required}),
        json!({"windows": nightly, "grant": grant}),
        json!({"windows": nightly, "grant": required}),
        json!({"windows": now, "grant": grant}),
        json!({"windows": now, "grant": required}),
        json!({"notAfter": "2026-01-01T00:00:00Z", "grant": required}),
        json!({"windows": [{"schedule": "0 0 30 2 *", "duration": "1h"}], "grant": grant}),
    ];
    let said: Vec<_> = cases
        .iter()
        .map(|time_box| {
            let binding = binding(time_box);
            format!("{time_box}\n    {:?}\n    {:?}", by_itself(&binding, noon()), hours(&binding, noon()))
        })
        .collect();
    insta::assert_snapshot!(said.join("\n"));
    insta::assert_snapshot!("manifests", by_manifests("/etc/identity"));
}

#[test]
fn in_columns() {
    let both = json!({"approvals": [{"by": "bob"}, {"by": "eve"}], "podName": "shell-0"});
    let mut of_another = grant("other", &json!({"bindingName": "absent"}), &json!({"phase": "Pending"}));
    of_another.metadata.namespace = Some("zoo".into());
    let grants = vec![
        grant(
            "old",
            &json!({"reason": "\u{1b}[2Jgone"}),
            &json!({"phase": "Expired", "activeUntil": "2026-11-24T11:30:00Z"}),
        ),
        grant("new", &json!({}), &Value::Null),
        grant("waits", &both, &json!({"phase": "Pending"})),
        of_another,
        grant(
            "active",
            &json!({"approvals": [{"by": "bob", "reason": "known"}, {"by": "carla", "groups": ["sre"]}]}),
            &json!({"phase": "Active", "activeUntil": "2026-11-24T12:25:30Z"}),
        ),
        grant("late", &json!({}), &json!({"phase": "Active", "activeUntil": "2026-11-24T11:59:00Z"})),
    ];
    let bindings = [two_approvals()];
    let readable = rows(grants.clone(), Some(&bindings), noon());
    insta::assert_snapshot!("columns", aligned(&readable, true));
    insta::assert_snapshot!("columns_of_one_namespace", aligned(&rows(grants, None, noon()), false));
    assert_eq!(
        tabbed(&readable[..1], false),
        "active\tvault\t-\tann\tActive\t2/2\t2026-11-24T12:25:30Z\t25m\tincident 4711 (approved by bob: known)\n"
    );
    insta::assert_snapshot!("json", serde_json::to_string_pretty(&readable[..2]).unwrap());
}

#[test]
fn how_long() {
    let cases = [
        (-5, "0s"),
        (0, "0s"),
        (59, "59s"),
        (60, "1m00s"),
        (599, "9m59s"),
        (600, "10m"),
        (3599, "59m"),
        (3600, "1h00m"),
        (86399, "23h59m"),
        (86400, "1d00h"),
        (604_800, "7d00h"),
    ];
    for (seconds, expected) in cases {
        assert_eq!(left(jiff::SignedDuration::from_secs(seconds)), expected);
    }
}
