//! What bindings are told about their time boxes, against a plain reading of it: any history of changes, passing time,
//! writes that fail and restarts; and how much work many boxes are.

#![allow(clippy::unwrap_used, clippy::format_push_string, reason = "a failure is the test's")]

mod common;

use std::collections::BTreeMap;

use common::{binding, key, labels, managed_identity, pod, service_principal};
use identity_core::{
    assign::{Action, Event, Index, Options, Outcome, Relist, StatusTarget, StatusUpdate},
    object::ObjectKey,
    schedule::{Gate, Passage},
};
use identity_crd::{AzureIdentity, AzureIdentityBinding, ConditionStatus, TimeBox, find_condition};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::json;

fn boxes() -> Vec<Option<TimeBox>> {
    let of = |value| serde_json::from_value(value).unwrap();
    vec![
        None,
        of(json!({"windows": [{"schedule": "0 * * * *", "duration": "20m"}]})),
        of(json!({"windows": [{"schedule": "*/7 * * * *", "duration": "90s"}], "notAfter": "2026-11-25T00:00:00Z"})),
        of(json!({"notBefore": "2026-11-24T14:00:00Z"})),
        of(json!({"grant": {"required": true, "maxDuration": "1h"}})),
        of(json!({"windows": [{"schedule": "every day", "duration": "1h"}]})),
        of(json!({"windows": [{"schedule": "0 0 1 1 *", "duration": "1h"}]})),
    ]
}

/// Without `grant`.
fn identity(managed: bool, which: usize) -> AzureIdentity {
    let mut object = if managed { managed_identity("a", "i", "i") } else { service_principal("a", "i", "i") };
    object.spec.time_box = boxes()[which].clone().filter(|time_box| time_box.grant.is_none());
    object
}

fn bound(name: &str, which: usize, generation: i64) -> AzureIdentityBinding {
    let mut object = binding("a", name, &format!("binding-{name}"), "i");
    object.metadata.generation = Some(generation);
    object.spec.time_box.clone_from(&boxes()[which]);
    object
}

#[derive(Clone, Debug)]
enum Op {
    Binding { name: u8, which: usize },
    Identity { managed: bool, which: usize },
    Delete(u8),
    Advance(i64),
    Plan { urgent: bool, fate: u8 },
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..3u8, 0..7usize).prop_map(|(name, which)| Op::Binding { name, which }),
        2 => (any::<bool>(), 0..7usize).prop_map(|(managed, which)| Op::Identity { managed, which }),
        1 => (0..3u8).prop_map(Op::Delete),
        6 => (1..4000i64).prop_map(Op::Advance),
        10 => (any::<bool>(), 0..8u8).prop_map(|(urgent, fate)| Op::Plan { urgent, fate }),
        1 => Just(Op::Restart),
    ]
}

struct World {
    now: Timestamp,
    serial: i64,
    index: Index,
    identity: AzureIdentity,
    /// As the API server has them, status included.
    bindings: BTreeMap<ObjectKey, AzureIdentityBinding>,
    /// What was said last of each in Events.
    said: BTreeMap<ObjectKey, bool>,
}

impl World {
    fn new() -> Self {
        let now = "2026-11-24T12:00:00Z".parse().unwrap();
        let mut world = Self {
            now,
            serial: 0,
            index: Index::new(Options::default()),
            identity: identity(false, 0),
            bindings: BTreeMap::new(),
            said: BTreeMap::new(),
        };
        world.restart();
        world
    }

