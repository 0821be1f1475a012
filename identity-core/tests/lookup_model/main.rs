//! The node's index against a plain recomputation: after any history of pods, assignments and bindings, the published
//! snapshot decides every address and request as a reading of the documentation, with loops over everything, does.

#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

#[path = "../common/mod.rs"]
mod common;
mod naive;
mod time;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use common::{assigned, binding, key, labels, managed_identity, match_labels, pod, service_principal};
use identity_core::{
    lookup::{Binding, Caller, Decision, Exception, NodeIndex, Options, Published, Request, RequestedIdentity, Source},
    object::ObjectKey,
    pod::{Pod, PodPhase},
};
use identity_crd::{
    AzureAssignedIdentity, AzureIdentityBinding, AzurePodIdentityException, AzurePodIdentityExceptionSpec, Condition,
};
use naive::agree;
use proptest::prelude::*;

const ADDRESSES: [&str; 5] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2"];
const VAULT: &str = "https://vault.azure.net";
const STORAGE: &str = "https://storage.azure.com";

/// Three pods, identities and bindings, in two namespaces.
fn name_of(i: u8) -> ObjectKey {
    [key("a", "x"), key("a", "y"), key("b", "x")][usize::from(i % 3)].clone()
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Pod {
        i: u8,
        addresses: u8,
        label: bool,
        app: bool,
        phase: u8,
        host: bool,
        deleting: bool,
    },
    Recreate {
        i: u8,
        told: bool,
    },
    DeletePod(u8),
    RelistPods {
        keep: u8,
    },
    Assign {
        pod: u8,
        identity: u8,
        binding: u8,
        form: u8,
        weight: i32,
        ready: bool,
        audiences: u8,
        of: u8,
    },
    Unassign(u8),
    RelistAssignments {
        keep: u8,
    },
    Binding {
        i: u8,
        identity: u8,
        selection: u8,
        weight: i32,
        hopeless: u8,
    },
    RecreateBinding(u8),
    DeleteBinding(u8),
    RelistBindings {
        keep: u8,
    },
    NodeAddresses(u8),
    Except {
        i: u8,
        labels: u8,
    },
    DeleteException(u8),
    RelistExceptions {
        keep: u8,
    },
    Box {
        which: u8,
        of_binding: u8,
        of_identity: u8,
        grant: Option<u8>,
    },
    /// So many half-hours later, or earlier.
    Pass(i64),
}

fn op() -> impl Strategy<Value = Op> {
    let i = any::<u8>;
    let rarely = || prop::bool::weighted(0.1);
    prop_oneof![
        6 => (i(), i(), prop::bool::weighted(0.8), any::<bool>(), 0..10u8, rarely(), any::<bool>()).prop_map(
            |(i, addresses, label, app, phase, host, deleting)| {
                Op::Pod { i, addresses, label, app, phase, host, deleting }
            }
        ),
        2 => (i(), any::<bool>()).prop_map(|(i, told)| Op::Recreate { i, told }),
        1 => i().prop_map(Op::DeletePod),
        1 => i().prop_map(|keep| Op::RelistPods { keep }),
        10 => (i(), i(), i(), 0..16u8, 0..3i32, prop::bool::weighted(0.8), i(), 0..6u8).prop_map(
            |(pod, identity, binding, form, weight, ready, audiences, of)| {
                Op::Assign { pod, identity, binding, form, weight, ready, audiences, of }
            }
        ),
        2 => i().prop_map(Op::Unassign),
        1 => i().prop_map(|keep| Op::RelistAssignments { keep }),
        4 => (i(), i(), 0..5u8, 0..3i32, 0..8u8).prop_map(|(i, identity, selection, weight, hopeless)| {
            Op::Binding { i, identity, selection, weight, hopeless }
        }),
        1 => i().prop_map(Op::RecreateBinding),
        2 => i().prop_map(Op::DeleteBinding),
        1 => i().prop_map(|keep| Op::RelistBindings { keep }),
        1 => (0..16u8).prop_map(Op::NodeAddresses),
        1 => (i(), i()).prop_map(|(i, labels)| Op::Except { i, labels }),
        2 => i().prop_map(Op::DeleteException),
        1 => i().prop_map(|keep| Op::RelistExceptions { keep }),
        8 => (i(), 0..8u8, prop_oneof![3 => Just(0u8), 1 => 0..8u8], prop::option::of(0..24u8)).prop_map(
            |(which, of_binding, of_identity, grant)| Op::Box { which, of_binding, of_identity, grant }
        ),
        4 => prop_oneof![8 => 0..9i64, 1 => -6..0i64].prop_map(Op::Pass),
    ]
}

