//! `validate()` against the table that a real API server is put to as well (`kube_crd.rs`).

mod common;

use common::{Case, Expect, cases};
use identity_crd::{
    AzureAssignedIdentitySpec, AzureIdentity, AzureIdentityBindingSpec, AzureIdentityGrantSpec,
    AzurePodIdentityExceptionSpec, Violation,
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn validate(kind: &str, spec: Value) -> Vec<Violation> {
    let wrong = "the case is of the spec's types";
    match kind {
        "AzureIdentity" => AzureIdentity::new("case", serde_json::from_value(spec).expect(wrong)).validate(),
        "AzureIdentityGrant" => serde_json::from_value::<AzureIdentityGrantSpec>(spec).expect(wrong).validate(),
        "AzureIdentityBinding" => serde_json::from_value::<AzureIdentityBindingSpec>(spec).expect(wrong).validate(),
        "AzurePodIdentityException" => {
            serde_json::from_value::<AzurePodIdentityExceptionSpec>(spec).expect(wrong).validate()
        }
        other => panic!("no kind {other}"),
    }
}

#[test]
fn each_case_of_the_table() {
    for Case { name, kind, spec, expect } in cases() {
        let found = validate(kind, spec);
        let fields: Vec<_> = found.iter().map(|v| v.field.as_str()).collect();
        match expect {
            Expect::Accepted => assert_eq!(found, [], "{kind}: {name}"),
            Expect::Refused(expected) => assert_eq!(fields, expected, "{kind}: {name}"),
            Expect::TooMuch(expected) | Expect::Meaning(expected) => assert_eq!(fields, [expected], "{kind}: {name}"),
        }
        assert!(found.iter().all(|v| !v.message.is_empty()), "{kind}: {name}: {found:?}");
    }
}

#[test]
fn the_sentences() {
    let mut sentences: Vec<_> = cases()
        .into_iter()
        .flat_map(|case| validate(case.kind, case.spec).into_iter().map(move |v| format!("{}: {v}", case.kind)))
        .collect();
    sentences.sort();
    sentences.dedup();
    insta::assert_yaml_snapshot!(sentences);
}

#[test]
fn an_assignment_without_its_parts() {
    let fields: Vec<_> = AzureAssignedIdentitySpec::default().validate().into_iter().map(|v| v.field).collect();
    assert_eq!(fields, ["spec.pod", "spec.podNamespace", "spec.azureIdentityRef", "spec.azureBindingRef"]);
}

fn text() -> impl Strategy<Value = Value> {
    prop_oneof![Just(Value::Null), ".{0,80}".prop_map(Value::from), "[a-z/:.-]{0,300}".prop_map(Value::from)]
}

fn list() -> impl Strategy<Value = Value> {
    prop_oneof![Just(Value::Null), prop::collection::vec(".{0,20}", 0..70).prop_map(Value::from)]
}

proptest! {
    #[test]
    fn validate_never_panics_on_an_identity(
        (type_, resource, client, tenant) in (any::<Option<i32>>(), text(), text(), text()),
        (name, namespace, endpoint) in (text(), text(), text()),
        (tenants, audiences) in (list(), list()),
    ) {
        let spec = json!({"type": type_.map(|t| t % 4), "resourceID": resource, "clientID": client, "tenantID": tenant,
            "clientPassword": {"name": name, "namespace": namespace}, "adEndpoint": endpoint,
            "auxiliaryTenantIDs": tenants, "audiences": audiences});
        for violation in validate("AzureIdentity", spec) {
            prop_assert!(violation.field.starts_with("spec."));
        }
    }

    #[test]
    fn validate_never_panics_on_a_binding(
        (identity, selector, weight) in (text(), text(), any::<Option<i32>>()),
        (accounts, audiences, values) in (list(), list(), list()),
        labels in prop::collection::btree_map(".{0,70}", ".{0,70}", 0..20),
        (key, operator) in (".{0,10}", prop_oneof!["In", "NotIn", "Exists", "DoesNotExist", ".{0,5}"]),
    ) {
        let spec = json!({"azureIdentity": identity, "selector": selector, "weight": weight,
            "serviceAccounts": accounts, "audiences": audiences,
            "podSelector": {"matchLabels": labels,
                "matchExpressions": [{"key": key, "operator": operator, "values": values}]}});
        for violation in validate("AzureIdentityBinding", spec) {
            prop_assert!(violation.field.starts_with("spec."));
        }
    }

    #[test]
    fn validate_never_panics_on_a_time_box(
        (from, to, zone) in (text(), text(), text()),
        (schedule, duration, longest) in (".{0,40}", "[0-9hms.-]{0,12}", "[0-9hms.é-]{0,12}"),
        (dates, users, groups) in (list(), list(), list()),
        (required, approvals) in (any::<Option<bool>>(), any::<Option<i32>>()),
    ) {
        let time_box = json!({"notBefore": from, "notAfter": to,
            "windows": [{"schedule": schedule, "duration": duration, "timeZone": zone, "excludeDates": dates}],
            "grant": {"required": required, "maxDuration": longest, "minApprovals": approvals,
                "approvers": {"users": users, "groups": groups}}});
        let spec = json!({"azureIdentity": "a", "selector": "s", "timeBox": time_box});
        for violation in validate("AzureIdentityBinding", spec) {
            prop_assert!(violation.field.starts_with("spec.timeBox."), "{violation}");
        }
    }

    #[test]
    fn validate_never_panics_on_a_grant(
        (binding, reason, duration, requester) in (".{0,20}", ".{0,20}", ".{0,20}", ".{0,20}"),
        (pod, groups, by) in (text(), list(), prop::collection::vec(".{0,20}", 0..20)),
    ) {
        let approvals: Vec<_> = by.iter().map(|by| json!({"by": by, "groups": groups})).collect();
        let spec = json!({"bindingName": binding, "podName": pod, "reason": reason, "duration": duration,
            "requestedBy": requester, "approvals": approvals, "denied": {"by": by.first()}});
        let spec = if by.is_empty() { json!({"bindingName": binding}) } else { spec };
        for violation in validate("AzureIdentityGrant", spec) {
            prop_assert!(violation.field.starts_with("spec."));
        }
    }
}
