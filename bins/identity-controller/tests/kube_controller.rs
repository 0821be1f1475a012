//! The controller on a real control plane: what it writes, how often, and what it leaves alone. What it asked for is counted in
//! the API server's own audit log.
//!
//! One control plane for all of it, since each takes seconds to start; the parts keep to namespaces of their own. Needs
//! `KUBEBUILDER_ASSETS`.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests")]
#![allow(dead_code, reason = "each target uses a part of the helpers")]

mod support;

use identity_lab::kube::AuditEvent;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::{
    COLLECTOR, CONTROLLER, assets,
    cluster::{Cluster, OURS, managed, path, principal},
    controller::Controller,
    eventually, part, until,
};
use tokio::time::Instant;

/// Long enough for a busy machine, short enough to wait for after a kill.
const LEASE: &str = "3s";

/// What a cluster had before: objects that the rules of today would refuse, and assignments of others.
const OLD: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: change}
---
apiVersion: v1
kind: Namespace
metadata: {name: bad}
---
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureAssignedIdentity
metadata: {name: foreign, namespace: change, labels: {nodename: node-1}, finalizers: [azureassignedidentity.finalizers.aadpodidentity.k8s.io]}
spec: {pod: p, podNamespace: change, nodename: node-1}
status: {status: Assigned}
---
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureAssignedIdentity
metadata: {name: charted, namespace: change, labels: {nodename: node-1, app.kubernetes.io/managed-by: Helm}}
spec: {pod: gone, podNamespace: change, nodename: node-1}
---
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentity
metadata: {name: no-spec, namespace: bad}
---
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentity
metadata: {name: odd, namespace: bad}
spec: {type: zero}
---
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentityBinding
metadata: {name: no-spec, namespace: bad}
---
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentityBinding
metadata: {name: odd, namespace: bad}
spec: {azureIdentity: good, selector: {not: a-word}}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_controller() {
    let cluster = part("control plane", Cluster::start(OLD)).await;
    let foreign = foreign(&cluster).await;
    let kubeconfig = cluster.plane.kubeconfig_for(CONTROLLER, &[]).unwrap();
    let directory = cluster.work.path().to_owned();
    let start = async |holder: &str| Controller::start(&directory, &kubeconfig, holder, LEASE).await;
    let first = part("first start", start("first")).await;

    part("one write in a pod's life", one_write_in_a_pods_life(&cluster)).await;
    part("changes", changes(&cluster)).await;
    part("garbage collection", garbage_collection(&cluster)).await;
    part("endings", endings(&cluster)).await;
    part("bad objects", bad_objects(&cluster, &first)).await;
    let second = restart(&cluster, first, Signal::SIGTERM, async || start("second").await);
    let second = part("restart after SIGTERM", second).await;
    let third = restart(&cluster, second, Signal::SIGKILL, async || start("third").await);
    let third = part("restart after SIGKILL", third).await;

    assert_eq!(self::foreign(&cluster).await, foreign, "objects of others were touched");
    let writes = cluster.writes(0).await;
    assert!(writes.iter().all(|event| !["foreign", "charted"].contains(&event.name.as_str())), "{writes:?}");
    // An Event about pods of a namespace that goes comes too late.
    let late = |event: &AuditEvent| event.resource == "events" && event.namespace == "endings" && event.code == 403;
    let wrong = |event: &&AuditEvent| event.code >= 400 && ![404, 409].contains(&event.code) && !late(event);
    let not_allowed: Vec<_> = writes.iter().filter(wrong).collect();
    assert!(not_allowed.is_empty(), "RBAC, the schema or the policy refuses what the controller does: {not_allowed:?}");
    let last = part("refused", refused(&cluster, third, async || start("last").await)).await;
    last.stop().await;
    cluster.plane.stop().await;
}

async fn foreign(cluster: &Cluster) -> Vec<Value> {
    let mut all = cluster.assignments("change").await;
    all.retain(|object| object["metadata"]["labels"].get(OURS).is_none_or(|by| by == "Helm"));
    assert_eq!(all.len(), 2);
    all
}

