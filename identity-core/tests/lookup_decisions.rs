//! What each kind of caller gets for each kind of request, case by case.

#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

mod common;

use common::{assigned, binding, labels, managed_identity, pod_at};
use identity_core::{
    lookup::{
        Binding, Caller, Decision, Deny, Exception, NodeIndex, Options, Published, Request, RequestedIdentity, Source,
        Wait,
    },
    pod::{Pod, PodPhase},
};
use identity_crd::{
    AzureIdentity, AzureIdentityBinding, AzurePodIdentityException, AzurePodIdentityExceptionSpec, Condition,
};
use jiff::Timestamp;

const VAULT: &str = "https://vault.azure.net";
const STORAGE: &str = "https://storage.azure.com";
const DEFAULT: RequestedIdentity<'_> = RequestedIdentity::Default;

/// An index with pod `demo/web` (UID `u1`) at 10.0.0.1.
fn node() -> NodeIndex {
    let mut index = NodeIndex::new(Options::default());
    index.apply_pod(web());
    index
}

fn web() -> Pod {
    pod_at("demo", "web", "u1", "10.0.0.1")
}

fn identity(name: &str) -> AzureIdentity {
    managed_identity("demo", name, &format!("identity-{name}"))
}

fn bound(name: &str, identity: &str, weight: i32) -> AzureIdentityBinding {
    let mut object = binding("demo", name, &format!("binding-{name}"), identity);
    object.spec.weight = Some(weight);
    object
}

fn limited(name: &str, identity: &str, audiences: &[&str]) -> AzureIdentityBinding {
    let mut object = bound(name, identity, 0);
    object.spec.audiences = Some(audiences.iter().map(|a| (*a).to_owned()).collect());
    object
}

fn assign(index: &mut NodeIndex, identity: &AzureIdentity, binding: &AzureIdentityBinding) {
    index.apply_assignment(&assigned(&web(), identity, binding)).unwrap();
}

fn expect(index: &mut NodeIndex, binding: &AzureIdentityBinding) {
    index.apply_binding(Binding::from(binding));
}

fn describe(decision: &Decision) -> String {
    match decision {
        Decision::Allow(allow) => match &allow.source {
            Source::Assignment(assignment) => {
                let (identity, binding) = (&assignment.identity.object.name, &assignment.binding.name);
                format!("{} gets {identity} through {binding}", allow.pod.uid)
            }
            Source::Exception(exception) => format!("{} is exempted by {}", allow.pod.uid, exception.key()),
        },
        Decision::Wait(Wait::UnknownAddress) => "wait: unknown address".into(),
        Decision::Wait(Wait::AmbiguousAddress) => "wait: ambiguous address".into(),
        Decision::Wait(Wait::Assignment(pod)) => format!("wait: assignment of {}", pod.uid),
        Decision::Deny(Deny::HostNetwork) => "deny: host network".into(),
        Decision::Deny(Deny::AddressChangedHands) => "deny: changed hands".into(),
        Decision::Deny(Deny::NoBinding(pod)) => format!("deny: no binding for {}", pod.uid),
        Decision::Deny(Deny::IdentityNotFound(pod)) => format!("deny: not an identity of {}", pod.uid),
        Decision::Deny(Deny::MultipleIdentities(pod)) => format!("deny: several identities of {}", pod.uid),
        Decision::Deny(Deny::Audience(_, through)) => format!("deny: audience of {}", through.binding.name),
        Decision::Deny(Deny::Closed { assignment, opens, reason, .. }) => {
            let opens = opens.map_or("never".into(), |opens| opens.to_string());
            format!("deny: {} is closed ({}), opens {opens}", assignment.binding.name, reason.as_str())
        }
    }
}

fn ask_as(index: &mut NodeIndex, address: &str, pinned: Option<&str>, request: &Request<'_>) -> String {
    let published = Published::default();
    index.publish(&published);
    let snapshot = index.snapshot();
    let caller = Caller { address: address.parse().unwrap(), pinned };
    let decision = snapshot.decide(&caller, request, Timestamp::UNIX_EPOCH);
    let (explained, _) = snapshot.explain(&caller, request, Timestamp::UNIX_EPOCH);
    assert_eq!(describe(&decision), describe(&explained), "the explanation decides the same");
    describe(&decision)
}

fn ask(index: &mut NodeIndex, resource: &str, identity: RequestedIdentity<'_>) -> String {
    ask_as(index, "10.0.0.1", None, &Request { resource, identity })
}

