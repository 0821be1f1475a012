//! Rotation against an emulator of Entra over real TLS: no request fails, and what is wrong never serves a token.

#![allow(clippy::unwrap_used, clippy::type_complexity, reason = "helpers of tests: a failure is the test's")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use identity_broker::{
    AuthorityHosts, Azure, Freshness, Manager, ManagerConfig, Metrics, Notice, RotationConfig, SecretData,
    SecretSource, SecretSourceError, TokenError, Tokens, UpstreamConfig,
};
use identity_core::lookup::Identity;
use identity_lab::emulator::{Change, credentials};
use jiff::Timestamp;
use serde_json::json;
use support::azures::*;
use tokio::{
    sync::{broadcast, watch},
    time::timeout,
};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(20);

/// Secrets that are followed.
struct Followed {
    secrets: Secrets,
    changes: watch::Sender<u64>,
}

impl SecretSource for Followed {
    fn get<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<SecretData, SecretSourceError>> {
        self.secrets.get(namespace, name)
    }

    fn follow(&self, _: &str, _: &str) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

struct Bench {
    azures: Azures,
    secrets: Arc<Followed>,
    manager: Manager<Client, fn() -> Timestamp>,
    notices: broadcast::Receiver<Notice>,
}

async fn bench() -> Bench {
    let azures = azures().await;
    let secrets = Arc::new(Followed { secrets: azures.secrets.clone(), changes: watch::channel(0).0 });
    let port = azures.entra.entra_address().unwrap().port();
    let rotation = RotationConfig {
        jitter: Duration::from_millis(50),
        propagation: Duration::from_secs(2),
        retry: Duration::from_millis(100),
        retry_max: Duration::from_millis(200),
        ..RotationConfig::default()
    };
    let config = UpstreamConfig {
        authority_hosts: AuthorityHosts::new([format!("localhost:{port}")]),
        rotation,
        ..UpstreamConfig::default()
    };
    let clock: fn() -> Timestamp = wall_clock;
    let azure = Azure::new(config, azures.tls.clone(), Arc::clone(&secrets), clock, Arc::new(Metrics::default()));
    // Tokens of a former credential are replaced at once.
    let config = ManagerConfig { superseded: Duration::from_secs(1), ..ManagerConfig::default() };
    let manager = Manager::new(azure, clock, config, Arc::default());
    let notices = manager.notices();
    Bench { azures, secrets, manager, notices }
}

impl Bench {
    fn put(&self, entries: &[(&str, &[u8])]) {
        self.secrets.secrets.set("rotating", entries);
        self.secrets.changes.send_modify(|count| *count += 1);
    }

    fn entra(&self, change: serde_json::Value) {
        let change: Change = serde_json::from_value(change).unwrap();
        self.azures.entra.change(&change).unwrap();
    }

    async fn told(&mut self) -> (&'static str, String) {
        let notice = timeout(LONG, self.notices.recv()).await.expect("told in time").unwrap();
        (notice.reason(), notice.message())
    }

    /// Requests for tokens that Entra refused, from the `first` request on, by its codes.
    fn refused(&self, first: usize) -> BTreeMap<String, usize> {
        let mut refused = BTreeMap::new();
        for request in self.azures.entra.requests().into_iter().skip(first).filter(|request| request.method == "POST") {
            if request.status != 200 {
                *refused.entry(request.error_code.unwrap_or_default()).or_default() += 1;
            }
        }
        refused
    }

