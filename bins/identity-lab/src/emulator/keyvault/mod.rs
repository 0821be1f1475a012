//! Key Vault: reading secrets and certificates, with the challenge that begins every conversation
//! (<https://learn.microsoft.com/rest/api/keyvault/>).
//!
//! Every name that is not read here, listing and writing above all, is answered `501`. A vault that the directory does not have
//! is not answered at all: in Azure its name does not resolve.

mod access;
mod error;
mod known;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use serde_json::{Value, json};
use uuid::Uuid;

pub(super) use self::known::KnownVault;
use self::{
    error::Refusal,
    known::{Found, KnownCertificate, KnownVersion},
};
use super::{
    Shared, behind_faults,
    config::KeyVaultConfig,
    credentials::{self, Credential},
    directory::Known,
    fault::ServiceName,
    http::{Call, Reply, Stack, service},
    vaults::KeyFormat,
};

/// How vaults' hosts end in each cloud, and the authority of that cloud.
const CLOUDS: [(&str, &str); 3] = [
    ("vault.azure.net", "login.microsoftonline.com"),
    ("vault.usgovcloudapi.net", "login.microsoftonline.us"),
    ("vault.azure.cn", "login.partner.microsoftonline.cn"),
];
/// Versions of the protocol before they became dates.
const NUMBERED: [&str; 8] = ["7.0", "7.1", "7.2", "7.3", "7.4", "7.5", "7.6", "2016-10-01"];

/// The service's state.
#[derive(Debug)]
struct KeyVault {
    config: KeyVaultConfig,
    shared: Arc<Shared>,
    bundles: Mutex<Bundles>,
}

/// PKCS#12 files of certificates, by certificate and key: encryption is random, and a version's value stays as it is.
type Bundles = HashMap<(Vec<u8>, Vec<u8>), String>;

