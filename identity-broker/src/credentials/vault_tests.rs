//! Credentials in a Key Vault, end to end against the emulators: read as another identity, rotated, wrong, gone.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::BoxFuture;
use identity_core::lookup::{CredentialSource, Identity, ObjectRef, SecretKeyRef, VaultObject, VaultRef};
use identity_crd::IdentityType;
use identity_lab::emulator::{self, Change, Config, Fault, Handle, ca, credentials};
use jiff::{SignedDuration, Timestamp};
use prometheus_client::{encoding::text::encode, registry::Registry};
use secrecy::SecretSlice;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::{Checker, Notice, RotationConfig};
use crate::{
    AuthorityHosts, Azure, Backend, Freshness, IdentitySource, Metrics, SecretData, SecretSource, SecretSourceError,
    Sources, Token, TokenError, UpstreamConfig, vault::VaultSuffixes,
};

const TENANT: &str = "11111111-1111-1111-1111-111111111111";
const READER: &str = "22222222-2222-2222-2222-222222222222";
const APPLICATION: &str = "33333333-3333-3333-3333-333333333333";
const HOST: &str = "demo.vault.azure.net";
const LONG: Duration = Duration::from_secs(20);

struct Secrets;

impl SecretSource for Secrets {
    fn get<'a>(&'a self, _: &'a str, name: &'a str) -> BoxFuture<'a, Result<SecretData, SecretSourceError>> {
        assert_eq!(name, "reader", "what is in the vault is in no Secret");
        let value = SecretSlice::from(b"readers-secret".to_vec());
        Box::pin(std::future::ready(Ok(BTreeMap::from([("clientSecret".to_owned(), value)]))))
    }
}

#[derive(Default)]
struct Identities(Mutex<HashMap<String, Arc<Identity>>>);

impl IdentitySource for Identities {
    fn get(&self, _: &str, name: &str) -> Option<Arc<Identity>> {
        self.0.lock().unwrap().get(name).cloned()
    }
}

fn now() -> Timestamp {
    #[allow(clippy::disallowed_methods, reason = "the emulator checks assertions against the wall clock")]
    Timestamp::now()
}

struct Bench {
    emulator: Handle,
    azure: Azure<fn() -> Timestamp>,
    checker: Checker<fn() -> Timestamp>,
    notices: broadcast::Receiver<Notice>,
    registry: Registry,
    shutdown: CancellationToken,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn bench(directory: Value) -> Bench {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let authority = ca::Authority::generate().unwrap();
    let server = authority.issue(ca::HOSTS).unwrap();
    let config: Config = serde_json::from_value(json!({
        "entra": {"listen": "127.0.0.1:0", "certificate": server.certificate_pem, "key": server.key_pem},
        "directory": directory,
    }))
    .unwrap();
    let shutdown = CancellationToken::new();
    let emulator = emulator::run(config, shutdown.clone()).await.unwrap();
    let port = emulator.entra_address().unwrap().port();
    let tls = rustls::ClientConfig::builder().with_root_certificates(authority.roots()).with_no_client_auth();
    let identities = Identities::default();
    let mut reader = super::testing::identity(IdentityType::ServicePrincipal);
    reader.object = ObjectRef { name: "reader".into(), uid: "2".into(), ..reader.object };
    reader.client_id = Some(READER.into());
    reader.tenant_id = Some(TENANT.into());
    reader.authority = Some(format!("https://login.microsoftonline.com:{port}/").into());
    reader.credential =
        CredentialSource::Secret(SecretKeyRef { namespace: "ns".into(), name: "reader".into(), key: None });
    identities.0.lock().unwrap().insert("reader".to_owned(), Arc::new(reader));
    let config = UpstreamConfig {
        authority_hosts: AuthorityHosts::new([format!("login.microsoftonline.com:{port}")]),
        vault_suffixes: VaultSuffixes::new([format!("vault.azure.net:{port}")]),
        rotation: RotationConfig {
            jitter: Duration::from_millis(20),
            propagation: Duration::from_millis(500),
            retry: Duration::from_millis(100),
            retry_max: Duration::from_millis(100),
            vault_poll: Duration::from_millis(200),
            pause: Duration::from_millis(50),
            ..RotationConfig::default()
        },
        ..UpstreamConfig::default()
    };
    let sources = Sources { identities: Some(Arc::new(identities)), ..Sources::from(Arc::new(Secrets)) };
    let clock: fn() -> Timestamp = now;
    let mut registry = Registry::default();
    let metrics = Arc::new(Metrics::new(&mut registry));
    let azure = Azure::new(config.clone(), tls.clone(), sources.clone(), clock, metrics);
    let checker = Checker::new(config, tls, sources, clock);
    let notices = azure.notices().unwrap();
    Bench { emulator, azure, checker, notices, registry, shutdown }
}

impl Bench {
    fn identity(&self, kind: IdentityType, object: VaultObject) -> Arc<Identity> {
        let port = self.emulator.entra_address().unwrap().port();
        let mut identity = super::testing::identity(kind);
        identity.client_id = Some(APPLICATION.into());
        identity.tenant_id = Some(TENANT.into());
        identity.authority = Some(format!("https://login.microsoftonline.com:{port}/").into());
        let url = format!("https://{HOST}:{port}/").into();
        identity.credential =
            CredentialSource::KeyVault(VaultRef { url, object, version: None, identity: "reader".into() });
        Arc::new(identity)
    }

