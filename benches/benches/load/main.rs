//! Load on the node: the daemon as it ships, behind real netfilter in network namespaces, beside a bare hyper server.
//!
//! `cargo xtask bench` calls it with `tokens`, `cluster` or `growth` and `--quick` and sets the variables; it prints rows of
//! JSON. It needs root, or a kernel that gives users namespaces. Its other words (`bare`, `generate`) are for itself.

mod audit;
mod client;
mod cluster;
mod generator;
mod growth;
mod objects;
mod profile;
mod rows;
mod servers;
mod stage;
mod tokens;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, bail};

use self::stage::{Namespaces, Programs};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const NAMESPACE: &str = "bench";
const NODE: &str = "bench-node";
const TENANT: &str = "11111111-1111-4111-8111-111111111111";
const PODS: usize = 250;

fn main() -> anyhow::Result<()> {
    // `cargo bench` adds `--bench`.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let quick = words.iter().any(|word| word == "--quick");
    match words.iter().map(String::as_str).filter(|word| *word != "--quick").collect::<Vec<_>>().as_slice() {
        ["bare", listen, size] => servers::bare(listen.parse()?, size.parse()?),
        ["generate", plan] => print(&generator::run(serde_json::from_str(plan)?)?),
        ["cluster"] => measure(&What::Cluster, quick),
        ["growth"] => measure(&What::Growth, quick),
        ["tokens"] => measure(&What::Tokens(&tokens::PARTS), quick),
        ["tokens", parts @ ..] if parts.iter().all(|part| tokens::PARTS.contains(part) || *part == tokens::PROFILE) => {
            measure(&What::Tokens(parts), quick)
        }
        _ => bail!(
            "usage: cargo bench --bench load -- tokens|cluster|growth [--quick]  (`cargo xtask bench` sets what else it \
             needs); or only some of the tokens: {} {}",
            tokens::PARTS.join(" "),
            tokens::PROFILE
        ),
    }
}

/// What is to be measured.
enum What<'a> {
    /// Some parts of the token path; objects from manifests.
    Tokens(&'a [&'a str]),
    /// What depends on a cluster.
    Cluster,
    /// How it grows; on a cluster as well.
    Growth,
}

fn measure(what: &What<'_>, quick: bool) -> anyhow::Result<()> {
    let programs = Programs {
        node: variable("IDENTITY_NODE")?.into(),
        unaudited: match what {
            What::Tokens(parts) if parts.contains(&tokens::AUDIT) => Some(variable("IDENTITY_NODE_UNAUDITED")?.into()),
            _ => None,
        },
        controller: variable("IDENTITY_CONTROLLER")?.into(),
    };
    let assets = PathBuf::from(variable("KUBEBUILDER_ASSETS")?);
    // On disk, as a container's log is: a log in memory would be cheaper.
    let work = tempfile::tempdir_in(Path::new(&variable("BENCH_DIR")?))?;
    let pods = if matches!(what, What::Growth) { growth::MOST_PODS } else { PODS };
    let namespaces = Namespaces::new(work.path(), pods)?;
    let netns = namespaces.pods();
    let runtime = tokio::runtime::Runtime::new()?;
    let rows = runtime.block_on(async {
        let measured = async {
            match what {
                What::Tokens(parts) => tokens::measure(&programs, netns, work.path(), pods, parts, quick).await,
                What::Cluster => cluster::measure(&programs, &assets, netns, work.path(), pods, quick).await,
                What::Growth => growth::measure(&programs, &assets, netns, work.path(), quick).await,
            }
        };
        tokio::select! {
            rows = measured => rows,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        }
    });
    drop(runtime);
    drop(namespaces);
    print(&rows?)
}

fn print(value: &impl serde::Serialize) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{}", serde_json::to_string(value)?)?;
    Ok(())
}

/// What goes on, for who watches.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The client id of an identity.
fn client_id(number: usize) -> String {
    format!("aaaaaaaa-0000-4000-8000-{number:012}")
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "the benchmark gets its paths from `cargo xtask bench`")]
fn variable(name: &str) -> anyhow::Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set: run `cargo xtask bench`"))
}
