//! Who may write assignments: nodes hand out tokens on their word alone.

use k8s_openapi::api::admissionregistration::v1::{
    MatchResources, NamedRuleWithOperations, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
    ValidatingAdmissionPolicyBindingSpec, ValidatingAdmissionPolicySpec, Validation, Variable,
};

use super::{names::cluster_meta, yaml};

const NAME: &str = "azureassignedidentities.aadpodidentity.k8s.io";

/// What deletion needs of others: the garbage collector takes owner references away when a pod is deleted with
/// `--cascade=orphan`, and a person takes the predecessor's finalizer off. Neither touches what nodes read.
const ONLY_DELETION: &str = "request.operation == 'UPDATE' && object.spec == oldObject.spec && \
                             object.?status == oldObject.?status && \
                             object.metadata.?labels == oldObject.metadata.?labels && \
                             (has(oldObject.metadata.deletionTimestamp) || \
                             request.userInfo.username == 'system:serviceaccount:kube-system:generic-garbage-collector')";

/// The policy and its binding. `writers`: user names.
pub(super) fn assignments(writers: &[&str]) -> anyhow::Result<String> {
    let writers = writers.iter().map(|w| format!("'{w}'")).collect::<Vec<_>>().join(", ");
    let policy = ValidatingAdmissionPolicy {
        metadata: cluster_meta(NAME),
        spec: Some(ValidatingAdmissionPolicySpec {
            failure_policy: Some("Fail".into()),
            match_constraints: Some(MatchResources {
                resource_rules: Some(vec![NamedRuleWithOperations {
                    api_groups: Some(vec![identity_crd::GROUP.into()]),
                    api_versions: Some(vec!["*".into()]),
                    operations: Some(vec!["CREATE".into(), "UPDATE".into()]),
                    resources: Some(vec!["azureassignedidentities".into(), "azureassignedidentities/*".into()]),
                    ..NamedRuleWithOperations::default()
                }]),
                ..MatchResources::default()
            }),
            variables: Some(vec![
                Variable { name: "writers".into(), expression: format!("[{writers}]") },
                Variable { name: "onlyDeletion".into(), expression: ONLY_DELETION.into() },
            ]),
            validations: Some(vec![Validation {
                expression: "request.userInfo.username in variables.writers || variables.onlyDeletion".into(),
                message: Some(
                    "only the controller of entra-pod-identity may write an AzureAssignedIdentity; to give a pod an \
                     identity, create an AzureIdentityBinding"
                        .into(),
                ),
                message_expression: Some(
                    "'only ' + variables.writers.join(', ') + ' may write an AzureAssignedIdentity, and this is ' + \
                     request.userInfo.username + '; to give a pod an identity, create an AzureIdentityBinding'"
                        .into(),
                ),
                reason: Some("Forbidden".into()),
            }]),
            ..ValidatingAdmissionPolicySpec::default()
        }),
        ..ValidatingAdmissionPolicy::default()
    };
    let binding = ValidatingAdmissionPolicyBinding {
        metadata: cluster_meta(NAME),
        spec: ValidatingAdmissionPolicyBindingSpec {
            policy_name: NAME.into(),
            validation_actions: vec!["Deny".into()],
            ..ValidatingAdmissionPolicyBindingSpec::default()
        },
    };
    Ok(yaml::render(
        &[
            "Only the users in the variable `writers` create or change assignments, whatever RBAC says of others.",
            "Deleting them is left to RBAC: it takes a right away and gives none. If the controller runs as another",
            "user, put its name there; while the predecessor's controller still runs, its name too",
            "(system:serviceaccount:<namespace>:aad-pod-id-mic-service-account, or aad-pod-identity-mic with Helm).",
        ],
        &[yaml::document(&policy)?, yaml::document(&binding)?],
    ))
}
