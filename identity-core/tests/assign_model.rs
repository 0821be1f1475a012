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

mod common;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use common::{binding, key, labels, managed_identity, match_labels, naive_selects, pod, service_principal};
use identity_core::{
    assign::{Action, Event, Index, MANAGED_BY_LABEL, Options, Outcome, Relist},
    object::ObjectKey,
    pod::{Pod, PodPhase},
};
use identity_crd::{AzureAssignedIdentity, AzureIdentity, AzureIdentityBinding};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;

/// Three of each, in two namespaces.
fn name_of(i: u8) -> ObjectKey {
    [key("a", "x"), key("a", "y"), key("b", "x")][usize::from(i % 3)].clone()
}

#[derive(Clone, Debug)]
enum Op {
    PutPod { i: u8, label: u8, app: bool, account: bool, node: bool, phase: u8, host: bool, deleting: bool },
    RecreatePod(u8),
    DeletePod(u8),
    PutIdentity { i: u8, form: u8 },
    TouchIdentity { i: u8, namespaced: bool },
    RecreateIdentity(u8),
    DeleteIdentity(u8),
    PutBinding { i: u8, identity: u8, form: u8, weight: i32 },
    TouchBinding(u8),
    RecreateBinding(u8),
    DeleteBinding(u8),
    Interfere { which: u8, how: u8 },
    CollectGarbage,
    Deliver { kind: u8, count: u8 },
    Relist(u8),
    Plan,
    Execute { which: u8, fate: u8 },
    Forget,
    Advance(u8),
}

