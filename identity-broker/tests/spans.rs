//! A request is a span at debug level, from the first look at it to its answer, with whom it is about.

#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

mod support;

use std::{
    io,
    sync::{Arc, Mutex},
};

use identity_broker::{BrokerConfig, ServerConfig};
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
    assert_eq!(text.lines().filter(|line| line.contains("close time.busy")).count(), 2, "one span for each: {text}");
    // Nobody listens: there is none.
    let text = lines("identity_broker=info").await;
    assert!(!text.contains("request{") && !text.contains("answered"), "{text}");
}
