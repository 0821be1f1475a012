//! The flow of a token: decide, hold, get, decide again, record, answer (DESIGN §1; invariants 1, 2, 3, 6).

use std::sync::Arc;

use http::{Response, StatusCode};
use identity_core::lookup::{Allow, Decision, Identity, Source};
use tokio::time::Instant;
use tracing::{Instrument as _, Span};

use super::{
    Connection, authority,
    body::Body,
    broker::OnAuditFailure,
    broker::{Asked, Broker, Ground, assignment_of, exception_of, grant_of, ground, is_foreign},
    error::{EndpointError, RateLimit, json},
    forms::{Form, TokenRequest},
    limits::Waiting,
};
use crate::{
    audit::{AuditRecord, AuditSink, TokenSource, Verdict},
    clock::Clock,
    decide::Decide,
    metrics::{AnsweredBy, Reason},
    tokens::{Freshness, Shape, Token, TokenError, Tokens, same},
};

/// How often a changed decision is followed before the request is put off.
const ROUNDS: usize = 3;

impl TokenRequest {
    fn asked(&self) -> Asked<'_> {
        Asked { request: self.as_request(), selector: self.selector() }
    }
}

impl<D, T, A, C> Broker<D, T, A, C>
where
    D: Decide,
    T: Tokens,
    A: AuditSink,
    C: Clock,
{
    /// Counts a well-formed request against what one pod may ask.
    pub(super) async fn admit(&self, connection: &Connection, begun: Instant) -> Result<(), EndpointError> {
        let Err(wait) = self.limits.request(&connection.account, begun) else { return Ok(()) };
        // Whoever does not heed Retry-After gets no more out of it than this.
        tokio::time::sleep(self.config.limits.penalty).await;
        Err(EndpointError::Rate(RateLimit::Requests, wait))
    }

    /// Answers a request for a token.
    pub(super) async fn issue(
        &self,
        connection: &Connection,
        request: &TokenRequest,
    ) -> Result<Response<Body>, EndpointError> {
        let begun = Instant::now();
        if let Err(error) = self.admit(connection, begun).await {
            self.metrics.answered(AnsweredBy::Error(error.row().status.as_u16()), begun.elapsed());
            return Err(error);
        }
        let mut allowed = None;
        let outcome = self.issued(connection, request, &mut allowed).await;
        if let Err(Unissued { error, recorded: false }) = &outcome {
            self.note(connection, &request.resource, allowed.as_ref(), error).await;
        }
        match outcome {
            Ok((token, source, response)) => {
                let by = match source {
                    TokenSource::Cache => AnsweredBy::Cache,
                    TokenSource::Upstream => {
                        AnsweredBy::Upstream { correlation: token.correlation_id(), at: self.clock.now().into() }
                    }
                };
                self.metrics.answered(by, begun.elapsed());
                Ok(response)
            }
            Err(unissued) => {
                let status = unissued.error.row().status.as_u16();
                self.metrics.answered(AnsweredBy::Error(status), begun.elapsed());
                Err(unissued.error)
            }
        }
    }

    async fn issued(
        &self,
        connection: &Connection,
        request: &TokenRequest,
        allowed: &mut Option<Allow>,
    ) -> Result<(Arc<Token>, TokenSource, Response<Body>), Unissued> {
        let mut waiting = None;
        let mut allow = self.settle(connection, &request.asked(), &mut waiting).await?;
        if request.bypass_cache
            && let Err(wait) = self.limits.bypass(&connection.account)
        {
            *allowed = Some(allow);
            return Err(EndpointError::Rate(RateLimit::Bypass, wait).into());
        }
        let mut freshness = if request.bypass_cache { Freshness::Upstream } else { Freshness::Any };
        for _ in 0..ROUNDS {
            *allowed = Some(allow.clone());
            let (token, source) = self.token(connection, &allow, request, freshness, &mut waiting).await?;
            // The world may have changed while upstream was asked. For a token that was at hand nothing was waited for: the
            // decision before it is the present one.
            if source == TokenSource::Upstream {
                let again = match self.decide(connection, &request.as_request()) {
                    Decision::Allow(again) => again,
                    other => return Err(refusal(other, request).into()),
                };
                let same = is_for(&again, &allow);
                allow = again;
                if !same {
                    freshness = Freshness::Any;
                    continue;
                }
            }
            if tracing::span_enabled!(tracing::Level::DEBUG) {
                Span::current().record("source", source.as_str());
            }
            tracing::trace!(source = source.as_str(), expires_on = %token.expires_on(), "there is a token");
            let response = self.answer(connection, request, &allow, &token, source).await?;
            return Ok((token, source, response));
        }
        Err(EndpointError::Unsettled.into())
    }

    /// Gets the token; takes a place in the line only if it has to be waited for.
    async fn token<'a>(
        &'a self,
        connection: &'a Connection,
        allow: &Allow,
        request: &TokenRequest,
        freshness: Freshness,
        waiting: &mut Option<Waiting<'a>>,
    ) -> Result<(Arc<Token>, TokenSource), EndpointError> {
        let assignment = match ground(&allow.source) {
            Ground::Assignment(assignment) => assignment,
            Ground::Exempt(_) => {
                self.wait_in_line(connection, waiting)?;
                let token = self.metadata.exempt_token(&allow.pod, request);
                let token = token.instrument(tracing::debug_span!("token")).await;
                let token = token.map_err(|error| EndpointError::Token { error, foreign: false })?;
                return Ok((token, TokenSource::Upstream));
            }
        };
        let (identity, asked) = (&assignment.identity, request.authority.as_ref());
        authority::check(asked, identity)?;
        let ready = match freshness {
            Freshness::Any => self.tokens.ready(identity, &request.resource),
            Freshness::Upstream => None,
        };
        let (token, source) = if let Some(ready) = ready {
            (ready.map_err(|error| unavailable(error, allow, identity))?, TokenSource::Cache)
        } else {
            let token = self.cold(connection, allow, identity, &request.resource, freshness, waiting).await?;
            (token, TokenSource::Upstream)
        };
        authority::check_tenant(asked, identity, token.tenant())?;
        Ok((token, source))
    }

    /// Gets a token that is not at hand, within the pod's share of what is asked upstream.
    pub(super) async fn cold<'a>(
        &'a self,
        connection: &'a Connection,
        allow: &Allow,
        identity: &Arc<Identity>,
        resource: &str,
        freshness: Freshness,
        waiting: &mut Option<Waiting<'a>>,
    ) -> Result<Arc<Token>, EndpointError> {
        self.wait_in_line(connection, waiting)?;
        let name = [&*identity.object.namespace, &*identity.object.name, resource].join("\n");
        let _fetching = self
            .limits
            .cold(&connection.account, crate::digest::first64(name.as_bytes()))
            .map_err(|wait| EndpointError::Rate(RateLimit::Cold, wait))?;
        tracing::trace!("the token has to be got");
        let token = self.tokens.get_for(&allow.pod.uid, identity, resource, freshness);
        let token = token.instrument(tracing::debug_span!("token")).await;
        token.map_err(|error| unavailable(error, allow, identity))
    }

    /// Records the token, decides for the last time, renders the answer.
    async fn answer(
        &self,
        connection: &Connection,
        request: &TokenRequest,
        allow: &Allow,
        token: &Token,
        source: TokenSource,
    ) -> Result<Response<Body>, Unissued> {
        let now = self.clock.now();
        let clamp = |allow: &Allow| allow.until.map_or(token.expires_on(), |until| until.min(token.expires_on()));
        let expires_on = clamp(allow);
        if expires_on.as_second() <= now.as_second() {
            return Err(EndpointError::Unsettled.into());
        }
        let assignment = assignment_of(allow);
        let mut record = AuditRecord {
            node: &self.config.node,
            destination: connection.destination,
            pod: Some(&allow.pod),
            binding: assignment.map(|assignment| &assignment.binding),
            identity: assignment.map(|assignment| &assignment.identity.object),
            identity_type: assignment.map(|assignment| assignment.identity.kind),
            exception: exception_of(allow),
            grant: assignment.and_then(|assignment| grant_of(assignment, now)),
            client_id: token.client_id(),
            source: Some(source),
            token_expires_on: Some(token.expires_on()),
            expires_on: Some(expires_on),
            token_id: Some(token.id()),
            uti: token.uti(),
            upstream_request_id: token.request_id(),
            correlation_id: token.correlation_id(),
            ..AuditRecord::new(now, Verdict::Issued, Reason::Issued, connection.peer.ip(), &request.resource)
        };
        if let Err(error) = self.audit(&record).await {
            tracing::error!(%error, pod = %allow.pod.name, namespace = %allow.pod.namespace, "audit");
            if self.config.on_audit_failure == OnAuditFailure::Deny {
                return Err(Unissued { error: EndpointError::Audit, recorded: true });
            }
        }
        // Writing the record may have taken its time, too.
        let now = self.clock.now();
        let withdrawn = match self.decide_at(connection, &request.as_request(), now) {
            Decision::Allow(last) if is_for(&last, allow) && clamp(&last) >= expires_on => None,
            other => Some(refusal(other, request)),
        };
        if let Some(error) = withdrawn {
            let detail = error.detail();
            (record.verdict, record.reason, record.detail) = (Verdict::Withdrawn, error.reason(), &detail);
            self.record(&record).await;
            return Err(Unissued { error, recorded: true });
        }
        self.metrics.request(Reason::Issued);
        let shape = match request.form {
            Form::Imds | Form::Posted => Shape::Imds,
            Form::AppService => Shape::AppService,
        };
        Ok(json(StatusCode::OK, token.render(expires_on, now, shape)))
    }
}

