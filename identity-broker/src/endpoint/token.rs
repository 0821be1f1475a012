//! The flow of a token: decide, hold, get, decide again, record, answer (DESIGN §1; invariants 1, 2, 3, 6).

use std::{
    collections::HashMap,
    future::Future,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use identity_core::{
    lookup::{Allow, Assignment, Caller, Decision, Deny, Source, Wait},
    pod::PodRef,
};
use jiff::Timestamp;
use tower::Service;

use super::{
    Connection, Normalise, RequireMetadata, Respond, Stack,
    error::{EndpointError, json},
    layers::Routed,
    query::{self, TokenQuery},
};
use crate::{
    audit::{AuditRecord, AuditSink, Verdict},
    clock::Clock,
    decide::Decide,
    metrics::{Metrics, Reason},
    tokens::{Token, Tokens, same},
};

/// What happens when an audit record cannot be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnAuditFailure {
    /// No token without a record.
    #[default]
    Deny,
    /// The token leaves; the failure is logged.
    Allow,
}

/// Bounds of the token path.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// How long a request is held for an unknown address or a pending assignment.
    pub hold: Duration,
    /// The most requests of one address that wait (for an assignment or for upstream) at a time.
    pub held_per_peer: usize,
    /// What happens when an audit record cannot be written.
    pub on_audit_failure: OnAuditFailure,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self { hold: Duration::from_secs(5), held_per_peer: 16, on_audit_failure: OnAuditFailure::Deny }
    }
}

/// How often a changed decision is followed before the request is put off.
const ROUNDS: usize = 3;

/// The parts of the token path, shared by all connections.
#[derive(Debug)]
pub struct Broker<D, T, A, C> {
    decide: D,
    tokens: T,
    audit: A,
    clock: C,
    config: BrokerConfig,
    metrics: Arc<Metrics>,
    /// Waiting requests by address. Not touched by a request whose token is at hand.
    waiting: Mutex<HashMap<IpAddr, usize>>,
}

