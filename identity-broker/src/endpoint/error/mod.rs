//! Everything the endpoint refuses, and the one place where that becomes HTTP. What it becomes says the [`table`].

pub(super) mod table;
#[cfg(test)]
mod tests;

use std::{
    fmt::{self, Display},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER, SERVER},
};
use identity_core::{
    lookup::{Assignment, Deny, ObjectRef, Wait},
    schedule::Reason as Closed,
};

pub use table::{Retry, Row};

use super::{
    body::Body,
    forms::{FormError, QueryError, Selector},
    metadata::MetadataError,
    target::{MAX_TARGET, TargetError},
};
use crate::{metrics::Reason, tokens::TokenError};

/// Value of the `Server` header: MSAL looks for "IMDS" in it.
pub const SERVER_NAME: &str = concat!("IMDS/entra-pod-identity-", env!("CARGO_PKG_VERSION"));
/// `Content-Type` of every answer.
pub const JSON: &str = "application/json; charset=utf-8";

/// Why a request gets no token.
#[derive(Clone, Debug)]
pub enum EndpointError {
    /// The request target cannot be read in one way only.
    Target(TargetError),
    /// No `Metadata: true`.
    MetadataHeader,
    /// None of the headers that a client of App Service sends.
    AppServiceHeader,
    /// `X-Forwarded-For` is present: somebody forwards requests for others.
    Forwarded,
    /// Not with this method; the value is that of `Allow`.
    Method(&'static str),
    /// The form in the body cannot be read.
    Form(FormError),
    /// A parameter is wrong.
    Query(QueryError),
    /// `authority` is not that of the identity.
    Authority,
    /// No such path here.
    NotFound,
    /// Outside the credential paths.
    Metadata(MetadataError),
    /// The decision, and what named the identity in the request.
    Denied(Deny, Option<Selector>),
    /// Not yet, and the request has been held as long as it may.
    NotYet(Wait),
    /// The decision changed again and again while the token was got.
    Unsettled,
    /// The identity's tenant is asked for, and nobody knows it.
    TenantUnknown,
    /// The pod has too many requests waiting.
    TooManyHeld(usize),
    /// The node has too many requests waiting.
    TooManyHeldInAll,
    /// The pod asks too often, in one way or another.
    Rate(RateLimit, Duration),
    /// What backs the identity gave no token.
    Token {
        /// Why.
        error: TokenError,
        /// Whether the identity is of another namespace than the pod: its objects are not named to the pod.
        foreign: bool,
    },
    /// The audit record could not be written.
    Audit,
    /// The same, answered in the form of App Service.
    AppService(Box<Self>),
}

/// Which limit of a pod is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateLimit {
    /// Requests for tokens.
    Requests,
    /// Requests for tokens that are not at hand.
    Cold,
    /// Requests with `bypass_cache`.
    Bypass,
}

impl From<TargetError> for EndpointError {
    fn from(error: TargetError) -> Self {
        Self::Target(error)
    }
}

impl From<QueryError> for EndpointError {
    fn from(error: QueryError) -> Self {
        Self::Query(error)
    }
}

impl From<FormError> for EndpointError {
    fn from(error: FormError) -> Self {
        match error {
            FormError::Parameters(error) => Self::Query(error),
            error => Self::Form(error),
        }
    }
}

impl From<MetadataError> for EndpointError {
    fn from(error: MetadataError) -> Self {
        Self::Metadata(error)
    }
}

