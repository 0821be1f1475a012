//! Where tokens come from: Entra for service principals, the node's IMDS for managed identities.

mod authority;
mod budget;
mod config;
mod entra;
mod federation;
pub(crate) mod http;
pub(crate) mod imds;
mod limit;
pub(crate) mod retry_after;
mod shared;
mod spreading;
mod trying;

use std::{
    fmt,
    marker::PhantomData,
    sync::{Arc, Weak},
    time::Duration,
};

use futures::future::BoxFuture;
use identity_core::lookup::{CredentialSource, Identity};
use identity_crd::IdentityType;
use secrecy::SecretString;
use tokio::{
    sync::broadcast,
    time::{Instant, timeout},
};

pub use authority::{AuthorityError, AuthorityHosts, DEFAULT_AUTHORITY, DEFAULT_HOSTS};
pub use config::{Sources, UpstreamConfig};
pub use limit::ImdsBudget;
pub(crate) use shared::Upstream;

use self::{
    federation::Federated,
    limit::RetryBudget,
    shared::{Missed, Run},
};
use crate::{
    clock::Clock,
    credentials::{Bearers, Credentials, Notice, explain},
    metrics::Metrics,
    tokens::{Ask, Backend, FetchError, Freshness, Token, TokenError, Urgency},
};

/// Why an attempt failed.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// For good.
    Permanent(TokenError),
    /// The credential was refused: worth one more attempt when there is another one meanwhile.
    Credential {
        /// What Entra said.
        error: TokenError,
        /// It may be that Entra does not know it yet.
        spreads: bool,
    },
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
    inner: Arc<Inner>,
    clock: PhantomData<fn() -> C>,
}

struct Inner {
    upstream: Arc<Upstream>,
    credentials: Credentials,
    federated: Federated,
    retries: RetryBudget,
}

impl<C: Clock> Azure<C> {
    /// `tls` says whom to trust; its crypto provider is the caller's. Credentials are from `sources`: an
    /// `Arc<impl SecretSource>` will do where there are Secrets only.
    pub fn new(
        config: UpstreamConfig,
        tls: rustls::ClientConfig,
        sources: impl Into<Sources>,
        clock: C,
        metrics: Arc<Metrics>,
    ) -> Self {
        let upstream = Arc::new(Upstream::new(config, tls, Arc::new(clock), metrics));
        let sources = sources.into();
        let inner = Arc::new_cyclic(|inner: &Weak<Inner>| Inner {
            federated: Federated::new(sources.assertions.clone()),
            credentials: Credentials::new(Arc::clone(&upstream), sources, inner.clone()),
            upstream,
            retries: RetryBudget::new(),
        });
        Self { inner, clock: PhantomData }
    }

    /// What the node may ask of its IMDS: to be shared with whatever else asks it for tokens.
    pub fn imds_budget(&self) -> ImdsBudget {
        self.inner.upstream.imds_budget()
    }

    /// What asks, and what it asks with.
    pub(crate) fn parts(&self) -> (&Arc<Upstream>, &Credentials) {
        (&self.inner.upstream, &self.inner.credentials)
    }
}

impl<C> fmt::Debug for Azure<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Azure").field("config", &self.inner.upstream.config).finish_non_exhaustive()
    }
}

impl Inner {
    async fn attempt(&self, run: &mut Run<'_>, refused: Option<u64>) -> Result<Token, Missed> {
        let identity = run.identity;
        if identity.kind == IdentityType::UserAssignedManagedIdentity {
            return self.upstream.managed(run).await;
        }
        // Nothing that is wrong with a credential is cured by asking again at once.
        let permanent = |error| Missed::Failed(Failure::Permanent(error), 0);
        let application = self.upstream.application(identity).map_err(permanent)?;
        if let CredentialSource::Federated(federation) = &identity.credential {
            return self.federated.token(&self.upstream, run, &application, federation, refused).await;
        }
        let loaded = self.credentials.get(identity, refused).await.map_err(permanent)?;
        if refused == Some(loaded.version) {
            // Read again and still the same: the refusal stands.
            let unchanged = Failure::Transient { message: String::new(), retry_after: None };
            return Err(Missed::Failed(unchanged, loaded.version));
        }
        let shown = self.upstream.spreading.shown(identity, loaded.version);
        let answer = self.upstream.entra(run, &application, &loaded.credential, loaded.version).await;
        match answer {
            Ok(token) => {
                self.upstream.spreading.worked(shown);
                self.credentials.worked(identity, loaded.version, run.resource);
                Ok(token)
            }
            Err(Missed::Failed(Failure::Credential { error, spreads }, version)) => {
                // There may be another one meanwhile. If not, this is what is told.
                let temporary = spreads && self.upstream.spreading.is_new(shown);
                let error = if temporary { unknown_yet(identity, explain(&error)) } else { error };
                Err(Missed::Failed(Failure::Credential { error, spreads }, version))
            }
            Err(missed) => Err(missed),
        }
    }

