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

const CLIENT: &str = "22222222-2222-2222-2222-222222222222";
const TENANT: &str = "11111111-1111-1111-1111-111111111111";

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

/// A client-credentials request of [`CLIENT`] from a pod; the answer's body and status.
fn entra(lab: &Lab, proof: &[&str]) -> String {
    let ca = lab.root().join("ca.crt").display().to_string();
    let url = format!("https://login.microsoftonline.com/{TENANT}/oauth2/v2.0/token");
    let client = format!("client_id={CLIENT}");
    let mut arguments = vec!["--cacert", &ca, "-d", &client, "-d", "grant_type=client_credentials"];
    arguments.extend(["-d", "scope=https://vault.azure.net/.default"]);
    for field in proof {
        arguments.extend(["--data-urlencode", field]);
    }
    arguments.push(&url);
    lab.curl("team/a", &arguments)
}

fn body(answer: &str) -> serde_json::Value {
    serde_json::from_str(answer.rsplit_once('\n').unwrap().0).unwrap_or_else(|error| panic!("{error}: {answer}"))
}

fn claims(token: &str) -> serde_json::Value {
    use base64::Engine as _;
    let payload = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

#[test]
fn azure_is_what_the_manifests_need_and_changes_on_demand() {
    let lab = Lab::new();
    let done = |arguments: &[&str]| {
        let output = lab.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        text(&output)
    };
    lab.put("lab.yaml", "projectedToken: {lifetimeSeconds: 5}\n");
    lab.put("pods.yaml", &pod("a", ""));
    let identity = |name: &str, spec: &str| {
        format!("kind: AzureIdentity\nmetadata: {{name: {name}, namespace: team}}\nspec: {{{spec}}}\n---\n")
    };
    let application = format!("clientID: {CLIENT}, tenantID: {TENANT}");
    let vault = |host: &str| {
        format!("{application}, keyVault: {{vaultURL: 'https://{host}', secretName: s, identityRef: reader}}")
    };
    lab.put(
        "identities.yaml",
        &(identity("reader", &format!("type: 0, resourceID: {RESOURCE}"))
            + &identity("secret", &format!("type: 1, {}", vault("demo.vault.azure.net")))
            + &identity("federated", &format!("type: 3, {application}"))),
    );
    lab.up();

    // The reader's token opens the vault, and what is in it is the application's secret.
    let ca = lab.root().join("ca.crt").display().to_string();
    let token =
        body(&lab.curl("team/a", &["-H", "Metadata: true", TOKEN]))["access_token"].as_str().unwrap().to_owned();
    let bearer = format!("Authorization: Bearer {token}");
    let read = |host: &str| {
        lab.curl("team/a", &["--cacert", &ca, "-H", &bearer, &format!("https://{host}/secrets/s?api-version=7.4")])
    };
    let challenge = lab.curl("team/a", &["--cacert", &ca, "https://demo.vault.azure.net/secrets/s?api-version=7.4"]);
    assert!(challenge.contains("AKV10000") && challenge.ends_with("401"), "{challenge}");
    let secret = body(&read("demo.vault.azure.net"))["value"].as_str().unwrap().to_owned();
    let answer = entra(&lab, &[&format!("client_secret={secret}")]);
    assert!(answer.ends_with("200"), "{answer}");

    // A rotation: the new secret takes its time, a new version holds it, the old one goes.
    done(&["azure", "secret", "add", CLIENT, "fresh", "--propagation", "1h"]);
    assert!(entra(&lab, &["client_secret=fresh"]).contains("AADSTS7000215"));
    done(&["azure", "secret", "remove", CLIENT, "fresh"]);
    done(&["azure", "secret", "add", CLIENT, "fresh"]);
    let version = done(&["azure", "vault", "secret", "demo.vault.azure.net", "s", "fresh"]);
    let bundle = body(&read("demo.vault.azure.net"));
    assert!(bundle["value"] == "fresh" && bundle["id"].as_str().unwrap().ends_with(version.trim()), "{bundle}");
    assert!(entra(&lab, &["client_secret=fresh"]).ends_with("200"));
    done(&["azure", "secret", "expire", CLIENT, &secret]);
    assert!(entra(&lab, &[&format!("client_secret={secret}")]).contains("AADSTS7000222"));
    done(&["azure", "vault", "disable", "demo.vault.azure.net", "s"]);
    assert!(read("demo.vault.azure.net").contains("SecretDisabled"));
    let refused = lab.run(&["azure", "secret", "remove", CLIENT, "never"]);
    assert!(!refused.status.success() && text(&refused).contains("no such client secret"), "{}", text(&refused));

    // A vault that a manifest names later has an address at once, a role of its own, and can be taken away.
    lab.put("later.yaml", &identity("later", &format!("type: 1, {}", vault("later.vault.azure.net"))));
    eventually("the vault to be seeded", || read("later.vault.azure.net").ends_with("200"));
    done(&["fault", "vault-429", "on"]);
    assert!(read("later.vault.azure.net").ends_with("429"));
    done(&["fault", "vault-429", "off"]);
    done(&["azure", "vault", "revoke", "later.vault.azure.net", RESOURCE]);
    assert!(read("later.vault.azure.net").contains("ForbiddenByRbac"));
    let counts: serde_json::Value = serde_json::from_str(&done(&["azure", "requests", "--json", "--reset"])).unwrap();
    let key = format!("{CLIENT} https://vault.azure.net");
    let count = counts.as_array().unwrap().iter().find(|count| count["key"] == *key).unwrap();
    assert_eq!((&count["requests"], &count["granted"]), (&4.into(), &2.into()));

    // The node's projected token is an assertion, and is replaced in time.
    let file = lab.root().join("projected/token");
    let projected = || fs::read_to_string(&file).unwrap();
    let assert = |token: &str| {
        let kind = "client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
        entra(&lab, &[kind, &format!("client_assertion={token}")])
    };
    let first = projected();
    assert_eq!(claims(&first)["sub"], "system:serviceaccount:entra-pod-identity:entra-pod-identity-node");
    // The secret's own application is the same, which was taken over: its federated credential stays.
    assert!(assert(&first).ends_with("200"), "{}", assert(&first));
    eventually("another token", || projected() != first);
    assert!(assert(&projected()).ends_with("200"));
    let configuration = "https://oidc.identity-lab.internal/.well-known/openid-configuration";
    assert!(lab.curl("team/a", &["--cacert", &ca, configuration]).contains("jwks_uri"));

    let directory = lab.directory.path().join("credential");
    done(&["credential", directory.to_str().unwrap(), "--name", "app", "--password", "p"]);
    let certificate = directory.join("certificate.pem").display().to_string();
    done(&["azure", "certificate", "add", CLIENT, &certificate]);
    assert!(done(&["azure", "show"]).contains("BEGIN CERTIFICATE"));
    done(&["azure", "certificate", "remove", CLIENT, &certificate]);
    for name in ["key.pem", "bundle.pem", "credential.p12"] {
        assert!(directory.join(name).is_file(), "{name}");
    }
    assert!(text(&lab.run(&["clock"])).contains("up --clock"));
}

#[test]
fn programs_and_emulators_follow_the_clock_of_the_lab() {
    let lab = Lab::new();
    lab.put("a.yaml", &pod("a", ""));
    lab.put(
        "identity.yaml",
        &format!("kind: AzureIdentity\nmetadata: {{name: i}}\nspec: {{resourceID: {RESOURCE}}}\n"),
    );
    let manifests = lab.manifests();
    let up =
        ["up", "--no-binaries", "--clock", "2026-11-27T23:59:00-08:00", "--manifests", manifests.to_str().unwrap()];
    let output = lab.run(&up);
    assert!(output.status.success(), "{}", text(&output));
    let token = || {
        let body = body(&lab.curl("team/a", &["-H", "Metadata: true", &format!("{TOKEN}&bypass_cache=true")]));
        claims(body["access_token"].as_str().unwrap())["exp"].as_i64().unwrap() - 86_399
    };
    let about = |shown: i64, expected: &str| {
        let expected: jiff::Timestamp = expected.parse().unwrap();
        assert!((0..120).contains(&(shown - expected.as_second())), "{shown}, not {expected}");
    };
    about(token(), "2026-11-28T07:59:00Z");
    let shown = text(&lab.run(&["clock", "set", "2026-11-28T00:59:50-08:00"]));
    assert!(shown.starts_with("2026-11-28T08:59:5"), "{shown}");
    about(token(), "2026-11-28T08:59:50Z");

    // What the two binaries are started with, on two programs: the wall clock follows while they run, timers do not.
    let clock = identity_lab::node::clock::LabClock::of(&lab.root().join("clock"));
    let environment = clock.environment().unwrap();
    let script = "import time, subprocess, sys\nfirst, ticks = time.time(), time.monotonic()\n\
                  subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n\
                  print(int(first), time.time() - first > 1e8, abs(time.monotonic() - ticks) < 100)";
    let mut set = vec!["env", "-u", "LD_PRELOAD", env!("CARGO_BIN_EXE_identity-lab"), "clock", "set"];
    set.push("2036-01-01T00:00:00Z");
    #[expect(clippy::disallowed_methods, reason = "a program that follows the clock")]
    let output = Command::new("python3")
        .args(["-c", script])
        .args(&set)
        .env("IDENTITY_LAB_DIR", lab.root())
        .envs(environment.clone())
        .output()
        .unwrap();
    let shown = text(&output);
    let (first, rest) = shown.split_once(' ').unwrap_or_else(|| panic!("{shown}"));
    about(first.parse().unwrap(), "2026-11-28T08:59:50Z");
    assert_eq!(rest, "True True\n");
    about(token(), "2036-01-01T00:00:00Z");

    // A Rust program: this one, whose `clock` adds the distance to what it takes for the machine's time.
    let far = jiff::Timestamp::from_second(token()).unwrap();
    let doubled = lab.command(&["clock"]).envs(environment).output().unwrap();
    let shown = text(&doubled);
    let shown: jiff::Timestamp =
        shown.split(' ').next().unwrap().parse().unwrap_or_else(|error| panic!("{error}: {shown}"));
    let distance = far.duration_since(identity_lab::node::clock::machine());
    assert!(
        shown.duration_since(far).as_secs().abs_diff(distance.as_secs()) < 60,
        "{shown} is not twice as far as {far}"
    );

    assert!(text(&lab.run(&["clock", "offset", "-90s"])).contains("1m 30s behind"), "{}", text(&lab.run(&["clock"])));
    assert!(text(&lab.run(&["clock", "off"])).contains("(as the machine's)"), "{}", text(&lab.run(&["clock"])));
    assert!(text(&lab.run(&["clock", "set", "Friday"])).contains("is no time such as"));
}
