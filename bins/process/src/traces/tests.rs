//! Requests through the broker, their spans through the layer and over the wire, into a collector that decodes them.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use clap::Parser;
use event_listener::{Event, EventListener};
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use identity_broker::{
    AuditError, AuditRecord, AuditSink, Azure, Broker, BrokerConfig, Decide, Manager, ManagerConfig, Metrics,
    SecretData, SecretSource, SecretSourceError, UpstreamConfig,
};
use identity_core::{
    lookup::{Allow, Assignment, Caller, CredentialSource, Decision, Identity, ObjectRef, Source, Wait},
    pod::PodRef,
};
use identity_crd::IdentityType;
use jiff::Timestamp;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse},
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind, status::StatusCode as SpanStatus},
};
use prost::Message as _;
use tokio::net::TcpListener;
use tower::Service as _;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::{Registry, layer::SubscriberExt as _};

use super::*;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";
const LIMIT: Duration = Duration::from_secs(20);

/// What the collector took.
#[derive(Clone, Debug, Default)]
struct Taken {
    spans: Vec<Span>,
    resource: Vec<KeyValue>,
    headers: Vec<HeaderMap>,
    bytes: Vec<u8>,
}

/// Answers `status`, and says that it rejected so many spans.
#[derive(Clone, Default)]
struct Collector {
    taken: Arc<Mutex<Taken>>,
    status: Arc<AtomicU16>,
    /// So many more requests it is not there for.
    away: Arc<AtomicU16>,
    rejects: i64,
}

async fn serve<F>(answer: impl Fn(Request<Bytes>) -> F + Clone + Send + 'static) -> String
where
    F: Future<Output = Response<Full<Bytes>>> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.unwrap().to_bytes();
                    Ok::<_, Infallible>(answer(Request::from_parts(head, body)).await)
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    format!("http://{address}")
}

impl Collector {
    async fn start(&self) -> String {
        let this = self.clone();
        serve(move |request| {
            let answer = this.take(&request);
            async move { answer }
        })
        .await
    }

    fn take(&self, request: &Request<Bytes>) -> Response<Full<Bytes>> {
        let mut status = self.status.load(Ordering::SeqCst);
        if self.away.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |away| away.checked_sub(1)).is_ok() {
            status = 503;
        }
        if status != 0 {
            let mut refused = Response::new(Full::default());
            *refused.status_mut() = StatusCode::from_u16(status).unwrap();
            return refused;
        }
        assert_eq!((request.method().as_str(), request.uri().path()), ("POST", "/v1/traces"));
        assert_eq!(request.headers()["content-type"], "application/x-protobuf");
        let mut taken = self.taken.lock().unwrap();
        taken.headers.push(request.headers().clone());
        taken.bytes.extend_from_slice(request.body());
        for resource in ExportTraceServiceRequest::decode(request.body().clone()).unwrap().resource_spans {
            taken.resource = resource.resource.unwrap().attributes;
            taken.spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
        let partial =
            ExportTracePartialSuccess { rejected_spans: self.rejects, ..ExportTracePartialSuccess::default() };
        let answer = ExportTraceServiceResponse { partial_success: Some(partial) };
        Response::new(Full::new(answer.encode_to_vec().into()))
    }

    fn all(&self) -> Taken {
        self.taken.lock().unwrap().clone()
    }
}

#[derive(Debug, Parser)]
struct Daemon {
    #[command(flatten)]
    traces: TraceArgs,
    #[command(flatten)]
    upstream: UpstreamArgs,
}

fn traces(flags: &[&str]) -> Traces {
    let args = Daemon::parse_from(["daemon"].iter().chain(flags));
    Traces::new(&args.traces, &args.upstream, "identity-node", Some("node-1"))
}

/// This thread's spans go there from now on.
fn begin(flags: &[&str]) -> (Sending, DefaultGuard) {
    let mut traces = traces(flags);
    let subscriber = Registry::default().with(traces.layer().unwrap());
    let guard = tracing::subscriber::set_default(subscriber);
    (traces.start().unwrap(), guard)
}

