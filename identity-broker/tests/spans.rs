//! A request is a span at debug level, from the first look at it to its answer, with whom it is about; at trace level each
//! of its steps is a line.

#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

mod support;

use std::{
    io,
    sync::{Arc, Mutex},
};

use identity_broker::{BrokerConfig, ServerConfig};
use identity_core::lookup::{Decision, Wait};
use support::{bench::*, *};
use tracing_subscriber::{EnvFilter, fmt, fmt::format::FmtSpan};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn lines(level: &str) -> String {
    let lines = Lines::default();
    let to = lines.clone();
    let subscriber = fmt()
        .with_env_filter(EnvFilter::new(level))
        .with_span_events(FmtSpan::CLOSE)
        .with_ansi(false)
        .with_writer(move || to.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let rules = Rules::new(allow("p", identity("i", KIND)));
    let bench = bench_with(rules, BrokerConfig::default(), ServerConfig::default()).await;
    bench.upstream.gate.add_permits(1);
    let mut client = Client::connect(bench.server.address).await;
    assert_eq!(client.exchange(&token(QUERY)).await.status, 200);
    assert_eq!(client.exchange(&get("/metadata/identity/oauth2/token")).await.status, 400);
    drop(client);
    bench.server.stop().await;
    drop(guard);
    let text = lines.0.lock().unwrap().clone();
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn a_request_is_a_span_with_its_pod_and_binding() {
    let text = lines("identity_broker=debug").await;
    let answered: Vec<_> = text.lines().filter(|line| line.ends_with("answered")).collect();
    let [token, refused] = answered[..] else { panic!("{text}") };
    for expected in [
        "request{peer=127.0.0.1:",
        "namespace=\"ns\"",
        "pod=\"p\"",
        "binding=\"binding\"",
        "identity=\"i\"",
        "status=200",
    ] {
        assert!(token.contains(expected), "{expected}: {token}");
    }
    assert!(refused.contains("status=400") && !refused.contains("pod="), "{refused}");
    assert_eq!(
        text.lines().filter(|line| line.contains("layers: close time.busy")).count(),
        2,
        "one span for each: {text}"
    );
    // Nobody listens: there is none.
    let text = lines("identity_broker=info").await;
    assert!(!text.contains("request{") && !text.contains("answered"), "{text}");
}

/// From the connection to the answer, in order; and nothing of what is given.
#[tokio::test]
async fn a_request_can_be_followed_at_trace_level() {
    let text = lines("identity_broker=trace").await;
    let mut rest = text.lines();
    for step in [
        "server: accepted peer=127.0.0.1:",
        "layers: asked route=\"/metadata/identity/oauth2/token\"",
        "broker: decided decision=\"allow\"",
        "token: the token has to be got",
        ":token:fetch{identity_namespace=\"ns\" identity=\"i\" wanted=\"now\"}: ",
        "broker: decided decision=\"allow\"",
        "token: there is a token source=\"upstream\"",
        "broker: recorded written=true",
        "broker: decided decision=\"allow\"",
        "status=200",
        "server: closed peer=127.0.0.1:",
    ] {
        assert!(rest.any(|line| line.contains(step)), "{step}: {text}");
    }
    assert!(!text.contains("very-secret-token"), "{text}");
}

/// What it waited for, and for what in vain.
#[tokio::test]
async fn a_request_that_is_held_says_so() {
    let lines = Lines::default();
    let to = lines.clone();
    let subscriber =
        fmt().with_env_filter(EnvFilter::new("identity_broker=trace")).with_ansi(false).with_writer(move || to.clone());
    let guard = tracing::subscriber::set_default(subscriber.finish());
    let rules = Rules::new(|_, _| Decision::Wait(Wait::Assignment(pod("p"))));
    let config = BrokerConfig { hold: std::time::Duration::from_millis(50), ..BrokerConfig::default() };
    let bench = bench_with(rules, config, ServerConfig::default()).await;
    let mut client = Client::connect(bench.server.address).await;
    assert_eq!(client.exchange(&token(QUERY)).await.status, 503);
    drop(client);
    bench.server.stop().await;
    drop(guard);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let mut rest = text.lines();
    for step in [
        "broker: decided decision=\"wait\"",
        ":hold{waiting_for=\"assignment\"}: identity_broker::endpoint::broker: held",
        ":hold{waiting_for=\"assignment\"}: identity_broker::endpoint::broker: looking again in_time=false",
        "pod=\"p\" pod_uid=\"uid-p\" reason=\"not_assigned_yet\" status=503}: ",
    ] {
        assert!(rest.any(|line| line.contains(step)), "{step}: {text}");
    }
}
