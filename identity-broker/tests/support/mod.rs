//! What the tests of the endpoint share: a broker on loopback, and a client that writes exact bytes.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, clippy::unused_self, reason = "helpers of tests: a failure is the test's")]

pub mod azures;
pub mod bench;

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use event_listener::{Event, EventListener};
use identity_broker::{
    AuditError, AuditRecord, AuditSink, Broker, BrokerConfig, Decide, LogAudit, Metrics, OriginalDestination,
    ServerConfig, Tokens, serve,
};
use identity_core::{
    lookup::{Allow, Assignment, Caller, CredentialSource, Decision, Identity, ObjectRef, Request, Source},
    pod::PodRef,
};
use identity_crd::IdentityType;
use jiff::Timestamp;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

pub const LIMIT: Duration = Duration::from_secs(20);
pub const QUERY: &str = "api-version=2018-02-01&resource=https://vault.azure.net";

/// Stands for the kernel's lookup only.
#[derive(Clone, Debug)]
pub struct Dialled(pub Arc<Mutex<SocketAddr>>);

impl OriginalDestination for Dialled {
    fn original_destination(&self, _: &TcpStream) -> io::Result<SocketAddr> {
        Ok(*self.0.lock().unwrap())
    }
}

type Rule = Box<dyn Fn(&Caller<'_>, &Request<'_>) -> Decision + Send>;

/// Decides by a rule that the test may change.
pub struct Rules {
    rule: Mutex<Rule>,
    changed: Event,
}

impl Rules {
    pub fn new(rule: impl Fn(&Caller<'_>, &Request<'_>) -> Decision + Send + 'static) -> Arc<Self> {
        Arc::new(Self { rule: Mutex::new(Box::new(rule)), changed: Event::new() })
    }

    pub fn set(&self, rule: impl Fn(&Caller<'_>, &Request<'_>) -> Decision + Send + 'static) {
        *self.rule.lock().unwrap() = Box::new(rule);
        self.changed.notify(usize::MAX);
    }

    /// Something else changed.
    pub fn notify(&self) {
        self.changed.notify(usize::MAX);
    }
}

impl Decide for Rules {
    fn decide(&self, caller: &Caller<'_>, request: &Request<'_>, _: Timestamp) -> Decision {
        (self.rule.lock().unwrap())(caller, request)
    }

    fn changed(&self) -> EventListener {
        self.changed.listen()
    }
}

/// Keeps records in words; fails when told to.
#[derive(Clone, Debug, Default)]
pub struct Records {
    pub lines: Arc<Mutex<Vec<String>>>,
    pub fail: Arc<AtomicBool>,
}

impl Records {
    pub fn all(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }
}

impl AuditSink for Records {
    async fn record(&self, record: &AuditRecord<'_>) -> Result<(), AuditError> {
        if self.fail.load(Ordering::SeqCst) {
            return Err(AuditError("disk full".into()));
        }
        let pod = record.pod.map_or("?", |pod| &*pod.name);
        let line = format!("{} {} {pod} {}", record.verdict.as_str(), record.reason.as_str(), record.resource);
        self.lines.lock().unwrap().push(line);
        // In the log as well, for whoever listens; nobody has to.
        let _ = LogAudit.record(record).await;
        Ok(())
    }
}

pub fn pod(name: &str) -> Arc<PodRef> {
    Arc::new(PodRef {
        namespace: "ns".into(),
        name: name.into(),
        uid: format!("uid-{name}").into(),
        service_account: "sa".into(),
    })
}

pub fn object(name: &str) -> ObjectRef {
    ObjectRef { namespace: "ns".into(), name: name.into(), uid: format!("uid-{name}").into(), generation: 1 }
}

pub fn identity(name: &str, kind: IdentityType) -> Identity {
    Identity {
        object: object(name),
        kind,
        client_id: Some("22222222-2222-2222-2222-222222222222".into()),
        object_id: None,
        resource_id: None,
        tenant_id: Some("11111111-1111-1111-1111-111111111111".into()),
        authority: None,
        credential: CredentialSource::None,
        audiences: Box::default(),
    }
}

pub fn assignment(pod: &PodRef, identity: Identity) -> Arc<Assignment> {
    Arc::new(Assignment {
        object: object("assigned"),
        pod_uid: Arc::clone(&pod.uid),
        binding: object("binding"),
        weight: 0,
        binding_audiences: Box::default(),
        identity: Arc::new(identity),
        ready: true,
        gate: None,
        granted: None,
    })
}

