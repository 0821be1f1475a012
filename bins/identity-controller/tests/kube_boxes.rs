//! A thousand time boxes and ten thousand pods on a real control plane: what an opening and a closing cost, and how late they
//! are. Every write is in the API server's own audit log, with its times; what a node makes of it is asked of the node's own
//! code, which follows the same API server.
//!
//! Each box opens at some second of each minute and closes again 20 to 36 s later, so that any minute has one opening and one
//! closing of each, about 17 and 17 at each second. Needs `KUBEBUILDER_ASSETS`, and prints its figures (`--nocapture`).

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests, and figures are to be seen")]
#![allow(dead_code, reason = "each target uses a part of the helpers")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use identity_core::{
    lookup::{Caller, Decision, Published, Request, RequestedIdentity},
    runtime::{node, source::Source},
};
use identity_crd::AzureIdentityBinding;
use identity_lab::kube::AuditEvent;
use jiff::{SignedDuration, Timestamp, ToSpan as _, Unit};
use kube::{
    Api, Client,
    api::{ListParams, WatchEvent, WatchParams},
};
use serde_json::{Value, json};
use support::{
    CONTROLLER,
    cluster::{Cluster, path, principal},
    controller::Controller,
    eventually, part,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "boxes";
const BINDINGS: usize = 1000;
/// Of each binding, on as many nodes.
const PODS: usize = 10;
const IDENTITIES: usize = 10;
/// Requests of this test at once.
const AT_ONCE: usize = 32;
/// How late an opening or a closing may be.
const LATE: SignedDuration = SignedDuration::from_secs(1);
/// Of ten thousand pods and as many assignments.
const SET_UP: Duration = Duration::from_mins(4);
/// The user that the daemon on a node is.
const NODE: &str = "system:serviceaccount:entra-pod-identity:entra-pod-identity-node";
/// Without changes of clocks: in an hour that comes twice a box opens once.
const ZONES: [&str; 4] = ["UTC", "Asia/Kolkata", "Asia/Tokyo", "Africa/Lagos"];

/// When the box of a binding is open: from a second of each minute on, for so many seconds.
#[derive(Clone, Copy)]
struct Window {
    opens: i64,
    lasts: i64,
}

impl Window {
    fn of(binding: usize) -> Self {
        let binding = i64::try_from(binding).unwrap();
        Self { opens: binding % 60, lasts: 20 + binding / 60 }
    }

    fn is_open(self, at: Timestamp) -> bool {
        (at.as_second() - self.opens).rem_euclid(60) < self.lasts
    }

    /// Its openings (true) and closings after `from`, up to `to`.
    fn dues(self, from: Timestamp, to: Timestamp) -> Vec<(Timestamp, bool)> {
        let seconds = from.as_second() + 1..=to.as_second();
        let at = |second| Timestamp::from_second(second).unwrap();
        let changes = seconds.filter(|second| self.is_open(at(*second)) != self.is_open(at(*second - 1)));
        changes.map(|second| (at(second), self.is_open(at(second)))).collect()
    }

    fn spec(self, binding: usize) -> Value {
        json!({"windows": [{
            "schedule": format!("{} * * * * *", self.opens),
            "duration": format!("{}s", self.lasts),
            "timeZone": ZONES[binding % ZONES.len()],
        }]})
    }
}

#[expect(clippy::disallowed_methods, reason = "real boxes, by the real clock")]
fn now() -> Timestamp {
    Timestamp::now()
}

/// A change of a box that somebody noticed.
struct Noticed {
    binding: usize,
    open: bool,
    at: Timestamp,
    /// When it changes next, where that was said.
    next: Option<Timestamp>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_boxes_open_and_close_on_time_and_cost_a_status_and_an_event_each() {
    let specs: BTreeSet<String> = (0..BINDINGS).map(|binding| Window::of(binding).spec(binding).to_string()).collect();
    assert_eq!(specs.len(), BINDINGS, "they are to be different");

    let cluster = part("control plane", Cluster::start("")).await;
    let kubeconfig = cluster.plane.kubeconfig_for(CONTROLLER, &[]).unwrap();
    let controller = Controller::start(cluster.work.path(), &kubeconfig, "one", "15s").await;
    let bound = part("1,000 bindings", bindings(&cluster)).await;
    part("10,000 pods", pods(&cluster)).await;
    part("10,000 assignments", assigned(&cluster)).await;
    let node = Node::start(&cluster).await;
    part("quiet", quiet(&cluster, &controller)).await;
    let versions = assignment_version(&cluster).await;

    // Between two seconds, so that no opening or closing is just now.
    let from = now().round(Unit::Second).unwrap() + 1500.milliseconds();
    let to = from + 60.seconds();
    // What is due last may be late, too.
    let end = to + 3.seconds();
    let planning = planning(&controller).await;
    let told = tokio::spawn(follow(cluster.admin.clone(), end));
    let seen = part("a minute of them", node.sample(from, end)).await;
    let told = told.await.unwrap();
    let planned = self::planning(&controller).await - planning;
    assert_eq!(assignment_version(&cluster).await, versions, "an assignment was written");

    let requests = cluster.requests(0).await;
    let window = |event: &&AuditEvent| event.is_write() && (from..end).contains(&event.received);
    let writes: Vec<&AuditEvent> = requests.iter().filter(window).collect();
    assert_writes(&writes);
    let mut figures = Vec::new();
    figures.push(("status written, in the minute", lateness_of_writes(&requests, from, to, true)));
    figures.push(("status seen by a watch", lateness(&told, from, to, "the status of")));
    figures.push(("node serves and refuses", lateness(&seen, from, to, "node-0's answer for")));
    for noticed in told.iter().filter(|noticed| (from..to).contains(&noticed.at)) {
        let expected = Window::of(noticed.binding).dues(noticed.at, noticed.at + 60.seconds())[0].0;
        assert_eq!(noticed.next, Some(expected), "what b-{} says of its next change", noticed.binding);
    }
    let events = events(&cluster, from, to).await;
    let looked = boxes_looked_at(&controller, from, end);

    // Also while ten thousand assignments were being written; a figure, no promise.
    let during = lateness_of_writes(&requests, bound, from - 3.seconds(), false);
    figures.push(("status written, during set-up", during));
    let of_status = writes.iter().filter(|event| event.subresource == "status");
    let mut own: Vec<_> = of_status.map(|event| event.answered.duration_since(event.received)).collect();
    own.sort();
    figures.push(("the API server's own time for it", own));
    print(&figures, &writes, events, looked, planned);
    for (what, late) in &figures[..3] {
        let latest = late.last().unwrap();
        assert!(*latest <= LATE, "{what}: {latest:?} late");
    }
    node.stop.cancel();
    controller.stop().await;
    cluster.plane.stop().await;
}

// Set-up

async fn each<T>(items: impl Iterator<Item = T>, work: impl AsyncFn(T)) {
    let work = &work;
    stream::iter(items).for_each_concurrent(AT_ONCE, |item| work(item)).await;
}

/// Answers when all were there.
async fn bindings(cluster: &Cluster) -> Timestamp {
    cluster.namespace(NAMESPACE).await;
    for identity in 0..IDENTITIES {
        let client = u32::try_from(identity).unwrap();
        cluster.identity(NAMESPACE, &format!("i-{identity}"), &principal(client)).await;
    }
    each(0..BINDINGS, async |binding| {
        let name = format!("b-{binding}");
        let object = json!({"apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"azureIdentity": format!("i-{}", binding % IDENTITIES), "selector": name,
                "timeBox": Window::of(binding).spec(binding)}});
        cluster.create("azureidentitybindings", &object).await;
    })
    .await;
    now()
}

async fn pods(cluster: &Cluster) {
    each(0..BINDINGS * PODS, async |number| {
        let (binding, node) = (number % BINDINGS, number / BINDINGS);
        let name = format!("p-{binding}-{node}");
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"aadpodidbinding": format!("b-{binding}")}},
            "spec": {"nodeName": format!("node-{node}"), "containers": [{"name": "c", "image": "none"}]}});
        cluster.create("pods", &pod).await;
        if node == 0 {
            let ip = address(binding).to_string();
            let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}});
            cluster.patch(&format!("{}/status", path("pods", NAMESPACE, &name)), &status).await;
        }
    })
    .await;
}

