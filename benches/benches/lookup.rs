//! The decision path of one node: from an address to a decision, at 10 … 100,000 pods, and what a change costs there.
//!
//! Addresses are drawn at random over all pods, so that caches hold what they would hold, and requests are of the kinds
//! that a node sees: no identity named (one or two identities with weights), one named by client id, and resources that a
//! list of audiences limits, one in sixteen of them refused. `find` and `floor` are parts of it. In `lookup`, `find` and
//! `floor` the processor begins one request before it is done with the one before, in `chained` and `chained_floor` it cannot:
//! which request is next is read from the answer.

use std::{hint::black_box, net::Ipv4Addr, sync::Arc};

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use identity_core::{
    lookup::{
        Allow, Assignment, Binding, Caller, Decision, Deny, NodeIndex, Options, Published, Request, RequestedIdentity,
        Source,
    },
    pod::{Pod, PodPhase, PodRef},
};
use identity_crd::{
    AzureAssignedIdentity, AzureAssignedIdentitySpec, AzureIdentity, AzureIdentityBinding, AzureIdentityBindingSpec,
    AzureIdentitySpec,
};
use jiff::Timestamp;

/// As in the binaries.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const NAMESPACES: usize = 100;
const SIZES: [usize; 3] = [10, 1_000, 100_000];
/// Requests drawn in advance; more than any cache of addresses would hold.
const DRAWN: usize = 1 << 17;
const VAULT: &str = "https://vault.azure.net";
const STORAGE: &str = "https://storage.azure.com/";
const GRAPH: &str = "https://graph.microsoft.com";

/// What the identities of a pod are: each kind has its own bindings.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// One identity, for any resource.
    Sole,
    /// Two, of which one has the higher weight.
    Two,
    /// One, for two resources only.
    Limited,
}

fn kind(pod: usize) -> Kind {
    match pod % 4 {
        0 | 1 => Kind::Sole,
        2 => Kind::Two,
        _ => Kind::Limited,
    }
}

fn namespace(pod: usize) -> String {
    format!("team-{}", pod / 4 % NAMESPACES)
}

fn address(pod: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + u32::try_from(pod).expect("10.0.0.0/8 has room"))
}

fn client_id(identity: &str) -> String {
    let text = format!("{:0>12}", identity.bytes().fold(7u64, |sum, b| (sum * 31 + u64::from(b)) % 1_000_000_000_000));
    format!("aaaaaaaa-0000-4000-8000-{text}")
}

fn pod(number: usize) -> Pod {
    Pod {
        reference: Arc::new(PodRef {
            namespace: namespace(number).into(),
            name: format!("web-7c5ddbdf54-{number:06}").into(),
            uid: format!("0b2d4f6a-1c3e-4a5b-8c7d-{number:012}").into(),
            service_account: "default".into(),
        }),
        node: Some("node-1".into()),
        labels: [("aadpodidbinding".to_owned(), selector(kind(number)).to_owned())].into(),
        service_account: "default".into(),
        addresses: vec![address(number).into()],
        phase: PodPhase::Running,
        host_network: false,
        deleting: false,
    }
}

const fn selector(kind: Kind) -> &'static str {
    match kind {
        Kind::Sole => "sole",
        Kind::Two => "two",
        Kind::Limited => "limited",
    }
}

fn identity(namespace: &str, name: &str) -> AzureIdentity {
    let mut object = AzureIdentity::new(
        name,
        AzureIdentitySpec {
            resource_id: Some(format!(
                "/subscriptions/11111111-1111-4111-8111-111111111111/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{name}"
            )),
            client_id: Some(client_id(&format!("{namespace}/{name}"))),
            ..AzureIdentitySpec::default()
        },
    );
    object.metadata.namespace = Some(namespace.into());
    object.metadata.uid = Some(format!("identity-{namespace}-{name}"));
    object
}

fn binding(namespace: &str, name: &str, kind: Kind, weight: i32) -> AzureIdentityBinding {
    let mut object = AzureIdentityBinding::new(
        name,
        AzureIdentityBindingSpec {
            azure_identity: Some(name.into()),
            selector: Some(selector(kind).into()),
            weight: Some(weight),
            audiences: (kind == Kind::Limited).then(|| vec![STORAGE.into(), "https://vault.azure.net/".into()]),
            ..AzureIdentityBindingSpec::default()
        },
    );
    object.metadata.namespace = Some(namespace.into());
    object.metadata.uid = Some(format!("binding-{namespace}-{name}"));
    object
}

