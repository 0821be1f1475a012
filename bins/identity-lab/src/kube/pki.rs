//! Certificates, keys and kubeconfigs of a throw-away control plane.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_RSA_SHA256, RsaKeySize,
};
use serde_json::{Value, json};

use super::Error;
use crate::files;

/// The authority of one control plane; it signs the server's and every user's certificate.
pub(super) struct Pki {
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// How a user proves who it is.
pub(super) enum Proof<'a> {
    Certificate { user: &'a str, groups: &'a [&'a str] },
    Token(&'a str),
}

impl Pki {
    pub(super) fn new() -> Result<Self, Error> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name = name("identity-lab control plane", &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let ca_pem = params.self_signed(&key)?.pem();
        Ok(Self { ca_pem, issuer: Issuer::new(params, key) })
    }

    /// Writes `ca.crt`, `apiserver.{crt,key}` and `service-account.{key,pub}` into `directory`.
    pub(super) fn write(&self, directory: &Path) -> Result<(), Error> {
        let names = ["127.0.0.1", "localhost", "kubernetes", "kubernetes.default.svc"].map(str::to_owned);
        let mut params = CertificateParams::new(names.to_vec())?;
        params.distinguished_name = name("kube-apiserver", &[]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let put =
            |file: &str, text: &str| files::write_secret(&directory.join(file), text.as_bytes()).map_err(Error::Io);
        put("ca.crt", &self.ca_pem)?;
        put("apiserver.crt", &certificate.pem())?;
        put("apiserver.key", &key.serialize_pem())?;
        // PKCS#8 keys are read for signing, but not as a source of the public half: that gets its own file.
        let account = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?;
        put("service-account.key", &account.serialize_pem())?;
        put("service-account.pub", &account.public_key_pem())
    }

    /// A kubeconfig (JSON, which is YAML too) with everything embedded.
    pub(super) fn kubeconfig(&self, port: u16, proof: &Proof<'_>) -> Result<Value, Error> {
        let user = match proof {
            Proof::Token(token) => json!({ "token": token }),
            Proof::Certificate { user, groups } => {
                let mut params = CertificateParams::new(Vec::<String>::new())?;
                params.distinguished_name = name(user, groups);
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
                let key = KeyPair::generate()?;
                let certificate = params.signed_by(&key, &self.issuer)?;
                json!({
                    "client-certificate-data": base64(&certificate.pem()),
                    "client-key-data": base64(&key.serialize_pem()),
                })
            }
        };
        Ok(json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "lab", "cluster": {
                "server": format!("https://127.0.0.1:{port}"),
                "certificate-authority-data": base64(&self.ca_pem),
            }}],
            "users": [{ "name": "user", "user": user }],
            "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": "user" } }],
            "current-context": "lab",
        }))
    }
}

fn name(common: &str, organizations: &[&str]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for organization in organizations {
        name.push(DnType::OrganizationName, *organization);
    }
    name.push(DnType::CommonName, common);
    name
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}
