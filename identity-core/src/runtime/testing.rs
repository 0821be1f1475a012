//! For tests: an API server in memory (as far as the runtime's requests go, with the answers that a real one gives), and
//! objects to put into it. Real servers are for the tests of the binaries; this one stops time and breaks at will.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{Either, Full, StreamBody};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use super::observe::{Observer, WriteOutcome};
use crate::{object::ObjectKey, pod::Pod};

pub(crate) const PATIENCE: Duration = Duration::from_mins(10);
pub(crate) const ASSIGNED: &str = "azureassignedidentities";
pub(crate) const IDENTITIES: &str = "azureidentities";
pub(crate) const BINDINGS: &str = "azureidentitybindings";
pub(crate) const GRANTS: &str = "azureidentitygrants";

type Stream = futures::stream::BoxStream<'static, Result<Frame<Bytes>, Infallible>>;
type Answer = Response<Either<Full<Bytes>, StreamBody<Stream>>>;
pub(crate) type Handle = tower_test::mock::Handle<Request<Body>, Answer>;

/// A client and what it asks, for a test that answers by hand.
pub(crate) fn mock() -> (Client, Handle) {
    let (service, handle) = tower_test::mock::pair::<Request<Body>, Answer>();
    (Client::new(service, "default"), handle)
}

pub(crate) fn answer(code: u16, body: &Value) -> Answer {
    let body = Either::Left(Full::new(Bytes::from(body.to_string())));
    Response::builder().status(code).header("content-type", "application/json").body(body).unwrap()
}

pub(crate) fn status(code: u16, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code, "reason": "Test"})
}

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) content_type: String,
    pub(crate) body: Value,
    pub(crate) at: tokio::time::Instant,
}

impl Call {
    pub(crate) async fn read(request: Request<Body>) -> Self {
        let (parts, body) = request.into_parts();
        let bytes = body.collect_bytes().await.unwrap();
        let header = parts.headers.get("content-type");
        Self {
            method: parts.method.to_string(),
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            content_type: header.map_or(String::new(), |value| value.to_str().unwrap().to_owned()),
            body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
            at: tokio::time::Instant::now(),
        }
    }

    pub(crate) fn is_write(&self) -> bool {
        self.method != "GET"
    }

    pub(crate) fn is_write_of(&self, plural: &str) -> bool {
        self.is_write() && self.path.split('/').any(|part| part == plural)
    }

    /// The whole request, for a snapshot.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("{} {}?{}\n", self.method, self.path, self.query);
        if !self.content_type.is_empty() {
            writeln!(text, "content-type: {}", self.content_type).unwrap();
        }
        if self.body != Value::Null {
            writeln!(text, "{:#}", self.body).unwrap();
        }
        text
    }

    /// Collection, namespace, name, subresource.
    fn target(&self) -> (String, String, String, String) {
        let mut parts: Vec<&str> = self.path.trim_start_matches('/').split('/').collect();
        parts.drain(..if parts[0] == "api" { 2 } else { 3 });
        let mut namespace = "";
        if parts[0] == "namespaces" {
            namespace = parts[1];
            parts.drain(..2);
        }
        let part = |index: usize| parts.get(index).copied().unwrap_or_default().to_owned();
        (part(0), namespace.to_owned(), part(1), part(2))
    }
}

/// What goes wrong with a request.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// This code instead, with `Retry-After`.
    Code(u16, Option<u32>),
    /// The connection breaks.
    Broken,
    /// It takes until this is true, and is then done.
    Slow(watch::Receiver<bool>),
    /// It is done, and the answer is lost until this is true.
    LateAnswer(watch::Receiver<bool>),
}

type Rule = Box<dyn FnMut(&Call) -> Option<Fault> + Send>;
type Key = (String, String, String);

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<Key, Value>,
    history: Vec<(u64, Key, Value)>,
    watches: Vec<(Selection, mpsc::UnboundedSender<Bytes>)>,
    calls: Vec<Call>,
    rule: Option<Rule>,
}

/// The server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Server {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<()>,
}

impl Server {
    pub(crate) fn new() -> Self {
        Self { state: Arc::default(), changed: watch::channel(()).0 }
    }

