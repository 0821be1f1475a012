//! `GET /metadata/identity/oauth2/token`
//! (<https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token>).

use std::sync::PoisonError;

use http::StatusCode;
use serde_json::json;
use uuid::Uuid;

use super::{FIRST_WITH_IDENTITY, Imds, api_version, error::identity};
use crate::emulator::{
    directory::{Known, Principal, same},
    entra,
    fault::ServiceName,
    http::{Call, Reply},
    signer::{Issued, Proof},
};

/// Tokens that the platform keeps for one VM.
const KEPT: usize = 1000;

impl Imds {
    pub(super) fn token(&self, call: &Call) -> Result<Reply, Reply> {
        identity::checks(call)?;
        api_version(call, FIRST_WITH_IDENTITY)?;
        if let Some(name) = call.query.duplicate() {
            return Err(identity::invalid_request(&format!("Query variable '{name}' is specified more than once")));
        }
        let resource = call
            .query
            .get("resource")
            .ok_or_else(|| identity::invalid_request("Required query variable 'resource' is missing"))?;
        for name in ["authority", "xms_cc", "claims", "token_sha256_to_refresh"] {
            if call.query.get(name).is_some() {
                return Err(Reply::not_emulated(ServiceName::Imds, &format!("a token with the parameter '{name}'")));
            }
        }
        let fresh = match call.query.get("bypass_cache") {
            None => false,
            Some("true") => true,
            Some(_) => return Err(identity::invalid_request("Query variable 'bypass_cache' must be 'true'")),
        };
        let known = self.shared.known();
        let principal = select(call, &known)?;
        if !known.knows_resource(resource) {
            let description = entra::unknown_resource(resource, &principal.tenant);
            let (trace, correlation) = (Uuid::new_v4(), Uuid::new_v4());
            return Err(identity::invalid_resource(&format!(
                "AADSTS500011: {description} Trace ID: {trace} Correlation ID: {correlation} Timestamp: {}",
                call.received.strftime("%Y-%m-%d %H:%M:%SZ")
            )));
        }
        let issued = self.issue(principal, resource, fresh, call)?;
        let remaining = (issued.expires_on - call.received.as_second()).to_string();
        let mut body = json!({
            "access_token": issued.token,
            "client_id": principal.client_id,
            "expires_in": remaining,
            "expires_on": issued.expires_on.to_string(),
            "ext_expires_in": remaining,
            "not_before": issued.not_before.to_string(),
            "resource": resource,
            "token_type": "Bearer",
        });
        if let Some(refresh_in) = self.config.refresh_in_seconds {
            body["refresh_in"] = refresh_in.to_string().into();
        }
        Ok(Reply::json(StatusCode::OK, &body))
    }

    /// A token from the platform's cache while half of its lifetime is left, else a new one.
    fn issue(&self, principal: &Principal, resource: &str, fresh: bool, call: &Call) -> Result<Issued, Reply> {
        let lifetime = self.config.token_lifetime_seconds;
        let now = call.received.as_second();
        let key = (principal.resource_id.clone().unwrap_or_default(), resource.to_owned());
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((owner, kept)) = tokens.get(&key)
            && !fresh
            // A change of its groups does not make the platform forget a token: it is seen when the token is due.
            && (Principal { groups: principal.groups.clone(), ..owner.clone() }) == *principal
            && kept.expires_on - now > i64::from(lifetime / 2)
        {
            return Ok(kept.clone());
        }
        let issued = self
            .shared
            .signer
            .issue(principal, resource, Proof::Certificate, lifetime, call.received)
            .map_err(|error| identity::server_error(&format!("cannot sign: {error}")))?;
        if tokens.len() >= KEPT && !tokens.contains_key(&key) {
            tokens.clear();
        }
        tokens.insert(key, (principal.clone(), issued.clone()));
        Ok(issued)
    }
}

/// The identity that a request means.
fn select<'a>(call: &Call, known: &'a Known) -> Result<&'a Principal, Reply> {
    let given: Vec<(&str, &str)> = ["client_id", "object_id", "msi_res_id", "mi_res_id"]
        .into_iter()
        .filter_map(|name| call.query.get(name).map(|value| (name, value)))
        .collect();
    let all = || known.managed.iter().chain(&known.system);
    match given.as_slice() {
        [] => match (&known.system, known.managed.as_slice()) {
            (Some(system), _) => Ok(system),
            (None, []) => Err(identity::unknown_identity()),
            (None, [only]) => Ok(only),
            (None, _) => Err(identity::several_identities()),
        },
        [(name, value)] => all()
            .find(|principal| match *name {
                "client_id" => same(Some(&principal.client_id), value),
                "object_id" => same(Some(&principal.object_id), value),
                _ => same(principal.resource_id.as_deref(), value),
            })
            .ok_or_else(identity::unknown_identity),
        // That they exclude each other is documented; the words are not.
        [..] => Err(identity::invalid_request(
            "Only one of the query variables 'client_id', 'object_id' and 'msi_res_id' may be specified",
        )),
    }
}