    /// Pods that ask all the while, past every cache and not.
    fn pods(&self, identity: Identity) -> Pods {
        let identity = Arc::new(identity);
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let served = Arc::new(Mutex::new(BTreeSet::new()));
        let pods = (0..8).map(|pod| {
            let (manager, identity) = (self.manager.clone(), Arc::clone(&identity));
            let (stop, asked, served) = (Arc::clone(&stop), Arc::clone(&asked), Arc::clone(&served));
            tokio::spawn(async move {
                let mut failed: Vec<TokenError> = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let freshness = if pod == 0 { Freshness::Upstream } else { Freshness::Any };
                    let got = manager.get_for(&format!("pod-{pod}"), &identity, VAULT, freshness).await;
                    asked.fetch_add(1, Ordering::SeqCst);
                    match got {
                        Ok(token) => drop(served.lock().unwrap().insert(token.credential())),
                        Err(error) => failed.push(error),
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                failed
            })
        });
        let tasks = pods.collect();
        Pods { stop, asked, served, tasks }
    }
}

struct Pods {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    /// Versions of the credentials that tokens were got with.
    served: Arc<Mutex<BTreeSet<u64>>>,
    tasks: Vec<tokio::task::JoinHandle<Vec<TokenError>>>,
}

impl Pods {
    /// Waits until they have asked so often again.
    async fn ask(&self, often: usize) {
        let until = self.asked.load(Ordering::SeqCst) + often;
        let asked = async {
            while self.asked.load(Ordering::SeqCst) < until {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LONG, asked).await.expect("pods are answered");
    }

    /// The versions of the credentials whose tokens were served.
    async fn end(self) -> BTreeSet<u64> {
        self.stop.store(true, Ordering::SeqCst);
        for pod in self.tasks {
            let failed = pod.await.unwrap();
            assert!(failed.is_empty(), "{} failed: {:?}", failed.len(), failed.first());
        }
        std::mem::take(&mut self.served.lock().unwrap())
    }
}

#[tokio::test]
async fn secrets_rotate_and_nobody_notices() {
    let mut bench = bench().await;
    bench.put(&[("clientSecret", SECRET.as_bytes())]);
    let pods = bench.pods(bench.azures.with_secret("rotating"));
    pods.ask(100).await;
    // A wrong one, which Entra will never know. Whatever is refused until it gives way was asked with it: the other works.
    assert_eq!(bench.refused(0), BTreeMap::new());
    let first = bench.azures.entra.requests().len();
    bench.put(&[("clientSecret", b"never-known")]);
    let (reason, message) = bench.told().await;
    assert_eq!(reason, "CredentialRefused");
    assert!(message.contains("AADSTS7000215") && message.contains("the former one stays in use"), "{message}");
    assert!(!message.contains("never-known"));
    pods.ask(100).await;
    let wrong = bench.refused(first);
    assert_eq!(wrong.keys().map(String::as_str).collect::<Vec<_>>(), ["7000215"]);
    // Tried for two seconds every 75 ms at most, by nobody but who tries it.
    let wrong = wrong["7000215"];
    assert!((3..=30).contains(&wrong), "{wrong} requests with the wrong secret");
    assert_eq!(pods.served.lock().unwrap().len(), 1, "and none of them served a token");
    // Two rounds, each with one that takes its time to reach all of Entra, and then is the only one.
    let mut former = SECRET.to_owned();
    for round in 1..=2 {
        let next = format!("s3cr3t-of-round-{round}");
        bench.entra(json!({"addSecret": {"application": WITH_SECRET, "value": next, "propagationSeconds": 1}}));
        bench.put(&[("clientSecret", next.as_bytes())]);
        let (reason, message) = bench.told().await;
        assert_eq!(reason, "CredentialRotated", "{message}");
        bench.entra(json!({"removeSecret": {"application": WITH_SECRET, "value": former}}));
        former = next;
        pods.ask(200).await;
        // What is not usable.
        bench.put(&[("clientSecret", b"")]);
        let (reason, message) = bench.told().await;
        assert!(reason == "CredentialRefused" && message.contains("key 'clientSecret' is empty"), "{message}");
        pods.ask(100).await;
        bench.put(&[("clientSecret", former.as_bytes())]);
    }
    // Every token that was served was got with one of the three that are right, whatever was there besides.
    assert_eq!(pods.end().await.len(), 3);
    // What else was refused are those two while Entra did not know them yet.
    let refused = bench.refused(first);
    assert!(refused.len() == 1 && refused["7000215"] <= wrong + 2 * 15, "{refused:?} of which {wrong} were wrong");
}

#[tokio::test]
async fn certificates_rotate_and_nobody_notices() {
    let mut bench = bench().await;
    let first = credentials::pkcs12(&bench.azures.certificate, "pass").unwrap();
    bench.put(&[("certificate", &first), ("password", b"pass")]);
    let pods = bench.pods(bench.azures.with_certificate("rotating"));
    pods.ask(50).await;
    let mut former = bench.azures.certificate.certificate_pem.clone();
    for (round, password) in [(1, "one"), (2, "two")] {
        // A wrong one: nobody registered it.
        let stranger = credentials::self_signed_rsa("stranger").unwrap();
        bench.put(&[
            ("certificate", &credentials::pkcs12(&stranger, password).unwrap()),
            ("password", password.as_bytes()),
        ]);
        let (reason, message) = bench.told().await;
        assert!(reason == "CredentialRefused" && message.contains("AADSTS700027"), "{message}");
        pods.ask(50).await;
        // A good one.
        let next = credentials::self_signed_rsa(&format!("round {round}")).unwrap();
        bench.entra(json!({"addCertificate": {"application": WITH_CERTIFICATE, "certificate": next.certificate_pem, "propagationSeconds": 1}}));
        bench
            .put(&[("certificate", &credentials::pkcs12(&next, password).unwrap()), ("password", password.as_bytes())]);
        let (reason, message) = bench.told().await;
        assert!(reason == "CredentialRotated" && message.contains("it ends "), "{message}");
        bench.entra(json!({"removeCertificate": {"application": WITH_CERTIFICATE, "certificate": former}}));
        former = next.certificate_pem;
        pods.ask(50).await;
    }
    assert_eq!(pods.end().await.len(), 3, "the two strangers' served none");
}

#[tokio::test]
async fn a_secret_that_entra_takes_no_longer_is_replaced_by_the_one_that_waits() {
    let mut bench = bench().await;
    bench.put(&[("clientSecret", SECRET.as_bytes())]);
    let identity = Arc::new(bench.azures.with_secret("rotating"));
    bench.manager.get(&identity, VAULT, Freshness::Any).await.unwrap();
    // Changed at both ends at once: whoever asks next is not told anything about it.
    bench.entra(json!({"addSecret": {"application": WITH_SECRET, "value": "the next"}}));
    bench.entra(json!({"removeSecret": {"application": WITH_SECRET, "value": SECRET}}));
    bench.put(&[("clientSecret", b"the next")]);
    bench.manager.get(&identity, "https://storage.azure.com", Freshness::Upstream).await.unwrap();
    assert_eq!(bench.told().await.0, "CredentialRotated");
}
