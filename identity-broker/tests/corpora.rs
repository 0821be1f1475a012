//! The corpora of the fuzz targets (`fuzz/corpus/`), each input checked as the targets check it; and that the checks find
//! what they are there for.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]

#[path = "../../fuzz/src/endpoint/mod.rs"]
pub mod checks;

use std::{fs, panic::catch_unwind, path::Path};

use checks::path_normalise::{Reading, other_way_in, text};

/// The corpora are small enough to be read by people and kept by git.
const MOST_FILES: usize = 200;
const MOST_BYTES: usize = 200_000;

/// Name and content of each input.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut inputs: Vec<(String, Vec<u8>)> = fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{} is empty", directory.display());
    inputs
}

fn replay(target: &str, check: fn(&[u8])) {
    let inputs = corpus(target);
    let failed: Vec<&str> = inputs
        .iter()
        .filter(|(_, input)| catch_unwind(|| check(input)).is_err())
        .map(|(name, _)| name.as_str())
        .collect();
    assert!(failed.is_empty(), "fuzz/corpus/{target}: {}", failed.join(", "));
    let bytes: usize = inputs.iter().map(|(_, input)| input.len()).sum();
    assert!(inputs.len() <= MOST_FILES && bytes <= MOST_BYTES, "{target}: {} files, {bytes} bytes", inputs.len());
}

#[test]
fn imds_request() {
    replay("imds_request", checks::imds_request::check);
}

#[test]
fn path_normalise() {
    replay("path_normalise", checks::path_normalise::check);
}

#[test]
fn form_body() {
    replay("form_body", checks::form_body::check);
}

/// Corpora that are all refused for the same reason would check nothing.
#[test]
fn some_inputs_are_taken_and_some_are_not() {
    use identity_broker::endpoint;
    let check = |target: &str, taken: fn(&[u8]) -> bool| {
        let inputs = corpus(target);
        let count = inputs.iter().filter(|(_, input)| taken(input)).count();
        assert!(count >= 5 && inputs.len() - count >= 20, "{target}: {count} of {}", inputs.len());
    };
    check("imds_request", |input| endpoint::imds_request(input).is_ok());
    check("path_normalise", |input| endpoint::path_normalise(&text(input)).is_ok());
    check("form_body", |input| endpoint::form_body(input).is_ok());
}

/// Whether the corpus of paths shows that a reader lets something through.
fn is_found_out(reader: impl Fn(&str) -> Option<Reading>) -> bool {
    corpus("path_normalise").iter().any(|(_, input)| other_way_in(&text(input), &reader).is_some())
}

fn credential(path: &str) -> bool {
    let path = path.to_ascii_lowercase();
    ["/metadata/identity", "/oauth2/token", "/msi/token"].iter().any(|start| path.starts_with(start))
}

/// Routers and proxies as they are written: each has a hole that the corpus finds.
#[test]
fn naive_readers_are_found_out() {
    let as_sent = |path: &str| Some(Reading { credential: credential(path), forwarded: path.to_owned() });
    assert!(is_found_out(as_sent), "the path as it comes");
    let no_odd_characters =
        |path: &str| as_sent(path).filter(|_| path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-_.%".contains(&b)));
    assert!(is_found_out(no_odd_characters), "everything odd refused, nothing decoded");
    let no_escapes = |path: &str| as_sent(path).filter(|_| !path.contains('%'));
    assert!(is_found_out(no_escapes), "no escapes");
    let no_dots = |path: &str| no_odd_characters(path).filter(|_| !path.contains(['%', '.']));
    assert!(is_found_out(no_dots), "empty segments kept");
    let single = |path: &str| no_odd_characters(path).filter(|_| !path.contains(['%', '.']) && !path.contains("//"));
    assert!(!is_found_out(single), "nothing is left to find");
    let with_case =
        |path: &str| single(path).map(|read| Reading { credential: path.starts_with("/metadata/identity"), ..read });
    assert!(is_found_out(with_case), "case, and the older paths");
    let once = |path: &str| {
        let decoded = path.replace("%25", "%").replace("%2f", "/").replace("%5c", "/").replace("%2e", ".");
        let segments: Vec<_> = decoded.split('/').filter(|s| !matches!(*s, "" | "." | "..")).collect();
        as_sent(&format!("/{}", segments.join("/")))
    };
    assert!(is_found_out(once), "decoded once, cleaned, sent on");
    let product = checks::path_normalise::product;
    assert!(!is_found_out(product));
    let raw = |path: &str| product(path).map(|read| Reading { credential: false, ..read });
    assert!(is_found_out(raw), "the product, if it forgot its routes");
}
