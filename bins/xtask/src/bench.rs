//! `cargo xtask bench`: runs the benchmarks and writes `target/bench/report.json`, `report.md` and plots: rows of what was
//! measured, with the bar where the design sets one, and where the time goes.

mod figures;
mod load;
mod plot;
mod report;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::{
    files, paths,
    run::Cmd,
    setup::{self, packages},
    term,
};

/// Arguments of `bench`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Fewer samples: a rough picture in a fraction of the time.
    #[arg(long)]
    quick: bool,
    /// Put the figures of this run into docs/benchmarks.md.
    #[arg(long)]
    write: bool,
    /// Only these groups.
    #[arg(value_enum)]
    groups: Vec<Group>,
}

/// What belongs together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Group {
    /// Address to decision.
    Lookup,
    /// The node daemon under load.
    Load,
    /// What grows with pods and identities.
    Growth,
    /// Where the processor time of a warm token goes.
    Profile,
    /// The controller with 2,000 pods.
    Assign,
}

/// One figure.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Row {
    /// Stable name.
    pub id: String,
    /// What was measured, for a person.
    pub what: String,
    /// The figure (median where there were several samples).
    pub value: f64,
    /// Its unit.
    pub unit: String,
    /// Lowest.
    pub min: f64,
    /// Highest.
    pub max: f64,
    /// What it should be at most, where there is a bar.
    pub bar: Option<f64>,
    /// Whether it is.
    pub met: Option<bool>,
}

impl Row {
    fn judged(mut self) -> Self {
        self.met = self.bar.map(|bar| self.value <= bar);
        self
    }
}

/// Runs all benchmarks.
///
/// # Errors
/// When one cannot run. A bar that is not met is reported, not an error.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    packages::ensure(packages::BUILD)?;
    let assets = setup::kube::assets()?;
    let groups = match arguments.groups.as_slice() {
        [] => &[Group::Profile, Group::Lookup, Group::Load, Group::Growth, Group::Assign],
        some => some,
    };
    if groups.contains(&Group::Profile) {
        load::can_profile()?;
    }
    if arguments.write && !arguments.groups.is_empty() {
        bail!("--write puts the figures of all groups into the page: leave the groups out");
    }
    let machine = report::Machine::here();
    let mut rows = Vec::new();
    for group in groups {
        rows.extend(match group {
            Group::Lookup => lookup(arguments.quick)?,
            Group::Load => load::load(&assets, arguments.quick)?,
            Group::Growth => load::growth(&assets, arguments.quick)?,
            Group::Profile => load::profile(&assets, arguments.quick)?,
            Group::Assign => assign(&assets, arguments.quick)?,
        });
    }
    let figures = figures::figures(&rows);
    let directory = paths::target().join("bench");
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    files::replace(&directory.join("report.json"), &serde_json::to_string_pretty(&rows)?)?;
    files::replace(&directory.join("report.md"), &report::report(&machine, &rows))?;
    for figure in &figures {
        files::replace(&directory.join(format!("{}.svg", figure.name)), &figure.svg)?;
    }
    if arguments.write {
        let docs = paths::root().join("docs");
        files::replace(&docs.join("benchmarks.md"), &report::page(&machine, &rows, &figures, arguments.quick))?;
        std::fs::create_dir_all(docs.join("benchmarks")).context("cannot make docs/benchmarks")?;
        for figure in &figures {
            files::replace(&docs.join(format!("benchmarks/{}.svg", figure.name)), &figure.svg)?;
        }
    }
    term::heading("Benchmarks");
    let mut table = term::Table::new(["id", "value", "unit", "min", "max", "bar", "met"]);
    for row in &rows {
        table.row([
            row.id.clone(),
            report::number(row.value),
            row.unit.clone(),
            report::number(row.min),
            report::number(row.max),
            report::bar(row),
            report::met(row).to_owned(),
        ]);
    }
    table.print();
    term::step(format_args!("written: {}", directory.join("report.md").display()));
    Ok(())
}

