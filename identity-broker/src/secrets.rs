//! Where credentials, and the identities that read them, come from. Seams: Secrets of a cluster, a directory of manifests, or
//! a test's map.

use std::{collections::BTreeMap, sync::Arc};

use futures::future::BoxFuture;
use identity_core::lookup::Identity;
use secrecy::SecretSlice;
use thiserror::Error;
use tokio::sync::watch;

/// The data of a Secret by key.
pub type SecretData = BTreeMap<String, SecretSlice<u8>>;

/// Reads Secrets.
pub trait SecretSource: Send + Sync + 'static {
    /// The data of Secret `namespace/name`. Bounded in time by the implementation.
    fn get<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<SecretData, SecretSourceError>>;

    /// A number that changes whenever Secret `namespace/name` may have changed, appeared or gone. It need not count, and
    /// several changes may be one. The Secret is followed as long as the receiver lives.
    ///
    /// A receiver whose sender is gone says that nobody follows (any more): then the Secret is read again from time to time.
    /// By default it is one of those.
    fn follow(&self, namespace: &str, name: &str) -> watch::Receiver<u64> {
        let _ = (namespace, name);
        watch::channel(0).1
    }
}

/// Why a Secret could not be read. Which one matters: a credential that is in use already goes on being used only as long
/// as its Secret is [`Unavailable`](Self::Unavailable) or holds something else that is not proven.
#[derive(Clone, Debug, Error)]
pub enum SecretSourceError {
    /// There is no such Secret.
    #[error("the Secret does not exist")]
    NotFound,
    /// This node may not read it. The text says which right is missing.
    #[error("the Secret may not be read: {0}")]
    Forbidden(String),
    /// What is there is no Secret.
    #[error("the Secret is malformed: {0}")]
    Malformed(String),
    /// It cannot be told now: the API server is away, or does not answer in time.
    #[error("the Secret could not be read: {0}")]
    Unavailable(String),
}

/// Finds identities by name: those that `keyVault.identityRef` names.
pub trait IdentitySource: Send + Sync + 'static {
    /// The `AzureIdentity` as it is now, if there is one that can be used.
    fn get(&self, namespace: &str, name: &str) -> Option<Arc<Identity>>;
}
