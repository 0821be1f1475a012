//! Tries a credential without serving anybody: for whoever writes the condition `CredentialReady`.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use identity_core::lookup::{CredentialSource, Identity};
use identity_crd::IdentityType;
use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    rotation::{Reading, Version},
    source::{Known, Loaded, Read},
    store::{Tried, Try as _},
    verdict::{RefusalCause, Verdict, explain},
};
use crate::{
    clock::Clock,
    metrics::Metrics,
    tokens::TokenError,
    upstream::{Azure, Sources, UpstreamConfig},
};

/// The most identities whose credentials are remembered.
const CAPACITY: usize = 10_000;

/// What is known of the credential of an identity: a condition and an expiry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Whether Entra takes it; `None` when that cannot be told here, or not now.
    pub ready: Option<bool>,
    /// In a word, as the `reason` of a condition: CamelCase.
    pub reason: &'static str,
    /// In a sentence: what was found, with the AADSTS code, and what to do.
    pub message: String,
    /// When it ends, if that is known.
    pub expires: Option<Timestamp>,
}

/// Reads credentials, looks into them and tries them at Entra.
///
/// What only a node can do is left to the nodes: what is asked of their IMDS (managed identities, and Key Vaults that are read
/// with one) and what their own token proves (federation). The answer then is `None`.
pub struct Checker<C> {
    azure: Azure<C>,
    seen: Mutex<HashMap<Object, Seen>>,
}

/// Namespace, name and UID.
type Object = (Arc<str>, Arc<str>, Arc<str>);

/// A credential, as it was found.
struct Seen {
    version: Version,
    since: Instant,
    /// Another one worked before it: that it is refused may be a matter of minutes.
    follows: bool,
    proven: bool,
}

impl<C: Clock> Checker<C> {
    /// `tls` says whom to trust; its crypto provider is the caller's.
    pub fn new(config: UpstreamConfig, tls: rustls::ClientConfig, sources: impl Into<Sources>, clock: C) -> Self {
        let azure = Azure::new(config, tls, sources, clock, Arc::new(Metrics::default()));
        Self { azure, seen: Mutex::default() }
    }

    /// Reads the credential of `identity`, looks into it, and tries it at Entra where that can be done from here. Bounded in
    /// time: reading by 30 s, trying by [`UpstreamConfig::total_timeout`] and [`UpstreamConfig::turn_timeout`].
    pub async fn check(&self, identity: &Arc<Identity>) -> Checked {
        let unknown =
            |reason, message: &str| Checked { ready: None, reason, message: message.to_owned(), expires: None };
        if identity.kind == IdentityType::UserAssignedManagedIdentity {
            return unknown("NoCredential", "a managed identity has no credential; each node asks its own IMDS");
        }
        let (upstream, credentials) = self.azure.parts();
        if let Err(error) = upstream.application(identity) {
            return Checked { ready: Some(false), reason: "Misconfigured", message: error.to_string(), expires: None };
        }
        match &identity.credential {
            CredentialSource::Federated(_) => {
                return unknown(
                    "TriedByNodes",
                    "what proves a federated identity is a node's token; each node tries its own",
                );
            }
            CredentialSource::KeyVault(vault) if let Err(error) = credentials.reader().vaults().check(vault) => {
                let message = format!("AzureIdentity {}/{}: {error}", identity.object.namespace, identity.object.name);
                return Checked { ready: Some(false), reason: error.reason(), message, expires: None };
            }
            CredentialSource::KeyVault(vault) => match credentials.reader().vaults().reader_of(identity, vault) {
                Ok(reader) if !from_here(&reader) => {
                    let message = format!(
                        "the Key Vault is read as AzureIdentity {}/{}, which only a node can be; each node tries it",
                        reader.object.namespace, reader.object.name
                    );
                    return unknown("TriedByNodes", &message);
                }
                Ok(_) => {}
                Err(error) => {
                    let (reason, message) = ("KeyVaultReader", error.to_string());
                    return Checked { ready: Some(false), reason, message, expires: None };
                }
            },
            CredentialSource::Secret(_) | CredentialSource::None => {}
        }
        let loaded = match credentials.reader().read(identity, Known::default()).await {
            Read { reading: Reading::Found { .. }, loaded: Some(loaded), .. } => loaded,
            Read { reading, loaded, reason, .. } => return unread(&reading, loaded.as_deref(), reason),
        };
        let tried = upstream.try_it(identity, &loaded.credential, None).await;
        self.judge(identity, &loaded, tried)
    }

