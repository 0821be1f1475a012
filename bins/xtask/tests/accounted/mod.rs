//! What the tests of the audit on a real API server share: pods that say what they were given, the lab's daemon, and the journal,
//! read by nothing of the product's.

#![allow(dead_code, reason = "each target uses a part of it")]

use std::{
    collections::BTreeMap,
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

/// Asks for so many tokens, so many a second, and says what it saw.
const POD: &str = r#"
import base64, http.client, json, sys, time
wanted, rate = int(sys.argv[1]), float(sys.argv[2])
path = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net"
seen = {"received": 0, "unanswered": 0, "notReached": 0, "refused": 0, "clients": [], "tokens": {}}
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
            claims = body["access_token"].split(".")[1]
            uti = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["uti"]
            seen["tokens"][uti] = seen["tokens"].get(uti, 0) + 1
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
pub(crate) struct Seen {
    pub(crate) received: u64,
    /// Requests that were sent, and had no answer.
    pub(crate) unanswered: u64,
    pub(crate) not_reached: u64,
    pub(crate) refused: u64,
    pub(crate) clients: Vec<String>,
    /// How often it was given each token, by the claim `uti`.
    pub(crate) tokens: BTreeMap<String, u64>,
}

/// Binaries of the control plane.
pub(crate) fn assets() -> anyhow::Result<PathBuf> {
    match paths::variable("KUBEBUILDER_ASSETS") {
        Some(assets) => Ok(PathBuf::from(assets)),
        None => setup::kube::assets(),
    }
}

/// Where the journal of a lab is: beside its manifests.
pub(crate) fn journal(manifests: &Path) -> PathBuf {
    manifests.with_file_name("audit")
}

/// kubectl's answer, as the administrator of a lab's cluster.
pub(crate) fn kubectl(lab: &Lab, words: &[&str]) -> anyhow::Result<String> {
    Cmd::new(assets()?.join("kubectl")).arg("--kubeconfig").arg(lab.kubeconfig()?).args(words).text()
}

/// `pods` pods of namespace `demo`, `pod-0`, `pod-1`, …, each of which has the binding `b-<number of the pod % bindings>`, and
/// these with their identities.
pub(crate) fn manifests(directory: &Path, pods: usize, bindings: usize) -> anyhow::Result<()> {
    use std::fmt::Write as _;
    let mut text = String::new();
    for binding in 0..bindings {
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
    for pod in 0..pods {
        writeln!(
            text,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: pod-{pod}, namespace: demo, \
             labels: {{aadpodidbinding: b-{}}}}}\nspec: {{containers: [{{name: main, image: example.invalid/app}}]}}",
            pod % bindings
        )?;
    }
    files::replace(&directory.join("pods.yaml"), &text)
}

/// Starts all pods.
pub(crate) fn start(lab: &Lab, pods: usize, tokens: u64, a_second: u64) -> anyhow::Result<Vec<(String, Child)>> {
    let arguments = [tokens.to_string(), a_second.to_string()];
    let mut children = Vec::new();
    for number in 0..pods {
        let words = ["python3", "-c", POD, &arguments[0], &arguments[1]];
        children.push((format!("pod-{number}"), lab.inside(&format!("demo/pod-{number}"), &words).piped()?));
    }
    Ok(children)
}

/// Waits until all pods have what they want.
pub(crate) fn finish(pods: Vec<(String, Child)>, limit: Duration) -> anyhow::Result<BTreeMap<String, Seen>> {
    let watch = clock::Stopwatch::start();
    let mut all = BTreeMap::new();
    let mut late = Vec::new();
    for (pod, mut child) in pods {
        let left = limit.saturating_sub(watch.elapsed());
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
pub(crate) struct Daemon {
    pid: String,
    line: Vec<String>,
    environment: Vec<String>,
    /// A process beside it.
    neighbour: String,
}

impl Daemon {
    /// Of a lab that is up.
    pub(crate) fn of_lab(lab: &Lab) -> anyhow::Result<Self> {
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

    /// With SIGKILL.
    pub(crate) fn kill(&self) -> anyhow::Result<()> {
        Cmd::new("kill").args(["-KILL", &self.pid]).run_quietly()?;
        // Its port and the lock of its journal are free when it is gone, which takes a busy machine a while.
        let line = PathBuf::from("/proc").join(&self.pid).join("cmdline");
        let gone = clock::wait_for(Duration::from_secs(10), || {
            Ok(std::fs::read(&line).map_or(true, |line| line.is_empty()).then_some(()))
        })?;
        gone.context("the daemon is killed, and still there")
    }

    /// The same again, where it was.
    pub(crate) fn start(&self, log: &Path) -> anyhow::Result<Background> {
        Cmd::new("nsenter")
            .args(["--target", &self.neighbour, "--net", "--mount", "--", "env", "-i"])
            .args(&self.environment)
            .args(&self.line)
            .background(log)
    }
}

/// Waits until so many tokens are in the journal.
pub(crate) fn grown(directory: &Path, tokens: usize, limit: Duration) -> anyhow::Result<()> {
    let there = clock::wait_for(limit, || {
        thread::sleep(Duration::from_millis(200));
        let issued = records(directory)?.iter().filter(|record| record["verdict"] == "issued").count();
        Ok((issued >= tokens).then_some(()))
    })?;
    there.with_context(|| format!("there were no {tokens} tokens in {} s", limit.as_secs()))
}

/// The records of tokens in a journal.
pub(crate) fn records(directory: &Path) -> anyhow::Result<Vec<Value>> {
    let mut names: Vec<PathBuf> = std::fs::read_dir(directory)
        .with_context(|| format!("cannot read {}", directory.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
        .collect();
    names.sort();
    let mut records = Vec::new();
    for name in names {
        let text = files::read(&name)?;
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        for line in whole.lines().filter(|line| line.contains("\"kind\":\"token\"")) {
            records.push(serde_json::from_str(line).with_context(|| format!("not a record: {line}"))?);
        }
    }
    Ok(records)
}

/// The reason of the Event that tells of a record.
pub(crate) fn reason(record: &Value) -> anyhow::Result<&'static str> {
    Ok(match record["verdict"].as_str().unwrap_or_default() {
        "issued" => "TokenIssued",
        "denied" => "TokenDenied",
        "failed" => "TokenUnavailable",
        "withdrawn" => "TokenWithdrawn",
        other => bail!("verdict `{other}`"),
    })
}

/// Events of tokens, as the API server has them.
pub(crate) fn token_events(lab: &Lab) -> anyhow::Result<Vec<Value>> {
    let text = kubectl(lab, &["get", "events.events.k8s.io", "-A", "-o", "json"])?;
    let mut list: Value = serde_json::from_str(&text).context("kubectl wrote no JSON")?;
    let mut items: Vec<Value> = list["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
    items.retain(|event| event["action"] == "Token");
    Ok(items)
}
