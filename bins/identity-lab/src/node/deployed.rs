//! Objects that the lab puts into an API server besides the manifests: what `deploy/` has for the product, and what an operator
//! grants it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::Error;
use crate::manifest;

/// Where the product's own namespace and accounts come from.
pub(super) const NAMESPACE: &str = "entra-pod-identity";
/// What the lab takes from `deploy/`; workloads are started by the lab itself, as processes.
const DEPLOYED: [&str; 9] = [
    "CustomResourceDefinition",
    "Namespace",
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
];

/// Lets everybody read the issuer's discovery and keys, as clusters do that Entra is to trust.
pub(super) fn discovery() -> Value {
    let group = "rbac.authorization.k8s.io";
    json!({
        "apiVersion": format!("{group}/v1"), "kind": "ClusterRoleBinding",
        "metadata": { "name": "identity-lab-issuer-discovery" },
        "roleRef": { "apiGroup": group, "kind": "ClusterRole", "name": "system:service-account-issuer-discovery" },
        "subjects": [{ "apiGroup": group, "kind": "Group", "name": "system:unauthenticated" }],
    })
}

/// What an operator grants beside identities with a credential, in each namespace whose manifests have no role binding of their
/// own: node and controller may read the Secrets that they name (`examples/secret-access`), and for `subject: Pod` the node may
/// request tokens of the pods' accounts (`examples/federated-pod`).
pub(super) fn grants(objects: &[Value]) -> Vec<Value> {
    let text = |object: &Value, pointer: &str| {
        object.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
    };
    let namespace = |object: &Value| text(object, "/metadata/namespace").unwrap_or_else(|| "default".to_owned());
    let bound: BTreeSet<String> =
        objects.iter().filter(|object| object["kind"] == "RoleBinding").map(namespace).collect();
    let (mut secrets, mut accounts) = (BTreeMap::<_, BTreeSet<String>>::new(), BTreeMap::<_, BTreeSet<String>>::new());
    for identity in objects.iter().filter(|object| object["kind"] == "AzureIdentity") {
        let home = namespace(identity);
        if let Some(secret) = text(identity, "/spec/clientPassword/name") {
            let of = text(identity, "/spec/clientPassword/namespace").unwrap_or_else(|| home.clone());
            secrets.entry(of).or_default().insert(secret);
        }
        if text(identity, "/spec/federated/subject").is_some_and(|subject| subject == "Pod") {
            let pods = objects.iter().filter(|object| object["kind"] == "Pod" && namespace(object) == home);
            let account = |pod| text(pod, "/spec/serviceAccountName").unwrap_or_else(|| "default".to_owned());
            accounts.entry(home.clone()).or_default().extend(pods.map(account));
        }
    }
    let role =
        |(namespace, names): (String, BTreeSet<String>), name: &str, resource: &str, verbs: &[&str], to: &[&str]| {
            let group = "rbac.authorization.k8s.io";
            let metadata = json!({ "name": name, "namespace": namespace });
            let rule = json!({ "apiGroups": [""], "resources": [resource], "resourceNames": names, "verbs": verbs });
            let subject = |account: &&str| json!({ "kind": "ServiceAccount", "name": account, "namespace": NAMESPACE });
            [
                json!({ "apiVersion": format!("{group}/v1"), "kind": "Role", "metadata": metadata, "rules": [rule] }),
                json!({
                    "apiVersion": format!("{group}/v1"), "kind": "RoleBinding", "metadata": metadata,
                    "roleRef": { "apiGroup": group, "kind": "Role", "name": name },
                    "subjects": to.iter().map(subject).collect::<Vec<_>>(),
                }),
            ]
        };
    let (node, controller) = ("entra-pod-identity-node", "entra-pod-identity-controller");
    let read = ["get", "list", "watch"];
    secrets.retain(|namespace, _| !bound.contains(namespace));
    accounts.retain(|namespace, names| !bound.contains(namespace) && !names.is_empty());
    let secrets = secrets
        .into_iter()
        .flat_map(|of| role(of, "entra-pod-identity-credentials", "secrets", &read, &[node, controller]));
    let accounts = accounts
        .into_iter()
        .flat_map(|of| role(of, "entra-pod-identity-tokens", "serviceaccounts/token", &["create"], &[node]));
    secrets.chain(accounts).collect()
}

