//! What identities and bindings are told about themselves: the conditions, their words, and when they are written.

#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

mod common;

use std::fmt::Write as _;

use common::{binding, key, labels, managed_identity, pod, service_principal};
use identity_core::{
    assign::{Action, Event, Index, Options, Outcome, Relist, StatusPlan, StatusTarget, StatusUpdate},
    pod::{Pod, PodPhase},
};
use identity_crd::{AzureIdentity, AzureIdentityBinding, Condition, ConditionStatus, find_condition};
use jiff::{SignedDuration, Timestamp};

const START: Timestamp = Timestamp::UNIX_EPOCH;
const CLIENT_ID: &str = "aaaaaaaa-0000-4000-8000-000000000001";

fn after(seconds: i64) -> Timestamp {
    START + SignedDuration::from_secs(seconds)
}

fn identity(name: &str) -> AzureIdentity {
    let mut object = managed_identity("demo", name, &format!("identity-{name}"));
    object.spec.client_id = Some(CLIENT_ID.into());
    object
}

fn bound(name: &str, identity: &str) -> AzureIdentityBinding {
    binding("demo", name, &format!("binding-{name}"), identity)
}

fn index(pods: Vec<Pod>, identities: Vec<AzureIdentity>, bindings: Vec<AzureIdentityBinding>) -> Index {
    index_with(Options { missing_grace: SignedDuration::ZERO, ..Options::default() }, pods, identities, bindings)
}

fn index_with(
    options: Options,
    pods: Vec<Pod>,
    identities: Vec<AzureIdentity>,
    bindings: Vec<AzureIdentityBinding>,
) -> Index {
    let mut index = Index::new(options);
    for list in
        [Relist::Pods(pods), Relist::Identities(identities), Relist::Bindings(bindings), Relist::Assigned(vec![])]
    {
        index.apply(Event::Relist(list));
    }
    index
}

fn updates(plan: &StatusPlan) -> Vec<&StatusUpdate> {
    let mut updates = Vec::new();
    for action in &plan.actions {
        if let Action::Status(update) = action {
            updates.push(&**update);
        }
    }
    updates
}

/// Plans, and has everything done.
fn write(index: &mut Index, now: Timestamp) -> StatusPlan {
    let plan = index.plan_status(now);
    for action in &plan.actions {
        index.done(action, Outcome::Done);
    }
    plan
}

fn render(plan: &StatusPlan) -> String {
    let mut text = String::new();
    for action in &plan.actions {
        match action {
            Action::Status(update) => {
                let key = update.target.key();
                let _ = write!(text, "status of {} {key}", update.target.kind());
                if let Some(pods) = update.matched_pods {
                    let _ = write!(text, ", matchedPods {pods}");
                }
                text.push('\n');
                for c in &update.conditions {
                    let generation = c.observed_generation.map_or_else(|| "-".into(), |g| g.to_string());
                    let since = c.last_transition_time.as_deref().unwrap_or("-");
                    let _ = writeln!(
                        text,
                        "  {}={:?} {} (generation {generation}, since {since})",
                        c.type_, c.status, c.reason
                    );
                    if !c.message.is_empty() {
                        let _ = writeln!(text, "    {}", c.message);
                    }
                }
            }
            Action::Event(notice) => {
                let kind = if notice.warning { "Warning" } else { "Normal" };
                let (target, key) = (notice.target.kind(), notice.target.key());
                let _ = writeln!(text, "event about {target} {key}: {kind} {}: {}", notice.reason, notice.message);
            }
            other => panic!("{other:?} is none of plan_status"),
        }
    }
    text
}

