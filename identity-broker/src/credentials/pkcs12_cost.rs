//! What a PKCS#12 file would cost to open, before it is opened.
//!
//! Whoever may write a Secret chooses how often a key is derived, and a derivation cannot be interrupted. So the file is
//! walked first, more tolerantly than it is read afterwards (nothing can hide in what the reader takes and the walk does
//! not): an INTEGER that follows an OCTET STRING is a number of iterations (`MacData`, `PBKDF2-params`,
//! `pkcs-12PbeParams`; RFC 7292, RFC 8018), and all of them together are bounded. Encrypted parts have keys with numbers
//! of their own in them: they are decrypted, within that bound, and walked, too.

use std::{collections::HashMap, iter, num::NonZeroU32};

use aws_lc_rs::{
    cipher::{AES_128, AES_192, AES_256, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey},
    iv::FixedLength,
    pbkdf2,
};
use cbc::cipher::{BlockCipher, BlockDecrypt, BlockDecryptMut as _, KeyInit, KeyIvInit as _, block_padding::Pkcs7};
use pkcs12::kdf::Pkcs12KeyType;
use thiserror::Error;
use x509_parser::{
    asn1_rs::{Any, Class, FromBer, Tag},
    certificate::X509Certificate,
    prelude::FromDer,
};
use zeroize::Zeroizing;

/// The most iterations, all derivations of a file together: seconds of CPU. Usual is 2,048 to 600,000 for each.
pub(super) const MAX_ITERATIONS: u64 = 10_000_000;
/// The most derivations, and the most certificates.
const MAX_PARTS: usize = 64;
/// The deepest nesting; a key's parameters in a file are at 16.
const MAX_DEPTH: usize = 32;

// Object identifiers as they are encoded.
const CERT_BAG: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x0a, 0x01, 0x03];
const PBES2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0d];
const PBKDF2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0c];
const SCRYPT: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x04, 0x0b];
/// 1.2.840.113549.2, followed by one byte.
const HMAC: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02];
/// 2.16.840.1.101.3.4.1, followed by one byte.
const AES: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01];

/// PBES1 of PKCS#12: 1.2.840.113549.1.12.1, followed by one byte.
const PBES1: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x0c, 0x01];

/// Why a file is not opened.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(super) enum Refusal {
    /// So many iterations.
    #[error("{0} iterations of key derivation")]
    Iterations(u64),
    /// Of derivations or certificates.
    #[error(
        "it has more than {MAX_PARTS} certificates or encrypted parts; export the certificate, its key and its chain only"
    )]
    Parts,
    /// Nesting.
    #[error("it is nested more than {MAX_DEPTH} deep")]
    Depth,
    /// Takes as much memory as it likes.
    #[error("its keys are derived by scrypt; export it with PBKDF2")]
    Scrypt,
    /// A cipher or hash that the reader may know, and this does not.
    #[error(
        "it is encrypted in a way that is not supported; use PBES2 with AES-CBC and HMAC-SHA-256, -384 or -512, or PKCS#12's 3DES"
    )]
    Scheme,
    /// There would be no end to the chain.
    #[error("its certificates issue each other in a circle; export the certificate and its key only")]
    Circle,
    /// Does not fit.
    #[error("wrong password")]
    Password,
}

/// Whether `file` is worth opening with `password`. What is no file at all is: that fails at once.
pub(super) fn check(file: &[u8], password: &str) -> Result<(), Refusal> {
    let mut walk = Walk::default();
    walk.value(file, 0)?;
    for (scheme, encrypted) in std::mem::take(&mut walk.encrypted) {
        let plain = match scheme {
            Scheme::Pbes2(parameters) => decrypt(parameters, encrypted, password)?,
            Scheme::TripleDes(parameters) => decrypt_legacy::<des::TdesEde3>(parameters, encrypted, password, 24)?,
            Scheme::Rc2(parameters) => decrypt_legacy::<rc2::Rc2>(parameters, encrypted, password, 5)?,
        };
        // An encrypted part within an encrypted part is not looked into by the reader either.
        let mut inner = Walk { iterations: walk.iterations, derivations: walk.derivations, ..Walk::default() };
        inner.value(&plain, 0)?;
        (walk.iterations, walk.derivations) = (inner.iterations, inner.derivations);
        walk.issued.extend(inner.issued);
        if walk.issued.len() > MAX_PARTS {
            return Err(Refusal::Parts);
        }
    }
    if circular(&walk.issued) { Err(Refusal::Circle) } else { Ok(()) }
}

