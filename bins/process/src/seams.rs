//! What the runtime follows, as the broker wants it.

use std::sync::Arc;

use futures::future::BoxFuture;
use identity_broker::{
    IdentitySource, SecretData, SecretSource, SecretSourceError,
    federated::{PodTokenError, PodTokens},
};
use identity_core::{
    lookup::Identity,
    pod::PodRef,
    runtime::{
        identities::Identities,
        secrets::{Error, Secrets},
        token_request::{self, TokenRequests},
    },
};
use secrecy::SecretString;
use tokio::sync::watch;

/// [`Secrets`] for the broker.
#[derive(Clone, Debug)]
pub struct FollowedSecrets(pub Secrets);

impl SecretSource for FollowedSecrets {
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

    fn follow(&self, namespace: &str, name: &str) -> watch::Receiver<u64> {
        self.0.follow(namespace, name)
    }
}

/// [`Identities`] for the broker.
#[derive(Clone, Debug)]
pub struct FollowedIdentities(pub Identities);

impl IdentitySource for FollowedIdentities {
    fn get(&self, namespace: &str, name: &str) -> Option<Arc<Identity>> {
        self.0.get(namespace, name)
    }
}

/// [`TokenRequests`] for the broker.
#[derive(Clone, Debug)]
pub struct RequestedTokens(pub TokenRequests);

impl PodTokens for RequestedTokens {
    fn token<'a>(&'a self, pod: &'a PodRef, audience: &'a str) -> BoxFuture<'a, Result<SecretString, PodTokenError>> {
        Box::pin(async move {
            self.0.token(pod, audience).await.map_err(|error| {
                let message = error.to_string();
                match error {
                    token_request::Error::Unavailable { retry_after, .. } => {
                        PodTokenError::Unavailable { message, retry_after }
                    }
                    _ => PodTokenError::Refused(message),
                }
            })
        })
    }
}
