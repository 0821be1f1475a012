//! What every daemon has.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{counter::ConstCounter, info::Info},
    registry::Registry,
};

use super::PREFIX;
use crate::{VERSION, lost_log_lines, traces};

pub(super) fn register(registry: &mut Registry) {
    let registry = registry.sub_registry_with_prefix(PREFIX);
    registry.register("build", "The version of the daemon", Info::new([("version", VERSION)]));
    registry.register_collector(Box::new(Lost));
}

#[derive(Debug)]
struct Lost;

impl Collector for Lost {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (exported, lost) = traces::counts();
        for (name, help, value) in [
            (
                "log_lines_lost",
                "Lines of the log that were lost, because nobody read it or its disk was full",
                lost_log_lines(),
            ),
            ("trace_spans_exported", "Spans that the collector of --otlp-endpoint took", exported),
            (
                "trace_spans_lost",
                "Spans that were lost, because there were too many or the collector did not take them",
                lost,
            ),
        ] {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}
