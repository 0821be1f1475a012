//! What all connections share: the parts, the decision and the waiting for it, the records.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use identity_core::{
    lookup::{Allow, Assignment, Caller, Decision, Deny, ObjectRef, Request, Source, Wait},
    pod::PodRef,
};
use jiff::Timestamp;
use tracing::{Instrument as _, Span};

use super::{
    Connection, Stack,
    error::EndpointError,
    forms::Selector,
    layers::{Dispatch, Normalise, Refusals, RemoteParent, Respond},
    limits::{Full, Limits, LimitsConfig, Waiting},
    metadata::{Block, Identify, Metadata},
};
use crate::{
    audit::{AuditError, AuditRecord, AuditSink, Verdict},
    clock::Clock,
    decide::Decide,
    metrics::{Decided, Metrics},
    tokens::Tokens,
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

/// Bounds of the endpoint.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// How long a request is held for an unknown address or a pending assignment.
    pub hold: Duration,
    /// How long the body of a request may take.
    pub body_timeout: Duration,
    /// What one pod may ask for.
    pub limits: LimitsConfig,
    /// What happens when an audit record cannot be written.
    pub on_audit_failure: OnAuditFailure,
    /// The node, for the audit records.
    pub node: String,
    /// What makes the span of a request part of a trace that its headers name. By default nothing does.
    pub remote_parent: Option<RemoteParent>,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self {
            hold: Duration::from_secs(5),
            body_timeout: Duration::from_secs(5),
            limits: LimitsConfig::default(),
            on_audit_failure: OnAuditFailure::Deny,
            node: String::new(),
            remote_parent: None,
        }
    }
}

/// The parts of the endpoint, shared by all connections.
pub struct Broker<D, T, A, C> {
    pub(super) decide: D,
    pub(super) tokens: T,
    pub(super) audit: A,
    pub(super) clock: C,
    pub(super) config: BrokerConfig,
    pub(super) metrics: Arc<Metrics>,
    pub(super) limits: Arc<Limits>,
    pub(super) metadata: Arc<dyn Metadata>,
}

/// What a decision is about.
pub(super) struct Asked<'a> {
    pub(super) request: Request<'a>,
    pub(super) selector: Option<Selector>,
}

