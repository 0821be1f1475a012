//! Reads one object.

use std::{fmt, sync::Arc, time::Duration};

use azure_core::{
    http::{ClientOptions, RetryOptions, Transport, UserAgentOptions},
    time::OffsetDateTime,
};
use azure_security_keyvault_certificates::{
    CertificateClient, CertificateClientOptions, models::CertificateClientGetCertificateOptions,
};
use azure_security_keyvault_secrets::{SecretClient, SecretClientOptions, models::SecretClientGetSecretOptions};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use identity_core::lookup::{VaultObject, VaultRef};
use jiff::Timestamp;
use secrecy::{SecretSlice, SecretString};
use tokio::{sync::mpsc, time::timeout};

use super::{
    Error, MOST, VaultSuffixes,
    answer::Reading,
    guard::{Asking, Exchange, Guard},
    suffixes::Vault,
};
use crate::{shown::shown, tokens::TokenError, upstream::http::Clients};

/// How often one reading is tried, when the vault is only away.
const ATTEMPTS: u32 = 2;
/// The longest that a reading takes, tokens included.
const TOTAL: Duration = Duration::from_secs(30);
/// What PKCS#12 files are marked with.
const PKCS12: &str = "application/x-pkcs12";

/// What a vault holds under a name: a secret, or a certificate with its private key.
pub struct Bundle {
    /// The version that was read, also when the current one was asked for.
    pub version: String,
    /// The value: a client secret, a PEM text, or the bytes of a PKCS#12 file (which a vault keeps in base64).
    pub value: SecretSlice<u8>,
    /// `contentType`, as whoever put it there wrote it: `application/x-pkcs12`, `application/x-pem-file`, anything.
    pub content_type: Option<String>,
    /// `exp`. A hint of whoever put it there: vaults hand out what has ended.
    pub expires_on: Option<Timestamp>,
    host: String,
    object: String,
}

impl Bundle {
    /// Where it is from: "Key Vault demo.vault.azure.net, secret 'name', version …".
    pub fn origin(&self) -> String {
        format!("Key Vault {}, {}, version {}", self.host, self.object, self.version)
    }
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bundle")
            .field("origin", &self.origin())
            .field("value", &"[redacted]")
            .field("content_type", &self.content_type)
            .field("expires_on", &self.expires_on)
            .finish_non_exhaustive()
    }
}

/// Reads Key Vaults.
#[derive(Clone)]
pub struct Reader {
    exchange: Arc<dyn Exchange>,
    suffixes: VaultSuffixes,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("suffixes", &self.suffixes).finish_non_exhaustive()
    }
}

impl Reader {
    /// `tls` says whom to trust; its crypto provider is the caller's. `request_timeout` is for each request.
    pub fn new(tls: rustls::ClientConfig, request_timeout: Duration, suffixes: VaultSuffixes) -> Self {
        Self::over(Clients::new(tls, request_timeout), suffixes)
    }

    /// With connections shared with other upstreams.
    pub(crate) fn over(clients: Clients, suffixes: VaultSuffixes) -> Self {
        Self::with(Arc::new(clients), suffixes)
    }

    pub(super) fn with(exchange: Arc<dyn Exchange>, suffixes: VaultSuffixes) -> Self {
        Self { exchange, suffixes }
    }

    /// What is wrong with `reference` before anything is sent: its URL, a host that is not allowed, a name.
    pub fn check(&self, reference: &VaultRef) -> Result<(), Error> {
        self.suffixes.vault(&reference.url)?;
        check_names(reference)
    }

    /// Reads what `reference` names, with a token from `token`: it is given the resource that tokens of this cloud's vaults
    /// are for, and is called at most once for each object that is looked at (a certificate is two).
    ///
    /// Bounded in time (30 s, tokens included) and in size; tried twice when the vault is only away.
    pub async fn read<F, T>(&self, reference: &VaultRef, token: F) -> Result<Bundle, Error>
    where
        F: Fn(String) -> T + Sync,
        T: Future<Output = Result<SecretString, TokenError>> + Send,
    {
        let vault = self.suffixes.vault(&reference.url)?;
        check_names(reference)?;
        let host = vault.host.clone();
        let all = async {
            let mut attempt = 1;
            loop {
                let error = match self.attempt(&vault, reference, &token).await {
                    Ok(bundle) => return Ok(bundle),
                    Err(error) => error,
                };
                let only_away = matches!(error, Error::Unavailable { retry_after: None, .. });
                if attempt >= ATTEMPTS || !only_away {
                    return Err(error);
                }
                attempt += 1;
                tokio::time::sleep(Duration::from_millis(200).mul_f64(0.5 + rand::random::<f64>())).await;
            }
        };
        timeout(TOTAL, all).await.unwrap_or_else(|_| {
            let reason = format!("no answer within {} s", TOTAL.as_secs());
            Err(Error::Unavailable { host, reason, retry_after: None })
        })
    }

