//! Reading what a Secret, or a Key Vault, holds.
//!
//! Type 1: the key that `clientPassword.key` names, else the only key, else `clientSecret`.
//! Type 2: the key that `clientPassword.key` names (with `password`), else `certificate` and `password` (as in the
//! predecessor), else `tls.crt` and `tls.key` (`kubernetes.io/tls`), else the only key. A certificate is PKCS#12 or PEM, of 1 MiB
//! at most; what it would cost to open is looked at before it is opened. A Key Vault holds PEM, or PKCS#12 in base64 without a
//! password.

use std::sync::Arc;

use aws_lc_rs::signature::KeyPair as _;
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use identity_core::lookup::SecretKeyRef;
use jiff::Timestamp;
use jsonwebtoken::EncodingKey;
use p12_keystore::{KeyStore, error::Error as Pkcs12Error};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};
use zeroize::Zeroizing;

use super::{
    material::{Certificate, Credential, CredentialProblem as Problem, MAX_VALUE, Part},
    pkcs12_cost::{self, Refusal},
};
use crate::secrets::SecretData;

/// The most certificates of a chain: more would not fit into a request.
const MAX_CHAIN: usize = 8;

/// Reads a client secret from a Secret.
pub(super) fn client_secret(reference: &SecretKeyRef, data: &SecretData) -> Result<Credential, Problem> {
    let (key, value) = match reference.key.as_deref() {
        Some(key) => named(key, data)?,
        None => match only(data) {
            Some(found) => found,
            None => data.get_key_value("clientSecret").ok_or_else(|| {
                missing("'clientSecret' (name another one in clientPassword.key, or keep one key only)", data)
            })?,
        },
    };
    text(key.as_str().into(), value.expose_secret())
}

/// Reads a certificate from a Secret. Deriving a PKCS#12 key takes tens of milliseconds of CPU: not for a reactor's thread.
pub(super) fn certificate(reference: &SecretKeyRef, data: &SecretData) -> Result<Credential, Problem> {
    read_certificate(reference, data).map(|certificate| Credential::Certificate(Arc::new(certificate)))
}

/// Reads a client secret as a Key Vault has it.
pub(super) fn vault_secret(value: &[u8]) -> Result<Credential, Problem> {
    text(Part::Value, value)
}

/// Reads a certificate as a Key Vault has it: PEM, or PKCS#12, in base64 where its content type was not set. Not for a
/// reactor's thread.
pub(super) fn vault_certificate(value: &[u8]) -> Result<Credential, Problem> {
    let part = Part::Value;
    let certificate = match usable(&part, value)? {
        pem if is_pem(pem) => pem_pair(&part, pem, pem)?,
        // A SEQUENCE: it is decoded already.
        [0x30, ..] => pkcs12(&part, value, None)?,
        encoded => {
            let packed: Zeroizing<Vec<u8>> =
                encoded.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect::<Vec<_>>().into();
            let not_base64 = |_| Problem::Unreadable(part.clone(), "nor base64 of one".to_owned());
            pkcs12(&part, &Zeroizing::new(STANDARD.decode(&*packed).map_err(not_base64)?), None)?
        }
    };
    Ok(Credential::Certificate(Arc::new(certificate)))
}

fn named<'a>(key: &str, data: &'a SecretData) -> Result<(&'a String, &'a SecretSlice<u8>), Problem> {
    data.get_key_value(key).ok_or_else(|| missing(&format!("'{key}' (clientPassword.key)"), data))
}

fn only(data: &SecretData) -> Option<(&String, &SecretSlice<u8>)> {
    if data.len() == 1 { data.iter().next() } else { None }
}

fn missing(wanted: &str, data: &SecretData) -> Problem {
    let found: Vec<_> = data.keys().map(String::as_str).collect();
    let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
    Problem::MissingKey { wanted: wanted.to_owned(), found }
}