    pub(crate) fn client(&self) -> Client {
        let (client, mut handle) = mock();
        let server = self.clone();
        tokio::spawn(async move {
            while let Some((request, respond)) = handle.next_request().await {
                let server = server.clone();
                tokio::spawn(async move {
                    let call = Call::read(request).await;
                    match server.serve(call).await {
                        Some(answer) => respond.send_response(answer),
                        None => respond.send_error("connection reset"),
                    }
                });
            }
        });
        client
    }

    /// How many watches are open.
    pub(crate) fn watches(&self, plural: &str) -> usize {
        self.lock().watches.iter().filter(|(selection, watch)| selection.plural == plural && !watch.is_closed()).count()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn rule(&self, rule: impl FnMut(&Call) -> Option<Fault> + Send + 'static) {
        self.lock().rule = Some(Box::new(rule));
    }

    pub(crate) fn well_again(&self) {
        self.lock().rule = None;
    }

    pub(crate) fn calls(&self, which: impl Fn(&Call) -> bool) -> Vec<Call> {
        self.lock().calls.iter().filter(|call| which(call)).cloned().collect()
    }

    pub(crate) fn count(&self, which: impl Fn(&Call) -> bool) -> usize {
        self.lock().calls.iter().filter(|call| which(call)).count()
    }

    pub(crate) fn all(&self, plural: &str) -> Vec<Value> {
        self.lock().objects.iter().filter(|((p, ..), _)| p == plural).map(|(_, object)| object.clone()).collect()
    }

    pub(crate) fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.lock().objects.get(&(plural.into(), namespace.into(), name.into())).cloned()
    }

    fn last(&self, count: usize) -> String {
        let calls = self.calls(|_| true);
        let lines = calls.iter().rev().take(count).map(|c| format!("{:?} {} {}?{}", c.at, c.method, c.path, c.query));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Waits until something holds.
    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let mut changed = self.changed.subscribe();
        let wait = async {
            while !holds(self) {
                changed.changed().await.unwrap();
            }
        };
        let reached = tokio::time::timeout(PATIENCE, wait).await.is_ok();
        assert!(reached, "never: {what}; the last requests:\n{}", self.last(30));
    }

    /// Writes an object, as somebody else.
    pub(crate) fn put(&self, plural: &str, object: Value) -> Value {
        let stored = self.lock().store(plural, object);
        self.changed.send_replace(());
        stored
    }

    pub(crate) fn remove(&self, plural: &str, namespace: &str, name: &str) {
        self.lock().remove(&(plural.into(), namespace.into(), name.into()));
        self.changed.send_replace(());
    }

    /// Ends all watches; with `gone`, with 410 first, since the server has forgotten what was.
    pub(crate) fn end_watches(&self, gone: bool) {
        let mut state = self.lock();
        if gone {
            let event = json!({"type": "ERROR", "object": status(410, "too old resource version")});
            for (_, watch) in &state.watches {
                let _ = watch.send(line(&event));
            }
        }
        state.watches.clear();
    }

    async fn serve(&self, call: Call) -> Option<Answer> {
        let fault = {
            let mut state = self.lock();
            state.calls.push(call.clone());
            state.rule.as_mut().and_then(|rule| rule(&call))
        };
        self.changed.send_replace(());
        let mut late = None;
        match fault {
            Some(Fault::Code(code, retry_after)) => {
                let mut failed = answer(code, &status(code, "test"));
                if let Some(seconds) = retry_after {
                    failed.headers_mut().insert("retry-after", seconds.into());
                }
                return Some(failed);
            }
            Some(Fault::Broken) => return None,
            Some(Fault::Slow(mut until)) => drop(until.wait_for(|now| *now).await),
            Some(Fault::LateAnswer(until)) => late = Some(until),
            None => {}
        }
        let answer = self.lock().handle(&call);
        self.changed.send_replace(());
        if let Some(mut until) = late {
            let _ = until.wait_for(|now| *now).await;
        }
        Some(answer)
    }
}

fn line(event: &Value) -> Bytes {
    Bytes::from(format!("{event}\n"))
}

impl State {
    fn tell(&mut self, key: &Key, kind: &str, object: &Value) {
        let event = json!({"type": kind, "object": object});
        self.watches.retain(|(selection, watch)| !selection.has(key) || watch.send(line(&event)).is_ok());
        self.history.push((self.version, key.clone(), event));
    }