pub(super) fn identify(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    format!("{} {}/{} ({})", text("/kind"), text("/metadata/namespace"), text("/metadata/name"), text("/apiVersion"))
}

/// An object as it can be applied: without what only a server sets, with what a manifest for the lab may leave out.
pub(super) fn applicable(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        for field in ["uid", "resourceVersion", "creationTimestamp", "generation", "managedFields"] {
            metadata.remove(field);
        }
    }
    if object["kind"] == "Pod"
        && let Some(pod) = object.as_object_mut()
    {
        pod.remove("status");
        let spec = pod.entry("spec").or_insert_with(|| json!({}));
        if let Some(spec) = spec.as_object_mut() {
            let containers = spec.entry("containers").or_insert(Value::Null);
            if containers.as_array().is_none_or(Vec::is_empty) {
                *containers = json!([{ "name": "main", "image": "none" }]);
            }
        }
    }
    object
}

/// The objects of `deploy/` that a cluster needs before the product runs as processes beside it. Charts are templates: left out.
pub(super) fn deployed(directory: &Path) -> Result<Vec<Value>, Error> {
    let mut found = Vec::new();
    let entries = fs::read_dir(directory).map_err(|error| {
        std::io::Error::new(
            error.kind(),
            format!("{}: {error}; `--deploy` names the project's deploy directory", directory.display()),
        )
    })?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() && !path.join("Chart.yaml").exists() {
            found.extend(deployed(&path)?);
        } else if path.extension().is_some_and(|end| end == "yaml") {
            for document in manifest::documents(&fs::read_to_string(&path)?) {
                let value = document.value.map_err(|message| Error::Overrides { path: path.clone(), message })?;
                manifest::flatten(value, &mut found);
            }
        }
    }
    found.retain(|object| object["kind"].as_str().is_some_and(|kind| DEPLOYED.contains(&kind)));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_product_may_beside_an_identity_is_what_the_identity_names() {
        let identity = |namespace: &str, secret: Value| {
            json!({
                "kind": "AzureIdentity", "metadata": { "name": "i", "namespace": namespace },
                "spec": { "clientPassword": secret },
            })
        };
        let objects = [
            identity("a", json!({ "name": "one" })),
            identity("a", json!({ "name": "two", "namespace": "a" })),
            identity("b", json!({ "name": "three", "namespace": "b" })),
            identity("c", Value::Null),
            json!({ "kind": "RoleBinding", "metadata": { "name": "own", "namespace": "b" } }),
            json!({
                "kind": "AzureIdentity", "metadata": { "name": "f", "namespace": "c" },
                "spec": { "type": 3, "federated": { "subject": "Pod" } },
            }),
            json!({ "kind": "Pod", "metadata": { "name": "p", "namespace": "c" } }),
        ];
        let made = grants(&objects);
        assert_eq!(made.len(), 4, "{made:?}");
        assert_eq!(made[0]["metadata"]["namespace"], "a");
        assert_eq!(made[0]["rules"][0]["resourceNames"], json!(["one", "two"]));
        assert_eq!(made[0]["rules"][0]["verbs"], json!(["get", "list", "watch"]));
        assert_eq!(made[1]["subjects"][0]["name"], "entra-pod-identity-node");
        assert_eq!(made[1]["subjects"][1]["name"], "entra-pod-identity-controller");
        assert_eq!(made[2]["metadata"]["namespace"], "c");
        assert_eq!(
            (&made[2]["rules"][0]["resourceNames"], &made[2]["rules"][0]["verbs"]),
            (&json!(["default"]), &json!(["create"]))
        );
        assert_eq!(made[3]["subjects"].as_array().unwrap().len(), 1);
    }
}
