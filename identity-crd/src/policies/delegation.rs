//! Delegation: the verb `use` on an `AzureIdentity`, or AKS's `use-managed-identity` on a client id.

use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicyBinding, ValidatingAdmissionPolicySpec};

use super::{Policy, assemble, condition, on, variable, worded};
use crate::form;

const NAME: &str = "azureidentitybindings-use.aadpodidentity.k8s.io";
const READERS: &str = "azureidentities-use.aadpodidentity.k8s.io";

/// The verb that lets somebody bind an `AzureIdentity`, by its name.
pub const USE: &str = "use";
/// The verb of AKS identity bindings on a client id, which is the name of a resource of the group [`CLIENT_ID_GROUP`].
pub const USE_MANAGED_IDENTITY: &str = "use-managed-identity";
/// The API group of client ids. No server serves it: it is there for roles to name.
pub const CLIENT_ID_GROUP: &str = "cid.wi.aks.azure.com";

/// Whoever creates or changes a binding should have the verb `use` on the `AzureIdentity` that it names; or, when the binding
/// says by `clientID` which client id that must have, the verb `use-managed-identity` on that, as AKS identity bindings have
/// it. Said as a warning and in the API server's audit, because existing clusters have people and tools without that right;
/// [`enforced_delegation`] makes it a condition.
///
/// A policy cannot look at the identity. It need not: through a binding with `clientID` nothing is assigned but an
/// identity that has it, whether the identity was there before, comes later, or is exchanged for another.
pub fn delegation() -> Policy {
    let spec = ValidatingAdmissionPolicySpec {
        match_constraints: Some(on(crate::GROUP, &["azureidentitybindings"], &["CREATE", "UPDATE"])),
        match_conditions: Some(vec![condition(
            "gives-something",
            "request.operation == 'CREATE' || object.spec != oldObject.spec",
        )]),
        variables: Some(vec![
            variable("identity", "object.spec.?azureIdentity.orValue('')"),
            // In small letters, as Azure writes it and roles have it: RBAC knows no others. A null is as if absent.
            variable(
                "clientID",
                "type(object.spec.?clientID.orValue('')) == string ? object.spec.?clientID.orValue('').lowerAscii() : ''",
            ),
            // Each check has its own allowance of cost; two in one expression leave none for a third.
            variable(
                "byName",
                format!(
                    "authorizer.group('{}').resource('azureidentities').namespace(request.namespace)\
                     .name(variables.identity).check('{USE}').allowed()",
                    crate::GROUP
                ),
            ),
            variable(
                "byClientID",
                format!(
                    "variables.clientID.matches(r'{}') && authorizer.group('{CLIENT_ID_GROUP}')\
                     .resource(variables.clientID).namespace(request.namespace).check('{USE_MANAGED_IDENTITY}').allowed()",
                    form::GUID
                ),
            ),
        ]),
        validations: Some(vec![worded(
            "variables.byName || variables.byClientID",
            "spec.azureIdentity: whoever creates or changes a binding needs the verb `use` on the AzureIdentity, or \
             `use-managed-identity` on spec.clientID",
            format!(
                "'spec.azureIdentity: ' + request.userInfo.username + ' needs the verb `{USE}` on AzureIdentity ' + \
                 variables.identity + ' of namespace ' + request.namespace + '; a Role with apiGroups [{}], resources \
                 [azureidentities], resourceNames [' + variables.identity + '], verbs [{USE}] gives it' + \
                 (variables.clientID == '' ? '' : '; or `{USE_MANAGED_IDENTITY}` on spec.clientID; a ClusterRole with \
                 apiGroups [{CLIENT_ID_GROUP}], resources [' + variables.clientID + '], verbs [{USE_MANAGED_IDENTITY}] gives \
                 that')",
                crate::GROUP
            ),
        )]),
        ..ValidatingAdmissionPolicySpec::default()
    };
    assemble("deploy/admission-policy-delegation.yaml", NAME, spec, None, &["Warn", "Audit"])
}

/// The same of an `AzureIdentity` whose credential another one reads from a Key Vault: whoever writes `keyVault.identityRef`
/// makes use of what that may read, by its name. Said like [`delegation`].
pub fn delegated_readers() -> Policy {
    let spec = ValidatingAdmissionPolicySpec {
        match_constraints: Some(on(crate::GROUP, &["azureidentities"], &["CREATE", "UPDATE"])),
        match_conditions: Some(vec![
            condition(
                "has-a-reader",
                "has(object.spec.keyVault) && object.spec.keyVault != null && has(object.spec.keyVault.identityRef)",
            ),
            condition("gives-something", "request.operation == 'CREATE' || object.spec != oldObject.spec"),
        ]),
        variables: Some(vec![variable("reader", "object.spec.keyVault.identityRef")]),
        validations: Some(vec![worded(
            format!(
                "authorizer.group('{}').resource('azureidentities').namespace(request.namespace).name(variables.reader)\
                 .check('{USE}').allowed()",
                crate::GROUP
            ),
            "spec.keyVault.identityRef: whoever has an identity read a Key Vault needs the verb `use` on it",
            format!(
                "'spec.keyVault.identityRef: ' + request.userInfo.username + ' needs the verb `{USE}` on AzureIdentity ' + \
                 variables.reader + ' of namespace ' + request.namespace + ', which is to read the Key Vault; a Role with \
                 apiGroups [{}], resources [azureidentities], resourceNames [' + variables.reader + '], verbs [{USE}] gives \
                 it'",
                crate::GROUP
            ),
        )]),
        ..ValidatingAdmissionPolicySpec::default()
    };
    assemble("deploy/admission-policy-delegation.yaml", READERS, spec, None, &["Warn", "Audit"])
}

/// Second bindings of the policies of [`delegation`] and [`delegated_readers`] that refuse.
pub fn enforced_delegation() -> [ValidatingAdmissionPolicyBinding; 2] {
    [delegation(), delegated_readers()].map(|policy| {
        let name = policy.name().replacen('.', "-enforced.", 1);
        let mut binding = policy.binding;
        binding.metadata.name = Some(name);
        binding.spec.validation_actions = vec!["Deny".into()];
        binding
    })
}
