//! The tenant of a pod's identity (`/metadata/identity/info`).

use std::sync::Arc;

use http::{Response, StatusCode};
use identity_core::lookup::{Allow, Decision, Deny, Identity};

use super::{
    Connection, authority,
    body::Body,
    broker::{Asked, Broker, Ground, ground},
    error::{EndpointError, json},
    forms::{
        TokenRequest,
        info::{self, InfoRequest},
    },
    limits::Waiting,
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
        self.admit(connection, tokio::time::Instant::now()).await?;
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
        let tenant = match ground(&allow.source) {
            Ground::Assignment(assignment) => {
                self.tenant_of(connection, &allow, &assignment.identity, &mut waiting).await?
            }
            Ground::Exempt(_) => {
                self.wait_in_line(connection, &mut waiting)?;
                let (resource, identity) = (ANY_RESOURCE.to_owned(), request.identity.clone());
                let request = TokenRequest { resource, identity, ..TokenRequest::default() };
                let token = self.metadata.exempt_token(&allow.pod, &request).await;
                let token = token.map_err(|error| EndpointError::Token { error, foreign: false })?;
                token.tenant().ok_or(EndpointError::TenantUnknown)?.to_owned()
            }
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

    /// The tenant of an identity that is assigned to the pod.
    async fn tenant_of<'a>(
        &'a self,
        connection: &'a Connection,
        allow: &Allow,
        identity: &Arc<Identity>,
        waiting: &mut Option<Waiting<'a>>,
    ) -> Result<String, EndpointError> {
        let own = authority::filled(identity.tenant_id.as_deref()).filter(|tenant| authority::is_id(tenant));
        if let Some(tenant) = own {
            return Ok(tenant.to_owned());
        }
        // Managed identities usually have none in their object, and others may have a domain's name.
        let token = match self.tokens.ready(identity, ANY_RESOURCE) {
            Some(ready) => ready.map_err(|error| unavailable(error, allow, identity))?,
            None => self.cold(connection, allow, identity, ANY_RESOURCE, Freshness::Any, waiting).await?,
        };
        Ok(token.tenant().ok_or(EndpointError::TenantUnknown)?.to_owned())
    }
}
