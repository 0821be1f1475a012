//! Load on the node: the daemon as it ships, behind real netfilter in network namespaces, beside a bare hyper server.
//!
//! `cargo xtask bench` calls it with `tokens` or `cluster` and `--quick` and sets the variables; it prints rows of JSON. It
//! needs root, or a kernel that gives users namespaces. Its other words (`bare`, `generate`) are for itself.

mod client;
mod cluster;
mod generator;
mod objects;
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
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["bare", listen, size] => servers::bare(listen.parse()?, size.parse()?),
        ["generate", plan] => print(&generator::run(serde_json::from_str(plan)?)?),
        ["cluster", more @ ..] if more.iter().all(|word| *word == "--quick") => {
            measure(None, more.contains(&"--quick"))
        }
        ["tokens", more @ ..] if more.iter().all(|word| *word == "--quick" || tokens::PARTS.contains(word)) => {
            let parts: Vec<&str> = more.iter().copied().filter(|word| *word != "--quick").collect();
            measure(Some(if parts.is_empty() { &tokens::PARTS } else { &parts }), more.contains(&"--quick"))
        }
        _ => bail!(
            "usage: cargo bench --bench load -- tokens|cluster [--quick]  (`cargo xtask bench` sets what else it needs); for a \
             profile, only some of the tokens: {}",
            tokens::PARTS.join(" ")
        ),
    }
}

/// Some parts of the token path, or what depends on a cluster.
fn measure(parts: Option<&[&str]>, quick: bool) -> anyhow::Result<()> {
    let programs =
        Programs { node: variable("IDENTITY_NODE")?.into(), controller: variable("IDENTITY_CONTROLLER")?.into() };
    let assets = PathBuf::from(variable("KUBEBUILDER_ASSETS")?);
    // On disk, as a container's log is: a log in memory would be cheaper.
    let work = tempfile::tempdir_in(Path::new(&variable("BENCH_DIR")?))?;
    let namespaces = Namespaces::new(work.path(), PODS)?;
    let netns = namespaces.pods();
    let runtime = tokio::runtime::Runtime::new()?;
    let rows = runtime.block_on(async {
        let measured = async {
            match parts {
                Some(parts) => tokens::measure(&programs, netns, work.path(), PODS, parts, quick).await,
                None => cluster::measure(&programs, &assets, netns, work.path(), PODS, quick).await,
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
