//! Everything the endpoint refuses, and the one place where that becomes HTTP.
//!
//! Statuses follow what SDKs do with them (imds-and-clients §2.3): 400 and 403 end a request at once in every SDK, 404
//! would be retried for up to two minutes, 503 with `Retry-After` is waited for. Texts that SDKs compare are the real
//! endpoint's, letter by letter. A 403 never says "unreachable": Python and Go take that for a proxy's answer.

use std::time::Duration;

use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER, SERVER},
};
use http_body_util::Full;
use identity_core::lookup::{Deny, Wait};
use thiserror::Error;

use super::{query::QueryError, target::TargetError};
use crate::{metrics::Reason, tokens::TokenError};

/// Value of the `Server` header: MSAL looks for "IMDS" in it.
pub const SERVER_NAME: &str = concat!("IMDS/entra-pod-identity-", env!("CARGO_PKG_VERSION"));
/// `Content-Type` of every answer.
pub const JSON: &str = "application/json; charset=utf-8";

/// Why a request gets no token.
#[derive(Clone, Debug, Error)]
pub enum EndpointError {
    /// The request target cannot be read in one way only.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// No `Metadata: true`.
    #[error("Required metadata header not specified")]
    MetadataHeader,
    /// `X-Forwarded-For` is present: somebody forwards requests for others.
    #[error("Requests with an X-Forwarded-For header are rejected")]
    Forwarded,
    /// Not GET.
    #[error("The verb isn't supported on the endpoint: use GET")]
    Method,
    /// A parameter is wrong.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// No such path here.
    #[error("Not found")]
    NotFound,
    /// A path of the metadata service that pods are not given.
    #[error("Access to this path of the metadata service is blocked by the cluster's policy")]
    Blocked,
    /// The decision.
    #[error("{}", deny_text(.0))]
    Denied(Deny),
    /// Not yet, and the request has been held as long as it may.
    #[error("{}", wait_text(.0))]
    NotYet(Wait),
    /// The decision changed again and again while the token was got.
    #[error("The assignment changed while the token was obtained; try again")]
    Unsettled,
    /// The pod has too many requests waiting.
    #[error("Too many requests of this pod are waiting; the limit is {0}")]
    TooManyHeld(usize),
    /// What backs the identity gave no token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The audit record could not be written.
    #[error("The audit record could not be written, and no token is issued without one")]
    Audit,
}

fn deny_text(deny: &Deny) -> String {
    match deny {
        Deny::HostNetwork => "Pods in the host's network and the node itself get no tokens here".to_owned(),
        Deny::AddressChangedHands => {
            "This address now belongs to another pod than the connection began with; open a new connection".to_owned()
        }
        Deny::NoBinding(_) | Deny::IdentityNotFound(_) => "Identity not found".to_owned(),
        Deny::MultipleIdentities(_) => "Multiple user assigned identities exist, please specify the clientId / resourceId of the identity in the token request".to_owned(),
        Deny::Audience(_, assignment) => format!(
            "The requested resource is not among the audiences that AzureIdentityBinding {}/{} and AzureIdentity {}/{} allow",
            assignment.binding.namespace, assignment.binding.name,
            assignment.identity.object.namespace, assignment.identity.object.name,
        ),
    }
}

fn wait_text(wait: &Wait) -> &'static str {
    match wait {
        Wait::UnknownAddress => "The node does not know yet which pod has this address; try again",
        Wait::AmbiguousAddress => "More than one pod has this address at the moment; try again",
        Wait::Assignment(_) => "The identity is being assigned to the pod; try again",
    }
}

/// What an [`EndpointError`] is on the wire.
struct Shape {
    status: StatusCode,
    error: &'static str,
    retry_after: Option<Duration>,
}

