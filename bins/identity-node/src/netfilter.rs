//! The redirect: which back end, kept in force, counted.

use std::io::Write as _;

use identity_netfilter::{Keep, Netfilter, Redirect, State, Tools, detect, keep};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::args::NetfilterChoice;

/// Rules to be kept.
pub(crate) struct Rules {
    netfilter: Netfilter,
    state: watch::Sender<State>,
}

impl Rules {
    /// Until `shutdown`; the rules stay.
    pub(crate) async fn keep(self, shutdown: CancellationToken) {
        keep(self.netfilter, Keep::default(), self.state, shutdown.cancelled_owned()).await;
    }
}

/// Finds the programs. None when the choice is to have no rules.
pub(crate) async fn prepare(
    choice: NetfilterChoice,
    redirect: Redirect,
) -> anyhow::Result<(Option<Rules>, Option<watch::Receiver<State>>)> {
    if choice == NetfilterChoice::None {
        info!("no rules, as --netfilter none says: somebody else has to redirect");
        return Ok((None, None));
    }
    let tools = Tools::default();
    let backend = if let Some(backend) = choice.backend() {
        backend
    } else {
        let detected = detect(&tools).await?;
        info!(backend = %detected.backend, why = detected.why, "netfilter back end");
        detected.backend
    };
    let netfilter = Netfilter::new(redirect, backend, tools).await?;
    let (state, watched) = watch::channel(State::new(backend));
    Ok((Some(Rules { netfilter, state }), Some(watched)))
}

/// Takes our rules away and says from where.
pub(crate) async fn remove() -> anyhow::Result<()> {
    let removed = identity_netfilter::remove(&Tools::default()).await?;
    let mut lines: Vec<_> = removed.from.iter().map(|backend| format!("removed the rules of {backend}")).collect();
    if lines.is_empty() {
        lines.push("there were no rules".to_owned());
    }
    lines.extend(
        removed.not_looked.iter().map(|backend| format!("not looked at: {backend}, whose programs are not installed")),
    );
    writeln!(std::io::stdout(), "{}", lines.join("\n"))?;
    Ok(())
}

/// The state as metrics.
#[derive(Debug)]
pub(crate) struct Exported(watch::Receiver<State>);

impl Exported {
    pub(crate) fn register(registry: &mut Registry, state: Option<watch::Receiver<State>>) {
        if let Some(state) = state {
            registry.register_collector(Box::new(Self(state)));
        }
    }
}

impl Collector for Exported {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let state = self.0.borrow().clone();
        let installed = ConstGauge::new(i64::from(state.installed));
        installed.encode(encoder.encode_descriptor(
            "netfilter_installed",
            "Whether the redirect was in force when it was last looked at",
            None,
            installed.metric_type(),
        )?)?;
        for (name, help, value) in [
            ("netfilter_repairs", "How often rules that somebody else changed were repaired", state.repaired),
            ("netfilter_redirected_connections", "Connections redirected", state.redirected_connections),
            (
                "netfilter_dropped_packets",
                "Packets to the endpoint that were not redirected, and dropped",
                state.dropped_packets,
            ),
        ] {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}
