//! The lab's Key Vault, over TLS: only names are resolved otherwise.

use std::{io, iter, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connect, HttpConnector, dns::Name},
    },
    rt::TokioExecutor,
};
use identity_lab::emulator::{self, Config, Fault, Handle, ca, credentials};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{super::guard::Exchange, *};
use crate::{upstream::http::TransportError, vault::VaultSuffixes};

const READER: &str = "22222222-2222-2222-2222-222222222222";
const STRANGER: &str = "33333333-3333-3333-3333-333333333333";
const OTHER_TENANT: &str = "99999999-9999-9999-9999-999999999999";
const GROUP: &str = "44444444-4444-4444-4444-444444444444";

/// As the product's client, but for where names lead to.
struct Local<C>(Client<C, Full<Bytes>>);

impl<C: Connect + Clone + Send + Sync + 'static> Exchange for Local<C> {
    fn send(&self, request: Request<Vec<u8>>) -> BoxFuture<'_, Result<Response<Vec<u8>>, TransportError>> {
        let failed = |error: &dyn std::error::Error| TransportError::Exchange {
            host: HOST.to_owned(),
            reason: error.to_string(),
        };
        Box::pin(async move {
            let answer = self.0.request(request.map(|body| Full::new(Bytes::from(body)))).await;
            let (parts, body) = answer.map_err(|error| failed(&error))?.into_parts();
            let body = body.collect().await.map_err(|error| failed(&error))?.to_bytes();
            Ok(Response::from_parts(parts, body.to_vec()))
        })
    }
}

struct Lab {
    handle: Handle,
    exchange: Arc<dyn Exchange>,
    reader: Reader,
    _stop: DropGuard,
}

impl Lab {
    async fn start() -> (Self, credentials::Credential) {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let authority = ca::Authority::generate().unwrap();
        let server = authority.issue(ca::HOSTS).unwrap();
        let certificate = credentials::self_signed_rsa("demo").unwrap();
        let application = |id: &str| json!({"clientId": id, "secrets": [{"value": format!("secret of {id}")}]});
        let config: Config = serde_json::from_value(json!({
            "entra": {"listen": "127.0.0.1:0", "certificate": server.certificate_pem, "key": server.key_pem},
            "keyVault": {"retryAfterSeconds": 7},
            "directory": {
                "tenants": [
                    {"id": TENANT, "applications": [application(READER), application(STRANGER)]},
                    {"id": OTHER_TENANT, "applications": [application(STRANGER)]},
                ],
                "groups": [{"id": GROUP, "members": []}],
                "vaults": [{
                    "host": HOST, "tenantId": TENANT,
                    "secrets": [{"name": "s1", "versions": [
                        {"value": "former", "version": "00000000000000000000000000000001", "expires": "2026-01-01T00:00:00Z"},
                        {"value": "current", "version": "00000000000000000000000000000002", "contentType": "text/plain"},
                    ]}],
                    "certificates": [
                        {"name": "pfx", "versions": [{"certificate": certificate.certificate_pem, "key": certificate.key_pem}]},
                        {"name": "pem", "versions": [{"certificate": certificate.certificate_pem, "key": certificate.key_pem,
                                                      "contentType": "application/x-pem-file"}]},
                    ],
                    "access": [{"role": "Key Vault Certificate User", "principal": READER},
                               {"role": "Key Vault Secrets User", "principal": READER},
                               {"role": "Key Vault Secrets User", "principal": GROUP}],
                }],
            },
        }))
        .unwrap();
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone().drop_guard();
        let handle = emulator::run(config, shutdown).await.unwrap();
        let address = handle.entra_address().unwrap();
        let resolver =
            tower::service_fn(move |_: Name| async move { Ok::<_, io::Error>(iter::once::<SocketAddr>(address)) });
        let mut connector = HttpConnector::new_with_resolver(resolver);
        connector.enforce_http(false);
        let tls = rustls::ClientConfig::builder().with_root_certificates(authority.roots()).with_no_client_auth();
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().wrap_connector(connector);
        let exchange: Arc<dyn Exchange> = Arc::new(Local(Client::builder(TokioExecutor::new()).build(connector)));
        let reader = Reader::with(Arc::clone(&exchange), VaultSuffixes::default());
        (Self { handle, exchange, reader, _stop: stop }, certificate)
    }

