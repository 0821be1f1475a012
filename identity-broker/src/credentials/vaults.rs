//! Credentials in Key Vaults, and the identities that read them.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared, WeakShared},
};
use identity_core::lookup::{CredentialSource, Identity, VaultRef};
use secrecy::SecretString;
use tokio::time::Instant;

use super::store::{Bearers, Place};
use crate::{
    clock::Clock,
    metrics::{Metrics, VaultRead},
    secrets::IdentitySource,
    tokens::TokenError,
    vault::{Bundle, Error, Reader},
};

/// The most identities from one that is read with another to the first that is not.
const MAX_CHAIN: usize = 4;
/// A token with less life than this is not used, seconds.
const FLOOR: i64 = 300;
/// The most tokens kept, but for those that are waited for. One is for an identity and a cloud.
const TOKENS: usize = 256;

/// By the identity that reads and the resource.
type Key = (Place, Box<str>);
type Got = Result<Lent, TokenError>;
/// A request for a token that everybody waits for who wants that token. It goes on as long as one of them is there.
type Flight = Shared<BoxFuture<'static, Got>>;

/// A token to read with.
#[derive(Clone)]
struct Lent {
    token: SecretString,
    /// When it ends, in seconds since the epoch.
    end: i64,
    /// Tells one from the next.
    serial: u64,
}

#[derive(Default)]
struct Entry {
    lent: Option<Lent>,
    flight: Option<WeakShared<BoxFuture<'static, Got>>>,
}

#[derive(Default)]
struct Tokens {
    entries: HashMap<Key, Entry>,
    serial: u64,
}

impl Tokens {
    /// Makes room for `key`.
    fn entry(&mut self, key: Key) -> &mut Entry {
        if self.entries.len() >= TOKENS && !self.entries.contains_key(&key) {
            let is_waited_for = |entry: &Entry| entry.flight.as_ref().is_some_and(|flight| flight.upgrade().is_some());
            self.entries.retain(|_, entry| is_waited_for(entry));
        }
        self.entries.entry(key).or_default()
    }

    fn landed(&mut self, key: Key, got: Result<(SecretString, i64), TokenError>) -> Got {
        self.serial += 1;
        let serial = self.serial;
        let got = got.map(|(token, end)| Lent { token, end, serial });
        *self.entry(key) = Entry { lent: got.as_ref().ok().cloned(), flight: None };
        got
    }
}

/// Reads Key Vaults as the identities that are to read them.
pub(super) struct Vaults {
    reader: Reader,
    identities: Option<Arc<dyn IdentitySource>>,
    bearers: Weak<dyn Bearers>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    /// Tokens of the identities that read.
    tokens: Arc<Mutex<Tokens>>,
}

/// Why nothing was read.
pub(super) enum VaultError {
    /// Who is to read it cannot.
    Reader(TokenError),
    /// The vault.
    Vault(Error),
}

impl Vaults {
    pub(super) fn new(
        reader: Reader,
        identities: Option<Arc<dyn IdentitySource>>,
        bearers: Weak<dyn Bearers>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { reader, identities, bearers, clock, metrics, tokens: Arc::default() }
    }

    /// What is wrong with `vault` whoever reads it.
    pub(super) fn check(&self, vault: &VaultRef) -> Result<(), Error> {
        self.reader.check(vault)
    }

    /// Reads the credential of `identity` in `vault`.
    pub(super) async fn read(&self, identity: &Identity, vault: &VaultRef) -> Result<Bundle, VaultError> {
        let begin = Instant::now();
        let read = self.read_it(identity, vault).await;
        self.metrics.vault_read(outcome(&read), begin.elapsed());
        read
    }

    async fn read_it(&self, identity: &Identity, vault: &VaultRef) -> Result<Bundle, VaultError> {
        let reader = self.reader_of(identity, vault).map_err(VaultError::Reader)?;
        let (reader, used) = (&reader, &AtomicU64::new(0));
        let token = |resource: String| async move {
            let lent = self.token(reader, &resource).await?;
            used.store(lent.serial, Ordering::Relaxed);
            Ok(lent.token)
        };
        let bundle = self.reader.read(vault, token).await;
        if let Err(Error::Forbidden { .. } | Error::TokenRefused { .. }) = &bundle {
            // The roles of a group are in the token: the next one may have them.
            self.forget(used.load(Ordering::Relaxed));
        }
        bundle.map_err(VaultError::Vault)
    }

