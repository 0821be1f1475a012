//! Who may write assignments: nodes hand out tokens on their word alone.

use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicySpec;

use super::{Policy, assemble, list, on, variable, worded};

/// What deletion needs of others: the garbage collector takes owner references away when a pod is deleted with
/// `--cascade=orphan`, and a person takes the predecessor's finalizer off. Neither touches what nodes read.
const ONLY_DELETION: &str = "request.operation == 'UPDATE' && object.spec == oldObject.spec && \
                             object.?status == oldObject.?status && \
                             object.metadata.?labels == oldObject.metadata.?labels && \
                             (has(oldObject.metadata.deletionTimestamp) || \
                             request.userInfo.username == 'system:serviceaccount:kube-system:generic-garbage-collector')";

/// Only `writers` (user names) create or change assignments.
pub fn assignments(writers: &[&str]) -> Policy {
    let spec = ValidatingAdmissionPolicySpec {
        match_constraints: Some(on(
            crate::GROUP,
            &["azureassignedidentities", "azureassignedidentities/*"],
            &["CREATE", "UPDATE"],
        )),
        variables: Some(vec![variable("writers", list(writers)), variable("onlyDeletion", ONLY_DELETION)]),
        validations: Some(vec![worded(
            "request.userInfo.username in variables.writers || variables.onlyDeletion",
            "only the controller of entra-pod-identity may write an AzureAssignedIdentity; to give a pod an identity, \
             create an AzureIdentityBinding",
            "'only ' + variables.writers.join(', ') + ' may write an AzureAssignedIdentity, and this is ' + \
             request.userInfo.username + '; to give a pod an identity, create an AzureIdentityBinding'",
        )]),
        ..ValidatingAdmissionPolicySpec::default()
    };
    assemble("deploy/admission-policy.yaml", "azureassignedidentities.aadpodidentity.k8s.io", spec, None, &["Deny"])
}
