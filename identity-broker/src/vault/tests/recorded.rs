//! Answers as recorded from a vault's clients (`keyvault-rust-1.0.1__*`), and answers that no vault should give.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::BoxFuture;
use http::{Request, Response};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{super::guard::Exchange, *};
use crate::{upstream::http::TransportError, vault::VaultSuffixes};

const CHALLENGE: &str = r#"Bearer authorization="https://login.microsoftonline.com/11111111-1111-1111-1111-111111111111", resource="https://vault.azure.net""#;
const VERSION: &str = "0123456789abcdef0123456789abcdef";

type Answer = Result<Response<Vec<u8>>, TransportError>;

/// Answers in turn, and keeps what it was sent.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<Played>>);

/// Answers to come, requests that were sent.
type Played = (VecDeque<Answer>, Vec<Request<Vec<u8>>>);

impl Script {
    fn new(answers: impl IntoIterator<Item = Answer>) -> Self {
        let script = Self::default();
        script.0.lock().unwrap().0.extend(answers);
        script
    }

    fn reader(&self) -> Reader {
        Reader::with(Arc::new(self.clone()), VaultSuffixes::default())
    }

    fn sent(&self) -> Vec<String> {
        let requests = &self.0.lock().unwrap().1;
        let line = |request: &Request<Vec<u8>>| {
            let token = request.headers().get("authorization").map_or("", |value| value.to_str().unwrap());
            format!("{} {} {token}", request.method(), request.uri())
        };
        requests.iter().map(line).collect()
    }
}

impl Exchange for Script {
    fn send(&self, request: Request<Vec<u8>>) -> BoxFuture<'_, Answer> {
        let mut state = self.0.lock().unwrap();
        state.1.push(request);
        let answer = state.0.pop_front().expect("a request too many");
        Box::pin(std::future::ready(answer))
    }
}

#[expect(clippy::unnecessary_wraps, reason = "one in a row of answers, of which some do not come")]
fn answer(status: u16, body: &Value) -> Answer {
    Ok(Response::builder()
        .status(status)
        .header("content-type", "application/json; charset=utf-8")
        .body(body.to_string().into())
        .unwrap())
}

#[expect(clippy::unnecessary_wraps, reason = "one in a row of answers, of which some do not come")]
fn challenge(header: &str) -> Answer {
    let body =
        json!({"error": {"code": "Unauthorized", "message": "AKV10000: Request is missing a Bearer or PoP token."}});
    Ok(Response::builder().status(401).header("www-authenticate", header).body(body.to_string().into()).unwrap())
}

fn found(value: &str) -> Value {
    json!({"value": value, "id": format!("https://{HOST}/secrets/s1/{VERSION}"),
           "attributes": {"enabled": true, "created": 1_700_000_000, "updated": 1_700_000_000, "recoveryLevel": "Recoverable+Purgeable", "recoverableDays": 90}})
}

async fn read(answers: Vec<Answer>, reference: &VaultRef) -> (Result<Bundle, Error>, Vec<String>) {
    let script = Script::new(answers);
    let read = Giving::new("t0ken").read(&script.reader(), reference).await;
    (read, script.sent())
}

/// After the challenge, this answer.
async fn after(answer: Answer) -> Error {
    read(vec![challenge(CHALLENGE), answer], &secret("s1")).await.0.unwrap_err()
}

#[tokio::test]
async fn a_secret_as_recorded() {
    let (bundle, sent) = read(vec![challenge(CHALLENGE), answer(200, &found("s3cr3t"))], &secret("s1")).await;
    let bundle = bundle.unwrap();
    assert_eq!((text(&bundle), &*bundle.version), ("s3cr3t", VERSION));
    assert_eq!((&bundle.content_type, bundle.expires_on), (&None, None));
    assert_eq!(bundle.origin(), format!("Key Vault {HOST}, secret 's1', version {VERSION}"));
    let url = format!("GET https://{HOST}/secrets/s1/?api-version=2025-07-01");
    assert_eq!(sent, [format!("{url} "), format!("{url} Bearer t0ken")]);
    assert!(!format!("{bundle:?}").contains("s3cr3t") && !format!("{bundle:?}").contains("115, 51"), "{bundle:?}");
}