/// A pod is created, scheduled, runs, changes, is deleted: one write for its assignment, whatever kind of identity.
async fn one_write_in_a_pods_life(cluster: &Cluster) {
    cluster.namespace("life").await;
    let mark = cluster.mark().await;
    let long = format!("web-{}", "0123456789".repeat(10));
    let pods = [("managed", "web-0", managed("one")), ("principal", long.as_str(), principal(1))];
    for (kind, pod, spec) in &pods {
        cluster.identity("life", kind, spec).await;
        cluster.binding("life", &format!("{kind}-binding-{}", "y".repeat(60)), kind, kind).await;
        cluster.pod("life", pod, kind, None).await;
    }
    cluster.settle().await;
    assert!(cluster.assignments("life").await.is_empty(), "a pod without a node is nobody's");

    let mut versions = Vec::new();
    for (kind, pod, spec) in &pods {
        cluster.schedule("life", pod, "node-1").await;
        let assigned = cluster.assigned("life", pod).await;
        let uid = cluster.get(&path("pods", "life", pod)).await.unwrap()["metadata"]["uid"].clone();
        check(&assigned, pod, &uid, kind, spec);
        versions.push(assigned["metadata"]["resourceVersion"].clone());
    }
    for (_, pod, _) in &pods {
        cluster.running("life", pod).await;
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        cluster.patch(&format!("{}/status", path("pods", "life", pod)), &ready).await;
        cluster.patch(&path("pods", "life", pod), &json!({"metadata": {"annotations": {"seen": "yes"}}})).await;
    }
    cluster.settle().await;
    for ((_, pod, _), version) in pods.iter().zip(versions) {
        assert_eq!(cluster.assigned("life", pod).await["metadata"]["resourceVersion"], version, "written again");
        cluster.delete(&path("pods", "life", pod)).await;
        cluster.unassigned("life", pod).await;
    }
    cluster.settle().await;

    let writes = cluster.writes(mark).await;
    let writes: Vec<_> = writes.iter().filter(|event| event.resource == "azureassignedidentities").collect();
    assert_eq!(writes.len(), pods.len(), "one for each pod: {writes:?}");
    for write in writes {
        assert_eq!((write.verb.as_str(), write.code), ("patch", 201), "{write:?}");
        assert!(write.uri.contains("fieldManager=entra-pod-identity"), "{write:?}");
    }
}

fn check(assigned: &Value, pod: &str, uid: &Value, identity: &str, spec: &Value) {
    let meta = &assigned["metadata"];
    let name = meta["name"].as_str().unwrap();
    assert!(name.len() <= 63 && name.starts_with(&pod[..5]), "{name}");
    assert_eq!(meta["labels"], json!({"nodename": "node-1", OURS: "entra-pod-identity"}));
    let owners = meta["ownerReferences"].as_array().unwrap();
    assert_eq!(owners.len(), 1);
    assert_eq!((&owners[0]["kind"], &owners[0]["name"], &owners[0]["uid"]), (&json!("Pod"), &json!(pod), uid));
    assert!(meta.get("finalizers").is_none(), "{meta}");
    let managers = meta["managedFields"].as_array().unwrap();
    assert_eq!(managers.len(), 1, "{managers:?}");
    assert_eq!((&managers[0]["manager"], &managers[0]["operation"]), (&json!("entra-pod-identity"), &json!("Apply")));
    let said = &assigned["spec"];
    assert_eq!((&said["pod"], &said["podNamespace"], &said["podUID"]), (&json!(pod), &json!("life"), uid));
    assert_eq!(said["nodename"], "node-1");
    assert_eq!(said["azureIdentityRef"]["metadata"]["name"], identity);
    assert_eq!(&said["azureIdentityRef"]["spec"], spec);
    assert!(said["azureBindingRef"]["metadata"]["uid"].is_string(), "{said}");
    assert_eq!(assigned["status"]["status"], "Assigned");
}

