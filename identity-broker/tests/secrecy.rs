//! Nothing secret is ever logged or answered (DESIGN invariant 8), at the most talkative level.

#![allow(clippy::unwrap_used, clippy::type_complexity, reason = "helpers of tests: a failure is the test's")]

mod support;

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use identity_broker::{BrokerConfig, Manager, ManagerConfig, Metrics, ServerConfig};
use identity_lab::emulator::credentials;
use support::{azures::*, *};

/// Collects everything that is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().map_err(|_| io::Error::other("a writer panicked"))?.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn secrets_are_in_no_log_and_no_error_and_codes_are() {
    let log = Log::default();
    let writer = log.clone();
    // For the whole process: a test binary of its own.
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let azures = azures().await;
    azures.secrets.set("wrong", &[("clientSecret", b"wrong-secret-value")]);
    let p12 = credentials::pkcs12(&azures.certificate, "pkcs12-password").unwrap();
    azures.secrets.set("p12", &[("certificate", &p12), ("password", b"pkcs12-password")]);
    let rules = Rules::new(allow("p", azures.with_secret("secret")));
    let metrics = Arc::new(Metrics::default());
    let client = azures.client_with(|config| {
        config.credential_age = Duration::ZERO;
        config.rotation.jitter = Duration::ZERO;
        config.rotation.propagation = Duration::ZERO;
    });
    let cache = Manager::new(client, wall_clock, ManagerConfig::default(), Arc::clone(&metrics));
    let mut notices = cache.notices();
    let server =
        start(Arc::clone(&rules), cache, metrics, wall_clock, BrokerConfig::default(), ServerConfig::default()).await;
    let good = server.ask(&token(QUERY)).await;
    assert_eq!(good.status, 200);
    rules.set(allow("p", azures.with_certificate("p12")));
    assert_eq!(server.ask(&token(QUERY)).await.status, 200);
    rules.set(allow("p", azures.with_secret("wrong")));
    let (status, error, text) = server.ask(&token(QUERY)).await.error();
    assert_eq!((status, &*error), (400, "invalid_client"));
    assert!(text.contains("AADSTS7000215"), "{text}");
    // A new one that is wrong, in the place of one that works: tried, refused, told.
    azures.secrets.set("secret", &[("clientSecret", b"wrong-candidate-value")]);
    rules.set(allow("p", azures.with_secret("secret")));
    let refused = async {
        loop {
            let _ =
                server.ask(&token("api-version=2018-02-01&resource=https://storage.azure.com&bypass_cache=true")).await;
            if let Ok(Ok(notice)) = tokio::time::timeout(Duration::from_millis(50), notices.recv()).await
                && notice.reason() == "CredentialRefused"
            {
                break notice;
            }
        }
    };
    let notice = tokio::time::timeout(Duration::from_secs(20), refused).await.expect("told in time");
    assert!(notice.message().contains("AADSTS7000215"), "{notice:?}");
    let notice = format!("{notice:?} {}", notice.message());
    let access_token = good.json()["access_token"].as_str().unwrap().to_owned();
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("AADSTS7000215"), "the log says why");
    assert!(log.contains("token issued") && log.contains("pod_uid=\"uid-p\"") && log.contains("token failed"), "audit");
    let encoded: String = form_urlencoded::byte_serialize(SECRET.as_bytes()).collect();
    let wrong = ["wrong-secret-value", "wrong-candidate-value"];
    for secret in [SECRET, &encoded, wrong[0], wrong[1], "pkcs12-password", &access_token, "client_assertion=ey"] {
        assert!(!log.contains(secret), "{secret} in the log");
        assert!(!text.contains(secret) && !notice.contains(secret));
    }
}
