use proptest::prelude::*;

use super::{
    lenient::{gives_credentials, lenient_readings},
    *,
};

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
        ("/metadata/identity/info", Route::Info),
        ("/METADATA/identity/Info/", Route::Info),
        ("/metadata/identity/infos", Route::OtherIdentity),
        ("/metadata/identity/oauth2/tokenx", Route::OtherIdentity),
        ("/metadata/identity/x/oauth2/token", Route::OtherIdentity),
        ("/metadata/identity", Route::OtherIdentity),
        ("/metadata/identityoauth2token", Route::OtherIdentity),
        ("/oauth2/token", Route::Posted),
        ("/OAuth2//Token/", Route::Posted),
        ("/oauth2/token/x", Route::OtherIdentity),
        ("/msi/token", Route::AppService),
        ("/MSI/token/", Route::AppService),
        ("/oauth2/tokens", Route::Other),
        ("/metadata/instance", Route::Other),
        ("/metadata", Route::Other),
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
        ("/metadata/identity./oauth2/token", TargetError::DotSegment),
        ("/metadata/.../identity", TargetError::DotSegment),
        ("/metadata\\identity/oauth2/token", TargetError::Character),
        ("/metadata%5cidentity/oauth2/token", TargetError::Character),
        ("/metadata%2Fidentity/oauth2/token", TargetError::Character),
        ("/metadata/identity/oauth2/token;x=1", TargetError::Character),
        ("/metadata/identity;x/oauth2/token", TargetError::Character),
        ("/metadata/identity%20/oauth2/token", TargetError::Character),
        ("/metadata/identity::$DATA/oauth2/token", TargetError::Character),
        ("/metadata/identi~1/oauth2/token", TargetError::Character),
        ("/metadata/identity/oauth2/token%3b", TargetError::Character),
        ("/metadata/identity/oauth2/%2574oken", TargetError::Character),
        ("/metadata/identity/oauth2/token%00", TargetError::Character),
        ("/metadata/identity/oauth2/token%0d%0a", TargetError::Character),
        ("/metadata/identity/oauth2/token%3f", TargetError::Character),
        ("/metadata/identity/oauth2/tok%C3%A9n", TargetError::Character),
        ("/metadata/%c0%69dentity", TargetError::Character),
        ("/metadata/%u0069dentity", TargetError::Encoding),
        ("/metadata/identity/oauth2/token%", TargetError::Encoding),
        ("/metadata/identity/oauth2/token%4", TargetError::Encoding),
        ("/metadata/identity/oauth2/token%zz", TargetError::Encoding),
        ("/metadata/identity/oauth2/token%+1", TargetError::Encoding),
    ] {
        assert_eq!(route(path), Err(expected), "{path}");
    }
    assert_eq!(route(&format!("/{}", "a".repeat(MAX_TARGET))), Err(TargetError::TooLong));
}

/// The predecessor's two: a path that its router took for no token path and its proxy's upstream did
/// (CVE-2022-23551), and a pod that took another's address (CVE-2021-1677), which asks in no other way than the true one:
/// what is done about that is pinned connections and the lookup. `/host/token`, which needed no proof at all, is not
/// offered.
#[test]
fn the_predecessors_paths() {
    for path in [
        "/metadata/identity\\oauth2\\token",
        "/metadata/identity/oauth2\\token",
        "/metadata/identity%5Coauth2%5Ctoken",
        "/metadata/identity/\\oauth2/token/",
        "\\metadata\\identity\\oauth2\\token",
        "/metadata/identity/.\\oauth2/token",
        "/metadata/identity%5C%2e%2e%5Cidentity/oauth2/token",
    ] {
        assert!(route(path).is_err(), "{path}");
    }
    assert_eq!(route("/host/token"), Ok(Route::Other));
    assert_eq!(route("/host/token/"), Ok(Route::Other));
}

