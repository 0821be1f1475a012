//! `--audit-events=each` on a real API server: each token is one Event on its binding, with its pod, whatever happens to the API
//! server and to the daemon in the meantime.
#![expect(clippy::print_stdout, reason = "what it took is worth reading")]

mod accounted;

use std::{collections::BTreeMap, path::Path, thread, time::Duration};

use accounted::{Daemon, assets, finish, grown, journal, kubectl, manifests, reason, records, start, token_events};
use anyhow::{Context, bail, ensure};
use serde_json::Value;
use xtask::{clock, files, lab::Lab};

const PODS: usize = 4;
const BINDINGS: usize = 2;
const TOKENS_EACH: u64 = 150;
const A_SECOND: u64 = 15;
const LOAD: Duration = Duration::from_mins(2);
const CATCH_UP: Duration = Duration::from_mins(2);

#[test]
fn each_token_is_one_event() -> anyhow::Result<()> {
    let lab = Lab::up(Some(&assets()?), fill)?;
    let outcome = story(&lab);
    outcome.with_context(|| lab.log_tail())?;
    lab.down()
}

fn fill(directory: &Path) -> anyhow::Result<()> {
    manifests(directory, PODS, BINDINGS)?;
    let lab = format!("nodeArguments: [--audit-journal, {}, --audit-events, each]\n", journal(directory).display());
    files::replace(&directory.join("lab.yaml"), &lab)
}

fn story(lab: &Lab) -> anyhow::Result<()> {
    let directory = journal(lab.manifests());
    let watch = clock::Stopwatch::start();
    let pods = start(lab, PODS, TOKENS_EACH, A_SECOND)?;
    let node = Daemon::of_lab(lab)?;
    // As they come, while everything is well.
    grown(&directory, 100, LOAD)?;
    let some = clock::wait_for(CATCH_UP, || Ok((token_events(lab)?.len() >= 50).then_some(())))?;
    some.context("no Events while everything is well")?;
    // Without the API server they wait on the disk, and tokens go on.
    let still = lab.still("kube-apiserver")?;
    grown(&directory, 350, LOAD)?;
    // Killed with a backlog and writes under way: their answers are never seen.
    node.kill()?;
    let log = lab.scratch().join("node-2.log");
    let mut second = node.start(&log)?;
    drop(still);
    let seen = finish(pods, LOAD).with_context(|| files::read(&log).unwrap_or_default())?;
    let received: u64 = seen.values().map(|seen| seen.received).sum();
    println!("{received} tokens after {}", watch.seconds());
    ensure!(received == PODS as u64 * TOKENS_EACH, "not what was asked for: {seen:?}");

    let uids = uids(lab)?;
    let outcome = clock::wait_for(CATCH_UP, || {
        thread::sleep(Duration::from_millis(500));
        // The daemon may still deny and issue: both are read anew.
        Ok((token_events(lab)?.len() >= records(&directory)?.len()).then_some(()))
    });
    second.signal("TERM");
    second.wait(Duration::from_secs(20))?;
    let (events, records) = (token_events(lab)?, records(&directory)?);
    let text = || files::read(&log).unwrap_or_default();
    outcome?.with_context(|| format!("{} Events, {} records\n{}", events.len(), records.len(), text()))?;
    println!("{} Events after {}", events.len(), watch.seconds());
    compare(&events, &records, &uids)
}

/// UIDs of bindings and pods.
fn uids(lab: &Lab) -> anyhow::Result<BTreeMap<(String, String), Value>> {
    let text = kubectl(lab, &["-n", "demo", "get", "azureidentitybindings,pods", "-o", "json"])?;
    let list: Value = serde_json::from_str(&text).context("kubectl wrote no JSON")?;
    let of = |object: &Value| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        ((text(&object["kind"]), text(&object["metadata"]["name"])), object["metadata"]["uid"].clone())
    };
    Ok(list["items"].as_array().into_iter().flatten().map(of).collect())
}

/// Each record has one Event that says what it says, and there are no others.
fn compare(events: &[Value], records: &[Value], uids: &BTreeMap<(String, String), Value>) -> anyhow::Result<()> {
    let mut told = BTreeMap::new();
    for event in events {
        ensure!(event.get("series").is_none_or(Value::is_null), "one Event is of one record: {event}");
        let note = event["note"].as_str().unwrap_or_default();
        // `…; record 17 of node node-1`
        let number = note.split_once("; record ").and_then(|(_, rest)| rest.split_once(" of node "));
        let number: u64 = number.and_then(|(number, _)| number.parse().ok()).with_context(|| note.to_owned())?;
        if let Some(other) = told.insert(number, event) {
            bail!("record {number} has two Events:\n{other}\n{event}");
        }
    }
    for record in records {
        let number = record["seq"].as_u64().context("a record without a number")?;
        let event = told.remove(&number).with_context(|| format!("record {number} has no Event: {record}"))?;
        ensure!(event["reason"] == reason(record)?, "{record}\n{event}");
        let time = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        ensure!(time(&event["eventTime"]) == time(&record["time"]), "{record}\n{event}");
        let pod = record["pod"].as_str().unwrap_or_default().to_owned();
        if let Some(binding) = record["binding"].as_str() {
            let name = binding.strip_prefix("demo/").context("of namespace demo")?.to_owned();
            let (regarding, related) = (&event["regarding"], &event["related"]);
            ensure!(regarding["kind"] == "AzureIdentityBinding" && regarding["name"] == *name, "{record}\n{event}");
            ensure!(regarding["uid"] == uids[&("AzureIdentityBinding".to_owned(), name)], "{event}");
            ensure!(related["kind"] == "Pod" && related["name"] == *pod, "{record}\n{event}");
            ensure!(related["uid"] == uids[&("Pod".to_owned(), pod)], "{event}");
        } else if !pod.is_empty() {
            ensure!(event["regarding"]["kind"] == "Pod" && event["regarding"]["name"] == *pod, "{record}\n{event}");
        }
    }
    ensure!(told.is_empty(), "Events of nothing: {told:?}");
    Ok(())
}