impl<D, T, A, C> Broker<D, T, A, C>
where
    D: Decide,
    T: Tokens,
    A: AuditSink,
    C: Clock,
{
    /// Puts the parts together.
    pub fn new(decide: D, tokens: T, audit: A, clock: C, config: BrokerConfig, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { decide, tokens, audit, clock, config, metrics, waiting: Mutex::default() })
    }

    /// The metrics.
    pub const fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The present instant.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The services of one connection.
    pub fn stack(self: &Arc<Self>, connection: Arc<Connection>) -> Stack<D, T, A, C> {
        let token = TokenService { broker: Arc::clone(self), connection };
        Respond::new(Normalise::new(RequireMetadata::new(token)), Arc::clone(&self.metrics))
    }

    async fn issue(&self, connection: &Connection, query: &TokenQuery) -> Result<Response<Full<Bytes>>, EndpointError> {
        let mut waiting = None;
        let mut allow = self.settle(connection, query, &mut waiting).await?;
        for _ in 0..ROUNDS {
            let Source::Assignment(assignment) = &allow.source;
            let token = self.token(connection, assignment, query, &mut waiting).await;
            let token = match token {
                Ok(token) => token,
                Err(error) => {
                    self.note(connection, query, Some(&allow), &error).await;
                    return Err(error);
                }
            };
            // The world may have changed while upstream was asked.
            let again = match self.decide(connection, query) {
                Decision::Allow(again) => again,
                other => {
                    let error = match other {
                        Decision::Deny(deny) => EndpointError::Denied(deny),
                        Decision::Wait(wait) => EndpointError::NotYet(wait),
                        Decision::Allow(_) => EndpointError::Unsettled,
                    };
                    self.note(connection, query, Some(&allow), &error).await;
                    return Err(error);
                }
            };
            if is_for(&again, &allow) {
                return self.answer(connection, query, &again, &token).await;
            }
            allow = again;
        }
        Err(EndpointError::Unsettled)
    }

    /// Decides, and holds the request while the decision is "not yet".
    async fn settle<'a>(
        &'a self,
        connection: &Connection,
        query: &TokenQuery,
        waiting: &mut Option<Waiting<'a>>,
    ) -> Result<Allow, EndpointError> {
        let mut deadline = None;
        let mut changed = None;
        loop {
            let wait = match self.decide(connection, query) {
                Decision::Allow(allow) => return Ok(allow),
                Decision::Deny(deny) => {
                    let error = EndpointError::Denied(deny);
                    self.note(connection, query, None, &error).await;
                    return Err(error);
                }
                Decision::Wait(wait) => wait,
            };
            // Listen, then decide once more, then wait: no change is missed.
            let Some(listener) = changed.take() else {
                changed = Some(self.decide.changed());
                continue;
            };
            self.wait_in_line(connection, waiting)?;
            let deadline = *deadline.get_or_insert_with(|| tokio::time::Instant::now() + self.config.hold);
            self.metrics.held.inc();
            let held = HeldGauge(&self.metrics);
            let woken = tokio::time::timeout_at(deadline, listener).await;
            drop(held);
            if woken.is_err() {
                let error = EndpointError::NotYet(wait);
                self.note(connection, query, None, &error).await;
                return Err(error);
            }
            changed = Some(self.decide.changed());
        }
    }

    /// Gets the token; takes a place in the line only if it has to be waited for.
    async fn token<'a>(
        &'a self,
        connection: &Connection,
        assignment: &Assignment,
        query: &TokenQuery,
        waiting: &mut Option<Waiting<'a>>,
    ) -> Result<Arc<Token>, EndpointError> {
        let mut get = std::pin::pin!(self.tokens.get(&assignment.identity, &query.resource));
        if let Poll::Ready(token) = futures::poll!(get.as_mut()) {
            return Ok(token?);
        }
        self.wait_in_line(connection, waiting)?;
        Ok(get.await?)
    }

    /// Records the token, decides for the last time, renders the answer.
    async fn answer(
        &self,
        connection: &Connection,
        query: &TokenQuery,
        allow: &Allow,
        token: &Token,
    ) -> Result<Response<Full<Bytes>>, EndpointError> {
        let now = self.clock.now();
        let clamp = |allow: &Allow| allow.until.map_or(token.expires_on(), |until| until.min(token.expires_on()));
        let expires_on = clamp(allow);
        if expires_on.as_second() <= now.as_second() {
            return Err(EndpointError::Unsettled);
        }
        let Source::Assignment(assignment) = &allow.source;
        let mut record = AuditRecord {
            time: now,
            verdict: Verdict::Issued,
            reason: Reason::Issued,
            detail: "",
            address: connection.peer.ip(),
            pod: Some(&allow.pod),
            binding: Some(&assignment.binding),
            identity: Some(&assignment.identity.object),
            resource: &query.resource,
            client_id: token.client_id(),
            expires_on: Some(expires_on),
            token_id: Some(token.id()),
            upstream_request_id: token.request_id(),
        };
        if let Err(error) = self.audit.record(&record).await {
            tracing::error!(%error, pod = %allow.pod.name, namespace = %allow.pod.namespace, "audit");
            if self.config.on_audit_failure == OnAuditFailure::Deny {
                return Err(EndpointError::Audit);
            }
        }
        // Writing the record may have taken its time, too.
        let withdrawn = match self.decide(connection, query) {
            Decision::Allow(last) if is_for(&last, allow) && clamp(&last) >= expires_on => None,
            Decision::Deny(deny) => Some(EndpointError::Denied(deny)),
            Decision::Wait(wait) => Some(EndpointError::NotYet(wait)),
            Decision::Allow(_) => Some(EndpointError::Unsettled),
        };
        if let Some(error) = withdrawn {
            let detail = error.to_string();
            (record.verdict, record.reason, record.detail) = (Verdict::Withdrawn, error.reason(), &detail);
            self.record(&record).await;
            return Err(error);
        }
        self.metrics.request(Reason::Issued);
        Ok(json(StatusCode::OK, token.render(expires_on, self.clock.now())))
    }

    fn decide(&self, connection: &Connection, query: &TokenQuery) -> Decision {
        let caller = Caller { address: connection.peer.ip(), pinned: connection.pinned() };
        let decision = self.decide.decide(&caller, &query.as_request(), self.clock.now());
        if connection.pinned().is_none()
            && let Some(pod) = pod_of(&decision)
        {
            connection.pin(pod);
        }
        decision
    }

    /// Records that no token leaves. That record failing changes nothing for the pod.
    async fn note(&self, connection: &Connection, query: &TokenQuery, allow: Option<&Allow>, error: &EndpointError) {
        let detail = error.to_string();
        let denied = match error {
            EndpointError::Denied(deny) => deny_subject(deny),
            EndpointError::NotYet(Wait::Assignment(pod)) => (Some(pod), None),
            _ => (None, None),
        };
        let assignment = allow
            .map(|allow| {
                let Source::Assignment(assignment) = &allow.source;
                &**assignment
            })
            .or(denied.1);
        let pod = denied.0.or(allow.map(|allow| &allow.pod));
        self.record(&AuditRecord {
            time: self.clock.now(),
            verdict: if matches!(error, EndpointError::Denied(_)) { Verdict::Denied } else { Verdict::Failed },
            reason: error.reason(),
            detail: &detail,
            address: connection.peer.ip(),
            pod: pod.map(|pod| &**pod),
            binding: assignment.map(|assignment| &assignment.binding),
            identity: assignment.map(|assignment| &assignment.identity.object),
            resource: &query.resource,
            client_id: assignment.and_then(|assignment| assignment.identity.client_id.as_deref()),
            expires_on: None,
            token_id: None,
            upstream_request_id: None,
        })
        .await;
    }

    async fn record(&self, record: &AuditRecord<'_>) {
        if let Err(error) = self.audit.record(record).await {
            tracing::error!(%error, "audit");
        }
    }

    fn wait_in_line<'a>(
        &'a self,
        connection: &Connection,
        waiting: &mut Option<Waiting<'a>>,
    ) -> Result<(), EndpointError> {
        if waiting.is_none() {
            let address = connection.peer.ip();
            let mut all = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let count = all.entry(address).or_default();
            if *count >= self.config.held_per_peer {
                return Err(EndpointError::TooManyHeld(self.config.held_per_peer));
            }
            *count += 1;
            *waiting = Some(Waiting { all: &self.waiting, address });
        }
        Ok(())
    }
}

