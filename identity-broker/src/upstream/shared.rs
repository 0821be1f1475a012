//! What asks Entra and IMDS, one request at a time: shared by those who get tokens and those who try credentials.

use std::{sync::Arc, time::Duration};

use identity_core::lookup::Identity;
use oauth2::url::Url;
use tokio::time::Instant;

use super::{
    Failure, UpstreamConfig,
    budget::{Rates, Who},
    entra::{self, TokenRequest},
    http::Clients,
    imds,
    limit::{ImdsBudget, Limit, NoTurn, Tenants, Turn},
    spreading::Spreading,
};
use crate::{
    clock::Clock,
    credentials::Credential,
    metrics::Metrics,
    tokens::{Freshness, Interest, Token, TokenError, Urgency},
    vault,
};

/// One token that is asked for, in one attempt or several.
pub(crate) struct Run<'a> {
    pub(crate) identity: &'a Arc<Identity>,
    pub(crate) resource: &'a str,
    pub(crate) freshness: Freshness,
    pub(crate) interest: &'a mut Interest,
    pub(crate) deadline: Instant,
}

/// Why an attempt brought nothing.
pub(crate) enum Missed {
    /// It failed, with the credential of this version.
    Failed(Failure, u64),
    /// It did not begin: nobody wanted it any more.
    Abandoned,
}

/// Who asks Entra, and where.
pub(crate) struct Application<'a> {
    pub(crate) client_id: &'a str,
    pub(crate) endpoint: Url,
}

/// The ways upstream.
pub(crate) struct Upstream {
    pub(crate) config: UpstreamConfig,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Arc<Metrics>,
    pub(super) spreading: Spreading,
    clients: Clients,
    imds: Limit,
    entra: Tenants,
}

impl Upstream {
    pub(crate) fn new(
        config: UpstreamConfig,
        tls: rustls::ClientConfig,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            clients: Clients::new(tls, config.request_timeout),
            spreading: Spreading::new(config.rotation.propagation),
            clock,
            metrics,
            // Per VM 20 in any second, 5 at a time (imds-and-clients §1.1); a little below, because the VM's other programs
            // ask too.
            imds: Limit::new(Rates { at_once: 5, burst: 4, a_second: 14 }),
            entra: Tenants::new(Rates { at_once: 32, burst: 20, a_second: 80 }),
            config,
        }
    }

    /// What reads Key Vaults, over the same connections.
    pub(crate) fn vaults(&self) -> vault::Reader {
        vault::Reader::over(self.clients.clone(), self.config.vault_suffixes.clone())
    }

    /// What the node may ask of its IMDS.
    pub(super) fn imds_budget(&self) -> ImdsBudget {
        ImdsBudget::of(self.imds.clone())
    }

    /// Asks IMDS.
    pub(super) async fn managed(&self, run: &mut Run<'_>) -> Result<Token, Missed> {
        let Run { identity, resource, freshness, .. } = *run;
        let endpoint = &self.config.metadata_endpoint;
        let _turn = self.turn(&self.imds, run).await?;
        let exchange = imds::token(&self.clients, endpoint, identity, resource, freshness, self.clock.now());
        let answer = self.exchange("imds", &self.imds, run, exchange).await;
        answer.map_err(|failure| Missed::Failed(failure, 0))
    }

    /// Who asks and where, for an identity that Entra is asked for. Where a credential would go is settled before one is
    /// read.
    pub(crate) fn application<'a>(&self, identity: &'a Identity) -> Result<Application<'a>, TokenError> {
        let wrong = |message: String| TokenError::misconfigured(identity, message);
        let endpoint = self
            .config
            .authority_hosts
            .token_endpoint(identity.authority.as_deref(), identity.tenant_id.as_deref())
            .map_err(|error| wrong(error.to_string()))?;
        let client_id = identity.client_id.as_deref().map(str::trim).filter(|id| !id.is_empty());
        let client_id = client_id.ok_or_else(|| wrong("spec.clientID is missing".to_owned()))?;
        Ok(Application { client_id, endpoint })
    }

    /// Asks Entra.
    pub(crate) async fn entra(
        &self,
        run: &mut Run<'_>,
        application: &Application<'_>,
        credential: &Credential,
        version: u64,
    ) -> Result<Token, Missed> {
        let endpoint = &application.endpoint;
        let request = TokenRequest {
            identity: run.identity,
            client_id: application.client_id,
            endpoint,
            credential,
            version,
            resource: run.resource,
        };
        let limit = self.entra.of(crate::digest::first64(endpoint.as_str().to_ascii_lowercase().as_bytes()));
        let _turn = self.turn(&limit, run).await?;
        let exchange = entra::token(&self.clients, &request, self.clock.now());
        let answer = self.exchange("entra", &limit, run, exchange).await;
        answer.map_err(|failure| Missed::Failed(failure, version))
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
        self.observe(upstream, begin.elapsed(), &answer);
        answer
    }

    fn observe(&self, upstream: &'static str, took: Duration, answer: &Result<Token, Failure>) {
        let outcome = match answer {
            Ok(_) => "ok",
            Err(Failure::Permanent(_) | Failure::Credential { .. }) => "refused",
            Err(Failure::Transient { .. }) => "failed",
        };
        self.metrics.upstream(upstream, outcome, took);
    }
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