/// Whether a host (without port, in lower case) is a vault's: one of the directory's, or one that ends as vaults do.
pub(super) fn is_vault(known: &Known, host: &str) -> bool {
    known.vaults.contains_key(host)
        || CLOUDS.iter().any(|(suffix, _)| host.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.')))
}

/// The service behind its faults.
pub(super) fn stack(config: KeyVaultConfig, shared: &Arc<Shared>) -> Stack {
    let retry_after = HeaderValue::from(config.retry_after_seconds);
    let vault = Arc::new(KeyVault { config, shared: Arc::clone(shared), bundles: Mutex::default() });
    let said = Arc::clone(&vault);
    let answer = service(move |call: Call| {
        let vault = Arc::clone(&vault);
        async move {
            if vault.config.latency_ms > 0 {
                tokio::time::sleep(Duration::from_millis(vault.config.latency_ms)).await;
            }
            dressed(vault.answer(&call).unwrap_or_else(|refusal| refusal.reply()))
        }
    });
    let saying = move |status, call: &Call| {
        let known = said.shared.known();
        let vault = known.vaults.get(&call.host_name());
        dressed(match (status, vault) {
            (429, _) => Refusal::throttled().reply().with_header(header::RETRY_AFTER, retry_after.clone()),
            // Also a vault that refuses everybody asks who it is first.
            (403, Some(vault)) => match access::authenticate(vault, &said.shared.signer, call) {
                Ok(caller) => Refusal::forbidden(vault, &caller, "secrets/getSecret/action", &call.path).reply(),
                Err(refusal) => refusal.reply(),
            },
            _ => Refusal::unavailable().reply(),
        })
    };
    behind_faults(answer, ServiceName::KeyVault, shared, Arc::new(saying))
}

impl KeyVault {
    fn answer(&self, call: &Call) -> Result<Reply, Refusal> {
        let host = call.host_name();
        let known = self.shared.known();
        let vault = known.vaults.get(&host).ok_or(Refusal::NoVault(host))?;
        let caller = access::authenticate(vault, &self.shared.signer, call)?;
        api_version(call)?;
        let segments: Vec<&str> = call.path.split('/').skip(1).collect();
        let (kind, name, version) = match (&call.method, segments.as_slice()) {
            (
                &Method::GET,
                [kind @ ("secrets" | "certificates"), name] | [kind @ ("secrets" | "certificates"), name, ""],
            ) if !name.is_empty() => (*kind, *name, None),
            (&Method::GET, [kind @ ("secrets" | "certificates"), name, version])
                if !name.is_empty() && !matches!(*version, "versions" | "pending" | "policy") =>
            {
                (*kind, *name, Some(*version))
            }
            (method, _) => return Err(Refusal::NotEmulated(format!("{method} {}", call.path))),
        };
        let action = if kind == "secrets" { "secrets/getSecret/action" } else { "certificates/read" };
        access::authorise(vault, &caller, action, &call.path)?;
        let base = format!("https://{}", call.host);
        if kind == "certificates" {
            let (name, found) =
                vault.certificate(name, version).ok_or_else(|| Refusal::not_found(kind, name, version))?;
            return Ok(Reply::json(StatusCode::OK, &certificate_bundle(&base, name, found)));
        }
        let (name, found) = vault.secret(name, version).ok_or_else(|| Refusal::not_found(kind, name, version))?;
        let version = found.version();
        if !version.enabled {
            return Err(Refusal::disabled());
        }
        let mut bundle = json!({
            "id": format!("{base}/secrets/{name}/{}", version.version),
            "attributes": attributes(version),
        });
        match found {
            Found::Secret(secret) => {
                bundle["value"] = Value::from(secret.value.expose());
                if let Some(kind) = &secret.content_type {
                    bundle["contentType"] = Value::from(kind.as_str());
                }
            }
            Found::Certificate(certificate) => {
                bundle["value"] = Value::from(self.private_key(certificate)?);
                bundle["contentType"] = Value::from(certificate.format.name());
                bundle["kid"] = Value::from(format!("{base}/keys/{name}/{}", version.version));
                bundle["managed"] = Value::from(true);
            }
        }
        Ok(Reply::json(StatusCode::OK, &bundle))
    }

    /// A certificate's private key as the secret of its name has it.
    fn private_key(&self, certificate: &KnownCertificate) -> Result<String, Refusal> {
        let Credential { certificate_pem, key_pem, certificate_der, key_der } = &certificate.credential;
        if certificate.format == KeyFormat::Pem {
            return Ok(format!("{key_pem}{certificate_pem}"));
        }
        let mut bundles = self.bundles.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (certificate_der.clone(), key_der.clone());
        if let Some(bundle) = bundles.get(&key) {
            return Ok(bundle.clone());
        }
        let bundle = credentials::pkcs12(&certificate.credential, "")
            .map_err(|error| Refusal::NotEmulated(format!("PKCS#12 of this certificate: {error}")))?;
        let bundle = STANDARD.encode(bundle);
        bundles.insert(key, bundle.clone());
        Ok(bundle)
    }
}

/// The version of the protocol. Which ones the service takes is not published as a list, so any date is taken from the first on.
fn api_version(call: &Call) -> Result<(), Refusal> {
    let version = call.query.get("api-version").ok_or_else(Refusal::no_api_version)?;
    let date = version.strip_suffix("-preview").unwrap_or(version);
    if NUMBERED.contains(&version) || (date.parse::<jiff::civil::Date>().is_ok() && date >= "2016-10-01") {
        return Ok(());
    }
    Err(Refusal::api_version(version))
}

fn attributes(version: &KnownVersion) -> Value {
    let mut attributes = json!({
        "enabled": version.enabled,
        "created": version.created,
        "updated": version.created,
        "recoveryLevel": "Recoverable+Purgeable",
        "recoverableDays": 90,
    });
    if let Some(expires) = version.expires {
        attributes["exp"] = Value::from(expires);
    }
    if let Some(not_before) = version.not_before {
        attributes["nbf"] = Value::from(not_before);
    }
    attributes
}

fn certificate_bundle(base: &str, name: &str, found: &KnownCertificate) -> Value {
    let version = &found.version.version;
    json!({
        "id": format!("{base}/certificates/{name}/{version}"),
        "kid": format!("{base}/keys/{name}/{version}"),
        "sid": format!("{base}/secrets/{name}/{version}"),
        "x5t": found.thumbprint,
        "cer": STANDARD.encode(&found.credential.certificate_der),
        "attributes": attributes(&found.version),
        "policy": {
            "id": format!("{base}/certificates/{name}/policy"),
            "key_props": {"exportable": true, "reuse_key": false},
            "secret_props": {"contentType": found.format.name()},
            "issuer": {"name": "Unknown"},
        },
    })
}

/// With the headers of every answer.
fn dressed(reply: Reply) -> Reply {
    let request_id = HeaderValue::try_from(Uuid::new_v4().to_string()).unwrap_or_else(|_| HeaderValue::from_static(""));
    reply
        .with_header(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"))
        .with_header(header::PRAGMA, HeaderValue::from_static("no-cache"))
        .with_header(HeaderName::from_static("x-ms-keyvault-region"), HeaderValue::from_static("westeurope"))
        .with_header(HeaderName::from_static("x-ms-request-id"), request_id)
}
