//! Which hosts are vaults (DESIGN invariant 8): before a token is asked for, whatever an object says.

use azure_core::http::Url;

use super::{Error, MOST};
use crate::shown::shown;

/// The public and sovereign clouds' vaults.
pub const DEFAULT_SUFFIXES: [&str; 3] = ["vault.azure.net", "vault.usgovcloudapi.net", "vault.azure.cn"];

/// The suffixes of the hosts that tokens for vaults may be sent to: `suffix` (port 443) or `suffix:port`, without ASCII case.
/// A vault's host is one name before a suffix.
#[derive(Clone, Debug)]
pub struct VaultSuffixes(Vec<String>);

/// A vault, allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Vault {
    /// `https://host[:port]`, without a path.
    pub(super) endpoint: String,
    /// `host[:port]`.
    pub(super) host: String,
    /// What its tokens are for: `https://suffix`.
    pub(super) resource: String,
}

impl VaultSuffixes {
    /// These suffixes.
    pub fn new(suffixes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let suffixes = suffixes.into_iter().map(|suffix| suffix.into().trim().to_ascii_lowercase());
        let suffixes = suffixes.map(|suffix| suffix.trim_start_matches('.').to_owned());
        Self(suffixes.filter(|suffix| !suffix.is_empty()).collect())
    }

    /// The vault at `text`, when it is one that is allowed.
    pub(super) fn vault(&self, text: &str) -> Result<Vault, Error> {
        let wrong = |why: String| Error::Url { url: shown(text, MOST), why };
        let url = Url::parse(text.trim()).map_err(|error| wrong(format!("is not a URL ({error})")))?;
        if url.scheme() != "https" {
            return Err(wrong("does not begin with https://".to_owned()));
        }
        let plain = url.username().is_empty() && url.password().is_none() && url.path() == "/";
        if !plain || url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("is more than a scheme and a host".to_owned()));
        }
        let host = url.host_str().unwrap_or_default().to_ascii_lowercase();
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        let not_allowed = || Error::HostNotAllowed { host: format!("{host}{port}"), allowed: self.0.join(", ") };
        let (name, suffix) = host.split_once('.').ok_or_else(not_allowed)?;
        // Names of vaults are shorter (3 to 24); emulators and private clouds may be generous.
        let is_label = (1..=63).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !name.starts_with('-')
            && !name.ends_with('-');
        let with_port = format!("{suffix}:{}", url.port_or_known_default().unwrap_or(443));
        let allowed = self.0.iter().any(|allowed| *allowed == with_port || (port.is_empty() && allowed == suffix));
        if !is_label || !allowed {
            return Err(not_allowed());
        }
        Ok(Vault {
            endpoint: format!("https://{host}{port}"),
            resource: format!("https://{suffix}"),
            host: format!("{host}{port}"),
        })
    }
}

impl Default for VaultSuffixes {
    fn default() -> Self {
        Self::new(DEFAULT_SUFFIXES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vaults() {
        let suffixes = VaultSuffixes::new(["vault.azure.net", " .Vault.Example:8443 ", ""]);
        for (url, endpoint, resource) in [
            ("https://demo.vault.azure.net", "https://demo.vault.azure.net", "https://vault.azure.net"),
            (" https://demo.vault.azure.net/ ", "https://demo.vault.azure.net", "https://vault.azure.net"),
            ("https://DEMO.vault.azure.net:443/", "https://demo.vault.azure.net", "https://vault.azure.net"),
            ("https://a-1.vault.example:8443", "https://a-1.vault.example:8443", "https://vault.example"),
        ] {
            let vault = suffixes.vault(url).unwrap();
            assert_eq!((&*vault.endpoint, &*vault.resource), (endpoint, resource), "{url}");
            assert_eq!(format!("https://{}", vault.host), endpoint);
        }
        for cloud in DEFAULT_SUFFIXES {
            let vault = VaultSuffixes::default().vault(&format!("https://demo.{cloud}/")).unwrap();
            assert_eq!(vault.resource, format!("https://{cloud}"));
        }
    }

    #[test]
    fn refusals() {
        let suffixes = VaultSuffixes::new(["vault.azure.net", "vault.example:8443"]);
        for host in [
            "https://vault.azure.net",
            "https://.vault.azure.net",
            "https://a.b.vault.azure.net",
            "https://evilvault.azure.net",
            "https://demo.vault.azure.net.evil.example",
            "https://demo.vault.azure.net.",
            "https://demo.vault.azure.net:8443",
            "https://demo.vault.example",
            "https://demo.vault.azure.cn",
            "https://-demo.vault.azure.net",
            "https://de_mo.vault.azure.net",
            "https://xn--a.b.vault.azure.net",
            "https://127.0.0.1",
            "https://[::1]",
            "https://localhost",
        ] {
            let error = suffixes.vault(host).unwrap_err();
            assert!(matches!(error, Error::HostNotAllowed { .. } | Error::Url { .. }), "{host}: {error}");
        }
        for wrong in [
            "",
            "demo.vault.azure.net",
            "http://demo.vault.azure.net",
            "https://demo.vault.azure.net/secrets/x",
            "https://u@demo.vault.azure.net",
            "https://u:p@demo.vault.azure.net",
            "https://demo.vault.azure.net/?x",
            "https://demo.vault.azure.net#x",
            "https://evil.example\\@demo.vault.azure.net",
        ] {
            assert!(matches!(suffixes.vault(wrong), Err(Error::Url { .. })), "{wrong}");
        }
        let error = suffixes.vault("https://evil.example").unwrap_err();
        assert!(error.to_string().contains("'evil.example', is not a vault"), "{error}");
    }
}
