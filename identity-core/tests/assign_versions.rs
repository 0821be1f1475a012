//! Words that arrive late or out of order: the watch against the answers to the index's own writes, and how long a write
//! that failed or was refused is held back.

#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

mod common;

use std::collections::VecDeque;

use common::{binding, key, labels, managed_identity, pod};
use identity_core::{
    assign::{Action, Apply, Event, Index, Options, Outcome, Precondition, Relist},
    object::ObjectKey,
};
use identity_crd::AzureAssignedIdentity;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

const START: Timestamp = Timestamp::UNIX_EPOCH;

fn after(seconds: i64) -> Timestamp {
    START + SignedDuration::from_secs(seconds)
}

/// One pod, one identity, one binding that selects the pod.
fn index() -> Index {
    let mut index = Index::new(Options::default());
    for list in [
        Relist::Pods(vec![pod("a", "x", "u1")]),
        Relist::Identities(vec![managed_identity("a", "x", "i1")]),
        Relist::Bindings(vec![binding("a", "x", "b1", "x")]),
        Relist::Assigned(vec![]),
    ] {
        index.apply(Event::Relist(list));
    }
    index
}

fn select(index: &mut Index, selected: bool) {
    let mut pod = pod("a", "x", "u1");
    if !selected {
        pod.labels = labels(&[]);
    }
    index.apply(Event::Pod(pod));
}

fn edit(index: &mut Index, generation: i64) {
    let mut identity = managed_identity("a", "x", "i1");
    identity.metadata.generation = Some(generation);
    index.apply(Event::Identity(Box::new(identity)));
}

/// An object as the server has it.
fn stored(object: &AzureAssignedIdentity, uid: &str, version: &str) -> AzureAssignedIdentity {
    let mut object = object.clone();
    object.metadata.uid = Some(uid.into());
    object.metadata.resource_version = Some(version.into());
    object
}

fn key_of(object: &AzureAssignedIdentity) -> ObjectKey {
    key(object.metadata.namespace.as_deref().unwrap(), object.metadata.name.as_deref().unwrap())
}

fn version(uid: &str, resource_version: &str) -> Precondition {
    Precondition { uid: uid.into(), resource_version: resource_version.into() }
}

/// The one action planned.
fn sole(index: &mut Index, now: Timestamp) -> Action {
    let mut plan = index.plan(now);
    assert_eq!(plan.len(), 1, "{plan:#?}");
    plan.remove(0)
}

fn sole_apply(index: &mut Index, now: Timestamp) -> Apply {
    match sole(index, now) {
        Action::Apply(apply) => *apply,
        other => panic!("{other:?}"),
    }
}

/// Plans the one write there should be, and has it done.
fn write(index: &mut Index, uid: &str, version: &str) -> AzureAssignedIdentity {
    let apply = sole_apply(index, START);
    let object = stored(&apply.object, uid, version);
    index.done(&Action::Apply(Box::new(apply)), Outcome::Applied(Box::new(object.clone())));
    object
}

/// Plans the one deletion there should be, and has it done.
fn delete(index: &mut Index, expected: &Precondition) {
    let action = sole(index, START);
    let Action::Delete(delete) = &action else { panic!("{action:?}") };
    assert_eq!(delete.precondition, *expected);
    index.done(&action, Outcome::Done);
}

fn seen(index: &mut Index, object: &AzureAssignedIdentity) {
    index.apply(Event::Assigned(Box::new(object.clone())));
}

fn seen_deleted(index: &mut Index, object: &AzureAssignedIdentity) {
    index.apply(Event::AssignedDeleted { key: key_of(object), uid: object.metadata.uid.clone() });
}

#[test]
fn what_is_older_than_the_answer_to_the_own_write_is_ignored() {
    let mut index = index();
    let first = write(&mut index, "A", "9");
    edit(&mut index, 2);
    let apply = sole_apply(&mut index, START);
    assert_eq!(apply.precondition, Some(version("A", "9")));
    // 10 is newer than 9 though it sorts before it.
    let second = stored(&apply.object, "A", "10");
    index.done(&Action::Apply(Box::new(apply)), Outcome::Applied(Box::new(second.clone())));

    seen(&mut index, &first);
    assert_eq!(index.plan(START), [], "the watch is behind: nothing is to be repaired");
    seen(&mut index, &second);
    assert_eq!(index.plan(START), []);
    edit(&mut index, 3);
    assert_eq!(sole_apply(&mut index, START).precondition, Some(version("A", "10")), "the newest version is replaced");
}