#[tokio::test]
async fn a_version_and_times() {
    let mut body = found("x");
    body["attributes"]["exp"] = json!(1_800_000_000);
    body["attributes"]["nbf"] = json!(1_700_000_000);
    body["contentType"] = json!("text/plain");
    let (bundle, sent) = read(vec![challenge(CHALLENGE), answer(200, &body)], &version(secret("S1"), VERSION)).await;
    let bundle = bundle.unwrap();
    assert!(sent[0].contains(&format!("/secrets/S1/{VERSION}?")), "{sent:?}");
    assert_eq!(bundle.content_type.as_deref(), Some("text/plain"));
    assert_eq!(bundle.expires_on, Timestamp::from_second(1_800_000_000).ok());
}

#[tokio::test]
async fn a_certificate_is_the_secret_of_its_own_version() {
    let sid = format!("https://{HOST}/secrets/c1/{VERSION}");
    let certificate_found = json!({"id": format!("https://{HOST}/certificates/c1/{VERSION}"), "kid": format!("https://{HOST}/keys/c1/{VERSION}"),
        "sid": sid, "x5t": "fLi3U52HunIVNXubkEnf8tP6Wbo", "cer": "eA==", "attributes": {"enabled": true, "created": 1, "updated": 1}});
    let key = json!({"value": "cGZ4", "id": sid, "contentType": "application/x-pkcs12", "managed": true, "attributes": {"enabled": true, "exp": 1_800_000_000}});
    let script = |certificate_found: &Value, key: &Value| {
        vec![challenge(CHALLENGE), answer(200, certificate_found), challenge(CHALLENGE), answer(200, key)]
    };
    let (bundle, sent) = read(script(&certificate_found, &key), &certificate("c1")).await;
    let bundle = bundle.unwrap();
    // Base64 of the file, as vaults keep it.
    assert_eq!((text(&bundle), &*bundle.version), ("pfx", VERSION));
    assert_eq!(bundle.origin(), format!("Key Vault {HOST}, certificate 'c1', version {VERSION}"));
    let paths: Vec<_> = sent.iter().map(|line| line.split(['?', ' ']).nth(1).unwrap().to_owned()).collect();
    let (first, second) = (format!("https://{HOST}/certificates/c1/"), format!("https://{HOST}/secrets/c1/{VERSION}"));
    assert_eq!(paths, [&*first, &*first, &*second, &*second]);

    let with = |name: &str, value: Value| {
        let mut body = certificate_found.clone();
        body[name] = value;
        body
    };
    let of = async |body: Value| read(script(&body, &key), &certificate("c1")).await.0.unwrap_err();
    assert!(matches!(of(with("attributes", json!({"enabled": false}))).await, Error::Disabled { .. }));
    assert!(matches!(of(with("sid", Value::Null)).await, Error::NotIssued { .. }));
    assert!(matches!(
        of(with("policy", json!({"key_props": {"exportable": false}}))).await,
        Error::NotExportable { .. }
    ));
    for other in [
        format!("https://{HOST}/secrets/other/{VERSION}"),
        format!("https://{HOST}/certificates/c1/{VERSION}"),
        format!("https://{HOST}/secrets/c1/../other"),
        format!("https://{HOST}/secrets/c1"),
        "x".to_owned(),
    ] {
        assert!(matches!(of(with("sid", other.clone().into())).await, Error::Malformed { .. }), "{other}");
    }
    // A name that the vault spells otherwise is the same name.
    let (bundle, _) = read(script(&certificate_found, &key), &certificate("C1")).await;
    assert_eq!(text(&bundle.unwrap()), "pfx");
    // Not what it says it is: said without saying it.
    let mut broken = key.clone();
    broken["value"] = json!("s3cr3t!");
    let error = read(script(&certificate_found, &broken), &certificate("c1")).await.0.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }) && !error.to_string().contains("s3cr3t"), "{error}");
}

