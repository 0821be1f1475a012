//! The planner against a cluster in miniature: events delayed and kinds out of step, relists, writes that fail, answers
//! that are lost, people who interfere. After any such history the index agrees with a plain recomputation, nothing is
//! under way twice, nothing is written that is there already, and things settle.

#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    clippy::manual_is_multiple_of,
    clippy::default_trait_access,
    reason = "a failure is the test's"
)]

mod check;
#[path = "../common/mod.rs"]
mod common;
mod grants;
mod op;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use common::{binding, key, managed_identity, pod};
use identity_core::{
    assign::{Action, Event, Index, MANAGED_BY_LABEL, Options, Outcome, Relist},
    grant::Proof,
    object::ObjectKey,
    pod::Pod,
};
use identity_crd::{AzureAssignedIdentity, AzureIdentity, AzureIdentityBinding, AzureIdentityGrant};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use op::op;
use proptest::prelude::*;

/// What is true on the server, what of it was told, and the index that was told it.
struct World {
    options: Options,
    index: Index,
    now: Timestamp,
    serial: u64,
    pods: BTreeMap<ObjectKey, Pod>,
    identities: BTreeMap<ObjectKey, AzureIdentity>,
    bindings: BTreeMap<ObjectKey, AzureIdentityBinding>,
    assigned: BTreeMap<ObjectKey, AzureAssignedIdentity>,
    grants: BTreeMap<ObjectKey, AzureIdentityGrant>,
    /// UID, name and deadline of each that ever was active.
    activated: BTreeSet<(String, ObjectKey, String)>,
    queues: [VecDeque<Event>; 5],
    told_pods: BTreeMap<ObjectKey, Pod>,
    told_identities: BTreeMap<ObjectKey, AzureIdentity>,
    told_bindings: BTreeMap<ObjectKey, AzureIdentityBinding>,
    flying: Vec<Action>,
    /// Assignments that a fault or a person made unpredictable: for the others no write may be needless.
    disturbed: BTreeSet<ObjectKey>,
    /// Until when what failed is held back.
    failed: BTreeMap<ObjectKey, Timestamp>,
    /// Grants among those that may be tried again at once: something was heard of bindings, perhaps of theirs.
    reconsidered: BTreeSet<ObjectKey>,
    /// Since when what was refused waits for news of the object, and of which objects there were news since the plan.
    refused: BTreeMap<ObjectKey, Timestamp>,
    news: BTreeSet<ObjectKey>,
    writes: usize,
}

fn assigned_key(object: &AzureAssignedIdentity) -> ObjectKey {
    key(object.metadata.namespace.as_deref().unwrap(), object.metadata.name.as_deref().unwrap())
}

fn ours(object: &AzureAssignedIdentity) -> bool {
    object.metadata.labels.as_ref().is_some_and(|l| l.contains_key(MANAGED_BY_LABEL))
}

fn content(object: &AzureAssignedIdentity) -> AzureAssignedIdentity {
    let mut object = object.clone();
    object.metadata.uid = None;
    object.metadata.resource_version = None;
    object
}

impl World {
    fn new(options: Options) -> Self {
        let mut index = Index::new(options.clone());
        assert!(index.plan(Timestamp::UNIX_EPOCH).is_empty());
        for list in [
            vec_of_pods(),
            Relist::Identities(vec![]),
            Relist::Bindings(vec![]),
            Relist::Assigned(vec![]),
            Relist::Grants(vec![]),
        ] {
            index.apply(Event::Relist(list));
        }
        Self {
            options,
            index,
            now: Timestamp::UNIX_EPOCH,
            serial: 0,
            pods: BTreeMap::new(),
            identities: BTreeMap::new(),
            bindings: BTreeMap::new(),
            assigned: BTreeMap::new(),
            grants: BTreeMap::new(),
            activated: BTreeSet::new(),
            queues: Default::default(),
            told_pods: BTreeMap::new(),
            told_identities: BTreeMap::new(),
            told_bindings: BTreeMap::new(),
            flying: Vec::new(),
            disturbed: BTreeSet::new(),
            failed: BTreeMap::new(),
            reconsidered: BTreeSet::new(),
            refused: BTreeMap::new(),
            news: BTreeSet::new(),
            writes: 0,
        }
    }