#[test]
fn what_is_newer_than_the_answer_to_the_own_write_counts() {
    let mut index = index();
    let mut object = write(&mut index, "A", "9");
    object.spec.node_name = Some("elsewhere".into());
    object.metadata.resource_version = Some("10".into());
    seen(&mut index, &object);
    assert_eq!(sole_apply(&mut index, START).precondition, Some(version("A", "10")), "somebody altered it");
}

#[test]
fn where_versions_are_no_numbers_what_comes_last_counts() {
    let mut index = index();
    let mut object = write(&mut index, "A", "b");
    object.spec.node_name = Some("elsewhere".into());
    object.metadata.resource_version = Some("a".into());
    seen(&mut index, &object);
    assert_eq!(sole_apply(&mut index, START).precondition, Some(version("A", "a")));
}

#[test]
fn a_late_word_does_not_resurrect_what_was_deleted() {
    let mut index = index();
    let added = write(&mut index, "A", "10");
    edit(&mut index, 2);
    let modified = write(&mut index, "A", "11");
    select(&mut index, false);
    delete(&mut index, &version("A", "11"));

    // The watch is three events behind.
    for late in [&added, &modified] {
        seen(&mut index, late);
        assert_eq!(index.plan(START), [], "it is deleted already");
    }
    select(&mut index, true);
    let apply = sole_apply(&mut index, START);
    assert_eq!(apply.precondition, None, "it is not there");
    let successor = stored(&apply.object, "B", "20");
    index.done(&Action::Apply(Box::new(apply)), Outcome::Applied(Box::new(successor.clone())));

    for late in [&added, &modified] {
        seen(&mut index, late);
        assert_eq!(index.plan(START), []);
    }
    seen_deleted(&mut index, &modified);
    seen(&mut index, &successor);
    assert_eq!(index.plan(START), [], "the deletion was of the older object");
    edit(&mut index, 3);
    assert_eq!(sole_apply(&mut index, START).precondition, Some(version("B", "20")));
}

#[test]
fn every_deletion_is_remembered_until_the_watch_says_so() {
    let mut index = index();
    let first = write(&mut index, "A", "10");
    select(&mut index, false);
    delete(&mut index, &version("A", "10"));
    select(&mut index, true);
    let second = write(&mut index, "B", "20");
    select(&mut index, false);
    delete(&mut index, &version("B", "20"));

    for late in [&first, &second] {
        seen(&mut index, late);
        assert_eq!(index.plan(START), [], "deleted already: {:?}", late.metadata.uid);
    }
    seen_deleted(&mut index, &first);
    seen(&mut index, &second);
    assert_eq!(index.plan(START), [], "the word of the first deletion is none of the second");
    seen_deleted(&mut index, &second);
    assert_eq!(index.plan(START), []);
    select(&mut index, true);
    assert_eq!(sole_apply(&mut index, START).precondition, None);
}

#[test]
fn a_list_that_is_behind_does_not_resurrect_what_was_deleted() {
    let mut index = index();
    let object = write(&mut index, "A", "10");
    select(&mut index, false);
    delete(&mut index, &version("A", "10"));
    index.apply(Event::Relist(Relist::Assigned(vec![object.clone()])));
    assert_eq!(index.plan(START), []);
    select(&mut index, true);
    assert_eq!(sole_apply(&mut index, START).precondition, None);
}

#[test]
fn a_deletion_that_is_only_under_way_is_not_remembered() {
    let mut index = index();
    let object = write(&mut index, "A", "10");
    select(&mut index, false);
    let action = sole(&mut index, START);
    index.done(&action, Outcome::Failed { retry_at: after(3) });
    seen(&mut index, &object);
    assert_eq!(sole(&mut index, after(3)), action, "it is there still");
}

#[test]
fn a_late_deletion_hides_only_what_was_deleted() {
    let mut index = index();
    let first = write(&mut index, "A", "10");
    select(&mut index, false);
    delete(&mut index, &version("A", "10"));
    select(&mut index, true);
    let second = write(&mut index, "B", "20");

    seen_deleted(&mut index, &first);
    assert_eq!(index.plan(START), [], "B is there");
    seen_deleted(&mut index, &second);
    assert_eq!(sole_apply(&mut index, START).precondition, None, "now it is not");
}

