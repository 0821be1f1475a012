//! Where credentials are read from. A seam: Secrets of a cluster, a directory of manifests, or a test's map.

use std::collections::BTreeMap;

use futures::future::BoxFuture;
use secrecy::SecretSlice;
use thiserror::Error;

/// The data of a Secret by key.
pub type SecretData = BTreeMap<String, SecretSlice<u8>>;

/// Reads Secrets.
pub trait SecretSource: Send + Sync + 'static {
    /// The data of Secret `namespace/name`. Bounded in time by the implementation.
    fn get<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<SecretData, SecretSourceError>>;
}

/// Why a Secret could not be read. Which one matters: a credential that is in use already goes on being used only as long
/// as its Secret is [`Unavailable`](Self::Unavailable).
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
