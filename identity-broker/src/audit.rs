//! The record of every token and every denial, written before the token leaves.

use std::net::IpAddr;

use identity_core::{lookup::ObjectRef, pod::PodRef};
use jiff::Timestamp;
use thiserror::Error;

use crate::metrics::Reason;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A token is about to leave.
    Issued,
    /// The caller may not have one.
    Denied,
    /// The caller may have one, but there is none.
    Failed,
    /// Recorded as issued, but the decision changed before it left.
    Withdrawn,
}

impl Verdict {
    /// In a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Issued => "issued",
            Self::Denied => "denied",
            Self::Failed => "failed",
            Self::Withdrawn => "withdrawn",
        }
    }
}

/// One record. Never holds a token or a credential.
#[derive(Clone, Debug)]
pub struct AuditRecord<'a> {
    /// When.
    pub time: Timestamp,
    /// What happened.
    pub verdict: Verdict,
    /// Why, from a bounded set.
    pub reason: Reason,
    /// Why, in words; empty for a token.
    pub detail: &'a str,
    /// The caller's address.
    pub address: IpAddr,
    /// The caller, when known.
    pub pod: Option<&'a PodRef>,
    /// The binding that allows it.
    pub binding: Option<&'a ObjectRef>,
    /// The identity.
    pub identity: Option<&'a ObjectRef>,
    /// The exception by which the pod has the node's own identities; then there is no binding.
    pub exception: Option<&'a ObjectRef>,
    /// The audience asked for.
    pub resource: &'a str,
    /// The application or managed identity the token is for.
    pub client_id: Option<&'a str>,
    /// When the answered lifetime ends.
    pub expires_on: Option<Timestamp>,
    /// A name for the token that says nothing about it (see `Token::id`).
    pub token_id: Option<&'a str>,
    /// The upstream's id of its request.
    pub upstream_request_id: Option<&'a str>,
    /// How many records of refusals of this address were left out since the last one, because there were too many.
    pub suppressed: u64,
}

/// The record could not be written.
#[derive(Debug, Error)]
#[error("audit record not written: {0}")]
pub struct AuditError(pub String);

/// Writes records.
pub trait AuditSink: Send + Sync + 'static {
    /// Completes when the record is written. A token leaves only then.
    fn record(&self, record: &AuditRecord<'_>) -> impl Future<Output = Result<(), AuditError>> + Send;
}

/// Writes each record as an event of target `audit` at level info into the log. An error when the log does not take such
/// events: a record that is dropped was not written.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogAudit;

impl AuditSink for LogAudit {
    fn record(&self, record: &AuditRecord<'_>) -> impl Future<Output = Result<(), AuditError>> + Send {
        let object = |object: Option<&ObjectRef>| object.map(|o| format!("{}/{}", o.namespace, o.name));
        if !tracing::enabled!(target: "audit", tracing::Level::INFO) {
            let why = "the log does not take events of target `audit` at level info; install a subscriber that does";
            return std::future::ready(Err(AuditError(why.to_owned())));
        }
        tracing::info!(
            target: "audit",
            verdict = record.verdict.as_str(),
            reason = record.reason.as_str(),
            detail = (!record.detail.is_empty()).then_some(record.detail),
            address = %record.address,
            pod_namespace = record.pod.map(|p| &*p.namespace),
            pod = record.pod.map(|p| &*p.name),
            pod_uid = record.pod.map(|p| &*p.uid),
            binding = object(record.binding),
            binding_uid = record.binding.map(|o| &*o.uid),
            binding_generation = record.binding.map(|o| o.generation),
            identity = object(record.identity),
            identity_uid = record.identity.map(|o| &*o.uid),
            identity_generation = record.identity.map(|o| o.generation),
            exception = object(record.exception),
            exception_uid = record.exception.map(|o| &*o.uid),
            resource = record.resource,
            client_id = record.client_id,
            expires_on = record.expires_on.map(tracing::field::display),
            token_id = record.token_id,
            upstream_request_id = record.upstream_request_id,
            suppressed = (record.suppressed > 0).then_some(record.suppressed),
            "token {}", record.verdict.as_str(),
        );
        std::future::ready(Ok(()))
    }
}
