//! Pods, identities, bindings, for both sources.

use serde_json::{Value, json};

use super::{NAMESPACE, NODE, TENANT, client_id, stage::address};

pub(crate) const IDENTITIES: usize = 20;

/// Managed identities: no credential, no TLS, no signature is in what is measured.
pub(crate) fn identity(number: usize) -> Value {
    json!({
        "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity",
        "metadata": {"name": format!("id-{number}"), "namespace": NAMESPACE, "uid": format!("00000000-0000-4000-8001-{number:012}")},
        "spec": {
            "type": 0, "clientID": client_id(number), "tenantID": TENANT,
            "resourceID": format!(
                "/subscriptions/{TENANT}/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/id-{number}"
            ),
        },
    })
}

pub(crate) fn binding(number: usize) -> Value {
    let name = format!("id-{number}");
    json!({
        "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding",
        "metadata": {"name": name, "namespace": NAMESPACE, "uid": format!("00000000-0000-4000-8002-{number:012}")},
        "spec": {"azureIdentity": name, "selector": name},
    })
}

pub(crate) fn pod(number: usize) -> Value {
    pod_on(NODE, &format!("pod-{number}"), number, IDENTITIES)
}

/// The pod with this number on a node whose pods have so many identities between them.
pub(crate) fn pod_on(node: &str, name: &str, number: usize, identities: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": NAMESPACE, "uid": format!("00000000-0000-4000-8003-{number:012}"),
            "labels": {"aadpodidbinding": format!("id-{}", number % identities), "app": "bench"},
        },
        "spec": {
            "nodeName": node, "serviceAccountName": "default",
            "containers": [{"name": "main", "image": "example.invalid/app"}],
        },
    })
}

/// What a kubelet says when the pod runs.
pub(crate) fn status(number: usize) -> Value {
    let address = address(number);
    json!({
        "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
        "hostIP": "10.42.0.1", "startTime": "2026-01-01T00:00:00Z",
    })
}

/// The request of a usual SDK.
pub(crate) fn request(resource: &str) -> String {
    let query = form_urlencoded::Serializer::new(String::new())
        .append_pair("api-version", "2018-02-01")
        .append_pair("resource", resource)
        .finish();
    format!(
        "GET /metadata/identity/oauth2/token?{query} HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n\
         User-Agent: azsdk-python-identity/1.25.0 Python/3.13.5 (Linux)\r\nAccept-Encoding: gzip, deflate\r\nAccept: */*\r\n\
         Connection: keep-alive\r\n\r\n"
    )
}

pub(crate) const RESOURCE: &str = "https://management.azure.com/";
