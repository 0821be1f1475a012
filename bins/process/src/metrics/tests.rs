use std::collections::{BTreeMap, BTreeSet};

use prometheus_client::{encoding::text::encode, registry::Registry};
use prometheus_parse::{Scrape, Value};

use super::*;

fn text(registry: &Registry) -> String {
    let mut text = String::new();
    encode(&mut text, registry).unwrap();
    text
}

/// As Prometheus reads it: without the exemplars, which the parser does not know.
fn scrape(text: &str) -> Scrape {
    let lines = text.lines().map(|line| Ok(line.split(" # {").next().unwrap_or(line).to_owned()));
    Scrape::parse(lines).unwrap()
}

fn both(compat: bool) -> [(&'static str, String); 2] {
    [("node", text(&node_sample(compat))), ("controller", text(&controller_sample(compat)))]
}

/// What `promtool check metrics` complains about, and what OpenMetrics asks for.
#[test]
fn names_units_and_help_are_as_prometheus_wants_them() {
    for (daemon, text) in both(false) {
        assert!(text.ends_with("# EOF\n"), "{daemon}");
        let mut families: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
        for line in text.lines() {
            let mut words = line.splitn(4, ' ');
            let (hash, word) = (words.next().unwrap(), words.next().unwrap());
            let (name, rest) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            match (hash, word) {
                ("#", "HELP") => {
                    assert!(families.insert(name, ("", rest)).is_none(), "{name} is registered twice");
                    assert!(rest.len() > 10 && !rest.ends_with(".."), "help of {name}: {rest}");
                }
                ("#", "TYPE") => families.get_mut(name).unwrap().0 = rest,
                ("#", "UNIT") => assert!(name.ends_with(&format!("_{rest}")), "{name}: {rest}"),
                _ => {}
            }
        }
        for (name, (kind, help)) in &families {
            assert!(["counter", "gauge", "histogram", "info"].contains(kind), "{name} is {kind}");
            assert!(name.starts_with(&format!("{PREFIX}_")), "{name}");
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
            for ending in ["_total", "_count", "_sum", "_bucket", "_info"] {
                assert!(!name.ends_with(ending), "{name}: a suffix is the library's to add");
            }
            // Base units only, abbreviated never, types not in names.
            for word in name.split('_') {
                let wrong = ["milliseconds", "ms", "minutes", "kilobytes", "counter", "gauge", "histogram", "percent"];
                assert!(!wrong.contains(&word), "{name}: {word}");
            }
            if *kind == "histogram" {
                assert!(name.ends_with("_seconds"), "{name}: what is measured has a unit");
            }
            assert!(!help.to_lowercase().starts_with(&format!("{name} ")), "{name}: {help}");
        }
        let scraped = scrape(&text);
        assert!(scraped.samples.len() > 30, "{daemon}");
        for sample in &scraped.samples {
            if let Value::Counter(_) = sample.value {
                assert!(sample.metric.ends_with("_total"), "{}", sample.metric);
            }
        }
    }
}

#[test]
fn every_label_is_known_and_those_without_a_bound_have_few_values() {
    let mut seen = BTreeSet::new();
    for (daemon, text) in both(true) {
        let scraped = scrape(&text);
        for sample in &scraped.samples {
            for (name, value) in sample.labels.iter().filter(|(name, _)| *name != "le") {
                let label = LABELS.iter().find(|label| label.name == *name);
                let label =
                    label.unwrap_or_else(|| panic!("{daemon}: label {name} of {} is in no table", sample.metric));
                seen.insert(label.name);
                assert!(!value.is_empty(), "{} {name}", sample.metric);
            }
        }
        assert!(scraped.samples.len() < 400, "{daemon}: {} series at the start", scraped.samples.len());
    }
    let unused: Vec<_> = LABELS.iter().filter(|label| !seen.contains(label.name)).collect();
    assert!(unused.is_empty(), "{unused:?}");
}

#[test]
fn what_the_runtime_tells_makes_no_series_that_was_not_there() {
    use std::time::Duration;

    use identity_core::runtime::observe::{Change, Observer as _, WriteOutcome};

    let mut registry = Registry::default();
    let metrics = controller_metrics(&mut registry, true);
    let before = scrape(&text(&registry)).samples.len();
    for outcome in
        [WriteOutcome::Done, WriteOutcome::Conflict, WriteOutcome::Failed, WriteOutcome::Fenced, WriteOutcome::Dropped]
    {
        metrics.wrote("AzureAssignedIdentity", outcome);
        metrics.wrote("Event", outcome);
    }
    for change in [Change::Created, Change::Updated, Change::Deleted] {
        metrics.assigned(change, Duration::from_millis(30));
    }
    metrics.relisted("Pod");
    metrics.watch_failed("Secret");
    metrics.leading(true);
    metrics.leading(false);
    let text = text(&registry);
    assert_eq!(scrape(&text).samples.len(), before, "{text}");
    for expected in [
        "controller_assignment_duration_seconds_bucket{le=\"0.1\",change=\"deleted\"} 1\n",
        "controller_assignment_duration_seconds_bucket{le=\"0.025\",change=\"deleted\"} 0\n",
        "controller_lease_acquisitions_total 1\n",
        "controller_leading 0\n",
        "controller_writes_total{kind=\"AzureAssignedIdentity\",outcome=\"fenced\"} 1\n",
    ] {
        assert!(text.contains(expected), "{expected}{text}");
    }
}

#[test]
fn the_names_of_the_predecessor_are_there_only_when_asked_for() {
    for (daemon, text) in both(false) {
        assert!(!text.contains(COMPAT_PREFIX), "{daemon}");
    }
    let names: BTreeSet<String> = both(true)
        .into_iter()
        .flat_map(|(_, text)| scrape(&text).samples)
        .map(|sample| sample.metric)
        .filter(|name| name.starts_with("aadpodidentity_"))
        .collect();
    // As `pkg/metrics/metrics.go` of v1.8.17 has them, but those of the ARM client, which is not here.
    for name in [
        "assigned_identity_addition_duration_seconds",
        "assigned_identity_addition_count",
        "assigned_identity_deletion_duration_seconds",
        "assigned_identity_deletion_count",
        "assigned_identity_update_duration_seconds",
        "assigned_identity_update_count",
        "mic_cycle_duration_seconds",
        "mic_cycle_count",
        "mic_new_leader_election_count",
        "kubernetes_api_operations_errors_count",
        "imds_operations_duration_seconds",
        "imds_operations_errors_count",
        "nmi_operations_duration_seconds",
    ] {
        assert!(names.contains(&format!("aadpodidentity_{name}")), "{name}: {names:?}");
    }
    assert!(names.iter().all(|name| !name.ends_with("_total")), "{names:?}");
}
