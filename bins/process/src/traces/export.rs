//! From the queue to a collector: in batches, with a few attempts each. Whatever happens there, the queue is all that fills.

use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use opentelemetry_proto::{
    tonic::collector::trace::v1::ExportTraceServiceRequest,
    transform::{common::tonic::ResourceAttributesWithSchema, trace::tonic::group_spans_by_resource_and_scope},
};
use opentelemetry_sdk::{Resource, trace::SpanData};
use prost::Message as _;
use tokio::{sync::mpsc, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    EXPORTED, LOST,
    args::Target,
    post::{Post, Posted},
};
use crate::UpstreamArgs;

/// Spans sent at once.
const BATCH: usize = 512;
/// How long a span waits for others.
const GATHER: Duration = Duration::from_secs(2);
/// How often a batch is sent at most.
const ATTEMPTS: u32 = 3;
/// How long what is left may take at the end.
const FLUSH: Duration = Duration::from_secs(3);

/// What sends spans, before it does.
#[derive(Debug)]
pub(super) struct Exporter {
    target: Target,
    upstream: UpstreamArgs,
    resource: ResourceAttributesWithSchema,
    spans: mpsc::Receiver<SpanData>,
}

/// What sends spans.
#[derive(Debug)]
pub(super) struct Task {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Exporter {
    pub(super) fn new(
        target: Target,
        upstream: UpstreamArgs,
        resource: &Resource,
        spans: mpsc::Receiver<SpanData>,
    ) -> Self {
        Self { target, upstream, resource: resource.into(), spans }
    }

    /// Begins. Reads trust roots.
    pub(super) fn start(self) -> anyhow::Result<Task> {
        self.target.check()?;
        let post = Post::new(self.target, self.upstream.tls()?);
        info!(endpoint = %post.endpoint(), "spans of requests are sent");
        let stop = CancellationToken::new();
        let sender = Sender { post, resource: self.resource, spans: self.spans, failing: false };
        Ok(Task { stop: stop.clone(), task: tokio::spawn(sender.run(stop)) })
    }
}

impl Task {
    /// Sends what is left, for a few seconds at most.
    pub(super) async fn stop(mut self) {
        self.stop.cancel();
        if tokio::time::timeout(FLUSH, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

struct Sender {
    post: Post,
    resource: ResourceAttributesWithSchema,
    spans: mpsc::Receiver<SpanData>,
    /// Whether the last batch was not taken: said when it begins and when it ends.
    failing: bool,
}

impl Sender {
    async fn run(mut self, stop: CancellationToken) {
        while let Some(Some(first)) = stop.run_until_cancelled(self.spans.recv()).await {
            let mut batch = vec![first];
            let until = Instant::now() + GATHER;
            let gather = async {
                while batch.len() < BATCH {
                    match tokio::time::timeout_at(until, self.spans.recv()).await {
                        Ok(Some(span)) => batch.push(span),
                        Ok(None) | Err(_) => break,
                    }
                }
            };
            let _ = stop.run_until_cancelled(gather).await;
            self.send(batch, &stop).await;
        }
        // Nothing waits any more: what is there is sent, once.
        let mut rest = Vec::new();
        while let Ok(span) = self.spans.try_recv() {
            rest.push(span);
            if rest.len() == BATCH {
                self.send(std::mem::take(&mut rest), &stop).await;
            }
        }
        if !rest.is_empty() {
            self.send(rest, &stop).await;
        }
    }

    async fn send(&mut self, batch: Vec<SpanData>, stop: &CancellationToken) {
        let count = batch.len() as u64;
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let body = Bytes::from(ExportTraceServiceRequest { resource_spans }.encode_to_vec());
        let mut attempt = 1;
        let why = loop {
            let (why, after) = match self.post.send(body.clone()).await {
                Posted::Taken { rejected } => {
                    let rejected = rejected.min(count);
                    EXPORTED.fetch_add(count - rejected, Ordering::Relaxed);
                    LOST.fetch_add(rejected, Ordering::Relaxed);
                    if std::mem::take(&mut self.failing) {
                        info!(endpoint = %self.post.endpoint(), "the collector takes spans again");
                    }
                    return;
                }
                Posted::Refused { why } => break why,
                Posted::Later { why, .. } if attempt >= ATTEMPTS || stop.is_cancelled() => break why,
                Posted::Later { why, after } => (why, after),
            };
            let own = Duration::from_secs(1 << (attempt - 1)).mul_f64(0.5 + rand::random::<f64>());
            if stop.run_until_cancelled(tokio::time::sleep(after.unwrap_or(own))).await.is_none() && after.is_some() {
                break why;
            }
            attempt += 1;
        };
        LOST.fetch_add(count, Ordering::Relaxed);
        if !std::mem::replace(&mut self.failing, true) {
            warn!(endpoint = %self.post.endpoint(), why, spans = count, "the collector does not take spans; they are lost");
        }
    }
}
