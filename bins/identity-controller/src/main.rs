//! `identity-controller`: reads pods, identities and bindings, writes assignments, conditions and Events. Wiring only; the
//! work is [`identity_core::runtime::controller`].

mod args;

use std::{process::ExitCode, sync::Arc};

use clap::Parser as _;
use identity_core::{
    assign::Options,
    runtime::{
        controller::{self, Config, Health},
        lease::{self, Leadership},
    },
};
use identity_process::{Probes, RuntimeMetrics, Supervisor, SystemClock, VERSION, shutdown_on_signal};
use jiff::SignedDuration;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tracing::info;

use self::args::Args;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = Args::parse();
    // One task owns the index; the rest is waiting for the API server.
    identity_process::run(&args.log.clone(), 2, run(args))
}

async fn run(args: Args) -> anyhow::Result<()> {
    let shutdown = shutdown_on_signal()?;
    let source = args.source.open().await?;
    let lease = lease::Config {
        namespace: args.lease_namespace.clone(),
        name: args.lease_name.clone(),
        duration: args.lease_duration(),
        holder: args.holder()?,
    };
    info!(version = VERSION, holder = lease.holder, "identity-controller");

    let mut registry = Registry::with_prefix("entra_pod_identity_controller");
    let observer = Arc::new(RuntimeMetrics::controller(&mut registry));
    let (health, watched) = watch::channel(Health::default());
    let options = Options {
        cluster_wide: args.cluster_wide_matching,
        // Nobody else collects what manifests leave behind.
        orphan_grace: if args.source.is_manifests() { SignedDuration::ZERO } else { Options::default().orphan_grace },
        ..Options::default()
    };
    let config = Config { options, observer, health, ..Config::new(lease, Arc::new(SystemClock)) };

    let probes = Probes { ready: Arc::new(move || missing(&watched.borrow())), registry: Arc::new(registry) };
    let served = probes.listen(args.probe_address, args.metrics_address, shutdown.clone()).await?;
    let mut parts = Supervisor::new(shutdown.clone());
    parts.add("the probes", served);
    parts.add("the controller", async move { Ok(controller::run(config, source, shutdown).await?) });
    parts.run().await
}

fn missing(health: &Health) -> Vec<String> {
    let mut missing = Vec::new();
    if !health.synced {
        missing.push("not every kind of object was listed yet".to_owned());
    }
    if health.leadership == Leadership::Unknown {
        missing.push("who holds the lease is not known".to_owned());
    }
    missing
}
