//! `GET /metadata/identity/oauth2/token` (imds-and-clients §1.1).

use super::{
    Form, Selector, TokenRequest,
    parameters::{QueryError, is_date_from, read},
};

/// The version in which the path appeared.
const FIRST_VERSION: &str = "2018-02-01";

/// The spellings that clients use.
pub(super) const SELECTORS: &[(&str, Selector)] = &[
    ("client_id", Selector::ClientId),
    ("object_id", Selector::ObjectId),
    ("msi_res_id", Selector::ResourceId),
    ("mi_res_id", Selector::ResourceId),
];

/// Reads the query of a token request.
pub fn parse(query: &str) -> Result<TokenRequest, QueryError> {
    let mut parameters = read(query, SELECTORS)?;
    check_version(parameters.version.as_deref())?;
    Ok(TokenRequest {
        resource: parameters.resource()?,
        identity: parameters.identity,
        authority: parameters.authority,
        bypass_cache: parameters.bypass_cache,
        form: Form::Imds,
    })
}

pub(super) fn check_version(version: Option<&str>) -> Result<(), QueryError> {
    if is_date_from(FIRST_VERSION, version) { Ok(()) } else { Err(QueryError::ApiVersion) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{Authority, MAX_ID, MAX_PARAMETERS, MAX_RESOURCE},
        *,
    };

    const ID: &str = "22222222-2222-2222-2222-222222222222";

    fn query(resource: &str, identity: Option<(Selector, &str)>) -> TokenRequest {
        let identity = identity.map(|(selector, id)| (selector, id.to_owned()));
        TokenRequest { resource: resource.to_owned(), identity, ..TokenRequest::default() }
    }

    #[test]
    fn what_clients_send() {
        let vault = "https://vault.azure.net";
        let arm = "/subscriptions/s/resourcegroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/a";
        for (text, expected) in [
            // Python: unescaped
            (
                format!("api-version=2018-02-01&resource={vault}&client_id={ID}"),
                query(vault, Some((Selector::ClientId, ID))),
            ),
            (
                format!("api-version=2018-02-01&resource={vault}&msi_res_id={arm}"),
                query(vault, Some((Selector::ResourceId, arm))),
            ),
            // JS, Rust: escaped; Rust with a newer version
            ("api-version=2019-08-01&resource=https%3A%2F%2Fvault.azure.net".into(), query(vault, None)),
            // Go: sorted
            (
                format!("api-version=2018-02-01&client_id={ID}&resource=https%3A%2F%2Fvault.azure.net"),
                query(vault, Some((Selector::ClientId, ID))),
            ),
            ("mi_res_id=%2Fa&resource=x&api-version=2018-02-01".into(), query("x", Some((Selector::ResourceId, "/a")))),
            ("object_id=o&resource=x&api-version=2025-04-07".into(), query("x", Some((Selector::ObjectId, "o")))),
            // msal-node with capabilities; unknown parameters
            ("api-version=2018-02-01&resource=x/&xms_cc=CP1&bypass_cache=false&resource_id=y".into(), query("x/", None)),
            (
                "api-version=2023-07-01&resource=x&bypass_cache=True&authority=https%3A%2F%2Flogin.microsoftonline.com%2Ft".into(),
                TokenRequest {
                    bypass_cache: true,
                    authority: Some(Authority { host: "login.microsoftonline.com".into(), tenant: Some("t".into()) }),
                    ..query("x", None)
                },
            ),
            ("&api-version=2018-02-01&&Resource=x&".into(), query("x", None)),
        ] {
            assert_eq!(parse(&text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_refused() {
        let valid = "api-version=2018-02-01&resource=x";
        for (text, expected) in [
            (String::new(), QueryError::ApiVersion),
            ("resource=x".into(), QueryError::ApiVersion),
            ("api-version=2018-02-01".into(), QueryError::ResourceMissing),
            ("api-version=2018-02-01&resource=".into(), QueryError::ResourceMissing),
            ("api-version=2018-02-01&resource=+".into(), QueryError::ResourceMissing),
            ("api-version=&resource=x".into(), QueryError::ApiVersion),
            ("api-version=2017-12-01&resource=x".into(), QueryError::ApiVersion),
            ("api-version=2018-02-30&resource=x".into(), QueryError::ApiVersion),
            ("api-version=2018-2-1&resource=x".into(), QueryError::ApiVersion),
            ("api-version=2020-01-01-preview&resource=x".into(), QueryError::ApiVersion),
            ("api-version=latest&resource=x".into(), QueryError::ApiVersion),
            (format!("{valid}&resource=y"), QueryError::Duplicate("resource".into())),
            (format!("{valid}&RESOURCE=y"), QueryError::Duplicate("RESOURCE".into())),
            (format!("{valid}&re%73ource=y"), QueryError::Duplicate("resource".into())),
            (format!("{valid}&a=1&a=1"), QueryError::Duplicate("a".into())),
            (format!("{valid}&client_id=a&client_id=a"), QueryError::Duplicate("client_id".into())),
            (format!("{valid}&client_id=a&object_id=b"), QueryError::SeveralSelectors),
            (format!("{valid}&msi_res_id=a&mi_res_id=a"), QueryError::SeveralSelectors),
            (format!("{valid}&client_id="), QueryError::Empty("client_id")),
            (format!("{valid}&object_id"), QueryError::Empty("object_id")),
            (format!("{valid}&client_id=a%0ab"), QueryError::Value("client_id")),
            (format!("{valid}&client_id={}", "a".repeat(MAX_ID + 1)), QueryError::Value("client_id")),
            (
                format!("api-version=2018-02-01&resource={}", "a".repeat(MAX_RESOURCE + 1)),
                QueryError::Value("resource"),
            ),
            (format!("{valid}&bypass_cache=yes"), QueryError::BypassCache),
            (format!("{valid}&bypass_cache="), QueryError::BypassCache),
            (format!("{valid}&authority="), QueryError::Empty("authority")),
            (format!("{valid}&authority=t.example"), QueryError::Authority),
            (format!("{valid}&authority=http://login.microsoftonline.com/t"), QueryError::Authority),
            (format!("{valid}&x=%"), QueryError::Encoding),
            (format!("{valid}&x=%4g"), QueryError::Encoding),
            (format!("{valid}&x=%ff"), QueryError::Encoding),
            ((0..=MAX_PARAMETERS).map(|n| format!("p{n}=1&")).collect::<Vec<_>>().concat(), QueryError::TooMany),
        ] {
            assert_eq!(parse(&text), Err(expected), "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,300}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_a_form_encoder_writes_is_read(resource in "\\PC{1,60}", id in "\\PC{1,40}") {
            prop_assume!(!resource.trim().is_empty() && ![&resource, &id].iter().any(|v| v.chars().any(char::is_control)));
            let text = form_urlencoded::Serializer::new(String::new())
                .append_pair("api-version", "2018-02-01").append_pair("resource", &resource).append_pair("client_id", &id).finish();
            prop_assert_eq!(parse(&text), Ok(query(&resource, Some((Selector::ClientId, &id)))));
        }
    }
}
