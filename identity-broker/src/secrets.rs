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

/// Why a Secret could not be read.
#[derive(Clone, Debug, Error)]
pub enum SecretSourceError {
    /// There is no such Secret.
    #[error("the Secret does not exist")]
    NotFound,
    /// Not now.
    #[error("the Secret could not be read: {0}")]
    Unavailable(String),
}