/// The bindings of every namespace: name, kind, weight.
const BINDINGS: [(&str, Kind, i32); 4] =
    [("sole", Kind::Sole, 0), ("first", Kind::Two, 10), ("second", Kind::Two, 5), ("limited", Kind::Limited, 0)];

fn assignments(number: usize) -> Vec<AzureAssignedIdentity> {
    let namespace = namespace(number);
    let of_kind = BINDINGS.iter().filter(|(_, k, _)| *k == kind(number));
    of_kind
        .map(|(name, kind, weight)| {
            assignment(number, &identity(&namespace, name), &binding(&namespace, name, *kind, *weight))
        })
        .collect()
}

fn assignment(number: usize, identity: &AzureIdentity, binding: &AzureIdentityBinding) -> AzureAssignedIdentity {
    let (namespace, pod) = (namespace(number), pod(number));
    let name = identity.metadata.name.as_deref().unwrap_or_default();
    let mut object = AzureAssignedIdentity::new(
        &format!("{}-{name}", pod.reference.name),
        AzureAssignedIdentitySpec {
            azure_identity_ref: Some(Box::new(identity.clone())),
            azure_binding_ref: Some(Box::new(binding.clone())),
            pod: Some(pod.reference.name.to_string()),
            pod_namespace: Some(namespace.clone()),
            pod_uid: Some(pod.reference.uid.to_string()),
            node_name: Some("node-1".into()),
            ..AzureAssignedIdentitySpec::default()
        },
    );
    object.metadata.namespace = Some(namespace);
    object
}

fn index(pods: usize) -> NodeIndex {
    let mut index = NodeIndex::new(Options::default());
    for number in 0..NAMESPACES {
        for (name, kind, weight) in BINDINGS {
            index.apply_binding(Binding::from(&binding(&format!("team-{number}"), name, kind, weight)));
        }
    }
    // As they would appear: in no particular order.
    for number in order(pods) {
        index.apply_pod(pod(number));
        for assignment in assignments(number) {
            index.apply_assignment(&assignment).expect("a valid assignment");
        }
    }
    index
}

/// Numbers that look random and are the same in each run (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % bound as u64).expect("below a usize")
    }
}

/// 0 … `count` shuffled.
fn order(count: usize) -> Vec<usize> {
    let (mut numbers, mut random) = ((0..count).collect::<Vec<_>>(), Random(1));
    for i in (1..count).rev() {
        numbers.swap(i, random.below(i + 1));
    }
    numbers
}

/// A request in eight bytes, so that the list of them takes little of the caches that are measured.
#[derive(Clone, Copy)]
struct Drawn {
    address: u32,
    /// In [`RESOURCES`].
    resource: u16,
    /// Which client id is named; 0 is none.
    named: u16,
}

const RESOURCES: [&str; 3] = [VAULT, STORAGE, GRAPH];

/// Client ids, beginning with none, and requests.
fn draw(pods: usize) -> (Vec<String>, Vec<Drawn>) {
    let mut client_ids = vec![String::new()];
    for number in 0..NAMESPACES {
        client_ids.extend(BINDINGS.map(|(name, ..)| client_id(&format!("team-{number}/{name}"))));
    }
    let mut random = Random(2);
    let mut one = || {
        let number = random.below(pods);
        let of_namespace = number / 4 % NAMESPACES * BINDINGS.len();
        let of_kind = match kind(number) {
            Kind::Sole => 0,
            Kind::Two => 1 + random.below(2),
            Kind::Limited => 3,
        };
        let named = if random.below(2) == 0 { 1 + of_namespace + of_kind } else { 0 };
        let resource = match (kind(number), random.below(16)) {
            (Kind::Limited, 0) => 2,
            (_, n) => u16::from(n % 2 == 0),
        };
        Drawn { address: address(number).to_bits(), resource, named: u16::try_from(named).expect("a few hundred") }
    };
    let drawn = (0..DRAWN).map(|_| one()).collect();
    (client_ids, drawn)
}

fn decide(published: &Published, client_ids: &[String], drawn: Drawn) -> Decision {
    let caller = Caller { address: Ipv4Addr::from_bits(drawn.address).into(), pinned: None };
    let identity = match drawn.named {
        0 => RequestedIdentity::Default,
        named => RequestedIdentity::ClientId(&client_ids[usize::from(named)]),
    };
    let request = Request { resource: RESOURCES[usize::from(drawn.resource)], identity };
    published.load().decide(&caller, &request, Timestamp::UNIX_EPOCH)
}

