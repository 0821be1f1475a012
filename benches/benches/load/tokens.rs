//! The token path under load: warm, at fixed rates, cold, and beside a pod that hammers. Objects from manifests.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::Duration,
};

use anyhow::ensure;
use identity_lab::process::Process;
use serde_json::json;

use super::{
    NODE,
    client::{connect_within, exchange},
    generator::{Outcome, Pace, Plan, count},
    now,
    objects::{self, IDENTITIES, RESOURCE},
    profile::{self, Whose},
    rows::{Row, median},
    stage::{BARE, METADATA, Programs, REDIRECTED, Stage, UPSTREAM, address, load, processor},
};

const CONNECTIONS: usize = 64;
const BESIDE: &str = "the bare hyper server with the same body, same run, alternating";

/// What there is to measure.
pub(crate) const PARTS: [&str; 6] = ["warm", "rates", "fair", "cold", "journal", AUDIT];
/// Needs a daemon that can do without an audit.
pub(crate) const AUDIT: &str = "audit";
/// And what is run only when it is named.
pub(crate) const PROFILE: &str = "profile";

/// How much of it.
pub(crate) struct Extent {
    pub(crate) rounds: usize,
    pub(crate) warm_millis: u64,
    /// Requests a second, how many, rounds.
    rates: [(u32, u32, usize); 3],
    cold: (u32, usize),
    fair: (u32, usize),
    profile: (u64, usize),
}

const FULL: Extent = Extent {
    rounds: 7,
    warm_millis: 3000,
    rates: [(100, 1000, 5), (1000, 8000, 7), (5000, 20_000, 5)],
    cold: (50, 5),
    fair: (500, 3),
    profile: (6000, 3),
};
const QUICK: Extent = Extent {
    rounds: 5,
    warm_millis: 1000,
    rates: [(100, 200, 3), (1000, 2000, 5), (5000, 5000, 3)],
    cold: (25, 2),
    fair: (250, 1),
    profile: (3000, 2),
};

pub(crate) async fn measure(
    programs: &Programs,
    netns: PathBuf,
    work: &Path,
    pods: usize,
    parts: &[&str],
    quick: bool,
) -> anyhow::Result<Vec<Row>> {
    let extent = if quick { QUICK } else { FULL };
    let mut bench = Bench::start(programs, netns, work, pods).await?;
    let mut rows = Vec::new();
    for part in parts {
        match *part {
            "warm" => rows.extend(bench.warm(&extent).await?),
            "rates" => {
                for (rate, count, rounds) in extent.rates {
                    rows.extend(bench.open(rate, count, rounds).await?);
                }
            }
            "fair" => rows.extend(bench.fair(&extent).await?),
            "journal" => rows.extend(bench.journal(&extent, work).await?),
            AUDIT => rows.extend(bench.audit(&extent, programs, work).await?),
            PROFILE => rows.extend(bench.profile(&extent, work).await?),
            _ => rows.extend(bench.cold(&extent).await?),
        }
    }
    Ok(rows)
}

pub(crate) struct Bench {
    pub(crate) stage: Stage,
    bare: Process,
}

