//! What time boxes and grants make of decisions, the reasons, and how much work a transition is.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a failure is the test's, and figures are to be seen")]

mod common;

use common::{assigned, binding, managed_identity, pod_at};
use identity_core::{
    lookup::{Caller, Decision, Deny, NodeIndex, Options, Published, Request, RequestedIdentity},
    schedule::{Agenda, Gate},
};
use identity_crd::{AssignedGrant, AzureAssignedIdentity, AzureIdentityBinding, TimeBox};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, from_value, json};
use std::sync::Arc;

const VAULT: &str = "https://vault.azure.net";
const REQUEST: Request<'_> = Request { resource: VAULT, identity: RequestedIdentity::Default };

fn at(text: &str) -> Timestamp {
    format!("2026-11-{text}:00Z").parse().unwrap()
}

fn boxed(name: &str, spec: &Value) -> AzureIdentityBinding {
    let mut object = binding("demo", name, name, "data");
    object.spec.time_box = Some(from_value(spec.clone()).unwrap());
    object
}

fn node(of: &[AzureAssignedIdentity]) -> NodeIndex {
    let mut index = NodeIndex::new(Options::default());
    index.apply_pod(pod_at("demo", "web", "u1", "10.0.0.1"));
    for object in of {
        index.apply_assignment(object).unwrap();
    }
    index
}

fn through(binding: &AzureIdentityBinding) -> AzureAssignedIdentity {
    assigned(&pod_at("demo", "web", "u1", "10.0.0.1"), &managed_identity("demo", "data", "i"), binding)
}

fn ask(index: &mut NodeIndex, now: &str) -> String {
    let caller = Caller { address: "10.0.0.1".parse().unwrap(), pinned: None };
    match index.snapshot().decide(&caller, &REQUEST, at(now)) {
        Decision::Allow(allow) => allow.until.map_or("open".into(), |until| format!("open until {until}")),
        Decision::Deny(Deny::Closed { assignment, opens, reason, .. }) => {
            let opens = opens.map_or("never".into(), |opens| opens.to_string());
            format!("{} {}, opens {opens}", assignment.binding.name, reason.as_str())
        }
        other => format!("{other:?}"),
    }
}

fn nightly() -> Value {
    json!({"windows": [{"schedule": "0 0 * * MON-FRI", "duration": "1h"}]})
}

#[test]
fn the_example_of_the_concept() {
    let mut node = node(&[through(&boxed("nightly", &nightly()))]);
    for (now, expected) in [
        ("24T23:59", "nightly BetweenWindows, opens 2026-11-25T00:00:00Z"),
        ("25T00:00", "open until 2026-11-25T01:00:00Z"),
        ("25T00:59", "open until 2026-11-25T01:00:00Z"),
        ("25T01:00", "nightly BetweenWindows, opens 2026-11-26T00:00:00Z"),
        // Saturday.
        ("28T00:30", "nightly BetweenWindows, opens 2026-11-30T00:00:00Z"),
    ] {
        assert_eq!(ask(&mut node, now), expected, "{now}");
    }
}

#[test]
fn a_clock_that_goes_back_reopens_nothing() {
    let bindings = boxed("nightly", &nightly());
    let mut index = node(&[through(&bindings)]);
    assert_eq!(ask(&mut index, "25T00:30"), "open until 2026-11-25T01:00:00Z");
    // A little, within the window: nothing has been closed.
    assert_eq!(ask(&mut index, "25T00:10"), "open until 2026-11-25T01:00:00Z");
    // Nobody asks while it closes; the node's clock ticks.
    index.snapshot().pass(at("25T01:30"));
    let closed = "nightly ClockWentBack, opens 2026-11-26T00:00:00Z";
    assert_eq!(ask(&mut index, "25T00:30"), closed);
    // Nor does a new snapshot, or the assignment once more.
    index.apply_assignment(&through(&bindings)).unwrap();
    assert_eq!(ask(&mut index, "25T00:45"), closed);
    assert_eq!(ask(&mut index, "26T00:00"), "open until 2026-11-26T01:00:00Z");
    // A clock that was ahead by mistake opens nothing, when it is put right, that is closed by the right time.
    let mut index = node(&[through(&bindings)]);
    assert!(ask(&mut index, "25T00:30").starts_with("open"));
    assert_eq!(ask(&mut index, "24T20:00"), "nightly BetweenWindows, opens 2026-11-25T00:00:00Z");
    // An explanation of tomorrow is not tomorrow.
    let mut index = node(&[through(&bindings)]);
    let caller = Caller { address: "10.0.0.1".parse().unwrap(), pinned: None };
    index.snapshot().explain(&caller, &REQUEST, at("28T12:00"));
    assert!(ask(&mut index, "25T00:30").starts_with("open"));
}

