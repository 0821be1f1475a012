//! The controller while the API server is away, hangs, or has forgotten what happened: it lives on, says so, and makes good
//! what it missed, with no more writes than that takes.
//!
//! Needs `KUBEBUILDER_ASSETS`.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests")]
#![allow(dead_code, reason = "each target uses a part of the helpers")]

mod support;

use std::{path::Path, time::Duration};

use nix::sys::signal::Signal;
use serde_json::json;
use support::{
    CONTROLLER,
    cluster::{Cluster, path, principal},
    controller::Controller,
    eventually, part,
};
use tokio::time::Instant;

/// What the controller watches: pods, identities, bindings, assignments and grants.
const KINDS: usize = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outages() {
    let mut cluster = part("control plane", Cluster::start("")).await;
    let kubeconfig = cluster.plane.kubeconfig_for(CONTROLLER, &[]).unwrap();
    let mut controller = Controller::start(cluster.work.path(), &kubeconfig, "c", "3s").await;
    part("hung API server", hung(&cluster, &mut controller)).await;
    part("outage", outage(&mut cluster, &mut controller, &kubeconfig)).await;
    part("relist after 410", relist(&mut cluster, &mut controller)).await;
    controller.stop().await;
    cluster.plane.stop().await;
}

/// The server has forgotten where the watches were: everything is listed anew, and what happened in between is made good.
async fn relist(cluster: &mut Cluster, controller: &mut Controller) {
    let ns = "relist";
    cluster.namespace(ns).await;
    // One for each change: the kinds are listed at different times, so two changes of one assignment could take two writes.
    for name in ["a", "b", "c"] {
        cluster.identity(ns, name, &principal(1)).await;
        cluster.binding(ns, name, name, name).await;
    }
    for (name, label) in [("stays", "a"), ("goes", "a"), ("changes", "b"), ("relabelled", "c")] {
        cluster.pod(ns, name, label, Some("node-1")).await;
        cluster.assigned(ns, name).await;
    }
    let kept = cluster.assigned(ns, "stays").await;
    cluster.settle().await;
    let kinds = ["Pod", "AzureIdentity", "AzureIdentityBinding", "AzureAssignedIdentity"];
    let lists = async |controller: &Controller, kind: &str| {
        controller.metric("watch_relists_total", &format!("kind=\"{kind}\"")).await.unwrap()
    };
    let mut before = Vec::new();
    for kind in kinds {
        before.push(lists(controller, kind).await);
    }
    let expired = controller.lines(&["too old resource version"]).len();

    // Its connections end while it cannot see it; then things change, and the history goes.
    controller.signal(Signal::SIGSTOP);
    cluster.pod(ns, "unseen", "a", None).await;
    cluster.plane.stop_apiserver().await;
    cluster.plane.start_apiserver().await.unwrap();
    let mark = cluster.mark().await;
    cluster.schedule(ns, "unseen", "node-1").await;
    cluster.pod(ns, "new", "a", Some("node-1")).await;
    cluster.delete(&path("pods", ns, "goes")).await;
    cluster.patch(&path("azureidentities", ns, "b"), &json!({"spec": {"clientID": principal(9)["clientID"]}})).await;
    cluster.patch(&path("pods", ns, "relabelled"), &json!({"metadata": {"labels": {"aadpodidbinding": "none"}}})).await;
    cluster.plane.compact().await.unwrap();
    controller.signal(Signal::SIGCONT);

    for pod in ["new", "unseen"] {
        cluster.assigned(ns, pod).await;
    }
    for pod in ["goes", "relabelled"] {
        cluster.unassigned(ns, pod).await;
    }
    eventually("the changed identity", async || {
        let assigned = cluster.assigned(ns, "changes").await;
        assigned["spec"]["azureIdentityRef"]["spec"]["clientID"] == principal(9)["clientID"]
    })
    .await;
    cluster.settle().await;
    assert_eq!(cluster.assigned(ns, "stays").await["metadata"]["resourceVersion"], kept["metadata"]["resourceVersion"]);
    let mut writes = cluster.assignment_writes(mark, ns).await;
    writes.sort();
    assert_eq!(writes, ["delete 200", "patch 200", "patch 201", "patch 201"]);

    // It did happen.
    assert!(controller.lines(&["too old resource version"]).len() > expired, "no watch was answered 410");
    for (kind, before) in kinds.into_iter().zip(before) {
        assert!(lists(controller, kind).await > before, "{kind} was not listed anew");
    }
    controller.alive();
}

