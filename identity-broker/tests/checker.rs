//! What is wrong with a credential, as the condition says it: read, looked into, and tried against an emulator of Entra.

#![allow(clippy::unwrap_used, clippy::type_complexity, reason = "helpers of tests: a failure is the test's")]

mod support;

use std::{sync::Arc, time::Duration};

use identity_broker::{AuthorityHosts, Checked, Checker, IdentitySource, Sources, UpstreamConfig};
use identity_core::lookup::{CredentialSource, FederatedSubject, Federation, Identity, VaultObject, VaultRef};
use identity_crd::IdentityType;
use identity_lab::emulator::{Change, Fault, credentials};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use support::azures::*;

type Tested = Checker<Box<dyn Fn() -> Timestamp + Send + Sync>>;

struct Known(Vec<Arc<Identity>>);

impl IdentitySource for Known {
    fn get(&self, namespace: &str, name: &str) -> Option<Arc<Identity>> {
        let is = |identity: &&Arc<Identity>| *identity.object.namespace == *namespace && *identity.object.name == *name;
        self.0.iter().find(is).cloned()
    }
}

fn checker(azures: &Azures, skew: SignedDuration) -> Tested {
    checker_with(azures, skew, Vec::new())
}

/// On a machine whose clock is wrong by `skew`.
fn checker_with(azures: &Azures, skew: SignedDuration, known: Vec<Arc<Identity>>) -> Tested {
    let port = azures.entra.entra_address().unwrap().port();
    let config = UpstreamConfig {
        authority_hosts: AuthorityHosts::new([format!("localhost:{port}")]),
        total_timeout: Duration::from_secs(3),
        ..UpstreamConfig::default()
    };
    let sources =
        Sources { identities: Some(Arc::new(Known(known))), ..Sources::from(Arc::new(azures.secrets.clone())) };
    let clock: Box<dyn Fn() -> Timestamp + Send + Sync> = Box::new(move || wall_clock() + skew);
    Checker::new(config, azures.tls.clone(), sources, clock)
}

async fn check(azures: &Azures, identity: Identity) -> Checked {
    checker(azures, SignedDuration::ZERO).check(&Arc::new(identity)).await
}

#[track_caller]
fn is(checked: &Checked, ready: Option<bool>, reason: &str, message: &[&str]) {
    assert_eq!((checked.ready, checked.reason), (ready, reason), "{}", checked.message);
    for part in message {
        assert!(checked.message.contains(part), "{part}: {}", checked.message);
    }
}

#[tokio::test]
async fn what_works() {
    let azures = azures().await;
    let checked = check(&azures, azures.with_secret("secret")).await;
    is(&checked, Some(true), "Accepted", &["Entra takes the credential from Secret ns/secret"]);
    assert_eq!(checked.expires, None);
    let p12 = credentials::pkcs12(&azures.certificate, "pass").unwrap();
    azures.secrets.set("p12", &[("certificate", &p12), ("password", b"pass")]);
    let checked = check(&azures, azures.with_certificate("p12")).await;
    is(&checked, Some(true), "Accepted", &["Secret ns/p12"]);
    assert!(checked.expires.unwrap() > wall_clock());
    // It is tried for what every application may ask for.
    let scopes: Vec<_> = azures.entra.requests().iter().map(|request| request.form["scope"].clone()).collect();
    assert_eq!(scopes, ["https://management.azure.com/.default"; 2]);
}

