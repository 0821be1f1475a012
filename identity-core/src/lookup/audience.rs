//! Whether a list of audiences allows a resource.

use crate::explain::Recorder;

/// Whether `list` (empty = any) has `resource`.
pub(super) fn allows<R: Recorder>(list: &[Box<str>], resource: &str, whose: &str, recorder: &mut R) -> bool {
    if list.is_empty() {
        return true;
    }
    recorder.check(list.iter().any(|audience| same(audience, resource)), || {
        format!("audiences of the {whose}: [{}]; asked for `{resource}`", list.join(", "))
    })
}

/// Whether both name one resource: one trailing slash is ignored, scheme and host are compared without ASCII case
/// (RFC 3986 §6.2.2.1), everything else exactly.
fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.strip_suffix('/').unwrap_or(a), b.strip_suffix('/').unwrap_or(b));
    if a.len() != b.len() {
        return false;
    }
    if a == b {
        return true;
    }
    let origin = |text: &str| {
        let scheme = text.find("://")? + 3;
        Some(text[scheme..].find(['/', '?', '#']).map_or(text.len(), |end| scheme + end))
    };
    match (origin(a), origin(b)) {
        (Some(i), Some(j)) if i == j => a[..i].eq_ignore_ascii_case(&b[..j]) && a[i..] == b[j..],
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::same;

    #[test]
    fn one_trailing_slash_and_the_case_of_the_origin_do_not_matter() {
        for (a, b, expected) in [
            ("https://vault.azure.net", "https://vault.azure.net", true),
            ("https://vault.azure.net/", "https://vault.azure.net", true),
            ("https://vault.azure.net", "https://vault.azure.net/", true),
            ("https://vault.azure.net//", "https://vault.azure.net", false),
            ("https://vault.azure.net//", "https://vault.azure.net/", false),
            ("HTTPS://Vault.Azure.NET/", "https://vault.azure.net", true),
            ("https://x.example/Path", "https://X.example/Path", true),
            ("https://x.example/Path", "https://x.example/path", false),
            ("https://x.example/a", "https://x.example/ab", false),
            ("https://x.example", "https://x.example.evil", false),
            ("https://x.example?A", "https://x.example?a", false),
            ("api://app", "API://APP", true),
            ("0000000A", "0000000a", false),
            ("https://ü.example", "https://u.example", false),
            ("", "", true),
            ("/", "", true),
        ] {
            assert_eq!(same(a, b), expected, "{a} {b}");
            assert_eq!(same(b, a), expected, "{b} {a}");
        }
    }
}
