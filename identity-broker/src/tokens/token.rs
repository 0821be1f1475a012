//! A token as the endpoint answers it.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretBox, SecretString};
use serde::Deserialize;

/// What an upstream answered, before it is shaped for the endpoint.
#[derive(Clone, Copy)]
pub struct Issued<'a> {
    /// The token.
    pub access_token: &'a str,
    /// `resource`, as the pod sent it.
    pub resource: &'a str,
    /// The application or managed identity it is for.
    pub client_id: Option<&'a str>,
    /// When it ends.
    pub expires_on: Timestamp,
    /// When the request for it was made.
    pub now: Timestamp,
    /// Version of the credential it was got with.
    pub credential: u64,
    /// The upstream's id of the request.
    pub request_id: Option<&'a str>,
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// All fields.
    #[default]
    Imds,
    /// App Service: without `expires_in` and `ext_expires_in`.
    AppService,
}

/// A token, its answer rendered as far as it does not depend on the time of asking.
pub struct Token {
    /// `{"access_token":…,…` without the closing brace.
    prefix: SecretBox<[u8]>,
    client_id: Option<Box<str>>,
    expires_on: Timestamp,
    issued: Timestamp,
    credential: u64,
    id: Box<str>,
    uti: Option<Box<str>>,
    tenant: Option<Box<str>>,
    request_id: Option<Box<str>>,
    correlation_id: Option<Box<str>>,
    refresh_in: Option<i64>,
}

/// Claims worth knowing; tokens are opaque to their carriers, so that all of them are optional.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Claims {
    nbf: Option<i64>,
    uti: Option<String>,
    tid: Option<String>,
}

impl Token {
    /// Shapes an upstream's answer.
    pub fn issued(answer: &Issued<'_>) -> Self {
        let claims = claims(answer.access_token);
        let id = crate::digest::hex16(claims.uti.as_deref().unwrap_or(answer.access_token).as_bytes());
        let not_before = claims.nbf.unwrap_or_else(|| answer.now.as_second());
        let mut prefix = Vec::with_capacity(answer.access_token.len() + answer.resource.len() + 256);
        prefix.extend_from_slice(b"{\"access_token\":");
        string(&mut prefix, answer.access_token);
        if let Some(client_id) = answer.client_id {
            prefix.extend_from_slice(b",\"client_id\":");
            string(&mut prefix, client_id);
        }
        prefix.extend_from_slice(b",\"resource\":");
        string(&mut prefix, answer.resource);
        prefix.extend_from_slice(b",\"token_type\":\"Bearer\",\"not_before\":");
        string(&mut prefix, &not_before.to_string());
        Self {
            prefix: SecretBox::new(prefix.into_boxed_slice()),
            client_id: answer.client_id.map(Into::into),
            expires_on: answer.expires_on,
            issued: answer.now,
            credential: answer.credential,
            id: id.into(),
            uti: claims.uti.filter(|uti| uti.len() <= 64).map(Into::into),
            tenant: claims.tid.filter(|tenant| tenant.len() <= 64).map(Into::into),
            request_id: answer.request_id.map(Into::into),
            correlation_id: None,
            refresh_in: None,
        }
    }

    /// With the id that was sent along with the request for it.
    #[must_use]
    pub fn with_correlation_id(mut self, id: String) -> Self {
        self.correlation_id = Some(id.into());
        self
    }

    /// With the number of seconds after which the upstream wants it to be refreshed (`refresh_in`).
    #[must_use]
    pub const fn with_refresh_in(mut self, seconds: Option<i64>) -> Self {
        self.refresh_in = seconds;
        self
    }

    /// How many seconds after it was issued the upstream wants it to be refreshed, if it said so.
    pub const fn refresh_in(&self) -> Option<i64> {
        self.refresh_in
    }

    /// When it ends.
    pub const fn expires_on(&self) -> Timestamp {
        self.expires_on
    }

    /// Seconds of life left at `now`; negative when it has ended.
    pub fn remaining(&self, now: Timestamp) -> i64 {
        self.expires_on.as_second() - now.as_second()
    }

    /// Seconds of life it began with.
    pub fn lifetime(&self) -> i64 {
        self.remaining(self.issued)
    }

    /// Version of the credential it was got with.
    pub const fn credential(&self) -> u64 {
        self.credential
    }

