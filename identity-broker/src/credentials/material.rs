//! What a Secret holds, as a credential.
//!
//! Type 1: the key that `clientPassword.key` names, else the only key, else `clientSecret`.
//! Type 2: the key that `clientPassword.key` names (with `password`), else `certificate` and `password` (as in the
//! predecessor), else `tls.crt` and `tls.key` (`kubernetes.io/tls`). A certificate is PKCS#12 or PEM, of 1 MiB at most; what
//! it would cost to open is looked at before it is opened.

use std::{fmt, sync::Arc};

use aws_lc_rs::signature::KeyPair as _;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use identity_core::lookup::SecretKeyRef;
use jsonwebtoken::EncodingKey;
use p12_keystore::{KeyStore, error::Error as Pkcs12Error};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use thiserror::Error;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};
use zeroize::Zeroizing;

use super::pkcs12_cost::{self, MAX_ITERATIONS, Refusal};
use crate::secrets::SecretData;

/// The longest value that is looked at, bytes: Kubernetes' own limit for all of a Secret. Manifests have none.
const MAX_VALUE: usize = 1 << 20;

/// A credential, ready for use.
#[derive(Clone)]
pub(crate) enum Credential {
    /// A client secret.
    Secret(Arc<SecretString>),
    /// A certificate with its private key.
    Certificate(Arc<Certificate>),
    /// A client assertion made elsewhere: a token of the cluster, exchanged as it is.
    Assertion(Arc<SecretString>),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(_) => f.write_str("Secret([redacted])"),
            Self::Certificate(certificate) => write!(f, "Certificate({})", certificate.thumbprint),
            Self::Assertion(_) => f.write_str("Assertion([redacted])"),
        }
    }
}

/// A certificate with its private key.
pub(crate) struct Certificate {
    /// The RSA key.
    pub key: EncodingKey,
    /// base64url SHA-256 of the certificate's DER (`x5t#S256`).
    pub thumbprint: String,
}

/// Why a Secret is no credential. Names keys, never values.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("Secret {secret}: {problem}")]
pub struct CredentialError {
    /// Namespace and name of the Secret.
    pub secret: String,
    /// What is wrong with it.
    pub problem: CredentialProblem,
}

/// What is wrong with a Secret.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CredentialProblem {
    /// A key is missing.
    #[error("it has no key {wanted}; its keys are: {found}")]
    MissingKey {
        /// What was looked for.
        wanted: String,
        /// The keys it has.
        found: String,
    },
    /// A value is empty.
    #[error("key '{0}' is empty")]
    Empty(String),
    /// A client secret is not UTF-8 text.
    #[error("key '{0}' is not text")]
    NotText(String),
    /// Longer than a Secret of Kubernetes may be.
    #[error("key '{0}' has {1} bytes; the most is {MAX_VALUE} (1 MiB)")]
    TooLong(String, usize),
    /// Opening it would keep the node busy.
    #[error(
        "the PKCS#12 file in key '{0}' asks for {1} iterations of key derivation; the most is {MAX_ITERATIONS} in all: export it \
         again with fewer"
    )]
    TooManyIterations(String, u64),
    /// Neither PEM nor PKCS#12.
    #[error("key '{0}' is neither PEM nor a readable PKCS#12 file ({1})")]
    Unreadable(String, String),
    /// The PKCS#12 file's password is another.
    #[error("the PKCS#12 file in key '{0}' cannot be opened with the password in key 'password' (absent = none)")]
    WrongPassword(String),
    /// No private key.
    #[error("key '{0}' has no private key")]
    NoPrivateKey(String),
    /// An encrypted PEM key.
    #[error("key '{0}' has an encrypted private key: PEM keys must be unencrypted, or use PKCS#12 with a password")]
    EncryptedKey(String),
    /// No certificate.
    #[error("key '{0}' has no certificate")]
    NoCertificate(String),
    /// Not an RSA key of 2048 bits or more.
    #[error("the private key in key '{0}' is not an RSA key of 2048 to 8192 bits, which Entra requires")]
    NotRsa(String),
    /// Certificate and key do not belong together.
    #[error("the private key in key '{0}' does not belong to the certificate")]
    Mismatch(String),
}

