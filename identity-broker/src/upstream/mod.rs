//! Where tokens come from: Entra for service principals, the node's IMDS for managed identities.

mod authority;
mod credential;
mod credentials;
mod entra;
mod http;
pub(crate) mod imds;
mod limit;
mod turns;

use std::{sync::Arc, time::Duration};

use ::http::Uri;
use identity_core::lookup::Identity;
use identity_crd::IdentityType;
use tokio::time::Instant;

pub use authority::{AuthorityError, AuthorityHosts, DEFAULT_AUTHORITY, DEFAULT_HOSTS};
pub use credential::{CredentialError, CredentialProblem};

use self::{
    credentials::Credentials,
    entra::TokenRequest,
    http::Clients,
    limit::{Limit, RetryBudget},
};
use crate::{
    clock::Clock,
    metrics::Metrics,
    secrets::SecretSource,
    tokens::{Backend, Freshness, Token, TokenError},
};

/// Where and how to ask.
#[derive(Clone, Debug)]
pub struct UpstreamConfig {
    /// The node's own IMDS, `http://169.254.169.254`.
    pub metadata_endpoint: Uri,
    /// Hosts that credentials may be sent to.
    pub authority_hosts: AuthorityHosts,
    /// For one request.
    pub request_timeout: Duration,
    /// For all attempts together, waiting for a turn included.
    pub total_timeout: Duration,
    /// The most attempts.
    pub attempts: u32,
    /// A credential older than this is read again before use.
    pub credential_age: Duration,
}

impl Default for UpstreamConfig {
    fn default() -> Self {
        Self {
            metadata_endpoint: Uri::from_static("http://169.254.169.254"),
            authority_hosts: AuthorityHosts::default(),
            request_timeout: Duration::from_secs(5),
            total_timeout: Duration::from_secs(10),
            attempts: 3,
            credential_age: Duration::from_mins(1),
        }
    }
}

/// Why an attempt failed.
pub(crate) enum Failure {
    /// For good.
    Permanent(TokenError),
    /// The credential was refused: worth one more attempt when the Secret has changed meanwhile.
    Credential(TokenError),
    /// Worth another attempt.
    Transient {
        /// What did not work.
        message: String,
        /// What the upstream asked for.
        retry_after: Option<Duration>,
    },
}

/// Entra and IMDS.
pub struct Azure<C> {
    config: UpstreamConfig,
    clients: Clients,
    credentials: Credentials,
    clock: C,
    metrics: Arc<Metrics>,
    imds: Limit,
    entra: Limit,
    retries: RetryBudget,
}

