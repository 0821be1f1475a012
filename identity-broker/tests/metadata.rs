//! The rest of the metadata service: what is passed on, how, and what is not. On the other side is a service that a test writes
//! byte by byte, or the emulator.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]

mod support;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use identity_broker::{
    AuditError, AuditRecord, AuditSink, Backend, Broker, BrokerConfig, Freshness, Manager, ManagerConfig, Metadata,
    Metrics, Rate, Reason, ServerConfig, Token, TokenError,
    endpoint::{TokenRequest, forms::imds::parse},
    metadata::{Bounds, Passthrough, PassthroughConfig, Policy, Shares},
    serve,
};
use identity_core::lookup::{Allow, Caller, Decision, Deny, Identity, ObjectRef, Request, Source, Wait};
use identity_crd::IdentityType;
use jiff::Timestamp;
use support::{
    Client, Dialled, LIMIT, Records, Rules, allow,
    azures::{MANAGED, RESOURCE_ID, azures, wall_clock},
    get, identity, metadata, pod,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

const INSTANCE: &str = "/metadata/instance?api-version=2021-02-01";
const EVENTS: &str = "/metadata/scheduledevents?api-version=2020-07-01";

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

/// No test here is about tokens that are assigned.
struct NoTokens;

impl Backend for NoTokens {
    fn credential_version(&self, _: &Identity) -> u64 {
        0
    }

    async fn fetch(&self, _: &Arc<Identity>, _: &str, _: Freshness) -> Result<Token, TokenError> {
        Err(TokenError::Unavailable { message: "none".into(), retry_after: Duration::from_secs(1) })
    }
}

/// The node's own service: each connection is the test's.
struct Service {
    address: SocketAddr,
    connections: mpsc::UnboundedReceiver<TcpStream>,
}

impl Service {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, connections) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if sender.send(stream).is_err() {
                    break;
                }
            }
        });
        Self { address, connections }
    }

    /// The next request: its head (and what of the body came along).
    async fn request(&mut self) -> (TcpStream, String) {
        let mut stream = within(self.connections.recv()).await.unwrap();
        let head = read_until(&mut stream, "\r\n\r\n").await;
        (stream, head)
    }

    /// Nobody has asked, and nobody will: what would ask has been answered already.
    fn untouched(&mut self) {
        assert!(self.connections.try_recv().is_err(), "something was sent to the node's service");
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.expect("in time")
}

/// Reads until the text contains `end`; all that there is when the other side closes.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = Vec::new();
    let mut chunk = [0; 4096];
    within(async {
        while !String::from_utf8_lossy(&text).contains(end) {
            match stream.read(&mut chunk).await {
                Ok(0) | Err(_) => break,
                Ok(read) => text.extend_from_slice(&chunk[..read]),
            }
        }
    })
    .await;
    String::from_utf8(text).unwrap()
}

async fn closed(stream: &mut TcpStream) -> bool {
    let mut byte = [0; 1];
    matches!(within(stream.read(&mut byte)).await, Ok(0) | Err(_))
}

