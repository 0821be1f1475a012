//! From `tracing`'s spans to a bounded queue.

use std::time::Duration;

use http::HeaderMap;
use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{SpanContext, TraceContextExt as _, TraceFlags, TraceState, TracerProvider as _},
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    propagation::TraceContextPropagator,
    trace::{SdkTracerProvider, Span, SpanData, SpanProcessor},
};
use tokio::sync::mpsc;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{
    Layer,
    filter::{FilterFn, LevelFilter},
};

use super::{LOST, SpanLayer, sampler::Sampler, shape::shaped};
use crate::VERSION;

/// Spans that wait to be sent; about 2 MB.
pub(super) const QUEUE: usize = 2048;

/// Whose spans these are.
pub(super) fn resource(service: &'static str, node: Option<&str>) -> Resource {
    let mut of = vec![KeyValue::new("service.name", service), KeyValue::new("service.version", VERSION)];
    of.extend(node.map(|node| KeyValue::new("k8s.node.name", node.to_owned())));
    // Nothing from the environment: what is sent is what the flags say.
    Resource::builder_empty().with_attributes(of).build()
}

/// What makes spans.
#[derive(Debug)]
pub(super) struct Parts(SdkTracerProvider);

/// What makes spans, and where those come out that are kept.
pub(super) fn parts(sampler: Sampler, resource: &Resource) -> (Parts, mpsc::Receiver<SpanData>) {
    let (to, spans) = mpsc::channel(QUEUE);
    let provider = SdkTracerProvider::builder()
        .with_sampler(sampler)
        .with_max_links_per_span(8)
        .with_resource(resource.clone())
        .with_span_processor(Queue(to))
        .build();
    (Parts(provider), spans)
}

impl Parts {
    /// Spans only, and only the broker's: what is logged stays in the log.
    pub(super) fn layer(self) -> SpanLayer {
        let layer = tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("identity-broker"))
            .with_context_activation(false)
            .with_tracked_inactivity(false)
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_level(false);
        let wanted = FilterFn::new(|metadata| {
            metadata.is_span() && metadata.target().split("::").next() == Some("identity_broker")
        });
        Box::new(layer.with_filter(wanted.with_max_level_hint(LevelFilter::DEBUG)))
    }
}

/// Never waits.
#[derive(Debug)]
struct Queue(mpsc::Sender<SpanData>);

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.0.try_send(shaped(span)).is_err() {
            LOST.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Of a request's headers only this one.
struct Traceparent<'a>(&'a str);

impl Extractor for Traceparent<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == "traceparent").then_some(self.0)
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent"]
    }
}

/// What makes the span of a request part of the trace that its `traceparent` names: of another's trace it takes the id, and
/// nothing else. Whether it is kept is not for a pod to say. Does nothing without `--otlp-endpoint`.
pub fn remote_parent(span: &tracing::Span, headers: &HeaderMap) {
    let mut values = headers.get_all("traceparent").iter();
    let (Some(value), None) = (values.next(), values.next()) else { return };
    let Ok(value) = value.to_str() else { return };
    let named = TraceContextPropagator::new().extract_with_context(&Context::new(), &Traceparent(value));
    let named = named.span().span_context().clone();
    if named.is_valid() {
        let parent = SpanContext::new(named.trace_id(), named.span_id(), TraceFlags::default(), true, TraceState::NONE);
        // Nobody may be there to take it: spans for the log alone.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
}