fn op() -> impl Strategy<Value = Op> {
    let i = any::<u8>;
    prop_oneof![
        6 => (i(), 0..3u8, any::<bool>(), any::<bool>(), prop::bool::weighted(0.9), 0..8u8,
              prop::bool::weighted(0.1), any::<bool>())
            .prop_map(|(i, label, app, account, node, phase, host, deleting)| {
                Op::PutPod { i, label, app, account, node, phase, host, deleting }
            }),
        2 => i().prop_map(Op::RecreatePod),
        2 => i().prop_map(Op::DeletePod),
        5 => (i(), 0..6u8).prop_map(|(i, form)| Op::PutIdentity { i, form }),
        2 => (i(), any::<bool>()).prop_map(|(i, namespaced)| Op::TouchIdentity { i, namespaced }),
        1 => i().prop_map(Op::RecreateIdentity),
        1 => i().prop_map(Op::DeleteIdentity),
        6 => (i(), i(), 0..6u8, 0..3i32).prop_map(|(i, identity, form, weight)| {
            Op::PutBinding { i, identity, form, weight }
        }),
        1 => i().prop_map(Op::TouchBinding),
        1 => i().prop_map(Op::RecreateBinding),
        1 => i().prop_map(Op::DeleteBinding),
        2 => (i(), 0..6u8).prop_map(|(which, how)| Op::Interfere { which, how }),
        1 => Just(Op::CollectGarbage),
        12 => (0..4u8, 1..6u8).prop_map(|(kind, count)| Op::Deliver { kind, count }),
        2 => (0..4u8).prop_map(Op::Relist),
        8 => Just(Op::Plan),
        10 => (i(), 0..8u8).prop_map(|(which, fate)| Op::Execute { which, fate }),
        1 => Just(Op::Forget),
        2 => (0..90u8).prop_map(Op::Advance),
    ]
}

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
    queues: [VecDeque<Event>; 4],
    told_pods: BTreeMap<ObjectKey, Pod>,
    told_identities: BTreeMap<ObjectKey, AzureIdentity>,
    told_bindings: BTreeMap<ObjectKey, AzureIdentityBinding>,
    flying: Vec<Action>,
    /// Assignments that a fault or a person made unpredictable: for the others no write may be needless.
    disturbed: BTreeSet<ObjectKey>,
    /// Until when what failed is held back.
    failed: BTreeMap<ObjectKey, Timestamp>,
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
        for list in [vec_of_pods(), Relist::Identities(vec![]), Relist::Bindings(vec![]), Relist::Assigned(vec![])] {
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
            queues: Default::default(),
            told_pods: BTreeMap::new(),
            told_identities: BTreeMap::new(),
            told_bindings: BTreeMap::new(),
            flying: Vec::new(),
            disturbed: BTreeSet::new(),
            failed: BTreeMap::new(),
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
            }
            Event::BindingDeleted(key) => {
                self.told_bindings.remove(key);
            }
            Event::Assigned(object) => self.hear_of(assigned_key(object)),
            Event::AssignedDeleted { key, .. } => self.hear_of(key.clone()),
            Event::Relist(_) => {}
        }
        self.index.apply(event);
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
                Relist::Bindings(self.bindings.values().cloned().collect())
            }
            _ => {
                self.refused.clear();
                self.news.extend(self.flying.iter().map(target));
                Relist::Assigned(self.assigned.values().cloned().collect())
            }
        };
        self.index.apply(Event::Relist(list));
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::PutPod { i, label, app, account, node, phase, host, deleting } => {
                let name = name_of(i);
                let uid = match self.pods.get(&name) {
                    Some(pod) => pod.reference.uid.to_string(),
                    None => format!("pod-{}", self.next()),
                };
                let mut object = pod(&name.namespace, &name.name, &uid);
                object.labels = match label {
                    0 => labels(&[]),
                    1 => labels(&[("aadpodidbinding", "demo")]),
                    _ => labels(&[("aadpodidbinding", "other")]),
                };
                if app {
                    object.labels.insert("app".into(), "web".into());
                }
                object.service_account = if account { "builder" } else { "default" }.into();
                object.node = node.then(|| "node-1".into());
                object.phase = [PodPhase::Succeeded, PodPhase::Failed, PodPhase::Pending, PodPhase::Unknown]
                    .get(usize::from(phase))
                    .copied()
                    .unwrap_or(PodPhase::Running);
                object.host_network = host;
                object.deleting = deleting;
                self.put_pod(object);
            }
            Op::RecreatePod(i) => {
                let name = name_of(i);
                let Some(mut object) = self.pods.get(&name).cloned() else { return };
                let uid = format!("pod-{}", self.next());
                object.reference = pod(&name.namespace, &name.name, &uid).reference;
                // The watch may compress the deletion away.
                if self.serial % 2 == 0 {
                    self.delete_pod(&name);
                }
                self.put_pod(object);
            }
            Op::DeletePod(i) => self.delete_pod(&name_of(i)),
            Op::PutIdentity { i, form } => {
                let name = name_of(i);
                let serial = self.next();
                let old = self.identities.get(&name).cloned();
                let uid =
                    old.as_ref().map_or_else(|| format!("identity-{serial}"), |o| o.metadata.uid.clone().unwrap());
                let mut object = match form {
                    0 | 1 => managed_identity(&name.namespace, &name.name, &uid),
                    _ => service_principal(&name.namespace, &name.name, &uid),
                };
                match form {
                    1 => object.spec.resource_id = Some("nonsense".into()),
                    3 => object.spec.tenant_id = None,
                    4 => object.spec.client_password.as_mut().unwrap().namespace = Some("elsewhere".into()),
                    5 => object.spec.type_ = Some(9),
                    _ => {}
                }
                if let Some(old) = old {
                    object.metadata.annotations = old.metadata.annotations;
                    let same = old.spec == object.spec;
                    object.metadata.generation = old.metadata.generation.map(|g| if same { g } else { g + 1 });
                }
                self.put_identity(name, object);
            }
            Op::TouchIdentity { i, namespaced } => {
                let name = name_of(i);
                let Some(mut object) = self.identities.get(&name).cloned() else { return };
                let value = if namespaced { "namespaced" } else { "Namespaced" };
                object.metadata.annotations = Some(labels(&[("aadpodidentity.k8s.io/Behavior", value)]));
                object.metadata.labels = Some(labels(&[("serial", &self.next().to_string())]));
                self.put_identity(name, object);
            }
            Op::RecreateIdentity(i) => {
                let name = name_of(i);
                let Some(mut object) = self.identities.get(&name).cloned() else { return };
                object.metadata.uid = Some(format!("identity-{}", self.next()));
                self.put_identity(name, object);
            }
            Op::DeleteIdentity(i) => {
                if self.identities.remove(&name_of(i)).is_some() {
                    self.queues[1].push_back(Event::IdentityDeleted(name_of(i)));
                }
            }
            Op::PutBinding { i, identity, form, weight } => {
                let name = name_of(i);
                let serial = self.next();
                let old = self.bindings.get(&name).cloned();
                let uid = old.as_ref().map_or_else(|| format!("binding-{serial}"), |o| o.metadata.uid.clone().unwrap());
                let mut object = binding(&name.namespace, &name.name, &uid, &name_of(identity).name);
                let spec = &mut object.spec;
                spec.weight = Some(weight);
                match form {
                    0 => {}
                    1 => spec.selector = Some("other".into()),
                    2 => {
                        spec.selector = None;
                        spec.pod_selector = Some(match_labels(&[("app", "web")]));
                    }
                    3 => {
                        spec.selector = None;
                        spec.service_accounts = Some(vec!["builder".into(), "x".into()]);
                    }
                    4 => spec.azure_identity = None,
                    _ => spec.service_accounts = Some(vec!["default".into()]),
                }
                if let Some(old) = old {
                    let same = old.spec == object.spec;
                    object.metadata.generation = old.metadata.generation.map(|g| if same { g } else { g + 1 });
                }
                self.put_binding(name, object);
            }
            Op::TouchBinding(i) => {
                let name = name_of(i);
                let Some(mut object) = self.bindings.get(&name).cloned() else { return };
                object.metadata.labels = Some(labels(&[("serial", &self.next().to_string())]));
                object.status.get_or_insert_default().matched_pods = Some(7);
                self.put_binding(name, object);
            }
            Op::RecreateBinding(i) => {
                let name = name_of(i);
                let Some(mut object) = self.bindings.get(&name).cloned() else { return };
                object.metadata.uid = Some(format!("binding-{}", self.next()));
                self.put_binding(name, object);
            }
            Op::DeleteBinding(i) => {
                if self.bindings.remove(&name_of(i)).is_some() {
                    self.queues[2].push_back(Event::BindingDeleted(name_of(i)));
                }
            }
            Op::Interfere { which, how } => self.interfere(which, how),
            Op::CollectGarbage => {
                let alive: BTreeSet<String> = self.pods.values().map(|p| p.reference.uid.to_string()).collect();
                let dead: Vec<ObjectKey> = self
                    .assigned
                    .iter()
                    .filter(|(_, o)| o.metadata.owner_references.iter().flatten().any(|r| !alive.contains(&r.uid)))
                    .map(|(key, _)| key.clone())
                    .collect();
                for key in dead {
                    // A pod that the index still believes in loses its assignment: it will try to write it again.
                    self.disturbed.insert(key.clone());
                    self.delete_assigned(&key);
                }
            }
            Op::Deliver { kind, count } => {
                for _ in 0..count {
                    if let Some(event) = self.queues[usize::from(kind)].pop_front() {
                        self.tell(event);
                    }
                }
            }
            Op::Relist(kind) => self.relist(kind),
            Op::Plan => self.plan(),
            Op::Execute { which, fate } => {
                if !self.flying.is_empty() {
                    let action = self.flying.remove(usize::from(which) % self.flying.len());
                    self.execute(&action, fate);
                }
            }
            Op::Forget => {
                for action in std::mem::take(&mut self.flying) {
                    self.disturbed.insert(target(&action));
                }
                self.index.forget_in_flight();
            }
            Op::Advance(seconds) => self.now += SignedDuration::from_secs(seconds.into()),
        }
    }

    /// People, and other controllers.
    fn interfere(&mut self, which: u8, how: u8) {
        if how == 5 {
            let mut object = AzureAssignedIdentity::new("stranger", Default::default());
            object.metadata.namespace = Some("a".into());
            self.put_assigned(object);
            return;
        }
        let keys: Vec<ObjectKey> = self.assigned.keys().cloned().collect();
        let Some(key) = keys.get(usize::from(which) % keys.len().max(1)) else { return };
        self.disturbed.insert(key.clone());
        let mut object = self.assigned[key].clone();
        match how {
            0 => return self.delete_assigned(key),
            1 => object.spec.pod = Some("somebody-else".into()),
            2 => object.metadata.labels = None,
            3 => object.status = None,
            _ => object.metadata.owner_references = None,
        }
        self.put_assigned(object);
    }

    fn plan(&mut self) {
        let actions = self.index.plan(self.now);
        for action in actions {
            let key = target(&action);
            assert!(self.flying.iter().all(|a| target(a) != key), "{key} is under way twice");
            let retry_at = self.failed.remove(&key).unwrap_or(self.now);
            assert!(self.now >= retry_at, "{key} failed and is held back until {retry_at}");
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
    }

    /// What the server makes of an action, and what is heard of that.
    fn execute(&mut self, action: &Action, fate: u8) {
        let key = target(action);
        let retry_at = self.now + SignedDuration::from_secs(3);
        let failed = Outcome::Failed { retry_at };
        if fate <= 1 {
            self.failed.insert(key.clone(), retry_at);
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
            other => panic!("{other:?} is no write of an assignment"),
        };
        if fate == 1 {
            self.disturbed.insert(key);
            return self.index.done(action, failed);
        }
        if matches!(outcome, Outcome::Conflict) && !self.news.contains(&key) {
            self.refused.insert(key, self.now);
        }
        self.index.done(action, outcome);
    }

    /// What should be, by nested loops over what the index was told.
    fn naive(&self) -> BTreeMap<(String, String), (ObjectKey, ObjectKey, AzureIdentity, AzureIdentityBinding)> {
        let mut out = BTreeMap::new();
        for (pod_key, pod) in &self.told_pods {
            for (binding_key, binding) in &self.told_bindings {
                let wide = self.options.cluster_wide;
                let Some(name) = &binding.spec.azure_identity else { continue };
                let identity_key = key(&binding_key.namespace, name);
                let Some(identity) = self.told_identities.get(&identity_key) else { continue };
                let annotations = identity.metadata.annotations.clone().unwrap_or_default();
                let namespaced = annotations.get("aadpodidentity.k8s.io/Behavior").is_some_and(|v| v == "namespaced");
                let spec = &identity.spec;
                let usable = match spec.type_.unwrap_or(0) {
                    0 => spec.resource_id.as_deref() != Some("nonsense"),
                    1 => {
                        let secret = spec.client_password.as_ref().unwrap().namespace.clone();
                        spec.tenant_id.is_some() && (wide || secret.is_none_or(|s| *s == *identity_key.namespace))
                    }
                    _ => false,
                };
                let same_namespace = pod_key.namespace == binding_key.namespace;
                if usable
                    && (same_namespace || (wide && !namespaced))
                    && naive_selects(&binding.spec, pod)
                    && pod.node.is_some()
                    && !pod.host_network
                    && !matches!(pod.phase, PodPhase::Succeeded | PodPhase::Failed)
                {
                    let pair = (pod.reference.uid.to_string(), binding.metadata.uid.clone().unwrap());
                    out.insert(pair, (pod_key.clone(), binding_key.clone(), identity.clone(), binding.clone()));
                }
            }
        }
        out
    }

    fn check_desired(&self) {
        let expected = self.naive();
        let desired = self.index.desired_assignments();
        assert_eq!(desired.len(), expected.len(), "{desired:#?}\n{expected:#?}");
        for object in &desired {
            let (identity, binding) =
                (object.spec.azure_identity_ref.as_ref().unwrap(), object.spec.azure_binding_ref.as_ref().unwrap());
            let pair = (object.spec.pod_uid.clone().unwrap(), binding.metadata.uid.clone().unwrap());
            let (pod, binding_key, naive_identity, naive_binding) = &expected[&pair];
            assert_eq!(key(object.spec.pod_namespace.as_ref().unwrap(), object.spec.pod.as_ref().unwrap()), *pod);
            assert_eq!(object.metadata.namespace.as_deref(), Some(&*pod.namespace));
            assert_eq!(object.metadata.owner_references.as_ref().unwrap()[0].uid, pair.0);
            assert_eq!(identity.metadata.uid, naive_identity.metadata.uid);
            assert_eq!(identity.metadata.generation, naive_identity.metadata.generation);
            assert_eq!(identity.spec, naive_identity.spec);
            assert_eq!(identity.metadata.labels, None);
            assert_eq!(binding.metadata.name.as_deref(), Some(&*binding_key.name));
            assert_eq!(binding.metadata.generation, naive_binding.metadata.generation);
            assert_eq!(binding.spec, naive_binding.spec);
            assert_eq!(binding.status, None);
            assert!(object.is_assigned());
        }
    }

    /// The network behaves from now on: everything is delivered and done until nothing is left to do.
    fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 50, "does not settle: {:#?}", self.flying);
            for kind in 0..4 {
                while let Some(event) = self.queues[kind].pop_front() {
                    self.tell(event);
                }
            }
            self.plan();
            if self.flying.is_empty() && self.queues.iter().all(VecDeque::is_empty) {
                match self.index.next_due() {
                    Some(due) => {
                        self.now = self.now.max(due);
                        continue;
                    }
                    None => break,
                }
            }
            for action in std::mem::take(&mut self.flying) {
                self.execute(&action, 2);
            }
        }
        self.check_desired();
        let desired: BTreeMap<ObjectKey, AzureAssignedIdentity> =
            self.index.desired_assignments().iter().map(|o| (assigned_key(o), o.clone())).collect();
        for (key, object) in &self.assigned {
            if ours(object) {
                assert_eq!(desired.get(key), Some(&content(object)), "{key}");
            }
        }
        for key in desired.keys() {
            assert!(self.assigned.contains_key(key), "{key} is missing");
        }
        let writes = self.writes;
        for kind in 0..4 {
            self.relist(kind);
        }
        self.now += SignedDuration::from_hours(1);
        assert_eq!(self.index.plan(self.now), [], "a relist of what is there asks for nothing");
        // A controller that starts finds nothing to do, in whatever order it learns things.
        let mut fresh = Index::new(self.options.clone());
        fresh.apply(Event::Relist(Relist::Assigned(self.assigned.values().cloned().collect())));
        fresh.apply(Event::Relist(Relist::Pods(self.pods.values().cloned().collect())));
        assert_eq!(fresh.plan(self.now), []);
        fresh.apply(Event::Relist(Relist::Bindings(self.bindings.values().cloned().collect())));
        assert_eq!(fresh.plan(self.now), []);
        fresh.apply(Event::Relist(Relist::Identities(self.identities.values().cloned().collect())));
        assert_eq!(fresh.plan(self.now), []);
        assert_eq!(self.writes, writes);
    }
}

fn vec_of_pods() -> Relist {
    Relist::Pods(Vec::new())
}

fn target(action: &Action) -> ObjectKey {
    match action {
        Action::Apply(apply) => assigned_key(&apply.object),
        Action::Delete(delete) => delete.key.clone(),
        other => panic!("{other:?}"),
    }
}

fn options() -> impl Strategy<Value = Options> {
    (any::<bool>(), any::<bool>()).prop_map(|(cluster_wide, collector)| Options {
        cluster_wide,
        orphan_grace: SignedDuration::from_secs(if collector { 60 } else { 0 }),
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
