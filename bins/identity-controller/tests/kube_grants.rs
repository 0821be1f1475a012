//! Grants on a real control plane: one person asks, another approves, the controller activates, assignments carry the
//! deadline, and everything that is not proven gives nothing. People are impersonated; who they are the API server says.
//!
//! Takes more than a minute: that is how much older than a grant the admission policy has to be. Needs
//! `KUBEBUILDER_ASSETS`.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests")]
#![allow(dead_code, reason = "each target uses a part of the helpers")]

mod support;

use std::time::Duration;

use http::Method;
use identity_broker::audit::journal::verify;
use serde_json::{Value, json};
use support::{
    CONTROLLER,
    cluster::{Cluster, Refusal, path, principal},
    controller::Controller,
    eventually, part, root, until,
};
use tokio::time::{Instant, sleep};

const NAMESPACE: &str = "jit";
const GRANTS: &str = "/apis/aadpodidentity.k8s.io/v1alpha1/namespaces/jit/azureidentitygrants";
const POLICY: &str = "azureidentitygrants.aadpodidentity.k8s.io";
const ADMISSION: &str = "/apis/admissionregistration.k8s.io/v1";

/// A request in somebody's name.
async fn say(cluster: &Cluster, who: &str, method: Method, uri: &str, body: &Value) -> Result<Value, Refusal> {
    let content = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let request = http::Request::builder().method(method).uri(uri).header("content-type", content);
    let request = request.header("Impersonate-User", who).body(serde_json::to_vec(body).unwrap()).unwrap();
    cluster.admin.request::<Value>(request).await.map_err(|error| match error {
        kube::Error::Api(status) => Refusal { code: status.code, message: status.message.clone() },
        other => Refusal { code: 0, message: other.to_string() },
    })
}

fn request(name: &str, by: &str, duration: &str) -> Value {
    json!({"apiVersion": "aadpodidentity.k8s.io/v1alpha1", "kind": "AzureIdentityGrant",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"bindingName": "vault", "reason": "incident 4711", "duration": duration, "requestedBy": by}})
}

async fn ask(cluster: &Cluster, name: &str) {
    say(cluster, "ann", Method::POST, GRANTS, &request(name, "ann", "30m")).await.unwrap();
}

async fn approve(cluster: &Cluster, who: &str, by: &str, name: &str) -> Result<Value, Refusal> {
    let change = json!({"spec": {"approvals": [{"by": by}]}});
    say(cluster, who, Method::PATCH, &format!("{GRANTS}/{name}"), &change).await
}

async fn grant(cluster: &Cluster, name: &str) -> Value {
    cluster.get(&format!("{GRANTS}/{name}")).await.unwrap()
}

async fn phase(cluster: &Cluster, name: &str) -> Option<String> {
    grant(cluster, name).await["status"]["phase"].as_str().map(str::to_owned)
}

async fn until_phase(cluster: &Cluster, name: &str, wanted: &str) {
    eventually(&format!("{name} to be {wanted}"), async || phase(cluster, name).await.as_deref() == Some(wanted)).await;
}

async fn stamp(cluster: &Cluster) -> Value {
    cluster.assignment(NAMESPACE, "shell").await.map(|object| object["spec"]["grant"].clone()).unwrap_or_default()
}

async fn until_stamp(cluster: &Cluster, name: &Value) {
    eventually(&format!("the stamp {name}"), async || stamp(cluster).await["name"] == *name).await;
}

/// Events on the binding with this reason that speak of the grant.
async fn told(cluster: &Cluster, reason: &str, name: &str) {
    let uri = format!("/apis/events.k8s.io/v1/namespaces/{NAMESPACE}/events");
    eventually(&format!("the Event {reason} of {name}"), async || {
        cluster.get(&uri).await.unwrap()["items"].as_array().unwrap().iter().any(|event| {
            event["reason"] == reason
                && event["regarding"]["kind"] == "AzureIdentityBinding"
                && event["regarding"]["name"] == "vault"
                && event["note"].as_str().unwrap().contains(name)
        })
    })
    .await;
}

fn vault() -> Value {
    json!({"apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding",
        "metadata": {"name": "vault", "namespace": NAMESPACE},
        "spec": {"azureIdentity": "vault", "selector": "ops", "timeBox": {"grant":
            {"required": true, "maxDuration": "1h", "minApprovals": 1, "approvers": {"users": ["bob"]}}}}})
}

