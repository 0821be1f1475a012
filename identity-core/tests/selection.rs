//! Which bindings select a pod: a table of the documented semantics, and agreement with the plain reading of them.

mod common;

use common::{expression, labels, match_expressions, match_labels, naive_selects, pod};
use identity_core::{
    explain::{Tree, Verdict},
    pod::Pod,
    selector::Selection,
};
use identity_crd::AzureIdentityBindingSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use proptest::prelude::*;

fn spec(selector: Option<&str>, pods: Option<LabelSelector>, accounts: &[&str]) -> AzureIdentityBindingSpec {
    AzureIdentityBindingSpec {
        selector: selector.map(str::to_owned),
        pod_selector: pods,
        service_accounts: (!accounts.is_empty()).then(|| accounts.iter().map(|a| (*a).to_owned()).collect()),
        ..AzureIdentityBindingSpec::default()
    }
}

#[test]
fn table() {
    // The pod: aadpodidbinding=demo, app=web, tier="" ; runs as "builder".
    let pod = Pod {
        labels: labels(&[("aadpodidbinding", "demo"), ("app", "web"), ("tier", "")]),
        service_account: "builder".into(),
        ..pod("n", "p", "u")
    };
    let app = |value: &str| Some(match_labels(&[("app", value)]));
    let expr = |key: &str, op: &str, values: &[&str]| Some(match_expressions(vec![expression(key, op, values)]));
    let cases = [
        ("nothing given", spec(None, None, &[]), false),
        ("an empty selector is as if absent", spec(Some(""), None, &[]), false),
        ("selector equal", spec(Some("demo"), None, &[]), true),
        ("selector is case-sensitive", spec(Some("Demo"), None, &[]), false),
        ("selector is no prefix", spec(Some("dem"), None, &[]), false),
        ("podSelector equal", spec(None, app("web"), &[]), true),
        ("podSelector unequal", spec(None, app("db"), &[]), false),
        ("an empty podSelector selects nothing", spec(None, Some(LabelSelector::default()), &[]), false),
        ("... nor does it beside a selector that does", spec(Some("demo"), Some(LabelSelector::default()), &[]), false),
        ("empty lists in podSelector, too", spec(None, Some(match_expressions(vec![])), &[]), false),
        ("In", spec(None, expr("app", "In", &["db", "web"]), &[]), true),
        ("In, other value", spec(None, expr("app", "In", &["db"]), &[]), false),
        ("In, absent key", spec(None, expr("zone", "In", &["a"]), &[]), false),
        ("In without values is senseless", spec(None, expr("app", "In", &[]), &[]), false),
        ("NotIn", spec(None, expr("app", "NotIn", &["db"]), &[]), true),
        ("NotIn, its value", spec(None, expr("app", "NotIn", &["web"]), &[]), false),
        ("NotIn holds for an absent key", spec(None, expr("zone", "NotIn", &["a"]), &[]), true),
        ("NotIn without values is senseless", spec(None, expr("zone", "NotIn", &[]), &[]), false),
        ("Exists", spec(None, expr("tier", "Exists", &[]), &[]), true),
        ("Exists, absent", spec(None, expr("zone", "Exists", &[]), &[]), false),
        ("Exists with values is senseless", spec(None, expr("tier", "Exists", &[""]), &[]), false),
        ("DoesNotExist", spec(None, expr("zone", "DoesNotExist", &[]), &[]), true),
        ("DoesNotExist, present", spec(None, expr("tier", "DoesNotExist", &[]), &[]), false),
        ("unknown operator", spec(None, expr("app", "Matches", &["web"]), &[]), false),
        (
            "all expressions must hold",
            spec(
                None,
                Some(match_expressions(vec![expression("app", "Exists", &[]), expression("zone", "Exists", &[])])),
                &[],
            ),
            false,
        ),
        ("service account", spec(None, None, &["other", "builder"]), true),
        ("other service account", spec(None, None, &["default"]), false),
        ("all three", spec(Some("demo"), app("web"), &["builder"]), true),
        ("all three, one wrong", spec(Some("demo"), app("web"), &["other"]), false),
        ("all three, another wrong", spec(Some("demo"), app("db"), &["builder"]), false),
        ("all three, the first wrong", spec(Some("x"), app("web"), &["builder"]), false),
    ];
    for (what, spec, expected) in cases {
        assert_eq!(Selection::from(&spec).selects(&pod), expected, "{what}");
        assert_eq!(naive_selects(&spec, &pod), expected, "{what}, naively");
    }
}

#[test]
fn a_refusal_says_which_condition_failed() {
    let selection = Selection::from(&spec(Some("demo"), Some(match_labels(&[("app", "db")])), &["builder"]));
    let mut tree = Tree::new("binding n/b selects pod n/p");
    let holds = selection.selects_because(&pod("n", "p", "u"), &mut tree);
    insta::assert_snapshot!(tree.finish(Verdict::from(holds)), @r"
    no   binding n/b selects pod n/p
    yes    selector: label aadpodidbinding = `demo`; the pod has `demo`
    no     podSelector: app in [db]; the pod lacks the label
    ");
}

fn word() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["", "a", "b", "demo"]).prop_map(str::to_owned)
}

fn label_selector() -> impl Strategy<Value = LabelSelector> {
    let operator = prop::sample::select(vec!["In", "NotIn", "Exists", "DoesNotExist", "in", ""]);
    let requirement = (word(), operator, prop::collection::vec(word(), 0..3)).prop_map(|(key, operator, values)| {
        expression(&key, operator, &values.iter().map(String::as_str).collect::<Vec<_>>())
    });
    (
        prop::option::of(prop::collection::btree_map(word(), word(), 0..2)),
        prop::option::of(prop::collection::vec(requirement, 0..3)),
    )
        .prop_map(|(match_labels, match_expressions)| LabelSelector { match_labels, match_expressions })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_plain_reading(
        selector in prop::option::of(word()),
        pod_selector in prop::option::of(label_selector()),
        service_accounts in prop::option::of(prop::collection::vec(word(), 0..2)),
        mut pod_labels in prop::collection::btree_map(word(), word(), 0..4),
        label in prop::option::of(word()),
        account in word(),
    ) {
        if let Some(label) = label {
            pod_labels.insert("aadpodidbinding".into(), label);
        }
        let pod = Pod { labels: pod_labels, service_account: account.as_str().into(), ..pod("n", "p", "u") };
        let spec = AzureIdentityBindingSpec { selector, pod_selector, service_accounts, ..Default::default() };
        prop_assert_eq!(Selection::from(&spec).selects(&pod), naive_selects(&spec, &pod));
    }
}
