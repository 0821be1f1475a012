//! `identity-controller`: reads pods, identities and bindings, writes assignments, conditions and Events. Wiring only; the
//! work is [`identity_core::runtime::controller`].

mod args;
mod audit;
mod checks;

use std::{process::ExitCode, sync::Arc};

use clap::Parser as _;
use identity_broker::{Checker, Sources};
use identity_core::{
    assign::Options,
    grant::Proof,
    runtime::{
        controller::{self, Config, Credentials, Health},
        identities::Identities,
        lease::{self, Leadership},
        secrets::{self, Secrets},
        source::Source,
    },
};
use identity_process::{
    FollowedIdentities, FollowedSecrets, Missing, Probes, Pulse, RuntimeMetrics, Supervisor, SystemClock, Traces,
    VERSION,
    metrics::{controller_metrics, export_audit},
    now, shutdown_on_signal,
};
use jiff::SignedDuration;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tracing::{info, warn};

use self::{args::Args, checks::Tried};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Secrets that are followed at once: those of a cluster, where a node has those of its pods.
const SECRETS: usize = 512;

fn main() -> ExitCode {
    let args = Args::parse();
    // One task owns the index; the rest is waiting for the API server.
    let traces = Traces::new(&args.traces, &args.upstream, "identity-controller", None);
    identity_process::run(&args.log.clone(), traces, 2, run(args))
}

async fn run(args: Args) -> anyhow::Result<()> {
    let shutdown = shutdown_on_signal()?;
    let source = args.source.open().await?;
    let lease = lease::Config {
        namespace: args.lease_namespace.clone(),
        name: args.lease_name.clone(),
        duration: args.lease_duration,
        holder: args.holder()?,
    };
    info!(version = VERSION, holder = lease.holder, "identity-controller");

    let mut registry = Registry::default();
    let observer = controller_metrics(&mut registry, args.probes.compat_metrics);
    let (health, watched) = watch::channel(Health::default());
    let options = Options {
        cluster_wide: args.cluster_wide_matching,
        // Nobody else collects what manifests leave behind.
        orphan_grace: if args.source.is_manifests() { SignedDuration::ZERO } else { Options::default().orphan_grace },
        proof: args.unproven_grants.then_some(Proof::Waived),
        ..Options::default()
    };
    if args.unproven_grants {
        warn!("--unproven-grants: whoever may write an AzureIdentityGrant can ask and approve in any name");
    }
    let audit = args.audit.open(&lease.holder).await?;
    export_audit(&mut registry, audit::Told(audit.clone()));
    let identities = Identities::default();
    let credentials = credentials(&args, &source, &identities, observer.clone())?;
    let config = Config {
        options,
        observer,
        health,
        credentials,
        identities: Some(identities),
        audit: Some(audit.clone()),
        ..Config::new(lease, Arc::new(SystemClock))
    };

    let pulse = Pulse::default();
    let ready = Arc::new(move || missing(&watched.borrow()));
    let probes = Probes { ready, pulse: pulse.clone(), registry: Arc::new(registry) };
    let served = args.probes.listen(probes, shutdown.clone()).await?;
    let mut parts = Supervisor::new(shutdown.clone(), pulse);
    parts.add("the probes", served);
    parts.add("the controller", async move { Ok(controller::run(config, source, shutdown).await?) });
    let result = parts.run().await;
    audit.close().await;
    result
}

/// How credentials are tried, where the operator wants that.
fn credentials(
    args: &Args,
    source: &Source,
    identities: &Identities,
    observer: Arc<RuntimeMetrics>,
) -> anyhow::Result<Option<Credentials>> {
    let Some(interval) = args.credential_interval() else { return Ok(None) };
    let secrets = Secrets::with(source, secrets::Config { most: SECRETS, observer, ..secrets::Config::default() });
    let sources = Sources {
        secrets: Arc::new(FollowedSecrets(secrets.clone())),
        identities: Some(Arc::new(FollowedIdentities(identities.clone()))),
        // Only nodes have them.
        assertions: None,
    };
    let checker = Checker::new(args.upstream.config(), args.upstream.tls()?, sources, now);
    Ok(Some(Credentials { interval, ..Credentials::new(Arc::new(Tried(checker)), secrets) }))
}

fn missing(health: &Health) -> Vec<Missing> {
    let mut missing = Vec::new();
    if !health.synced {
        missing.push(Missing::new("objects", "not every kind of object was listed yet"));
    }
    if health.leadership == Leadership::Unknown {
        missing.push(Missing::new("lease", "who holds the lease is not known"));
    }
    missing
}
