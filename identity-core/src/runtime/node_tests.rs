//! The node's loop: what is published, and when.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::{
    lookup::{Caller, Decision, Request, RequestedIdentity, Snapshot},
    runtime::{
        source::{Change, Gone},
        testing::{ASSIGNED, BINDINGS, Fault, IDENTITIES, Log, PATIENCE, Server, binding, identity, pod, trimmed},
    },
};

const ADDRESS: &str = "10.0.0.1";

fn object(pod: &str, resource_id: &str) -> Value {
    json!({
        "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureAssignedIdentity",
        "metadata": {
            "name": format!("{pod}-1"), "namespace": "team",
            "labels": {"nodename": "node-1", "app.kubernetes.io/managed-by": "entra-pod-identity"},
        },
        "spec": {
            "pod": pod, "podNamespace": "team", "podUID": format!("pod-{pod}"), "nodename": "node-1",
            "azureIdentityRef": {
                "metadata": {"name": "demo", "namespace": "team", "uid": "identity-demo"},
                "spec": {"type": 0, "clientID": "33333333-3333-3333-3333-333333333333", "resourceID": resource_id},
            },
            "azureBindingRef": {
                "metadata": {"name": "demo", "namespace": "team", "uid": "binding-demo"},
                "spec": {"azureIdentity": "demo", "selector": "demo"},
            },
        },
        "status": {"status": "Assigned"},
    })
}

const RESOURCE: &str = "/subscriptions/11111111-1111-1111-1111-111111111111/resourceGroups/rg/providers/\
                        Microsoft.ManagedIdentity/userAssignedIdentities/demo";

fn assigned(pod: &str) -> Value {
    object(pod, RESOURCE)
}

fn typed<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

fn pods(all: &[Value]) -> Update {
    Update::Pods(Change::Relist(all.iter().map(trimmed).collect()))
}

fn assignments(all: &[Value]) -> Update {
    Update::Assigned(Change::Relist(all.iter().map(typed).collect()))
}

fn bindings(all: &[Value]) -> Update {
    Update::Bindings(Change::Relist(all.iter().map(typed).collect()))
}

fn is_known(snapshot: &Snapshot, address: &str) -> bool {
    snapshot.pod_at(address.parse().unwrap()).is_some()
}

struct Rig {
    updates: mpsc::Sender<Update>,
    published: Arc<Published>,
    synced: watch::Receiver<bool>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), Error>>,
}

impl Rig {
    fn start() -> Self {
        Self::with(Options::default())
    }

    fn with(options: Options) -> Self {
        let (updates, receiver) = mpsc::channel(1024);
        let published = Arc::new(Published::default());
        let (sender, synced) = watch::channel(false);
        let stop = CancellationToken::new();
        let (target, token) = (published.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let node = Node::new(NodeIndex::new(options), None, None);
            follow(node, receiver, &target, &sender, &token).await
        });
        Self { updates, published, synced, stop, task }
    }

    fn send(&self, update: Update) {
        self.updates.try_send(update).unwrap();
    }

    async fn until(&self, what: &str, holds: impl Fn(&Snapshot) -> bool) {
        until(&self.published, what, holds).await;
    }
}