/// Of the pod on node-0.
fn address(binding: usize) -> IpAddr {
    let (high, low) = (u8::try_from(binding / 200).unwrap(), u8::try_from(binding % 200).unwrap());
    Ipv4Addr::new(10, 9, high, low + 1).into()
}

async fn assigned(cluster: &Cluster) {
    let uri = format!("{}?limit=1", path("azureassignedidentities", NAMESPACE, ""));
    patiently("an assignment for each pod", async || {
        let list = cluster.get(&uri).await.unwrap();
        let more = list["metadata"]["remainingItemCount"].as_u64().unwrap_or_default();
        list["items"].as_array().unwrap().len() as u64 + more == (BINDINGS * PODS) as u64
    })
    .await;
}

/// Waits until the controller has nothing to do but what the clock brings.
async fn quiet(cluster: &Cluster, controller: &Controller) {
    let uri = path("azureidentitybindings", NAMESPACE, "");
    patiently("all bindings to count their pods", async || {
        let list = cluster.get(&uri).await.unwrap();
        list["items"].as_array().unwrap().iter().all(|binding| binding["status"]["matchedPods"] == PODS)
    })
    .await;
    let metric = async |name: &str| controller.metric(name, "").await.unwrap_or_default();
    patiently("nothing to wait or be under way", async || {
        metric("actions_waiting").await + metric("actions_under_way").await == 0.0
    })
    .await;
}

