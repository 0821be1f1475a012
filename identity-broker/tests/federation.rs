//! Federated identities against an emulator of Entra that trusts an issuer's keys; and identities that change what backs them.

#![allow(clippy::unwrap_used, clippy::type_complexity, reason = "helpers of tests: a failure is the test's")]

mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use identity_broker::{
    AuthorityHosts, Azure, Freshness, Manager, ManagerConfig, Metrics, RotationConfig, Sources, TokenError, Tokens,
    UpstreamConfig,
    federated::{Assertion, AssertionError, AssertionSource},
    tokens::RefusalKind,
};
use identity_core::{
    lookup::{CredentialSource, FederatedSubject, Federation, Identity},
    pod::PodRef,
};
use identity_crd::IdentityType;
use identity_lab::emulator::Change;
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use serde_json::json;
use support::azures::*;

const ISSUER: &str = "https://oidc.example";
const NODE: &str = "system:serviceaccount:entra-pod-identity:node";
const AUDIENCE: &str = "api://AzureADTokenExchange";

/// A cluster that makes tokens.
struct Cluster {
    key: EncodingKey,
    made: AtomicUsize,
    subject: Mutex<String>,
}

impl Cluster {
    fn token(&self, subject: &str, audience: &str) -> Result<Assertion, AssertionError> {
        let (now, serial) = (wall_clock().as_second(), self.made.fetch_add(1, Ordering::SeqCst));
        let claims = json!({"iss": ISSUER, "sub": subject, "aud": [audience], "iat": now, "nbf": now, "exp": now + 3600, "jti": serial.to_string()});
        let mut header = Header::new(Algorithm::RS256);
        header.kid = Some("k".to_owned());
        Assertion::read(jsonwebtoken::encode(&header, &claims, &self.key).unwrap().into(), "the cluster's token")
    }
}

impl AssertionSource for Cluster {
    fn broker<'a>(&'a self, audience: &'a str) -> BoxFuture<'a, Result<Assertion, AssertionError>> {
        Box::pin(async move { self.token(&self.subject.lock().unwrap().clone(), audience) })
    }

    fn pod<'a>(&'a self, pod: &'a PodRef, audience: &'a str) -> BoxFuture<'a, Result<Assertion, AssertionError>> {
        let subject = format!("system:serviceaccount:{}:{}", pod.namespace, pod.service_account);
        Box::pin(async move { self.token(&subject, audience) })
    }
}

struct Bench {
    azures: Azures,
    cluster: Arc<Cluster>,
    manager: Manager<Client, fn() -> Timestamp>,
}

async fn bench(propagation: Duration) -> Bench {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let key = EncodingKey::from_rsa_pem(key.serialize_pem().as_bytes()).unwrap();
    let mut jwk = Jwk::from_encoding_key(&key, Algorithm::RS256).unwrap();
    jwk.common.key_id = Some("k".to_owned());
    let azures = azures_trusting(&json!([{"issuer": ISSUER, "jwks": {"keys": [jwk]}}])).await;
    let cluster = Arc::new(Cluster { key, made: AtomicUsize::new(0), subject: Mutex::new(NODE.to_owned()) });
    let port = azures.entra.entra_address().unwrap().port();
    let config = UpstreamConfig {
        metadata_endpoint: format!("http://{}", azures.entra.imds_address().unwrap()).parse().unwrap(),
        authority_hosts: AuthorityHosts::new([format!("localhost:{port}")]),
        rotation: RotationConfig { propagation, ..RotationConfig::default() },
        ..UpstreamConfig::default()
    };
    let assertions = Some(Arc::clone(&cluster) as Arc<dyn AssertionSource>);
    let sources = Sources { assertions, ..Sources::from(Arc::new(azures.secrets.clone())) };
    let clock: fn() -> Timestamp = wall_clock;
    let azure = Azure::new(config, azures.tls.clone(), sources, clock, Arc::new(Metrics::default()));
    let manager = Manager::new(azure, clock, ManagerConfig::default(), Arc::default());
    Bench { azures, cluster, manager }
}

impl Bench {
    fn trust(&self, subject: &str) {
        let credential = json!({"issuer": ISSUER, "subject": subject, "audience": AUDIENCE});
        let change = json!({"addFederatedCredential": {"application": WITH_SECRET, "credential": credential}});
        self.azures.entra.change(&serde_json::from_value::<Change>(change).unwrap()).unwrap();
    }

    fn identity(&self, subject: FederatedSubject, pod: Option<(&str, &str)>) -> Arc<Identity> {
        let mut identity = self.azures.with_secret("none");
        identity.kind = IdentityType::WorkloadIdentityFederation;
        let pod = pod.map(|(name, account)| {
            let (name, service_account): (Arc<str>, Arc<str>) = (name.into(), account.into());
            Arc::new(PodRef { namespace: "ns".into(), uid: name.clone(), name, service_account })
        });
        identity.credential = CredentialSource::Federated(Federation { subject, audience: AUDIENCE.into(), pod });
        Arc::new(identity)
    }