/// The request after `next`. It is always the one that follows, but that depends on what was `read`: its highest bit, which
/// is never set.
fn after(next: usize, read: usize) -> usize {
    (next + 1 + (read >> (usize::BITS - 1))) % DRAWN
}

/// What is read from an answer: how often its pod and its assignment are used, each in memory of that pod alone.
fn read(pod: &Arc<PodRef>, assignment: &Arc<Assignment>) -> usize {
    Arc::strong_count(pod) | Arc::strong_count(assignment)
}

fn lookup(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lookup");
    for pods in SIZES {
        let published = Published::default();
        index(pods).publish(&published);
        let (client_ids, requests) = draw(pods);
        let count = |test: fn(&Decision) -> bool| {
            requests.iter().filter(|drawn| test(&decide(&published, &client_ids, **drawn))).count()
        };
        // Measured is what was meant: every pod is known, one in sixteen of the limited (a quarter) is refused.
        assert_eq!(count(|d| matches!(d, Decision::Wait(_))), 0);
        let refused = count(|d| matches!(d, Decision::Deny(_)));
        assert!((DRAWN / 128..DRAWN / 32).contains(&refused), "{refused} of {DRAWN}");
        let mut next = 0;
        group.bench_function(BenchmarkId::from_parameter(pods), |bencher| {
            bencher.iter(|| {
                next = (next + 1) % DRAWN;
                black_box(decide(&published, &client_ids, requests[next]))
            });
        });
    }
    group.finish();
}

/// Of a decision, only finding who has the address.
fn find(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("find");
    for pods in [SIZES[0], SIZES[2]] {
        let published = Published::default();
        index(pods).publish(&published);
        let (_, requests) = draw(pods);
        let mut next = 0;
        group.bench_function(BenchmarkId::from_parameter(pods), |bencher| {
            bencher.iter(|| {
                next = (next + 1) % DRAWN;
                let address = Ipv4Addr::from_bits(requests[next].address).into();
                assert!(black_box(published.load().pod_at(address).is_some()));
            });
        });
    }
    group.finish();
}

/// What a decision by the number of the pod owns.
fn owned(published: &Published, client_ids: &[String], pods: usize) -> Vec<(Arc<PodRef>, Arc<Assignment>)> {
    let one = |number| {
        let address = address(number).to_bits();
        match decide(published, client_ids, Drawn { address, resource: 1, named: 0 }) {
            Decision::Allow(Allow { pod, source: Source::Assignment(assignment), .. }) => (pod, assignment),
            other => panic!("{other:?}"),
        }
    };
    (0..pods).map(one).collect()
}

/// The same addresses in the same order, an array in place of the table and no decision: the same objects in memory are owned
/// and let go.
fn floor(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("floor");
    for pods in [SIZES[0], SIZES[2]] {
        let published = Published::default();
        index(pods).publish(&published);
        let (client_ids, requests) = draw(pods);
        let owned = owned(&published, &client_ids, pods);
        let first = address(0).to_bits();
        let mut next = 0;
        group.bench_function(BenchmarkId::from_parameter(pods), |bencher| {
            bencher.iter(|| {
                next = (next + 1) % DRAWN;
                let at = usize::try_from(requests[next].address - first).expect("below the number of pods");
                let (pod, assignment) = &owned[at];
                black_box((Arc::clone(pod), Arc::clone(assignment)))
            });
        });
    }
    group.finish();
}

/// A decision from its beginning to its end, and none in the meantime.
fn chained(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("chained");
    for pods in [SIZES[0], SIZES[2]] {
        let published = Published::default();
        index(pods).publish(&published);
        let (client_ids, requests) = draw(pods);
        let mut next = 0;
        group.bench_function(BenchmarkId::from_parameter(pods), |bencher| {
            bencher.iter(|| {
                let decision = decide(&published, &client_ids, requests[next]);
                let read = match &decision {
                    Decision::Allow(Allow { pod, source: Source::Assignment(assignment), .. })
                    | Decision::Deny(Deny::Audience(pod, assignment)) => read(pod, assignment),
                    other => panic!("{other:?}"),
                };
                next = after(next, read);
                black_box(decision)
            });
        });
    }
    group.finish();
}

