//! `identityctl`: why a pod gets a token or not, what the daemons install, what they recorded; and access for a while: asked for,
//! approved, taken back.

mod args;
mod audit;
mod explain;
mod grants;
mod table;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Parser as _;
use identity_netfilter::{Redirect, render};

use self::args::{Args, Command, Rules};

fn main() -> ExitCode {
    let args = Args::parse();
    match run(args) {
        Ok(code) => code,
        Err(error) => {
            // Nobody is left to be told when standard error is closed.
            let _ = writeln!(io::stderr(), "error: {error:#}");
            if grants::is_refusal(&error) { ExitCode::from(3) } else { ExitCode::FAILURE }
        }
    }
}

fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Explain(explain) => runtime()?.block_on(explain::run(&explain)),
        Command::Crds => {
            let documents = identity_crd::crds()
                .iter()
                .map(|crd| serde_saphyr::to_string(crd).context("a CRD cannot be written as YAML"))
                .collect::<anyhow::Result<Vec<_>>>()?;
            say(&documents.iter().map(|text| format!("---\n{}\n", text.trim_end())).collect::<Vec<_>>().concat())
        }
        Command::Rules(rules) => say(&rendered(rules)?),
        Command::Audit(audit) => audit::run(&audit),
        Command::Request(args) => runtime()?.block_on(grants::request(&args)),
        Command::Open(args) => runtime()?.block_on(grants::open(&args)),
        Command::Close(args) => runtime()?.block_on(grants::close(&args)),
        Command::Approve(args) => runtime()?.block_on(grants::approve(&args)),
        Command::Deny(args) => runtime()?.block_on(grants::deny(&args)),
        Command::Revoke(args) => runtime()?.block_on(grants::revoke(&args)),
        Command::Grants(args) => runtime()?.block_on(grants::list(&args)),
    }
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn rendered(rules: Rules) -> anyhow::Result<String> {
    let to = std::net::SocketAddrV4::new(rules.node_address, rules.port);
    Ok(render(rules.backend, &Redirect::new(Redirect::METADATA, to).context("--node-address")?))
}

/// A reader that stopped reading (`| head`) has what it wanted.
fn say(text: &str) -> anyhow::Result<ExitCode> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("standard output"),
        _ => Ok(ExitCode::SUCCESS),
    }
}
