//! What every daemon has.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{counter::ConstCounter, info::Info},
    registry::Registry,
};

use super::PREFIX;
use crate::{VERSION, lost_log_lines};

pub(super) fn register(registry: &mut Registry) {
    let registry = registry.sub_registry_with_prefix(PREFIX);
    registry.register("build", "The version of the daemon", Info::new([("version", VERSION)]));
    registry.register_collector(Box::new(Lost));
}

#[derive(Debug)]
struct Lost;

impl Collector for Lost {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let lost = ConstCounter::new(lost_log_lines());
        let help = "Lines of the log that were lost, because nobody read it or its disk was full";
        lost.encode(encoder.encode_descriptor("log_lines_lost", help, None, lost.metric_type())?)
    }
}
