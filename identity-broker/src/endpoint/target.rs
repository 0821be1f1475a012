//! The request target, decided once: every form that clients send ends in one of a few routes, every form that could
//! mean two things to two readers is refused.
//!
//! Clients really send `/metadata/identity/oauth2/token`, the same with a trailing slash (JS with
//! `AZURE_POD_IDENTITY_AUTHORITY_HOST`) and with a double slash in front (MSAL4J 2024). The predecessor's
//! CVE-2022-23551 was a path that its two readers understood differently.

use std::borrow::Cow;

use thiserror::Error;

/// The longest accepted path and query, in bytes.
pub const MAX_TARGET: usize = 8 * 1024;

/// What a path means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/metadata/identity/oauth2/token`.
    Token,
    /// The credential paths of newer protocol versions (`getplatformmetadata`, `issuecredential`): not offered.
    NewerProtocol,
    /// Anything else below `/metadata/identity`.
    OtherIdentity,
    /// Anything else.
    Other,
}

/// Why a request target is refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum TargetError {
    /// Longer than [`MAX_TARGET`].
    #[error("The request target is longer than {MAX_TARGET} bytes")]
    TooLong,
    /// Not `/…`.
    #[error("The request target must be an absolute path")]
    NotAPath,
    /// `%` not followed by two hexadecimal digits.
    #[error("The path has an invalid percent-encoding")]
    Encoding,
    /// A character, encoded or not, that is read differently by different programs.
    #[error("The path has a character that is not allowed in it")]
    Character,
    /// `.` or `..` as a segment.
    #[error("The path has a dot segment")]
    DotSegment,
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
    if segments().any(|segment| matches!(segment, "." | "..")) {
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

/// Decodes `%XX` once. What is left of a second encoding (`%`), an encoded slash, a backslash, a path parameter (`;`),
/// a control or a non-ASCII character are all refused.
fn decode(path: &str) -> Result<Cow<'_, str>, TargetError> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'\\' | b';' | b'%' | b'?' | b'#');
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
    let below = "/metadata/identity/";
    Ok(if is("/metadata/identity/oauth2/token") {
        Route::Token
    } else if is("/metadata/identity/getplatformmetadata") || is("/metadata/identity/issuecredential") {
        Route::NewerProtocol
    } else if path.get(..below.len()).is_some_and(|start| start.eq_ignore_ascii_case(below)) {
        Route::OtherIdentity
    } else {
        Route::Other
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn forms_of_the_token_path() {
        for path in [
            "/metadata/identity/oauth2/token",
            "/metadata/identity/oauth2/token/",
            "//metadata/identity/oauth2/token",
            "//metadata//identity///oauth2/token//",
            "/Metadata/Identity/OAuth2/Token",
            "/metadata/identity/oauth2/%74oken",
        ] {
            assert_eq!(route(path), Ok(Route::Token), "{path}");
        }
    }

    #[test]
    fn other_routes() {
        for (path, expected) in [
            ("/metadata/identity/getplatformmetadata", Route::NewerProtocol),
            ("/metadata/identity/issuecredential/", Route::NewerProtocol),
            ("/metadata/identity/info", Route::OtherIdentity),
            ("/metadata/identity/oauth2/tokenx", Route::OtherIdentity),
            ("/metadata/identity/x/oauth2/token", Route::OtherIdentity),
            ("/metadata/instance", Route::Other),
            ("/metadata/identity", Route::Other),
            ("/host/token", Route::Other),
            ("/", Route::Other),
            ("//", Route::Other),
        ] {
            assert_eq!(route(path), Ok(expected), "{path}");
        }
    }

    #[test]
    fn refused_forms() {
        for (path, expected) in [
            ("metadata", TargetError::NotAPath),
            ("*", TargetError::NotAPath),
            ("", TargetError::NotAPath),
            ("/metadata/identity/./oauth2/token", TargetError::DotSegment),
            ("/metadata/instance/../identity/oauth2/token", TargetError::DotSegment),
            ("/metadata/identity/%2e%2e/oauth2/token", TargetError::DotSegment),
            ("/metadata\\identity/oauth2/token", TargetError::Character),
            ("/metadata%5cidentity/oauth2/token", TargetError::Character),
            ("/metadata%2Fidentity/oauth2/token", TargetError::Character),
            ("/metadata/identity/oauth2/token;x=1", TargetError::Character),
            ("/metadata/identity/oauth2/token%3b", TargetError::Character),
            ("/metadata/identity/oauth2/%2574oken", TargetError::Character),
            ("/metadata/identity/oauth2/token%00", TargetError::Character),
            ("/metadata/identity/oauth2/token%0d%0a", TargetError::Character),
            ("/metadata/identity/oauth2/token%3f", TargetError::Character),
            ("/metadata/identity/oauth2/tok%C3%A9n", TargetError::Character),
            ("/metadata/identity/oauth2/token%", TargetError::Encoding),
            ("/metadata/identity/oauth2/token%4", TargetError::Encoding),
            ("/metadata/identity/oauth2/token%zz", TargetError::Encoding),
            ("/metadata/identity/oauth2/token%+1", TargetError::Encoding),
        ] {
            assert_eq!(route(path), Err(expected), "{path}");
        }
        assert_eq!(route(&format!("/{}", "a".repeat(MAX_TARGET))), Err(TargetError::TooLong));
    }

    proptest! {
        #[test]
        fn canonical_paths_are_fixed_points(path in "(/|%2[eEfF]|%[0-9a-f]{2}|[ -~]|é|\\.){0,40}") {
            if let Ok(once) = normalise(&path) {
                let twice = normalise(&once).map(Cow::into_owned);
                prop_assert_eq!(twice, Ok(once.clone().into_owned()));
                prop_assert!(once.starts_with('/'));
                prop_assert!(!once.contains("//"));
                prop_assert_eq!(route(&path), route(&once));
            }
        }

        #[test]
        fn only_the_token_path_is_the_token_route(path in "(/|metadata|identity|oauth2|token|%74|%2f|\\.\\.|x|;){0,12}") {
            if route(&path) == Ok(Route::Token) {
                // A second reader with the plainest idea of a URL agrees.
                let decoded = path.replace("%74", "t");
                let segments: Vec<_> = decoded.split('/').filter(|s| !s.is_empty()).collect();
                prop_assert_eq!(segments, ["metadata", "identity", "oauth2", "token"]);
            }
        }

        #[test]
        fn never_panics(path in "\\PC{0,200}") {
            let _ = route(&path);
        }
    }
}
