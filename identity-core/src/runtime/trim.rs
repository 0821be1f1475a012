//! Objects as they are read: only the fields that are used are ever built, so that a node's memory does not grow with what
//! people write into pod specifications.

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{self, PodIP, PodSpec, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{Resource, api::ObjectMeta};
use serde::{Deserialize, Deserializer};

use crate::pod::{Pod, PodError};

/// A pod of the API server or of a manifest, reduced while it is parsed.
#[derive(Clone, Debug)]
pub(crate) struct TrimmedPod(v1::Pod);

impl TrimmedPod {
    pub(crate) fn pod(&self) -> Result<Pod, PodError> {
        Pod::try_from(&self.0)
    }
}

#[derive(Deserialize)]
struct Wire {
    metadata: WireMeta,
    #[serde(default)]
    spec: Option<WireSpec>,
    #[serde(default)]
    status: Option<WireStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireMeta {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    deletion_timestamp: Option<Time>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireSpec {
    node_name: Option<String>,
    service_account_name: Option<String>,
    host_network: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<WireIp>>,
}

#[derive(Deserialize)]
struct WireIp {
    ip: Option<String>,
}

impl<'de> Deserialize<'de> for TrimmedPod {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Wire { metadata, spec, status } = Wire::deserialize(deserializer)?;
        Ok(Self(v1::Pod {
            metadata: ObjectMeta {
                name: metadata.name,
                namespace: metadata.namespace,
                uid: metadata.uid,
                resource_version: metadata.resource_version,
                labels: metadata.labels,
                deletion_timestamp: metadata.deletion_timestamp,
                ..ObjectMeta::default()
            },
            spec: spec.map(|spec| PodSpec {
                node_name: spec.node_name,
                service_account_name: spec.service_account_name,
                host_network: spec.host_network,
                ..PodSpec::default()
            }),
            status: status.map(|status| PodStatus {
                phase: status.phase,
                pod_ip: status.pod_ip,
                pod_ips: status
                    .pod_ips
                    .map(|ips| ips.into_iter().filter_map(|ip| Some(PodIP { ip: ip.ip? })).collect()),
                ..PodStatus::default()
            }),
        }))
    }
}

impl Resource for TrimmedPod {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Pod".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "pods".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.0.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.0.metadata
    }
}

/// Drops what nobody here reads, before an object is kept.
pub(crate) fn metadata(meta: &mut ObjectMeta) {
    meta.managed_fields = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn says_the_same_as_the_full_type() {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "p", "namespace": "n", "uid": "u", "resourceVersion": "7", "labels": {"a": "b"},
                "annotations": {"big": "x"}, "managedFields": [{"manager": "m"}],
                "deletionTimestamp": "2026-11-24T00:00:00Z",
            },
            "spec": {
                "nodeName": "node", "serviceAccountName": "sa", "hostNetwork": true,
                "containers": [{"name": "c", "env": [{"name": "A", "value": "B"}]}],
            },
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
        });
        let trimmed: TrimmedPod = serde_json::from_value(object.clone()).unwrap();
        let full: v1::Pod = serde_json::from_value(object).unwrap();
        assert_eq!(trimmed.pod().unwrap(), Pod::try_from(&full).unwrap());
        assert_eq!(trimmed.meta().resource_version.as_deref(), Some("7"));
        assert!(trimmed.0.spec.unwrap().containers.is_empty());

        let bare: TrimmedPod = serde_json::from_value(json!({"metadata": {"name": "p"}})).unwrap();
        assert!(bare.pod().is_err());
    }
}