/// No API server: it says so, waits, and goes on where it was.
async fn outage(cluster: &mut Cluster, controller: &mut Controller, kubeconfig: &Path) {
    let ns = "outage";
    cluster.namespace(ns).await;
    cluster.identity(ns, "i", &principal(1)).await;
    cluster.binding(ns, "b", "i", "s").await;
    for number in 0..5 {
        cluster.pod(ns, &format!("p-{number}"), "s", Some("node-1")).await;
    }
    eventually("5 assignments", async || cluster.assignments(ns).await.len() == 5).await;
    cluster.settle().await;
    let before = cluster.assignments(ns).await;
    let said = (controller.lines(&["cannot write Lease"]).len(), controller.lines(&["watch failed;"]).len());
    let failures = async || controller.metric("watch_failures_total", "").await.unwrap_or_default();
    let failed = failures().await;

    cluster.plane.stop_apiserver().await;
    eventually("every watch to fail", async || failures().await >= failed + 5.0).await;
    eventually("the lease to be given up", async || !controller.leads().await).await;
    controller.alive();
    assert!(controller.healthy().await, "an outage is no reason to be restarted");
    assert_eq!(controller.lines(&["cannot write Lease"]).len(), said.0 + 1, "said once");
    assert_eq!(controller.lines(&["watch failed;"]).len(), said.1 + KINDS, "said once for each kind");

    // One that is started meanwhile waits, and says for what.
    let mut late = Controller::spawn(cluster.work.path(), kubeconfig, "late", "3s", &[]).await;
    eventually("it to have tried", async || late.lines(&["watch failed;"]).len() == KINDS).await;
    assert!(late.healthy().await && !late.ready().await);

    let began = Instant::now();
    cluster.plane.start_apiserver().await.unwrap();
    eventually("the late one to be ready", async || late.ready().await).await;
    late.alive();
    // Whichever of the two leads now: the first is to go on.
    late.stop().await;
    let mark = cluster.mark().await;
    cluster.pod(ns, "after", "s", Some("node-1")).await;
    cluster.assigned(ns, "after").await;
    cluster.settle().await;
    let took = began.elapsed();
    controller.alive();
    assert!(controller.ready().await && controller.leads().await);
    assert_eq!(cluster.assignment_writes(mark, ns).await, ["patch 201"], "no burst");
    let mut after = cluster.assignments(ns).await;
    after.retain(|object| object["spec"]["pod"] != "after");
    assert_eq!(after, before);
    // Each of the five watches: one that fails, one list, one watch; room for a second round, and the lease's renewals.
    let mut asked = cluster.requests(mark).await;
    asked.retain(|event| event.user == CONTROLLER && event.resource != "leases" && !event.is_write());
    assert!(asked.len() <= KINDS * 6, "{} requests in {took:?}: {asked:?}", asked.len());
    assert!(took < Duration::from_mins(1));
}

/// An API server that takes connections and does not answer: the lease runs out all the same, and nothing is written on a
/// stale one afterwards.
async fn hung(cluster: &Cluster, controller: &mut Controller) {
    let ns = "hung";
    cluster.namespace(ns).await;
    cluster.identity(ns, "i", &principal(1)).await;
    cluster.binding(ns, "b", "i", "s").await;
    cluster.settle().await;
    let mark = cluster.mark().await;
    cluster.plane.freeze_apiserver();
    eventually("the lease to be given up", async || !controller.leads().await).await;
    controller.alive();
    assert!(controller.healthy().await);
    cluster.plane.thaw_apiserver();
    cluster.pod(ns, "p", "s", Some("node-1")).await;
    cluster.assigned(ns, "p").await;
    cluster.settle().await;
    assert!(controller.leads().await);
    assert_eq!(cluster.assignment_writes(mark, ns).await, ["patch 201"]);
    let others: Vec<_> = cluster.writes(mark).await.into_iter().filter(|event| event.namespace != ns).collect();
    assert!(others.is_empty(), "{others:?}");
}