async fn world(cluster: &Cluster) {
    cluster.namespace(NAMESPACE).await;
    let rules = json!([{"apiGroups": ["aadpodidentity.k8s.io"],
        "resources": ["azureidentitygrants", "azureidentitybindings"],
        "verbs": ["get", "list", "create", "patch", "delete"]}]);
    let rbac = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{NAMESPACE}");
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "people"},
        "rules": rules});
    cluster.post(&format!("{rbac}/roles"), &role).await.unwrap();
    let people = ["ann", "bob", "eve"]
        .map(|name| json!({"kind": "User", "name": name, "apiGroup": "rbac.authorization.k8s.io"}));
    let bound = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "people"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "people"}, "subjects": people});
    cluster.post(&format!("{rbac}/rolebindings"), &bound).await.unwrap();
    cluster.identity(NAMESPACE, "vault", &principal(1)).await;
    cluster.create("azureidentitybindings", &vault()).await;
    cluster.pod(NAMESPACE, "shell", "ops", Some("node-1")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grants() {
    let cluster = part("control plane", Cluster::start("")).await;
    let kubeconfig = cluster.plane.kubeconfig_for(CONTROLLER, &[]).unwrap();
    world(&cluster).await;
    let journal = cluster.work.path().join("journal");
    let flag = format!("--audit-journal={}", journal.display());
    let controller = Controller::start_with(cluster.work.path(), &kubeconfig, "a", "3s", &[&flag]).await;
    let assigned = cluster.assigned(NAMESPACE, "shell").await;
    assert_eq!(assigned["spec"]["azureBindingRef"]["spec"]["timeBox"]["grant"]["required"], true);

    part("a policy that is too young", async {
        ask(&cluster, "early").await;
        until_phase(&cluster, "early", "Refused").await;
        assert!(grant(&cluster, "early").await.to_string().contains("ask again with a new grant"));
        told(&cluster, "GrantRefused", "early").await;
    })
    .await;

    part("the policy settles", settled(&cluster)).await;
    part("asked, approved, active, revoked", life(&cluster)).await;
    part("deleted, and without its binding", ends(&cluster)).await;
    part("policy removed, approval forged, policy put back", forged(&cluster)).await;
    controller.stop().await;
    part("the journal has it all", async { recorded(&journal) }).await;
}

/// Every transition, and each is whole.
fn recorded(journal: &std::path::Path) {
    let file = journal.join("journal-00000001.jsonl");
    let text = std::fs::read_to_string(&file).unwrap();
    let report =
        verify::verify([("journal", text.as_bytes())], verify::Options { complete: true, ..Default::default() });
    assert!(report.is_whole() && report.grant_records > 0, "{:?}", report.findings);
    let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |name: &str| {
        let wanted = format!("{NAMESPACE}/{name}");
        let mine = records.iter().filter(move |record| record["grant"] == *wanted && record["withdrawn"].is_null());
        mine.cloned().collect::<Vec<_>>()
    };
    let reasons = |name: &str| {
        let mut all: Vec<_> = of(name).iter().map(|record| record["reason"].as_str().unwrap().to_owned()).collect();
        // One that was tried again is there again.
        all.dedup();
        all.join(" ")
    };
    assert_eq!(reasons("early"), "GrantRefused");
    assert_eq!(reasons("greedy"), "GrantRefused");
    assert_eq!(reasons("g"), "GrantRequested GrantApproved GrantActivated GrantRevoked");
    assert!(reasons("deleted").ends_with("GrantActivated GrantRevoked"), "{}", reasons("deleted"));
    assert!(reasons("orphan").ends_with("GrantActivated GrantRevoked"), "{}", reasons("orphan"));
    assert_eq!(reasons("f"), "GrantRequested GrantRefused");
    let activated = of("g").into_iter().find(|record| record["reason"] == "GrantActivated").unwrap();
    assert_eq!((&activated["requested_by"], &activated["approvals"][0]["by"]), (&json!("ann"), &json!("bob")));
    assert_eq!(
        (&activated["from"], &activated["to"], &activated["duration"]),
        (&json!("Pending"), &json!("Active"), &json!("30m"))
    );
    assert!(activated["active_until"].is_string() && activated["binding_generation"].is_i64(), "{activated}");
    assert!(activated["controller"].as_str().unwrap().starts_with("a_"), "{activated}");
    let revoked = of("g").pop().unwrap();
    assert_eq!((&revoked["ended_by"], &revoked["ended_reason"]), (&json!("bob"), &json!("done")));
}

/// Waits until the API server's clock is a minute past the policy's creation.
async fn settled(cluster: &Cluster) {
    let deadline = Instant::now() + Duration::from_mins(2);
    loop {
        let policy = cluster.get(&format!("{ADMISSION}/validatingadmissionpolicybindings/{POLICY}")).await.unwrap();
        let created: jiff::Timestamp = policy["metadata"]["creationTimestamp"].as_str().unwrap().parse().unwrap();
        let probe = request("probe", "ann", "1m");
        let probe = say(cluster, "ann", Method::POST, &format!("{GRANTS}?dryRun=All"), &probe).await.unwrap();
        let now: jiff::Timestamp = probe["metadata"]["creationTimestamp"].as_str().unwrap().parse().unwrap();
        if now.duration_since(created).as_secs() > 60 {
            return;
        }
        assert!(Instant::now() < deadline, "the clock stands still");
        sleep(Duration::from_millis(500)).await;
    }
}

async fn life(cluster: &Cluster) {
    let forged = say(cluster, "eve", Method::POST, GRANTS, &request("g", "ann", "30m")).await.unwrap_err();
    assert!(forged.message.contains("requestedBy must be your own name"), "{forged:?}");
    say(cluster, "ann", Method::POST, GRANTS, &request("greedy", "ann", "2h")).await.unwrap();
    until_phase(cluster, "greedy", "Refused").await;
    assert!(grant(cluster, "greedy").await.to_string().contains("longer than the 1h"));

    ask(cluster, "g").await;
    until_phase(cluster, "g", "Pending").await;
    told(cluster, "GrantRequested", "g").await;
    for (who, by) in [("ann", "ann"), ("ann", "bob"), ("eve", "bob")] {
        approve(cluster, who, by, "g").await.expect_err("neither the requester nor in another's name");
    }
    // One who may write, and is no approver: where the API server lets it through, it does not count.
    let _ = approve(cluster, "eve", "eve", "g").await;
    assert_eq!(phase(cluster, "g").await.as_deref(), Some("Pending"));
    let uri = path("azureidentitybindings", NAMESPACE, "vault");
    let open = cluster.condition(&uri, "Open").await.unwrap();
    assert_eq!((open.0.as_str(), open.1.as_str()), ("False", "NoGrant"));

    let change = json!({"spec": {"approvals": approvals(cluster, "g").await}});
    say(cluster, "bob", Method::PATCH, &format!("{GRANTS}/g"), &change).await.unwrap();
    until_phase(cluster, "g", "Active").await;
    until_stamp(cluster, &json!("g")).await;
    let status = grant(cluster, "g").await["status"].clone();
    assert_eq!(stamp(cluster).await["until"], status["activeUntil"]);
    for reason in ["GrantApproved", "GrantActivated"] {
        told(cluster, reason, "g").await;
    }
    eventually("the binding to be open", async || cluster.condition(&uri, "Open").await.unwrap().0 == "True").await;

    let revoked = json!({"spec": {"revoked": {"by": "bob", "reason": "done"}}});
    let began = Instant::now();
    say(cluster, "bob", Method::PATCH, &format!("{GRANTS}/g"), &revoked).await.unwrap();
    until_stamp(cluster, &Value::Null).await;
    eprintln!("    revoked, and gone from the assignment after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    until_phase(cluster, "g", "Revoked").await;
    told(cluster, "GrantRevoked", "g").await;
    eventually("the binding to be closed", async || cluster.condition(&uri, "Open").await.unwrap().0 == "False").await;
}

/// What is there, and bob's.
async fn approvals(cluster: &Cluster, name: &str) -> Vec<Value> {
    let mut all = grant(cluster, name).await["spec"]["approvals"].as_array().cloned().unwrap_or_default();
    all.push(json!({"by": "bob", "reason": "known"}));
    all
}

async fn ends(cluster: &Cluster) {
    ask(cluster, "deleted").await;
    approve(cluster, "bob", "bob", "deleted").await.unwrap();
    until_stamp(cluster, &json!("deleted")).await;
    cluster.delete(&format!("{GRANTS}/deleted")).await;
    until_stamp(cluster, &Value::Null).await;
    told(cluster, "GrantRevoked", "deleted").await;

    ask(cluster, "orphan").await;
    approve(cluster, "bob", "bob", "orphan").await.unwrap();
    until_stamp(cluster, &json!("orphan")).await;
    cluster.delete(&path("azureidentitybindings", NAMESPACE, "vault")).await;
    until_phase(cluster, "orphan", "Revoked").await;
    cluster.create("azureidentitybindings", &vault()).await;
    cluster.assigned(NAMESPACE, "shell").await;
    assert_eq!(stamp(cluster).await, Value::Null, "it was for the binding that is gone");
    assert_eq!(phase(cluster, "orphan").await.as_deref(), Some("Revoked"));
}

async fn forged(cluster: &Cluster) {
    ask(cluster, "f").await;
    until_phase(cluster, "f", "Pending").await;
    for plural in ["validatingadmissionpolicybindings", "validatingadmissionpolicies"] {
        for name in [POLICY, "azureidentitygrants-approvers.aadpodidentity.k8s.io"] {
            // The second one is not what anything depends on; where it has another name it is not in the way.
            let _ = cluster.send(Method::DELETE, &format!("{ADMISSION}/{plural}/{name}"), None).await;
        }
    }
    // It is in force a little longer.
    until("the forged approval to be let through", async || approve(cluster, "ann", "bob", "f").await.ok()).await;
    cluster.plane.apply_dir(&root().join("deploy")).await.unwrap();
    until_phase(cluster, "f", "Refused").await;
    assert_eq!(stamp(cluster).await, Value::Null);
    let ever = cluster.get(&format!("{GRANTS}/f")).await.unwrap();
    assert_eq!(ever["status"].get("activeFrom"), None, "it was never active: {ever}");
    told(cluster, "GrantRefused", "f").await;
}