/// What the node was told, and the index that was told it.
struct World {
    options: Options,
    index: NodeIndex,
    published: Published,
    serial: u32,
    node: BTreeSet<IpAddr>,
    pods: BTreeMap<ObjectKey, Pod>,
    /// UIDs that pods of a name had before.
    former: BTreeMap<ObjectKey, String>,
    assignments: BTreeMap<ObjectKey, AzureAssignedIdentity>,
    bindings: BTreeMap<ObjectKey, AzureIdentityBinding>,
    exceptions: BTreeMap<ObjectKey, AzurePodIdentityException>,
    /// In half-hours.
    now: i64,
    /// The latest that anybody has asked at.
    latest: i64,
}

fn kept<T>(map: &mut BTreeMap<ObjectKey, T>, keep: u8) {
    let mut place = 0;
    map.retain(|_, _| {
        place += 1;
        keep >> (place % 8) & 1 == 1
    });
}

impl World {
    fn new(options: Options) -> Self {
        Self {
            index: NodeIndex::new(options.clone()),
            options,
            published: Published::default(),
            serial: 0,
            node: BTreeSet::new(),
            pods: BTreeMap::new(),
            former: BTreeMap::new(),
            assignments: BTreeMap::new(),
            bindings: BTreeMap::new(),
            exceptions: BTreeMap::new(),
            now: 0,
            latest: 0,
        }
    }

    fn uid(&mut self, what: &str) -> String {
        self.serial += 1;
        format!("{what}-{}", self.serial)
    }

