//! Keys of checkpoints: Ed25519, as `openssl genpkey -algorithm ed25519` writes them.

use std::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use jiff::Timestamp;
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer, pem::PemObject as _};
use thiserror::Error;

use super::chain::Head;

/// What stands before the 32 bytes of a public key (RFC 8410, section 4).
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Not a key that can be used here.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    /// Not a private key.
    #[error(
        "not an Ed25519 private key in PEM (PKCS#8, BEGIN PRIVATE KEY); make one: openssl genpkey -algorithm ed25519 -out FILE"
    )]
    Private,
    /// Not a public key.
    #[error(
        "not an Ed25519 public key in PEM (BEGIN PUBLIC KEY); get it from the private one: openssl pkey -in FILE -pubout"
    )]
    Public,
}

/// What a signature is over, one line each: a fixed word, the journal, the number of the record before the checkpoint and
/// its hash, the time of the checkpoint as it stands in it.
fn message(journal: &str, head: &Head, time: &str) -> String {
    format!("entra-pod-identity audit checkpoint 1\n{journal}\n{}\n{}\n{time}\n", head.seq, head.hash)
}

/// Signs checkpoints.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    id: String,
}

impl SigningKey {
    /// From PEM.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| KeyError::Private)?;
        // OpenSSL leaves the public half out, which this accepts.
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der()).map_err(|_| KeyError::Private)?;
        let id = crate::digest::hex16(pair.public_key().as_ref());
        Ok(Self { pair, id })
    }

    /// A name for the key: the first 64 bits of the SHA-256 of its public half.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its public half.
    pub fn verifying(&self) -> VerifyingKey {
        let mut public = [0; 32];
        public.copy_from_slice(self.pair.public_key().as_ref());
        VerifyingKey { public, id: self.id.clone() }
    }

    /// Signs; the signature in base64.
    pub(super) fn sign(&self, journal: &str, head: &Head, time: &str) -> String {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        STANDARD.encode(self.pair.sign(message(journal, head, time).as_bytes()))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Verifies checkpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyingKey {
    public: [u8; 32],
    id: String,
}

impl VerifyingKey {
    /// From PEM.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| KeyError::Public)?;
        let public: [u8; 32] =
            der.as_ref().strip_prefix(&SPKI).and_then(|public| public.try_into().ok()).ok_or(KeyError::Public)?;
        Ok(Self { public, id: crate::digest::hex16(&public) })
    }

    /// As [`SigningKey::id`].
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn verify(&self, journal: &str, head: &Head, time: &str, signature: &str) -> bool {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        STANDARD.decode(signature).is_ok_and(|signature| {
            let message = message(journal, head, time);
            UnparsedPublicKey::new(&ED25519, &self.public).verify(message.as_bytes(), &signature).is_ok()
        })
    }
}

/// A place in a journal that its writer has vouched for. Kept somewhere else, it proves later that nothing up to it was cut
/// off or rewritten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// When.
    pub time: Timestamp,
    /// Which journal: the id in the first record of each of its files.
    pub journal: String,
    /// Its last record then.
    pub head: Head,
    /// Name of the key that signed it; `None` without one.
    pub key: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 8032, section 7.1, test 1, in the form in which OpenSSL writes keys.
    const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g
-----END PRIVATE KEY-----
";
    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=
-----END PUBLIC KEY-----
";

    #[test]
    fn openssl_writes_what_is_read_here() {
        let signing = SigningKey::from_pem(PRIVATE.as_bytes()).unwrap();
        let verifying = VerifyingKey::from_pem(PUBLIC.as_bytes()).unwrap();
        assert_eq!(signing.verifying(), verifying);
        assert_eq!(SigningKey::from_pem(PUBLIC.as_bytes()).unwrap_err(), KeyError::Private);
        assert_eq!(VerifyingKey::from_pem(PRIVATE.as_bytes()).unwrap_err(), KeyError::Public);
        assert!(!format!("{signing:?}").contains("pair"));
    }

    #[test]
    fn a_signature_is_over_all_that_it_says() {
        let key = SigningKey::from_pem(PRIVATE.as_bytes()).unwrap();
        let (public, head) = (key.verifying(), Head { seq: 7, ..Head::default() });
        let signature = key.sign("j", &head, "t");
        assert!(public.verify("j", &head, "t", &signature));
        assert!(!public.verify("k", &head, "t", &signature));
        assert!(!public.verify("j", &Head { seq: 8, ..head }, "t", &signature));
        assert!(!public.verify("j", &head, "u", &signature));
        assert!(!public.verify("j", &head, "t", &signature[1..]));
    }
}
