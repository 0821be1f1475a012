//! Debug output gives no secret away (DESIGN invariant 8): what formats itself in words of its own is formatted here with known
//! secrets in it, as well as what holds it. `bins/xtask/tests/secret_types.rs` sees to it that none is forgotten.

use std::{collections::BTreeMap, fmt::Debug, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::future::BoxFuture;
use identity_core::lookup::{CredentialSource, Identity, ObjectRef, SecretKeyRef};
use identity_crd::IdentityType;
use jiff::Timestamp;
use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256};
use secrecy::{SecretSlice, SecretString};
use serde_json::json;

use super::{
    Checker, Credential, CredentialError, CredentialProblem, parse,
    source::{Known, Loaded},
};
use crate::{
    AuthorityHosts, Azure, Backend, Freshness, Manager, ManagerConfig, Metrics, SecretData, SecretSource,
    SecretSourceError, Token, TokenError, Tokens as _, UpstreamConfig, federated::Assertion, tokens::Issued,
};

const SECRET: &str = "s3cr3t~of/the+application";
const PASSWORD: &str = "p4ssw0rd~of~the~archive";
const TOKEN: &str = "eyJhbGciOiJub25lIn0.eyJ1dGkiOiJ0b2tlbi1pZCJ9.c2lnbmF0dXJlLW9mLXRoZS10b2tlbg";

/// Shows `value` in both forms, and demands that neither has any of `secrets`: not as text, not in base64, not as a list of
/// bytes.
#[track_caller]
fn hides(what: &str, value: &impl Debug, secrets: &[&str]) {
    let shown = format!("{value:?}\n{value:#?}");
    absent(what, &shown, secrets);
    assert!(shown.len() > 4, "{what} shows nothing at all: {shown}");
}

#[track_caller]
fn absent(what: &str, shown: &str, secrets: &[&str]) {
    let packed: String = shown.split_whitespace().collect();
    for secret in secrets {
        let bytes: Vec<String> = secret.bytes().take(8).map(|byte| byte.to_string()).collect();
        let middle = &secret[secret.len() / 2..];
        for form in [secret, middle, &STANDARD.encode(secret), &bytes.join(",")] {
            assert!(!packed.contains(form), "{what} gives `{form}` away: {shown}");
        }
    }
}