    fn put_binding(&mut self, key: ObjectKey, object: AzureIdentityBinding) {
        self.index.apply_binding(Binding::from(&object));
        self.bindings.insert(key, object);
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Pod { i, addresses, label, app, phase, host, deleting } => {
                let name = name_of(i);
                let uid = match self.pods.get(&name) {
                    Some(pod) => pod.reference.uid.to_string(),
                    None => self.uid("pod"),
                };
                let mut object = pod(&name.namespace, &name.name, &uid);
                object.labels = if label { labels(&[("aadpodidbinding", "demo")]) } else { labels(&[]) };
                if app {
                    object.labels.insert("app".into(), "web".into());
                }
                // One address more often than two.
                object.addresses = ADDRESSES
                    .iter()
                    .enumerate()
                    .filter(|(n, _)| usize::from(addresses % 5) == *n || (addresses > 200 && *n == 3))
                    .map(|(_, address)| address.parse().unwrap())
                    .collect();
                object.phase = match phase {
                    0 => PodPhase::Succeeded,
                    1 => PodPhase::Failed,
                    2 => PodPhase::Pending,
                    3 => PodPhase::Unknown,
                    _ => PodPhase::Running,
                };
                object.host_network = host;
                object.deleting = deleting;
                self.index.apply_pod(object.clone());
                self.pods.insert(name, object);
            }
            Op::Recreate { i, told } => {
                let name = name_of(i);
                let Some(mut object) = self.pods.get(&name).cloned() else { return };
                self.former.insert(name.clone(), object.reference.uid.to_string());
                object.reference = pod(&name.namespace, &name.name, &self.uid("pod")).reference;
                if told {
                    self.index.delete_pod(&name);
                }
                self.index.apply_pod(object.clone());
                self.pods.insert(name, object);
            }
            Op::DeletePod(i) => {
                self.index.delete_pod(&name_of(i));
                self.pods.remove(&name_of(i));
            }
            Op::RelistPods { keep } => {
                kept(&mut self.pods, keep);
                self.index.reset_pods(self.pods.values().cloned().collect());
            }
            Op::Assign { pod: i, identity, binding: b, form, weight, ready, audiences, of } => {
                self.assign(i, identity, b, form, weight, ready, audiences, of);
            }
            Op::Unassign(which) => {
                let keys: Vec<ObjectKey> = self.assignments.keys().cloned().collect();
                let Some(key) = keys.get(usize::from(which) % keys.len().max(1)) else { return };
                self.index.delete_assignment(key);
                self.assignments.remove(key);
            }
            Op::RelistAssignments { keep } => {
                kept(&mut self.assignments, keep);
                let objects: Vec<_> = self.assignments.values().cloned().collect();
                self.index.reset_assignments(&objects);
            }
            Op::Binding { i, identity, selection, weight, hopeless } => {
                let name = name_of(i);
                let uid = match self.bindings.get(&name) {
                    Some(object) => object.metadata.uid.clone().unwrap(),
                    None => self.uid("binding"),
                };
                let mut object = binding(&name.namespace, &name.name, &uid, &name_of(identity).name);
                object.spec.weight = Some(weight);
                match selection {
                    0 => object.spec.selector = Some("other".into()),
                    1 => {
                        object.spec.selector = None;
                        object.spec.pod_selector = Some(match_labels(&[("app", "web")]));
                    }
                    2 => object.spec.service_accounts = Some(vec!["default".into()]),
                    _ => {}
                }
                // What the controller says of it: of this generation, of an older one, or something else.
                let said: &[(&str, bool, &str, i64)] = match hopeless {
                    0 => &[("IdentityFound", false, "NotFound", 1)],
                    1 => &[("Valid", false, "IdentityUnusable", 1)],
                    2 => &[("IdentityFound", false, "NotFound", 0)],
                    3 => &[("Valid", false, "Invalid", 1), ("IdentityFound", true, "Found", 1)],
                    _ => &[],
                };
                object.status.get_or_insert_default().conditions = said
                    .iter()
                    .map(|(t, holds, reason, g)| Condition::new(*t, *holds, *reason, "", Some(*g)))
                    .collect();
                self.put_binding(name, object);
            }
            Op::RecreateBinding(i) => {
                let Some(mut object) = self.bindings.get(&name_of(i)).cloned() else { return };
                object.metadata.uid = Some(self.uid("binding"));
                self.put_binding(name_of(i), object);
            }
            Op::DeleteBinding(i) => {
                self.index.delete_binding(&name_of(i));
                self.bindings.remove(&name_of(i));
            }
            Op::RelistBindings { keep } => {
                kept(&mut self.bindings, keep);
                self.index.reset_bindings(self.bindings.values().map(Binding::from).collect());
            }
            Op::NodeAddresses(mask) => {
                let listed = ADDRESSES.iter().enumerate().filter(|(n, _)| *n == usize::from(mask));
                self.node = listed.map(|(_, address)| address.parse().unwrap()).collect();
                self.index.set_node_addresses(self.node.iter().copied());
            }
            Op::Except { i, labels: bits } => {
                let name = name_of(i);
                let uid = match self.exceptions.get(&name) {
                    Some(object) => object.metadata.uid.clone().unwrap(),
                    None => self.uid("exception"),
                };
                let all =
                    [("app", "WEB"), ("app", "other"), ("aadpodidbinding", "Demo"), ("role", "agent"), ("App", "web")];
                let listed = all.iter().enumerate().filter(|(n, _)| bits >> n & 1 == 1);
                let mut object = AzurePodIdentityException::new(
                    &name.name,
                    AzurePodIdentityExceptionSpec {
                        pod_labels: (bits < 250).then(|| {
                            listed.map(|(_, (key, value))| ((*key).to_owned(), (*value).to_owned())).collect()
                        }),
                    },
                );
                object.metadata.namespace = Some(name.namespace.to_string());
                object.metadata.uid = Some(uid);
                self.index.apply_exception(Exception::from(&object));
                self.exceptions.insert(name, object);
            }
            Op::DeleteException(i) => {
                self.index.delete_exception(&name_of(i));
                self.exceptions.remove(&name_of(i));
            }
            Op::Box { which, of_binding, of_identity, grant } => {
                let keys: Vec<ObjectKey> = self.assignments.keys().cloned().collect();
                let Some(key) = keys.get(usize::from(which) % keys.len().max(1)) else { return };
                let object = self.assignments.get_mut(key).unwrap();
                if let Some(binding) = &mut object.spec.azure_binding_ref {
                    binding.spec.time_box = time::time_box(of_binding);
                }
                object.spec.azure_identity_ref.as_mut().unwrap().spec.time_box = time::time_box(of_identity);
                object.spec.grant = grant.map(time::grant);
                let _ = self.index.apply_assignment(object);
            }
            Op::Pass(half_hours) => {
                self.now = (self.now + half_hours).max(0);
                self.latest = self.latest.max(self.now);
                // The node's clock ticks, whether anybody asks or not.
                self.index.snapshot().pass(time::at(self.now));
            }
            Op::RelistExceptions { keep } => {
                kept(&mut self.exceptions, keep);
                // Each namespace is watched by itself, whether anything is in it or not.
                for namespace in ["a", "b"] {
                    let all = self.exceptions.iter().filter(|(key, _)| *key.namespace == *namespace);
                    self.index.reset_exceptions(namespace, all.map(|(_, object)| Exception::from(object)).collect());
                }
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "an operation's parts")]
    fn assign(&mut self, i: u8, identity: u8, b: u8, form: u8, weight: i32, ready: bool, audiences: u8, of: u8) {
        let (name, mut identity_name) = (name_of(i), name_of(identity));
        let uid = match (of, self.pods.get(&name), self.former.get(&name)) {
            (0, _, Some(former)) => former.clone(),
            (_, Some(pod), _) => pod.reference.uid.to_string(),
            _ => "nobody".into(),
        };
        let holder = pod(&name.namespace, &name.name, &uid);
        // Mostly what the controller would write: binding and identity of the pod's namespace.
        let mut binding_name = name_of(b);
        if form != 0 && form != 12 {
            binding_name.namespace = name.namespace.clone();
        }
        if form == 12 {
            identity_name.namespace = name.namespace.clone();
        } else if form != 1 {
            identity_name.namespace = binding_name.namespace.clone();
        }
        let identity_uid = if form == 2 { "another".into() } else { format!("identity-{identity_name}") };
        let mut identity = match form {
            3 | 4 => service_principal(&identity_name.namespace, &identity_name.name, &identity_uid),
            _ => managed_identity(&identity_name.namespace, &identity_name.name, &identity_uid),
        };
        let spec = &mut identity.spec;
        spec.object_id = Some(format!("object-{}", identity_name.name));
        match form {
            4 => spec.client_password.as_mut().unwrap().namespace = Some("elsewhere".into()),
            5 => spec.resource_id = Some("nonsense".into()),
            6 => spec.client_id = Some("client-shared".into()),
            7 => spec.client_id = None,
            _ => {}
        }
        let list = |bits: u8| match bits % 4 {
            0 => Some(vec![format!("{VAULT}/")]),
            1 => Some(vec![STORAGE.to_owned(), "https://x".to_owned()]),
            2 => Some(vec![]),
            _ => None,
        };
        spec.audiences = if audiences < 100 { list(audiences) } else { None };
        let uid = match self.bindings.get(&binding_name) {
            Some(object) => object.metadata.uid.clone().unwrap(),
            None => "binding-gone".into(),
        };
        let mut binding = binding(&binding_name.namespace, &binding_name.name, &uid, &identity_name.name);
        binding.spec.weight = Some(weight);
        binding.spec.audiences = list(audiences / 4);
        let mut object = assigned(&holder, &identity, &binding);
        if !ready {
            object.status.get_or_insert_default().status = Some("Created".into());
        }
        match form {
            8 => object.spec.pod_uid = None,
            9 => object.metadata.namespace = Some("elsewhere".into()),
            10 => object.spec.azure_binding_ref = None,
            11 => {
                object.spec.pod_uid = None;
                object.metadata.namespace = Some("default".into());
            }
            _ => {}
        }
        let _ = self.index.apply_assignment(&object);
        let own = key(object.metadata.namespace.as_deref().unwrap(), object.metadata.name.as_deref().unwrap());
        self.assignments.insert(own, object);
    }

