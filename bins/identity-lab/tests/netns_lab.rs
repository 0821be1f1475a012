//! The lab itself, without the product's binaries: pods, emulators, `exec`, following manifests, leaving nothing behind.
//! Needs root, or user namespaces.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

const RESOURCE: &str = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/u";
const TOKEN: &str =
    "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net";

struct Lab {
    directory: tempfile::TempDir,
    held: Option<Child>,
}

impl Lab {
    fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("epi-lab-test-").tempdir().unwrap();
        fs::create_dir(directory.path().join("manifests")).unwrap();
        Self { directory, held: None }
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("lab")
    }

    fn put(&self, name: &str, text: &str) {
        // As an editor does it: whole, by renaming.
        let hidden = self.directory.path().join("new");
        fs::write(&hidden, text).unwrap();
        fs::rename(hidden, self.manifests().join(name)).unwrap();
    }

    fn manifests(&self) -> PathBuf {
        self.directory.path().join("manifests")
    }

    #[expect(clippy::disallowed_methods, reason = "the program under test")]
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_identity-lab"));
        command.args(arguments).env("IDENTITY_LAB_DIR", self.root());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn up(&self) {
        let manifests = self.manifests();
        let output = self.run(&["up", "--no-binaries", "--manifests", manifests.to_str().unwrap()]);
        assert!(output.status.success(), "{}", text(&output));
    }

    fn exec(&self, pod: &str, command: &[&str]) -> Output {
        self.run(&[&["exec", pod, "--"], command].concat())
    }

    fn curl(&self, pod: &str, arguments: &[&str]) -> String {
        let output = self.exec(
            pod,
            &[&["curl", "-sS", "--noproxy", "*", "--max-time", "10", "-w", "\n%{http_code}"], arguments].concat(),
        );
        text(&output)
    }

    fn record(&self) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.root().join("lab.json")).unwrap()).unwrap()
    }

    fn copy(&self, name: &str) -> String {
        fs::read_to_string(self.root().join("manifests").join(name)).unwrap_or_default()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.run(&["down"]);
        if let Some(held) = &mut self.held {
            let _ = held.kill();
            let _ = held.wait();
        }
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("timed out waiting for {what}");
}

fn pod(name: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: team, labels: {{aadpodidbinding: x}}}}\n{more}"
    )
}

/// What a lab may leave behind: namespaces, mounts, processes that speak of its directory.
fn traces(root: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let marker = root.display().to_string();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    found.extend(mounts.lines().filter(|line| line.contains(&marker)).map(|line| format!("mount {line}")));
    for entry in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let name = entry.file_name().into_string().unwrap();
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        let speaks = [command, environment].iter().any(|text| String::from_utf8_lossy(text).contains(&marker));
        if speaks && name.parse::<u32>().is_ok_and(|id| id != std::process::id()) {
            found.insert(format!("process {name}"));
        }
    }
    if root.exists() {
        found.insert(format!("directory {marker}"));
    }
    found
}

fn netns_left(record: &serde_json::Value) -> Vec<String> {
    let prefix = record["nodeNetns"].as_str().unwrap().strip_suffix("node").unwrap().to_owned();
    let names =
        fs::read_dir("/run/netns").into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with(&prefix)).collect()
}