#[test]
fn grants_open_what_takes_them() {
    let grant = |until: &str| Some(AssignedGrant::new("g", until));
    let case = |spec: &Value, until: &str, now: &str| {
        let mut object = through(&boxed("b", spec));
        object.spec.grant = grant(until).filter(|grant| !grant.until.is_empty());
        ask(&mut node(&[object]), now)
    };
    let mut sudo = nightly();
    sudo["grant"] = json!({"maxDuration": "2h"});
    let mut both = nightly();
    both["grant"] = json!({"required": true, "maxDuration": "2h"});
    let only = json!({"grant": {"required": true, "maxDuration": "2h"}, "notAfter": "2026-11-25T12:00:00Z"});
    let until = "2026-11-25T11:00:00Z";
    for (spec, until, now, expected) in [
        (&only, "", "25T10:00", "b NoGrant, opens never"),
        (&only, until, "25T10:00", "open until 2026-11-25T11:00:00Z"),
        (&only, until, "25T11:00", "b NoGrant, opens never"),
        (&only, "2026-11-25T13:00:00Z", "25T11:30", "open until 2026-11-25T12:00:00Z"),
        (&only, "2026-11-25T13:00:00Z", "25T12:00", "b Over, opens never"),
        (&only, "soon", "25T10:00", "b NoGrant, opens never"),
        (&sudo, "", "25T10:00", "b BetweenWindows, opens 2026-11-26T00:00:00Z"),
        (&sudo, until, "25T10:00", "open until 2026-11-25T11:00:00Z"),
        (&sudo, until, "25T11:00", "b BetweenWindows, opens 2026-11-26T00:00:00Z"),
        (&sudo, "", "25T00:10", "open until 2026-11-25T01:00:00Z"),
        (&both, "", "25T00:10", "b NoGrant, opens never"),
        (&both, until, "25T00:10", "open until 2026-11-25T01:00:00Z"),
        (&both, until, "25T10:00", "b BetweenWindows, opens never"),
        (&both, "2026-11-26T00:30:00Z", "25T10:00", "b BetweenWindows, opens 2026-11-26T00:00:00Z"),
        // One that takes none has no use for it.
        (&nightly(), until, "25T10:00", "b BetweenWindows, opens 2026-11-26T00:00:00Z"),
    ] {
        assert_eq!(case(spec, until, now), expected, "{spec} with a grant until `{until}` at {now}");
    }
}

#[test]
fn of_several_bindings_any_that_is_open_and_none_of_another_identity() {
    let later = json!({"notBefore": "2026-11-29T00:00:00Z"});
    let closed = boxed("later", &later);
    let mut index = node(&[through(&closed), through(&boxed("nightly", &nightly()))]);
    assert_eq!(ask(&mut index, "25T00:30"), "open until 2026-11-25T01:00:00Z");
    assert_eq!(ask(&mut index, "25T10:00"), "nightly BetweenWindows, opens 2026-11-26T00:00:00Z", "what opens first");
    // Another identity of less weight is open: a closed binding denies all the same.
    let mut heavy = closed;
    heavy.spec.weight = Some(9);
    let other = assigned(
        &pod_at("demo", "web", "u1", "10.0.0.1"),
        &managed_identity("demo", "other", "o"),
        &binding("demo", "always", "always", "other"),
    );
    let mut index = node(&[through(&heavy), other]);
    assert_eq!(ask(&mut index, "25T10:00"), "later NotYet, opens 2026-11-29T00:00:00Z");
}