    async fn get(&self, identity: &Arc<Identity>) -> Result<Token, TokenError> {
        self.azure.fetch(identity, "https://storage.azure.com", Freshness::Any).await
    }

    fn change(&self, change: Value) {
        self.emulator.change(&serde_json::from_value::<Change>(change).unwrap()).unwrap();
    }

    /// The value of a series, by its name and labels; 0 when there is none.
    fn metric(&self, series: &str) -> i64 {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        let series = format!("entra_pod_identity_broker_{series} ");
        text.lines().find_map(|line| line.strip_prefix(&series)).map_or(0, |value| value.parse().unwrap())
    }

    /// Readings of the vault that ended so.
    fn reads(&self, outcome: &str) -> i64 {
        self.metric(&format!("key_vault_read_duration_seconds_count{{outcome=\"{outcome}\"}}"))
    }

    /// Until that holds; tokens are got all the while.
    async fn until(&self, identity: &Arc<Identity>, holds: impl Fn(&Self) -> bool) {
        let holds = async {
            while !holds(self) {
                self.get(identity).await.expect("what is in use goes on");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(LONG, holds).await.expect("in time");
    }

    /// Until something is told; tokens are got all the while.
    async fn told(&mut self, identity: &Arc<Identity>) -> String {
        let told = async {
            loop {
                self.azure.fetch(identity, "https://storage.azure.com", Freshness::Any).await.expect("a token, always");
                if let Ok(told) = tokio::time::timeout(Duration::from_millis(10), self.notices.recv()).await {
                    let notice = told.unwrap();
                    break format!("{}: {}", notice.reason(), notice.message());
                }
            }
        };
        tokio::time::timeout(LONG, told).await.expect("told in time")
    }
}

fn directory(application: &Value, vault: &Value) -> Value {
    let mut vault = vault.clone();
    vault["host"] = HOST.into();
    vault["tenantId"] = TENANT.into();
    vault["access"] = json!([{"role": "Key Vault Secrets User", "principal": READER}, {"role": "Key Vault Certificate User", "principal": READER}]);
    let mut application = application.clone();
    application["clientId"] = APPLICATION.into();
    json!({
        "tenants": [{"id": TENANT, "applications": [
            {"clientId": READER, "secrets": [{"value": "readers-secret"}]},
            application,
        ]}],
        "vaults": [vault],
    })
}

fn secret() -> VaultObject {
    VaultObject::Secret("s".into())
}

#[tokio::test]
async fn a_secret_in_a_vault_rotates_by_itself() {
    let mut bench = bench(directory(
        &json!({"secrets": [{"value": "first"}, {"value": "second"}]}),
        &json!({"secrets": [{"name": "s", "versions": [{"value": "first"}]}]}),
    ))
    .await;
    let identity = bench.identity(IdentityType::ServicePrincipal, secret());
    bench.get(&identity).await.unwrap();
    let set = |value: &str| json!({"setSecret": {"vault": HOST, "name": "s", "version": {"value": value}}});
    bench.change(set("wrong-value"));
    let told = bench.told(&identity).await;
    assert!(told.starts_with("CredentialRefused: the new credential from Key Vault demo.vault.azure.net"), "{told}");
    assert!(told.contains("AADSTS7000215") && !told.contains("wrong-value"), "{told}");
    bench.change(set("second"));
    let told = bench.told(&identity).await;
    assert!(told.starts_with("CredentialRotated: a new credential from Key Vault"), "{told}");
    bench.change(json!({"removeSecret": {"application": APPLICATION, "value": "first"}}));
    bench.get(&identity).await.unwrap();
    let checked = bench.checker.check(&identity).await;
    assert_eq!((checked.ready, checked.reason), (Some(true), "Accepted"), "{}", checked.message);
    // The reader's token is got once, not for each reading.
    let of_reader = |request: &&emulator::Record| request.form.get("client_id").is_some_and(|id| id == READER);
    assert!(bench.emulator.requests().iter().filter(of_reader).count() <= 2);
}

#[tokio::test]
async fn when_a_version_ends_may_change_and_is_noticed() {
    let ending = |expires: Option<Timestamp>| {
        let mut version = json!({"value": "first", "version": "0123456789abcdef0123456789abcdef"});
        if let Some(expires) = expires {
            version["expires"] = expires.to_string().into();
        }
        directory(
            &json!({"secrets": [{"value": "first"}]}),
            &json!({"secrets": [{"name": "s", "versions": [version]}]}),
        )
    };
    let mut bench = bench(ending(None)).await;
    let identity = bench.identity(IdentityType::ServicePrincipal, secret());
    bench.get(&identity).await.unwrap();
    let series = r#"credential_expiry_timestamp_seconds{namespace="ns",identity="id"}"#;
    assert_eq!(bench.metric(series), 0);
    let set = |bench: &Bench, expires: Timestamp| {
        bench.emulator.set_directory(&serde_json::from_value(ending(Some(expires))).unwrap()).unwrap();
    };
    let [soon, later] = [3, 300].map(|days| {
        let second = now().checked_add(SignedDuration::from_hours(24 * days)).unwrap().as_second();
        Timestamp::from_second(second).unwrap()
    });
    set(&bench, soon);
    let told = bench.told(&identity).await;
    assert!(told.starts_with("CredentialExpiring: ") && told.contains(&format!(" ends {soon}: ")), "{told}");
    assert_eq!(bench.metric(series), soon.as_second());
    set(&bench, later);
    bench.until(&identity, |bench| bench.metric(series) == later.as_second()).await;
}

#[tokio::test]
async fn however_many_identities_a_vault_is_read_for_the_reader_gets_one_token() {
    let bench = bench(directory(
        &json!({"secrets": [{"value": "first"}]}),
        &json!({"secrets": [{"name": "s", "versions": [{"value": "first"}]}]}),
    ))
    .await;
    let identities: Vec<_> = (0..20)
        .map(|n| {
            let mut identity = Identity::clone(&bench.identity(IdentityType::ServicePrincipal, secret()));
            identity.object.name = format!("id-{n}").into();
            Arc::new(identity)
        })
        .collect();
    for got in futures::future::join_all(identities.iter().map(|identity| bench.get(identity))).await {
        got.unwrap();
    }
    let of_reader = |request: &&emulator::Record| request.form.get("client_id").is_some_and(|id| id == READER);
    assert_eq!(bench.emulator.requests().iter().filter(of_reader).count(), 1);
    assert!(bench.reads("ok") >= 20);
}

#[tokio::test]
async fn a_certificate_in_a_vault_is_read_with_its_key() {
    let (first, second) = (credentials::self_signed_rsa("one").unwrap(), credentials::self_signed_rsa("two").unwrap());
    let stranger = credentials::self_signed_rsa("stranger").unwrap();
    let version = |credential: &credentials::Credential, form: &str| json!({"certificate": credential.certificate_pem, "key": credential.key_pem, "contentType": form});
    let mut bench = bench(directory(
        &json!({"certificates": [first.certificate_pem, second.certificate_pem]}),
        &json!({"certificates": [{"name": "c", "versions": [version(&first, "application/x-pkcs12")]}]}),
    ))
    .await;
    let identity = bench.identity(IdentityType::ServicePrincipalCertificate, VaultObject::Certificate("c".into()));
    bench.get(&identity).await.unwrap();
    let set = |credential, form| json!({"setCertificate": {"vault": HOST, "name": "c", "version": version(credential, form)}});
    bench.change(set(&stranger, "application/x-pkcs12"));
    let told = bench.told(&identity).await;
    assert!(told.starts_with("CredentialRefused") && told.contains("AADSTS700027"), "{told}");
    bench.change(set(&second, "application/x-pem-file"));
    let told = bench.told(&identity).await;
    assert!(told.starts_with("CredentialRotated") && told.contains("it ends "), "{told}");
}

#[tokio::test]
async fn what_a_vault_says_is_said_and_what_is_in_use_goes_on() {
    let bench = bench(directory(
        &json!({"secrets": [{"value": "first"}]}),
        &json!({"secrets": [{"name": "s", "versions": [{"value": "first"}]}]}),
    ))
    .await;
    let identity = bench.identity(IdentityType::ServicePrincipal, secret());
    bench.get(&identity).await.unwrap();
    let absent = bench.identity(IdentityType::ServicePrincipal, VaultObject::Secret("absent".into()));
    let check = async |fault: Fault, outcome: &str, readings: i64| {
        bench.emulator.set_fault(fault, true);
        let checked = bench.checker.check(&identity).await;
        let readings = bench.reads(outcome) + readings;
        bench.until(&identity, |bench| bench.reads(outcome) >= readings).await;
        bench.emulator.set_fault(fault, false);
        checked
    };
    let checked = bench.checker.check(&absent).await;
    assert_eq!((checked.ready, checked.reason), (Some(false), "KeyVaultNotFound"), "{}", checked.message);
    assert!(checked.message.contains("it has no secret 'absent'"), "{}", checked.message);
    let checked = check(Fault::VaultForbidden, "forbidden", 2).await;
    assert_eq!((checked.ready, checked.reason), (Some(false), "KeyVaultForbidden"), "{}", checked.message);
    assert!(checked.message.contains("AzureIdentity 'reader'"), "{}", checked.message);
    let checked = check(Fault::VaultDown, "unavailable", 2).await;
    assert_eq!((checked.ready, checked.reason), (None, "KeyVaultUnavailable"), "{}", checked.message);
    let checked = check(Fault::Vault429, "throttled", 1).await;
    assert_eq!((checked.ready, checked.reason), (None, "KeyVaultThrottled"), "{}", checked.message);
    // A host that is no vault of the allowed clouds: nobody is asked anything.
    let requests = bench.emulator.requests().len();
    let mut elsewhere = Identity::clone(&identity);
    let CredentialSource::KeyVault(vault) = &mut elsewhere.credential else { panic!("in a vault") };
    vault.url = "https://demo.evil.example/".into();
    let elsewhere = Arc::new(elsewhere);
    let checked = bench.checker.check(&elsewhere).await;
    assert_eq!((checked.ready, checked.reason), (Some(false), "KeyVaultNotAllowed"), "{}", checked.message);
    assert!(matches!(bench.get(&elsewhere).await, Err(TokenError::Misconfigured { .. })));
    assert_eq!(bench.emulator.requests().len(), requests);
    assert_eq!(bench.reads("wrong"), 1, "that one, which a pod asked for");
    // Disabled, it is used no more.
    bench.change(json!({"enableVersion": {"vault": HOST, "name": "s", "enabled": false}}));
    let gone = async {
        while bench.get(&identity).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LONG, gone).await.expect("used no more");
    assert!(bench.reads("not_found") > 0);
}
