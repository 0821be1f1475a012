//! Which hosts a credential may be sent to (DESIGN invariant 8), and where the token endpoint is.

use oauth2::url::{Host, Url};
use thiserror::Error;

use crate::shown::shown;

/// Authority of identities that name none.
pub const DEFAULT_AUTHORITY: &str = "https://login.microsoftonline.com/";
/// The public and sovereign clouds (imds-and-clients §3.1).
pub const DEFAULT_HOSTS: [&str; 4] = [
    "login.microsoftonline.com",
    "login.microsoftonline.us",
    "login.partner.microsoftonline.cn",
    "login.chinacloudapi.cn",
];

/// The hosts that credentials may be sent to: `host` (port 443) or `host:port`, without ASCII case.
#[derive(Clone, Debug)]
pub struct AuthorityHosts(Vec<String>);

/// Why an authority is not used. Nothing has been sent.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum AuthorityError {
    /// Not a URL.
    #[error("spec.adEndpoint '{0}' is not a URL ({1})")]
    NotAUrl(String, String),
    /// Not https.
    #[error("spec.adEndpoint '{0}' must begin with https://")]
    NotHttps(String),
    /// More than scheme and host.
    #[error("spec.adEndpoint '{0}' must be a scheme and a host only, such as {DEFAULT_AUTHORITY}")]
    NotPlain(String),
    /// A host that the operator does not allow.
    #[error(
        "the host of spec.adEndpoint, '{0}', is not among the allowed authority hosts ({1}); no credential was sent. The operator of the node may allow it with --authority-hosts"
    )]
    NotAllowed(String, String),
    /// No tenant.
    #[error("spec.tenantID is missing")]
    NoTenant,
    /// Not a tenant.
    #[error("spec.tenantID '{0}' is neither a directory id nor a domain name")]
    Tenant(String),
}

impl AuthorityHosts {
    /// These hosts.
    pub fn new(hosts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self(hosts.into_iter().map(|host| host.into().trim().to_ascii_lowercase()).filter(|h| !h.is_empty()).collect())
    }

    fn allow(&self, url: &Url) -> bool {
        let Some(Host::Domain(_) | Host::Ipv4(_) | Host::Ipv6(_)) = url.host() else { return false };
        let host = url.host_str().unwrap_or_default().to_ascii_lowercase();
        let port = url.port_or_known_default().unwrap_or(443);
        let with_port = format!("{host}:{port}");
        self.0.iter().any(|allowed| *allowed == with_port || (port == 443 && *allowed == host))
    }

    /// The v2 token endpoint of `tenant` at `authority`.
    pub fn token_endpoint(&self, authority: Option<&str>, tenant: Option<&str>) -> Result<Url, AuthorityError> {
        let text = authority.map(str::trim).filter(|text| !text.is_empty()).unwrap_or(DEFAULT_AUTHORITY);
        let shown_text = shown(text, 200);
        let mut url =
            Url::parse(text).map_err(|error| AuthorityError::NotAUrl(shown_text.clone(), error.to_string()))?;
        if url.scheme() != "https" {
            return Err(AuthorityError::NotHttps(shown_text));
        }
        let plain = url.username().is_empty() && url.password().is_none() && url.path() == "/";
        if !plain || url.query().is_some() || url.fragment().is_some() {
            return Err(AuthorityError::NotPlain(shown_text));
        }
        if !self.allow(&url) {
            let host = url.host_str().unwrap_or_default().to_owned();
            let host = url.port().map_or(host.clone(), |port| format!("{host}:{port}"));
            return Err(AuthorityError::NotAllowed(host, self.0.join(", ")));
        }
        let tenant = tenant.map(str::trim).filter(|tenant| !tenant.is_empty()).ok_or(AuthorityError::NoTenant)?;
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
        if !tenant.chars().all(word)
            || !tenant.starts_with(|c: char| c.is_ascii_alphanumeric())
            || tenant.contains("..")
        {
            return Err(AuthorityError::Tenant(shown(tenant, 100)));
        }
        url.set_path(&format!("/{tenant}/oauth2/v2.0/token"));
        Ok(url)
    }
}

impl Default for AuthorityHosts {
    fn default() -> Self {
        Self::new(DEFAULT_HOSTS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        let hosts = AuthorityHosts::new(["login.microsoftonline.com", " Login.Example:8443 "]);
        for (authority, expected) in [
            (None, "https://login.microsoftonline.com/t.example/oauth2/v2.0/token"),
            (Some(""), "https://login.microsoftonline.com/t.example/oauth2/v2.0/token"),
            (
                Some("https://login.microsoftonline.com"),
                "https://login.microsoftonline.com/t.example/oauth2/v2.0/token",
            ),
            (
                Some("https://LOGIN.microsoftonline.com:443/"),
                "https://login.microsoftonline.com/t.example/oauth2/v2.0/token",
            ),
            (Some("https://login.example:8443/"), "https://login.example:8443/t.example/oauth2/v2.0/token"),
        ] {
            assert_eq!(hosts.token_endpoint(authority, Some("t.example")).map(String::from), Ok(expected.to_owned()));
        }
    }

    #[test]
    fn refusals() {
        let hosts = AuthorityHosts::default();
        let of = |authority: &str| hosts.token_endpoint(Some(authority), Some("t")).unwrap_err();
        assert!(matches!(of("login.microsoftonline.com"), AuthorityError::NotAUrl(..)));
        for plain_http in ["http://login.microsoftonline.com/", "ftp://login.microsoftonline.com/"] {
            assert!(matches!(of(plain_http), AuthorityError::NotHttps(_)), "{plain_http}");
        }
        for more in [
            "https://login.microsoftonline.com/evil/",
            "https://u@login.microsoftonline.com/",
            "https://login.microsoftonline.com/?x",
            "https://login.microsoftonline.com/#x",
        ] {
            assert!(matches!(of(more), AuthorityError::NotPlain(_)), "{more}");
        }
        for other in [
            "https://evil.example/",
            "https://login.microsoftonline.com.evil.example/",
            "https://login.microsoftonline.com:8443/",
            "https://evil-login.microsoftonline.com/",
            "https://127.0.0.1/",
        ] {
            assert!(matches!(of(other), AuthorityError::NotAllowed(..)), "{other}");
        }
        assert_eq!(hosts.token_endpoint(None, None), Err(AuthorityError::NoTenant));
        for tenant in ["a/b", "..", "a..b", "t?x", ".t", "a%2fb", "t\\"] {
            assert!(matches!(hosts.token_endpoint(None, Some(tenant)), Err(AuthorityError::Tenant(_))), "{tenant}");
        }
    }
}
