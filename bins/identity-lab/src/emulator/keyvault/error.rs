//! How Key Vault says no.

use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use super::{access::Caller, known::KnownVault};
use crate::emulator::{fault::ServiceName, http::Reply};

/// A request that is not answered with what it asks for.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The real service's refusal.
    Vault(VaultError),
    /// The real service offers this; the emulator does not.
    NotEmulated(String),
    /// There is no such vault. In Azure its name does not resolve, so nobody answers: the connection is closed.
    NoVault(String),
}

#[derive(Debug)]
pub(super) struct VaultError {
    status: StatusCode,
    code: &'static str,
    message: String,
    inner: Option<&'static str>,
    challenge: Option<String>,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self::Vault(VaultError { status, code, message: message.into(), inner: None, challenge: None })
    }

    fn with_inner(status: StatusCode, code: &'static str, inner: &'static str, message: impl Into<String>) -> Self {
        Self::Vault(VaultError { status, code, message: message.into(), inner: Some(inner), challenge: None })
    }

    /// Not known yet, or not known so: the answer says where to get a token, and for what.
    pub(super) fn unauthorised(vault: &KnownVault, message: &str) -> Self {
        let challenge = format!(
            r#"Bearer authorization="https://{}/{}", resource="{}""#,
            vault.authority, vault.tenant, vault.resource
        );
        Self::Vault(VaultError {
            status: StatusCode::UNAUTHORIZED,
            code: "Unauthorized",
            message: message.to_owned(),
            inner: None,
            challenge: Some(challenge),
        })
    }

    pub(super) fn forbidden(vault: &KnownVault, caller: &Caller, action: &str, path: &str) -> Self {
        let Caller { application, object, issuer, .. } = caller;
        let name = &vault.name;
        let message = format!(
            "Caller is not authorized to perform action on resource.\r\nIf role assignments, deny assignments or role \
             definitions were changed recently, please observe propagation time.\r\nCaller: appid={application};oid={object};\
             iss={issuer}\r\nAction: 'Microsoft.KeyVault/vaults/{action}'\r\nResource: '/subscriptions/\
             44444444-4444-4444-4444-444444444444/resourcegroups/lab/providers/microsoft.keyvault/vaults/{name}{}'\r\n\
             Assignment: (not found)\r\nDenyAssignmentId: null\r\nDecisionReason: null \r\nVault: {name};location=westeurope\r\n",
            path.trim_end_matches('/')
        );
        Self::with_inner(StatusCode::FORBIDDEN, "Forbidden", "ForbiddenByRbac", message)
    }

    pub(super) fn disabled() -> Self {
        let message = "Operation get is not allowed on a disabled secret.";
        Self::with_inner(StatusCode::FORBIDDEN, "Forbidden", "SecretDisabled", message)
    }

    pub(super) fn not_found(kind: &str, name: &str, version: Option<&str>) -> Self {
        let (code, what) =
            if kind == "secrets" { ("SecretNotFound", "secret") } else { ("CertificateNotFound", "certificate") };
        let id = version.map_or_else(|| name.to_owned(), |version| format!("{name}/{version}"));
        let message = format!(
            "A {what} with (name/id) {id} was not found in this key vault. If you recently deleted this {what} you may be able to \
             recover it using the correct recovery command. For help resolving this issue, please see \
             https://go.microsoft.com/fwlink/?linkid=2125182"
        );
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    pub(super) fn no_api_version() -> Self {
        // That it is required is documented; the words are not.
        Self::new(StatusCode::BAD_REQUEST, "BadParameter", "The api-version query parameter must be specified.")
    }

    pub(super) fn api_version(version: &str) -> Self {
        let message = format!(
            "The specified version ({version}) is not recognized. Consider using the latest supported version."
        );
        Self::new(StatusCode::BAD_REQUEST, "BadParameter", message)
    }

    pub(super) fn throttled() -> Self {
        let message =
            "Request was not processed because too many requests were received. Reason: VaultRequestTypeLimitReached";
        Self::new(StatusCode::TOO_MANY_REQUESTS, "Throttled", message)
    }

    pub(super) fn unavailable() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "The service is temporarily unavailable.")
    }

    pub(super) fn reply(&self) -> Reply {
        let error = match self {
            Self::NotEmulated(what) => return Reply::not_emulated(ServiceName::KeyVault, what),
            Self::NoVault(host) => {
                tracing::warn!(host, "asked for a vault that there is not; in Azure its name would not resolve");
                return Reply::none("no_vault");
            }
            Self::Vault(error) => error,
        };
        let VaultError { status, code, message, inner, challenge } = error;
        let mut body = json!({"error": {"code": code, "message": message}});
        if let Some(inner) = inner {
            body["error"]["innererror"] = json!({"code": Value::from(*inner)});
        }
        let reply = Reply::json(*status, &body).with_code(inner.unwrap_or(code));
        match challenge.as_deref().map(HeaderValue::try_from) {
            Some(Ok(challenge)) => reply.with_header(header::WWW_AUTHENTICATE, challenge),
            _ => reply,
        }
    }
}