#[tokio::test]
async fn what_the_objects_say() {
    let azures = azures().await;
    let mut absent = azures.with_secret("absent");
    is(&check(&azures, absent.clone()).await, Some(false), "SecretNotFound", &["Secret ns/absent", "create it"]);
    absent.credential = CredentialSource::None;
    is(&check(&azures, absent).await, Some(false), "CredentialMissing", &["spec.clientPassword is missing"]);
    let mut elsewhere = azures.with_secret("secret");
    elsewhere.authority = Some("https://evil.example/".into());
    is(&check(&azures, elsewhere).await, Some(false), "Misconfigured", &["evil.example", "--authority-hosts"]);

    let of = |name: &'static str, entries: &[(&str, &[u8])]| azures.secrets.set(name, entries);
    of("keys", &[("one", b"x"), ("two", b"y")]);
    is(&check(&azures, azures.with_secret("keys")).await, Some(false), "KeyMissing", &["its keys are: one, two"]);
    of("empty", &[("clientSecret", b"\n")]);
    is(
        &check(&azures, azures.with_secret("empty")).await,
        Some(false),
        "CredentialEmpty",
        &["key 'clientSecret' is empty"],
    );

    let (good, other) = (&azures.certificate, credentials::self_signed_rsa("other").unwrap());
    let elliptic = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let elliptic_certificate = rcgen::CertificateParams::default().self_signed(&elliptic).unwrap().pem();
    let (from, to) = (jiff::civil::date(2020, 1, 1), jiff::civil::date(2021, 1, 1));
    let expired = credentials::self_signed_rsa_between("old", from, to).unwrap();
    let (from, to) = (jiff::civil::date(2096, 1, 1), jiff::civil::date(2097, 1, 1));
    let to_come = credentials::self_signed_rsa_between("new", from, to).unwrap();
    for (pem, reason, message) in [
        (format!("{}{}", good.certificate_pem, other.key_pem), "KeyMismatch", "does not belong to the certificate"),
        (format!("{elliptic_certificate}{}", elliptic.serialize_pem()), "KeyNotRSA", "is not an RSA key"),
        (
            format!("{}{}", expired.certificate_pem, expired.key_pem),
            "CertificateExpired",
            "the certificate ended 2021-01-01",
        ),
        (
            format!("{}{}", to_come.certificate_pem, to_come.key_pem),
            "CertificateNotYetValid",
            "by this machine's clock is yet to come",
        ),
        (good.certificate_pem.clone(), "PrivateKeyMissing", "has no private key"),
        (good.key_pem.clone(), "CertificateMissing", "has no certificate"),
        ("nonsense".to_owned(), "CredentialUnreadable", "neither PEM nor a readable PKCS#12"),
    ] {
        of("certificate", &[("certificate", pem.as_bytes())]);
        let checked = check(&azures, azures.with_certificate("certificate")).await;
        is(&checked, Some(false), reason, &["Secret ns/certificate", message]);
        let end = (reason == "CertificateExpired").then(|| "2021-01-01T00:00:00Z".parse::<Timestamp>().unwrap());
        if end.is_some() {
            assert_eq!(checked.expires, end);
        }
    }
    of("p12", &[("certificate", &credentials::pkcs12(good, "right").unwrap()), ("password", b"wrong")]);
    is(&check(&azures, azures.with_certificate("p12")).await, Some(false), "WrongPassword", &["key 'password'"]);
    assert_eq!(azures.posts(), 0, "none of it was sent");
}

