//! Every type of identity against emulators of Entra (real TLS) and IMDS, and every refusal.

#![allow(clippy::unwrap_used, clippy::type_complexity, reason = "helpers of tests: a failure is the test's")]

mod support;

use std::{sync::Arc, time::Duration};

use identity_broker::{AuthorityHosts, Azure, Backend, Token, TokenError, UpstreamConfig, tokens::RefusalKind};
use identity_core::lookup::CredentialSource;
use identity_lab::emulator::{Fault, ca, credentials};
use jiff::Timestamp;
use serde_json::json;
use support::azures::*;

fn refusal(result: Result<Token, TokenError>) -> (RefusalKind, String) {
    match result {
        Err(TokenError::Refused(refusal)) => (refusal.error, refusal.description),
        other => panic!("not a refusal: {other:?}"),
    }
}

fn misconfigured(result: Result<Token, TokenError>) -> String {
    match result {
        Err(error @ TokenError::Misconfigured { .. }) => error.to_string(),
        other => panic!("not a misconfiguration: {other:?}"),
    }
}

fn unavailable(result: Result<Token, TokenError>) -> (String, Duration) {
    match result {
        Err(TokenError::Unavailable { message, retry_after }) => (message, retry_after),
        other => panic!("not unavailable: {other:?}"),
    }
}

#[tokio::test]
async fn managed_identity() {
    let azures = azures().await;
    let token = fetch(&azures.client(), managed(), "https://vault.azure.net/").await.unwrap();
    let (claims, body) = read(&token);
    assert_eq!((&claims["appid"], &claims["tid"]), (&MANAGED.into(), &TENANT.into()));
    assert_eq!((&body["client_id"], &body["resource"]), (&MANAGED.into(), &"https://vault.azure.net/".into()));
    assert_eq!(body["not_before"], claims["nbf"].to_string());
    let request = azures.entra.requests().pop().unwrap();
    assert_eq!((&request.query["msi_res_id"], request.query.get("client_id")), (&RESOURCE_ID.into(), None));

    // The predecessor's objects may have the client id only.
    let mut by_client = managed();
    by_client.resource_id = None;
    fetch(&azures.client(), by_client, VAULT).await.unwrap();
    // Neither would be the node's own identity.
    let mut neither = managed();
    (neither.resource_id, neither.client_id) = (None, Some(" ".into()));
    assert!(misconfigured(fetch(&azures.client(), neither, VAULT).await).contains("spec.resourceID is missing"));
    // Two identities in one object.
    let mut mixed = managed();
    mixed.client_id = Some(WITH_SECRET.into());
    let text = misconfigured(fetch(&azures.client(), mixed, VAULT).await);
    assert!(
        text.contains(WITH_SECRET) && text.contains(MANAGED) && text.starts_with("AzureIdentity ns/managed"),
        "{text}"
    );
    // Not on this machine.
    let mut elsewhere = managed();
    elsewhere.resource_id = Some(RESOURCE_ID.replace("demo", "other").into());
    let (kind, text) = refusal(fetch(&azures.client(), elsewhere, VAULT).await);
    assert_eq!(kind, RefusalKind::InvalidRequest);
    assert!(text.starts_with("Identity not found") && text.contains("other"), "{text}");
}

#[tokio::test]
async fn service_principal_with_secret() {
    let azures = azures().await;
    let client = azures.client();
    let token = fetch(&client, azures.with_secret("secret"), VAULT).await.unwrap();
    let (claims, body) = read(&token);
    assert_eq!((&claims["appid"], &claims["tid"]), (&WITH_SECRET.into(), &TENANT.into()));
    assert_eq!((&claims["aud"], &body["resource"]), (&VAULT.into(), &VAULT.into()));
    let left: i64 = body["expires_in"].as_str().unwrap().parse().unwrap();
    assert!((3500..=3600).contains(&left), "{left}");
    assert_eq!(token.credential(), client.credential_version(&azures.with_secret("secret")));
    // A slash at the end stays in the audience.
    let token = fetch(&client, azures.with_secret("secret"), "https://vault.azure.net/").await.unwrap();
    let request = azures.entra.requests().pop().unwrap();
    assert_eq!(request.form["scope"], "https://vault.azure.net//.default");
    assert_eq!(read(&token).1["resource"], "https://vault.azure.net/");
    // By the tenant's domain.
    let mut by_domain = azures.with_secret("secret");
    by_domain.tenant_id = Some("contoso.onmicrosoft.com".into());
    fetch(&client, by_domain, VAULT).await.unwrap();
}

