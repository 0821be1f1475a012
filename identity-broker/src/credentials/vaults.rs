//! Credentials in Key Vaults, and the identities that read them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use identity_core::lookup::{CredentialSource, Identity, VaultRef};
use secrecy::SecretString;

use super::store::{Bearers, Place};
use crate::{
    clock::Clock,
    secrets::IdentitySource,
    tokens::TokenError,
    vault::{Bundle, Error, Reader},
};

/// The most identities from one that is read with another to the first that is not.
const MAX_CHAIN: usize = 4;
/// A token with less life than this is not used, seconds.
const FLOOR: i64 = 300;
/// The most tokens kept. One is for an identity and a cloud.
const TOKENS: usize = 256;

/// Tokens by the identity that reads and the resource, and when they end, in seconds since the epoch.
type Kept = HashMap<(Place, Box<str>), (SecretString, i64)>;

/// Reads Key Vaults as the identities that are to read them.
pub(super) struct Vaults {
    reader: Reader,
    identities: Option<Arc<dyn IdentitySource>>,
    bearers: Weak<dyn Bearers>,
    clock: Arc<dyn Clock>,
    /// Tokens of the identities that read, and when they end.
    tokens: Mutex<Kept>,
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
    ) -> Self {
        Self { reader, identities, bearers, clock, tokens: Mutex::default() }
    }

    /// What is wrong with `vault` whoever reads it.
    pub(super) fn check(&self, vault: &VaultRef) -> Result<(), Error> {
        self.reader.check(vault)
    }

    /// Reads the credential of `identity` in `vault`.
    pub(super) async fn read(&self, identity: &Identity, vault: &VaultRef) -> Result<Bundle, VaultError> {
        let reader = self.reader_of(identity, vault).map_err(VaultError::Reader)?;
        let reader = &reader;
        let bundle = self.reader.read(vault, |resource| async move { self.token(reader, &resource).await }).await;
        if let Err(Error::Forbidden { .. } | Error::TokenRefused { .. }) = &bundle {
            // The roles of a group are in the token: the next one may have them.
            self.tokens().retain(|(place, _), _| !place.has_name_of(&reader.object));
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

    async fn token(&self, reader: &Arc<Identity>, resource: &str) -> Result<SecretString, TokenError> {
        let place = (Place::of(reader), Box::from(resource));
        let now = self.clock.now().as_second();
        if let Some((token, _)) = self.tokens().get(&place).filter(|(_, end)| *end - now > FLOOR) {
            return Ok(token.clone());
        }
        let bearers = self.bearers.upgrade().ok_or_else(|| TokenError::Unavailable {
            message: "the broker is being shut down".to_owned(),
            retry_after: std::time::Duration::from_secs(2),
        })?;
        let (token, end) = bearers.bearer(reader, resource).await?;
        let mut tokens = self.tokens();
        if tokens.len() >= TOKENS {
            tokens.clear();
        }
        tokens.insert(place, (token.clone(), end));
        Ok(token)
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
