//! The API server's own record of who asked for what.

use jiff::Timestamp;
use serde_json::Value;

/// Logs every finished request with its metadata, no bodies.
pub(super) const POLICY: &str =
    "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: Metadata}]\n";

/// One finished request as the API server's audit log has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEvent {
    /// Who: `system:admin`, `system:serviceaccount:NAMESPACE:NAME`, or the name given to `kubeconfig_for`.
    pub user: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    /// Plural of the resource, empty for requests such as `/readyz`.
    pub resource: String,
    /// `status`, `binding`, … or empty.
    pub subresource: String,
    /// Namespace of the object, or empty.
    pub namespace: String,
    /// Name of the object, or empty (a create with a server-chosen name, a list).
    pub name: String,
    /// HTTP status of the answer.
    pub code: u16,
    /// Path and query as asked.
    pub uri: String,
    /// The client's own `User-Agent`.
    pub user_agent: String,
    /// When it reached the API server, by the API server's clock.
    pub received: Timestamp,
    /// When it was answered.
    pub answered: Timestamp,
}

impl AuditEvent {
    /// Whether it asked for a change (it may have been refused: see `code`).
    pub fn is_write(&self) -> bool {
        matches!(self.verb.as_str(), "create" | "update" | "patch" | "delete" | "deletecollection")
    }

    /// Reads one line of the log; none for a line that is not a finished request.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let event: Value = serde_json::from_str(line).ok()?;
        let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        if text("/stage") != "ResponseComplete" {
            return None;
        }
        Some(Self {
            user: text("/user/username"),
            verb: text("/verb"),
            resource: text("/objectRef/resource"),
            subresource: text("/objectRef/subresource"),
            namespace: text("/objectRef/namespace"),
            name: text("/objectRef/name"),
            code: event
                .pointer("/responseStatus/code")
                .and_then(Value::as_u64)
                .and_then(|code| u16::try_from(code).ok())
                .unwrap_or(0),
            uri: text("/requestURI"),
            user_agent: text("/userAgent"),
            received: text("/requestReceivedTimestamp").parse().ok()?,
            answered: text("/stageTimestamp").parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_line_of_the_log() {
        let line = r#"{"kind":"Event","stage":"ResponseComplete","requestURI":"/apis/x","verb":"patch","user":{"username":"u"},
            "userAgent":"t","objectRef":{"resource":"pods","namespace":"n","name":"p","subresource":"status"},"responseStatus":{"code":409},
            "requestReceivedTimestamp":"2026-11-24T08:00:00.000250Z","stageTimestamp":"2026-11-24T08:00:00.012500Z"}"#;
        let event = AuditEvent::parse(line).unwrap();
        assert!(event.is_write());
        assert_eq!((event.user.as_str(), event.code, event.subresource.as_str()), ("u", 409, "status"));
        assert_eq!(event.answered.duration_since(event.received).as_micros(), 12_250);
        assert_eq!(AuditEvent::parse(&line.replace("ResponseComplete", "ResponseStarted")), None);
        assert_eq!(AuditEvent::parse("{half"), None);
    }
}
