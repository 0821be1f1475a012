//! What well-formed values look like, twice: as patterns for the API server (RE2) and as predicates for Rust. A test
//! keeps the two equal. The predicates take no dependency and compile no pattern at run time.

/// ARM id of a user-assigned managed identity.
pub(crate) const RESOURCE_ID: &str = "^(?i:/subscriptions/[^/?#\\x00-\\x20\\x7f]+/resourcegroups/[^/?#\\x00-\\x20\\x7f]+/providers/microsoft[.]managedidentity/userassignedidentities/[^/?#\\x00-\\x20\\x7f]+)$";
/// Printable ASCII without white space; may be empty.
pub(crate) const ONE_WORD: &str = "^[!-~]*$";
/// A tenant as it stands in a token endpoint's path: a GUID or a domain name.
pub(crate) const TENANT: &str = "^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$";
/// `https`, a host name, perhaps a port and a path; no user, query or fragment.
pub(crate) const HTTPS_ENDPOINT: &str =
    "^[Hh][Tt][Tt][Pp][Ss]://[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?$";
/// GUID.
pub(crate) const GUID: &str = "^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$";
/// Name of a Kubernetes object (RFC 1123 subdomain, without the length).
pub(crate) const OBJECT_NAME: &str = "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$";
/// Key of a Secret.
pub(crate) const SECRET_KEY: &str = "^[A-Za-z0-9._-]+$";
/// Value of a label (without the length); may be empty.
pub(crate) const LABEL_VALUE: &str = "^([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?$";
/// Key of a label (without the length of the prefix).
pub(crate) const LABEL_KEY: &str = "^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$";
/// An audience (resource): one word that is there.
pub(crate) const AUDIENCE: &str = "^[!-~]+$";

/// First and last satisfy `edge`, all between `edge` or `also`; at least one.
fn edged(s: &str, edge: impl Fn(u8) -> bool, also: &[u8]) -> bool {
    let b = s.as_bytes();
    match (b.first(), b.last()) {
        (Some(first), Some(last)) => edge(*first) && edge(*last) && b.iter().all(|c| edge(*c) || also.contains(c)),
        _ => false,
    }
}

fn lower_alphanumeric(c: u8) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

fn alphanumeric(c: u8) -> bool {
    c.is_ascii_alphanumeric()
}

/// [`ONE_WORD`].
pub(crate) fn is_one_word(s: &str) -> bool {
    s.bytes().all(|c| c.is_ascii_graphic())
}

/// [`AUDIENCE`].
pub(crate) fn is_audience(s: &str) -> bool {
    !s.is_empty() && is_one_word(s)
}

/// [`TENANT`].
pub(crate) fn is_tenant(s: &str) -> bool {
    edged(s, alphanumeric, b".-")
}

/// [`OBJECT_NAME`].
pub(crate) fn is_object_name(s: &str) -> bool {
    edged(s, lower_alphanumeric, b".-")
}

/// [`SECRET_KEY`].
pub(crate) fn is_secret_key(s: &str) -> bool {
    !s.is_empty() && s.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c))
}

/// [`LABEL_VALUE`].
pub(crate) fn is_label_value(s: &str) -> bool {
    s.is_empty() || edged(s, alphanumeric, b"_.-")
}

/// [`LABEL_KEY`].
pub(crate) fn is_label_key(s: &str) -> bool {
    let (prefix, name) = s.split_once('/').map_or((None, s), |(prefix, name)| (Some(prefix), name));
    prefix.is_none_or(is_object_name) && name.len() <= 63 && edged(name, alphanumeric, b"_.-")
}

/// [`GUID`].
pub(crate) fn is_guid(s: &str) -> bool {
    s.len() == 36
        && s.bytes().enumerate().all(|(i, c)| match i {
            8 | 13 | 18 | 23 => c == b'-',
            _ => c.is_ascii_hexdigit(),
        })
}

/// [`HTTPS_ENDPOINT`].
pub(crate) fn is_https_endpoint(s: &str) -> bool {
    let Some((scheme, rest)) = s.split_once("://") else { return false };
    let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
    let (host, port) = authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)));
    scheme.eq_ignore_ascii_case("https")
        && edged(host, alphanumeric, b".-")
        && port.is_none_or(|p| (1..=5).contains(&p.len()) && p.bytes().all(|c| c.is_ascii_digit()))
        && path.bytes().all(|c| c.is_ascii_alphanumeric() || b"._~/-".contains(&c))
}

