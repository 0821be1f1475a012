//! What the journal says about a token is what Entra knows about it, and nothing that anybody could use.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]

mod support;

use std::{
    fs,
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use identity_broker::{
    Broker, BrokerConfig, Manager, ManagerConfig, Metrics, ServerConfig,
    audit::journal::{Journal, JournalConfig, verify},
    serve,
};
use serde_json::Value;
use support::{Client, azures::*, *};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn every_token_and_every_refusal_with_all_that_an_auditor_asks_for() {
    let azures = azures().await;
    azures.secrets.set("wrong", &[("clientSecret", b"wrong-secret-value")]);
    let directory = tempfile::tempdir().unwrap();
    let journal = Arc::new(Journal::open(JournalConfig::new(directory.path(), "node-1"), wall_clock).unwrap());
    let (metrics, rules) = (Arc::new(Metrics::default()), Rules::new(allow("app", azures.with_secret("secret"))));
    // What Entra may only not know yet is another matter.
    let client = azures.client_with(|config| config.rotation.propagation = Duration::ZERO);
    let tokens = Manager::new(client, wall_clock, ManagerConfig::default(), Arc::clone(&metrics));
    let config = BrokerConfig { node: "node-1".to_owned(), ..BrokerConfig::default() };
    let broker = Broker::new(Arc::clone(&rules), tokens, Arc::clone(&journal), wall_clock, config, metrics);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, shutdown) = (listener.local_addr().unwrap(), CancellationToken::new());
    let _stop = shutdown.clone().drop_guard();
    let dialled = Dialled(Arc::new(Mutex::new(metadata())));
    tokio::spawn(serve(listener, dialled, broker, ServerConfig::default(), shutdown));
    let ask = async || Client::connect(address).await.exchange(&token(QUERY)).await;

    let first = ask().await;
    let second = ask().await;
    assert_eq!((first.status, second.status), (200, 200));
    rules.set(allow("app", azures.with_secret("wrong")));
    assert_eq!(ask().await.status, 400);
    journal.close().await;

    let bytes = fs::read(directory.path().join("journal-00000001.jsonl")).unwrap();
    assert!(verify::verify([("journal", &*bytes)], verify::Options::default()).is_whole());
    let text = String::from_utf8(bytes).unwrap();
    let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let records: Vec<_> = records.into_iter().filter(|record| record["kind"] == "token").collect();
    assert_eq!(records.len(), 3);

    let access_token = first.json()["access_token"].as_str().unwrap().to_owned();
    let claims = URL_SAFE_NO_PAD.decode(access_token.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    let (issued, cached, refused) = (&records[0], &records[1], &records[2]);
    for (field, value) in [
        ("verdict", "issued"),
        ("node", "node-1"),
        ("address", "127.0.0.1"),
        ("destination", "169.254.169.254:80"),
        ("pod_namespace", "ns"),
        ("pod", "app"),
        ("pod_uid", "uid-app"),
        ("service_account", "sa"),
        ("binding", "ns/binding"),
        ("binding_uid", "uid-binding"),
        ("resource", VAULT),
        ("client_id", WITH_SECRET),
        ("source", "upstream"),
    ] {
        assert_eq!(issued[field], value, "{field}: {issued}");
    }
    assert_eq!((&issued["identity_type"], &issued["identity_generation"]), (&1.into(), &1.into()));
    assert_eq!(issued["uti"], claims["uti"], "{claims}");
    let exp = jiff::Timestamp::from_second(claims["exp"].as_i64().unwrap()).unwrap();
    let end: jiff::Timestamp = issued["token_expires_on"].as_str().unwrap().parse().unwrap();
    assert!(end.duration_since(exp).abs() <= jiff::SignedDuration::from_secs(2), "{end} {exp}");
    assert_eq!(issued["expires_on"], issued["token_expires_on"]);
    // What Entra was told, and what it said: the two ids of its sign-in log.
    assert_eq!(issued["correlation_id"].as_str().unwrap().len(), 36);
    assert_eq!(issued["upstream_request_id"].as_str().unwrap().len(), 36, "{issued}");
    assert_eq!((&cached["source"], &cached["uti"]), (&"cache".into(), &issued["uti"]));
    assert_eq!(cached["correlation_id"], issued["correlation_id"], "that of the request that got it");
    assert_eq!((&refused["verdict"], &refused["reason"]), (&"failed".into(), &"upstream_refused".into()));
    assert!(refused["detail"].as_str().unwrap().contains("AADSTS7000215"), "{refused}");

    let signature = access_token.rsplit('.').next().unwrap();
    for secret in [SECRET, "wrong-secret-value", &access_token, signature] {
        assert!(!text.contains(secret), "{secret} is in the journal");
    }
}