/// The default request from an address.
fn from(index: &mut NodeIndex, address: &str) -> String {
    ask_as(index, address, None, &Request { resource: VAULT, identity: DEFAULT })
}

#[test]
fn the_highest_weight_wins_among_identities() {
    for (weights, expected) in [
        ([0, 1], "u1 gets second through b2"),
        ([5, 1], "u1 gets first through b1"),
        ([-1, -2], "u1 gets first through b1"),
        ([3, 3], "deny: several identities of u1"),
        ([0, 0], "deny: several identities of u1"),
    ] {
        let mut node = node();
        assign(&mut node, &identity("first"), &bound("b1", "first", weights[0]));
        assign(&mut node, &identity("second"), &bound("b2", "second", weights[1]));
        assert_eq!(ask(&mut node, VAULT, DEFAULT), expected, "{weights:?}");
    }
}

#[test]
fn weight_comes_before_audience() {
    let mut node = node();
    let mut heavy = limited("b1", "first", &[STORAGE]);
    heavy.spec.weight = Some(2);
    assign(&mut node, &identity("first"), &heavy);
    assign(&mut node, &identity("second"), &bound("b2", "second", 1));
    assert_eq!(ask(&mut node, VAULT, DEFAULT), "deny: audience of b1", "never falls through to the lesser identity");
    assert_eq!(ask(&mut node, STORAGE, DEFAULT), "u1 gets first through b1");
    assert_eq!(ask(&mut node, VAULT, RequestedIdentity::ClientId("client-second")), "u1 gets second through b2");
}

#[test]
fn a_tie_is_broken_by_naming_one() {
    let mut node = node();
    assign(&mut node, &identity("first"), &bound("b1", "first", 1));
    assign(&mut node, &identity("second"), &bound("b2", "second", 1));
    assign(&mut node, &identity("third"), &bound("b3", "third", 0));
    assert_eq!(ask(&mut node, VAULT, DEFAULT), "deny: several identities of u1");
    assert_eq!(ask(&mut node, VAULT, RequestedIdentity::ClientId("client-second")), "u1 gets second through b2");
    assert_eq!(ask(&mut node, VAULT, RequestedIdentity::ClientId("client-third")), "u1 gets third through b3");
}

#[test]
fn of_several_bindings_to_one_identity_any_that_allows_will_do() {
    let mut node = node();
    assign(&mut node, &identity("one"), &limited("b1", "one", &[STORAGE]));
    assign(&mut node, &identity("one"), &limited("b2", "one", &[VAULT]));
    assert_eq!(ask(&mut node, VAULT, DEFAULT), "u1 gets one through b2");
    assert_eq!(ask(&mut node, STORAGE, DEFAULT), "u1 gets one through b1");
    assert_eq!(ask(&mut node, "https://graph.microsoft.com", DEFAULT), "deny: audience of b1");

    // Of a lower weight, too: weights choose between identities, not between bindings.
    let mut heavy = limited("b1", "one", &[STORAGE]);
    heavy.spec.weight = Some(9);
    assign(&mut node, &identity("one"), &heavy);
    assert_eq!(ask(&mut node, VAULT, DEFAULT), "u1 gets one through b2");
}

#[test]
fn an_identity_is_named_by_any_of_its_ids_in_any_case() {
    let mut one = identity("one");
    one.spec.client_id = Some("AAAAAAAA-0000-4000-8000-00000000000b".into());
    one.spec.object_id = Some("bbbbbbbb-0000-4000-8000-00000000000C".into());
    let arm = one.spec.resource_id.clone().unwrap();
    let (lower, upper) = (arm.to_lowercase(), arm.to_uppercase());
    let longer = format!("{arm}x");
    let (yes, no) = ("u1 gets one through b1", "deny: not an identity of u1");
    for (named, expected) in [
        (RequestedIdentity::ClientId("aaaaaaaa-0000-4000-8000-00000000000B"), yes),
        (RequestedIdentity::ClientId("AAAAAAAA-0000-4000-8000-00000000000b"), yes),
        (RequestedIdentity::ClientId("aaaaaaaa-0000-4000-8000-00000000000c"), no),
        (RequestedIdentity::ClientId("aaaaaaaa-0000-4000-8000-00000000000"), no),
        (RequestedIdentity::ClientId(""), no),
        (RequestedIdentity::ClientId("bbbbbbbb-0000-4000-8000-00000000000c"), no),
        (RequestedIdentity::ObjectId("BBBBBBBB-0000-4000-8000-00000000000c"), yes),
        (RequestedIdentity::ObjectId("aaaaaaaa-0000-4000-8000-00000000000b"), no),
        (RequestedIdentity::ResourceId(&arm), yes),
        (RequestedIdentity::ResourceId(&lower), yes),
        (RequestedIdentity::ResourceId(&upper), yes),
        (RequestedIdentity::ResourceId(&longer), no),
    ] {
        let mut node = node();
        assign(&mut node, &one, &bound("b1", "one", 0));
        assert_eq!(ask(&mut node, VAULT, named), expected, "{named:?}");
    }
}

