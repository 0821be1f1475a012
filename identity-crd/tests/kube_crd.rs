//! A real API server's word on the definitions, the rules, the manifests and the generated deployment files: whatever
//! `validate()` says about a shape it says too, existing objects keep working until somebody edits them, and nobody but
//! the controller writes assignments.
//!
//! One control plane for all of it, since each takes seconds to start. Needs `KUBEBUILDER_ASSETS`.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::{fs, path::PathBuf, time::Duration};

use common::{Case, Expect, cases};
use identity_crd::{AzureIdentityBindingSpec, AzureIdentitySpec, Violation, crds};
use identity_lab::kube::ControlPlane;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceDefinition, JSONSchemaProps};
use kube::Client;
use serde_json::{Value, json};

const CONTROLLER: &str = "system:serviceaccount:entra-pod-identity:entra-pod-identity-controller";
const NODE: &str = "system:serviceaccount:entra-pod-identity:entra-pod-identity-node";
const GROUP: &str = "/apis/aadpodidentity.k8s.io/v1/namespaces/default";

#[tokio::test]
async fn what_a_real_api_server_says() {
    let work = tempfile::tempdir().unwrap();
    // The identity's rules come later, as in a cluster that had the predecessor.
    let before: Vec<_> = crds().into_iter().map(|crd| serde_json::to_string(&without_rules(crd)).unwrap()).collect();
    let plane = ControlPlane::start_with(&assets(), work.path(), &before).await.unwrap();
    let admin = plane.client();

    let old = identity("old", &json!({"type": 0, "resourceID": "unchecked"}));
    create(&admin, "azureidentities", "", &old).await.unwrap();
    for file in files("deploy/crds") {
        plane.apply_yaml(&file).await.unwrap();
    }
    eventually("the rules to be in force", async || {
        let bad = identity("bad", &json!({"type": 9}));
        create(&admin, "azureidentities", "dryRun=All", &bad).await.is_err()
    })
    .await;

    existing_objects_keep_working_until_edited(&admin).await;
    the_table(&admin).await;
    the_samples(&admin).await;
    one_write_makes_an_assignment(&admin).await;

    for file in files("deploy") {
        plane.apply_yaml(&file).await.unwrap();
    }
    plane.apply_yaml(&read("examples/secret-access/role.yaml")).await.unwrap();
    eventually("the policy to be in force", async || {
        create(&admin, "azureassignedidentities", "dryRun=All", &assigned("probe")).await.is_err()
    })
    .await;
    let controller = plane.client_for(CONTROLLER, &[]).await.unwrap();
    let node = plane.client_for(NODE, &[]).await.unwrap();
    only_the_controller_writes_assignments(&admin, &controller).await;
    deletion_is_not_in_the_way(&admin, &controller).await;
    the_controller_may_do_its_work_and_no_more(&controller).await;
    the_node_may_read_and_no_more(&node).await;
}

async fn existing_objects_keep_working_until_edited(admin: &Client) {
    let path = format!("{GROUP}/azureidentities/old");
    let metadata = json!({"metadata": {"labels": {"edited": "yes"}}});
    patch(admin, &path, &metadata).await.expect("labels may be edited");
    let status =
        json!({"status": {"conditions": [{"type": "Valid", "status": "False", "reason": "R", "message": "m"}]}});
    patch(admin, &format!("{path}/status"), &status).await.expect("conditions may be written");
    let refusal = patch(admin, &path, &json!({"spec": {"clientID": "c"}})).await.expect_err("still no resource id");
    assert_eq!(refusal.fields, ["spec.resourceID"], "{refusal:?}");
    let id = "/subscriptions/1/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/n";
    patch(admin, &path, &json!({"spec": {"resourceID": id}})).await.expect("repaired");
}

