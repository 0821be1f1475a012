//! Drives `identity-lab`: one lab with both binaries, for the demo and for the end-to-end tests.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use anyhow::{Context, bail};

use crate::{
    application::{Application, Kind, Question, SdkAnswer},
    clock, files, jwt, paths,
    run::{Background, Cmd},
    setup::sdk::Sdks,
};

/// How long a lab may take to be ready: node, pods and both binaries; with an API server somewhat more.
const READY: Duration = Duration::from_mins(1);
const READY_KUBE: Duration = Duration::from_mins(3);

/// A lab that is up. Taken down when dropped, if not before.
#[derive(Debug)]
pub struct Lab {
    process: Background,
    log: PathBuf,
    manifests: PathBuf,
    run_dir: PathBuf,
    directory: tempfile::TempDir,
    before: Traces,
    namespaces: BTreeSet<String>,
}

impl Lab {
    /// Starts a lab over manifests that `fill` writes into an empty directory.
    ///
    /// # Errors
    /// When it is not ready in time, with the end of its log.
    pub fn up(kube_assets: Option<&Path>, fill: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<Self> {
        let directory =
            tempfile::Builder::new().prefix("entra-pod-identity-").tempdir().context("no temporary directory")?;
        let manifests = directory.path().join("manifests");
        std::fs::create_dir(&manifests).context("cannot make the directory for manifests")?;
        fill(&manifests)?;
        let before = Traces::now()?;
        let log = directory.path().join("lab.log");
        let run_dir = directory.path().join("lab");
        let mut command = lab_command(&run_dir).args(["up", "--hold", "--manifests"]).arg(&manifests);
        if let Some(assets) = kube_assets {
            command = command
                .arg("--kube")
                .arg("--deploy")
                .arg(paths::root().join("deploy"))
                .env("KUBEBUILDER_ASSETS", assets);
        }
        let mut lab = Self {
            process: command.background(&log)?,
            log,
            manifests,
            run_dir,
            directory,
            before,
            namespaces: BTreeSet::new(),
        };
        let limit = if kube_assets.is_some() { READY_KUBE } else { READY };
        let ready = clock::wait_for(limit, || {
            if let Some(status) = lab.process.ended()? {
                bail!("the lab ended ({status}) before it was ready:\n{}", lab.log_tail());
            }
            Ok(lab.command(&["status"]).succeeds().then_some(()))
        })?;
        if ready.is_none() {
            bail!("the lab was not ready after {} s:\n{}", limit.as_secs(), lab.log_tail());
        }
        lab.namespaces = network_namespaces_of(lab.process.id());
        Ok(lab)
    }

    /// The directory of manifests that the lab watches.
    pub fn manifests(&self) -> &Path {
        &self.manifests
    }

    /// A directory for what a test needs to keep while the lab is up.
    pub fn scratch(&self) -> &Path {
        self.directory.path()
    }

    /// The directory where the lab keeps its state.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Writes a manifest, whole.
    ///
    /// # Errors
    /// Naming the file.
    pub fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        files::replace(&self.manifests.join(name), text)
    }

    /// The administrator's kubeconfig of a lab with an API server.
    ///
    /// # Errors
    /// When there is none.
    pub fn kubeconfig(&self) -> anyhow::Result<PathBuf> {
        find(&self.run_dir, "kubeconfig").context("the lab has no kubeconfig: was it started with --kube?")
    }

    /// A command of `identity-lab` about this lab.
    pub fn command(&self, arguments: &[&str]) -> Cmd {
        lab_command(&self.run_dir).args(arguments)
    }

    /// A command inside a pod. Variables that would lead an Azure SDK elsewhere, a proxy's among them, are removed.
    pub fn inside(&self, pod: &str, command: &[impl AsRef<std::ffi::OsStr>]) -> Cmd {
        let mut inside = self.command(&["exec", pod, "--"]).args(command);
        for name in paths::variable_names() {
            let azure = ["AZURE_", "IDENTITY_", "MSI_", "IMDS_"].iter().any(|prefix| name.starts_with(prefix));
            if azure || name.to_ascii_lowercase().ends_with("_proxy") {
                inside = inside.env_remove(&name);
            }
        }
        inside
    }

    /// Asks the metadata endpoint for a token from inside a pod, with curl.
    ///
    /// # Errors
    /// When there was no HTTP answer at all.
    pub fn ask(&self, pod: &str, query: &str) -> anyhow::Result<Answer> {
        let url = format!("http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&{query}");
        self.curl(pod, &["-H", "Metadata: true", &url])
    }

    /// Runs curl inside a pod, with a limit of 30 s.
    ///
    /// # Errors
    /// When there was no HTTP answer.
    pub fn curl(&self, pod: &str, arguments: &[&str]) -> anyhow::Result<Answer> {
        let mut words = vec!["curl", "-sS", "--max-time", "30", "-w", "\n%{http_code}"];
        words.extend(arguments);
        Answer::read(&self.inside(pod, &words).output()?)
    }