    /// The identity that reads; there must be an end to who is read with whom.
    pub(super) fn reader_of(&self, identity: &Identity, vault: &VaultRef) -> Result<Arc<Identity>, TokenError> {
        let namespace = &identity.object.namespace;
        let mut way = vec![identity.object.name.to_string()];
        let mut first = None;
        let mut next = vault.identity.clone();
        loop {
            let wrong =
                |what: String| TokenError::misconfigured(identity, format!("spec.keyVault.identityRef: {what}"));
            let again = way.iter().any(|name| **name == *next);
            way.push(next.to_string());
            if again {
                let way = way.join(" -> ");
                return Err(wrong(format!(
                    "{way} is a circle: the identity that reads a vault must not need that vault itself"
                )));
            }
            if way.len() > MAX_CHAIN + 1 {
                return Err(wrong(format!(
                    "{} is too long a way: name an identity that needs no vault",
                    way.join(" -> ")
                )));
            }
            let found = self.identities.as_ref().and_then(|identities| identities.get(namespace, &next));
            let Some(found) = found else {
                let message = format!(
                    "AzureIdentity {namespace}/{}: spec.keyVault.identityRef: there is no usable AzureIdentity {namespace}/{next}; \
                     create it, or name another one",
                    identity.object.name
                );
                return Err(TokenError::Unavailable { message, retry_after: std::time::Duration::from_secs(2) });
            };
            let on = match &found.credential {
                CredentialSource::KeyVault(vault) => Some(vault.identity.clone()),
                _ => None,
            };
            let first = Arc::clone(first.get_or_insert(found));
            match on {
                Some(name) => next = name,
                None => return Ok(first),
            }
        }
    }

    /// A token that has some time left: asked for once, however many read.
    async fn token(&self, reader: &Arc<Identity>, resource: &str) -> Got {
        let key = (Place::of(reader), Box::from(resource));
        let now = self.clock.now().as_second();
        let flight = {
            let mut tokens = lock(&self.tokens);
            let entry = tokens.entry(key.clone());
            if let Some(lent) = entry.lent.as_ref().filter(|lent| lent.end - now > FLOOR) {
                return Ok(lent.clone());
            }
            let flight = entry.flight.as_ref().and_then(WeakShared::upgrade);
            flight.unwrap_or_else(|| {
                let flight = self.flight(key, Arc::clone(reader));
                entry.flight = flight.downgrade();
                flight
            })
        };
        flight.await
    }

    /// This one, and not one that came after it.
    fn forget(&self, serial: u64) {
        lock(&self.tokens).entries.retain(|_, entry| entry.lent.as_ref().is_none_or(|lent| lent.serial != serial));
    }

    fn flight(&self, key: Key, reader: Arc<Identity>) -> Flight {
        let (bearers, tokens) = (self.bearers.clone(), Arc::clone(&self.tokens));
        let asking = async move {
            let got = match bearers.upgrade() {
                Some(bearers) => bearers.bearer(&reader, &key.1).await,
                None => Err(TokenError::Unavailable {
                    message: "the broker is being shut down".to_owned(),
                    retry_after: std::time::Duration::from_secs(2),
                }),
            };
            lock(&tokens).landed(key, got)
        };
        asking.boxed().shared()
    }
}

fn outcome(read: &Result<Bundle, VaultError>) -> VaultRead {
    use VaultRead as R;
    match read {
        Ok(_) => R::Ok,
        Err(VaultError::Reader(_) | VaultError::Vault(Error::NoToken { .. })) => R::NoToken,
        Err(VaultError::Vault(error)) => match error {
            Error::NotFound { .. } | Error::Disabled { .. } => R::NotFound,
            Error::Forbidden { .. } | Error::Firewall { .. } | Error::TokenRefused { .. } => R::Forbidden,
            Error::Throttled { .. } => R::Throttled,
            Error::Unavailable { .. } | Error::NameNotResolvable { .. } => R::Unavailable,
            _ => R::Wrong,
        },
    }
}

fn lock(tokens: &Mutex<Tokens>) -> MutexGuard<'_, Tokens> {
    tokens.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "vaults_tests.rs"]
mod tests;