struct NoSecrets;

impl SecretSource for NoSecrets {
    fn get<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<SecretData, SecretSourceError>> {
        Box::pin(async { Err(SecretSourceError::NotFound) })
    }
}

/// Decides as it is told.
#[derive(Default)]
struct Rules {
    decision: Mutex<Option<Decision>>,
    changed: Event,
}

impl Decide for Rules {
    fn decide(&self, _: &Caller<'_>, _: &identity_core::lookup::Request<'_>, _: Timestamp) -> Decision {
        self.decision.lock().unwrap().clone().unwrap_or(Decision::Wait(Wait::UnknownAddress))
    }

    fn changed(&self) -> EventListener {
        self.changed.listen()
    }
}

#[derive(Debug)]
struct Unkept;

impl AuditSink for Unkept {
    async fn record(&self, _: &AuditRecord<'_>) -> Result<(), AuditError> {
        tokio::task::yield_now().await;
        Ok(())
    }
}

fn object(name: &str) -> ObjectRef {
    ObjectRef { namespace: "ns".into(), name: name.into(), uid: format!("uid-{name}").into(), generation: 1 }
}

fn allow() -> Decision {
    let pod = Arc::new(PodRef {
        namespace: "ns".into(),
        name: "p".into(),
        uid: "uid-p".into(),
        service_account: "sa".into(),
    });
    let identity = Identity {
        object: object("i"),
        kind: IdentityType::UserAssignedManagedIdentity,
        client_id: Some("22222222-2222-2222-2222-222222222222".into()),
        object_id: None,
        resource_id: Some("/subscriptions/s/identity".into()),
        tenant_id: None,
        authority: None,
        credential: CredentialSource::None,
        audiences: Box::default(),
    };
    let assignment = Arc::new(Assignment {
        object: object("assigned"),
        pod_uid: Arc::clone(&pod.uid),
        binding: object("binding"),
        weight: 0,
        binding_audiences: Box::default(),
        identity: Arc::new(identity),
        ready: true,
        gate: None,
        granted: None,
    });
    Decision::Allow(Allow { pod, source: Source::Assignment(assignment), until: None })
}

type Brokered =
    Arc<Broker<Arc<Rules>, Manager<Azure<fn() -> Timestamp>, fn() -> Timestamp>, Unkept, fn() -> Timestamp>>;

/// A broker in front of an IMDS that gives `very-secret-token`, and counts what of traces it is sent.
async fn broker(rules: Arc<Rules>, sent: Arc<Mutex<Vec<HeaderMap>>>) -> Brokered {
    let imds = serve(move |request: Request<Bytes>| {
        sent.lock().unwrap().push(request.headers().clone());
        let body = r#"{"access_token":"very-secret-token","expires_in":"3600","client_id":"22222222-2222-2222-2222-222222222222"}"#;
        async move { Response::new(Full::new(Bytes::from(body))) }
    })
    .await;
    let clock: fn() -> Timestamp = || Timestamp::from_second(1_800_000_000).unwrap();
    let metrics = Arc::new(Metrics::default());
    let upstream = UpstreamConfig { metadata_endpoint: imds.parse().unwrap(), ..UpstreamConfig::default() };
    let tls = Daemon::parse_from(["daemon"]).upstream.tls().unwrap();
    let azure = Azure::new(upstream, tls, Arc::new(NoSecrets), clock, Arc::clone(&metrics));
    let tokens = Manager::new(azure, clock, ManagerConfig::default(), Arc::clone(&metrics));
    let config = BrokerConfig {
        hold: Duration::from_millis(200),
        remote_parent: Some(remote_parent),
        ..BrokerConfig::default()
    };
    Broker::new(rules, tokens, Unkept, clock, config, metrics)
}

