//! A dashboard for Grafana: a few questions first, then every metric there is.

use serde_json::{Value, json};

use super::{Kind, Metric, daemons};

/// Width of the whole, in Grafana's columns, and of a panel.
const COLUMNS: u64 = 24;
const WIDTH: u64 = 8;
const HEIGHT: u64 = 7;

/// Title, unit, and what is drawn with its legend.
type Question = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

/// What people want to know first.
pub(super) const QUESTIONS: &[Question] = &[
    (
        "Requests by how they ended",
        "reqps",
        &[("sum by (reason) (rate(entra_pod_identity_broker_requests_total[$__rate_interval]))", "{{reason}}")],
    ),
    (
        "Tokens from the cache",
        "percentunit",
        &[(
            "sum(rate(entra_pod_identity_broker_token_request_duration_seconds_count{answer=\"cache\"}[$__rate_interval])) / sum(rate(entra_pod_identity_broker_token_request_duration_seconds_count{answer=~\"cache|upstream\"}[$__rate_interval]))",
            "share",
        )],
    ),
    (
        "Must stay 0",
        "short",
        &[
            ("sum(entra_pod_identity_netfilter_dropped_packets_total)", "packets not redirected"),
            ("sum(entra_pod_identity_audit_journal_lost_records_total)", "records lost by the journal"),
            ("sum(entra_pod_identity_audit_events_lost_records)", "records lost by Events"),
            ("count(entra_pod_identity_netfilter_installed == 0) or vector(0)", "nodes without the redirect"),
        ],
    ),
    (
        "Credentials: days that are left",
        "d",
        &[(
            "min by (namespace, identity) (entra_pod_identity_controller_credential_expiry_timestamp_seconds - time()) / 86400",
            "{{namespace}}/{{identity}}",
        )],
    ),
    ("Leading controllers", "short", &[("sum(entra_pod_identity_controller_leading)", "leading")]),
    (
        "Assignments written",
        "s",
        &[(
            "histogram_quantile(0.99, sum by (le, change) (rate(entra_pod_identity_controller_assignment_duration_seconds_bucket[$__rate_interval])))",
            "p99 {{change}}",
        )],
    ),
];

/// The file.
pub(in crate::generate) fn dashboard() -> anyhow::Result<String> {
    let mut layout = Layout::default();
    layout.row("Overview");
    for (title, unit, targets) in QUESTIONS {
        let targets = targets.iter().map(|(expr, legend)| ((*expr).to_owned(), (*legend).to_owned())).collect();
        layout.panel(title, "", unit, targets);
    }
    for daemon in daemons()? {
        layout.row(daemon.title);
        for metric in &daemon.metrics {
            let title = metric.name.trim_start_matches("entra_pod_identity_").replace('_', " ");
            layout.panel(&title, &metric.help, unit(metric), queries(metric));
        }
    }
    let datasource = json!({"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"});
    let dashboard = json!({
        "uid": "entra-pod-identity",
        "title": "entra-pod-identity",
        "tags": ["entra-pod-identity"],
        "schemaVersion": 39,
        "editable": true,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [datasource]},
        "panels": layout.panels,
    });
    Ok(serde_json::to_string_pretty(&dashboard)? + "\n")
}

/// What is drawn of a metric, with legends.
fn queries(metric: &Metric) -> Vec<(String, String)> {
    let labels: Vec<&str> = metric.labels.keys().map(String::as_str).collect();
    let by = labels.join(", ");
    let legend = labels.iter().map(|label| format!("{{{{{label}}}}}")).collect::<Vec<_>>().join(" ");
    let series = metric.series();
    match metric.kind {
        Kind::Counter if labels.is_empty() => {
            vec![(format!("sum(rate({series}[$__rate_interval]))"), "all".to_owned())]
        }
        Kind::Counter => vec![(format!("sum by ({by}) (rate({series}[$__rate_interval]))"), legend)],
        Kind::Info => vec![(format!("count by ({by}) ({series})"), legend)],
        Kind::Gauge if metric.name.ends_with("_timestamp_seconds") => {
            vec![(format!("min by ({by}) ({series} - time())"), legend)]
        }
        Kind::Gauge | Kind::Unknown if labels.is_empty() => vec![(series, "{{instance}}".to_owned())],
        Kind::Gauge | Kind::Unknown => vec![(format!("min by ({by}) ({series})"), legend)],
        Kind::Histogram => {
            let by = if by.is_empty() { "le".to_owned() } else { format!("le, {by}") };
            let quantile = |quantile, name| {
                let rate = format!("rate({series}_bucket[$__rate_interval])");
                (format!("histogram_quantile({quantile}, sum by ({by}) ({rate}))"), format!("{name} {legend}"))
            };
            vec![quantile(0.5, "p50"), quantile(0.99, "p99")]
        }
    }
}

/// In Grafana's words.
fn unit(metric: &Metric) -> &'static str {
    match (metric.kind, metric.unit.as_deref()) {
        (Kind::Counter, Some("bytes")) => "Bps",
        (Kind::Counter, _) => "cps",
        (_, Some("seconds" | "seconds since 1970")) => "s",
        _ => "short",
    }
}

#[derive(Default)]
struct Layout {
    panels: Vec<Value>,
    x: u64,
    y: u64,
}

impl Layout {
    fn row(&mut self, title: &str) {
        if self.x > 0 {
            (self.x, self.y) = (0, self.y + HEIGHT);
        }
        let at = json!({"x": 0, "y": self.y, "w": COLUMNS, "h": 1});
        self.panels.push(json!({"id": self.id(), "type": "row", "title": title, "gridPos": at, "panels": []}));
        self.y += 1;
    }

    fn panel(&mut self, title: &str, about: &str, unit: &str, queries: Vec<(String, String)>) {
        let datasource = json!({"type": "prometheus", "uid": "${datasource}"});
        let targets: Vec<_> = queries
            .into_iter()
            .zip('A'..)
            .map(|((expr, legend), id)| {
                json!({"refId": id, "expr": expr, "legendFormat": legend.trim(), "datasource": datasource})
            })
            .collect();
        self.panels.push(json!({
            "id": self.id(),
            "type": "timeseries",
            "title": title,
            "description": about,
            "datasource": datasource,
            "gridPos": {"x": self.x, "y": self.y, "w": WIDTH, "h": HEIGHT},
            "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
            "targets": targets,
        }));
        self.x += WIDTH;
        if self.x >= COLUMNS {
            (self.x, self.y) = (0, self.y + HEIGHT);
        }
    }

    fn id(&self) -> usize {
        self.panels.len() + 1
    }
}
