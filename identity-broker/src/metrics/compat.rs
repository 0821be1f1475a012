//! The names under which the archived predecessor's node daemon exported its metrics, for dashboards that are still there.
//!
//! Its labels `namespace` and `resource` were what a client chose to send, and `operation_type` its path: here they are not
//! there, and the one path.

use std::{fmt, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder},
    metrics::{MetricType, TypedMetric, counter::Counter, family::Family},
    registry::Registry,
};

use super::buckets::Buckets;

const UPSTREAM: [f64; 17] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 2.0, 3.0, 5.0, 10.0];
const REQUESTS: [f64; 18] =
    [0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0];
/// What a request for a token can be answered; anything else would be counted as 500.
const STATUS: [u16; 9] = [200, 400, 403, 404, 405, 429, 500, 503, 504];
/// Of IMDS, and of Entra.
const OPERATIONS: [&str; 2] = ["adal_token_msi_userassignedid", "adal_token"];

/// A label of the predecessor's.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct OperationLabel {
    /// What was done.
    pub operation_type: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabel {
    operation_type: &'static str,
    status_code: u16,
}

/// A counter whose name ends in no `_total`; OpenMetrics has no type for that.
#[derive(Clone, Debug, Default)]
pub struct Plain(pub Counter);

impl EncodeMetric for Plain {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        encoder.encode_gauge(&i64::try_from(self.0.get()).unwrap_or(i64::MAX))
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Plain {
    const TYPE: MetricType = MetricType::Unknown;
}

#[derive(Debug)]
pub(super) struct Compat {
    imds: [Buckets; 2],
    imds_errors: [Plain; 2],
    requests: [Buckets; STATUS.len()],
}

impl Compat {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("aadpodidentity");
        let imds = Family::<OperationLabel, Buckets>::new_with_constructor(|| Buckets::new(&UPSTREAM));
        let imds_errors = Family::<OperationLabel, Plain>::default();
        let requests = Family::<RequestLabel, Buckets>::new_with_constructor(|| Buckets::new(&REQUESTS));
        registry.register(
            "imds_operations_duration_seconds",
            "Requests to IMDS and to Entra that gave a token",
            imds.clone(),
        );
        registry.register(
            "imds_operations_errors_count",
            "Requests to IMDS and to Entra that gave none",
            imds_errors.clone(),
        );
        registry.register("nmi_operations_duration_seconds", "Requests for tokens", requests.clone());
        Self {
            imds: OPERATIONS.map(|operation_type| imds.get_or_create(&OperationLabel { operation_type }).clone()),
            imds_errors: OPERATIONS
                .map(|operation_type| imds_errors.get_or_create(&OperationLabel { operation_type }).clone()),
            requests: STATUS.map(|status_code| {
                let operation_type = "/metadata/identity/oauth2/token";
                requests.get_or_create(&RequestLabel { operation_type, status_code }).clone()
            }),
        }
    }

    pub(super) fn answered(&self, status: u16, took: Duration) {
        let which = STATUS.iter().position(|known| *known == status);
        let which = which.or_else(|| STATUS.iter().position(|known| *known == 500));
        if let Some(which) = which {
            self.requests[which].observe(took);
        }
    }

    pub(super) fn upstream(&self, upstream: &str, outcome: &str, took: Duration) {
        let which = match upstream {
            "imds" => 0,
            "entra" => 1,
            _ => return,
        };
        if outcome == "ok" {
            self.imds[which].observe(took);
        } else {
            self.imds_errors[which].0.inc();
        }
    }
}