    async fn attempts(&self, run: &mut Run<'_>) -> Result<Token, FetchError> {
        let identity = run.identity;
        let mut refused: Option<(TokenError, u64)> = None;
        let mut attempt = 0_u32;
        self.retries.deposit();
        loop {
            attempt += 1;
            let version = refused.as_ref().map(|(_, version)| *version);
            let (failure, used) = match self.attempt(run, version).await {
                Ok(token) => return Ok(token),
                Err(Missed::Abandoned) => return Err(FetchError::Abandoned),
                Err(Missed::Failed(failure, used)) => (failure, used),
            };
            if let Some((error, version)) = &refused
                && used == *version
            {
                return Err(error.clone().into());
            }
            let (message, asked) = match failure {
                Failure::Permanent(error) => return Err(error.into()),
                Failure::Credential { error, .. } if refused.is_some() => return Err(error.into()),
                Failure::Credential { error, .. } => {
                    refused = Some((error, used));
                    continue;
                }
                Failure::Transient { message, retry_after } => (message, retry_after),
            };
            let own =
                Duration::from_millis(200).saturating_mul(1 << attempt.min(6)).mul_f64(0.5 + rand::random::<f64>());
            let pause = asked.unwrap_or(own);
            let in_time = Instant::now() + pause < run.deadline;
            // A refresh ahead of time has time: the next try is as good.
            let wanted = run.interest.urgency() == Urgency::Urgent;
            if attempt >= self.upstream.config.attempts || !in_time || !wanted || !self.retries.withdraw() {
                tracing::warn!(
                    identity = %format_args!("{}/{}", identity.object.namespace, identity.object.name),
                    attempt, %message, "no token from upstream"
                );
                let retry_after = asked.unwrap_or(Duration::from_secs(2));
                return Err(TokenError::Unavailable { message, retry_after }.into());
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn fetch(&self, identity: &Arc<Identity>, resource: &str, mut ask: Ask) -> Result<Token, FetchError> {
        let UpstreamConfig { total_timeout, turn_timeout, .. } = self.upstream.config;
        let mut run = Run {
            identity,
            resource,
            freshness: ask.freshness,
            interest: &mut ask.interest,
            deadline: Instant::now() + total_timeout,
        };
        let outcome = timeout(total_timeout + turn_timeout, self.attempts(&mut run)).await;
        let outcome = outcome.unwrap_or_else(|_| {
            let message = format!("no token within {} s", (total_timeout + turn_timeout).as_secs());
            Err(TokenError::Unavailable { message, retry_after: Duration::from_secs(2) }.into())
        });
        if let Err(FetchError::Failed(error @ (TokenError::Refused(_) | TokenError::Misconfigured { .. }))) = &outcome {
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

impl Bearers for Inner {
    fn bearer<'a>(
        &'a self,
        identity: &'a Arc<Identity>,
        resource: &'a str,
    ) -> BoxFuture<'a, Result<(SecretString, i64), TokenError>> {
        Box::pin(async move {
            let ask = Ask::constant(Freshness::Any, Urgency::Urgent);
            let token = self.fetch(identity, resource, ask).await.map_err(failed)?;
            Ok((token.bearer(), token.expires_on().as_second()))
        })
    }
}

/// What Entra refuses and may only not know yet is not refused for good.
fn unknown_yet(identity: &Identity, message: String) -> TokenError {
    tracing::warn!(
        identity = %format_args!("{}/{}", identity.object.namespace, identity.object.name),
        %message, "no token: Entra may not know this credential yet"
    );
    TokenError::Unavailable { message, retry_after: spreading::AGAIN }
}

fn failed(error: FetchError) -> TokenError {
    match error {
        FetchError::Failed(error) => error,
        FetchError::Abandoned => {
            TokenError::Unavailable { message: FetchError::Abandoned.to_string(), retry_after: Duration::from_secs(1) }
        }
    }
}

impl<C: Clock> Backend for Azure<C> {
    fn credential_version(&self, identity: &Identity) -> u64 {
        match identity.credential {
            CredentialSource::Secret(_) | CredentialSource::KeyVault(_) => self.inner.credentials.version(identity),
            CredentialSource::None | CredentialSource::Federated(_) => 0,
        }
    }

    async fn fetch(&self, identity: &Arc<Identity>, resource: &str, freshness: Freshness) -> Result<Token, TokenError> {
        let ask = Ask::constant(freshness, Urgency::Urgent);
        self.inner.fetch(identity, resource, ask).await.map_err(failed)
    }

    async fn fetch_for(&self, identity: &Arc<Identity>, resource: &str, ask: Ask) -> Result<Token, FetchError> {
        self.inner.fetch(identity, resource, ask).await
    }

    fn notices(&self) -> Option<broadcast::Receiver<Notice>> {
        Some(self.inner.credentials.notices())
    }
}
