//! What people are told of assignments: on each binding one Event for the pods that were assigned, and one for those that are
//! so no more, each with a count. Pure: time is passed in, what is to be written comes out.
//!
//! A series begins with the first pod and ends when nothing has come for ten minutes; what comes then is a new one. Counts are
//! absolute, so that a write may be made again. Only what happens while this controller leads is told: what a restart finds
//! was told by whoever did it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use identity_crd::AzureAssignedIdentity;
use jiff::Timestamp;

use super::object::hash;
use crate::object::ObjectKey;

/// After the first pod, for those that come with it: the API lets nothing but the count of an Event change.
const GATHER: Duration = Duration::from_secs(2);
/// Between two writes.
const INTERVAL: Duration = Duration::from_millis(200);
/// Between two writes of one series.
const REFRESH: Duration = Duration::from_secs(10);
/// How long it waits for assignments that are being written.
const PATIENCE: Duration = Duration::from_secs(10);
/// After so long without a pod a series ends.
const QUIET: Duration = Duration::from_mins(10);
/// Series that are held: bindings of which there is news.
const MOST: usize = 16_384;
/// The first pause after a failure; it doubles up to [`LONGEST`].
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);
/// The most of a binding's name that goes into the name of an Event, which has 253 characters at most.
const LONGEST_PREFIX: usize = 200;

/// Why there is such an Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ToldReason {
    /// Pods were assigned.
    Assigned,
    /// Pods are assigned no more.
    Unassigned,
}

impl ToldReason {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Assigned, Self::Unassigned];

    /// `reason` of the Event.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Assigned => "Assigned",
            Self::Unassigned => "Unassigned",
        }
    }
}

/// Which series.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeriesId {
    /// The binding.
    pub binding: ObjectKey,
    /// Its `metadata.uid`, when it has one.
    pub uid: Option<Arc<str>>,
    /// What happened.
    pub reason: ToldReason,
}

/// One write of an Event, with everything in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Telling {
    /// For [`Told::done`].
    pub id: SeriesId,
    /// Name of the Event; its namespace is the binding's.
    pub name: String,
    /// Whether it is made. Otherwise it is there, and its count is changed.
    pub create: bool,
    /// How often it happened.
    pub count: u64,
    /// When first, as far as the planning controller knows.
    pub first: Timestamp,
    /// When last.
    pub last: Timestamp,
    /// For a person: about the first.
    pub note: String,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToldNext {
    /// Write this, and say [`done`](Told::done). One at a time.
    Write(Box<Telling>),
    /// Nothing before this uptime, unless something happens.
    Wait(Option<Duration>),
}

/// What came of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToldOutcome {
    /// Written.
    Done,
    /// It was to be made, and is there already.
    Exists,
    /// It was to be changed, and is gone (Kubernetes forgets Events); or its namespace is.
    Missing,
    /// Refused for good.
    Refused,
    /// Not written, or not known to be. Nothing is written for so long at least.
    Failed(Duration),
}

#[derive(Clone, Debug, Default)]
struct Series {
    count: u64,
    told: u64,
    there: bool,
    first: Option<Timestamp>,
    last: Option<Timestamp>,
    note: String,
    /// Its place in the queue, and whether it is there to be written.
    queued: Option<(Duration, bool)>,
    not_before: Duration,
}

/// The series of a controller.
#[derive(Debug, Default)]
pub struct Told {
    leading: bool,
    series: BTreeMap<SeriesId, Series>,
    /// Those of which something was heard that has no time yet.
    fresh: BTreeSet<SeriesId>,
    /// When each is to be looked at: to be written, or, when all of it was, to end.
    queue: BTreeSet<(Duration, SeriesId)>,
    /// With the count that is being written, and whether the Event is being made.
    under_way: Option<(SeriesId, u64, bool)>,
    next_at: Duration,
    failures: u32,
    dropped: u64,
}

impl Told {
    /// Whether this controller leads. One that does not tells nothing, and forgets what it was about to.
    pub fn lead(&mut self, leading: bool) {
        if self.leading != leading {
            *self = Self { leading, dropped: self.dropped, ..Self::default() };
        }
    }

    /// How many assignments will not be told of, since this was last asked.
    pub const fn take_dropped(&mut self) -> u64 {
        std::mem::replace(&mut self.dropped, 0)
    }

    pub(super) fn happened(&mut self, reason: ToldReason, object: &AzureAssignedIdentity) {
        let Some(binding) = object.spec.azure_binding_ref.as_ref().filter(|_| self.leading) else { return };
        let meta = &binding.metadata;
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let id = SeriesId {
            binding: ObjectKey::new(text(&meta.namespace), text(&meta.name)),
            uid: meta.uid.as_deref().map(Arc::from),
            reason,
        };
        if !self.series.contains_key(&id) && self.series.len() >= MOST {
            self.dropped += 1;
            return;
        }
        let series =
            self.series.entry(id.clone()).or_insert_with(|| Series { note: note(reason, object), ..Series::default() });
        series.count += 1;
        self.fresh.insert(id);
    }

