//! Entra and IMDS are away for longer than a refresh interval: nobody notices while tokens live. And when there are no tokens:
//! what fails says that it is for a while, and when they are back they are asked once for each token, however many pods want
//! it.

#![allow(clippy::print_stdout, reason = "the figures of a run are worth reading")]

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
/// Nobody has a token for this one when upstream goes away.
const OTHER: &str = "https%3A%2F%2Fvault.azure.net";
const PODS: usize = 30;
/// A managed identity for every second pod, an application for the others, each shared by three pods.
const KEYS: usize = PODS / 3;
const PER_SECOND: f64 = 150.0;
/// Of a token, in seconds: long enough for the longest pause between two tries (30 s) after the outage, as real tokens are.
const LIFE: u64 = 90;
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
    let outcome = short(&lab).context("the short outage").and_then(|()| cold(&lab).context("an outage without tokens"));
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
    const AWAY: u64 = 40;
    for name in names() {
        let answer = lab.ask(&name, &format!("resource={RESOURCE}"))?;
        ensure!(answer.status == 200, "{name}: {answer:?}");
    }
    let watch = Stopwatch::start();
    let load = start(lab, RESOURCE)?;
    // Until what Entra gives was refreshed once: refreshing is well under way when the outage begins.
    let first = granted(&about(lab, RESOURCE, 0)?);
    ensure!(first.len() == KEYS, "{} keys, not {KEYS}: {first:?}", first.len());
    // (IMDS gives the same token again until half of its life is over: those are refreshed then.)
    clock::wait_for(Duration::from_secs(30), || {
        let now = granted(&about(lab, RESOURCE, 0)?);
        let of_entra = first.keys().filter(|key| key.starts_with("bbbbbbbb"));
        Ok(of_entra.into_iter().all(|key| now.get(key) > first.get(key)).then_some(()))
    })?
    .context("tokens are not refreshed when upstream wants it")?;

    let before = asked(lab)?.len();
    away(lab, "on")?;
    std::thread::sleep(Duration::from_secs(AWAY));
    let during = about(lab, RESOURCE, before)?;
    away(lab, "off")?;
    let (back, ended) = (asked(lab)?.len(), Stopwatch::start());
    let tried = by_key(&during);
    ensure!(tried.len() == KEYS, "not every key was tried during the outage: {tried:?}");
    for (key, count) in &tried {
        ensure!(*count <= tries(AWAY), "{key} was asked for {count} times in {AWAY} s, more than {}", tries(AWAY));
    }
    // What had failed is got again before it ends.
    clock::wait_for(Duration::from_secs(LIFE), || {
        Ok((granted(&about(lab, RESOURCE, back)?).len() == KEYS).then_some(()))
    })?
    .context("not every key was got again before its token ended")?;
    // Whoever is back first is refreshed again while the last is waited for.
    let again = ended.elapsed().as_secs() / (REFRESH - 1);
    recovered(&about(lab, RESOURCE, back)?, 2 + usize::try_from(again)?)?;

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

/// Upstream is away, and there is no token.
fn cold(lab: &Lab) -> anyhow::Result<()> {
    const AWAY: u64 = 12;
    away(lab, "on")?;
    let before = asked(lab)?.len();
    let load = start(lab, OTHER)?;
    std::thread::sleep(Duration::from_secs(AWAY));
    let during = about(lab, OTHER, before)?;
    let tried = by_key(&during);
    ensure!(tried.len() == KEYS, "not every key was tried during the outage: {tried:?}");
    for (key, count) in &tried {
        let most = tries(AWAY);
        ensure!(
            *count <= most,
            "{key} was asked for {count} times in {AWAY} s by pods without a token, more than {most}"
        );
    }
    away(lab, "off")?;
    let (back, ended) = (asked(lab)?.len(), now());
    let since = || -> anyhow::Result<Vec<Asked>> { about(lab, OTHER, back) };
    clock::wait_for(Duration::from_mins(1), || Ok((granted(&since()?).len() == KEYS).then_some(())))?
        .context("not every key was got within a minute")?;
    let recovery = now() - ended;
    let again = recovery / f64::from(u32::try_from(REFRESH - 1)?);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a handful")]
    recovered(&since()?, 1 + again as usize)?;
    // From then on all is well.
    std::thread::sleep(Duration::from_secs(3));
    let all = load.stop()?;
    println!("away for {AWAY} s, without tokens: {}; all were got {recovery:.1} s after it", summary(&all));
    for seen in &all {
        ensure!(seen.failed > 0, "{} noticed nothing of an outage without a token", seen.pod);
        ensure!(seen.least_life.is_some_and(|least| least > 0.0), "{} was given no token that lives", seen.pod);
        for failure in &seen.failures {
            // A refusal for a while, which SDKs try again after.
            let status = failure.problem.split(' ').next().unwrap_or_default();
            ensure!(["503", "429"].contains(&status), "{}: {}", seen.pod, failure.problem);
        }
        let last = seen.last_failure.unwrap_or_default();
        ensure!(
            last < ended + recovery + 1.0,
            "{} fails {:.1} s after the recovery",
            seen.pod,
            last - ended - recovery
        );
    }
    Ok(())
}

/// What was asked upstream about a resource from the `skip`-th record on: the controller asks as well, for another.
fn about(lab: &Lab, resource: &str, skip: usize) -> anyhow::Result<Vec<Asked>> {
    let host = resource.rsplit("%2F").next().unwrap_or_default();
    let of_it = |record: &Asked| record.key().is_some_and(|key| key.contains(host));
    Ok(asked(lab)?.into_iter().skip(skip).filter(of_it).collect())
}

fn start(lab: &Lab, resource: &str) -> anyhow::Result<Load> {
    #[expect(clippy::cast_precision_loss, reason = "tens")]
    Load::start(lab, &names(), PER_SECOND / PODS as f64, &token_path(resource))
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
