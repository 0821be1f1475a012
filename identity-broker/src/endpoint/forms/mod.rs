//! The forms in which clients ask for a token, each in a module of its own. All of them end in one [`TokenRequest`].
//!
//! | form | request | module |
//! |---|---|---|
//! | IMDS | `GET /metadata/identity/oauth2/token?…`, `Metadata: true` | [`imds`] |
//! | VM extension, Cloud Shell | `POST /oauth2/token` with a form, `Metadata: true` | [`posted`] |
//! | App Service 2017, 2019; Azure ML | `GET /msi/token?…`, `secret` or `X-IDENTITY-HEADER` | [`app_service`] |
//! | tenant | `GET /metadata/identity/info`, `Metadata: true` | [`info`] |
//!
//! What authenticates is the pod's address, as everywhere: the headers guard against requests that a server is tricked
//! into sending for somebody else, and their values prove nothing.

pub mod app_service;
pub mod imds;
pub mod info;
mod parameters;
pub mod posted;

use http::HeaderMap;
use identity_core::lookup::{Request, RequestedIdentity};

pub use parameters::{Authority, MAX_ID, MAX_PARAMETERS, MAX_RESOURCE, QueryError};
pub use posted::FormError;

use super::error::EndpointError;

/// Which parameter names the identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selector {
    /// `client_id`.
    ClientId,
    /// `object_id`.
    ObjectId,
    /// `msi_res_id` or `mi_res_id`: two live spellings.
    ResourceId,
}

impl Selector {
    /// Its usual spelling.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClientId => "client_id",
            Self::ObjectId => "object_id",
            Self::ResourceId => "msi_res_id",
        }
    }
}

/// The form of a request, and so of its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// All fields.
    #[default]
    Imds,
    /// As IMDS.
    Posted,
    /// `expires_on` but no `expires_in`.
    AppService,
}

/// A well-formed token request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenRequest {
    /// `resource`, as sent.
    pub resource: String,
    /// The named identity, if any.
    pub identity: Option<(Selector, String)>,
    /// `authority`, if given.
    pub authority: Option<Authority>,
    /// `bypass_cache=true`.
    pub bypass_cache: bool,
    /// How it was asked.
    pub form: Form,
}

impl TokenRequest {
    /// As the decision wants it.
    pub fn as_request(&self) -> Request<'_> {
        Request { resource: &self.resource, identity: named(self.identity.as_ref()) }
    }

    /// What names the identity.
    pub fn selector(&self) -> Option<Selector> {
        self.identity.as_ref().map(|(selector, _)| *selector)
    }
}

fn named(identity: Option<&(Selector, String)>) -> RequestedIdentity<'_> {
    match identity {
        None => RequestedIdentity::Default,
        Some((Selector::ClientId, id)) => RequestedIdentity::ClientId(id),
        Some((Selector::ObjectId, id)) => RequestedIdentity::ObjectId(id),
        Some((Selector::ResourceId, id)) => RequestedIdentity::ResourceId(id),
    }
}

/// Whether the headers are those of a client of the metadata service: `Metadata: true` once, no `X-Forwarded-For`.
pub fn require_metadata(headers: &HeaderMap) -> Result<(), EndpointError> {
    let mut metadata = headers.get_all("metadata").iter();
    let present = metadata.next().is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"true"));
    if !present || metadata.next().is_some() {
        return Err(EndpointError::MetadataHeader);
    }
    not_forwarded(headers)
}

fn not_forwarded(headers: &HeaderMap) -> Result<(), EndpointError> {
    if headers.contains_key("x-forwarded-for") { Err(EndpointError::Forwarded) } else { Ok(()) }
}

/// Reads the query (first line) and headers (`Name: value` lines) of an IMDS token request: for fuzzing, and for whoever
/// has them as text.
pub fn imds_request(head: &[u8]) -> Result<TokenRequest, EndpointError> {
    let mut lines = head.split(|byte| *byte == b'\n');
    let query = String::from_utf8_lossy(lines.next().unwrap_or_default());
    let mut headers = HeaderMap::new();
    for line in lines.take(100) {
        let mut halves = line.splitn(2, |byte| *byte == b':');
        let (Some(name), Some(value)) = (halves.next(), halves.next()) else { continue };
        let value = value.trim_ascii();
        if let (Ok(name), Ok(value)) = (http::HeaderName::from_bytes(name), http::HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    require_metadata(&headers)?;
    Ok(imds::parse(&query)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_as_text() {
        let query = "api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net&client_id=c";
        let of = |headers: &str| imds_request(format!("{query}\n{headers}").as_bytes());
        for fine in
            ["Metadata: true", "metadata:true\r\nAccept: */*\r\n", "no colon\nMetadata:  TRUE", ": \nMetadata: true"]
        {
            let request = of(fine).unwrap_or_else(|error| panic!("{fine:?}: {error}"));
            assert_eq!(request.resource, "https://vault.azure.net");
            assert_eq!(request.identity, Some((Selector::ClientId, "c".to_owned())));
        }
        for headers in ["", "Metadata: false", "Metadata: true\nMetadata: true", "Metadata: true, true"] {
            assert!(matches!(of(headers), Err(EndpointError::MetadataHeader)), "{headers:?}");
        }
        assert!(matches!(of("Metadata: true\nX-Forwarded-For: 10.0.0.1"), Err(EndpointError::Forwarded)));
        // The header check comes before everything else.
        assert!(matches!(imds_request(b"%%%\n"), Err(EndpointError::MetadataHeader)));
        let error = imds_request(b"%%%\nMetadata: true");
        assert!(matches!(error, Err(EndpointError::Query(QueryError::Encoding))));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), guarded in any::<bool>()) {
            let mut head = bytes;
            if guarded {
                head.extend_from_slice(b"\nMetadata: true");
            }
            let _ = imds_request(&head);
        }

        /// What is read has what a request must have, however it was written.
        #[test]
        fn what_is_read_is_complete(query in "(api-version|resource|client_id|object_id|mi_res_id|bypass_cache|x)?(=|&|2018-02-01|true|%[0-9a-f]{2}|[a-z]|https://login\\.microsoftonline\\.com){0,20}") {
            if let Ok(request) = imds::parse(&query) {
                prop_assert!(!request.resource.trim().is_empty() && request.resource.len() <= MAX_RESOURCE);
                prop_assert!(request.identity.is_none_or(|(_, id)| !id.is_empty() && id.len() <= MAX_ID));
            }
        }
    }
}
