//! Reads a credential from where it is, once.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use identity_core::lookup::{CredentialSource, Identity, SecretKeyRef, VaultRef};
use identity_crd::IdentityType;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretSlice};
use tokio::sync::Semaphore;

use super::{
    material::{Credential, CredentialError, CredentialProblem},
    parse,
    rotation::{Reading, Version},
    store::Bearers,
    vaults::{VaultError, Vaults},
};
use crate::{
    clock::Clock,
    digest,
    metrics::Metrics,
    secrets::{SecretData, SecretSourceError},
    tokens::TokenError,
    upstream::Sources,
    vault,
};

/// The longest that a source is waited for.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The most certificates that are read at a time.
const READINGS: usize = 2;

/// A credential and where it is from.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    pub(crate) credential: Credential,
    /// Digest of what it was made of; never 0.
    pub(crate) version: Version,
    /// Where it is: "Secret ns/name".
    pub(crate) origin: Arc<str>,
    /// When it ends, if that is known.
    pub(crate) expires: Option<Timestamp>,
}

/// What is known already: nothing is looked into twice.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) loaded: Vec<Arc<Loaded>>,
    /// A version that is no credential, and why.
    pub(super) wrong: Option<(Version, CredentialError)>,
}

/// What a reading brought.
pub(super) struct Read {
    pub(super) reading: Reading,
    pub(super) loaded: Option<Arc<Loaded>>,
    pub(super) wrong: Option<(Version, CredentialError)>,
    /// Why there is no credential, in a word, as the `reason` of a condition.
    pub(super) reason: &'static str,
}