struct Bench {
    address: SocketAddr,
    service: Service,
    rules: Arc<Rules>,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// A broker with a pod of namespace `ns` at every address, in front of a service of the test's.
async fn bench(change: impl FnOnce(&mut PassthroughConfig)) -> Bench {
    let service = Service::start().await;
    let mut config = PassthroughConfig {
        endpoint: format!("http://{}", service.address).parse().unwrap(),
        ..PassthroughConfig::default()
    };
    change(&mut config);
    let rules = Rules::new(allow("app", identity("id", IdentityType::ServicePrincipal)));
    let metrics = Arc::new(Metrics::default());
    let passthrough = Arc::new(Passthrough::new(config, now, Arc::clone(&metrics)));
    let tokens = Manager::new(NoTokens, now, ManagerConfig::default(), Arc::clone(&metrics));
    let broker = BrokerConfig { hold: Duration::from_millis(200), ..BrokerConfig::default() };
    let broker = Broker::with_metadata(
        Arc::clone(&rules),
        tokens,
        Records::default(),
        now,
        broker,
        Arc::clone(&metrics),
        passthrough,
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let dialled = Dialled(Arc::new(Mutex::new(metadata())));
    tokio::spawn(serve(listener, dialled, broker, ServerConfig::default(), shutdown.clone()));
    Bench { address, service, rules, metrics, shutdown }
}

impl Bench {
    async fn ask(&self, request: &str) -> support::Answer {
        Client::connect(self.address).await.exchange(request).await
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends a request on a connection of its own.
    async fn send(&self, request: &str) -> TcpStream {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }
}

async fn answer(mut stream: TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
}

const SMALL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";

#[tokio::test]
async fn the_request_is_passed_on_as_it_came_but_for_what_is_for_the_next_hop() {
    let mut bench = bench(|_| {}).await;
    let sent = "GET //metadata/%69nstance/compute/?api-version=2021-02-01&format=text&x=%2F..%2f&&y=a+b HTTP/1.1\r\n\
                Host: 169.254.169.254\r\nMetadata:true\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nTE: trailers\r\n\
                Keep-Alive: timeout=5\r\nProxy-Authorization: Basic eDp5\r\nUpgrade: h2c\r\nX-Kept: 1\r\nUser-Agent: test\r\n\r\n";
    let mut pod = bench.send(sent).await;
    let (service, head) = bench.service.request().await;
    let mut lines: Vec<&str> = head.trim_end().lines().collect();
    let first = lines.remove(0);
    lines.sort_unstable();
    assert_eq!(first, "GET /metadata/instance/compute?api-version=2021-02-01&format=text&x=%2F..%2f&&y=a+b HTTP/1.1");
    let host = format!("host: {}", bench.service.address);
    assert_eq!(lines, [host.as_str(), "metadata: true", "user-agent: test", "x-kept: 1"]);

    let reply = "HTTP/1.1 200 OK\r\nServer: IMDS/150.870.65.1854\r\nContent-Type: text/plain; charset=utf-8\r\n\
                 Connection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nX-Kept: 1\r\nContent-Length: 5\r\n\r\nLinux";
    answer(service, reply).await;
    let text = read_until(&mut pod, "Linux").await.to_lowercase();
    for there in ["http/1.1 200", "server: imds/150", "x-kept: 1", "content-length: 5", "content-type: text/plain"] {
        assert!(text.contains(there), "{there}: {text}");
    }
    for gone in ["x-hop", "keep-alive: ", "connection: close"] {
        assert!(!text.contains(gone), "{gone}: {text}");
    }
    assert_eq!(bench.metrics.requests(Reason::Passed), 1);
    // The connection goes on.
    pod.write_all(get(INSTANCE).as_bytes()).await.unwrap();
    let (service, _) = bench.service.request().await;
    answer(service, SMALL).await;
    assert!(read_until(&mut pod, "{}").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn what_is_wrong_or_blocked_is_never_sent() {
    let mut bench = bench(|_| {}).await;
    let line = |head: &str| format!("{head} HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n\r\n");
    for (request, status, error) in [
        (format!("GET {INSTANCE} HTTP/1.1\r\nHost: x\r\n\r\n"), 400, "invalid_request"),
        (format!("GET {INSTANCE} HTTP/1.1\r\nHost: x\r\nMetadata: false\r\n\r\n"), 400, "invalid_request"),
        (
            format!("GET {INSTANCE} HTTP/1.1\r\nHost: x\r\nMetadata: true\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n"),
            400,
            "invalid_request",
        ),
        (line(&format!("PUT {INSTANCE}")), 405, "method_not_allowed"),
        (line(&format!("DELETE {INSTANCE}")), 405, "method_not_allowed"),
        (line(&format!("TRACE {INSTANCE}")), 405, "method_not_allowed"),
        (line(&format!("POST {EVENTS}")), 403, "access_denied"),
        (line("GET /metadata/attested/document?api-version=2020-09-01"), 403, "access_denied"),
        (line("GET /metadata/versions"), 403, "access_denied"),
        (line("GET /metadata/loadbalancer?api-version=2020-10-01"), 403, "access_denied"),
        (line("GET /metadata/instancex"), 403, "access_denied"),
        (line("GET /metadata"), 403, "access_denied"),
        (line("GET /host/token?resource=x"), 403, "access_denied"),
        (line("GET /"), 403, "access_denied"),
        // CVE-2022-23551 and its relatives.
        (line("GET /metadata/identity\\oauth2\\token?resource=x"), 400, "invalid_request"),
        (line("GET /metadata\\identity\\oauth2\\token?resource=x"), 400, "invalid_request"),
        (line("GET /metadata/instance/..%2fidentity/oauth2/token?resource=x"), 400, "invalid_request"),
        (line("GET /metadata/instance/../identity/oauth2/token?resource=x"), 400, "invalid_request"),
        (line("GET /metadata/instance/%2e%2e/identity/oauth2/token?resource=x"), 400, "invalid_request"),
        (line("GET /metadata/instance%252f..%252fidentity/oauth2/token?resource=x"), 400, "invalid_request"),
        (line("GET /metadata/instance;/../identity/oauth2/token?resource=x"), 400, "invalid_request"),
        (line("GET /metadata/.identity/oauth2/token?resource=x"), 403, "access_denied"),
    ] {
        let answer = bench.ask(&request).await;
        assert_eq!((answer.status, answer.error().1.as_str()), (status, error), "{request}");
    }
    // With everything allowed, credentials are not among it.
    let mut open = self::bench(|config| config.policy = Policy::allow()).await;
    for path in
        ["/metadata/.identity/oauth2/token", "/metadata/v2/identity/oauth2/token", "/metadata/x/issuecredential"]
    {
        assert_eq!(open.ask(&get(path)).await.status, 403, "{path}");
    }
    assert_ne!(open.ask(&get("/metadata/identity")).await.status, 200);
    open.service.untouched();
    bench.service.untouched();
    assert_eq!(bench.metrics.requests(Reason::Passed), 0);
}

#[tokio::test]
async fn a_pod_that_is_not_known_is_asked_to_wait_and_one_of_the_nodes_network_is_refused() {
    let mut bench = bench(|_| {}).await;
    bench.rules.set(|_: &Caller<'_>, _: &Request<'_>| Decision::Wait(Wait::UnknownAddress));
    let answer = bench.ask(&get(INSTANCE)).await;
    assert_eq!((answer.status, answer.headers.contains_key("retry-after")), (503, true));
    bench.rules.set(|_: &Caller<'_>, _: &Request<'_>| Decision::Deny(Deny::HostNetwork));
    assert_eq!(bench.ask(&get(INSTANCE)).await.status, 403);
    bench.service.untouched();
    // One without any binding is a pod like others.
    bench.rules.set(|_: &Caller<'_>, _: &Request<'_>| Decision::Deny(Deny::NoBinding(pod("bare"))));
    let mut client = bench.send(&get(INSTANCE)).await;
    let (service, _) = bench.service.request().await;
    self::answer(service, SMALL).await;
    assert!(read_until(&mut client, "{}").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn an_approval_passes_when_a_file_allows_it_and_is_never_repeated() {
    let policy = "rules:\n- {namespaces: [ns], paths: [/metadata/scheduledevents], methods: [GET, POST]}\n";
    let mut bench = bench(|config| config.policy = Policy::parse(policy).unwrap()).await;
    let body = r#"{"StartRequests":[{"EventId":"e"}]}"#;
    let request = format!(
        "POST {EVENTS} HTTP/1.1\r\nHost: x\r\nMetadata: true\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut pod = bench.send(&request).await;
    let (service, head) = bench.service.request().await;
    assert!(head.contains(&format!("content-length: {}", body.len())) && head.ends_with(body), "{head}");
    answer(service, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert!(read_until(&mut pod, "\r\n\r\n").await.starts_with("HTTP/1.1 200"));

    // In chunks from the pod; the service sees its length.
    let chunked = format!(
        "POST {EVENTS} HTTP/1.1\r\nHost: x\r\nMetadata: true\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    let mut pod = bench.send(&chunked).await;
    let (service, head) = bench.service.request().await;
    assert!(head.contains(&format!("content-length: {}", body.len())) && !head.contains("chunked"), "{head}");
    // Read, and gone without an answer: nobody knows whether it was done.
    drop(service);
    let text = read_until(&mut pod, "}").await;
    assert!(text.starts_with("HTTP/1.1 503") && text.to_lowercase().contains("retry-after"), "{text}");
    // The same with GET.
    let pod = bench.send(&get(EVENTS)).await;
    let (service, _) = bench.service.request().await;
    drop(service);
    let mut pod = pod;
    assert!(read_until(&mut pod, "}").await.starts_with("HTTP/1.1 503"));
    bench.service.untouched();

    let large = format!(
        "POST {EVENTS} HTTP/1.1\r\nHost: x\r\nMetadata: true\r\nContent-Length: 70000\r\n\r\n{}",
        "x".repeat(70_000)
    );
    assert_eq!(bench.ask(&large).await.status, 413);
    bench.service.untouched();
}

#[tokio::test]
async fn redirects_and_errors_are_answers_like_any_other() {
    let mut bench = bench(|_| {}).await;
    for (reply, status, text) in [
        (
            "302 Found\r\nLocation: http://127.0.0.1:1/elsewhere\r\nContent-Length: 0\r\n\r\n",
            "302",
            "location: http://127.0.0.1:1/",
        ),
        ("404 Not Found\r\nContent-Length: 21\r\n\r\n{\"error\":\"Not found\"}", "404", "{\"error\":\"not found\"}"),
        ("410 Gone\r\nRetry-After: 70\r\nContent-Length: 0\r\n\r\n", "410", "retry-after: 70"),
    ] {
        let mut pod = bench.send(&get(INSTANCE)).await;
        let (service, _) = bench.service.request().await;
        answer(service, &format!("HTTP/1.1 {reply}")).await;
        let got = read_until(&mut pod, if status == "404" { "found\"}" } else { "\r\n\r\n" }).await.to_lowercase();
        assert!(got.starts_with(&format!("http/1.1 {status}")) && got.contains(text), "{got}");
    }
    bench.service.untouched();
}

#[tokio::test]
async fn answers_are_streamed() {
    let mut bench = bench(|_| {}).await;
    let mut pod = bench.send(&get(INSTANCE)).await;
    let (mut service, _) = bench.service.request().await;
    service.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n").await.unwrap();
    assert!(read_until(&mut pod, "first").await.to_lowercase().contains("transfer-encoding: chunked"));
    service.write_all(b"6\r\nsecond\r\n0\r\nX-Trailer: 1\r\n\r\n").await.unwrap();
    let rest = read_until(&mut pod, "\r\n0\r\n\r\n").await;
    assert!(rest.contains("second") && !rest.contains("X-Trailer"), "{rest}");
}

#[tokio::test]
async fn when_the_pod_goes_the_request_ends() {
    let mut bench = bench(|_| {}).await;
    // Before there is an answer.
    let pod = bench.send(&get(INSTANCE)).await;
    let (mut service, _) = bench.service.request().await;
    drop(pod);
    assert!(closed(&mut service).await);
    // In the middle of one.
    let mut pod = bench.send(&get(INSTANCE)).await;
    let (mut service, _) = bench.service.request().await;
    service.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n").await.unwrap();
    read_until(&mut pod, "first").await;
    drop(pod);
    assert!(closed(&mut service).await);
}

#[tokio::test]
async fn times_are_bounded_and_a_cut_answer_is_seen_to_be_cut() {
    let bounds =
        Bounds { head: Duration::from_millis(300), whole: Duration::from_millis(600), most: 100, ..Bounds::default() };
    let mut bench = bench(|config| config.bounds = bounds).await;
    // No head.
    let mut pod = bench.send(&get(INSTANCE)).await;
    let (mut service, _) = bench.service.request().await;
    let text = read_until(&mut pod, "}").await;
    assert!(text.starts_with("HTTP/1.1 504"), "{text}");
    assert!(closed(&mut service).await);
    // No end.
    let mut pod = bench.send(&get(INSTANCE)).await;
    let (mut service, _) = bench.service.request().await;
    service.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n").await.unwrap();
    let text = read_until(&mut pod, "\r\n0\r\n\r\n").await;
    assert!(text.contains("first") && !text.contains("\r\n0\r\n"), "{text}");
    assert!(closed(&mut service).await);
    // Too much, said beforehand and not.
    let mut pod = bench.send(&get(INSTANCE)).await;
    let (service, _) = bench.service.request().await;
    answer(service, "HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n").await;
    assert!(read_until(&mut pod, "}").await.starts_with("HTTP/1.1 503"));
    let mut pod = bench.send(&get(INSTANCE)).await;
    let (service, _) = bench.service.request().await;
    let chunk = "x".repeat(60);
    answer(
        service,
        &format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3c\r\n{chunk}\r\n3c\r\n{chunk}\r\n0\r\n\r\n"),
    )
    .await;
    let text = read_until(&mut pod, "\r\n0\r\n\r\n").await;
    assert!(!text.contains("\r\n0\r\n") && text.matches('x').count() < 120, "{text}");
}

#[tokio::test]
async fn nobody_there_is_a_temporary_error() {
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let bench = bench(|config| config.endpoint = format!("http://{unused}").parse().unwrap()).await;
    let answer = bench.ask(&get(INSTANCE)).await;
    assert_eq!((answer.status, answer.error().1.as_str()), (503, "service_unavailable"));
    assert!(answer.headers.contains_key("retry-after"));
    // Something that is not HTTP.
    let mut bench = self::bench(|_| {}).await;
    let mut pod = bench.send(&get(INSTANCE)).await;
    let (service, _) = bench.service.request().await;
    self::answer(service, "SSH-2.0-x\r\n").await;
    assert!(read_until(&mut pod, "}").await.starts_with("HTTP/1.1 503"));
}

#[tokio::test]
async fn a_pod_has_its_share_and_others_have_theirs() {
    let shares = Shares {
        total: Rate { every: Duration::from_secs(100), burst: 5 },
        pod: Rate { every: Duration::from_secs(100), burst: 3 },
        hold: Duration::ZERO,
        ..Shares::GENERAL
    };
    let mut bench = bench(|config| config.shares = shares).await;
    for (name, served) in [("a", true), ("a", true), ("a", true), ("a", false), ("b", true), ("b", true), ("b", false)]
    {
        bench.rules.set(allow(name, identity("id", IdentityType::ServicePrincipal)));
        let mut pod = bench.send(&get(INSTANCE)).await;
        if served {
            let (service, _) = bench.service.request().await;
            answer(service, SMALL).await;
            assert!(read_until(&mut pod, "{}").await.starts_with("HTTP/1.1 200"), "{name}");
        } else {
            // What of the share is missing, or until all have had their even part.
            let least = if name == "a" { 90 } else { 190 };
            let text = read_until(&mut pod, "}").await.to_lowercase();
            let after = text.lines().find_map(|line| line.strip_prefix("retry-after: ")?.parse::<u64>().ok());
            assert!(text.starts_with("http/1.1 429") && after.is_some_and(|after| after > least), "{text}");
        }
    }
    bench.service.untouched();
}

#[tokio::test]
async fn when_the_service_has_enough_all_pause() {
    let mut bench = bench(|config| config.shares.hold = Duration::ZERO).await;
    let mut pod = bench.send(&get(INSTANCE)).await;
    let (service, _) = bench.service.request().await;
    answer(service, "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 29\r\n\r\n{\"error\":\"Too many requests\"}")
        .await;
    let text = read_until(&mut pod, "requests\"}").await.to_lowercase();
    assert!(text.starts_with("http/1.1 429") && text.contains("\r\nretry-after: 1\r\n"), "{text}");
    bench.rules.set(allow("other", identity("id", IdentityType::ServicePrincipal)));
    let answer = bench.ask(&get(INSTANCE)).await;
    assert_eq!((answer.status, answer.error().1.as_str()), (429, "too_many_requests"));
    bench.service.untouched();
}

#[tokio::test]
async fn an_address_that_changes_hands_meanwhile_gets_nothing() {
    let mut bench = bench(|_| {}).await;
    let mut pod = bench.send(&get(INSTANCE)).await;
    let (service, _) = bench.service.request().await;
    bench.rules.set(|_: &Caller<'_>, _: &Request<'_>| Decision::Deny(Deny::AddressChangedHands));
    answer(service, SMALL).await;
    let text = read_until(&mut pod, "}").await;
    assert!(text.starts_with("HTTP/1.1 503") && !text.contains("{}"), "{text}");
}

// === Tokens of exempted pods ===

fn asked(query: &str) -> TokenRequest {
    parse(&format!("api-version=2018-02-01&resource=https://vault.azure.net&{query}")).unwrap()
}

#[tokio::test]
async fn an_exempted_pods_request_is_asked_as_it_made_it() {
    let azures = azures().await;
    let endpoint = format!("http://{}", azures.entra.imds_address().unwrap()).parse().unwrap();
    let config = PassthroughConfig { endpoint, ..PassthroughConfig::default() };
    let passthrough = Passthrough::new(config, wall_clock, Arc::new(Metrics::default()));
    for query in [String::new(), format!("client_id={MANAGED}"), format!("mi_res_id={RESOURCE_ID}")] {
        let token = passthrough.exempt_token(&pod(&query), &asked(&query)).await.unwrap();
        assert_eq!(token.client_id(), Some(MANAGED), "{query}");
    }
    for query in ["client_id=other", "object_id=other", "msi_res_id=/other"] {
        let error = passthrough.exempt_token(&pod(query), &asked(query)).await.unwrap_err();
        let TokenError::Refused(refusal) = error else { panic!("{query}: {error}") };
        assert_eq!((refusal.error.as_str(), refusal.description.as_str()), ("invalid_request", "Identity not found"));
    }
    let sent: Vec<String> = azures.entra.requests().iter().map(|request| format!("{request:?}")).collect();
    assert_eq!(sent.len(), 6);
    for (request, parameter) in
        sent[1..].iter().zip(["client_id", "msi_res_id", "client_id", "object_id", "msi_res_id"])
    {
        assert!(request.contains(parameter), "{request}");
    }
    // Its share, in the end.
    let (greedy, request) = (pod("greedy"), asked(""));
    let answers = futures::future::join_all((0..20).map(|_| passthrough.exempt_token(&greedy, &request))).await;
    let refused = answers.iter().filter(
        |answer| matches!(answer, Err(TokenError::Unavailable { retry_after, .. }) if *retry_after > Duration::ZERO),
    );
    let refused = refused.count();
    assert!(refused >= 16, "{refused}: more than may be under way");
    assert_eq!(azures.entra.requests().len(), 6 + 20 - refused);
}

/// An audit that remembers on what ground.
#[derive(Clone, Default)]
struct Grounds(Arc<Mutex<Vec<String>>>);

impl AuditSink for Grounds {
    async fn record(&self, record: &AuditRecord<'_>) -> Result<(), AuditError> {
        let name = |object: Option<&ObjectRef>| object.map_or("-".to_owned(), |object| object.name.to_string());
        let line = format!(
            "{} pod {} exception {} binding {} client {}",
            record.verdict.as_str(),
            record.pod.map_or("-", |pod| &*pod.name),
            name(record.exception),
            name(record.binding),
            record.client_id.unwrap_or("-"),
        );
        self.0.lock().unwrap().push(line);
        Ok(())
    }
}

fn exempted(name: &str) -> impl Fn(&Caller<'_>, &Request<'_>) -> Decision + Send + use<> {
    let (pod, source) = (pod(name), Source::Exception(Arc::new(support::object("agents"))));
    move |_, _| Decision::Allow(Allow { pod: Arc::clone(&pod), source: source.clone(), until: None })
}

#[tokio::test]
async fn a_token_of_the_nodes_identity_leaves_only_with_its_record_and_while_the_exception_stands() {
    let azures = azures().await;
    let endpoint = format!("http://{}", azures.entra.imds_address().unwrap()).parse().unwrap();
    let config = PassthroughConfig { endpoint, ..PassthroughConfig::default() };
    let (metrics, rules, grounds) = (Arc::new(Metrics::default()), Rules::new(exempted("agent")), Grounds::default());
    let passthrough = Arc::new(Passthrough::new(config, wall_clock, Arc::clone(&metrics)));
    let tokens = Manager::new(NoTokens, wall_clock, ManagerConfig::default(), Arc::clone(&metrics));
    let config = BrokerConfig::default();
    let (rule, audit) = (Arc::clone(&rules), grounds.clone());
    let broker = Broker::with_metadata(rule, tokens, audit, wall_clock, config, metrics, passthrough);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, shutdown) = (listener.local_addr().unwrap(), CancellationToken::new());
    let _stop = shutdown.clone().drop_guard();
    let dialled = Dialled(Arc::new(Mutex::new(metadata())));
    tokio::spawn(serve(listener, dialled, broker, ServerConfig::default(), shutdown));
    let ask = async |request: String| Client::connect(address).await.exchange(&request).await;

    let answer = ask(support::token(&format!("{}&client_id={MANAGED}", support::QUERY))).await;
    let body = answer.json();
    assert_eq!(
        (answer.status, &body["client_id"], &body["resource"]),
        (200, &MANAGED.into(), &"https://vault.azure.net".into())
    );
    for field in ["access_token", "expires_in", "expires_on", "ext_expires_in", "not_before", "token_type"] {
        assert!(body[field].is_string(), "{field}: {body}");
    }
    let refused = ask(support::token(&format!("{}&client_id=other", support::QUERY))).await;
    assert_eq!(refused.error(), (400, "invalid_request".into(), "Identity not found".into()));
    let tenant = ask(get("/metadata/identity/info?api-version=2018-02-01")).await;
    assert_eq!((tenant.status, &tenant.json()["tenantId"]), (200, &support::azures::TENANT.into()));
    // Still somebody else's request when the service has answered, but not one that is exempted.
    let asked = AtomicUsize::new(0);
    let (first, then) = (exempted("late"), allow("late", identity("id", IdentityType::ServicePrincipal)));
    rules.set(
        move |caller, request| {
            if asked.fetch_add(1, Ordering::SeqCst) == 0 { first(caller, request) } else { then(caller, request) }
        },
    );
    assert_eq!(ask(support::token(support::QUERY)).await.status, 503);
    let lines = grounds.0.lock().unwrap().clone();
    assert_eq!(lines[0], format!("issued pod agent exception agents binding - client {MANAGED}"));
    assert_eq!(lines[1], "failed pod agent exception agents binding - client -");
    assert!(lines[2..].iter().all(|line| !line.starts_with("issued")), "{lines:?}");
}
