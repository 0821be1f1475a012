//! Where the spans of requests go, if anywhere: to a collector, over OTLP. Without `--otlp-endpoint`, or without the feature
//! `otlp`, there is nothing of it: no layer, no queue, no task.

#[cfg(feature = "otlp")]
mod args;
#[cfg(feature = "otlp")]
mod export;
#[cfg(feature = "otlp")]
mod layer;
#[cfg(feature = "otlp")]
mod post;
#[cfg(feature = "otlp")]
mod sampler;
#[cfg(feature = "otlp")]
mod shape;
#[cfg(feature = "otlp")]
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};

use tracing_subscriber::{Layer, Registry};

use crate::UpstreamArgs;

/// Where the layer that takes spans is put.
pub(crate) type SpanLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Spans since the process began.
static EXPORTED: AtomicU64 = AtomicU64::new(0);
static LOST: AtomicU64 = AtomicU64::new(0);

/// How many spans a collector took, and how many were lost: because there were too many, or because it did not take them.
pub(crate) fn counts() -> (u64, u64) {
    (EXPORTED.load(Ordering::Relaxed), LOST.load(Ordering::Relaxed))
}

/// Flags of traces.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Traces (OTLP over HTTP)")]
pub struct TraceArgs {
    #[cfg(feature = "otlp")]
    #[command(flatten)]
    otlp: args::OtlpArgs,
}

/// What makes the span of a request part of the trace that its `traceparent` names: of another's trace it takes the id, and
/// nothing else. Whether it is kept is not for a pod to say. Does nothing without `--otlp-endpoint`.
#[cfg(feature = "otlp")]
pub use layer::remote_parent;

/// The same without the feature `otlp`: nothing.
#[cfg(not(feature = "otlp"))]
pub fn remote_parent(_: &tracing::Span, _: &http::HeaderMap) {}

/// The traces of one process.
#[derive(Debug)]
pub struct Traces {
    #[cfg(feature = "otlp")]
    exporter: Option<export::Exporter>,
    #[cfg(feature = "otlp")]
    layer: Option<layer::Parts>,
}

impl Traces {
    /// Of `service`, on `node` if that is one's, as the flags say; connections trust what those of `upstream` trust.
    #[cfg(feature = "otlp")]
    pub fn new(args: &TraceArgs, upstream: &UpstreamArgs, service: &'static str, node: Option<&str>) -> Self {
        let made = args.otlp.target().map(|target| {
            let resource = layer::resource(service, node);
            let (parts, spans) = layer::parts(args.otlp.sampler(), &resource);
            (parts, export::Exporter::new(target, upstream.clone(), &resource, spans))
        });
        let (layer, exporter) = made.unzip();
        Self { exporter, layer }
    }

    /// Of `service`: none, for the feature `otlp` is off.
    #[cfg(not(feature = "otlp"))]
    pub fn new(_: &TraceArgs, _: &UpstreamArgs, _: &'static str, _: Option<&str>) -> Self {
        Self {}
    }

    /// None at all.
    pub fn none() -> Self {
        Self {
            #[cfg(feature = "otlp")]
            exporter: None,
            #[cfg(feature = "otlp")]
            layer: None,
        }
    }

    /// What takes the spans.
    #[cfg_attr(not(feature = "otlp"), expect(clippy::unused_self, reason = "there is something with the feature"))]
    pub(crate) fn layer(&mut self) -> Option<SpanLayer> {
        #[cfg(feature = "otlp")]
        return self.layer.take().map(layer::Parts::layer);
        #[cfg(not(feature = "otlp"))]
        None
    }

    /// Begins to send what is taken. In a runtime.
    #[cfg_attr(
        not(feature = "otlp"),
        expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "there is something with the feature")
    )]
    pub(crate) fn start(self) -> anyhow::Result<Sending> {
        Ok(Sending {
            #[cfg(feature = "otlp")]
            task: self.exporter.map(export::Exporter::start).transpose()?,
        })
    }
}

/// What is being sent.
#[derive(Debug)]
pub(crate) struct Sending {
    #[cfg(feature = "otlp")]
    task: Option<export::Task>,
}

impl Sending {
    /// Sends what is left, within a few seconds.
    #[cfg_attr(not(feature = "otlp"), expect(clippy::unused_async, reason = "it takes its time with the feature"))]
    pub(crate) async fn stop(self) {
        #[cfg(feature = "otlp")]
        if let Some(task) = self.task {
            task.stop().await;
        }
    }
}