#[test]
fn prefixes_are_of_whole_segments() {
    let path = |path| CanonicalPath::new(path).unwrap();
    assert!(path("/metadata/instance").is_or_below("/metadata/instance"));
    assert!(path("/Metadata//Instance/compute").is_or_below("/metadata/instance/"));
    assert!(!path("/metadata/instances").is_or_below("/metadata/instance"));
    assert!(!path("/metadata").is_or_below("/metadata/instance"));
    assert!(path("/").is_or_below("/"));
    assert!(path("/metadata").is_or_below("/"));
}

// === the differential test ===

/// Checks one path; used by the property test and by its regression cases.
fn no_other_reading_gives_credentials(path: &str) {
    let Ok(routed) = route(path) else { return };
    if routed.is_credential() {
        return;
    }
    // What would be forwarded, and for good measure what was sent.
    for text in [CanonicalPath::new(path).expect("routed").as_str(), path] {
        for reading in lenient_readings(text) {
            assert!(!gives_credentials(&reading), "{path:?} is {routed:?}, but may be read as {reading:?}");
        }
    }
}

#[test]
fn the_lenient_model_sees_through_the_tricks_it_is_there_for() {
    for path in [
        "/metadata/identity/oauth2/token",
        "//Metadata//IDENTITY/oauth2/token/",
        "/metadata\\identity/oauth2/token",
        "/metadata%5cidentity/oauth2/token",
        "/metadata%255cidentity/oauth2/token",
        "/metadata%2fidentity%2foauth2",
        "/metadata/%2569dentity/oauth2/token",
        "/metadata/instance/../identity/oauth2/token",
        "/metadata/instance/%2e%2e/identity/oauth2/token",
        "/metadata;x=1/identity;y/oauth2/token",
        "/metadata/identity./oauth2/token",
        "/metadata/identity%20/oauth2/token",
        "/metadata%c0%afidentity/oauth2/token",
        "/metadata/%u0069dentity/oauth2/token",
        "/metadata/identity%00/x",
        "/x/../oauth2/token",
        "/msi\\token",
    ] {
        assert!(lenient_readings(path).iter().any(|reading| gives_credentials(reading)), "{path}");
        no_other_reading_gives_credentials(path);
    }
    assert!(!lenient_readings("/metadata/instance").iter().any(|reading| gives_credentials(reading)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn what_is_routed_elsewhere_is_no_credential_path_to_anybody(
        path in "/(/|\\\\|metadata|METADATA|identity|Identity|instance|oauth2|token|msi|info|\\.\\.|\\.|;|;x=1|%2[eEfF]|%5[cC]|%25|%252f|%00|%20| |%3b|%c0%af|%u0069|%69|%74|i|x|\\?|#|[ -~]){0,14}"
    ) {
        no_other_reading_gives_credentials(&path);
    }

    #[test]
    fn spellings_of_a_credential_path(
        separators in proptest::collection::vec("(/|//|\\\\|%2f|%5c|%255c|/\\./|/x/\\.\\./|;/|/;x/|%c0%af|\\./| /|%20/)", 4),
        words in prop_oneof![Just("metadata identity oauth2 token"), Just("METADATA Identity oauth2 %74oken"), Just("metadata %69dentity info"), Just("oauth2 token"), Just("msi %2574oken")],
    ) {
        let path: String = separators.iter().zip(words.split(' ')).flat_map(|(separator, word)| [separator.as_str(), word]).collect();
        no_other_reading_gives_credentials(&path);
    }

    #[test]
    fn canonical_paths_are_fixed_points(path in "(/|%2[eEfF]|%[0-9a-f]{2}|[ -~]|é|\\.){0,40}") {
        if let Ok(once) = normalise(&path) {
            let twice = normalise(&once).map(Cow::into_owned);
            prop_assert_eq!(twice, Ok(once.clone().into_owned()));
            prop_assert!(once.starts_with('/'));
            prop_assert!(!once.contains("//"));
            prop_assert!(once.bytes().all(plain));
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
