//! A path of the metadata service that may be sent on, as a type: whoever has one has checked it.

use std::{borrow::Cow, fmt};

use thiserror::Error;

use crate::endpoint::target::{self, TargetError};

/// First segment of everything that is ever passed on.
const ROOT: &str = "metadata";
/// Beginnings of segments that lead to credentials, in the present and the newer protocol, wherever in a path they are.
const CREDENTIALS: [&str; 4] = ["identity", "oauth2", "getplatformmetadata", "issuecredential"];

/// A path below `/metadata` that leads to no credential, in the one form that is sent on: the canonical one by which requests
/// are routed ([`target::normalise`]), of characters that no reader of a URL gives a meaning of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MetadataPath(String);

/// Why a path is not passed on, whatever the policy says.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum PathError {
    /// It cannot be read in one way only.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// It is not below `/metadata/`.
    #[error("Only paths below /metadata/ are passed on to the node's metadata service")]
    Outside,
    /// It leads to credentials, or could be read so.
    #[error(
        "Credentials are not passed on from the node's metadata service: ask for a token at /metadata/identity/oauth2/token"
    )]
    Credential,
}

impl MetadataPath {
    /// Reads the path of a request, as sent or canonical already.
    pub fn new(path: &str) -> Result<Self, PathError> {
        Self::of(target::normalise(path)?)
    }

    fn of(canonical: Cow<'_, str>) -> Result<Self, PathError> {
        let mut segments = canonical.split('/').skip(1);
        if !segments.next().is_some_and(|first| first.eq_ignore_ascii_case(ROOT)) {
            return Err(PathError::Outside);
        }
        let mut deeper = false;
        for segment in segments {
            if leads_to_credentials(segment) {
                return Err(PathError::Credential);
            }
            // Dropped by some readers of file names.
            if segment.ends_with('.') {
                return Err(TargetError::DotSegment.into());
            }
            deeper = true;
        }
        if !deeper {
            return Err(PathError::Outside);
        }
        // All that the service's paths are made of, and nothing that a reader of URLs gives a meaning of its own.
        if !canonical.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._/".contains(&byte)) {
            return Err(TargetError::Character.into());
        }
        Ok(Self(canonical.into_owned()))
    }

    /// As it is sent on.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is `prefix` or below it. ASCII case does not matter, segments do.
    pub fn is_below(&self, prefix: &str) -> bool {
        let Some(start) = self.0.get(..prefix.len()) else { return false };
        let rest = &self.0[prefix.len()..];
        start.eq_ignore_ascii_case(prefix) && (rest.is_empty() || rest.starts_with('/'))
    }
}