/// The criterion benchmark of the decision path: nanoseconds from an address to a decision.
fn lookup(quick: bool) -> anyhow::Result<Vec<Row>> {
    term::heading("Lookup: address to decision");
    let mut command = Cmd::cargo().args(["bench", "--locked", "--package", "benches", "--bench", "lookup", "--"]);
    if quick {
        command = command.args(["--warm-up-time", "0.5", "--measurement-time", "1", "--sample-size", "20"]);
    }
    command.run()?;
    let mut rows = Vec::new();
    for estimate in estimates(&paths::target().join("criterion"))? {
        rows.extend(lookup_row(&estimate));
    }
    if rows.is_empty() {
        bail!("the benchmark `lookup` left no results in target/criterion");
    }
    rows.sort_by(|a, b| a.id.len().cmp(&b.id.len()).then_with(|| a.id.cmp(&b.id)));
    let median = |id: &str| rows.iter().find(|row| row.id == id).map(|row| row.value);
    if let (Some(small), Some(large)) = (median("lookup_ns_10"), median("lookup_ns_100000")) {
        let ratio = large / small;
        rows.push(
            Row {
                id: "lookup_ratio".into(),
                what: "lookup at 100,000 pods over lookup at 10".into(),
                value: ratio,
                unit: "×".into(),
                min: ratio,
                max: ratio,
                bar: Some(4.0),
                met: None,
            }
            .judged(),
        );
    }
    Ok(rows)
}

/// What criterion has on disk about one benchmark, nanoseconds.
#[derive(Clone, Debug, PartialEq)]
struct Estimate {
    id: String,
    median: f64,
    low: f64,
    high: f64,
}

fn lookup_row(estimate: &Estimate) -> Option<Row> {
    let pods = estimate.id.rsplit('/').next()?;
    let count: u64 = pods.replace('_', "").parse().ok()?;
    let (id, what, unit, scale, bar) = match estimate.id.split('/').next()? {
        "publish" => {
            let what = format!("one change applied and published, {count} pods");
            (format!("publish_us_{count}"), what, "µs", 1000.0, Some(50.0))
        }
        "lookup" => {
            (format!("lookup_ns_{count}"), format!("address to decision, {count} pods"), "ns", 1.0, Some(100.0))
        }
        "find" => {
            let what = format!("of it: finding who has the address, {count} pods");
            (format!("lookup_find_ns_{count}"), what, "ns", 1.0, None)
        }
        "floor" => {
            let what = format!(
                "no decision: owning and letting go the pods and assignments of the same random addresses, from an array, {count} \
                 pods"
            );
            (format!("lookup_floor_ns_{count}"), what, "ns", 1.0, None)
        }
        "chained" => {
            let what = format!("address to decision, each address known only after the decision before, {count} pods");
            (format!("lookup_chained_ns_{count}"), what, "ns", 1.0, None)
        }
        "chained_floor" => {
            let what = format!(
                "no decision: the same from an array, each address known only after the one before is owned, {count} pods"
            );
            (format!("lookup_chained_floor_ns_{count}"), what, "ns", 1.0, None)
        }
        "identities" => {
            let what = format!("address to decision, 250 pods with {count} identities each");
            (format!("lookup_ns_identities_{count}"), what, "ns", 1.0, None)
        }
        _ => return None,
    };
    Some(
        Row {
            id,
            what,
            value: estimate.median / scale,
            unit: unit.into(),
            min: estimate.low / scale,
            max: estimate.high / scale,
            bar,
            met: None,
        }
        .judged(),
    )
}

fn estimates(directory: &Path) -> anyhow::Result<Vec<Estimate>> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))? {
            let path = entry.context("cannot read the directory")?.path();
            if !path.is_dir() {
                continue;
            }
            if path.file_name().is_some_and(|name| name == "new") && path.join("estimates.json").exists() {
                found.push(estimate(
                    &files::read(&path.join("benchmark.json"))?,
                    &files::read(&path.join("estimates.json"))?,
                )?);
            } else {
                open.push(path);
            }
        }
    }
    Ok(found)
}

