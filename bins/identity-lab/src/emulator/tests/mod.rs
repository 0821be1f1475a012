//! The emulators over their sockets, spoken to by a plain HTTP client.

mod assertion;
mod changes;
mod entra;
mod faults;
mod federated;
mod imds;
mod keyvault;

use std::{
    net::SocketAddr,
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::JwkSet};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::{Clock, Config, Handle, ManualClock, ca::Authority, credentials::Credential, run_with_clock};

const HOST: &str = "login.microsoftonline.com";
const TENANT: &str = "11111111-1111-1111-1111-111111111111";
const CLIENT: &str = "22222222-2222-2222-2222-222222222222";
const OBJECT: &str = "33333333-3333-3333-3333-333333333333";
const SECRET: &str = "s3cr3t~value";
const TOKEN: &str = "/11111111-1111-1111-1111-111111111111/oauth2/v2.0/token";
const ONE: &str = "/subscriptions/s/resourcegroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/one";
const TWO: &str = "/subscriptions/s/resourcegroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/two";

/// Made once: an RSA key takes a moment.
static CREDENTIAL: LazyLock<Credential> =
    LazyLock::new(|| super::credentials::self_signed_rsa("registered").expect("a key can be made"));

/// Running emulators with a clock to move.
struct Lab {
    handle: Handle,
    clock: ManualClock,
    authority: Authority,
}

/// When tests begin.
fn start() -> Timestamp {
    "2026-11-24T09:00:00Z".parse().expect("a constant")
}

/// One tenant with one application, two identities on the VM.
fn directory() -> Value {
    json!({
        "tenants": [{
            "id": TENANT,
            "domains": ["contoso.example"],
            "applications": [{
                "clientId": CLIENT, "objectId": OBJECT,
                "secrets": [{"value": SECRET}, {"value": "stale", "expires": "2026-11-01T00:00:00Z"}],
                "certificates": [CREDENTIAL.certificate_pem],
            }],
        }],
        "managedIdentities": [
            {"resourceId": ONE, "clientId": "c1", "objectId": "o1", "tenantId": TENANT},
            {"resourceId": TWO, "clientId": "c2", "objectId": "o2", "tenantId": TENANT},
        ],
        "unknownResources": ["https://nowhere.example"],
    })
}

impl Lab {
    /// Entra and IMDS with [`directory`]; `change` edits the configuration before it is used.
    async fn start(change: impl FnOnce(&mut Value)) -> Self {
        let authority = Authority::generate().unwrap();
        let server = authority.issue(&[HOST]).unwrap();
        let mut config = json!({
            "entra": {"listen": "127.0.0.1:0", "certificate": server.certificate_pem, "key": server.key_pem},
            "imds": {"listen": "127.0.0.1:0"},
            "directory": directory(),
        });
        change(&mut config);
        let config: Config = serde_json::from_value(config).unwrap();
        let (clock, manual) = Clock::manual(start());
        let handle = run_with_clock(config, clock, CancellationToken::new()).await.unwrap();
        Self { handle, clock: manual, authority }
    }

    /// Sends a request to Entra.
    async fn entra(&self, method: Method, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        self.try_entra(method, path, headers, body).await.unwrap()
    }

    async fn try_entra(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<Answer, hyper::Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.authority.roots())
            .with_no_client_auth();
        let tcp = TcpStream::connect(self.handle.entra_address().unwrap()).await.unwrap();
        let name = ServerName::try_from(HOST).unwrap();
        let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
        let host = headers.iter().find(|(name, _)| *name == "host").map_or(HOST, |(_, host)| host);
        send(tls, request(method, path, host, headers, body)).await
    }

    /// Posts a form to Entra.
    async fn post(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        self.entra(Method::POST, path, &[FORM], &form(fields)).await
    }

    /// GETs from IMDS, with the `Metadata` header.
    async fn imds(&self, path: &str) -> Answer {
        self.try_imds(Method::GET, path, &[("metadata", "true")]).await.unwrap()
    }

    /// POSTs to IMDS, with the `Metadata` header.
    async fn post_imds(&self, path: &str, body: &str) -> Answer {
        let tcp = TcpStream::connect(self.imds_address()).await.unwrap();
        let headers = [("metadata", "true"), ("content-type", "application/json")];
        send(tcp, request(Method::POST, path, "169.254.169.254", &headers, body)).await.unwrap()
    }

    async fn try_imds(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Result<Answer, hyper::Error> {
        let tcp = TcpStream::connect(self.imds_address()).await.unwrap();
        send(tcp, request(method, path, "169.254.169.254", headers, "")).await
    }

    fn imds_address(&self) -> SocketAddr {
        self.handle.imds_address().unwrap()
    }

    /// Verifies a token with the keys that Entra serves; returns its claims.
    async fn verify(&self, token: &str) -> Value {
        let keys = self.entra(Method::GET, &format!("/{TENANT}/discovery/v2.0/keys"), &[], "").await;
        let keys: JwkSet = serde_json::from_slice(&keys.body).unwrap();
        let header = jsonwebtoken::decode_header(token).unwrap();
        assert_eq!((header.alg, header.typ.as_deref()), (Algorithm::RS256, Some("JWT")));
        let key = keys.find(&header.kid.unwrap()).unwrap();
        let mut validation = Validation::new(Algorithm::RS256);
        // Time is the lab's here, not the machine's.
        (validation.validate_exp, validation.validate_aud) = (false, false);
        jsonwebtoken::decode::<Value>(token, &DecodingKey::from_jwk(key).unwrap(), &validation).unwrap().claims
    }
}

const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

fn form(fields: &[(&str, &str)]) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish()
}

fn request(method: Method, path: &str, host: &str, headers: &[(&str, &str)], body: &str) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(path).header("host", host);
    for (name, value) in headers.iter().filter(|(name, _)| *name != "host") {
        request = request.header(*name, *value);
    }
    request.body(Full::new(Bytes::from(body.to_owned()))).unwrap()
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<Answer, hyper::Error> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let (head, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    drop(sender);
    let _ = connection.await;
    Ok(Answer { status: head.status, headers: head.headers, body })
}

/// A response, read completely.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        assert_eq!(self.headers["content-type"], "application/json; charset=utf-8");
        serde_json::from_slice(&self.body).unwrap()
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}
