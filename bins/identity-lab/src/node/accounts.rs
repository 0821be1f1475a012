//! Service-account files for pods without a cluster: a token as Kubernetes would project it, signed by the lab.

use std::path::Path;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;

use super::{Error, kubelet::PodView};
use crate::files;

/// Lifetime of a token in seconds: longer than any lab.
const LIFETIME: i64 = 30 * 24 * 3600;

/// The key of one lab.
pub(super) struct Accounts(EncodingKey);

impl Accounts {
    pub(super) fn new() -> Result<Self, Error> {
        let failed = |error: &dyn std::fmt::Display| Error::Authority(error.to_string());
        let key = rcgen::KeyPair::generate().map_err(|error| failed(&error))?;
        EncodingKey::from_ec_pem(key.serialize_pem().as_bytes()).map(Self).map_err(|error| failed(&error))
    }

    /// A token for the pod's service account.
    pub(super) fn token(&self, pod: &PodView, now: jiff::Timestamp) -> Result<String, Error> {
        let issued = now.as_second();
        let claims = json!({
            "iss": "https://kubernetes.default.svc.cluster.local",
            "aud": ["https://kubernetes.default.svc.cluster.local"],
            "sub": format!("system:serviceaccount:{}:{}", pod.namespace, pod.service_account),
            "iat": issued, "nbf": issued, "exp": issued + LIFETIME,
            "kubernetes.io": {
                "namespace": pod.namespace,
                "pod": { "name": pod.name, "uid": pod.uid },
                "serviceaccount": { "name": pod.service_account },
            },
        });
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.0)
            .map_err(|error| Error::Authority(error.to_string()))
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
