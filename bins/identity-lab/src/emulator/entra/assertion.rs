//! Verifies client assertions signed with a registered certificate (RFC 7523;
//! <https://learn.microsoft.com/entra/identity-platform/certificate-credentials>).

use std::{borrow::Cow, sync::Arc, time::Duration};

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey};
use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};
use jiff::Timestamp;
use rustls::{RootCertStore, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::{Map, Value};
use x509_parser::extensions::GeneralName;

use super::error::Refusal;
use crate::emulator::directory::{KnownApplication, KnownCertificate, KnownSubject, certificate_der};

/// Difference of clocks that is forgiven, in seconds.
const SKEW: i64 = 300;
/// The longest an assertion may be valid, in seconds.
const LONGEST: i64 = 600;
/// Azure's own libraries differ in padding.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What an assertion must say.
pub(super) struct Expected<'a> {
    pub(super) client_id: &'a str,
    /// The token endpoint's URLs.
    pub(super) audiences: &'a [String],
    /// Seconds since 1970.
    pub(super) now: i64,
}

/// An assertion that is right.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verified {
    pub(super) jti: String,
    /// When it is refused for its age, in seconds since 1970.
    pub(super) stale_from: i64,
}

/// Verifies signature and claims.
pub(super) fn verify(
    assertion: &str,
    expected: &Expected<'_>,
    application: &KnownApplication,
) -> Result<Verified, Refusal> {
    let malformed = |why: &str| Refusal::invalid_request(50_027, format!("JWT token is invalid or malformed. {why}"));
    let mut parts = assertion.split('.');
    let (Some(header), Some(payload), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(malformed("It does not have three parts."));
    };
    let signed = &assertion[..header.len() + 1 + payload.len()];
    let object = |part: &str, what: &str| -> Result<Map<String, Value>, Refusal> {
        let decoded = BASE64URL.decode(part).map_err(|_| malformed(&format!("Its {what} is not base64url.")))?;
        serde_json::from_slice(&decoded).map_err(|_| malformed(&format!("Its {what} is not a JSON object.")))
    };
    let header = object(header, "header")?;
    let claims = object(payload, "payload")?;
    let signature = BASE64URL.decode(signature).map_err(|_| malformed("Its signature is not base64url."))?;
    let text = |name: &str| claims.get(name).and_then(Value::as_str);

    let certificate = certificate(&header, expected, application)?;
    let algorithm = match header.get("alg").and_then(Value::as_str) {
        Some("RS256") => &RSA_PKCS1_2048_8192_SHA256,
        Some("PS256") => &RSA_PSS_2048_8192_SHA256,
        other => return Err(malformed(&format!("Its algorithm is {other:?}; RS256 and PS256 are supported."))),
    };
    let thumbprint = hex(&certificate.sha1);
    if !(certificate.not_before..=certificate.not_after).contains(&expected.now) {
        return Err(Refusal::invalid_client(
            700_027,
            format!(
                "The certificate with identifier used to sign the client assertion is expired on application. [Reason - The key \
                 used is expired., Thumbprint of key used by client: '{thumbprint}', Found key 'Start={}, End={}']",
                instant(certificate.not_before),
                instant(certificate.not_after)
            ),
        ));
    }
    UnparsedPublicKey::new(algorithm, &certificate.public_key).verify(signed.as_bytes(), &signature).map_err(|_| {
        Refusal::invalid_client(
            700_027,
            format!(
                "Client assertion contains an invalid signature. [Reason - The key was found, but the signature is invalid., \
                 Thumbprint of key used by client: '{thumbprint}']"
            ),
        )
    })?;

    if ["iss", "sub"].iter().any(|claim| !text(claim).is_some_and(|id| id.eq_ignore_ascii_case(expected.client_id))) {
        return Err(Refusal::invalid_client(
            700_021,
            "Client assertion application identifier doesn't match 'client_id' parameter: 'iss' and 'sub' must both be it.",
        ));
    }
    if !text("aud").is_some_and(|audience| expected.audiences.iter().any(|expected| expected == audience)) {
        return Err(Refusal::invalid_client(
            700_023,
            format!(
                "Client assertion audience claim does not match Realm issuer. It must be '{}'.",
                expected.audiences.first().map(String::as_str).unwrap_or_default()
            ),
        ));
    }
    let stale_from = times(&claims, expected.now)?;
    let jti = text("jti").filter(|jti| !jti.is_empty());
    let jti = jti.ok_or_else(|| malformed("It has no 'jti' claim."))?.to_owned();
    Ok(Verified { jti, stale_from })
}

