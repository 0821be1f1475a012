//! What well-formed values look like, twice: as patterns for the API server (RE2) and as predicates for Rust. A test
//! keeps the two equal. The predicates take no dependency and compile no pattern at run time.

macro_rules! date {
    () => {
        "([12][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))|([12][0-9](0[48]|[2468][048]|[13579][26])|(12|16|20|24|28)00)-02-29)"
    };
}

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

/// A Key Vault: `https`, a host name, perhaps a port; nothing after it but one slash.
pub(crate) const VAULT_URL: &str = "^[Hh][Tt][Tt][Pp][Ss]://[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?/?$";
/// Name of an object in a Key Vault (without the length).
pub(crate) const VAULT_NAME: &str = "^[A-Za-z0-9-]+$";
/// Version of an object in a Key Vault; may be empty.
pub(crate) const VAULT_VERSION: &str = "^[A-Za-z0-9]*$";
/// A date that there is, of the years 1000 to 2999.
pub(crate) const DATE: &str = concat!("^", date!(), "$");
/// RFC 3339, with capitals and without leap seconds, of the years 1000 to 2999.
pub(crate) const INSTANT: &str = concat!(
    "^",
    date!(),
    "T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"
);
/// Hours, minutes and seconds in that order; may be empty.
pub(crate) const DURATION: &str = "^([0-9]{1,5}h)?([0-9]{1,6}m)?([0-9]{1,8}s)?$";
/// Five fields, or six, of what cron fields are made of.
pub(crate) const SCHEDULE: &str = "^[0-9A-Za-z*,/?#-]+( +[0-9A-Za-z*,/?#-]+){4,5}$";
/// Name of a time zone.
pub(crate) const TIME_ZONE: &str = "^[A-Za-z0-9_+/-]+$";
/// More than white space.
pub(crate) const SAYS_SOMETHING: &str = "[^ \\t\\n\\r]";

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

/// [`VAULT_URL`].
pub(crate) fn is_vault_url(s: &str) -> bool {
    is_https_endpoint(s)
        && s.split_once("://").is_some_and(|(_, rest)| rest.find('/').is_none_or(|at| at + 1 == rest.len()))
}

/// [`VAULT_NAME`].
pub(crate) fn is_vault_name(s: &str) -> bool {
    !s.is_empty() && s.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
}

/// [`VAULT_VERSION`].
pub(crate) fn is_vault_version(s: &str) -> bool {
    s.bytes().all(|c| c.is_ascii_alphanumeric())
}

/// The number that two digits are.
fn two_digits(b: &[u8]) -> Option<u8> {
    match b {
        [a @ b'0'..=b'9', b @ b'0'..=b'9'] => Some((a - b'0') * 10 + (b - b'0')),
        _ => None,
    }
}

/// [`DATE`].
pub(crate) fn is_date(s: &str) -> bool {
    let b = s.as_bytes();
    let [b'1' | b'2', _, _, _, b'-', _, _, b'-', _, _] = b else { return false };
    let (Some(century), Some(year), Some(month), Some(day)) =
        (two_digits(&b[..2]), two_digits(&b[2..4]), two_digits(&b[5..7]), two_digits(&b[8..]))
    else {
        return false;
    };
    let leap = if year == 0 { century % 4 == 0 } else { year % 4 == 0 };
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => 0,
    };
    (1..=days).contains(&day)
}

/// `hh:mm`.
fn is_hour_and_minute(s: &str) -> bool {
    let b = s.as_bytes();
    b.len() == 5
        && b[2] == b':'
        && two_digits(&b[..2]).is_some_and(|hour| hour < 24)
        && two_digits(&b[3..]).is_some_and(|minute| minute < 60)
}

/// [`INSTANT`].
pub(crate) fn is_instant(s: &str) -> bool {
    let (Some(date), Some(b'T'), Some(time), Some(b':'), Some(seconds), Some(rest)) =
        (s.get(..10), s.as_bytes().get(10), s.get(11..16), s.as_bytes().get(16), s.get(17..19), s.get(19..))
    else {
        return false;
    };
    let offset = match rest.strip_prefix('.') {
        None => Some(rest),
        Some(fraction) => {
            let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
            (1..=9).contains(&digits).then(|| &fraction[digits..])
        }
    };
    is_date(date)
        && is_hour_and_minute(time)
        && two_digits(seconds.as_bytes()).is_some_and(|s| s < 60)
        && offset.is_some_and(|o| o == "Z" || o.strip_prefix(['+', '-']).is_some_and(is_hour_and_minute))
}

