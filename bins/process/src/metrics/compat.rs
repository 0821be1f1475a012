//! The names under which the archived predecessor's controller exported its metrics, for dashboards that are still there.

use std::time::Duration;

use identity_broker::compat::{OperationLabel, Plain};
use identity_core::runtime::observe::{Change, WriteOutcome};
use prometheus_client::{
    metrics::{family::Family, histogram::Histogram},
    registry::Registry,
};

use super::COMPAT_PREFIX;

const ASSIGNED: [f64; 17] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 2.0, 3.0, 5.0, 10.0];
const CYCLE: [f64; 11] = [0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1200.0];
/// Writes of assignments (which of its three, is not told), and watches of pods and Secrets.
const OPERATIONS: [&str; 3] = ["assigned_identity_update", "get_pod_list", "get_secret"];

#[derive(Debug)]
pub(super) struct Compat {
    /// By `Change`.
    assigned: [(Histogram, Plain); 3],
    cycle: (Histogram, Plain),
    elections: Plain,
    errors: [Plain; 3],
}

impl Compat {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix(COMPAT_PREFIX);
        let mut timed = |name: &str, what: &str, ends: &[f64]| {
            let (took, count) = (Histogram::new(ends.iter().copied()), Plain::default());
            registry.register(format!("{name}_duration_seconds"), format!("How long {what} took"), took.clone());
            registry.register(format!("{name}_count"), format!("How often {what} took place"), count.clone());
            (took, count)
        };
        let assigned = [
            timed("assigned_identity_addition", "the writing of a new assignment", &ASSIGNED),
            timed("assigned_identity_update", "the writing of another assignment", &ASSIGNED),
            timed("assigned_identity_deletion", "the deletion of an assignment", &ASSIGNED),
        ];
        let cycle = timed("mic_cycle", "a plan that had something to do", &CYCLE);
        let elections = Plain::default();
        registry.register(
            "mic_new_leader_election_count",
            "How often this process came to hold the lease",
            elections.clone(),
        );
        let errors = Family::<OperationLabel, Plain>::default();
        registry.register(
            "kubernetes_api_operations_errors_count",
            "Writes of assignments and watches that failed",
            errors.clone(),
        );
        let errors = OPERATIONS.map(|operation_type| errors.get_or_create(&OperationLabel { operation_type }).clone());
        Self { assigned, cycle, elections, errors }
    }

    pub(super) fn assigned(&self, change: Change, took: Duration) {
        let (histogram, count) = &self.assigned[change as usize];
        histogram.observe(took.as_secs_f64());
        count.0.inc();
    }

    pub(super) fn planned(&self, took: Duration, actions: usize) {
        if actions > 0 {
            self.cycle.0.observe(took.as_secs_f64());
            self.cycle.1.0.inc();
        }
    }

    pub(super) fn elected(&self) {
        self.elections.0.inc();
    }

    pub(super) fn wrote(&self, kind: &str, outcome: WriteOutcome) {
        if kind == "AzureAssignedIdentity" && outcome == WriteOutcome::Failed {
            self.errors[0].0.inc();
        }
    }

    pub(super) fn watch_failed(&self, kind: &str) {
        match kind {
            "Pod" => drop(self.errors[1].0.inc()),
            "Secret" => drop(self.errors[2].0.inc()),
            _ => {}
        }
    }
}