pub(super) fn unavailable(error: TokenError, allow: &Allow, identity: &Identity) -> EndpointError {
    EndpointError::Token { error, foreign: is_foreign(&identity.object, &allow.pod) }
}

/// Why there is no token, and whether that has been recorded.
struct Unissued {
    error: EndpointError,
    recorded: bool,
}

impl From<EndpointError> for Unissued {
    fn from(error: EndpointError) -> Self {
        Self { error, recorded: false }
    }
}

/// A decision that is no longer for the token that was got.
fn refusal(decision: Decision, request: &TokenRequest) -> EndpointError {
    match decision {
        Decision::Deny(deny) => EndpointError::Denied(deny, request.selector()),
        Decision::Wait(wait) => EndpointError::NotYet(wait),
        Decision::Allow(_) => EndpointError::Unsettled,
    }
}

/// Whether two permissions are for the same pod and the same token.
fn is_for(one: &Allow, other: &Allow) -> bool {
    one.pod.uid == other.pod.uid && is_same(&one.source, &other.source)
}

fn is_same(one: &Source, other: &Source) -> bool {
    match (ground(one), ground(other)) {
        (Ground::Assignment(one), Ground::Assignment(other)) => {
            Arc::ptr_eq(one, other) || same(&one.identity, &other.identity)
        }
        (Ground::Exempt(_), Ground::Exempt(_)) => true,
        (Ground::Assignment(_), Ground::Exempt(_)) | (Ground::Exempt(_), Ground::Assignment(_)) => false,
    }
}
