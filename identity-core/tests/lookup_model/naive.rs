//! The plain reading of the documentation.

use std::{collections::BTreeSet, net::IpAddr};

use identity_core::{
    lookup::{Decision, Deny, Request, RequestedIdentity, Source, Wait},
    object::ObjectKey,
    pod::{Pod, PodPhase},
};
use identity_crd::{AzureAssignedIdentity, AzureIdentity, AzureIdentityBinding};

use crate::{World, common::naive_selects, time};

/// A decision, and the UID of the pod it is about.
#[derive(Debug)]
pub(crate) enum Naive {
    /// Through any of these assignments.
    Allow(String, BTreeSet<ObjectKey>),
    /// By any of these exceptions.
    Exempt(String, BTreeSet<ObjectKey>),
    UnknownAddress,
    AmbiguousAddress,
    Pending(String),
    HostNetwork,
    ChangedHands,
    NoBinding(String),
    NotFound(String),
    Multiple(String),
    Audience(String),
    Closed(String),
}

pub(crate) fn agree(decision: &Decision, expected: &Naive) -> bool {
    match (decision, expected) {
        (Decision::Allow(allow), Naive::Allow(uid, through)) => {
            let Source::Assignment(assignment) = &allow.source else { return false };
            *allow.pod.uid == **uid && through.contains(&assignment.object.key())
        }
        (Decision::Allow(allow), Naive::Exempt(uid, by)) => {
            let Source::Exception(exception) = &allow.source else { return false };
            *allow.pod.uid == **uid && by.contains(&exception.key()) && allow.until.is_none()
        }
        (Decision::Wait(Wait::UnknownAddress), Naive::UnknownAddress)
        | (Decision::Wait(Wait::AmbiguousAddress), Naive::AmbiguousAddress)
        | (Decision::Deny(Deny::HostNetwork), Naive::HostNetwork)
        | (Decision::Deny(Deny::AddressChangedHands), Naive::ChangedHands) => true,
        (Decision::Wait(Wait::Assignment(pod)), Naive::Pending(uid))
        | (Decision::Deny(Deny::NoBinding(pod)), Naive::NoBinding(uid))
        | (Decision::Deny(Deny::IdentityNotFound(pod)), Naive::NotFound(uid))
        | (Decision::Deny(Deny::MultipleIdentities(pod)), Naive::Multiple(uid))
        | (Decision::Deny(Deny::Audience(pod, _)), Naive::Audience(uid))
        | (Decision::Deny(Deny::Closed { pod, .. }), Naive::Closed(uid)) => *pod.uid == **uid,
        _ => false,
    }
}
impl World {
    pub(crate) fn naive_open(&self, object: &AzureAssignedIdentity, then: i64) -> bool {
        let spec = &object.spec;
        let of_binding = spec.azure_binding_ref.as_ref().unwrap().spec.time_box.as_ref();
        let of_identity = spec.azure_identity_ref.as_ref().unwrap().spec.time_box.as_ref();
        // A grant that has ended has ended, whatever the clock says then.
        let grant =
            spec.grant.as_ref().filter(|grant| grant.until.parse().is_ok_and(|until| time::at(self.latest) < until));
        time::is_open(of_binding, false, grant, then) && time::is_open(of_identity, true, grant, then)
    }

    /// Assignments that are for this pod, by UID where they have one, and that a node may serve.
    fn naive_assignments(&self, pod: &Pod) -> Vec<(&ObjectKey, &AzureIdentity, &AzureIdentityBinding, bool)> {
        let wide = self.options.cluster_wide;
        let mut out = Vec::new();
        for (own, object) in &self.assignments {
            let spec = &object.spec;
            let for_pod = spec.pod.as_deref() == Some(&*pod.reference.name)
                && spec.pod_namespace.as_deref() == Some(&*pod.reference.namespace);
            let this_one = match spec.pod_uid.as_deref() {
                Some(uid) => uid == &*pod.reference.uid && own.namespace == pod.reference.namespace,
                None => self.options.without_pod_uid,
            };
            let (Some(identity), Some(binding)) = (&spec.azure_identity_ref, &spec.azure_binding_ref) else { continue };
            let usable = if identity.spec.type_.is_none() {
                identity.spec.resource_id.as_deref() != Some("nonsense")
            } else {
                let elsewhere = identity.spec.client_password.as_ref().unwrap().namespace.is_some();
                (wide || !elsewhere) && identity.spec.client_id.is_some()
            };
            let (of_identity, of_binding) =
                (identity.metadata.namespace.as_deref().unwrap(), binding.metadata.namespace.as_deref().unwrap());
            let near = of_identity == of_binding && (wide || of_binding == &*pod.reference.namespace);
            if for_pod && this_one && usable && near {
                let ready = object.status.as_ref().unwrap().status.as_deref() == Some("Assigned");
                out.push((own, &**identity, &**binding, ready));
            }
        }
        out
    }

    /// Bindings that select the pod, that may come to something, and that have no assignment yet; and whether there is one
    /// that cannot come to anything as things are.
    fn naive_expected(&self, pod: &Pod) -> (Vec<&AzureIdentityBinding>, bool) {
        let there = self.naive_assignments(pod);
        let (mut out, mut stuck) = (Vec::new(), false);
        for (own, object) in &self.bindings {
            let reaches = self.options.cluster_wide || own.namespace == pod.reference.namespace;
            let hopeless = object.status.iter().flat_map(|s| &s.conditions).any(|c| {
                c.status == identity_crd::ConditionStatus::False
                    && c.observed_generation == object.metadata.generation
                    && (c.type_ == "IdentityFound" || c.reason == "IdentityUnusable")
            });
            let has = there.iter().any(|(_, _, binding, _)| {
                binding.metadata.uid == object.metadata.uid
                    && binding.metadata.name == object.metadata.name
                    && binding.metadata.namespace == object.metadata.namespace
            });
            if reaches && !has && naive_selects(&object.spec, pod) {
                if hopeless {
                    stuck = true;
                } else {
                    out.push(object);
                }
            }
        }
        (out, stuck)
    }

