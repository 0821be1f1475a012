//! What a vault's answers mean (<https://learn.microsoft.com/azure/key-vault/general/rest-error-codes>).

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use serde::Deserialize;

use super::{Error, MOST, error::Access};
use crate::{
    shown::shown,
    upstream::{http::TransportError, retry_after::retry_after},
};

/// For how long a vault is left alone that does not say.
const THROTTLED: Duration = Duration::from_secs(10);

/// What is read, by whom, where: for messages.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    /// The vault's host.
    pub(super) host: String,
    /// "secret 'name'", "certificate 'name' of version …".
    pub(super) object: String,
    /// The reading identity's name.
    pub(super) reader: String,
    pub(super) certificate: bool,
}

/// The body of a refusal.
#[derive(Debug, Default, Deserialize)]
struct Body {
    #[serde(default)]
    error: Refusal,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Refusal {
    code: String,
    message: String,
    innererror: Option<Inner>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Inner {
    code: String,
}

impl Reading {
    /// What an answer that brings nothing means. `tenant` is the one that the vault's challenge named.
    pub(super) fn refused(&self, status: StatusCode, headers: &HeaderMap, body: &[u8], tenant: Option<&str>) -> Error {
        let refusal = serde_json::from_slice::<Body>(body).unwrap_or_default().error;
        let inner = refusal.innererror.as_ref().map_or(refusal.code.as_str(), |inner| inner.code.as_str());
        let host = || self.host.clone();
        let object = || self.object.clone();
        match status {
            StatusCode::UNAUTHORIZED => Error::TokenRefused {
                host: host(),
                reader: self.reader.clone(),
                message: match refusal.message.trim_end_matches('.') {
                    "" => "401 Unauthorized".to_owned(),
                    message => shown(message, MOST),
                },
                tenant: tenant.map(|tenant| format!(" ({tenant})")).unwrap_or_default(),
            },
            StatusCode::FORBIDDEN => match inner {
                "SecretDisabled" | "CertificateDisabled" | "KeyDisabled" => {
                    Error::Disabled { host: host(), object: object() }
                }
                "ForbiddenByFirewall" => Error::Firewall { host: host(), code: "ForbiddenByFirewall" },
                "ForbiddenByConnection" => Error::Firewall { host: host(), code: "ForbiddenByConnection" },
                _ => self.forbidden(&refusal.message),
            },
            StatusCode::NOT_FOUND => Error::NotFound {
                host: host(),
                object: object(),
                kind: if self.certificate { "certificate" } else { "secret" },
            },
            StatusCode::TOO_MANY_REQUESTS => {
                Error::Throttled { host: host(), retry_after: retry_after(headers).unwrap_or(THROTTLED) }
            }
            status if status == StatusCode::REQUEST_TIMEOUT || status.is_server_error() => Error::Unavailable {
                host: host(),
                reason: format!("it answered {status}"),
                retry_after: retry_after(headers),
            },
            status => {
                let said = shown(&refusal.message, MOST);
                let said = if said.is_empty() { said } else { format!(" ({}: {said})", shown(&refusal.code, MOST)) };
                Error::Malformed { host: host(), reason: format!("it answered {status}{said}") }
            }
        }
    }

    fn forbidden(&self, message: &str) -> Error {
        // "Caller: appid=…;oid=…;iss=…": identifiers, no secrets.
        let said = |name: &str| {
            let (_, rest) = message.split_once(name)?;
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(rest.len());
            (1..=64).contains(&end).then(|| &rest[..end])
        };
        let caller = match (said("appid="), said("oid=")) {
            (Some(application), Some(object)) => format!("its principal (application {application}, object {object})"),
            (None, Some(object)) => format!("its principal (object {object})"),
            _ => "its principal".to_owned(),
        };
        Error::Forbidden {
            host: self.host.clone(),
            object: self.object.clone(),
            reader: self.reader.clone(),
            caller,
            needs: if self.certificate { Access::Certificate } else { Access::Secret },
        }
    }

    /// What it means that there is no answer.
    pub(super) fn unanswered(&self, error: &TransportError) -> Error {
        // What getaddrinfo says when there is no such name, and not when nobody can tell: glibc's words, and musl's.
        const NO_NAME: [&str; 3] =
            ["Name or service not known", "No address associated with hostname", "Name does not resolve"];
        if let TransportError::Connect { reason, .. } = error
            && NO_NAME.iter().any(|words| reason.contains(words))
        {
            return Error::NameNotResolvable { host: self.host.clone() };
        }
        Error::Unavailable { host: self.host.clone(), reason: error.to_string(), retry_after: None }
    }
}

#[cfg(test)]
mod tests {
    use http::header::RETRY_AFTER;

    use super::*;

    fn reading() -> Reading {
        Reading {
            host: "demo.vault.azure.net".to_owned(),
            object: "secret 's'".to_owned(),
            reader: "reader".to_owned(),
            certificate: false,
        }
    }

    fn of(status: u16, retry_after: Option<&str>, body: &str) -> Error {
        let mut headers = HeaderMap::new();
        if let Some(value) = retry_after {
            headers.insert(RETRY_AFTER, value.parse().unwrap());
        }
        reading().refused(StatusCode::from_u16(status).unwrap(), &headers, body.as_bytes(), Some("tenant-1"))
    }

    #[test]
    fn refusals_by_status_and_code() {
        let inner = |code: &str| {
            format!(r#"{{"error":{{"code":"Forbidden","message":"m","innererror":{{"code":"{code}"}}}}}}"#)
        };
        let cases: Vec<(u16, Option<&str>, String, &str, bool)> = vec![
            (
                401,
                None,
                r#"{"error":{"code":"Unauthorized","message":"AKV10032: Invalid issuer."}}"#.to_owned(),
                "KeyVaultTokenRefused",
                false,
            ),
            (403, None, inner("SecretDisabled"), "KeyVaultDisabled", false),
            (403, None, inner("ForbiddenByFirewall"), "KeyVaultForbidden", false),
            (403, None, inner("ForbiddenByConnection"), "KeyVaultForbidden", false),
            (403, None, inner("ForbiddenByRbac"), "KeyVaultForbidden", false),
            (403, None, inner("AccessDenied"), "KeyVaultForbidden", false),
            (403, None, "<html>".to_owned(), "KeyVaultForbidden", false),
            (404, None, r#"{"error":{"code":"SecretNotFound","message":"m"}}"#.to_owned(), "KeyVaultNotFound", false),
            (429, Some("7"), String::new(), "KeyVaultThrottled", true),
            (408, None, String::new(), "KeyVaultUnavailable", true),
            (500, None, "null".to_owned(), "KeyVaultUnavailable", true),
            (503, Some("3"), String::new(), "KeyVaultUnavailable", true),
            (302, None, String::new(), "KeyVaultAnswerWrong", false),
            (400, None, r#"{"error":{"code":"BadParameter","message":"no"}}"#.to_owned(), "KeyVaultAnswerWrong", false),
            (206, None, "{}".to_owned(), "KeyVaultAnswerWrong", false),
        ];
        let mut said = Vec::new();
        for (status, after, body, reason, transient) in cases {
            let error = of(status, after, &body);
            assert_eq!((error.reason(), error.is_transient()), (reason, transient), "{status} {body}");
            said.push(format!("{status}: {error}"));
        }
        insta::assert_snapshot!(said.join("\n"));
    }

    #[test]
    fn when_to_ask_again() {
        assert_eq!(of(429, Some("7"), "").retry_after(), Some(Duration::from_secs(7)));
        assert_eq!(of(429, Some("99999"), "").retry_after(), Some(Duration::from_hours(1)));
        assert_eq!(of(429, Some("soon"), "").retry_after(), Some(THROTTLED));
        assert_eq!(of(503, None, "").retry_after(), None);
        assert_eq!(of(503, Some(" 3 "), "").retry_after(), Some(Duration::from_secs(3)));
    }

    #[test]
    fn who_may_not() {
        let of = |message: &str, certificate| Reading { certificate, ..reading() }.forbidden(message).to_string();
        let real = "Caller is not authorized to perform action on resource.\r\nCaller: appid=2222-a;oid=3333-b;iss=https://x/\r\n";
        let error = of(real, false);
        assert!(
            error.contains("give its principal (application 2222-a, object 3333-b) the role 'Key Vault Secrets User'"),
            "{error}"
        );
        assert!(error.contains("permission secret Get."), "{error}");
        let error = of("oid=1-2", true);
        assert!(error.contains("(object 1-2) the role 'Key Vault Certificate User'"), "{error}");
        assert!(of("oid=<script>", false).contains("give its principal the role"));
    }

    #[test]
    fn no_answer() {
        let of = |reason: &str| {
            reading().unanswered(&TransportError::Connect { host: "h".to_owned(), reason: reason.to_owned() }).reason()
        };
        assert_eq!(of("failed to lookup address information: Name or service not known"), "KeyVaultNameNotResolvable");
        assert_eq!(
            of("failed to lookup address information: Temporary failure in name resolution"),
            "KeyVaultUnavailable"
        );
        assert_eq!(of("Connection refused (os error 111)"), "KeyVaultUnavailable");
    }
}