/// How something is encrypted: the schemes that the reader knows, with their parameters.
#[derive(Clone, Copy)]
enum Scheme<'a> {
    Pbes2(&'a [u8]),
    TripleDes(&'a [u8]),
    /// With 40 bits: worth nothing, and what many exporters use for certificates.
    Rc2(&'a [u8]),
}

#[derive(Default)]
struct Walk<'a> {
    iterations: u64,
    derivations: usize,
    /// How something is encrypted, and what.
    encrypted: Vec<(Scheme<'a>, &'a [u8])>,
    /// Subjects and issuers.
    issued: Vec<(String, String)>,
}

impl<'a> Walk<'a> {
    /// All values in `bytes`, as far as they can be told.
    fn value(&mut self, bytes: &'a [u8], depth: usize) -> Result<(), Refusal> {
        if depth > MAX_DEPTH {
            return Err(Refusal::Depth);
        }
        let mut salt = false;
        let mut scheme: Option<Scheme<'a>> = None;
        for (index, any) in elements(bytes).enumerate() {
            let universal = any.class() == Class::Universal;
            if universal && any.tag() == Tag::Oid {
                if any.data == SCRYPT {
                    return Err(Refusal::Scrypt);
                }
                if index == 0 && any.data == CERT_BAG {
                    // Nothing is derived from a certificate, and elliptic curves look like it.
                    return self.certificate(bytes);
                }
            }
            if salt && universal && any.tag() == Tag::Integer {
                self.count(any.data)?;
            }
            salt = universal && any.tag() == Tag::OctetString;
            if let Some(scheme) = scheme.take()
                && any.class() == Class::ContextSpecific
                && any.tag() == Tag(0)
            {
                self.encrypted.push((scheme, any.data));
            }
            scheme = scheme_of(&any);
            // What a string holds is looked into when it is one sequence and nothing else, as the reader does.
            if any.header.constructed() || is_sequence(any.data) {
                self.value(any.data, depth + 1)?;
            }
        }
        Ok(())
    }

    fn count(&mut self, integer: &[u8]) -> Result<(), Refusal> {
        let negative = integer.first().is_some_and(|first| first & 0x80 != 0);
        let digits = integer.iter().skip_while(|digit| **digit == 0);
        let count = match digits.clone().count() {
            _ if negative => 0,
            0..=8 => digits.fold(0, |count, digit| count << 8 | u64::from(*digit)),
            _ => u64::MAX,
        };
        self.iterations = self.iterations.saturating_add(count);
        self.derivations += 1;
        if self.iterations > MAX_ITERATIONS {
            Err(Refusal::Iterations(self.iterations))
        } else if self.derivations > MAX_PARTS {
            Err(Refusal::Parts)
        } else {
            Ok(())
        }
    }

    /// `SafeBag` of `CertBag`: `OID, [0] { SEQUENCE { OID, [0] { OCTET STRING } } }, attributes`.
    fn certificate(&mut self, bag: &'a [u8]) -> Result<(), Refusal> {
        let der = nth(bag, 1).and_then(|value| nth(value, 0)).and_then(|bag| nth(bag, 1)).and_then(|id| nth(id, 0));
        if let Some((_, certificate)) = der.and_then(|der| X509Certificate::from_der(der).ok()) {
            self.issued.push((certificate.subject().to_string(), certificate.issuer().to_string()));
        }
        if self.issued.len() > MAX_PARTS { Err(Refusal::Parts) } else { Ok(()) }
    }
}

fn elements(bytes: &[u8]) -> impl Iterator<Item = Any<'_>> {
    let mut rest = bytes;
    iter::from_fn(move || {
        let (after, any) = Any::from_ber(rest).ok()?;
        rest = after;
        Some(any)
    })
}

/// Content of the `index`th value.
fn nth(bytes: &[u8], index: usize) -> Option<&[u8]> {
    elements(bytes).nth(index).map(|any| any.data)
}

fn is_sequence(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0x30) && Any::from_ber(bytes).is_ok_and(|(rest, _)| rest.is_empty())
}

/// The scheme, when `any` is `AlgorithmIdentifier` of one.
fn scheme_of<'a>(any: &Any<'a>) -> Option<Scheme<'a>> {
    if !any.header.constructed() {
        return None;
    }
    let (oid, parameters) = (nth(any.data, 0)?, nth(any.data, 1)?);
    match (oid, oid.strip_prefix(PBES1)) {
        (PBES2, _) => Some(Scheme::Pbes2(parameters)),
        (_, Some([3])) => Some(Scheme::TripleDes(parameters)),
        (_, Some([6])) => Some(Scheme::Rc2(parameters)),
        _ => None,
    }
}

