//! How IMDS says no: the identity category with `error` and `error_description`, all others with `error` only.

use http::{HeaderValue, StatusCode, header};
use serde_json::json;

use crate::emulator::http::Reply;

/// Clients look for "IMDS" in it.
const SERVER: &str = "IMDS/150.870.65.1854";

/// With the headers of every answer.
pub(super) fn said(reply: Reply) -> Reply {
    reply.with_header(header::SERVER, HeaderValue::from_static(SERVER))
}

/// An error of any category but the identity's.
pub(super) fn generic(status: StatusCode, error: &str) -> Reply {
    Reply::json(status, &json!({"error": error})).with_code(error)
}

/// Errors of the identity category.
pub(super) mod identity {
    use http::Method;

    use super::{HeaderValue, Reply, StatusCode, header, json};
    use crate::emulator::http::Call;

    fn error(status: StatusCode, error: &'static str, description: &str) -> Reply {
        Reply::json(status, &json!({"error": error, "error_description": description})).with_code(error)
    }

    /// A wrong request or a wrong identity.
    pub(in super::super) fn invalid_request(description: &str) -> Reply {
        error(StatusCode::BAD_REQUEST, "invalid_request", description)
    }

    pub(in super::super) fn unknown_identity() -> Reply {
        invalid_request("Identity not found")
    }

    pub(in super::super) fn several_identities() -> Reply {
        invalid_request(
            "Multiple user assigned identities exist, please specify the clientId / resourceId of the identity in the token \
             request",
        )
    }

    pub(in super::super) fn invalid_resource(description: &str) -> Reply {
        error(StatusCode::BAD_REQUEST, "invalid_resource", description)
    }

    pub(in super::super) fn not_found() -> Reply {
        error(StatusCode::NOT_FOUND, "not_found", "Not found")
    }

    pub(in super::super) fn too_many_requests() -> Reply {
        error(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", "Too many requests")
    }

    pub(in super::super) fn server_error(description: &str) -> Reply {
        error(StatusCode::INTERNAL_SERVER_ERROR, "server_error", description)
    }

    /// What a fault says.
    pub(in super::super) fn fault(status: StatusCode) -> Reply {
        match status {
            StatusCode::NOT_FOUND => not_found(),
            StatusCode::TOO_MANY_REQUESTS => too_many_requests(),
            // Not in the OpenAPI; clients go by the status.
            StatusCode::GONE => error(status, "gone", "The service is being updated"),
            StatusCode::SERVICE_UNAVAILABLE => error(status, "service_unavailable", "Service unavailable"),
            _ => server_error("Server error"),
        }
    }

    /// What every request of the category must have and not have.
    pub(in super::super) fn checks(call: &Call) -> Result<(), Reply> {
        if call.header("metadata") != Some("true") {
            return Err(invalid_request("Required metadata header not specified"));
        }
        // "Rejected", says the documentation; status and words are a guess.
        if call.headers.contains_key("x-forwarded-for") {
            return Err(invalid_request("Request header 'X-Forwarded-For' is not allowed"));
        }
        if call.method != Method::GET {
            let reply = error(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "Not allowed");
            return Err(reply.with_header(header::ALLOW, HeaderValue::from_static("GET")));
        }
        Ok(())
    }
}