/// What people change is followed, with the one write that it takes.
async fn changes(cluster: &Cluster) {
    let ns = "change";
    for (name, client) in [("a", 1), ("b", 2)] {
        cluster.identity(ns, name, &principal(client)).await;
    }
    cluster.binding(ns, "bind", "a", "s").await;
    cluster.pod(ns, "p", "s", Some("node-1")).await;
    let first = cluster.assigned(ns, "p").await;
    let uid = &first["metadata"]["uid"];
    let binding = path("azureidentitybindings", ns, "bind");
    let refers = async |pointer: &str, value: &str| {
        until(&format!("{pointer} to be {value}"), async || {
            let assigned = cluster.assignment(ns, "p").await?;
            (assigned.pointer(pointer)? == value).then_some(assigned)
        })
        .await
    };

    // In place: the same object, never deleted.
    let mark = cluster.mark().await;
    cluster.patch(&binding, &json!({"spec": {"azureIdentity": "b"}})).await;
    let swapped = refers("/spec/azureIdentityRef/metadata/name", "b").await;
    assert_eq!((&swapped["metadata"]["uid"], &swapped["spec"]["azureIdentityRef"]["spec"]), (uid, &principal(2)));
    cluster.patch(&path("azureidentities", ns, "b"), &json!({"spec": {"clientID": principal(3)["clientID"]}})).await;
    let client = principal(3)["clientID"].as_str().unwrap().to_owned();
    let edited = refers("/spec/azureIdentityRef/spec/clientID", &client).await;
    assert_eq!(&edited["metadata"]["uid"], uid);
    cluster.settle().await;
    assert_eq!(cluster.assignment_writes(mark, ns).await, ["patch 200", "patch 200"]);

    // What does not matter is not written.
    let mark = cluster.mark().await;
    for (plural, name) in [("azureidentities", "b"), ("azureidentitybindings", "bind")] {
        let noise = json!({"metadata": {"labels": {"team": "x"}, "annotations": {"note": "y"}}});
        cluster.patch(&path(plural, ns, name), &noise).await;
    }
    cluster.settle().await;
    assert!(cluster.assignment_writes(mark, ns).await.is_empty());

    // Selected no more, and again; by the binding, then by the pod.
    for (change, undo, target) in [
        (json!({"spec": {"selector": "other"}}), json!({"spec": {"selector": "s"}}), binding.clone()),
        (
            json!({"metadata": {"labels": {"aadpodidbinding": null}}}),
            json!({"metadata": {"labels": {"aadpodidbinding": "s"}}}),
            path("pods", ns, "p"),
        ),
    ] {
        let mark = cluster.mark().await;
        cluster.patch(&target, &change).await;
        cluster.unassigned(ns, "p").await;
        cluster.patch(&target, &undo).await;
        cluster.assigned(ns, "p").await;
        cluster.settle().await;
        assert_eq!(cluster.assignment_writes(mark, ns).await, ["delete 200", "patch 201"]);
    }

    // Somebody deletes it: made again, once.
    let before = cluster.assigned(ns, "p").await;
    let mark = cluster.mark().await;
    cluster.delete(&path("azureassignedidentities", ns, before["metadata"]["name"].as_str().unwrap())).await;
    eventually("it to be made again", async || {
        cluster.assignment(ns, "p").await.is_some_and(|now| now["metadata"]["uid"] != before["metadata"]["uid"])
    })
    .await;
    // The binding goes, and comes back as another.
    cluster.delete(&binding).await;
    cluster.unassigned(ns, "p").await;
    cluster.settle().await;
    assert_eq!(cluster.assignment_writes(mark, ns).await, ["patch 201", "delete 200"]);
    cluster.binding(ns, "bind", "a", "s").await;
    let last = cluster.assigned(ns, "p").await;
    assert_ne!(last["metadata"]["name"], first["metadata"]["name"], "another binding, another name");
}