    /// The application or managed identity it is for.
    pub fn client_id(&self) -> Option<&str> {
        self.client_id.as_deref()
    }

    /// A name for this token that says nothing about it: a digest of its `uti` claim, or of the token.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its `uti` claim, when it has one: `uniqueTokenIdentifier` in Entra's sign-in log. It gives no access to anything.
    pub fn uti(&self) -> Option<&str> {
        self.uti.as_deref()
    }

    /// The tenant it was issued in, when the token says so.
    pub fn tenant(&self) -> Option<&str> {
        self.tenant.as_deref()
    }

    /// The id that was sent along with the request for it: `correlationId` in Entra's sign-in log.
    pub fn correlation_id(&self) -> Option<&str> {
        self.correlation_id.as_deref()
    }

    /// The upstream's id of the request for it.
    pub fn request_id(&self) -> Option<&str> {
        self.request_id.as_deref()
    }

    /// The token alone, for requests of one's own.
    pub(crate) fn bearer(&self) -> SecretString {
        let text = std::str::from_utf8(self.prefix.expose_secret()).unwrap_or_default();
        // A string as JSON has it, and tokens have nothing to escape.
        let token = text.strip_prefix("{\"access_token\":\"").and_then(|rest| rest.split('"').next());
        SecretString::from(token.unwrap_or_default())
    }

    /// The endpoint's answer, as if the token ended at `expires_on`. Every field is a string
    /// (imds-and-clients §0, facts 3 and 4). `ext_expires_in` claims no more than `expires_in`.
    pub fn render(&self, expires_on: Timestamp, now: Timestamp, shape: Shape) -> Bytes {
        use std::fmt::Write as _;
        let prefix = self.prefix.expose_secret();
        // A clock that was put back gives no token more life than it had.
        let left = (expires_on.as_second() - now.as_second()).min(self.remaining(self.issued)).max(0);
        let mut body = BytesMut::with_capacity(prefix.len() + 96);
        body.put_slice(prefix);
        // Writing to a BytesMut grows it, it cannot fail.
        let _ = write!(body, ",\"expires_on\":\"{}\"", expires_on.as_second());
        if shape == Shape::Imds {
            let _ = write!(body, ",\"expires_in\":\"{left}\",\"ext_expires_in\":\"{left}\"");
        }
        body.put_u8(b'}');
        body.freeze()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("id", &self.id)
            .field("client_id", &self.client_id)
            .field("expires_on", &self.expires_on)
            .finish_non_exhaustive()
    }
}

fn string(into: &mut Vec<u8>, text: &str) {
    // A string always serialises, and writing to a Vec cannot fail.
    let _ = serde_json::to_writer(into, text);
}

fn claims(token: &str) -> Claims {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    token
        .split('.')
        .nth(1)
        .and_then(|payload| URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok())
        .and_then(|payload| serde_json::from_slice(&payload).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_a_string() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let end = Timestamp::from_second(1_800_003_600).unwrap();
        let token = Token::issued(&Issued {
            access_token: "not.a-jwt",
            resource: "api://\"quoted\"/",
            client_id: Some("c"),
            expires_on: end,
            now,
            credential: 0,
            request_id: None,
        });
        let later = Timestamp::from_second(1_800_000_100).unwrap();
        let body: serde_json::Value = serde_json::from_slice(&token.render(end, later, Shape::Imds)).unwrap();
        assert_eq!(
            body,
            serde_json::json!({
                "access_token": "not.a-jwt", "client_id": "c", "resource": "api://\"quoted\"/", "token_type": "Bearer",
                "not_before": "1800000000", "expires_in": "3500", "expires_on": "1800003600", "ext_expires_in": "3500",
            })
        );
        assert!(!format!("{token:?}").contains("not.a-jwt"));
        assert_eq!(token.bearer().expose_secret(), "not.a-jwt");
        let body: serde_json::Value = serde_json::from_slice(&token.render(end, later, Shape::AppService)).unwrap();
        assert_eq!(
            body,
            serde_json::json!({
                "access_token": "not.a-jwt", "client_id": "c", "resource": "api://\"quoted\"/", "token_type": "Bearer",
                "not_before": "1800000000", "expires_on": "1800003600",
            })
        );
    }
}