/// The registered certificate that the header names, by one thumbprint or both, or that of a trusted subject which begins the
/// chain beside them (`x5c`). If there is such a chain it begins with the certificate in either case.
fn certificate<'a>(
    header: &Map<String, Value>,
    expected: &Expected<'_>,
    application: &'a KnownApplication,
) -> Result<Cow<'a, KnownCertificate>, Refusal> {
    let client_id = expected.client_id;
    let named = |name: &str| header.get(name).and_then(Value::as_str).map(|value| BASE64URL.decode(value).ok());
    let (sha256, sha1) = (named("x5t#S256"), named("x5t"));
    let chain = header.get("x5c").map(chain).transpose()?.unwrap_or_default();
    let matches = |given: &Option<Option<Vec<u8>>>, known: &[u8]| match given {
        None => true,
        Some(given) => given.as_deref() == Some(known),
    };
    let found = (sha256.is_some() || sha1.is_some())
        .then(|| {
            let mut visible =
                application.certificates.iter().filter(|known| known.since.is_none_or(|since| since <= expected.now));
            visible.find(|known| matches(&sha256, &known.sha256) && matches(&sha1, &known.sha1))
        })
        .flatten();
    let leaf = chain.first().map(|leaf| certificate_der(leaf)).transpose();
    let leaf =
        leaf.map_err(|why| Refusal::invalid_request(50_027, format!("JWT token is invalid or malformed. {why}")))?;
    let begins_with = |known: &KnownCertificate| leaf.as_ref().is_none_or(|leaf| leaf.sha256 == known.sha256);
    let names_leaf = |leaf: &&KnownCertificate| matches(&sha256, &leaf.sha256) && matches(&sha1, &leaf.sha1);
    if found.is_some_and(|found| !begins_with(found)) || leaf.as_ref().is_some_and(|leaf| !names_leaf(&leaf)) {
        let message =
            "JWT token is invalid or malformed. Its x5c does not begin with the certificate that its x5t names.";
        return Err(Refusal::invalid_request(50_027, message));
    }
    if let Some(found) = found {
        return Ok(Cow::Borrowed(found));
    }
    let trusted = leaf.filter(|_| application.trusted.iter().any(|subject| vouched(subject, &chain, expected.now)));
    trusted.map(Cow::Owned).ok_or_else(|| {
        let thumbprint = sha1.or(sha256).flatten().map(|bytes| hex(&bytes)).unwrap_or_default();
        Refusal::invalid_client(
            700_027,
            format!(
                "The certificate with identifier used to sign the client assertion is not registered on application. [Reason - \
                 The key was not found., Thumbprint of key used by client: '{thumbprint}', Please visit the Azure Portal, Graph \
                 Explorer or directly use MS Graph to see configured keys for app Id '{client_id}'.]"
            ),
        )
    })
}

/// The certificates of an `x5c` (RFC 7515 §4.1.6: base64 of DER, not base64url and not PEM). All must be X.509.
fn chain(chain: &Value) -> Result<Vec<CertificateDer<'static>>, Refusal> {
    let malformed = |why: &str| Refusal::invalid_request(50_027, format!("JWT token is invalid or malformed. {why}"));
    let entries = chain.as_array().filter(|entries| !entries.is_empty());
    let entries = entries.ok_or_else(|| malformed("Its x5c is no list of certificates."))?;
    let certificate = |entry: &Value| {
        let der = entry.as_str().and_then(|entry| STANDARD.decode(entry).ok());
        let der = der.filter(|der| x509_parser::parse_x509_certificate(der).is_ok());
        der.map(CertificateDer::from)
            .ok_or_else(|| malformed("Its x5c has an entry that is not a certificate, DER in base64."))
    };
    entries.iter().map(certificate).collect()
}

/// Whether a chain leads from a certificate of this subject to its authority.
fn vouched(trusted: &KnownSubject, chain: &[CertificateDer<'static>], now: i64) -> bool {
    let Some((leaf, rest)) = chain.split_first() else { return false };
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(leaf) else { return false };
    let names = parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    let alternative = parsed.subject_alternative_name().ok().flatten();
    let alternative = alternative.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(*name),
        _ => None,
    });
    if !names.chain(alternative).any(|name| name.eq_ignore_ascii_case(&trusted.subject)) {
        return false;
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates([trusted.authority.clone()]);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let now = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now).unwrap_or_default()));
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .is_ok_and(|verifier| verifier.verify_client_cert(leaf, rest, now).is_ok())
}

/// Checks `exp`, `nbf` and `iat`; returns when the assertion becomes stale.
fn times(claims: &Map<String, Value>, now: i64) -> Result<i64, Refusal> {
    let number = |name: &str| claims.get(name).and_then(Value::as_f64).filter(|seconds| seconds.abs() < 1e11);
    // MSAL for Python sends fractions of a second.
    #[expect(clippy::cast_possible_truncation, reason = "whole seconds are meant, and the range is checked above")]
    let seconds = |name: &str| number(name).map(|seconds| seconds.floor() as i64);
    let range = |from: Option<i64>, to: Option<i64>, why: &str| {
        let show = |time: Option<i64>| time.map_or_else(|| "none".to_owned(), instant);
        Refusal::invalid_client(
            700_024,
            format!(
                "Client assertion is not within its valid time range. Current time: {}, assertion valid from {}, expiry time of \
                 assertion {}.{why}",
                instant(now),
                show(from),
                show(to)
            ),
        )
    };
    let (expires, not_before) = (seconds("exp"), seconds("nbf"));
    let from = not_before.or(seconds("iat"));
    let Some(expires) = expires else { return Err(range(from, None, " It must have an 'exp' claim.")) };
    if expires + SKEW <= now || from.is_some_and(|from| from - SKEW > now) {
        return Err(range(from, Some(expires), ""));
    }
    if expires - from.unwrap_or(now) > LONGEST + SKEW {
        return Err(range(from, Some(expires), " It must not be valid for more than 10 minutes."));
    }
    Ok(expires + SKEW)
}

fn instant(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02X}");
        text
    })
}
