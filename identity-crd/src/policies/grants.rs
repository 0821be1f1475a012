//! Grants: who asked, approved, denied and revoked is who wrote it.

use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicySpec, Validation};

use super::{Policy, assemble, caller, condition, each_binding, list, on, rule, variable, worded};

/// What of `spec` stays as it was created.
pub(super) const FIXED: [&str; 6] = ["bindingName", "podName", "reason", "duration", "requestedBy", "requesterGroups"];

/// The approvals there were, those there are, and those that came; of a grant and its former self.
const BEFORE: &str = "request.operation == 'CREATE' ? [] : oldObject.spec.?approvals.orValue([])";
const NOW: &str = "object.spec.?approvals.orValue([])";
const ADDED: &str = "variables.approvals.filter(a, !(a in variables.before))";

/// `denied` or `revoked`: set by the one it names, and then left alone.
fn withdrawal(field: &str) -> [Validation; 2] {
    let set_before = format!("(request.operation == 'UPDATE' && has(oldObject.spec.{field}))");
    [
        rule(
            format!("!{set_before} || object.spec.?{field} == oldObject.spec.?{field}"),
            &format!("spec.{field} is set already, and for good"),
        ),
        worded(
            format!(
                "{set_before} || !has(object.spec.{field}) || object.spec.{field}.?by.orValue('') == variables.caller"
            ),
            &format!("spec.{field}.by must be your own name"),
            format!("'spec.{field}.by must be your own name, which is ' + variables.caller"),
        ),
    ]
}

/// Names in a grant are true: `requestedBy` and each `by` is the caller, `groups` are groups of the caller's; approvals are
/// only added, by others than the requester; the rest stays as created; and only `controllers` (user names) write the
/// status. Nothing is believed without this policy.
///
/// Deletion is left to RBAC: it ends a grant and gives none.
pub fn grants(controllers: &[&str]) -> Policy {
    let created = "request.operation == 'CREATE'";
    let mut variables = caller().to_vec();
    variables.extend([
        variable("controllers", list(controllers)),
        variable("before", BEFORE),
        variable("approvals", NOW),
        variable("added", ADDED),
    ]);
    let mut validations = vec![
        worded(
            "variables.caller in variables.controllers || (request.operation == 'CREATE' ? !has(object.status) : \
             object.?status == oldObject.?status)",
            "only the controller of entra-pod-identity writes the status of a grant",
            "'only ' + variables.controllers.join(', ') + ' may write the status of a grant, and this is ' + \
             variables.caller",
        ),
        worded(
            format!("{created} ? object.spec.?requestedBy.orValue('') == variables.caller : true"),
            "spec.requestedBy must be your own name",
            "'spec.requestedBy must be your own name, which is ' + variables.caller",
        ),
        worded(
            format!("{created} ? object.spec.?requesterGroups.orValue([]).all(g, g in variables.groups) : true"),
            "spec.requesterGroups names a group that you are not in",
            "'spec.requesterGroups names a group that ' + variables.caller + ' is not in; leave it out, or name some of ' + \
             variables.groups.join(', ')",
        ),
        rule(
            format!(
                "{created} ? size(variables.approvals) == 0 && !has(object.spec.denied) && !has(object.spec.revoked) : true"
            ),
            "a new grant has no spec.approvals, spec.denied or spec.revoked; others add them later",
        ),
    ];
    let fixed: Vec<_> = FIXED.iter().map(|f| format!("object.spec.?{f} == oldObject.spec.?{f}")).collect();
    validations.push(rule(
        format!("{created} ? true : {}", fixed.join(" && ")),
        "what is asked for stays as it was asked: only spec.approvals, spec.denied and spec.revoked may change; delete this \
         grant and create another",
    ));
    validations.extend([
        rule(
            "variables.before.all(a, a in variables.approvals) && variables.approvals.all(a, \
             variables.approvals.exists_one(b, b.?by.orValue('') == a.?by.orValue('')))",
            "spec.approvals may only be added to, once by each approver: the ones that are there stay as they are; to take \
             a grant back, set spec.denied or spec.revoked",
        ),
        worded(
            "variables.added.all(a, a.?by.orValue('') == variables.caller)",
            "spec.approvals: by must be your own name",
            "'spec.approvals: by must be your own name, which is ' + variables.caller",
        ),
        worded(
            "variables.added.all(a, a.?groups.orValue([]).all(g, g in variables.groups))",
            "spec.approvals: groups names a group that you are not in",
            "'spec.approvals: groups names a group that ' + variables.caller + ' is not in; name some of ' + \
             variables.groups.join(', ')",
        ),
        rule(
            "variables.added.all(a, a.?by.orValue('') != object.spec.?requestedBy.orValue(''))",
            "spec.approvals: whoever asks cannot approve; somebody else must",
        ),
    ]);
    validations.extend(withdrawal("denied"));
    validations.extend(withdrawal("revoked"));
    let spec = ValidatingAdmissionPolicySpec {
        match_constraints: Some(on(
            crate::GROUP,
            &["azureidentitygrants", "azureidentitygrants/*"],
            &["CREATE", "UPDATE"],
        )),
        variables: Some(variables),
        validations: Some(validations),
        ..ValidatingAdmissionPolicySpec::default()
    };
    assemble("deploy/admission-policy-grants.yaml", "azureidentitygrants.aadpodidentity.k8s.io", spec, None, &["Deny"])
}

