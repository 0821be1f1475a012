//! One request to the API server: a time limit, and a failure that says what to do next.

use std::time::Duration;

use http::Request;
use k8s_openapi::jiff::Timestamp;
use kube::{Client, client::Body, core::Status};
use serde::de::DeserializeOwned;

/// How long a connection may take. The default, 30 s, is longer than a lease.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a connection may say nothing while something is expected: longer than a quiet watch, which the server ends
/// before that.
const SILENCE: Duration = Duration::from_mins(4);

/// Why a request did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// 409: a precondition does not hold, or the object exists already.
    #[error("conflict: {0}")]
    Conflict(String),
    /// 404.
    #[error("not found: {0}")]
    NotFound(String),
    /// 403.
    #[error("not allowed: {0}")]
    Forbidden(String),
    /// Any other 4xx: the request is wrong and will be the next time.
    #[error("refused with {code}: {message}")]
    Refused {
        /// HTTP status.
        code: u16,
        /// The server's words.
        message: String,
    },
    /// 429 or 5xx, or 401, which says that the server does not know the process's own token (now): may be tried again.
    #[error("the API server answered {code}: {message}")]
    Busy {
        /// HTTP status.
        code: u16,
        /// The server's words.
        message: String,
        /// `Retry-After`, when the server named one.
        retry_after: Option<Duration>,
    },
    /// No answer in time. The server may have done it all the same.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// No connection, or it broke. The server may have done it all the same.
    #[error("the API server cannot be reached: {0}")]
    Unreachable(String),
    /// The state directory cannot be written or read.
    #[error("the state directory: {0}")]
    Disk(String),
    /// An answer that cannot be read.
    #[error("the API server's answer cannot be read: {0}")]
    Unreadable(String),
    /// Not sent: the audit must have it first, and does not take it.
    #[error("not written, since it cannot be recorded: {0}")]
    Unrecorded(String),
    /// Not sent: this process does not hold the lease, or not for long enough.
    #[error("not sent: the lease is not held any more")]
    Fenced,
}

impl Failure {
    /// What the server asked to wait, if it did.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether trying the same again soon may help.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::Timeout(_) | Self::Unreachable(_) | Self::Disk(_))
    }
}

/// A client as the runtime needs it: no retries of its own (they would pass by the lease's fence and by our own back-off),
/// a short limit for connecting, and one for a connection that has died silently. No limit on requests per second: how many are in flight at once is limited instead.
pub fn client(mut config: kube::Config) -> Result<Client, kube::Error> {
    config.default_retry = false;
    config.connect_timeout = Some(config.connect_timeout.map_or(CONNECT, |t| t.min(CONNECT)));
    config.read_timeout = Some(config.read_timeout.map_or(SILENCE, |t| t.min(SILENCE)));
    Client::try_from(config)
}

/// Sends `request`, waits at most `limit` for the whole answer, and reads it.
pub(crate) async fn send<T: DeserializeOwned>(
    client: &Client,
    request: Request<Vec<u8>>,
    limit: Duration,
) -> Result<T, Failure> {
    let bytes = tokio::time::timeout(limit, exchange(client, request)).await.map_err(|_| Failure::Timeout(limit))??;
    serde_json::from_slice(bytes.as_ref()).map_err(|error| Failure::Unreadable(error.to_string()))
}

async fn exchange(client: &Client, request: Request<Vec<u8>>) -> Result<impl AsRef<[u8]> + use<>, Failure> {
    let unreachable = |error: kube::Error| Failure::Unreachable(describe(&error));
    let response = client.send(request.map(Body::from)).await.map_err(unreachable)?;
    let (parts, body) = response.into_parts();
    let bytes = body.collect_bytes().await.map_err(unreachable)?;
    if parts.status.is_success() {
        return Ok(bytes);
    }
    let header = parts.headers.get(http::header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    Err(classify(parts.status.as_u16(), header, &bytes))
}

fn classify(code: u16, retry_after: Option<&str>, body: &[u8]) -> Failure {
    let status = serde_json::from_slice::<Status>(body).unwrap_or_else(|_| Status {
        message: String::from_utf8_lossy(body).trim().chars().take(300).collect(),
        ..Status::default()
    });
    refusal(code, &status, retry_after)
}

/// What a refusal means.
pub(crate) fn refusal(code: u16, status: &Status, retry_after: Option<&str>) -> Failure {
    let message = status.message.clone();
    match code {
        403 => Failure::Forbidden(message),
        404 => Failure::NotFound(message),
        409 => Failure::Conflict(message),
        401 | 429 | 500.. => {
            let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
            let told = (seconds > 0).then(|| Duration::from_secs(u64::from(seconds)));
            Failure::Busy { code, message, retry_after: retry_after.and_then(parse_retry_after).or(told) }
        }
        _ => Failure::Refused { code, message },
    }
}

/// `Retry-After` in seconds (RFC 9110 §10.2.3). The form with a date is not used by API servers.
fn parse_retry_after(value: &str) -> Option<Duration> {
    value.trim().parse().ok().map(Duration::from_secs)
}

/// The whole chain of an error in one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}

/// `MicroTime` of an instant.
pub(crate) const fn micro_time(at: Timestamp) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime {
    k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let status =
            br#"{"kind":"Status","message":"slow down","reason":"TooManyRequests","details":{"retryAfterSeconds":7}}"#;
        let busy = |code, message: &str, seconds: Option<u64>| Failure::Busy {
            code,
            message: message.into(),
            retry_after: seconds.map(Duration::from_secs),
        };
        assert_eq!(classify(429, Some("3"), status), busy(429, "slow down", Some(3)));
        assert_eq!(classify(429, None, status), busy(429, "slow down", Some(7)));
        assert_eq!(classify(503, Some("soon"), b" no leader \n"), busy(503, "no leader", None));
        assert_eq!(classify(409, None, status), Failure::Conflict("slow down".into()));
        assert_eq!(classify(404, None, b""), Failure::NotFound(String::new()));
        assert_eq!(classify(401, None, b"who"), busy(401, "who", None));
        assert_eq!(classify(403, None, b"no"), Failure::Forbidden("no".into()));
        assert_eq!(classify(422, None, b"x"), Failure::Refused { code: 422, message: "x".into() });
    }
}