impl<C: Clock> Azure<C> {
    /// `tls` says whom to trust; its crypto provider is the caller's.
    pub fn new(
        config: UpstreamConfig,
        tls: rustls::ClientConfig,
        secrets: Arc<dyn SecretSource>,
        clock: C,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            clients: Clients::new(tls, config.request_timeout),
            credentials: Credentials::new(secrets, config.credential_age),
            clock,
            metrics,
            // Per VM 20 in any second, 5 at a time (imds-and-clients §1.1); a little below, because the VM's other programs
            // ask too.
            imds: Limit::new(5, 4, 14),
            entra: Limit::new(32, 20, 80),
            retries: RetryBudget::new(),
            config,
        }
    }

    async fn attempt(
        &self,
        identity: &Identity,
        resource: &str,
        freshness: Freshness,
        refused: Option<u64>,
    ) -> Result<Token, (Failure, u64)> {
        if identity.kind == IdentityType::UserAssignedManagedIdentity {
            let endpoint = &self.config.metadata_endpoint;
            let _turn = self.imds.turn(who(identity)).await;
            let begin = Instant::now();
            let answer = imds::token(&self.clients, endpoint, identity, resource, freshness, self.clock.now()).await;
            self.observe("imds", begin, &answer);
            return answer.map_err(|failure| (failure, 0));
        }
        let wrong = |message: String| (Failure::Permanent(TokenError::misconfigured(identity, message)), 0);
        // Where a credential would go is settled before one is read.
        let endpoint = self
            .config
            .authority_hosts
            .token_endpoint(identity.authority.as_deref(), identity.tenant_id.as_deref())
            .map_err(|error| wrong(error.to_string()))?;
        let client_id = identity.client_id.as_deref().map(str::trim).filter(|id| !id.is_empty());
        let client_id = client_id.ok_or_else(|| wrong("spec.clientID is missing".to_owned()))?;
        // Nothing that is wrong with a Secret is cured by asking again at once.
        let loaded = self.credentials.get(identity, refused).await.map_err(|error| (Failure::Permanent(error), 0))?;
        if refused == Some(loaded.version) {
            // Read again and still the same: the refusal stands.
            return Err((Failure::Transient { message: String::new(), retry_after: None }, loaded.version));
        }
        let request = TokenRequest {
            identity,
            client_id,
            endpoint: &endpoint,
            credential: &loaded.credential,
            version: loaded.version,
            resource,
        };
        let _turn = self.entra.turn(who(identity)).await;
        let begin = Instant::now();
        let answer = entra::token(&self.clients, &request, self.clock.now()).await;
        self.observe("entra", begin, &answer);
        answer.map_err(|failure| (failure, loaded.version))
    }

    fn observe(&self, upstream: &'static str, begin: Instant, answer: &Result<Token, Failure>) {
        let outcome = match answer {
            Ok(_) => "ok",
            Err(Failure::Permanent(_) | Failure::Credential(_)) => "refused",
            Err(Failure::Transient { .. }) => "failed",
        };
        self.metrics.upstream(upstream, outcome, begin.elapsed());
    }

    async fn attempts(&self, identity: &Identity, resource: &str, freshness: Freshness) -> Result<Token, TokenError> {
        let deadline = Instant::now() + self.config.total_timeout;
        let mut refused: Option<(TokenError, u64)> = None;
        let mut attempt = 0_u32;
        self.retries.deposit();
        loop {
            attempt += 1;
            let version = refused.as_ref().map(|(_, version)| *version);
            let (failure, used) = match self.attempt(identity, resource, freshness, version).await {
                Ok(token) => return Ok(token),
                Err(failed) => failed,
            };
            if let Some((error, version)) = &refused
                && used == *version
            {
                return Err(error.clone());
            }
            let (message, asked) = match failure {
                Failure::Permanent(error) => return Err(error),
                Failure::Credential(error) if refused.is_some() => return Err(error),
                Failure::Credential(error) => {
                    refused = Some((error, used));
                    continue;
                }
                Failure::Transient { message, retry_after } => (message, retry_after),
            };
            let own =
                Duration::from_millis(200).saturating_mul(1 << attempt.min(6)).mul_f64(0.5 + rand::random::<f64>());
            let pause = asked.unwrap_or(own);
            let in_time = Instant::now() + pause < deadline;
            if attempt >= self.config.attempts || !in_time || !self.retries.withdraw() {
                tracing::warn!(
                    identity = %format_args!("{}/{}", identity.object.namespace, identity.object.name),
                    attempt, %message, "no token from upstream"
                );
                return Err(TokenError::Unavailable { message, retry_after: asked.unwrap_or(Duration::from_secs(2)) });
            }
            tokio::time::sleep(pause).await;
        }
    }
}

/// Whose turn it is. Not the pod's: pods with the same identity share its tokens, so that they wait for the same.
fn who(identity: &Identity) -> u64 {
    let object = &identity.object;
    crate::digest::first64([&*object.namespace, &*object.name, &*object.uid].join("/").as_bytes())
}

impl<C: Clock> Backend for Azure<C> {
    fn credential_version(&self, identity: &Identity) -> u64 {
        match &identity.secret {
            Some(secret) if identity.kind != IdentityType::UserAssignedManagedIdentity => {
                self.credentials.version(secret)
            }
            _ => 0,
        }
    }

    async fn fetch(&self, identity: &Arc<Identity>, resource: &str, freshness: Freshness) -> Result<Token, TokenError> {
        let outcome =
            tokio::time::timeout(self.config.total_timeout, self.attempts(identity, resource, freshness)).await;
        let outcome = outcome.unwrap_or_else(|_| {
            Err(TokenError::Unavailable {
                message: format!("no token within {} s", self.config.total_timeout.as_secs()),
                retry_after: Duration::from_secs(2),
            })
        });
        if let Err(error @ (TokenError::Refused(_) | TokenError::Misconfigured { .. })) = &outcome {
            let trace_id = match error {
                TokenError::Refused(refusal) => refusal.trace_id.as_deref(),
                _ => None,
            };
            tracing::warn!(
                identity = %format_args!("{}/{}", identity.object.namespace, identity.object.name),
                trace_id, %error, "no token: refused"
            );
        }
        outcome
    }
}