/// An error and all that caused it.
#[track_caller]
fn error_hides(what: &str, error: &(dyn std::error::Error + 'static), secrets: &[&str]) {
    let mut next = Some(error);
    while let Some(error) = next {
        absent(what, &format!("{error} {error:?} {error:#?}"), secrets);
        next = error.source();
    }
}

#[test]
fn what_is_given_away_is_found() {
    let bytes = SECRET.as_bytes().to_vec();
    let shown = [
        format!("{SECRET:?}"),
        format!("{bytes:?}"),
        format!("{bytes:#?}"),
        STANDARD.encode(SECRET),
        SECRET[9..].to_owned(),
    ];
    for shown in shown {
        let looked = std::panic::catch_unwind(|| absent("it", &shown, &[SECRET]));
        assert!(looked.is_err(), "not found in {shown}");
    }
    absent("it", "[REDACTED]", &[SECRET]);
}

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn token() -> Token {
    Token::issued(&Issued {
        access_token: TOKEN,
        resource: "https://vault.azure.net",
        client_id: Some("c"),
        expires_on: Timestamp::from_second(1_800_003_600).unwrap(),
        now: now(),
        credential: 7,
        request_id: None,
    })
}

fn identity() -> Arc<Identity> {
    let reference = SecretKeyRef { namespace: "ns".into(), name: "s".into(), key: None };
    Arc::new(Identity {
        object: ObjectRef { namespace: "ns".into(), name: "i".into(), uid: "u".into(), generation: 1 },
        kind: IdentityType::ServicePrincipal,
        client_id: Some("22222222-2222-2222-2222-222222222222".into()),
        object_id: None,
        resource_id: None,
        tenant_id: Some("11111111-1111-1111-1111-111111111111".into()),
        // Nobody listens there.
        authority: Some("https://127.0.0.1:1/".into()),
        credential: CredentialSource::Secret(reference),
        audiences: Box::default(),
    })
}

/// A Secret with the client secret.
#[derive(Debug)]
struct Secrets;

impl SecretSource for Secrets {
    fn get<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<SecretData, SecretSourceError>> {
        Box::pin(async { Ok(data(&[("clientSecret", SECRET.as_bytes())])) })
    }
}

fn data(entries: &[(&str, &[u8])]) -> SecretData {
    entries.iter().map(|(key, value)| ((*key).to_owned(), SecretSlice::from(value.to_vec()))).collect()
}

fn azure() -> Azure<fn() -> Timestamp> {
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    Azure::new(config(), tls, Arc::new(Secrets), now, Arc::new(Metrics::default()))
}

fn config() -> UpstreamConfig {
    UpstreamConfig {
        authority_hosts: AuthorityHosts::new(["127.0.0.1:1"]),
        attempts: 1,
        request_timeout: Duration::from_secs(1),
        total_timeout: Duration::from_secs(2),
        ..UpstreamConfig::default()
    }
}

fn key_pair() -> KeyPair {
    KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap()
}

/// The middle of the text of a key, which is in no other key.
fn of_key(pem: &str) -> String {
    let body: String = pem.lines().filter(|line| !line.starts_with("---")).collect();
    body.chars().skip(body.len() / 2).take(40).collect()
}

#[test]
fn credentials_of_each_kind_hide_what_they_are() {
    let key = key_pair();
    let certificate = CertificateParams::new(["a".to_owned()]).unwrap().self_signed(&key).unwrap();
    let pem = format!("{}{}", key.serialize_pem(), certificate.pem());
    let reference = SecretKeyRef { namespace: "ns".into(), name: "s".into(), key: None };
    let secret = data(&[("clientSecret", SECRET.as_bytes())]);
    hides("SecretData", &secret, &[SECRET]);
    let chain = data(&[("certificate", pem.as_bytes())]);
    let of_key = of_key(&key.serialize_pem());
    for (credential, hidden) in [
        (parse::client_secret(&reference, &secret).unwrap(), SECRET),
        (parse::certificate(&reference, &chain).unwrap(), &of_key),
        (Credential::Assertion(Arc::new(SecretString::from(TOKEN))), TOKEN),
    ] {
        hides("Credential", &credential, &[hidden]);
        let loaded = Loaded { credential, version: 1, origin: "Secret ns/s".into(), expires: None };
        hides("Loaded", &loaded, &[hidden]);
        hides("Known", &Known { loaded: vec![Arc::new(loaded)], wrong: None }, &[hidden]);
    }
}

#[test]
fn tokens_hide_what_they_are_wherever_they_are() {
    hides("Token", &token(), &[TOKEN]);
    hides("Result", &Ok::<_, TokenError>(Arc::new(token())), &[TOKEN]);
    let claims = json!({"iss": "https://issuer.example", "sub": "s", "aud": "a", "exp": 1_800_000_000});
    let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims.to_string());
    let text = format!("eyJhbGciOiJub25lIn0.{payload}.c2lnbmF0dXJlLW9mLXRoZS1hc3NlcnRpb24");
    let assertion = Assertion::read(SecretString::from(text.as_str()), "here").unwrap();
    hides("Assertion", &assertion, &[&text, &payload, "c2lnbmF0dXJlLW9mLXRoZS1hc3NlcnRpb24"]);
    for wrong in [TOKEN, &format!("{TOKEN}.{SECRET}"), &format!("{SECRET}.{SECRET}.{SECRET}"), SECRET] {
        if let Err(error) = Assertion::read(SecretString::from(wrong), "here") {
            error_hides("AssertionError", &error, &[SECRET, TOKEN]);
        }
    }
}

/// Has a token.
struct AtHand;

impl Backend for AtHand {
    fn credential_version(&self, _: &Identity) -> u64 {
        7
    }

    async fn fetch(&self, _: &Arc<Identity>, _: &str, _: Freshness) -> Result<Token, TokenError> {
        Ok(token())
    }
}