    fn store(&mut self, plural: &str, mut object: Value) -> Value {
        self.version += 1;
        let meta = &mut object["metadata"];
        meta["resourceVersion"] = json!(self.version.to_string());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let key = (plural.to_owned(), text(&meta["namespace"]), text(&meta["name"]));
        let old = self.objects.get(&key);
        match old {
            Some(old) => meta["uid"] = old["metadata"]["uid"].clone(),
            None if meta["uid"].is_null() => meta["uid"] = json!(format!("uid-{}", self.version)),
            None => {}
        }
        let kind = if old.is_some() { "MODIFIED" } else { "ADDED" };
        self.objects.insert(key.clone(), object.clone());
        self.tell(&key, kind, &object);
        object
    }

    fn remove(&mut self, key: &Key) -> Option<Value> {
        let mut object = self.objects.remove(key)?;
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.tell(key, "DELETED", &object);
        Some(object)
    }

    fn handle(&mut self, call: &Call) -> Answer {
        let (plural, namespace, name, subresource) = call.target();
        let key = (plural.clone(), namespace, name.clone());
        let there = self.objects.get(&key).cloned();
        let refused = |code, message: &str| answer(code, &status(code, message));
        match call.method.as_str() {
            "GET" if call.query.contains("watch=true") => self.watch(Selection::of(call), &call.query),
            "GET" if name.is_empty() => {
                let selection = Selection::of(call);
                let items: Vec<_> = self.objects.iter().filter(|(key, _)| selection.has(key)).map(|(_, o)| o).collect();
                answer(
                    200,
                    &json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": self.version.to_string()}, "items": items}),
                )
            }
            "GET" => there.map_or_else(|| refused(404, "not found"), |object| answer(200, &object)),
            "POST" if plural == "selfsubjectreviews" => {
                answer(201, &json!({"status": {"userInfo": {"username": identity_crd::policies::CONTROLLER}}}))
            }
            "POST" => {
                let name = call.body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                if self.objects.contains_key(&(key.0.clone(), key.1, name)) {
                    return refused(409, "already exists");
                }
                answer(201, &self.store(&plural, call.body.clone()))
            }
            "PUT" => match there {
                Some(there) if there["metadata"]["resourceVersion"] != call.body["metadata"]["resourceVersion"] => {
                    refused(409, "the object has been modified")
                }
                Some(_) => answer(200, &self.store(&plural, call.body.clone())),
                None => refused(404, "not found"),
            },
            "PATCH" if subresource == "status" => match there {
                None => refused(404, "not found"),
                Some(there) if !fits(&there, &call.body["metadata"]) => refused(409, "uid mismatch"),
                Some(mut there) => {
                    there["status"] = call.body["status"].clone();
                    answer(200, &self.store(&plural, there))
                }
            },
            "PATCH" => match there {
                None if !call.body["metadata"]["uid"].is_null() => refused(409, "uid mismatch"),
                Some(there) if !fits(&there, &call.body["metadata"]) => refused(409, "the object has been modified"),
                _ => answer(200, &self.store(&plural, call.body.clone())),
            },
            "DELETE" => match there {
                None => refused(404, "not found"),
                Some(there) if !fits(&there, &call.body["preconditions"]) => refused(409, "precondition failed"),
                Some(_) => answer(200, &self.remove(&key).unwrap()),
            },
            other => refused(405, other),
        }
    }

    fn watch(&mut self, selection: Selection, query: &str) -> Answer {
        let from = query.split('&').find_map(|part| part.strip_prefix("resourceVersion=")).unwrap();
        let from: u64 = from.parse().unwrap();
        let (sender, receiver) = mpsc::unbounded_channel();
        for (version, key, event) in &self.history {
            if *version > from && selection.has(key) {
                sender.send(line(event)).unwrap();
            }
        }
        self.watches.retain(|(_, watch)| !watch.is_closed());
        self.watches.push((selection, sender));
        let frames = futures::stream::unfold(receiver, |mut receiver| async {
            let bytes = receiver.recv().await?;
            Some((Ok(Frame::data(bytes)), receiver))
        });
        Response::new(Either::Right(StreamBody::new(frames.boxed())))
    }
}

/// What a list or a watch is of. Of selectors, only that of a name counts.
#[derive(Debug)]
struct Selection {
    plural: String,
    namespace: String,
    name: Option<String>,
}

impl Selection {
    fn of(call: &Call) -> Self {
        let (plural, namespace, ..) = call.target();
        let name = call.query.split('&').find_map(|part| part.strip_prefix("fieldSelector=metadata.name%3D"));
        Self { plural, namespace, name: name.map(str::to_owned) }
    }

