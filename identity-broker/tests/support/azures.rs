//! Emulators of Entra and IMDS, and clients of them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures::future::BoxFuture;
use identity_broker::{
    AuthorityHosts, Azure, Backend, Freshness, Metrics, SecretData, SecretSource, SecretSourceError, Shape, Token,
    TokenError, UpstreamConfig,
};
use identity_core::lookup::{CredentialSource, Identity, SecretKeyRef};
use identity_crd::IdentityType;
use identity_lab::emulator::{self, Config, Handle, ca, credentials};
use jiff::Timestamp;
use secrecy::SecretSlice;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::identity;

pub const TENANT: &str = "11111111-1111-1111-1111-111111111111";
pub const WITH_SECRET: &str = "22222222-2222-2222-2222-222222222222";
pub const WITH_CERTIFICATE: &str = "33333333-3333-3333-3333-333333333333";
pub const MANAGED: &str = "44444444-4444-4444-4444-444444444444";
pub const RESOURCE_ID: &str = "/subscriptions/55555555-5555-5555-5555-555555555555/resourceGroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/demo";
pub const SECRET: &str = "s3cr3t~value+with/odd&chars=";
pub const VAULT: &str = "https://vault.azure.net";

#[derive(Clone, Default)]
pub struct Secrets(pub Arc<Mutex<BTreeMap<String, Entries>>>);

type Entries = BTreeMap<String, Vec<u8>>;

impl Secrets {
    pub fn set(&self, name: &str, entries: &[(&str, &[u8])]) {
        let entries = entries.iter().map(|(key, value)| ((*key).to_owned(), value.to_vec())).collect();
        self.0.lock().unwrap().insert(name.to_owned(), entries);
    }
}

impl SecretSource for Secrets {
    fn get<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<SecretData, SecretSourceError>> {
        assert_eq!(namespace, "ns");
        let found = self.0.lock().unwrap().get(name).cloned();
        Box::pin(async move {
            let entries = found.ok_or(SecretSourceError::NotFound)?;
            Ok(entries.into_iter().map(|(key, value)| (key, SecretSlice::from(value))).collect())
        })
    }
}

pub struct Azures {
    pub entra: Handle,
    pub certificate: credentials::Credential,
    pub secrets: Secrets,
    pub tls: rustls::ClientConfig,
    pub shutdown: CancellationToken,
}

impl Drop for Azures {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

pub async fn azures() -> Azures {
    azures_with(&json!([{"resourceId": RESOURCE_ID, "clientId": MANAGED, "tenantId": TENANT}])).await
}

/// With other managed identities on the virtual machine.
pub async fn azures_with(managed: &Value) -> Azures {
    azures_of(managed, 3600).await
}

/// With tokens of Entra that live for so many seconds.
pub async fn azures_living(seconds: u32) -> Azures {
    azures_of(&json!([]), seconds).await
}

/// With issuers whose tokens Entra trusts.
pub async fn azures_trusting(issuers: &Value) -> Azures {
    let managed = json!([{"resourceId": RESOURCE_ID, "clientId": MANAGED, "tenantId": TENANT}]);
    azures_with_issuers(&managed, 3600, issuers).await
}

async fn azures_of(managed: &Value, entra_lifetime: u32) -> Azures {
    azures_with_issuers(managed, entra_lifetime, &json!([])).await
}

async fn azures_with_issuers(managed: &Value, entra_lifetime: u32, issuers: &Value) -> Azures {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let authority = ca::Authority::generate().unwrap();
    let server = authority.issue(&["localhost"]).unwrap();
    let certificate = credentials::self_signed_rsa("demo").unwrap();
    let config: Config = serde_json::from_value(json!({
        "entra": {"listen": "127.0.0.1:0", "certificate": server.certificate_pem, "key": server.key_pem, "retryAfterSeconds": 7,
                  "tokenLifetimeSeconds": entra_lifetime},
        "imds": {"listen": "127.0.0.1:0"},
        "directory": {
            "tenants": [{"id": TENANT, "domains": ["contoso.onmicrosoft.com"], "applications": [
                {"clientId": WITH_SECRET, "secrets": [{"value": SECRET}]},
                {"clientId": WITH_CERTIFICATE, "certificates": [certificate.certificate_pem]},
            ]}],
            "managedIdentities": managed,
            "issuers": issuers,
            "unknownResources": ["https://nowhere.example"],
        },
    }))
    .unwrap();
    let shutdown = CancellationToken::new();
    let entra = emulator::run(config, shutdown.clone()).await.unwrap();
    let tls = rustls::ClientConfig::builder().with_root_certificates(authority.roots()).with_no_client_auth();
    let secrets = Secrets::default();
    secrets.set("secret", &[("clientSecret", SECRET.as_bytes())]);
    Azures { entra, certificate, secrets, tls, shutdown }
}

pub type Client = Azure<fn() -> Timestamp>;

impl Azures {
    pub fn authority(&self) -> String {
        format!("https://localhost:{}/", self.entra.entra_address().unwrap().port())
    }

    pub fn client(&self) -> Client {
        self.client_with(|_| {})
    }

    pub fn client_with(&self, change: impl FnOnce(&mut UpstreamConfig)) -> Client {
        let port = self.entra.entra_address().unwrap().port();
        let mut config = UpstreamConfig {
            metadata_endpoint: format!("http://{}", self.entra.imds_address().unwrap()).parse().unwrap(),
            authority_hosts: AuthorityHosts::new([format!("localhost:{port}")]),
            ..UpstreamConfig::default()
        };
        change(&mut config);
        let clock: fn() -> Timestamp = wall_clock;
        Azure::new(config, self.tls.clone(), Arc::new(self.secrets.clone()), clock, Arc::new(Metrics::default()))
    }

    pub fn with_secret(&self, secret: &str) -> Identity {
        let mut identity = identity("with-secret", IdentityType::ServicePrincipal);
        identity.client_id = Some(WITH_SECRET.into());
        identity.authority = Some(self.authority().into());
        identity.credential =
            CredentialSource::Secret(SecretKeyRef { namespace: "ns".into(), name: secret.into(), key: None });
        identity
    }

    pub fn with_certificate(&self, secret: &str) -> Identity {
        let mut identity = self.with_secret(secret);
        identity.kind = IdentityType::ServicePrincipalCertificate;
        identity.client_id = Some(WITH_CERTIFICATE.into());
        identity
    }

    pub fn posts(&self) -> usize {
        self.entra.requests().iter().filter(|request| request.method == "POST").count()
    }
}

#[allow(clippy::disallowed_methods, reason = "the emulator checks assertions against the wall clock")]
pub fn wall_clock() -> Timestamp {
    Timestamp::now()
}

pub fn managed() -> Identity {
    let mut identity = identity("managed", IdentityType::UserAssignedManagedIdentity);
    identity.client_id = Some(MANAGED.into());
    identity.resource_id = Some(RESOURCE_ID.into());
    identity
}

pub async fn fetch(client: &Client, identity: Identity, resource: &str) -> Result<Token, TokenError> {
    client.fetch(&Arc::new(identity), resource, Freshness::Any).await
}

/// The token's claims, and what the endpoint would answer.
pub fn read(token: &Token) -> (Value, Value) {
    let now = wall_clock();
    let body: Value = serde_json::from_slice(&token.render(token.expires_on(), now, Shape::Imds)).unwrap();
    let payload = body["access_token"].as_str().unwrap().split('.').nth(1).unwrap();
    (serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap(), body)
}