use CredentialProblem as Problem;

/// Reads a client secret.
pub(crate) fn client_secret(reference: &SecretKeyRef, data: &SecretData) -> Result<Credential, CredentialError> {
    secret_text(reference, data).map(|text| Credential::Secret(Arc::new(text))).map_err(in_secret(reference))
}

/// Reads a certificate. Deriving a PKCS#12 key takes tens of milliseconds of CPU: not for a reactor's thread.
pub(crate) fn certificate(reference: &SecretKeyRef, data: &SecretData) -> Result<Credential, CredentialError> {
    read_certificate(reference, data)
        .map(|certificate| Credential::Certificate(Arc::new(certificate)))
        .map_err(in_secret(reference))
}

fn in_secret(reference: &SecretKeyRef) -> impl Fn(Problem) -> CredentialError + '_ {
    |problem| CredentialError { secret: format!("{}/{}", reference.namespace, reference.name), problem }
}

fn missing(wanted: &str, data: &SecretData) -> Problem {
    let found: Vec<_> = data.keys().map(String::as_str).collect();
    let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
    Problem::MissingKey { wanted: wanted.to_owned(), found }
}

fn secret_text(reference: &SecretKeyRef, data: &SecretData) -> Result<SecretString, Problem> {
    let (key, value) = match reference.key.as_deref() {
        Some(key) => data.get_key_value(key).ok_or_else(|| missing(&format!("'{key}' (clientPassword.key)"), data))?,
        None if data.len() == 1 => data.iter().next().ok_or_else(|| missing("'clientSecret'", data))?,
        None => data.get_key_value("clientSecret").ok_or_else(|| {
            missing("'clientSecret' (name another one in clientPassword.key, or keep one key only)", data)
        })?,
    };
    let text = std::str::from_utf8(value.expose_secret()).map_err(|_| Problem::NotText(key.clone()))?;
    // A line end is what an editor or `echo` adds; no client secret has one.
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() { Err(Problem::Empty(key.clone())) } else { Ok(SecretString::from(text)) }
}

fn read_certificate(reference: &SecretKeyRef, data: &SecretData) -> Result<Certificate, Problem> {
    let password = || data.get("password").map(SecretSlice::expose_secret);
    let (key, value) = match reference.key.as_deref() {
        Some(key) => data.get_key_value(key).ok_or_else(|| missing(&format!("'{key}' (clientPassword.key)"), data))?,
        None => match (data.get_key_value("certificate"), data.get("tls.crt"), data.get("tls.key")) {
            (Some(found), _, _) => found,
            (None, Some(chain), Some(private)) => {
                short("tls.crt", chain.expose_secret())?;
                short("tls.key", private.expose_secret())?;
                let certificate = pem_certificate("tls.crt", chain.expose_secret())?;
                let private = pem_key("tls.key", private.expose_secret())?;
                return assemble("tls.key", &certificate, &private);
            }
            _ => {
                return Err(missing(
                    "'certificate' (with 'password' for PKCS#12), nor 'tls.crt' and 'tls.key' (name another one in clientPassword.key)",
                    data,
                ));
            }
        },
    };
    let bytes = value.expose_secret();
    if bytes.is_empty() {
        return Err(Problem::Empty(key.clone()));
    }
    short(key, bytes)?;
    if contains(bytes, b"-----BEGIN ") {
        let certificate = pem_certificate(key, bytes)?;
        let private = pem_key(key, bytes)?;
        return assemble(key, &certificate, &private);
    }
    pkcs12(key, bytes, password())
}

fn short(key: &str, value: &[u8]) -> Result<(), Problem> {
    if value.len() > MAX_VALUE { Err(Problem::TooLong(key.to_owned(), value.len())) } else { Ok(()) }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

fn pem_certificate(key: &str, pem: &[u8]) -> Result<CertificateDer<'static>, Problem> {
    CertificateDer::pem_slice_iter(pem)
        .next()
        .ok_or_else(|| Problem::NoCertificate(key.to_owned()))?
        .map_err(|error| Problem::Unreadable(key.to_owned(), error.to_string()))
}

