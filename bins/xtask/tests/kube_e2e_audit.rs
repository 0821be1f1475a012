//! Every token accounted for, on a real API server: 10,000 tokens to 50 pods over 20 bindings, the API server standing still for
//! a while, the daemon killed twice. What pods were given is in the journal, and the Events say what the journal holds.
#![expect(clippy::print_stdout, reason = "what it took and how it looks is worth reading")]

mod accounted;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::Path,
    thread,
    time::Duration,
};

use accounted::{
    Daemon, Seen, assets, finish, grown, journal, kubectl, manifests, reason, records, start, token_events,
};
use anyhow::{Context, bail, ensure};
use serde_json::Value;
use xtask::{clock, files, lab::Lab, paths, run::Cmd};

const PODS: usize = 50;
const BINDINGS: usize = 20;
const TOKENS_EACH: u64 = 200;
/// So that the tokens are asked for during half a minute.
const A_SECOND: u64 = 8;
/// Pods that have all their tokens; the kills and the outage make it longer.
const LOAD: Duration = Duration::from_mins(2);
/// Events catch up: one write a second, one to be made and one to be changed for each pod, and each at most every 10 s.
const CATCH_UP: Duration = Duration::from_mins(3);
/// Where checkpoints are published.
const AUDIT: &str = "entra-pod-identity-audit";

/// What an Event is about, its pod, its reason.
type Key = (String, String, String);

#[test]
fn every_token_is_in_the_journal_and_in_events() -> anyhow::Result<()> {
    let lab = Lab::up(Some(&assets()?), fill)?;
    let outcome = story(&lab);
    outcome.with_context(|| lab.log_tail())?;
    lab.down()
}

fn fill(directory: &Path) -> anyhow::Result<()> {
    manifests(directory, PODS, BINDINGS)?;
    // A short list of files shows that the cursor goes over them.
    let lab = format!(
        "nodeArguments: [--audit-journal, {}, --audit-journal-max-size, 2MiB, --audit-checkpoint-interval, 5s, \
         --audit-checkpoint-namespace, {AUDIT}]\n",
        journal(directory).display()
    );
    files::replace(&directory.join("lab.yaml"), &lab)
}

fn story(lab: &Lab) -> anyhow::Result<()> {
    let directory = journal(lab.manifests());
    publishing(lab)?;
    let watch = clock::Stopwatch::start();
    let pods = start(lab, PODS, TOKENS_EACH, A_SECOND)?;
    let log = |name: &str| lab.scratch().join(name);
    let node = Daemon::of_lab(lab)?;

    // Killed in the middle of it, the first time with an API server.
    grown(&directory, 1500, LOAD)?;
    node.kill()?;
    let mut second = node.start(&log("node-2.log"))?;
    grown(&directory, 4000, LOAD)?;
    let still = lab.still("kube-apiserver")?;
    // Without it tokens go on, and the journal grows.
    grown(&directory, 6000, LOAD)?;
    second.signal("KILL");
    second.wait(Duration::from_secs(5))?;
    let mut third = node.start(&log("node-3.log"))?;
    // It has nobody to ask who is who yet.
    thread::sleep(Duration::from_secs(2));
    drop(still);

    let seen = finish(pods, LOAD)?;
    println!("{} tokens after {}", PODS as u64 * TOKENS_EACH, watch.seconds());
    let outcome = check(lab, &directory, &seen);
    println!("checked after {}", watch.seconds());
    third.signal("TERM");
    third.wait(Duration::from_secs(20))?;
    outcome.with_context(|| files::read(&log("node-3.log")).unwrap_or_default())?;
    verify(lab, &directory)?;
    ensure!(directory.join("events.json").is_file(), "nothing is kept of what was counted");
    for name in ["node-2.log", "node-3.log"] {
        ensure!(!files::read(&log(name))?.contains("eyJ"), "{name} has what looks like a token");
    }
    Ok(())
}