    async fn attempt<F, T>(&self, vault: &Vault, reference: &VaultRef, token: &F) -> Result<Bundle, Error>
    where
        F: Fn(String) -> T + Sync,
        T: Future<Output = Result<SecretString, TokenError>> + Send,
    {
        let (asks, mut asked) = mpsc::channel(1);
        let session = Session { exchange: &self.exchange, vault, reference, asks };
        let reading = session.read();
        tokio::pin!(reading);
        loop {
            tokio::select! {
                biased;
                read = &mut reading => return read,
                Some(answer) = asked.recv() => match token(vault.resource.clone()).await {
                    // Nobody there any more: then the reading says why.
                    Ok(token) => drop(answer.send(token)),
                    Err(error) => {
                        return Err(Error::NoToken {
                            host: vault.host.clone(),
                            reader: reference.identity.to_string(),
                            resource: vault.resource.clone(),
                            error: Box::new(error),
                        });
                    }
                },
            }
        }
    }
}

/// One attempt.
struct Session<'a> {
    exchange: &'a Arc<dyn Exchange>,
    vault: &'a Vault,
    reference: &'a VaultRef,
    asks: mpsc::Sender<super::guard::Asked>,
}

impl Session<'_> {
    async fn read(self) -> Result<Bundle, Error> {
        let version = self.reference.version.as_deref();
        match &self.reference.object {
            VaultObject::Secret(name) => self.secret("secret", name, version).await,
            VaultObject::Certificate(name) => {
                // Which secret is its key: that of the same version, whatever is renewed in between.
                let version = self.certificate(name, version).await?;
                self.secret("certificate", name, Some(&version)).await
            }
        }
    }

    fn guard(&self, kind: &str, name: &str, version: Option<&str>) -> Arc<Guard> {
        let version = version.map(|version| format!(", version {version}")).unwrap_or_default();
        let reading = Reading {
            host: self.vault.host.clone(),
            object: format!("{kind} '{name}'{version}"),
            reader: self.reference.identity.to_string(),
            certificate: matches!(self.reference.object, VaultObject::Certificate(_)),
        };
        Arc::new(Guard::new(Arc::clone(self.exchange), self.vault.clone(), reading))
    }

    fn asking(&self) -> Arc<Asking> {
        Arc::new(Asking::new(&self.vault.resource, self.asks.clone()))
    }

    /// The version of a certificate whose key can be read.
    async fn certificate(&self, name: &str, version: Option<&str>) -> Result<String, Error> {
        let guard = self.guard("certificate", name, self.reference.version.as_deref());
        let options = CertificateClientOptions { client_options: options(&guard), ..Default::default() };
        let client =
            CertificateClient::new(&self.vault.endpoint, self.asking(), Some(options)).map_err(|_| unusable(&guard))?;
        let method = CertificateClientGetCertificateOptions {
            certificate_version: version.map(str::to_owned),
            ..Default::default()
        };
        let answer = client.get_certificate(name, Some(method)).await.map_err(|_| unusable(&guard))?;
        let found = answer.into_model().map_err(|_| malformed(&guard, "it is no certificate of Key Vault's"))?;
        let Reading { host, object, .. } = guard.reading().clone();
        if found.attributes.as_ref().and_then(|attributes| attributes.enabled) == Some(false) {
            return Err(Error::Disabled { host, object });
        }
        let policy = found.policy.as_ref().and_then(|policy| policy.key_properties.as_ref());
        if policy.and_then(|key| key.exportable) == Some(false) {
            return Err(Error::NotExportable { host, object });
        }
        let Some(secret) = found.sid.as_deref() else { return Err(Error::NotIssued { host, object }) };
        version_of(secret, "secrets", name).ok_or_else(|| malformed(&guard, "`sid` is no secret of that name"))
    }

    async fn secret(&self, kind: &str, name: &str, version: Option<&str>) -> Result<Bundle, Error> {
        let guard = self.guard(kind, name, self.reference.version.as_deref());
        let options = SecretClientOptions { client_options: options(&guard), ..Default::default() };
        let client =
            SecretClient::new(&self.vault.endpoint, self.asking(), Some(options)).map_err(|_| unusable(&guard))?;
        let method = SecretClientGetSecretOptions { secret_version: version.map(str::to_owned), ..Default::default() };
        let answer = client.get_secret(name, Some(method)).await.map_err(|_| unusable(&guard))?;
        // What a parser says may hold a piece of what it read.
        let found = answer.into_model().map_err(|_| malformed(&guard, "it is no secret of Key Vault's"))?;
        let Reading { host, object, .. } = guard.reading().clone();
        let attributes = found.attributes.unwrap_or_default();
        if attributes.enabled == Some(false) {
            return Err(Error::Disabled { host, object });
        }
        let read = found.id.as_deref().and_then(|id| version_of(id, "secrets", name));
        let read = read.filter(|read| version.is_none_or(|version| version.eq_ignore_ascii_case(read)));
        let version = read.ok_or_else(|| malformed(&guard, "`id` is not what was asked for"))?;
        let value = found.value.ok_or_else(|| malformed(&guard, "there is no `value`"))?;
        let content_type = found.content_type.map(|text| shown(&text, MOST)).filter(|text| !text.is_empty());
        let is_pkcs12 = content_type.as_deref().is_some_and(|text| text.trim().eq_ignore_ascii_case(PKCS12));
        let value = if is_pkcs12 {
            let bytes = STANDARD.decode(value.trim());
            bytes.map_err(|_| malformed(&guard, "its content type is application/x-pkcs12, its value is not base64"))?
        } else {
            value.into_bytes()
        };
        Ok(Bundle {
            version,
            value: value.into(),
            content_type,
            expires_on: attributes.expires.and_then(timestamp),
            host,
            // The version is in a field of its own.
            object: format!("{kind} '{name}'"),
        })
    }
}

