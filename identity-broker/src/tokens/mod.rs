//! Getting tokens: the interface, what may go wrong, and the [`Manager`] that has them at hand.
//!
//! ```text
//! Tokens::ready ─ shelf (read-mostly, no lock) ───────────────── answer
//! Tokens::get ── bounded channel ─ driver ─ machine ─ effects ─┬─ Backend::fetch_for, one for each key
//!                                                              ├─ shelf
//!                                                              └─ answers, notices, timer
//! ```

mod config;
mod interest;
mod key;
mod machine;
mod manager;
mod shelf;
mod token;

use std::{fmt, sync::Arc, time::Duration};

use identity_core::lookup::Identity;
use thiserror::Error;
use tokio::sync::broadcast;

pub use config::ManagerConfig;
pub use interest::{Ask, FetchError, Interest, Urgency};
pub(crate) use key::same;
pub(crate) use machine::schedule::Chance;
pub use manager::Manager;
pub use token::{Issued, Shape, Token};

pub use crate::credentials::Notice;

/// Where a token may come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Freshness {
    /// From where it is.
    #[default]
    Any,
    /// From upstream, past every cache.
    Upstream,
}

/// Gets tokens. Whether the caller may have one has been decided before.
pub trait Tokens: Send + Sync + 'static {
    /// What is at hand: a token of `identity` for `resource`, or the failure to get one a moment ago. `None` says that
    /// upstream has to be asked. Never waits.
    fn ready(&self, identity: &Arc<Identity>, resource: &str) -> Option<Result<Arc<Token>, TokenError>>;

    /// A token of `identity` for `resource` (as the pod sent it).
    fn get(
        &self,
        identity: &Arc<Identity>,
        resource: &str,
        freshness: Freshness,
    ) -> impl Future<Output = Result<Arc<Token>, TokenError>> + Send;

    /// The same on behalf of a pod, by its UID: how much is kept for one pod is bounded.
    fn get_for(
        &self,
        _pod: &str,
        identity: &Arc<Identity>,
        resource: &str,
        freshness: Freshness,
    ) -> impl Future<Output = Result<Arc<Token>, TokenError>> + Send {
        self.get(identity, resource, freshness)
    }
}

/// Where tokens come from when none is at hand.
pub trait Backend: Send + Sync + 'static {
    /// Version of the credential that backs `identity`, as far as known; 0 when it has none or none is known.
    fn credential_version(&self, identity: &Identity) -> u64;

    /// Asks upstream. Bounded in time by the implementation.
    fn fetch(
        &self,
        identity: &Arc<Identity>,
        resource: &str,
        freshness: Freshness,
    ) -> impl Future<Output = Result<Token, TokenError>> + Send;

    /// Asks upstream, in the order of what matters: a request that is yet to begin lets more urgent ones pass, and does not
    /// begin when nobody wants it any more. By default as [`fetch`](Self::fetch).
    fn fetch_for(
        &self,
        identity: &Arc<Identity>,
        resource: &str,
        ask: Ask,
    ) -> impl Future<Output = Result<Token, FetchError>> + Send {
        let fetch = self.fetch(identity, resource, ask.freshness);
        async move { fetch.await.map_err(FetchError::Failed) }
    }

    /// What it has to tell from now on, if anything ever: the manager tells it on, and replaces the tokens of a credential
    /// that was [`Rotated`](Notice::Rotated).
    fn notices(&self) -> Option<broadcast::Receiver<Notice>> {
        None
    }
}

/// Why there is no token. Never holds a secret.
#[derive(Clone, Debug, Error)]
pub enum TokenError {
    /// Entra or IMDS refused for good: asking again changes nothing.
    #[error("{0}")]
    Refused(Refusal),
    /// The identity cannot work as its objects are.
    #[error("AzureIdentity {identity}: {message}")]
    Misconfigured {
        /// Namespace and name.
        identity: String,
        /// What is wrong, and what to do.
        message: String,
    },
    /// Not now.
    #[error("{message}")]
    Unavailable {
        /// What did not work.
        message: String,
        /// When it is worth asking again.
        retry_after: Duration,
    },
}

/// A refusal by Entra or IMDS.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// `error`, one of the words the endpoint knows.
    pub error: RefusalKind,
    /// The first line of `error_description` (with the AADSTS code), or of the text.
    pub description: String,
    /// Trace id, for Microsoft's support.
    pub trace_id: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.description)
    }
}

/// `error` of a refusal, from a bounded set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// `invalid_request`, and whatever is not known.
    InvalidRequest,
    /// `invalid_client`.
    InvalidClient,
    /// `invalid_resource`.
    InvalidResource,
    /// `invalid_scope`.
    InvalidScope,
    /// `unauthorized_client`.
    UnauthorizedClient,
    /// `access_denied`.
    AccessDenied,
}

impl RefusalKind {
    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::InvalidClient => "invalid_client",
            Self::InvalidResource => "invalid_resource",
            Self::InvalidScope => "invalid_scope",
            Self::UnauthorizedClient => "unauthorized_client",
            Self::AccessDenied => "access_denied",
        }
    }

    /// The kind of an upstream's word.
    pub fn of(word: &str) -> Self {
        [Self::InvalidClient, Self::InvalidResource, Self::InvalidScope, Self::UnauthorizedClient, Self::AccessDenied]
            .into_iter()
            .find(|kind| kind.as_str() == word)
            .unwrap_or(Self::InvalidRequest)
    }
}

impl TokenError {
    pub(crate) fn misconfigured(identity: &Identity, message: impl Into<String>) -> Self {
        let object = &identity.object;
        Self::Misconfigured { identity: format!("{}/{}", object.namespace, object.name), message: message.into() }
    }
}
