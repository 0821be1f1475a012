//! Tokens of service principals from Entra's v2 endpoint (imds-and-clients §3.1), through `oauth2`.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::{HeaderValue, StatusCode, header::DATE};
use identity_core::lookup::Identity;
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::{Algorithm, Header};
use oauth2::{
    AsyncHttpClient, AuthType, ClientId, ClientSecret, ErrorResponse, ExtraTokenFields, HttpRequest, HttpResponse,
    RequestTokenError, Scope, StandardRevocableToken, StandardTokenResponse, TokenResponse, TokenUrl,
    basic::{BasicRevocationErrorResponse, BasicTokenIntrospectionResponse, BasicTokenType},
    url::Url,
};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    Failure,
    http::{Clients, TransportError},
    retry_after::retry_after,
};
use crate::{
    credentials::{Certificate, Credential, RefusalCause, SKEW, Verdict},
    shown::shown,
    tokens::{Issued, Refusal, RefusalKind, Token, TokenError},
};

/// How long an assertion is valid; Microsoft documents five to ten minutes.
const ASSERTION_LIFETIME: i64 = 300;

type EntraClient = oauth2::Client<
    EntraError,
    StandardTokenResponse<Fields, BasicTokenType>,
    BasicTokenIntrospectionResponse,
    StandardRevocableToken,
    BasicRevocationErrorResponse,
>;

/// One request for one token.
pub(crate) struct TokenRequest<'a> {
    pub identity: &'a Identity,
    pub client_id: &'a str,
    pub endpoint: &'a Url,
    pub credential: &'a Credential,
    pub version: u64,
    pub resource: &'a str,
}

/// Asks once.
pub(crate) async fn token(clients: &Clients, request: &TokenRequest<'_>, now: Timestamp) -> Result<Token, Failure> {
    let client = EntraClient::new(ClientId::new(request.client_id.to_owned()))
        .set_auth_type(AuthType::RequestBody)
        .set_token_uri(TokenUrl::from_url(request.endpoint.clone()));
    let client = match request.credential {
        Credential::Secret(secret) => client.set_client_secret(ClientSecret::new(secret.expose_secret().to_owned())),
        Credential::Certificate(_) | Credential::Assertion(_) => client,
    };
    // A resource that ends in a slash keeps it: `https://x//.default` (imds-and-clients §3.1).
    let mut exchange =
        client.exchange_client_credentials().add_scope(Scope::new(format!("{}/.default", request.resource)));
    let assertion = match request.credential {
        Credential::Secret(_) => None,
        Credential::Certificate(certificate) => Some(
            assertion(certificate, request.client_id, request.endpoint, now)
                .map_err(|why| Failure::Permanent(TokenError::misconfigured(request.identity, why)))?,
        ),
        Credential::Assertion(assertion) => Some(assertion.expose_secret().to_owned()),
    };
    if let Some(assertion) = assertion {
        exchange = exchange
            .add_extra_param("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
            .add_extra_param("client_assertion", assertion);
    }
    let correlation = uuid::Uuid::new_v4();
    let http = Adapter { clients, correlation, date: Mutex::default(), request_id: Mutex::default() };
    let answer = exchange.request_async(&http).await;
    let answer = answer.map_err(|error| failure(error, request.credential, http.skew(now)))?;
    let lifetime = answer.expires_in().unwrap_or_default();
    let expires_on = i64::try_from(lifetime.as_secs())
        .ok()
        .and_then(|seconds| now.checked_add(SignedDuration::from_secs(seconds)).ok())
        .filter(|end| *end > now)
        .ok_or_else(|| transient("Entra's answer has no usable expires_in".to_owned(), None))?;
    let token = Token::issued(&Issued {
        access_token: answer.access_token().secret(),
        resource: request.resource,
        client_id: Some(request.client_id),
        expires_on,
        now,
        credential: request.version,
        request_id: lock(&http.request_id).as_deref(),
    });
    let refresh_in = answer.extra_fields().refresh_in.as_ref().and_then(serde_json::Value::as_i64);
    Ok(token.with_refresh_in(refresh_in).with_correlation_id(correlation.to_string()))
}

#[derive(Serialize)]
struct Claims<'a> {
    aud: &'a str,
    iss: &'a str,
    sub: &'a str,
    jti: String,
    nbf: i64,
    iat: i64,
    exp: i64,
}

/// A client assertion as Microsoft documents it: PS256, `x5t#S256`.
pub(crate) fn assertion(
    certificate: &Certificate,
    client_id: &str,
    endpoint: &Url,
    now: Timestamp,
) -> Result<String, String> {
    let mut header = Header::new(Algorithm::PS256);
    header.x5t_s256 = Some(certificate.thumbprint.clone());
    // Who trusts a name and its issuer needs the chain (ADR 15).
    header.x5c = Some(&certificate.chain).filter(|chain| !chain.is_empty()).cloned();
    let now = now.as_second();
    let claims = Claims {
        aud: endpoint.as_str(),
        iss: client_id,
        sub: client_id,
        jti: uuid::Uuid::new_v4().to_string(),
        nbf: now,
        iat: now,
        exp: now + ASSERTION_LIFETIME,
    };
    jsonwebtoken::encode(&header, &claims, &certificate.key)
        .map_err(|error| format!("the assertion could not be signed with the certificate's key: {error}"))
}

// === the answers ===

/// What Entra says beyond the standard fields.
#[derive(Debug, Serialize, Deserialize)]
struct Fields {
    /// After how many seconds it wants the token to be refreshed. Advice: of another form it is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refresh_in: Option<serde_json::Value>,
}