#[tokio::test]
async fn service_principal_with_certificate() {
    let azures = azures().await;
    let client = azures.client();
    let p12 = credentials::pkcs12(&azures.certificate, "pass").unwrap();
    let (cert, key) = (&azures.certificate.certificate_pem, &azures.certificate.key_pem);
    azures.secrets.set("p12", &[("certificate", &p12), ("password", b"pass")]);
    azures.secrets.set("pem", &[("certificate", format!("{cert}{key}").as_bytes())]);
    azures.secrets.set("tls", &[("tls.crt", cert.as_bytes()), ("tls.key", key.as_bytes())]);
    for secret in ["p12", "pem", "tls"] {
        let token = fetch(&client, azures.with_certificate(secret), VAULT).await.unwrap();
        assert_eq!(read(&token).0["appid"], WITH_CERTIFICATE, "{secret}");
    }
    // A second assertion is another one: Entra refuses a replay.
    fetch(&client, azures.with_certificate("pem"), "https://storage.azure.com").await.unwrap();
}

#[tokio::test]
async fn a_first_credential_that_entra_may_not_know_yet_is_not_refused_for_good() {
    let azures = azures().await;
    let client = azures.client_with(|config| config.rotation.propagation = Duration::from_secs(1));
    azures.secrets.set("new", &[("clientSecret", b"new-secret-value")]);
    let (text, wait) = unavailable(fetch(&client, azures.with_secret("new"), VAULT).await);
    assert!(text.contains("AADSTS7000215") && text.contains("takes some minutes to reach all of Entra"), "{text}");
    assert!(wait == Duration::from_secs(15) && !text.contains("new-secret-value"), "{wait:?} {text}");
    let other = credentials::self_signed_rsa("other").unwrap();
    azures.secrets.set("other", &[("certificate", format!("{}{}", other.certificate_pem, other.key_pem).as_bytes())]);
    let (text, _) = unavailable(fetch(&client, azures.with_certificate("other"), VAULT).await);
    assert!(text.contains("AADSTS700027"), "{text}");
    // The one gets there, the other never does.
    let add = json!({"addSecret": {"application": WITH_SECRET, "value": "new-secret-value"}});
    azures.entra.change(&serde_json::from_value(add).unwrap()).unwrap();
    fetch(&client, azures.with_secret("new"), VAULT).await.unwrap();
    let refused = async {
        loop {
            match fetch(&client, azures.with_certificate("other"), VAULT).await {
                Err(TokenError::Refused(refusal)) => return refusal,
                Err(TokenError::Unavailable { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
                other => panic!("{other:?}"),
            }
        }
    };
    let refusal = tokio::time::timeout(Duration::from_secs(20), refused).await.expect("final in time");
    assert_eq!(refusal.error, RefusalKind::InvalidClient);
}

#[tokio::test]
async fn refusals_of_entra_carry_its_code() {
    let azures = azures().await;
    // What it may only not know yet is another matter.
    let client = azures.client_with(|config| config.rotation.propagation = Duration::ZERO);
    azures.secrets.set("wrong", &[("clientSecret", b"wrong-secret-value")]);
    let (kind, text) = refusal(fetch(&client, azures.with_secret("wrong"), VAULT).await);
    assert_eq!(kind, RefusalKind::InvalidClient);
    assert!(text.contains("AADSTS7000215") && !text.contains("wrong-secret-value") && !text.contains('\n'), "{text}");

    let other = credentials::self_signed_rsa("other").unwrap();
    azures.secrets.set("other", &[("certificate", format!("{}{}", other.certificate_pem, other.key_pem).as_bytes())]);
    let (kind, text) = refusal(fetch(&client, azures.with_certificate("other"), VAULT).await);
    assert!(kind == RefusalKind::InvalidClient && text.contains("AADSTS700027"), "{text}");

    let mut tenant = azures.with_secret("secret");
    tenant.tenant_id = Some("99999999-9999-9999-9999-999999999999".into());
    let (_, text) = refusal(fetch(&client, tenant, VAULT).await);
    assert!(text.contains("AADSTS90002"), "{text}");

    let mut application = azures.with_secret("secret");
    application.client_id = Some("99999999-9999-9999-9999-999999999999".into());
    let (kind, text) = refusal(fetch(&client, application, VAULT).await);
    assert!(kind == RefusalKind::UnauthorizedClient && text.contains("AADSTS700016"), "{text}");

    let (kind, text) = refusal(fetch(&client, azures.with_secret("secret"), "https://nowhere.example").await);
    assert!(kind == RefusalKind::InvalidResource && text.contains("AADSTS500011"), "{text}");
}

#[tokio::test]
async fn what_is_wrong_with_the_objects_is_said_before_anything_is_sent() {
    let azures = azures().await;
    let client = azures.client();
    let p12 = credentials::pkcs12(&azures.certificate, "pass").unwrap();
    azures.secrets.set("keys", &[("one", b"x"), ("two", b"y")]);
    azures.secrets.set("bad-p12", &[("certificate", b"not a keystore"), ("password", b"pass")]);
    azures.secrets.set("bad-password", &[("certificate", &p12), ("password", b"other")]);

    let (text, wait) = unavailable(fetch(&client, azures.with_secret("absent"), VAULT).await);
    assert!(text.contains("Secret ns/absent") && text.contains("does not exist") && !wait.is_zero(), "{text}");
    let text = misconfigured(fetch(&client, azures.with_secret("keys"), VAULT).await);
    assert!(text.contains("Secret ns/keys") && text.contains("its keys are: one, two"), "{text}");
    let text = misconfigured(fetch(&client, azures.with_certificate("bad-p12"), VAULT).await);
    assert!(text.contains("neither PEM nor a readable PKCS#12"), "{text}");
    let text = misconfigured(fetch(&client, azures.with_certificate("bad-password"), VAULT).await);
    assert!(text.contains("cannot be opened with the password"), "{text}");

    for (authority, expected) in [
        ("https://evil.example/", "not among the allowed authority hosts"),
        ("http://localhost/", "must begin with https"),
        ("nonsense", "is not a URL"),
    ] {
        let mut identity = azures.with_secret("secret");
        identity.authority = Some(authority.into());
        let text = misconfigured(fetch(&client, identity, VAULT).await);
        assert!(text.contains(expected), "{text}");
    }
    let mut no_tenant = azures.with_secret("secret");
    no_tenant.tenant_id = None;
    assert!(misconfigured(fetch(&client, no_tenant, VAULT).await).contains("spec.tenantID is missing"));
    let mut no_client = azures.with_secret("secret");
    no_client.client_id = None;
    assert!(misconfigured(fetch(&client, no_client, VAULT).await).contains("spec.clientID is missing"));
    let mut no_secret = azures.with_secret("secret");
    no_secret.credential = CredentialSource::None;
    assert!(misconfigured(fetch(&client, no_secret, VAULT).await).contains("spec.clientPassword is missing"));
    assert_eq!(azures.posts(), 0);
}

#[tokio::test]
async fn a_server_that_is_not_trusted_gets_nothing() {
    let azures = azures().await;
    let stranger = ca::Authority::generate().unwrap();
    let tls = rustls::ClientConfig::builder().with_root_certificates(stranger.roots()).with_no_client_auth();
    let port = azures.entra.entra_address().unwrap().port();
    let config = UpstreamConfig {
        authority_hosts: AuthorityHosts::new([format!("localhost:{port}")]),
        attempts: 1,
        ..UpstreamConfig::default()
    };
    let clock: fn() -> Timestamp = wall_clock;
    let client = Azure::new(config, tls, Arc::new(azures.secrets.clone()), clock, Arc::default());
    let (text, _) = unavailable(fetch(&client, azures.with_secret("secret"), VAULT).await);
    assert!(text.contains("no connection to localhost") && text.contains("certificate"), "{text}");
    assert_eq!(azures.posts(), 0);
}

#[tokio::test]
async fn a_secret_that_was_changed_is_found_when_the_old_one_is_refused() {
    let azures = azures().await;
    let client = azures.client();
    azures.secrets.set("rotating", &[("clientSecret", b"old")]);
    unavailable(fetch(&client, azures.with_secret("rotating"), VAULT).await);
    // The credential is a moment old: without the refusal it would not be read again for a minute.
    azures.secrets.set("rotating", &[("clientSecret", SECRET.as_bytes())]);
    fetch(&client, azures.with_secret("rotating"), VAULT).await.unwrap();
    assert_eq!(azures.posts(), 3);
}

#[tokio::test]
async fn what_passes_is_tried_again_within_a_budget_and_retry_after_is_kept() {
    let azures = azures().await;
    let client = azures.client();
    azures.entra.set_fault(Fault::Entra503, true);
    let (text, _) = unavailable(fetch(&client, azures.with_secret("secret"), VAULT).await);
    assert!(text.contains("503"), "{text}");
    assert_eq!(azures.posts(), 3, "three attempts");
    azures.entra.set_fault(Fault::Entra503, false);
    fetch(&client, azures.with_secret("secret"), VAULT).await.unwrap();

    // 7 s asked for, 3 s left: not waited for, but handed on.
    let impatient = azures.client_with(|config| config.total_timeout = Duration::from_secs(3));
    azures.entra.set_fault(Fault::Entra429, true);
    let before = azures.posts();
    let (text, wait) = unavailable(fetch(&impatient, azures.with_secret("secret"), VAULT).await);
    assert!(text.contains("429") && wait == Duration::from_secs(7), "{text} {wait:?}");
    assert_eq!(azures.posts(), before + 1);
    azures.entra.set_fault(Fault::Entra429, false);

    for fault in [Fault::Imds404, Fault::Imds410, Fault::Imds429, Fault::Imds500, Fault::Imds503, Fault::ImdsDown] {
        azures.entra.set_fault(fault, true);
        let impatient = azures.client_with(|config| {
            config.total_timeout = Duration::from_secs(2);
            config.attempts = 2;
        });
        let (text, wait) = unavailable(fetch(&impatient, managed(), VAULT).await);
        assert!(text.contains("IMDS") && !wait.is_zero(), "{fault}: {text}");
        azures.entra.set_fault(fault, false);
    }
    fetch(&client, managed(), VAULT).await.unwrap();
}

#[tokio::test]
async fn silence_is_not_waited_for_longer_than_said() {
    let azures = azures().await;
    let client = azures.client_with(|config| {
        config.request_timeout = Duration::from_millis(50);
        config.total_timeout = Duration::from_millis(400);
    });
    azures.entra.set_fault(Fault::EntraHang, true);
    azures.entra.set_fault(Fault::ImdsHang, true);
    for identity in [azures.with_secret("secret"), managed()] {
        unavailable(fetch(&client, identity, VAULT).await);
    }
}

#[tokio::test]
async fn many_at_once_stay_within_what_imds_bears() {
    let azures = azures().await;
    let client = azures.client();
    let resources: Vec<_> = (0..12).map(|n| format!("https://resource-{n}.example")).collect();
    let all = resources.iter().map(|resource| fetch(&client, managed(), resource));
    for token in futures::future::join_all(all).await {
        token.unwrap();
    }
    assert!(azures.entra.requests().iter().all(|request| request.status == 200));
}

/// It does not say for how long: a moment, for all identities.
#[tokio::test]
async fn when_imds_throttles_nobody_asks_it_for_a_moment() {
    let azures = azures().await;
    let client = azures.client_with(|config| config.attempts = 1);
    azures.entra.set_fault(Fault::Imds429Once, true);
    unavailable(fetch(&client, managed(), VAULT).await);
    azures.entra.set_fault(Fault::Imds429Once, false);
    let mut another = managed();
    another.object = support::identity("another", another.kind).object;
    fetch(&client, another, "https://storage.azure.com").await.unwrap();
    let times: Vec<_> = azures.entra.requests().iter().map(|request| request.time).collect();
    let pause = times[1].duration_since(times[0]);
    assert!(pause >= jiff::SignedDuration::from_millis(900), "{pause:?}");
}
