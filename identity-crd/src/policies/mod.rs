//! The ValidatingAdmissionPolicies that make names in objects true and confine rights that RBAC cannot confine. As data:
//! `deploy/` is generated from them, and the controller compares them with what the API server has before it believes a
//! grant.
//!
//! ```
//! use identity_crd::policies;
//!
//! let grants = policies::grants(&[policies::CONTROLLER]);
//! let error = grants.in_force_since(None, None).unwrap_err();
//! assert!(error.to_string().contains("deploy/admission-policy-grants.yaml"));
//! ```

mod assignments;
mod checkpoints;
mod delegation;
mod grants;
mod tokens;

use jiff::Timestamp;
use k8s_openapi::{
    api::admissionregistration::v1::{
        MatchCondition, MatchResources, NamedRuleWithOperations, ParamKind, ParamRef, ValidatingAdmissionPolicy,
        ValidatingAdmissionPolicyBinding, ValidatingAdmissionPolicyBindingSpec, ValidatingAdmissionPolicySpec,
        Validation, Variable,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use thiserror::Error;

pub use self::{
    assignments::assignments,
    checkpoints::{
        CHECKPOINT_HEAD, CHECKPOINT_JOURNAL, CHECKPOINT_KEY, CHECKPOINT_LEASE, CHECKPOINT_SEQ, CHECKPOINT_TIME,
        checkpoints,
    },
    delegation::{CLIENT_ID_GROUP, USE, USE_MANAGED_IDENTITY, delegated_readers, delegation, enforced_delegation},
    grants::{approvers, grants},
    tokens::pod_tokens,
};

/// User name of the controller as `deploy/` installs it.
pub const CONTROLLER: &str = "system:serviceaccount:entra-pod-identity:entra-pod-identity-controller";
/// User name of the node daemon as `deploy/` installs it.
pub const NODE: &str = "system:serviceaccount:entra-pod-identity:entra-pod-identity-node";

/// A policy and what puts it in force, both with the values that the API server would otherwise fill in, so that what is
/// there can be compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// The file in `deploy/` that has it.
    pub file: &'static str,
    /// What is checked.
    pub policy: ValidatingAdmissionPolicy,
    /// That it is checked.
    pub binding: ValidatingAdmissionPolicyBinding,
}

/// Why a policy proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PolicyError {
    /// It is not there.
    #[error("{kind} {name} is not there; apply {file}")]
    Missing {
        /// `ValidatingAdmissionPolicy` or `ValidatingAdmissionPolicyBinding`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Where it is.
        file: &'static str,
    },
    /// It is another than the one that this version brings.
    #[error(
        "{kind} {name}: spec{path} is not what {file} of this version says; delete both objects and apply the file"
    )]
    Differs {
        /// `ValidatingAdmissionPolicy` or `ValidatingAdmissionPolicyBinding`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Where the first difference is, such as `.validations[2].expression`.
        path: String,
        /// Where it is right.
        file: &'static str,
    },
    /// It has been another at some time since it was created, and objects may be from then.
    #[error(
        "{kind} {name} has been edited since it was created, so that it proves nothing of the time before; delete both \
         objects and apply {file}"
    )]
    Edited {
        /// `ValidatingAdmissionPolicy` or `ValidatingAdmissionPolicyBinding`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Where it is right.
        file: &'static str,
    },
    /// It is going.
    #[error("{kind} {name} is being deleted; apply {file} when it is gone")]
    Going {
        /// `ValidatingAdmissionPolicy` or `ValidatingAdmissionPolicyBinding`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Where it is.
        file: &'static str,
    },
}

impl Policy {
    /// Name of the policy and of its binding.
    pub fn name(&self) -> &str {
        self.policy.metadata.name.as_deref().unwrap_or_default()
    }

    /// Since when these two, as the API server has them, say what they should (by its own clock): both there, with the
    /// spec of this version, never edited, not going. API servers take some seconds until a policy is in force; what is
    /// younger than a minute more is not proven by it.
    pub fn in_force_since(
        &self,
        policy: Option<&ValidatingAdmissionPolicy>,
        binding: Option<&ValidatingAdmissionPolicyBinding>,
    ) -> Result<Timestamp, PolicyError> {
        let spec = serde_json::json!(&self.policy.spec);
        let found = policy.map(|p| (&p.metadata, serde_json::json!(&p.spec)));
        let policy = self.check("ValidatingAdmissionPolicy", &spec, found)?;
        let spec = serde_json::json!(&self.binding.spec);
        let found = binding.map(|b| (&b.metadata, serde_json::json!(&b.spec)));
        Ok(policy.max(self.check("ValidatingAdmissionPolicyBinding", &spec, found)?))
    }

