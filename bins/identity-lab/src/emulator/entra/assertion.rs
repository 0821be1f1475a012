//! Verifies client assertions signed with a registered certificate (RFC 7523;
//! <https://learn.microsoft.com/entra/identity-platform/certificate-credentials>).

use aws_lc_rs::{
    digest::{SHA256, digest},
    signature::{RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey},
};
use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::error::Refusal;
use crate::emulator::directory::KnownCertificate;

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
    certificates: &[KnownCertificate],
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

    let certificate = certificate(&header, expected, certificates)?;
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

/// The registered certificate that the header names, by one thumbprint or both. A chain beside it (`x5c`) must begin with it.
fn certificate<'a>(
    header: &Map<String, Value>,
    expected: &Expected<'_>,
    certificates: &'a [KnownCertificate],
) -> Result<&'a KnownCertificate, Refusal> {
    let client_id = expected.client_id;
    let named = |name: &str| header.get(name).and_then(Value::as_str).map(|value| BASE64URL.decode(value).ok());
    let (sha256, sha1) = (named("x5t#S256"), named("x5t"));
    if sha256.is_none() && sha1.is_none() && header.contains_key("x5c") {
        return Err(Refusal::NotEmulated("subject name and issuer authentication (x5c without x5t)".to_owned()));
    }
    let leaf = header.get("x5c").map(leaf).transpose()?;
    let matches = |given: &Option<Option<Vec<u8>>>, known: &[u8]| match given {
        None => true,
        Some(given) => given.as_deref() == Some(known),
    };
    let found = (sha256.is_some() || sha1.is_some())
        .then(|| {
            let mut visible = certificates.iter().filter(|known| known.since.is_none_or(|since| since <= expected.now));
            visible.find(|known| matches(&sha256, &known.sha256) && matches(&sha1, &known.sha1))
        })
        .flatten();
    if let (Some(found), Some(leaf)) = (found, &leaf)
        && found.sha256 != *leaf
    {
        let message =
            "JWT token is invalid or malformed. Its x5c does not begin with the certificate that its x5t names.";
        return Err(Refusal::invalid_request(50_027, message));
    }
    found.ok_or_else(|| {
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

/// SHA-256 of the first certificate of an `x5c` (RFC 7515 §4.1.6: base64 of DER, not base64url and not PEM). All must be X.509.
fn leaf(chain: &Value) -> Result<Vec<u8>, Refusal> {
    let malformed = |why: &str| Refusal::invalid_request(50_027, format!("JWT token is invalid or malformed. {why}"));
    let entries = chain.as_array().filter(|entries| !entries.is_empty());
    let entries = entries.ok_or_else(|| malformed("Its x5c is no list of certificates."))?;
    let mut first = None;
    for entry in entries {
        let der = entry.as_str().and_then(|entry| STANDARD.decode(entry).ok());
        let der = der.filter(|der| x509_parser::parse_x509_certificate(der).is_ok());
        let der = der.ok_or_else(|| malformed("Its x5c has an entry that is not a certificate, DER in base64."))?;
        first.get_or_insert_with(|| digest(&SHA256, &der).as_ref().to_vec());
    }
    Ok(first.unwrap_or_default())
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