/// A pod goes: the cluster's own garbage collector removes what it owned.
async fn garbage_collection(cluster: &Cluster) {
    let ns = "collect";
    cluster.namespace(ns).await;
    cluster.identity(ns, "i", &principal(1)).await;
    cluster.binding(ns, "b", "i", "s").await;
    cluster.pod(ns, "p", "s", Some("node-1")).await;
    let assigned = cluster.assigned(ns, "p").await;
    let name = assigned["metadata"]["name"].as_str().unwrap();
    let mark = cluster.mark().await;
    // Terminating: still served, still assigned.
    let pod = path("pods", ns, "p");
    cluster.send(http::Method::DELETE, &pod, Some(&json!({"gracePeriodSeconds": 600}))).await.unwrap();
    cluster.settle().await;
    assert_eq!(cluster.assigned(ns, "p").await["metadata"]["uid"], assigned["metadata"]["uid"]);
    cluster.delete(&pod).await;
    cluster.unassigned(ns, "p").await;
    cluster.settle().await;
    let deletions: Vec<_> =
        cluster.requests(mark).await.into_iter().filter(|e| e.name == name && e.is_write()).collect();
    assert_eq!(deletions.len(), 1, "{deletions:?}");
    assert_eq!((deletions[0].user.as_str(), deletions[0].verb.as_str()), (COLLECTOR, "delete"), "{deletions:?}");
    assert_eq!(deletions[0].code, 200);
}

/// Pods end in other ways: they finish; another takes the name; the whole namespace goes.
async fn endings(cluster: &Cluster) {
    let ns = "endings";
    cluster.namespace(ns).await;
    cluster.identity(ns, "i", &principal(1)).await;
    cluster.binding(ns, "b", "i", "s").await;
    for pod in ["job", "set-0", "last"] {
        cluster.pod(ns, pod, "s", Some("node-1")).await;
        cluster.assigned(ns, pod).await;
    }
    cluster.settle().await;

    let mark = cluster.mark().await;
    let finished = json!({"status": {"phase": "Succeeded"}});
    cluster.patch(&format!("{}/status", path("pods", ns, "job")), &finished).await;
    cluster.unassigned(ns, "job").await;
    cluster.settle().await;
    assert_eq!(cluster.assignment_writes(mark, ns).await, ["delete 200"], "a finished pod has no use for a token");

    let mark = cluster.mark().await;
    let old = cluster.assigned(ns, "set-0").await;
    cluster.delete(&path("pods", ns, "set-0")).await;
    let pod = cluster.pod(ns, "set-0", "s", Some("node-2")).await;
    let new = until("the new pod's assignment alone", async || {
        let mut all = cluster.assignments(ns).await;
        all.retain(|object| object["spec"]["pod"] == "set-0");
        (all.len() == 1 && all[0]["spec"]["podUID"] == pod["metadata"]["uid"]).then(|| all.remove(0))
    })
    .await;
    assert_ne!(new["metadata"]["name"], old["metadata"]["name"]);
    cluster.settle().await;
    assert_eq!(cluster.assignment_writes(mark, ns).await, ["patch 201"], "the old one is the collector's");

    // Pods first, then the rest: nothing is written into a namespace that is going, which would be refused.
    let mark = cluster.mark().await;
    let namespace = format!("/api/v1/namespaces/{ns}");
    cluster.send(http::Method::DELETE, &namespace, None).await.unwrap();
    eventually("the pods to be told", async || {
        let pod = cluster.get(&path("pods", ns, "last")).await.unwrap();
        pod["metadata"].get("deletionTimestamp").is_some()
    })
    .await;
    cluster.settle().await;
    assert!(cluster.assignment(ns, "last").await.is_some(), "a pod that terminates may still need a token");
    for pod in ["set-0", "last"] {
        cluster.delete(&path("pods", ns, pod)).await;
    }
    eventually("the namespace to go", async || cluster.get(&namespace).await.is_err()).await;
    cluster.settle().await;
    assert_eq!(cluster.assignment_writes(mark, ns).await, [""; 0]);
}

