//! Fields of a time box that this version does not know: a newer version has added them, or somebody has mistyped one. Nobody
//! here can tell what they forbid, so the box is closed, whoever reads it and wherever it was read from.

#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

mod common;

use common::{assigned, binding, managed_identity, pod_at};
use identity_core::{
    assign::{Action, Event, Index, Options, Relist},
    grant::{Proof, review},
    lookup::{self, Caller, Decision, Deny, NodeIndex, Request, RequestedIdentity},
    schedule::{Gate, Passage, Reason},
};
use identity_crd::{
    AzureAssignedIdentity, AzureIdentity, AzureIdentityBinding, AzureIdentityGrant, ConditionStatus, GrantPhase,
    TimeBox, find_condition,
};
use jiff::Timestamp;
use serde_json::{Value, from_value, json, to_value};

const NOW: &str = "2026-11-24T00:30:00Z";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

/// Open at [`NOW`], with a grant or without.
fn known() -> Value {
    json!({
        "notAfter": "2027-01-01T00:00:00Z",
        "windows": [{"schedule": "0 0 * * *", "duration": "1h"}, {"schedule": "0 12 * * *", "duration": "1h"}],
        "grant": {"maxDuration": "1h", "minApprovals": 1, "approvers": {"users": ["bob"]}},
    })
}

/// The same with a field more at a JSON pointer; and the path of that.
fn newer() -> Vec<(&'static str, Value)> {
    ["/onlyFrom", "/windows/1/exceptDates", "/grant/minApprovers", "/grant/approvers/notGroups"]
        .into_iter()
        .map(|pointer| {
            let (mut spec, (part, name)) = (known(), pointer.rsplit_once('/').unwrap());
            spec.pointer_mut(part).unwrap()[name] = json!({"anything": ["at all", null, 7]});
            let path = ["onlyFrom", "windows[1].exceptDates", "grant.minApprovers", "grant.approvers.notGroups"];
            (*path.iter().find(|path| path.ends_with(name)).unwrap(), spec)
        })
        .collect()
}

fn time_box(spec: &Value) -> TimeBox {
    from_value(spec.clone()).unwrap()
}

fn without_grant(mut spec: Value) -> Value {
    spec.as_object_mut().unwrap().remove("grant");
    spec
}

fn boxed(spec: &Value) -> AzureIdentityBinding {
    let mut object = binding("demo", "b", "b", "data");
    object.spec.time_box = Some(time_box(spec));
    object
}

#[test]
fn each_closes_the_box_and_no_grant_opens_it() {
    let granted = Some("2026-11-24T01:00:00Z".parse().unwrap());
    let known = time_box(&known());
    assert!(Gate::new(Some(&known), None).unwrap().now(now(), None).is_open(), "otherwise it would be open");
    for (path, spec) in newer() {
        let gate = Gate::new(Some(&time_box(&spec)), None).unwrap();
        let closed = Passage::Closed { opens: None, reason: Reason::Unreadable };
        assert_eq!((gate.now(now(), None), gate.now(now(), granted)), (closed, closed), "{path}");
        let said = gate.error().unwrap().to_string();
        assert_eq!(
            said,
            format!(
                "spec.timeBox.{path}: is not known to this version, which cannot tell what it forbids; correct the name, \
                 remove it, or upgrade"
            )
        );
        assert!(!gate.takes_grants());
    }
    // The identity's box cannot be widened by not being understood either.
    for (path, spec) in newer().into_iter().take(2) {
        let gate = Gate::new(None, Some(&time_box(&without_grant(spec)))).unwrap();
        assert!(!gate.now(now(), granted).is_open(), "{path}");
        assert!(gate.error().unwrap().to_string().contains("of its AzureIdentity"), "{:?}", gate.error());
    }
    // A null says nothing, as everywhere.
    let mut null = self::known();
    null["onlyFrom"] = Value::Null;
    assert!(Gate::new(Some(&time_box(&null)), None).unwrap().now(now(), None).is_open());
}

fn index(identity: AzureIdentity, binding: AzureIdentityBinding) -> Index {
    let mut index = Index::new(Options::default());
    for list in [
        Relist::Pods(vec![pod_at("demo", "web", "u1", "10.0.0.1")]),
        Relist::Identities(vec![identity]),
        Relist::Bindings(vec![binding]),
        Relist::Assigned(vec![]),
    ] {
        index.apply(Event::Relist(list));
    }
    index
}

