//! The rest of the metadata service, as the endpoint serves it: header, verb, path, pod, policy, share, exchange.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Response, Uri};
use http_body_util::{BodyExt as _, LengthLimitError};
use identity_core::{lookup::Deny, pod::PodRef};

use super::{
    exempt,
    path::MetadataPath,
    policy::{Action, Policy, Verb},
    proxy::{Ask, Bounds, Proxy, ProxyError, target},
    turns::Shares,
};
use crate::{
    clock::Clock,
    endpoint::{
        Body, EndpointError, RequestBody,
        forms::{FormError, TokenRequest, require_metadata},
        metadata::{Metadata, MetadataCaller, MetadataError, MetadataRequest},
    },
    metrics::{Metrics, Reason},
    tokens::{Token, TokenError},
    upstream::ImdsBudget,
};

/// What is passed on, where to, and how much of it.
#[derive(Clone, Debug)]
pub struct PassthroughConfig {
    /// The node's own metadata service, `http://169.254.169.254`.
    pub endpoint: Uri,
    /// What pods may reach of it.
    pub policy: Policy,
    /// Limits of what is passed on.
    pub shares: Shares,
    /// Limits of the requests for tokens of exempted pods.
    pub token_shares: Shares,
    /// Bounds of one exchange.
    pub bounds: Bounds,
    /// For the body of a request.
    pub request_body: Duration,
}

impl Default for PassthroughConfig {
    fn default() -> Self {
        Self {
            endpoint: Uri::from_static("http://169.254.169.254"),
            policy: Policy::default(),
            shares: Shares::GENERAL,
            token_shares: Shares::TOKENS,
            bounds: Bounds::default(),
            request_body: Duration::from_secs(10),
        }
    }
}

/// Passes on what the policy allows.
#[derive(Clone, Debug)]
pub struct Passthrough<C> {
    policy: Policy,
    proxy: Proxy,
    tokens: Proxy,
    budget: Option<ImdsBudget>,
    request_body: Duration,
    clock: C,
    metrics: Arc<Metrics>,
}

/// The verbs of the service.
const ALLOW: &str = "GET, POST";

impl<C: Clock> Passthrough<C> {
    /// Puts it together.
    pub fn new(config: PassthroughConfig, clock: C, metrics: Arc<Metrics>) -> Self {
        let PassthroughConfig { endpoint, policy, shares, token_shares, bounds, request_body } = config;
        let few = Bounds { most: exempt::MAX_ANSWER, ..bounds };
        let tokens = Proxy::new(endpoint.clone(), token_shares, few, "imds", Arc::clone(&metrics));
        let proxy = Proxy::new(endpoint, shares, bounds, "metadata", Arc::clone(&metrics));
        Self { policy, proxy, tokens, budget: None, request_body, clock, metrics }
    }

    /// With the requests for tokens of exempted pods within what the node may ask of its IMDS in all
    /// ([`Azure::imds_budget`](crate::Azure::imds_budget)).
    #[must_use]
    pub fn within(mut self, budget: ImdsBudget) -> Self {
        self.budget = Some(budget);
        self
    }

    async fn pass(
        &self,
        request: MetadataRequest,
        caller: &MetadataCaller<'_>,
    ) -> Result<Response<Body>, EndpointError> {
        let MetadataRequest { path, parts, body } = request;
        require_metadata(&parts.headers)?;
        let verb = Verb::of(&parts.method).ok_or(MetadataError::Method(ALLOW))?;
        let path = MetadataPath::new(path.as_str()).map_err(|error| {
            tracing::debug!(%path, %error, "not passed on");
            MetadataError::Blocked
        })?;
        let pod = caller.pod().await?;
        if self.policy.decide(&pod.namespace, verb, &path) == Action::Block {
            tracing::debug!(namespace = %pod.namespace, pod = %pod.name, %verb, %path, "blocked by the policy");
            return Err(MetadataError::Blocked.into());
        }
        let target = target(&path, parts.uri.query()).ok_or(MetadataError::Blocked)?;
        // A place first: what a pod can keep waiting, or in memory, is bounded by it.
        let place = self.proxy.enter(&pod.uid).map_err(|error| refused(&error))?;
        let body = match verb {
            // What a GET carries means nothing (RFC 9110 §9.3.1), and is not read.
            Verb::Get => Bytes::new(),
            Verb::Post => self.read(body).await?,
        };
        let ask = Ask { verb, target: &target, headers: &parts.headers };
        let answer = self.proxy.ask(place, ask, body).await;
        let answer = answer.map_err(|error| {
            tracing::debug!(namespace = %pod.namespace, pod = %pod.name, %verb, %path, %error, "not answered");
            refused(&error)
        })?;
        // The address may have changed hands while the service was asked.
        if !caller.still(&pod) {
            return Err(EndpointError::Denied(Deny::AddressChangedHands, None));
        }
        self.metrics.request(Reason::Passed);
        Ok(answer.map(|body| body.map_or_else(|| Body::from(Bytes::new()), Body::stream)))
    }

    /// Reads a body whole: a pod that sends slowly keeps nothing waiting but itself.
    async fn read(&self, body: RequestBody) -> Result<Bytes, EndpointError> {
        match tokio::time::timeout(self.request_body, body.collect()).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(EndpointError::Form(FormError::TooLarge)),
            Ok(Err(_)) => Err(EndpointError::Form(FormError::Incomplete)),
            Err(_) => Err(EndpointError::Form(FormError::Timeout)),
        }
    }
}

impl<C: Clock> Metadata for Passthrough<C> {
    fn call<'a>(
        &'a self,
        request: MetadataRequest,
        caller: MetadataCaller<'a>,
    ) -> BoxFuture<'a, Result<Response<Body>, EndpointError>> {
        Box::pin(async move { self.pass(request, &caller).await })
    }

    fn exempt_token<'a>(
        &'a self,
        pod: &'a PodRef,
        request: &'a TokenRequest,
    ) -> BoxFuture<'a, Result<Arc<Token>, TokenError>> {
        Box::pin(async move {
            let token = exempt::token(&self.tokens, self.budget.as_ref(), pod, request, self.clock.now()).await;
            token.map(Arc::new)
        })
    }
}

fn refused(error: &ProxyError) -> EndpointError {
    let soon = Duration::from_secs(2);
    EndpointError::Metadata(match error {
        ProxyError::Share(refused) => MetadataError::Share { retry_after: refused.retry_after },
        ProxyError::Late(_) => MetadataError::Timeout,
        ProxyError::Connection(_) | ProxyError::Answer(_) => {
            MetadataError::Unavailable { message: error.to_string(), retry_after: soon }
        }
    })
}
