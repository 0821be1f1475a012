//! `identity-node`: redirects the metadata endpoint of one node's pods to itself and answers it. Wiring only; the work is
//! in [`identity_netfilter`], [`identity_core::runtime::node`] and [`identity_broker`].

mod args;
mod audit;
mod checkpoints;
mod credentials;
mod events;
mod metadata;
mod netfilter;
#[cfg(test)]
mod swap_tests;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddrV4},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use clap::Parser as _;
use identity_broker::{
    Azure, Broker, BrokerConfig, Kernel, Manager, ManagerConfig, RotationConfig, ServerConfig, Sources, UpstreamConfig,
    audit::journal::Journal,
    federated::{Assertions, PodTokens, TokenFile},
    metadata::{Passthrough, PassthroughConfig},
    serve,
};
use identity_core::{
    lookup::{Options, Published},
    runtime::{
        audit_events::AuditEvents,
        executor::Announcer,
        identities::Identities,
        node,
        secrets::{self, Secrets},
        source::Source,
        token_request::TokenRequests,
    },
};
use identity_netfilter::{Redirect, State};
use identity_process::{
    FollowedIdentities, FollowedSecrets, Missing, Probes, Pulse, RequestedTokens, Supervisor, SystemClock, Traces,
    VERSION,
    metrics::{NodeMetrics, export_audit, export_netfilter},
    now, remote_parent, shutdown_on_signal,
};
use prometheus_client::registry::Registry;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tracing::{info, warn};

use self::{args::Args, audit::Told, checkpoints::Leaving};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// News of pods and identities that wait to be taken in.
const NEWS: usize = 4096;

fn main() -> ExitCode {
    let args = Args::parse();
    let log = args.log.clone();
    if args.netfilter.remove_rules {
        return identity_process::run(&log, Traces::none(), 1, netfilter::remove());
    }
    // The tokens of one node's pods; more threads would only cost memory.
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    let traces = Traces::new(&args.traces, &args.upstream, "identity-node", args.node.node_name.as_deref());
    identity_process::run(&log, traces, threads, run(args))
}

