//! Signs access tokens, for Entra and for IMDS alike, and publishes the key.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, jwk::Jwk};
use serde_json::{Value, json};

use super::{credentials, directory::Principal};

/// Entra dates its tokens back by this many seconds, so that a resource whose clock is behind accepts them.
pub(super) const DATED_BACK: i64 = 300;

/// How a principal proved who it is: the claim `appidacr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    Secret,
    /// A certificate; managed identities have one, too.
    Certificate,
}

/// A signed access token.
#[derive(Clone, Debug)]
pub(super) struct Issued {
    pub(super) token: String,
    /// Seconds since 1970.
    pub(super) not_before: i64,
    pub(super) expires_on: i64,
}

/// An RSA key with its id.
#[derive(Debug)]
pub(super) struct Signer {
    key: EncodingKey,
    header: Header,
    jwks: Value,
    public: DecodingKey,
}

/// No key could be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Credential(#[from] credentials::Error),
    #[error(transparent)]
    Key(#[from] jsonwebtoken::errors::Error),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

impl Signer {
    /// Makes a key (a tenth of a second or so).
    pub(super) fn generate() -> Result<Self, Error> {
        let credential = credentials::self_signed_rsa("accounts.accesscontrol.windows.net")?;
        let key = EncodingKey::from_rsa_pem(credential.key_pem.as_bytes())?;
        let thumbprint = URL_SAFE_NO_PAD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &credential.certificate_der));
        let public = Jwk::from_encoding_key(&key, Algorithm::RS256)?;
        let decoding = DecodingKey::from_jwk(&public)?;
        let public = serde_json::to_value(public)?;
        let jwks = json!({"keys": [{
            "kty": "RSA", "use": "sig", "kid": thumbprint, "x5t": thumbprint, "n": public["n"], "e": public["e"],
            "x5c": [STANDARD.encode(&credential.certificate_der)],
        }]});
        let mut header = Header::new(Algorithm::RS256);
        (header.x5t, header.kid) = (Some(thumbprint.clone()), Some(thumbprint));
        Ok(Self { key, header, jwks, public: decoding })
    }

    /// The key set as Entra serves it; `issuer` is each key's own.
    pub(super) fn jwks(&self, issuer: Option<&str>) -> Value {
        let mut jwks = self.jwks.clone();
        if let (Some(issuer), Some(key)) = (issuer, jwks["keys"][0].as_object_mut()) {
            key.insert("issuer".to_owned(), Value::from(issuer));
        }
        jwks
    }

    /// The claims of a token that was signed here. Times and audience are the caller's to check.
    pub(super) fn verify(&self, token: &str) -> Result<Value, jsonwebtoken::errors::Error> {
        let mut validation = Validation::new(Algorithm::RS256);
        (validation.validate_exp, validation.validate_aud) = (false, false);
        jsonwebtoken::decode::<Value>(token, &self.public, &validation).map(|token| token.claims)
    }

    /// Signs a token in the shape that Azure's own resources get: version 1.0, whichever endpoint is asked.
    pub(super) fn issue(
        &self,
        principal: &Principal,
        audience: &str,
        proof: Proof,
        lifetime: u32,
        now: Timestamp,
    ) -> Result<Issued, jsonwebtoken::errors::Error> {
        let Principal { tenant, client_id, object_id, resource_id, groups } = principal;
        let issuer = format!("https://sts.windows.net/{tenant}/");
        let not_before = now.as_second() - DATED_BACK;
        let expires_on = now.as_second() + i64::from(lifetime);
        let mut claims = json!({
            "aud": audience,
            "iss": issuer,
            "iat": not_before,
            "nbf": not_before,
            "exp": expires_on,
            "appid": client_id,
            "appidacr": match proof { Proof::Secret => "1", Proof::Certificate => "2" },
            "idp": issuer,
            "idtyp": "app",
            "oid": object_id,
            "sub": object_id,
            "tid": tenant,
            "uti": URL_SAFE_NO_PAD.encode(uuid::Uuid::new_v4().as_bytes()),
            "ver": "1.0",
        });
        if let Some(resource_id) = resource_id {
            claims["xms_mirid"] = Value::from(resource_id.as_str());
        }
        if !groups.is_empty() {
            claims["groups"] = Value::from(groups.as_slice());
        }
        let token = jsonwebtoken::encode(&self.header, &claims, &self.key)?;
        Ok(Issued { token, not_before, expires_on })
    }
}