    fn judge(&self, identity: &Identity, loaded: &Loaded, tried: Tried) -> Checked {
        let origin = &loaded.origin;
        let of = |ready, reason, message| Checked { ready, reason, message, expires: loaded.expires };
        let (fresh, proven) = self.see(identity, loaded.version, matches!(tried, Tried::Proven));
        match tried {
            Tried::Proven => of(Some(true), "Accepted", format!("Entra takes the credential from {origin}")),
            Tried::Refused { error, spreads: true } if fresh => {
                let message = format!(
                    "Entra does not know the new credential from {origin} yet, the former one goes on serving: {}",
                    explain(&error)
                );
                of(None, reason(&error), message)
            }
            Tried::Refused { error, .. } => {
                of(Some(false), reason(&error), format!("the credential from {origin} is refused: {}", explain(&error)))
            }
            Tried::Otherwise(error) => {
                // What was asked for is ours to choose: that says nothing.
                let cause = verdict(&error).map(|verdict| verdict.cause);
                let ready = (cause != Some(RefusalCause::Resource)).then_some(false);
                of(ready, reason(&error), explain(&error))
            }
            // What worked a while ago will again.
            Tried::Unclear(why) if proven => of(
                Some(true),
                "Accepted",
                format!("Entra took the credential from {origin}; now it was not told: {why}"),
            ),
            Tried::Unclear(why) => of(
                None,
                "EntraUnavailable",
                format!("the credential from {origin} was read, and could not be tried: {why}"),
            ),
        }
    }

    /// Remembers a version: whether it is a new one after one that worked, and whether it was proven itself.
    fn see(&self, identity: &Identity, version: Version, proven: bool) -> (bool, bool) {
        let propagation = self.azure.parts().0.config.rotation.propagation;
        let object = &identity.object;
        let place = (Arc::clone(&object.namespace), Arc::clone(&object.name), Arc::clone(&object.uid));
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= CAPACITY && !seen.contains_key(&place) {
            seen.clear();
        }
        let begin = |follows| Seen { version, since: Instant::now(), follows, proven: false };
        let entry = seen.entry(place).or_insert_with(|| begin(false));
        if entry.version != version {
            *entry = begin(entry.proven || entry.follows);
        }
        entry.proven |= proven;
        (entry.follows && !entry.proven && entry.since.elapsed() < propagation, entry.proven)
    }
}

/// Whether tokens of `identity` can be got without a node.
fn from_here(identity: &Identity) -> bool {
    matches!(identity.credential, CredentialSource::Secret(_))
}

fn unread(reading: &Reading, loaded: Option<&Loaded>, reason: &'static str) -> Checked {
    let (ready, error) = match reading {
        Reading::Wrong { error, .. } | Reading::Gone(error) => (Some(false), error),
        // A vault that does not let it in does so for a reason, though the nodes go on with what they have.
        Reading::Unclear(error) if matches!(reason, "KeyVaultForbidden" | "KeyVaultNameNotResolvable") => {
            (Some(false), error)
        }
        Reading::Unclear(error) => (None, error),
        // Never without a credential.
        Reading::Found { .. } => {
            return Checked { ready: None, reason, message: String::new(), expires: None };
        }
    };
    Checked { ready, reason, message: error.to_string(), expires: loaded.and_then(|loaded| loaded.expires) }
}

fn verdict(error: &TokenError) -> Option<Verdict> {
    match error {
        TokenError::Refused(refusal) => Some(Verdict::of(refusal)),
        TokenError::Misconfigured { .. } | TokenError::Unavailable { .. } => None,
    }
}

fn reason(error: &TokenError) -> &'static str {
    verdict(error).map_or("Misconfigured", Verdict::reason)
}

impl<C> fmt::Debug for Checker<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checker").finish_non_exhaustive()
    }
}
