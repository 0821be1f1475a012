//! Where tokens come from: Entra for service principals, the node's IMDS for managed identities.

mod authority;
mod budget;
mod credentials;
mod entra;
mod http;
pub(crate) mod imds;
mod limit;

use std::{fmt, sync::Arc, time::Duration};

use ::http::Uri;
use identity_core::lookup::Identity;
use identity_crd::IdentityType;
use tokio::time::Instant;

pub use authority::{AuthorityError, AuthorityHosts, DEFAULT_AUTHORITY, DEFAULT_HOSTS};

use self::{
    budget::{Rates, Who},
    credentials::Credentials,
    entra::TokenRequest,
    http::Clients,
    limit::{Limit, NoTurn, RetryBudget, Tenants, Turn},
};
use crate::{
    clock::Clock,
    metrics::Metrics,
    secrets::{IdentitySource, SecretSource},
    tokens::{Ask, Backend, FetchError, Freshness, Interest, Token, TokenError, Urgency},
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
    /// For all attempts together, without the waiting for turns.
    pub total_timeout: Duration,
    /// For waiting for a turn: the node asks only so often.
    pub turn_timeout: Duration,
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
            turn_timeout: Duration::from_secs(15),
            attempts: 3,
            credential_age: Duration::from_mins(1),
        }
    }
}

/// Where credentials come from.
#[derive(Clone)]
pub struct Sources {
    /// Secrets.
    pub secrets: Arc<dyn SecretSource>,
    /// Identities that read Key Vaults; without it none is found.
    pub identities: Option<Arc<dyn IdentitySource>>,
}

impl<S: SecretSource> From<Arc<S>> for Sources {
    fn from(secrets: Arc<S>) -> Self {
        Self { secrets, identities: None }
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").finish_non_exhaustive()
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
    entra: Tenants,
    retries: RetryBudget,
}

impl<C: Clock> Azure<C> {
    /// `tls` says whom to trust; its crypto provider is the caller's.
    pub fn new(
        config: UpstreamConfig,
        tls: rustls::ClientConfig,
        sources: impl Into<Sources>,
        clock: C,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            clients: Clients::new(tls, config.request_timeout),
            credentials: Credentials::new(sources.into().secrets, config.credential_age),
            clock,
            metrics,
            // Per VM 20 in any second, 5 at a time (imds-and-clients §1.1); a little below, because the VM's other programs
            // ask too.
            imds: Limit::new(Rates { at_once: 5, burst: 4, a_second: 14 }),
            entra: Tenants::new(Rates { at_once: 32, burst: 20, a_second: 80 }),
            retries: RetryBudget::new(),
            config,
        }
    }

    async fn attempt(&self, run: &mut Run<'_>, refused: Option<u64>) -> Result<Token, Missed> {
        let Run { identity, resource, freshness, .. } = *run;
        if identity.kind == IdentityType::UserAssignedManagedIdentity {
            let endpoint = &self.config.metadata_endpoint;
            let _turn = self.turn(&self.imds, run).await?;
            let exchange = imds::token(&self.clients, endpoint, identity, resource, freshness, self.clock.now());
            return self
                .exchange("imds", &self.imds, run, exchange)
                .await
                .map_err(|failure| Missed::Failed(failure, 0));
        }
        let wrong =
            |message: String| Missed::Failed(Failure::Permanent(TokenError::misconfigured(identity, message)), 0);
        // Where a credential would go is settled before one is read.
        let endpoint = self
            .config
            .authority_hosts
            .token_endpoint(identity.authority.as_deref(), identity.tenant_id.as_deref())
            .map_err(|error| wrong(error.to_string()))?;
        let client_id = identity.client_id.as_deref().map(str::trim).filter(|id| !id.is_empty());
        let client_id = client_id.ok_or_else(|| wrong("spec.clientID is missing".to_owned()))?;
        // Nothing that is wrong with a Secret is cured by asking again at once.
        let permanent = |error| Missed::Failed(Failure::Permanent(error), 0);
        let loaded = self.credentials.get(identity, refused).await.map_err(permanent)?;
        if refused == Some(loaded.version) {
            // Read again and still the same: the refusal stands.
            let unchanged = Failure::Transient { message: String::new(), retry_after: None };
            return Err(Missed::Failed(unchanged, loaded.version));
        }
        let request = TokenRequest {
            identity,
            client_id,
            endpoint: &endpoint,
            credential: &loaded.credential,
            version: loaded.version,
            resource,
        };
        let limit = self.entra.of(crate::digest::first64(endpoint.as_str().to_ascii_lowercase().as_bytes()));
        let _turn = self.turn(&limit, run).await?;
        let exchange = entra::token(&self.clients, &request, self.clock.now());
        let answer = self.exchange("entra", &limit, run, exchange).await;
        answer.map_err(|failure| Missed::Failed(failure, loaded.version))
    }

