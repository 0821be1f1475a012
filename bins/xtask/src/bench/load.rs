//! The load benchmarks: the node daemon as it ships, under load and against a real API server (`benches/benches/load`).

use std::path::Path;

use anyhow::Context;

use super::Row;
use crate::{
    paths,
    run::Cmd,
    setup::packages::{self, Need},
    term,
};

/// What samples stacks.
const PERF: &[Need] = &[("perf", "linux-perf")];

/// The token path, and the node with an API server.
///
/// # Errors
/// When they cannot run.
pub(super) fn load(assets: &Path, quick: bool) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (part, heading) in [
        ("tokens", "Tokens: warm, at fixed rates, beside a pod that hammers, cold"),
        ("cluster", "The node with a real kube-apiserver: memory, first tokens, calls"),
    ] {
        rows.extend(part_of(assets, &[part], heading, quick)?);
    }
    Ok(rows)
}

/// How memory, processor time and latency grow.
///
/// # Errors
/// When it cannot run.
pub(super) fn growth(assets: &Path, quick: bool) -> anyhow::Result<Vec<Row>> {
    part_of(assets, &["growth"], "Growth: 10 to 1,000 pods, 1 to 100 identities, with a real kube-apiserver", quick)
}

/// Where the processor time of a warm token goes.
///
/// # Errors
/// When it cannot run.
pub(super) fn profile(assets: &Path, quick: bool) -> anyhow::Result<Vec<Row>> {
    part_of(assets, &["tokens", "profile"], "Profile: where the processor time of a warm token goes", quick)
}

/// Makes sure that there is a `perf` which can sample a process here: better known before than after the rest.
///
/// # Errors
/// When there is none, or the kernel does not let it.
pub(super) fn can_profile() -> anyhow::Result<()> {
    packages::ensure(PERF)?;
    let nowhere = ["record", "-q", "-e", "cpu-clock", "-o", "/dev/null", "--", "true"];
    Cmd::new("perf").args(nowhere).run_quietly().context(
        "perf cannot sample here (see /proc/sys/kernel/perf_event_paranoid). Name the groups to run, without `profile`",
    )
}

fn part_of(assets: &Path, words: &[&str], heading: &str, quick: bool) -> anyhow::Result<Vec<Row>> {
    packages::ensure(packages::NETWORK)?;
    let directory = paths::target().join("bench");
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let build = ["build", "--quiet", "--locked", "--release", "--package", "identity-node"];
    let (daemon, unaudited) =
        (paths::target().join("release/identity-node"), directory.join("identity-node-unaudited"));
    if words == ["tokens"] || words.contains(&"audit") {
        // It gets the daemon's own name: put aside before the one that ships is built again.
        Cmd::cargo().args(build).args(["--features", "unaudited"]).run()?;
        std::fs::copy(&daemon, &unaudited).with_context(|| format!("cannot make {}", unaudited.display()))?;
    }
    Cmd::cargo().args(build).args(["--package", "identity-controller"]).run()?;
    term::heading(heading);
    let text = Cmd::cargo()
        .args(["bench", "--quiet", "--locked", "--package", "benches", "--bench", "load", "--"])
        .args(words)
        .args(quick.then_some("--quick"))
        .env("KUBEBUILDER_ASSETS", assets)
        .env("IDENTITY_CONTROLLER", paths::target().join("release/identity-controller"))
        .env("IDENTITY_NODE", daemon)
        .env("IDENTITY_NODE_UNAUDITED", unaudited)
        .env("BENCH_DIR", &directory)
        .text()?;
    serde_json::from_str(text.trim()).with_context(|| format!("not rows: {text}"))
}
