//! Every token accounted for, on a real API server: 10,000 tokens to 50 pods over 20 bindings, the API server standing still for
//! a while, the daemon killed twice. What pods were given is in the journal, and the Events say what the journal holds.
#![expect(clippy::print_stdout, reason = "what it took and how it looks is worth reading")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    io::Read as _,
    path::{Path, PathBuf},
    process::Child,
    thread,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use serde_json::Value;
use xtask::{
    clock, files,
    lab::Lab,
    paths,
    run::{Background, Cmd},
    setup,
};

const PODS: usize = 50;
const BINDINGS: usize = 20;
const TOKENS_EACH: u64 = 200;
/// So that the tokens are asked for during half a minute.
const A_SECOND: u64 = 8;
/// Pods that have all their tokens; the kills and the outage make it longer.
const LOAD: Duration = Duration::from_mins(2);
/// Events catch up: one write a second, one to be made and one to be changed for each pod, and each at most every 10 s.
const CATCH_UP: Duration = Duration::from_mins(3);

const POD: &str = r#"
import http.client, json, sys, time
wanted, rate = int(sys.argv[1]), float(sys.argv[2])
path = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net"
seen = {"received": 0, "unanswered": 0, "notReached": 0, "refused": 0, "clients": []}
connection, due = None, time.monotonic()
while seen["received"] < wanted:
    due = max(due + 1 / rate, time.monotonic() - 1)
    time.sleep(max(0.0, due - time.monotonic()))
    sent = False
    try:
        if connection is None:
            connection = http.client.HTTPConnection("169.254.169.254", 80, timeout=20)
            connection.connect()
        sent = True
        connection.request("GET", path, headers={"Metadata": "true"})
        answer = connection.getresponse()
        body = json.loads(answer.read())
        if answer.status == 200:
            seen["received"] += 1
            if body["client_id"] not in seen["clients"]:
                seen["clients"].append(body["client_id"])
        else:
            seen["refused"] += 1
    except Exception:
        seen["unanswered" if sent else "notReached"] += 1
        connection = None
json.dump(seen, sys.stdout)
"#;

/// What a pod saw.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Seen {
    received: u64,
    /// Requests that were sent, and had no answer.
    unanswered: u64,
    not_reached: u64,
    refused: u64,
    clients: Vec<String>,
}

/// What an Event is about, its pod, its reason.
type Key = (String, String, String);

#[test]
fn every_token_is_in_the_journal_and_in_events() -> anyhow::Result<()> {
    let assets = match paths::variable("KUBEBUILDER_ASSETS") {
        Some(assets) => PathBuf::from(assets),
        None => setup::kube::assets()?,
    };
    let lab = Lab::up(Some(&assets), fill)?;
    let outcome = story(&lab, &assets.join("kubectl"));
    outcome.with_context(|| lab.log_tail())?;
    lab.down()
}

/// The journal, beside the manifests.
fn journal(manifests: &Path) -> PathBuf {
    manifests.with_file_name("audit")
}

fn fill(directory: &Path) -> anyhow::Result<()> {
    let mut text = String::new();
    for binding in 0..BINDINGS {
        writeln!(
            text,
            "---\napiVersion: aadpodidentity.k8s.io/v1\nkind: AzureIdentity\nmetadata: {{name: id-{binding}, namespace: demo}}\n\
             spec:\n  type: 0\n  clientID: aaaaaaaa-0000-4000-8000-{binding:012}\n  \
             resourceID: /subscriptions/11111111-1111-4111-8111-111111111111/resourceGroups/demo/providers/\
             Microsoft.ManagedIdentity/userAssignedIdentities/id-{binding}\n\
             ---\napiVersion: aadpodidentity.k8s.io/v1\nkind: AzureIdentityBinding\n\
             metadata: {{name: b-{binding}, namespace: demo}}\n\
             spec: {{azureIdentity: id-{binding}, selector: b-{binding}}}"
        )?;
    }
    files::replace(&directory.join("identities.yaml"), &text)?;
    let mut text = String::new();
    for pod in 0..PODS {
        writeln!(
            text,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: pod-{pod}, namespace: demo, \
             labels: {{aadpodidbinding: b-{}}}}}\nspec: {{containers: [{{name: main, image: example.invalid/app}}]}}",
            pod % BINDINGS
        )?;
    }
    files::replace(&directory.join("pods.yaml"), &text)?;
    // A short list of files shows that the cursor goes over them.
    let lab =
        format!("nodeArguments: [--audit-journal, {}, --audit-journal-max-size, 2MiB]\n", journal(directory).display());
    files::replace(&directory.join("lab.yaml"), &lab)
}

