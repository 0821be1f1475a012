use std::fmt::Write as _;

use identity_crd::{AzureIdentityBinding, AzureIdentityGrant, GrantPhase};
use jiff::Timestamp;
use serde_json::{Value, from_value, json};

use super::*;

fn at(text: &str) -> Timestamp {
    format!("2026-11-24T{text}Z").parse().unwrap()
}

fn binding(grant: &Value) -> AzureIdentityBinding {
    from_value(json!({
        "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding",
        "metadata": {"namespace": "demo", "name": "break-glass", "uid": "b1"},
        "spec": {"azureIdentity": "admin", "selector": "ops", "timeBox": {"grant": grant}},
    }))
    .unwrap()
}

fn policy() -> Value {
    json!({"required": true, "maxDuration": "1h", "minApprovals": 2, "approvers": {"users": ["bob", "ann"], "groups": ["sre"]}})
}

fn grant(spec: &Value) -> AzureIdentityGrant {
    let mut all =
        json!({"bindingName": "break-glass", "reason": "incident 4711", "duration": "30m", "requestedBy": "ann"});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    from_value(json!({
        "apiVersion": "aadpodidentity.k8s.io/v1alpha1", "kind": "AzureIdentityGrant",
        "metadata": {"namespace": "demo", "name": "g1", "uid": "g", "generation": 1, "creationTimestamp": "2026-11-24T12:00:00Z"},
        "spec": all,
    }))
    .unwrap()
}

fn proof() -> Proof {
    Proof::Since(at("11:59:00"))
}

fn approved() -> Value {
    json!({"approvals": [{"by": "bob"}, {"by": "eva", "groups": ["dev", "sre"]}]})
}

/// What is written, as one reads it.
fn told(review: &Review) -> String {
    let mut text = review.phase.as_str().to_owned();
    if let Some(transition) = &review.transition {
        write!(text, "\n  {}: {}", transition.reason, transition.message).unwrap();
    }
    if let Some(status) = &review.status {
        let span = status.active_from.as_ref().zip(status.active_until.as_ref());
        text += &span.map(|(from, until)| format!("\n  from {from} until {until}")).unwrap_or_default();
        for c in &status.conditions {
            write!(text, "\n  {}={:?} {} {}", c.type_, c.status, c.reason, c.message).unwrap();
        }
    }
    text + "\n"
}

#[test]
fn what_becomes_of_a_request() {
    let now = at("12:10:00.25");
    let mut text = String::new();
    let mut case = |what: &str, grant: &AzureIdentityGrant, binding: Option<&AzureIdentityBinding>, proof: &Proof| {
        let review = review(grant, binding, proof, now);
        assert_eq!(review.stamp, None, "{what}: nothing is given before a deadline is persisted");
        writeln!(text, "## {what}\n{}", told(&review)).unwrap();
        review.phase
    };
    let (usual, proven) = (binding(&policy()), proof());
    case("nobody has approved", &grant(&json!({})), Some(&usual), &proven);
    let one = json!({"approvals": [{"by": "bob"}]});
    case("one of two has approved", &grant(&one), Some(&usual), &proven);
    let odd = json!({"approvals": [{"by": "bob"}, {"by": "bob"}, {"by": "ann"}, {"by": "eve", "groups": ["dev"]}]});
    assert_eq!(
        case("twice, by the requester, and by a stranger", &grant(&odd), Some(&usual), &proven),
        GrantPhase::Pending
    );
    assert_eq!(case("two have approved", &grant(&approved()), Some(&usual), &proven), GrantPhase::Active);
    let none = binding(&json!({"required": true, "maxDuration": "1h", "minApprovals": 0}));
    assert_eq!(case("none is needed", &grant(&json!({})), Some(&none), &proven), GrantPhase::Active);
    let nobody = binding(&json!({"required": true, "maxDuration": "1h"}));
    assert_eq!(case("nobody may approve", &grant(&approved()), Some(&nobody), &proven), GrantPhase::Pending);
    for (what, change) in [
        ("denied", json!({"denied": {"by": "bob", "reason": "not now"}})),
        ("revoked before", json!({"revoked": {"by": "ann"}})),
        ("too long", json!({"duration": "61m"})),
        ("no duration", json!({"duration": "soon"})),
        ("no time at all", json!({"duration": "0s"})),
        ("nobody asks", json!({"requestedBy": ""})),
    ] {
        let mut spec = approved();
        spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let phase = case(what, &grant(&spec), Some(&usual), &proven);
        assert!(phase.is_final(), "{what}: {phase:?}");
    }
    let approved = grant(&approved());
    assert_eq!(case("no binding", &approved, None, &proven), GrantPhase::Pending);
    let mut plain = usual.clone();
    plain.spec.time_box = None;
    assert_eq!(case("a binding without grants", &approved, Some(&plain), &proven), GrantPhase::Refused);
    let missing = Proof::Missing("ValidatingAdmissionPolicy p is missing; apply deploy/p.yaml".into());
    assert_eq!(case("no proof", &approved, Some(&usual), &missing), GrantPhase::Pending);
    let young = Proof::Since(at("11:59:01"));
    assert_eq!(case("proof that is too young", &approved, Some(&usual), &young), GrantPhase::Refused);
    assert_eq!(case("nobody asks for proof", &approved, Some(&usual), &Proof::Waived), GrantPhase::Active);
    let mut going = approved.clone();
    going.metadata.deletion_timestamp = going.metadata.creation_timestamp.clone();
    assert_eq!(case("deleted", &going, Some(&usual), &proven), GrantPhase::Revoked);
    let mut going = usual.clone();
    going.metadata.deletion_timestamp = approved.metadata.creation_timestamp.clone();
    assert_eq!(case("its binding is going", &approved, Some(&going), &proven), GrantPhase::Pending);
    insta::assert_snapshot!(text);
}

