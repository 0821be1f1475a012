//! Cargo subcommands, built once into the cache.

use std::path::PathBuf;

use crate::{run::Cmd, setup};

const CARGO_DENY: &str = "0.20.2";

/// cargo-deny, which checks licences, banned crates and sources.
///
/// # Errors
/// When it cannot be built.
pub fn cargo_deny() -> anyhow::Result<PathBuf> {
    let name = format!("cargo-deny-{CARGO_DENY}");
    let directory = setup::cached(&name, &format!("cargo-deny {CARGO_DENY} (about 90 s)"), |directory| {
        // It runs for a second: a build that does not optimise much is the faster one in total.
        Cmd::cargo()
            .args(["install", "cargo-deny", "--quiet", "--version", CARGO_DENY, "--locked"])
            .args(["--config", "profile.release.opt-level=1", "--config", "profile.release.lto=false", "--root"])
            .arg(directory)
            .run_quietly()
    })?;
    Ok(directory.join("bin/cargo-deny"))
}
