//! The record of every token and every denial, written before the token leaves.
//!
//! ```text
//! AuditRecord ─ AuditSink ─┬─ Journal   files on the node, each line bound to the one before   (journal)
//!                          ├─ LogAudit  an event of the log                                    (log)
//!                          ├─ FanOut    two sinks, what the failure of each means              (fan_out)
//!                          └─ …         an embedder's own
//! ```
//!
//! [`series`] makes Kubernetes Events of what the journal holds.

mod fan_out;
pub mod grant;
pub mod journal;
pub mod json;
mod log;
pub mod series;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use identity_core::{lookup::ObjectRef, pod::PodRef};
use identity_crd::IdentityType;
use jiff::Timestamp;
use thiserror::Error;

pub use fan_out::{FanOut, Policy};
pub use grant::{GrantRecord, GrantSink};
pub use log::LogAudit;

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

/// Where the token of an answer was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// At hand.
    Cache,
    /// Upstream was asked: Entra, or the node's IMDS.
    Upstream,
}

impl TokenSource {
    /// In a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Upstream => "upstream",
        }
    }
}

/// One record. Never holds a token or a credential.
#[derive(Clone, Copy, Debug)]
pub struct AuditRecord<'a> {
    /// When.
    pub time: Timestamp,
    /// The node; empty when nobody said which.
    pub node: &'a str,
    /// What happened.
    pub verdict: Verdict,
    /// Why, from a bounded set.
    pub reason: Reason,
    /// Why, in words; empty for a token.
    pub detail: &'a str,
    /// The caller's address, by which its pod was found.
    pub address: IpAddr,
    /// Where the kernel says that the connection was going before it was redirected. `None` when whoever accepted it did
    /// not look: then the address alone stands for the caller.
    pub destination: Option<SocketAddr>,
    /// The caller, when known.
    pub pod: Option<&'a PodRef>,
    /// The binding that allows it, or that refuses it.
    pub binding: Option<&'a ObjectRef>,
    /// The identity.
    pub identity: Option<&'a ObjectRef>,
    /// What backs the identity.
    pub identity_type: Option<IdentityType>,
    /// The exception by which the pod has the node's own identities; then there is no binding.
    pub exception: Option<&'a ObjectRef>,
    /// Name of the just-in-time grant that opened the binding.
    pub grant: Option<&'a str>,
    /// The audience asked for.
    pub resource: &'a str,
    /// The application or managed identity the token is for.
    pub client_id: Option<&'a str>,
    /// Where the token was.
    pub source: Option<TokenSource>,
    /// When the token itself ends (its `exp`).
    pub token_expires_on: Option<Timestamp>,
    /// When the answered lifetime ends: at most [`token_expires_on`](Self::token_expires_on), less when what allows the
    /// token ends earlier.
    pub expires_on: Option<Timestamp>,
    /// A name for the token that says nothing about it (see `Token::id`).
    pub token_id: Option<&'a str>,
    /// `uti` of the token, which Entra's sign-in log has as `uniqueTokenIdentifier`.
    pub uti: Option<&'a str>,
    /// The upstream's id of its request.
    pub upstream_request_id: Option<&'a str>,
    /// The id that was sent along with the request for the token: `correlationId` in Entra's sign-in log.
    pub correlation_id: Option<&'a str>,
    /// How many records of refusals of this address were left out since the last one, because there were too many.
    pub suppressed: u64,
}

impl<'a> AuditRecord<'a> {
    /// A record that says no more than when, of whom, and what; the rest is filled in.
    pub const fn new(time: Timestamp, verdict: Verdict, reason: Reason, address: IpAddr, resource: &'a str) -> Self {
        Self {
            time,
            node: "",
            verdict,
            reason,
            detail: "",
            address,
            destination: None,
            pod: None,
            binding: None,
            identity: None,
            identity_type: None,
            exception: None,
            grant: None,
            resource,
            client_id: None,
            source: None,
            token_expires_on: None,
            expires_on: None,
            token_id: None,
            uti: None,
            upstream_request_id: None,
            correlation_id: None,
            suppressed: 0,
        }
    }
}

/// The record could not be written.
#[derive(Clone, Debug, Error)]
#[error("audit record not written: {0}")]
pub struct AuditError(pub String);

/// Writes records.
pub trait AuditSink: Send + Sync + 'static {
    /// Completes when the record is written. A token leaves only then. Bounded in time by the implementation.
    fn record(&self, record: &AuditRecord<'_>) -> impl Future<Output = Result<(), AuditError>> + Send;
}

impl<T: AuditSink> AuditSink for Arc<T> {
    fn record(&self, record: &AuditRecord<'_>) -> impl Future<Output = Result<(), AuditError>> + Send {
        (**self).record(record)
    }
}

/// None: nobody is told, and nobody minds.
impl<T: AuditSink> AuditSink for Option<T> {
    async fn record(&self, record: &AuditRecord<'_>) -> Result<(), AuditError> {
        match self {
            Some(sink) => sink.record(record).await,
            None => Ok(()),
        }
    }
}
