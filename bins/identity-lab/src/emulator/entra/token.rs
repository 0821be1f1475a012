//! The token endpoints: client credentials with a secret or a signed assertion.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::StatusCode;
use serde_json::json;
use uuid::Uuid;

use super::{
    Entra,
    assertion::{self, Expected},
    discovery::ANY_TENANT,
    error::{Refusal, dressed},
    federated,
};
use crate::emulator::{
    directory::{Known, KnownApplication, SecretCheck},
    http::{Call, Pairs, Reply},
    signer::Proof,
};

const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// Grants that the real service offers and this one does not.
const OTHER_GRANTS: [&str; 6] = [
    "authorization_code",
    "refresh_token",
    "password",
    "urn:ietf:params:oauth:grant-type:device_code",
    "urn:ietf:params:oauth:grant-type:jwt-bearer",
    "urn:ietf:params:oauth:grant-type:saml2-bearer",
];
/// Assertions remembered; more than any test sends within the minutes for which one is.
const REMEMBERED: usize = 100_000;

/// The protocol version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    V1,
    V2,
}

/// What a request authenticates with.
struct Credentials {
    client_id: String,
    secret: Option<String>,
}

impl Entra {
    /// `POST /{tenant}/oauth2/v2.0/token` and `POST /{tenant}/oauth2/token`.
    pub(super) async fn token(&self, call: &Call, name: &str, endpoint: Endpoint) -> Result<Reply, Refusal> {
        if ANY_TENANT.contains(&name) {
            return Err(Refusal::NotEmulated(format!("a token from the tenant-independent endpoint /{name}")));
        }
        let known = self.shared.known();
        let tenant = known.tenant(name).ok_or_else(|| Refusal::tenant(name))?;
        // A body that is not a form has no parameters, so the first one is missing.
        let form = call.form.as_ref().ok_or_else(|| Refusal::missing("grant_type"))?;
        if let Some(duplicate) = form.duplicate() {
            let message = format!("The request is not properly formatted. The parameter '{duplicate}' is duplicated.");
            return Err(Refusal::invalid_request(9_000_411, message));
        }
        match form.get("grant_type").ok_or_else(|| Refusal::missing("grant_type"))? {
            "client_credentials" => {}
            grant if OTHER_GRANTS.contains(&grant) => {
                return Err(Refusal::NotEmulated(format!("grant_type={grant}")));
            }
            grant => return Err(Refusal::unsupported_grant(grant)),
        }
        let credentials = credentials(call, form)?;
        let audience = match endpoint {
            Endpoint::V2 => audience(form.get("scope").ok_or_else(|| Refusal::missing("scope"))?)?,
            Endpoint::V1 => form.get("resource").ok_or_else(|| Refusal::missing("resource"))?,
        };
        let application = tenant
            .application(&credentials.client_id)
            .ok_or_else(|| Refusal::application(&credentials.client_id, &tenant.id))?;
        let named = (name, tenant.id.as_str());
        let proof = self.authenticate(call, form, &credentials, application, &known, named).await?;
        if !known.knows_resource(audience) {
            return Err(Refusal::resource(audience, &tenant.id));
        }
        let lifetime = self.config.token_lifetime_seconds;
        let issued = self
            .shared
            .signer
            .issue(&application.principal, audience, proof, lifetime, call.received)
            .map_err(|error| Refusal::server(&format!("cannot sign: {error}")))?;
        let mut body = match endpoint {
            Endpoint::V2 => json!({
                "token_type": "Bearer",
                "expires_in": lifetime,
                "ext_expires_in": lifetime,
                "access_token": issued.token,
            }),
            // Here everything is a string.
            Endpoint::V1 => json!({
                "token_type": "Bearer",
                "expires_in": lifetime.to_string(),
                "ext_expires_in": lifetime.to_string(),
                "expires_on": issued.expires_on.to_string(),
                "not_before": issued.not_before.to_string(),
                "resource": audience,
                "access_token": issued.token,
            }),
        };
        if let Some(refresh_in) = self.config.refresh_in_seconds {
            body["refresh_in"] = match endpoint {
                Endpoint::V2 => refresh_in.into(),
                Endpoint::V1 => refresh_in.to_string().into(),
            };
        }
        Ok(dressed(Reply::json(StatusCode::OK, &body), Uuid::new_v4()))
    }

