//! The transport under Microsoft's clients: this project's own, and it lets nothing leave but what is meant to.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use azure_core::{
    credentials::{AccessToken, Secret, TokenCredential, TokenRequestOptions},
    error::ErrorKind,
    http::{AsyncRawResponse, HttpClient, Method, Request, StatusCode, headers::Headers},
    time::{Duration, OffsetDateTime},
};
use futures::future::BoxFuture;
use http::{
    HeaderValue,
    header::{AUTHORIZATION, WWW_AUTHENTICATE},
};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{mpsc, oneshot};

use super::{Error, answer::Reading, challenge::Challenge, suffixes::Vault};
use crate::upstream::http::{Clients, TransportError};

/// Sends one request over TLS. Bounded in time, and the answer in size.
pub(super) trait Exchange: Send + Sync + 'static {
    fn send(&self, request: http::Request<Vec<u8>>) -> BoxFuture<'_, Result<http::Response<Vec<u8>>, TransportError>>;
}

impl Exchange for Clients {
    fn send(&self, request: http::Request<Vec<u8>>) -> BoxFuture<'_, Result<http::Response<Vec<u8>>, TransportError>> {
        Box::pin(self.tls(request))
    }
}

/// For one reading: knows where it may go, and keeps why it failed.
pub(super) struct Guard {
    exchange: Arc<dyn Exchange>,
    vault: Vault,
    reading: Reading,
    /// Why it failed: Microsoft's errors have no room for it.
    fault: Mutex<Option<Error>>,
    /// The tenant that the vault's challenge named.
    tenant: Mutex<Option<String>>,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("vault", &self.vault).finish_non_exhaustive()
    }
}

impl Guard {
    pub(super) fn new(exchange: Arc<dyn Exchange>, vault: Vault, reading: Reading) -> Self {
        Self { exchange, vault, reading, fault: Mutex::default(), tenant: Mutex::default() }
    }

    pub(super) fn reading(&self) -> &Reading {
        &self.reading
    }

    /// Why it failed, when that was here.
    pub(super) fn fault(&self) -> Option<Error> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn malformed(&self, reason: impl Into<String>) -> Error {
        Error::Malformed { host: self.vault.host.clone(), reason: reason.into() }
    }

    async fn send(&self, request: &Request) -> Result<AsyncRawResponse, Error> {
        let request = self.outgoing(request)?;
        let authorised = request.headers().contains_key(AUTHORIZATION);
        let answer = self.exchange.send(request).await.map_err(|error| self.reading.unanswered(&error))?;
        let (parts, body) = answer.into_parts();
        match parts.status {
            http::StatusCode::OK => Ok(AsyncRawResponse::from_bytes(StatusCode::Ok, Headers::new(), body)),
            http::StatusCode::UNAUTHORIZED if !authorised => {
                let header = parts.headers.get(WWW_AUTHENTICATE).and_then(|value| value.to_str().ok());
                let header = self.challenge(header.unwrap_or_default())?;
                let mut headers = Headers::new();
                headers.insert("www-authenticate", header);
                Ok(AsyncRawResponse::from_bytes(StatusCode::Unauthorized, headers, Vec::new()))
            }
            status => {
                let tenant = self.tenant.lock().unwrap_or_else(PoisonError::into_inner).clone();
                Err(self.reading.refused(status, &parts.headers, &body, tenant.as_deref()))
            }
        }
    }

    /// A GET to the vault, or nothing.
    fn outgoing(&self, request: &Request) -> Result<http::Request<Vec<u8>>, Error> {
        let url = request.url();
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        let host = format!("{}{port}", url.host_str().unwrap_or_default());
        if url.scheme() != "https" || host != self.vault.host {
            return Err(self.malformed(format!("the next request would go to {host}")));
        }
        if request.method() != Method::Get || request.body().is_empty() != Some(true) {
            return Err(self.malformed("the next request would change something"));
        }
        let mut outgoing = http::Request::get(url.as_str());
        for (name, value) in request.headers().iter() {
            let mut sent = HeaderValue::from_str(value.as_str())
                .map_err(|_| self.malformed(format!("header {} cannot be sent", name.as_str())))?;
            sent.set_sensitive(name.as_str().eq_ignore_ascii_case(AUTHORIZATION.as_str()));
            outgoing = outgoing.header(name.as_str(), sent);
        }
        outgoing.body(Vec::new()).map_err(|_| self.malformed("the request cannot be sent"))
    }

    /// Looks at a challenge; what is given on has been read.
    fn challenge(&self, header: &str) -> Result<String, Error> {
        let wrong = |reason: String| Error::Challenge { host: self.vault.host.clone(), reason };
        let challenge =
            Challenge::read(header).ok_or_else(|| wrong("it is not one that Key Vault makes".to_owned()))?;
        challenge.check(&self.vault.resource).map_err(wrong)?;
        *self.tenant.lock().unwrap_or_else(PoisonError::into_inner) = challenge.tenant();
        // Whatever else it says stays here: what is asked for is what was allowed before.
        Ok(format!(r#"Bearer resource="{}""#, self.vault.resource))
    }
}

#[async_trait]
impl HttpClient for Guard {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        self.send(request).await.map_err(|error| {
            let answer = azure_core::Error::with_message(ErrorKind::Other, error.to_string());
            *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            answer
        })
    }
}

/// Gives the token, or drops the sender when there is none.
pub(super) type Asked = oneshot::Sender<SecretString>;

/// Lets whoever reads get the token: Microsoft's clients keep a credential for ever, a reading borrows.
pub(super) struct Asking {
    scope: String,
    asks: mpsc::Sender<Asked>,
}

impl Asking {
    pub(super) fn new(resource: &str, asks: mpsc::Sender<Asked>) -> Self {
        Self { scope: format!("{resource}/.default"), asks }
    }
}

impl fmt::Debug for Asking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asking").field("scope", &self.scope).finish_non_exhaustive()
    }
}

#[async_trait]
impl TokenCredential for Asking {
    async fn get_token(&self, scopes: &[&str], _: Option<TokenRequestOptions<'_>>) -> azure_core::Result<AccessToken> {
        let none = |why: &'static str| azure_core::Error::with_message(ErrorKind::Credential, why);
        if scopes != [self.scope.as_str()] {
            return Err(none("a token for another resource"));
        }
        let (answer, answered) = oneshot::channel();
        self.asks.send(answer).await.map_err(|_| none("nobody reads any more"))?;
        let token = answered.await.map_err(|_| none("no token"))?;
        // Used for the one request that waits for it: when it ends does not matter here.
        let end = OffsetDateTime::UNIX_EPOCH.saturating_add(Duration::days(100_000));
        Ok(AccessToken::new(Secret::new(token.expose_secret().to_owned()), end))
    }
}