async fn the_table(admin: &Client) {
    for Case { name, kind, spec, expect } in cases() {
        let object =
            json!({"apiVersion": "aadpodidentity.k8s.io/v1", "kind": kind, "metadata": {"name": "case"}, "spec": spec});
        let answer = create(admin, plural(kind), "dryRun=All&fieldValidation=Strict", &object).await;
        match expect {
            Expect::Accepted | Expect::Meaning(_) => assert!(answer.is_ok(), "{kind}: {name}: {answer:?}"),
            Expect::Refused(fields) => {
                let refusal = answer.expect_err(name);
                assert_eq!(refusal.fields, fields, "{kind}: {name}: {refusal:?}");
                for violation in validate(kind, object["spec"].clone()) {
                    assert!(refusal.message.contains(&violation.message), "{kind}: {name}: {refusal:?}");
                }
            }
            Expect::TooMuch(field) => {
                let refusal = answer.expect_err(name);
                assert!(refusal.fields.iter().any(|f| f == field), "{kind}: {name}: {refusal:?}");
            }
        }
    }
}

async fn the_samples(admin: &Client) {
    for (file, documents) in common::samples() {
        for manifest in documents {
            if manifest["kind"] == "Secret" {
                continue;
            }
            let kind = plural(manifest["kind"].as_str().unwrap());
            let strict = create(admin, kind, "dryRun=All&fieldValidation=Strict", &manifest).await;
            let lenient = create(admin, kind, "fieldValidation=Ignore", &manifest).await;
            if file == "wrong-key-case.yaml" {
                let refusal = strict.expect_err("unknown keys");
                assert!(refusal.message.contains("unknown field \"spec.clientPassword.Name\""), "{refusal:?}");
                let refusal = lenient.expect_err("the pruned object has no Secret");
                assert_eq!(refusal.fields, ["spec.clientPassword"]);
                assert!(refusal.message.contains("`Name` and `Namespace` are not read"), "{refusal:?}");
                continue;
            }
            strict.unwrap_or_else(|e| panic!("{file}: {e:?}"));
            let stored = lenient.unwrap_or_else(|e| panic!("{file}: {e:?}"));
            assert_eq!(stored["spec"], manifest["spec"], "{file} is stored as it was written");
        }
    }
    let dead = json!({"apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding", "metadata": {"name": "dead"},
        "spec": {"metadata": {"creationTimestamp": null}, "azureIdentity": "demo", "selector": "demo"}});
    let stored = create(admin, "azureidentitybindings", "", &dead).await.expect("the predecessor's own output");
    assert!(stored["spec"]["metadata"].get("creationTimestamp").is_none(), "pruned: {stored}");
}

async fn one_write_makes_an_assignment(admin: &Client) {
    let stored = create(admin, "azureassignedidentities", "dryRun=All", &assigned("one")).await.unwrap();
    assert_eq!(stored["status"]["status"], "Assigned", "no status subresource here");
    let none = identity(
        "no-status",
        &json!({"resourceID": "/subscriptions/1/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/n"}),
    );
    let with_status = json!({"status": {"availableReplicas": 1}});
    let stored = create(admin, "azureidentities", "dryRun=All", &merged(none, &with_status)).await.unwrap();
    assert!(stored.get("status").is_none(), "a subresource there: {stored}");
}

async fn only_the_controller_writes_assignments(admin: &Client, controller: &Client) {
    let refusal =
        create(admin, "azureassignedidentities", "", &assigned("forged")).await.expect_err("not the controller");
    assert_eq!(refusal.code, 403, "{refusal:?}");
    for part in [CONTROLLER, "create an AzureIdentityBinding", "this is "] {
        assert!(refusal.message.contains(part), "{refusal:?}");
    }
    create(controller, "azureassignedidentities", "", &assigned("real")).await.expect("the controller creates");
    let path = format!("{GROUP}/azureassignedidentities/real");
    let other = json!({"spec": {"pod": "other"}});
    for change in
        [&other, &json!({"status": {"status": "Created"}}), &json!({"metadata": {"labels": {"nodename": "x"}}})]
    {
        let refusal = patch(admin, &path, change).await.expect_err("not the controller");
        assert_eq!(refusal.code, 403, "{refusal:?}");
    }
    patch(controller, &path, &other).await.expect("the controller changes");
    delete(admin, &path, &json!({})).await.expect("deletion is RBAC's business");
}