    /// Publishes, and compares every decision with the plain reading.
    fn check(&mut self) {
        self.index.publish(&self.published);
        let snapshot = self.published.load();
        let shouted = "CLIENT-X";
        let resource_id = managed_identity("a", "y", "").spec.resource_id.unwrap().to_uppercase();
        let requests = [
            (RequestedIdentity::Default, VAULT),
            (RequestedIdentity::Default, "https://storage.azure.com/"),
            (RequestedIdentity::ClientId(shouted), VAULT),
            (RequestedIdentity::ClientId("client-shared"), STORAGE),
            (RequestedIdentity::ObjectId("Object-y"), VAULT),
            (RequestedIdentity::ResourceId(&resource_id), VAULT),
            (RequestedIdentity::ClientId("client-absent"), VAULT),
        ];
        for address in ADDRESSES {
            let address: IpAddr = address.parse().unwrap();
            for (identity, resource) in requests {
                let request = Request { resource, identity };
                for pinned in [None, Some("pod-1")] {
                    // An IPv4 address may come in IPv6 form.
                    let peer = match address {
                        IpAddr::V4(v4) if pinned.is_some() => v4.to_ipv6_mapped().into(),
                        other => other,
                    };
                    let decision = snapshot.decide(&Caller { address: peer, pinned }, &request, time::at(self.now));
                    let expected = self.naive(address, pinned, &request);
                    assert!(
                        agree(&decision, &expected),
                        "{address} {pinned:?} {request:?}\ndecided: {decision:?}\nexpected: {expected:?}"
                    );
                    if let Decision::Allow(allow) = &decision {
                        self.check_content(allow);
                    }
                    let (explained, _) =
                        snapshot.explain(&Caller { address: peer, pinned }, &request, time::at(self.now));
                    assert!(agree(&explained, &expected), "the explanation decides otherwise: {explained:?}");
                }
            }
        }
    }