fn estimate(benchmark: &str, estimates: &str) -> anyhow::Result<Estimate> {
    let benchmark: serde_json::Value = serde_json::from_str(benchmark).context("criterion's benchmark.json")?;
    let estimates: serde_json::Value = serde_json::from_str(estimates).context("criterion's estimates.json")?;
    let number = |pointer: &str| estimates.pointer(pointer).and_then(serde_json::Value::as_f64).context("no median");
    Ok(Estimate {
        id: benchmark["full_id"].as_str().context("no full_id")?.to_owned(),
        median: number("/median/point_estimate")?,
        low: number("/median/confidence_interval/lower_bound")?,
        high: number("/median/confidence_interval/upper_bound")?,
    })
}

/// Pods created to pods assigned, on a real API server with the optimised controller.
fn assign(assets: &Path, quick: bool) -> anyhow::Result<Vec<Row>> {
    term::heading("Assignment: 2,000 pods on a real kube-apiserver");
    Cmd::cargo().args(["build", "--quiet", "--locked", "--release", "--package", "identity-controller"]).run()?;
    let runs = if quick { 1 } else { 3 };
    let mut samples: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    for run in 1..=runs {
        for kind in ["1", "0"] {
            term::step(format_args!("run {run} of {runs}, identities of type {kind}"));
            let text = Cmd::cargo()
                .args(["bench", "--quiet", "--locked", "--package", "benches", "--bench", "assign", "--", kind])
                .env("KUBEBUILDER_ASSETS", assets)
                .env("IDENTITY_CONTROLLER", paths::target().join("release/identity-controller"))
                .text()?;
            let rows: Vec<Row> = serde_json::from_str(text.trim()).with_context(|| format!("not rows: {text}"))?;
            for row in rows {
                samples.entry(row.id.clone()).or_default().push(row);
            }
        }
    }
    Ok(samples.into_values().filter_map(merged).map(Row::judged).collect())
}

/// Several measurements of one figure as one row with the median.
fn merged(mut rows: Vec<Row>) -> Option<Row> {
    rows.sort_by(|a, b| a.value.total_cmp(&b.value));
    let (min, max) = (rows.first()?.value, rows.last()?.value);
    let middle = rows.len() / 2;
    Some(Row { min, max, ..rows.swap_remove(middle) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(value: f64) -> Row {
        Row {
            id: "x".into(),
            what: "w".into(),
            value,
            unit: "s".into(),
            min: value,
            max: value,
            bar: Some(5.0),
            met: None,
        }
    }

    #[test]
    fn merging_takes_the_median_and_keeps_the_extremes() {
        let merged = merged(vec![row(9.0), row(1.0), row(4.0)]).unwrap().judged();
        assert_eq!((merged.min, merged.value, merged.max, merged.met), (1.0, 4.0, 9.0, Some(true)));
        assert_eq!(row(5.5).judged().met, Some(false));
    }

    #[test]
    fn reads_what_criterion_writes() {
        let estimate = estimate(
            r#"{"full_id":"lookup/100000"}"#,
            r#"{"median":{"point_estimate":42.5,"confidence_interval":{"lower_bound":41.0,"upper_bound":44.0}}}"#,
        )
        .unwrap();
        for (benchmark, id) in [
            ("find/10", "lookup_find_ns_10"),
            ("floor/100000", "lookup_floor_ns_100000"),
            ("chained/100000", "lookup_chained_ns_100000"),
            ("chained_floor/10", "lookup_chained_floor_ns_10"),
        ] {
            assert_eq!(lookup_row(&Estimate { id: benchmark.into(), ..estimate.clone() }).unwrap().id, id);
        }
        let row = lookup_row(&estimate).unwrap();
        assert_eq!(
            (row.id.as_str(), row.value, row.min, row.max, row.met),
            ("lookup_ns_100000", 42.5, 41.0, 44.0, Some(true))
        );
    }
}