#[test]
fn what_cannot_be_read_is_closed_and_says_why() {
    let bad = |field: &str, spec: Value| {
        let mut index = node(&[through(&boxed("b", &spec))]);
        assert_eq!(ask(&mut index, "25T10:00"), "b Unreadable, opens never", "{spec}");
        let key = pod_at("demo", "web", "u1", "10.0.0.1").key();
        let text = index.explain(&key, &REQUEST, at("25T10:00")).to_string();
        assert!(text.contains(&format!("(spec.timeBox.{field}: ")), "{text}");
        text.lines().find(|line| line.contains("spec.timeBox")).unwrap().trim().to_owned()
    };
    let window = |change: Value| {
        let mut all = json!({"schedule": "0 0 * * *", "duration": "1h"});
        all.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        json!({"windows": [{"schedule": "0 1 * * *", "duration": "1h"}, all]})
    };
    let lines = [
        bad("windows[1].schedule", window(json!({"schedule": "0 0 30 2 *"}))),
        bad("windows[1].schedule", window(json!({"schedule": "whenever"}))),
        bad("windows[1].schedule", window(json!({"schedule": ""}))),
        bad("windows[1].duration", window(json!({"duration": "0s"}))),
        bad("windows[1].duration", window(json!({"duration": "-1h"}))),
        bad("windows[1].duration", window(json!({"duration": "an hour"}))),
        bad("windows[1].duration", window(json!({"duration": ""}))),
        bad("windows[1].timeZone", window(json!({"timeZone": "Europe/Bärlin"}))),
        bad("windows[1].excludeDates[0]", window(json!({"excludeDates": ["25.12.2026"]}))),
        bad("notBefore", json!({"notBefore": "tomorrow"})),
        bad("notAfter", json!({"notAfter": ""})),
        bad("notAfter", json!({"notBefore": "2026-12-01T00:00:00Z", "notAfter": "2026-11-01T00:00:00Z"})),
        bad("grant", json!({"grant": {"maxDuration": "1h"}})),
    ];
    insta::assert_snapshot!(lines.join("\n"));
    let mut identity = managed_identity("demo", "data", "i");
    identity.spec.time_box = Some(from_value(json!({"grant": {"required": true, "maxDuration": "1h"}})).unwrap());
    let pod = pod_at("demo", "web", "u1", "10.0.0.1");
    let mut index = node(&[assigned(&pod, &identity, &binding("demo", "b", "b", "data"))]);
    assert_eq!(ask(&mut index, "25T10:00"), "b Unreadable, opens never");
}

#[test]
fn the_reasons_in_words() {
    let mut sudo = nightly();
    sudo["grant"] = json!({"maxDuration": "2h"});
    let mut object = through(&boxed("b", &sudo));
    object.spec.grant = Some(AssignedGrant::new("g", "2026-11-25T11:00:00Z"));
    let mut index = node(&[object]);
    let key = pod_at("demo", "web", "u1", "10.0.0.1").key();
    let texts = ["25T00:30", "25T10:00", "25T12:00"].map(|now| index.explain(&key, &REQUEST, at(now)).to_string());
    insta::assert_snapshot!(texts.join("\n"));
}

