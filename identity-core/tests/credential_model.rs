//! Verdicts on credentials against a cluster in miniature: identities that change, are re-created and touched; verdicts that
//! are late, of another generation or of another object; status that is written, fails, and comes back late through the watch.
//! After any such history the condition says what was found last of what is there now, and nothing is written twice.

#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, reason = "a failure is the test's")]

mod common;

use std::collections::{BTreeMap, VecDeque};

use common::{key, managed_identity, service_principal};
use identity_core::{
    assign::{Action, CREDENTIAL_READY, CredentialVerdict, Event, Index, Options, Outcome, Relist, StatusUpdate},
    object::ObjectKey,
};
use identity_crd::{AzureIdentity, Condition, ConditionStatus, find_condition};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    /// 0: a managed identity, 1: a service principal, 2: one that cannot be used.
    Put {
        i: u8,
        form: u8,
    },
    Touch(u8),
    Recreate(u8),
    Delete(u8),
    /// `old`: of the generation before the one that is there; `other`: of another object of that name.
    Judge {
        i: u8,
        old: bool,
        other: bool,
        ready: Option<bool>,
        words: u8,
        expires: bool,
    },
    Deliver(u8),
    Plan,
    Execute {
        which: u8,
        fails: bool,
    },
    Advance(u8),
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let i = any::<u8>;
    prop_oneof![
        4 => (i(), 0..3u8).prop_map(|(i, form)| Op::Put { i, form }),
        1 => i().prop_map(Op::Touch),
        1 => i().prop_map(Op::Recreate),
        1 => i().prop_map(Op::Delete),
        8 => (i(), prop::bool::weighted(0.2), prop::bool::weighted(0.2), any::<Option<bool>>(), 0..3u8, any::<bool>())
            .prop_map(|(i, old, other, ready, words, expires)| Op::Judge { i, old, other, ready, words, expires }),
        8 => (1..4u8).prop_map(Op::Deliver),
        6 => Just(Op::Plan),
        6 => (i(), prop::bool::weighted(0.2)).prop_map(|(which, fails)| Op::Execute { which, fails }),
        3 => (0..20u8).prop_map(Op::Advance),
        1 => Just(Op::Restart),
    ]
}

struct World {
    index: Index,
    now: Timestamp,
    serial: u64,
    /// What is on the server.
    there: BTreeMap<ObjectKey, AzureIdentity>,
    /// What the index was told of it.
    told: BTreeMap<ObjectKey, AzureIdentity>,
    queue: VecDeque<Event>,
    flying: Vec<Action>,
    /// The last verdict of the object and generation that the index knows.
    verdicts: BTreeMap<ObjectKey, CredentialVerdict>,
    writes: usize,
}

fn fresh(identities: Vec<AzureIdentity>) -> Index {
    let mut index = Index::new(Options::default());
    for list in
        [Relist::Pods(vec![]), Relist::Identities(identities), Relist::Bindings(vec![]), Relist::Assigned(vec![])]
    {
        index.apply(Event::Relist(list));
    }
    index
}

fn name_of(i: u8) -> ObjectKey {
    key("a", ["x", "y"][usize::from(i % 2)])
}

fn conditions(object: &AzureIdentity) -> &[Condition] {
    object.status.as_ref().map_or(&[][..], |status| &status.conditions)
}

fn has_credential(object: &AzureIdentity) -> bool {
    object.spec.type_ == Some(1) && object.spec.tenant_id.is_some()
}

/// Everything but the words, which are news only where something is wrong.
fn gist(v: &CredentialVerdict) -> (Option<bool>, String, Option<Timestamp>, Option<String>) {
    (v.ready, v.reason.clone(), v.expires, (v.ready == Some(false)).then(|| v.message.clone()))
}

impl World {
    fn new() -> Self {
        Self {
            index: fresh(vec![]),
            now: Timestamp::UNIX_EPOCH,
            serial: 0,
            there: BTreeMap::new(),
            told: BTreeMap::new(),
            queue: VecDeque::new(),
            flying: Vec::new(),
            verdicts: BTreeMap::new(),
            writes: 0,
        }
    }

