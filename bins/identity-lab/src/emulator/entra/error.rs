//! How Entra says no.

use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::json;
use uuid::Uuid;

use crate::emulator::{
    fault::ServiceName,
    http::{Call, Reply},
};

/// A request that is not answered with what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The real service's refusal.
    Entra(EntraError),
    /// The real service offers this; the emulator does not.
    NotEmulated(String),
}

/// An error with its AADSTS number
/// (<https://learn.microsoft.com/entra/identity-platform/reference-error-codes>).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EntraError {
    pub(super) status: StatusCode,
    pub(super) error: &'static str,
    pub(super) code: u32,
    pub(super) message: String,
}

impl Refusal {
    fn new(status: StatusCode, error: &'static str, code: u32, message: impl Into<String>) -> Self {
        Self::Entra(EntraError { status, error, code, message: message.into() })
    }

    pub(super) fn invalid_request(code: u32, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", code, message)
    }

    pub(super) fn invalid_client(code: u32, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "invalid_client", code, message)
    }

    pub(super) fn missing(parameter: &str) -> Self {
        let message = format!("The request body must contain the following parameter: '{parameter}'.");
        Self::invalid_request(900_144, message)
    }

    pub(super) fn only_post(method: &http::Method) -> Self {
        let message = format!("The endpoint only accepts POST requests. Received a {method} request.");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request", 900_561, message)
    }

    pub(super) fn unsupported_grant(grant: &str) -> Self {
        let message = format!("The app requested an unsupported grant type '{grant}'.");
        Self::new(StatusCode::BAD_REQUEST, "unsupported_grant_type", 70_003, message)
    }

    pub(super) fn tenant(name: &str) -> Self {
        Self::invalid_request(
            90_002,
            format!(
                "Tenant '{name}' not found. Check to make sure you have the correct tenant ID and are signing into the correct \
                 cloud. Check with your subscription administrator, this may happen if there are no active subscriptions for \
                 the tenant."
            ),
        )
    }

    pub(super) fn application(client_id: &str, tenant: &str) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "unauthorized_client",
            700_016,
            format!(
                "Application with identifier '{client_id}' was not found in the directory '{tenant}'. This can happen if the \
                 application has not been installed by the administrator of the tenant or consented to by any user in the \
                 tenant. You may have sent your authentication request to the wrong tenant."
            ),
        )
    }

    pub(super) fn scope(scope: &str) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "invalid_scope",
            70_011,
            format!(
                "The provided request must include a 'scope' input parameter. The provided value for the input parameter \
                 'scope' is not valid. The scope {scope} is not valid."
            ),
        )
    }

    pub(super) fn resource(resource: &str, tenant: &str) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "invalid_resource",
            500_011,
            crate::emulator::entra::unknown_resource(resource, tenant),
        )
    }

    pub(super) fn instance(endpoint: &str) -> Self {
        let message = format!("Unknown or invalid instance. Requested authorization endpoint: {endpoint}");
        Self::new(StatusCode::BAD_REQUEST, "invalid_instance", 50_049, message)
    }

    pub(super) fn unavailable() -> Self {
        let message = "The service is temporarily unavailable. Please retry later.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable", 90_033, message)
    }

    pub(super) fn server(message: &str) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", 90_000, message)
    }

    pub(super) fn reply(&self, call: &Call) -> Reply {
        match self {
            Self::NotEmulated(what) => Reply::not_emulated(ServiceName::Entra, what),
            Self::Entra(error) => error.reply(call),
        }
    }
}

impl EntraError {
    fn reply(&self, call: &Call) -> Reply {
        let Self { status, error, code, message } = self;
        let trace = Uuid::new_v4();
        let correlation =
            call.header("client-request-id").and_then(|id| Uuid::try_parse(id).ok()).unwrap_or_else(Uuid::new_v4);
        let timestamp = timestamp(call);
        let body = json!({
            "error": error,
            "error_description":
                format!("AADSTS{code}: {message} Trace ID: {trace} Correlation ID: {correlation} Timestamp: {timestamp}"),
            "error_codes": [code],
            "timestamp": timestamp,
            "trace_id": trace.to_string(),
            "correlation_id": correlation.to_string(),
            "error_uri": format!("https://{}/error?code={code}", call.host),
        });
        dressed(Reply::json(*status, &body), trace).with_code(code.to_string())
    }
}

/// `2026-11-23 14:28:46Z`
pub(super) fn timestamp(call: &Call) -> String {
    call.received.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// With the headers of every answer of the token service.
pub(super) fn dressed(reply: Reply, trace: Uuid) -> Reply {
    let request_id = HeaderValue::try_from(trace.to_string()).unwrap_or_else(|_| HeaderValue::from_static(""));
    reply
        .with_header(header::CACHE_CONTROL, HeaderValue::from_static("no-store, no-cache"))
        .with_header(header::PRAGMA, HeaderValue::from_static("no-cache"))
        .with_header(header::EXPIRES, HeaderValue::from_static("-1"))
        .with_header(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000; includeSubDomains"))
        .with_header(HeaderName::from_static("x-ms-request-id"), request_id)
}
