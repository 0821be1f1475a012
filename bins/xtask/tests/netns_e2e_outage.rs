//! Entra and IMDS are away for longer than a refresh interval: nobody notices while tokens live. Then for longer than tokens
//! live: what fails says that it is for a while, and when they are back they are asked once for each token, however many pods
//! want it.

mod load;

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, ensure};
use xtask::{
    clock::{self, Stopwatch},
    demo::credentials,
    files,
    lab::Lab,
};

use load::{Asked, Load, asked, flawless, identity, pod, summary, token_path};

const TENANT: &str = "22222222-2222-4222-8222-222222222222";
const RESOURCE: &str = "https%3A%2F%2Fgraph.microsoft.com";
const PODS: usize = 30;
/// A managed identity for every second pod, an application for the others, each shared by three pods.
const KEYS: usize = PODS / 3;
const PER_SECOND: f64 = 150.0;
/// Of a token, in seconds.
const LIFE: u64 = 45;
/// After so many seconds upstream wants it to be refreshed.
const REFRESH: u64 = 6;
/// How often a key may be asked for upstream while it is away for `seconds`: at 1, 2, 4, 8 … up to 30 s, up to a quarter
/// sooner by chance, and one more.
fn tries(seconds: u64) -> usize {
    let (mut at, mut pause, mut tries) = (0.0, 1.0_f64, 2);
    #[expect(clippy::cast_precision_loss, reason = "seconds")]
    while at < seconds as f64 {
        at += pause * 0.75;
        pause = (pause * 2.0).min(30.0);
        tries += 1;
    }
    tries
}

#[test]
fn an_outage_is_not_noticed_while_tokens_live_and_ends_without_a_stampede() -> anyhow::Result<()> {
    let lab = Lab::up(None, fill)?;
    let outcome = short(&lab).context("the short outage").and_then(|()| long(&lab).context("the long outage"));
    outcome.with_context(|| lab.log_tail())?;
    lab.down()
}

fn names() -> Vec<String> {
    (0..PODS).map(|number| format!("demo/pod-{number:02}")).collect()
}

fn fill(directory: &Path) -> anyhow::Result<()> {
    let mut documents = Vec::new();
    for key in 0..KEYS {
        let name = format!("id-{key}");
        if key % 2 == 0 {
            documents.push(identity(
                &name,
                &format!(
                    "  type: 0\n  clientID: aaaaaaaa-0000-4000-8000-0000000001{key:02}\n  resourceID: /subscriptions/\
                     11111111-1111-4111-8111-111111111111/resourceGroups/g/providers/Microsoft.ManagedIdentity/\
                     userAssignedIdentities/{name}\n"
                ),
            ));
        } else {
            documents.push(credentials::secret(&name, &[("clientSecret", credentials::password()?.as_bytes())]));
            documents.push(identity(
                &name,
                &format!(
                    "  type: 1\n  tenantID: {TENANT}\n  clientID: bbbbbbbb-0000-4000-8000-0000000001{key:02}\n  \
                     clientPassword: {{name: {name}, namespace: demo}}\n"
                ),
            ));
        }
    }
    documents.extend((0..PODS).map(|number| pod(&format!("pod-{number:02}"), &format!("id-{}", number % KEYS))));
    files::replace(&directory.join("objects.yaml"), &documents.join("---\n"))?;
    files::replace(
        &directory.join("lab.yaml"),
        &format!(
            "entra: {{tokenLifetimeSeconds: {LIFE}, refreshInSeconds: {REFRESH}}}\n\
             imds: {{tokenLifetimeSeconds: {LIFE}, refreshInSeconds: {REFRESH}}}\n"
        ),
    )
}

fn away(lab: &Lab, switch: &str) -> anyhow::Result<()> {
    lab.command(&["fault", "entra-down", switch, "imds-down", switch]).run_quietly()
}