fn text(part: Part, value: &[u8]) -> Result<Credential, Problem> {
    if value.len() > MAX_VALUE {
        return Err(Problem::TooLong(part, value.len()));
    }
    let Ok(text) = std::str::from_utf8(value) else { return Err(Problem::NotText(part)) };
    // A line end is what an editor or `echo` adds; no client secret has one.
    let text = text.trim_end_matches(['\r', '\n']);
    if text.trim().is_empty() {
        Err(Problem::Empty(part))
    } else {
        Ok(Credential::Secret(Arc::new(SecretString::from(text))))
    }
}

fn read_certificate(reference: &SecretKeyRef, data: &SecretData) -> Result<Certificate, Problem> {
    let (key, value) = match reference.key.as_deref() {
        Some(key) => named(key, data)?,
        None => match (data.get_key_value("certificate"), data.get("tls.crt"), data.get("tls.key")) {
            (Some(found), _, _) => found,
            (None, Some(chain), Some(private)) => {
                usable(&"tls.crt".into(), chain.expose_secret())?;
                let part = "tls.key".into();
                return pem_pair(&part, chain.expose_secret(), usable(&part, private.expose_secret())?)
                    .map_err(|problem| match problem {
                        Problem::NoCertificate(_) => Problem::NoCertificate("tls.crt".into()),
                        other => other,
                    });
            }
            _ => only(data).ok_or_else(|| {
                missing(
                    "'certificate' (with 'password' for PKCS#12), nor 'tls.crt' and 'tls.key' (name another one in clientPassword.key)",
                    data,
                )
            })?,
        },
    };
    let part = key.as_str().into();
    let bytes = usable(&part, value.expose_secret())?;
    if is_pem(bytes) {
        return pem_pair(&part, bytes, bytes);
    }
    pkcs12(&part, bytes, data.get("password").map(SecretSlice::expose_secret))
}

/// Neither empty nor too long.
fn usable<'a>(part: &Part, value: &'a [u8]) -> Result<&'a [u8], Problem> {
    match value.len() {
        0 => Err(Problem::Empty(part.clone())),
        1..=MAX_VALUE => Ok(value),
        more => Err(Problem::TooLong(part.clone(), more)),
    }
}