#[test]
fn a_pod_reaches_azure_and_sees_its_own_files() {
    let lab = Lab::new();
    lab.put(
        "pods.yaml",
        &(pod("a", "spec: {serviceAccountName: worker}\n---\n") + &pod("host", "spec: {hostNetwork: true}\n")),
    );
    lab.put(
        "identity.yaml",
        &format!(
            "kind: AzureIdentity\nmetadata: {{name: i, namespace: team}}\nspec: {{type: 0, resourceID: {RESOURCE}}}\n"
        ),
    );
    lab.put("broken.yaml", "kind: [\n");
    lab.up();
    assert!(lab.run(&["status"]).status.success(), "{}", text(&lab.run(&["status"])));

    // Nothing redirects here, so the request is forwarded to the metadata service: what the product must catch.
    let answer = lab.curl("team/a", &["-H", "Metadata: true", TOKEN]);
    assert!(answer.contains("access_token") && answer.ends_with("200"), "{answer}");
    // Entra by its public name and the lab's authority.
    let ca = lab.root().join("ca.crt").display().to_string();
    let discovery = "https://login.microsoftonline.com/common/v2.0/.well-known/openid-configuration";
    let answer = lab.curl("team/a", &["--cacert", &ca, discovery]);
    assert!(answer.contains("token_endpoint") && answer.ends_with("200"), "{answer}");
    let untrusted = lab.curl("team/a", &[discovery]);
    assert!(untrusted.contains("certificate"), "the caller's own trust stays as it is: {untrusted}");

    // The pod's address is what the copy says, and its files are a pod's.
    let record = lab.record();
    let address = record["pods"].as_array().unwrap().iter().find(|pod| pod["name"] == "a").unwrap()["addresses"][0]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(lab.copy("pods.yaml").contains(&format!("\"podIP\":\"{address}\"")));
    assert_eq!(lab.copy("broken.yaml"), "kind: [\n");
    let shown = text(&lab.exec("team/a", &["ip", "-o", "addr"]));
    assert!(shown.contains(&address) && shown.contains("127.0.0.1"), "{shown}");
    let files = "cd /var/run/secrets/kubernetes.io/serviceaccount && cat namespace && cut -d. -f2 token && head -1 ca.crt && cat /etc/hosts";
    let shown = text(&lab.exec("team/a", &["sh", "-c", files]));
    assert!(
        shown.starts_with("team") && shown.contains("BEGIN CERTIFICATE") && shown.contains(&format!("{address} a")),
        "{shown}"
    );
    assert!(
        !Path::new("/var/run/secrets/kubernetes.io/serviceaccount/namespace").exists(),
        "the host's own files stay as they are"
    );
    // A host-network pod is on the node.
    assert!(text(&lab.exec("team/host", &["ip", "-o", "addr"])).contains("10.42.0.1/"));

    // Faults reach the emulators.
    assert!(lab.run(&["fault", "imds-500", "on"]).status.success());
    assert!(lab.curl("team/a", &["-H", "Metadata: true", TOKEN]).ends_with("500"));
    assert!(lab.run(&["fault", "imds-500", "off"]).status.success());
    assert!(
        text(&lab.run(&["fault", "no-such", "on"])).contains("imds-500"),
        "an unknown name is answered with the known ones"
    );
    assert!(text(&lab.run(&["fault", "api-down", "on"])).contains("--kube"));

    let again = lab.run(&["up", "--no-binaries"]);
    assert!(!again.status.success() && text(&again).contains("already running"), "{}", text(&again));
    assert!(lab.run(&["down"]).status.success());
    assert_eq!(traces(&lab.root()), BTreeSet::new());
    assert_eq!(netns_left(&record), Vec::<String>::new());
    assert!(lab.run(&["down"]).status.success(), "once more is no error");
}