fn pem_key(key: &str, pem: &[u8]) -> Result<PrivateKeyDer<'static>, Problem> {
    if contains(pem, b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || contains(pem, b"Proc-Type: 4,ENCRYPTED") {
        return Err(Problem::EncryptedKey(key.to_owned()));
    }
    PrivateKeyDer::pem_slice_iter(pem)
        .next()
        .ok_or_else(|| Problem::NoPrivateKey(key.to_owned()))?
        .map_err(|error| Problem::Unreadable(key.to_owned(), error.to_string()))
}

fn pkcs12(key: &str, bytes: &[u8], password: Option<&[u8]>) -> Result<Certificate, Problem> {
    let password = password.unwrap_or_default();
    let password = std::str::from_utf8(password).map_err(|_| Problem::NotText("password".to_owned()))?;
    let open = |password: &str| {
        pkcs12_cost::check(bytes, password).map_err(|refusal| match refusal {
            Refusal::Password => Problem::WrongPassword(key.to_owned()),
            Refusal::Iterations(count) => Problem::TooManyIterations(key.to_owned(), count),
            other => Problem::Unreadable(key.to_owned(), other.to_string()),
        })?;
        KeyStore::from_pkcs12(bytes, password).map_err(|error| match error {
            Pkcs12Error::MacError(_) | Pkcs12Error::Pkcs5Error(_) | Pkcs12Error::UnpadError => {
                Problem::WrongPassword(key.to_owned())
            }
            other => Problem::Unreadable(key.to_owned(), other.to_string()),
        })
    };
    let trimmed = password.trim_end_matches(['\r', '\n']);
    let store = open(password).or_else(|problem| if trimmed == password { Err(problem) } else { open(trimmed) })?;
    let (_, chain) = store.private_key_chain().ok_or_else(|| Problem::NoPrivateKey(key.to_owned()))?;
    let leaf = chain.chain().first().ok_or_else(|| Problem::NoCertificate(key.to_owned()))?;
    let private = PrivateKeyDer::Pkcs8(chain.key().to_vec().into());
    assemble(key, &CertificateDer::from(leaf.as_der().to_vec()), &private)
}

fn assemble(key: &str, certificate: &CertificateDer<'_>, private: &PrivateKeyDer<'_>) -> Result<Certificate, Problem> {
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let not_rsa = || Problem::NotRsa(key.to_owned());
    let (label, pair) = match private {
        PrivateKeyDer::Pkcs1(der) => {
            ("RSA PRIVATE KEY", aws_lc_rs::rsa::KeyPair::from_der(der.secret_pkcs1_der()).map_err(|_| not_rsa())?)
        }
        PrivateKeyDer::Pkcs8(der) => {
            ("PRIVATE KEY", aws_lc_rs::rsa::KeyPair::from_pkcs8(der.secret_pkcs8_der()).map_err(|_| not_rsa())?)
        }
        _ => return Err(not_rsa()),
    };
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|error| Problem::Unreadable(key.to_owned(), error.to_string()))?;
    if parsed.public_key().subject_public_key.data.as_ref() != pair.public_key().as_ref() {
        return Err(Problem::Mismatch(key.to_owned()));
    }
    let encoded = Zeroizing::new(STANDARD.encode(private.secret_der()));
    let mut pem = Zeroizing::new(String::with_capacity(encoded.len() + encoded.len() / 64 + 64));
    pem.push_str("-----BEGIN ");
    pem.push_str(label);
    pem.push_str("-----\n");
    for line in encoded.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem.push_str("-----END ");
    pem.push_str(label);
    pem.push_str("-----\n");
    Ok(Certificate {
        key: EncodingKey::from_rsa_pem(pem.as_bytes()).map_err(|_| not_rsa())?,
        thumbprint: URL_SAFE_NO_PAD
            .encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate.as_ref()).as_ref()),
    })
}

#[cfg(test)]
#[path = "material_tests.rs"]
mod tests;
