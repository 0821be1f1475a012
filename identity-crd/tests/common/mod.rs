//! One table of specs for two judges: `validate()` and a real API server.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::{fs, path::PathBuf};

use serde_json::{Value, json};

/// What both judges should say.
pub(crate) enum Expect {
    /// Nothing.
    Accepted,
    /// The same sentence about each of these fields, and about no other.
    Refused(&'static [&'static str]),
    /// A limit of the schema: each in its own words, about this field.
    TooMuch(&'static str),
    /// Rust knows that it does not work (about this field); the API server accepts it.
    Meaning(&'static str),
}

pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) spec: Value,
    pub(crate) expect: Expect,
}

mod boxes;
mod credentials;

const ID: &str = "/subscriptions/1/resourcegroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/n";

#[expect(clippy::needless_pass_by_value, reason = "reads better in the table")]
fn principal(change: Value) -> Value {
    merge(json!({"type": 1, "tenantID": "t.example.com", "clientID": "c", "clientPassword": {"name": "s"}}), &change)
}

#[expect(clippy::needless_pass_by_value, reason = "reads better in the table")]
fn managed(change: Value) -> Value {
    merge(json!({"type": 0, "resourceID": ID}), &change)
}

#[expect(clippy::needless_pass_by_value, reason = "reads better in the table")]
fn binding(change: Value) -> Value {
    merge(json!({"azureIdentity": "demo", "selector": "demo"}), &change)
}

/// `null` takes a field away.
fn merge(mut base: Value, change: &Value) -> Value {
    let fields = base.as_object_mut().expect("an object");
    for (key, value) in change.as_object().expect("an object") {
        if value.is_null() {
            fields.remove(key);
        } else {
            fields.insert(key.clone(), value.clone());
        }
    }
    base
}

fn many(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("n{i}")).collect()
}

pub(crate) fn cases() -> Vec<Case> {
    let newer = credentials::cases().into_iter().chain(boxes::cases());
    predecessors().into_iter().chain(newer).collect()
}

