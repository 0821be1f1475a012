//! Parameters, of a query or of a form, read strictly (imds-and-clients §1.1: duplicates refused, one id selector, any
//! api-version from a date on, unknown parameters ignored).

use std::{borrow::Cow, fmt};

use oauth2::url::Url;
use percent_encoding::percent_decode_str;

use super::Selector;
use crate::endpoint::error::{Row, table};

/// The most parameters a request may have; no client sends more than six.
pub const MAX_PARAMETERS: usize = 32;
/// The longest value of `resource`, in bytes.
pub const MAX_RESOURCE: usize = 2048;
/// The longest value of an id selector or of `authority`, in bytes (ARM ids are far shorter).
pub const MAX_ID: usize = 1024;

/// What is wrong with the parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueryError {
    /// No `resource`, or an empty one.
    ResourceMissing,
    /// No usable `api-version`.
    ApiVersion,
    /// The same parameter twice.
    Duplicate(String),
    /// More than one of the id selectors.
    SeveralSelectors,
    /// A known parameter without a value.
    Empty(&'static str),
    /// A value that is too long or has control characters.
    Value(&'static str),
    /// Not percent-encoded UTF-8.
    Encoding,
    /// More than [`MAX_PARAMETERS`].
    TooMany,
    /// `bypass_cache` is neither `true` nor `false`.
    BypassCache,
    /// `authority` is no authority.
    Authority,
}

impl QueryError {
    pub(in crate::endpoint) const fn row(&self) -> &'static Row {
        match self {
            Self::ResourceMissing => &table::RESOURCE_MISSING,
            Self::ApiVersion => &table::API_VERSION,
            Self::Duplicate(_) => &table::DUPLICATE,
            Self::SeveralSelectors => &table::SEVERAL_SELECTORS,
            Self::Empty(_) => &table::EMPTY,
            Self::Value(_) => &table::VALUE,
            Self::Encoding => &table::QUERY_ENCODING,
            Self::TooMany => &table::TOO_MANY_PARAMETERS,
            Self::BypassCache => &table::BYPASS_VALUE,
            Self::Authority => &table::AUTHORITY_VALUE,
        }
    }
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = self.row();
        f.write_str(&match self {
            Self::Duplicate(name) => row.fill(&[("name", name)]),
            Self::Empty(name) | Self::Value(name) => row.fill(&[("name", name)]),
            _ => row.fill(&[("most", &MAX_PARAMETERS)]),
        })
    }
}

impl std::error::Error for QueryError {}

/// An authority that a request names: `https://host[:port][/tenant]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// Host, in lower case, with the port unless it is 443.
    pub host: String,
    /// Tenant, as sent.
    pub tenant: Option<String>,
}

impl Authority {
    /// Reads one.
    pub fn parse(text: &str) -> Option<Self> {
        let url = Url::parse(text.trim()).ok()?;
        let plain = url.scheme() == "https"
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none();
        let host = url.host_str()?.to_ascii_lowercase();
        let host = url.port().map_or(host.clone(), |port| format!("{host}:{port}"));
        let mut segments = url.path_segments()?.filter(|segment| !segment.is_empty());
        let tenant = segments.next().map(str::to_owned);
        (plain && segments.next().is_none()).then_some(Self { host, tenant })
    }
}

/// The parameters that have been read.
#[derive(Debug, Default)]
pub(super) struct Parameters {
    pub(super) version: Option<String>,
    pub(super) resource: Option<String>,
    pub(super) identity: Option<(Selector, String)>,
    pub(super) authority: Option<Authority>,
    pub(super) bypass_cache: bool,
}

impl Parameters {
    /// `resource`, which has to be there.
    pub(super) fn resource(&mut self) -> Result<String, QueryError> {
        self.resource.take().filter(|resource| !resource.trim().is_empty()).ok_or(QueryError::ResourceMissing)
    }
}

/// Reads parameters; `selectors` are the spellings of ids that the form knows.
pub(super) fn read(text: &str, selectors: &[(&'static str, Selector)]) -> Result<Parameters, QueryError> {
    let mut names: Vec<Cow<'_, str>> = Vec::with_capacity(8);
    let mut read = Parameters::default();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        if names.len() == MAX_PARAMETERS {
            return Err(QueryError::TooMany);
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, value) = (decode(name)?, decode(value)?);
        if names.iter().any(|seen| seen.eq_ignore_ascii_case(&name)) {
            return Err(QueryError::Duplicate(name.chars().filter(|c| !c.is_control()).take(64).collect()));
        }
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        if let Some((known, selector)) = selectors.iter().find(|(known, _)| is(known)) {
            if read.identity.is_some() {
                return Err(QueryError::SeveralSelectors);
            }
            if value.is_empty() {
                return Err(QueryError::Empty(known));
            }
            check(known, &value, MAX_ID)?;
            read.identity = Some((*selector, value.into_owned()));
        } else if is("resource") {
            check("resource", &value, MAX_RESOURCE)?;
            read.resource = Some(value.into_owned());
        } else if is("api-version") {
            read.version = Some(value.into_owned());
        } else if is("bypass_cache") {
            read.bypass_cache = match &*value {
                value if value.eq_ignore_ascii_case("true") => true,
                value if value.eq_ignore_ascii_case("false") => false,
                _ => return Err(QueryError::BypassCache),
            };
        } else if is("authority") {
            if value.is_empty() {
                return Err(QueryError::Empty("authority"));
            }
            check("authority", &value, MAX_ID)?;
            read.authority = Some(Authority::parse(&value).ok_or(QueryError::Authority)?);
        }
        names.push(name);
    }
    Ok(read)
}

fn check(name: &'static str, value: &str, longest: usize) -> Result<(), QueryError> {
    if value.len() > longest || value.chars().any(char::is_control) { Err(QueryError::Value(name)) } else { Ok(()) }
}

/// Whether it is a calendar date in the form YYYY-MM-DD, `first` or later.
pub(super) fn is_date_from(first: &str, version: Option<&str>) -> bool {
    version.is_some_and(|version| {
        version.len() == first.len() && version.parse::<jiff::civil::Date>().is_ok() && version >= first
    })
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

    #[test]
    fn authorities() {
        let of = |text: &str| Authority::parse(text).map(|a| (a.host, a.tenant.unwrap_or_default()));
        let some = |host: &str, tenant: &str| Some((host.to_owned(), tenant.to_owned()));
        for (text, expected) in [
            ("https://login.microsoftonline.com", some("login.microsoftonline.com", "")),
            ("https://LOGIN.microsoftonline.com:443/", some("login.microsoftonline.com", "")),
            ("https://login.microsoftonline.com/T.example", some("login.microsoftonline.com", "T.example")),
            ("https://login.microsoftonline.com//t/", some("login.microsoftonline.com", "t")),
            ("https://localhost:8443/t", some("localhost:8443", "t")),
            ("http://login.microsoftonline.com/t", None),
            ("https://u:p@login.microsoftonline.com/t", None),
            ("https://login.microsoftonline.com/t/oauth2", None),
            ("https://login.microsoftonline.com/t?x", None),
            ("https://login.microsoftonline.com/t#x", None),
            ("11111111-1111-1111-1111-111111111111", None),
            ("", None),
        ] {
            assert_eq!(of(text), expected, "{text}");
        }
    }
}
