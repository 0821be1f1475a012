//! The load benchmarks: the node daemon as it ships, under load and against a real API server (`benches/benches/load`).

use std::path::Path;

use anyhow::Context;

use super::Row;
use crate::{paths, run::Cmd, setup::packages, term};

/// Builds the daemons and runs both parts.
///
/// # Errors
/// When they cannot run.
pub(super) fn rows(assets: &Path, quick: bool) -> anyhow::Result<Vec<Row>> {
    packages::ensure(packages::NETWORK)?;
    let daemons = ["--package", "identity-controller", "--package", "identity-node"];
    Cmd::cargo().args(["build", "--quiet", "--locked", "--release"]).args(daemons).run()?;
    let directory = paths::target().join("bench");
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let mut rows = Vec::new();
    for (part, heading) in [
        ("tokens", "Tokens: warm, at fixed rates, beside a pod that hammers, cold"),
        ("cluster", "The node with a real kube-apiserver: memory, first tokens, calls"),
    ] {
        term::heading(heading);
        let text = Cmd::cargo()
            .args(["bench", "--quiet", "--locked", "--package", "benches", "--bench", "load", "--", part])
            .args(quick.then_some("--quick"))
            .env("KUBEBUILDER_ASSETS", assets)
            .env("IDENTITY_CONTROLLER", paths::target().join("release/identity-controller"))
            .env("IDENTITY_NODE", paths::target().join("release/identity-node"))
            .env("BENCH_DIR", &directory)
            .text()?;
        let new: Vec<Row> = serde_json::from_str(text.trim()).with_context(|| format!("not rows: {text}"))?;
        rows.extend(new);
    }
    Ok(rows)
}
