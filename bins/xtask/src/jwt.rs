//! Reads the claims of a token. The signature is not looked at: this is for telling a person what came back.

use anyhow::Context;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;

/// The claims that tell tokens apart.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Claims {
    /// Tenant.
    pub tid: String,
    /// Audience.
    pub aud: String,
    /// Application (client id).
    #[serde(alias = "azp")]
    pub appid: String,
    /// Expiry, seconds since 1970.
    pub exp: i64,
    /// Directory groups that the application is a member of.
    #[serde(default)]
    pub groups: Vec<String>,
}

/// The claims of a JWT.
///
/// # Errors
/// When the text is not a JWT with these claims. The token itself is not part of the message.
pub fn claims(token: &str) -> anyhow::Result<Claims> {
    let payload = token.split('.').nth(1).context("the token has no second part: not a JWT")?;
    let bytes = URL_SAFE_NO_PAD.decode(payload).context("the token's payload is not base64url")?;
    serde_json::from_slice(&bytes).context("the token's payload lacks tid, aud, appid or exp")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_claims_and_refuses_other_text() {
        let payload = URL_SAFE_NO_PAD.encode(r#"{"tid":"t","aud":"a","appid":"c","exp":5,"oid":"o"}"#);
        let read = claims(&format!("e30.{payload}.sig")).unwrap();
        assert_eq!(read, Claims { tid: "t".into(), aud: "a".into(), appid: "c".into(), exp: 5, groups: Vec::new() });
        assert!(claims("plain").is_err());
        assert!(claims("e30.e30.x").unwrap_err().to_string().contains("lacks"));
    }
}
