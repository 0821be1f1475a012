//! `cargo xtask`: set-up, demo, test tiers, checks, benchmarks, generated files.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{bench, check, demo, fuzz, term, tiers};

/// Development commands of entra-pod-identity. Each installs what it needs and says so.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build, start the lab and both binaries, let unmodified Azure SDKs in pods get tokens, tell what happens, clean up.
    Demo(demo::Arguments),
    /// Run the test tiers (all of them without arguments): unit, netns, kube, sdk.
    Test(tiers::Arguments),
    /// Run the benchmarks; writes report.json and report.md into target/bench.
    Bench(bench::Arguments),
    /// Run the fuzz targets for a while, each from its corpus.
    Fuzz(fuzz::Arguments),
    /// Write the generated files (CRDs, RBAC, policies).
    Gen {
        /// Only say whether the files on disk are current; fail when they are not.
        #[arg(long)]
        check: bool,
    },
    /// Formatting, lints, licences, generated files, docs, hygiene.
    Check,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Test(arguments) => tiers::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::Gen { check } => check::generated(check),
        Command::Check => check::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            term::failure(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