/// The same of [`floor`]: what no way of deciding can do without on this machine, as long as an answer owns its pod and its
/// assignment, and the next question comes after it.
fn chained_floor(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("chained_floor");
    for pods in [SIZES[0], SIZES[2]] {
        let published = Published::default();
        index(pods).publish(&published);
        let (client_ids, requests) = draw(pods);
        let owned = owned(&published, &client_ids, pods);
        let (first, mut next) = (address(0).to_bits(), 0);
        group.bench_function(BenchmarkId::from_parameter(pods), |bencher| {
            bencher.iter(|| {
                let at = usize::try_from(requests[next].address - first).expect("below the number of pods");
                let (pod, assignment) = &owned[at];
                let answer = (Arc::clone(pod), Arc::clone(assignment));
                next = after(next, read(&answer.0, &answer.1));
                black_box(answer)
            });
        });
    }
    group.finish();
}

/// Half of the changes are a pod whose address changes (so that two entries do), half an assignment of another weight; each
/// is applied and published.
enum Change {
    Pod(Pod),
    Assignment(Box<AzureAssignedIdentity>),
}

fn publish(criterion: &mut Criterion) {
    const PODS: usize = 100_000;
    let mut group = criterion.benchmark_group("publish");
    let (mut index, published) = (index(PODS), Published::default());
    index.publish(&published);
    let (mut random, mut serial, mut moved) = (Random(3), 0, vec![false; PODS]);
    let mut change = || {
        serial += 1;
        let number = random.below(PODS);
        if serial % 2 == 0 {
            moved[number] = !moved[number];
            let at = if moved[number] { number + (1 << 20) } else { number };
            return Change::Pod(Pod { addresses: vec![address(at).into()], ..pod(number) });
        }
        let mut assignment = assignments(number).swap_remove(0);
        let binding = assignment.spec.azure_binding_ref.as_mut().expect("there");
        binding.spec.weight = Some(serial);
        Change::Assignment(Box::new(assignment))
    };
    group.bench_function(BenchmarkId::from_parameter(PODS), |bencher| {
        bencher.iter_batched(
            &mut change,
            |change| {
                match change {
                    Change::Pod(pod) => index.apply_pod(pod),
                    Change::Assignment(object) => index.apply_assignment(&object).expect("a valid assignment"),
                }
                assert!(index.publish(&published), "a change that nothing depends on measures nothing");
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

/// A pod with so many identities, none named (the highest weight wins) or any of them by client id.
fn identities(criterion: &mut Criterion) {
    const PODS: usize = 250;
    let mut group = criterion.benchmark_group("identities");
    for many in [1, 20, 100] {
        let names: Vec<String> = (0..many).map(|n| format!("identity-{n}")).collect();
        let mut index = NodeIndex::new(Options::default());
        for number in 0..PODS {
            index.apply_pod(pod(number));
            for (weight, name) in (0..).zip(&names) {
                let namespace = namespace(number);
                let assignment =
                    assignment(number, &identity(&namespace, name), &binding(&namespace, name, Kind::Sole, weight));
                index.apply_assignment(&assignment).expect("a valid assignment");
            }
        }
        let published = Published::default();
        index.publish(&published);
        let mut random = Random(4);
        let requests: Vec<(u32, Option<String>)> = (0..DRAWN / 8)
            .map(|drawn| {
                let number = random.below(PODS);
                let one = &names[random.below(many)];
                let asked = (drawn % 2 == 0).then(|| client_id(&format!("{}/{one}", namespace(number))));
                (address(number).to_bits(), asked)
            })
            .collect();
        let decide = |(address, named): &(u32, Option<String>)| {
            let caller = Caller { address: Ipv4Addr::from_bits(*address).into(), pinned: None };
            let identity = named.as_deref().map_or(RequestedIdentity::Default, RequestedIdentity::ClientId);
            published.load().decide(&caller, &Request { resource: VAULT, identity }, Timestamp::UNIX_EPOCH)
        };
        assert!(requests.iter().all(|request| matches!(decide(request), Decision::Allow(_))), "{many}");
        let mut next = 0;
        group.bench_function(BenchmarkId::from_parameter(many), |bencher| {
            bencher.iter(|| {
                next = (next + 1) % requests.len();
                black_box(decide(&requests[next]))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, lookup, find, floor, chained, chained_floor, identities, publish);
criterion_main!(benches);