#[test]
fn an_identity_that_has_no_such_id_is_not_named_by_an_empty_one() {
    let mut node = node();
    let mut one = identity("one");
    one.spec.client_id = None;
    one.spec.object_id = Some(String::new());
    assign(&mut node, &one, &bound("b1", "one", 0));
    assert_eq!(ask(&mut node, VAULT, RequestedIdentity::ClientId("")), "deny: not an identity of u1");
    assert_eq!(ask(&mut node, VAULT, RequestedIdentity::ObjectId("")), "deny: not an identity of u1");
    assert_eq!(ask(&mut node, VAULT, DEFAULT), "u1 gets one through b1");
}

#[test]
fn another_pods_identity_cannot_be_named() {
    let mut node = node();
    let other = pod_at("demo", "other", "u2", "10.0.0.2");
    node.apply_pod(other.clone());
    assign(&mut node, &identity("one"), &bound("b1", "one", 0));
    node.apply_assignment(&assigned(&other, &identity("two"), &bound("b2", "two", 0))).unwrap();
    assert_eq!(ask(&mut node, VAULT, RequestedIdentity::ClientId("client-two")), "deny: not an identity of u1");
    let request = Request { resource: VAULT, identity: RequestedIdentity::ClientId("client-two") };
    assert_eq!(ask_as(&mut node, "10.0.0.2", None, &request), "u2 gets two through b2");
}

#[test]
fn audiences_are_a_list_of_what_is_allowed() {
    let denied = "deny: audience of b1";
    let allowed = "u1 gets one through b1";
    for (of_identity, of_binding, resource, expected) in [
        (None, None, "anything", allowed),
        (Some(vec![]), Some(vec![]), "anything", allowed),
        (Some(vec![VAULT]), None, VAULT, allowed),
        (Some(vec![VAULT]), None, "https://vault.azure.net/", allowed),
        (Some(vec!["https://vault.azure.net/"]), None, VAULT, allowed),
        (Some(vec!["https://vault.azure.net/"]), None, "https://vault.azure.net//", denied),
        (Some(vec![VAULT]), None, "https://vault.azure.net.evil.example", denied),
        (Some(vec![VAULT]), None, "HTTPS://Vault.Azure.Net", allowed),
        (Some(vec![VAULT]), None, STORAGE, denied),
        (Some(vec![VAULT, STORAGE]), None, STORAGE, allowed),
        (None, Some(vec![VAULT]), VAULT, allowed),
        (None, Some(vec![VAULT]), STORAGE, denied),
        (Some(vec![VAULT, STORAGE]), Some(vec![STORAGE]), STORAGE, allowed),
        (Some(vec![VAULT, STORAGE]), Some(vec![STORAGE]), VAULT, denied),
        (Some(vec![VAULT]), Some(vec![STORAGE]), VAULT, denied),
        (Some(vec![VAULT]), Some(vec![STORAGE]), STORAGE, denied),
    ] {
        let list = |l: &Vec<&str>| l.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>();
        let (mut one, mut binding) = (identity("one"), bound("b1", "one", 0));
        one.spec.audiences = of_identity.as_ref().map(list);
        binding.spec.audiences = of_binding.as_ref().map(list);
        for named in [DEFAULT, RequestedIdentity::ClientId("client-one")] {
            let mut node = node();
            assign(&mut node, &one, &binding);
            assert_eq!(
                ask(&mut node, resource, named),
                expected,
                "{of_identity:?} {of_binding:?} {resource} {named:?}"
            );
        }
    }
}