    /// A token of an application, from the lab's Entra.
    async fn giving(&self, tenant: &str, client_id: &str) -> Giving {
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "client_credentials")
            .append_pair("client_id", client_id)
            .append_pair("client_secret", &format!("secret of {client_id}"))
            .append_pair("scope", "https://vault.azure.net/.default")
            .finish();
        let request = Request::post(format!("https://login.microsoftonline.com/{tenant}/oauth2/v2.0/token"))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form.into_bytes())
            .unwrap();
        let answer: Value = serde_json::from_slice(self.exchange.send(request).await.unwrap().body()).unwrap();
        Giving::new(answer["access_token"].as_str().unwrap_or_else(|| panic!("{answer}")))
    }

    fn change(&self, change: Value) {
        self.handle.change(&serde_json::from_value(change).unwrap()).unwrap();
    }
}

#[tokio::test]
async fn secrets_and_their_versions() {
    let (lab, _) = Lab::start().await;
    let giving = lab.giving(TENANT, READER).await;
    let now: Timestamp = "2026-06-01T00:00:00Z".parse().unwrap();
    let current = giving.read(&lab.reader, &secret("s1")).await.unwrap();
    assert_eq!((text(&current), &*current.version), ("current", "00000000000000000000000000000002"));
    assert_eq!(current.expires_on, None);
    let former = version(secret("s1"), "00000000000000000000000000000001");
    let former = giving.read(&lab.reader, &former).await.unwrap();
    assert_eq!(text(&former), "former");
    assert!(former.expires_on.is_some_and(|end| end < now), "a vault hands it out all the same: {former:?}");
    assert_eq!(giving.asked(), 2);
    lab.change(json!({"setSecret": {"vault": HOST, "name": "s1", "version": {"value": "next"}}}));
    let next = giving.read(&lab.reader, &secret("s1")).await.unwrap();
    assert_eq!(text(&next), "next");
    assert_ne!(next.version, current.version);
}

#[tokio::test]
async fn certificates_with_their_keys() {
    let (lab, certificate_) = Lab::start().await;
    let giving = lab.giving(TENANT, READER).await;
    let pfx = giving.read(&lab.reader, &certificate("pfx")).await.unwrap();
    assert_eq!(pfx.content_type.as_deref(), Some("application/x-pkcs12"));
    // DER: a sequence.
    assert_eq!(pfx.value.expose_secret()[0], 0x30);
    assert!(pfx.expires_on.is_some());
    let pem = giving.read(&lab.reader, &certificate("pem")).await.unwrap();
    assert!(text(&pem).contains(&certificate_.certificate_pem) && text(&pem).contains("PRIVATE KEY"));
    let pinned = giving.read(&lab.reader, &version(certificate("pfx"), &pfx.version)).await.unwrap();
    assert_eq!(pinned.version, pfx.version);
    lab.change(json!({"enableVersion": {"vault": HOST, "name": "pfx", "enabled": false}}));
    let error = giving.read(&lab.reader, &certificate("pfx")).await.unwrap_err();
    assert!(matches!(error, Error::Disabled { .. }), "{error}");
}

