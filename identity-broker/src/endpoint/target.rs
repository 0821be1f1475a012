//! The request target, decided once: every form that clients send ends in one of a few routes, every form that could
//! mean two things to two readers is refused.
//!
//! Clients really send `/metadata/identity/oauth2/token`, the same with a trailing slash (JS with
//! `AZURE_POD_IDENTITY_AUTHORITY_HOST`) and with a double slash in front (MSAL4J 2024). The predecessor's
//! CVE-2022-23551 was a path that its two readers understood differently. Here [`normalise`] is the only reader: routing
//! looks at its result, and what is forwarded *is* its result ([`CanonicalPath`]), never what the client wrote. A
//! canonical path has nothing in it that a lenient server could read in another way: no percent sign, backslash, path
//! parameter, dot segment, trailing dot or empty segment (the differential test says so).

use std::{borrow::Cow, fmt};

use super::error::{Row, table};

/// The longest accepted path and query, in bytes.
pub const MAX_TARGET: usize = 8 * 1024;

/// What a path means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/metadata/identity/oauth2/token`.
    Token,
    /// `/metadata/identity/info`.
    Info,
    /// `/oauth2/token`: the VM extension of old, and Cloud Shell.
    Posted,
    /// `/msi/token`: App Service.
    AppService,
    /// The credential paths of newer protocol versions (`getplatformmetadata`, `issuecredential`): not offered.
    NewerProtocol,
    /// Anything else below `/metadata/identity`, or that begins like it.
    OtherIdentity,
    /// Anything else.
    Other,
}

impl Route {
    /// Its path, or in a word what it is: never what a pod wrote.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Token => "/metadata/identity/oauth2/token",
            Self::Info => "/metadata/identity/info",
            Self::Posted => "/oauth2/token",
            Self::AppService => "/msi/token",
            Self::NewerProtocol => "newer_protocol",
            Self::OtherIdentity => "other_identity",
            Self::Other => "other",
        }
    }

    /// Whether credentials are, or might be one day, given out there. Such a path is never forwarded.
    pub const fn is_credential(self) -> bool {
        !matches!(self, Self::Other)
    }
}

/// Why a request target is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetError {
    /// Longer than [`MAX_TARGET`].
    TooLong,
    /// Not `/…`.
    NotAPath,
    /// `%` not followed by two hexadecimal digits.
    Encoding,
    /// A character, encoded or not, that is read differently by different programs.
    Character,
    /// `.` or `..` as a segment, or a segment that ends in a dot.
    DotSegment,
}

impl TargetError {
    pub(super) const fn row(self) -> &'static Row {
        match self {
            Self::TooLong => &table::TARGET_TOO_LONG,
            Self::NotAPath => &table::TARGET_NOT_A_PATH,
            Self::Encoding => &table::TARGET_ENCODING,
            Self::Character => &table::TARGET_CHARACTER,
            Self::DotSegment => &table::TARGET_DOT_SEGMENT,
        }
    }
}

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.row().fill(&[("longest", &MAX_TARGET)]))
    }
}

impl std::error::Error for TargetError {}

/// A path that every reader reads alike: `/` and segments of `[A-Za-z0-9._-]` with one `/` between them, none of which
/// ends in a dot. Case is the client's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CanonicalPath(Box<str>);

impl CanonicalPath {
    /// The canonical form of a request's path.
    pub fn new(path: &str) -> Result<Self, TargetError> {
        Ok(Self(normalise(path)?.into()))
    }

    /// The path.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is `prefix` or something below it, by whole segments and without ASCII case. `prefix` is a canonical
    /// path; `/` is above everything.
    pub fn is_or_below(&self, prefix: &str) -> bool {
        let prefix = prefix.trim_end_matches('/');
        self.0.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
            && matches!(self.0.as_bytes().get(prefix.len()), None | Some(b'/'))
    }
}

impl fmt::Display for CanonicalPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The canonical form of `path`: decoded once, empty segments removed. Canonical paths are fixed points.
pub fn normalise(path: &str) -> Result<Cow<'_, str>, TargetError> {
    if path.len() > MAX_TARGET {
        return Err(TargetError::TooLong);
    }
    if !path.starts_with('/') {
        return Err(TargetError::NotAPath);
    }
    let decoded = decode(path)?;
    let segments = || decoded.split('/').filter(|segment| !segment.is_empty());
    // A trailing dot is lost on Windows, where "identity." is "identity"; "." and ".." end in one, too.
    if segments().any(|segment| segment.ends_with('.')) {
        return Err(TargetError::DotSegment);
    }
    let canonical = decoded == "/" || !(decoded.ends_with('/') || decoded.contains("//"));
    if canonical {
        return Ok(decoded);
    }
    let mut path = String::with_capacity(decoded.len());
    for segment in segments() {
        path.push('/');
        path.push_str(segment);
    }
    if path.is_empty() {
        path.push('/');
    }
    Ok(Cow::Owned(path))
}

/// What paths of the metadata service are made of; everything else is read differently by somebody.
const fn plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'_' | b'.')
}

/// Decodes `%XX` once. What is left of a second encoding (`%`), an encoded slash, a backslash, a path parameter (`;`),
/// a control or a non-ASCII character are all refused.
fn decode(path: &str) -> Result<Cow<'_, str>, TargetError> {
    if path.bytes().all(plain) {
        return Ok(Cow::Borrowed(path));
    }
    let mut decoded = String::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'%' {
            let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16)).ok_or(TargetError::Encoding);
            let byte = u8::try_from(digit()? * 16 + digit()?).map_err(|_| TargetError::Encoding)?;
            if byte == b'/' {
                return Err(TargetError::Character);
            }
            byte
        } else {
            byte
        };
        if !plain(byte) {
            return Err(TargetError::Character);
        }
        decoded.push(char::from(byte));
    }
    Ok(Cow::Owned(decoded))
}

/// The route of `path`. ASCII case does not matter.
pub fn route(path: &str) -> Result<Route, TargetError> {
    if path == "/metadata/identity/oauth2/token" {
        return Ok(Route::Token);
    }
    let path = normalise(path)?;
    let is = |candidate: &str| path.eq_ignore_ascii_case(candidate);
    let begins = |start: &str| path.get(..start.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(start));
    Ok(if is("/metadata/identity/oauth2/token") {
        Route::Token
    } else if is("/metadata/identity/info") {
        Route::Info
    } else if is("/oauth2/token") {
        Route::Posted
    } else if is("/msi/token") {
        Route::AppService
    } else if is("/metadata/identity/getplatformmetadata") || is("/metadata/identity/issuecredential") {
        Route::NewerProtocol
    } else if begins("/metadata/identity") || begins("/oauth2/token/") || begins("/msi/token/") {
        Route::OtherIdentity
    } else {
        Route::Other
    })
}

#[cfg(test)]
#[path = "lenient.rs"]
mod lenient;
#[cfg(test)]
#[path = "target_tests.rs"]
mod tests;