/// `pkcs-12PbeParams`: `salt, iterations`.
fn decrypt_legacy<C>(
    parameters: &[u8],
    encrypted: &[u8],
    password: &str,
    size: usize,
) -> Result<Zeroizing<Vec<u8>>, Refusal>
where
    C: KeyInit + BlockCipher + BlockDecrypt,
{
    let salt = nth(parameters, 0).ok_or(Refusal::Scheme)?;
    let iterations = elements(parameters).nth(1).and_then(|any| any.as_u32().ok()).ok_or(Refusal::Scheme)?;
    let iterations = i32::try_from(iterations).map_err(|_| Refusal::Iterations(iterations.into()))?;
    let derive = |what, size| {
        pkcs12::kdf::derive_key_utf8::<sha1::Sha1>(password, salt, what, iterations, size)
            .map(Zeroizing::new)
            .map_err(|_| Refusal::Password)
    };
    let (key, iv) = (derive(Pkcs12KeyType::EncryptionKey, size)?, derive(Pkcs12KeyType::Iv, 8)?);
    let cipher = cbc::Decryptor::<C>::new_from_slices(&key, &iv).map_err(|_| Refusal::Scheme)?;
    cipher.decrypt_padded_vec_mut::<Pkcs7>(encrypted).map(Zeroizing::new).map_err(|_| Refusal::Password)
}

/// `PBES2-params`: `SEQUENCE { PBKDF2, SEQUENCE { salt, iterations, [length], [prf] } }, SEQUENCE { cipher, iv }`.
fn decrypt(parameters: &[u8], encrypted: &[u8], password: &str) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    let scheme = || Refusal::Scheme;
    let (derivation, cipher) = (nth(parameters, 0).ok_or_else(scheme)?, nth(parameters, 1).ok_or_else(scheme)?);
    if nth(derivation, 0) != Some(PBKDF2) {
        return Err(Refusal::Scheme);
    }
    let derivation = nth(derivation, 1).ok_or_else(scheme)?;
    let salt = nth(derivation, 0).ok_or_else(scheme)?;
    let iterations = elements(derivation).nth(1).and_then(|any| any.as_u32().ok()).ok_or_else(scheme)?;
    let hash = elements(derivation).skip(2).find(|any| any.header.constructed()).and_then(|prf| nth(prf.data, 0));
    let hash = match hash.map(|oid| oid.strip_prefix(HMAC)) {
        None | Some(Some([7])) => pbkdf2::PBKDF2_HMAC_SHA1,
        Some(Some([9])) => pbkdf2::PBKDF2_HMAC_SHA256,
        Some(Some([10])) => pbkdf2::PBKDF2_HMAC_SHA384,
        Some(Some([11])) => pbkdf2::PBKDF2_HMAC_SHA512,
        Some(_) => return Err(Refusal::Scheme),
    };
    let (algorithm, size) = match nth(cipher, 0).and_then(|oid| oid.strip_prefix(AES)) {
        Some([2]) => (&AES_128, 16),
        Some([22]) => (&AES_192, 24),
        Some([42]) => (&AES_256, 32),
        _ => return Err(Refusal::Scheme),
    };
    let iv = nth(cipher, 1).and_then(|iv| FixedLength::<16>::try_from(iv).ok()).ok_or_else(scheme)?;
    let mut key = Zeroizing::new([0; 32]);
    let key = key.get_mut(..size).ok_or_else(scheme)?;
    // The reader takes 0 for 1.
    let iterations = NonZeroU32::new(iterations).unwrap_or(NonZeroU32::MIN);
    pbkdf2::derive(hash, iterations, salt, password.as_bytes(), key);
    let wrong = |_| Refusal::Password;
    let key = UnboundCipherKey::new(algorithm, key).and_then(PaddedBlockDecryptingKey::cbc_pkcs7).map_err(wrong)?;
    let mut plain = Zeroizing::new(encrypted.to_vec());
    let length = key.decrypt(&mut plain, DecryptionContext::Iv128(iv)).map_err(wrong)?.len();
    plain.truncate(length);
    Ok(plain)
}

/// Whether names lead back to themselves: the reader follows issuers until there is none.
fn circular(issued: &[(String, String)]) -> bool {
    let mut left: HashMap<&str, Vec<&str>> = HashMap::new();
    for (subject, issuer) in issued.iter().filter(|(subject, issuer)| subject != issuer) {
        left.entry(subject).or_default().push(issuer);
    }
    // Whoever has issuers that are known no more is no part of a circle.
    loop {
        let before = left.len();
        let open: Vec<_> =
            left.iter().filter(|(_, to)| to.iter().any(|to| left.contains_key(to))).map(|(from, _)| *from).collect();
        left.retain(|from, _| open.contains(from));
        if left.len() == before {
            return !left.is_empty();
        }
    }
}

#[cfg(test)]
#[path = "pkcs12_cost_tests.rs"]
mod tests;
