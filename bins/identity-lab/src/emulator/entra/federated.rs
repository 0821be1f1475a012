//! Federated identity credentials: an assertion of another issuer in place of a secret or certificate
//! (<https://learn.microsoft.com/entra/workload-id/workload-identity-federation>).

use std::sync::PoisonError;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::JwkSet};
use serde_json::Value;

use super::{Entra, error::Refusal};
use crate::emulator::{
    clock::Clock,
    config::{FederatedCredential, Issuer},
    directory::{Known, KnownApplication},
    oidc,
};

/// Difference of clocks that is forgiven, in seconds.
const SKEW: i64 = 300;
const SEE: &str = "Check your federated identity credential Subject, Audience and Issuer against the presented assertion. \
                   https://learn.microsoft.com/entra/workload-id/workload-identity-federation";

/// What an assertion says of itself, before anything is verified.
pub(super) struct Presented {
    header: jsonwebtoken::Header,
    issuer: String,
    subject: String,
    audiences: Vec<String>,
    expires: Option<i64>,
    not_before: Option<i64>,
}

/// Takes apart an assertion that another issuer than the application made: none when the application signed it by itself, or
/// it is no JWT (which the other kind of credential complains about).
pub(super) fn presented(assertion: &str, client_id: &str) -> Option<Presented> {
    let header = jsonwebtoken::decode_header(assertion).ok()?;
    if header.x5t.is_some() || header.x5t_s256.is_some() {
        return None;
    }
    let payload = URL_SAFE_NO_PAD.decode(assertion.split('.').nth(1)?.trim_end_matches('=')).ok()?;
    let claims: Value = serde_json::from_slice(&payload).ok()?;
    let text = |name: &str| claims.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let number = |name: &str| claims.get(name).and_then(Value::as_i64);
    let issuer = text("iss");
    if issuer.is_empty() || issuer.eq_ignore_ascii_case(client_id) {
        return None;
    }
    let audiences = match claims.get("aud") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    Some(Presented {
        header,
        issuer,
        subject: text("sub"),
        audiences,
        expires: number("exp"),
        not_before: number("nbf"),
    })
}

impl Entra {
    /// Verifies an assertion against the application's federated credentials and its issuer's keys.
    pub(super) async fn federated(
        &self,
        assertion: &str,
        presented: &Presented,
        application: &KnownApplication,
        known: &Known,
        received: Timestamp,
    ) -> Result<(), Refusal> {
        registered(presented, &application.federated, received)?;
        let unreachable = |why: &str| {
            tracing::warn!(issuer = presented.issuer, why, "an issuer's keys are not to be had");
            Refusal::invalid_request(90_061, format!("Request to External OIDC endpoint failed. ({why})"))
        };
        let issuer = known
            .issuers
            .iter()
            .find(|known| known.issuer == presented.issuer)
            .ok_or_else(|| unreachable("the lab knows no such issuer"))?;
        if presented.header.alg != Algorithm::RS256 {
            let message =
                format!("JWT token is invalid or malformed. Its algorithm is {:?}; RS256 is.", presented.header.alg);
            return Err(Refusal::invalid_request(50_027, message));
        }
        let key = self.key(issuer, presented.header.kid.as_deref()).await.map_err(|why| unreachable(&why))?;
        let signature = |why: &str| {
            let kid = presented.header.kid.as_deref().unwrap_or_default();
            let message = format!(
                "Assertion failed signature validation. [Reason - {why}, Thumbprint of key used by client: '{kid}']"
            );
            Refusal::invalid_client(50_013, message)
        };
        let key = key.ok_or_else(|| signature("The key was not found."))?;
        let mut validation = Validation::new(Algorithm::RS256);
        (validation.validate_exp, validation.validate_aud) = (false, false);
        jsonwebtoken::decode::<Value>(assertion, &key, &validation)
            .map_err(|_| signature("The key was found, but the signature is invalid."))?;
        // An issuer with a server of its own has its own clock.
        let now = if issuer.server.is_some() { Clock::system().now() } else { received };
        times(presented, now)
    }

    /// The issuer's key with this id; its keys are fetched when they are not known, or that one is not among them.
    async fn key(&self, issuer: &Issuer, id: Option<&str>) -> Result<Option<DecodingKey>, String> {
        let find = |keys: &JwkSet| {
            let found = match id {
                Some(id) => keys.find(id),
                None => keys.keys.first(),
            };
            found.and_then(|key| DecodingKey::from_jwk(key).ok())
        };
        if issuer.jwks.is_none() {
            let cached = self.issuers.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(key) = cached.get(&issuer.issuer).and_then(find) {
                return Ok(Some(key));
            }
        }
        let keys = oidc::keys(issuer).await?;
        let key = find(&keys);
        self.issuers.lock().unwrap_or_else(PoisonError::into_inner).insert(issuer.issuer.clone(), keys);
        Ok(key)
    }
}

/// Whether a federated credential is for this assertion; if none is, which part is to blame.
fn registered(presented: &Presented, all: &[FederatedCredential], now: Timestamp) -> Result<(), Refusal> {
    let Presented { issuer, subject, audiences, .. } = presented;
    let visible: Vec<_> = all.iter().filter(|known| known.since.is_none_or(|since| since <= now)).collect();
    let audience = audiences.join(" ");
    if visible.is_empty() {
        return Err(Refusal::invalid_request(
            70_021,
            format!(
                "No matching federated identity record found for presented assertion. Assertion Issuer: '{issuer}'. Assertion \
                 Subject: '{subject}'. Assertion Audience: '{audience}'. https://learn.microsoft.com/entra/workload-id/\
                 workload-identity-federation"
            ),
        ));
    }
    let none = |code: u32, what: &str, value: &str| {
        let message =
            format!("No matching federated identity record found for presented assertion {what} '{value}'. {SEE}");
        Refusal::invalid_client(code, message)
    };
    let mut left = visible.into_iter().filter(|known| known.issuer == *issuer).peekable();
    if left.peek().is_none() {
        return Err(none(700_211, "issuer", issuer));
    }
    let mut left = left.filter(|known| *audiences == [known.audience.clone()]).peekable();
    if left.peek().is_none() {
        return Err(none(700_212, "audience", &audience));
    }
    if !left.any(|known| known.subject == *subject) {
        return Err(none(700_213, "subject", subject));
    }
    Ok(())
}

fn times(presented: &Presented, now: Timestamp) -> Result<(), Refusal> {
    let now = now.as_second();
    let show = |seconds: Option<i64>| {
        seconds
            .and_then(|seconds| Timestamp::from_second(seconds).ok())
            .map_or_else(String::new, |time| time.to_string())
    };
    let expired = presented.expires.is_none_or(|expires| expires + SKEW <= now);
    if expired || presented.not_before.is_some_and(|from| from - SKEW > now) {
        return Err(Refusal::invalid_client(
            700_024,
            format!(
                "Client assertion is not within its valid time range. Current time: {}, assertion valid from {}, expiry time of \
                 assertion {}.",
                show(Some(now)),
                show(presented.not_before),
                show(presented.expires)
            ),
        ));
    }
    Ok(())
}