impl EndpointError {
    fn shape(&self) -> Shape {
        let at = |status, error| Shape { status, error, retry_after: None };
        let later = |status, error, wait| Shape { status, error, retry_after: Some(wait) };
        let second = Duration::from_secs(1);
        match self {
            Self::Target(TargetError::TooLong) => at(StatusCode::URI_TOO_LONG, "invalid_request"),
            Self::Target(_) | Self::MetadataHeader | Self::Forwarded | Self::Query(_) => {
                at(StatusCode::BAD_REQUEST, "invalid_request")
            }
            Self::Method => at(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::NotFound => at(StatusCode::NOT_FOUND, "not_found"),
            Self::Blocked => at(StatusCode::FORBIDDEN, "access_denied"),
            Self::Denied(deny) => match deny {
                Deny::NoBinding(_) | Deny::IdentityNotFound(_) | Deny::MultipleIdentities(_) => {
                    at(StatusCode::BAD_REQUEST, "invalid_request")
                }
                Deny::HostNetwork | Deny::Audience(..) => at(StatusCode::FORBIDDEN, "access_denied"),
                Deny::AddressChangedHands => later(StatusCode::SERVICE_UNAVAILABLE, "service_unavailable", second),
            },
            Self::NotYet(_) | Self::Unsettled => later(StatusCode::SERVICE_UNAVAILABLE, "service_unavailable", second),
            Self::TooManyHeld(_) => later(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", second),
            Self::Token(TokenError::Refused(refusal)) => at(StatusCode::BAD_REQUEST, refusal.error.as_str()),
            Self::Token(TokenError::Misconfigured { .. }) => at(StatusCode::BAD_REQUEST, "invalid_request"),
            Self::Token(TokenError::Unavailable { retry_after, .. }) => {
                later(StatusCode::SERVICE_UNAVAILABLE, "service_unavailable", *retry_after)
            }
            Self::Audit => later(StatusCode::SERVICE_UNAVAILABLE, "service_unavailable", Duration::from_secs(5)),
        }
    }

    /// The reason, from a bounded set, for metrics and audit.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Target(_) => Reason::BadTarget,
            Self::MetadataHeader => Reason::MetadataHeader,
            Self::Forwarded => Reason::Forwarded,
            Self::Method => Reason::Method,
            Self::Query(_) => Reason::BadQuery,
            Self::NotFound => Reason::NotFound,
            Self::Blocked => Reason::Blocked,
            Self::Denied(deny) => match deny {
                Deny::HostNetwork => Reason::HostNetwork,
                Deny::AddressChangedHands => Reason::AddressChangedHands,
                Deny::NoBinding(_) => Reason::NoBinding,
                Deny::IdentityNotFound(_) => Reason::IdentityNotFound,
                Deny::MultipleIdentities(_) => Reason::MultipleIdentities,
                Deny::Audience(..) => Reason::Audience,
            },
            Self::NotYet(Wait::UnknownAddress) => Reason::UnknownAddress,
            Self::NotYet(Wait::AmbiguousAddress) => Reason::AmbiguousAddress,
            Self::NotYet(Wait::Assignment(_)) => Reason::NotAssignedYet,
            Self::Unsettled => Reason::Unsettled,
            Self::TooManyHeld(_) => Reason::TooManyHeld,
            Self::Token(TokenError::Refused(_)) => Reason::UpstreamRefused,
            Self::Token(TokenError::Misconfigured { .. }) => Reason::Misconfigured,
            Self::Token(TokenError::Unavailable { .. }) => Reason::UpstreamUnavailable,
            Self::Audit => Reason::Audit,
        }
    }

    /// The answer. The only place where an error becomes HTTP.
    pub fn into_response(self) -> Response<Full<Bytes>> {
        let Shape { status, error, retry_after } = self.shape();
        let body = serde_json::json!({"error": error, "error_description": self.to_string()}).to_string();
        let mut response = json(status, body.into());
        let headers = response.headers_mut();
        if let Some(wait) = retry_after {
            // Whole seconds, rounded up, at least one.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        match self {
            Self::Method => {
                headers.insert(ALLOW, HeaderValue::from_static("GET"));
            }
            Self::Denied(Deny::AddressChangedHands) | Self::Target(TargetError::TooLong) => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

/// A JSON answer with the endpoint's headers.
pub(crate) fn json(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    headers.insert(SERVER, HeaderValue::from_static(SERVER_NAME));
    response
}
