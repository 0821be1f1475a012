//! What clients look up before they ask for a token: OpenID configuration, instances, keys.

use http::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Entra,
    error::{Refusal, dressed},
    token::Endpoint,
};
use crate::emulator::http::{Call, Reply};

/// Names that stand for any tenant.
pub(super) const ANY_TENANT: [&str; 3] = ["common", "organizations", "consumers"];

/// Each cloud: the host to ask, and the names that mean the same.
const CLOUDS: [(&str, &str, &[&str]); 3] = [
    (
        "login.microsoftonline.com",
        "login.windows.net",
        &["login.microsoftonline.com", "login.windows.net", "login.microsoft.com", "sts.windows.net"],
    ),
    (
        "login.partner.microsoftonline.cn",
        "login.partner.microsoftonline.cn",
        &["login.partner.microsoftonline.cn", "login.chinacloudapi.cn"],
    ),
    ("login.microsoftonline.us", "login.microsoftonline.us", &["login.microsoftonline.us", "login.usgovcloudapi.net"]),
];

impl Entra {
    /// `{tenant}` as it stands in issuers.
    fn issuer_tenant(&self, name: &str) -> Result<String, Refusal> {
        if ANY_TENANT.contains(&name) {
            return Ok("{tenantid}".to_owned());
        }
        let known = self.shared.known();
        known.tenant(name).map(|tenant| tenant.id.clone()).ok_or_else(|| match Refusal::tenant(name) {
            // The discovery endpoints have a word of their own for it.
            Refusal::Entra(error) => Refusal::Entra(super::error::EntraError { error: "invalid_tenant", ..error }),
            other @ Refusal::NotEmulated(_) => other,
        })
    }

    /// OpenID Connect Discovery 1.0.
    pub(super) fn configuration(&self, call: &Call, name: &str, endpoint: Endpoint) -> Result<Reply, Refusal> {
        let tenant = self.issuer_tenant(name)?;
        let base = format!("https://{}/{name}", call.host);
        let (oauth2, keys, issuer) = match endpoint {
            Endpoint::V2 => {
                (format!("{base}/oauth2/v2.0"), "v2.0/keys", format!("https://login.microsoftonline.com/{tenant}/v2.0"))
            }
            Endpoint::V1 => (format!("{base}/oauth2"), "keys", format!("https://sts.windows.net/{tenant}/")),
        };
        Ok(answer(&json!({
            "token_endpoint": format!("{oauth2}/token"),
            "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt", "client_secret_basic"],
            "jwks_uri": format!("{base}/discovery/{keys}"),
            "response_modes_supported": ["query", "fragment", "form_post"],
            "subject_types_supported": ["pairwise"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "response_types_supported": ["code", "id_token", "code id_token", "id_token token"],
            "scopes_supported": ["openid", "profile", "email", "offline_access"],
            "issuer": issuer,
            "request_uri_parameter_supported": false,
            "authorization_endpoint": format!("{oauth2}/authorize"),
            "device_authorization_endpoint": format!("{oauth2}/devicecode"),
            "http_logout_supported": true,
            "claims_supported": [
                "sub", "iss", "cloud_instance_name", "aud", "exp", "iat", "auth_time", "acr", "nonce", "preferred_username",
                "name", "tid", "ver", "at_hash", "c_hash", "email",
            ],
            "tenant_region_scope": "EU",
            "cloud_instance_name": "microsoftonline.com",
        })))
    }

    /// The key set. The keys are the same for all tenants.
    pub(super) fn keys(&self, call: &Call, name: &str) -> Result<Reply, Refusal> {
        let tenant = self.issuer_tenant(name)?;
        let issuer = call.path.contains("/v2.0/").then(|| format!("https://login.microsoftonline.com/{tenant}/v2.0"));
        Ok(answer(&self.shared.signer.jwks(issuer.as_deref())))
    }
}

/// `GET /common/discovery/instance?api-version=1.1&authorization_endpoint=https://{host}/{tenant}/oauth2/v2.0/authorize`
pub(super) fn instance(call: &Call) -> Result<Reply, Refusal> {
    let version = call.query.get("api-version").ok_or_else(|| Refusal::missing("api-version"))?;
    if !matches!(version, "1.0" | "1.1") {
        return Err(Refusal::NotEmulated(format!("instance discovery with api-version {version}")));
    }
    let endpoint =
        call.query.get("authorization_endpoint").ok_or_else(|| Refusal::missing("authorization_endpoint"))?;
    let (host, tenant) = endpoint
        .strip_prefix("https://")
        .and_then(|rest| rest.split_once('/'))
        .map(|(host, path)| (host.to_ascii_lowercase(), path.split('/').next().unwrap_or_default()))
        .ok_or_else(|| Refusal::instance(endpoint))?;
    if !CLOUDS.iter().any(|(_, _, aliases)| aliases.contains(&host.as_str())) {
        return Err(Refusal::instance(endpoint));
    }
    let metadata: Vec<Value> = CLOUDS
        .iter()
        .map(|(network, cache, aliases)| {
            json!({"preferred_network": network, "preferred_cache": cache, "aliases": aliases})
        })
        .collect();
    Ok(answer(&json!({
        "tenant_discovery_endpoint": format!("https://{host}/{tenant}/v2.0/.well-known/openid-configuration"),
        "api-version": "1.1",
        "metadata": metadata,
    })))
}

fn answer(body: &Value) -> Reply {
    dressed(Reply::json(StatusCode::OK, body), Uuid::new_v4())
}
