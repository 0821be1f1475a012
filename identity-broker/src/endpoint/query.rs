//! The parameters of a token request, read strictly (imds-and-clients §1.1: duplicates refused, one id selector, any
//! api-version from 2018-02-01 on, unknown parameters ignored).

use std::borrow::Cow;

use identity_core::lookup::{Request, RequestedIdentity};
use percent_encoding::percent_decode_str;
use thiserror::Error;

/// The most parameters a request may have; no client sends more than six.
pub const MAX_PARAMETERS: usize = 32;
/// The longest value of `resource`, in bytes.
pub const MAX_RESOURCE: usize = 2048;
/// The longest value of an id selector, in bytes (ARM ids are far shorter).
pub const MAX_ID: usize = 1024;
/// The version in which the token path appeared.
const FIRST_VERSION: &str = "2018-02-01";

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

/// A well-formed token request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenQuery {
    /// `resource`, as sent.
    pub resource: String,
    /// The named identity, if any.
    pub identity: Option<(Selector, String)>,
}

impl TokenQuery {
    /// As the decision wants it.
    pub fn as_request(&self) -> Request<'_> {
        Request {
            resource: &self.resource,
            identity: match &self.identity {
                None => RequestedIdentity::Default,
                Some((Selector::ClientId, id)) => RequestedIdentity::ClientId(id),
                Some((Selector::ObjectId, id)) => RequestedIdentity::ObjectId(id),
                Some((Selector::ResourceId, id)) => RequestedIdentity::ResourceId(id),
            },
        }
    }
}

/// What is wrong with the parameters. The first two texts are the real endpoint's.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum QueryError {
    /// No `resource`, or an empty one.
    #[error("Required query variable 'resource' is missing")]
    ResourceMissing,
    /// No usable `api-version`.
    #[error(
        "Bad request. api-version is invalid or was not specified in the request. For more information refer to aka.ms/azureimds"
    )]
    ApiVersion,
    /// The same parameter twice.
    #[error("Query variable '{0}' is given more than once")]
    Duplicate(String),
    /// More than one of the id selectors.
    #[error("Only one of client_id, object_id and msi_res_id may be given")]
    SeveralSelectors,
    /// A known parameter without a value.
    #[error("Query variable '{0}' is empty: leave it out or give it a value")]
    Empty(&'static str),
    /// A value that is too long or has control characters.
    #[error("Query variable '{0}' is too long or has a control character")]
    Value(&'static str),
    /// Not percent-encoded UTF-8.
    #[error("The query is not percent-encoded UTF-8")]
    Encoding,
    /// More than [`MAX_PARAMETERS`].
    #[error("More than {MAX_PARAMETERS} query variables")]
    TooMany,
}

/// Reads the query string of a token request.
pub fn parse(query: &str) -> Result<TokenQuery, QueryError> {
    let mut names: Vec<Cow<'_, str>> = Vec::with_capacity(8);
    let (mut version, mut resource) = (None, None);
    let mut identity: Option<(Selector, String)> = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        if names.len() == MAX_PARAMETERS {
            return Err(QueryError::TooMany);
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, value) = (decode(name)?, decode(value)?);
        if names.iter().any(|seen| seen.eq_ignore_ascii_case(&name)) {
            return Err(QueryError::Duplicate(name.chars().filter(|c| !c.is_control()).take(64).collect()));
        }
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        let selector = if is("client_id") {
            Some(("client_id", Selector::ClientId))
        } else if is("object_id") {
            Some(("object_id", Selector::ObjectId))
        } else if is("msi_res_id") {
            Some(("msi_res_id", Selector::ResourceId))
        } else if is("mi_res_id") {
            Some(("mi_res_id", Selector::ResourceId))
        } else {
            None
        };
        if let Some((known, selector)) = selector {
            if identity.is_some() {
                return Err(QueryError::SeveralSelectors);
            }
            if value.is_empty() {
                return Err(QueryError::Empty(known));
            }
            check(known, &value, MAX_ID)?;
            identity = Some((selector, value.into_owned()));
        } else if is("resource") {
            check("resource", &value, MAX_RESOURCE)?;
            resource = Some(value.into_owned());
        } else if is("api-version") {
            version = Some(value);
        }
        names.push(name);
    }
    if !version.is_some_and(|version| is_version(&version)) {
        return Err(QueryError::ApiVersion);
    }
    match resource {
        Some(resource) if !resource.trim().is_empty() => Ok(TokenQuery { resource, identity }),
        _ => Err(QueryError::ResourceMissing),
    }
}

fn check(name: &'static str, value: &str, longest: usize) -> Result<(), QueryError> {
    if value.len() > longest || value.chars().any(char::is_control) { Err(QueryError::Value(name)) } else { Ok(()) }
}

/// A calendar date in the form YYYY-MM-DD, from [`FIRST_VERSION`] on.
fn is_version(version: &str) -> bool {
    version.len() == FIRST_VERSION.len() && version.parse::<jiff::civil::Date>().is_ok() && version >= FIRST_VERSION
}

fn decode(part: &str) -> Result<Cow<'_, str>, QueryError> {
    if !part.bytes().any(|byte| matches!(byte, b'%' | b'+')) {
        return Ok(Cow::Borrowed(part));
    }
    let mut rest = part.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' && !(0..2).all(|_| rest.next().is_some_and(|b| b.is_ascii_hexdigit())) {
            return Err(QueryError::Encoding);
        }
    }
    let spaced = part.replace('+', " ");
    percent_decode_str(&spaced)
        .decode_utf8()
        .map(|decoded| Cow::Owned(decoded.into_owned()))
        .map_err(|_| QueryError::Encoding)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "22222222-2222-2222-2222-222222222222";

    fn query(resource: &str, identity: Option<(Selector, &str)>) -> TokenQuery {
        TokenQuery { resource: resource.to_owned(), identity: identity.map(|(s, id)| (s, id.to_owned())) }
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
            ("api-version=2018-02-01&resource=x/&xms_cc=CP1&bypass_cache=true&resource_id=y".into(), query("x/", None)),
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
