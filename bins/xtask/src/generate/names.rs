//! Names that several of the generated objects share.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub(super) const NAMESPACE: &str = "entra-pod-identity";
pub(super) const CONTROLLER: &str = "entra-pod-identity-controller";
pub(super) const NODE: &str = "entra-pod-identity-node";
pub(super) const LEASE: &str = "entra-pod-identity-controller";

pub(super) fn labels(component: &str) -> BTreeMap<String, String> {
    [("app.kubernetes.io/name", "entra-pod-identity"), ("app.kubernetes.io/component", component)]
        .into_iter()
        .map(|(k, v)| (k.into(), v.into()))
        .collect()
}

/// Metadata of a namespaced object of ours.
pub(super) fn meta(name: &str) -> ObjectMeta {
    ObjectMeta { namespace: Some(NAMESPACE.into()), ..cluster_meta(name) }
}

/// Metadata of a cluster-wide object.
pub(super) fn cluster_meta(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() }
}
