//! What a vault asks for: `WWW-Authenticate: Bearer authorization="…", resource="…"` (or `scope`).

use super::MOST;
use crate::shown::shown;

/// What is in a challenge. Read to be checked and shown, never followed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Challenge<'a> {
    authorization: Option<&'a str>,
    resource: Option<&'a str>,
    scope: Option<&'a str>,
}

impl<'a> Challenge<'a> {
    /// Reads a challenge strictly; `None` when it is none, or says a thing twice.
    pub(super) fn read(header: &'a str) -> Option<Self> {
        let (scheme, mut rest) = header.trim().split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut this = Self::default();
        loop {
            let (name, after) = rest.split_once('=')?;
            let after = after.strip_prefix('"')?;
            let (value, after) = after.split_once('"')?;
            let place = match name.trim().to_ascii_lowercase().as_str() {
                "authorization" | "authorization_uri" => Some(&mut this.authorization),
                "resource" => Some(&mut this.resource),
                "scope" => Some(&mut this.scope),
                name if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') => {
                    return None;
                }
                _ => None,
            };
            if let Some(place) = place
                && place.replace(value).is_some()
            {
                return None;
            }
            let after = after.trim_start();
            if after.is_empty() {
                return Some(this);
            }
            rest = after.strip_prefix(',')?;
        }
    }

    /// That it asks for a token for `resource`, and nothing else.
    pub(super) fn check(&self, resource: &str) -> Result<(), String> {
        let scope = format!("{resource}/.default");
        let is_ours = |asked: &str, ours: &str| asked.trim_end_matches('/').eq_ignore_ascii_case(ours);
        let resources = self.resource.iter().map(|asked| (asked, is_ours(asked, resource)));
        let scopes = self.scope.iter().map(|asked| (asked, is_ours(asked, &scope)));
        let mut asked = resources.chain(scopes).peekable();
        if asked.peek().is_none() {
            return Err("it names no resource".to_owned());
        }
        match asked.find(|(_, ours)| !ours) {
            Some((asked, _)) => Err(format!("it asks for a token for '{}', not for {resource}", shown(asked, MOST))),
            None => Ok(()),
        }
    }

    /// The tenant whose tokens the vault takes: the last part of `authorization`.
    pub(super) fn tenant(&self) -> Option<String> {
        let authorization = self.authorization?.trim_end_matches('/');
        let (_, tenant) = authorization.strip_prefix("https://")?.rsplit_once('/')?;
        let is_tenant = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
        (!tenant.is_empty() && tenant.len() <= 100 && tenant.chars().all(is_tenant)).then(|| tenant.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "https://vault.azure.net";

    #[test]
    fn as_vaults_say_it() {
        let recorded = r#"Bearer authorization="https://login.microsoftonline.com/11111111-1111-1111-1111-111111111111", resource="https://vault.azure.net""#;
        for text in [
            recorded,
            r#"bearer  authorization_uri="https://login.windows.net/11111111-1111-1111-1111-111111111111/",scope="https://vault.azure.net/.default" , error="x""#,
            r#"Bearer resource="https://VAULT.azure.net/", scope="https://vault.azure.net/.default", authorization="https://x/11111111-1111-1111-1111-111111111111""#,
        ] {
            let challenge = Challenge::read(text).unwrap();
            assert_eq!(challenge.check(OURS), Ok(()), "{text}");
            assert_eq!(challenge.tenant().as_deref(), Some("11111111-1111-1111-1111-111111111111"), "{text}");
        }
    }

    #[test]
    fn what_is_not_followed() {
        for text in [
            r#"Bearer resource="https://evil.example""#,
            r#"Bearer resource="https://management.azure.com""#,
            r#"Bearer resource="https://azure.net""#,
            r#"Bearer resource="https://vault.azure.net", scope="https://evil.example/.default""#,
            r#"Bearer scope="https://evil.example/.default", resource="https://vault.azure.net""#,
            r#"Bearer scope="https://vault.azure.net""#,
            r#"Bearer authorization="https://login.microsoftonline.com/t""#,
        ] {
            let challenge = Challenge::read(text).unwrap();
            assert!(challenge.check(OURS).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_none() {
        for text in [
            "",
            "Bearer",
            r#"Basic resource="https://vault.azure.net""#,
            r#"Bearer resource="https://vault.azure.net", resource="https://evil.example""#,
            "Bearer resource=https://vault.azure.net",
            r#"Bearer resource="https://vault.azure.net"#,
            r#"Bearer resource="https://vault.azure.net" scope="x""#,
            r#"Bearer ="x", resource="https://vault.azure.net""#,
            r#"Bearer x resource="https://evil.example""#,
        ] {
            assert_eq!(Challenge::read(text), None, "{text}");
        }
    }

    #[test]
    fn tenants() {
        let of = |authorization| Challenge { authorization: Some(authorization), ..Challenge::default() }.tenant();
        assert_eq!(of("https://login.microsoftonline.com/contoso.com").as_deref(), Some("contoso.com"));
        for none in ["https://login.microsoftonline.com", "http://x/t", "https://x/a b", "t", ""] {
            assert_eq!(of(none), None, "{none}");
        }
    }
}