    fn check(
        &self,
        kind: &'static str,
        expected: &serde_json::Value,
        found: Option<(&ObjectMeta, serde_json::Value)>,
    ) -> Result<Timestamp, PolicyError> {
        let (name, file) = (self.name().to_owned(), self.file);
        let missing = PolicyError::Missing { kind, name: name.clone(), file };
        let Some((metadata, spec)) = found else { return Err(missing) };
        let Some(created) = &metadata.creation_timestamp else { return Err(missing) };
        if metadata.deletion_timestamp.is_some() {
            return Err(PolicyError::Going { kind, name, file });
        }
        if let Some(path) = difference(expected, &spec) {
            return Err(PolicyError::Differs { kind, name, path, file });
        }
        if metadata.generation != Some(1) {
            return Err(PolicyError::Edited { kind, name, file });
        }
        Ok(created.0)
    }
}

/// The path of the first place where two values differ.
fn difference(a: &serde_json::Value, b: &serde_json::Value) -> Option<String> {
    use serde_json::Value::{Array, Object};
    match (a, b) {
        (Object(a), Object(b)) => a
            .iter()
            .find_map(|(key, a)| difference(a, b.get(key)?).map(|rest| format!(".{key}{rest}")))
            .or_else(|| a.keys().find(|key| !b.contains_key(*key)).map(|key| format!(".{key}")))
            .or_else(|| b.keys().find(|key| !a.contains_key(*key)).map(|key| format!(".{key}"))),
        (Array(a), Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(i, (a, b))| difference(a, b).map(|rest| format!("[{i}]{rest}")))
        }
        _ => (a != b).then(String::new),
    }
}

// What the policies are put together from

/// `group`, `resources` and `operations`; all versions.
fn on(group: &str, resources: &[&str], operations: &[&str]) -> MatchResources {
    let strings = |list: &[&str]| Some(list.iter().map(|s| (*s).to_owned()).collect());
    MatchResources {
        match_policy: Some("Equivalent".into()),
        namespace_selector: Some(LabelSelector::default()),
        object_selector: Some(LabelSelector::default()),
        resource_rules: Some(vec![NamedRuleWithOperations {
            api_groups: strings(&[group]),
            api_versions: strings(&["*"]),
            operations: strings(operations),
            resources: strings(resources),
            scope: Some("*".into()),
            ..NamedRuleWithOperations::default()
        }]),
        ..MatchResources::default()
    }
}

fn variable(name: &str, expression: impl Into<String>) -> Variable {
    Variable { name: name.into(), expression: expression.into() }
}

fn condition(name: &str, expression: impl Into<String>) -> MatchCondition {
    MatchCondition { name: name.into(), expression: expression.into() }
}

/// `expression`, and what is said when it is false.
fn rule(expression: impl Into<String>, message: &str) -> Validation {
    Validation {
        expression: expression.into(),
        message: Some(message.into()),
        message_expression: None,
        reason: Some("Forbidden".into()),
    }
}

/// The same, with words that depend on the request (`message` is for when they cannot be had).
fn worded(expression: impl Into<String>, message: &str, words: impl Into<String>) -> Validation {
    Validation { message_expression: Some(words.into()), ..rule(expression, message) }
}

/// A CEL list of strings.
fn list(values: &[&str]) -> String {
    let quoted: Vec<_> = values.iter().map(|v| format!("'{}'", v.replace('\\', r"\\").replace('\'', r"\'"))).collect();
    format!("[{}]", quoted.join(", "))
}

/// The caller's name and groups.
fn caller() -> [Variable; 2] {
    [
        variable("caller", "request.userInfo.username"),
        variable("groups", "has(request.userInfo.groups) ? request.userInfo.groups : []"),
    ]
}

/// Every binding of an object's namespace is looked at, and the verdicts are ANDed.
fn each_binding() -> (ParamKind, ParamRef) {
    (
        ParamKind {
            api_version: Some(format!("{}/{}", crate::GROUP, crate::VERSION)),
            kind: Some("AzureIdentityBinding".into()),
        },
        ParamRef {
            selector: Some(LabelSelector::default()),
            parameter_not_found_action: Some("Allow".into()),
            ..ParamRef::default()
        },
    )
}