/// Those who approve, deny and revoke are approvers of the binding (or the requester, who may take it back): said when they
/// try. What opens a binding is judged by the controller in any case, so nothing depends on this policy but `denied` and
/// `revoked` being left to those they belong to.
///
/// What is not true ([`grants`] says so) is not looked at: which of two policies gets to speak is nobody's choice.
///
/// A policy cannot look up one object by name, so it is evaluated for each binding of the namespace, and all but one do
/// not mind.
pub fn approvers() -> Policy {
    let mut variables = caller().to_vec();
    let of_binding = |list: &str| format!("params.spec.?timeBox.?grant.?approvers.?{list}.orValue([])");
    variables.extend([
        variable("concerned", "params.metadata.name == object.spec.?bindingName.orValue('')"),
        variable("users", of_binding("users")),
        variable("approverGroups", of_binding("groups")),
        variable("before", BEFORE),
        variable("approvals", NOW),
        variable("added", ADDED),
    ]);
    let (param_kind, param_ref) = each_binding();
    let spec = ValidatingAdmissionPolicySpec {
        match_constraints: Some(on(crate::GROUP, &["azureidentitygrants"], &["UPDATE"])),
        param_kind: Some(param_kind),
        match_conditions: Some(vec![condition(
            "somebody-decides",
            "['approvals', 'denied', 'revoked'].exists(f, object.spec[?f] != oldObject.spec[?f])",
        )]),
        variables: Some(variables),
        validations: Some(vec![
            worded(
                "!variables.concerned || variables.caller in variables.users || variables.added.all(a, \
                 a.?by.orValue('') != variables.caller || \
                 !a.?groups.orValue([]).all(g, g in variables.groups) || \
                 a.?groups.orValue([]).exists(g, g in variables.approverGroups))",
                "spec.approvals: you are not an approver of this binding, or do not name the group that makes you one",
                "'spec.approvals: ' + variables.caller + ' is not an approver of AzureIdentityBinding ' + \
                 params.metadata.name + ', or does not name the group that makes one; its timeBox.grant.approvers has \
                 users [' + variables.users.join(', ') + '] and groups [' + variables.approverGroups.join(', ') + ']'",
            ),
            worded(
                "!variables.concerned || ['denied', 'revoked'].all(f, object.spec[?f] == oldObject.spec[?f] || \
                 object.spec[?f].?by.orValue('') != variables.caller) || variables.caller == object.spec.?requestedBy.orValue('') || variables.caller in variables.users || \
                 variables.groups.exists(g, g in variables.approverGroups)",
                "spec.denied and spec.revoked are for approvers of the binding and for the requester",
                "'spec.denied and spec.revoked are for the requester and the approvers of AzureIdentityBinding ' + \
                 params.metadata.name + ', and ' + variables.caller + ' is neither; deleting the grant ends it as well'",
            ),
        ]),
        ..ValidatingAdmissionPolicySpec::default()
    };
    assemble(
        "deploy/admission-policy-grants.yaml",
        "azureidentitygrants-approvers.aadpodidentity.k8s.io",
        spec,
        Some(param_ref),
        &["Deny"],
    )
}
