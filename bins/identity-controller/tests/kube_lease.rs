//! Two controllers and one lease on a real control plane: one writes, the other takes over, and what the first had still under
//! way changes nothing any more.
//!
//! Both are the same user, so each talks through a proxy that marks its requests; the proxy can keep writes back. Needs
//! `KUBEBUILDER_ASSETS`.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests")]
#![allow(dead_code, reason = "each target uses a part of the helpers")]

mod support;

use std::time::Duration;

use identity_lab::kube::AuditEvent;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::{
    CONTROLLER,
    cluster::{Cluster, managed, path, principal},
    controller::Controller,
    eventually, part,
    proxy::Proxy,
    until,
};
use tokio::time::Instant;

/// Renewed and looked at every second.
const LEASE: Duration = Duration::from_secs(5);
const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/entra-pod-identity/leases/entra-pod-identity-controller";

struct Replica {
    name: &'static str,
    controller: Controller,
    proxy: Proxy,
}

impl Replica {
    async fn start(cluster: &Cluster, name: &'static str) -> Self {
        let directory = cluster.work.path();
        let kubeconfig = cluster.plane.kubeconfig_for(CONTROLLER, &[]).unwrap();
        let proxy = Proxy::start(directory, &kubeconfig, name).await;
        let controller = Controller::start(directory, &proxy.kubeconfig, name, &format!("{}s", LEASE.as_secs())).await;
        Self { name, controller, proxy }
    }

    async fn leads(&self) {
        eventually(&format!("{} to lead", self.name), async || self.controller.leads().await).await;
    }

    async fn stands_by(&self) {
        let what = format!("{} to stand by", self.name);
        eventually(&what, async || !self.controller.leads().await && self.controller.ready().await).await;
    }

    /// Its writes among `events` that the server carried out.
    fn wrote(&self, events: &[AuditEvent]) -> Vec<String> {
        let its = events.iter().filter(|event| event.user_agent == self.name && event.is_write() && event.code < 300);
        its.map(line).collect()
    }
}

