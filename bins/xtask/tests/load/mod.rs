//! Many pods that need tokens all the time, and what they saw.
#![allow(dead_code, reason = "each test uses its part")]

use std::{io::Read as _, path::Path, process::Child, thread, time::Duration};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use xtask::{clock, files, lab::Lab};

const POD: &str = include_str!("pod.py");
/// How long a pod may take to say what it saw.
const END: Duration = Duration::from_secs(30);

/// What a pod asks for.
pub(crate) fn token_path(resource: &str) -> String {
    format!("/metadata/identity/oauth2/token?api-version=2018-02-01&resource={resource}")
}

/// Pods that ask.
pub(crate) struct Load {
    pods: Vec<(String, Child)>,
}

/// What one pod saw. Times in seconds.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Seen {
    #[serde(skip)]
    pub(crate) pod: String,
    pub(crate) asked: u64,
    pub(crate) failed: u64,
    pub(crate) failures: Vec<Failure>,
    /// Unix time.
    pub(crate) last_failure: Option<f64>,
    pub(crate) connections: u64,
    /// Of the tokens it was given, what the one that was nearest to its end had left.
    pub(crate) least_life: Option<f64>,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) longest: f64,
    pub(crate) tokens: Vec<Token>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Failure {
    /// Unix time.
    pub(crate) at: f64,
    pub(crate) problem: String,
}

/// A token, the first time that the pod was given it.
#[derive(Clone, Debug, Deserialize)]
#[expect(clippy::struct_field_names, reason = "as pod.py writes it")]
pub(crate) struct Token {
    pub(crate) at: f64,
    pub(crate) application: Option<String>,
    pub(crate) ends: i64,
    pub(crate) token: String,
}

impl Load {
    /// Lets each pod ask `per_pod` times a second, one after the other in an even spread.
    pub(crate) fn start(lab: &Lab, pods: &[String], per_pod: f64, path: &str) -> anyhow::Result<Self> {
        let mut load = Self { pods: Vec::new() };
        for (number, pod) in (0_u32..).zip(pods) {
            // They take a moment to start; from then on they are spread over the interval.
            let spread = f64::from(number) / f64::from(u32::try_from(pods.len())?) / per_pod;
            let words = ["python3", "-c", POD, &per_pod.to_string(), &format!("{:.4}", 1.0 + spread), path];
            load.pods.push((pod.clone(), lab.inside(pod, &words).dialogue()?));
        }
        Ok(load)
    }