#[test]
fn what_is_still_to_come_is_waited_for_and_what_is_not_is_refused_at_once() {
    let (pending, one) = ("wait: assignment of u1", RequestedIdentity::ClientId("client-one"));
    let mut node = node();
    assert_eq!(ask(&mut node, VAULT, DEFAULT), "deny: no binding for u1");
    assert_eq!(ask(&mut node, VAULT, one), "deny: no binding for u1");

    let first = bound("b1", "one", 0);
    expect(&mut node, &first);
    assert_eq!(ask(&mut node, VAULT, DEFAULT), pending);
    assert_eq!(ask(&mut node, VAULT, one), pending);
    assign(&mut node, &identity("one"), &first);
    assert_eq!(ask(&mut node, VAULT, DEFAULT), "u1 gets one through b1");
    assert_eq!(
        ask(&mut node, VAULT, RequestedIdentity::ClientId("client-two")),
        "deny: not an identity of u1",
        "nothing more is to come"
    );

    // Another identity with a lower weight changes nothing; with the same or a higher one it would.
    expect(&mut node, &bound("b2", "two", -1));
    assert_eq!(ask(&mut node, VAULT, DEFAULT), "u1 gets one through b1");
    assert_eq!(ask(&mut node, VAULT, one), "u1 gets one through b1");
    assert_eq!(ask(&mut node, VAULT, RequestedIdentity::ClientId("client-two")), pending, "it may be the one to come");
    expect(&mut node, &bound("b2", "two", 0));
    assert_eq!(ask(&mut node, VAULT, DEFAULT), pending, "it would be a tie");
    expect(&mut node, &bound("b2", "two", 1));
    assert_eq!(ask(&mut node, VAULT, DEFAULT), pending, "it would win");
    assert_eq!(ask(&mut node, VAULT, one), "u1 gets one through b1", "a named identity is not waited with");

    node.delete_binding(&bound("b2", "two", 1).metadata_key());
    assert_eq!(ask(&mut node, VAULT, DEFAULT), "u1 gets one through b1");
}

trait Key {
    fn metadata_key(&self) -> identity_core::object::ObjectKey;
}

impl Key for AzureIdentityBinding {
    fn metadata_key(&self) -> identity_core::object::ObjectKey {
        identity_core::lookup::ObjectRef::from(&self.metadata).key()
    }
}

#[test]
fn a_binding_to_come_of_the_same_identity_is_no_rival_but_may_allow_more() {
    let mut node = node();
    assign(&mut node, &identity("one"), &limited("b1", "one", &[STORAGE]));
    let second = limited("b2", "one", &[VAULT]);
    expect(&mut node, &second);
    assert_eq!(ask(&mut node, STORAGE, DEFAULT), "u1 gets one through b1");
    assert_eq!(ask(&mut node, VAULT, DEFAULT), "wait: assignment of u1");
    assert_eq!(ask(&mut node, VAULT, RequestedIdentity::ClientId("client-one")), "wait: assignment of u1");
    assign(&mut node, &identity("one"), &second);
    assert_eq!(ask(&mut node, VAULT, DEFAULT), "u1 gets one through b2");
}

#[test]
fn of_two_identities_that_share_an_id_both_may_have_more_to_come() {
    let mut node = node();
    let (mut one, mut two) = (identity("one"), identity("two"));
    (one.spec.client_id, two.spec.client_id) = (Some("shared".into()), Some("shared".into()));
    assign(&mut node, &one, &limited("b1", "one", &[STORAGE]));
    assign(&mut node, &two, &limited("b2", "two", &[STORAGE]));
    let shared = RequestedIdentity::ClientId("shared");
    assert_eq!(ask(&mut node, VAULT, shared), "deny: audience of b1");
    expect(&mut node, &bound("b3", "two", 0));
    assert_eq!(ask(&mut node, VAULT, shared), "wait: assignment of u1");
}

#[test]
fn an_assignment_that_is_not_usable_yet_is_waited_for() {
    let mut node = node();
    let mut object = assigned(&web(), &identity("one"), &limited("b1", "one", &[VAULT]));
    object.status.as_mut().unwrap().status = Some("Created".into());
    node.apply_assignment(&object).unwrap();
    assert_eq!(ask(&mut node, VAULT, DEFAULT), "wait: assignment of u1");
    assert_eq!(ask(&mut node, STORAGE, DEFAULT), "deny: audience of b1", "waiting would not help");
    object.status.as_mut().unwrap().status = Some("Assigned".into());
    node.apply_assignment(&object).unwrap();
    assert_eq!(ask(&mut node, VAULT, DEFAULT), "u1 gets one through b1");
}