#[tokio::test]
async fn nothing_is_asked_of_hosts_and_names_that_are_not_allowed() {
    let script = Script::default();
    let giving = Giving::new("t0ken");
    for (url, name, asked_version) in [
        ("https://evil.example", "s1", None),
        ("https://myvault.vault.azure.net.evil.example", "s1", None),
        ("http://myvault.vault.azure.net", "s1", None),
        ("https://myvault.vault.azure.net", "../s1", None),
        ("https://myvault.vault.azure.net", "s1?x=", None),
        ("https://myvault.vault.azure.net", "", None),
        ("https://myvault.vault.azure.net", "s1", Some("../../keys/x")),
        ("https://myvault.vault.azure.net", "s1", Some("")),
    ] {
        for object in [VaultObject::Secret(name.into()), VaultObject::Certificate(name.into())] {
            let version = asked_version.map(Into::into);
            let reference = VaultRef { url: url.into(), object, version, identity: "reader".into() };
            let error = giving.read(&script.reader(), &reference).await.unwrap_err();
            assert!(matches!(error, Error::HostNotAllowed { .. } | Error::Url { .. } | Error::Name { .. }), "{error}");
        }
    }
    assert_eq!((giving.asked(), script.sent().len()), (0, 0));
}

#[tokio::test]
async fn a_challenge_moves_nothing() {
    // Not Key Vault's resource: no token is asked for.
    for header in [
        r#"Bearer authorization="https://login.microsoftonline.com/t", resource="https://management.azure.com""#,
        r#"Bearer authorization="https://login.microsoftonline.com/t", resource="https://evil.example""#,
        r#"Bearer authorization="https://login.microsoftonline.com/t", resource="https://azure.net""#,
        r#"Bearer resource="https://vault.azure.net", scope="https://graph.microsoft.com/.default""#,
        r#"Bearer authorization="https://login.microsoftonline.com/t""#,
        r#"Bearer xscope="https://graph.microsoft.com/.default""#,
        r#"Negotiate resource="https://vault.azure.net""#,
        "",
    ] {
        let script = Script::new([challenge(header)]);
        let giving = Giving::new("t0ken");
        let error = giving.read(&script.reader(), &secret("s1")).await.unwrap_err();
        assert!(matches!(error, Error::Challenge { .. }), "{header}: {error}");
        assert_eq!((giving.asked(), script.sent().len()), (0, 1), "{header}");
    }
    // Another authority: whoever reads gets the token where it always does, and it goes to the vault.
    let elsewhere = r#"Bearer authorization="https://evil.example/t", resource="https://vault.azure.net""#;
    let (bundle, sent) = read(vec![challenge(elsewhere), answer(200, &found("x"))], &secret("s1")).await;
    bundle.unwrap();
    assert!(sent.iter().all(|line| line.starts_with(&format!("GET https://{HOST}/"))), "{sent:?}");
}