/// Longer than a refresh interval, shorter than a life.
fn short(lab: &Lab) -> anyhow::Result<()> {
    const AWAY: u64 = 25;
    for name in names() {
        let answer = lab.ask(&name, &format!("resource={RESOURCE}"))?;
        ensure!(answer.status == 200, "{name}: {answer:?}");
    }
    let watch = Stopwatch::start();
    let load = start(lab)?;
    // Until everything was refreshed once: tokens are new when the outage begins.
    let first = granted(&asked(lab)?);
    ensure!(first.len() == KEYS, "{} keys, not {KEYS}: {first:?}", first.len());
    clock::wait_for(Duration::from_secs(30), || {
        let now = granted(&asked(lab)?);
        Ok(first.keys().all(|key| now.get(key) > first.get(key)).then_some(()))
    })?
    .context("tokens are not refreshed when upstream wants it")?;

    let before = asked(lab)?.len();
    away(lab, "on")?;
    std::thread::sleep(Duration::from_secs(AWAY));
    let during = asked(lab)?;
    away(lab, "off")?;
    let back = asked(lab)?.len();
    let tried = by_key(&during[before..]);
    ensure!(tried.len() == KEYS, "not every key was tried during the outage: {tried:?}");
    for (key, count) in &tried {
        ensure!(*count <= tries(AWAY), "{key} was asked for {count} times in {AWAY} s, more than {}", tries(AWAY));
    }
    // What had failed is got again before it ends.
    clock::wait_for(Duration::from_secs(LIFE), || Ok((granted(&asked(lab)?[back..]).len() == KEYS).then_some(())))?
        .context("not every key was got again before its token ended")?;
    recovered(&asked(lab)?[back..], 2)?;

    let seconds = watch.elapsed().as_secs_f64();
    let all = load.stop()?;
    println!("away for {AWAY} s: {}; tries per key {:?}", summary(&all), tried.values().collect::<Vec<_>>());
    flawless(&all, PER_SECOND, seconds)?;
    let least = all.iter().filter_map(|seen| seen.least_life).fold(f64::INFINITY, f64::min);
    #[expect(clippy::cast_precision_loss, reason = "seconds")]
    let served_late = least < (LIFE - AWAY) as f64;
    ensure!(served_late, "the outage was no longer than a refresh interval: the oldest token had {least:.0} s left");
    Ok(())
}

/// Longer than tokens live.
fn long(lab: &Lab) -> anyhow::Result<()> {
    let load = start(lab)?;
    let before = asked(lab)?.len();
    away(lab, "on")?;
    std::thread::sleep(Duration::from_secs(LIFE + 5));
    let during = asked(lab)?;
    for (key, count) in by_key(&during[before..]) {
        let most = tries(LIFE + 5);
        ensure!(
            count <= most,
            "{key} was asked for {count} times in {} s by pods without a token, more than {most}",
            LIFE + 5
        );
    }
    let refused = lab.ask("demo/pod-00", &format!("resource={RESOURCE}"))?;
    ensure!(refused.status >= 429, "a token during an outage longer than a life: {refused:?}");
    away(lab, "off")?;
    let (back, ended) = (asked(lab)?.len(), now());
    clock::wait_for(Duration::from_mins(1), || Ok((granted(&asked(lab)?[back..]).len() == KEYS).then_some(())))?
        .context("not every key was got again within a minute")?;
    let recovery = now() - ended;
    recovered(&asked(lab)?[back..], 1)?;
    // From then on all is well.
    std::thread::sleep(Duration::from_secs(3));
    let all = load.stop()?;
    println!("away for {} s, longer than tokens live: {}; got again after {recovery:.1} s", LIFE + 5, summary(&all));
    for seen in &all {
        ensure!(seen.failed > 0, "{} noticed nothing of an outage longer than a life", seen.pod);
        let least = seen.least_life.unwrap_or_default();
        ensure!(least > 0.0, "{} was given a token that had ended", seen.pod);
        for failure in &seen.failures {
            // A refusal for a while: 503 or 429 (or the form's own word for it), never one that an SDK gives up on.
            let status = failure.problem.split(' ').next().unwrap_or_default();
            ensure!(["503", "429", "500", "502", "504"].contains(&status), "{}: {}", seen.pod, failure.problem);
            ensure!(failure.at < ended + recovery + 2.0, "{} fails after the recovery: {}", seen.pod, failure.problem);
        }
    }
    Ok(())
}

fn start(lab: &Lab) -> anyhow::Result<Load> {
    #[expect(clippy::cast_precision_loss, reason = "tens")]
    Load::start(lab, &names(), PER_SECOND / PODS as f64, &token_path(RESOURCE))
}

fn by_key(records: &[Asked]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for key in records.iter().filter_map(Asked::key) {
        *counts.entry(key).or_default() += 1;
    }
    counts
}

fn granted(records: &[Asked]) -> BTreeMap<String, usize> {
    by_key(&records.iter().filter(|record| record.status == 200).cloned().collect::<Vec<_>>())
}

/// No stampede: until every key was got once, none was got more often than `most` times or asked for in vain.
fn recovered(records: &[Asked], most: usize) -> anyhow::Result<()> {
    let (all, got) = (by_key(records), granted(records));
    for (key, count) in &all {
        let got = got.get(key).copied().unwrap_or(0);
        ensure!(got <= most, "{key} was got {got} times in the recovery");
        ensure!(*count <= got + 1, "{key} was asked for {count} times in the recovery and got {got} times");
    }
    Ok(())
}

fn now() -> f64 {
    #[expect(clippy::disallowed_methods, reason = "pods say when something failed in seconds of the wall clock")]
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
