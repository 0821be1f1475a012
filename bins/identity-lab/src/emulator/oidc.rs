//! OpenID Connect issuers: fetches their keys, and plays those whose keys it was given.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use jsonwebtoken::jwk::JwkSet;
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{
    config::{Issuer, IssuerServer},
    http::{Call, Reply},
};

/// For one request to an issuer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The largest answer that is read.
const LARGEST: usize = 1024 * 1024;
/// Where keys are: kube-apiserver's place for them.
const KEYS: &str = "/openid/v1/jwks";
const DISCOVERY: &str = "/.well-known/openid-configuration";

/// An issuer's keys, from its own server unless they were given.
pub(super) async fn keys(issuer: &Issuer) -> Result<JwkSet, String> {
    let keys = match (&issuer.jwks, &issuer.server) {
        (Some(keys), _) => keys.clone(),
        (None, None) => return Err("neither its keys nor its server are known".to_owned()),
        (None, Some(server)) => {
            let url = issuer.issuer.trim_end_matches('/');
            let (host, path) = split(url).ok_or_else(|| format!("{url} is no https URL"))?;
            let configuration = get(server, host, &format!("{path}{DISCOVERY}")).await?;
            if configuration["issuer"] != issuer.issuer.as_str() {
                return Err(format!("its configuration is another issuer's: {}", configuration["issuer"]));
            }
            // Behind which address the server is reached is the lab's matter, so only the path counts.
            let uri = configuration["jwks_uri"].as_str().and_then(split);
            let (_, path) = uri.ok_or("its configuration has no jwks_uri")?;
            get(server, host, path).await?
        }
    };
    serde_json::from_value(keys).map_err(|error| format!("its keys cannot be read: {error}"))
}

/// Host and path of an https URL.
fn split(url: &str) -> Option<(&str, &str)> {
    let rest = url.strip_prefix("https://")?;
    let host = rest.split('/').next()?;
    let name = host.split(':').next()?;
    (!name.is_empty()).then_some((name, &rest[host.len()..]))
}

async fn get(server: &IssuerServer, host: &str, path: &str) -> Result<Value, String> {
    let exchange = async {
        let ca = server.ca.load().map_err(|error| error.to_string())?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(ca.as_bytes()).filter_map(Result::ok));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
        let tcp = TcpStream::connect(server.address).await.map_err(|error| format!("{}: {error}", server.address))?;
        let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(|error| error.to_string())?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.map_err(|error| error.to_string())?;
        let connection = tokio::spawn(connection);
        let request = Request::builder().method(Method::GET).uri(path).header("host", host).body(Empty::<Bytes>::new());
        let response = sender
            .send_request(request.map_err(|error| error.to_string())?)
            .await
            .map_err(|error| error.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST).collect().await.map_err(|error| error.to_string())?;
        connection.abort();
        if status != StatusCode::OK {
            return Err(format!("GET {path} was answered {status}"));
        }
        serde_json::from_slice(&body.to_bytes()).map_err(|error| format!("GET {path}: {error}"))
    };
    tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err(format!("GET {path} took too long")))
}

/// Answers as the issuer whose host is asked, if it is one whose keys were given.
pub(super) fn serve(issuers: &[Issuer], call: &Call) -> Option<Reply> {
    let asked = call.host_name();
    let (issuer, jwks, host) = issuers.iter().find_map(|issuer| {
        let (host, path) = split(issuer.issuer.trim_end_matches('/'))?;
        let mine = host.eq_ignore_ascii_case(&asked) && call.path.starts_with(path);
        mine.then_some((issuer, issuer.jwks.as_ref()?, host))
    })?;
    let path = split(issuer.issuer.trim_end_matches('/')).map_or("", |(_, path)| path);
    let rest = &call.path[path.len()..];
    Some(match (&call.method, rest) {
        (&Method::GET, DISCOVERY) => Reply::json(
            StatusCode::OK,
            &json!({
                "issuer": issuer.issuer,
                "jwks_uri": format!("https://{host}{path}{KEYS}"),
                "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["RS256"],
            }),
        ),
        (&Method::GET, KEYS) => Reply::json(StatusCode::OK, jwks),
        _ => Reply::text(StatusCode::NOT_FOUND, "404 page not found"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_is_a_host_and_a_path() {
        for (url, expected) in [
            ("https://a.example", Some(("a.example", ""))),
            ("https://a.example:8443/x/y", Some(("a.example", "/x/y"))),
            ("http://a.example", None),
            ("https:///x", None),
        ] {
            assert_eq!(split(url), expected, "{url}");
        }
    }
}
