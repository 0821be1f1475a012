//! `/healthz`, `/readyz` and `/metrics`, and nothing else: a small server that answers from memory. Probes are answered in
//! JSON, one object in a line, which people can read as well.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::Pulse;

/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS: usize = 32;
/// For the head of a request, and the longest a connection may take in all.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where probes and metrics are served; by default on these two ports of the loopback.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(next_help_heading = "Probes and metrics")]
pub struct ProbeArgs<const PROBE: u16, const METRICS: u16> {
    /// Address of /healthz and /readyz
    #[arg(
        long, value_name = "ADDRESS", default_value_t = loopback(PROBE), env = "ENTRA_POD_IDENTITY_PROBE_ADDRESS"
    )]
    probe_address: SocketAddr,

    /// Address of /metrics
    #[arg(
        long, value_name = "ADDRESS", default_value_t = loopback(METRICS), env = "ENTRA_POD_IDENTITY_METRICS_ADDRESS"
    )]
    metrics_address: SocketAddr,

    /// Export some metrics under the names of the archived predecessor as well (aadpodidentity_…)
    #[arg(long, env = "ENTRA_POD_IDENTITY_COMPAT_METRICS")]
    pub compat_metrics: bool,
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

impl<const PROBE: u16, const METRICS: u16> ProbeArgs<PROBE, METRICS> {
    /// Listens there: see [`Probes::listen`].
    pub async fn listen(
        self,
        probes: Probes,
        shutdown: CancellationToken,
    ) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + Send + 'static> {
        probes.listen(self.probe_address, self.metrics_address, shutdown).await
    }
}

/// What a daemon that is not ready waits for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Missing {
    /// In a word, for programs.
    pub what: &'static str,
    /// For people.
    pub message: String,
}

impl Missing {
    /// That.
    pub fn new(what: &'static str, message: impl Into<String>) -> Self {
        Self { what, message: message.into() }
    }
}

#[derive(serde::Serialize)]
struct Ready {
    ready: bool,
    waiting_for: Vec<Missing>,
}

#[derive(serde::Serialize)]
struct Healthy {
    healthy: bool,
    stuck: Vec<Stuck>,
}

#[derive(serde::Serialize)]
struct Stuck {
    part: &'static str,
    seconds: u64,
}

/// What is asked.
#[derive(Clone)]
pub struct Probes {
    /// Not yet ready because…
    pub ready: Arc<dyn Fn() -> Vec<Missing> + Send + Sync>,
    /// Which parts are stuck. The probes themselves are answered by the runtime that runs the parts: when that is stuck
    /// altogether there is no answer at all.
    pub pulse: Pulse,
    /// What is counted.
    pub registry: Arc<Registry>,
}

impl std::fmt::Debug for Probes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Probes")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Serve {
    Probes,
    Metrics,
}

impl Probes {
    /// Listens for probes and for metrics and serves both until `shutdown`. One listener serves both when the addresses
    /// are the same.
    pub async fn listen(
        self,
        probes: SocketAddr,
        metrics: SocketAddr,
        shutdown: CancellationToken,
    ) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + Send + 'static> {
        let same = probes == metrics && probes.port() != 0;
        let first = bind("--probe-address", probes, "probes").await?;
        let second = if same { None } else { Some(bind("--metrics-address", metrics, "metrics").await?) };
        let all: &'static [Serve] = &[Serve::Probes, Serve::Metrics];
        Ok(async move {
            let one = serve(first, if same { all } else { &all[..1] }, self.clone(), shutdown.clone());
            match second {
                None => one.await,
                Some(listener) => {
                    tokio::join!(one, serve(listener, &all[1..], self.clone(), shutdown.clone()));
                }
            }
            Ok(())
        })
    }

    fn answer(&self, serves: &[Serve], method: &Method, path: &str) -> Response<Full<Bytes>> {
        const TEXT: &str = "text/plain; charset=utf-8";
        let (status, kind, body) = match path {
            "/healthz" | "/readyz" | "/metrics" if method != Method::GET && method != Method::HEAD => {
                (StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n".to_owned())
            }
            "/healthz" if serves.contains(&Serve::Probes) => {
                let stuck = self.pulse.stuck().into_iter();
                let stuck: Vec<_> = stuck.map(|(part, busy)| Stuck { part, seconds: busy.as_secs() }).collect();
                probed(stuck.is_empty(), &Healthy { healthy: stuck.is_empty(), stuck })
            }
            "/readyz" if serves.contains(&Serve::Probes) => {
                let waiting_for = (self.ready)();
                probed(waiting_for.is_empty(), &Ready { ready: waiting_for.is_empty(), waiting_for })
            }
            "/metrics" if serves.contains(&Serve::Metrics) => {
                let mut text = String::new();
                match encode(&mut text, &self.registry) {
                    Ok(()) => (StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text),
                    Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
                }
            }
            _ => {
                let known = serves.iter().map(|serve| match serve {
                    Serve::Probes => "/healthz, /readyz",
                    Serve::Metrics => "/metrics",
                });
                (StatusCode::NOT_FOUND, TEXT, format!("here: {}\n", known.collect::<Vec<_>>().join(", ")))
            }
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
        response
    }
}

fn probed(well: bool, answer: &impl serde::Serialize) -> (StatusCode, &'static str, String) {
    let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::to_string(answer).unwrap_or_else(|error| format!("\"{error}\""));
    (status, "application/json", body + "\n")
}

async fn bind(flag: &str, address: SocketAddr, what: &str) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("{flag} {address}"))?;
    let address = listener.local_addr().with_context(|| format!("{flag} {address}"))?;
    info!(%address, "{what}");
    Ok(listener)
}

