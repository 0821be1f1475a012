//! The corpus of the fuzz target `manifest` (`fuzz/corpus/manifest`), each input checked as the target checks it.

#![cfg(feature = "runtime")]
#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]

#[path = "../../fuzz/src/manifest.rs"]
#[allow(unreachable_pub, clippy::missing_panics_doc, reason = "a module of the fuzz targets")]
mod manifest;

use std::{fs, panic::catch_unwind, path::Path};

use identity_core::runtime::source::examine;

/// The corpora are small enough to be read by people and kept by git.
const MOST_FILES: usize = 200;
const MOST_BYTES: usize = 200_000;

#[test]
fn manifests() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/manifest");
    let (mut files, mut bytes, mut failed, mut objects, mut problems) = (0, 0, Vec::new(), 0, 0);
    for entry in fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
        let path = entry.unwrap().path();
        let input = fs::read(&path).unwrap();
        (files, bytes) = (files + 1, bytes + input.len());
        if catch_unwind(|| manifest::check(&input)).is_err() {
            failed.push(path.clone());
        }
        let (here, wrong) = examine(&path, &String::from_utf8_lossy(&input));
        objects += here.len();
        problems += wrong.len();
    }
    assert!(failed.is_empty(), "{failed:?}");
    assert!((1..=MOST_FILES).contains(&files) && bytes <= MOST_BYTES, "{files} files, {bytes} bytes");
    // Not all of them for the same reason.
    assert!(objects >= 10 && problems >= 30, "{objects} objects, {problems} problems");
}