fn predecessors() -> Vec<Case> {
    use Expect::{Accepted, Meaning, Refused, TooMuch};
    let identity = |name, spec, expect| Case { name, kind: "AzureIdentity", spec, expect };
    let of_binding = |name, spec, expect| Case { name, kind: "AzureIdentityBinding", spec, expect };
    let exception = |name, spec, expect| Case { name, kind: "AzurePodIdentityException", spec, expect };
    let expressions = |e: Value| binding(json!({"podSelector": {"matchExpressions": e}}));
    vec![
        // What the predecessor accepted and meant
        identity("type 0 without a client id", managed(json!({})), Accepted),
        identity("no type means 0", json!({"resourceID": ID, "clientID": "c"}), Accepted),
        identity("resource id in any case", managed(json!({"resourceID": ID.to_uppercase()})), Accepted),
        identity(
            "empty strings are as if absent",
            managed(json!({"clientID": "", "tenantID": "", "adEndpoint": ""})),
            Accepted,
        ),
        identity(
            "type 0 does not look at a principal's fields",
            managed(json!({
            "tenantID": "<tenant>", "adEndpoint": "http://x", "clientPassword": {"name": "?"},
            "auxiliaryTenantIDs": ["", "2", "3", "4"]})),
            Accepted,
        ),
        identity("a principal does not look at the resource id", principal(json!({"resourceID": "x"})), Accepted),
        identity("dead fields", managed(json!({"replicas": 3, "adResourceID": "x"})), Accepted),
        identity(
            "nulls",
            json!({"resourceID": ID, "auxiliaryTenantIDs": null, "replicas": null, "clientID": null}),
            Accepted,
        ),
        identity("type 2", principal(json!({"type": 2})), Accepted),
        identity(
            "type 2 does not look at auxiliary tenants",
            principal(json!({"type": 2, "auxiliaryTenantIDs": many(4)})),
            Accepted,
        ),
        identity("auxiliary tenants", principal(json!({"auxiliaryTenantIDs": ["a", "b", "c"]})), Accepted),
        identity(
            "secret of another namespace",
            principal(json!({"clientPassword": {"name": "s", "namespace": "other"}})),
            Accepted,
        ),
        identity("sovereign cloud", principal(json!({"adEndpoint": "https://login.microsoftonline.us"})), Accepted),
        identity(
            "an endpoint with a path",
            principal(json!({"adEndpoint": "HTTPS://adfs.example.com:443/adfs/"})),
            Accepted,
        ),
        of_binding("selector", binding(json!({})), Accepted),
        of_binding("weight", binding(json!({"weight": -1})), Accepted),
        of_binding("no selector selects nothing", json!({"azureIdentity": "demo"}), Meaning("spec.selector")),
        of_binding("an empty selector selects nothing", binding(json!({"selector": ""})), Meaning("spec.selector")),
        exception("labels", json!({"podLabels": {"app": "mic"}}), Accepted),
        exception("no labels match nothing", json!({}), Meaning("spec.podLabels")),
        exception("a label that no pod has", json!({"podLabels": {"a b": "c"}}), Meaning("spec.podLabels[a b]")),
        // New fields
        identity("object id", managed(json!({"objectID": "0a0b0c0d-0000-0000-0000-00000000000F"})), Accepted),
        identity("audiences", managed(json!({"audiences": ["https://vault.azure.net/", "api://x"]})), Accepted),
        identity("no audiences", managed(json!({"audiences": []})), Accepted),
        identity(
            "key in the Secret",
            principal(json!({"clientPassword": {"name": "s", "key": "client_Secret.1"}})),
            Accepted,
        ),
        of_binding(
            "pod selector alone",
            binding(json!({"selector": null, "podSelector": {"matchLabels": {"k8s.io/app": "a"}}})),
            Accepted,
        ),
        of_binding(
            "service accounts alone",
            binding(json!({"selector": null, "serviceAccounts": ["default", "a.b"]})),
            Accepted,
        ),
        of_binding(
            "pinned to a client id",
            binding(json!({"clientID": "0a0b0c0d-0000-0000-0000-00000000000F"})),
            Accepted,
        ),
        of_binding("a client id that is none", binding(json!({"clientID": "demo"})), Refused(&["spec.clientID"])),
        of_binding("a client id left empty", binding(json!({"clientID": ""})), Refused(&["spec.clientID"])),
        of_binding("no client id", binding(json!({"clientID": null})), Accepted),
        of_binding("no service accounts", binding(json!({"serviceAccounts": []})), Accepted),
        of_binding(
            "expressions",
            expressions(json!([
            {"key": "a", "operator": "In", "values": ["x", ""]}, {"key": "b", "operator": "Exists"},
            {"key": "c", "operator": "DoesNotExist", "values": []}, {"key": "d", "operator": "NotIn", "values": ["y"]}])),
            Accepted,
        ),
        // Wrong shapes
        identity("unknown type", managed(json!({"type": 4})), Refused(&["spec.type"])),
        identity("negative type", managed(json!({"type": -1})), Refused(&["spec.type"])),
        identity("empty spec", json!({}), Refused(&["spec.resourceID"])),
        identity(
            "resource id with something before",
            managed(json!({"resourceID": format!("x{ID}")})),
            Refused(&["spec.resourceID"]),
        ),
        identity(
            "resource id with something after",
            managed(json!({"resourceID": format!("{ID}/x")})),
            Refused(&["spec.resourceID"]),
        ),
        identity(
            "resource id of something else",
            managed(json!({"resourceID": "/subscriptions/1/resourceGroups/g"})),
            Refused(&["spec.resourceID"]),
        ),
        identity(
            "resource id with a line end",
            managed(json!({"resourceID": format!("{ID}\n")})),
            Refused(&["spec.resourceID"]),
        ),
        identity("client id with white space", managed(json!({"clientID": "c "})), Refused(&["spec.clientID"])),
        identity("object id that is none", managed(json!({"objectID": "demo"})), Refused(&["spec.objectID"])),
        identity(
            "a principal with nothing",
            json!({"type": 1}),
            Refused(&["spec.clientID", "spec.tenantID", "spec.clientPassword"]),
        ),
        identity(
            "type 2 with nothing",
            json!({"type": 2}),
            Refused(&["spec.clientID", "spec.tenantID", "spec.clientPassword"]),
        ),
        identity(
            "a principal with empty strings",
            principal(json!({"tenantID": "", "clientID": "", "clientPassword": {"name": ""}})),
            Refused(&["spec.clientID", "spec.tenantID", "spec.clientPassword"]),
        ),
        identity(
            "a Secret without a name",
            principal(json!({"clientPassword": {"namespace": "default"}})),
            Refused(&["spec.clientPassword"]),
        ),
        identity("a tenant that leads elsewhere", principal(json!({"tenantID": "../x"})), Refused(&["spec.tenantID"])),
        identity("a tenant left to fill in", principal(json!({"tenantID": "<tenant>"})), Refused(&["spec.tenantID"])),
        identity(
            "four auxiliary tenants",
            principal(json!({"auxiliaryTenantIDs": many(4)})),
            Refused(&["spec.auxiliaryTenantIDs"]),
        ),
        identity(
            "an empty auxiliary tenant",
            principal(json!({"auxiliaryTenantIDs": [""]})),
            Refused(&["spec.auxiliaryTenantIDs"]),
        ),
        identity(
            "http",
            principal(json!({"adEndpoint": "http://login.microsoftonline.com/"})),
            Refused(&["spec.adEndpoint"]),
        ),
        identity(
            "a user in the endpoint",
            principal(json!({"adEndpoint": "https://login.microsoftonline.com@evil.example/"})),
            Refused(&["spec.adEndpoint"]),
        ),
        identity(
            "a query in the endpoint",
            principal(json!({"adEndpoint": "https://a/?b"})),
            Refused(&["spec.adEndpoint"]),
        ),
        identity(
            "an endpoint without a scheme",
            principal(json!({"adEndpoint": "login.microsoftonline.com"})),
            Refused(&["spec.adEndpoint"]),
        ),
        identity(
            "a Secret's name that none has",
            principal(json!({"clientPassword": {"name": "My_Secret"}})),
            Refused(&["spec.clientPassword.name"]),
        ),
        identity(
            "a namespace that there is not",
            principal(json!({"clientPassword": {"name": "s", "namespace": "a/b"}})),
            Refused(&["spec.clientPassword.namespace"]),
        ),
        identity(
            "a key that no Secret has",
            principal(json!({"clientPassword": {"name": "s", "key": "a b"}})),
            Refused(&["spec.clientPassword.key"]),
        ),
        identity("an empty audience", managed(json!({"audiences": [""]})), Refused(&["spec.audiences"])),
        identity(
            "an audience of two words",
            managed(json!({"audiences": ["https://a https://b"]})),
            Refused(&["spec.audiences"]),
        ),
        of_binding("no identity", json!({"selector": "demo"}), Refused(&["spec.azureIdentity"])),
        of_binding("empty identity", binding(json!({"azureIdentity": ""})), Refused(&["spec.azureIdentity"])),
        of_binding(
            "an identity of another namespace",
            binding(json!({"azureIdentity": "other/demo"})),
            Refused(&["spec.azureIdentity"]),
        ),
        of_binding(
            "a selector of 64 characters",
            binding(json!({"selector": "a".repeat(64)})),
            Refused(&["spec.selector"]),
        ),
        of_binding(
            "a selector that is an expression",
            binding(json!({"selector": "app=demo"})),
            Refused(&["spec.selector"]),
        ),
        of_binding("too heavy", binding(json!({"weight": 1_000_001})), Refused(&["spec.weight"])),
        of_binding("too light", binding(json!({"weight": -1_000_001})), Refused(&["spec.weight"])),
        of_binding("an empty pod selector", binding(json!({"podSelector": {}})), Refused(&["spec.podSelector"])),
        of_binding(
            "a pod selector of empty parts",
            binding(json!({"podSelector": {"matchLabels": {}, "matchExpressions": []}})),
            Refused(&["spec.podSelector"]),
        ),
        of_binding(
            "a label key that none has",
            binding(json!({"podSelector": {"matchLabels": {"a b": "c"}}})),
            Refused(&["spec.podSelector.matchLabels"]),
        ),
        of_binding(
            "a label value that none has",
            binding(json!({"podSelector": {"matchLabels": {"a": "b c"}}})),
            Refused(&["spec.podSelector.matchLabels"]),
        ),
        of_binding(
            "an unknown operator",
            expressions(json!([{"key": "a", "operator": "in", "values": ["x"]}])),
            Refused(&["spec.podSelector.matchExpressions"]),
        ),
        of_binding(
            "In without values",
            expressions(json!([{"key": "a", "operator": "In"}])),
            Refused(&["spec.podSelector.matchExpressions"]),
        ),
        of_binding(
            "Exists with values",
            expressions(json!([{"key": "a", "operator": "Exists", "values": ["x"]}])),
            Refused(&["spec.podSelector.matchExpressions"]),
        ),
        of_binding(
            "a value that no label has",
            expressions(json!([{"key": "a", "operator": "In", "values": ["x y"]}])),
            Refused(&["spec.podSelector.matchExpressions"]),
        ),
        of_binding(
            "a service account with its namespace",
            binding(json!({"serviceAccounts": ["ns:name"]})),
            Refused(&["spec.serviceAccounts"]),
        ),
        of_binding(
            "an empty service account",
            binding(json!({"serviceAccounts": [""]})),
            Refused(&["spec.serviceAccounts"]),
        ),
        of_binding("an audience with a tab", binding(json!({"audiences": ["a\tb"]})), Refused(&["spec.audiences"])),
        // Limits
        identity("65 audiences", managed(json!({"audiences": many(65)})), TooMuch("spec.audiences")),
        identity("64 audiences", managed(json!({"audiences": many(64)})), Accepted),
        identity("a long audience", managed(json!({"audiences": ["a".repeat(513)]})), TooMuch("spec.audiences[0]")),
        identity("a long client id", managed(json!({"clientID": "a".repeat(257)})), TooMuch("spec.clientID")),
        identity("a long tenant", principal(json!({"tenantID": "a".repeat(257)})), TooMuch("spec.tenantID")),
        identity(
            "a long name of a Secret",
            principal(json!({"clientPassword": {"name": "a".repeat(254)}})),
            TooMuch("spec.clientPassword.name"),
        ),
        identity(
            "a long name of a namespace",
            principal(json!({"clientPassword": {"name": "a", "namespace": "a".repeat(64)}})),
            TooMuch("spec.clientPassword.namespace"),
        ),
        identity(
            "a long endpoint",
            principal(json!({"adEndpoint": format!("https://a/{}", "a".repeat(512))})),
            TooMuch("spec.adEndpoint"),
        ),
        identity(
            "a long resource id",
            managed(json!({"resourceID": format!("{ID}{}", "n".repeat(512))})),
            TooMuch("spec.resourceID"),
        ),
        identity(
            "a long Secret's key, type 0 too",
            managed(json!({"clientPassword": {"key": "a".repeat(254)}})),
            TooMuch("spec.clientPassword.key"),
        ),
        identity(
            "65 tenants, type 0 too",
            managed(json!({"auxiliaryTenantIDs": many(65)})),
            TooMuch("spec.auxiliaryTenantIDs"),
        ),
        of_binding(
            "65 service accounts",
            binding(json!({"serviceAccounts": many(65)})),
            TooMuch("spec.serviceAccounts"),
        ),
        of_binding(
            "a long service account",
            binding(json!({"serviceAccounts": ["a".repeat(254)]})),
            TooMuch("spec.serviceAccounts[0]"),
        ),
        of_binding(
            "17 expressions",
            expressions(Value::Array(vec![json!({"key": "a", "operator": "Exists"}); 17])),
            TooMuch("spec.podSelector.matchExpressions"),
        ),
        of_binding(
            "17 values",
            expressions(json!([{"key": "a", "operator": "In", "values": many(17)}])),
            TooMuch("spec.podSelector.matchExpressions[0].values"),
        ),
    ]
}

