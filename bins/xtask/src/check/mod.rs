//! `cargo xtask check`: formatting, lints, licences, generated files, documentation, hygiene. Everything is checked
//! before it fails, so that one run tells all.

mod hygiene;
mod links;

use anyhow::bail;

use crate::{
    clock::Stopwatch,
    paths,
    run::Cmd,
    setup::{self, packages},
    term,
};

type Check = (&'static str, fn() -> anyhow::Result<()>);

const CHECKS: &[Check] = &[
    ("formatting", formatting),
    ("hygiene", hygiene::check),
    ("links", links::check),
    ("lints", lints),
    ("lints without features", lints_without_features),
    ("licences and bans", licences),
    ("generated files", current),
    ("documentation", documentation),
];

/// Runs every check.
///
/// # Errors
/// Naming the checks that failed.
pub fn run() -> anyhow::Result<()> {
    packages::ensure(packages::BUILD)?;
    let mut table = term::Table::new(["check", "result", "time"]);
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        term::heading(format_args!("Check: {name}"));
        let watch = Stopwatch::start();
        let result = check();
        if let Err(error) = &result {
            term::failure(&format!("{name}: {error:#}"));
            failed.push(*name);
        }
        table.row([(*name).to_owned(), if result.is_ok() { "ok" } else { "failed" }.to_owned(), watch.seconds()]);
    }
    term::heading("Checks");
    table.print();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Writes the generated files, or says whether they are current.
///
/// # Errors
/// When they cannot be written, or are not current.
pub fn generated(check: bool) -> anyhow::Result<()> {
    crate::generate::run(&paths::root(), check)
}

fn current() -> anyhow::Result<()> {
    generated(true)
}

fn formatting() -> anyhow::Result<()> {
    Cmd::cargo().args(["fmt", "--all", "--check"]).run()
}

fn lints() -> anyhow::Result<()> {
    let clippy = || Cmd::cargo().args(["clippy", "--quiet", "--workspace", "--locked", "--keep-going"]);
    clippy().args(["--all-targets", "--", "-D", "warnings"]).run()?;
    // The tiers that plain `cargo test` leaves out (`test = false`) are left out by --all-targets as well.
    clippy().args(["--test", "*", "--", "-D", "warnings"]).run()
}

/// In the workspace as a whole every feature is on that any member asks for. Alone, these have fewer.
fn lints_without_features() -> anyhow::Result<()> {
    for words in [
        // The engine, without the Kubernetes glue.
        &["-p", "identity-core", "--lib"][..],
        // The daemons, without traces.
        &["-p", "identity-node", "-p", "identity-controller", "--no-default-features", "--all-targets"],
    ] {
        let clippy = Cmd::cargo().args(["clippy", "--quiet", "--locked", "--keep-going"]).args(words);
        clippy.args(["--", "-D", "warnings"]).run()?;
    }
    Ok(())
}

/// Advisories are left out: they need a database that is no package of a registry.
fn licences() -> anyhow::Result<()> {
    Cmd::new(setup::tools::cargo_deny()?)
        .args(["--locked", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"])
        .dir(paths::root())
        .run()
}

fn documentation() -> anyhow::Result<()> {
    Cmd::cargo()
        .args(["doc", "--quiet", "--workspace", "--no-deps", "--locked", "--keep-going", "--document-private-items"])
        .env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links")
        .run()
}
