//! Writes what [`Told`] decides: one Event at a time, behind the lease, beside everything else.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::Config;
use crate::{
    assign::{SeriesId, Telling, Told, ToldNext, ToldOutcome},
    runtime::{
        FIELD_MANAGER,
        audit_events::{AuditEvents, EventWrite, is_about_namespace},
        clock::Clock,
        lease::Fence,
        observe::{Observer, WriteOutcome},
        request::Failure,
        source::Source,
    },
};

/// The API's limit for `reportingInstance`.
const LONGEST_INSTANCE: usize = 128;

pub(super) struct Teller {
    writer: AuditEvents,
    fence: Arc<Fence>,
    clock: Arc<dyn Clock>,
    observer: Arc<dyn Observer>,
    holder: String,
    writing: JoinSet<(Telling, ToldOutcome)>,
    /// Uptime of the next look, when nothing happens.
    due: Option<Duration>,
    failing: bool,
}

impl Teller {
    pub(super) fn new(source: &Source, fence: Arc<Fence>, config: &Config) -> Self {
        Self {
            writer: AuditEvents::new(source, config.clock.clone()),
            fence,
            clock: config.clock.clone(),
            observer: config.observer.clone(),
            holder: config.lease.holder.chars().take(LONGEST_INSTANCE).collect(),
            writing: JoinSet::new(),
            due: None,
            failing: false,
        }
    }

    pub(super) fn due(&self) -> Option<Duration> {
        self.due.map(|due| due.saturating_sub(self.clock.uptime()))
    }

    /// Begins the next write, if one is due. `quiet`: no other write is under way or waits.
    pub(super) fn start(&mut self, told: &mut Told, quiet: bool) {
        for _ in 0..told.take_dropped() {
            self.observer.wrote("Event", WriteOutcome::Dropped);
        }
        self.due = None;
        match told.next(self.clock.now(), self.clock.uptime(), quiet) {
            ToldNext::Wait(due) => self.due = due,
            ToldNext::Write(telling) => {
                let (writer, fence, holder) = (self.writer.clone(), self.fence.clone(), self.holder.clone());
                self.writing.spawn(async move {
                    let outcome = write(&writer, &fence, &telling, &holder).await;
                    (*telling, outcome)
                });
            }
        }
    }

    /// What came of the write that is under way. Never without one.
    pub(super) async fn next(&mut self) -> Option<(Telling, ToldOutcome)> {
        let Some(ended) = self.writing.join_next().await else { return std::future::pending().await };
        let (telling, outcome) = ended.ok()?;
        let SeriesId { binding, reason, .. } = &telling.id;
        let counted = match outcome {
            ToldOutcome::Failed(_) => {
                if !std::mem::replace(&mut self.failing, true) {
                    warn!(%binding, reason = reason.as_str(), "Events of assignments are not written at the moment; they are counted, and told later");
                }
                WriteOutcome::Failed
            }
            ToldOutcome::Refused => WriteOutcome::Failed,
            ToldOutcome::Exists | ToldOutcome::Missing => WriteOutcome::Conflict,
            ToldOutcome::Done => {
                self.failing = false;
                WriteOutcome::Done
            }
        };
        self.observer.wrote("Event", counted);
        Some((telling, outcome))
    }

    pub(super) fn abandon(&mut self) {
        self.writing = JoinSet::new();
        self.due = None;
    }
}

async fn write(writer: &AuditEvents, fence: &Fence, telling: &Telling, holder: &str) -> ToldOutcome {
    let whole = whole(telling, holder);
    let patch = json!({"series": whole.get("series").cloned().unwrap_or(Value::Null)});
    let event = EventWrite {
        namespace: &telling.id.binding.namespace,
        name: &telling.name,
        whole: &whole,
        patch: (!telling.create).then_some(&patch),
    };
    // Nothing may come between this and the request.
    let Some(left) = fence.remaining() else { return ToldOutcome::Failed(Duration::ZERO) };
    let result = tokio::time::timeout(left, writer.write(event)).await.unwrap_or(Err(Failure::Fenced));
    result.map_or_else(
        |failure| {
            debug!(event = telling.name, error = %failure, "an Event was not written");
            outcome(&failure, telling.create)
        },
        |()| ToldOutcome::Done,
    )
}

fn outcome(failure: &Failure, create: bool) -> ToldOutcome {
    match failure {
        Failure::Conflict(_) if create => ToldOutcome::Exists,
        Failure::NotFound(_) => ToldOutcome::Missing,
        Failure::Refused { .. } => ToldOutcome::Refused,
        failure if is_about_namespace(failure) => ToldOutcome::Refused,
        failure => ToldOutcome::Failed(failure.retry_after().unwrap_or_default()),
    }
}

fn whole(telling: &Telling, holder: &str) -> Value {
    let SeriesId { binding, uid, reason } = &telling.id;
    // RFC 3339 with microseconds, `MicroTime` of the API.
    let micros = |time: jiff::Timestamp| format!("{time:.6}");
    let mut regarding = json!({
        "apiVersion": format!("{}/{}", identity_crd::GROUP, identity_crd::VERSION), "kind": "AzureIdentityBinding",
        "namespace": &*binding.namespace, "name": &*binding.name,
    });
    if let Some(uid) = uid {
        regarding["uid"] = json!(&**uid);
    }
    let mut event = json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": telling.name, "namespace": &*binding.namespace},
        "eventTime": micros(telling.first),
        "type": "Normal",
        "reason": reason.as_str(),
        "action": "Assign",
        "note": telling.note.chars().take(1024).collect::<String>(),
        "regarding": regarding,
        "reportingController": FIELD_MANAGER,
        "reportingInstance": holder,
    });
    if telling.count > 1 {
        // The API's number has 32 bits.
        let count = telling.count.min(i32::MAX as u64);
        event["series"] = json!({"count": count, "lastObservedTime": micros(telling.last)});
    }
    event
}