/// A thousand bindings with different windows and ten thousand pods on one node, asked all day: a box is worked out once
/// for each of its transitions, not for each pod, and nothing is published.
#[test]
fn a_transition_is_work_for_what_changes() {
    const BINDINGS: u64 = 1_000;
    let mut index = NodeIndex::new(Options::default());
    let identity = managed_identity("demo", "data", "i");
    let boxes: Vec<TimeBox> = (0..BINDINGS)
        .map(|n| {
            let schedule = format!("{} {} * * *", n % 60, n / 60);
            from_value(json!({"windows": [{"schedule": schedule, "duration": "20m"}]})).unwrap()
        })
        .collect();
    for n in 0..10 * BINDINGS {
        let (name, address) = (format!("pod-{n}"), format!("10.{}.{}.{}", n / 65_536, n / 256 % 256, n % 256));
        let pod = pod_at("demo", &name, &name, &address);
        let number = n % BINDINGS;
        let mut binding = binding("demo", &format!("b-{number}"), &format!("b-{number}"), "data");
        binding.spec.time_box = Some(boxes[usize::try_from(number).unwrap()].clone());
        index.apply_assignment(&assigned(&pod, &identity, &binding)).unwrap();
        index.apply_pod(pod);
    }
    let published = Published::default();
    assert!(index.publish(&published));
    let snapshot = published.load();
    let (start, mut open) = (at("25T00:00"), 0_u64);
    for hour in 0..24 {
        let now = start + SignedDuration::from_hours(hour);
        for n in 0..10 * BINDINGS {
            let address = format!("10.{}.{}.{}", n / 65_536, n / 256 % 256, n % 256);
            let caller = Caller { address: address.parse().unwrap(), pinned: None };
            open += u64::from(matches!(snapshot.decide(&caller, &REQUEST, now), Decision::Allow(_)));
        }
    }
    assert!(!index.publish(&published), "a transition is no change of a snapshot");
    println!("{BINDINGS} boxes, 240,000 decisions, {open} open: {} states worked out", index.searches());
    // Each at first, when it opens and when it closes, if it is open at some full hour.
    assert!(index.searches() >= BINDINGS && index.searches() <= 3 * BINDINGS, "{}", index.searches());

    // The controller's side, minute by minute: two looks for each box, each in its minute.
    let mut agenda = Agenda::default();
    for (n, spec) in boxes.iter().enumerate() {
        let change = agenda.put(n, Arc::new(Gate::new(Some(spec), None).unwrap()), None, start);
        assert_eq!(change.unwrap().is_transition(), n == 0);
    }
    let mut transitions = 0;
    while let Some(next) = agenda.next().filter(|next| *next < start + SignedDuration::from_hours(24)) {
        for change in agenda.advance(next) {
            assert!(change.is_transition());
            let minute = (next.as_second() - start.as_second()) / 60;
            let opens = i64::try_from(change.key).unwrap();
            assert_eq!(minute, if change.now.is_open() { opens } else { opens + 20 });
            transitions += 1;
        }
    }
    // The first is open at the beginning already.
    assert_eq!((transitions, agenda.looked()), (2 * BINDINGS - 1, 3 * BINDINGS - 1));
}

#[test]
fn an_agenda_follows_gates_grants_and_no_clock_that_goes_back() {
    let mut sudo = nightly();
    sudo["grant"] = json!({"maxDuration": "2h"});
    let gate = Arc::new(Gate::new(Some(&from_value(sudo).unwrap()), None).unwrap());
    let mut agenda = Agenda::default();
    assert!(!agenda.put("b", Arc::clone(&gate), None, at("24T10:00")).unwrap().is_transition());
    assert_eq!(agenda.next(), Some(at("25T00:00")));
    let opened = agenda.put("b", Arc::clone(&gate), Some(at("24T11:00")), at("24T10:30")).unwrap();
    assert!(opened.is_transition() && opened.now.is_open());
    assert!(agenda.put("b", Arc::clone(&gate), Some(at("24T11:00")), at("24T10:30")).is_none());
    assert_eq!(agenda.advance(at("24T10:59")), []);
    let closed = agenda.advance(at("24T11:00"));
    assert!(closed.len() == 1 && closed[0].is_transition() && !closed[0].now.is_open());
    assert_eq!(closed[0].now.next(), Some(at("25T00:00")));
    assert!(agenda.advance(at("25T00:00"))[0].now.is_open());
    assert!(!agenda.advance(at("25T01:00"))[0].now.is_open());
    // Put back by an hour: what is closed stays so until the clock is past where it was.
    assert_eq!(agenda.advance(at("25T00:30")), []);
    assert!(!agenda.passage(&"b").unwrap().is_open());
    assert!(agenda.put("b", Arc::clone(&gate), None, at("25T00:30")).is_none());
    agenda.remove(&"b");
    assert_eq!((agenda.next(), agenda.passage(&"b")), (None, None));
}