fn is_pem(bytes: &[u8]) -> bool {
    contains(bytes, b"-----BEGIN ")
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

fn pem_pair(part: &Part, certificates: &[u8], key: &[u8]) -> Result<Certificate, Problem> {
    let unreadable = |error: rustls_pki_types::pem::Error| Problem::Unreadable(part.clone(), error.to_string());
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(certificates).collect::<Result<_, _>>().map_err(unreadable)?;
    if certificates.is_empty() {
        return Err(Problem::NoCertificate(part.clone()));
    }
    if contains(key, b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || contains(key, b"Proc-Type: 4,ENCRYPTED") {
        return Err(Problem::EncryptedKey(part.clone()));
    }
    let private = PrivateKeyDer::pem_slice_iter(key).next().ok_or_else(|| Problem::NoPrivateKey(part.clone()))?;
    assemble(part, &certificates, &private.map_err(unreadable)?)
}

fn pkcs12(part: &Part, bytes: &[u8], password: Option<&[u8]>) -> Result<Certificate, Problem> {
    let password = password.unwrap_or_default();
    let password = std::str::from_utf8(password).map_err(|_| Problem::NotText("password".into()))?;
    let open = |password: &str| {
        pkcs12_cost::check(bytes, password).map_err(|refusal| match refusal {
            Refusal::Password => Problem::WrongPassword(part.clone()),
            Refusal::Iterations(count) => Problem::TooManyIterations(part.clone(), count),
            other => Problem::Unreadable(part.clone(), other.to_string()),
        })?;
        KeyStore::from_pkcs12(bytes, password).map_err(|error| match error {
            Pkcs12Error::MacError(_) | Pkcs12Error::Pkcs5Error(_) | Pkcs12Error::UnpadError => {
                Problem::WrongPassword(part.clone())
            }
            other => Problem::Unreadable(part.clone(), other.to_string()),
        })
    };
    let trimmed = password.trim_end_matches(['\r', '\n']);
    let store = open(password).or_else(|problem| if trimmed == password { Err(problem) } else { open(trimmed) })?;
    let (_, chain) = store.private_key_chain().ok_or_else(|| Problem::NoPrivateKey(part.clone()))?;
    let certificates: Vec<_> =
        chain.chain().iter().map(|certificate| CertificateDer::from(certificate.as_der().to_vec())).collect();
    if certificates.is_empty() {
        return Err(Problem::NoCertificate(part.clone()));
    }
    let private = PrivateKeyDer::Pkcs8(chain.key().to_vec().into());
    assemble(part, &certificates, &private)
}

/// The certificate among these that the key belongs to, and those that certify it.
fn assemble(
    part: &Part,
    certificates: &[CertificateDer<'_>],
    private: &PrivateKeyDer<'_>,
) -> Result<Certificate, Problem> {
    let not_rsa = || Problem::NotRsa(part.clone());
    let (label, pair) = match private {
        PrivateKeyDer::Pkcs1(der) => {
            ("RSA PRIVATE KEY", aws_lc_rs::rsa::KeyPair::from_der(der.secret_pkcs1_der()).map_err(|_| not_rsa())?)
        }
        PrivateKeyDer::Pkcs8(der) => {
            ("PRIVATE KEY", aws_lc_rs::rsa::KeyPair::from_pkcs8(der.secret_pkcs8_der()).map_err(|_| not_rsa())?)
        }
        _ => return Err(not_rsa()),
    };
    let parsed: Vec<X509Certificate<'_>> = certificates
        .iter()
        .map(|der| X509Certificate::from_der(der).map(|(_, certificate)| certificate))
        .collect::<Result<_, _>>()
        .map_err(|error| Problem::Unreadable(part.clone(), error.to_string()))?;
    let leaf = parsed
        .iter()
        .position(|certificate| certificate.public_key().subject_public_key.data.as_ref() == pair.public_key().as_ref())
        .ok_or_else(|| Problem::Mismatch(part.clone()))?;
    let validity = parsed[leaf].validity();
    let time = |seconds| Timestamp::from_second(seconds).ok();
    let key = pem(label, private.secret_der());
    Ok(Certificate {
        key: EncodingKey::from_rsa_pem(key.as_bytes()).map_err(|_| not_rsa())?,
        thumbprint: URL_SAFE_NO_PAD
            .encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificates[leaf].as_ref()).as_ref()),
        chain: chain(&parsed, leaf).into_iter().map(|at| STANDARD.encode(&certificates[at])).collect(),
        not_before: time(validity.not_before.timestamp()),
        not_after: time(validity.not_after.timestamp()),
    })
}

/// From the leaf by its issuers, without the root; nothing when no issuer is there.
fn chain(certificates: &[X509Certificate<'_>], leaf: usize) -> Vec<usize> {
    let mut chain = vec![leaf];
    let mut certified = false;
    while let Some(last) = chain.last().map(|at| &certificates[*at]) {
        let issuer = certificates.iter().enumerate().position(|(at, other)| {
            !chain.contains(&at) && other.subject() == last.issuer() && last.subject() != last.issuer()
        });
        let Some(at) = issuer.filter(|_| chain.len() < MAX_CHAIN) else { break };
        certified = true;
        if certificates[at].subject() == certificates[at].issuer() {
            break;
        }
        chain.push(at);
    }
    if certified { chain } else { Vec::new() }
}

fn pem(label: &str, der: &[u8]) -> Zeroizing<String> {
    let encoded = Zeroizing::new(STANDARD.encode(der));
    let mut pem = Zeroizing::new(String::with_capacity(encoded.len() + encoded.len() / 64 + 128));
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
    pem
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