#[test]
fn conditions() {
    let mut nonsense = identity("nonsense");
    nonsense.spec.resource_id = Some("nonsense".into());
    let mut odd = identity("odd");
    odd.spec.client_id = Some("not a GUID".into());
    let mut far = service_principal("demo", "far", "identity-far");
    far.spec.client_id = Some(CLIENT_ID.into());
    far.spec.client_password.as_mut().unwrap().namespace = Some("vault".into());
    let mut unknown = identity("unknown");
    unknown.spec.type_ = Some(9);
    let mut nameless = bound("nameless", "");
    nameless.spec.azure_identity = None;
    let mut nothing = bound("nothing", "one");
    nothing.spec.selector = None;
    let mut edited = bound("edited", "one");
    edited.metadata.generation = Some(7);
    edited.spec.weight = Some(2_000_000);
    for (what, identities, bindings) in [
        ("all is well", vec![identity("one")], vec![bound("b", "one")]),
        ("the identity is missing", vec![], vec![bound("b", "absent")]),
        ("no identity is named", vec![], vec![nameless]),
        ("the identity cannot be used", vec![nonsense], vec![bound("b", "nonsense")]),
        ("the type of the identity is not known", vec![unknown], vec![bound("b", "unknown")]),
        ("the Secret is in another namespace", vec![far], vec![bound("b", "far")]),
        ("the identity can be used, but a field is odd", vec![odd], vec![bound("b", "odd")]),
        ("the binding selects by nothing", vec![identity("one")], vec![nothing]),
        ("the binding was edited to something odd", vec![identity("one")], vec![edited]),
    ] {
        let mut index = index(vec![pod("demo", "web", "u1")], identities, bindings);
        insta::assert_snapshot!(what.replace([' ', ','], "_"), render(&index.plan_status(after(1))), what);
    }
}

#[test]
fn nothing_is_said_before_everything_was_listed() {
    let mut index = Index::new(Options::default());
    for list in [
        Relist::Bindings(vec![bound("b", "one")]),
        Relist::Pods(vec![pod("demo", "web", "u1")]),
        Relist::Assigned(vec![]),
    ] {
        index.apply(Event::Relist(list));
        assert_eq!(index.plan_status(START), StatusPlan::default(), "the identity may be there");
    }
    index.apply(Event::Relist(Relist::Identities(vec![identity("one")])));
    let plan = index.plan_status(START);
    let found = updates(&plan).iter().filter_map(|u| find_condition(&u.conditions, "IdentityFound")).count();
    assert_eq!(found, 1);
    assert!(plan.actions.iter().all(|a| !matches!(a, Action::Event(_))), "{plan:#?}");
}

#[test]
fn nothing_is_written_that_is_there() {
    let pods = vec![pod("demo", "web", "u1")];
    let mut index = index(pods.clone(), vec![identity("one")], vec![bound("b", "one"), bound("c", "absent")]);
    let plan = index.plan_status(START);
    assert_eq!(updates(&plan).len(), 3);
    assert_eq!(index.plan_status(after(60)), StatusPlan::default(), "all of it is under way");
    index.apply(Event::PodDeleted(key("demo", "web")));
    assert_eq!(index.plan_status(after(60)), StatusPlan::default(), "one write at a time");
    index.apply(Event::Pod(pods[0].clone()));
    for action in &plan.actions {
        index.done(action, Outcome::Done);
    }
    assert!(index.plan_status(after(60)).actions.is_empty(), "the watch has yet to say so");

    // The watch says so; others have added a condition of their own, and a label.
    let status = |target: &StatusTarget| updates(&plan).into_iter().find(|u| u.target == *target).unwrap().clone();
    for name in ["b", "c"] {
        let update = status(&StatusTarget::Binding(key("demo", name)));
        let mut object = bound(name, if name == "b" { "one" } else { "absent" });
        object.metadata.labels = Some(labels(&[("team", "web")]));
        let there = object.status.get_or_insert_default();
        there.conditions.push(Condition::new("Theirs", false, "Reason", "", None));
        there.conditions.extend(update.conditions);
        there.matched_pods = update.matched_pods;
        index.apply(Event::Binding(Box::new(object)));
    }
    index.apply(Event::Pod(pods[0].clone()));
    assert!(index.plan_status(after(120)).actions.is_empty());

    // A controller that starts finds nothing to write either, and announces nothing again.
    let mut object = bound("c", "absent");
    let update = status(&StatusTarget::Binding(key("demo", "c")));
    object.status.get_or_insert_default().conditions = update.conditions;
    object.status.get_or_insert_default().matched_pods = update.matched_pods;
    let mut fresh = self::index(pods, vec![], vec![object]);
    assert_eq!(fresh.plan_status(after(180)), StatusPlan::default());
}

