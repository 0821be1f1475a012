//! Whose checkpoints of the audit journal a node writes: its own, and forwards.

use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicySpec;

use super::{Policy, assemble, condition, list, on, rule, variable, worded};

/// Before the name of the node, in the name of the Lease (`coordination.k8s.io`) that has its checkpoint.
pub const CHECKPOINT_LEASE: &str = "entra-pod-identity-audit-";
/// Annotation of that Lease: the id of the journal.
pub const CHECKPOINT_JOURNAL: &str = "audit.aadpodidentity.k8s.io/journal";
/// Annotation of that Lease: the number of the last record.
pub const CHECKPOINT_SEQ: &str = "audit.aadpodidentity.k8s.io/seq";
/// Annotation of that Lease: the hash of the last record.
pub const CHECKPOINT_HEAD: &str = "audit.aadpodidentity.k8s.io/head";
/// Annotation of that Lease: when the checkpoint was made, RFC 3339.
pub const CHECKPOINT_TIME: &str = "audit.aadpodidentity.k8s.io/time";
/// Annotation of that Lease: the name of the key that signed the checkpoint; empty without one.
pub const CHECKPOINT_KEY: &str = "audit.aadpodidentity.k8s.io/key";

/// What `nodes` (user names) make of a right to write Leases: one, named after the node that the token says it was made for
/// (Kubernetes 1.30 and later), whose checkpoint never goes back within one journal. With the right alone each node could
/// write every other's.
pub fn checkpoints(nodes: &[&str]) -> Policy {
    let annotation = |object: &str, name: &str| format!("{object}.metadata.?annotations[?'{name}'].orValue('')");
    let spec = ValidatingAdmissionPolicySpec {
        match_constraints: Some(on("coordination.k8s.io", &["leases"], &["CREATE", "UPDATE"])),
        match_conditions: Some(vec![condition(
            "the-node-daemon",
            format!("request.userInfo.username in {}", list(nodes)),
        )]),
        variables: Some(vec![
            variable("node", "request.userInfo.extra[?'authentication.kubernetes.io/node-name'][0].orValue('')"),
            variable("journal", annotation("object", CHECKPOINT_JOURNAL)),
            variable("seq", annotation("object", CHECKPOINT_SEQ)),
            variable("head", annotation("object", CHECKPOINT_HEAD)),
            variable("before", "request.operation == 'UPDATE' ? oldObject : object"),
            variable("journalBefore", annotation("variables.before", CHECKPOINT_JOURNAL)),
            variable("seqBefore", annotation("variables.before", CHECKPOINT_SEQ)),
        ]),
        validations: Some(vec![
            rule(
                "variables.node != ''",
                "the node daemon of entra-pod-identity writes a Lease only with a token that is bound to its pod, and names \
                 the node (Kubernetes 1.30 and later)",
            ),
            worded(
                format!("object.metadata.name == '{CHECKPOINT_LEASE}' + variables.node"),
                "the node daemon of entra-pod-identity writes the Lease of its own node only",
                format!(
                    "'the node daemon of entra-pod-identity on node ' + variables.node + ' writes the Lease \
                     {CHECKPOINT_LEASE}' + variables.node + ' only'"
                ),
            ),
            rule(
                "variables.journal != '' && variables.seq.matches('^[0-9]{1,18}$') && \
                 variables.head.matches('^[0-9a-f]{64}$')",
                "a checkpoint says its journal, the number of the last record, and that record's hash",
            ),
            worded(
                "request.operation != 'UPDATE' || variables.journal != variables.journalBefore || \
                 !variables.seq.matches('^[0-9]{1,18}$') || !variables.seqBefore.matches('^[0-9]{1,18}$') || \
                 int(variables.seq) >= int(variables.seqBefore)",
                "a checkpoint never goes back",
                "'a checkpoint never goes back: journal ' + variables.journal + ' was at record ' + variables.seqBefore + \
                 ', and this says ' + variables.seq",
            ),
        ]),
        ..ValidatingAdmissionPolicySpec::default()
    };
    assemble(
        "examples/audit-checkpoints/install.yaml",
        "audit-checkpoints.aadpodidentity.k8s.io",
        spec,
        None,
        &["Deny"],
    )
}