#[test]
fn what_a_pod_has_does_not_wait_for_a_binding_that_comes_to_nothing() {
    let (waits, goes_on) = ("wait: assignment of u1", "u1 gets one through b1");
    for (said, expected) in [
        (Condition::new("IdentityFound", false, "NotFound", "", Some(1)), goes_on),
        (Condition::new("IdentityFound", false, "NotFound", "", None), goes_on),
        (Condition::new("IdentityFound", false, "NotFound", "", Some(0)), waits),
        (Condition::new("IdentityFound", true, "Found", "", Some(1)), waits),
        (Condition::new("Valid", false, "IdentityUnusable", "", Some(1)), goes_on),
        (Condition::new("Valid", false, "Invalid", "", Some(1)), waits),
    ] {
        let what = format!("{said:?}");
        let mut heavy = bound("b2", "two", 1);
        heavy.status.get_or_insert_default().conditions.push(said);
        let mut node = node();
        assign(&mut node, &identity("one"), &bound("b1", "one", 0));
        expect(&mut node, &heavy);
        assert_eq!(ask(&mut node, VAULT, DEFAULT), expected, "{what}");
        // With nothing else it is held in every case: the identity may be applied a moment after its binding.
        let mut node = self::node();
        expect(&mut node, &heavy);
        assert_eq!(ask(&mut node, VAULT, DEFAULT), waits, "{what}");
    }
}

#[test]
fn a_connection_stays_with_the_pod_it_began_with() {
    let mut node = node();
    assign(&mut node, &identity("one"), &bound("b1", "one", 0));
    let request = Request { resource: VAULT, identity: DEFAULT };
    assert_eq!(ask_as(&mut node, "10.0.0.1", Some("u1"), &request), "u1 gets one through b1");
    assert_eq!(ask_as(&mut node, "10.0.0.1", Some("u0"), &request), "deny: changed hands");
    assert_eq!(ask_as(&mut node, "10.0.0.1", Some(""), &request), "deny: changed hands");

    // The address goes to another pod, which has the same identity.
    node.delete_pod(&web().key());
    let next = pod_at("demo", "next", "u2", "10.0.0.1");
    node.apply_pod(next.clone());
    node.apply_assignment(&assigned(&next, &identity("one"), &bound("b1", "one", 0))).unwrap();
    assert_eq!(ask_as(&mut node, "10.0.0.1", Some("u1"), &request), "deny: changed hands");
    assert_eq!(ask_as(&mut node, "10.0.0.1", Some("u2"), &request), "u2 gets one through b1");
    assert_eq!(ask_as(&mut node, "10.0.0.1", None, &request), "u2 gets one through b1");
}

#[test]
fn an_address_that_is_used_again_brings_nothing_of_its_former_pod() {
    let mut node = node();
    assign(&mut node, &identity("one"), &bound("b1", "one", 0));
    node.delete_pod(&web().key());
    assert_eq!(from(&mut node, "10.0.0.1"), "wait: unknown address");
    node.apply_pod(Pod { labels: labels(&[]), ..pod_at("demo", "next", "u2", "10.0.0.1") });
    assert_eq!(from(&mut node, "10.0.0.1"), "deny: no binding for u2");
}

#[test]
fn a_pod_re_created_under_its_name_has_nothing_of_the_former() {
    let mut node = node();
    expect(&mut node, &bound("b1", "one", 0));
    assign(&mut node, &identity("one"), &bound("b1", "one", 0));
    let again = pod_at("demo", "web", "u2", "10.0.0.1");
    // The watch may compress the deletion away.
    node.apply_pod(again.clone());
    assert_eq!(from(&mut node, "10.0.0.1"), "wait: assignment of u2");
    node.apply_assignment(&assigned(&again, &identity("one"), &bound("b1", "one", 0))).unwrap();
    assert_eq!(from(&mut node, "10.0.0.1"), "u2 gets one through b1");
}

#[test]
fn an_assignment_without_pod_uid_counts_only_where_the_operator_said_so() {
    for (without_pod_uid, expected) in [(false, "deny: no binding for u1"), (true, "u1 gets one through b1")] {
        let mut node = NodeIndex::new(Options { without_pod_uid, ..Options::default() });
        node.apply_pod(web());
        let mut object = assigned(&web(), &identity("one"), &bound("b1", "one", 0));
        object.spec.pod_uid = None;
        assert_eq!(node.apply_assignment(&object).is_ok(), without_pod_uid);
        assert_eq!(from(&mut node, "10.0.0.1"), expected);
    }
}

