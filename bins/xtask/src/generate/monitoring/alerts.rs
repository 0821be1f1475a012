//! Alert rules for Prometheus.

use serde_json::json;

use super::super::yaml;

/// A rule.
pub(super) struct Alert {
    pub(super) name: &'static str,
    pub(super) expr: &'static str,
    pub(super) lasting: &'static str,
    pub(super) severity: &'static str,
    pub(super) summary: &'static str,
    pub(super) remedy: &'static str,
}

const CRITICAL: &str = "critical";
const WARNING: &str = "warning";

/// All of them. `critical`: tokens are not given, or the node's own identities, or the audit, are at stake.
pub(super) const ALERTS: &[Alert] = &[
    Alert {
        name: "EntraPodIdentityRedirectMissing",
        expr: "entra_pod_identity_netfilter_installed == 0",
        lasting: "1m",
        severity: CRITICAL,
        summary: "The redirect of the metadata endpoint is not in force on a node",
        remedy: "Pods there may reach the node's own identities. `/readyz` of the daemon says why; look at what else changes netfilter rules",
    },
    Alert {
        name: "EntraPodIdentityPacketsNotRedirected",
        expr: "increase(entra_pod_identity_netfilter_dropped_packets_total[10m]) > 0",
        lasting: "0m",
        severity: CRITICAL,
        summary: "Packets would have reached the node's own metadata endpoint and were dropped",
        remedy: "The redirect was missing for a while, or somebody goes around it; find out who changed the rules",
    },
    Alert {
        name: "EntraPodIdentityRedirectRepaired",
        expr: "increase(entra_pod_identity_netfilter_repairs_total[1h]) > 2",
        lasting: "0m",
        severity: WARNING,
        summary: "Somebody else keeps changing the redirect's rules",
        remedy: "They are repaired within seconds each time; find out who it is",
    },
    Alert {
        name: "EntraPodIdentityTokensRefused",
        expr: "sum by (reason) (rate(entra_pod_identity_broker_requests_total{reason=~\"misconfigured|upstream_refused\"}[5m])) > 0",
        lasting: "10m",
        severity: WARNING,
        summary: "Requests get no token because an identity's objects or its credential are wrong",
        remedy: "The condition `CredentialReady` of the identities and the audit records say which and why",
    },
    Alert {
        name: "EntraPodIdentityUpstreamUnavailable",
        expr: "sum(rate(entra_pod_identity_broker_requests_total{reason=\"upstream_unavailable\"}[5m])) > 0",
        lasting: "5m",
        severity: CRITICAL,
        summary: "Entra, IMDS, a Key Vault or the API server does not answer, and there is no token left to give",
        remedy: "See the log of the nodes; cached tokens are served while they are valid",
    },
    Alert {
        name: "EntraPodIdentityUpstreamFailing",
        expr: "sum by (upstream) (rate(entra_pod_identity_broker_upstream_seconds_count{outcome=\"failed\"}[10m])) / sum by (upstream) (rate(entra_pod_identity_broker_upstream_seconds_count[10m])) > 0.5",
        lasting: "10m",
        severity: WARNING,
        summary: "More than half of the requests to Entra or IMDS fail",
        remedy: "Tokens go on being served from the cache until they end",
    },
    Alert {
        name: "EntraPodIdentitySlow",
        expr: "histogram_quantile(0.99, sum by (le) (rate(entra_pod_identity_broker_token_request_duration_seconds_bucket{answer=\"cache\"}[5m]))) > 0.05",
        lasting: "10m",
        severity: WARNING,
        summary: "One in a hundred tokens from the cache takes more than 50 ms",
        remedy: "The node is short of CPU, or the audit's disk is slow",
    },
    Alert {
        name: "EntraPodIdentityHeldInVain",
        expr: "rate(entra_pod_identity_broker_hold_duration_seconds_count{outcome=\"timed_out\"}[5m]) > 0",
        lasting: "15m",
        severity: WARNING,
        summary: "Requests wait for an assignment that does not come",
        remedy: "See whether a controller leads and what its writes do; the reasons are in the metric of requests",
    },
    Alert {
        name: "EntraPodIdentityConnectionsRefused",
        expr: "rate(entra_pod_identity_broker_connections_refused_total{reason=\"total_limit\"}[5m]) > 0",
        lasting: "5m",
        severity: CRITICAL,
        summary: "A node has as many connections as it may have, and refuses more",
        remedy: "Find the pods that open so many; each may have 128",
    },
    Alert {
        name: "EntraPodIdentityCredentialExpires",
        expr: "entra_pod_identity_controller_credential_expiry_timestamp_seconds - time() < 1209600",
        lasting: "1h",
        severity: WARNING,
        summary: "A credential ends within two weeks",
        remedy: "Put a new one where the old one is; it takes over once Entra takes it",
    },
    Alert {
        name: "EntraPodIdentityCredentialEnds",
        expr: "entra_pod_identity_controller_credential_expiry_timestamp_seconds - time() < 172800",
        lasting: "5m",
        severity: CRITICAL,
        summary: "A credential ends within two days, or has ended",
        remedy: "Put a new one where the old one is",
    },
    Alert {
        name: "EntraPodIdentityCredentialRefused",
        expr: "entra_pod_identity_controller_credential_ready == 0",
        lasting: "15m",
        severity: CRITICAL,
        summary: "Entra does not take the credential of an identity",
        remedy: "The condition `CredentialReady` of the identity has Entra's words",
    },
    Alert {
        name: "EntraPodIdentityNoLeader",
        expr: "sum(entra_pod_identity_controller_leading) != 1",
        lasting: "2m",
        severity: CRITICAL,
        summary: "No controller leads, or more than one says so",
        remedy: "New pods get no assignment; those that have one go on. See the Lease and the controllers' logs",
    },
    Alert {
        name: "EntraPodIdentityControllerAbsent",
        expr: "absent(entra_pod_identity_controller_leading)",
        lasting: "5m",
        severity: CRITICAL,
        summary: "No controller is seen at all",
        remedy: "It does not run, or its metrics are not collected",
    },
    Alert {
        name: "EntraPodIdentityWritesFail",
        expr: "sum by (kind) (rate(entra_pod_identity_controller_writes_total{outcome=\"failed\"}[5m])) > 0",
        lasting: "10m",
        severity: WARNING,
        summary: "The API server refuses or does not answer writes of the controller",
        remedy: "The controller's log says which; its role may be out of date",
    },
    Alert {
        name: "EntraPodIdentityAssignmentsSlow",
        expr: "histogram_quantile(0.99, sum by (le) (rate(entra_pod_identity_controller_assignment_duration_seconds_bucket[10m]))) > 5",
        lasting: "10m",
        severity: WARNING,
        summary: "Assignments take more than five seconds to be written, so that pods' first requests are put off",
        remedy: "See how many actions wait, and how the API server fares",
    },
    Alert {
        name: "EntraPodIdentityWatchesFail",
        expr: "sum by (kind) (rate(entra_pod_identity_node_watch_failures_total[10m])) > 0 or sum by (kind) (rate(entra_pod_identity_controller_watch_failures_total[10m])) > 0",
        lasting: "30m",
        severity: WARNING,
        summary: "Watches of the API server keep failing",
        remedy: "What changes is not seen meanwhile; the log says why",
    },
    Alert {
        name: "EntraPodIdentityManifestProblems",
        expr: "entra_pod_identity_node_manifest_problems > 0 or entra_pod_identity_controller_manifest_problems > 0",
        lasting: "10m",
        severity: WARNING,
        summary: "There are mistakes in the manifests",
        remedy: "The log names file, line and column",
    },
    Alert {
        name: "EntraPodIdentityAuditFails",
        expr: "entra_pod_identity_audit_journal_failing == 1 or increase(entra_pod_identity_audit_journal_lost_records_total[10m]) > 0 or rate(entra_pod_identity_broker_requests_total{reason=\"audit\"}[5m]) > 0",
        lasting: "1m",
        severity: CRITICAL,
        summary: "Audit records cannot be written",
        remedy: "No token leaves meanwhile, unless `--audit-on-failure=allow`; look at the disk of the journal",
    },
    Alert {
        name: "EntraPodIdentityAuditLost",
        expr: "increase(entra_pod_identity_audit_sink_lost_records_total[10m]) > 0 or entra_pod_identity_audit_events_lost_records + entra_pod_identity_audit_events_refused_records > 0",
        lasting: "0m",
        severity: WARNING,
        summary: "A sink of the audit did not take a record",
        remedy: "With a journal the record is there; without, this is a gap",
    },
    Alert {
        name: "EntraPodIdentityAuditEventsBehind",
        expr: "entra_pod_identity_audit_events_unread_records + entra_pod_identity_audit_events_pending_records > 10000",
        lasting: "30m",
        severity: WARNING,
        summary: "Audit Events are far behind the journal",
        remedy: "Nothing is lost while the journal's files are kept; see whether the API server takes the writes",
    },
    Alert {
        name: "EntraPodIdentityLogLost",
        expr: "increase(entra_pod_identity_log_lines_lost_total[10m]) > 0",
        lasting: "0m",
        severity: WARNING,
        summary: "Lines of a daemon's log are lost",
        remedy: "Whoever collects the log stands still, or its disk is full",
    },
];

/// The file.
pub(in crate::generate) fn rules() -> anyhow::Result<String> {
    let rules: Vec<_> = ALERTS
        .iter()
        .map(|alert| {
            json!({
                "alert": alert.name,
                "expr": alert.expr,
                "for": alert.lasting,
                "labels": {"severity": alert.severity},
                "annotations": {"summary": alert.summary, "description": alert.remedy},
            })
        })
        .collect();
    let document = json!({"groups": [{"name": "entra-pod-identity", "rules": rules}]});
    let comment =
        ["Rules for Prometheus (`rule_files`), or the `spec` of a PrometheusRule. Explained in docs/metrics.md."];
    Ok(yaml::render(&comment, &[yaml::document(&document)?]))
}