impl<D, T, A, C> Broker<D, T, A, C>
where
    D: Decide,
    T: Tokens,
    A: AuditSink,
    C: Clock,
{
    /// Puts the parts together. Paths outside the credential paths are blocked.
    pub fn new(decide: D, tokens: T, audit: A, clock: C, config: BrokerConfig, metrics: Arc<Metrics>) -> Arc<Self> {
        Self::with_metadata(decide, tokens, audit, clock, config, metrics, Arc::new(Block))
    }

    /// Puts the parts together; `metadata` answers what is outside the credential paths.
    pub fn with_metadata(
        decide: D,
        tokens: T,
        audit: A,
        clock: C,
        config: BrokerConfig,
        metrics: Arc<Metrics>,
        metadata: Arc<dyn Metadata>,
    ) -> Arc<Self> {
        let limits = Arc::new(Limits::new(config.limits.clone()));
        Arc::new(Self { decide, tokens, audit, clock, config, metrics, limits, metadata })
    }

    /// The metrics.
    pub const fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The present instant.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// A connection of `peer`, accepted now. What one pod may ask for is counted by its address.
    pub fn connection(&self, peer: SocketAddr) -> Arc<Connection> {
        self.connected(peer, None)
    }

    /// The same for a connection of which is known where it was going before it was redirected; audit records say so.
    pub fn connection_to(&self, peer: SocketAddr, destination: SocketAddr) -> Arc<Connection> {
        self.connected(peer, Some(destination))
    }

    fn connected(&self, peer: SocketAddr, destination: Option<SocketAddr>) -> Arc<Connection> {
        let account = self.limits.account(peer.ip());
        let pause = self.limits.connection(&account);
        Connection::new(peer, destination, self.clock.now(), account, pause)
    }

    /// The service of one connection, for whatever HTTP server there is.
    pub fn stack(self: &Arc<Self>, connection: Arc<Connection>) -> Stack<D, T, A, C> {
        let refusals = Refusals {
            metrics: Arc::clone(&self.metrics),
            limits: Arc::clone(&self.limits),
            connection: Arc::clone(&connection),
            remote_parent: self.config.remote_parent,
        };
        Respond::new(Normalise::new(Dispatch::new(Arc::clone(self), connection)), refusals)
    }

    pub(super) fn decide(&self, connection: &Connection, request: &Request<'_>) -> Decision {
        self.decide_at(connection, request, self.clock.now())
    }

    /// Decides; it is `now`.
    pub(super) fn decide_at(&self, connection: &Connection, request: &Request<'_>, now: Timestamp) -> Decision {
        let caller = Caller { address: connection.peer.ip(), pinned: connection.pinned() };
        let decision = self.decide.decide(&caller, request, now);
        if connection.pinned().is_none()
            && let Some(pod) = pod_of(&decision)
        {
            connection.pin(pod);
        }
        tracing::trace!(decision = in_a_word(&decision), "decided");
        decision
    }

    /// Decides, and holds the request while the decision is "not yet".
    pub(super) async fn settle<'a>(
        &'a self,
        connection: &'a Connection,
        asked: &Asked<'_>,
        waiting: &mut Option<Waiting<'a>>,
    ) -> Result<Allow, EndpointError> {
        let settled = self.settled(connection, waiting, || match self.decide(connection, &asked.request) {
            Decision::Allow(allow) => Ok(allow),
            Decision::Deny(deny) => Err(Err(EndpointError::Denied(deny, asked.selector))),
            Decision::Wait(wait) => Err(Ok(wait)),
        });
        let settled = settled.await;
        if tracing::span_enabled!(tracing::Level::DEBUG) {
            say_who(&settled, asked.request.resource);
        }
        settled
    }

    /// Asks until the answer is something else than `Err(Ok(wait))`, on each change, for as long as a request is held.
    async fn settled<'a, R>(
        &'a self,
        connection: &'a Connection,
        waiting: &mut Option<Waiting<'a>>,
        mut ask: impl FnMut() -> Result<R, Result<Wait, EndpointError>>,
    ) -> Result<R, EndpointError> {
        let mut deadline = None;
        let mut changed = None;
        let mut begun: Option<tokio::time::Instant> = None;
        let mut decided = false;
        let mut span = Span::none();
        loop {
            let asked = ask();
            if !decided {
                decided = true;
                self.metrics.decided(match &asked {
                    Ok(_) => Decided::Allow,
                    Err(Err(_)) => Decided::Deny,
                    Err(Ok(_)) => Decided::Hold,
                });
            }
            if let Some(begun) = begun.filter(|_| !matches!(asked, Err(Ok(_)))) {
                self.metrics.held_for(true, begun.elapsed());
            }
            let wait = match asked {
                Ok(settled) => return Ok(settled),
                Err(Err(error)) => return Err(error),
                Err(Ok(wait)) => wait,
            };
            // Listen, then decide once more, then wait: no change is missed.
            let Some(listener) = changed.take() else {
                changed = Some(self.decide.changed());
                continue;
            };
            self.wait_in_line(connection, waiting)?;
            let begun = *begun.get_or_insert_with(tokio::time::Instant::now);
            let deadline = *deadline.get_or_insert_with(|| begun + self.config.hold);
            self.metrics.held.inc();
            let held = HeldGauge(&self.metrics);
            if span.is_none() {
                span = tracing::debug_span!("hold", waiting_for = waited_for(&wait));
            }
            tracing::trace!(parent: &span, "held");
            let woken = tokio::time::timeout_at(deadline, listener).instrument(span.clone()).await;
            drop(held);
            tracing::trace!(parent: &span, in_time = woken.is_ok(), "looking again");
            if woken.is_err() {
                self.metrics.held_for(false, begun.elapsed());
                return Err(EndpointError::NotYet(wait));
            }
            changed = Some(self.decide.changed());
        }
    }

    /// Takes a place in the line, unless the request has one.
    pub(super) fn wait_in_line<'a>(
        &'a self,
        connection: &'a Connection,
        waiting: &mut Option<Waiting<'a>>,
    ) -> Result<(), EndpointError> {
        if waiting.is_none() {
            *waiting = Some(self.limits.wait(&connection.account).map_err(|full| match full {
                Full::Each => EndpointError::TooManyHeld(self.config.limits.waiting),
                Full::All => EndpointError::TooManyHeldInAll,
            })?);
        }
        Ok(())
    }

    /// Records that no token leaves, unless too much of that has been recorded for the pod lately. The record failing
    /// changes nothing for the pod.
    pub(super) async fn note(
        &self,
        connection: &Connection,
        resource: &str,
        allow: Option<&Allow>,
        error: &EndpointError,
    ) {
        let Some(suppressed) = self.limits.record(&connection.account) else {
            self.metrics.audit_suppressed.inc();
            return;
        };
        let detail = error.detail();
        let subject = match error {
            EndpointError::Denied(deny, _) => deny_subject(deny),
            EndpointError::NotYet(Wait::Assignment(pod)) => (Some(pod), None),
            _ => (None, None),
        };
        let assignment = allow.and_then(assignment_of).or(subject.1);
        let pod = subject.0.or(allow.map(|allow| &allow.pod));
        let verdict = if matches!(error, EndpointError::Denied(..)) { Verdict::Denied } else { Verdict::Failed };
        self.record(&AuditRecord {
            node: &self.config.node,
            detail: &detail,
            destination: connection.destination,
            pod: pod.map(|pod| &**pod),
            binding: assignment.map(|assignment| &assignment.binding),
            identity: assignment.map(|assignment| &assignment.identity.object),
            identity_type: assignment.map(|assignment| assignment.identity.kind),
            exception: allow.and_then(exception_of),
            client_id: assignment.and_then(|assignment| assignment.identity.client_id.as_deref()),
            suppressed,
            ..AuditRecord::new(self.clock.now(), verdict, error.reason(), connection.peer.ip(), resource)
        })
        .await;
    }

    pub(super) async fn record(&self, record: &AuditRecord<'_>) {
        if let Err(error) = self.audit(record).await {
            tracing::error!(%error, "audit");
        }
    }

    /// Completes when the record is written.
    pub(super) async fn audit(&self, record: &AuditRecord<'_>) -> Result<(), AuditError> {
        let written = self.audit.record(record).instrument(tracing::debug_span!("audit")).await;
        tracing::trace!(written = written.is_ok(), "recorded");
        written
    }
}