#[test]
fn only_the_own_conditions_are_written() {
    let mut object = bound("b", "one");
    object.status.get_or_insert_default().conditions = vec![Condition::new("Theirs", true, "Reason", "", None)];
    let mut index = index(vec![], vec![identity("one")], vec![object]);
    let plan = index.plan_status(START);
    for update in updates(&plan) {
        assert!(update.conditions.iter().all(|c| ["Valid", "IdentityFound"].contains(&&*c.type_)), "{update:#?}");
    }
}

#[test]
fn an_identity_that_appears_and_goes_is_noticed() {
    let mut index = index(vec![], vec![], vec![bound("b", "one")]);
    let found = |plan: &StatusPlan| {
        let condition = updates(plan).iter().find_map(|u| find_condition(&u.conditions, "IdentityFound").cloned());
        condition.map(|c| (c.status, c.reason, c.last_transition_time.unwrap()))
    };
    let plan = write(&mut index, after(0));
    assert_eq!(found(&plan), Some((ConditionStatus::False, "NotFound".into(), "1970-01-01T00:00:00Z".into())));
    assert_eq!(index.plan_status(after(9)), StatusPlan::default());
    index.apply(Event::Identity(Box::new(identity("one"))));
    let plan = write(&mut index, after(10));
    assert_eq!(found(&plan), Some((ConditionStatus::True, "Found".into(), "1970-01-01T00:00:10Z".into())));
    assert_eq!(index.plan_status(after(19)), StatusPlan::default());
    index.apply(Event::IdentityDeleted(key("demo", "one")));
    let plan = write(&mut index, after(20));
    assert_eq!(found(&plan), Some((ConditionStatus::False, "NotFound".into(), "1970-01-01T00:00:20Z".into())));
    let events = plan.actions.iter().filter(|a| matches!(a, Action::Event(_))).count();
    assert_eq!(events, 1, "{plan:#?}");
}

#[test]
fn what_is_wrong_is_announced_once() {
    let mut index = index(vec![pod("demo", "web", "u1")], vec![], vec![bound("b", "absent")]);
    let events = |plan: &StatusPlan| plan.actions.iter().filter(|a| matches!(a, Action::Event(_))).count();
    let plan = write(&mut index, after(0));
    assert_eq!((events(&plan), updates(&plan)[0].matched_pods), (1, Some(1)));
    index.apply(Event::Pod(pod("demo", "web-2", "u2")));
    let plan = write(&mut index, after(10));
    assert_eq!((events(&plan), updates(&plan)[0].matched_pods), (0, Some(2)), "the count changed, nothing else");
}

#[test]
fn the_generation_that_was_judged_is_told() {
    let mut index = index(vec![], vec![identity("one")], vec![bound("b", "one")]);
    let plan = write(&mut index, after(0));
    let update = updates(&plan).into_iter().find(|u| u.matched_pods.is_some()).unwrap();
    let mut object = bound("b", "one");
    object.status.get_or_insert_default().conditions.clone_from(&update.conditions);
    object.status.get_or_insert_default().matched_pods = update.matched_pods;
    object.metadata.generation = Some(2);
    object.spec.weight = Some(1);
    index.apply(Event::Binding(Box::new(object)));
    let plan = write(&mut index, after(10));
    let update = updates(&plan)[0];
    let valid = find_condition(&update.conditions, "Valid").unwrap();
    assert_eq!((valid.observed_generation, valid.status), (Some(2), ConditionStatus::True));
    assert_eq!(valid.last_transition_time.as_deref(), Some("1970-01-01T00:00:00Z"), "it did not change");
}

