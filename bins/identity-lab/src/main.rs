//! `identity-lab`: a node, its pods and the part of Azure they need, on one machine.

mod azure;
mod cli;
mod commands;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    // No runtime here: `exec` and `enter` join namespaces, which a process with several threads cannot.
    commands::run(cli::Cli::parse())
}
