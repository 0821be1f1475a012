//! A span as it leaves: names that OpenTelemetry knows, and nothing that is not in the table.

use std::collections::BTreeMap;

use opentelemetry::{
    Key, KeyValue, Value,
    trace::{SpanKind, Status},
};
use opentelemetry_sdk::trace::SpanData;

/// What a request's span calls the caller's address.
pub(super) const PEER: &str = "peer";

/// What a span's field is called when it leaves. What is not here does not leave.
pub(super) const ATTRIBUTES: &[(&str, &str)] = &[
    (PEER, "client.address"),
    ("accepted", "aadpodidentity.connection.accepted"),
    ("method", "http.request.method"),
    ("route", "http.route"),
    ("status", STATUS),
    ("namespace", "k8s.namespace.name"),
    ("pod", "k8s.pod.name"),
    ("pod_uid", "k8s.pod.uid"),
    ("binding", "aadpodidentity.binding"),
    ("identity_namespace", "aadpodidentity.identity.namespace"),
    ("identity", "aadpodidentity.identity"),
    ("resource", "aadpodidentity.resource"),
    ("source", "aadpodidentity.source"),
    ("reason", "aadpodidentity.reason"),
    ("waiting_for", "aadpodidentity.waiting_for"),
    ("wanted", "aadpodidentity.wanted"),
    ("host", "server.address"),
    ("correlation_id", "aadpodidentity.correlation_id"),
    ("error", "error.type"),
];

const STATUS: &str = "http.response.status_code";

/// The same span with names, kind and status as others expect them.
pub(super) fn shaped(mut span: SpanData) -> SpanData {
    let mut attributes = BTreeMap::new();
    for KeyValue { key, value, .. } in std::mem::take(&mut span.attributes) {
        let Some((_, name)) = ATTRIBUTES.iter().find(|(field, _)| *field == key.as_str()) else { continue };
        let value = if key.as_str() == PEER { without_port(value) } else { value };
        // What was said last counts.
        attributes.insert(*name, value);
    }
    span.span_kind = match &*span.name {
        "request" => SpanKind::Server,
        "upstream" => SpanKind::Client,
        _ => SpanKind::Internal,
    };
    // Semantic conventions of HTTP spans: what a client asks for wrongly is not a server's error.
    let failed = if span.span_kind == SpanKind::Client { 400 } else { 500 };
    let refused = matches!(attributes.get(STATUS), Some(Value::I64(status)) if *status >= failed);
    if refused || attributes.contains_key("error.type") {
        span.status = Status::error("");
    }
    span.attributes =
        attributes.into_iter().map(|(name, value)| KeyValue::new(Key::from_static_str(name), value)).collect();
    span
}

fn without_port(value: Value) -> Value {
    let text = value.as_str().into_owned();
    text.rsplit_once(':').map(|(address, _)| Value::from(address.to_owned())).unwrap_or(value)
}
