//! All metrics of both daemons, registered in one place: what is documented, drawn and alerted on is made from these
//! registries ([`node_sample`], [`controller_sample`]).

mod audit;
mod compat;
mod labels;
mod netfilter;
mod process;
mod runtime;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use identity_broker::{
    Metrics,
    audit::{
        journal::{Checkpoint, Stats},
        series::EventMetrics,
    },
};
use identity_core::{lookup::ObjectRef, object::ObjectKey, runtime::observe::Observer as _};
use identity_netfilter::{Backend, State};
use jiff::Timestamp;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

pub use self::{
    audit::{Journalled, Publication},
    labels::{LABELS, Label},
    netfilter::export_netfilter,
    runtime::RuntimeMetrics,
};

/// Before the name of every metric of ours.
pub const PREFIX: &str = "entra_pod_identity";

/// Metrics of a node daemon.
#[derive(Debug)]
pub struct NodeMetrics {
    /// Of the runtime.
    pub runtime: Arc<RuntimeMetrics>,
    /// Of the endpoint.
    pub broker: Arc<Metrics>,
    /// Of audit Events.
    pub events: EventMetrics,
}

impl NodeMetrics {
    /// Makes them and registers them; with `compat` some under the predecessor's names as well.
    pub fn new(registry: &mut Registry, compat: bool) -> Self {
        process::register(registry);
        let broker = Metrics::new(registry);
        let broker = if compat { broker.with_compat(registry) } else { broker };
        Self {
            runtime: Arc::new(RuntimeMetrics::node(registry.sub_registry_with_prefix("entra_pod_identity_node"))),
            broker: Arc::new(broker),
            events: EventMetrics::new(registry.sub_registry_with_prefix(PREFIX)),
        }
    }
}

/// Metrics of a controller; with `compat` some under the predecessor's names as well.
pub fn controller_metrics(registry: &mut Registry, compat: bool) -> Arc<RuntimeMetrics> {
    process::register(registry);
    let metrics = RuntimeMetrics::controller(registry.sub_registry_with_prefix("entra_pod_identity_controller"));
    Arc::new(if compat { metrics.with_compat(registry) } else { metrics })
}

/// Before the names that the predecessor had.
pub const COMPAT_PREFIX: &str = "aadpodidentity";

/// Exports how the audit of a node or a controller fares.
pub fn export_audit(registry: &mut Registry, journalled: impl Journalled) {
    audit::export(registry.sub_registry_with_prefix(PREFIX), journalled);
}

/// The registry of a node with a series of each metric, also of those that have none until there is an identity.
pub fn node_sample(compat: bool) -> Registry {
    let mut registry = Registry::default();
    let metrics = NodeMetrics::new(&mut registry, compat);
    metrics.broker.credential_expiry(
        &ObjectRef { namespace: "ns".into(), name: "id".into(), uid: "".into(), generation: 0 },
        Some(Timestamp::UNIX_EPOCH),
    );
    export_netfilter(&mut registry, watch::Sender::new(State::new(Backend::Nft)).subscribe());
    export_audit(&mut registry, Sample);
    registry
}

/// The same of a controller.
pub fn controller_sample(compat: bool) -> Registry {
    let mut registry = Registry::default();
    let metrics = controller_metrics(&mut registry, compat);
    metrics.credential(&ObjectKey::new("ns", "id"), Some(true), Some(Timestamp::UNIX_EPOCH));
    export_audit(&mut registry, Sample);
    registry
}

#[derive(Debug)]
struct Sample;

impl Journalled for Sample {
    fn stats(&self) -> Option<(Stats, Option<Checkpoint>)> {
        Some((Stats::default(), None))
    }

    fn lost(&self) -> Vec<(&'static str, u64)> {
        audit::SINKS.map(|sink| (sink, 0)).to_vec()
    }

    fn published(&self) -> Option<Publication> {
        Some(Publication::default())
    }
}