#[tokio::test]
async fn what_entra_says() {
    let azures = azures().await;
    let of = |name: &'static str, entries: &[(&str, &[u8])]| azures.secrets.set(name, entries);
    of("wrong", &[("clientSecret", b"wrong-secret-value")]);
    let checked = check(&azures, azures.with_secret("wrong")).await;
    is(&checked, Some(false), "CredentialNotKnown", &["AADSTS7000215", "put the value (not the id)"]);
    assert!(!checked.message.contains("wrong-secret-value"));

    let change: Change = serde_json::from_value(
        json!({"addSecret": {"application": WITH_SECRET, "value": "old", "expires": "2021-01-01T00:00:00Z"}}),
    )
    .unwrap();
    azures.entra.change(&change).unwrap();
    of("old", &[("clientSecret", b"old")]);
    is(
        &check(&azures, azures.with_secret("old")).await,
        Some(false),
        "CredentialRefused",
        &["AADSTS7000222", "make a new one"],
    );

    let mut tenant = azures.with_secret("secret");
    tenant.tenant_id = Some("99999999-9999-9999-9999-999999999999".into());
    is(&check(&azures, tenant).await, Some(false), "TenantNotFound", &["AADSTS90002", "check spec.tenantID"]);
    let mut application = azures.with_secret("secret");
    application.client_id = Some("99999999-9999-9999-9999-999999999999".into());
    is(
        &check(&azures, application).await,
        Some(false),
        "ApplicationNotFound",
        &["AADSTS700016", "check spec.clientID"],
    );

    azures.entra.set_fault(Fault::Entra503, true);
    is(&check(&azures, azures.with_secret("secret")).await, None, "EntraUnavailable", &["could not be tried", "503"]);
    azures.entra.set_fault(Fault::Entra503, false);
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_said_so() {
    let azures = azures().await;
    let pem = format!("{}{}", azures.certificate.certificate_pem, azures.certificate.key_pem);
    azures.secrets.set("pem", &[("certificate", pem.as_bytes())]);
    let identity = Arc::new(azures.with_certificate("pem"));
    for (minutes, said) in [(-11, "clock is 11 minutes"), (20, "clock is 20 minutes")] {
        let checked = checker(&azures, SignedDuration::from_mins(minutes)).check(&identity).await;
        let way = if minutes < 0 { "behind Entra's" } else { "ahead of Entra's" };
        is(&checked, Some(false), "ClockSkew", &["AADSTS700024", said, way, "set this node's clock right"]);
    }
    // What Entra grants.
    let checked = checker(&azures, SignedDuration::from_mins(-3)).check(&identity).await;
    is(&checked, Some(true), "Accepted", &[]);
    // A secret has no time: it works, whatever the clock says.
    let checked = checker(&azures, SignedDuration::from_hours(3)).check(&Arc::new(azures.with_secret("secret"))).await;
    is(&checked, Some(true), "Accepted", &[]);
}

#[tokio::test]
async fn a_new_one_that_entra_does_not_know_yet_is_no_failure() {
    let azures = azures().await;
    let checker = checker(&azures, SignedDuration::ZERO);
    let identity = Arc::new(azures.with_secret("rotating"));
    azures.secrets.set("rotating", &[("clientSecret", SECRET.as_bytes())]);
    is(&checker.check(&identity).await, Some(true), "Accepted", &[]);
    azures.secrets.set("rotating", &[("clientSecret", b"next")]);
    let found = checker.check(&identity).await;
    is(&found, None, "CredentialNotKnown", &["AADSTS7000215", "does not know the new credential"]);
    // An outage does not change what is known.
    azures.secrets.set("rotating", &[("clientSecret", SECRET.as_bytes())]);
    is(&checker.check(&identity).await, Some(true), "Accepted", &[]);
    azures.entra.set_fault(Fault::EntraDown, true);
    is(&checker.check(&identity).await, Some(true), "Accepted", &["now it was not told"]);
}

#[tokio::test]
async fn what_only_nodes_can_try_is_unknown_here() {
    let azures = azures().await;
    is(&check(&azures, managed()).await, None, "NoCredential", &[]);
    let mut federated = azures.with_secret("secret");
    federated.credential = CredentialSource::Federated(Federation {
        subject: FederatedSubject::Broker,
        audience: "api://x".into(),
        pod: None,
    });
    is(&check(&azures, federated).await, None, "TriedByNodes", &[]);

    let vault = |reader: &str| {
        CredentialSource::KeyVault(VaultRef {
            url: "https://demo.vault.azure.net/".into(),
            object: VaultObject::Secret("s".into()),
            version: None,
            identity: reader.into(),
        })
    };
    let named = |name: &str, reader: &str| {
        let mut identity = azures.with_secret("secret");
        identity.object = support::identity(name, IdentityType::ServicePrincipal).object;
        identity.credential = vault(reader);
        Arc::new(identity)
    };
    let known = || vec![Arc::new(managed()), named("a", "b"), named("b", "c"), named("c", "a"), named("self", "self")];
    let checker = checker_with(&azures, SignedDuration::ZERO, known());
    let found = checker.check(&named("x", "managed")).await;
    is(&found, None, "TriedByNodes", &["AzureIdentity ns/managed"]);
    let found = checker.check(&named("a", "b")).await;
    is(&found, Some(false), "KeyVaultReader", &["a -> b -> c -> a is a circle"]);
    let found = checker.check(&named("self", "self")).await;
    is(&found, Some(false), "KeyVaultReader", &["self -> self is a circle"]);
    let found = checker.check(&named("x", "nobody")).await;
    is(&found, Some(false), "KeyVaultReader", &["there is no usable AzureIdentity ns/nobody"]);
    assert_eq!(azures.posts(), 0);
}