async fn serve(listener: TcpListener, serves: &'static [Serve], probes: Probes, shutdown: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let work = async {
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, or the peer has gone: neither may make it spin.
                    debug!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            };
            let probes = probes.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let answer = probes.answer(serves, request.method(), request.uri().path());
                    async move { Ok::<_, Infallible>(answer) }
                });
                let mut http = http1::Builder::new();
                http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
                let connection = http.serve_connection(TokioIo::new(stream), service);
                // Probes come again: a connection that lives long is no use to anybody.
                if let Ok(Err(error)) = tokio::time::timeout(6 * PATIENCE, connection).await {
                    debug!(%error, "a probe's connection");
                }
                drop(place);
            });
        }
    };
    shutdown.run_until_cancelled(work).await;
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::*;

    fn probes(missing: &'static [&'static str]) -> Probes {
        let mut registry = Registry::default();
        let counter: Counter = Counter::default();
        registry.register("things", "Things", counter.clone());
        counter.inc();
        let ready = Arc::new(move || missing.iter().map(|&why| Missing::new("it", why)).collect());
        Probes { ready, pulse: Pulse::default(), registry: Arc::new(registry) }
    }

    #[test]
    fn each_listener_serves_its_own() {
        let both = &[Serve::Probes, Serve::Metrics];
        let ask =
            |probes: &Probes, serves: &[Serve], path: &str| probes.answer(serves, &Method::GET, path).status().as_u16();
        let (ready, not) = (probes(&[]), probes(&["the rules are not installed"]));
        for (serves, path, expected) in [
            (&both[..1], "/healthz", 200),
            (&both[..1], "/readyz", 200),
            (&both[..1], "/metrics", 404),
            (&both[1..], "/metrics", 200),
            (&both[1..], "/healthz", 404),
            (&both[..], "/metrics", 200),
            (&both[..], "/", 404),
            (&both[..], "/debug/pprof", 404),
            (&both[..], "/debug/pprof/profile", 404),
            (&both[..], "/debug/vars", 404),
            (&both[..], "/metrics/", 404),
        ] {
            assert_eq!(ask(&ready, serves, path), expected, "{path}");
        }
        assert_eq!(ask(&not, both, "/readyz"), 503);
        assert_eq!(ask(&not, both, "/healthz"), 200);
        assert_eq!(ready.answer(both, &Method::POST, "/readyz").status(), 405);
    }

    #[tokio::test]
    async fn probes_say_in_json_what_is_waited_for_and_what_is_stuck() {
        async fn read(probes: &Probes, path: &str) -> String {
            let body = probes.answer(&[Serve::Probes], &Method::GET, path).into_body();
            String::from_utf8(http_body_util::BodyExt::collect(body).await.unwrap().to_bytes().to_vec()).unwrap()
        }
        let (ready, not) = (probes(&[]), probes(&["no \"rules\"", "no pods"]));
        assert_eq!(read(&ready, "/readyz").await, "{\"ready\":true,\"waiting_for\":[]}\n");
        let expected = "{\"ready\":false,\"waiting_for\":[{\"what\":\"it\",\"message\":\"no \\\"rules\\\"\"},\
                        {\"what\":\"it\",\"message\":\"no pods\"}]}\n";
        assert_eq!(read(&not, "/readyz").await, expected);
        assert_eq!(read(&not, "/healthz").await, "{\"healthy\":true,\"stuck\":[]}\n");

        tokio::time::pause();
        let stuck = probes(&[]);
        let pulse = stuck.pulse.clone();
        tokio::spawn(async move { pulse.ask("the part", std::future::pending).await });
        tokio::time::sleep(Duration::from_secs(40)).await;
        assert_eq!(stuck.answer(&[Serve::Probes], &Method::GET, "/healthz").status(), 503);
        assert_eq!(
            read(&stuck, "/healthz").await,
            "{\"healthy\":false,\"stuck\":[{\"part\":\"the part\",\"seconds\":40}]}\n"
        );
    }

    #[test]
    fn nothing_is_served_beyond_the_loopback_unless_configured() {
        use clap::{Args as _, FromArgMatches as _};
        let parse = |flags: &[&str]| {
            let command = ProbeArgs::<8085, 9090>::augment_args(clap::Command::new("daemon"));
            let matches = command.try_get_matches_from([&["daemon"], flags].concat()).unwrap();
            ProbeArgs::<8085, 9090>::from_arg_matches(&matches).unwrap()
        };
        let default = parse(&[]);
        assert!(default.probe_address.ip().is_loopback() && default.metrics_address.ip().is_loopback());
        assert_eq!((default.probe_address.port(), default.metrics_address.port()), (8085, 9090));
        let configured = parse(&["--metrics-address", "10.0.0.1:9"]);
        assert!(configured.probe_address.ip().is_loopback() && !configured.metrics_address.ip().is_loopback());
    }

    #[tokio::test]
    async fn answers_over_a_connection_and_stops() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve(listener, &[Serve::Metrics], probes(&[]), shutdown.clone()));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 200") && text.contains("things_total 1"), "{text}");
        shutdown.cancel();
        server.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }
}
