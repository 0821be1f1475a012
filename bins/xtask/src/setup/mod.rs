//! Obtains what a command needs and says what it installs. Everything but Debian packages goes into the cache directory
//! ([`crate::paths::cache`]), keyed by version, so that a second run finds it there.

pub mod kube;
pub mod packages;
pub mod sdk;
pub mod tools;

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::{clock::Stopwatch, files, paths, run::Cmd, term};

/// A directory in the cache that is either complete or made anew.
///
/// # Errors
/// Those of `make`, and of the file system.
pub(crate) fn cached(
    name: &str,
    what: &str,
    make: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let cache = paths::cache()?;
    let directory = cache.join(name);
    let complete = directory.join(".complete");
    if complete.exists() {
        return Ok(directory);
    }
    let _lock = files::lock(&cache.join(format!(".{name}.lock")))?;
    if complete.exists() {
        return Ok(directory);
    }
    term::step(format_args!("installing {what} into {}", directory.display()));
    let watch = Stopwatch::start();
    if directory.exists() {
        std::fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    make(&directory).with_context(|| format!("cannot install {what}"))?;
    files::replace(&complete, "")?;
    term::step(format_args!("installed {what} in {}", watch.seconds()));
    Ok(directory)
}

/// A virtual environment with the packages of a hashed requirements file.
///
/// # Errors
/// What pip says.
pub(crate) fn python_environment(name: &str, what: &str, requirements: &Path) -> anyhow::Result<PathBuf> {
    packages::ensure(packages::PYTHON)?;
    let text = files::read(requirements)?;
    let version = Cmd::new("python3").arg("--version").text()?;
    cached(&format!("{name}-{}", files::key(&[&text, version.trim()])), what, |directory| {
        Cmd::new("python3").args(["-m", "venv"]).arg(directory).run_quietly()?;
        Cmd::new(directory.join("bin/python"))
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"])
            .args(["--require-hashes", "--only-binary", ":all:", "-r"])
            .arg(requirements)
            .run_quietly()
    })
}

/// Builds the binaries that the demo and the tests run.
///
/// # Errors
/// When the build fails.
pub fn build() -> anyhow::Result<()> {
    let watch = Stopwatch::start();
    Cmd::cargo()
        .args(["build", "--quiet", "--locked"])
        .args(["--package", "identity-controller", "--package", "identity-node"])
        .args(["--package", "identityctl", "--package", "identity-lab"])
        .run()?;
    term::step(format_args!(
        "built identity-controller, identity-node, identityctl, identity-lab in {}",
        watch.seconds()
    ));
    Ok(())
}