#[test]
fn a_deletion_without_uid_is_of_whatever_has_the_name() {
    let mut index = index();
    let object = write(&mut index, "A", "10");
    index.apply(Event::AssignedDeleted { key: key_of(&object), uid: None });
    assert_eq!(sole_apply(&mut index, START).precondition, None);
}

#[test]
fn what_failed_is_held_back_until_its_time_whatever_happens() {
    let mut index = index();
    let apply = sole(&mut index, START);
    index.done(&apply, Outcome::Failed { retry_at: after(10) });
    assert_eq!(index.plan(after(1)), []);
    assert_eq!(index.next_due(), Some(after(10)), "the index says when it will ask again");
    // Neither a change of what is wanted, nor a relist, nor a look at the last moment shortens it.
    edit(&mut index, 2);
    assert_eq!(index.plan(after(2)), []);
    index.apply(Event::Relist(Relist::Assigned(vec![])));
    assert_eq!(index.plan(after(3)), []);
    assert_eq!(index.plan(after(9)), []);
    let again = sole_apply(&mut index, after(10));
    let generation = again.object.spec.azure_identity_ref.as_ref().unwrap().metadata.generation;
    assert_eq!((again.precondition, generation), (None, Some(2)), "worked out anew");
    assert_eq!(index.plan(after(60)), [], "handed out once");
}

#[test]
fn what_failed_and_is_no_longer_wanted_is_not_asked_for_again() {
    let mut index = index();
    let apply = sole(&mut index, START);
    index.done(&apply, Outcome::Failed { retry_at: after(10) });
    select(&mut index, false);
    assert_eq!(index.plan(after(1)), []);
    assert_eq!(index.plan(after(10)), []);
    assert_eq!(index.next_due(), None);
}

#[test]
fn what_was_refused_waits_for_the_version_that_refused_it() {
    let mut index = index();
    let object = write(&mut index, "A", "10");
    edit(&mut index, 2);
    let refused = sole(&mut index, START);
    index.done(&refused, Outcome::Conflict);
    assert_eq!(index.plan(START), []);
    // A change of what is wanted, or hearing the known version again, does not make the same write possible.
    edit(&mut index, 3);
    seen(&mut index, &object);
    assert_eq!(index.plan(after(29)), []);
    let mut newer = object.clone();
    newer.metadata.resource_version = Some("11".into());
    seen(&mut index, &newer);
    assert_eq!(sole_apply(&mut index, after(29)).precondition, Some(version("A", "11")));
}

#[test]
fn a_refused_creation_waits_for_what_is_in_its_place() {
    let mut index = index();
    let refused = sole_apply(&mut index, START);
    index.done(&Action::Apply(Box::new(refused.clone())), Outcome::Conflict);
    assert_eq!(index.plan(START), []);
    seen(&mut index, &stored(&refused.object, "A", "5"));
    assert_eq!(index.plan(START), [], "what is there is as it should be");
}

#[test]
fn a_refused_write_is_not_held_when_the_newer_version_is_known_already() {
    let mut index = index();
    let object = write(&mut index, "A", "10");
    edit(&mut index, 2);
    let refused = sole(&mut index, START);
    let mut newer = object.clone();
    newer.metadata.resource_version = Some("11".into());
    seen(&mut index, &newer);
    assert_eq!(index.plan(START), [], "one write at a time");
    index.done(&refused, Outcome::Conflict);
    assert_eq!(sole_apply(&mut index, START).precondition, Some(version("A", "11")));
}

#[test]
fn a_refused_write_is_tried_again_in_the_end() {
    let mut index = index();
    write(&mut index, "A", "10");
    edit(&mut index, 2);
    let refused = sole(&mut index, START);
    index.done(&refused, Outcome::Conflict);
    assert_eq!(index.plan(START), []);
    let due = index.next_due().unwrap();
    assert!(due > after(1) && due <= after(60), "{due}");
    assert_eq!(index.plan(due - SignedDuration::from_millis(1)), []);
    assert_eq!(sole(&mut index, due), refused);
}

