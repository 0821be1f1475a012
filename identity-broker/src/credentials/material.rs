//! A credential, ready for use, and what can be wrong with one.

use std::{fmt, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::EncodingKey;
use secrecy::SecretString;
use thiserror::Error;

use super::pkcs12_cost::MAX_ITERATIONS;

/// The longest value that is looked at, bytes: Kubernetes' own limit for all of a Secret. Manifests have none.
pub(super) const MAX_VALUE: usize = 1 << 20;
/// By how much clocks may differ: Entra grants as much.
pub(crate) const SKEW: SignedDuration = SignedDuration::from_mins(5);

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

impl Credential {
    /// When it ends, as it says itself.
    pub(crate) fn expires(&self) -> Option<Timestamp> {
        match self {
            Self::Certificate(certificate) => certificate.not_after,
            Self::Secret(_) | Self::Assertion(_) => None,
        }
    }

    /// What is wrong with its time, if anything, and from when on that is mended.
    pub(super) fn wrong_time(&self, now: Timestamp) -> Option<(CredentialProblem, Option<Timestamp>)> {
        let Self::Certificate(certificate) = self else { return None };
        if let Some(begin) = certificate.not_before.filter(|begin| begin.duration_since(now) > SKEW) {
            return Some((CredentialProblem::NotYetValid { begin, now }, Some(begin)));
        }
        let end = certificate.not_after.filter(|end| now.duration_since(*end) > SKEW)?;
        Some((CredentialProblem::Expired { end, now }, None))
    }
}

/// A certificate with its private key.
pub(crate) struct Certificate {
    /// The RSA key.
    pub key: EncodingKey,
    /// base64url SHA-256 of the certificate's DER (`x5t#S256`).
    pub thumbprint: String,
    /// base64 of the DER of the certificate and those that certify it, without the root (`x5c`); empty when it came without
    /// any. ADR 15.
    pub chain: Vec<String>,
    pub not_before: Option<Timestamp>,
    pub not_after: Option<Timestamp>,
}

/// Why something is no credential. Names places, never values.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{origin}: {problem}")]
pub struct CredentialError {
    /// Where it was looked for: "Secret ns/name", "Key Vault …".
    pub origin: String,
    /// What is wrong with it.
    pub problem: CredentialProblem,
}

/// The part of a source that something is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// A key of a Secret.
    Key(String),
    /// The value of a Key Vault's secret.
    Value,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => write!(f, "key '{key}'"),
            Self::Value => f.write_str("its value"),
        }
    }
}

impl From<&str> for Part {
    fn from(key: &str) -> Self {
        Self::Key(key.to_owned())
    }
}

impl CredentialProblem {
    /// In a word, as the `reason` of a condition.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::MissingKey { .. } => "KeyMissing",
            Self::Empty(_) => "CredentialEmpty",
            Self::NotText(_) | Self::TooLong(..) | Self::TooManyIterations(..) | Self::Unreadable(..) => {
                "CredentialUnreadable"
            }
            Self::WrongPassword(_) => "WrongPassword",
            Self::NoPrivateKey(_) | Self::EncryptedKey(_) => "PrivateKeyMissing",
            Self::NoCertificate(_) => "CertificateMissing",
            Self::NotRsa(_) => "KeyNotRSA",
            Self::Mismatch(_) => "KeyMismatch",
            Self::Expired { .. } => "CertificateExpired",
            Self::NotYetValid { .. } => "CertificateNotYetValid",
        }
    }
}

/// What is wrong with a credential.
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
    #[error("{0} is empty")]
    Empty(Part),
    /// A client secret is not UTF-8 text.
    #[error("{0} is not text")]
    NotText(Part),
    /// Longer than a Secret of Kubernetes may be.
    #[error("{0} has {1} bytes; the most is {MAX_VALUE} (1 MiB)")]
    TooLong(Part, usize),
    /// Opening it would keep the node busy.
    #[error(
        "the PKCS#12 file in {0} asks for {1} iterations of key derivation; the most is {MAX_ITERATIONS} in all: export it again with \
         fewer"
    )]
    TooManyIterations(Part, u64),
    /// Neither PEM nor PKCS#12.
    #[error("{0} is neither PEM nor a readable PKCS#12 file ({1})")]
    Unreadable(Part, String),
    /// The PKCS#12 file's password is another.
    #[error("the PKCS#12 file in {0} cannot be opened with the password in key 'password' (absent = none)")]
    WrongPassword(Part),
    /// No private key.
    #[error("{0} has no private key")]
    NoPrivateKey(Part),
    /// An encrypted PEM key.
    #[error("{0} has an encrypted private key: PEM keys must be unencrypted, or use PKCS#12 with a password")]
    EncryptedKey(Part),
    /// No certificate.
    #[error("{0} has no certificate")]
    NoCertificate(Part),
    /// Not an RSA key of 2048 bits or more.
    #[error("the private key in {0} is not an RSA key of 2048 to 8192 bits, which Entra requires")]
    NotRsa(Part),
    /// Certificate and key do not belong together.
    #[error("the private key in {0} does not belong to the certificate")]
    Mismatch(Part),
    /// The certificate has ended.
    #[error("the certificate ended {end}: put a new one there, and register it with the application")]
    Expired {
        /// When it ended.
        end: Timestamp,
        /// When that was looked at.
        now: Timestamp,
    },
    /// The certificate has yet to begin.
    #[error(
        "the certificate is valid from {begin} on, which by this machine's clock is yet to come: correct the clock if it is slow, or wait"
    )]
    NotYetValid {
        /// When it begins.
        begin: Timestamp,
        /// When that was looked at.
        now: Timestamp,
    },
}
