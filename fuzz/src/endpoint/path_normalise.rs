//! Paths, differentially: what is forwarded must lead to no credential path, however a server reads it, that routing did
//! not take for one.

use std::collections::BTreeSet;

use identity_broker::{
    endpoint::{
        path_normalise,
        target::{self, CanonicalPath},
    },
    metadata::MetadataPath,
};

use super::lenient;

/// How a reader took a path that it did not refuse.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Kept, as one that leads to credentials.
    pub credential: bool,
    /// What would be sent on.
    pub forwarded: String,
}

/// Checks one.
pub fn check(input: &[u8]) {
    let path = text(input);
    let route = target::route(&path);
    let canonical = path_normalise(&path);
    assert_eq!(route, target::route(&path), "routed differently the second time");
    assert_eq!(route.err(), canonical.as_ref().err().copied(), "routing and forwarding do not agree on {path:?}");
    if let Some(way) = other_way_in(&path, product) {
        panic!("{way}");
    }

    // One reading of what is forwarded: its own.
    if let (Ok(route), Ok(canonical)) = (route, &canonical) {
        assert_eq!(path_normalise(canonical.as_str()).as_ref(), Ok(canonical), "not a fixed point");
        assert_eq!(target::route(canonical.as_str()), Ok(route), "{path:?} is routed otherwise when normalised");
        assert_eq!(CanonicalPath::new(&path).as_ref(), Ok(canonical));
        let uri: http::Uri = canonical.as_str().parse().unwrap_or_else(|error| panic!("{canonical}: {error}"));
        assert_eq!((uri.path(), uri.query()), (canonical.as_str(), None));
    }
    // What the pass-through takes is what routing gave it.
    if let Ok(passed) = MetadataPath::new(&path) {
        assert_eq!(route.map(target::Route::is_credential), Ok(false), "{path:?} is passed on");
        assert_eq!(canonical.as_ref().map(CanonicalPath::as_str), Ok(passed.as_str()));
        let canonical = canonical.as_ref().expect("just compared");
        for prefix in ["/metadata", "/metadata/instance", "/metadata/scheduledevents", "/metadata/i"] {
            assert_eq!(canonical.is_or_below(prefix), passed.is_below(prefix), "{path:?} below {prefix}");
        }
    }
}

/// The product's reading.
pub fn product(path: &str) -> Option<Reading> {
    let route = target::route(path).ok()?;
    let forwarded = path_normalise(path).ok()?.as_str().to_owned();
    Some(Reading { credential: route.is_credential(), forwarded })
}

/// How a path leads to credentials though `read` does not take it so, in words. For any reader: the tests prove with naive
/// ones that this finds what it is there for.
pub fn other_way_in(path: &str, read: impl Fn(&str) -> Option<Reading>) -> Option<String> {
    let Reading { credential: false, forwarded } = read(path)? else { return None };
    // For good measure also what was sent, which nobody forwards.
    [forwarded.as_str(), path].into_iter().find_map(|text| {
        let mut readings = lenient::lenient_readings(text);
        readings.extend(in_any_order(text).iter().map(|path| segments(path)));
        let reading = readings.iter().find(|reading| lenient::gives_credentials(reading))?;
        Some(format!("{path:?} goes on as {forwarded:?} and may be read as /{}", reading.join("/")))
    })
}

/// Any bytes as a path. What is no UTF-8 could not arrive unescaped, so it arrives escaped.
pub fn text(input: &[u8]) -> String {
    let mut path = String::new();
    for chunk in input.utf8_chunks() {
        path.push_str(chunk.valid());
        path.extend(chunk.invalid().iter().map(|byte| format!("%{byte:02X}")));
    }
    path
}

/// Most readings looked at, and the longest path that is read in every order.
const READINGS: usize = 200;
const LONGEST: usize = 300;

/// Everything that comes of a path by the steps of lenient servers in any order, each as often as it does something.
/// (`lenient.rs` has one order, the usual one.)
fn in_any_order(path: &str) -> BTreeSet<String> {
    let steps: [fn(&str) -> String; 9] = [
        |path| String::from_utf8_lossy(&percent(path)).into_owned(),
        overlong,
        |path| path.replace('\\', "/"),
        |path| path.split('\0').next().unwrap_or_default().to_owned(),
        |path| path.split(['?', '#']).next().unwrap_or_default().to_owned(),
        // As browsers do.
        |path| path.replace(['\t', '\r', '\n'], ""),
        |path| each_segment(path, |segment| segment.split(';').next().unwrap_or_default()),
        |path| each_segment(path, |s| if matches!(s, "." | "..") { s } else { s.trim().trim_end_matches(['.', ' ']) }),
        |path| format!("/{}", segments(path).join("/")),
    ];
    let mut known = BTreeSet::from([path.to_ascii_lowercase()]);
    let mut open: Vec<String> = known.iter().filter(|path| path.len() <= LONGEST).cloned().collect();
    while let Some(path) = open.pop() {
        for step in steps {
            let next = step(&path).to_ascii_lowercase();
            if known.len() < READINGS && known.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    known
}

fn each_segment(path: &str, change: fn(&str) -> &str) -> String {
    path.split('/').map(change).collect::<Vec<_>>().join("/")
}

/// Without empty and dot segments.
fn segments(path: &str) -> Vec<String> {
    let mut segments = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            _ => segments.push(segment.to_owned()),
        }
    }
    segments
}

fn percent(path: &str) -> Vec<u8> {
    let bytes = path.as_bytes();
    let code = |at: usize| u8::from_str_radix(path.get(at + 1..at + 3)?, 16).ok();
    let mut decoded = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if let Some(byte) = code(at).filter(|_| bytes[at] == b'%') {
            decoded.push(byte);
            at += 3;
        } else {
            decoded.push(bytes[at]);
            at += 1;
        }
    }
    decoded
}

/// Escapes of two, three and four bytes where one would do, and of `%uXXXX`, read as ASCII; full-width letters as well.
fn overlong(path: &str) -> String {
    let folded = path.replace("%u00", "%").replace("%c1%9c", "\\").replace("%c0%af", "/").replace("%c0%ae", ".");
    let folded = folded.replace("%e0%80%af", "/").replace("%e0%80%ae", ".").replace("%f0%80%80%af", "/");
    folded
        .chars()
        .map(|c| match u32::from(c) {
            code @ 0xff01..=0xff5e => char::from_u32(code - 0xfee0).unwrap_or(c),
            _ => c,
        })
        .collect()
}