/// One assignment on a server whose watch is behind, and nobody else who writes.
#[derive(Clone, Debug)]
enum Op {
    Select(bool),
    Edit,
    Plan,
    Execute { fails: bool },
    Deliver(u8),
    Advance(u8),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => any::<bool>().prop_map(Op::Select),
        1 => Just(Op::Edit),
        6 => Just(Op::Plan),
        6 => prop::bool::weighted(0.2).prop_map(|fails| Op::Execute { fails }),
        2 => (1..4u8).prop_map(Op::Deliver),
        1 => (0..8u8).prop_map(Op::Advance),
    ]
}

struct Server {
    index: Index,
    now: Timestamp,
    serial: u32,
    generation: i64,
    object: Option<AzureAssignedIdentity>,
    watch: VecDeque<Event>,
    flying: Option<Action>,
    not_before: Timestamp,
}

impl Server {
    fn step(&mut self, op: &Op) {
        match op {
            Op::Select(selected) => select(&mut self.index, *selected),
            Op::Edit => {
                self.generation += 1;
                edit(&mut self.index, self.generation);
            }
            Op::Plan => self.plan(),
            Op::Execute { fails } => self.execute(*fails),
            Op::Deliver(count) => {
                for event in self.watch.drain(..self.watch.len().min((*count).into())) {
                    self.index.apply(event);
                }
            }
            Op::Advance(seconds) => self.now += SignedDuration::from_secs((*seconds).into()),
        }
    }

    fn plan(&mut self) {
        let mut plan = self.index.plan(self.now);
        assert!(plan.len() <= 1, "{plan:#?}");
        if let Some(action) = plan.pop() {
            assert!(self.flying.is_none(), "under way twice");
            assert!(self.now >= self.not_before, "held back until {}: {action:?}", self.not_before);
            self.flying = Some(action);
        }
    }

    fn execute(&mut self, fails: bool) {
        let Some(action) = self.flying.take() else { return };
        if fails {
            self.not_before = self.now + SignedDuration::from_secs(3);
            return self.index.done(&action, Outcome::Failed { retry_at: self.not_before });
        }
        let there = self
            .object
            .as_ref()
            .map(|o| version(o.metadata.uid.as_deref().unwrap(), o.metadata.resource_version.as_deref().unwrap()));
        self.serial += 1;
        let outcome = match &action {
            Action::Apply(apply) => {
                assert_eq!(apply.precondition, there, "nobody else writes: no write can be refused");
                let uid = there.map_or_else(|| format!("uid-{}", self.serial), |version| version.uid);
                let object = stored(&apply.object, &uid, &self.serial.to_string());
                self.watch.push_back(Event::Assigned(Box::new(object.clone())));
                self.object = Some(object.clone());
                Outcome::Applied(Box::new(object))
            }
            Action::Delete(delete) => {
                assert_eq!(Some(&delete.precondition), there.as_ref(), "nobody else writes: it is there, and so");
                self.object = None;
                let uid = Some(delete.precondition.uid.clone());
                self.watch.push_back(Event::AssignedDeleted { key: delete.key.clone(), uid });
                Outcome::Done
            }
            other => panic!("{other:?}"),
        };
        self.index.done(&action, outcome);
    }

    /// Whether the server has what is wanted. The watch need not have said anything.
    fn settled(&self) -> bool {
        let content = |object: &AzureAssignedIdentity| stored(object, "", "");
        self.object.as_ref().map(content) == self.index.desired_assignments().first().map(content)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_watch_that_is_behind_causes_no_write_and_hinders_none(ops in prop::collection::vec(op(), 1..80)) {
        let mut server = Server {
            index: index(),
            now: START,
            serial: 0,
            generation: 1,
            object: None,
            watch: VecDeque::new(),
            flying: None,
            not_before: START,
        };
        for op in &ops {
            server.step(op);
        }
        // Two writes at most: what was under way, and what it takes to get from there to what is wanted.
        for _ in 0..2 {
            server.execute(false);
            server.now = server.now.max(server.not_before);
            server.plan();
        }
        server.execute(false);
        prop_assert!(server.settled(), "{:#?}", server.object);
        while let Some(event) = server.watch.pop_front() {
            server.index.apply(event);
            prop_assert_eq!(server.index.plan(server.now), []);
        }
        prop_assert!(server.settled());
    }
}