    fn restart(&mut self) {
        self.index = Index::new(Options { status_interval: SignedDuration::ZERO, ..Options::default() });
        for list in [
            Relist::Pods(vec![]),
            Relist::Identities(vec![self.identity.clone()]),
            Relist::Bindings(self.bindings.values().cloned().collect()),
            Relist::Assigned(vec![]),
        ] {
            self.index.apply(Event::Relist(list));
        }
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Binding { name, which } => {
                self.serial += 1;
                let mut object = bound(&format!("b{name}"), which, self.serial);
                let key = key("a", &format!("b{name}"));
                object.status = self.bindings.get(&key).and_then(|there| there.status.clone());
                self.bindings.insert(key, object.clone());
                self.index.apply(Event::Binding(Box::new(object)));
            }
            Op::Identity { managed, which } => {
                self.serial += 1;
                self.identity = identity(managed, which);
                self.identity.metadata.generation = Some(self.serial);
                self.index.apply(Event::Identity(Box::new(self.identity.clone())));
            }
            Op::Delete(name) => {
                let key = key("a", &format!("b{name}"));
                self.bindings.remove(&key);
                self.said.remove(&key);
                self.index.apply(Event::BindingDeleted(key));
            }
            Op::Advance(seconds) => self.now += SignedDuration::from_secs(seconds),
            Op::Plan { urgent, fate } => {
                let plan =
                    if urgent { self.index.plan_transitions(self.now) } else { self.index.plan_status(self.now) };
                self.carry_out(&plan.actions, fate);
            }
            Op::Restart => self.restart(),
        }
    }

    fn carry_out(&mut self, actions: &[Action], fate: u8) {
        for action in actions {
            match action {
                Action::Status(update) => {
                    if fate == 0 {
                        let retry_at = self.now + SignedDuration::from_secs(1);
                        self.index.done(action, Outcome::Failed { retry_at });
                        continue;
                    }
                    if let StatusTarget::Binding(key) = &update.target {
                        self.write(&key.clone(), update, fate != 1);
                    }
                    self.index.done(action, Outcome::Done);
                }
                // One that goes with a write that failed is said again with the next attempt.
                Action::Event(notice) if notice.reason.starts_with("Window") && fate != 0 => {
                    let StatusTarget::Binding(key) = &notice.target else { panic!("{notice:?}") };
                    let open = notice.reason == "WindowOpened";
                    let before = self.said.insert(key.clone(), open).unwrap_or_default();
                    assert_ne!(before, open, "said twice: {notice:?}");
                }
                Action::Event(_) => {}
                other => panic!("{other:?}: nothing is assigned here"),
            }
        }
    }

    fn write(&mut self, key: &ObjectKey, update: &StatusUpdate, told: bool) {
        let Some(object) = self.bindings.get_mut(key) else { return };
        let status = object.status.get_or_insert_default();
        status.conditions.clone_from(&update.conditions);
        status.next_transition.clone_from(&update.next_transition);
        status.residual_until.clone_from(&update.residual_until);
        status.matched_pods = update.matched_pods;
        if find_condition(&update.conditions, "Open").is_none() {
            // Without a box there is nothing to open or to close.
            self.said.remove(key);
        }
        if told {
            self.index.apply(Event::Binding(Box::new(object.clone())));
        }
    }

    /// Once everything was written that is to be, each status says what a fresh look at the boxes says.
    fn settle_and_check(&mut self) {
        for _ in 0..10 {
            let plan = self.index.plan_status(self.now);
            if plan.actions.is_empty() && plan.next_due.is_none() {
                break;
            }
            if let Some(due) = plan.next_due {
                self.now = self.now.max(due);
            }
            self.carry_out(&plan.actions, 7);
        }
        for (key, object) in &self.bindings {
            let status = object.status.clone().unwrap_or_default();
            let identity = self.identity.spec.time_box.as_ref();
            let gate = Gate::new(object.spec.time_box.as_ref(), identity);
            let open = find_condition(&status.conditions, "Open");
            let residual = status.residual_until.as_ref().map(|at| at.parse::<Timestamp>().unwrap());
            let outlive = find_condition(&status.conditions, "TokensOutliveBox").is_some();
            let valid = find_condition(&status.conditions, "Valid").unwrap();
            let Some(gate) = gate else {
                assert_eq!((open, status.next_transition, residual, outlive), (None, None, None, false));
                continue;
            };
            let passage = gate.now(self.now, None);
            let open = open.unwrap();
            assert_eq!(open.status, ConditionStatus::from(passage.is_open()), "{key} {open:?} {passage:?}");
            assert_eq!(status.next_transition, passage.next().map(|at| at.to_string()), "{key} {passage:?}");
            let managed = self.identity.spec.client_password.is_none();
            assert_eq!(outlive, managed);
            assert_eq!(self.said.get(key).copied().unwrap_or_default(), passage.is_open(), "{key}: Events");
            let lifetime = if managed { SignedDuration::from_hours(24) } else { SignedDuration::from_mins(90) };
            match passage {
                Passage::Open { until: Some(until), closes: true } => assert_eq!(residual, Some(until + lifetime)),
                Passage::Open { .. } => assert_eq!(residual, None),
                Passage::Closed { .. } => {
                    assert!(residual.is_none_or(|at| at <= self.now + SignedDuration::from_hours(24)), "{residual:?}");
                }
            }
            if gate.error().is_some() && valid.reason != "IdentityUnusable" {
                assert_eq!(valid.status, ConditionStatus::False, "{valid:?}");
                assert!(valid.message.contains("spec.timeBox"), "{valid:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_ends_with_what_a_fresh_look_says(ops in prop::collection::vec(op(), 1..60)) {
        let mut world = World::new();
        for op in &ops {
            world.step(op);
        }
        world.settle_and_check();
    }
}

/// The contract: 1,000 bindings with different windows and 10,000 pods; an opening or closing costs work for what changes,
/// and writes nothing but the binding's own status and Events.
#[test]
fn a_transition_costs_work_for_what_changes() {
    let start: Timestamp = "2026-11-24T00:00:00Z".parse().unwrap();
    let mut index = Index::new(Options::default());
    let mut pods = Vec::new();
    let mut bindings = Vec::new();
    for n in 0..1000 {
        let mut object = binding("a", &format!("b{n}"), &format!("binding-{n}"), "i");
        object.spec.selector = Some(format!("app-{n}"));
        object.spec.time_box = serde_json::from_value(json!({"windows": [
            {"schedule": format!("{} {} * * *", n % 60, 1 + n / 60), "duration": format!("{}m", 30 + n % 7)},
        ]}))
        .unwrap();
        bindings.push(object);
        for p in 0..10 {
            let mut pod = pod("a", &format!("p{n}-{p}"), &format!("pod-{n}-{p}"));
            pod.labels = labels(&[("aadpodidbinding", &format!("app-{n}"))]);
            pods.push(pod);
        }
    }
    for list in [
        Relist::Pods(pods),
        Relist::Identities(vec![service_principal("a", "i", "i")]),
        Relist::Bindings(bindings),
        Relist::Assigned(vec![]),
    ] {
        index.apply(Event::Relist(list));
    }
    for action in index.plan(start) {
        let Action::Apply(apply) = &action else { panic!("{action:?}") };
        let mut object = apply.object.clone();
        object.metadata.uid = Some("u".into());
        object.metadata.resource_version = Some("1".into());
        index.done(&action, Outcome::Applied(Box::new(object)));
    }
    assert!(index.plan(start).is_empty());
    for action in index.plan_status(start).actions {
        index.done(&action, Outcome::Done);
    }
    assert_eq!(index.boxes_looked_at(), 1000, "each once");

    let (mut now, end) = (start, start + SignedDuration::from_hours(24));
    let (mut wakes, mut transitions, mut writes, mut events) = (0, 0, 0, 0);
    while let Some(due) = index.next_transition().filter(|due| *due < end) {
        now = due;
        wakes += 1;
        let before = index.boxes_looked_at();
        assert!(index.plan(now).is_empty(), "an opening or closing writes no assignment");
        let plan = index.plan_transitions(now);
        let updates: Vec<_> = plan.actions.iter().filter(|action| matches!(action, Action::Status(_))).collect();
        assert!(!updates.is_empty() && updates.len() < 50, "{} bindings at once", updates.len());
        assert_eq!(index.boxes_looked_at() - before, updates.len() as u64, "nothing else was looked at");
        transitions += updates.len();
        for action in &plan.actions {
            match action {
                Action::Status(update) => {
                    let StatusTarget::Binding(_) = &update.target else { panic!("{update:?}") };
                    let open = find_condition(&update.conditions, "Open").unwrap();
                    assert_eq!(open.last_transition_time, Some(now.to_string()), "on time");
                    writes += 1;
                }
                Action::Event(notice) => {
                    assert!(["WindowOpened", "WindowClosed"].contains(&notice.reason.as_str()), "{notice:?}");
                    events += 1;
                }
                other => panic!("{other:?}"),
            }
            index.done(action, Outcome::Done);
        }
    }
    assert_eq!((transitions, writes, events), (2000, 2000, 2000), "each opens and closes once a day");
    assert!(wakes < 2000 && now < end, "{wakes}");
    println!(
        "1,000 bindings, 10,000 pods, one day: {wakes} wakes, {transitions} boxes looked at, {writes} status writes, {events} Events, 0 writes of assignments"
    );
}

#[test]
fn the_words() {
    let mut text = String::new();
    for (what, managed, own, of_identity, at) in [
        ("open", false, 1, 0, "2026-11-24T12:10:00Z"),
        ("between its windows", false, 1, 0, "2026-11-24T12:30:00Z"),
        ("a managed identity", true, 1, 0, "2026-11-24T12:10:00Z"),
        ("not yet", false, 3, 0, "2026-11-24T12:10:00Z"),
        ("nothing closes it", false, 3, 0, "2026-11-24T15:00:00Z"),
        ("it needs a grant", false, 4, 0, "2026-11-24T12:10:00Z"),
        ("unreadable", false, 5, 0, "2026-11-24T12:10:00Z"),
        ("that of its identity is unreadable", false, 0, 5, "2026-11-24T12:10:00Z"),
        ("the identity's alone", false, 0, 1, "2026-11-24T12:10:00Z"),
    ] {
        let mut world = World::new();
        world.now = at.parse().unwrap();
        world.step(&Op::Identity { managed, which: of_identity });
        world.step(&Op::Binding { name: 0, which: own });
        let plan = world.index.plan_status(world.now);
        text += &format!("## {what}\n");
        for action in &plan.actions {
            match action {
                Action::Event(notice) => text += &format!("  Event {}: {}\n", notice.reason, notice.message),
                Action::Status(update) => {
                    text += &format!("  {}:", update.target.kind());
                    for (field, at) in
                        [("nextTransition", &update.next_transition), ("residualUntil", &update.residual_until)]
                    {
                        text += &at.as_ref().map(|at| format!(" {field} {at}")).unwrap_or_default();
                    }
                    text.push('\n');
                    for c in update.conditions.iter().filter(|c| !c.message.is_empty()) {
                        text += &format!("    {}={:?} {}: {}\n", c.type_, c.status, c.reason, c.message);
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }
    insta::assert_snapshot!(text);
}
