use std::collections::{BTreeMap, BTreeSet};

use promql_parser::{
    label::MatchOp,
    parser::{self, AggregateExpr, Expr, VectorSelector},
    util::{ExprVisitor, walk_expr},
};

use super::{
    alerts::{ALERTS, rules},
    dashboard::{QUESTIONS, dashboard},
    *,
};

fn all() -> Vec<Metric> {
    daemons().unwrap().into_iter().flat_map(|daemon| daemon.metrics).collect()
}

/// Names that can be asked for, with what they may be asked by.
fn series() -> BTreeMap<String, BTreeMap<String, BTreeSet<String>>> {
    let mut names = BTreeMap::new();
    for metric in all() {
        let endings: &[&str] = if metric.kind == Kind::Histogram { &["_bucket", "_sum", "_count"] } else { &[""] };
        for ending in endings {
            let mut labels = metric.labels.clone();
            if *ending == "_bucket" {
                labels.insert("le".to_owned(), BTreeSet::new());
            }
            names.insert(format!("{}{ending}", metric.series()), labels);
        }
    }
    names
}

/// What an expression is about.
#[derive(Default)]
struct Asked {
    selectors: Vec<VectorSelector>,
    grouped: Vec<String>,
}

impl ExprVisitor for Asked {
    type Error = std::convert::Infallible;

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, Self::Error> {
        match expr {
            Expr::VectorSelector(selector) => self.selectors.push(selector.clone()),
            // The visitor does not go into these by itself.
            Expr::MatrixSelector(matrix) => self.selectors.push(matrix.vs.clone()),
            Expr::Aggregate(AggregateExpr { modifier: Some(modifier), .. }) => {
                self.grouped.extend(modifier.labels().labels.iter().cloned());
            }
            _ => {}
        }
        Ok(true)
    }
}

/// Why an expression asks for what there is not.
fn wrong(expr: &str, series: &BTreeMap<String, BTreeMap<String, BTreeSet<String>>>) -> Vec<String> {
    let parsed = match parser::parse(&expr.replace("$__rate_interval", "5m")) {
        Ok(parsed) => parsed,
        Err(error) => return vec![format!("no PromQL: {error}")],
    };
    let mut asked = Asked::default();
    let Ok(_) = walk_expr(&mut asked, &parsed);
    let mut wrong = Vec::new();
    let mut labels: BTreeSet<&str> = BTreeSet::new();
    for selector in &asked.selectors {
        let name = selector.name.as_deref().unwrap_or_default();
        let Some(known) = series.get(name) else {
            wrong.push(format!("there is no `{name}`"));
            continue;
        };
        labels.extend(known.keys().map(String::as_str));
        for matcher in &selector.matchers.matchers {
            let Some(values) = known.get(&matcher.name) else {
                wrong.push(format!("`{name}` has no label {}", matcher.name));
                continue;
            };
            let wanted: Vec<&str> = match matcher.op {
                MatchOp::Equal | MatchOp::NotEqual => vec![&matcher.value],
                MatchOp::Re(_) | MatchOp::NotRe(_) => matcher.value.split('|').collect(),
            };
            let unknown = wanted.iter().filter(|value| !values.contains(**value));
            wrong.extend(unknown.map(|value| format!("`{name}` has no {}=\"{value}\"", matcher.name)));
        }
    }
    if asked.selectors.is_empty() {
        wrong.push("it asks for no metric".to_owned());
    }
    wrong.extend(
        asked
            .grouped
            .iter()
            .filter(|label| !labels.contains(label.as_str()))
            .map(|label| format!("grouped by {label}")),
    );
    wrong
}