    /// Starts the Python or the Node SDK inside a pod, ready to be asked.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn sdk(
        &self,
        sdks: &Sdks,
        language: Language,
        pod: &str,
        kind: &str,
        resource: &str,
    ) -> anyhow::Result<Conversation> {
        let (program, client) = match language {
            Language::Python => (&sdks.python, &sdks.python_client),
            Language::Node => (&sdks.node, &sdks.node_client),
        };
        let words = [program.as_os_str(), client.as_os_str(), "azure-identity".as_ref()];
        let kind = if kind == "default" { Kind::Default } else { Kind::Managed };
        let application = Application::start(self.inside(pod, &words), None)?;
        Ok(Conversation { application, question: Question { kind, resource: resource.to_owned(), id: None } })
    }

    /// Waits until a connection from inside a pod to the metadata endpoint is established: its request has been sent.
    ///
    /// # Errors
    /// When there is none within 10 s.
    pub fn wait_for_connection(&self, pod: &str) -> anyhow::Result<()> {
        let there = clock::wait_for(Duration::from_secs(10), || {
            let text = self.inside(pod, &["ss", "-Htn", "state", "established", "dst", "169.254.169.254"]).text()?;
            Ok((!text.trim().is_empty()).then_some(()))
        })?;
        there.with_context(|| format!("no connection from {pod} to the metadata endpoint"))
    }

    /// Lets one of the lab's processes stand still until what is returned is dropped.
    ///
    /// # Errors
    /// When the lab has no process of this name.
    pub fn still(&self, name: &str) -> anyhow::Result<Still> {
        let record: serde_json::Value =
            serde_json::from_str(&files::read(&self.run_dir.join("lab.json"))?).context("lab.json is no JSON")?;
        let process = record["processes"].as_array().into_iter().flatten().find(|process| process["name"] == name);
        let id =
            process.and_then(|process| process["pid"].as_u64()).with_context(|| format!("no {name} in lab.json"))?;
        Cmd::new("kill").args(["-STOP", &id.to_string()]).run_quietly()?;
        Ok(Still(id.to_string()))
    }

    /// What the lab and both binaries have written so far.
    pub fn log(&self) -> String {
        let mut text = String::new();
        collect_logs(&self.log, &mut text);
        collect_logs(&self.run_dir, &mut text);
        text
    }

    /// Waits until a file of the lab's state, or its log, contains `what`.
    ///
    /// # Errors
    /// When `limit` passes first, with the end of the log.
    pub fn wait_for_log(&self, what: &str, limit: Duration) -> anyhow::Result<String> {
        let found =
            clock::wait_for(limit, || Ok(self.log().lines().find(|line| line.contains(what)).map(str::to_owned)))?;
        found.with_context(|| format!("no log line with `{what}` after {} s:\n{}", limit.as_secs(), self.log_tail()))
    }

    /// The last lines of the logs.
    pub fn log_tail(&self) -> String {
        let text = self.log();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Takes the lab down and makes sure that nothing is left: no process, no network namespace, no rule on the host.
    ///
    /// # Errors
    /// Naming what is left.
    pub fn down(mut self) -> anyhow::Result<()> {
        let inside = network_namespaces_of(self.process.id());
        self.namespaces.extend(inside);
        self.command(&["down"]).run_quietly()?;
        let status = self.process.wait(Duration::from_secs(30))?;
        if !status.success() {
            bail!("the lab ended with {status}:\n{}", self.log_tail());
        }
        let marker = self.directory.path().display().to_string();
        // A process that was told to end may take a moment to be gone.
        let mut left = Vec::new();
        clock::wait_for(Duration::from_secs(5), || {
            left = self.before.left(&marker, &self.namespaces)?;
            Ok(left.is_empty().then_some(()))
        })?;
        if !left.is_empty() {
            bail!("the lab left behind:\n{}", left.join("\n"));
        }
        Ok(())
    }
}

/// A process that stands still; it goes on when this is dropped.
#[derive(Debug)]
pub struct Still(String);

impl Drop for Still {
    fn drop(&mut self) {
        let _ = Cmd::new("kill").args(["-CONT", &self.0]).run_quietly();
    }
}

fn lab_command(run_dir: &Path) -> Cmd {
    Cmd::new(paths::binary("identity-lab")).env("IDENTITY_LAB_DIR", run_dir)
}

fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    if directory.join(name).is_file() {
        return Some(directory.join(name));
    }
    std::fs::read_dir(directory)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .find_map(|path| find(&path, name))
}

fn collect_logs(path: &Path, into: &mut String) {
    if path.is_dir() {
        let mut entries: Vec<PathBuf> =
            std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        entries.sort();
        for entry in entries {
            if entry.is_dir() || entry.extension().is_some_and(|extension| extension == "log") {
                collect_logs(&entry, into);
            }
        }
    } else if let Ok(bytes) = std::fs::read(path) {
        into.push_str(&String::from_utf8_lossy(&bytes));
    }
}

/// Which SDK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// azure-identity.
    Python,
    /// @azure/identity.
    Node,
}

/// An application in a pod that asks an Azure SDK the same question again and again.
#[derive(Debug)]
pub struct Conversation {
    application: Application,
    question: Question,
}