    fn has(&self, (plural, namespace, name): &Key) -> bool {
        self.plural == *plural
            && (self.namespace.is_empty() || self.namespace == *namespace)
            && self.name.as_ref().is_none_or(|wanted| wanted == name)
    }
}

/// Whether the UID and version that are named are those of the object.
fn fits(there: &Value, wanted: &Value) -> bool {
    ["uid", "resourceVersion"].iter().all(|field| wanted[field].is_null() || wanted[field] == there["metadata"][field])
}

/// Remembers what it is told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) writes: Mutex<Vec<(&'static str, WriteOutcome)>>,
    pub(crate) relisted: Mutex<Vec<&'static str>>,
    pub(crate) failed: Mutex<Vec<&'static str>>,
    /// Identities of whose credentials something is known.
    pub(crate) credentials: Mutex<BTreeSet<ObjectKey>>,
}

impl Told {
    pub(crate) fn count(&self, outcome: WriteOutcome) -> usize {
        self.writes.lock().unwrap().iter().filter(|(_, o)| *o == outcome).count()
    }
}

impl Observer for Told {
    fn wrote(&self, kind: &'static str, outcome: WriteOutcome) {
        self.writes.lock().unwrap().push((kind, outcome));
    }

    fn relisted(&self, kind: &'static str) {
        self.relisted.lock().unwrap().push(kind);
    }

    fn watch_failed(&self, kind: &'static str) {
        self.failed.lock().unwrap().push(kind);
    }

    fn credential(&self, identity: &ObjectKey, _: Option<bool>, _: Option<jiff::Timestamp>) {
        self.credentials.lock().unwrap().insert(identity.clone());
    }

    fn credential_gone(&self, identity: &ObjectKey) {
        self.credentials.lock().unwrap().remove(identity);
    }
}

pub(crate) fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "team", "uid": format!("pod-{name}"), "labels": {"aadpodidbinding": "demo"}},
        "spec": {"nodeName": "node-1", "serviceAccountName": "default"},
        "status": {"phase": "Running", "podIP": "10.0.0.1"},
    })
}

pub(crate) fn trimmed(pod: &Value) -> Pod {
    let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(pod.clone()).unwrap();
    Pod::try_from(&pod).unwrap()
}

pub(crate) fn identity(name: &str) -> Value {
    json!({
        "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity",
        "metadata": {"name": name, "namespace": "team", "uid": format!("identity-{name}"), "generation": 1},
        "spec": {
            "type": 0, "clientID": "33333333-3333-3333-3333-333333333333",
            "resourceID": format!(
                "/subscriptions/11111111-1111-1111-1111-111111111111/resourceGroups/rg/providers/\
                 Microsoft.ManagedIdentity/userAssignedIdentities/{name}"
            ),
        },
    })
}

/// Binds pods labelled `aadpodidbinding: demo`.
pub(crate) fn binding(name: &str, identity: &str) -> Value {
    json!({
        "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding",
        "metadata": {"name": name, "namespace": "team", "uid": format!("binding-{name}"), "generation": 1},
        "spec": {"azureIdentity": identity, "selector": "demo"},
    })
}

/// Collects what is logged on this thread until it is dropped.
pub(crate) struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    _guard: tracing::subscriber::DefaultGuard,
}

impl Log {
    pub(crate) fn new() -> Self {
        /// While there is one subscriber alone, tracing asks the thread on which a line is first reached whether it is
        /// wanted, for all threads and for good: another test's, without a subscriber, would say no.
        static SECOND: std::sync::OnceLock<tracing::Dispatch> = std::sync::OnceLock::new();
        SECOND.get_or_init(|| tracing::Dispatch::new(Collector(Arc::default())));
        let lines = Arc::default();
        let guard = tracing::subscriber::set_default(Collector(Arc::clone(&lines)));
        Self { lines, _guard: guard }
    }

    pub(crate) fn with(&self, text: &str) -> Vec<String> {
        self.lines.lock().unwrap().iter().filter(|line| line.contains(text)).cloned().collect()
    }
}

struct Collector(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Collector {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                write!(self.0, " {}={value:?}", field.name()).unwrap();
            }
        }
        let mut text = Text(event.metadata().level().to_string());
        event.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}