    async fn authenticate(
        &self,
        call: &Call,
        form: &Pairs,
        credentials: &Credentials,
        application: &KnownApplication,
        known: &Known,
        (tenant_name, tenant_id): (&str, &str),
    ) -> Result<Proof, Refusal> {
        let client_id = &application.principal.client_id;
        match (&credentials.secret, form.get("client_assertion")) {
            (None, None) => Err(Refusal::invalid_client(
                7_000_218,
                "The request body must contain the following parameter: 'client_assertion' or 'client_secret'.",
            )),
            // What the real service makes of it is not documented.
            (Some(_), Some(_)) => {
                Err(Refusal::NotEmulated("a client secret together with client_assertion".to_owned()))
            }
            (Some(secret), None) => match application.check_secret(secret, call.received) {
                SecretCheck::Right => Ok(Proof::Secret),
                SecretCheck::Expired => Err(Refusal::invalid_client(
                    7_000_222,
                    format!(
                        "The provided client secret keys for app '{client_id}' are expired. Visit the Azure portal to create \
                         new keys for your app: https://aka.ms/NewClientSecret, or consider using certificate credentials for \
                         added security: https://aka.ms/certCreds."
                    ),
                )),
                SecretCheck::Wrong => Err(Refusal::invalid_client(
                    7_000_215,
                    format!(
                        "Invalid client secret provided. Ensure the secret being sent in the request is the client secret \
                         value, not the client secret ID, for a secret added to app '{client_id}'."
                    ),
                )),
            },
            (None, Some(assertion)) => {
                match form.get("client_assertion_type").ok_or_else(|| Refusal::missing("client_assertion_type"))? {
                    ASSERTION_TYPE => {}
                    other => return Err(Refusal::NotEmulated(format!("client_assertion_type={other}"))),
                }
                if let Some(presented) = federated::presented(assertion, client_id) {
                    self.federated(assertion, &presented, application, known, call.received).await?;
                    return Ok(Proof::Certificate);
                }
                let paths = call.path.split_once(tenant_name).map(|(_, rest)| rest).unwrap_or_default();
                let audiences = [tenant_name, tenant_id].map(|tenant| format!("https://{}/{tenant}{paths}", call.host));
                let expected = Expected { client_id, audiences: &audiences, now: call.received.as_second() };
                let verified = assertion::verify(assertion, &expected, application)?;
                if !self.config.accept_replayed_assertions {
                    self.remember(client_id, verified, call.received.as_second())?;
                }
                Ok(Proof::Certificate)
            }
        }
    }

    /// Refuses an assertion that was used before (RFC 7523 §3, item 7).
    fn remember(&self, client_id: &str, verified: assertion::Verified, now: i64) -> Result<(), Refusal> {
        let mut seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        seen.retain(|_, forget| *forget > now);
        if seen.len() >= REMEMBERED {
            return Err(Refusal::server("too many assertions at a time for the emulator"));
        }
        if seen.insert((client_id.to_owned(), verified.jti), verified.stale_from).is_some() {
            return Err(Refusal::invalid_client(
                50_013,
                "Assertion failed validation: an assertion with this 'jti' was used before.",
            ));
        }
        Ok(())
    }
}

/// The client id and secret, in the body or in an `Authorization` header (RFC 6749 §2.3.1).
fn credentials(call: &Call, form: &Pairs) -> Result<Credentials, Refusal> {
    let Some(header) = call.headers.get(http::header::AUTHORIZATION) else {
        return Ok(Credentials {
            client_id: form.get("client_id").ok_or_else(|| Refusal::missing("client_id"))?.to_owned(),
            secret: form.get("client_secret").map(str::to_owned),
        });
    };
    let malformed = || Refusal::invalid_request(90_013, "The 'Authorization' header is malformed.");
    let decoded = header
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"))
        .and_then(|(_, encoded)| STANDARD.decode(encoded.trim()).ok())
        .and_then(|decoded| String::from_utf8(decoded).ok())
        .ok_or_else(malformed)?;
    let (id, secret) = decoded.split_once(':').ok_or_else(malformed)?;
    // Each part is form-encoded on its own.
    let decode = |part: &str| Pairs::parse(format!("v={part}").as_bytes()).get("v").map(str::to_owned);
    let client_id = decode(id).ok_or_else(malformed)?;
    if form.get("client_id").is_some_and(|other| !other.eq_ignore_ascii_case(&client_id))
        || form.get("client_secret").is_some()
    {
        let message = "The request has client credentials in the 'Authorization' header and others in the body.";
        return Err(Refusal::invalid_request(90_013, message));
    }
    Ok(Credentials { client_id, secret: decode(secret) })
}

/// The resource that a scope means: what is left without `/.default`, a trailing slash included.
fn audience(scope: &str) -> Result<&str, Refusal> {
    scope
        .strip_suffix("/.default")
        .filter(|resource| !resource.is_empty() && !resource.contains(char::is_whitespace))
        .ok_or_else(|| Refusal::scope(scope))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_audience_is_the_scope_without_default() {
        for (scope, expected) in [
            ("https://vault.azure.net/.default", Some("https://vault.azure.net")),
            ("https://vault.azure.net//.default", Some("https://vault.azure.net/")),
            ("api://app/.default", Some("api://app")),
            ("https://vault.azure.net", None),
            ("https://vault.azure.net/.default ", None),
            ("https://a/.default https://b/.default", None),
            ("openid https://a/.default", None),
            ("/.default", None),
            (".default", None),
        ] {
            assert_eq!(audience(scope).ok(), expected, "{scope}");
        }
    }
}