    pub(crate) fn naive(&self, address: IpAddr, pinned: Option<&str>, request: &Request<'_>) -> Naive {
        let owners: Vec<&Pod> = self
            .pods
            .values()
            .filter(|p| !matches!(p.phase, PodPhase::Succeeded | PodPhase::Failed) && p.addresses.contains(&address))
            .collect();
        if self.node.contains(&address) || owners.iter().any(|p| p.host_network) {
            return Naive::HostNetwork;
        }
        let pod = match owners.as_slice() {
            [] => return Naive::UnknownAddress,
            [pod] => *pod,
            _ => return Naive::AmbiguousAddress,
        };
        let uid = pod.reference.uid.to_string();
        if pinned.is_some_and(|pinned| pinned != uid) {
            return Naive::ChangedHands;
        }
        // Predecessor §3.6: same namespace, any one label, values without case.
        let mut exempting = BTreeSet::new();
        for (own, object) in &self.exceptions {
            let listed = self.options.exception_namespaces.iter().any(|listed| **listed == *own.namespace);
            let labels = object.spec.pod_labels.clone().unwrap_or_default();
            let any = labels.iter().any(|(key, value)| {
                pod.labels.iter().any(|(k, v)| k == key && v.to_lowercase() == value.to_lowercase())
            });
            if listed && own.namespace == pod.reference.namespace && any {
                exempting.insert(own.clone());
            }
        }
        if !exempting.is_empty() {
            return Naive::Exempt(uid, exempting);
        }
        let (there, (expected, stuck)) = (self.naive_assignments(pod), self.naive_expected(pod));
        if there.is_empty() && expected.is_empty() && !stuck {
            return Naive::NoBinding(uid);
        }
        if there.is_empty() {
            return Naive::Pending(uid);
        }
        let same = |id: Option<&String>, wanted: &str| id.is_some_and(|id| id.to_lowercase() == wanted.to_lowercase());
        let named = |identity: &AzureIdentity| match request.identity {
            RequestedIdentity::Default => false,
            RequestedIdentity::ClientId(id) => same(identity.spec.client_id.as_ref(), id),
            RequestedIdentity::ObjectId(id) => same(identity.spec.object_id.as_ref(), id),
            RequestedIdentity::ResourceId(id) => same(identity.spec.resource_id.as_ref(), id),
        };
        let which = |o: &AzureIdentity| (o.metadata.namespace.clone(), o.metadata.name.clone(), o.metadata.uid.clone());
        let weight = |b: &AzureIdentityBinding| b.spec.weight.unwrap();
        let is_for = |b: &AzureIdentityBinding, i: &AzureIdentity| {
            b.metadata.namespace == i.metadata.namespace && b.spec.azure_identity == i.metadata.name
        };
        let chosen: Vec<_> = if request.identity == RequestedIdentity::Default {
            let top = there.iter().map(|(_, _, b, _)| weight(b)).max().unwrap();
            let leading: BTreeSet<_> =
                there.iter().filter(|(_, _, b, _)| weight(b) == top).map(|(_, i, _, _)| which(i)).collect();
            if expected.iter().any(|b| weight(b) > top) {
                return Naive::Pending(uid);
            }
            if leading.len() > 1 {
                return Naive::Multiple(uid);
            }
            let chosen: Vec<_> = there.iter().filter(|(_, i, _, _)| leading.contains(&which(i))).collect();
            if expected.iter().any(|b| weight(b) == top && !is_for(b, chosen[0].1)) {
                return Naive::Pending(uid);
            }
            chosen
        } else {
            there.iter().filter(|(_, i, _, _)| named(i)).collect()
        };
        if chosen.is_empty() {
            return if expected.is_empty() { Naive::NotFound(uid) } else { Naive::Pending(uid) };
        }
        let bare = |text: &str| text.strip_suffix('/').unwrap_or(text).to_owned();
        let lists = |list: Option<&Vec<String>>| {
            list.is_none_or(|l| l.is_empty() || l.iter().any(|a| bare(a) == bare(request.resource)))
        };
        let allowing: Vec<_> = chosen
            .iter()
            .filter(|(_, i, b, _)| lists(i.spec.audiences.as_ref()) && lists(b.spec.audiences.as_ref()))
            .collect();
        // Open now, and ever since as far as the clock has got: what has closed stays closed when the clock goes back.
        let open: Vec<_> = allowing
            .iter()
            .filter(|(own, ..)| (self.now..=self.latest).all(|then| self.naive_open(&self.assignments[*own], then)))
            .collect();
        let usable: BTreeSet<ObjectKey> =
            open.iter().filter(|(_, _, _, ready)| *ready).map(|(own, ..)| (*own).clone()).collect();
        if !usable.is_empty() {
            return Naive::Allow(uid, usable);
        }
        let may_come = expected.iter().any(|b| chosen.iter().any(|(_, i, _, _)| is_for(b, i)));
        if !open.is_empty() || may_come {
            Naive::Pending(uid)
        } else if allowing.is_empty() {
            Naive::Audience(uid)
        } else {
            Naive::Closed(uid)
        }
    }
}