async fn deletion_is_not_in_the_way(admin: &Client, controller: &Client) {
    // The predecessor's finalizer, after its controller is gone.
    let mut stuck = assigned("stuck");
    stuck["metadata"]["finalizers"] = json!(["azureassignedidentity.finalizers.aadpodidentity.k8s.io"]);
    create(controller, "azureassignedidentities", "", &stuck).await.unwrap();
    let path = format!("{GROUP}/azureassignedidentities/stuck");
    let release = json!({"metadata": {"finalizers": null}});
    patch(admin, &path, &release).await.expect_err("only while it is being deleted");
    delete(admin, &path, &json!({})).await.unwrap();
    patch(admin, &path, &release).await.expect("a person may take the finalizer off");

    // The garbage collector takes the owner reference away when a pod's dependents are to be kept.
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "owner"},
        "spec": {"containers": [{"name": "c", "image": "none"}]}});
    let pod = post(admin, pods, "", &pod).await.unwrap();
    let mut owned = assigned("owned");
    owned["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "Pod", "name": "owner", "uid": pod["metadata"]["uid"]}]);
    create(controller, "azureassignedidentities", "", &owned).await.unwrap();
    let orphan = json!({"propagationPolicy": "Orphan", "gracePeriodSeconds": 0});
    delete(admin, &format!("{pods}/owner"), &orphan).await.unwrap();
    eventually("the pod to go", async || get(admin, &format!("{pods}/owner")).await.is_err()).await;
    let kept = get(admin, &format!("{GROUP}/azureassignedidentities/owned")).await.expect("kept");
    assert!(kept["metadata"].get("ownerReferences").is_none(), "{kept}");
}

async fn the_controller_may_do_its_work_and_no_more(controller: &Client) {
    for path in [
        "/api/v1/pods",
        "/apis/aadpodidentity.k8s.io/v1/azureidentities",
        "/apis/aadpodidentity.k8s.io/v1/azureidentitybindings",
        "/apis/aadpodidentity.k8s.io/v1/azureassignedidentities",
    ] {
        get(controller, path).await.unwrap_or_else(|e| panic!("{path}: {e:?}"));
    }
    let identity = format!("{GROUP}/azureidentities/old");
    let status = json!({"status": {"conditions": [{"type": "Valid", "status": "True"}]}});
    patch(controller, &format!("{identity}/status"), &status).await.expect("writes conditions");
    let leases = "/apis/coordination.k8s.io/v1/namespaces/entra-pod-identity/leases";
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "entra-pod-identity-controller"}, "spec": {"holderIdentity": "a"}});
    post(controller, leases, "", &lease).await.expect("makes its lease");
    patch(controller, &format!("{leases}/entra-pod-identity-controller"), &json!({"spec": {"holderIdentity": "b"}}))
        .await
        .expect("renews its lease");
    let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e", "namespace": "default"},
        "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "c", "reportingInstance": "i", "action": "a",
        "reason": "r", "type": "Normal", "note": "n", "regarding": {"kind": "Pod", "namespace": "default", "name": "p"}});
    post(controller, "/apis/events.k8s.io/v1/namespaces/default/events", "", &event).await.expect("writes Events");

    let specs = patch(controller, &identity, &json!({"spec": {"clientID": "x"}})).await;
    let secrets = get(controller, "/api/v1/namespaces/default/secrets/demo-sp").await;
    let other = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "x"}, "spec": {}});
    let elsewhere = post(controller, "/apis/coordination.k8s.io/v1/namespaces/default/leases", "", &other).await;
    for (what, answer) in [("specs", specs), ("secrets", secrets), ("other leases", elsewhere)] {
        assert_eq!(answer.expect_err(what).code, 403, "{what}");
    }
}

async fn the_node_may_read_and_no_more(node: &Client) {
    for path in [
        "/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-1",
        "/apis/aadpodidentity.k8s.io/v1/azureassignedidentities?labelSelector=nodename%3Dnode-1",
        "/apis/aadpodidentity.k8s.io/v1/azureidentitybindings",
        "/apis/aadpodidentity.k8s.io/v1/azurepodidentityexceptions",
    ] {
        get(node, path).await.unwrap_or_else(|e| panic!("{path}: {e:?}"));
    }
    let granted = get(node, "/api/v1/namespaces/default/secrets/demo-sp").await.expect_err("the test made no Secret");
    assert_eq!(granted.code, 404, "the example grants this one: {granted:?}");
    let secret = get(node, "/api/v1/namespaces/default/secrets/other").await;
    let secrets = get(node, "/api/v1/secrets").await;
    let forged = create(node, "azureassignedidentities", "", &assigned("node")).await;
    let identities = get(node, "/apis/aadpodidentity.k8s.io/v1/azureidentities").await;
    for (what, answer) in [("a secret", secret), ("secrets", secrets), ("writing", forged), ("identities", identities)]
    {
        assert_eq!(answer.expect_err(what).code, 403, "{what}");
    }
}

