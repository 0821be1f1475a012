//! Objects for tests, and the semantics again, written as plainly as possible: nested loops over everything, no indexes.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test binary uses a part")]

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use identity_core::{
    object::ObjectKey,
    pod::{Pod, PodPhase, PodRef},
};
use identity_crd::{
    AzureAssignedIdentity, AzureAssignedIdentitySpec, AzureAssignedIdentityStatus, AzureIdentity, AzureIdentityBinding,
    AzureIdentityBindingSpec, AzureIdentitySpec, SecretReference,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

pub(crate) const SUBSCRIPTION: &str = "/subscriptions/11111111-1111-1111-1111-111111111111/resourceGroups/rg/providers";

pub(crate) fn key(namespace: &str, name: &str) -> ObjectKey {
    ObjectKey::new(namespace, name)
}

/// A running pod on `node-1` labelled `aadpodidbinding: demo`.
pub(crate) fn pod(namespace: &str, name: &str, uid: &str) -> Pod {
    Pod {
        reference: Arc::new(PodRef {
            namespace: namespace.into(),
            name: name.into(),
            uid: uid.into(),
            service_account: "default".into(),
        }),
        node: Some("node-1".into()),
        labels: labels(&[("aadpodidbinding", "demo")]),
        service_account: "default".into(),
        addresses: Vec::new(),
        phase: PodPhase::Running,
        host_network: false,
        deleting: false,
    }
}

pub(crate) fn pod_at(namespace: &str, name: &str, uid: &str, address: &str) -> Pod {
    Pod { addresses: vec![address.parse::<IpAddr>().unwrap()], ..pod(namespace, name, uid) }
}

pub(crate) fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

pub(crate) fn managed_identity(namespace: &str, name: &str, uid: &str) -> AzureIdentity {
    let mut identity = AzureIdentity::new(
        name,
        AzureIdentitySpec {
            resource_id: Some(format!("{SUBSCRIPTION}/Microsoft.ManagedIdentity/userAssignedIdentities/{name}")),
            client_id: Some(format!("client-{name}")),
            ..AzureIdentitySpec::default()
        },
    );
    identity.metadata.namespace = Some(namespace.into());
    identity.metadata.uid = Some(uid.into());
    identity.metadata.generation = Some(1);
    identity
}

pub(crate) fn service_principal(namespace: &str, name: &str, uid: &str) -> AzureIdentity {
    let mut identity = managed_identity(namespace, name, uid);
    identity.spec = AzureIdentitySpec {
        type_: Some(1),
        client_id: Some(format!("client-{name}")),
        tenant_id: Some("22222222-2222-2222-2222-222222222222".into()),
        client_password: Some(SecretReference { name: Some("secret".into()), namespace: None, key: None }),
        ..AzureIdentitySpec::default()
    };
    identity
}

/// A binding of `identity` with `selector: demo`.
pub(crate) fn binding(namespace: &str, name: &str, uid: &str, identity: &str) -> AzureIdentityBinding {
    let mut binding = AzureIdentityBinding::new(
        name,
        AzureIdentityBindingSpec {
            azure_identity: Some(identity.into()),
            selector: Some("demo".into()),
            ..AzureIdentityBindingSpec::default()
        },
    );
    binding.metadata.namespace = Some(namespace.into());
    binding.metadata.uid = Some(uid.into());
    binding.metadata.generation = Some(1);
    binding
}

/// The assignment of an identity to a pod through a binding, as the controller writes it: named after pod and binding.
pub(crate) fn assigned(pod: &Pod, identity: &AzureIdentity, binding: &AzureIdentityBinding) -> AzureAssignedIdentity {
    let pod = &pod.reference;
    let mut object = AzureAssignedIdentity::new(
        &format!("{}-{}", pod.name, binding.metadata.name.as_deref().unwrap()),
        AzureAssignedIdentitySpec {
            azure_identity_ref: Some(Box::new(identity.clone())),
            azure_binding_ref: Some(Box::new(binding.clone())),
            pod: Some(pod.name.to_string()),
            pod_namespace: Some(pod.namespace.to_string()),
            pod_uid: Some(pod.uid.to_string()),
            node_name: Some("node-1".into()),
            grant: None,
            replicas: None,
        },
    );
    object.metadata.namespace = Some(pod.namespace.to_string());
    object.status = Some(AzureAssignedIdentityStatus { status: Some("Assigned".into()), available_replicas: None });
    object
}

pub(crate) fn match_labels(pairs: &[(&str, &str)]) -> LabelSelector {
    LabelSelector { match_labels: Some(labels(pairs)), match_expressions: None }
}

pub(crate) fn expression(key: &str, operator: &str, values: &[&str]) -> LabelSelectorRequirement {
    LabelSelectorRequirement {
        key: key.into(),
        operator: operator.into(),
        values: (!values.is_empty()).then(|| values.iter().map(|v| (*v).to_owned()).collect()),
    }
}

pub(crate) fn match_expressions(expressions: Vec<LabelSelectorRequirement>) -> LabelSelector {
    LabelSelector { match_labels: None, match_expressions: Some(expressions) }
}

/// Whether a binding selects a pod: the documentation's sentences one by one.
pub(crate) fn naive_selects(spec: &AzureIdentityBindingSpec, pod: &Pod) -> bool {
    let label = spec.selector.clone().unwrap_or_default();
    let accounts = spec.service_accounts.clone().unwrap_or_default();
    if label.is_empty() && spec.pod_selector.is_none() && accounts.is_empty() {
        return false;
    }
    if !label.is_empty() && pod.labels.get("aadpodidbinding") != Some(&label) {
        return false;
    }
    if !accounts.is_empty() && !accounts.contains(&pod.service_account.to_string()) {
        return false;
    }
    let Some(selector) = &spec.pod_selector else { return true };
    let wanted = selector.match_labels.clone().unwrap_or_default();
    let expressions = selector.match_expressions.clone().unwrap_or_default();
    if wanted.is_empty() && expressions.is_empty() {
        return false;
    }
    for (key, value) in wanted {
        if pod.labels.get(&key) != Some(&value) {
            return false;
        }
    }
    for e in expressions {
        let values = e.values.unwrap_or_default();
        let value = pod.labels.get(&e.key);
        let holds = match e.operator.as_str() {
            "In" => !values.is_empty() && value.is_some_and(|v| values.contains(v)),
            "NotIn" => !values.is_empty() && !value.is_some_and(|v| values.contains(v)),
            "Exists" => values.is_empty() && value.is_some(),
            "DoesNotExist" => values.is_empty() && value.is_none(),
            _ => false,
        };
        if !holds {
            return false;
        }
    }
    true
}