impl EndpointError {
    /// Its line of the table.
    pub fn row(&self) -> &'static Row {
        match self {
            Self::Target(error) => error.row(),
            Self::MetadataHeader => &table::METADATA_HEADER,
            Self::AppServiceHeader => &table::APP_SERVICE_HEADER,
            Self::Forwarded => &table::FORWARDED,
            Self::Method(_) => &table::METHOD,
            Self::Form(error) => error.row(),
            Self::Query(error) => error.row(),
            Self::Authority => &table::AUTHORITY,
            Self::NotFound => &table::NOT_FOUND,
            Self::Metadata(error) => error.row(),
            Self::Denied(deny, _) => match deny {
                Deny::HostNetwork => &table::HOST_NETWORK,
                Deny::AddressChangedHands => &table::CHANGED_HANDS,
                Deny::NoBinding(_) => &table::NO_BINDING,
                Deny::IdentityNotFound(_) => &table::IDENTITY_NOT_FOUND,
                Deny::MultipleIdentities(_) => &table::MULTIPLE,
                Deny::Audience(..) => &table::AUDIENCE,
                Deny::Closed { reason: Closed::Unreadable, .. } => &table::TIME_BOX_UNREADABLE,
                Deny::Closed { reason: Closed::NoGrant, .. } => &table::GRANT_NEEDED,
                Deny::Closed { opens: Some(_), .. } => &table::CLOSED,
                Deny::Closed { opens: None, .. } => &table::CLOSED_FOR_GOOD,
            },
            Self::NotYet(Wait::UnknownAddress) => &table::UNKNOWN_ADDRESS,
            Self::NotYet(Wait::AmbiguousAddress) => &table::AMBIGUOUS_ADDRESS,
            Self::NotYet(Wait::Assignment(_)) => &table::NOT_ASSIGNED_YET,
            Self::Unsettled => &table::UNSETTLED,
            Self::TenantUnknown => &table::TENANT_UNKNOWN,
            Self::TooManyHeld(_) => &table::TOO_MANY_HELD,
            Self::TooManyHeldInAll => &table::TOO_MANY_HELD_IN_ALL,
            Self::Rate(RateLimit::Requests, _) => &table::RATE,
            Self::Rate(RateLimit::Cold, _) => &table::COLD_RATE,
            Self::Rate(RateLimit::Bypass, _) => &table::BYPASS_RATE,
            Self::Token { error, foreign } => match error {
                // An upstream's own words name no object of the cluster.
                TokenError::Refused(_) => &table::UPSTREAM_REFUSED,
                TokenError::Misconfigured { .. } if *foreign => &table::FOREIGN_MISCONFIGURED,
                TokenError::Misconfigured { .. } => &table::MISCONFIGURED,
                TokenError::Unavailable { .. } if *foreign => &table::FOREIGN_UNAVAILABLE,
                TokenError::Unavailable { .. } => &table::UPSTREAM_UNAVAILABLE,
            },
            Self::Audit => &table::AUDIT,
            Self::AppService(error) => error.row(),
        }
    }

    /// The reason, from a bounded set, for metrics and audit.
    pub fn reason(&self) -> Reason {
        self.row().reason
    }

    /// The text for audit records and logs: also what a pod of another namespace is not told.
    pub fn detail(&self) -> String {
        match self {
            Self::Token { error, .. } => error.to_string(),
            Self::AppService(error) => error.detail(),
            _ => self.to_string(),
        }
    }

    /// Whether it costs the endpoint next to nothing and says nothing about the pod: wrong requests and probes.
    pub(super) fn is_cheap(&self) -> bool {
        match self {
            Self::Target(_)
            | Self::MetadataHeader
            | Self::AppServiceHeader
            | Self::Forwarded
            | Self::Method(_)
            | Self::Form(_)
            | Self::Query(_)
            | Self::NotFound
            | Self::Metadata(_) => true,
            Self::AppService(error) => error.is_cheap(),
            _ => false,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Token { error: TokenError::Unavailable { retry_after, .. }, .. } | Self::Rate(_, retry_after) => {
                Some(*retry_after)
            }
            Self::Metadata(error) => error.retry_after(),
            Self::AppService(error) => error.retry_after(),
            _ => self.row().retry_after(),
        }
    }

    fn error(&self) -> &'static str {
        match self {
            Self::Token { error: TokenError::Refused(refusal), .. } => refusal.error.as_str(),
            Self::AppService(error) => error.error(),
            _ => self.row().error,
        }
    }

    fn allow(&self) -> Option<&'static str> {
        match self {
            Self::Method(allow) | Self::Metadata(MetadataError::Method(allow)) => Some(allow),
            Self::AppService(error) => error.allow(),
            _ => None,
        }
    }

    fn closes(&self) -> bool {
        match self {
            Self::Denied(Deny::AddressChangedHands, _)
            | Self::Target(TargetError::TooLong)
            | Self::Form(FormError::TooLarge | FormError::Incomplete | FormError::Timeout) => true,
            Self::AppService(error) => error.closes(),
            _ => false,
        }
    }

    /// The answer. The only place where an error becomes HTTP.
    pub fn into_response(self) -> Response<Body> {
        let (status, error, text) = (self.row().status, self.error(), self.to_string());
        let body = if matches!(self, Self::AppService(_)) {
            // MSAL reads the first two, other clients the last two.
            serde_json::json!({"statusCode": status.as_u16(), "message": text, "error": error, "error_description": text})
        } else {
            serde_json::json!({"error": error, "error_description": text})
        };
        let mut response = json(status, body.to_string().into());
        let headers = response.headers_mut();
        if let Some(wait) = self.retry_after() {
            // Whole seconds, rounded up, at least one.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if let Some(allow) = self.allow() {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if self.closes() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl Display for EndpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = self.row();
        let text = match self {
            Self::Target(_) => row.fill(&[("longest", &MAX_TARGET)]),
            Self::Method(allow) => row.fill(&[("allow", allow)]),
            Self::Form(error) => error.to_string(),
            Self::Query(error) => error.to_string(),
            Self::Metadata(error) => error.to_string(),
            Self::AppService(error) => error.to_string(),
            Self::Denied(Deny::NoBinding(pod), _) => row.fill(&[("namespace", &pod.namespace)]),
            Self::Denied(Deny::IdentityNotFound(_), selector) => {
                row.fill(&[("parameter", &selector.map_or("id", Selector::name))])
            }
            Self::Denied(Deny::Audience(pod, assignment), _) => about(row, &pod.namespace, assignment, &[]),
            Self::Denied(Deny::Closed { pod, assignment, opens, reason }, _) => {
                let error = assignment.gate.as_ref().and_then(|gate| gate.error());
                let error = error.filter(|_| *assignment.binding.namespace == *pod.namespace);
                let error = error.map_or_else(|| "see the audit record".to_owned(), ToString::to_string);
                let opens = opens.map(|opens| opens.to_string()).unwrap_or_default();
                about(row, &pod.namespace, assignment, &[("why", reason), ("opens", &opens), ("error", &error)])
            }
            Self::TooManyHeld(most) => row.fill(&[("most", most)]),
            Self::Token { error, .. } => match error {
                TokenError::Refused(refusal) => row.fill(&[("message", refusal)]),
                TokenError::Misconfigured { identity, message } => {
                    row.fill(&[("identity", identity), ("message", message)])
                }
                TokenError::Unavailable { message, .. } => row.fill(&[("message", message)]),
            },
            _ => row.fill(&[]),
        };
        f.write_str(&text)
    }
}

impl std::error::Error for EndpointError {}

/// Names the objects, but for those of other namespaces.
fn about(row: &Row, namespace: &str, assignment: &Assignment, more: &[(&str, &dyn Display)]) -> String {
    let name = |kind: &str, object: &ObjectRef| {
        if *object.namespace == *namespace {
            format!("{kind} {}/{}", object.namespace, object.name)
        } else {
            format!("an {kind} of another namespace")
        }
    };
    let binding = name("AzureIdentityBinding", &assignment.binding);
    let identity = name("AzureIdentity", &assignment.identity.object);
    let values: [(&str, &dyn Display); 2] = [("binding", &binding), ("identity", &identity)];
    row.fill(&[&values[..], more].concat())
}

/// A JSON answer with the endpoint's headers.
pub(crate) fn json(status: StatusCode, body: Bytes) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    headers.insert(SERVER, HeaderValue::from_static(SERVER_NAME));
    response
}