#[test]
fn an_address_with_two_pods_is_nobodys_until_one_is_gone() {
    let mut node = node();
    assign(&mut node, &identity("one"), &bound("b1", "one", 0));
    let other = pod_at("demo", "other", "u2", "10.0.0.1");
    node.apply_pod(other.clone());
    assert_eq!(from(&mut node, "10.0.0.1"), "wait: ambiguous address");
    node.apply_pod(Pod { phase: PodPhase::Succeeded, ..other.clone() });
    assert_eq!(from(&mut node, "10.0.0.1"), "u1 gets one through b1", "a finished pod has no address");
    node.apply_pod(other.clone());
    node.delete_pod(&other.key());
    assert_eq!(from(&mut node, "10.0.0.1"), "u1 gets one through b1");
}

#[test]
fn every_address_of_a_pod_counts() {
    let mut node = node();
    let addresses = ["10.0.0.1", "fd00::1", "10.0.0.1"].map(|a| a.parse().unwrap()).to_vec();
    node.apply_pod(Pod { addresses, ..web() });
    assign(&mut node, &identity("one"), &bound("b1", "one", 0));
    for (address, expected) in [
        ("10.0.0.1", "u1 gets one through b1"),
        ("fd00::1", "u1 gets one through b1"),
        ("::ffff:10.0.0.1", "u1 gets one through b1"),
        ("10.0.0.2", "wait: unknown address"),
        ("::10.0.0.1", "wait: unknown address"),
    ] {
        assert_eq!(from(&mut node, address), expected, "{address}");
    }
    node.apply_pod(web());
    assert_eq!(from(&mut node, "fd00::1"), "wait: unknown address", "it has this address no longer");
}

#[test]
fn phases() {
    let served = "u1 gets one through b1";
    for (phase, deleting, expected) in [
        (PodPhase::Pending, false, served),
        (PodPhase::Running, false, served),
        (PodPhase::Running, true, served),
        (PodPhase::Pending, true, served),
        (PodPhase::Unknown, false, served),
        (PodPhase::Succeeded, false, "wait: unknown address"),
        (PodPhase::Failed, false, "wait: unknown address"),
        (PodPhase::Failed, true, "wait: unknown address"),
    ] {
        let mut node = node();
        assign(&mut node, &identity("one"), &bound("b1", "one", 0));
        node.apply_pod(Pod { phase, deleting, ..web() });
        assert_eq!(from(&mut node, "10.0.0.1"), expected, "{phase:?} {deleting}");
    }
}

#[test]
fn the_nodes_network_is_refused_whoever_claims_the_address() {
    let mut node = node();
    assign(&mut node, &identity("one"), &bound("b1", "one", 0));
    let host = Pod { host_network: true, ..pod_at("kube-system", "proxy", "u9", "10.0.0.1") };
    node.apply_pod(host.clone());
    assert_eq!(from(&mut node, "10.0.0.1"), "deny: host network");
    node.delete_pod(&host.key());
    assert_eq!(from(&mut node, "10.0.0.1"), "u1 gets one through b1");

    node.set_node_addresses(["10.0.0.1".parse().unwrap(), "::ffff:10.0.0.9".parse().unwrap()]);
    assert_eq!(from(&mut node, "10.0.0.1"), "deny: host network");
    assert_eq!(from(&mut node, "10.0.0.9"), "deny: host network");
    node.set_node_addresses([]);
    assert_eq!(from(&mut node, "10.0.0.1"), "u1 gets one through b1");
    assert_eq!(from(&mut node, "10.0.0.9"), "wait: unknown address");
}

#[test]
fn namespaces_are_apart_unless_the_operator_said_otherwise() {
    for (cluster_wide, expected) in [(false, "deny: no binding for u1"), (true, "u1 gets one through b1")] {
        let mut node = NodeIndex::new(Options { cluster_wide, ..Options::default() });
        node.apply_pod(web());
        let far = binding("far", "b1", "binding-b1", "one");
        expect(&mut node, &far);
        let object = assigned(&web(), &managed_identity("far", "one", "i"), &far);
        assert_eq!(node.apply_assignment(&object).is_ok(), cluster_wide);
        assert_eq!(from(&mut node, "10.0.0.1"), expected);
    }
}

