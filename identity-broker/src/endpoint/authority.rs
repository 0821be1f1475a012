//! Whether the `authority` that a request names is the identity's own. Tokens of another tenant are never issued.

use identity_core::lookup::Identity;

use super::{error::EndpointError, forms::Authority};
use crate::upstream::DEFAULT_AUTHORITY;

/// What can be said before there is a token: the host, and the tenant where the object has its id.
pub(super) fn check(asked: Option<&Authority>, identity: &Identity) -> Result<(), EndpointError> {
    let Some(asked) = asked else { return Ok(()) };
    let own = filled(identity.authority.as_deref()).unwrap_or(DEFAULT_AUTHORITY);
    let own = Authority::parse(own).ok_or(EndpointError::Authority)?;
    if own.host != asked.host {
        return Err(EndpointError::Authority);
    }
    match (&asked.tenant, filled(identity.tenant_id.as_deref())) {
        (Some(asked), Some(own)) if is_id(asked) && is_id(own) && !asked.eq_ignore_ascii_case(own) => {
            Err(EndpointError::Authority)
        }
        _ => Ok(()),
    }
}

/// What can only be said of a token: a tenant may be named by its id or by a domain.
pub(super) fn check_tenant(
    asked: Option<&Authority>,
    identity: &Identity,
    tenant: Option<&str>,
) -> Result<(), EndpointError> {
    let Some(asked) = asked.and_then(|asked| asked.tenant.as_deref()) else { return Ok(()) };
    let is = |own: Option<&str>| filled(own).is_some_and(|own| own.eq_ignore_ascii_case(asked));
    if is(identity.tenant_id.as_deref()) || is(tenant) { Ok(()) } else { Err(EndpointError::Authority) }
}

/// Whether a tenant is written as its id.
pub(super) fn is_id(tenant: &str) -> bool {
    tenant.len() == 36 && uuid::Uuid::try_parse(tenant).is_ok()
}

pub(super) fn filled(text: Option<&str>) -> Option<&str> {
    text.map(str::trim).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use identity_core::lookup::{CredentialSource, ObjectRef};
    use identity_crd::IdentityType;

    use super::*;

    const TENANT: &str = "abcdef11-1111-1111-1111-111111111111";
    const OTHER: &str = "22222222-2222-2222-2222-222222222222";

    fn identity(tenant: Option<&str>, authority: Option<&str>) -> Identity {
        Identity {
            object: ObjectRef::default(),
            kind: IdentityType::ServicePrincipal,
            client_id: None,
            object_id: None,
            resource_id: None,
            tenant_id: tenant.map(Into::into),
            authority: authority.map(Into::into),
            credential: CredentialSource::None,
            audiences: Box::default(),
        }
    }

    #[test]
    fn the_identitys_own_and_no_other() {
        let upper = TENANT.to_uppercase();
        let public = "https://login.microsoftonline.com";
        for (tenant, authority, of_token, asked, fine) in [
            (Some(TENANT), None, None, format!("{public}/{TENANT}"), true),
            (Some(TENANT), None, None, format!("{public}/{upper}/"), true),
            (Some(TENANT), None, None, public.to_owned(), true),
            (Some(TENANT), Some("https://LOGIN.microsoftonline.com/"), None, format!("{public}/{TENANT}"), true),
            (Some(TENANT), None, Some(TENANT), format!("{public}/{OTHER}"), false),
            (Some(TENANT), None, Some(TENANT), format!("https://login.microsoftonline.us/{TENANT}"), false),
            (Some(TENANT), Some("https://login.microsoftonline.us"), None, format!("{public}/{TENANT}"), false),
            (Some("t.example"), None, Some(TENANT), format!("{public}/{TENANT}"), true),
            (Some("t.example"), None, Some(TENANT), format!("{public}/T.example"), true),
            (Some("t.example"), None, Some(TENANT), format!("{public}/{OTHER}"), false),
            (Some(TENANT), None, Some(TENANT), format!("{public}/common"), false),
            (None, None, Some(TENANT), format!("{public}/{TENANT}"), true),
            (None, None, None, format!("{public}/{TENANT}"), false),
            (None, None, None, public.to_owned(), true),
        ] {
            let identity = identity(tenant, authority);
            let authority = Authority::parse(&asked);
            assert!(authority.is_some());
            let outcome = check(authority.as_ref(), &identity)
                .and_then(|()| check_tenant(authority.as_ref(), &identity, of_token));
            assert_eq!(outcome.is_ok(), fine, "{asked} of {tenant:?}");
        }
        let identity = identity(None, None);
        assert!(check(None, &identity).is_ok() && check_tenant(None, &identity, None).is_ok());
    }

    #[test]
    fn two_ids_that_differ_need_no_token_to_be_told_apart() {
        let asked = Authority::parse(&format!("https://login.microsoftonline.com/{OTHER}"));
        assert!(check(asked.as_ref(), &identity(Some(TENANT), None)).is_err());
        assert!(check(asked.as_ref(), &identity(Some("t.example"), None)).is_ok());
    }
}