    /// What is to be done. `quiet`: no assignment is being written, or waits to be; these come first. `uptime` never goes back.
    pub fn next(&mut self, now: Timestamp, uptime: Duration, quiet: bool) -> ToldNext {
        for id in std::mem::take(&mut self.fresh) {
            let Some(series) = self.series.get_mut(&id) else { continue };
            series.first.get_or_insert(now);
            series.last = series.last.max(Some(now));
            let is_under_way = self.under_way.as_ref().is_some_and(|(other, ..)| *other == id);
            let waits = matches!(series.queued, Some((_, true)));
            if !is_under_way && !waits {
                let due = (uptime + GATHER).max(series.not_before);
                self.enqueue(id, due, true);
            }
        }
        if self.under_way.is_some() {
            return ToldNext::Wait(None);
        }
        while let Some((due, id)) = self.queue.first().cloned() {
            let Some(series) = self.series.get_mut(&id) else {
                self.queue.pop_first();
                continue;
            };
            let behind = series.count > series.told;
            if !behind && due <= uptime {
                self.series.remove(&id);
                self.queue.pop_first();
                continue;
            }
            let patience = if behind && !quiet { PATIENCE } else { Duration::ZERO };
            let at = (due + patience).max(self.next_at);
            if uptime < at {
                return ToldNext::Wait(Some(at));
            }
            self.queue.pop_first();
            series.queued = None;
            let first = *series.first.get_or_insert(now);
            let telling = Telling {
                name: name(&id, first),
                create: !series.there,
                count: series.count,
                first,
                last: series.last.unwrap_or(first),
                note: series.note.clone(),
                id: id.clone(),
            };
            self.next_at = uptime + INTERVAL;
            self.under_way = Some((id, telling.count, telling.create));
            return ToldNext::Write(Box::new(telling));
        }
        ToldNext::Wait(None)
    }

    /// What came of a write.
    pub fn done(&mut self, telling: &Telling, outcome: ToldOutcome, uptime: Duration) {
        let Some((id, sent, created)) = self.under_way.take_if(|(id, ..)| *id == telling.id) else { return };
        let Some(series) = self.series.get_mut(&id) else { return };
        if !matches!(outcome, ToldOutcome::Failed(_)) {
            self.failures = 0;
        }
        let mut behind = true;
        let due = match outcome {
            ToldOutcome::Done => {
                (series.told, series.there, series.not_before) = (sent, true, uptime + REFRESH);
                behind = series.count > sent;
                if behind { series.not_before } else { uptime + QUIET }
            }
            ToldOutcome::Exists => {
                series.there = true;
                uptime
            }
            ToldOutcome::Missing if !created => {
                series.there = false;
                uptime
            }
            ToldOutcome::Missing | ToldOutcome::Refused => {
                self.dropped += series.count.saturating_sub(series.told);
                self.series.remove(&id);
                return;
            }
            ToldOutcome::Failed(asked) => {
                let pause = FIRST.saturating_mul(2_u32.saturating_pow(self.failures.min(10))).min(LONGEST);
                self.failures = self.failures.saturating_add(1);
                self.next_at = self.next_at.max(uptime + pause.max(asked));
                uptime
            }
        };
        self.enqueue(id, due, behind);
    }

    fn enqueue(&mut self, id: SeriesId, due: Duration, to_write: bool) {
        let Some(series) = self.series.get_mut(&id) else { return };
        if let Some((before, _)) = series.queued.replace((due, to_write)) {
            self.queue.remove(&(before, id.clone()));
        }
        self.queue.insert((due, id));
    }
}

/// The same for each write of one series, another for the next.
fn name(id: &SeriesId, first: Timestamp) -> String {
    let SeriesId { binding, uid, reason } = id;
    let digest = hash([
        &*binding.namespace,
        &*binding.name,
        uid.as_deref().unwrap_or_default(),
        reason.as_str(),
        &first.as_nanosecond().to_string(),
    ]);
    // Names of Kubernetes' objects are ASCII; of a manifest's that is not, the hash is enough.
    let prefix = if binding.name.is_ascii() { &binding.name[..binding.name.len().min(LONGEST_PREFIX)] } else { "" };
    let prefix = prefix.trim_end_matches(['.', '-']);
    if prefix.is_empty() { digest } else { format!("{prefix}.{digest}") }
}

fn note(reason: ToldReason, object: &AzureAssignedIdentity) -> String {
    let spec = &object.spec;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let identity = spec.azure_identity_ref.as_ref().map(|identity| &identity.metadata);
    let identity =
        identity.map_or(String::new(), |meta| format!("identity {}/{} ", text(&meta.namespace), text(&meta.name)));
    let (pod, node) = (format!("{}/{}", text(&spec.pod_namespace), text(&spec.pod)), text(&spec.node_name));
    match reason {
        ToldReason::Assigned => format!("{identity}assigned to pods, first to {pod} on node {node}"),
        ToldReason::Unassigned => format!("{identity}no longer assigned to pods, the first {pod} on node {node}"),
    }
}

#[cfg(test)]
#[path = "told_tests.rs"]
mod tests;