fn assemble(
    file: &'static str,
    name: &str,
    spec: ValidatingAdmissionPolicySpec,
    param_ref: Option<ParamRef>,
    actions: &[&str],
) -> Policy {
    let metadata = ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
    Policy {
        file,
        policy: ValidatingAdmissionPolicy {
            metadata: metadata.clone(),
            spec: Some(ValidatingAdmissionPolicySpec { failure_policy: Some("Fail".into()), ..spec }),
            ..ValidatingAdmissionPolicy::default()
        },
        binding: ValidatingAdmissionPolicyBinding {
            metadata,
            spec: ValidatingAdmissionPolicyBindingSpec {
                policy_name: name.into(),
                param_ref,
                validation_actions: actions.iter().map(|a| (*a).into()).collect(),
                ..ValidatingAdmissionPolicyBindingSpec::default()
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn live(policy: &Policy, created: [i64; 2]) -> (ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding) {
        let (mut policy, mut binding) = (policy.policy.clone(), policy.binding.clone());
        for (metadata, created) in [&mut policy.metadata, &mut binding.metadata].into_iter().zip(created) {
            metadata.creation_timestamp = Some(Time(Timestamp::from_second(created).unwrap()));
            metadata.generation = Some(1);
        }
        (policy, binding)
    }

    #[test]
    fn a_policy_proves_something_since_both_halves_are_there() {
        let expected = grants(&[CONTROLLER]);
        let (policy, binding) = live(&expected, [100, 200]);
        assert_eq!(expected.in_force_since(Some(&policy), Some(&binding)), Ok(Timestamp::from_second(200).unwrap()));
        let (policy, binding) = live(&expected, [300, 200]);
        assert_eq!(expected.in_force_since(Some(&policy), Some(&binding)), Ok(Timestamp::from_second(300).unwrap()));
    }

    #[test]
    fn what_proves_nothing() {
        type Change = fn(&mut ValidatingAdmissionPolicy, &mut ValidatingAdmissionPolicyBinding);
        let expected = grants(&[CONTROLLER]);
        let changes: [(&str, Change); 7] = [
            ("ValidatingAdmissionPolicy azureidentitygrants.aadpodidentity.k8s.io: spec.failurePolicy", |p, _| {
                p.spec.as_mut().unwrap().failure_policy = Some("Ignore".into());
            }),
            ("spec.validations[2].expression is not", |p, _| {
                p.spec.as_mut().unwrap().validations.as_mut().unwrap()[2].expression = "true".into();
            }),
            ("spec.matchConditions is not", |p, _| {
                p.spec.as_mut().unwrap().match_conditions = Some(vec![condition("never", "false")]);
            }),
            (
                "ValidatingAdmissionPolicyBinding azureidentitygrants.aadpodidentity.k8s.io: spec.validationActions[0]",
                |_, b| {
                    b.spec.validation_actions = vec!["Audit".into()];
                },
            ),
            ("spec.matchResources is not", |_, b| b.spec.match_resources = Some(on("", &["*"], &["*"]))),
            ("has been edited since", |p, _| p.metadata.generation = Some(3)),
            ("is being deleted", |_, b| {
                b.metadata.deletion_timestamp = b.metadata.creation_timestamp.clone();
            }),
        ];
        for (said, change) in changes {
            let (mut policy, mut binding) = live(&expected, [1, 1]);
            change(&mut policy, &mut binding);
            let error = expected.in_force_since(Some(&policy), Some(&binding)).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains(expected.file), "{said}: {error}");
        }
        let (policy, _) = live(&expected, [1, 1]);
        let error = expected.in_force_since(Some(&policy), None).unwrap_err().to_string();
        assert!(error.starts_with("ValidatingAdmissionPolicyBinding") && error.contains("is not there"), "{error}");
        let other = grants(&["somebody"]);
        let (policy, binding) = live(&other, [1, 1]);
        assert!(expected.in_force_since(Some(&policy), Some(&binding)).is_err(), "others may write the status");
    }

    #[test]
    fn names_cannot_break_out_of_a_list() {
        assert_eq!(list(&["a", r"b'] || true || ['\"]), r"['a', 'b\'] || true || [\'\\']");
    }

    /// A field that is not named by the policy could be edited after the approval.
    #[test]
    fn every_field_of_a_grant_is_guarded() {
        let crd = crate::crds().into_iter().find(|crd| crd.spec.names.kind == "AzureIdentityGrant").unwrap();
        let schema = crd.spec.versions[0].schema.clone().unwrap().open_api_v3_schema.unwrap();
        let fields: BTreeSet<_> = schema.properties.unwrap()["spec"].properties.clone().unwrap().into_keys().collect();
        let guarded: BTreeSet<_> = grants::FIXED.into_iter().chain(["approvals", "denied", "revoked"]).collect();
        assert_eq!(fields.iter().map(String::as_str).collect::<BTreeSet<_>>(), guarded);
    }
}