pub fn allow(pod_name: &str, identity: Identity) -> impl Fn(&Caller<'_>, &Request<'_>) -> Decision + Send + use<> {
    let pod = pod(pod_name);
    let assignment = assignment(&pod, identity);
    move |_, _| {
        Decision::Allow(Allow {
            pod: Arc::clone(&pod),
            source: Source::Assignment(Arc::clone(&assignment)),
            until: None,
        })
    }
}

pub fn metadata() -> SocketAddr {
    "169.254.169.254:80".parse().unwrap()
}

/// A running broker.
pub struct Server {
    pub address: SocketAddr,
    pub dialled: Dialled,
    pub records: Records,
    pub metrics: Arc<Metrics>,
    pub rules: Arc<Rules>,
    pub shutdown: CancellationToken,
    pub done: tokio::task::JoinHandle<()>,
}

pub async fn start<T: Tokens>(
    rules: Arc<Rules>,
    tokens: T,
    metrics: Arc<Metrics>,
    clock: impl Fn() -> Timestamp + Send + Sync + 'static,
    config: BrokerConfig,
    server: ServerConfig,
) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let dialled = Dialled(Arc::new(Mutex::new(metadata())));
    let records = Records::default();
    let broker = Broker::new(Arc::clone(&rules), tokens, records.clone(), clock, config, Arc::clone(&metrics));
    let shutdown = CancellationToken::new();
    let done = tokio::spawn(serve(listener, dialled.clone(), broker, server, shutdown.clone()));
    Server { address, dialled, records, metrics, rules, shutdown, done }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    pub fn error(&self) -> (u16, String, String) {
        assert_eq!(self.headers["content-type"], "application/json; charset=utf-8", "{self:?}");
        assert!(self.headers["server"].contains("IMDS"));
        let text = |key: &str| self.json()[key].as_str().unwrap_or_default().to_owned();
        (self.status, text("error"), text("error_description"))
    }
}

/// A connection that is kept.
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.unwrap(), buffer: Vec::new() }
    }

    /// From another address of loopback: another pod.
    pub async fn connect_from(from: [u8; 4], address: SocketAddr) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((IpAddr::from(from), 0).into()).unwrap();
        Self { stream: socket.connect(address).await.unwrap(), buffer: Vec::new() }
    }

    pub async fn send(&mut self, bytes: &str) {
        self.stream.write_all(bytes.as_bytes()).await.unwrap();
    }

    /// Sends what the other side is willing to read.
    pub async fn send_anyway(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }

    /// The next answer, `None` when the connection ends without one.
    pub async fn read(&mut self) -> Option<Answer> {
        tokio::time::timeout(LIMIT, self.read_unbounded()).await.expect("an answer in time")
    }

    /// The next answer; without a body if it is to a HEAD.
    pub async fn read_head(&mut self, without_body: bool) -> Answer {
        let answer = tokio::time::timeout(LIMIT, self.read_some(without_body)).await.expect("an answer in time");
        answer.expect("an answer")
    }

    async fn read_unbounded(&mut self) -> Option<Answer> {
        self.read_some(false).await
    }

    async fn read_some(&mut self, without_body: bool) -> Option<Answer> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8(self.buffer[..end].to_vec()).unwrap();
                let mut lines = head.lines();
                let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
                let headers: HashMap<_, _> = lines
                    .map(|line| line.split_once(':').unwrap())
                    .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
                    .collect();
                let length = headers.get("content-length").map_or(0, |value| value.parse::<usize>().unwrap());
                let length = if without_body { 0 } else { length };
                if self.buffer.len() >= end + 4 + length {
                    let body = String::from_utf8(self.buffer[end + 4..end + 4 + length].to_vec()).unwrap();
                    self.buffer.drain(..end + 4 + length);
                    return Some(Answer { status, headers, body });
                }
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk).await {
                Ok(0) | Err(_) => return None,
                Ok(read) => self.buffer.extend_from_slice(&chunk[..read]),
            }
        }
    }

    pub async fn exchange(&mut self, bytes: &str) -> Answer {
        self.send(bytes).await;
        self.read().await.expect("an answer")
    }

    /// Whether the other side has closed.
    pub async fn closed(&mut self) -> bool {
        self.read().await.is_none()
    }
}

pub fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n\r\n")
}

pub fn token(query: &str) -> String {
    get(&format!("/metadata/identity/oauth2/token?{query}"))
}

impl Server {
    pub async fn ask(&self, bytes: &str) -> Answer {
        Client::connect(self.address).await.exchange(bytes).await
    }

    pub fn peer(&self) -> IpAddr {
        [127, 0, 0, 1].into()
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(LIMIT, self.done).await.expect("stops in time").unwrap();
    }
}
