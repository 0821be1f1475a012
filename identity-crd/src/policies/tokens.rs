//! Tokens of pods' service accounts, for identities of type 3 with `subject: Pod`.

use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicySpec;

use super::{Policy, assemble, condition, list, on, rule, variable, worded};
use crate::FEDERATED_AUDIENCE;

/// What `nodes` (user names) make with the right to `serviceaccounts/token`: tokens for Entra alone, bound to a pod, for an
/// hour at most. With the right alone they could make tokens for the API server in any service account's name.
pub fn pod_tokens(nodes: &[&str]) -> Policy {
    let spec = ValidatingAdmissionPolicySpec {
        match_constraints: Some(on("", &["serviceaccounts/token"], &["CREATE"])),
        match_conditions: Some(vec![condition(
            "the-node-daemon",
            format!("request.userInfo.username in {}", list(nodes)),
        )]),
        variables: Some(vec![variable("audiences", list(&[FEDERATED_AUDIENCE]))]),
        validations: Some(vec![
            worded(
                "object.spec.?audiences.orValue([]).size() > 0 && object.spec.audiences.all(a, a in variables.audiences)",
                "the node daemon of entra-pod-identity makes tokens for Entra only",
                "'the node daemon of entra-pod-identity makes tokens for ' + variables.audiences.join(', ') + ' only'",
            ),
            rule(
                "object.spec.?boundObjectRef.?kind.orValue('') == 'Pod' && \
                 object.spec.?boundObjectRef.?uid.orValue('') != ''",
                "the node daemon of entra-pod-identity makes tokens that are bound to one pod, by its UID",
            ),
            rule(
                "object.spec.?expirationSeconds.orValue(3600) <= 3600",
                "the node daemon of entra-pod-identity makes tokens for an hour at most",
            ),
        ]),
        ..ValidatingAdmissionPolicySpec::default()
    };
    assemble(
        "deploy/admission-policy-tokens.yaml",
        "serviceaccounts-token.aadpodidentity.k8s.io",
        spec,
        None,
        &["Deny"],
    )
}
