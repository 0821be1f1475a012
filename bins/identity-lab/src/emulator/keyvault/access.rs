//! Who asks, and whether they may.

use http::header;
use serde_json::Value;

use super::{error::Refusal, known::KnownVault};
use crate::emulator::{http::Call, signer::Signer};

/// Key Vault's application id, which is a name of its resource, too.
const APPLICATION: &str = "cfa8b339-82a2-471a-a3c9-0fc0be7a4093";

/// What a token says about its owner.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) application: String,
    pub(super) object: String,
    pub(super) issuer: String,
    resource: Option<String>,
    groups: Vec<String>,
}

/// Verifies the bearer token of a request: signature, audience, issuer, times.
pub(super) fn authenticate(vault: &KnownVault, signer: &Signer, call: &Call) -> Result<Caller, Refusal> {
    let token = call
        .headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or_else(|| Refusal::unauthorised(vault, "AKV10000: Request is missing a Bearer or PoP token."))?;
    // The words for a token that is broken or out of its time are not documented.
    let refused = |why: &str| {
        Refusal::unauthorised(vault, &format!("[BearerReadAccessTokenFailed] Error validating token: {why}"))
    };
    let claims = signer.verify(token).map_err(|error| refused(&error.to_string()))?;
    let text = |name: &str| claims.get(name).and_then(Value::as_str).unwrap_or_default();
    let audience = text("aud");
    if audience != vault.resource && audience != APPLICATION {
        let message =
            format!("AKV10022: Invalid audience. Expected {} or {APPLICATION}, found: {audience}.", vault.resource);
        return Err(Refusal::unauthorised(vault, &message));
    }
    let expected = format!("https://sts.windows.net/{}/", vault.tenant);
    if !text("iss").eq_ignore_ascii_case(&expected) {
        let message = format!("AKV10032: Invalid issuer. Expected one of {expected}, found {}.", text("iss"));
        return Err(Refusal::unauthorised(vault, &message));
    }
    let now = call.received.as_second();
    let time = |name: &str| claims.get(name).and_then(Value::as_i64);
    if time("exp").is_none_or(|expires| expires <= now) {
        return Err(Refusal::unauthorised(vault, "[TokenExpired] Error validating token: the token has expired."));
    }
    if time("nbf").is_some_and(|from| from > now) {
        return Err(refused("the token is not valid yet."));
    }
    let groups = claims.get("groups").and_then(Value::as_array).into_iter().flatten();
    Ok(Caller {
        application: text("appid").to_owned(),
        object: text("oid").to_owned(),
        issuer: text("iss").to_owned(),
        resource: claims.get("xms_mirid").and_then(Value::as_str).map(str::to_owned),
        groups: groups.filter_map(Value::as_str).map(str::to_owned).collect(),
    })
}

/// Whether one of the caller's roles, its own or a group's, includes the action.
pub(super) fn authorise(vault: &KnownVault, caller: &Caller, action: &str, path: &str) -> Result<(), Refusal> {
    let is_caller = |principal: &str| {
        [&caller.application, &caller.object]
            .into_iter()
            .chain(&caller.resource)
            .chain(&caller.groups)
            .any(|id| id.eq_ignore_ascii_case(principal))
    };
    let allowed = vault.access.iter().any(|given| given.role.allows(action) && is_caller(&given.principal));
    if allowed { Ok(()) } else { Err(Refusal::forbidden(vault, caller, action, path)) }
}
