//! Tokens of pods' service accounts, made for one audience and bound to one pod (TokenRequest): the assertions of identities of
//! type 3 with `subject: Pod`. What the right to make them means is in ADR 17 and in the threat model.
//!
//! A token is kept for its pod and audience, renewed at four fifths of its life, and used on while it cannot be renewed, as
//! long as it has five minutes left. How many are kept is bounded.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kube::{Client, api::PostParams};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::json;

use super::{
    Clock,
    request::{Failure, send},
};
use crate::pod::PodRef;

/// How long one request may take.
const LIMIT: Duration = Duration::from_secs(5);
/// What is asked for, in seconds: the most that the admission policy allows.
const LIFETIME: u32 = 3600;
/// What a token must have left to be used while it cannot be renewed.
const LEFT: Duration = Duration::from_mins(5);
/// The most tokens kept: more than pods of a node times audiences of the clouds.
const CAPACITY: usize = 1024;
/// The longest token that is looked at, in bytes.
const LONGEST: usize = 16 * 1024;

/// Why there is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nobody said which service account the pod runs as.
    #[error("pod {pod}: its service account is not known, so that no token can be made for it")]
    NoServiceAccount {
        /// Namespace and name.
        pod: String,
    },
    /// The pod or the service account is gone.
    #[error("pod {pod}: no token of service account {service_account}: the pod or the account is gone ({message})")]
    Gone {
        /// Namespace and name of the pod.
        pod: String,
        /// Namespace and name.
        service_account: String,
        /// The server's words.
        message: String,
    },
    /// This account may not make it.
    #[error(
        "not allowed to make a token of service account {service_account} for pod {pod}: grant verb `create` on resource \
         `serviceaccounts/token`, by the account's name, to the node's account (examples/federated-pod/role.yaml), and see that \
         deploy/admission-policy-tokens.yaml allows the audience. The API server said: {message}"
    )]
    Forbidden {
        /// Namespace and name of the pod.
        pod: String,
        /// Namespace and name.
        service_account: String,
        /// The server's words.
        message: String,
    },
    /// It cannot be told now.
    #[error("pod {pod}: no token of service account {service_account} now: {reason}")]
    Unavailable {
        /// Namespace and name of the pod.
        pod: String,
        /// Namespace and name.
        service_account: String,
        /// Why.
        reason: String,
        /// When the server wants to be asked again, if it said so.
        retry_after: Option<Duration>,
    },
}

/// Makes tokens and keeps them. Cheap to clone.
#[derive(Clone)]
pub struct TokenRequests {
    client: Client,
    clock: Arc<dyn Clock>,
    places: Arc<Mutex<HashMap<Key, Place>>>,
}

/// UID of the pod, audience.
type Key = (Arc<str>, Box<str>);
/// Held while a token is made: whoever comes meanwhile waits for that one.
type Place = Arc<tokio::sync::Mutex<Option<Kept>>>;

struct Kept {
    token: SecretString,
    /// Times of [`Clock::uptime`].
    renew: Duration,
    end: Duration,
}

impl fmt::Debug for TokenRequests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenRequests").field("kept", &self.lock().len()).finish_non_exhaustive()
    }
}

impl TokenRequests {
    /// `clock` must go on while the machine sleeps.
    pub fn new(client: Client, clock: Arc<dyn Clock>) -> Self {
        Self { client, clock, places: Arc::default() }
    }

    /// A token of the pod's service account for `audience`, bound to the pod: the API server takes it for invalid once the
    /// pod is gone. Answers within 5 seconds for each request before this one for the same pod and audience.
    pub async fn token(&self, pod: &PodRef, audience: &str) -> Result<SecretString, Error> {
        if pod.service_account.is_empty() {
            return Err(Error::NoServiceAccount { pod: named(pod) });
        }
        let place = self.place((Arc::clone(&pod.uid), audience.into()));
        let mut kept = place.lock().await;
        let begun = self.clock.uptime();
        if let Some(kept) = kept.as_ref().filter(|kept| begun < kept.renew) {
            return Ok(copy(&kept.token));
        }
        match self.make(pod, audience).await {
            Ok((token, lifetime)) => {
                let answer = copy(&token);
                *kept = Some(Kept { token, renew: begun + lifetime.mul_f64(0.8), end: begun + lifetime });
                Ok(answer)
            }
            Err(error @ Error::Unavailable { .. }) => match kept.as_ref() {
                Some(kept) if self.clock.uptime() + LEFT < kept.end => Ok(copy(&kept.token)),
                _ => Err(error),
            },
            // What is certain ends it.
            Err(error) => {
                *kept = None;
                Err(error)
            }
        }
    }

