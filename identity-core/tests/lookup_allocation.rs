//! A decision allocates nothing, whatever it is. Counted by the allocator itself.

#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use common::{assigned, binding, managed_identity, pod_at};
use identity_core::{
    lookup::{Binding, Caller, Decision, Deny, NodeIndex, Options, Published, Request, RequestedIdentity, Wait},
    pod::Pod,
};
use jiff::Timestamp;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator; counts for each thread how often it was asked.
struct Counting;

#[expect(unsafe_code, reason = "an allocator cannot be written without; it only counts and passes on")]
// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count() {
    // A thread that ends may allocate after its variables are gone.
    let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
}

fn allocations(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

/// A word for each kind of decision.
fn kind(decision: &Decision) -> &'static str {
    match decision {
        Decision::Allow(_) => "allow",
        Decision::Wait(Wait::UnknownAddress) => "unknown address",
        Decision::Wait(Wait::AmbiguousAddress) => "ambiguous address",
        Decision::Wait(Wait::Assignment(_)) => "assignment",
        Decision::Deny(Deny::HostNetwork) => "host network",
        Decision::Deny(Deny::AddressChangedHands) => "changed hands",
        Decision::Deny(Deny::NoBinding(_)) => "no binding",
        Decision::Deny(Deny::IdentityNotFound(_)) => "not found",
        Decision::Deny(Deny::MultipleIdentities(_)) => "multiple",
        Decision::Deny(Deny::Audience(..)) => "audience",
        Decision::Deny(Deny::Closed { .. }) => "closed",
    }
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(Box::new(std::hint::black_box(1_u8)))), 1);
    assert_eq!(allocations(|| ()), 0);
}

#[test]
fn no_decision_allocates() {
    let mut index = NodeIndex::new(Options::default());
    let pods = [
        pod_at("demo", "sole", "u1", "10.0.0.1"),
        pod_at("demo", "two", "u2", "10.0.0.2"),
        pod_at("demo", "tie", "u3", "10.0.0.3"),
        pod_at("demo", "pending", "u4", "10.0.0.4"),
        pod_at("other", "nothing", "u5", "10.0.0.5"),
        pod_at("demo", "one", "u6", "10.0.0.6"),
        pod_at("demo", "another", "u7", "10.0.0.6"),
        Pod { host_network: true, ..pod_at("demo", "host", "u8", "10.0.0.8") },
        pod_at("demo", "sixth", "u9", "fd00::9"),
        pod_at("demo", "boxed", "u10", "10.0.0.10"),
        pod_at("demo", "closed", "u11", "10.0.0.11"),
    ];
    let mut limited = binding("demo", "b1", "b1", "first");
    limited.spec.audiences = Some(vec!["https://vault.azure.net/".into(), "https://storage.azure.com".into()]);
    let mut heavy = binding("demo", "b2", "b2", "second");
    heavy.spec.weight = Some(1);
    let light = binding("demo", "b3", "b3", "third");
    for binding in [&limited, &heavy, &light] {
        let mut selective = binding.clone();
        selective.spec.selector = Some("none".into());
        index.apply_binding(Binding::from(&selective));
    }
    let time_box = |not_after: &str| {
        let window = identity_crd::Window { schedule: "* * * * *".into(), duration: "1h".into(), ..Default::default() };
        Some(identity_crd::TimeBox {
            not_after: Some(not_after.into()),
            windows: Some(vec![window]),
            ..Default::default()
        })
    };
    let mut boxed = binding("demo", "b5", "b5", "first");
    boxed.spec.time_box = time_box("1970-01-02T00:00:00Z");
    let mut closed = binding("demo", "b6", "b6", "first");
    closed.spec.time_box = time_box("1969-12-31T00:00:00Z");
    let mut awaited = binding("demo", "b4", "b4", "fourth");
    awaited.spec.selector = None;
    awaited.spec.service_accounts = Some(vec!["awaited".into()]);
    index.apply_binding(Binding::from(&awaited));
    let identity = |name: &str| managed_identity("demo", name, name);
    for (pod, name, binding) in [
        (0, "first", &limited),
        (1, "first", &limited),
        (1, "second", &heavy),
        (2, "first", &limited),
        (2, "third", &light),
        (8, "first", &limited),
        (9, "first", &boxed),
        (10, "first", &closed),
    ] {
        index.apply_assignment(&assigned(&pods[pod], &identity(name), binding)).unwrap();
    }
    for mut pod in pods {
        if &*pod.reference.name == "pending" {
            pod.service_account = "awaited".into();
        }
        index.apply_pod(pod);
    }
    index.set_node_addresses(["192.0.2.1".parse().unwrap()]);
    let published = Published::default();
    index.publish(&published);
    drop(published.load()); // a thread's first load sets up its slot

    let (vault, graph) = ("https://vault.azure.net", "https://graph.microsoft.com");
    let resource_id = identity("first").spec.resource_id.unwrap().to_uppercase();
    let default = RequestedIdentity::Default;
    for (address, pinned, resource, identity, expected) in [
        ("10.0.0.1", None, vault, default, "allow"),
        ("10.0.0.1", Some("u1"), "HTTPS://Vault.azure.net", default, "allow"),
        ("10.0.0.1", Some("u0"), vault, default, "changed hands"),
        ("10.0.0.1", None, graph, default, "audience"),
        ("10.0.0.1", None, vault, RequestedIdentity::ClientId("CLIENT-first"), "allow"),
        ("10.0.0.1", None, vault, RequestedIdentity::ResourceId(&resource_id), "allow"),
        ("10.0.0.1", None, vault, RequestedIdentity::ObjectId("x"), "not found"),
        ("10.0.0.2", None, graph, default, "allow"),
        ("10.0.0.2", None, vault, RequestedIdentity::ClientId("client-first"), "allow"),
        ("10.0.0.2", None, graph, RequestedIdentity::ClientId("client-first"), "audience"),
        ("10.0.0.3", None, vault, default, "multiple"),
        ("10.0.0.4", None, vault, default, "assignment"),
        ("10.0.0.5", None, vault, default, "no binding"),
        ("10.0.0.6", None, vault, default, "ambiguous address"),
        ("10.0.0.7", None, vault, default, "unknown address"),
        ("10.0.0.8", None, vault, default, "host network"),
        ("192.0.2.1", None, vault, default, "host network"),
        ("fd00::9", None, vault, default, "allow"),
        ("::ffff:10.0.0.1", None, vault, default, "allow"),
        ("10.0.0.10", None, vault, default, "allow"),
        ("10.0.0.11", None, vault, default, "closed"),
    ] {
        let caller = Caller { address: address.parse().unwrap(), pinned };
        let request = Request { resource, identity };
        let mut decided = "";
        // The first that asks after a time box has changed works that out, and remembers it.
        drop(published.load().decide(&caller, &request, Timestamp::UNIX_EPOCH));
        let count = allocations(|| {
            let decision = published.load().decide(&caller, &request, Timestamp::UNIX_EPOCH);
            decided = kind(&decision);
        });
        assert_eq!((decided, count), (expected, 0), "{address} {pinned:?} {resource} {identity:?}");
    }
}