/// A reading that brought no credential, and why, in a word.
struct Not(Reading, &'static str);

impl From<Not> for Read {
    fn from(Not(reading, reason): Not) -> Self {
        Self { reading, loaded: None, wrong: None, reason }
    }
}

impl From<Reading> for Read {
    fn from(reading: Reading) -> Self {
        Not(reading, "CredentialUnavailable").into()
    }
}

/// What a source holds, before it is looked into.
struct Held {
    version: Version,
    origin: Arc<str>,
    expires: Option<Timestamp>,
    what: What,
}

enum What {
    Secret(SecretKeyRef, SecretData),
    Vault(SecretSlice<u8>),
}

impl What {
    fn client_secret(&self) -> Result<Credential, CredentialProblem> {
        match self {
            Self::Secret(reference, data) => parse::client_secret(reference, data),
            Self::Vault(value) => parse::vault_secret(value.expose_secret()),
        }
    }

    fn certificate(&self) -> Result<Credential, CredentialProblem> {
        match self {
            Self::Secret(reference, data) => parse::certificate(reference, data),
            Self::Vault(value) => parse::vault_certificate(value.expose_secret()),
        }
    }
}

/// Reads sources.
pub(super) struct Reader {
    sources: Sources,
    vaults: Vaults,
    clock: Arc<dyn Clock>,
    readings: Arc<Semaphore>,
}

impl Reader {
    pub(super) fn new(
        sources: Sources,
        vaults: vault::Reader,
        bearers: Weak<dyn Bearers>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let vaults = Vaults::new(vaults, sources.identities.clone(), bearers, Arc::clone(&clock), metrics);
        Self { sources, vaults, clock, readings: Arc::new(Semaphore::new(READINGS)) }
    }

    pub(super) fn vaults(&self) -> &Vaults {
        &self.vaults
    }

    #[cfg(test)]
    pub(super) fn readings(&self) -> Arc<Semaphore> {
        Arc::clone(&self.readings)
    }

    pub(super) fn sources(&self) -> &Sources {
        &self.sources
    }

    /// Reads the credential of `identity`.
    pub(super) async fn read(&self, identity: &Arc<Identity>, known: Known) -> Read {
        let held = match &identity.credential {
            CredentialSource::Secret(secret) => self.secret(identity, secret).await,
            CredentialSource::KeyVault(vault) => self.vault(identity, vault).await,
            CredentialSource::None | CredentialSource::Federated(_) => {
                let text = "spec.clientPassword is missing: name the Secret that holds the credential, or a Key Vault in spec.keyVault";
                Err(Not(Reading::Gone(TokenError::misconfigured(identity, text)), "CredentialMissing"))
            }
        };
        match held {
            Ok(held) => self.look_into(identity, held, known).await,
            Err(not) => not.into(),
        }
    }

    async fn secret(&self, identity: &Identity, secret: &SecretKeyRef) -> Result<Held, Not> {
        use SecretSourceError as E;
        let origin = format!("Secret {}/{}", secret.namespace, secret.name);
        let get = self.sources.secrets.get(&secret.namespace, &secret.name);
        let error = match tokio::time::timeout(TIMEOUT, get).await {
            Ok(Ok(data)) => {
                let version = version(data.iter().flat_map(|(key, value)| [key.as_bytes(), value.expose_secret()]));
                let what = What::Secret(secret.clone(), data);
                return Ok(Held { version, origin: origin.into(), expires: None, what });
            }
            Ok(Err(error)) => error,
            Err(_) => E::Unavailable("no answer in time".to_owned()),
        };
        let unread = |why: &str| unavailable(format!("{origin} could not be read: {why}"));
        // Each may well be mended in a moment: never for good to the pod.
        Err(match error {
            E::NotFound => {
                let error = unavailable(format!(
                    "AzureIdentity {}/{}: {origin} (spec.clientPassword) does not exist; create it",
                    identity.object.namespace, identity.object.name
                ));
                Not(Reading::Gone(error), "SecretNotFound")
            }
            E::Forbidden(why) => Not(Reading::Gone(unread(&why)), "SecretForbidden"),
            E::Malformed(why) => {
                Not(Reading::Wrong { version: 0, error: unread(&why), until: None }, "SecretMalformed")
            }
            E::Unavailable(why) => Not(Reading::Unclear(unread(&why)), "SecretUnavailable"),
        })
    }

    async fn vault(&self, identity: &Identity, vault: &VaultRef) -> Result<Held, Not> {
        use vault::Error as E;
        let error = match self.vaults.read(identity, vault).await {
            Ok(bundle) => {
                let version = version([vault.url.as_bytes(), bundle.origin().as_bytes()]);
                let (origin, expires) = (bundle.origin().into(), bundle.expires_on);
                return Ok(Held { version, origin, expires, what: What::Vault(bundle.value) });
            }
            Err(VaultError::Reader(error)) => return Err(Not(Reading::Unclear(error), "KeyVaultReader")),
            Err(VaultError::Vault(error)) => error,
        };
        let reason = error.reason();
        let object = &identity.object;
        let text = format!("AzureIdentity {}/{}: {error}", object.namespace, object.name);
        let retry_after = error.retry_after().unwrap_or(Duration::from_secs(2));
        let told = TokenError::Unavailable { message: text, retry_after };
        Err(match error {
            // For certain. (A role that is missing may be on its way, a name may be resolved again.)
            E::NotFound { .. } | E::Disabled { .. } => Not(Reading::Gone(told), reason),
            // Nothing was sent, and nothing will be.
            E::Url { .. } | E::HostNotAllowed { .. } | E::Name { .. } => {
                Not(Reading::Gone(TokenError::misconfigured(identity, error.to_string())), reason)
            }
            _ => Not(Reading::Unclear(told), reason),
        })
    }

    async fn look_into(&self, identity: &Identity, held: Held, known: Known) -> Read {
        let Held { version, origin, expires, what } = held;
        let first = |credential: &Credential| [expires, credential.expires()].into_iter().flatten().min();
        if let Some(found) = known.loaded.iter().find(|loaded| loaded.version == version) {
            let expires = first(&found.credential);
            if found.expires == expires {
                return self.judge(identity, Arc::clone(found));
            }
            // What a Key Vault says of a version can change, what it holds cannot.
            return self.judge(identity, Arc::new(Loaded { expires, ..Loaded::clone(found) }));
        }
        let parsed = match known.wrong {
            Some((wrong, error)) if wrong == version => Err(error.problem),
            _ => match self.parse(identity.kind, what).await {
                Some(parsed) => parsed,
                None => return Reading::Unclear(unavailable(format!("{origin}: reading it failed"))).into(),
            },
        };
        match parsed {
            Ok(credential) => {
                let expires = first(&credential);
                self.judge(identity, Arc::new(Loaded { credential, version, origin, expires }))
            }
            Err(problem) => {
                let error = CredentialError { origin: origin.to_string(), problem };
                let told = TokenError::misconfigured(identity, error.to_string());
                let reading = Reading::Wrong { version, error: told, until: None };
                let reason = error.problem.reason();
                Read { reading, loaded: None, wrong: Some((version, error)), reason }
            }
        }
    }

    /// Whether it may be used at this time.
    fn judge(&self, identity: &Identity, loaded: Arc<Loaded>) -> Read {
        let version = loaded.version;
        let mut reason = "CredentialUnavailable";
        let reading = match loaded.credential.wrong_time(self.clock.now()) {
            Some((problem, until)) => {
                reason = problem.reason();
                let error = CredentialError { origin: loaded.origin.to_string(), problem };
                let error = TokenError::misconfigured(identity, error.to_string());
                Reading::Wrong { version, error, until }
            }
            None => Reading::Found { version, expires: loaded.expires },
        };
        Read { reading, loaded: Some(loaded), wrong: None, reason }
    }

    /// Certificates are read on other threads, [`READINGS`] at a time.
    async fn parse(&self, kind: IdentityType, what: What) -> Option<Result<Credential, CredentialProblem>> {
        if kind != IdentityType::ServicePrincipalCertificate {
            return Some(what.client_secret());
        }
        let turn = Arc::clone(&self.readings).acquire_owned().await.ok()?;
        let read = tokio::task::spawn_blocking(move || {
            let read = what.certificate();
            // Not before: nobody can end a reading.
            drop(turn);
            read
        });
        read.await.ok()
    }
}

fn unavailable(message: String) -> TokenError {
    TokenError::Unavailable { message, retry_after: Duration::from_secs(2) }
}

fn version<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Version {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for part in parts {
        context.update(&part.len().to_be_bytes());
        context.update(part);
    }
    digest::first64(context.finish().as_ref()).max(1)
}
