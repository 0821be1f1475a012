//! The log as a sink.

use identity_core::lookup::ObjectRef;

use super::{AuditError, AuditRecord, AuditSink};

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
            node = (!record.node.is_empty()).then_some(record.node),
            address = %record.address,
            destination = record.destination.map(tracing::field::display),
            pod_namespace = record.pod.map(|p| &*p.namespace),
            pod = record.pod.map(|p| &*p.name),
            pod_uid = record.pod.map(|p| &*p.uid),
            service_account = record.pod.map(|p| &*p.service_account).filter(|name| !name.is_empty()),
            binding = object(record.binding),
            binding_uid = record.binding.map(|o| &*o.uid),
            binding_generation = record.binding.map(|o| o.generation),
            identity = object(record.identity),
            identity_uid = record.identity.map(|o| &*o.uid),
            identity_generation = record.identity.map(|o| o.generation),
            identity_type = record.identity_type.map(identity_crd::IdentityType::as_i32),
            exception = object(record.exception),
            exception_uid = record.exception.map(|o| &*o.uid),
            grant = record.grant,
            resource = record.resource,
            client_id = record.client_id,
            source = record.source.map(super::TokenSource::as_str),
            token_expires_on = record.token_expires_on.map(tracing::field::display),
            expires_on = record.expires_on.map(tracing::field::display),
            token_id = record.token_id,
            uti = record.uti,
            upstream_request_id = record.upstream_request_id,
            correlation_id = record.correlation_id,
            suppressed = (record.suppressed > 0).then_some(record.suppressed),
            "token {}", record.verdict.as_str(),
        );
        std::future::ready(Ok(()))
    }
}