#[tokio::test]
async fn a_token_goes_nowhere_else() {
    let moved = Response::builder().status(302).header("location", "https://evil.example/").body(Vec::new()).unwrap();
    let script = Script::new([challenge(CHALLENGE), Ok(moved)]);
    let error = Giving::new("t0ken").read(&script.reader(), &secret("s1")).await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
    assert_eq!(script.sent().len(), 2);
    // Challenged again: the token was refused, and is not sent a second time.
    let script = Script::new([challenge(CHALLENGE), challenge(r#"Bearer resource="https://evil.example""#)]);
    let error = Giving::new("t0ken").read(&script.reader(), &secret("s1")).await.unwrap_err();
    let said = error.to_string();
    assert!(matches!(error, Error::TokenRefused { .. }), "{said}");
    assert!(said.contains("AKV10000") && said.contains("the vault's own tenant (11111111-"), "{said}");
    assert_eq!(script.sent().len(), 2);
}

#[tokio::test]
async fn without_a_token_there_is_a_reason() {
    let script = Script::new([challenge(CHALLENGE)]);
    let read = script.reader();
    let reference = secret("s1");
    let failing = read.read(&reference, async |_| {
        Err(TokenError::Unavailable { message: "no way".to_owned(), retry_after: Duration::from_secs(9) })
    });
    let error = failing.await.unwrap_err();
    assert!(error.to_string().contains("AzureIdentity 'reader'") && error.to_string().contains("no way"), "{error}");
    assert_eq!((error.is_transient(), error.retry_after()), (true, Some(Duration::from_secs(9))));
}

#[tokio::test]
async fn answers_that_are_none() {
    let secret_ = "hunter2";
    for body in [
        json!({"value": {"hunter2": 1}}),
        json!([secret_]),
        json!({"id": format!("https://{HOST}/secrets/s1/{VERSION}")}),
        json!({"value": secret_}),
        json!({"value": secret_, "id": format!("https://{HOST}/secrets/other/{VERSION}")}),
        json!({"value": secret_, "id": format!("https://{HOST}/secrets/s1")}),
        json!({"value": secret_, "id": format!("https://{HOST}/secrets/s1/a/b")}),
        json!({"value": secret_, "id": format!("https://{HOST}/secrets/s1/{VERSION}"), "attributes": {"exp": secret_}}),
    ] {
        let error = after(answer(200, &body)).await;
        assert!(matches!(error, Error::Malformed { .. }), "{body}: {error}");
        assert!(!format!("{error} {error:?}").contains(secret_), "{error:?}");
    }
    let plain = Response::builder().status(200).body(b"hunter2".to_vec()).unwrap();
    let error = after(Ok(plain)).await;
    assert!(matches!(&error, Error::Malformed { .. }) && !error.to_string().contains(secret_), "{error}");
    // Another version than the one that is pinned.
    let pinned = version(secret("s1"), "ffffffffffffffffffffffffffffffff");
    let (error, _) = read(vec![challenge(CHALLENGE), answer(200, &found(secret_))], &pinned).await;
    assert!(matches!(error, Err(Error::Malformed { .. })));
    let mut disabled = found(secret_);
    disabled["attributes"]["enabled"] = json!(false);
    assert!(matches!(after(answer(200, &disabled)).await, Error::Disabled { .. }));
}

#[tokio::test(start_paused = true)]
async fn only_what_passes_is_tried_again_and_once() {
    let away = || Err(TransportError::Timeout { host: HOST.to_owned(), seconds: 5 });
    let (bundle, sent) = read(vec![away(), challenge(CHALLENGE), answer(200, &found("x"))], &secret("s1")).await;
    assert_eq!((text(&bundle.unwrap()), sent.len()), ("x", 3));
    let (error, sent) = read(vec![away(), answer(500, &json!({}))], &secret("s1")).await;
    assert!(matches!(error, Err(Error::Unavailable { .. })));
    assert_eq!(sent.len(), 2);
    let throttled = Response::builder().status(429).header("retry-after", "7").body(Vec::new()).unwrap();
    let (error, sent) = read(vec![challenge(CHALLENGE), Ok(throttled)], &secret("s1")).await;
    assert_eq!((error.unwrap_err().retry_after(), sent.len()), (Some(Duration::from_secs(7)), 2));
    let no_name = TransportError::Connect {
        host: HOST.to_owned(),
        reason: "failed to lookup address information: Name or service not known".to_owned(),
    };
    let (error, sent) = read(vec![Err(no_name)], &secret("s1")).await;
    assert!(matches!(error, Err(Error::NameNotResolvable { .. })));
    assert_eq!(sent.len(), 1);
}

/// Never answers.
struct Silent;

impl Exchange for Silent {
    fn send(&self, _: Request<Vec<u8>>) -> BoxFuture<'_, Answer> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test(start_paused = true)]
async fn a_reading_ends() {
    let begun = tokio::time::Instant::now();
    let reader = Reader::with(Arc::new(Silent), VaultSuffixes::default());
    let error = Giving::new("t").read(&reader, &secret("s1")).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert_eq!(begun.elapsed().as_secs(), 30);
    // Also when it is the token that does not come.
    let script = Script::new([challenge(CHALLENGE)]);
    let (reader, reference) = (script.reader(), secret("s1"));
    let waiting = reader.read(&reference, async |_| std::future::pending::<Result<SecretString, TokenError>>().await);
    assert!(matches!(waiting.await, Err(Error::Unavailable { .. })));
}