    /// Waits for a turn; that does not count as the upstream's time.
    async fn turn(&self, limit: &Limit, run: &mut Run<'_>) -> Result<Turn, Missed> {
        let begin = Instant::now();
        let until = begin + self.config.turn_timeout;
        let turn = tokio::time::timeout_at(until, limit.turn(who(run.identity), run.interest, until)).await;
        run.deadline += begin.elapsed();
        match turn {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(NoTurn::Abandoned)) => Err(Missed::Abandoned),
            Ok(Err(NoTurn::Paused(left))) => {
                let message = format!("upstream asked not to be asked for {} s", left.as_secs() + 1);
                Err(Missed::Failed(Failure::Transient { message, retry_after: Some(left) }, 0))
            }
            // There is a token, and there will be another time.
            Err(_late) if run.interest.urgency() == Urgency::Early => Err(Missed::Abandoned),
            Err(_late) => {
                let message = "the node asks upstream as often as it may; others came first".to_owned();
                Err(Missed::Failed(Failure::Transient { message, retry_after: None }, 0))
            }
        }
    }

    /// One exchange, within the time that is left; what the upstream asks for is learnt for all who ask it.
    async fn exchange(
        &self,
        upstream: &'static str,
        limit: &Limit,
        run: &Run<'_>,
        exchange: impl Future<Output = Result<Token, Failure>>,
    ) -> Result<Token, Failure> {
        let begin = Instant::now();
        let answer = tokio::time::timeout_at(run.deadline, exchange).await.unwrap_or_else(|_| {
            let message = format!("no token within {} s", self.config.total_timeout.as_secs());
            Err(Failure::Transient { message, retry_after: None })
        });
        if let Err(Failure::Transient { retry_after: Some(pause), .. }) = &answer {
            limit.pause(*pause);
        }
        self.observe(upstream, begin, &answer);
        answer
    }

    fn observe(&self, upstream: &'static str, begin: Instant, answer: &Result<Token, Failure>) {
        let outcome = match answer {
            Ok(_) => "ok",
            Err(Failure::Permanent(_) | Failure::Credential(_)) => "refused",
            Err(Failure::Transient { .. }) => "failed",
        };
        self.metrics.upstream(upstream, outcome, begin.elapsed());
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
                Failure::Credential(error) if refused.is_some() => return Err(error.into()),
                Failure::Credential(error) => {
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
            if attempt >= self.config.attempts || !in_time || !wanted || !self.retries.withdraw() {
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
}

/// One token that is asked for, in one attempt or several.
struct Run<'a> {
    identity: &'a Identity,
    resource: &'a str,
    freshness: Freshness,
    interest: &'a mut Interest,
    deadline: Instant,
}

/// Why an attempt brought nothing.
enum Missed {
    /// It failed, with the credential of this version.
    Failed(Failure, u64),
    /// It did not begin: nobody wanted it any more.
    Abandoned,
}

/// Whose turn it is. Not the pod's: pods with the same identity share its tokens, so that they wait for the same.
fn who(identity: &Identity) -> Who {
    let object = &identity.object;
    let identity = [&*object.namespace, &*object.name, &*object.uid].join("/");
    Who {
        namespace: crate::digest::first64(object.namespace.as_bytes()),
        identity: crate::digest::first64(identity.as_bytes()),
    }
}

impl<C: Clock> Backend for Azure<C> {
    fn credential_version(&self, identity: &Identity) -> u64 {
        match identity.credential.secret() {
            Some(secret) if identity.kind != IdentityType::UserAssignedManagedIdentity => {
                self.credentials.version(secret)
            }
            _ => 0,
        }
    }

    async fn fetch(&self, identity: &Arc<Identity>, resource: &str, freshness: Freshness) -> Result<Token, TokenError> {
        let ask = Ask::constant(freshness, Urgency::Urgent);
        self.fetch_for(identity, resource, ask).await.map_err(|error| match error {
            FetchError::Failed(error) => error,
            FetchError::Abandoned => TokenError::Unavailable {
                message: FetchError::Abandoned.to_string(),
                retry_after: Duration::from_secs(1),
            },
        })
    }

    async fn fetch_for(&self, identity: &Arc<Identity>, resource: &str, mut ask: Ask) -> Result<Token, FetchError> {
        let UpstreamConfig { total_timeout, turn_timeout, .. } = self.config;
        let mut run = Run {
            identity,
            resource,
            freshness: ask.freshness,
            interest: &mut ask.interest,
            deadline: Instant::now() + total_timeout,
        };
        let outcome = tokio::time::timeout(total_timeout + turn_timeout, self.attempts(&mut run)).await;
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