async fn until(published: &Published, what: &str, holds: impl Fn(&Snapshot) -> bool) {
    let wait = async {
        loop {
            let changed = published.changed();
            if holds(&published.load()) {
                return;
            }
            changed.await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn is_allowed(snapshot: &Snapshot, address: &str) -> bool {
    matches!(decide(snapshot, address), Decision::Allow(_))
}

fn decide(snapshot: &Snapshot, address: &str) -> Decision {
    let caller = Caller { address: address.parse().unwrap(), pinned: None };
    let request = Request { resource: "https://vault.azure.net", identity: RequestedIdentity::Default };
    snapshot.decide(&caller, &request, jiff::Timestamp::UNIX_EPOCH)
}

#[tokio::test(start_paused = true)]
async fn nothing_is_published_before_all_kinds_are_known() {
    let rig = Rig::start();
    let log = Log::new();
    rig.send(pods(&[pod("a")]));
    rig.send(bindings(&[binding("demo", "demo")]));
    tokio::time::sleep(Duration::from_mins(5)).await;
    assert!(!is_known(&rig.published.load(), ADDRESS) && !*rig.synced.borrow());
    rig.send(assignments(&[assigned("a")]));
    rig.until("allowed", |snapshot| is_allowed(snapshot, ADDRESS)).await;
    assert!(*rig.synced.clone().wait_for(|synced| *synced).await.unwrap());
    assert_eq!(log.with("all objects of this node are known").len(), 1);
    rig.stop.cancel();
    rig.task.await.unwrap().unwrap();
}

fn exceptions(namespace: &str, labels: &[&str]) -> Update {
    let exception = |label| {
        typed(&json!({
            "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzurePodIdentityException",
            "metadata": {"name": label, "namespace": namespace}, "spec": {"podLabels": {"role": label}},
        }))
    };
    let change = Change::Relist(labels.iter().copied().map(exception).collect());
    Update::Exceptions { namespace: namespace.to_owned(), change }
}

#[tokio::test(start_paused = true)]
async fn exceptions_of_each_listed_namespace_are_known_first_and_followed() {
    let exception_namespaces = ["team".to_owned(), "other".to_owned()].into();
    let rig = Rig::with(Options { exception_namespaces, ..Options::default() });
    let mut agent = pod("a");
    agent["metadata"]["labels"]["role"] = json!("agent");
    rig.send(pods(&[agent]));
    rig.send(bindings(&[]));
    rig.send(assignments(&[]));
    rig.send(exceptions("team", &["agent", "else"]));
    tokio::time::sleep(Duration::from_mins(5)).await;
    assert!(!*rig.synced.borrow(), "a pod that an exception may exempt would be refused for good");
    rig.send(exceptions("other", &[]));
    rig.until("exempted", |snapshot| is_allowed(snapshot, ADDRESS)).await;
    let gone = |name: &str| {
        let change = Change::Delete(Gone { namespace: "team".into(), name: name.into(), uid: None });
        Update::Exceptions { namespace: "team".into(), change }
    };
    rig.send(gone("else"));
    rig.send(gone("agent"));
    rig.until("like others", |snapshot| matches!(decide(snapshot, ADDRESS), Decision::Deny(_))).await;
    let Update::Exceptions { change: Change::Relist(mut all), .. } = exceptions("team", &["agent"]) else { panic!() };
    let change = Change::Apply(Box::new(all.remove(0)));
    rig.send(Update::Exceptions { namespace: "team".into(), change });
    rig.until("exempted again", |snapshot| is_allowed(snapshot, ADDRESS)).await;
    rig.send(exceptions("team", &[]));
    rig.until("like others again", |snapshot| matches!(decide(snapshot, ADDRESS), Decision::Deny(_))).await;
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_published_once() {
    let rig = Rig::start();
    let log = Log::new();
    rig.send(pods(&[]));
    rig.send(bindings(&[binding("demo", "demo")]));
    rig.send(assignments(&[]));
    for index in 0..200 {
        let mut pod = pod(&format!("p{index}"));
        pod["status"]["podIP"] = json!(format!("10.0.1.{index}"));
        rig.send(Update::Pods(Change::Apply(Box::new(trimmed(&pod)))));
        rig.send(Update::Assigned(Change::Apply(Box::new(typed(&assigned(&format!("p{index}")))))));
    }
    rig.until("the last", |snapshot| is_allowed(snapshot, "10.0.1.199")).await;
    assert!(is_allowed(&rig.published.load(), "10.0.1.0"));
    assert_eq!(log.with("took in a burst").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_relist_replaces_everything() {
    let rig = Rig::start();
    let mut other = pod("b");
    other["status"]["podIP"] = json!("10.0.0.2");
    rig.send(pods(&[pod("a"), other.clone()]));
    rig.send(bindings(&[binding("demo", "demo")]));
    rig.send(assignments(&[assigned("a"), assigned("b")]));
    rig.until("both", |snapshot| is_allowed(snapshot, ADDRESS) && is_allowed(snapshot, "10.0.0.2")).await;
    rig.send(assignments(&[assigned("b")]));
    rig.until("one waits", |snapshot| matches!(decide(snapshot, ADDRESS), Decision::Wait(_))).await;
    rig.send(bindings(&[]));
    rig.until("one is denied", |snapshot| matches!(decide(snapshot, ADDRESS), Decision::Deny(_))).await;
    rig.send(pods(&[other]));
    rig.until("one is not known", |snapshot| !is_known(snapshot, ADDRESS)).await;
    assert!(is_allowed(&rig.published.load(), "10.0.0.2"));
    rig.send(Update::Pods(Change::Delete(Gone { namespace: "team".into(), name: "b".into(), uid: None })));
    rig.until("nobody", |snapshot| !is_known(snapshot, "10.0.0.2")).await;
    drop(rig.updates);
    assert!(matches!(rig.task.await.unwrap(), Err(Error::WatchesEnded)));
}

#[tokio::test(start_paused = true)]
async fn why_an_assignment_cannot_be_served_is_said_once() {
    let log = Log::new();
    let rig = Rig::start();
    rig.send(pods(&[pod("a")]));
    rig.send(bindings(&[]));
    let bad = object("a", "nonsense");
    rig.send(assignments(std::slice::from_ref(&bad)));
    rig.synced.clone().wait_for(|synced| *synced).await.unwrap();
    let complaints = || log.with("cannot be served");
    assert_eq!(complaints().len(), 1, "{:?}", complaints());
    assert!(
        complaints()[0].starts_with("WARN") && complaints()[0].contains("assignment=team/a-1"),
        "{:?}",
        complaints()
    );

    let mut other = pod("b");
    other["status"]["podIP"] = json!("10.0.0.2");
    rig.send(Update::Assigned(Change::Apply(Box::new(typed(&bad)))));
    rig.send(assignments(&[bad.clone(), assigned("b")]));
    rig.send(Update::Pods(Change::Apply(Box::new(trimmed(&other)))));
    rig.until("taken in", |snapshot| is_allowed(snapshot, "10.0.0.2")).await;
    assert_eq!(complaints().len(), 1, "the same again: {:?}", complaints());

    // Put right, and broken again: news.
    rig.send(Update::Assigned(Change::Apply(Box::new(typed(&assigned("a"))))));
    rig.until("put right", |snapshot| is_allowed(snapshot, ADDRESS)).await;
    rig.send(Update::Assigned(Change::Apply(Box::new(typed(&bad)))));
    rig.until("broken", |snapshot| !is_allowed(snapshot, ADDRESS)).await;
    assert_eq!(complaints().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn it_follows_an_api_server_through_an_outage() {
    let server = Server::new();
    server.put("pods", pod("a"));
    server.put(BINDINGS, binding("demo", "demo"));
    server.put(ASSIGNED, assigned("a"));
    let published = Arc::new(Published::default());
    let (synced, mut is_synced) = watch::channel(false);
    let stop = CancellationToken::new();
    let source = Source::kubernetes(server.client());
    let task = tokio::spawn(run(Config::new("node-1"), source, published.clone(), synced, stop.clone()));
    until(&published, "allowed", |snapshot| is_allowed(snapshot, ADDRESS)).await;
    assert!(*is_synced.wait_for(|synced| *synced).await.unwrap());
    let narrow = |part: &str| server.count(|call| call.query.contains(part));
    assert_eq!((narrow("fieldSelector=spec.nodeName%3Dnode-1"), narrow("labelSelector=nodename%3Dnode-1")), (2, 2));

    // Away for ten minutes: what was known stays in force.
    server.rule(|_| Some(Fault::Broken));
    server.end_watches(false);
    tokio::time::sleep(Duration::from_mins(10)).await;
    assert!(is_allowed(&published.load(), ADDRESS));
    // Back, and it has forgotten what was: everything is listed anew.
    server.remove(ASSIGNED, "team", "a-1");
    server.rule(|call| {
        (call.query.contains("watch=true") && call.query.contains("resourceVersion=3"))
            .then_some(Fault::Code(410, None))
    });
    until(&published, "not any more", |snapshot| !is_allowed(snapshot, ADDRESS)).await;
    stop.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn identities_and_news_are_there_with_the_snapshot() {
    let server = Server::new();
    server.put("pods", pod("a"));
    server.put(BINDINGS, binding("demo", "demo"));
    server.put(ASSIGNED, assigned("a"));
    server.put(IDENTITIES, identity("reader"));
    // Identities are not to be had yet: nothing is published.
    let (open, gate) = watch::channel(false);
    server.rule(move |call| call.path.ends_with(IDENTITIES).then(|| Fault::Slow(gate.clone())));
    let published = Arc::new(Published::default());
    let (identities, (news, mut told)) = (Identities::default(), mpsc::channel(64));
    let config = Config { identities: Some(identities.clone()), news: Some(news), ..Config::new("node-1") };
    let (synced, mut is_synced) = watch::channel(false);
    let stop = CancellationToken::new();
    let source = Source::kubernetes(server.client());
    let task = tokio::spawn(run(config, source, published.clone(), synced, stop.clone()));
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(!*is_synced.borrow() && told.is_empty());
    open.send_replace(true);
    is_synced.wait_for(|synced| *synced).await.unwrap();
    assert!(identities.get("team", "reader").is_some());
    let next =
        async |told: &mut mpsc::Receiver<News>| tokio::time::timeout(PATIENCE, told.recv()).await.unwrap().unwrap();
    let first = next(&mut told).await;
    assert!(matches!(&first, News::IdentityAssigned(identity) if *identity.object.name == *"demo"), "{first:?}");

    server.remove("pods", "team", "a");
    assert_eq!(next(&mut told).await, News::PodGone("pod-a".into()));
    assert!(!is_known(&published.load(), ADDRESS), "told after the snapshot");
    server.remove(ASSIGNED, "team", "a-1");
    let last = next(&mut told).await;
    assert!(matches!(&last, News::IdentityGone(identity) if *identity.name == *"demo"), "{last:?}");
    server.remove(IDENTITIES, "team", "reader");
    server.put("pods", pod("b"));
    until(&published, "the next burst", |snapshot| is_known(snapshot, ADDRESS)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(identities.get("team", "reader").is_none());
    stop.cancel();
    task.await.unwrap().unwrap();
}