/// [`SCHEDULE`].
pub(crate) fn is_schedule(s: &str) -> bool {
    let fields = s.split(' ').filter(|f| !f.is_empty()).count();
    !s.starts_with(' ')
        && !s.ends_with(' ')
        && (5..=6).contains(&fields)
        && s.bytes().all(|c| c.is_ascii_alphanumeric() || b"*,/?#- ".contains(&c))
}

/// [`TIME_ZONE`].
pub(crate) fn is_time_zone(s: &str) -> bool {
    !s.is_empty() && s.bytes().all(|c| c.is_ascii_alphanumeric() || b"_+/-".contains(&c))
}

/// [`SAYS_SOMETHING`].
pub(crate) fn says_something(s: &str) -> bool {
    s.contains(|c| !matches!(c, ' ' | '\t' | '\n' | '\r'))
}

/// A duration's seconds: [`DURATION`], but not empty.
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

    fn is_duration(s: &str) -> bool {
        s.is_empty() || duration_seconds(s).is_some()
    }

    type Pair = (&'static str, fn(&str) -> bool);

    const PAIRS: [Pair; 19] = [
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
        (VAULT_URL, is_vault_url),
        (VAULT_NAME, is_vault_name),
        (VAULT_VERSION, is_vault_version),
        (DATE, is_date),
        (INSTANT, is_instant),
        (DURATION, is_duration),
        (SCHEDULE, is_schedule),
        (TIME_ZONE, is_time_zone),
        (SAYS_SOMETHING, says_something),
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
            "https://v.vault.azure.net",
            "https://v.vault.azure.net/",
            "https://v.vault.azure.net//",
            "https://v.vault.azure.net/secrets",
            " \t\r\n",
            "\u{a0}",
            "1h30m",
            "h",
            "1h1h",
            "30m1h",
            "-1h",
            "1.5h",
            "100000h",
            "99999h999999m99999999s",
            "100000000s",
            "0 0 * * MON-FRI",
            "0  0 1,15 */2 ? ",
            " 0 0 * * *",
            "0 0 0 * * *",
            "0 0 0 0 * * *",
            "@daily",
            "America/Los_Angeles",
            "2026-12-01T00:00:00Z",
            "2026-12-01t00:00:00Z",
            "2026-12-01T24:00:00Z",
            "2026-12-01T23:59:60Z",
            "2026-12-01T00:00:00",
            "2026-12-01T00:00:00.123456789+05:30",
            "2026-12-01T00:00:00.1234567890Z",
            "2026-12-01T00:00:00.Z",
            "2026-12-01T00:00:00-24:00",
            "2026-12-0éT00:00:00Z",
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

    /// Two other opinions on which dates there are.
    #[test]
    fn dates_are_those_of_the_calendar() {
        let pattern = Regex::new(DATE).expect("valid pattern");
        for year in [1000, 1600, 1900, 1999, 2000, 2023, 2024, 2100, 2400, 2999] {
            for month in 0..=13 {
                for day in 0..=32 {
                    let text = format!("{year:04}-{month:02}-{day:02}");
                    let there_is = jiff::civil::Date::new(year, month, day).is_ok();
                    assert_eq!((is_date(&text), pattern.is_match(&text)), (there_is, there_is), "{text}");
                }
            }
        }
        assert!(!is_date("0999-01-01") && !is_date("3000-01-01"));
    }

    proptest! {
        #[test]
        fn the_predicates_agree_on_what_looks_like_an_instant(
            s in "[0-3][0-9]{3}-[01][0-9]-[0-3][0-9][Tt ][0-2][0-9]:[0-6][0-9]:[0-6][0-9]([.][0-9]{0,10})?(Z|z|[+-][0-2][0-9]:?[0-6][0-9])?"
        ) {
            check(&s);
            // What the form lets through is an instant: the rules convert it without asking again.
            prop_assert!(!is_instant(&s) || s.parse::<jiff::Timestamp>().is_ok());
        }

        #[test]
        fn the_predicates_agree_on_what_looks_like_a_duration(s in "([0-9]{0,6}[hH])?([0-9]{0,7}m)?([0-9]{0,9}s)?[ms]?") {
            check(&s);
        }

        #[test]
        fn the_predicates_agree_on_what_looks_like_a_schedule(s in "[ ]?([0-9*,/A-Z#?-]{1,3}[ ]{1,2}){2,7}[0-9@*]?") {
            check(&s);
        }

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