impl<D, T, A, C> std::fmt::Debug for Broker<D, T, A, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Which pod a connection is of, for the rest of the metadata service.
pub(super) struct Who<'a, D, T, A, C> {
    pub(super) broker: &'a Broker<D, T, A, C>,
    pub(super) connection: &'a Connection,
}

impl<D, T, A, C> Who<'_, D, T, A, C>
where
    D: Decide,
    T: Tokens,
    A: AuditSink,
    C: Clock,
{
    fn ask(&self) -> Result<Arc<PodRef>, Result<Wait, EndpointError>> {
        let (broker, connection) = (self.broker, self.connection);
        let caller = Caller { address: connection.peer.ip(), pinned: connection.pinned() };
        match broker.decide.identify(&caller, broker.clock.now()) {
            Ok(pod) => {
                connection.pin(&pod);
                Ok(pod)
            }
            Err(Decision::Wait(wait)) => Err(Ok(wait)),
            Err(Decision::Deny(deny)) => Err(Err(EndpointError::Denied(deny, None))),
            Err(Decision::Allow(_)) => Err(Err(EndpointError::Unsettled)),
        }
    }
}

impl<D, T, A, C> Identify for Who<'_, D, T, A, C>
where
    D: Decide,
    T: Tokens,
    A: AuditSink,
    C: Clock,
{
    fn pod(&self) -> BoxFuture<'_, Result<Arc<PodRef>, EndpointError>> {
        Box::pin(async move {
            let mut waiting = None;
            self.broker.settled(self.connection, &mut waiting, || self.ask()).await
        })
    }

    fn still(&self, pod: &PodRef) -> bool {
        self.ask().is_ok_and(|now| now.uid == pod.uid)
    }
}

