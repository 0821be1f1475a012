//! Debian and Ubuntu packages: installed only when a tool is missing.

use std::collections::BTreeSet;

use anyhow::{Context, bail};

use crate::{paths, run::Cmd, term};

/// A tool and the package it comes in.
pub type Need = (&'static str, &'static str);

/// What the lab and the netns tier use.
pub const NETWORK: &[Need] = &[
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("iptables-restore", "iptables"),
    ("iptables-legacy-restore", "iptables"),
    ("conntrack", "conntrack"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("mount", "mount"),
    ("ps", "procps"),
    ("sysctl", "procps"),
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("faketime", "faketime"),
    ("python3", "python3"),
];

/// Python with `venv`.
pub const PYTHON: &[Need] = &[("python3", "python3"), ("python3 -m venv", "python3-venv")];

/// A Java compiler and Maven.
pub const JAVA: &[Need] = &[("javac", "default-jdk-headless"), ("java", "default-jdk-headless"), ("mvn", "maven")];

/// What cargo's own build of the workspace needs besides Rust.
pub const BUILD: &[Need] = &[("cc", "gcc"), ("ld", "binutils"), ("git", "git")];

/// What libFuzzer is compiled with.
pub const FUZZ: &[Need] = &[("c++", "g++")];

fn present(tool: &str) -> bool {
    match tool {
        "python3 -m venv" => Cmd::new("python3").args(["-c", "import venv, ensurepip"]).succeeds(),
        "cc" => ["cc", "gcc", "clang"].iter().any(|name| paths::find_program(name).is_some()),
        _ => paths::find_program(tool).is_some(),
    }
}

/// Installs the packages of the tools that are missing, if any.
///
/// # Errors
/// Naming the packages to install by hand, when apt-get is missing or fails, or when there is no way to become root.
pub fn ensure(needs: &[Need]) -> anyhow::Result<()> {
    let missing: Vec<&Need> = needs.iter().filter(|(tool, _)| !present(tool)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: BTreeSet<&str> = missing.iter().map(|(_, package)| *package).collect();
    let list = packages.iter().copied().collect::<Vec<_>>().join(" ");
    let tools = missing.iter().map(|(tool, _)| *tool).collect::<Vec<_>>().join(", ");
    let by_hand = format!("missing: {tools}. Install these packages (Debian and Ubuntu names) and try again: {list}");
    if paths::find_program("apt-get").is_none() {
        bail!("{by_hand} (there is no apt-get here to do it)");
    }
    term::step(format_args!("installing Debian packages: {list} (for {tools})"));
    apt_get(&["update", "-qq"]).with_context(|| by_hand.clone())?;
    let mut arguments = vec!["install", "-y", "-qq", "--no-install-recommends"];
    arguments.extend(&packages);
    apt_get(&arguments).with_context(|| by_hand.clone())?;
    match needs.iter().find(|(tool, _)| !present(tool)) {
        Some((tool, package)) => bail!("{package} was installed, and yet there is no `{tool}`"),
        None => Ok(()),
    }
}

fn apt_get(arguments: &[&str]) -> anyhow::Result<()> {
    let root = Cmd::new("id").arg("-u").text()?.trim() == "0";
    let command = if root {
        Cmd::new("apt-get")
    } else if paths::find_program("sudo").is_some() {
        Cmd::new("sudo").args(["-n", "DEBIAN_FRONTEND=noninteractive", "apt-get"])
    } else {
        bail!("packages can be installed only as root, or through sudo, which is not there");
    };
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").run_quietly()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_installed_when_nothing_is_missing() {
        ensure(&[("sh", "dash")]).unwrap();
    }

    #[test]
    fn knows_a_missing_tool() {
        assert!(!present("there-is-no-such-tool"));
        assert!(present("sh"));
    }
}