#[test]
fn publishing_says_whether_a_decision_could_have_changed() {
    let (mut node, published) = (node(), Published::default());
    assert!(node.publish(&published));
    assert!(!node.publish(&published), "nothing happened");
    node.apply_pod(Pod { deleting: true, ..web() });
    assert!(!node.publish(&published), "a pod that terminates is served as before");
    let object = assigned(&web(), &identity("one"), &bound("b1", "one", 0));
    node.apply_assignment(&object).unwrap();
    assert!(node.publish(&published));
    node.apply_assignment(&object).unwrap();
    assert!(!node.publish(&published), "the same again");
    node.apply_pod(pod_at("demo", "silent", "u2", "10.0.0.2"));
    node.delete_pod(&pod_at("demo", "silent", "u2", "10.0.0.2").key());
    assert!(!node.publish(&published), "came and went");
}

// === Exceptions ===

fn exception(namespace: &str, name: &str, labels: &[(&str, &str)]) -> Exception {
    let mut object = AzurePodIdentityException::new(
        name,
        AzurePodIdentityExceptionSpec {
            pod_labels: Some(labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()),
        },
    );
    object.metadata.namespace = Some(namespace.to_owned());
    Exception::from(&object)
}

/// The same index, with exceptions of these namespaces.
fn node_with(namespaces: &[&str], pod_labels: &[(&str, &str)]) -> NodeIndex {
    let exception_namespaces = namespaces.iter().map(|namespace| (*namespace).to_owned()).collect();
    let mut index = NodeIndex::new(Options { exception_namespaces, ..Options::default() });
    let mut pod = web();
    pod.labels = labels(pod_labels);
    index.apply_pod(pod);
    index
}

#[test]
fn an_exception_matches_any_label_in_its_own_listed_namespace() {
    let exempted = "u1 is exempted by demo/e";
    let refused = "deny: no binding for u1";
    let agent = [("role", "agent"), ("app", "web")];
    for (listed, pod_labels, of, by, expected) in [
        (vec!["demo"], &agent[..], "demo", &[("role", "agent")][..], exempted),
        (vec!["other", "demo"], &agent, "demo", &[("role", "nothing"), ("app", "web")], exempted),
        (vec!["demo"], &agent, "demo", &[("role", "AGENT")], exempted),
        (vec!["demo"], &agent, "demo", &[("Role", "agent")], refused),
        (vec!["demo"], &agent, "demo", &[("role", "agents")], refused),
        (vec!["demo"], &agent, "demo", &[("role", "")], refused),
        (vec!["demo"], &agent, "demo", &[], refused),
        (vec!["demo"], &[], "demo", &[("role", "agent")], refused),
        (vec![], &agent, "demo", &[("role", "agent")], refused),
        (vec!["other"], &agent, "demo", &[("role", "agent")], refused),
        (vec!["demo", "other"], &agent, "other", &[("role", "agent")], refused),
    ] {
        let mut node = node_with(&listed, pod_labels);
        node.apply_exception(exception(of, "e", by));
        assert_eq!(ask(&mut node, VAULT, DEFAULT), expected, "{listed:?} {pod_labels:?} {of} {by:?}");
    }
}

#[test]
fn an_exempted_pod_may_ask_for_anything_and_bindings_do_not_matter() {
    let mut node = node_with(&["demo"], &[("role", "agent")]);
    assign(&mut node, &identity("one"), &limited("b1", "one", &[STORAGE]));
    expect(&mut node, &bound("b2", "two", 9));
    assert_eq!(ask(&mut node, VAULT, RequestedIdentity::ClientId("client-one")), "deny: audience of b1");
    node.apply_exception(exception("demo", "e", &[("role", "agent")]));
    for named in [DEFAULT, RequestedIdentity::ClientId("client-one"), RequestedIdentity::ObjectId("nobody's")] {
        assert_eq!(ask(&mut node, VAULT, named), "u1 is exempted by demo/e", "{named:?}");
    }
    let request = Request { resource: VAULT, identity: DEFAULT };
    assert_eq!(ask_as(&mut node, "10.0.0.1", Some("another"), &request), "deny: changed hands");
    // And again as before, when the exception or the label is gone.
    let mut pod = web();
    node.apply_pod(pod.clone());
    assert_eq!(ask(&mut node, STORAGE, RequestedIdentity::ClientId("client-one")), "u1 gets one through b1");
    pod.labels = labels(&[("role", "agent")]);
    node.apply_pod(pod);
    assert_eq!(ask(&mut node, STORAGE, RequestedIdentity::ClientId("client-one")), "u1 is exempted by demo/e");
    node.delete_exception(&common::key("demo", "e"));
    assert_eq!(ask(&mut node, STORAGE, RequestedIdentity::ClientId("client-one")), "u1 gets one through b1");
}