async fn patiently(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    };
    assert!(tokio::time::timeout(SET_UP, wait).await.is_ok(), "timed out waiting for {what}");
}

/// The newest version of all assignments together.
async fn assignment_version(cluster: &Cluster) -> u64 {
    let assignments = cluster.assignments(NAMESPACE).await;
    assert_eq!(assignments.len(), BINDINGS * PODS);
    let version = |object: &Value| object["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
    assignments.iter().map(version).max().unwrap()
}

// Those who notice

/// What a node knows, by the daemon's own code, from this API server; nobody tells it of an opening or a closing.
struct Node {
    published: Arc<Published>,
    stop: CancellationToken,
}

impl Node {
    async fn start(cluster: &Cluster) -> Self {
        let source = Source::kubernetes(cluster.plane.client_for(NODE, &[]).await.unwrap());
        let (published, stop) = (Arc::new(Published::default()), CancellationToken::new());
        let (synced, mut known) = watch::channel(false);
        let run = node::run(node::Config::new("node-0"), source, published.clone(), synced, stop.clone());
        tokio::spawn(run);
        let known = tokio::time::timeout(Duration::from_mins(1), known.wait_for(|known| *known));
        assert!(known.await.is_ok_and(|known| known.is_ok()), "the node has not learnt of its objects");
        let node = Self { published, stop };
        eventually("the node to know its pods", async || {
            (0..BINDINGS).all(|binding| !matches!(node.decide(binding, now()), Decision::Wait(_)))
        })
        .await;
        node
    }

    fn decide(&self, binding: usize, now: Timestamp) -> Decision {
        let caller = Caller { address: address(binding), pinned: None };
        let request = Request { resource: "https://vault.azure.net", identity: RequestedIdentity::Default };
        self.published.load().decide(&caller, &request, now)
    }

    fn is_open(&self, binding: usize) -> bool {
        match self.decide(binding, now()) {
            Decision::Allow(_) => true,
            Decision::Deny(_) => false,
            Decision::Wait(wait) => panic!("b-{binding}: {wait:?}"),
        }
    }

    /// Asks for all pods again and again; each change of an answer.
    async fn sample(&self, from: Timestamp, end: Timestamp) -> Vec<Noticed> {
        while now() < from {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut known: Vec<bool> = (0..BINDINGS).map(|binding| self.is_open(binding)).collect();
        let mut seen = Vec::new();
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        while now() < end {
            ticks.tick().await;
            for (binding, known) in known.iter_mut().enumerate() {
                let open = self.is_open(binding);
                if open != std::mem::replace(known, open) {
                    seen.push(Noticed { binding, open, at: now(), next: None });
                }
            }
        }
        seen
    }
}

/// What bindings say of their boxes, as somebody sees it who watches them.
async fn follow(client: Client, end: Timestamp) -> Vec<Noticed> {
    let api: Api<AzureIdentityBinding> = Api::namespaced(client, NAMESPACE);
    let all = api.list(&ListParams::default()).await.unwrap();
    let number = |binding: &AzureIdentityBinding| -> usize {
        binding.metadata.name.as_ref().unwrap().strip_prefix("b-").unwrap().parse().unwrap()
    };
    let is_open = |binding: &AzureIdentityBinding| {
        let conditions = &binding.status.as_ref().unwrap().conditions;
        let open = conditions.iter().find(|condition| condition.type_ == "Open").unwrap();
        serde_json::to_value(open).unwrap()["status"] == "True"
    };
    let mut known: HashMap<usize, bool> = all.items.iter().map(|binding| (number(binding), is_open(binding))).collect();
    let version = all.metadata.resource_version.unwrap();
    let mut stream = Box::pin(api.watch(&WatchParams::default(), &version).await.unwrap());
    let mut told = Vec::new();
    loop {
        let left = Duration::try_from(end.duration_since(now())).unwrap_or_default();
        let Ok(event) = tokio::time::timeout(left, stream.try_next()).await else { return told };
        let binding = match event.unwrap().expect("the watch has ended") {
            WatchEvent::Modified(binding) => binding,
            WatchEvent::Bookmark(_) => continue,
            other => panic!("nothing else happens to bindings: {other:?}"),
        };
        let (number, open) = (number(&binding), is_open(&binding));
        let next = binding.status.unwrap().next_transition.map(|next| next.parse().unwrap());
        if known.insert(number, open) != Some(open) {
            told.push(Noticed { binding: number, open, at: now(), next });
        }
    }
}

// What it came to

/// Nothing is written but statuses of bindings and Events; the lease is kept, and Kubernetes keeps its own.
fn assert_writes(writes: &[&AuditEvent]) {
    for write in writes {
        let own = write.user == CONTROLLER;
        let kind = (write.resource.as_str(), write.subresource.as_str());
        let allowed = match kind {
            ("azureidentitybindings", "status") | ("events", "") => own && (200..300).contains(&write.code),
            ("leases", "") => true,
            _ => false,
        };
        assert!(allowed, "{write:?}");
    }
}

/// How late each change was noticed, sorted. Each was, once, and nothing else was.
fn lateness(noticed: &[Noticed], from: Timestamp, to: Timestamp, whose: &str) -> Vec<SignedDuration> {
    let mut late = Vec::new();
    for binding in 0..BINDINGS {
        let dues = Window::of(binding).dues(from, to);
        let first = dues[0].0;
        // What was due before is not of interest.
        let mut of_binding =
            noticed.iter().filter(|noticed| noticed.binding == binding).skip_while(|noticed| noticed.at < first);
        assert_eq!(dues.len(), 2, "any minute has an opening and a closing");
        for (due, open) in dues {
            let change = of_binding.next().unwrap_or_else(|| panic!("{whose} b-{binding} did not change after {due}"));
            assert_eq!(change.open, open, "{whose} b-{binding} at {} (due {due})", change.at);
            let after = change.at.duration_since(due);
            assert!(!after.is_negative(), "{whose} b-{binding} changed {after:?} after {due}");
            late.push(after);
        }
        // What is due after it.
        if let Some(change) = of_binding.next() {
            assert!(change.at > to, "{whose} b-{binding} changed at {}", change.at);
        }
    }
    late.sort();
    late
}

/// How long after each opening and closing the API server had answered the write of the status, sorted. With `exactly`, each
/// has one.
fn lateness_of_writes(requests: &[AuditEvent], from: Timestamp, to: Timestamp, exactly: bool) -> Vec<SignedDuration> {
    let mut writes: HashMap<&str, Vec<&AuditEvent>> = HashMap::new();
    let of_boxes = requests
        .iter()
        .filter(|event| event.is_write() && event.resource == "azureidentitybindings" && event.subresource == "status");
    for event in of_boxes {
        writes.entry(&event.name).or_default().push(event);
    }
    let mut late = Vec::new();
    for binding in 0..BINDINGS {
        let name = format!("b-{binding}");
        let mut dues = Window::of(binding).dues(from, to + 60.seconds());
        let writes = writes.remove(name.as_str()).unwrap_or_default();
        let mut after = dues.split_off(dues.iter().position(|(due, _)| *due > to).unwrap());
        for (place, (due, _)) in dues.iter().enumerate() {
            let next = dues.get(place + 1).or(after.first()).unwrap().0;
            let mut own = writes.iter().filter(|write| (*due..next).contains(&write.received));
            let first = own.next();
            if exactly {
                let more = own.count();
                assert!(first.is_some() && more == 0, "{name}, due {due}: {first:?} and {more} more");
            }
            late.extend(first.map(|write| write.answered.duration_since(*due)));
        }
        after.clear();
    }
    late.sort();
    late
}

/// Events of the minute, by reason: each binding has one of each reason that was written after it was due.
async fn events(cluster: &Cluster, from: Timestamp, to: Timestamp) -> BTreeMap<String, usize> {
    let mut missing = Vec::new();
    let mut counts = BTreeMap::new();
    eventually("all Events", async || {
        let list = cluster.get(&format!("/apis/events.k8s.io/v1/namespaces/{NAMESPACE}/events")).await.unwrap();
        let mut latest: HashMap<(String, String), Timestamp> = HashMap::new();
        for event in list["items"].as_array().unwrap() {
            let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str);
            let at = text("/series/lastObservedTime").or_else(|| text("/eventTime"));
            let Some(at) = at.and_then(|at| at.parse::<Timestamp>().ok()) else { continue };
            let key = (text("/regarding/name").unwrap().to_owned(), text("/reason").unwrap().to_owned());
            let known = latest.entry(key).or_insert(at);
            *known = at.max(*known);
        }
        counts.clear();
        for ((_, reason), _) in latest.iter().filter(|(_, at)| **at >= from) {
            *counts.entry(reason.clone()).or_default() += 1;
        }
        missing.clear();
        for binding in 0..BINDINGS {
            for (due, open) in Window::of(binding).dues(from, to) {
                let reason = if open { "WindowOpened" } else { "WindowClosed" };
                let key = (format!("b-{binding}"), reason.to_owned());
                if latest.get(&key).is_none_or(|at| *at < due) {
                    missing.push((key, due));
                }
            }
        }
        missing.is_empty()
    })
    .await;
    counts
}

/// How many boxes the controller has looked at, and how many have opened and closed, between what it planned first in that time
/// and last.
fn boxes_looked_at(controller: &Controller, from: Timestamp, to: Timestamp) -> (u64, u64) {
    let lines: Vec<(Timestamp, u64)> = controller
        .lines(&["planned what is said"])
        .iter()
        .map(|line| {
            let at = line["timestamp"].as_str().unwrap().parse().unwrap();
            (at, line["boxes_looked_at"].as_u64().unwrap())
        })
        .filter(|(at, _)| (from..to).contains(at))
        .collect();
    let ((first, before), (last, after)) = (lines[0], lines[lines.len() - 1]);
    let due = (0..BINDINGS).map(|binding| Window::of(binding).dues(first, last).len() as u64).sum();
    assert_eq!(after - before, due, "boxes were looked at that neither opened nor closed, between {first} and {last}");
    (after - before, due)
}

/// Seconds that the controller has spent on plans.
async fn planning(controller: &Controller) -> f64 {
    controller.metric("plan_duration_seconds_sum", "").await.unwrap()
}

fn print(
    figures: &[(&str, Vec<SignedDuration>)],
    writes: &[&AuditEvent],
    events: BTreeMap<String, usize>,
    (looked, due): (u64, u64),
    planned: f64,
) {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    eprintln!("\n  load of the machine: {}", load.split(' ').take(3).collect::<Vec<_>>().join(" "));
    eprintln!("\n  {:<34}{:>8}{:>10}{:>10}{:>10}", "late", "changes", "p50", "p99", "max");
    for (what, late) in figures {
        let at = |share: usize| format!("{} ms", late[(late.len() - 1) * share / 100].as_millis());
        eprintln!("  {what:<34}{:>8}{:>10}{:>10}{:>10}", late.len(), at(50), at(99), at(100));
    }
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for write in writes {
        let slash = if write.subresource.is_empty() { "" } else { "/" };
        let own = if write.user == CONTROLLER { "controller" } else { write.user.as_str() };
        *kinds.entry(format!("{own}: {} {}{slash}{}", write.verb, write.resource, write.subresource)).or_default() += 1;
    }
    eprintln!("\n  {:<56}{:>8}", "writes in 63 s, by anybody", "number");
    for (kind, number) in kinds {
        eprintln!("  {kind:<56}{number:>8}");
    }
    for (reason, bindings) in events {
        eprintln!("  {:<56}{bindings:>8}", format!("bindings with an Event {reason}"));
    }
    eprintln!(
        "\n  boxes looked at by the controller: {looked}, of which {due} opened or closed; {planned:.3} s of plans\n"
    );
}