#[tokio::test]
async fn what_is_wrong_is_said_with_what_to_do() {
    let (lab, _) = Lab::start().await;
    let giving = lab.giving(TENANT, READER).await;
    let of = async |reference: &VaultRef| giving.read(&lab.reader, reference).await.unwrap_err();
    let mut said = vec![
        of(&secret("nowhere")).await,
        of(&version(secret("s1"), "ffffffffffffffffffffffffffffffff")).await,
        of(&certificate("nowhere")).await,
    ];
    let stranger = lab.giving(TENANT, STRANGER).await;
    said.push(stranger.read(&lab.reader, &secret("s1")).await.unwrap_err());
    said.push(stranger.read(&lab.reader, &certificate("pfx")).await.unwrap_err());
    let foreigner = lab.giving(OTHER_TENANT, STRANGER).await;
    said.push(foreigner.read(&lab.reader, &secret("s1")).await.unwrap_err());
    assert!(matches!(said[5], Error::TokenRefused { .. }), "{}", said[5]);
    lab.change(json!({"enableVersion": {"vault": HOST, "name": "s1", "enabled": false}}));
    said.push(of(&secret("s1")).await);
    lab.change(json!({"delete": {"vault": HOST, "name": "s1"}}));
    said.push(of(&secret("s1")).await);
    lab.handle.set_fault(Fault::Vault429, true);
    said.push(of(&secret("s1")).await);
    assert_eq!(said.last().unwrap().retry_after(), Some(Duration::from_secs(7)));
    lab.handle.set_fault(Fault::Vault429, false);
    lab.handle.set_fault(Fault::Vault503, true);
    said.push(of(&secret("s1")).await);
    // Object ids are made anew in each run.
    let text: Vec<_> = said.iter().map(|error| format!("{}: {error}", error.reason())).collect();
    let text = regexless(&text.join("\n"));
    insta::assert_snapshot!(text);
    assert!(!text.contains(&giving.token) && !text.contains(&stranger.token));
}

/// Without the object id.
fn regexless(text: &str) -> String {
    let parts: Vec<_> = text.split(", object ").collect();
    let cut = |(n, part): (usize, &&str)| if n == 0 { (*part).to_owned() } else { format!("ID{}", &part[36..]) };
    parts.iter().enumerate().map(cut).collect::<Vec<_>>().join(", object ")
}

#[tokio::test]
async fn a_role_by_group_will_do() {
    let (lab, _) = Lab::start().await;
    let read = async || lab.giving(TENANT, STRANGER).await.read(&lab.reader, &secret("s1")).await;
    assert!(matches!(read().await, Err(Error::Forbidden { .. })));
    lab.change(json!({"addMember": {"group": GROUP, "member": STRANGER}}));
    assert_eq!(text(&read().await.unwrap()), "current");
    lab.change(json!({"removeMember": {"group": GROUP, "member": STRANGER}}));
    assert!(matches!(read().await, Err(Error::Forbidden { .. })));
}

#[tokio::test]
async fn certificates_of_others_are_not_trusted() {
    let (lab, _) = Lab::start().await;
    // The product's own client, which trusts another authority: not a byte of a request gets through.
    let tls = rustls::ClientConfig::builder()
        .with_root_certificates(ca::Authority::generate().unwrap().roots())
        .with_no_client_auth();
    let port = lab.handle.entra_address().unwrap().port();
    let suffixes = VaultSuffixes::new([format!("0.0.1:{port}")]);
    let reader = Reader::new(tls, Duration::from_secs(5), suffixes);
    lab.handle.reset_counts();
    let reference = VaultRef { url: format!("https://127.0.0.1:{port}").into(), ..secret("s1") };
    let giving = Giving::new("t0ken");
    let error = giving.read(&reader, &reference).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert_eq!((giving.asked(), lab.handle.requests().len()), (0, 0));
}

/// What is logged.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn nothing_secret_is_logged() {
    let (lab, _) = Lab::start().await;
    let giving = lab.giving(TENANT, READER).await;
    let stranger = lab.giving(TENANT, STRANGER).await;
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    giving.read(&lab.reader, &secret("s1")).await.unwrap();
    giving.read(&lab.reader, &certificate("pem")).await.unwrap();
    stranger.read(&lab.reader, &secret("s1")).await.unwrap_err();
    drop(guard);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    // Microsoft's clients, and what is below, do log.
    assert!(text.contains("/secrets/s1/") && text.contains("TRACE"), "{text}");
    let mut secrets = vec!["current", "PRIVATE KEY"];
    for token in [&giving.token, &stranger.token] {
        secrets.extend(token.split('.').skip(1));
    }
    for secret in secrets {
        assert!(!text.contains(secret), "{secret} is in:\n{text}");
    }
}