/// What an operator installs for it, but for the policy: the lab's daemon has a certificate, which names no node.
fn publishing(lab: &Lab) -> anyhow::Result<()> {
    let text = files::read(&paths::root().join("examples/audit-checkpoints/install.yaml"))?;
    let rest: Vec<&str> =
        text.split("\n---\n").filter(|part| !part.contains("kind: ValidatingAdmissionPolicy")).collect();
    ensure!(rest.len() >= 3, "a namespace, a role and its binding, at least");
    let file = lab.scratch().join("checkpoints.yaml");
    files::replace(&file, &rest.join("\n---\n"))?;
    kubectl(lab, &["apply", "-f", &file.display().to_string()]).map(drop)
}

fn check(lab: &Lab, directory: &Path, seen: &BTreeMap<String, Seen>) -> anyhow::Result<()> {
    let journal = journal_counts(directory)?;
    let issued = records(directory)?.into_iter().filter(|record| record["verdict"] == "issued");
    let mut tokens: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut bindings = BTreeSet::new();
    for record in issued {
        let text = |field: &str| record[field].as_str().unwrap_or_default().to_owned();
        *tokens.entry((text("pod"), text("uti"))).or_default() += 1;
        bindings.insert(text("binding"));
    }
    let total = |of: fn(&Seen) -> u64| seen.values().map(of).sum::<u64>();
    println!(
        "received {}, without an answer {}, refused {}, not reached {}",
        total(|seen| seen.received),
        total(|seen| seen.unanswered),
        total(|seen| seen.refused),
        total(|seen| seen.not_reached)
    );
    ensure!((seen.len(), bindings.len()) == (PODS, BINDINGS), "{} pods, {} bindings", seen.len(), bindings.len());
    ensure!(total(|seen| seen.received) == 10_000, "not the number of tokens that was asked for");
    for (pod, seen) in seen {
        ensure!(seen.received == TOKENS_EACH && seen.clients.len() == 1, "{pod}: {seen:?}");
        // None that it was given is missing, each by the claim that Entra's log knows it by…
        for (uti, received) in &seen.tokens {
            let recorded = tokens.get(&(pod.clone(), uti.clone())).copied().unwrap_or_default();
            ensure!(recorded >= *received, "{pod} was given token {uti} {received} times, the journal has {recorded}");
        }
        let recorded: u64 = tokens.iter().filter(|((of, _), _)| of == pod).map(|(_, count)| count).sum();
        // …and what is there beyond that was under way at a kill: one request at a time, two kills.
        let surplus = recorded - seen.received;
        ensure!(surplus <= seen.unanswered, "the journal has {surplus} more tokens than {pod} was given: {seen:?}");
        ensure!(surplus <= 2, "{surplus} surplus records of {pod}: {seen:?}");
    }

    let mut last = BTreeMap::new();
    let caught_up = clock::wait_for(CATCH_UP, || {
        thread::sleep(Duration::from_secs(1));
        last = event_counts(&token_events(lab)?);
        // The daemon may still deny and issue: both are read anew.
        Ok((last == journal_counts(directory)?).then_some(()))
    })?;
    if caught_up.is_none() {
        let journal = journal_counts(directory)?;
        let mut differences = String::new();
        for key in journal.keys().chain(last.keys()).collect::<BTreeSet<_>>() {
            if journal.get(key) != last.get(key) {
                let _ = writeln!(differences, "{key:?}: journal {:?}, Events {:?}", journal.get(key), last.get(key));
            }
        }
        bail!("after {} s Events differ from the journal:\n{differences}", CATCH_UP.as_secs());
    }
    for binding in 0..BINDINGS {
        described(lab, binding, &journal)?;
    }
    Ok(())
}