// Objects

fn without_rules(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut crd.spec.versions {
        let spec =
            version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()?.properties.as_mut()?.get_mut("spec"));
        let spec: &mut JSONSchemaProps = spec.expect("every kind has a spec");
        spec.x_kubernetes_validations = None;
    }
    crd
}

fn identity(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity", "metadata": {"name": name}, "spec": spec})
}

fn assigned(name: &str) -> Value {
    json!({"apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureAssignedIdentity",
        "metadata": {"name": name, "labels": {"nodename": "node-1"}},
        "spec": {"pod": "p", "podNamespace": "default", "nodename": "node-1"}, "status": {"status": "Assigned"}})
}

fn merged(mut object: Value, more: &Value) -> Value {
    object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    object
}

fn plural(kind: &str) -> &'static str {
    match kind {
        "AzureIdentity" => "azureidentities",
        "AzureIdentityBinding" => "azureidentitybindings",
        "AzureAssignedIdentity" => "azureassignedidentities",
        "AzurePodIdentityException" => "azurepodidentityexceptions",
        other => panic!("no kind {other}"),
    }
}

fn validate(kind: &str, spec: Value) -> Vec<Violation> {
    match kind {
        "AzureIdentity" => serde_json::from_value::<AzureIdentitySpec>(spec).unwrap().validate(),
        "AzureIdentityBinding" => serde_json::from_value::<AzureIdentityBindingSpec>(spec).unwrap().validate(),
        other => panic!("no rules for {other}"),
    }
}

// The world

#[expect(clippy::disallowed_methods, reason = "the tier's runner says where the binaries are")]
fn assets() -> PathBuf {
    std::env::var_os("KUBEBUILDER_ASSETS")
        .expect("KUBEBUILDER_ASSETS must name the directory with etcd and kube-apiserver")
        .into()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The files of a directory, the namespace first.
fn files(directory: &str) -> Vec<String> {
    let mut paths: Vec<_> =
        fs::read_dir(root().join(directory)).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file()).collect();
    paths.sort_by_key(|p| (!p.ends_with("namespace.yaml"), p.clone()));
    paths.iter().map(|p| fs::read_to_string(p).unwrap()).collect()
}

async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), wait).await.unwrap_or_else(|_| panic!("timed out waiting for {what}"));
}

/// What an API server says when it does not.
#[derive(Debug)]
struct Refusal {
    code: u16,
    message: String,
    fields: Vec<String>,
}

async fn send(client: &Client, method: &str, uri: &str, content_type: &str, body: Vec<u8>) -> Result<Value, Refusal> {
    let request =
        http::Request::builder().method(method).uri(uri).header("content-type", content_type).body(body).unwrap();
    client.request::<Value>(request).await.map_err(|error| match error {
        kube::Error::Api(status) => Refusal {
            code: status.code,
            message: status.message.clone(),
            fields: status.details.iter().flat_map(|d| d.causes.iter().map(|c| c.field.clone())).collect(),
        },
        other => panic!("{method} {uri}: {other}"),
    })
}

async fn post(client: &Client, path: &str, query: &str, object: &Value) -> Result<Value, Refusal> {
    send(client, "POST", &format!("{path}?{query}"), "application/json", serde_json::to_vec(object).unwrap()).await
}

async fn create(client: &Client, plural: &str, query: &str, object: &Value) -> Result<Value, Refusal> {
    post(client, &format!("{GROUP}/{plural}"), query, object).await
}

async fn patch(client: &Client, path: &str, change: &Value) -> Result<Value, Refusal> {
    send(client, "PATCH", path, "application/merge-patch+json", serde_json::to_vec(change).unwrap()).await
}

async fn get(client: &Client, path: &str) -> Result<Value, Refusal> {
    send(client, "GET", path, "application/json", Vec::new()).await
}

async fn delete(client: &Client, path: &str, options: &Value) -> Result<Value, Refusal> {
    send(client, "DELETE", path, "application/json", serde_json::to_vec(options).unwrap()).await
}
