//! The `AzureAssignedIdentity` that should be, and the part of one that is there which is compared with it.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

use identity_crd::{
    AssignedGrant, AssignedIdentityState, AzureAssignedIdentity, AzureAssignedIdentitySpec,
    AzureAssignedIdentityStatus, AzureIdentity, AzureIdentityBinding, NODE_LABEL,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use sha2::{Digest, Sha256};

use super::{MANAGED_BY_LABEL, MANAGED_BY_VALUE};
use crate::{
    object::ObjectKey,
    pod::{Pod, PodRef},
};

/// Longest name that is also a DNS label and a label value (RFC 1123; Kubernetes "Object Names and IDs").
const MAX_NAME: usize = 63;
/// Hexadecimal digits of the hash in a name (80 bits).
const HASH: usize = 20;

pub(super) fn hash<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        // The length keeps ("ab", "c") and ("a", "bc") apart.
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    let mut out = String::with_capacity(HASH);
    for byte in hasher.finalize().iter().take(HASH / 2) {
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// The beginning of `text`, at most `max` characters, made of what a DNS label may have.
fn readable(text: &str, max: usize) -> String {
    let text: String = text
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
        .take(max)
        .collect();
    text.trim_matches('-').to_owned()
}

/// The name of the assignment of a pod through a binding: what a person recognises, and a hash of both UIDs that makes it
/// unique and, for a pod or binding that is re-created, another.
///
/// `binding` is the binding's UID, or namespace and name where its source has none.
pub(super) fn assignment_key(pod: &PodRef, binding: &AzureIdentityBinding) -> ObjectKey {
    let meta = &binding.metadata;
    let name = meta.name.as_deref().unwrap_or_default();
    let hash = match meta.uid.as_deref() {
        Some(uid) if !uid.is_empty() => hash([&*pod.uid, uid]),
        _ => hash([&*pod.uid, meta.namespace.as_deref().unwrap_or_default(), name]),
    };
    // Two dashes and the hash; the pod's name gets what the binding's leaves, and at least half.
    let room = MAX_NAME - HASH - 2;
    let binding = readable(name, room / 2);
    let pod_name = readable(&pod.name, room - binding.len());
    let parts = [pod_name, binding, hash];
    let name = parts.iter().filter(|p| !p.is_empty()).cloned().collect::<Vec<_>>().join("-");
    ObjectKey { namespace: Arc::clone(&pod.namespace), name: name.into() }
}

/// The value of the label `nodename` for a node: its name, or, where that is no label value (over 63 characters), its
/// beginning and a hash.
///
/// ```
/// assert_eq!(identity_core::assign::node_label("aks-pool1-vmss000000"), "aks-pool1-vmss000000");
/// assert_eq!(identity_core::assign::node_label(&"n".repeat(100)).len(), 63);
/// ```
pub fn node_label(node: &str) -> String {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if node.len() <= MAX_NAME && edge(node.chars().next()) && edge(node.chars().last()) && node.chars().all(inner) {
        return node.to_owned();
    }
    let prefix = readable(node, MAX_NAME - HASH - 1);
    let hash = hash([node]);
    if prefix.is_empty() { hash } else { format!("{prefix}-{hash}") }
}

fn embedded_metadata(meta: &ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        generation: meta.generation,
        ..ObjectMeta::default()
    }
}

/// An identity as it is embedded: no labels, annotations, resource version or status, so that a change of those is none.
pub(super) fn embed_identity(identity: &AzureIdentity) -> AzureIdentity {
    AzureIdentity { metadata: embedded_metadata(&identity.metadata), spec: identity.spec.clone(), status: None }
}

/// A binding as it is embedded.
pub(super) fn embed_binding(binding: &AzureIdentityBinding) -> AzureIdentityBinding {
    AzureIdentityBinding { metadata: embedded_metadata(&binding.metadata), spec: binding.spec.clone(), status: None }
}

/// The assignment as it should be. `identity` and `binding` are trimmed already.
pub(super) fn desired(
    key: &ObjectKey,
    pod: &Pod,
    node: &str,
    identity: &AzureIdentity,
    binding: &AzureIdentityBinding,
    grant: Option<AssignedGrant>,
) -> AzureAssignedIdentity {
    let reference = &pod.reference;
    AzureAssignedIdentity {
        metadata: ObjectMeta {
            name: Some(key.name.to_string()),
            namespace: Some(key.namespace.to_string()),
            labels: Some(BTreeMap::from([
                (MANAGED_BY_LABEL.to_owned(), MANAGED_BY_VALUE.to_owned()),
                (NODE_LABEL.to_owned(), node_label(node)),
            ])),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Pod".into(),
                name: reference.name.to_string(),
                uid: reference.uid.to_string(),
                controller: Some(false),
                block_owner_deletion: Some(false),
            }]),
            ..ObjectMeta::default()
        },
        spec: AzureAssignedIdentitySpec {
            azure_identity_ref: Some(Box::new(identity.clone())),
            azure_binding_ref: Some(Box::new(binding.clone())),
            pod: Some(reference.name.to_string()),
            pod_namespace: Some(reference.namespace.to_string()),
            pod_uid: Some(reference.uid.to_string()),
            node_name: Some(node.to_owned()),
            grant,
            replicas: None,
        },
        status: Some(AzureAssignedIdentityStatus {
            status: Some(AssignedIdentityState::Assigned.as_str().to_owned()),
            available_replicas: None,
        }),
    }
}