/// Of theirs, only the requests themselves: retries, timeouts, connections are ours.
fn options(guard: &Arc<Guard>) -> ClientOptions {
    let guard: Arc<Guard> = Arc::clone(guard);
    ClientOptions {
        retry: RetryOptions::none(),
        transport: Some(Transport::new(guard)),
        user_agent: UserAgentOptions { application_id: Some("entra-pod-identity".to_owned()) },
        ..Default::default()
    }
}

/// Why a client failed: the guard knows, or else nobody.
fn unusable(guard: &Guard) -> Error {
    guard.fault().unwrap_or_else(|| malformed(guard, "the client cannot use it"))
}

fn malformed(guard: &Guard, reason: &str) -> Error {
    Error::Malformed { host: guard.reading().host.clone(), reason: reason.to_owned() }
}

fn timestamp(time: OffsetDateTime) -> Option<Timestamp> {
    Timestamp::from_second(time.unix_timestamp()).ok()
}

/// The version in the identifier of an object, when it is one of that kind and name.
fn version_of(id: &str, kind: &str, name: &str) -> Option<String> {
    let (_, path) = id.strip_prefix("https://")?.split_once('/')?;
    let mut parts = path.trim_end_matches('/').split('/');
    let ours = parts.next()? == kind && parts.next()?.eq_ignore_ascii_case(name);
    let version = parts.next().filter(|version| is_version(version))?;
    (ours && parts.next().is_none()).then(|| version.to_owned())
}

fn is_version(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// They become part of a path.
fn check_names(reference: &VaultRef) -> Result<(), Error> {
    let (field, name) = match &reference.object {
        VaultObject::Secret(name) => ("secretName", name),
        VaultObject::Certificate(name) => ("certificateName", name),
    };
    if !(1..=127).contains(&name.len()) || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        let rule = "is no name of a Key Vault's object: 1 to 127 letters, digits and hyphens make one";
        return Err(Error::Name { field, value: shown(name, 100), rule });
    }
    match reference.version.as_deref() {
        Some(version) if !is_version(version) => {
            let rule = "is no version of a Key Vault's object: it has letters and digits only (32, as a rule); leave it out to follow \
                        the current one";
            Err(Error::Name { field: "version", value: shown(version, 100), rule })
        }
        _ => Ok(()),
    }
}