    async fn get(&self, identity: &Arc<Identity>, resource: &str) -> Result<String, TokenError> {
        let token = self.manager.get(identity, resource, Freshness::Any).await?;
        Ok(read(&token).0["appid"].as_str().unwrap().to_owned())
    }
}

#[tokio::test]
async fn the_nodes_token_proves_any_number_of_pods() {
    let bench = bench(Duration::ZERO).await;
    bench.trust(NODE);
    let identity = bench.identity(FederatedSubject::Broker, None);
    assert_eq!(bench.get(&identity, VAULT).await.unwrap(), WITH_SECRET);
    // The file has another token meanwhile: it is read at each use, and what there is stays good.
    assert_eq!(bench.get(&identity, "https://storage.azure.com").await.unwrap(), WITH_SECRET);
    assert_eq!(bench.get(&identity, VAULT).await.unwrap(), WITH_SECRET);
    assert_eq!((bench.cluster.made.load(Ordering::SeqCst), bench.azures.posts()), (2, 2));
}

#[tokio::test]
async fn what_entra_may_not_know_yet_is_temporary_for_a_while() {
    let bench = bench(Duration::from_secs(1)).await;
    let identity = bench.identity(FederatedSubject::Broker, None);
    let error = bench.get(&identity, VAULT).await.unwrap_err();
    let TokenError::Unavailable { message, retry_after } = &error else { panic!("{error:?}") };
    assert!(
        message.contains(NODE) && message.contains(ISSUER) && message.contains("federated-credential create"),
        "{message}"
    );
    assert!(message.contains("AADSTS7002"), "{message}");
    assert!(*retry_after > Duration::from_secs(10));
    // After that it is a refusal. (For another resource each time: what was told of one is told again for a while.)
    let refused = async {
        for n in 0.. {
            match bench.get(&identity, &format!("https://storage-{n}.example")).await.unwrap_err() {
                TokenError::Refused(refusal) => return refusal,
                TokenError::Unavailable { .. } => tokio::time::sleep(Duration::from_millis(20)).await,
                error @ TokenError::Misconfigured { .. } => panic!("{error:?}"),
            }
        }
        unreachable!("there is no end of numbers")
    };
    let refusal = tokio::time::timeout(Duration::from_secs(20), refused).await.expect("final in time");
    assert_eq!(refusal.error, RefusalKind::InvalidClient);
    assert!(refusal.description.contains(NODE), "{}", refusal.description);
    // And none once it is known.
    bench.trust(NODE);
    assert_eq!(bench.get(&identity, "https://graph.microsoft.com").await.unwrap(), WITH_SECRET);
}

#[tokio::test]
async fn a_pods_own_token_proves_that_pod_alone() {
    let bench = bench(Duration::ZERO).await;
    bench.trust("system:serviceaccount:ns:trusted");
    let trusted = bench.identity(FederatedSubject::Pod, Some(("one", "trusted")));
    let other = bench.identity(FederatedSubject::Pod, Some(("two", "other")));
    assert_eq!(bench.get(&trusted, VAULT).await.unwrap(), WITH_SECRET);
    // What was got for one pod is not another's.
    assert!(matches!(bench.get(&other, VAULT).await, Err(TokenError::Refused(_))));
    let nobody = bench.identity(FederatedSubject::Pod, None);
    assert!(bench.get(&nobody, VAULT).await.is_err());
    // More pods than an identity may have audiences.
    for n in 0..80 {
        let pod = bench.identity(FederatedSubject::Pod, Some((&format!("pod-{n}"), "trusted")));
        bench.get(&pod, VAULT).await.unwrap();
    }
    let posts = bench.azures.posts();
    bench.get(&trusted, VAULT).await.unwrap();
    assert_eq!(bench.azures.posts(), posts, "still at hand");
}

#[tokio::test]
async fn an_identity_changes_what_backs_it_and_the_next_token_is_from_there() {
    let bench = bench(Duration::ZERO).await;
    bench.trust(NODE);
    // One object all the while.
    let object = managed().object;
    let of = |mut identity: Identity| {
        identity.object = object.clone();
        Arc::new(identity)
    };
    let client_id = async |identity: Identity| bench.get(&of(identity), VAULT).await.unwrap();
    assert_eq!(client_id(managed()).await, MANAGED);
    assert_eq!(client_id(bench.azures.with_secret("secret")).await, WITH_SECRET);
    let pem = format!("{}{}", bench.azures.certificate.certificate_pem, bench.azures.certificate.key_pem);
    bench.azures.secrets.set("pem", &[("certificate", pem.as_bytes())]);
    assert_eq!(client_id(bench.azures.with_certificate("pem")).await, WITH_CERTIFICATE);
    let federated = Identity::clone(&bench.identity(FederatedSubject::Broker, None));
    assert_eq!(client_id(federated).await, WITH_SECRET);
    assert_eq!(client_id(managed()).await, MANAGED);
}