async fn ask(broker: &Brokered, query: &str, headers: &[(&str, &str)]) -> StatusCode {
    let mut request = Request::get(format!("/metadata/identity/oauth2/token?{query}")).header("metadata", "true");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let connection = broker.connection("10.1.2.3:40000".parse().unwrap());
    let mut service = broker.stack(connection);
    let request = request.body(Full::<Bytes>::default()).unwrap();
    service.call(request).await.unwrap().status()
}

fn hex(id: &[u8]) -> String {
    id.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn attributes(of: &[KeyValue]) -> HashMap<&str, String> {
    let text = |attribute: &KeyValue| match attribute.value.clone().unwrap().value.unwrap() {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    };
    let all: HashMap<_, _> = of.iter().map(|attribute| (attribute.key.as_str(), text(attribute))).collect();
    assert_eq!(all.len(), of.len(), "no name twice: {of:?}");
    all
}

fn has(span: &Span, expected: &[(&str, &str)]) {
    let attributes = attributes(&span.attributes);
    for (name, value) in expected {
        assert_eq!(attributes.get(name).map(String::as_str), Some(*value), "{name} of {}: {attributes:?}", span.name);
    }
}

const QUERY: &str = "api-version=2018-02-01&resource=https://vault.azure.net&unknown=query-secret";

#[tokio::test]
async fn a_request_is_a_trace_from_its_traceparent_to_upstream() {
    let collector = Collector::default();
    let endpoint = collector.start().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("headers");
    std::fs::write(&file, "api-key: collector-secret\n").unwrap();
    let headers = file.to_str().unwrap();
    let flags = ["--otlp-endpoint", &endpoint, "--otlp-headers-file", headers, "--otlp-traces-per-second", "1000"];
    let (sending, guard) = begin(&flags);
    let rules = Arc::new(Rules::default());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let broker = broker(Arc::clone(&rules), Arc::clone(&asked)).await;

    // Held for an address that does not come.
    assert_eq!(ask(&broker, QUERY, &[]).await, 503);
    *rules.decision.lock().unwrap() = Some(allow());
    // Of a pod's trace, which it does not want kept: that is not for the pod to say.
    let traceparent = format!("00-{TRACE}-{PARENT}-00");
    let sent =
        [("traceparent", &*traceparent), ("tracestate", "pod=tracestate-secret"), ("baggage", "k=baggage-secret")];
    assert_eq!(ask(&broker, QUERY, &sent).await, 200);
    // At hand now; what is no traceparent is none.
    assert_eq!(ask(&broker, QUERY, &[("traceparent", "00-junk-junk-01")]).await, 200);
    drop(guard);
    drop(broker);
    tokio::time::timeout(LIMIT, sending.stop()).await.unwrap();

    let Taken { spans, resource, headers, bytes } = collector.all();
    let resource = attributes(&resource);
    assert_eq!((&*resource["service.name"], &*resource["k8s.node.name"]), ("identity-node", "node-1"));
    assert_eq!(headers[0]["api-key"], "collector-secret");

    let requests: Vec<_> = spans.iter().filter(|span| span.name == "request").collect();
    let by_status = |status: &str, source: Option<&str>| {
        let found = requests.iter().find(|span| {
            let attributes = attributes(&span.attributes);
            attributes["http.response.status_code"] == status
                && attributes.get("aadpodidentity.source").map(String::as_str) == source
        });
        *found.unwrap_or_else(|| panic!("{status} {source:?}: {requests:#?}"))
    };
    let (held, cold, warm) =
        (by_status("503", None), by_status("200", Some("upstream")), by_status("200", Some("cache")));
    let child = |parent: &Span, name: &str| {
        let mut children = spans.iter().filter(|span| span.parent_span_id == parent.span_id && span.name == name);
        let child = children.next().unwrap_or_else(|| panic!("no {name} of {}: {spans:#?}", parent.name));
        assert!(children.next().is_none(), "one {name}");
        assert_eq!(hex(&child.trace_id), hex(&parent.trace_id));
        assert!(child.start_time_unix_nano >= parent.start_time_unix_nano);
        child
    };

    // The trace goes on, whatever its flag said.
    assert_eq!((hex(&cold.trace_id), hex(&cold.parent_span_id)), (TRACE.to_owned(), PARENT.to_owned()));
    assert_eq!(cold.kind, SpanKind::Server as i32);
    assert_eq!(cold.trace_state, "");
    has(
        cold,
        &[
            ("client.address", "10.1.2.3"),
            ("http.request.method", "GET"),
            ("http.route", "/metadata/identity/oauth2/token"),
            ("k8s.namespace.name", "ns"),
            ("k8s.pod.name", "p"),
            ("k8s.pod.uid", "uid-p"),
            ("aadpodidentity.binding", "binding"),
            ("aadpodidentity.identity", "i"),
            ("aadpodidentity.resource", "https://vault.azure.net"),
            ("aadpodidentity.source", "upstream"),
            ("http.response.status_code", "200"),
        ],
    );
    child(cold, "audit");
    let fetch = child(child(cold, "token"), "fetch");
    has(fetch, &[("aadpodidentity.identity", "i"), ("aadpodidentity.wanted", "now")]);
    let upstream = child(fetch, "upstream");
    assert_eq!(upstream.kind, SpanKind::Client as i32);
    has(upstream, &[("http.request.method", "GET"), ("http.response.status_code", "200")]);
    assert!(attributes(&upstream.attributes)["server.address"].starts_with("127.0.0.1:"));

    assert!(warm.parent_span_id.is_empty(), "no traceparent, no parent");
    assert_ne!(warm.trace_id, cold.trace_id);
    assert!(!spans.iter().any(|span| span.name == "token" && span.parent_span_id == warm.span_id));
    child(warm, "audit");

    assert!(held.parent_span_id.is_empty());
    has(held, &[("aadpodidentity.reason", "unknown_address")]);
    assert_eq!(held.status.as_ref().unwrap().code, SpanStatus::Error as i32);
    let waiting = child(held, "hold");
    has(waiting, &[("aadpodidentity.waiting_for", "address")]);
    assert!(waiting.end_time_unix_nano - waiting.start_time_unix_nano >= 150_000_000, "{waiting:?}");

    // Neither what was given nor what was sent along is anywhere in it, nor anything else a pod chose freely.
    let text = String::from_utf8_lossy(&bytes);
    for secret in
        ["very-secret-token", "query-secret", "tracestate-secret", "baggage-secret", "collector-secret", "junk"]
    {
        assert!(!text.contains(secret), "{secret}");
    }
    // Nothing of traces goes upstream.
    for sent in asked.lock().unwrap().iter() {
        assert!(!sent.contains_key("traceparent") && !sent.contains_key("tracestate") && !sent.contains_key("baggage"));
    }
}

#[tokio::test]
async fn what_is_not_sampled_is_not_sent() {
    let collector = Collector::default();
    let endpoint = collector.start().await;
    let (sending, guard) = begin(&["--otlp-endpoint", &endpoint, "--otlp-sample-ratio", "0"]);
    let rules = Arc::new(Rules { decision: Mutex::new(Some(allow())), ..Rules::default() });
    let broker = broker(rules, Arc::default()).await;
    // The pod says that it wants to be kept.
    let traceparent = format!("00-{TRACE}-{PARENT}-01");
    assert_eq!(ask(&broker, QUERY, &[("traceparent", &traceparent)]).await, 200);
    drop(guard);
    drop(broker);
    tokio::time::timeout(LIMIT, sending.stop()).await.unwrap();
    assert!(collector.all().spans.is_empty());
}

/// One after the other: what they count is the process's.
#[tokio::test]
async fn a_collector_that_takes_nothing_changes_nothing_else() {
    let rules = Arc::new(Rules { decision: Mutex::new(Some(allow())), ..Rules::default() });
    let spans =
        |n: usize| (0..n).for_each(|_| drop(tracing::debug_span!(target: "identity_broker", parent: None, "fetch")));

    // Nobody is there.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (sending, guard) = begin(&["--otlp-endpoint", &format!("http://{gone}")]);
    let broker = broker(rules, Arc::default()).await;
    assert_eq!(ask(&broker, QUERY, &[]).await, 200);
    let lost = counts().1;
    drop(guard);
    let begun = tokio::time::Instant::now();
    tokio::time::timeout(LIMIT, sending.stop()).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(counts().1 >= lost + 5, "request, token, fetch, upstream, audit: {:?}", counts());

    // It is there, and does not answer.
    let silent = serve(|_| std::future::pending()).await;
    let (sending, guard) = begin(&["--otlp-endpoint", &silent]);
    spans(1);
    drop(guard);
    let begun = tokio::time::Instant::now();
    tokio::time::timeout(LIMIT, sending.stop()).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());

    // More than there is room for. Nothing is sent meanwhile: this thread is the one that would.
    let collector = Collector::default();
    let endpoint = collector.start().await;
    let most = "1000";
    let (sending, guard) = begin(&["--otlp-endpoint", &endpoint, "--otlp-traces-per-second", most]);
    let lost = counts().1;
    let one = tracing::debug_span!(target: "identity_broker", parent: None, "fetch");
    (0..layer::QUEUE + 100)
        .for_each(|_| drop(tracing::debug_span!(target: "identity_broker", parent: &one, "upstream")));
    assert_eq!(counts().1 - lost, 100);
    drop(one);
    drop(guard);
    tokio::time::timeout(LIMIT, sending.stop()).await.unwrap();
    assert_eq!(collector.all().spans.len(), layer::QUEUE);
    assert!(collector.all().headers.len() > 1, "in batches");

    // It refuses some, and all.
    let collector = Collector { rejects: 1, ..Collector::default() };
    let endpoint = collector.start().await;
    let (sending, guard) = begin(&["--otlp-endpoint", &endpoint]);
    let (exported, lost) = counts();
    spans(2);
    drop(guard);
    tokio::time::timeout(LIMIT, sending.stop()).await.unwrap();
    assert_eq!((counts().0 - exported, counts().1 - lost), (1, 1));
    for status in [400, 401, 503] {
        let collector = Collector { status: Arc::new(AtomicU16::new(status)), ..Collector::default() };
        let endpoint = collector.start().await;
        let (sending, guard) = begin(&["--otlp-endpoint", &endpoint]);
        let (exported, lost) = counts();
        spans(2);
        drop(guard);
        tokio::time::timeout(LIMIT, sending.stop()).await.unwrap();
        assert_eq!((counts().0 - exported, counts().1 - lost), (0, 2), "{status}");
    }
}