/// What of an assignment that is there matters, in the form of [`desired`]: others may add labels, annotations, owners.
pub(super) fn relevant(object: &AzureAssignedIdentity) -> AzureAssignedIdentity {
    let (meta, spec) = (&object.metadata, &object.spec);
    let ours = |(key, _): &(&String, &String)| [MANAGED_BY_LABEL, NODE_LABEL].contains(&key.as_str());
    let flag = |value: Option<bool>| Some(value.unwrap_or_default());
    AzureAssignedIdentity {
        metadata: ObjectMeta {
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            labels: Some(
                meta.labels.iter().flatten().filter(ours).map(|(key, value)| (key.clone(), value.clone())).collect(),
            ),
            owner_references: Some(
                meta.owner_references
                    .iter()
                    .flatten()
                    .filter(|owner| owner.kind == "Pod" && owner.api_version == "v1")
                    .map(|owner| OwnerReference {
                        controller: flag(owner.controller),
                        block_owner_deletion: flag(owner.block_owner_deletion),
                        ..owner.clone()
                    })
                    .collect(),
            ),
            ..ObjectMeta::default()
        },
        spec: AzureAssignedIdentitySpec {
            azure_identity_ref: spec.azure_identity_ref.as_deref().map(|i| Box::new(embed_identity(i))),
            azure_binding_ref: spec.azure_binding_ref.as_deref().map(|b| Box::new(embed_binding(b))),
            replicas: None,
            ..spec.clone()
        },
        status: object
            .status
            .as_ref()
            .map(|status| AzureAssignedIdentityStatus { status: status.status.clone(), available_replicas: None }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(pod: &str, uid: &str, binding: &str, binding_uid: &str) -> String {
        let pod = PodRef { namespace: "n".into(), name: pod.into(), uid: uid.into(), service_account: "sa".into() };
        let mut object = AzureIdentityBinding::new(binding, identity_crd::AzureIdentityBindingSpec::default());
        object.metadata.namespace = Some("n".into());
        object.metadata.uid = Some(binding_uid.into());
        assignment_key(&pod, &object).name.to_string()
    }

    #[test]
    fn names_are_dns_labels_and_never_ambiguous() {
        let long = "x".repeat(253);
        let mut seen = std::collections::HashSet::new();
        for pod in ["web-0", "web", "a.b", "-odd-", "UPPER", "", &long] {
            for binding in ["b", "0-b", "b.c", &long, ""] {
                for uid in ["1", "2", ""] {
                    for binding_uid in ["1", "2", "12", "p"] {
                        let name = name(pod, uid, binding, binding_uid);
                        assert!(name.len() <= 63, "{name}");
                        assert!(
                            name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'),
                            "{name}"
                        );
                        assert!(!name.starts_with('-') && !name.ends_with('-'), "{name}");
                        seen.insert((name, pod.to_owned(), uid, binding.to_owned(), binding_uid));
                    }
                }
            }
        }
        let names: std::collections::HashSet<_> = seen.iter().map(|(n, ..)| n).collect();
        // The hash is of the UIDs alone; the prefix of what differs otherwise.
        assert!(names.len() >= 7 * 4 * 3 * 4, "{} of {}", names.len(), seen.len());
        assert_ne!(name("p", "1", "b", "23"), name("p", "12", "b", "3"));
        assert!(name("web-0", "1", "demo-binding", "2").starts_with("web-0-demo-binding-"));
    }

    #[test]
    fn a_node_label_is_a_label_value_and_tells_nodes_apart() {
        let long = "node.".repeat(30);
        assert_eq!(node_label("node-1.example"), "node-1.example");
        for odd in [long.as_str(), "-x", "", "ü"] {
            let label = node_label(odd);
            assert!(label.len() <= 63 && !label.ends_with('-') && label.is_ascii(), "{label}");
        }
        assert_ne!(node_label(&format!("{long}1")), node_label(&format!("{long}2")));
    }
}
