//! The tenant of a pod's identity (`/metadata/identity/info`).

use http::{Response, StatusCode};
use identity_core::lookup::{Allow, Decision, Deny};

use super::{
    Connection, authority,
    body::Body,
    broker::{Asked, Broker, Ground, ground},
    error::{EndpointError, RateLimit, json},
    forms::info::{self, InfoRequest},
    token::unavailable,
};
use crate::{
    audit::AuditSink,
    clock::Clock,
    decide::Decide,
    metrics::Reason,
    tokens::{Freshness, Tokens},
};

/// What every identity can get a token for. That token stays here: only the tenant in it is answered.
const ANY_RESOURCE: &str = "https://management.azure.com/";

impl<D, T, A, C> Broker<D, T, A, C>
where
    D: Decide,
    T: Tokens,
    A: AuditSink,
    C: Clock,
{
    /// Answers a request for the tenant.
    pub(super) async fn tenant(
        &self,
        connection: &Connection,
        request: &InfoRequest,
    ) -> Result<Response<Body>, EndpointError> {
        if let Err(wait) = self.limits.request(&connection.account) {
            tokio::time::sleep(self.config.limits.penalty).await;
            return Err(EndpointError::Rate(RateLimit::Requests, wait));
        }
        let mut waiting = None;
        let asked =
            Asked { request: request.as_request(), selector: request.identity.as_ref().map(|(selector, _)| *selector) };
        let allow = match self.settle(connection, &asked, &mut waiting).await {
            Ok(allow) => allow,
            // Which audiences are allowed has nothing to do with the tenant.
            Err(EndpointError::Denied(Deny::Audience(pod, assignment), _)) => {
                Allow { pod, source: identity_core::lookup::Source::Assignment(assignment), until: None }
            }
            Err(error) => {
                self.note(connection, "", None, &error).await;
                return Err(error);
            }
        };
        let Ground::Assignment(assignment) = ground(&allow.source) else { return Err(EndpointError::NotFound) };
        let identity = &assignment.identity;
        let own = authority::filled(identity.tenant_id.as_deref()).filter(|tenant| authority::is_id(tenant));
        let tenant = if let Some(tenant) = own {
            tenant.to_owned()
        } else {
            // Managed identities usually have none in their object, and others may have a domain's name.
            let token = match self.tokens.ready(identity, ANY_RESOURCE) {
                Some(ready) => ready.map_err(|error| unavailable(error, &allow, identity))?,
                None => self.cold(connection, &allow, identity, ANY_RESOURCE, Freshness::Any, &mut waiting).await?,
            };
            token.tenant().ok_or(EndpointError::TenantUnknown)?.to_owned()
        };
        // As with tokens, the pod may have lost the identity meanwhile.
        match self.decide(connection, &asked.request) {
            Decision::Allow(again) if again.pod.uid == allow.pod.uid => {}
            Decision::Deny(Deny::Audience(pod, _)) if pod.uid == allow.pod.uid => {}
            Decision::Deny(deny) => return Err(EndpointError::Denied(deny, asked.selector)),
            Decision::Wait(wait) => return Err(EndpointError::NotYet(wait)),
            Decision::Allow(_) => return Err(EndpointError::Unsettled),
        }
        self.metrics.request(Reason::Informed);
        Ok(json(StatusCode::OK, info::answer(&tenant).into()))
    }
}
