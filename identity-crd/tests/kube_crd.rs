//! A real API server's word on the definitions, the rules, the manifests and the generated deployment files: whatever
//! `validate()` says about a shape it says too, existing objects keep working until somebody edits them, and nobody but
//! the controller writes assignments.
//!
//! One control plane for all of it, since each takes seconds to start. Needs `KUBEBUILDER_ASSETS`.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod cluster;
mod common;

use cluster::{
    CONTROLLER, GROUP, NODE, api_version, assets, create, delete, eventually, files, get, patch, plural, post, read,
    send, watch,
};
use common::{Case, Expect, cases};
use identity_crd::{AzureIdentity, AzureIdentityBindingSpec, AzureIdentityGrantSpec, Violation, crds};
use identity_lab::kube::ControlPlane;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceDefinition, JSONSchemaProps};
use kube::Client;
use serde_json::{Value, json};

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
    the_examples(&admin).await;
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
        let object = json!({"apiVersion": api_version(kind), "kind": kind, "metadata": {"name": "case"}, "spec": spec});
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

async fn the_examples(admin: &Client) {
    for (file, mut manifest) in common::examples() {
        manifest["metadata"]["namespace"] = json!("default");
        let kind = plural(manifest["kind"].as_str().unwrap());
        let stored = create(admin, kind, "dryRun=All&fieldValidation=Strict", &manifest).await;
        assert_eq!(stored.unwrap_or_else(|e| panic!("{file}: {e:?}"))["spec"], manifest["spec"], "{file}");
    }
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
        "/apis/aadpodidentity.k8s.io/v1alpha1/azureidentitygrants",
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/azureidentitygrants.aadpodidentity.k8s.io",
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/azureidentitygrants.aadpodidentity.k8s.io",
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
    let mine = format!("{leases}/entra-pod-identity-controller");
    let mut held = get(controller, &mine).await.expect("looks at its lease");
    held["spec"]["holderIdentity"] = json!("b");
    send(controller, "PUT", &mine, "application/json", serde_json::to_vec(&held).unwrap())
        .await
        .expect("renews its lease");
    let event = event("of-the-controller");
    post(controller, EVENTS, "", &event).await.expect("writes Events");

    let specs = patch(controller, &identity, &json!({"spec": {"clientID": "x"}})).await;
    secrets_are_followed_by_name(controller).await;
    let policies = get(controller, "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies").await;
    let other = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "x"}, "spec": {}});
    let elsewhere = post(controller, "/apis/coordination.k8s.io/v1/namespaces/default/leases", "", &other).await;
    let all = get(controller, leases).await;
    let one = get(controller, "/api/v1/namespaces/default/pods/any").await;
    for (what, answer) in [
        ("specs", specs),
        ("other policies", policies),
        ("other leases", elsewhere),
        ("all leases", all),
        ("what it follows, one by one", one),
    ] {
        assert_eq!(answer.expect_err(what).code, 403, "{what}");
    }
}

async fn the_node_may_read_and_no_more(node: &Client) {
    for path in [
        "/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-1",
        "/apis/aadpodidentity.k8s.io/v1/azureassignedidentities?labelSelector=nodename%3Dnode-1",
        "/apis/aadpodidentity.k8s.io/v1/azureidentities",
        "/apis/aadpodidentity.k8s.io/v1/azureidentitybindings",
        "/apis/aadpodidentity.k8s.io/v1/azurepodidentityexceptions",
    ] {
        get(node, path).await.unwrap_or_else(|e| panic!("{path}: {e:?}"));
    }
    secrets_are_followed_by_name(node).await;
    post(node, EVENTS, "", &event("of-the-node")).await.expect("writes Events");
    let forged = create(node, "azureassignedidentities", "", &assigned("node")).await;
    let identity = patch(node, &format!("{GROUP}/azureidentities/old"), &json!({"spec": {"clientID": "x"}})).await;
    let token = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let token = post(node, "/api/v1/namespaces/default/serviceaccounts/default/token", "", &token).await;
    let status = json!({"status": {"conditions": []}});
    let status = patch(node, &format!("{GROUP}/azureidentities/old/status"), &status).await;
    let gone = delete(node, &format!("{GROUP}/azureassignedidentities/any"), &json!({})).await;
    for (what, answer) in
        [("writing", forged), ("an identity", identity), ("a token", token), ("a status", status), ("deleting", gone)]
    {
        assert_eq!(answer.expect_err(what).code, 403, "{what}");
    }
}

/// What `examples/secret-access` gives to both programs: one Secret by its name, in a watch too, and no others.
async fn secrets_are_followed_by_name(client: &Client) {
    const SECRETS: &str = "/api/v1/namespaces/default/secrets";
    let granted = get(client, &format!("{SECRETS}/demo-sp")).await.expect_err("the test made no Secret");
    assert_eq!(granted.code, 404, "the example grants this one: {granted:?}");
    let listed =
        get(client, &format!("{SECRETS}?fieldSelector=metadata.name%3Ddemo-sp")).await.expect("a list of one name");
    assert_eq!(listed["items"], json!([]), "the test made no Secret");
    let watched =
        watch(client, &format!("{SECRETS}?fieldSelector=metadata.name%3Ddemo-sp&watch=1&timeoutSeconds=1")).await;
    watched.expect("a watch of one name");
    for query in ["", "?fieldSelector=metadata.name%3Dother", "?fieldSelector=metadata.name%21%3Ddemo-sp", "/other"] {
        let refused = get(client, &format!("{SECRETS}{query}")).await.expect_err(query);
        assert_eq!(refused.code, 403, "{query}: {refused:?}");
    }
    for query in ["?watch=1&timeoutSeconds=1", "?fieldSelector=metadata.name%3Dother&watch=1&timeoutSeconds=1"] {
        let refused = watch(client, &format!("{SECRETS}{query}")).await.expect_err(query);
        assert_eq!(refused.code, 403, "{query}: {refused:?}");
    }
    assert_eq!(get(client, "/api/v1/secrets").await.expect_err("all Secrets").code, 403);
}

// Objects

const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

fn event(name: &str) -> Value {
    json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": name, "namespace": "default"},
        "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "c", "reportingInstance": "i", "action": "a",
        "reason": "r", "type": "Normal", "note": "n", "regarding": {"kind": "Pod", "namespace": "default", "name": "p"}})
}

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

fn validate(kind: &str, spec: Value) -> Vec<Violation> {
    match kind {
        "AzureIdentity" => AzureIdentity::new("case", serde_json::from_value(spec).unwrap()).validate(),
        "AzureIdentityGrant" => serde_json::from_value::<AzureIdentityGrantSpec>(spec).unwrap().validate(),
        "AzureIdentityBinding" => serde_json::from_value::<AzureIdentityBindingSpec>(spec).unwrap().validate(),
        other => panic!("no rules for {other}"),
    }
}