fn active() -> AzureIdentityGrant {
    let mut grant = grant(&approved());
    grant.status = review(&grant, Some(&binding(&policy())), &proof(), at("12:10:00")).status;
    grant
}

#[test]
fn what_becomes_of_an_active_one() {
    let usual = binding(&policy());
    let during = review(&active(), Some(&usual), &proof(), at("12:39:59"));
    let stamp = during.stamp.clone().unwrap();
    assert_eq!((&*stamp.name, &*stamp.binding_uid, &stamp.pod, stamp.until), ("g1", "b1", &None, at("12:40:00")));
    assert_eq!((during.phase, during.status, during.transition), (GrantPhase::Active, None, None), "nothing to write");
    assert_eq!(during.next, Some(at("12:40:00")));

    // The policy may be replaced, or the clock go back: what is active stays so until its deadline, and no longer.
    for (proof, now) in [(Proof::Missing("gone".into()), "12:20:00"), (proof(), "09:00:00")] {
        assert_eq!(review(&active(), Some(&usual), &proof, at(now)).stamp.unwrap().until, at("12:40:00"));
    }

    let mut text = String::new();
    let mut ends = |what: &str, grant: &AzureIdentityGrant, binding: Option<&AzureIdentityBinding>, now: &str| {
        let ended = review(grant, binding, &proof(), at(now));
        assert!(ended.phase.is_final() && ended.stamp.is_none() && ended.next.is_none(), "{what}: {ended:?}");
        writeln!(text, "## {what}\n{}", told(&ended)).unwrap();
        // And that is final, whatever comes.
        let mut after = grant.clone();
        after.status = ended.status;
        (after.spec.denied, after.spec.revoked) = (None, None);
        let again = review(&after, Some(&usual), &proof(), at("12:11:00"));
        assert_eq!((again.phase, &again.status, &again.transition, &again.stamp), (ended.phase, &None, &None, &None));
    };
    ends("its time is over", &active(), Some(&usual), "12:40:00");
    let mut taken = active();
    taken.spec.revoked = Some(from_value(json!({"by": "bob", "reason": "done"})).unwrap());
    ends("revoked", &taken, Some(&usual), "12:20:00");
    let mut taken = active();
    taken.spec.denied = Some(from_value(json!({"by": "bob"})).unwrap());
    ends("denied too late", &taken, Some(&usual), "12:20:00");
    ends("its binding is gone", &active(), None, "12:20:00");
    let mut another = usual.clone();
    another.metadata.uid = Some("b2".into());
    ends("its binding is another", &active(), Some(&another), "12:20:00");
    let mut plain = usual.clone();
    plain.spec.time_box = None;
    ends("its binding takes no grants any more", &active(), Some(&plain), "12:20:00");
    let mut going = active();
    going.metadata.deletion_timestamp = going.metadata.creation_timestamp.clone();
    ends("it is deleted", &going, Some(&usual), "12:20:00");
    let mut odd = active();
    odd.status.as_mut().unwrap().active_until = Some("tomorrow".into());
    ends("nobody can read its deadline", &odd, Some(&usual), "12:20:00");
    insta::assert_snapshot!(text);
}

#[test]
fn the_stamp_of_an_assignment() {
    let stamp = |name: &str, binding: &str, pod: Option<&str>, until: &str| Stamp {
        name: name.into(),
        binding_uid: binding.into(),
        pod: pod.map(Into::into),
        until: at(until),
    };
    let all = [
        stamp("a", "b1", None, "12:00:00"),
        stamp("b", "b1", Some("web-0"), "13:00:00"),
        stamp("c", "b2", None, "14:00:00"),
        stamp("d", "b1", None, "12:00:00"),
    ];
    let of = |binding: &str, pod: &str| stamp_for(&all, binding, pod).map(|stamp| stamp.name.as_str());
    assert_eq!(of("b1", "web-0"), Some("b"));
    assert_eq!(of("b1", "web-1"), Some("a"), "of two that end at once always the same");
    assert_eq!(of("b2", "web-0"), Some("c"));
    assert_eq!(of("b3", "web-0"), None);
    let written = identity_crd::AssignedGrant::from(&all[1]);
    assert_eq!((&*written.name, &*written.until), ("b", "2026-11-24T13:00:00Z"));
}