/// A duration's seconds: hours, minutes, seconds in that order, at least one of them.
pub(crate) fn duration_seconds(s: &str) -> Option<u64> {
    let (mut rest, mut total) = (s, 0_u64);
    for (unit, seconds, digits) in [('h', 3600, 5), ('m', 60, 6), ('s', 1, 8)] {
        let Some((number, after)) = rest.split_once(unit) else { continue };
        if !(1..=digits).contains(&number.len()) || !number.bytes().all(|c| c.is_ascii_digit()) {
            return None;
        }
        total += number.parse::<u64>().ok()? * seconds;
        rest = after;
    }
    (rest.is_empty() && !s.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use regex::Regex;

    use super::*;
    use crate::ResourceId;

    fn is_resource_id(s: &str) -> bool {
        s.parse::<ResourceId>().is_ok()
    }

    type Pair = (&'static str, fn(&str) -> bool);

    const PAIRS: [Pair; 10] = [
        (RESOURCE_ID, is_resource_id),
        (ONE_WORD, is_one_word),
        (TENANT, is_tenant),
        (HTTPS_ENDPOINT, is_https_endpoint),
        (GUID, is_guid),
        (OBJECT_NAME, is_object_name),
        (SECRET_KEY, is_secret_key),
        (LABEL_VALUE, is_label_value),
        (LABEL_KEY, is_label_key),
        (AUDIENCE, is_audience),
    ];

    fn check(s: &str) {
        for (pattern, predicate) in PAIRS {
            let expected = Regex::new(pattern).expect("valid pattern").is_match(s);
            assert_eq!(predicate(s), expected, "{s:?} against {pattern}");
        }
    }

    #[test]
    fn the_predicates_agree_with_the_patterns_on_the_edges() {
        let id = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/n";
        for s in [
            "",
            "a",
            "A",
            "-",
            ".",
            "_",
            "/",
            "a-",
            "-a",
            "a.b",
            "a_b",
            "a b",
            "a\n",
            "é",
            "k8s.io/name",
            "k8s.io/",
            "/name",
            "a/b/c",
            "K8s.io/name",
            &"a".repeat(63),
            &"a".repeat(64),
            &format!("p/{}", "a".repeat(64)),
            "00000000-0000-0000-0000-000000000000",
            "00000000-0000-0000-0000-00000000000",
            "0000000000000-0000-0000-000000000000",
            "https://login.microsoftonline.com",
            "https://login.microsoftonline.com/",
            "HTTPS://login.microsoftonline.com:443/adfs/",
            "https://login.microsoftonline.com:/",
            "https://login.microsoftonline.com:123456/",
            "http://login.microsoftonline.com/",
            "https://u@login.microsoftonline.com/",
            "https://login.microsoftonline.com/?q",
            "https:///x",
            "https://",
            "https://a:1:2/",
            id,
            &id.to_uppercase(),
            &format!("{id}/"),
            &format!("{id}/x"),
            &format!("x{id}"),
            &format!("{id}\n"),
            &id.replace("/s/", "//"),
            &id.replace("/g/", "/é(1)._-/"),
            &id.replace("/g/", "/g?/"),
            &id.replace("Identities/n", "Identities/"),
        ] {
            check(s);
        }
    }

    proptest! {
        #[test]
        fn the_predicates_agree_with_the_patterns(s in "[a-zA-Z0-9./:_?#@ é~-]{0,12}") {
            check(&s);
        }

        #[test]
        fn the_predicates_agree_on_what_looks_like_an_endpoint(s in "(https?|HTTPS)://[a-z.-]{0,4}(:[0-9]{0,6})?(/[a-z./?#-]{0,4})?") {
            check(&s);
        }

        #[test]
        fn the_predicates_agree_on_what_looks_like_a_resource_id(
            s in "/subscriptions/[a-z/ ]{0,3}/resource[Gg]roups/[a-z/?]{0,3}/providers/Microsoft[.x]ManagedIdentity/userAssignedIdentities/[a-z/#\n]{0,3}"
        ) {
            check(&s);
        }
    }
}