    fn next(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    fn put_pod(&mut self, pod: Pod) {
        self.queues[0].push_back(Event::Pod(pod.clone()));
        self.pods.insert(pod.key(), pod);
    }

    fn delete_pod(&mut self, key: &ObjectKey) {
        if self.pods.remove(key).is_some() {
            self.queues[0].push_back(Event::PodDeleted(key.clone()));
        }
    }

    fn put_identity(&mut self, key: ObjectKey, object: AzureIdentity) {
        self.queues[1].push_back(Event::Identity(Box::new(object.clone())));
        self.identities.insert(key, object);
    }

    fn put_binding(&mut self, key: ObjectKey, object: AzureIdentityBinding) {
        self.queues[2].push_back(Event::Binding(Box::new(object.clone())));
        self.bindings.insert(key, object);
    }

    fn put_assigned(&mut self, mut object: AzureAssignedIdentity) -> AzureAssignedIdentity {
        let key = assigned_key(&object);
        let version = self.next().to_string();
        object.metadata.uid = match self.assigned.get(&key) {
            Some(there) => there.metadata.uid.clone(),
            None => Some(format!("assigned-{version}")),
        };
        object.metadata.resource_version = Some(version);
        self.queues[3].push_back(Event::Assigned(Box::new(object.clone())));
        self.assigned.insert(key, object.clone());
        object
    }

    fn delete_assigned(&mut self, key: &ObjectKey) {
        if let Some(object) = self.assigned.remove(key) {
            self.next();
            self.queues[3].push_back(Event::AssignedDeleted { key: key.clone(), uid: object.metadata.uid });
        }
    }

    fn tell(&mut self, event: Event) {
        match &event {
            Event::Pod(pod) => {
                self.told_pods.insert(pod.key(), pod.clone());
            }
            Event::PodDeleted(key) => {
                self.told_pods.remove(key);
            }
            Event::Identity(object) => {
                let key = key(object.metadata.namespace.as_ref().unwrap(), object.metadata.name.as_ref().unwrap());
                self.told_identities.insert(key, (**object).clone());
            }
            Event::IdentityDeleted(key) => {
                self.told_identities.remove(key);
            }
            Event::Binding(object) => {
                let key = key(object.metadata.namespace.as_ref().unwrap(), object.metadata.name.as_ref().unwrap());
                self.told_bindings.insert(key, (**object).clone());
                self.reconsider_grants();
            }
            Event::BindingDeleted(key) => {
                self.told_bindings.remove(key);
                self.reconsider_grants();
            }
            Event::Assigned(object) => self.hear_of(assigned_key(object)),
            Event::AssignedDeleted { key, .. } => self.hear_of(key.clone()),
            Event::Grant(_)
            | Event::GrantDeleted { .. }
            | Event::Proof(_)
            | Event::Credential(_)
            | Event::Relist(_) => {}
        }
        self.index.apply(event);
    }

    fn reconsider_grants(&mut self) {
        self.reconsidered.extend(self.failed.keys().filter(|key| key.name.starts_with("grant-")).cloned());
    }

    fn hear_of(&mut self, key: ObjectKey) {
        self.refused.remove(&key);
        self.news.insert(key);
    }

    fn relist(&mut self, kind: u8) {
        self.queues[usize::from(kind)].clear();
        let list = match kind {
            0 => {
                self.told_pods = self.pods.clone();
                Relist::Pods(self.pods.values().cloned().collect())
            }
            1 => {
                self.told_identities = self.identities.clone();
                Relist::Identities(self.identities.values().cloned().collect())
            }
            2 => {
                self.told_bindings = self.bindings.clone();
                self.reconsider_grants();
                Relist::Bindings(self.bindings.values().cloned().collect())
            }
            4 => self.list_grants(),
            _ => {
                self.refused.clear();
                self.news.extend(self.flying.iter().map(target));
                Relist::Assigned(self.assigned.values().cloned().collect())
            }
        };
        self.index.apply(Event::Relist(list));
    }

    fn plan(&mut self) {
        let actions = self.index.plan(self.now);
        for action in actions {
            if matches!(action, Action::Event(_)) {
                continue;
            }
            let key = target(&action);
            assert!(self.flying.iter().all(|a| target(a) != key), "{key} is under way twice");
            let retry_at = self.failed.remove(&key).unwrap_or(self.now);
            let at_once = self.reconsidered.remove(&key);
            assert!(at_once || self.now >= retry_at, "{key} failed and is held back until {retry_at}");
            if let Some(since) = self.refused.remove(&key) {
                let waited = self.now.duration_since(since);
                assert!(
                    waited >= SignedDuration::from_secs(30),
                    "{key} was refused, and nothing was heard of it since"
                );
            }
            self.news.remove(&key);
            self.flying.push(action);
        }
        self.check_stamps_are_persisted();
    }

    /// What the server makes of an action, and what is heard of that.
    fn execute(&mut self, action: &Action, fate: u8) {
        let key = target(action);
        let retry_at = self.now + SignedDuration::from_secs(3);
        let failed = Outcome::Failed { retry_at };
        if fate <= 1 {
            self.failed.insert(key.clone(), retry_at);
            self.reconsidered.remove(&key);
        }
        if fate == 0 {
            return self.index.done(action, failed);
        }
        let there = self.assigned.get(&key).cloned();
        let version = |p: &identity_core::assign::Precondition, o: &AzureAssignedIdentity| {
            o.metadata.uid.as_deref() == Some(&*p.uid)
                && o.metadata.resource_version.as_deref() == Some(&*p.resource_version)
        };
        let outcome = match action {
            Action::Apply(apply) => {
                let holds = match (&apply.precondition, &there) {
                    (None, None) => true,
                    (Some(precondition), Some(there)) => version(precondition, there),
                    _ => false,
                };
                if holds {
                    assert!(there.as_ref().is_none_or(ours), "{key} belongs to somebody else");
                    if !self.disturbed.contains(&key) {
                        assert_ne!(
                            there.as_ref().map(content),
                            Some(content(&apply.object)),
                            "{key}: a needless write"
                        );
                    }
                    self.writes += 1;
                    Outcome::Applied(Box::new(self.put_assigned(apply.object.clone())))
                } else {
                    assert!(
                        self.disturbed.contains(&key),
                        "{key}: a write that was bound to be refused: {action:?} {there:?}"
                    );
                    Outcome::Conflict
                }
            }
            Action::Delete(delete) => match &there {
                None => Outcome::Done,
                Some(there) if version(&delete.precondition, there) => {
                    assert!(ours(there), "{key} belongs to somebody else");
                    self.writes += 1;
                    self.delete_assigned(&key);
                    Outcome::Done
                }
                Some(_) => Outcome::Conflict,
            },
            Action::Grant(update) => self.write_grant(update),
            other => panic!("{other:?} is no write"),
        };
        if fate == 1 {
            self.disturbed.insert(key);
            return self.index.done(action, failed);
        }
        if matches!((action, &outcome), (Action::Apply(_) | Action::Delete(_), Outcome::Conflict))
            && !self.news.contains(&key)
        {
            self.refused.insert(key, self.now);
        }
        self.index.done(action, outcome);
    }
}

fn vec_of_pods() -> Relist {
    Relist::Pods(Vec::new())
}

fn target(action: &Action) -> ObjectKey {
    match action {
        Action::Apply(apply) => assigned_key(&apply.object),
        Action::Delete(delete) => delete.key.clone(),
        // Of another grant under that name it is another write.
        Action::Grant(update) => key(&update.key.namespace, &update.precondition.uid),
        other => panic!("{other:?}"),
    }
}

fn options() -> impl Strategy<Value = Options> {
    (any::<bool>(), any::<bool>()).prop_map(|(cluster_wide, collector)| Options {
        cluster_wide,
        orphan_grace: SignedDuration::from_secs(if collector { 60 } else { 0 }),
        proof: Some(Proof::Waived),
        ..Options::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_agrees_with_recomputation_and_settles(
        options in options(),
        ops in prop::collection::vec(op(), 1..120),
    ) {
        let mut world = World::new(options);
        for op in ops {
            world.step(op);
            world.check_desired();
        }
        world.settle();
    }
}

#[test]
fn a_finalizer_delays_the_successor_and_nothing_is_asked_twice() {
    let mut world = World::new(Options::default());
    world.put_pod(pod("a", "x", "u1"));
    world.put_identity(key("a", "x"), managed_identity("a", "x", "i1"));
    world.put_binding(key("a", "x"), binding("a", "x", "b1", "x"));
    world.settle();
    let held = world.assigned.values().next().unwrap().clone();

    // Somebody put a finalizer on it; the binding goes, we delete, and it stays as "deleting".
    world.queues[2].push_back(Event::BindingDeleted(key("a", "x")));
    let gone = world.bindings.remove(&key("a", "x")).unwrap();
    let event = world.queues[2].pop_front().unwrap();
    world.tell(event);
    let plan = world.index.plan(world.now);
    let [delete @ Action::Delete(_)] = plan.as_slice() else { panic!("{plan:?}") };
    world.index.done(delete, Outcome::Done);
    let mut deleting = held.clone();
    deleting.metadata.deletion_timestamp = Some(Time(world.now));
    deleting.metadata.resource_version = Some("1000".into());
    world.tell(Event::Assigned(Box::new(deleting)));
    assert_eq!(world.index.plan(world.now), [], "it is on its way out");

    // Wanted again, under the same name: not before the old one is gone.
    world.tell(Event::Binding(Box::new(gone)));
    assert_eq!(world.index.plan(world.now), []);
    world.tell(Event::AssignedDeleted { key: assigned_key(&held), uid: held.metadata.uid.clone() });
    let plan = world.index.plan(world.now);
    assert!(matches!(plan.as_slice(), [Action::Apply(apply)] if apply.precondition.is_none()), "{plan:?}");
}
