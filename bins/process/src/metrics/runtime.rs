//! What the runtime tells, counted.

use std::time::Duration;

use identity_core::{
    object::ObjectKey,
    runtime::observe::{Change, Observer, WriteOutcome},
};
use jiff::Timestamp;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabel {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ChangeLabel {
    change: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IdentityLabel {
    namespace: String,
    identity: String,
}

impl From<&ObjectKey> for IdentityLabel {
    fn from(key: &ObjectKey) -> Self {
        Self { namespace: key.namespace.to_string(), identity: key.name.to_string() }
    }
}

use super::compat::Compat;

/// Upper ends for how long an assignment takes, in seconds.
const ASSIGNED: [f64; 10] = [0.005, 0.01, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 30.0];
const OUTCOMES: [&str; 5] = ["done", "conflict", "failed", "fenced", "dropped"];
const NODE_WRITES: [&str; 1] = ["Event"];
const CONTROLLER_WRITES: [&str; 5] = [
    "AzureAssignedIdentity",
    "AzureIdentity/status",
    "AzureIdentityBinding/status",
    "AzureIdentityGrant/status",
    "Event",
];
const NODE_KINDS: [&str; 6] =
    ["Pod", "AzureIdentity", "AzureIdentityBinding", "AzureAssignedIdentity", "AzurePodIdentityException", "Secret"];
const CONTROLLER_KINDS: [&str; 6] =
    ["Pod", "AzureIdentity", "AzureIdentityBinding", "AzureIdentityGrant", "AzureAssignedIdentity", "Secret"];

/// Metrics of `identity_core::runtime`. Labels are kinds of objects, outcomes, and the identities there are: bounded.
#[derive(Debug)]
pub struct RuntimeMetrics {
    writes: Family<WriteLabel, Counter>,
    relists: Family<KindLabel, Counter>,
    watch_failures: Family<KindLabel, Counter>,
    plan: Histogram,
    waiting: Gauge,
    under_way: Gauge,
    leading: Gauge,
    elections: Counter,
    /// Created, updated, deleted.
    assigned: [Histogram; 3],
    problems: Gauge,
    ready: Family<IdentityLabel, Gauge>,
    expiry: Family<IdentityLabel, Gauge>,
    compat: Option<Compat>,
}

impl RuntimeMetrics {
    /// Of a controller: all of them.
    pub fn controller(registry: &mut Registry) -> Self {
        let mut metrics = Self::common(registry, &CONTROLLER_KINDS, &CONTROLLER_WRITES);
        registry.register_with_unit("plan_duration", "Time to plan", Unit::Seconds, metrics.plan.clone());
        registry.register("actions_waiting", "Actions that wait", metrics.waiting.clone());
        registry.register("actions_under_way", "Actions under way", metrics.under_way.clone());
        registry.register(
            "lease_acquisitions",
            "How often this process came to hold the lease",
            metrics.elections.clone(),
        );
        let assigned = Family::<ChangeLabel, Histogram>::new_with_constructor(|| Histogram::new(ASSIGNED));
        for (histogram, change) in metrics.assigned.iter_mut().zip(["created", "updated", "deleted"]) {
            *histogram = assigned.get_or_create(&ChangeLabel { change }).clone();
        }
        registry.register_with_unit(
            "assignment_duration",
            "From the decision that an assignment is to be written or deleted until the API server has taken it",
            Unit::Seconds,
            assigned,
        );
        registry.register("leading", "Whether this process holds the lease", metrics.leading.clone());
        registry.register(
            "credential_ready",
            "Whether Entra takes the credential of an identity; absent where that is not known",
            metrics.ready.clone(),
        );
        registry.register(
            "credential_expiry_timestamp_seconds",
            "When the credential of an identity ends, in seconds since 1970; absent where that is not known",
            metrics.expiry.clone(),
        );
        metrics
    }

    pub(super) fn with_compat(mut self, registry: &mut Registry) -> Self {
        self.compat = Some(Compat::new(registry));
        self
    }

    /// Of a node, which only reads (and writes Events).
    pub fn node(registry: &mut Registry) -> Self {
        Self::common(registry, &NODE_KINDS, &NODE_WRITES)
    }

    fn common(registry: &mut Registry, kinds: &[&'static str], writes: &[&'static str]) -> Self {
        let metrics = Self {
            writes: Family::default(),
            relists: Family::default(),
            watch_failures: Family::default(),
            plan: Histogram::new([0.0001, 0.0005, 0.002, 0.01, 0.05, 0.2, 1.0]),
            waiting: Gauge::default(),
            under_way: Gauge::default(),
            leading: Gauge::default(),
            elections: Counter::default(),
            assigned: [(); 3].map(|()| Histogram::new(ASSIGNED)),
            problems: Gauge::default(),
            ready: Family::default(),
            expiry: Family::default(),
            compat: None,
        };
        registry.register("writes", "Writes by kind and outcome", metrics.writes.clone());
        registry.register("watch_relists", "Complete lists taken in, by kind", metrics.relists.clone());
        registry.register("watch_failures", "Watches that failed and were tried again", metrics.watch_failures.clone());
        registry.register("manifest_problems", "Problems of the manifests now", metrics.problems.clone());
        for kind in kinds {
            drop(metrics.relists.get_or_create(&KindLabel { kind }));
            drop(metrics.watch_failures.get_or_create(&KindLabel { kind }));
        }
        for (kind, outcome) in writes.iter().flat_map(|kind| OUTCOMES.map(|outcome| (*kind, outcome))) {
            drop(metrics.writes.get_or_create(&WriteLabel { kind, outcome }));
        }
        metrics
    }
}

fn gauge(gauge: &Gauge, value: usize) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

impl Observer for RuntimeMetrics {
    fn wrote(&self, kind: &'static str, outcome: WriteOutcome) {
        if let Some(compat) = &self.compat {
            compat.wrote(kind, outcome);
        }
        let outcome = match outcome {
            WriteOutcome::Done => "done",
            WriteOutcome::Conflict => "conflict",
            WriteOutcome::Failed => "failed",
            WriteOutcome::Fenced => "fenced",
            WriteOutcome::Dropped => "dropped",
        };
        self.writes.get_or_create(&WriteLabel { kind, outcome }).inc();
    }

    fn planned(&self, took: Duration, actions: usize) {
        if let Some(compat) = &self.compat {
            compat.planned(took, actions);
        }
        self.plan.observe(took.as_secs_f64());
    }

    fn queue(&self, waiting: usize, under_way: usize) {
        gauge(&self.waiting, waiting);
        gauge(&self.under_way, under_way);
    }

    fn leading(&self, leading: bool) {
        gauge(&self.leading, leading.into());
        if leading {
            self.elections.inc();
            if let Some(compat) = &self.compat {
                compat.elected();
            }
        }
    }

    fn assigned(&self, change: Change, took: Duration) {
        self.assigned[change as usize].observe(took.as_secs_f64());
        if let Some(compat) = &self.compat {
            compat.assigned(change, took);
        }
    }

    fn relisted(&self, kind: &'static str) {
        self.relists.get_or_create(&KindLabel { kind }).inc();
    }

    fn watch_failed(&self, kind: &'static str) {
        if let Some(compat) = &self.compat {
            compat.watch_failed(kind);
        }
        self.watch_failures.get_or_create(&KindLabel { kind }).inc();
    }

    fn credential(&self, identity: &ObjectKey, ready: Option<bool>, expires: Option<Timestamp>) {
        let label = IdentityLabel::from(identity);
        match ready {
            Some(ready) => drop(self.ready.get_or_create(&label).set(ready.into())),
            None => drop(self.ready.remove(&label)),
        }
        match expires {
            Some(end) => drop(self.expiry.get_or_create(&label).set(end.as_second())),
            None => drop(self.expiry.remove(&label)),
        }
    }

    fn credential_gone(&self, identity: &ObjectKey) {
        let label = IdentityLabel::from(identity);
        self.ready.remove(&label);
        self.expiry.remove(&label);
    }

    fn problems(&self, count: usize) {
        gauge(&self.problems, count);
    }
}