#[test]
fn exceptions_are_relisted_by_namespace() {
    let mut node = node_with(&["demo", "other"], &[("role", "agent")]);
    node.reset_exceptions("demo", vec![exception("demo", "e", &[("role", "agent")])]);
    node.reset_exceptions("other", vec![]);
    assert_eq!(ask(&mut node, VAULT, DEFAULT), "u1 is exempted by demo/e");
    node.reset_exceptions("demo", vec![exception("demo", "f", &[("role", "agent")])]);
    assert_eq!(ask(&mut node, VAULT, DEFAULT), "u1 is exempted by demo/f");
    node.reset_exceptions("demo", vec![]);
    assert_eq!(ask(&mut node, VAULT, DEFAULT), "deny: no binding for u1");
}

#[test]
fn the_explanation_names_the_exception() {
    let mut node = node_with(&["demo"], &[("role", "agent")]);
    node.apply_exception(exception("demo", "e", &[("role", "agent")]));
    let explained =
        node.explain(&web().key(), &Request { resource: VAULT, identity: DEFAULT }, Timestamp::UNIX_EPOCH).to_string();
    assert!(explained.contains("exception demo/e exempts the pod"), "{explained}");
}

#[test]
fn what_is_got_with_a_pods_own_token_is_that_pods_alone() {
    use identity_core::lookup::{CredentialSource, Federation};
    use identity_crd::{FederatedCredential, FederatedSubject};
    let federations = |subject, authority: Option<&str>, audience: Option<&str>| {
        let mut identity = managed_identity("demo", "fed", "identity-fed");
        identity.spec.type_ = Some(3);
        identity.spec.resource_id = None;
        identity.spec.client_id = Some("11111111-1111-1111-1111-111111111111".into());
        identity.spec.tenant_id = Some("22222222-2222-2222-2222-222222222222".into());
        identity.spec.ad_endpoint = authority.map(str::to_owned);
        identity.spec.federated =
            Some(FederatedCredential { subject: Some(subject), audience: audience.map(str::to_owned) });
        let pods = [web(), pod_at("demo", "other", "u2", "10.0.0.2")];
        let mut index = NodeIndex::new(Options::default());
        let binding = bound("b", "fed", 0);
        for pod in &pods {
            index.apply_pod(pod.clone());
            index.apply_assignment(&assigned(pod, &identity, &binding)).unwrap();
        }
        index.publish(&Published::default());
        let snapshot = index.snapshot();
        pods.map(|pod| {
            let caller = Caller { address: pod.addresses[0], pinned: None };
            let request = Request { resource: VAULT, identity: DEFAULT };
            let Decision::Allow(allow) = snapshot.decide(&caller, &request, Timestamp::UNIX_EPOCH) else { panic!() };
            let Source::Assignment(assignment) = allow.source else { panic!() };
            let CredentialSource::Federated(federation) = assignment.identity.credential.clone() else { panic!() };
            (federation, allow.pod)
        })
    };
    let [(first, one), (second, two)] = federations(FederatedSubject::Pod, None, None);
    assert_eq!((&first.pod, &second.pod), (&Some(one), &Some(two)));
    assert_ne!(first, second);
    assert_eq!(&*first.audience, "api://AzureADTokenExchange");
    // The node's own is the same for all of them.
    let of = |authority, audience| {
        let [(first, _), (second, _)] = federations(FederatedSubject::Broker, authority, audience);
        assert_eq!(first, second);
        let Federation { pod, audience, .. } = first;
        assert_eq!(pod, None);
        audience.into_string()
    };
    assert_eq!(of(Some("https://login.microsoftonline.us/"), None), "api://AzureADTokenExchangeUSGov");
    assert_eq!(of(Some("https://Login.Partner.MicrosoftOnline.cn"), None), "api://AzureADTokenExchangeChina");
    assert_eq!(of(Some("https://login.microsoftonline.com"), None), "api://AzureADTokenExchange");
    assert_eq!(of(Some("https://login.microsoftonline.us"), Some("api://own")), "api://own");
}