/// The predecessor's manifests: file name and its documents.
pub(crate) fn samples() -> Vec<(String, Vec<Value>)> {
    files("predecessor")
}

/// The objects of this group in all other examples, each with its file.
pub(crate) fn examples() -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for directory in fs::read_dir(root()).expect("examples/ is there") {
        let directory = directory.expect("readable").file_name().into_string().expect("a name");
        for (file, documents) in files(&directory) {
            let ours = documents
                .into_iter()
                .filter(|d| d["apiVersion"].as_str().is_some_and(|v| v.split('/').next() == Some(identity_crd::GROUP)));
            found.extend(ours.map(|document| (format!("{directory}/{file}"), document)));
        }
    }
    found.retain(|(file, _)| !file.starts_with("predecessor/"));
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

fn files(directory: &str) -> Vec<(String, Vec<Value>)> {
    let mut files: Vec<_> = fs::read_dir(root().join(directory))
        .expect("a directory of examples")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    let documents = |path: &PathBuf| {
        let text = fs::read_to_string(path).expect("readable");
        serde_saphyr::from_multiple::<Value>(&text).expect("valid YAML")
    };
    files
        .iter()
        .map(|path| (path.file_name().expect("a file").to_string_lossy().into_owned(), documents(path)))
        .collect()
}
