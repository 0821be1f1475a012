//! Where things are: the checkout, the cache, what cargo built.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// An environment variable; an empty one counts as absent.
#[expect(clippy::disallowed_methods, reason = "the room that reads the environment of the developers' commands")]
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Names of all environment variables.
#[expect(clippy::disallowed_methods, reason = "the room that reads the environment of the developers' commands")]
pub fn variable_names() -> Vec<String> {
    std::env::vars().map(|(name, _)| name).collect()
}

/// Root of the checkout.
pub fn root() -> PathBuf {
    // Cargo says at run time where the package is; what was compiled in may be another checkout with the same target
    // directory.
    let package = variable("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").to_owned());
    // bins/xtask -> bins -> root
    Path::new(&package).ancestors().nth(2).unwrap_or(Path::new(".")).to_owned()
}

/// Where installed and built tools are kept between runs: `$XDG_CACHE_HOME/entra-pod-identity`, by default below
/// `~/.cache`. It can be deleted at any time.
///
/// # Errors
/// When neither `XDG_CACHE_HOME` nor `HOME` is set, or the directory cannot be made.
pub fn cache() -> anyhow::Result<PathBuf> {
    let base = variable("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set: no place for a cache; set one of them")?;
    let cache = base.join("entra-pod-identity");
    std::fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    Ok(cache)
}

/// Cargo's target directory.
pub fn target() -> PathBuf {
    variable("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A binary of the workspace, as `cargo build` leaves it.
pub fn binary(name: &str) -> PathBuf {
    target().join("debug").join(name)
}

/// Whether a program is on the search path (administrators' directories included, as `sudo` would have them).
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = variable("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"])
        .filter(|directory| !directory.is_empty())
        .map(|directory| Path::new(directory).join(name))
        .find(|candidate| candidate.is_file())
}
