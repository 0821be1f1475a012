//! Metrics as the daemons register them, and what is made of them: the reference page, a dashboard, alert rules.

mod alerts;
mod dashboard;
mod page;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use identity_process::metrics::{COMPAT_PREFIX, controller_sample, node_sample};
use prometheus_client::{encoding::text::encode, registry::Registry};

pub(super) use self::{alerts::rules, dashboard::dashboard, page::page};

/// A metric.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Metric {
    /// Without what its type adds.
    name: String,
    kind: Kind,
    unit: Option<String>,
    help: String,
    /// Values by label, as a daemon shows them from its start on.
    labels: BTreeMap<String, BTreeSet<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
    Info,
    /// A counter of the predecessor's, whose name is none to OpenMetrics.
    Unknown,
}

impl Metric {
    fn is_compat(&self) -> bool {
        self.name.starts_with(COMPAT_PREFIX)
    }

    /// As it is asked for; of a histogram without the ending.
    fn series(&self) -> String {
        let ending = match self.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram | Kind::Unknown => "",
        };
        format!("{}{ending}", self.name)
    }
}

/// Whose metrics, in the order of the page.
struct Daemon {
    title: &'static str,
    metrics: Vec<Metric>,
}

/// What both have comes first.
fn daemons() -> anyhow::Result<[Daemon; 3]> {
    let (node, controller) = (metrics(&node_sample(false))?, metrics(&controller_sample(false))?);
    let (both, node): (Vec<_>, Vec<_>) = node.into_iter().partition(|metric| controller.contains(metric));
    let controller = controller.into_iter().filter(|metric| !both.contains(metric)).collect();
    Ok([
        Daemon { title: "Both programs", metrics: both },
        Daemon { title: "identity-node", metrics: node },
        Daemon { title: "identity-controller", metrics: controller },
    ])
}

/// What there is with `--compat-metrics` only.
fn compat() -> anyhow::Result<Vec<Metric>> {
    let all = [metrics(&node_sample(true))?, metrics(&controller_sample(true))?].concat();
    Ok(all.into_iter().filter(Metric::is_compat).collect())
}

/// From the text that a collector gets: what is not in it is not documented either.
fn metrics(registry: &Registry) -> anyhow::Result<Vec<Metric>> {
    let mut text = String::new();
    encode(&mut text, registry)?;
    let mut all: Vec<Metric> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "HELP", name, help] => {
                let (name, help) = (name.to_owned(), help.trim_end_matches('.').to_owned());
                all.push(Metric { name, kind: Kind::Gauge, unit: None, help, labels: BTreeMap::new() });
            }
            ["#", "TYPE", _, kind] => {
                let kind = match kind {
                    "counter" => Kind::Counter,
                    "gauge" => Kind::Gauge,
                    "histogram" => Kind::Histogram,
                    "info" => Kind::Info,
                    "unknown" => Kind::Unknown,
                    other => anyhow::bail!("a metric of type {other}"),
                };
                all.last_mut().context("a type without a metric")?.kind = kind;
            }
            ["#", "UNIT", _, unit] => all.last_mut().context("a unit without a metric")?.unit = Some(unit.to_owned()),
            ["#", ..] => {}
            _ => {
                let metric = all.last_mut().context("a sample without a metric")?;
                let Some((_, rest)) = line.split_once('{') else { continue };
                let labels = rest.split_once("} ").context("labels without an end")?.0;
                // No value has a comma or a quotation mark in it: a test of the daemons' metrics would fail.
                for (name, value) in labels.split(',').filter_map(|pair| pair.split_once('=')) {
                    if name != "le" {
                        let values = metric.labels.entry(name.to_owned()).or_default();
                        values.insert(value.trim_matches('"').to_owned());
                    }
                }
            }
        }
    }
    // Nothing in the name says it, and OpenMetrics has no other word for these.
    for metric in &mut all {
        if metric.unit.is_none() && metric.name.ends_with("_timestamp_seconds") {
            metric.unit = Some("seconds since 1970".to_owned());
        } else if metric.unit.is_none() && metric.name.ends_with("_seconds") {
            metric.unit = Some("seconds".to_owned());
        }
    }
    Ok(all)
}
