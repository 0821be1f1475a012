//! Which bindings select this pod?
//!
//! `selector` (the value of the pod's label `aadpodidbinding`), `podSelector` (a Kubernetes label selector) and
//! `serviceAccounts` are ANDed; a binding that gives none of them selects nothing. What makes no sense (an unknown
//! operator, `In` without values) selects nothing either: a typing error must not widen who gets an identity.

mod catalog;

pub(crate) use catalog::Catalog;

use std::collections::BTreeMap;

use identity_crd::{AzureIdentityBindingSpec, BINDING_LABEL};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::{
    explain::{Recorder, Silent, Verdict},
    pod::Pod,
};

/// What a binding selects by.
///
/// ```
/// use identity_core::selector::Selection;
/// use identity_crd::AzureIdentityBindingSpec;
///
/// let nothing = Selection::from(&AzureIdentityBindingSpec::default());
/// assert!(nothing.is_empty());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    label: Option<Box<str>>,
    pods: Option<Box<[Requirement]>>,
    accounts: Box<[Box<str>]>,
}

/// One condition on a pod's labels.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: Box<str>,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    In(Box<[Box<str>]>),
    NotIn(Box<[Box<str>]>),
    Exists,
    DoesNotExist,
    /// Not a condition that Kubernetes knows; holds for no pod.
    Senseless(Box<str>),
}

impl From<&AzureIdentityBindingSpec> for Selection {
    fn from(spec: &AzureIdentityBindingSpec) -> Self {
        Self {
            label: spec.selector.as_deref().filter(|s| !s.is_empty()).map(Box::from),
            pods: spec.pod_selector.as_ref().map(requirements),
            accounts: spec.service_accounts.iter().flatten().map(|s| s.as_str().into()).collect(),
        }
    }
}

fn requirements(selector: &LabelSelector) -> Box<[Requirement]> {
    let labels = selector.match_labels.iter().flatten().map(|(key, value)| Requirement {
        key: key.as_str().into(),
        test: Test::In([Box::from(value.as_str())].into()),
    });
    let expressions = selector.match_expressions.iter().flatten().map(|e| {
        let values: Box<[Box<str>]> = e.values.iter().flatten().map(|v| v.as_str().into()).collect();
        let test = match (e.operator.as_str(), values.is_empty()) {
            ("In", false) => Test::In(values),
            ("NotIn", false) => Test::NotIn(values),
            ("Exists", true) => Test::Exists,
            ("DoesNotExist", true) => Test::DoesNotExist,
            ("In" | "NotIn", true) => Test::Senseless(format!("{} needs values", e.operator).into()),
            ("Exists" | "DoesNotExist", false) => Test::Senseless(format!("{} takes no values", e.operator).into()),
            (other, _) => {
                Test::Senseless(format!("unknown operator {other}; use In, NotIn, Exists or DoesNotExist").into())
            }
        };
        Requirement { key: e.key.as_str().into(), test }
    });
    labels.chain(expressions).collect()
}

impl Requirement {
    fn holds<R: Recorder>(&self, labels: &BTreeMap<String, String>, recorder: &mut R) -> bool {
        let value = labels.get(&*self.key);
        let among = |values: &[Box<str>]| value.is_some_and(|v| values.iter().any(|w| **w == **v));
        let holds = match &self.test {
            Test::In(values) => among(values),
            Test::NotIn(values) => !among(values),
            Test::Exists => value.is_some(),
            Test::DoesNotExist => value.is_none(),
            Test::Senseless(_) => false,
        };
        recorder.check(holds, || {
            let has = value.map_or_else(|| "the pod lacks the label".into(), |v| format!("the pod has `{v}`"));
            let key = &self.key;
            match &self.test {
                Test::In(values) => format!("podSelector: {key} in [{}]; {has}", values.join(", ")),
                Test::NotIn(values) => format!("podSelector: {key} not in [{}]; {has}", values.join(", ")),
                Test::Exists => format!("podSelector: {key} exists; {has}"),
                Test::DoesNotExist => format!("podSelector: {key} does not exist; {has}"),
                Test::Senseless(why) => format!("podSelector: {key}: {why}; this selects nothing"),
            }
        })
    }
}

impl Selection {
    /// Whether nothing is given to select by, so that no pod is selected.
    pub fn is_empty(&self) -> bool {
        self.label.is_none() && self.pods.is_none() && self.accounts.is_empty()
    }

    /// Whether it selects `pod`, namespaces apart.
    pub fn selects(&self, pod: &Pod) -> bool {
        self.selects_because(pod, &mut Silent)
    }

    /// [`selects`](Self::selects), with the reasons. With [`Silent`] it stops at the first condition that fails; a
    /// recorder that listens hears of each.
    pub fn selects_because<R: Recorder>(&self, pod: &Pod, recorder: &mut R) -> bool {
        if self.is_empty() {
            return recorder
                .check(false, || "it gives neither selector, podSelector nor serviceAccounts: selects nothing".into());
        }
        self.label_matches(pod, recorder) && self.pods_match(pod, recorder) && self.account_matches(pod, recorder)
    }

    fn label_matches<R: Recorder>(&self, pod: &Pod, recorder: &mut R) -> bool {
        let Some(wanted) = &self.label else { return true };
        let value = pod.labels.get(BINDING_LABEL);
        recorder.check(value.is_some_and(|v| **v == **wanted), || {
            let has = value.map_or_else(|| "lacks it".into(), |v| format!("has `{v}`"));
            format!("selector: label {BINDING_LABEL} = `{wanted}`; the pod {has}")
        })
    }

    fn pods_match<R: Recorder>(&self, pod: &Pod, recorder: &mut R) -> bool {
        match self.pods.as_deref() {
            None => true,
            Some([]) => recorder.check(false, || "podSelector is empty: selects nothing".into()),
            Some(requirements) => requirements.iter().all(|r| r.holds(&pod.labels, recorder)),
        }
    }

    fn account_matches<R: Recorder>(&self, pod: &Pod, recorder: &mut R) -> bool {
        if self.accounts.is_empty() {
            return true;
        }
        recorder.check(self.accounts.iter().any(|a| **a == *pod.service_account), || {
            format!("serviceAccounts: one of [{}]; the pod runs as `{}`", self.accounts.join(", "), pod.service_account)
        })
    }
}

/// Whether a binding of `namespace` may select `pod` at all.
pub(crate) fn reaches<R: Recorder>(namespace: &str, pod: &Pod, cluster_wide: bool, recorder: &mut R) -> bool {
    let same = *pod.reference.namespace == *namespace;
    if cluster_wide {
        return true;
    }
    if !same {
        recorder.line(Verdict::No, || {
            format!(
                "the binding is in namespace `{namespace}`, the pod in `{}`: matching is namespaced",
                pod.reference.namespace
            )
        });
    }
    same
}
