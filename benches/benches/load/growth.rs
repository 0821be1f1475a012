//! How the node grows with the pods and the identities that it has: memory, processor time and latency at a fixed rate, and
//! the cold overhead. Against a real kube-apiserver with one node for each point, so that a daemon started for it finds
//! its objects as it would after an upgrade.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use identity_lab::kube::ControlPlane;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;

use super::{
    NAMESPACE,
    cluster::{self, IN_FLIGHT},
    generator::{Outcome, Pace, Plan, count},
    objects::{self, RESOURCE},
    rows::Row,
    stage::{METADATA, Programs, Stage, UPSTREAM, address, load, memory, processor},
};

/// The most pods of a point.
pub(crate) const MOST_PODS: usize = 1000;
const MOST_IDENTITIES: usize = 100;
/// Requests a second.
const RATE: u32 = 1000;
const CONNECTIONS: usize = 100;

/// A node with so many pods, which have so many identities between them.
struct Point {
    node: &'static str,
    pods: usize,
    identities: usize,
    /// The series it is in.
    series: &'static [&'static str],
}

const POINTS: [Point; 5] = [
    Point { node: "pods-10", pods: 10, identities: 20, series: &["pods"] },
    Point { node: "pods-250", pods: 250, identities: 20, series: &["pods", "identities"] },
    Point { node: "pods-1000", pods: MOST_PODS, identities: 20, series: &["pods"] },
    Point { node: "identities-1", pods: 250, identities: 1, series: &["identities"] },
    Point { node: "identities-100", pods: 250, identities: MOST_IDENTITIES, series: &["identities"] },
];

pub(crate) async fn measure(
    programs: &Programs,
    assets: &Path,
    netns: PathBuf,
    work: &Path,
    quick: bool,
) -> anyhow::Result<Vec<Row>> {
    let plane = cluster::control_plane(assets, work).await?;
    let rows = with(&plane, programs, netns, work, quick).await;
    plane.stop().await;
    rows
}

async fn with(
    plane: &ControlPlane,
    programs: &Programs,
    netns: PathBuf,
    work: &Path,
    quick: bool,
) -> anyhow::Result<Vec<Row>> {
    let nodes: Vec<&str> = POINTS.iter().map(|point| point.node).chain([super::NODE]).collect();
    cluster::prepare(plane, &nodes, MOST_IDENTITIES).await?;
    let mut stage = Stage::start(programs, netns, work, cluster::sources(plane)?).await?;
    let api: Api<Pod> = Api::namespaced(plane.client(), NAMESPACE);
    let name = |point: &Point, number: usize| format!("{}-{number}", point.node);
    let mut pods = 0;
    for point in &POINTS {
        let all =
            (0..point.pods).map(|number| objects::pod_on(point.node, &name(point, number), number, point.identities));
        cluster::create_all(&api, all).await?;
        stream::iter(0..point.pods)
            .map(|number| cluster::publish(&api, name(point, number), number))
            .buffer_unordered(IN_FLIGHT)
            .try_collect::<Vec<()>>()
            .await?;
        pods += point.pods;
    }
    cluster::assigned(plane, pods).await?;
    let mut rows = Vec::new();
    for (number, point) in POINTS.iter().enumerate() {
        super::say(&format!("{} pods, {} identities", point.pods, point.identities));
        rows.extend(at(&mut stage, point, number, quick).await.with_context(|| point.node)?);
    }
    Ok(rows)
}

/// The figures of one point.
async fn at(stage: &mut Stage, point: &Point, number: usize, quick: bool) -> anyhow::Result<Vec<Row>> {
    let (rounds, requests) = if quick { (2, 2000) } else { (5, 5000) };
    stage.move_to(point.node).await?;
    // Spread over all pods.
    let sources = |connections: usize| (0..connections).map(|at| address(at * point.pods / connections)).collect();
    let plan = |connections: usize, requests: Vec<String>, pace| Plan {
        netns: Some(stage.pods.clone()),
        target: METADATA,
        sources: sources(connections),
        connections,
        reconnect: false,
        requests,
        pace,
    };
    // Each identity's token, slowly enough for what IMDS allows.
    let used = point.identities.min(point.pods);
    let prime = Plan {
        sources: (0..used).map(address).collect(),
        ..plan(used, vec![objects::request(RESOURCE)], Pace::Open { per_second: 15, count: u32::try_from(used)? })
    };
    load(&prime).await?.flawless("the first tokens")?;

    let mut warm = Vec::new();
    for _ in 0..rounds {
        stage.empty_log()?;
        let before = processor(stage.node.id())?;
        let pace = Pace::Open { per_second: RATE, count: requests };
        let outcome =
            load(&plan(CONNECTIONS, vec![objects::request(RESOURCE)], pace)).await?.flawless("warm tokens")?;
        let spent = processor(stage.node.id())?.saturating_sub(before);
        let micros = spent.as_secs_f64() * 1e6 / count(outcome.requests);
        warm.push((outcome, micros));
    }

    let mut overheads = Vec::new();
    for round in 0..2 {
        let pace = Pace::Open { per_second: 10, count: 20 };
        let straight = Plan {
            netns: None,
            target: UPSTREAM,
            sources: Vec::new(),
            ..plan(1, vec![objects::request(RESOURCE)], pace)
        };
        let straight = load(&straight).await?.flawless("the upstream")?;
        let cold = (0..20).map(|n| objects::request(&format!("https://grow-{number}-{round}-{n}.example.com/")));
        let cold = load(&plan(20, cold.collect(), pace)).await?.flawless("cold tokens")?;
        overheads.push((cold.p50 - straight.p50) / 1000.0);
    }
    // What the last requests left behind is given back.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let memory = memory(&stage.node)?;

    let each = |of: fn(&(Outcome, f64)) -> f64| warm.iter().map(of).collect::<Vec<f64>>();
    let (median, p99, micros) = (each(|(o, _)| o.p50), each(|(o, _)| o.p99), each(|(_, micros)| *micros));
    let where_ = format!("{} pods with {} identities between them", point.pods, point.identities);
    let mut rows = Vec::new();
    for series in point.series {
        let size = if *series == "pods" { point.pods } else { point.identities };
        let row = |id: &str, what: String, unit, samples: &[f64]| {
            Row::new(format!("{id}_{series}_{size}"), what, unit, samples)
        };
        rows.extend([
            row("rss_mib", format!("anonymous memory of the node daemon, {where_}, Kubernetes mode"), "MiB", &[memory]),
            row("cpu_us", format!("processor time for a token at {RATE}/s, {where_}"), "µs", &micros),
            row("p50_us", format!("median at {RATE} tokens/s, open loop, {where_}"), "µs", &median),
            row("p99_us", format!("99th percentile at {RATE} tokens/s, open loop, {where_}"), "µs", &p99),
            row("cold_overhead_ms", format!("cold overhead, {where_}"), "ms", &overheads),
        ]);
    }
    Ok(rows)
}