#[test]
fn pods_are_counted_that_are_selected_and_have_not_finished() {
    let mut finished = pod("demo", "done", "u2");
    finished.phase = PodPhase::Succeeded;
    let mut other = pod("demo", "other", "u3");
    other.labels = labels(&[("aadpodidbinding", "other")]);
    let elsewhere = pod("elsewhere", "web", "u4");
    let mut unscheduled = pod("demo", "waiting", "u5");
    unscheduled.node = None;
    let pods = vec![pod("demo", "web", "u1"), finished, other, elsewhere, unscheduled];
    let mut index = index(pods, vec![identity("one")], vec![bound("b", "one")]);
    let matched = |plan: &StatusPlan| updates(plan).iter().find_map(|u| u.matched_pods);
    assert_eq!(matched(&write(&mut index, after(0))), Some(2));
    index.apply(Event::PodDeleted(key("demo", "web")));
    assert_eq!(matched(&write(&mut index, after(10))), Some(1));
    index.apply(Event::Relist(Relist::Pods(vec![])));
    assert_eq!(matched(&write(&mut index, after(20))), Some(0));
}

#[test]
fn a_storm_of_changes_is_one_write_for_each_interval() {
    let mut index = index(vec![], vec![identity("one")], vec![bound("b", "one")]);
    assert_eq!(updates(&write(&mut index, after(0))).len(), 2);
    for n in 0..100 {
        index.apply(Event::Pod(pod("demo", &format!("web-{n}"), &format!("u{n}"))));
        let plan = index.plan_status(after(1));
        assert!(plan.actions.is_empty());
        assert_eq!(plan.next_due, Some(after(5)), "said when to ask again");
    }
    assert!(index.plan_status(after(5) - SignedDuration::from_millis(1)).actions.is_empty());
    let plan = write(&mut index, after(5));
    assert_eq!(updates(&plan).iter().map(|u| u.matched_pods).collect::<Vec<_>>(), [Some(100)]);
    assert_eq!(index.plan_status(after(6)).actions, []);

    // What comes and goes within an interval is not written.
    index.apply(Event::PodDeleted(key("demo", "web-0")));
    index.apply(Event::Pod(pod("demo", "web-0", "u0")));
    assert_eq!(index.plan_status(after(60)), StatusPlan::default());
}

#[test]
fn the_earliest_due_time_counts() {
    let mut index = index(vec![], vec![identity("one")], vec![bound("b", "one")]);
    write(&mut index, after(0));
    index.apply(Event::Binding(Box::new(bound("c", "absent"))));
    write(&mut index, after(3));
    index.apply(Event::Pod(pod("demo", "web", "u1")));
    let plan = index.plan_status(after(4));
    assert_eq!((plan.actions.len(), plan.next_due), (0, Some(after(5))));
    let plan = write(&mut index, after(5));
    assert_eq!((updates(&plan).len(), plan.next_due), (1, Some(after(8))), "the other binding's turn comes later");
    let plan = write(&mut index, after(8));
    assert_eq!((updates(&plan).len(), plan.next_due), (1, Some(after(10))));
    // What was written is looked at once more when its interval is over, and then it is quiet.
    assert_eq!(index.plan_status(after(10)), StatusPlan { actions: vec![], next_due: Some(after(13)) });
    assert_eq!(index.plan_status(after(13)), StatusPlan::default());
}