/// Says of the request's span whom it is about.
fn say_who(settled: &Result<Allow, EndpointError>, resource: &str) {
    let (pod, assignment) = match settled {
        Ok(allow) => (Some(&allow.pod), assignment_of(allow)),
        Err(EndpointError::Denied(deny, _)) => deny_subject(deny),
        Err(EndpointError::NotYet(Wait::Assignment(pod))) => (Some(pod), None),
        Err(_) => (None, None),
    };
    let span = Span::current();
    // As the pod sent it, but not as much as it likes.
    span.record("resource", &resource[..resource.floor_char_boundary(200)]);
    if let Some(pod) = pod {
        span.record("namespace", &*pod.namespace).record("pod", &*pod.name).record("pod_uid", &*pod.uid);
    }
    if let Some(assignment) = assignment {
        span.record("binding", &*assignment.binding.name).record("identity", &*assignment.identity.object.name);
    }
}

const fn in_a_word(decision: &Decision) -> &'static str {
    match decision {
        Decision::Allow(_) => "allow",
        Decision::Deny(_) => "deny",
        Decision::Wait(_) => "wait",
    }
}

const fn waited_for(wait: &Wait) -> &'static str {
    match wait {
        Wait::UnknownAddress => "address",
        Wait::AmbiguousAddress => "one pod of the address",
        Wait::Assignment(_) => "assignment",
    }
}

struct HeldGauge<'a>(&'a Metrics);

impl Drop for HeldGauge<'_> {
    fn drop(&mut self) {
        self.0.held.dec();
    }
}

/// On what ground a token is given. The one place that tells sources apart.
pub(super) enum Ground<'a> {
    /// An assignment.
    Assignment(&'a Arc<Assignment>),
    /// An exception: the node's own identities, asked for as the pod asks.
    Exempt(&'a ObjectRef),
}

pub(super) fn ground(source: &Source) -> Ground<'_> {
    match source {
        Source::Assignment(assignment) => Ground::Assignment(assignment),
        Source::Exception(exception) => Ground::Exempt(exception),
    }
}

pub(super) fn assignment_of(allow: &Allow) -> Option<&Assignment> {
    match ground(&allow.source) {
        Ground::Assignment(assignment) => Some(assignment),
        Ground::Exempt(_) => None,
    }
}

pub(super) fn exception_of(allow: &Allow) -> Option<&ObjectRef> {
    match ground(&allow.source) {
        Ground::Assignment(_) => None,
        Ground::Exempt(exception) => Some(exception),
    }
}

/// Name of the grant that is active.
pub(super) fn grant_of(assignment: &Assignment, now: Timestamp) -> Option<&str> {
    assignment.granted.as_ref().filter(|granted| granted.until > now).map(|granted| &*granted.name)
}

/// Whether the object is of another namespace than the pod, which then is not told its name.
pub(super) fn is_foreign(object: &ObjectRef, pod: &PodRef) -> bool {
    *object.namespace != *pod.namespace
}

pub(crate) fn pod_of(decision: &Decision) -> Option<&Arc<PodRef>> {
    match decision {
        Decision::Allow(allow) => Some(&allow.pod),
        Decision::Wait(Wait::Assignment(pod)) => Some(pod),
        Decision::Wait(_) => None,
        Decision::Deny(deny) => deny_subject(deny).0,
    }
}

pub(super) fn deny_subject(deny: &Deny) -> (Option<&Arc<PodRef>>, Option<&Assignment>) {
    match deny {
        Deny::HostNetwork | Deny::AddressChangedHands => (None, None),
        Deny::NoBinding(pod) | Deny::IdentityNotFound(pod) | Deny::MultipleIdentities(pod) => (Some(pod), None),
        Deny::Audience(pod, assignment) | Deny::Closed { pod, assignment, .. } => (Some(pod), Some(assignment)),
    }
}