/// What an operator sees: how many tokens each pod has had, and how many pods have the identity.
fn described(lab: &Lab, binding: usize, journal: &BTreeMap<Key, u64>) -> anyhow::Result<()> {
    let name = format!("b-{binding}");
    let text = kubectl(lab, &["-n", "demo", "describe", "azureidentitybinding", &name])?;
    let lines = |reason: &str, words: &str| -> Vec<&str> {
        text.lines().filter(|line| line.split_whitespace().nth(1) == Some(reason) && line.contains(words)).collect()
    };
    // `(x212 over 31m)`; of one there is no such word.
    let count = |line: &str| -> u64 {
        let number = line.split_once("(x").and_then(|(_, rest)| rest.split_once(" over "));
        number.and_then(|(number, _)| number.parse().ok()).unwrap_or(1)
    };
    let of_binding: Vec<usize> = (0..PODS).filter(|pod| pod % BINDINGS == binding).collect();
    for pod in &of_binding {
        let pod = format!("pod-{pod}");
        let issued = lines("TokenIssued", &format!("issued to pod demo/{pod} ("));
        let expected = journal.get(&(name.clone(), pod.clone(), "TokenIssued".to_owned())).copied().unwrap_or_default();
        let told: u64 = issued.iter().map(|line| count(line)).sum();
        ensure!(told == expected && told >= TOKENS_EACH, "{told} tokens of {pod}, the journal has {expected}:\n{text}");
        for line in &issued {
            ensure!(line.contains("Normal") && line.contains("entra-pod-identity"), "{line}");
        }
    }
    let assigned = lines("Assigned", "assigned to pods, first to demo/pod-");
    let told: u64 = assigned.iter().map(|line| count(line)).sum();
    ensure!(
        assigned.len() == 1 && told == of_binding.len() as u64,
        "not one Event of {} pods:\n{text}",
        of_binding.len()
    );
    if binding == 0 {
        println!("{}", text.split_once("Events:").map_or("", |(_, events)| events.trim_end()));
    }
    Ok(())
}

/// What the journal holds.
fn journal_counts(directory: &Path) -> anyhow::Result<BTreeMap<Key, u64>> {
    let mut counts = BTreeMap::new();
    for record in records(directory)? {
        let text = |field: &str| record[field].as_str().unwrap_or_default();
        let binding = text("binding").rsplit_once('/').map(|(_, name)| name);
        let pod = text("pod");
        let about = binding.unwrap_or(if pod.is_empty() { text("node") } else { pod });
        *counts.entry((about.to_owned(), pod.to_owned(), reason(&record)?.to_owned())).or_default() += 1;
    }
    Ok(counts)
}

fn event_counts(events: &[Value]) -> BTreeMap<Key, u64> {
    let mut counts = BTreeMap::new();
    for event in events {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let regarding = &event["regarding"];
        let pod = if regarding["kind"] == "Pod" { &regarding["name"] } else { &event["related"]["name"] };
        *counts.entry((text(&regarding["name"]), text(pod), text(&event["reason"]))).or_default() +=
            event["series"]["count"].as_u64().unwrap_or(1);
    }
    counts
}

/// With what was published, as docs/audit.md has it: nothing up to the end is missing.
fn verify(lab: &Lab, directory: &Path) -> anyhow::Result<()> {
    let words = ["-n", AUDIT, "get", "leases.coordination.k8s.io", "-o", "json"];
    let list: Value = serde_json::from_str(&kubectl(lab, &words)?).context("kubectl wrote no JSON")?;
    let items = list["items"].as_array().map_or(&[][..], Vec::as_slice);
    let [lease] = items else { bail!("one node, one Lease: {list}") };
    let annotation =
        |name: &str| lease["metadata"]["annotations"][format!("audit.aadpodidentity.k8s.io/{name}")].clone();
    let (head, seq) = (annotation("head"), annotation("seq"));
    let (head, seq) = (head.as_str().context("no head")?, seq.as_str().context("no seq")?);
    let verify = Cmd::new(paths::binary("identityctl")).args(["audit", "verify", "--json", "--head", head]);
    let output = verify.arg(directory).output()?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "the journal does not verify:\n{text}");
    let report: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("no JSON: {text}"))?;
    let number = |name: &str| report[name].as_u64().with_context(|| format!("no {name} in {text}"));
    println!("published up to record {seq} of {}", number("last_seq")?);
    ensure!(
        number("proven_through")?.to_string() == seq,
        "published up to {seq}, and proven is something else:\n{text}"
    );
    // The last checkpoint was made at the end, and left before the daemon ended.
    ensure!(number("last_seq")? - number("proven_through")? <= 1, "the end is not published:\n{text}");
    Ok(())
}
