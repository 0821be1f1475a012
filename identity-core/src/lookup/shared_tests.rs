use identity_crd::{
    AzureAssignedIdentity, AzureAssignedIdentitySpec, AzureIdentity, AzureIdentityBinding, AzureIdentityBindingSpec,
    AzureIdentitySpec, TimeBox,
};
use jiff::Timestamp;

use super::*;
use crate::{
    lookup::{Caller, Decision, NodeIndex, Options, Published, Request, RequestedIdentity},
    pod::{Pod, PodPhase, PodRef},
};

const COMINGS: usize = 10_000;
/// As many are there at a time.
const AT_A_TIME: usize = 100;

fn address(number: usize) -> std::net::IpAddr {
    std::net::Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(number).unwrap()).into()
}

fn pod(number: usize) -> Pod {
    Pod {
        reference: Arc::new(PodRef {
            namespace: "team".into(),
            name: format!("web-{number}").into(),
            uid: format!("uid-{number}").into(),
            service_account: "default".into(),
        }),
        node: Some("node-1".into()),
        labels: [].into(),
        service_account: "default".into(),
        addresses: vec![address(number)],
        phase: PodPhase::Running,
        host_network: false,
        deleting: false,
    }
}

/// Through a binding and of an identity of its own, with a time box.
fn assignment(number: usize) -> AzureAssignedIdentity {
    let mut identity = AzureIdentity::new(
        &format!("identity-{number}"),
        AzureIdentitySpec {
            resource_id: Some(format!(
                "/subscriptions/11111111-1111-4111-8111-111111111111/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i-{number}"
            )),
            ..AzureIdentitySpec::default()
        },
    );
    let mut binding = AzureIdentityBinding::new(
        &format!("binding-{number}"),
        AzureIdentityBindingSpec {
            azure_identity: identity.metadata.name.clone(),
            time_box: Some(TimeBox { not_before: Some("2020-01-01T00:00:00Z".into()), ..TimeBox::default() }),
            ..AzureIdentityBindingSpec::default()
        },
    );
    for meta in [&mut identity.metadata, &mut binding.metadata] {
        meta.namespace = Some("team".into());
        meta.uid = meta.name.clone();
    }
    let mut object = AzureAssignedIdentity::new(
        &format!("assigned-{number}"),
        AzureAssignedIdentitySpec {
            azure_identity_ref: Some(Box::new(identity)),
            azure_binding_ref: Some(Box::new(binding)),
            pod: Some(format!("web-{number}")),
            pod_namespace: Some("team".into()),
            pod_uid: Some(format!("uid-{number}")),
            node_name: Some("node-1".into()),
            ..AzureAssignedIdentitySpec::default()
        },
    );
    object.metadata.namespace = Some("team".into());
    object
}

fn come(index: &mut NodeIndex, number: usize) {
    index.apply_pod(pod(number));
    index.apply_assignment(&assignment(number)).unwrap();
}

fn go(index: &mut NodeIndex, number: usize) {
    index.delete_assignment(&ObjectKey::new("team", format!("assigned-{number}")));
    index.delete_pod(&ObjectKey::new("team", format!("web-{number}")));
}

fn is_allowed(published: &Published, number: usize) -> bool {
    let caller = Caller { address: address(number), pinned: None };
    let request = Request { resource: "https://vault.azure.net", identity: RequestedIdentity::Default };
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    matches!(published.load().decide(&caller, &request, now), Decision::Allow(_))
}

#[test]
fn what_comes_and_goes_without_a_relist_does_not_pile_up() {
    let (mut index, published, mut most) = (NodeIndex::new(Options::default()), Published::default(), 0);
    for number in 0..COMINGS {
        come(&mut index, number);
        if let Some(old) = number.checked_sub(AT_A_TIME) {
            go(&mut index, old);
        }
        index.publish(&published);
        assert!(is_allowed(&published, number));
        assert!(!number.checked_sub(AT_A_TIME).is_some_and(|old| is_allowed(&published, old)));
        most = most.max(index.shared().len());
    }
    // Three entries each; those that were there and those that a snapshot had.
    let in_use = 3 * (AT_A_TIME + 1);
    assert!(most >= in_use, "{most}: nothing was shared");
    assert!(most <= 4 * in_use, "{most} entries at once, {in_use} in use");
    assert!(
        (COMINGS - AT_A_TIME..COMINGS).all(|number| is_allowed(&published, number)),
        "one that is in use was swept"
    );
}

#[test]
fn a_peak_does_not_last() {
    let (mut index, published) = (NodeIndex::new(Options::default()), Published::default());
    (0..COMINGS).for_each(|number| come(&mut index, number));
    index.publish(&published);
    assert_eq!(index.shared().len(), 3 * COMINGS, "all of them are in use");
    (1..COMINGS).for_each(|number| go(&mut index, number));
    index.publish(&published);
    // One that comes and goes: as many changes as there were entries, then few again.
    for _ in 0..3 * COMINGS {
        come(&mut index, COMINGS);
        go(&mut index, COMINGS);
        index.publish(&published);
    }
    let left = index.shared();
    assert!(left.len() <= 3 * (FEW + 2), "{} entries for one assignment", left.len());
    let room = left.terms.capacity().max(left.identities.capacity()).max(left.gates.capacity());
    assert!(room <= 16 * FEW, "room for {room}");
    assert!(is_allowed(&published, 0));
}

#[test]
fn whoever_has_the_same_shares_it() {
    let mut index = NodeIndex::new(Options::default());
    for number in 0..COMINGS {
        let mut object = assignment(0);
        object.metadata.name = Some(format!("assigned-{number}"));
        object.spec.pod = Some(format!("web-{number}"));
        index.apply_assignment(&object).unwrap();
    }
    assert_eq!(index.shared().len(), 3, "one identity, one box, one set of terms");
}