#[tokio::test]
async fn whoever_holds_tokens_and_credentials_shows_none() {
    let metrics = Arc::new(Metrics::default());
    let manager = Manager::new(AtHand, now as fn() -> Timestamp, ManagerConfig::default(), Arc::clone(&metrics));
    let resource = "https://vault.azure.net";
    manager.get(&identity(), resource, Freshness::Any).await.unwrap();
    assert!(manager.ready(&identity(), resource).is_some_and(|token| token.is_ok()), "it is at hand");
    hides("Manager", &manager, &[TOKEN]);

    // The secret is read, and Entra is not there.
    let azure = azure();
    let error = azure.fetch(&identity(), resource, Freshness::Any).await.unwrap_err();
    error_hides("TokenError", &error, &[SECRET]);
    assert_ne!(azure.credential_version(&identity()), 0, "the secret was read");
    hides("Azure", &azure, &[SECRET]);
    hides("Credentials", azure.parts().1, &[SECRET]);

    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let checker = Checker::new(config(), tls, Arc::new(Secrets), now as fn() -> Timestamp);
    hides("Checked", &checker.check(&identity()).await, &[SECRET]);
    hides("Checker", &checker, &[SECRET]);
    hides("UpstreamConfig", &config(), &[SECRET]);
}

#[test]
fn what_is_wrong_with_a_credential_is_said_without_it() {
    let (key, other) = (key_pair(), key_pair());
    let certificate = CertificateParams::new(["a".to_owned()]).unwrap().self_signed(&other).unwrap().pem();
    let (pem, of_key) = (key.serialize_pem(), of_key(&key.serialize_pem()));
    let reference = SecretKeyRef { namespace: "ns".into(), name: "s".into(), key: None };
    let keyed = SecretKeyRef { key: Some("wrong".into()), ..reference.clone() };
    let cut = format!("{}\n{SECRET}\n-----END PRIVATE KEY-----\n{certificate}", &pem[..pem.len() / 2]);
    let not_base64 = format!("-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----\n{certificate}");
    let der = [&[0x30, 0x82, 0x04, 0x00][..], SECRET.as_bytes()].concat();
    let legacy: &[u8] = include_bytes!("legacy_rc2.p12");
    let mut seen = BTreeMap::new();
    for (what, entries) in [
        ("a key that is cut", data(&[("certificate", cut.as_bytes())])),
        ("no base64", data(&[("certificate", not_base64.as_bytes())])),
        ("another's key", data(&[("certificate", format!("{pem}{certificate}").as_bytes())])),
        ("no certificate", data(&[("certificate", pem.as_bytes())])),
        ("no archive", data(&[("certificate", &der), ("password", PASSWORD.as_bytes())])),
        ("text", data(&[("certificate", SECRET.as_bytes())])),
        ("a wrong password", data(&[("certificate", legacy), ("password", PASSWORD.as_bytes())])),
        ("no text", data(&[("clientSecret", &[SECRET.as_bytes(), &[0xff]].concat())])),
        ("too long", data(&[("clientSecret", SECRET.repeat(60_000).as_bytes())])),
        ("several keys", data(&[("a", SECRET.as_bytes()), ("b", PASSWORD.as_bytes())])),
    ] {
        let problems = [
            parse::certificate(&reference, &entries).err(),
            parse::certificate(&keyed, &entries).err(),
            parse::client_secret(&reference, &entries).err(),
            parse::client_secret(&keyed, &entries).err(),
        ];
        for problem in problems.into_iter().flatten() {
            hides(what, &problem, &[SECRET, PASSWORD, &of_key]);
            let error = CredentialError { origin: "Secret ns/s".to_owned(), problem };
            error_hides(what, &error, &[SECRET, PASSWORD, &of_key]);
            seen.insert(error.problem.reason(), what);
        }
        for value in entries.values().map(secrecy::ExposeSecret::expose_secret) {
            for problem in
                [parse::vault_secret(value).err(), parse::vault_certificate(value).err()].into_iter().flatten()
            {
                error_hides(what, &CredentialError { origin: "o".to_owned(), problem }, &[SECRET, PASSWORD, &of_key]);
            }
        }
    }
    // The problems were met, and not always the same one.
    for reason in ["CredentialUnreadable", "WrongPassword", "KeyMismatch", "CertificateMissing", "KeyMissing"] {
        assert!(seen.contains_key(reason), "{reason} was not met: {seen:?}");
    }
    hides("CredentialProblem", &CredentialProblem::Empty("k".into()), &[SECRET]);
}
