//! Delegation: the verb `use` on an `AzureIdentity`.

use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicyBinding, ValidatingAdmissionPolicySpec};

use super::{Policy, assemble, condition, on, variable, worded};

const NAME: &str = "azureidentitybindings-use.aadpodidentity.k8s.io";

/// Whoever creates or changes a binding should have the verb `use` on the `AzureIdentity` that it names. Said as a warning
/// and in the API server's audit, because existing clusters have people and tools without that right;
/// [`enforced_delegation`] makes it a condition.
pub fn delegation() -> Policy {
    let spec = ValidatingAdmissionPolicySpec {
        match_constraints: Some(on(crate::GROUP, &["azureidentitybindings"], &["CREATE", "UPDATE"])),
        match_conditions: Some(vec![condition(
            "gives-something",
            "request.operation == 'CREATE' || object.spec != oldObject.spec",
        )]),
        variables: Some(vec![variable("identity", "object.spec.?azureIdentity.orValue('')")]),
        validations: Some(vec![worded(
            format!(
                "authorizer.group('{}').resource('azureidentities').namespace(request.namespace)\
                 .name(variables.identity).check('use').allowed()",
                crate::GROUP
            ),
            "spec.azureIdentity: whoever creates or changes a binding needs the verb `use` on the AzureIdentity",
            "'spec.azureIdentity: ' + request.userInfo.username + ' needs the verb `use` on AzureIdentity ' + \
             variables.identity + ' of namespace ' + request.namespace + '; a Role with apiGroups [aadpodidentity.k8s.io], \
             resources [azureidentities], resourceNames [' + variables.identity + '], verbs [use] gives it'",
        )]),
        ..ValidatingAdmissionPolicySpec::default()
    };
    assemble("deploy/admission-policy-delegation.yaml", NAME, spec, None, &["Warn", "Audit"])
}

/// A second binding of [`delegation`]'s policy that refuses.
pub fn enforced_delegation() -> ValidatingAdmissionPolicyBinding {
    let mut binding = delegation().binding;
    binding.metadata.name = Some("azureidentitybindings-use-enforced.aadpodidentity.k8s.io".into());
    binding.spec.validation_actions = vec!["Deny".into()];
    binding
}
