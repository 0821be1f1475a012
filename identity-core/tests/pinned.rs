//! Bindings that say which client id their identity must have: whoever wrote one may have had a right to that client id
//! alone, so that another identity must never be assigned through it, whichever object came first and whatever becomes of
//! them.

#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

mod common;

use common::{assigned, binding, key, managed_identity, pod, service_principal};
use identity_core::{
    assign::{Action, Event, Index, Options, Outcome, Relist},
    lookup::Binding,
};
use identity_crd::{AzureIdentity, AzureIdentityBinding, ConditionStatus, find_condition};
use jiff::{SignedDuration, Timestamp};

const START: Timestamp = Timestamp::UNIX_EPOCH;
const MINE: &str = "aaaaaaaa-0000-4000-8000-00000000000a";
const OTHER: &str = "bbbbbbbb-0000-4000-8000-00000000000b";

fn identity(client_id: Option<&str>) -> AzureIdentity {
    let mut object = managed_identity("demo", "reader", "identity");
    object.spec.client_id = client_id.map(str::to_owned);
    object
}

fn pinned(client_id: &str) -> AzureIdentityBinding {
    let mut object = binding("demo", "b", "binding", "reader");
    object.spec.client_id = Some(client_id.into());
    object
}

fn index(identities: Vec<AzureIdentity>, bindings: Vec<AzureIdentityBinding>) -> Index {
    let mut index = Index::new(Options { missing_grace: SignedDuration::ZERO, ..Options::default() });
    for list in [
        Relist::Pods(vec![pod("demo", "web", "u1")]),
        Relist::Identities(identities),
        Relist::Bindings(bindings),
        Relist::Assigned(vec![]),
    ] {
        index.apply(Event::Relist(list));
    }
    index
}

/// What is written and deleted, everything being done and seen at once.
fn settle(index: &mut Index, now: Timestamp) -> Vec<&'static str> {
    let mut done = Vec::new();
    for action in index.plan(now) {
        match &action {
            Action::Apply(apply) => {
                let mut object = apply.object.clone();
                object.metadata.uid = Some("assignment".into());
                object.metadata.resource_version = Some("1".into());
                index.done(&action, Outcome::Applied(Box::new(object.clone())));
                index.apply(Event::Assigned(Box::new(object)));
                done.push("apply");
            }
            Action::Delete(delete) => {
                index.done(&action, Outcome::Done);
                let uid = Some(delete.precondition.uid.clone());
                index.apply(Event::AssignedDeleted { key: delete.key.clone(), uid });
                done.push("delete");
            }
            other => panic!("{other:?}"),
        }
    }
    done
}

#[test]
fn an_identity_is_assigned_only_with_the_client_id_that_is_asked_for() {
    for (pin, client_id, is_assigned) in [
        (Some(MINE), Some(MINE), true),
        (Some("AAAAAAAA-0000-4000-8000-00000000000A"), Some(MINE), true),
        (Some(MINE), Some("AAAAAAAA-0000-4000-8000-00000000000A"), true),
        (None, Some(MINE), true),
        (None, None, true),
        (Some(MINE), Some(OTHER), false),
        (Some(MINE), None, false),
        (Some(MINE), Some(""), false),
        (Some(MINE), Some("aaaaaaaa-0000-4000-8000-00000000000a "), false),
        // What a template left empty is not "any".
        (Some(""), Some(MINE), false),
        (Some(""), Some(""), false),
        (Some(""), None, false),
    ] {
        let mut object = pinned("");
        object.spec.client_id = pin.map(str::to_owned);
        let mut index = index(vec![identity(client_id)], vec![object]);
        let expected: &[&str] = if is_assigned { &["apply"] } else { &[] };
        assert_eq!(settle(&mut index, START), expected, "{pin:?} and {client_id:?}");
        let because = index.explain(&key("demo", "web")).to_string();
        assert_eq!(because.contains("spec.clientID: the binding is for client id"), !is_assigned, "{because}");
    }
}

#[test]
fn other_types_are_held_to_it_too() {
    let mut object = service_principal("demo", "reader", "identity");
    object.spec.client_id = Some(OTHER.into());
    assert_eq!(settle(&mut index(vec![object.clone()], vec![pinned(MINE)]), START), [""; 0]);
    object.spec.client_id = Some(MINE.into());
    assert_eq!(settle(&mut index(vec![object], vec![pinned(MINE)]), START), ["apply"]);
}