impl ExtraTokenFields for Fields {}

/// An error body of Entra.
#[derive(Debug, Serialize, Deserialize)]
struct EntraError {
    error: String,
    #[serde(default)]
    error_description: String,
    #[serde(default)]
    error_codes: Vec<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
}

impl ErrorResponse for EntraError {}

impl fmt::Display for EntraError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)
    }
}

fn failure<E: std::error::Error + 'static>(
    error: RequestTokenError<E, EntraError>,
    credential: &Credential,
    skew: Option<SignedDuration>,
) -> Failure {
    match error {
        RequestTokenError::ServerResponse(answer) => {
            let mut description = first_line(&answer.error_description);
            if let Credential::Secret(secret) | Credential::Assertion(secret) = credential {
                // It never is in there; should it be one day, it must not go on. What is as short as a syllable is in many
                // words, and would be told by what is missing.
                let secret = secret.expose_secret();
                if secret.len() >= 8 {
                    description = description.replace(secret, "[redacted]");
                }
            }
            if description.is_empty() {
                description.push_str("Entra refused without saying why");
            }
            let code = answer.error_codes.first().and_then(|code| u32::try_from(*code).ok());
            if let Some(code) = code.filter(|_| !description.contains("AADSTS")) {
                description = format!("AADSTS{code}: {description}");
            }
            if let Some(skew) = skew {
                description = format!("{description} ({})", clock(skew));
            }
            let trace_id = answer.trace_id.as_deref().map(|id| shown(id, 64));
            let mut refusal = Refusal { error: RefusalKind::of(&answer.error), description, trace_id };
            let verdict = Verdict::new(code.or(Verdict::of(&refusal).code), refusal.error);
            if answer.error == "temporarily_unavailable" || verdict.cause == RefusalCause::Passing {
                return transient(refusal.description, None);
            }
            if verdict.is_credential() {
                // Where a federated credential is missing, Entra says `invalid_request`: it is the client that is not known.
                refusal.error = RefusalKind::InvalidClient;
                let spreads = verdict.cause == RefusalCause::NewCredential;
                Failure::Credential { error: TokenError::Refused(refusal), spreads }
            } else {
                Failure::Permanent(TokenError::Refused(refusal))
            }
        }
        RequestTokenError::Request(error) => {
            let error: &(dyn std::error::Error + 'static) = &error;
            match error.downcast_ref::<AdapterError>() {
                Some(AdapterError::Status { status, retry_after }) => {
                    transient(format!("Entra answered {status}"), *retry_after)
                }
                _ => transient(format!("Entra: {error}"), None),
            }
        }
        RequestTokenError::Parse(..) => transient("Entra's answer is not the JSON it should be".to_owned(), None),
        RequestTokenError::Other(_) => transient("Entra's answer is empty or not JSON".to_owned(), None),
    }
}

/// How far this node's clock is off, in words.
fn clock(skew: SignedDuration) -> String {
    let (seconds, way) = (skew.as_secs().unsigned_abs(), if skew.is_negative() { "behind" } else { "ahead of" });
    format!("this node's clock is {} minutes {way} Entra's", (seconds + 30) / 60)
}

fn transient(message: String, retry_after: Option<Duration>) -> Failure {
    Failure::Transient { message, retry_after }
}

/// "AADSTS7000215: Invalid client secret …" without the lines about traces that follow, without control characters.
pub(super) fn first_line(description: &str) -> String {
    let line = description.lines().next().unwrap_or_default();
    let line = line.split(" Trace ID:").next().unwrap_or_default();
    shown(line, 500)
}

// === the transport ===

/// `oauth2` sees only answers it can read: 429 and 5xx, whose bodies are anything, end here.
struct Adapter<'a> {
    clients: &'a Clients,
    /// Sent along: Entra's sign-in log has it as `correlationId`.
    correlation: uuid::Uuid,
    /// What time Entra said it was.
    date: Mutex<Option<Timestamp>>,
    /// Entra's own id of the request.
    request_id: Mutex<Option<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Adapter<'_> {
    /// By how much the clock is ahead of Entra's, when that is more than Entra grants.
    fn skew(&self, now: Timestamp) -> Option<SignedDuration> {
        let date = (*lock(&self.date))?;
        let ahead = now.duration_since(date);
        (ahead.abs() > SKEW).then_some(ahead)
    }
}

#[derive(Debug, Error)]
enum AdapterError {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("{status}")]
    Status { status: StatusCode, retry_after: Option<Duration> },
}

impl<'c> AsyncHttpClient<'c> for Adapter<'_> {
    type Error = AdapterError;
    type Future = futures::future::BoxFuture<'c, Result<HttpResponse, AdapterError>>;

    fn call(&'c self, mut request: HttpRequest) -> Self::Future {
        if let Ok(id) = HeaderValue::try_from(self.correlation.to_string()) {
            request.headers_mut().insert("client-request-id", id);
        }
        Box::pin(async move {
            let answer = self.clients.tls(request).await?;
            let date = answer.headers().get(DATE).and_then(|date| date.to_str().ok());
            let date = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok()).map(|date| date.timestamp());
            *lock(&self.date) = date;
            let request_id = answer.headers().get("x-ms-request-id").and_then(|id| id.to_str().ok());
            *lock(&self.request_id) = request_id.map(|id| id.chars().take(64).collect());
            let status = answer.status();
            if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
                return Err(AdapterError::Status { status, retry_after: retry_after(answer.headers()) });
            }
            Ok(answer)
        })
    }
}

#[cfg(test)]
#[path = "entra_tests.rs"]
mod tests;