/// A place among the waiting requests of an address.
struct Waiting<'a> {
    all: &'a Mutex<HashMap<IpAddr, usize>>,
    address: IpAddr,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.address);
            }
        }
    }
}

struct HeldGauge<'a>(&'a Metrics);

impl Drop for HeldGauge<'_> {
    fn drop(&mut self) {
        self.0.held.dec();
    }
}

/// Whether two permissions are for the same pod and the same token.
fn is_for(one: &Allow, other: &Allow) -> bool {
    one.pod.uid == other.pod.uid
        && match (&one.source, &other.source) {
            (Source::Assignment(one), Source::Assignment(other)) => {
                Arc::ptr_eq(one, other) || same(&one.identity, &other.identity)
            }
        }
}

fn pod_of(decision: &Decision) -> Option<&Arc<PodRef>> {
    match decision {
        Decision::Allow(allow) => Some(&allow.pod),
        Decision::Wait(Wait::Assignment(pod)) => Some(pod),
        Decision::Wait(_) => None,
        Decision::Deny(deny) => deny_subject(deny).0,
    }
}

fn deny_subject(deny: &Deny) -> (Option<&Arc<PodRef>>, Option<&Assignment>) {
    match deny {
        Deny::HostNetwork | Deny::AddressChangedHands => (None, None),
        Deny::NoBinding(pod) | Deny::IdentityNotFound(pod) | Deny::MultipleIdentities(pod) => (Some(pod), None),
        Deny::Audience(pod, assignment) => (Some(pod), Some(assignment)),
    }
}

/// Answers requests for tokens on one connection.
#[derive(Debug)]
pub struct TokenService<D, T, A, C> {
    broker: Arc<Broker<D, T, A, C>>,
    connection: Arc<Connection>,
}

impl<D, T, A, C> Clone for TokenService<D, T, A, C> {
    fn clone(&self) -> Self {
        Self { broker: Arc::clone(&self.broker), connection: Arc::clone(&self.connection) }
    }
}

impl<D, T, A, C> Service<Routed> for TokenService<D, T, A, C>
where
    D: Decide,
    T: Tokens,
    A: AuditSink,
    C: Clock,
{
    type Response = Response<Full<Bytes>>;
    type Error = EndpointError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, EndpointError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), EndpointError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Routed) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let query = query::parse(request.parts.uri.query().unwrap_or_default())?;
            this.broker.issue(&this.connection, &query).await
        })
    }
}