/// A person is told what is wrong, once, and one wrong object stops nobody.
async fn bad_objects(cluster: &Cluster, controller: &Controller) {
    let ns = "bad";
    let mark = cluster.mark().await;
    for kind in ["AzureIdentity", "AzureIdentityBinding"] {
        for name in ["no-spec", "odd"] {
            let said = controller.lines(&["cannot be read", &format!("\"{kind}\""), &format!("\"{name}\"")]);
            assert_eq!(said.len(), 1, "{kind} {name}: {said:?}");
            assert_eq!(said[0]["level"], "WARN");
        }
    }
    cluster.binding(ns, "waiting", "later", "s").await;
    cluster.pod(ns, "p", "s", Some("node-1")).await;
    cluster.identity(ns, "good", &managed("good")).await;
    cluster.binding(ns, "good", "good", "other").await;
    cluster.pod(ns, "q", "other", Some("node-1")).await;
    cluster.assigned(ns, "q").await;

    let binding = path("azureidentitybindings", ns, "waiting");
    let found = async |status: &str| {
        until(&format!("IdentityFound={status}"), async || {
            cluster.condition(&binding, "IdentityFound").await.filter(|condition| condition.0 == status)
        })
        .await
    };
    let (_, reason, message) = found("False").await;
    assert_eq!(reason, "NotFound");
    assert!(message.contains("`later`") && message.contains("create it"), "{message}");
    eventually("the Event", async || {
        kubectl(cluster, &["describe", "azureidentitybinding", "waiting"]).contains("Warning")
    })
    .await;
    let described = kubectl(cluster, &["describe", "azureidentitybinding", "waiting"]);
    for word in ["IdentityFound", "NotFound", "there is no AzureIdentity `later` in namespace `bad`", "Matched Pods"] {
        assert!(described.contains(word), "{word}:\n{described}");
    }
    assert!(cluster.assignment(ns, "p").await.is_none());
    // The status changes, the complaint does not.
    eventually("its pod to be counted", async || cluster.get(&binding).await.unwrap()["status"]["matchedPods"] == 1)
        .await;

    cluster.identity(ns, "later", &managed("later")).await;
    let assigned = cluster.assigned(ns, "p").await;
    assert_eq!(assigned["spec"]["azureIdentityRef"]["metadata"]["name"], "later");
    assert_eq!(found("True").await.1, "Found");
    kubectl(cluster, &["wait", "--for=condition=IdentityFound", "azureidentitybinding/waiting", "--timeout=1s"]);
    // And that both bindings have a pod now.
    for binding in ["waiting", "good"] {
        eventually("the assignment to be told of", async || {
            let text = kubectl(cluster, &["describe", "azureidentitybinding", binding]);
            text.lines().any(|line| line.contains("Assigned") && line.contains("assigned to pods, first to bad/"))
        })
        .await;
    }
    cluster.settle().await;
    // One for one thing that was wrong, and one for each binding; each written once.
    let list = cluster.get(&format!("/apis/events.k8s.io/v1/namespaces/{ns}/events")).await.unwrap();
    let mut reasons: Vec<_> = list["items"].as_array().unwrap().iter().map(|event| event["reason"].clone()).collect();
    reasons.sort_by_key(ToString::to_string);
    assert_eq!(reasons, ["Assigned", "Assigned", "NotFound"], "{list}");
    let of_events = |event: &AuditEvent| event.resource == "events" && event.namespace == ns;
    let writes: Vec<_> = cluster.writes(mark).await.into_iter().filter(of_events).collect();
    assert_eq!(writes.len(), 3, "{writes:?}");
}