#[test]
fn a_write_that_failed_is_tried_again_at_its_time() {
    let mut index = index(vec![], vec![], vec![bound("b", "absent")]);
    let plan = index.plan_status(after(0));
    let [Action::Event(_), update @ Action::Status(_)] = plan.actions.as_slice() else { panic!("{plan:#?}") };
    index.done(update, Outcome::Failed { retry_at: after(30) });
    let held = index.plan_status(after(29));
    assert_eq!((held.actions.len(), held.next_due), (0, Some(after(30))));
    let again = index.plan_status(after(30));
    let [Action::Status(again)] = again.actions.as_slice() else { panic!("announced already: {again:#?}") };
    assert_eq!(again.target, StatusTarget::Binding(key("demo", "b")));

    // Refused (the object is another by now): judged anew, but not at once.
    index.done(&Action::Status(again.clone()), Outcome::Conflict);
    assert_eq!(index.plan_status(after(31)).next_due, Some(after(35)));
    assert_eq!(updates(&index.plan_status(after(35))).len(), 1);
}

#[test]
fn what_the_executor_never_reported_is_asked_for_again() {
    let mut index = index(vec![], vec![], vec![bound("b", "absent")]);
    assert_eq!(updates(&index.plan_status(after(0))).len(), 1);
    assert_eq!(index.plan_status(after(60)), StatusPlan::default());
    index.forget_in_flight();
    assert_eq!(updates(&index.plan_status(after(60))).len(), 1);
}

#[test]
fn a_re_created_object_is_judged_for_itself_and_a_deleted_one_not_at_all() {
    let mut index = index(vec![], vec![identity("one")], vec![bound("b", "one")]);
    let plan = index.plan_status(after(0));
    let late = plan.actions.iter().find(|a| matches!(a, Action::Status(u) if u.matched_pods.is_some())).unwrap();
    let mut again = bound("b", "one");
    again.metadata.uid = Some("another".into());
    index.apply(Event::Binding(Box::new(again)));
    let second = index.plan_status(after(10));
    let [second @ Action::Status(update)] = second.actions.as_slice() else { panic!("{second:#?}") };
    assert_eq!(update.uid.as_deref(), Some("another"));
    // What came of the write to the former object says nothing of this one.
    index.done(late, Outcome::Done);
    assert!(index.plan_status(after(60)).actions.is_empty(), "one write at a time");
    index.done(second, Outcome::Failed { retry_at: after(70) });
    let third = write(&mut index, after(70));
    let uids: Vec<_> = updates(&third).iter().map(|u| u.uid.as_deref()).collect();
    assert_eq!(uids, [Some("another")], "it is not there");

    index.apply(Event::Pod(pod("demo", "web", "u1")));
    index.apply(Event::BindingDeleted(key("demo", "b")));
    index.apply(Event::IdentityDeleted(key("demo", "one")));
    assert_eq!(index.plan_status(after(120)), StatusPlan::default());
}

#[test]
fn an_identity_that_comes_a_moment_after_its_binding_is_not_missed() {
    let mut index =
        index_with(Options::default(), vec![], vec![], vec![bound("early", "later"), bound("typo", "none")]);
    let plan = write(&mut index, after(0));
    assert!(plan.actions.is_empty(), "{}", render(&plan));
    assert_eq!(plan.next_due, Some(after(2)));
    index.apply(Event::Identity(Box::new(identity("later"))));
    let told = render(&write(&mut index, after(1)));
    assert!(told.contains("IdentityFound=True") && !told.contains("NotFound"), "{told}");
    // The other one's time has not begun anew.
    let told = render(&write(&mut index, after(2)));
    assert!(told.contains("IdentityFound=False NotFound"), "{told}");
    assert!(!told.contains("early"), "{told}");

    // One that goes has the same grace: it may be replaced.
    index.apply(Event::IdentityDeleted(key("demo", "later")));
    let plan = write(&mut index, after(20));
    assert_eq!((plan.actions.len(), plan.next_due), (0, Some(after(22))), "{}", render(&plan));
    assert!(render(&write(&mut index, after(22))).contains("IdentityFound=False NotFound"));
}
