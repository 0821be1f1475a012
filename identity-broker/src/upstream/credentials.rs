//! Credentials read and parsed once, kept for a minute, read again when Entra refuses them.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use identity_core::lookup::{Identity, SecretKeyRef};
use identity_crd::IdentityType;
use secrecy::ExposeSecret;
use tokio::time::Instant;

use super::credential::{self, Credential};
use crate::{
    digest,
    secrets::{SecretData, SecretSource, SecretSourceError},
    tokens::TokenError,
};

/// The most credentials kept.
const CAPACITY: usize = 1024;
/// The longest that a Secret is waited for.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A credential and the version of the Secret it is from.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    pub credential: Credential,
    /// Digest of the Secret's data; never 0.
    pub version: u64,
    at: Instant,
}

type Key = (SecretKeyRef, i32);
type Place = Arc<tokio::sync::Mutex<Option<Loaded>>>;

/// All credentials in use.
pub(crate) struct Credentials {
    source: Arc<dyn SecretSource>,
    fresh_for: Duration,
    places: Mutex<HashMap<Key, Place>>,
    /// Versions by Secret, readable without a lock.
    versions: ArcSwap<HashMap<SecretKeyRef, u64>>,
}

impl Credentials {
    pub(crate) fn new(source: Arc<dyn SecretSource>, fresh_for: Duration) -> Self {
        Self { source, fresh_for, places: Mutex::default(), versions: ArcSwap::default() }
    }

    /// The version last read of the Secret, 0 when none.
    pub(crate) fn version(&self, secret: &SecretKeyRef) -> u64 {
        self.versions.load().get(secret).copied().unwrap_or(0)
    }

    /// The credential of `identity`: as kept when young enough and not `refused` (a version that Entra did not take),
    /// else read again.
    pub(crate) async fn get(&self, identity: &Identity, refused: Option<u64>) -> Result<Loaded, TokenError> {
        let secret = identity.secret.as_ref().ok_or_else(|| {
            TokenError::misconfigured(
                identity,
                "spec.clientPassword is missing: name the Secret that holds the credential",
            )
        })?;
        let place = self.place(secret, identity.kind);
        // Held while reading: whoever comes meanwhile waits for this one reading.
        let mut kept = place.lock().await;
        if let Some(loaded) = kept.as_ref()
            && loaded.at.elapsed() < self.fresh_for
            && refused.is_none_or(|version| version != loaded.version)
        {
            return Ok(loaded.clone());
        }
        let data = match self.read(identity, secret).await {
            Ok(data) => data,
            // The API server is away: what was good a minute ago is better than nothing, unless it was refused.
            Err(TokenError::Unavailable { .. }) if refused.is_none() && kept.is_some() => {
                return kept.clone().ok_or_else(|| unavailable(secret, "read failed"));
            }
            Err(error) => return Err(error),
        };
        let version = version_of(&data);
        let at = Instant::now();
        if let Some(loaded) = kept.as_mut()
            && loaded.version == version
        {
            loaded.at = at;
            return Ok(loaded.clone());
        }
        let credential = parse(identity, secret, data).await?;
        let loaded = Loaded { credential, version, at };
        *kept = Some(loaded.clone());
        self.versions.rcu(|versions| {
            let mut versions = HashMap::clone(versions);
            versions.insert(secret.clone(), version);
            versions
        });
        Ok(loaded)
    }

    fn place(&self, secret: &SecretKeyRef, kind: IdentityType) -> Place {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (secret.clone(), kind.as_i32());
        if !places.contains_key(&key) && places.len() >= CAPACITY {
            // Far beyond any node's number of identities: start over rather than grow.
            places.clear();
            self.versions.store(Arc::default());
        }
        Arc::clone(places.entry(key).or_default())
    }

    async fn read(&self, identity: &Identity, secret: &SecretKeyRef) -> Result<SecretData, TokenError> {
        match tokio::time::timeout(TIMEOUT, self.source.get(&secret.namespace, &secret.name)).await {
            Ok(Ok(data)) => Ok(data),
            // It may well be created in a moment: not for good.
            Ok(Err(SecretSourceError::NotFound)) => Err(TokenError::Unavailable {
                message: format!(
                    "AzureIdentity {}/{}: Secret {}/{} (spec.clientPassword) does not exist; create it",
                    identity.object.namespace, identity.object.name, secret.namespace, secret.name
                ),
                retry_after: Duration::from_secs(2),
            }),
            Ok(Err(SecretSourceError::Unavailable(message))) => Err(unavailable(secret, &message)),
            Err(_) => Err(unavailable(secret, "no answer in time")),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

fn unavailable(secret: &SecretKeyRef, why: &str) -> TokenError {
    TokenError::Unavailable {
        message: format!("Secret {}/{} could not be read: {why}", secret.namespace, secret.name),
        retry_after: Duration::from_secs(2),
    }
}

async fn parse(identity: &Identity, secret: &SecretKeyRef, data: SecretData) -> Result<Credential, TokenError> {
    let parsed = match identity.kind {
        IdentityType::ServicePrincipalCertificate => {
            let secret = secret.clone();
            tokio::task::spawn_blocking(move || credential::certificate(&secret, &data))
                .await
                .map_err(|_| unavailable(&identity_secret(identity), "reading the certificate failed"))?
        }
        _ => credential::client_secret(secret, &data),
    };
    parsed.map_err(|error| TokenError::misconfigured(identity, error.to_string()))
}

fn identity_secret(identity: &Identity) -> SecretKeyRef {
    identity.secret.clone().unwrap_or(SecretKeyRef { namespace: "".into(), name: "".into(), key: None })
}

fn version_of(data: &SecretData) -> u64 {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for (key, value) in data {
        for part in [key.as_bytes(), value.expose_secret()] {
            context.update(&part.len().to_be_bytes());
            context.update(part);
        }
    }
    digest::first64(context.finish().as_ref()).max(1)
}