impl fmt::Display for MetadataPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a reader that forgives much (trailing dots, `:$DATA`, `identity~1`, whatever comes) could take the segment for one
/// on the way to credentials. No other path of the service has a segment that begins like these.
fn leads_to_credentials(segment: &str) -> bool {
    let mut letters = segment.bytes().filter(u8::is_ascii_alphanumeric).map(|byte| byte.to_ascii_lowercase());
    let skeleton: Vec<u8> = letters.by_ref().take(32).collect();
    CREDENTIALS.iter().any(|word| skeleton.starts_with(word.as_bytes()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::endpoint::target::{Route, route};

    #[test]
    fn paths_that_are_passed_on() {
        for (path, sent) in [
            ("/metadata/instance", "/metadata/instance"),
            ("/metadata/instance/", "/metadata/instance"),
            ("//metadata//instance/compute/", "/metadata/instance/compute"),
            ("/Metadata/Instance", "/Metadata/Instance"),
            ("/metadata/%69nstance", "/metadata/instance"),
            ("/metadata/instance/network/interface/0/ipv4", "/metadata/instance/network/interface/0/ipv4"),
            ("/metadata/scheduledevents", "/metadata/scheduledevents"),
            ("/metadata/versions", "/metadata/versions"),
            // Below the service's root, and no credential: the service itself says 404.
            ("/metadata/entity", "/metadata/entity"),
        ] {
            assert_eq!(MetadataPath::new(path).as_ref().map(MetadataPath::as_str), Ok(sent), "{path}");
        }
    }

    #[test]
    fn paths_that_are_not() {
        for (path, expected) in [
            ("/", PathError::Outside),
            ("/metadata", PathError::Outside),
            ("/metadata/", PathError::Outside),
            ("/metadatax/instance", PathError::Outside),
            ("/host/token", PathError::Outside),
            ("/oauth2/token", PathError::Outside),
            ("/metadata./instance", PathError::Target(TargetError::DotSegment)),
            ("/metadata/identity", PathError::Credential),
            ("/metadata/identity/oauth2/token", PathError::Credential),
            ("/metadata/IDENTITY/info", PathError::Credential),
            ("/metadata/identity./oauth2/token", PathError::Target(TargetError::DotSegment)),
            ("/metadata/identity:$DATA/oauth2/token", PathError::Target(TargetError::Character)),
            ("/metadata/:", PathError::Target(TargetError::Character)),
            ("/metadata/...", PathError::Target(TargetError::DotSegment)),
            ("/metadata/instance.", PathError::Target(TargetError::DotSegment)),
            ("/metadata/instance/a,b", PathError::Target(TargetError::Character)),
            ("/metadata/.identity", PathError::Credential),
            ("/metadata/i-d-e_n.tity", PathError::Credential),
            ("/metadata/v2/identity/oauth2/token", PathError::Credential),
            ("/metadata/issuecredential", PathError::Credential),
            ("/metadata/x/getplatformmetadata", PathError::Credential),
            // CVE-2022-23551, and its relatives.
            ("/metadata/identity\\oauth2\\token", PathError::Target(TargetError::Character)),
            ("/metadata\\identity\\oauth2\\token", PathError::Target(TargetError::Character)),
            ("/metadata/instance%5c..%5cidentity", PathError::Target(TargetError::Character)),
            ("/metadata/instance/../identity/oauth2/token", PathError::Target(TargetError::DotSegment)),
            ("/metadata/instance/%2e%2e/identity/oauth2/token", PathError::Target(TargetError::DotSegment)),
            ("/metadata/instance/..%2fidentity/oauth2/token", PathError::Target(TargetError::Character)),
            ("/metadata/instance;/../identity", PathError::Target(TargetError::Character)),
            ("/metadata/%2569dentity/oauth2/token", PathError::Target(TargetError::Character)),
            ("/metadata/instance%00/identity", PathError::Target(TargetError::Character)),
            ("/metadata/instance/{x}", PathError::Target(TargetError::Character)),
            ("/metadata/instance/%3cx%3e", PathError::Target(TargetError::Character)),
            ("metadata/instance", PathError::Target(TargetError::NotAPath)),
        ] {
            assert_eq!(MetadataPath::new(path), Err(expected), "{path}");
        }
    }

    #[test]
    fn prefixes_end_at_segments() {
        let path = MetadataPath::new("/metadata/Instance/compute").unwrap();
        for (prefix, below) in [
            ("/metadata", true),
            ("/metadata/instance", true),
            ("/METADATA/INSTANCE/COMPUTE", true),
            ("/metadata/inst", false),
            ("/metadata/instance/compute/name", false),
            ("/metadata/instance/comput", false),
        ] {
            assert_eq!(path.is_below(prefix), below, "{prefix}");
        }
    }

    /// What the most forgiving of servers could make of a path.
    fn lenient(path: &str) -> String {
        let mut path = path.to_ascii_lowercase();
        for _ in 0..4 {
            let mut decoded = Vec::new();
            let mut bytes = path.bytes();
            while let Some(byte) = bytes.next() {
                let mut ahead = bytes.clone();
                let digits = (ahead.next(), ahead.next());
                match (byte, digits) {
                    (b'%', (Some(high), Some(low))) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                        let digit = |b| char::from(b).to_digit(16).unwrap();
                        decoded.push(u8::try_from(digit(high) * 16 + digit(low)).unwrap());
                        bytes = ahead;
                    }
                    _ => decoded.push(byte),
                }
            }
            path = String::from_utf8_lossy(&decoded).to_ascii_lowercase();
        }
        let path = path.replace('\\', "/");
        let path = path.split(['?', '#', '\0']).next().unwrap();
        let mut segments: Vec<&str> = Vec::new();
        for segment in path.split('/') {
            let segment = segment.split([';', ':']).next().unwrap().trim();
            match segment {
                ".." => drop(segments.pop()),
                _ => match segment.trim_end_matches('.') {
                    "" => {}
                    segment => segments.push(segment),
                },
            }
        }
        segments.join("/")
    }

    const PIECES: &str = "(/|\\\\|%5c|%2f|%2F|%252f|%255c|metadata|MetaData|identity|%69dentity|%2569dentity|ident|ity|instance|oauth2|token|info|\\.|\\.\\.|%2e|%252e|;|;x=1|:|\\?|#|%00| |%20|x|é){0,14}";

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        #[test]
        fn no_reader_finds_a_credential_in_what_is_sent_on(tail in PIECES) {
            for path in [format!("/metadata/{tail}"), format!("/{tail}"), tail.clone()] {
                let Ok(sent) = MetadataPath::new(&path) else { continue };
                let read = lenient(sent.as_str());
                prop_assert!(read.starts_with("metadata/"), "{} is read as {}", path, read);
                for word in CREDENTIALS {
                    prop_assert!(!read.split('/').any(|segment| segment == word), "{} is read as {}", path, read);
                }
                // Routing says the same of what came and of what goes.
                prop_assert_eq!(route(&path), Ok(Route::Other));
                prop_assert_eq!(route(sent.as_str()), Ok(Route::Other));
                prop_assert_eq!(MetadataPath::new(sent.as_str()), Ok(sent.clone()));
                // And an HTTP client sends it byte for byte.
                let uri: http::Uri = format!("http://169.254.169.254{sent}?x=%2f").parse().unwrap();
                prop_assert_eq!(uri.path(), sent.as_str());
            }
        }

        #[test]
        fn never_panics(path in "\\PC{0,200}") {
            let _ = MetadataPath::new(&path);
        }
    }
}