#[test]
fn exec_is_the_callers_command_in_another_network() {
    let lab = Lab::new();
    let early = lab.exec("team/a", &["true"]);
    assert_eq!(early.status.code(), Some(125), "{}", text(&early));
    lab.put("a.yaml", &pod("a", ""));
    lab.up();
    let unknown = lab.exec("team/none", &["true"]);
    assert_eq!(unknown.status.code(), Some(125));
    assert!(text(&unknown).contains("team/a"), "{}", text(&unknown));
    assert_eq!(lab.exec("team/a", &["sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(lab.exec("team/a", &["no-such-program"]).status.code(), Some(127));
    assert_eq!(lab.exec("team/a", &["/etc/passwd"]).status.code(), Some(126));

    let here = lab.directory.path().canonicalize().unwrap();
    let mut child = lab
        .command(&[
            "exec",
            "team/a",
            "--",
            "sh",
            "-c",
            "pwd; id -u; echo $MINE; echo x$IDENTITY_ENDPOINT; cat; cat manifests/a.yaml",
        ])
        .current_dir(&here)
        .env("MINE", "kept")
        .env_remove("IDENTITY_ENDPOINT")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"through\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let expected = format!("{}\n{}\nkept\nx\nthrough\n{}", here.display(), nix::unistd::geteuid(), pod("a", ""));
    assert_eq!(text(&output), expected);
    let styled = lab.run(&["exec", "--style", "app-service", "team/a", "--", "sh", "-c", "echo $IDENTITY_ENDPOINT"]);
    assert!(text(&styled).starts_with("http://169.254.169.254/"));
}

#[test]
fn pods_come_and_go_while_the_lab_runs() {
    let lab = Lab::new();
    lab.put("first.yaml", &pod("first", ""));
    lab.up();
    lab.put("second.yaml", &pod("second", ""));
    // No waiting: a manifest that was just written is on its way.
    assert!(lab.exec("team/second", &["true"]).status.success());
    let uid = |name: &str| {
        lab.record()["pods"].as_array().unwrap().iter().find(|pod| pod["name"] == name).map(|pod| pod["uid"].clone())
    };
    let first = uid("first").unwrap();
    lab.put("first.yaml", &pod("first", "spec: {serviceAccountName: other}\n"));
    eventually("the change to be copied", || lab.copy("first.yaml").contains("other"));
    assert_eq!(uid("first").unwrap(), first, "a change makes no new pod");

    // An identity that is added is on the VM before the product can learn of it.
    lab.put(
        "identity.yaml",
        &format!("kind: AzureIdentity\nmetadata: {{name: i}}\nspec: {{resourceID: {RESOURCE}}}\n"),
    );
    eventually("the identity to be copied", || lab.copy("identity.yaml").contains("AzureIdentity"));
    let answer = lab.curl("team/first", &["-H", "Metadata: true", TOKEN]);
    assert!(answer.ends_with("200"), "{answer}");

    fs::remove_file(lab.manifests().join("second.yaml")).unwrap();
    eventually("the pod to be gone", || uid("second").is_none());
    assert!(!lab.root().join("manifests/second.yaml").exists());
    assert_eq!(lab.exec("team/second", &["true"]).status.code(), Some(125));
    // Deleted and made again is another pod.
    fs::remove_file(lab.manifests().join("first.yaml")).unwrap();
    lab.put("first.yaml", &pod("first", ""));
    eventually("another pod of that name", || uid("first").is_some_and(|uid| uid != first));
}

#[test]
fn a_killed_lab_is_cleaned_up() {
    let mut lab = Lab::new();
    lab.put("a.yaml", &pod("a", ""));
    let manifests = lab.manifests();
    let start = |lab: &Lab| {
        lab.command(&["up", "--hold", "--no-binaries", "--manifests", manifests.to_str().unwrap()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    lab.held = Some(start(&lab));
    eventually("the lab to be ready", || lab.run(&["status"]).status.success());
    let record = lab.record();
    let emulators = u32::try_from(record["processes"][0]["pid"].as_u64().unwrap()).unwrap();
    let held = lab.held.as_mut().unwrap();
    held.kill().unwrap();
    held.wait().unwrap();
    eventually("its processes to die with it", || identity_lab::process::started(emulators).is_none());
    assert_eq!(lab.exec("team/a", &["true"]).status.code(), Some(125));

    // Another one starts on what it left …
    lab.held = Some(start(&lab));
    eventually("the lab to be ready", || lab.run(&["status"]).status.success());
    // … and ends by a signal with nothing left.
    let held = lab.held.as_mut().unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(held.id()).unwrap()),
        nix::sys::signal::Signal::SIGINT,
    )
    .unwrap();
    assert!(held.wait().unwrap().success());
    assert_eq!(traces(&lab.root()), BTreeSet::new());
    assert_eq!(netns_left(&record), Vec::<String>::new());

    // Killed, and nobody starts another: `down` removes what is left.
    lab.held = Some(start(&lab));
    eventually("the lab to be ready", || lab.run(&["status"]).status.success());
    let held = lab.held.as_mut().unwrap();
    held.kill().unwrap();
    held.wait().unwrap();
    assert!(lab.run(&["down"]).status.success());
    assert_eq!(traces(&lab.root()), BTreeSet::new());
    assert_eq!(netns_left(&record), Vec::<String>::new());
}

#[test]
fn what_is_wrong_with_the_lab_itself_is_said() {
    let lab = Lab::new();
    let nowhere = lab.run(&["up", "--manifests", "/no/such/directory"]);
    assert!(!nowhere.status.success() && text(&nowhere).contains("/no/such/directory"), "{}", text(&nowhere));
    lab.put("lab.yaml", "imds: {latencyMs: 1}\nnonsense: true\n");
    let manifests = lab.manifests();
    let unknown = lab.run(&["up", "--no-binaries", "--manifests", manifests.to_str().unwrap()]);
    assert!(!unknown.status.success() && text(&unknown).contains("nonsense"), "{}", text(&unknown));
    assert_eq!(traces(&lab.root()), BTreeSet::new());
    fs::create_dir(lab.root()).unwrap();
    fs::write(lab.root().join("precious"), "").unwrap();
    let foreign = lab.run(&["up", "--no-binaries"]);
    assert!(!foreign.status.success() && text(&foreign).contains("not a lab's"), "{}", text(&foreign));
    assert!(lab.root().join("precious").exists());
}