    /// The pod is gone.
    pub fn forget(&self, pod_uid: &str) {
        self.lock().retain(|(uid, _), _| **uid != *pod_uid);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, key: Key) -> Place {
        let mut places = self.lock();
        if !places.contains_key(&key) && places.len() >= CAPACITY {
            let now = self.clock.uptime();
            places.retain(|_, place| {
                // Whoever is at it keeps it.
                place.try_lock().map_or(true, |kept| kept.as_ref().is_some_and(|kept| now < kept.renew))
            });
            if places.len() >= CAPACITY {
                // Far beyond any node's number of pods: start over rather than grow.
                places.clear();
            }
        }
        Arc::clone(places.entry(key).or_default())
    }

    async fn make(&self, pod: &PodRef, audience: &str) -> Result<(SecretString, Duration), Error> {
        let unavailable = |reason: String, retry_after| Error::Unavailable {
            pod: named(pod),
            service_account: account(pod),
            reason,
            retry_after,
        };
        // By hand: the type differs between versions of the API, these fields do not.
        let wanted = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": [audience],
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": &*pod.name, "uid": &*pod.uid},
                "expirationSeconds": LIFETIME,
            },
        });
        let body = serde_json::to_vec(&wanted).map_err(|error| unavailable(error.to_string(), None))?;
        let url = format!("/api/v1/namespaces/{}/serviceaccounts", pod.namespace);
        let request = kube::core::Request::new(url)
            .create_subresource("token", &pod.service_account, &PostParams::default(), body)
            .map_err(|error| unavailable(error.to_string(), None))?;
        let made: Made = send(&self.client, request, LIMIT).await.map_err(|failure| match failure {
            Failure::NotFound(message) | Failure::Conflict(message) => {
                Error::Gone { pod: named(pod), service_account: account(pod), message }
            }
            Failure::Forbidden(message) | Failure::Refused { message, .. } => {
                Error::Forbidden { pod: named(pod), service_account: account(pod), message }
            }
            // The parser's words may quote the token.
            Failure::Unreadable(_) => unavailable("the API server's answer cannot be read".to_owned(), None),
            other => unavailable(other.to_string(), other.retry_after()),
        })?;
        let Wiped(token) = made.status.token;
        if token.expose_secret().is_empty() || token.expose_secret().len() > LONGEST {
            return Err(unavailable("the API server's answer has no token that can be used".to_owned(), None));
        }
        let lifetime = made.spec.expiration_seconds.unwrap_or(LIFETIME);
        Ok((token, Duration::from_secs(lifetime.into())))
    }
}

/// An answer: what of it is needed.
#[derive(Deserialize)]
struct Made {
    #[serde(default)]
    spec: MadeSpec,
    status: MadeStatus,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MadeSpec {
    /// What was given, which may be another time than what was asked for.
    expiration_seconds: Option<u32>,
}

#[derive(Deserialize)]
struct MadeStatus {
    token: Wiped,
}

/// A string that is wiped after use.
struct Wiped(SecretString);

impl<'de> Deserialize<'de> for Wiped {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(text.into()))
    }
}

fn copy(token: &SecretString) -> SecretString {
    token.expose_secret().into()
}

fn named(pod: &PodRef) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

fn account(pod: &PodRef) -> String {
    format!("{}/{}", pod.namespace, pod.service_account)
}

#[cfg(test)]
#[path = "token_request_tests.rs"]
mod tests;