impl Bench {
    async fn start(programs: &Programs, netns: PathBuf, work: &Path, pods: usize) -> anyhow::Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let (manifests, state_dir) = (work.join("objects/manifests"), work.join("objects/state"));
        for directory in [&manifests, &state_dir] {
            fs::create_dir_all(directory)?;
            fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
        }
        let mut items: Vec<_> = (0..IDENTITIES).flat_map(|n| [objects::identity(n), objects::binding(n)]).collect();
        items.extend((0..pods).map(|number| {
            let mut pod = objects::pod(number);
            pod["status"] = objects::status(number);
            pod
        }));
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        fs::write(manifests.join("objects.json"), list.to_string())?;
        let source = ["--manifests", &manifests.display().to_string(), "--state-dir", &state_dir.display().to_string()]
            .map(str::to_owned)
            .to_vec();
        let stage = Stage::start(programs, netns, work, [source.clone(), source]).await?;
        assigned(&state_dir, pods).await?;
        prime(&stage).await?;
        let mut stream = connect_within(&stage.pods, METADATA, address(0))?;
        let mut answer = Vec::new();
        let (_, body) = exchange(&mut stream, objects::request(RESOURCE).as_bytes(), &mut answer).await?;
        let bare = stage.bare(work, answer.len() - body).await?;
        Ok(Self { stage, bare })
    }

    fn plan(&self, target: SocketAddr, pace: Pace) -> Plan {
        Plan {
            netns: Some(self.stage.pods.clone()),
            target,
            sources: (0..CONNECTIONS).map(address).collect(),
            connections: CONNECTIONS,
            reconnect: false,
            requests: vec![objects::request(RESOURCE)],
            pace,
        }
    }

    /// One run against the product and one against the bare server: what came of each, and processor microseconds for a
    /// request.
    async fn pair(&self, pace: Pace) -> anyhow::Result<[(Outcome, f64); 2]> {
        self.stage.empty_log()?;
        let ours = self.run(METADATA, &self.stage.node, pace).await?;
        let bare = self.run(BARE, &self.bare, pace).await?;
        Ok([ours, bare])
    }

    pub(crate) async fn run(&self, target: SocketAddr, server: &Process, pace: Pace) -> anyhow::Result<(Outcome, f64)> {
        let before = processor(server.id())?;
        let outcome = load(&self.plan(target, pace)).await?.flawless(server.name())?;
        let micros = (processor(server.id())?.saturating_sub(before)).as_secs_f64() * 1e6 / count(outcome.requests);
        Ok((outcome, micros))
    }

    async fn warm(&self, extent: &Extent) -> anyhow::Result<Vec<Row>> {
        let pace = Pace::Closed { millis: extent.warm_millis };
        let mut pairs = Vec::new();
        let mut redirected = Vec::new();
        for _ in 0..extent.rounds {
            let [ours, bare] = self.pair(pace).await?;
            let behind = self.run(REDIRECTED, &self.bare, pace).await?;
            redirected.push(behind.0.per_second() / bare.0.per_second());
            pairs.push([ours, bare]);
        }
        let each = |of: fn(&[(Outcome, f64); 2]) -> f64| pairs.iter().map(of).collect::<Vec<f64>>();
        let what = format!(
            "warm tokens through the redirect, {CONNECTIONS} pods with a connection each, closed loop, each recorded in a log \
             file on disk, against {BESIDE} (generator and server share the machine)"
        );
        Ok(vec![
            Row::new("warm_ratio", what, "×", &each(|[ours, bare]| ours.0.per_second() / bare.0.per_second()))
                .at_least(0.85),
            Row::new(
                "redirect_ratio",
                "the bare server behind such a redirect against itself without",
                "×",
                &redirected,
            ),
            Row::new("warm_per_s", "those tokens", "1/s", &each(|[ours, _]| ours.0.per_second())),
            Row::new("bare_per_s", "those of the bare server", "1/s", &each(|[_, bare]| bare.0.per_second())),
            Row::new("warm_cpu_us", "processor time for such a token", "µs", &each(|[ours, _]| ours.1)),
            Row::new("bare_cpu_us", "the bare server's", "µs", &each(|[_, bare]| bare.1)),
            Row::new(
                "generator_cpu_us",
                "the load generator's own for a request to the bare server",
                "µs",
                &each(|[_, bare]| bare.0.processor_seconds * 1e6 / count(bare.0.requests)),
            ),
        ])
    }

    async fn open(&self, rate: u32, requests: u32, rounds: usize) -> anyhow::Result<Vec<Row>> {
        let mut pairs = Vec::new();
        for _ in 0..rounds {
            pairs.push(self.pair(Pace::Open { per_second: rate, count: requests }).await?);
        }
        let each = |of: fn(&[(Outcome, f64); 2]) -> f64| pairs.iter().map(of).collect::<Vec<f64>>();
        let what = format!("at {rate} tokens/s, open loop, times from when each was due");
        let latency = Row::new(
            format!("p99_ratio_{rate}"),
            format!("99th percentile {what}, against {BESIDE}"),
            "×",
            &each(|[ours, bare]| ours.0.p99 / bare.0.p99),
        );
        let processor = Row::new(
            format!("cpu_ratio_{rate}"),
            format!("processor time for a token at {rate}/s, against {BESIDE}"),
            "×",
            &each(|[ours, bare]| ours.1 / bare.1),
        );
        let (latency, processor) =
            if rate == 1000 { (latency.at_most(2.0), processor.at_most(1.5)) } else { (latency, processor) };
        let us = |id: &str, what: String, samples: &[f64]| Row::new(format!("{id}_{rate}"), what, "µs", samples);
        Ok(vec![
            latency,
            processor,
            us("p50_us", format!("median {what}"), &each(|[ours, _]| ours.0.p50)),
            us("p90_us", format!("90th percentile {what}"), &each(|[ours, _]| ours.0.p90)),
            us("p99_us", format!("99th percentile {what}"), &each(|[ours, _]| ours.0.p99)),
            us("p999_us", format!("99.9th percentile {what}"), &each(|[ours, _]| ours.0.p999)),
            us("bare_p50_us", format!("the bare server's median at {rate}/s"), &each(|[_, bare]| bare.0.p50)),
            us("bare_p90_us", format!("the bare server's 90th percentile at {rate}/s"), &each(|[_, bare]| bare.0.p90)),
            us("bare_p99_us", format!("the bare server's 99th percentile at {rate}/s"), &each(|[_, bare]| bare.0.p99)),
            us(
                "bare_p999_us",
                format!("the bare server's 99.9th percentile at {rate}/s"),
                &each(|[_, bare]| bare.0.p999),
            ),
            us("cpu_us", format!("processor time for a token at {rate}/s"), &each(|[ours, _]| ours.1)),
            us("bare_cpu_us", format!("the bare server's at {rate}/s"), &each(|[_, bare]| bare.1)),
        ])
    }

    /// One pod does what it can; what does another see?
    async fn fair(&self, extent: &Extent) -> anyhow::Result<Vec<Row>> {
        let (requests, rounds) = extent.fair;
        let (victim, hammer) = (100, 101);
        let one = |source, connections, reconnect, request: String, pace| Plan {
            netns: Some(self.stage.pods.clone()),
            target: METADATA,
            sources: vec![address(source)],
            connections,
            reconnect,
            requests: vec![request],
            pace,
        };
        let request = objects::request(RESOURCE);
        let quiet = one(victim, 4, true, request.clone(), Pace::Open { per_second: 50, count: requests });
        let millis = u64::from(requests) * 20 + 1500;
        let malformed = request.replace("Metadata: true\r\n", "");
        let hammers = [
            ("tokens", "asks for tokens on 128 connections", 128, false, request.clone()),
            ("malformed", "sends wrong requests on 128 connections", 128, false, malformed),
            ("connections", "opens a connection for each token, 256 at a time", 256, true, request),
        ];
        let p99 = |outcome: &Outcome| outcome.p99 / 1000.0;
        let mut alone = Vec::new();
        let mut beside = vec![Vec::new(); hammers.len()];
        let mut made = vec![Vec::new(); hammers.len()];
        for _ in 0..rounds {
            alone.push(p99(&load(&quiet).await?.flawless("a pod that asks 50/s, alone")?));
            for (number, (name, _, connections, reconnect, request)) in hammers.iter().enumerate() {
                self.stage.empty_log()?;
                let plan = one(hammer, *connections, *reconnect, request.clone(), Pace::Closed { millis });
                let later = async {
                    // The burst that everybody may have is over then.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    load(&quiet).await
                };
                let (hammered, seen) = tokio::try_join!(load(&plan), later)?;
                super::say(&format!("hammer {name}: {:.0}/s {:?}", hammered.per_second(), hammered.statuses));
                beside[number]
                    .push(p99(&seen.flawless(&format!("a pod that asks 50/s beside one that hammers ({name})"))?));
                made[number].push(hammered.per_second());
            }
        }
        let mut rows = Vec::new();
        for ((name, what, ..), (samples, made)) in hammers.iter().zip(beside.iter().zip(&made)) {
            let what = format!(
                "99th percentile of a pod that asks 50/s, a connection for each, beside a pod that {what} ({:.0}/s)",
                median(made)
            );
            rows.push(Row::new(format!("fair_p99_ms_{name}"), what, "ms", samples));
        }
        let worst: Vec<f64> = (0..rounds).map(|round| beside.iter().map(|s| s[round]).fold(0.0, f64::max)).collect();
        rows.insert(0, Row::new("fair_p99_ms", "the worst of the three rows that follow", "ms", &worst).at_most(5.0));
        rows.push(Row::new("fair_p99_ms_alone", "the same pod with nobody beside it", "ms", &alone));
        Ok(rows)
    }

    /// With the tamper-evident journal in place of the lines of the log.
    async fn journal(&mut self, extent: &Extent, work: &Path) -> anyhow::Result<Vec<Row>> {
        let directory = work.join("journal").display().to_string();
        self.stage.restart(NODE, &["--audit-journal", &directory]).await?;
        prime(&self.stage).await?;
        let (rate, count, rounds) = extent.rates[1];
        let (mut warm, mut open) = (Vec::new(), Vec::new());
        for _ in 0..rounds.min(5) {
            warm.push(self.pair(Pace::Closed { millis: extent.warm_millis }).await?);
            open.push(self.pair(Pace::Open { per_second: rate, count }).await?);
        }
        let each = |pairs: &[[(Outcome, f64); 2]], of: fn(&[(Outcome, f64); 2]) -> f64| -> Vec<f64> {
            pairs.iter().map(of).collect()
        };
        let what = "each recorded in the tamper-evident journal on disk, synced every second";
        let rows = vec![
            Row::new(
                "journal_warm_ratio",
                format!("warm tokens, {what}, against {BESIDE}"),
                "×",
                &each(&warm, |[ours, bare]| ours.0.per_second() / bare.0.per_second()),
            ),
            Row::new(
                "journal_cpu_us",
                format!("processor time for such a token, {what}"),
                "µs",
                &each(&warm, |[ours, _]| ours.1),
            ),
            Row::new(
                format!("journal_cpu_ratio_{rate}"),
                format!("processor time for a token at {rate}/s, {what}, against {BESIDE}"),
                "×",
                &each(&open, |[ours, bare]| ours.1 / bare.1),
            ),
            Row::new(
                format!("journal_p99_us_{rate}"),
                format!("99th percentile at {rate} tokens/s, open loop, {what}"),
                "µs",
                &each(&open, |[ours, _]| ours.0.p99),
            ),
        ];
        self.stage.move_to(NODE).await?;
        prime(&self.stage).await?;
        Ok(rows)
    }

    /// Where the processor time of a warm token goes, and that of the bare server's answer.
    async fn profile(&self, extent: &Extent, work: &Path) -> anyhow::Result<Vec<Row>> {
        let (millis, rounds) = extent.profile;
        let pace = Pace::Closed { millis };
        let file = work.join("perf.data");
        let mut rows = Vec::new();
        for (whose, target, server) in [(Whose::Node, METADATA, &self.stage.node), (Whose::Bare, BARE, &self.bare)] {
            let mut profiles = Vec::new();
            for _ in 0..rounds {
                self.stage.empty_log()?;
                let recording = profile::record(server.id(), Duration::from_millis(millis), &file);
                let (profile, (_, micros)) = tokio::try_join!(recording, self.run(target, server, pace))?;
                profiles.push((profile, micros));
            }
            rows.extend(profile::rows(whose, &profiles));
        }
        Ok(rows)
    }

    async fn cold(&self, extent: &Extent) -> anyhow::Result<Vec<Row>> {
        let (requests, rounds) = extent.cold;
        let mut overheads = Vec::new();
        let mut direct = Vec::new();
        for round in 0..rounds {
            let pace = Pace::Open { per_second: 10, count: requests };
            let straight = Plan {
                netns: None,
                target: UPSTREAM,
                sources: Vec::<Ipv4Addr>::new(),
                connections: 1,
                reconnect: false,
                requests: vec![objects::request(RESOURCE)],
                pace,
            };
            let straight = load(&straight).await?.flawless("the upstream")?;
            let resources = (0..requests).map(|n| objects::request(&format!("https://cold-{round}-{n}.example.com/")));
            // A connection sends the request that has its number: none is asked for twice.
            let connections = usize::try_from(requests)?;
            let plan = Plan {
                sources: (0..connections).map(address).collect(),
                connections,
                requests: resources.collect(),
                ..self.plan(METADATA, pace)
            };
            let before = self.stage.asked.load(Ordering::Relaxed);
            let cold = load(&plan).await?.flawless("cold tokens")?;
            let asked = self.stage.asked.load(Ordering::Relaxed) - before;
            ensure!(asked == u64::from(requests), "{requests} cold tokens made {asked} requests upstream");
            overheads.push((cold.p50 - straight.p50) / 1000.0);
            direct.push(straight.p50 / 1000.0);
        }
        Ok(vec![
            Row::new(
                "cold_overhead_ms",
                "median of cold tokens of managed identities, less the median of the same upstream asked directly (both plain \
                 HTTP on kept connections: no TLS, no signature); the way from pod to node is in it",
                "ms",
                &overheads,
            )
            .at_most(1.0),
            Row::new("cold_upstream_ms", "that upstream, asked directly", "ms", &direct),
        ])
    }
}

/// Gets a token for each identity, slowly enough for what IMDS allows.
pub(crate) async fn prime(stage: &Stage) -> anyhow::Result<()> {
    let plan = Plan {
        netns: Some(stage.pods.clone()),
        target: METADATA,
        sources: (0..IDENTITIES).map(address).collect(),
        connections: IDENTITIES,
        reconnect: false,
        requests: vec![objects::request(RESOURCE)],
        pace: Pace::Open { per_second: 10, count: 20 },
    };
    load(&plan).await?.flawless("the first tokens")?;
    Ok(())
}

/// Waits until the controller has assigned all.
async fn assigned(state: &Path, pods: usize) -> anyhow::Result<()> {
    let directory = state.join("assignments").join(super::NAMESPACE);
    let began = now();
    loop {
        let there = fs::read_dir(&directory).map(|entries| {
            entries.flatten().filter(|entry| entry.path().extension().is_some_and(|end| end == "json")).count()
        });
        let there = there.unwrap_or(0);
        if there >= pods {
            return Ok(());
        }
        ensure!(now() < began + Duration::from_mins(1), "{there} of {pods} pods of {NODE} were assigned in 60 s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