/// What a person sees.
fn kubectl(cluster: &Cluster, arguments: &[&str]) -> String {
    let program = assets().join("kubectl").display().to_string();
    let config = format!("--kubeconfig={}", cluster.plane.kubeconfig().display());
    let output = identity_lab::process::run(&program, &[&[config.as_str(), "-n", "bad"], arguments].concat()).unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// A controller that finds everything as it should be writes nothing.
async fn restart(
    cluster: &Cluster,
    controller: Controller,
    signal: Signal,
    again: impl AsyncFn() -> Controller,
) -> Controller {
    let ns = &format!("restart-{}", signal.as_str().to_lowercase());
    cluster.namespace(ns).await;
    let began = (Instant::now(), cluster.mark().await);
    for number in 0..20 {
        cluster.pod(ns, &format!("p-{number}"), "s", Some(&format!("node-{}", number % 3))).await;
    }
    cluster.identity(ns, "i", &principal(1)).await;
    cluster.binding(ns, "dangling", "nobody", "t").await;
    cluster.binding(ns, "b", "i", "s").await;
    cluster.counted(ns, "b", 20).await;
    eventually("20 assignments", async || cluster.assignments(ns).await.len() == 20).await;
    cluster.settle().await;
    assert_eq!(cluster.assignment_writes(began.1, ns).await, vec!["patch 201"; 20]);
    eventually("all of them to be told of", async || assigned_told(cluster, ns).await == [20]).await;
    let writes = cluster.writes(began.1).await;
    let status = writes.iter().filter(|e| e.subresource == "status" && e.name == "b" && e.namespace == *ns).count();
    // No more often than every five seconds, and the first.
    let most = 1 + usize::try_from(began.0.elapsed().as_secs() / 5).unwrap();
    assert!((1..=most).contains(&status), "{status} writes of one status, at most {most} expected");

    let mark = if signal == Signal::SIGTERM {
        controller.stop().await;
        cluster.mark().await
    } else {
        controller.signal(signal);
        controller.ended().await;
        cluster.mark().await
    };
    let controller = again().await;
    eventually("the new one to lead", async || controller.leads().await).await;
    cluster.pod(ns, "marker", "s", Some("node-1")).await;
    cluster.assigned(ns, "marker").await;
    cluster.counted(ns, "b", 21).await;
    eventually("the new one's own Event", async || assigned_told(cluster, ns).await == [1, 20]).await;
    cluster.settle().await;
    let writes = cluster.writes(mark).await;
    let mut writes: Vec<_> =
        writes.iter().map(|e| format!("{} {}/{} {}", e.verb, e.resource, e.subresource, e.code)).collect();
    writes.sort();
    assert_eq!(
        writes,
        ["create events/ 201", "patch azureassignedidentities/ 201", "patch azureidentitybindings/status 200"]
    );
    controller
}

/// The counts of the Events `Assigned` in a namespace.
async fn assigned_told(cluster: &Cluster, ns: &str) -> Vec<i64> {
    let list = cluster.get(&format!("/apis/events.k8s.io/v1/namespaces/{ns}/events")).await.unwrap();
    let events = list["items"].as_array().unwrap().iter().filter(|event| event["reason"] == "Assigned");
    let mut counts: Vec<_> = events.map(|event| event["series"]["count"].as_i64().unwrap_or(1)).collect();
    counts.sort_unstable();
    counts
}

/// What is refused is tried once, said once, and does not stop the rest; later it is made good.
async fn refused(cluster: &Cluster, controller: Controller, again: impl AsyncFn() -> Controller) -> Controller {
    let ns = "refused";
    let policy = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/azureassignedidentities.aadpodidentity.k8s.io";
    let before = cluster.get(policy).await.unwrap();
    let writers = |user: &str| {
        let mut variables = before["spec"]["variables"].clone();
        variables[0] = json!({"name": "writers", "expression": format!("['{user}']")});
        json!({"spec": {"variables": variables}})
    };
    cluster.namespace(ns).await;
    cluster.identity(ns, "i", &principal(1)).await;
    let forged = json!({"apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureAssignedIdentity",
        "metadata": {"name": "forged", "namespace": ns}, "spec": {}});
    let dry = format!("{}?dryRun=All", path("azureassignedidentities", ns, ""));
    let in_force = async |user: &str, refuses: bool| {
        cluster.patch(policy, &writers(user)).await;
        eventually("the policy to be in force", async || {
            let answer = cluster.post(&dry, &forged).await;
            answer.is_err_and(|refusal| refusal.message.contains("this is")) == refuses
        })
        .await;
    };

    in_force("system:admin", false).await;
    let mark = cluster.mark().await;
    for number in 0..5 {
        cluster.pod(ns, &format!("p-{number}"), "s", Some("node-1")).await;
    }
    cluster.binding(ns, "b", "i", "s").await;
    cluster.counted(ns, "b", 5).await;
    // The next count is five seconds away: time enough for a storm to show.
    cluster.pod(ns, "p-5", "s", Some("node-1")).await;
    cluster.counted(ns, "b", 6).await;
    let said = controller.lines(&["write refused", "AzureAssignedIdentity refused/"]);
    assert_eq!(said.len(), 6);
    assert!(said[0].to_string().contains("may write an AzureAssignedIdentity, and this is"), "{}", said[0]);
    controller.stop().await;
    assert_eq!(cluster.assignment_writes(mark, ns).await, ["patch 403"; 6], "each tried once");

    in_force(CONTROLLER, true).await;
    let controller = again().await;
    eventually("6 assignments", async || cluster.assignments(ns).await.len() == 6).await;
    controller
}
