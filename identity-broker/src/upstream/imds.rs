//! Tokens of user-assigned managed identities from the node's own IMDS (imds-and-clients §1.1).

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use identity_core::lookup::Identity;
use jiff::Timestamp;
use serde::Deserialize;

use super::{Failure, entra::first_line, http::Clients, retry_after::retry_after};
use crate::tokens::{Freshness, Issued, Refusal, RefusalKind, Token, TokenError};

/// How long IMDS is left alone when it throttles without saying for how long.
const THROTTLED: Duration = Duration::from_secs(1);

/// A number that is written as a string by the real service.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Text(String),
    Number(i64),
}

impl Number {
    fn value(&self) -> Option<i64> {
        match self {
            Self::Text(text) => text.trim().parse().ok(),
            Self::Number(number) => Some(*number),
        }
    }
}

#[derive(Deserialize)]
struct Success {
    access_token: String,
    #[serde(default)]
    client_id: Option<String>,
    #[serde(default)]
    expires_on: Option<Number>,
    #[serde(default)]
    expires_in: Option<Number>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Refused {
    error: String,
    error_description: String,
}

/// Asks once.
pub(crate) async fn token(
    clients: &Clients,
    endpoint: &Uri,
    identity: &Identity,
    resource: &str,
    freshness: Freshness,
    now: Timestamp,
) -> Result<Token, Failure> {
    let request = request(endpoint, identity, resource, freshness).map_err(Failure::Permanent)?;
    let answer = clients
        .plain(request)
        .await
        .map_err(|error| Failure::Transient { message: format!("the node's IMDS: {error}"), retry_after: None })?;
    let what = filled(identity.resource_id.as_deref()).or(identity.client_id.as_deref()).unwrap_or_default();
    let answered = read(&answer, what, now)?;
    check_client(identity, answered.success.client_id.as_deref()).map_err(Failure::Permanent)?;
    Ok(answered.token(identity.client_id.as_deref(), resource, now))
}

/// The answer to a request that a pod has made itself, with whatever identity it named.
pub(crate) fn exempt(answer: &http::Response<Bytes>, resource: &str, now: Timestamp) -> Result<Token, Failure> {
    Ok(read(answer, "", now)?.token(None, resource, now))
}

/// What was answered, and what it means.
struct Answered {
    success: Success,
    expires_on: Timestamp,
    request_id: Option<String>,
}

impl Answered {
    /// `expected`: the client id when the answer has none.
    fn token(&self, expected: Option<&str>, resource: &str, now: Timestamp) -> Token {
        Token::issued(&Issued {
            access_token: &self.success.access_token,
            resource,
            client_id: self.success.client_id.as_deref().or(expected),
            expires_on: self.expires_on,
            now,
            credential: 0,
            request_id: self.request_id.as_deref(),
        })
    }
}

/// `what` names the identity, for whoever has to look after it.
fn read<B: AsRef<[u8]>>(answer: &http::Response<B>, what: &str, now: Timestamp) -> Result<Answered, Failure> {
    let request_id = answer
        .headers()
        .get("x-ms-request-id")
        .and_then(|value| value.to_str().ok())
        .map(|value| value.chars().take(64).collect::<String>());
    let status = answer.status();
    if status != StatusCode::OK {
        return Err(refusal(status, answer, what));
    }
    let success: Success = serde_json::from_slice(answer.body().as_ref()).map_err(|_| Failure::Transient {
        message: "the node's IMDS answered something that is not a token".to_owned(),
        retry_after: None,
    })?;
    let seconds = |number: &Option<Number>| number.as_ref().and_then(Number::value);
    let expires_on = seconds(&success.expires_on)
        .or_else(|| seconds(&success.expires_in).map(|left| now.as_second().saturating_add(left)))
        .and_then(|end| Timestamp::from_second(end).ok())
        .ok_or_else(|| Failure::Transient {
            message: "the node's IMDS answered a token without expires_on".to_owned(),
            retry_after: None,
        })?;
    Ok(Answered { success, expires_on, request_id })
}

/// The identity must be the one that the object says: a resource id and a client id of two identities, written by
/// mistake or on purpose, give nobody a token.
fn check_client(identity: &Identity, answered: Option<&str>) -> Result<(), TokenError> {
    let Some(expected) = filled(identity.client_id.as_deref()) else { return Ok(()) };
    match answered {
        Some(answered) if answered.eq_ignore_ascii_case(expected) => Ok(()),
        Some(answered) => Err(TokenError::misconfigured(
            identity,
            format!(
                "spec.clientID is {expected}, but the identity of spec.resourceID has client id {answered}; correct one of them"
            ),
        )),
        None => Err(TokenError::misconfigured(
            identity,
            "the node's IMDS did not say which client id the token is for, so that spec.clientID cannot be checked",
        )),
    }
}

fn filled(text: Option<&str>) -> Option<&str> {
    text.map(str::trim).filter(|text| !text.is_empty())
}

fn request(
    endpoint: &Uri,
    identity: &Identity,
    resource: &str,
    freshness: Freshness,
) -> Result<Request<Vec<u8>>, TokenError> {
    let selector = match (filled(identity.resource_id.as_deref()), filled(identity.client_id.as_deref())) {
        (Some(resource_id), _) => ("msi_res_id", resource_id),
        // Objects of the predecessor's managed mode. Neither would be the node's own identity: never (its bug 3).
        (None, Some(client_id)) => ("client_id", client_id),
        (None, None) => {
            return Err(TokenError::misconfigured(
                identity,
                "spec.resourceID is missing: a managed identity is asked for by it",
            ));
        }
    };
    let mut query = form_urlencoded::Serializer::new(String::new());
    query
        .append_pair("api-version", "2018-02-01")
        .append_pair("resource", resource)
        .append_pair(selector.0, selector.1);
    if freshness == Freshness::Upstream {
        // IMDS has a cache of its own.
        query.append_pair("bypass_cache", "true");
    }
    let query = query.finish();
    let base = endpoint.to_string();
    Request::get(format!("{}/metadata/identity/oauth2/token?{query}", base.trim_end_matches('/')))
        .header("Metadata", "true")
        .header("User-Agent", concat!("entra-pod-identity/", env!("CARGO_PKG_VERSION")))
        .body(Vec::new())
        .map_err(|_| TokenError::misconfigured(identity, "the request to the node's IMDS could not be written"))
}

fn refusal<B: AsRef<[u8]>>(status: StatusCode, answer: &http::Response<B>, what: &str) -> Failure {
    let body: Refused = serde_json::from_slice(answer.body().as_ref()).unwrap_or_default();
    let description = first_line(&body.error_description);
    // 404 "updating" and 410 "back within 70 s" are as temporary as 429 and 5xx.
    let passing = matches!(status.as_u16(), 404 | 408 | 410 | 429) || status.is_server_error();
    if passing {
        let mut message = format!("the node's IMDS answered {status}");
        if !description.is_empty() {
            message = format!("{message}: {description}");
        }
        // IMDS says no `Retry-After` with 429 (imds-and-clients §1.1): then a moment is what it takes for its second to end.
        let throttled = (status == StatusCode::TOO_MANY_REQUESTS).then_some(THROTTLED);
        return Failure::Transient { message, retry_after: retry_after(answer.headers()).or(throttled) };
    }
    let description = match description.as_str() {
        "Identity not found" if !what.is_empty() => {
            format!("Identity not found: {what} is not assigned to this node's virtual machine")
        }
        "" => format!("the node's IMDS answered {status}"),
        _ => description,
    };
    Failure::Permanent(TokenError::Refused(Refusal {
        error: RefusalKind::of(&body.error),
        description,
        trace_id: None,
    }))
}