#[test]
fn what_is_wrong_with_an_expression_is_found() {
    let series = series();
    for (expr, expected) in [
        ("sum(entra_pod_identity_broker_requests_total)", ""),
        ("sum(entra_pod_identity_broker_requests)", "there is no"),
        ("rate(entra_pod_identity_broker_request_total[5m])", "there is no"),
        ("entra_pod_identity_broker_requests_total{reason=\"issued\"}", ""),
        ("entra_pod_identity_broker_requests_total{reason=\"isued\"}", "has no reason"),
        ("entra_pod_identity_broker_requests_total{reason=~\"issued|isued\"}", "has no reason"),
        ("entra_pod_identity_broker_requests_total{pod=\"x\"}", "has no label"),
        ("sum by (pod) (entra_pod_identity_broker_requests_total)", "grouped by pod"),
        ("sum by (reason) (rate(entra_pod_identity_broker_requests_total[5m]))", ""),
        ("entra_pod_identity_netfilter_installed ==", "no PromQL"),
        ("vector(1)", "no metric"),
    ] {
        let found = wrong(expr, &series);
        assert_eq!(found.is_empty(), expected.is_empty(), "{expr}: {found:?}");
        assert!(expected.is_empty() || found.join("\n").contains(expected), "{expr}: {found:?}");
    }
}

#[test]
fn no_alert_is_about_a_metric_that_does_not_exist() {
    let series = series();
    let mut names = BTreeSet::new();
    for alert in ALERTS {
        assert_eq!(wrong(alert.expr, &series), Vec::<String>::new(), "{}", alert.name);
        assert!(names.insert(alert.name), "{} is there twice", alert.name);
        assert!(alert.name.starts_with("EntraPodIdentity") && alert.name.chars().all(|c| c.is_ascii_alphanumeric()));
        assert!(["critical", "warning"].contains(&alert.severity), "{}", alert.name);
        assert!(alert.lasting.strip_suffix(['m', 'h']).is_some_and(|n| n.parse::<u8>().is_ok()), "{}", alert.name);
        assert!(!alert.summary.ends_with('.') && !alert.remedy.ends_with('.'), "{}", alert.name);
    }
    let written: serde_json::Value = serde_saphyr::from_str(&rules().unwrap()).unwrap();
    let written = written["groups"][0]["rules"].as_array().unwrap();
    let expressions: Vec<_> = written.iter().map(|rule| rule["expr"].as_str().unwrap()).collect();
    assert_eq!(expressions, ALERTS.iter().map(|alert| alert.expr).collect::<Vec<_>>());
}

#[test]
fn every_metric_has_a_panel_and_no_panel_asks_for_another() {
    let series = series();
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard().unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let expressions: Vec<&str> = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten())
        .map(|target| target["expr"].as_str().unwrap())
        .collect();
    for expr in &expressions {
        assert_eq!(wrong(expr, &series), Vec::<String>::new(), "{expr}");
    }
    for metric in all() {
        let drawn = expressions.iter().any(|expr| expr.contains(&metric.series()));
        assert!(drawn, "{} has no panel", metric.name);
    }
    assert!(expressions.len() >= QUESTIONS.len() + all().len());
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
    let places: BTreeSet<_> = panels.iter().map(|panel| panel["gridPos"].to_string()).collect();
    assert_eq!(places.len(), panels.len(), "no panel is on another");
}

#[test]
fn the_page_has_every_metric_that_is_registered_and_no_other() {
    let page = page().unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let documented: BTreeSet<String> = rows
        .map(|row| row.split('`').next().unwrap().to_owned())
        .filter(|name| name.starts_with("entra_pod_identity_") || name.starts_with("aadpodidentity_"))
        .collect();
    // By another reader than the one that the page is made with.
    let mut registered = BTreeSet::new();
    for registry in [node_sample(true), controller_sample(true)] {
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let lines = text.lines().map(|line| Ok(line.split(" # {").next().unwrap_or(line).to_owned()));
        let scrape = prometheus_parse::Scrape::parse(lines).unwrap();
        registered.extend(scrape.samples.into_iter().map(|sample| {
            let name = sample.metric;
            // A histogram, unless it is a counter of the predecessor's, which ends like that, too.
            let base = ["_seconds_sum", "_seconds_count", "_seconds_bucket", "_seconds"]
                .iter()
                .find_map(|ending| name.strip_suffix(ending).filter(|_| !name.contains("_timestamp_")))
                .map(|base| format!("{base}_seconds"));
            base.unwrap_or(name)
        }));
    }
    assert_eq!(documented, registered);
    for alert in ALERTS {
        assert!(page.contains(&format!("| `{}` |", alert.name)), "{}", alert.name);
    }
}
