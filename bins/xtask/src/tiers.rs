//! `cargo xtask test`: the four tiers. A tier that cannot run, or runs no test, has failed.

use std::io::{BufRead, BufReader};

use anyhow::{Context, bail};

use crate::{
    clock::Stopwatch,
    kit::page,
    run::Cmd,
    setup::{self, packages},
    term,
};

/// Arguments of `test`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Which tiers; all of them when none is named.
    tiers: Vec<Tier>,
    /// Put the tier sdk's table into docs/compatibility.md. Without it, a table that says otherwise fails the tier.
    #[arg(long)]
    write: bool,
}

/// A tier of tests, by what it needs.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Nothing but Rust.
    Unit,
    /// Root, or user namespaces: real netfilter in network namespaces.
    Netns,
    /// A real kube-apiserver and etcd.
    Kube,
    /// Unmodified Azure SDKs in pods.
    Sdk,
}

impl Tier {
    const ALL: [Self; 4] = [Self::Unit, Self::Netns, Self::Kube, Self::Sdk];

    const fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Netns => "netns",
            Self::Kube => "kube",
            Self::Sdk => "sdk",
        }
    }

    /// Installs what the tier needs.
    fn prepare(self) -> anyhow::Result<()> {
        match self {
            Self::Unit => packages::ensure(packages::BUILD),
            Self::Netns => packages::ensure(packages::NETWORK),
            Self::Kube => {
                packages::ensure(packages::NETWORK)?;
                // Tours of the demo let an SDK ask.
                setup::sdk::ensure()?;
                setup::kube::assets().map(drop)
            }
            Self::Sdk => {
                packages::ensure(packages::NETWORK)?;
                setup::sdk::ensure_all().map(drop)
            }
        }
    }

    fn command(self) -> anyhow::Result<Cmd> {
        let command = Cmd::cargo().args(["test", "--workspace", "--locked", "--no-fail-fast"]);
        Ok(match self {
            Self::Unit => command,
            Self::Netns => command.args(["--test", "netns_*"]),
            Self::Kube => command.args(["--test", "kube_*"]).env("KUBEBUILDER_ASSETS", setup::kube::assets()?),
            // The output of a test that passes is its table.
            Self::Sdk => command.args(["--test", "sdk_*", "--", "--show-output"]),
        })
    }
}

/// What a tier came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Test programs (and sets of documentation examples) that ran at least one test.
    pub programs: u32,
    /// Tests that passed.
    pub passed: u32,
    /// Tests that failed; 1 when the tier failed without any.
    pub failed: u32,
    /// Tests marked `#[ignore]`.
    pub ignored: u32,
}

impl Counts {
    /// Takes in a line of a test program: `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
    pub fn read(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("test result: ") else { return };
        let number = |word: &str| -> u32 {
            rest.split(['.', ';'])
                .find_map(|part| part.trim().strip_suffix(word).and_then(|number| number.trim().parse().ok()))
                .unwrap_or(0)
        };
        let (passed, failed) = (number("passed"), number("failed"));
        self.passed += passed;
        self.failed += failed;
        self.ignored += number("ignored");
        self.programs += u32::from(passed + failed > 0);
    }
}

/// Runs the tiers.
///
/// # Errors
/// When a test or a tier failed.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let tiers = if arguments.tiers.is_empty() { Tier::ALL.to_vec() } else { arguments.tiers.clone() };
    let watch = Stopwatch::start();
    let mut table = term::Table::new(["tier", "programs", "passed", "failed", "ignored", "time", "note"]);
    let mut total = Counts::default();
    term::heading("Set-up");
    packages::ensure(packages::BUILD)?;
    setup::build().context("the tests need the binaries")?;
    for tier in tiers {
        term::heading(format_args!("Tier {}", tier.name()));
        let watch = Stopwatch::start();
        let mut counts = Counts::default();
        let note = match tier_result(tier, &mut counts).and_then(|()| published(tier, arguments.write)) {
            Ok(()) => String::new(),
            Err(error) => {
                counts.failed = counts.failed.max(1);
                term::failure(&format!("tier {}: {error:#}", tier.name()));
                format!("{error}")
            }
        };
        table.row([
            tier.name().to_owned(),
            counts.programs.to_string(),
            counts.passed.to_string(),
            counts.failed.to_string(),
            counts.ignored.to_string(),
            watch.seconds(),
            note.lines().next().unwrap_or_default().to_owned(),
        ]);
        total.passed += counts.passed;
        total.failed += counts.failed;
    }
    term::heading(format_args!("Tests, {} in all", watch.seconds()));
    table.print();
    term::line("");
    term::line(format_args!("{} passed, {} failed", total.passed, total.failed));
    if total.failed > 0 {
        bail!("tests failed");
    }
    Ok(())
}

/// The tier sdk's table must be the published one.
fn published(tier: Tier, write: bool) -> anyhow::Result<()> {
    match (tier, write) {
        (Tier::Sdk, true) => page::publish(),
        (Tier::Sdk, false) => page::compare(),
        _ => Ok(()),
    }
}

fn tier_result(tier: Tier, counts: &mut Counts) -> anyhow::Result<()> {
    tier.prepare().context("its needs could not be met")?;
    let mut child = tier.command()?.piped()?;
    let output = child.stdout.take().context("no output to read")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read the output of the tests")?;
        let line = String::from_utf8_lossy(&line);
        counts.read(&line);
        term::line(line);
    }
    let status = child.wait().context("cannot wait for cargo test")?;
    if !status.success() {
        bail!("cargo test failed ({status})");
    }
    if counts.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_over_programs() {
        let mut counts = Counts::default();
        counts.read("running 3 tests");
        counts.read("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s");
        counts
            .read("test result: FAILED. 12 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 9.01s");
        counts.read("test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 4 filtered out; finished in 0.00s");
        assert_eq!(counts, Counts { programs: 2, passed: 15, failed: 2, ignored: 1 });
    }
}