fn line(event: &AuditEvent) -> String {
    format!("{} {}/{} {}", event.verb, event.resource, event.name, event.code)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lease() {
    let cluster = part("control plane", Cluster::start("")).await;
    let a = Replica::start(&cluster, "a").await;
    a.leads().await;
    let b = Replica::start(&cluster, "b").await;
    part("one leads", one_leads(&cluster, &a, &b)).await;
    part("handed over at SIGTERM", handed_over(&cluster, a, &b)).await;
    let c = Replica::start(&cluster, "c").await;
    part("taken over after SIGSTOP", taken_over(&cluster, &b, &c)).await;
    part("writes on their way", late_writes(&cluster, &c, &b)).await;
    part("the Lease is deleted", deleted(&cluster, &b, &c)).await;
    for replica in [b, c] {
        replica.controller.stop().await;
    }
    part("cluster-wide matching", cluster_wide(&cluster)).await;
    cluster.plane.stop().await;
}

async fn lease(cluster: &Cluster) -> Value {
    cluster.get(PATH).await.unwrap()["spec"].clone()
}

fn time(value: &Value) -> jiff::Timestamp {
    value.as_str().unwrap().parse().unwrap()
}

async fn holder(cluster: &Cluster) -> String {
    lease(cluster).await["holderIdentity"].as_str().unwrap_or_default().to_owned()
}

async fn team(cluster: &Cluster, ns: &str, pods: usize) {
    cluster.namespace(ns).await;
    for number in 0..pods {
        cluster.pod(ns, &format!("p-{number}"), "s", Some("node-1")).await;
    }
    cluster.identity(ns, "i", &principal(1)).await;
    cluster.binding(ns, "b", "i", "s").await;
    eventually(&format!("{pods} assignments"), async || cluster.assignments(ns).await.len() == pods).await;
    cluster.counted(ns, "b", pods).await;
}

/// The other is ready, sees everything, and writes nothing at all.
async fn one_leads(cluster: &Cluster, leader: &Replica, other: &Replica) {
    other.stands_by().await;
    assert!(holder(cluster).await.starts_with(&format!("{}_", leader.name)));
    let mark = cluster.mark().await;
    team(cluster, "one", 5).await;
    cluster.settle().await;
    let events = cluster.requests(mark).await;
    assert_eq!(other.wrote(&events), [""; 0], "a standby writes nothing, not even the lease");
    let tried = events.iter().filter(|event| event.user_agent == other.name && event.is_write()).count();
    assert_eq!(tried, 0);
    let assigned = leader.wrote(&events).iter().filter(|line| line.contains("azureassigned")).count();
    assert_eq!(assigned, 6, "five, and the one of settling: {:?}", leader.wrote(&events));
}

/// A leader that is told to stop gives the lease back: nobody waits for it to run out.
async fn handed_over(cluster: &Cluster, leader: Replica, next: &Replica) {
    let mark = cluster.mark().await;
    let asked = Instant::now();
    leader.controller.stop().await;
    next.leads().await;
    let took = asked.elapsed();
    assert!(took < LEASE / 2, "took {took:?}");
    assert!(holder(cluster).await.starts_with(&format!("{}_", next.name)));
    team(cluster, "two", 2).await;
    cluster.settle().await;
    // What the old one had assigned is not assigned anew.
    let events = cluster.requests(mark).await;
    let again: Vec<_> = events.iter().filter(|e| e.namespace == "one" && e.is_write()).map(line).collect();
    assert_eq!(again, [""; 0]);
}

/// A leader that is stopped like a machine that hangs: the other waits for the lease to run out, and the first finds that out
/// before it writes.
async fn taken_over(cluster: &Cluster, leader: &Replica, next: &Replica) {
    next.stands_by().await;
    let mark = cluster.mark().await;
    leader.controller.signal(Signal::SIGSTOP);
    let last = time(&lease(cluster).await["renewTime"]);
    // What it would write if it believed in its lease: it gets to know of these as soon as it goes on.
    cluster.namespace("three").await;
    cluster.identity("three", "i", &principal(1)).await;
    cluster.binding("three", "b", "i", "s").await;
    cluster.pod("three", "p", "s", Some("node-1")).await;
    cluster.patch(&path("azureidentities", "one", "i"), &json!({"spec": {"clientID": principal(2)["clientID"]}})).await;
    cluster.patch(&path("azureidentitybindings", "two", "b"), &json!({"spec": {"selector": "other"}})).await;

    next.leads().await;
    let took = time(&lease(cluster).await["acquireTime"]);
    let waited = Duration::try_from(took.duration_since(last)).unwrap();
    assert!(waited >= LEASE, "taken after {waited:?}");
    assert!(waited < LEASE * 2, "taken after {waited:?}");
    cluster.assigned("three", "p").await;
    eventually("the change of five", async || {
        let all = cluster.assignments("one").await;
        all.iter().all(|o| o["spec"]["azureIdentityRef"]["spec"]["clientID"] == principal(2)["clientID"])
    })
    .await;
    eventually("the deletion of two", async || cluster.assignments("two").await.is_empty()).await;
    cluster.settle().await;

    // Again something that both see, and the stopped one as its first news.
    let resumed = cluster.mark().await;
    cluster.pod("three", "q", "s", Some("node-1")).await;
    leader.controller.signal(Signal::SIGCONT);
    leader.stands_by().await;
    cluster.assigned("three", "q").await;
    cluster.settle().await;
    let events = cluster.requests(mark).await;
    let taken = events
        .iter()
        .position(|e| e.user_agent == next.name && e.resource == "leases" && e.verb == "update" && e.code == 200);
    let since = &events[taken.unwrap()..];
    assert_eq!(leader.wrote(since), [""; 0], "written after another had taken over");
    let tried: Vec<_> = since.iter().filter(|e| e.user_agent == leader.name && e.is_write()).collect();
    assert!(tried.iter().all(|e| e.resource == "leases"), "not even sent: {tried:?}");
    let tried = cluster.requests(resumed).await;
    assert!(
        tried.iter().any(|event| event.user_agent == leader.name),
        "the stopped one goes on and asks: {:?}",
        tried.iter().map(line).collect::<Vec<_>>()
    );
    assert!(leader.controller.lines(&["not leading"]).len() == 1, "it said so");
}

/// Writes that have left a leader before it lost the lease, and reach the server long after the next one has done the work.
async fn late_writes(cluster: &Cluster, leader: &Replica, next: &Replica) {
    let ns = "late";
    cluster.namespace(ns).await;
    for name in ["made", "changed", "removed", "withdrawn"] {
        cluster.identity(ns, name, &principal(1)).await;
        cluster.binding(ns, name, name, name).await;
    }
    for name in ["changed", "removed"] {
        cluster.pod(ns, name, name, Some("node-1")).await;
        cluster.assigned(ns, name).await;
    }
    let removed = cluster.assigned(ns, "removed").await;
    cluster.settle().await;
    next.stands_by().await;

    // A creation, an update, a deletion; and a creation that nobody will want any more.
    leader.proxy.hold();
    let mark = cluster.mark().await;
    for name in ["made", "withdrawn"] {
        cluster.pod(ns, name, name, Some("node-1")).await;
    }
    let client = json!({"spec": {"clientID": principal(2)["clientID"]}});
    cluster.patch(&path("azureidentities", ns, "changed"), &client).await;
    let off = json!({"metadata": {"labels": {"aadpodidbinding": "none"}}});
    cluster.patch(&path("pods", ns, "removed"), &off).await;
    until("four writes to be on their way", async || (leader.proxy.held().len() == 4).then_some(())).await;
    leader.controller.signal(Signal::SIGSTOP);
    cluster.delete(&path("azureidentitybindings", ns, "withdrawn")).await;

    next.leads().await;
    let made = cluster.assigned(ns, "made").await;
    let changed = until("the change", async || {
        let assigned = cluster.assignment(ns, "changed").await?;
        (assigned["spec"]["azureIdentityRef"]["spec"]["clientID"] == principal(2)["clientID"]).then_some(assigned)
    })
    .await;
    cluster.unassigned(ns, "removed").await;
    // And wanted again: another object under the name that the late deletion has.
    let on = json!({"metadata": {"labels": {"aadpodidbinding": "removed"}}});
    cluster.patch(&path("pods", ns, "removed"), &on).await;
    let again = cluster.assigned(ns, "removed").await;
    assert_eq!(again["metadata"]["name"], removed["metadata"]["name"]);
    cluster.settle().await;
    assert!(cluster.assignment(ns, "withdrawn").await.is_none());
    assert_eq!(leader.proxy.held().len(), 4, "still on their way: {:?}", leader.proxy.held());

    leader.proxy.release();
    let late = until("the late writes to arrive", async || {
        let mut events = cluster.requests(mark).await;
        events.retain(|e| {
            e.user_agent == leader.name && e.namespace == ns && e.resource == "azureassignedidentities" && e.is_write()
        });
        (events.len() == 4).then_some(events)
    })
    .await;
    let code = |verb: &str, pod: &str| {
        let found: Vec<_> = late.iter().filter(|e| e.verb == verb && e.name.starts_with(pod)).map(|e| e.code).collect();
        assert_eq!(found.len(), 1, "{verb} {pod}: {late:?}");
        found[0]
    };
    assert_eq!(code("patch", "made"), 409, "it exists already");
    assert_eq!(code("patch", "changed"), 409, "another version");
    assert_eq!(code("delete", "removed"), 409, "another object");
    // The one window that there is: the server cannot know that nobody wants it. The leader can.
    assert_eq!(code("patch", "withdrawn"), 201);
    cluster.unassigned(ns, "withdrawn").await;
    cluster.settle().await;
    for (pod, object) in [("made", made), ("changed", changed), ("removed", again)] {
        assert_eq!(cluster.assigned(ns, pod).await["metadata"], object["metadata"], "touched");
    }

    leader.controller.signal(Signal::SIGCONT);
    leader.stands_by().await;
    cluster.settle().await;
    let events = cluster.requests(mark).await;
    let taken = events
        .iter()
        .position(|e| e.user_agent == next.name && e.resource == "leases" && e.verb == "update" && e.code == 200);
    let stale = leader.wrote(&events[taken.unwrap()..]);
    assert_eq!(stale.len(), 1, "only the one that was on its way: {stale:?}");
    assert_eq!(cluster.assignments(ns).await.len(), 3);
    next.leads().await;
}

/// Somebody deletes the Lease while its holder hangs: the other still waits for as long as that one may believe in it.
async fn deleted(cluster: &Cluster, leader: &Replica, next: &Replica) {
    leader.leads().await;
    next.stands_by().await;
    // What counts is what the other has seen, not what is there: it has to have seen a renewal.
    let mark = cluster.mark().await;
    eventually("a renewal to be seen", async || {
        let mut events = cluster.requests(mark).await;
        events.retain(|event| event.resource == "leases");
        let renewed = events.iter().position(|event| event.user_agent == leader.name && event.verb == "update");
        renewed.is_some_and(|renewed| events[renewed..].iter().any(|e| e.user_agent == next.name && e.verb == "get"))
    })
    .await;
    leader.controller.signal(Signal::SIGSTOP);
    let last = time(&lease(cluster).await["renewTime"]);
    cluster.delete(PATH).await;
    next.leads().await;
    let waited = Duration::try_from(time(&lease(cluster).await["acquireTime"]).duration_since(last)).unwrap();
    // Less what it takes to look.
    assert!(waited >= LEASE * 4 / 5, "taken after {waited:?}");
    let mark = cluster.mark().await;
    team(cluster, "four", 3).await;
    leader.controller.signal(Signal::SIGCONT);
    leader.stands_by().await;
    cluster.settle().await;
    let mut writes = cluster.requests(mark).await;
    writes.retain(|e| e.resource == "azureassignedidentities" && e.namespace == "four" && e.is_write());
    assert_eq!(writes.iter().map(|event| event.code).collect::<Vec<_>>(), [201; 3], "once each");
}

/// The predecessor's matching, for who asks for it: bindings select pods of other namespaces; without the flag, no more.
async fn cluster_wide(cluster: &Cluster) {
    for ns in ["here", "there"] {
        cluster.namespace(ns).await;
    }
    cluster.identity("here", "i", &managed("i")).await;
    cluster.binding("here", "b", "i", "wide").await;
    cluster.pod("there", "p", "wide", Some("node-1")).await;
    let kubeconfig = cluster.plane.kubeconfig_for(CONTROLLER, &[]).unwrap();
    let start = async |holder: &str, flags: &[&str]| {
        Controller::start_with(cluster.work.path(), &kubeconfig, holder, "1s", flags).await
    };
    let wide = start("wide", &["--cluster-wide-matching"]).await;
    let assigned = cluster.assigned("there", "p").await;
    assert_eq!(assigned["spec"]["azureIdentityRef"]["metadata"]["namespace"], "here");
    wide.stop().await;
    let narrow = start("narrow", &[]).await;
    cluster.unassigned("there", "p").await;
    narrow.stop().await;
}