#[tokio::test]
async fn a_collector_that_is_away_for_a_moment_loses_nothing() {
    let collector = Collector { away: Arc::new(AtomicU16::new(2)), ..Collector::default() };
    let endpoint = collector.start().await;
    let (sending, guard) = begin(&["--otlp-endpoint", &endpoint]);
    drop(tracing::debug_span!(target: "identity_broker", parent: None, "fetch"));
    drop(guard);
    let taken = async {
        while collector.all().spans.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, taken).await.unwrap();
    assert_eq!(collector.away.load(Ordering::SeqCst), 0);
    sending.stop().await;
}

#[test]
fn without_an_endpoint_there_is_nothing_that_listens() {
    assert!(traces(&[]).layer().is_none());
    assert!(Traces::none().layer().is_none());
}

/// What leaves is what the page says, and the other way round.
#[test]
fn every_attribute_is_documented() {
    let page = include_str!("../../../../docs/tracing.md");
    let documented: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | ").map(|(name, _)| name))
        .filter(|name| name.contains('.'))
        .collect();
    let sent: Vec<_> = shape::ATTRIBUTES.iter().map(|(_, name)| *name).collect();
    assert!(sent.iter().all(|name| documented.contains(name)), "{sent:?} {documented:?}");
    assert!(documented.iter().all(|name| sent.contains(name)), "{sent:?} {documented:?}");
}
