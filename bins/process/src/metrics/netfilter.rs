//! How the redirect stands.

use std::fmt;

use identity_netfilter::State;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use tokio::sync::watch;

use super::PREFIX;

/// Exports the state of the redirect.
pub fn export_netfilter(registry: &mut Registry, state: watch::Receiver<State>) {
    registry.sub_registry_with_prefix(PREFIX).register_collector(Box::new(Exported(state)));
}

#[derive(Debug)]
struct Exported(watch::Receiver<State>);

impl Collector for Exported {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
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
            (
                "netfilter_redirected_connections",
                "Connections whose packets were redirected to this daemon",
                state.redirected_connections,
            ),
            (
                "netfilter_dropped_packets",
                "Packets that would have reached the real endpoint, as they were not redirected, and were dropped; must stay 0",
                state.dropped_packets,
            ),
        ] {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}
