//! Service accounts without a cluster: the lab is the issuer of their tokens, as kube-apiserver is in one.

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Error, kubelet::PodView};
use crate::{
    emulator::{Issuer, credentials},
    files,
};

/// The lab as an OpenID Connect issuer; the emulators serve its discovery and keys. Entra accepts RSA only, so it has an RSA key.
pub(super) const ISSUER: &str = "https://oidc.identity-lab.internal";
/// Host of [`ISSUER`].
pub(super) const ISSUER_HOST: &str = "oidc.identity-lab.internal";
/// Lifetime of a pod's token in seconds: longer than any lab.
const LIFETIME: i64 = 30 * 24 * 3600;

/// The key of one lab.
pub(super) struct Accounts {
    key: EncodingKey,
    header: Header,
    jwks: Value,
}

impl Accounts {
    pub(super) fn new() -> Result<Self, Error> {
        let failed = |error: &dyn std::fmt::Display| Error::Authority(error.to_string());
        let pair = credentials::self_signed_rsa("identity-lab issuer").map_err(|error| failed(&error))?;
        let key = EncodingKey::from_rsa_pem(pair.key_pem.as_bytes()).map_err(|error| failed(&error))?;
        let public = Jwk::from_encoding_key(&key, Algorithm::RS256).map_err(|error| failed(&error))?;
        let public = serde_json::to_value(public)?;
        let id = URL_SAFE_NO_PAD.encode(Sha256::digest(public["n"].as_str().unwrap_or_default()));
        let jwks = json!({"keys": [
            {"use": "sig", "kty": "RSA", "alg": "RS256", "kid": id, "n": public["n"], "e": public["e"]},
        ]});
        let header = Header { kid: Some(id), ..Header::new(Algorithm::RS256) };
        Ok(Self { key, header, jwks })
    }

    /// The lab as the emulated Entra knows it.
    pub(super) fn issuer(&self) -> Issuer {
        Issuer { issuer: ISSUER.to_owned(), jwks: Some(self.jwks.clone()), server: None }
    }

    /// A token for the pod's service account.
    pub(super) fn token(&self, pod: &PodView, now: Timestamp) -> Result<String, Error> {
        let bound = json!({
            "namespace": pod.namespace,
            "pod": { "name": pod.name, "uid": pod.uid },
            "serviceaccount": { "name": pod.service_account },
        });
        let subject = (pod.namespace.as_str(), pod.service_account.as_str());
        self.sign(subject, "https://kubernetes.default.svc.cluster.local", LIFETIME, &bound, now)
    }

    /// A token for a service account as a kubelet projects it.
    pub(super) fn projected(
        &self,
        subject: (&str, &str),
        audience: &str,
        lifetime: u32,
        now: Timestamp,
    ) -> Result<String, Error> {
        let bound = json!({ "namespace": subject.0, "serviceaccount": { "name": subject.1 } });
        self.sign(subject, audience, lifetime.into(), &bound, now)
    }

    fn sign(
        &self,
        (namespace, name): (&str, &str),
        audience: &str,
        lifetime: i64,
        bound: &Value,
        now: Timestamp,
    ) -> Result<String, Error> {
        let issued = now.as_second();
        let claims = json!({
            "iss": ISSUER,
            "aud": [audience],
            "sub": format!("system:serviceaccount:{namespace}:{name}"),
            "iat": issued, "nbf": issued, "exp": issued + lifetime,
            "jti": uuid::Uuid::new_v4().to_string(),
            "kubernetes.io": bound,
        });
        jsonwebtoken::encode(&self.header, &claims, &self.key).map_err(|error| Error::Authority(error.to_string()))
    }
}

/// Writes the files that a container finds.
pub(super) fn write(directory: &Path, namespace: &str, token: &str, ca: &Path) -> Result<(), Error> {
    files::private_directory(directory)?;
    for (name, content) in [
        ("namespace", namespace.as_bytes().to_vec()),
        ("token", token.as_bytes().to_vec()),
        ("ca.crt", std::fs::read(ca)?),
    ] {
        files::write(&directory.join(name), &content, 0o644, directory)?;
    }
    Ok(())
}