fn story(lab: &Lab, kubectl: &Path) -> anyhow::Result<()> {
    let directory = journal(lab.manifests());
    let watch = clock::Stopwatch::start();
    let pods = start(lab)?;
    let log = |name: &str| lab.scratch().join(name);
    let node = Daemon::of_lab(lab)?;

    // Killed in the middle of it, the first time with an API server.
    grown(&directory, 1500)?;
    node.kill()?;
    let mut second = node.start(&log("node-2.log"))?;
    grown(&directory, 4000)?;
    let still = lab.still("kube-apiserver")?;
    // Without it tokens go on, and the journal grows.
    grown(&directory, 6000)?;
    second.signal("KILL");
    second.wait(Duration::from_secs(5))?;
    let mut third = node.start(&log("node-3.log"))?;
    // It has nobody to ask who is who yet.
    thread::sleep(Duration::from_secs(2));
    drop(still);

    let seen = finish(pods)?;
    println!("{} tokens after {}", PODS as u64 * TOKENS_EACH, watch.seconds());
    let outcome = check(lab, kubectl, &directory, &seen);
    println!("checked after {}", watch.seconds());
    third.signal("TERM");
    third.wait(Duration::from_secs(20))?;
    outcome.with_context(|| files::read(&log("node-3.log")).unwrap_or_default())?;
    verify(&directory)?;
    ensure!(directory.join("events.json").is_file(), "nothing is kept of what was counted");
    for name in ["node-2.log", "node-3.log"] {
        ensure!(!files::read(&log(name))?.contains("eyJ"), "{name} has what looks like a token");
    }
    Ok(())
}

