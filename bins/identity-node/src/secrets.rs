//! Secrets for the broker, from where the other objects come from.

use futures::future::BoxFuture;
use identity_broker::{SecretData, SecretSource, SecretSourceError};
use identity_core::runtime::secrets::{Error, Secrets};

/// See [`Secrets`].
#[derive(Debug)]
pub(crate) struct FromRuntime(pub(crate) Secrets);

impl SecretSource for FromRuntime {
    fn get<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<SecretData, SecretSourceError>> {
        Box::pin(async move {
            self.0.get(namespace, name).await.map_err(|error| {
                let text = error.to_string();
                match error {
                    Error::NotFound { .. } => SecretSourceError::NotFound,
                    Error::Forbidden { .. } => SecretSourceError::Forbidden(text),
                    Error::Malformed { .. } | Error::KeyMissing { .. } => SecretSourceError::Malformed(text),
                    Error::Unavailable { .. } => SecretSourceError::Unavailable(text),
                }
            })
        })
    }
}
