//! Entra's token service: client credentials at the v2.0 and v1.0 endpoints, discovery, keys.

mod assertion;
mod discovery;
mod error;
mod federated;
mod token;

use std::{collections::HashMap, sync::Arc, sync::Mutex, time::Duration};

use http::{HeaderValue, Method, StatusCode, header};
use jsonwebtoken::jwk::JwkSet;

use self::error::Refusal;
use super::{
    Shared, behind_faults,
    config::EntraConfig,
    fault::ServiceName,
    http::{Call, Reply, Stack, service},
    oidc,
};

/// The service's state.
#[derive(Debug)]
struct Entra {
    config: EntraConfig,
    shared: Arc<Shared>,
    /// Assertions seen: client and `jti`, with the time from which on they are refused for their age anyway.
    seen: Mutex<HashMap<(String, String), i64>>,
    /// Keys of issuers that federated credentials trust.
    issuers: Mutex<HashMap<String, JwkSet>>,
}

/// The service behind its faults.
pub(super) fn stack(config: EntraConfig, shared: &Arc<Shared>) -> Stack {
    let retry_after = HeaderValue::from(config.retry_after_seconds);
    let entra =
        Arc::new(Entra { config, shared: Arc::clone(shared), seen: Mutex::default(), issuers: Mutex::default() });
    let answer = service(move |call: Call| {
        let entra = Arc::clone(&entra);
        async move {
            if entra.config.latency_ms > 0 {
                tokio::time::sleep(Duration::from_millis(entra.config.latency_ms)).await;
            }
            entra.answer(&call).await.unwrap_or_else(|refusal| refusal.reply(&call))
        }
    });
    let saying = move |status, call: &Call| match status {
        // The real one's body is plain text, too: it comes from in front of the token service.
        429 => Reply::text(StatusCode::TOO_MANY_REQUESTS, "Too Many Requests")
            .with_header(header::RETRY_AFTER, retry_after.clone()),
        _ => Refusal::unavailable().reply(call),
    };
    behind_faults(answer, ServiceName::Entra, shared, Arc::new(saying))
}

/// The text of AADSTS500011, which IMDS passes on.
pub(super) fn unknown_resource(resource: &str, tenant: &str) -> String {
    format!(
        "The resource principal named {resource} was not found in the tenant named {tenant}. This can happen if the application \
         has not been installed by the administrator of the tenant or consented to by any user in the tenant. You might have \
         sent your authentication request to the wrong tenant."
    )
}

impl Entra {
    async fn answer(&self, call: &Call) -> Result<Reply, Refusal> {
        if let Some(reply) = oidc::serve(&self.shared.known().issuers, call) {
            return Ok(reply);
        }
        let host = call.host_name();
        if host == "management.azure.com" {
            return Err(Refusal::NotEmulated(format!("{} https://{host}{}", call.method, call.path)));
        }
        let segments: Vec<&str> = call.path.split('/').skip(1).collect();
        match (&call.method, segments.as_slice()) {
            (&Method::POST, [tenant, "oauth2", "v2.0", "token"]) => self.token(call, tenant, token::Endpoint::V2).await,
            (&Method::POST, [tenant, "oauth2", "token"]) => self.token(call, tenant, token::Endpoint::V1).await,
            (method, [_, "oauth2", "v2.0", "token"] | [_, "oauth2", "token"]) => Err(Refusal::only_post(method)),
            (&Method::GET, ["common", "discovery", "instance"]) => discovery::instance(call),
            (&Method::GET, [tenant, "v2.0", ".well-known", "openid-configuration"]) => {
                self.configuration(call, tenant, token::Endpoint::V2)
            }
            (&Method::GET, [tenant, ".well-known", "openid-configuration"]) => {
                self.configuration(call, tenant, token::Endpoint::V1)
            }
            (&Method::GET, [tenant, "discovery", "v2.0", "keys"] | [tenant, "discovery", "keys"]) => {
                self.keys(call, tenant)
            }
            (method, _) => Err(Refusal::NotEmulated(format!("{method} {}", call.path))),
        }
    }
}