fn check(lab: &Lab, kubectl: &Path, directory: &Path, seen: &BTreeMap<String, Seen>) -> anyhow::Result<()> {
    let journal = journal_counts(directory)?;
    for (pod, seen) in seen {
        let issued: u64 = journal
            .iter()
            .filter(|((_, of, reason), _)| of == pod && reason == "TokenIssued")
            .map(|(_, count)| count)
            .sum();
        ensure!(seen.received == TOKENS_EACH && seen.clients.len() == 1, "{pod}: {seen:?}");
        ensure!(issued >= seen.received, "{pod} was given {} tokens, the journal has {issued}", seen.received);
        let surplus = issued - seen.received;
        ensure!(surplus <= seen.unanswered, "the journal has {surplus} more tokens than {pod} was given: {seen:?}");
        // One request at a time, two kills.
        ensure!(surplus <= 2, "{surplus} surplus records of {pod}: {seen:?}");
    }
    let total = |of: fn(&Seen) -> u64| seen.values().map(of).sum::<u64>();
    println!(
        "received {}, without an answer {}, refused {}, not reached {}",
        total(|seen| seen.received),
        total(|seen| seen.unanswered),
        total(|seen| seen.refused),
        total(|seen| seen.not_reached)
    );

    let kubectl = |words: &[&str]| Cmd::new(kubectl).arg("--kubeconfig").arg(lab.kubeconfig()?).args(words).text();
    let mut last = BTreeMap::new();
    let caught_up = clock::wait_for(CATCH_UP, || {
        thread::sleep(Duration::from_secs(1));
        last = event_counts(&kubectl(&["get", "events.events.k8s.io", "-A", "-o", "json"])?)?;
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

    // What an operator sees.
    let text = kubectl(&["-n", "demo", "describe", "azureidentitybinding", "b-0"])?;
    let line =
        text.lines().find(|line| line.contains("TokenIssued")).with_context(|| format!("no Event in\n{text}"))?;
    println!("{line}");
    for word in ["Normal", "(x", " over ", "entra-pod-identity", "issued to pod demo/pod-"] {
        ensure!(line.contains(word), "no `{word}` in\n{line}");
    }
    Ok(())
}

/// Starts all pods.
fn start(lab: &Lab) -> anyhow::Result<Vec<(String, Child)>> {
    let arguments = [TOKENS_EACH.to_string(), A_SECOND.to_string()];
    let mut pods = Vec::new();
    for number in 0..PODS {
        let words = ["python3", "-c", POD, &arguments[0], &arguments[1]];
        pods.push((format!("pod-{number}"), lab.inside(&format!("demo/pod-{number}"), &words).piped()?));
    }
    Ok(pods)
}

/// Waits until all pods have what they want.
fn finish(pods: Vec<(String, Child)>) -> anyhow::Result<BTreeMap<String, Seen>> {
    let watch = clock::Stopwatch::start();
    let mut all = BTreeMap::new();
    let mut late = Vec::new();
    for (pod, mut child) in pods {
        let left = LOAD.saturating_sub(watch.elapsed());
        if clock::wait_for(left, || child.try_wait().map_err(Into::into))?.is_none() {
            child.kill().context("cannot kill")?;
            child.wait().context("cannot wait")?;
            late.push(pod);
            continue;
        }
        let mut text = String::new();
        child.stdout.take().context("no output")?.read_to_string(&mut text).context("cannot read")?;
        all.insert(pod.clone(), serde_json::from_str(&text).with_context(|| format!("{pod} said {text:?}"))?);
    }
    ensure!(late.is_empty(), "these have not got their tokens: {late:?}");
    Ok(all)
}

/// The daemon that the lab has started, and how.
struct Daemon {
    pid: String,
    line: Vec<String>,
    environment: Vec<String>,
    /// A process beside it.
    neighbour: String,
}

impl Daemon {
    fn of_lab(lab: &Lab) -> anyhow::Result<Self> {
        let record: Value =
            serde_json::from_str(&files::read(&lab.run_dir().join("lab.json"))?).context("lab.json is no JSON")?;
        let pid = |name: &str| {
            let process = record["processes"].as_array().into_iter().flatten().find(|process| process["name"] == name);
            let pid = process.and_then(|process| process["pid"].as_u64()).map(|pid| pid.to_string());
            pid.with_context(|| format!("no {name} in lab.json"))
        };
        let (pid, neighbour) = (pid("identity-node")?, pid("identity-controller")?);
        let parts = |file: &str| -> anyhow::Result<Vec<String>> {
            let text = files::read(&PathBuf::from("/proc").join(&pid).join(file))?;
            Ok(text.split_terminator('\0').map(str::to_owned).collect())
        };
        Ok(Self { line: parts("cmdline")?, environment: parts("environ")?, pid, neighbour })
    }

    fn kill(&self) -> anyhow::Result<()> {
        Cmd::new("kill").args(["-KILL", &self.pid]).run_quietly()
    }

    /// The same again, where it was.
    fn start(&self, log: &Path) -> anyhow::Result<Background> {
        Cmd::new("nsenter")
            .args(["--target", &self.neighbour, "--net", "--mount", "--", "env", "-i"])
            .args(&self.environment)
            .args(&self.line)
            .background(log)
    }
}

/// Waits until so many tokens are in the journal.
fn grown(directory: &Path, records: u64) -> anyhow::Result<()> {
    let there = clock::wait_for(LOAD, || {
        thread::sleep(Duration::from_millis(200));
        let issued: u64 =
            journal_counts(directory)?.iter().filter(|((.., reason), _)| reason == "TokenIssued").map(|(_, n)| n).sum();
        Ok((issued >= records).then_some(()))
    })?;
    there.with_context(|| format!("there were no {records} tokens in {} s", LOAD.as_secs()))
}

/// What the journal holds, read by nothing of the product's.
fn journal_counts(directory: &Path) -> anyhow::Result<BTreeMap<Key, u64>> {
    let mut names: Vec<PathBuf> = std::fs::read_dir(directory)
        .with_context(|| format!("cannot read {}", directory.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
        .collect();
    names.sort();
    let mut counts = BTreeMap::new();
    for name in names {
        let text = files::read(&name)?;
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        for line in whole.lines().filter(|line| line.contains("\"kind\":\"token\"")) {
            let record: Value = serde_json::from_str(line).with_context(|| format!("not a record: {line}"))?;
            let text = |field: &str| record[field].as_str().unwrap_or_default();
            let reason = match text("verdict") {
                "issued" => "TokenIssued",
                "denied" => "TokenDenied",
                "failed" => "TokenUnavailable",
                "withdrawn" => "TokenWithdrawn",
                other => bail!("verdict `{other}`"),
            };
            let binding = text("binding").rsplit_once('/').map(|(_, name)| name);
            let pod = text("pod");
            let about = binding.unwrap_or(if pod.is_empty() { text("node") } else { pod });
            *counts.entry((about.to_owned(), pod.to_owned(), reason.to_owned())).or_default() += 1;
        }
    }
    Ok(counts)
}

fn event_counts(text: &str) -> anyhow::Result<BTreeMap<Key, u64>> {
    let list: Value = serde_json::from_str(text).context("kubectl wrote no JSON")?;
    let mut counts = BTreeMap::new();
    for event in list["items"].as_array().into_iter().flatten() {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let reason = text(&event["reason"]);
        if !reason.starts_with("Token") || event["action"] != "Token" {
            continue;
        }
        let regarding = &event["regarding"];
        let pod = if regarding["kind"] == "Pod" { &regarding["name"] } else { &event["related"]["name"] };
        *counts.entry((text(&regarding["name"]), text(pod), reason)).or_default() +=
            event["series"]["count"].as_u64().unwrap_or(1);
    }
    Ok(counts)
}

fn verify(directory: &Path) -> anyhow::Result<()> {
    let output = Cmd::new(paths::binary("identityctl")).args(["audit", "verify"]).arg(directory).output()?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "the journal does not verify:\n{text}");
    Ok(())
}