#[test]
fn whichever_comes_first() {
    // The binding was there before anything had that name.
    let mut index = index(vec![], vec![pinned(MINE)]);
    assert_eq!(settle(&mut index, START), [""; 0]);
    index.apply(Event::Identity(Box::new(identity(Some(OTHER)))));
    assert_eq!(settle(&mut index, START), [""; 0], "not the one");
    index.apply(Event::IdentityDeleted(key("demo", "reader")));
    let mut again = identity(Some(MINE));
    again.metadata.uid = Some("another".into());
    index.apply(Event::Identity(Box::new(again.clone())));
    assert_eq!(settle(&mut index, START), ["apply"]);

    // It is exchanged under the binding, edited or made anew, and put back.
    for (uid, client_id, expected) in [
        ("another", Some(OTHER), "delete"),
        ("another", Some(MINE), "apply"),
        ("third", Some(OTHER), "delete"),
        ("third", Some(MINE), "apply"),
        ("third", None, "delete"),
    ] {
        let mut exchanged = identity(client_id);
        exchanged.metadata.uid = Some(uid.into());
        index.apply(Event::Identity(Box::new(exchanged)));
        assert_eq!(settle(&mut index, START), [expected], "{uid} {client_id:?}");
    }

    // The binding is edited to what there is: the admission policy has asked whoever did that.
    index.apply(Event::Identity(Box::new(identity(Some(OTHER)))));
    assert_eq!(settle(&mut index, START), [""; 0]);
    index.apply(Event::Binding(Box::new(pinned(OTHER))));
    assert_eq!(settle(&mut index, START), ["apply"]);
}

#[test]
fn the_binding_says_so_and_nobody_waits_for_it() {
    let found = |index: &mut Index, now| {
        let plan = index.plan_status(now);
        let mut events = Vec::new();
        let mut written = None;
        for action in &plan.actions {
            match action {
                Action::Status(update) if update.target.kind() == "AzureIdentityBinding" => {
                    let of = |type_| find_condition(&update.conditions, type_).cloned();
                    assert_eq!(of("Valid").unwrap().status, ConditionStatus::True, "nothing is wrong with its form");
                    written = of("IdentityFound");
                }
                Action::Event(notice) => events.push(format!("{}: {}", notice.reason, notice.message)),
                _ => {}
            }
            index.done(action, Outcome::Done);
        }
        (written.unwrap(), events)
    };
    let mut index = index(vec![identity(Some(OTHER))], vec![pinned(MINE)]);
    let (condition, events) = found(&mut index, START);
    assert_eq!((condition.status, &*condition.reason), (ConditionStatus::False, "OtherClientID"));
    assert_eq!(
        condition.message,
        format!(
            "spec.clientID: the binding is for client id `{MINE}`, and AzureIdentity `reader` has client id `{OTHER}`: \
             nothing is assigned until they are the same"
        )
    );
    assert_eq!(events, [format!("OtherClientID: {}", condition.message)]);

    // A node that reads it expects no assignment of it.
    let mut there = pinned(MINE);
    there.status.get_or_insert_default().conditions = vec![condition];
    assert!(Binding::from(&there).hopeless);

    index.apply(Event::Identity(Box::new(identity(None))));
    let (condition, _) = found(&mut index, START + SignedDuration::from_mins(1));
    assert!(condition.message.contains("and AzureIdentity `reader` says none: nothing is assigned"), "{condition:?}");
    index.apply(Event::Identity(Box::new(identity(Some(MINE)))));
    let (condition, events) = found(&mut index, START + SignedDuration::from_mins(2));
    assert_eq!((condition.status, events), (ConditionStatus::True, vec![]));
}

/// A controller that did not know the field, or the predecessor's, has assigned it: the first plan takes it away.
#[test]
fn what_is_assigned_already_is_taken_back() {
    let (pod, other) = (pod("demo", "web", "u1"), identity(Some(OTHER)));
    let mut index = index(vec![identity(Some(MINE))], vec![pinned(MINE)]);
    let wanted = index.plan(START);
    let [Action::Apply(apply)] = &wanted[..] else { panic!("{wanted:?}") };
    let mut there = assigned(&pod, &other, &pinned(MINE));
    there.metadata.name.clone_from(&apply.object.metadata.name);
    there.metadata.labels.clone_from(&apply.object.metadata.labels);
    there.metadata.owner_references.clone_from(&apply.object.metadata.owner_references);
    (there.metadata.uid, there.metadata.resource_version) = (Some("a".into()), Some("1".into()));

    let mut index = self::index(vec![other], vec![pinned(MINE)]);
    index.apply(Event::Relist(Relist::Assigned(vec![there])));
    assert_eq!(settle(&mut index, START), ["delete"]);
}
