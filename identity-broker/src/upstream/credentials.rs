//! Credentials read and parsed once, kept for a minute, read again when Entra refuses them.
//!
//! Only that a Secret *cannot be read now* (the API server is away, or slow) leaves a kept credential in use, for as long as
//! that lasts: an outage of the API server changes nothing for pods that are served. Whatever is certain ends it at the next
//! reading: the Secret is deleted, it may no longer be read, it lacks the key, it holds no credential. Tokens that are out
//! already are good until they end.
//!
//! Certificates are read on other threads, [`READINGS`] at a time. A reading that takes longer than anybody waits goes on,
//! and whoever comes next waits for it instead of beginning another one; what a version of a Secret is found to be wrong
//! with is not looked into twice.

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
use tokio::{sync::Semaphore, task::JoinHandle, time::Instant};

use crate::{
    credentials::{self, Credential, CredentialError},
    digest,
    secrets::{SecretData, SecretSource, SecretSourceError},
    tokens::TokenError,
};

/// The most credentials kept.
const CAPACITY: usize = 1024;
/// The longest that a Secret is waited for.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a kept credential is used without trying again when its Secret cannot be read.
const PAUSE: Duration = Duration::from_secs(5);
/// The most certificates that are read at a time.
const READINGS: usize = 2;
/// The longest that the reading of a certificate is waited for, with the waiting for its turn.
const READING_TIMEOUT: Duration = Duration::from_secs(10);

/// A credential and the version of the Secret it is from.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    pub credential: Credential,
    /// Digest of the Secret's data; never 0.
    pub version: u64,
    /// When it is to be read again.
    until: Instant,
}

/// What is known of one Secret as one kind of credential.
#[derive(Default)]
struct Kept {
    loaded: Option<Loaded>,
    /// A version that holds no credential, and why.
    wrong: Option<(u64, CredentialError)>,
    /// A version that is being read.
    reading: Option<(u64, Reading)>,
}

type Key = (SecretKeyRef, i32);
type Place = Arc<tokio::sync::Mutex<Kept>>;

