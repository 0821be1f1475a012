//! `GET /msi/token`: App Service 2017-09-01 (also Azure ML) and 2019-08-01 (imds-and-clients §1.5).
//!
//! Answers have `expires_on` but no `expires_in`, as there. It is seconds since 1970 also for 2017-09-01, where App
//! Service wrote a date and Azure ML seconds: every client reads seconds, some fail on a date (§2.5).

use http::HeaderMap;

use super::{
    Form, Selector, TokenRequest, not_forwarded,
    parameters::{QueryError, is_date_from, read},
};
use crate::endpoint::error::EndpointError;

/// Spellings of both versions.
const SELECTORS: &[(&str, Selector)] = &[
    ("clientid", Selector::ClientId),
    ("client_id", Selector::ClientId),
    ("principal_id", Selector::ObjectId),
    ("object_id", Selector::ObjectId),
    ("mi_res_id", Selector::ResourceId),
    ("msi_res_id", Selector::ResourceId),
];

/// Whichever a client sends: 2019, 2017, Terraform.
const HEADERS: [&str; 3] = ["x-identity-header", "secret", "x-ms-identity"];

/// Whether the headers are those of a client of App Service. Their value is not looked at: it is the pod's own.
pub fn require_header(headers: &HeaderMap) -> Result<(), EndpointError> {
    if !HEADERS.iter().any(|name| headers.get(*name).is_some_and(|value| !value.is_empty())) {
        return Err(EndpointError::AppServiceHeader);
    }
    not_forwarded(headers)
}

/// Reads the query of a token request.
pub fn parse(query: &str) -> Result<TokenRequest, QueryError> {
    let mut parameters = read(query, SELECTORS)?;
    let version = parameters.version.as_deref();
    if version != Some("2017-09-01") && !is_date_from("2019-08-01", version) {
        return Err(QueryError::ApiVersion);
    }
    Ok(TokenRequest {
        resource: parameters.resource()?,
        identity: parameters.identity,
        authority: parameters.authority,
        bypass_cache: parameters.bypass_cache,
        form: Form::AppService,
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn what_clients_send() {
        let of = |text: &str| parse(text).map(|request| (request.resource, request.identity));
        let vault = || "https://vault.azure.net".to_owned();
        for (text, identity) in [
            ("api-version=2019-08-01&resource=https://vault.azure.net", None),
            (
                "api-version=2019-08-01&resource=https://vault.azure.net&client_id=c",
                Some((Selector::ClientId, "c".to_owned())),
            ),
            (
                "api-version=2019-08-01&resource=https%3A%2F%2Fvault.azure.net&mi_res_id=%2Fs%2Fid1",
                Some((Selector::ResourceId, "/s/id1".to_owned())),
            ),
            (
                "api-version=2019-08-01&resource=https://vault.azure.net&principal_id=o",
                Some((Selector::ObjectId, "o".to_owned())),
            ),
            (
                "api-version=2017-09-01&resource=https://vault.azure.net&clientid=c",
                Some((Selector::ClientId, "c".to_owned())),
            ),
        ] {
            assert_eq!(of(text), Ok((vault(), identity)), "{text}");
        }
        for (text, expected) in [
            ("resource=x", QueryError::ApiVersion),
            ("api-version=2018-02-01&resource=x", QueryError::ApiVersion),
            ("api-version=2017-09-01", QueryError::ResourceMissing),
            ("api-version=2017-09-01&resource=x&clientid=a&client_id=b", QueryError::SeveralSelectors),
            ("api-version=2019-08-01&resource=x&object_id=a&principal_id=b", QueryError::SeveralSelectors),
        ] {
            assert_eq!(of(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn one_of_the_headers_has_to_be_there() {
        let with = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            headers
        };
        assert!(require_header(&with("x-identity-header", "any")).is_ok());
        assert!(require_header(&with("secret", "any")).is_ok());
        for wrong in [with("x-identity-header", ""), with("metadata", "true"), HeaderMap::new()] {
            assert!(matches!(require_header(&wrong), Err(EndpointError::AppServiceHeader)));
        }
        let mut forwarded = with("secret", "any");
        forwarded.insert("x-forwarded-for", HeaderValue::from_static("10.0.0.1"));
        assert!(matches!(require_header(&forwarded), Err(EndpointError::Forwarded)));
    }
}