/// Loading an SDK on a busy machine, and the longest that any retries.
const SDK: Duration = Duration::from_mins(2);

impl Conversation {
    /// Lets the SDK get a token with a new credential.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn ask(&mut self) -> anyhow::Result<SdkAnswer> {
        self.send()?;
        self.receive()
    }

    /// Tells the SDK to get a token, without waiting for it.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn send(&mut self) -> anyhow::Result<()> {
        self.application.send(&self.question)
    }

    /// Tells the SDK to get a token for another resource than the one it was started with.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn send_for(&mut self, resource: &str) -> anyhow::Result<()> {
        self.application.send(&Question { resource: resource.to_owned(), ..self.question.clone() })
    }

    /// What it got.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn receive(&mut self) -> anyhow::Result<SdkAnswer> {
        self.application.receive(SDK)
    }
}

/// An HTTP answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Body.
    pub body: String,
}

impl Answer {
    fn read(output: &Output) -> anyhow::Result<Self> {
        let text = String::from_utf8_lossy(&output.stdout);
        let (body, status) = text.rsplit_once('\n').unwrap_or(("", &text));
        let status = status.trim().parse().unwrap_or(0);
        if status == 0 {
            bail!("no HTTP answer: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(Self { status, body: body.to_owned() })
    }

    /// The body as JSON, `null` when it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    /// A text field of the body.
    pub fn field(&self, name: &str) -> String {
        self.json()[name].as_str().unwrap_or_default().to_owned()
    }

    /// The claims of the token in it.
    ///
    /// # Errors
    /// When there is none.
    pub fn claims(&self) -> anyhow::Result<jwt::Claims> {
        jwt::claims(&self.field("access_token")).with_context(|| format!("{} {}", self.status, self.body))
    }
}

/// What a lab could leave on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Traces {
    rules: String,
    named_namespaces: BTreeSet<String>,
}

impl Traces {
    fn now() -> anyhow::Result<Self> {
        let names = Cmd::new("ip").args(["netns", "list"]).text().unwrap_or_default();
        Ok(Self {
            // Without root this is an error text both times: then there are no rules of ours on the host either.
            rules: host_rules()?,
            named_namespaces: names
                .lines()
                .filter_map(|line| line.split_whitespace().next())
                .map(str::to_owned)
                .collect(),
        })
    }

    fn left(&self, marker: &str, namespaces: &BTreeSet<String>) -> anyhow::Result<Vec<String>> {
        let now = Self::now()?;
        let mut left = Vec::new();
        if now.rules != self.rules {
            left.push(format!("rules on the host: before\n{}\nafter\n{}", self.rules, now.rules));
        }
        for (process, namespace) in processes() {
            let command = std::fs::read(process.join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            if command.contains(marker) || namespaces.contains(&namespace) {
                left.push(format!("process {} in {namespace}: {command}", process.display()));
            }
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        left.extend(mounts.lines().filter(|line| line.contains(marker)).map(|line| format!("mount {line}")));
        for name in now.named_namespaces.difference(&self.named_namespaces) {
            // Others may make namespaces at the same time; ours are known by their number.
            if let Ok(link) = std::fs::metadata(Path::new("/run/netns").join(name)) {
                let number = std::os::unix::fs::MetadataExt::ino(&link);
                if namespaces.contains(&format!("net:[{number}]")) {
                    left.push(format!("network namespace {name}"));
                }
            }
        }
        Ok(left)
    }
}

fn host_rules() -> anyhow::Result<String> {
    let output = Cmd::new("nft").args(["-s", "list", "ruleset"]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Every process with its network namespace.
fn processes() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let is_process = entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit());
        if is_process && let Ok(namespace) = std::fs::read_link(entry.path().join("ns/net")) {
            found.push((entry.path(), namespace.to_string_lossy().into_owned()));
        }
    }
    found
}

/// Network namespaces of a process's descendants, other than this program's own.
fn network_namespaces_of(ancestor: u32) -> BTreeSet<String> {
    let own = std::fs::read_link("/proc/self/ns/net").unwrap_or_default().to_string_lossy().into_owned();
    let parent = |process: &Path| -> Option<u32> {
        let stat = std::fs::read_to_string(process.join("stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let all = processes();
    let mut family = BTreeSet::from([ancestor]);
    loop {
        let size = family.len();
        for (process, _) in &all {
            if let (Some(parent), Some(id)) =
                (parent(process), process.file_name().and_then(|name| name.to_string_lossy().parse().ok()))
                && family.contains(&parent)
            {
                family.insert(id);
            }
        }
        if family.len() == size {
            break;
        }
    }
    all.iter()
        .filter(|(process, namespace)| {
            *namespace != own
                && process
                    .file_name()
                    .and_then(|name| name.to_string_lossy().parse().ok())
                    .is_some_and(|id: u32| family.contains(&id))
        })
        .map(|(_, namespace)| namespace.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_among_all_processes() {
        let own = format!("/proc/{}", std::process::id());
        assert!(processes().iter().any(|(path, _)| path == Path::new(&own)));
    }
}