    /// Ends it; what each pod saw.
    pub(crate) fn stop(mut self) -> anyhow::Result<Vec<Seen>> {
        let mut all = Vec::new();
        for (_, child) in &mut self.pods {
            drop(child.stdin.take());
        }
        for (pod, mut child) in std::mem::take(&mut self.pods) {
            let mut output = child.stdout.take().context("no output")?;
            let reading = thread::spawn(move || {
                let mut text = String::new();
                output.read_to_string(&mut text).map(|_| text)
            });
            let ended = clock::wait_for(END, || child.try_wait().map_err(Into::into))?;
            if ended.is_none() {
                child.kill().context("cannot kill")?;
                bail!("{pod} did not end in {} s", END.as_secs());
            }
            let text = reading.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
            let seen: Seen = serde_json::from_str(&text).with_context(|| format!("{pod} said {text:?}"))?;
            all.push(Seen { pod, ..seen });
        }
        Ok(all)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for (_, child) in &mut self.pods {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Every request was answered with a token that lives, on one connection, and the load was what it was meant to be.
pub(crate) fn flawless(all: &[Seen], per_second: f64, seconds: f64) -> anyhow::Result<()> {
    let sum = |of: fn(&Seen) -> u64| all.iter().map(of).sum::<u64>();
    let (asked, failed) = (sum(|seen| seen.asked), sum(|seen| seen.failed));
    let failures: Vec<String> = all
        .iter()
        .flat_map(|seen| {
            seen.failures.iter().map(move |failure| format!("{:.3} {} {}", failure.at, seen.pod, failure.problem))
        })
        .collect();
    ensure!(failed == 0, "{failed} of {asked} requests failed:\n{}", failures.join("\n"));
    let again: Vec<&str> = all.iter().filter(|seen| seen.connections != 1).map(|seen| seen.pod.as_str()).collect();
    ensure!(again.is_empty(), "these had to connect again: {again:?}");
    // A machine that others use may take longer to start the pods; but not much.
    #[expect(clippy::cast_precision_loss, reason = "thousands")]
    let made = asked as f64 / seconds;
    ensure!(made > per_second * 0.8, "only {made:.0} requests/s of {per_second:.0}");
    Ok(())
}

/// One line about all.
pub(crate) fn summary(all: &[Seen]) -> String {
    let most = |of: fn(&Seen) -> f64| all.iter().map(of).fold(0.0, f64::max);
    let least = all.iter().filter_map(|seen| seen.least_life).fold(f64::INFINITY, f64::min);
    let tokens: std::collections::BTreeSet<&str> =
        all.iter().flat_map(|seen| seen.tokens.iter().map(|token| token.token.as_str())).collect();
    format!(
        "{} requests of {} pods, {} tokens; the worst pod's p99 {:.1} ms, the longest {:.1} ms; least life {least:.1} s",
        all.iter().map(|seen| seen.asked).sum::<u64>(),
        all.len(),
        tokens.len(),
        most(|seen| seen.p99) * 1000.0,
        most(|seen| seen.longest) * 1000.0,
    )
}

/// A line of the emulators' request log.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Asked {
    pub(crate) time: String,
    pub(crate) service: String,
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) query: serde_json::Map<String, serde_json::Value>,
    pub(crate) form: serde_json::Map<String, serde_json::Value>,
    pub(crate) status: u16,
    pub(crate) error_code: Option<String>,
}

impl Asked {
    /// Who wanted a token, and for what; nothing when it is about something else.
    pub(crate) fn key(&self) -> Option<String> {
        let text = |map: &serde_json::Map<String, serde_json::Value>, name: &str| {
            map.get(name).and_then(|value| value.as_str()).map(str::to_owned)
        };
        if !self.path.ends_with("/token") {
            return None;
        }
        match self.service.as_str() {
            "entra" => Some(format!("{} {}", text(&self.form, "client_id")?, text(&self.form, "scope")?)),
            "imds" => {
                let identity = ["msi_res_id", "mi_res_id", "client_id"].iter().find_map(|name| text(&self.query, name));
                Some(format!("{} {}", identity?, text(&self.query, "resource")?))
            }
            _ => None,
        }
    }
}

/// All that the emulators were asked so far.
pub(crate) fn asked(lab: &Lab) -> anyhow::Result<Vec<Asked>> {
    let path = find(lab.run_dir(), "requests.jsonl").context("the lab has no request log")?;
    // The last line may be half written.
    let text = files::read(&path)?;
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).with_context(|| format!("not a record: {line}"))).collect()
}

/// A file of this name, wherever it is in `directory`.
pub(crate) fn find(directory: &Path, name: &str) -> Option<std::path::PathBuf> {
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_name() == name {
                return Some(entry.path());
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(entry.path());
            }
        }
    }
    None
}

/// A pod of the namespace `demo` that is selected by `binding`.
pub(crate) fn pod(name: &str, binding: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: demo, labels: {{aadpodidbinding: {binding}}}}}\n\
         spec:\n  containers: [{{name: main, image: example.invalid/app}}]\n"
    )
}

/// An identity of the namespace `demo` with a binding of the same name; `spec` are lines of its spec.
pub(crate) fn identity(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: aadpodidentity.k8s.io/v1\nkind: AzureIdentity\nmetadata: {{name: {name}, namespace: demo}}\nspec:\n{spec}\
         ---\napiVersion: aadpodidentity.k8s.io/v1\nkind: AzureIdentityBinding\nmetadata: {{name: {name}, namespace: demo}}\n\
         spec: {{azureIdentity: {name}, selector: {name}}}\n"
    )
}