    fn put(&mut self, key: ObjectKey, object: AzureIdentity) {
        self.queue.push_back(Event::Identity(Box::new(object.clone())));
        self.there.insert(key, object);
    }

    fn make(&mut self, key: &ObjectKey, form: u8) -> AzureIdentity {
        self.serial += 1;
        let uid = format!("identity-{}", self.serial);
        let mut object = match form {
            0 => managed_identity(&key.namespace, &key.name, &uid),
            _ => service_principal(&key.namespace, &key.name, &uid),
        };
        if form == 2 {
            object.spec.tenant_id = None;
        }
        object
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Put { i, form } => {
                let name = name_of(i);
                let mut object = self.make(&name, form);
                if let Some(old) = self.there.get(&name) {
                    let generation = old.metadata.generation.map(|g| if old.spec == object.spec { g } else { g + 1 });
                    object.metadata = old.metadata.clone();
                    object.metadata.generation = generation;
                    object.status.clone_from(&old.status);
                }
                self.put(name, object);
            }
            Op::Touch(i) => {
                let name = name_of(i);
                self.serial += 1;
                let serial = self.serial.to_string();
                if let Some(mut object) = self.there.get(&name).cloned() {
                    object.metadata.labels = Some(common::labels(&[("serial", &serial)]));
                    self.put(name, object);
                }
            }
            Op::Recreate(i) => {
                let name = name_of(i);
                if self.there.contains_key(&name) {
                    let object = self.make(&name, 1);
                    self.put(name, object);
                }
            }
            Op::Delete(i) => {
                let name = name_of(i);
                if self.there.remove(&name).is_some() {
                    self.queue.push_back(Event::IdentityDeleted(name));
                }
            }
            Op::Judge { i, old, other, ready, words, expires } => self.judge(i, old, other, ready, words, expires),
            Op::Deliver(count) => {
                for _ in 0..count {
                    let Some(event) = self.queue.pop_front() else { break };
                    self.tell(event);
                }
            }
            Op::Plan => self.plan(),
            Op::Execute { which, fails } => {
                if !self.flying.is_empty() {
                    let action = self.flying.swap_remove(usize::from(which) % self.flying.len());
                    self.execute(&action, fails);
                }
            }
            Op::Advance(seconds) => self.now += SignedDuration::from_secs(seconds.into()),
            Op::Restart => {
                self.queue.clear();
                self.flying.clear();
                self.verdicts.clear();
                self.told = self.there.clone();
                self.index = fresh(self.there.values().cloned().collect());
            }
        }
    }

    fn judge(&mut self, i: u8, old: bool, other: bool, ready: Option<bool>, words: u8, expires: bool) {
        let name = name_of(i);
        let Some(known) = self.told.get(&name) else { return };
        let meta = &known.metadata;
        let verdict = CredentialVerdict {
            identity: name.clone(),
            uid: if other { Some("another".into()) } else { meta.uid.clone() },
            generation: meta.generation.map(|g| if old { g - 1 } else { g }),
            ready,
            reason: format!("Reason{words}"),
            message: format!("words {words} {}", self.serial),
            expires: expires.then(|| Timestamp::UNIX_EPOCH + SignedDuration::from_hours(i64::from(words) + 1)),
        };
        if !old && !other {
            let same = self.verdicts.get(&name).is_some_and(|before| gist(before) == gist(&verdict));
            if !same {
                self.verdicts.insert(name, verdict.clone());
            }
        }
        self.index.apply(Event::Credential(Box::new(verdict)));
    }

    fn tell(&mut self, event: Event) {
        match &event {
            Event::Identity(object) => {
                let name = key(object.metadata.namespace.as_ref().unwrap(), object.metadata.name.as_ref().unwrap());
                let before = self.told.insert(name.clone(), (**object).clone()).map(|before| before.metadata);
                let same = before.is_some_and(|meta| {
                    (&meta.uid, meta.generation) == (&object.metadata.uid, object.metadata.generation)
                });
                if !same {
                    self.verdicts.remove(&name);
                }
            }
            Event::IdentityDeleted(name) => {
                self.told.remove(name);
                self.verdicts.remove(name);
            }
            _ => {}
        }
        self.index.apply(event);
    }

    fn plan(&mut self) {
        for action in self.index.plan_status(self.now).actions {
            let Action::Status(update) = &action else { continue };
            let under_way = |a: &Action| matches!(a, Action::Status(other) if other.target == update.target && other.uid == update.uid);
            assert!(!self.flying.iter().any(under_way), "{:?} is under way twice", update.target);
            self.flying.push(action);
        }
    }

    /// As server-side apply does it: what is not among the conditions any more goes.
    fn execute(&mut self, action: &Action, fails: bool) {
        let Action::Status(update) = action else { return };
        let outcome = if fails {
            Outcome::Failed { retry_at: self.now + SignedDuration::from_secs(3) }
        } else {
            self.write(update)
        };
        self.index.done(action, outcome);
    }

    fn write(&mut self, update: &StatusUpdate) -> Outcome {
        self.writes += 1;
        let name = update.target.key().clone();
        let Some(mut object) = self.there.get(&name).cloned().filter(|o| o.metadata.uid == update.uid) else {
            return Outcome::Conflict;
        };
        let status = object.status.get_or_insert_default();
        status.conditions.clone_from(&update.conditions);
        status.credential_expiry.clone_from(&update.credential_expiry);
        self.put(name, object);
        Outcome::Done
    }

    fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 100, "does not settle: {:?}", self.flying);
            while let Some(event) = self.queue.pop_front() {
                self.tell(event);
            }
            self.plan();
            for action in std::mem::take(&mut self.flying) {
                self.execute(&action, false);
            }
            let next = self.index.plan_status(self.now);
            self.flying.extend(next.actions);
            if self.flying.is_empty() && self.queue.is_empty() {
                match next.next_due {
                    Some(due) => self.now = due,
                    None => break,
                }
            }
        }
    }

    fn check(&self) {
        for (name, object) in &self.there {
            let said = find_condition(conditions(object), CREDENTIAL_READY);
            let expiry = object.status.as_ref().and_then(|status| status.credential_expiry.clone());
            if !has_credential(object) {
                assert_eq!((said, expiry), (None, None), "{name} has no credential");
                continue;
            }
            let Some(verdict) = self.verdicts.get(name) else {
                // Of this generation nothing was found: whatever is said is of another.
                let generation = said.and_then(|said| said.observed_generation);
                assert!(generation <= object.metadata.generation, "{name}");
                continue;
            };
            let said = said.unwrap_or_else(|| panic!("{name}: {verdict:?} is not said"));
            let status = match verdict.ready {
                Some(true) => ConditionStatus::True,
                Some(false) => ConditionStatus::False,
                None => ConditionStatus::Unknown,
            };
            assert_eq!((said.status, &said.reason), (status, &verdict.reason), "{name}");
            assert_eq!(said.observed_generation, object.metadata.generation, "{name}");
            assert_eq!(expiry, verdict.expires.map(|at| at.to_string()), "{name}");
            if verdict.ready == Some(false) {
                assert_eq!(said.message, verdict.message);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_condition_says_what_was_found_last_of_what_is_there(ops in prop::collection::vec(op(), 1..100)) {
        let mut world = World::new();
        for op in ops {
            world.step(op);
        }
        world.settle();
        world.check();
        // The same again is no reason to write, nor is a new start.
        let writes = world.writes;
        for verdict in world.verdicts.clone().into_values() {
            let mut again = verdict;
            if again.ready != Some(false) {
                again.message.push_str(" in other words");
            }
            world.index.apply(Event::Credential(Box::new(again)));
        }
        world.settle();
        prop_assert_eq!(world.writes, writes);
        world.step(Op::Restart);
        world.settle();
        prop_assert_eq!(world.writes, writes);
    }
}
