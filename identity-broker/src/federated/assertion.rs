//! An assertion, and what it says of itself.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::AssertionError;
use crate::{credentials::SKEW, shown::shown};

/// The longest token that is looked at, in bytes. A service account's has about 1,200.
pub(super) const MAX_TOKEN: usize = 16 * 1024;
/// The longest claim that is kept, in characters.
const MAX_CLAIM: usize = 400;

/// A token to be shown to Entra, with what it says of itself. Nothing of that is believed: it is for messages, and to notice
/// in time what Entra would refuse.
pub struct Assertion {
    token: SecretString,
    issuer: String,
    subject: String,
    audiences: Vec<String>,
    expires_on: Option<Timestamp>,
}

/// What is read of the claims (RFC 7519 §4.1).
#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    iss: String,
    #[serde(default)]
    sub: String,
    #[serde(default)]
    aud: Audience,
    #[serde(default)]
    exp: Option<f64>,
}

#[derive(Default, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
    #[default]
    None,
}

impl Assertion {
    /// Takes a token apart. `origin` says where it is from.
    pub fn read(token: SecretString, origin: &str) -> Result<Self, AssertionError> {
        let wrong = |reason: &str| AssertionError::NotAToken { origin: origin.to_owned(), reason: reason.to_owned() };
        let text = token.expose_secret();
        if text.is_empty() {
            return Err(wrong("it is empty"));
        }
        if text.len() > MAX_TOKEN {
            return Err(wrong("it is longer than 16 KiB"));
        }
        let mut parts = text.split('.');
        let (Some(_), Some(claims), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(wrong("it has not three parts"));
        };
        let claims = URL_SAFE_NO_PAD.decode(claims).map_err(|_| wrong("its claims are not base64url"))?;
        // Not the parser's words: they may quote the token.
        let claims: Claims = serde_json::from_slice(&claims).map_err(|_| wrong("its claims cannot be read"))?;
        let audiences = match claims.aud {
            Audience::One(one) => vec![one],
            Audience::Several(several) => several,
            Audience::None => Vec::new(),
        };
        Ok(Self {
            issuer: shown(&claims.iss, MAX_CLAIM),
            subject: shown(&claims.sub, MAX_CLAIM),
            audiences: audiences.iter().take(8).map(|audience| shown(audience, MAX_CLAIM)).collect(),
            #[expect(clippy::cast_possible_truncation, reason = "what is too large becomes the largest, and no time")]
            expires_on: claims.exp.and_then(|exp| Timestamp::from_second(exp as i64).ok()),
            token,
        })
    }

    /// The token, to be sent as `client_assertion`.
    pub const fn token(&self) -> &SecretString {
        &self.token
    }

    /// `iss`: the cluster's issuer.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// `sub`: `system:serviceaccount:NAMESPACE:NAME`.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// `aud`.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// `exp`.
    pub const fn expires_on(&self) -> Option<Timestamp> {
        self.expires_on
    }

    /// Whether it is for `audience`, and not over at `now`, as it says itself. Clocks may differ by five minutes.
    pub(super) fn check(&self, origin: &str, audience: &str, now: Timestamp) -> Result<(), AssertionError> {
        if !self.audiences.iter().any(|own| own == audience) {
            let found = self.audiences.join(", ");
            return Err(AssertionError::Audience { origin: origin.to_owned(), wanted: audience.to_owned(), found });
        }
        match self.expires_on {
            Some(end) if now.duration_since(end) > SKEW => {
                Err(AssertionError::Expired { origin: origin.to_owned(), end, now })
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Assertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Assertion")
            .field("token", &"[redacted]")
            .field("issuer", &self.issuer)
            .field("subject", &self.subject)
            .field("audiences", &self.audiences)
            .field("expires_on", &self.expires_on)
            .finish()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A token with these claims, signed by nobody.
    pub(in crate::federated) fn token(claims: &Value) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    fn read(text: &str) -> Result<Assertion, AssertionError> {
        Assertion::read(text.to_owned().into(), "it")
    }

    #[test]
    fn says_what_it_says_of_itself() {
        let claims = json!({"iss": "https://oidc.example", "sub": "system:serviceaccount:ns:node", "aud": ["a", "b"], "exp": 1_800_000_000});
        let assertion = read(&token(&claims)).unwrap();
        assert_eq!(
            (assertion.issuer(), assertion.subject()),
            ("https://oidc.example", "system:serviceaccount:ns:node")
        );
        assert_eq!(assertion.audiences(), ["a", "b"]);
        assert_eq!(assertion.expires_on(), Timestamp::from_second(1_800_000_000).ok());
        let one = read(&token(&json!({"aud": "a", "iss": "x\u{7}\ny".repeat(1000), "exp": 1.8e9}))).unwrap();
        assert_eq!((one.audiences(), one.issuer().len(), one.subject()), (&["a".to_owned()][..], MAX_CLAIM, ""));
        assert_eq!(one.expires_on(), Timestamp::from_second(1_800_000_000).ok());
        let text = token(&claims);
        let shown = format!("{assertion:?}");
        assert!(text.split('.').all(|part| !shown.contains(part)), "{shown}");
    }

    #[test]
    fn what_is_no_token() {
        for text in ["", "a.b", "a.b.c.d", "a.!.c", "a.bm8.c", &token(&json!([1])), &token(&json!({"iss": 1}))] {
            assert!(matches!(read(text), Err(AssertionError::NotAToken { .. })), "{text}");
        }
        let long = token(&json!({"x": "y".repeat(MAX_TOKEN)}));
        assert!(matches!(read(&long), Err(AssertionError::NotAToken { reason, .. }) if reason.contains("16 KiB")));
        for odd in [json!({"exp": 1e300}), json!({"exp": -1e300}), json!({"aud": null}), json!({})] {
            let _ = read(&token(&odd)).map(|assertion| assertion.expires_on());
        }
    }

    #[test]
    fn what_entra_would_refuse_is_noticed() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let at = |exp: i64| read(&token(&json!({"aud": ["x"], "exp": exp}))).unwrap().check("it", "x", now);
        at(1_800_000_001).unwrap();
        at(1_800_000_000 - 300).unwrap();
        assert!(matches!(at(1_800_000_000 - 301), Err(AssertionError::Expired { .. })));
        let assertion = read(&token(&json!({"aud": ["x", "y"], "exp": 1_800_000_060}))).unwrap();
        assert!(assertion.check("it", "y", now).is_ok());
        let error = assertion.check("it", "z", now).unwrap_err();
        assert!(matches!(&error, AssertionError::Audience { wanted, found, .. } if wanted == "z" && found == "x, y"));
    }
}
