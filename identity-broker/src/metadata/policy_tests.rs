use proptest::{collection::vec, prelude::*, sample::select};

use super::*;

const PATHS: [&str; 8] = [
    "/metadata/instance",
    "/metadata/Instance/compute",
    "/metadata/instancex",
    "/metadata/scheduledevents",
    "/metadata/attested/document",
    "/metadata/versions",
    "/metadata/loadbalancer",
    "/metadata/unheard/of",
];
const NAMESPACES: [&str; 3] = ["a", "b", "kube-system"];

fn path(path: &str) -> MetadataPath {
    MetadataPath::new(path).unwrap()
}

#[test]
fn by_default_instance_and_scheduled_events_can_be_read() {
    let policy = Policy::default();
    for (verb, at, allowed) in [
        (Verb::Get, "/metadata/instance", true),
        (Verb::Get, "/metadata/instance/compute/location", true),
        (Verb::Get, "/METADATA/INSTANCE", true),
        (Verb::Get, "/metadata/scheduledevents", true),
        (Verb::Get, "/metadata/instancex", false),
        (Verb::Get, "/metadata/attested/document", false),
        (Verb::Get, "/metadata/loadbalancer", false),
        (Verb::Get, "/metadata/versions", false),
        (Verb::Get, "/metadata/unheard/of", false),
        (Verb::Post, "/metadata/scheduledevents", false),
        (Verb::Post, "/metadata/instance", false),
    ] {
        assert_eq!(policy.decide("ns", verb, &path(at)) == Action::Allow, allowed, "{verb} {at}");
    }
}

#[test]
fn allow_and_block_mean_everything() {
    for at in PATHS {
        for verb in Verb::ALL {
            assert_eq!(Policy::allow().decide("ns", verb, &path(at)), Action::Allow);
            assert_eq!(Policy::block().decide("ns", verb, &path(at)), Action::Block);
        }
    }
}

#[test]
fn verbs_are_two() {
    assert_eq!(Verb::of(&Method::GET), Some(Verb::Get));
    assert_eq!(Verb::of(&Method::POST), Some(Verb::Post));
    for method in [Method::HEAD, Method::PUT, Method::DELETE, Method::TRACE, Method::OPTIONS, Method::PATCH] {
        assert_eq!(Verb::of(&method), None, "{method}");
    }
    assert_eq!(Verb::of(&Method::from_bytes(b"get").unwrap()), None);
}

/// A rule as plain data, and what it means, written down once more.
#[derive(Clone, Debug)]
struct Plain {
    allow: bool,
    namespaces: Option<Vec<&'static str>>,
    paths: Vec<&'static str>,
    get: bool,
    post: bool,
}

impl Plain {
    fn rule(&self) -> Rule {
        let mut verbs = Vec::new();
        verbs.extend(self.get.then_some(Verb::Get));
        verbs.extend(self.post.then_some(Verb::Post));
        Rule {
            action: if self.allow { Action::Allow } else { Action::Block },
            namespaces: self.namespaces.as_ref().map(|names| names.iter().map(|name| Box::from(*name)).collect()),
            paths: self.paths.iter().map(|path| Box::from(*path)).collect(),
            verbs: verbs.into(),
        }
    }
}

/// Segment by segment.
fn naive(rules: &[Plain], otherwise: bool, namespace: &str, verb: Verb, path: &str) -> bool {
    let words = |path: &str| path.split('/').map(str::to_lowercase).collect::<Vec<_>>();
    for rule in rules {
        if let Some(names) = &rule.namespaces
            && !names.contains(&namespace)
        {
            continue;
        }
        if !(rule.get && verb == Verb::Get || rule.post && verb == Verb::Post) {
            continue;
        }
        for prefix in &rule.paths {
            let (prefix, path) = (words(prefix), words(path));
            if prefix.len() <= path.len() && prefix.iter().zip(&path).all(|(one, other)| one == other) {
                return rule.allow;
            }
        }
    }
    otherwise
}

fn rule() -> impl Strategy<Value = Plain> {
    let prefixes: Vec<&'static str> = PATHS.into_iter().chain(["/metadata", "/metadata/INSTANCE/Compute"]).collect();
    let namespaces = proptest::option::of(vec(select(&NAMESPACES[..]), 0..3));
    (any::<bool>(), namespaces, vec(select(prefixes), 0..3), any::<bool>(), any::<bool>())
        .prop_map(|(allow, namespaces, paths, get, post)| Plain { allow, namespaces, paths, get, post })
}

proptest! {
    #[test]
    fn the_first_rule_that_fits_decides(
        rules in vec(rule(), 0..6), otherwise: bool, namespace in select(&NAMESPACES[..]), at in select(&PATHS[..]),
    ) {
        let policy = Policy {
            rules: rules.iter().map(Plain::rule).collect(),
            otherwise: if otherwise { Action::Allow } else { Action::Block },
        };
        for verb in Verb::ALL {
            let expected = naive(&rules, otherwise, namespace, verb, at);
            prop_assert_eq!(policy.decide(namespace, verb, &path(at)) == Action::Allow, expected);
        }
    }
}