    /// What is handed on is what the assignment says now.
    fn check_content(&self, allow: &identity_core::lookup::Allow) {
        let assignment = match &allow.source {
            Source::Assignment(assignment) => assignment,
            Source::Exception(exception) => {
                let object = &self.exceptions[&exception.key()];
                assert_eq!(Some(&*exception.uid), object.metadata.uid.as_deref());
                return;
            }
        };
        let object = &self.assignments[&assignment.object.key()];
        let (identity, binding) =
            (object.spec.azure_identity_ref.as_ref().unwrap(), object.spec.azure_binding_ref.as_ref().unwrap());
        assert_eq!(assignment.identity.client_id.as_deref(), identity.spec.client_id.as_deref());
        assert_eq!(assignment.identity.resource_id.as_deref(), identity.spec.resource_id.as_deref());
        assert_eq!(Some(&*assignment.identity.object.uid), identity.metadata.uid.as_deref());
        assert_eq!(Some(&*assignment.binding.uid), binding.metadata.uid.as_deref());
        assert_eq!(Some(assignment.weight), binding.spec.weight);
        // It lasts as long as it says, and no longer, but where a window may follow upon a grant.
        let end = allow.until.map_or(self.now + 100, |until| (until.as_second() - time::at(0).as_second()) / 1800);
        assert!(end > self.now);
        for then in self.now..end {
            assert!(self.naive_open(object, then), "{allow:?} is closed at {}", time::at(then));
        }
        let union = time::time_box(5);
        if allow.until.is_some() && binding.spec.time_box != union {
            assert!(!self.naive_open(object, end), "{allow:?} is open at {}", time::at(end));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_decision_agrees_with_recomputation(
        cluster_wide in any::<bool>(),
        without_pod_uid in any::<bool>(),
        exceptions in 0..4u8,
        ops in prop::collection::vec(op(), 1..60),
    ) {
        let listed = ["a", "b"].iter().enumerate().filter(|(n, _)| exceptions >> n & 1 == 1);
        let exception_namespaces = listed.map(|(_, namespace)| (*namespace).to_owned()).collect();
        let mut world = World::new(Options { cluster_wide, without_pod_uid, exception_namespaces });
        for (n, op) in ops.into_iter().enumerate() {
            world.step(op);
            // Changes come in bursts, too.
            if n % 3 != 1 {
                world.check();
            }
        }
        world.check();
    }
}