async fn run(args: Args) -> anyhow::Result<()> {
    let shutdown = shutdown_on_signal()?;
    let (Some(name), Some(address)) = (args.node.node_name.clone(), args.node.node_address) else {
        anyhow::bail!("--node-name and --node-address are missing");
    };
    let listen = SocketAddrV4::new(address, args.node.port);
    let redirect = Redirect::new(Redirect::METADATA, listen).context("--node-address")?;
    let source = args.source.open().await?;
    info!(version = VERSION, node = name, "identity-node");
    if cfg!(feature = "unaudited") {
        warn!("this build is for a benchmark and must not be shipped: --audit-log=never hands out unrecorded tokens");
    }

    let mut registry = Registry::default();
    let NodeMetrics { runtime: observer, broker: metrics, events: event_metrics } =
        NodeMetrics::new(&mut registry, args.probes.compat_metrics);

    let published = Arc::new(Published::default());
    let (synced, is_synced) = watch::channel(false);
    let identities = Identities::default();
    let (news, what_is_new) = mpsc::channel(NEWS);
    let follow = node::Config {
        addresses: own_addresses(address)?,
        options: Options {
            cluster_wide: args.node.cluster_wide_matching,
            exception_namespaces: args.metadata.exception_namespaces.iter().cloned().collect(),
            ..Options::default()
        },
        observer: observer.clone(),
        identities: Some(identities.clone()),
        news: Some(news),
        ..node::Config::new(name.clone())
    };

    let upstream = args.upstream.config();
    let upstream = UpstreamConfig {
        metadata_endpoint: args.tokens.metadata_endpoint.clone(),
        rotation: RotationConfig { vault_poll: args.tokens.vault_poll, ..upstream.rotation },
        ..upstream
    };
    let follow_secrets = secrets::Config { observer: observer.clone(), ..secrets::Config::default() };
    let pod_tokens = pod_tokens(&args, &source)?;
    let sources = Sources {
        secrets: Arc::new(FollowedSecrets(Secrets::with(&source, follow_secrets))),
        identities: Some(Arc::new(FollowedIdentities(identities))),
        assertions: Some(Arc::new(assertions(&args, pod_tokens.clone()))),
    };
    let azure = Azure::new(upstream, args.upstream.tls()?, sources, now, metrics.clone());
    let imds_budget = azure.imds_budget();
    let manager = ManagerConfig { prefetch: args.tokens.prefetch.into(), ..ManagerConfig::default() };
    let tokens = Manager::new(azure, now, manager, metrics.clone());
    let (announcer, announcing) = Announcer::new(&source, &name, Arc::new(SystemClock), observer, shutdown.clone());
    let on_audit_failure = args.tokens.audit_on_failure;
    let (audit, journal) = args.audit.open(&name, args.log.log_format, on_audit_failure).await?;
    let every = args.audit.journal.checkpoint_interval();
    let follow_checkpoints = |journal: &Arc<Journal>| args.audit.checkpoints.follow(journal, every, &source, &name);
    let leaving = journal.as_ref().map(follow_checkpoints).transpose()?;
    let writer = AuditEvents::new(&source, Arc::new(SystemClock));
    let events = event_metrics.clone();
    let (audit, counting) = args.events.open(audit, journal.as_deref(), &name, writer, event_metrics, shutdown.clone());
    let audit = Arc::new(audit);
    export_audit(
        &mut registry,
        Told {
            journal: journal.clone(),
            sinks: audit.clone(),
            events,
            leaving: leaving.as_ref().and_then(Leaving::progress),
        },
    );
    let config = BrokerConfig {
        hold: args.tokens.hold,
        on_audit_failure: on_audit_failure.into(),
        node: name.clone(),
        limits: args.tokens.limits(),
        remote_parent: Some(remote_parent),
        ..BrokerConfig::default()
    };
    let rest = PassthroughConfig {
        endpoint: args.tokens.metadata_endpoint.clone(),
        policy: args.metadata.metadata_policy.clone().unwrap_or_default(),
        ..PassthroughConfig::default()
    };
    let rest = Arc::new(Passthrough::new(rest, now, metrics.clone()).within(imds_budget));
    let broker = Broker::with_metadata(published.clone(), tokens.clone(), audit, now, config, metrics, rest);

    // First somebody who answers, then the rules that lead there.
    let listener = TcpListener::bind(listen).await.with_context(|| format!("--node-address {listen}"))?;
    let (rules, state) = netfilter::prepare(args.netfilter.netfilter, redirect).await?;
    if let Some(state) = &state {
        export_netfilter(&mut registry, state.clone());
    }

    let pulse = Pulse::default();
    let probes = Probes {
        pulse: pulse.clone(),
        ready: Arc::new(move || missing(*is_synced.borrow(), state.as_ref().map(|state| state.borrow().clone()))),
        registry: Arc::new(registry),
    };
    let probing = args.probes.listen(probes, shutdown.clone()).await?;

    let mut parts = Supervisor::new(shutdown.clone(), pulse.clone());
    parts.add("the probes", probing);
    if let Some(rules) = rules {
        let stop = shutdown.clone();
        parts.add("the redirect", async move {
            rules.keep(stop).await;
            Ok(())
        });
    }
    let stop = shutdown.clone();
    parts.add("following the objects of this node", {
        let published = published.clone();
        async move { Ok(node::run(follow, source, published, synced, stop).await?) }
    });
    let stop = shutdown.clone();
    parts.add("the clock", {
        let published = published.clone();
        async move {
            stop.run_until_cancelled(watch_clock(published)).await;
            Ok(())
        }
    });
    let stop = shutdown.clone();
    parts.add("looking whether tokens are given", {
        let tokens = tokens.clone();
        async move {
            let asking = pulse.ask("the token manager", || tokens.answers());
            stop.run_until_cancelled(asking).await;
            Ok(())
        }
    });
    let stop = shutdown.clone();
    parts.add("telling of credentials", {
        let told = credentials::tell(tokens.notices(), announcer);
        let kept = credentials::keep_up(what_is_new, tokens, pod_tokens);
        async move {
            let all = async { tokio::join!(told, kept, announcing) };
            Box::pin(stop.run_until_cancelled(all)).await;
            Ok(())
        }
    });
    if let Some(journal) = journal.clone() {
        let stop = shutdown.clone();
        // When its thread has panicked, every record is refused for ever: only a new process helps.
        parts.add("the audit journal", async move {
            stop.run_until_cancelled(journal.ended()).await;
            Ok(())
        });
    }
    if let Some(counting) = counting {
        parts.add("audit events", async move {
            counting.await;
            Ok(())
        });
    }
    parts.add("the endpoint", async move {
        serve(listener, Kernel, broker, ServerConfig::default(), shutdown).await;
        Ok(())
    });
    let ended = parts.run().await;
    if let Some(journal) = journal {
        journal.close().await;
    }
    if let Some(leaving) = leaving {
        leaving.finish().await;
    }
    ended
}

/// Shows the time to what is published, also while nobody asks: what a clock says that is put back later was said.
async fn watch_clock(published: Arc<Published>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        published.load().pass(now());
    }
}

/// What identities of type 3 show Entra.
fn assertions(args: &Args, pod_tokens: Option<TokenRequests>) -> Assertions {
    let file = args.tokens.federated_token_file.as_ref().map(|path| TokenFile::new(path, now));
    let pods = pod_tokens.map(|tokens| -> Arc<dyn PodTokens> { Arc::new(RequestedTokens(tokens)) });
    Assertions::new(file, pods, now)
}

/// Makes tokens of pods' service accounts, where the operator said so.
fn pod_tokens(args: &Args, source: &Source) -> anyhow::Result<Option<TokenRequests>> {
    match source {
        _ if !args.tokens.federated_pod_subjects => Ok(None),
        Source::Kubernetes(client) => Ok(Some(TokenRequests::new(client.clone(), Arc::new(SystemClock)))),
        Source::Manifests(_) => {
            anyhow::bail!(
                "--federated-pod-subjects needs an API server, which makes the tokens: there is none with --manifests"
            )
        }
    }
}

/// All addresses that are the node's own: no pod's.
fn own_addresses(address: std::net::Ipv4Addr) -> anyhow::Result<Vec<IpAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs().context("the addresses of this node cannot be read")?;
    let mut all: BTreeSet<IpAddr> = interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))
        })
        .collect();
    all.insert(address.into());
    Ok(all.into_iter().collect())
}

fn missing(synced: bool, rules: Option<State>) -> Vec<Missing> {
    let mut missing = Vec::new();
    if !synced {
        let message = "the pods, assignments and bindings of this node were not listed yet";
        missing.push(Missing::new("objects", message));
    }
    if let Some(state) = rules.filter(|state| !state.installed) {
        let why = state.last_error.map_or(String::new(), |error| format!(": {error}"));
        missing.push(Missing::new("redirect", format!("the redirect is not in force{why}")));
    }
    missing
}