/// A certificate being read; given up when nobody wants it any more and its turn has not come.
struct Reading(JoinHandle<Option<Result<Credential, CredentialError>>>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Why there is no Secret.
enum ReadError {
    /// It is certain: what was kept is good no longer.
    Certain(TokenError),
    /// It cannot be told now.
    NotNow(TokenError),
}

/// All credentials in use.
pub(crate) struct Credentials {
    source: Arc<dyn SecretSource>,
    fresh_for: Duration,
    places: Mutex<HashMap<Key, Place>>,
    /// Versions by Secret, readable without a lock.
    versions: ArcSwap<HashMap<SecretKeyRef, u64>>,
    readings: Arc<Semaphore>,
}

impl Credentials {
    pub(crate) fn new(source: Arc<dyn SecretSource>, fresh_for: Duration) -> Self {
        Self {
            source,
            fresh_for,
            places: Mutex::default(),
            versions: ArcSwap::default(),
            readings: Arc::new(Semaphore::new(READINGS)),
        }
    }

    /// The version last read of the Secret, 0 when none.
    pub(crate) fn version(&self, secret: &SecretKeyRef) -> u64 {
        self.versions.load().get(secret).copied().unwrap_or(0)
    }

    /// The credential of `identity`: as kept when young enough and not `refused` (a version that Entra did not take),
    /// else read again.
    pub(crate) async fn get(&self, identity: &Identity, refused: Option<u64>) -> Result<Loaded, TokenError> {
        let secret = identity.credential.secret().ok_or_else(|| {
            TokenError::misconfigured(
                identity,
                "spec.clientPassword is missing: name the Secret that holds the credential",
            )
        })?;
        let place = self.place(secret, identity.kind);
        // Held while reading: whoever comes meanwhile waits for this one reading.
        let mut kept = place.lock().await;
        if let Some(loaded) = kept.loaded.as_ref()
            && Instant::now() < loaded.until
            && refused.is_none_or(|version| version != loaded.version)
        {
            return Ok(loaded.clone());
        }
        let data = match self.read(identity, secret).await {
            Ok(data) => data,
            Err(ReadError::NotNow(error)) => {
                return match kept.loaded.as_mut() {
                    // What was good a minute ago is better than nothing, unless it was refused.
                    Some(loaded) if refused.is_none() => {
                        loaded.until = Instant::now() + PAUSE.min(self.fresh_for);
                        Ok(loaded.clone())
                    }
                    _ => Err(error),
                };
            }
            Err(ReadError::Certain(error)) => {
                *kept = Kept::default();
                return Err(error);
            }
        };
        let version = version_of(&data);
        let until = Instant::now() + self.fresh_for;
        if let Some(loaded) = kept.loaded.as_mut()
            && loaded.version == version
        {
            loaded.until = until;
            return Ok(loaded.clone());
        }
        // The Secret is another one: the former has had its time, whatever this one holds.
        kept.loaded = None;
        let wrong = |error: &CredentialError| TokenError::misconfigured(identity, error.to_string());
        if let Some((known, error)) = &kept.wrong
            && *known == version
        {
            return Err(wrong(error));
        }
        match self.parse(identity.kind, secret, data, version, &mut kept.reading).await? {
            Ok(credential) => {
                let loaded = Loaded { credential, version, until };
                *kept = Kept { loaded: Some(loaded.clone()), ..Kept::default() };
                self.versions.rcu(|versions| {
                    let mut versions = HashMap::clone(versions);
                    versions.insert(secret.clone(), version);
                    versions
                });
                Ok(loaded)
            }
            Err(error) => {
                let answer = wrong(&error);
                *kept = Kept { wrong: Some((version, error)), ..Kept::default() };
                Err(answer)
            }
        }
    }

    async fn parse(
        &self,
        kind: IdentityType,
        secret: &SecretKeyRef,
        data: SecretData,
        version: u64,
        reading: &mut Option<(u64, Reading)>,
    ) -> Result<Result<Credential, CredentialError>, TokenError> {
        if kind != IdentityType::ServicePrincipalCertificate {
            return Ok(credentials::client_secret(secret, &data));
        }
        let current = match reading.take() {
            Some((of, current)) if of == version => current,
            _ => self.begin(secret.clone(), data),
        };
        let (_, Reading(task)) = reading.insert((version, current));
        let done = tokio::time::timeout(READING_TIMEOUT, task).await.map_err(|_| TokenError::Unavailable {
            message: format!(
                "the certificate in Secret {}/{} is still being read after {} s",
                secret.namespace,
                secret.name,
                READING_TIMEOUT.as_secs()
            ),
            retry_after: READING_TIMEOUT,
        })?;
        *reading = None;
        done.ok().flatten().ok_or_else(|| unavailable(secret, "reading the certificate failed"))
    }

    fn begin(&self, secret: SecretKeyRef, data: SecretData) -> Reading {
        let readings = Arc::clone(&self.readings);
        Reading(tokio::spawn(async move {
            let turn = readings.acquire_owned().await.ok()?;
            let read = tokio::task::spawn_blocking(move || {
                let read = credentials::certificate(&secret, &data);
                // Not before: nobody can end a reading.
                drop(turn);
                read
            });
            read.await.ok()
        }))
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

    async fn read(&self, identity: &Identity, secret: &SecretKeyRef) -> Result<SecretData, ReadError> {
        use SecretSourceError as E;
        let error = match tokio::time::timeout(TIMEOUT, self.source.get(&secret.namespace, &secret.name)).await {
            Ok(Ok(data)) => return Ok(data),
            Ok(Err(error)) => error,
            Err(_) => E::Unavailable("no answer in time".to_owned()),
        };
        // Each may well be mended in a moment: never for good to the pod.
        Err(match error {
            E::NotFound => ReadError::Certain(TokenError::Unavailable {
                message: format!(
                    "AzureIdentity {}/{}: Secret {}/{} (spec.clientPassword) does not exist; create it",
                    identity.object.namespace, identity.object.name, secret.namespace, secret.name
                ),
                retry_after: Duration::from_secs(2),
            }),
            E::Forbidden(message) | E::Malformed(message) => ReadError::Certain(unavailable(secret, &message)),
            E::Unavailable(message) => ReadError::NotNow(unavailable(secret, &message)),
        })
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

#[cfg(test)]
#[path = "credentials_tests.rs"]
mod tests;