#[test]
fn the_controller_says_so_and_hands_the_field_on() {
    for (path, spec) in newer() {
        let mut index = index(managed_identity("demo", "data", "i"), boxed(&spec));
        let plan = index.plan_status(now());
        let conditions = plan.actions.iter().find_map(|action| match action {
            Action::Status(update) if update.target.kind() == "AzureIdentityBinding" => Some(&update.conditions),
            _ => None,
        });
        for type_ in ["Valid", "Open"] {
            let condition = find_condition(conditions.unwrap(), type_).unwrap();
            assert_eq!(condition.status, ConditionStatus::False, "{path}: {condition:?}");
            assert!(condition.message.contains(&format!("spec.timeBox.{path}: ")), "{condition:?}");
        }
        // Whoever knows the field finds it in the assignment as it was written.
        let actions = index.plan(now());
        let [Action::Apply(apply)] = &actions[..] else { panic!("{actions:?}") };
        let written = to_value(&apply.object).unwrap();
        assert_eq!(written["spec"]["azureBindingRef"]["spec"]["timeBox"], spec, "{path}");
    }
    // An identity's box.
    let mut identity = managed_identity("demo", "data", "i");
    identity.spec.time_box = Some(time_box(&without_grant(newer()[0].1.clone())));
    let mut index = index(identity, binding("demo", "b", "b", "data"));
    let plan = index.plan_status(now());
    let said = |kind: &str, type_: &str| {
        plan.actions.iter().find_map(|action| match action {
            Action::Status(update) if update.target.kind() == kind => {
                find_condition(&update.conditions, type_).cloned()
            }
            _ => None,
        })
    };
    let valid = said("AzureIdentity", "Valid").unwrap();
    assert!(valid.status == ConditionStatus::False && valid.message.contains("spec.timeBox.onlyFrom: "), "{valid:?}");
    let open = said("AzureIdentityBinding", "Open").unwrap();
    assert!(
        open.status == ConditionStatus::False && open.message.contains("onlyFrom of its AzureIdentity"),
        "{open:?}"
    );
}

/// What a newer controller has written, as it comes over the wire.
fn read(object: &Value) -> String {
    let assigned: AzureAssignedIdentity = from_value(object.clone()).unwrap();
    let mut node = NodeIndex::new(lookup::Options::default());
    node.apply_pod(pod_at("demo", "web", "u1", "10.0.0.1"));
    node.apply_assignment(&assigned).unwrap();
    let caller = Caller { address: "10.0.0.1".parse().unwrap(), pinned: None };
    let request = Request { resource: "https://vault.azure.net", identity: RequestedIdentity::Default };
    match node.snapshot().decide(&caller, &request, now()) {
        Decision::Allow(_) => "open".into(),
        Decision::Deny(Deny::Closed { reason, .. }) => reason.as_str().into(),
        other => format!("{other:?}"),
    }
}

#[test]
fn an_older_node_refuses() {
    let pod = pod_at("demo", "web", "u1", "10.0.0.1");
    let through = |spec: &Value| {
        to_value(assigned(&pod, &managed_identity("demo", "data", "i"), &boxed(&known()))).map(|mut object| {
            object["spec"]["azureBindingRef"]["spec"]["timeBox"] = spec.clone();
            object
        })
    };
    assert_eq!(read(&through(&known()).unwrap()), "open");
    for (path, spec) in newer() {
        assert_eq!(read(&through(&spec).unwrap()), "Unreadable", "{path}");
    }
    let mut of_identity = through(&json!({})).unwrap();
    assert_eq!(read(&of_identity), "open");
    of_identity["spec"]["azureIdentityRef"]["spec"]["timeBox"] = json!({"onlyFrom": "10.0.0.0/8"});
    assert_eq!(read(&of_identity), "Unreadable");

    // A grant of which a newer controller says more.
    let mut granted = through(&json!({"grant": {"required": true, "maxDuration": "1h"}})).unwrap();
    assert_eq!(read(&granted), "NoGrant");
    granted["spec"]["grant"] = json!({"name": "g", "until": "2026-11-24T01:00:00Z"});
    assert_eq!(read(&granted), "open");
    granted["spec"]["grant"]["audiences"] = json!(["https://vault.azure.net"]);
    assert_eq!(read(&granted), "NoGrant");
}

#[test]
fn no_grant_becomes_active_on_terms_that_are_not_known() {
    let grant: AzureIdentityGrant = from_value(json!({
        "apiVersion": "aadpodidentity.k8s.io/v1alpha1", "kind": "AzureIdentityGrant",
        "metadata": {"namespace": "demo", "name": "g", "uid": "g", "generation": 1, "creationTimestamp": "2026-11-24T00:20:00Z"},
        "spec": {"bindingName": "b", "reason": "incident", "duration": "30m", "requestedBy": "ann",
            "approvals": [{"by": "bob"}]},
    }))
    .unwrap();
    let proof = Proof::Since("2026-11-23T00:00:00Z".parse().unwrap());
    assert_eq!(review(&grant, Some(&boxed(&known())), &proof, now()).phase, GrantPhase::Active);
    for (path, spec) in newer() {
        let review = review(&grant, Some(&boxed(&spec)), &proof, now());
        assert_eq!(review.phase, GrantPhase::Pending, "{path}");
        let said = review.transition.unwrap().message;
        assert!(said.contains(&format!("spec.timeBox.{path} of AzureIdentityBinding b is not known")), "{said}");
    }
}
