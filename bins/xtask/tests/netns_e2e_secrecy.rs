//! Secrets never appear: a full run at the most talkative level (credentials of every source, wrong ones, every form of the
//! endpoint, outages), then everything that was written or can be asked for is searched for every secret and every token
//! that was used, as it is and in the encodings in which it could have been written.

#![allow(clippy::print_stdout, reason = "the figures of a run are worth reading")]

mod load;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use serde_json::Value;
use xtask::{clock, demo::credentials, files, lab::Lab, run::Cmd};

use load::{Load, identity, pod, token_path};

const TENANT: &str = "22222222-2222-4222-8222-222222222222";
const VAULT: &str = "secrecy.vault.azure.net";
const RESOURCE: &str = "https%3A%2F%2Fgraph.microsoft.com";
const PODS: [&str; 6] =
    ["managed", "by-secret", "by-certificate", "by-vault-secret", "by-vault-certificate", "federated"];

#[test]
fn no_secret_and_no_token_is_ever_written() -> anyhow::Result<()> {
    let mut secrets = Secrets::default();
    let password = credentials::password()?;
    let archive = credentials::pkcs12(&password)?;
    let client_secret = format!("s~{}+/=&", credentials::password()?);
    secrets.add("the client secret", &client_secret);
    secrets.add("the archive's password", &password);
    secrets.bytes("the archive", &archive);
    let wrong = Wrong::new(&mut secrets)?;
    let lab = Lab::up(None, |directory| fill(directory, &client_secret, &password, &archive, &wrong))?;
    let looked =
        used(&lab, &mut secrets).and_then(|()| searched(&lab, &secrets)).and_then(|()| crashed(&lab, &secrets));
    looked.with_context(|| lab.log_tail())?;
    lab.down()
}

/// Credentials that do not work: none of them belongs into what is said about that.
struct Wrong {
    of_pem: String,
    password: String,
    one: String,
    other: String,
    of_manifest: String,
}

impl Wrong {
    fn new(secrets: &mut Secrets) -> anyhow::Result<Self> {
        let mut one = |name: &str| -> anyhow::Result<String> {
            let text = format!("w~{}", credentials::password()?);
            secrets.add(name, &text);
            Ok(text)
        };
        Ok(Self {
            of_pem: one("what stands in a wrong PEM file")?,
            password: one("the wrong password of an archive")?,
            one: one("the value of one key of several")?,
            other: one("the value of another")?,
            of_manifest: one("a value that is no base64")?,
        })
    }
}

/// Pods whose identities cannot work.
const BROKEN: [&str; 4] = ["wrong-pem", "wrong-password", "no-key", "no-reader"];

fn fill(directory: &Path, secret: &str, password: &str, archive: &[u8], wrong: &Wrong) -> anyhow::Result<()> {
    let spec = |kind: u8, client: &str, place: &str| {
        format!(
            "  type: {kind}\n  tenantID: {TENANT}\n  clientID: bbbbbbbb-0000-4000-8000-0000000000{client}\n  {place}\n"
        )
    };
    let vault = |what: &str| format!("keyVault: {{vaultURL: 'https://{VAULT}/', {what}, identityRef: managed}}");
    let managed = "  type: 0\n  clientID: aaaaaaaa-0000-4000-8000-0000000000c0\n  resourceID: /subscriptions/\
                   11111111-1111-4111-8111-111111111111/resourceGroups/g/providers/Microsoft.ManagedIdentity/\
                   userAssignedIdentities/managed\n";
    let mut documents = vec![
        credentials::secret("by-secret", &[("clientSecret", secret.as_bytes())]),
        credentials::secret("by-certificate", &[("certificate", archive), ("password", password.as_bytes())]),
        identity("managed", managed),
        identity("by-secret", &spec(1, "c1", "clientPassword: {name: by-secret, namespace: demo}")),
        identity("by-certificate", &spec(2, "c2", "clientPassword: {name: by-certificate, namespace: demo}")),
        identity("by-vault-secret", &spec(1, "c3", &vault("secretName: password"))),
        identity("by-vault-certificate", &spec(2, "c4", &vault("certificateName: pair"))),
        identity("federated", &spec(3, "c5", "federated: {subject: Broker}")),
    ];
    documents.extend(PODS.map(|name| pod(name, name)));
    // What cannot work, with credentials in it all the same.
    let broken = |name: &str, kind: u8, place: &str| {
        [identity(name, &spec(kind, "c6", place)), pod(name, name)].into_iter().collect::<Vec<_>>()
    };
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", wrong.of_pem);
    documents.extend([
        credentials::secret("wrong-pem", &[("certificate", pem.as_bytes())]),
        credentials::secret("wrong-password", &[("certificate", archive), ("password", wrong.password.as_bytes())]),
        credentials::secret("no-key", &[("one", wrong.one.as_bytes()), ("other", wrong.other.as_bytes())]),
    ]);
    for (name, kind) in [("wrong-pem", 2), ("wrong-password", 2), ("no-key", 1)] {
        documents.extend(broken(name, kind, &format!("clientPassword: {{name: {name}, namespace: demo}}")));
    }
    documents.extend(broken(
        "no-reader",
        1,
        &vault("secretName: nothing").replace("identityRef: managed", "identityRef: nobody"),
    ));
    let malformed = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: malformed, namespace: demo}}\ndata: {{clientSecret: '{}'}}\n",
        wrong.of_manifest
    );
    files::replace(&directory.join("malformed.yaml"), &malformed)?;
    files::replace(&directory.join("objects.yaml"), &documents.join("---\n"))?;
    // Also what is usually kept quiet whatever the level. The journal is beside the manifests, in what is searched.
    let level = "'trace,kube=trace,hyper_util=trace'";
    let journal = directory.with_file_name("journal");
    files::replace(
        &directory.join("lab.yaml"),
        &format!(
            "entra: {{tokenLifetimeSeconds: 10}}\nimds: {{tokenLifetimeSeconds: 10}}\n\
             nodeArguments: [--log-level, {level}, --audit-journal, '{}', --audit-log, always]\n\
             controllerArguments: [--log-level, {level}]\n",
            journal.display()
        ),
    )
}

/// What must not be found: by name, the texts that would give it away.
#[derive(Default)]
struct Secrets(BTreeMap<String, Vec<String>>);

impl Secrets {
    fn add(&mut self, name: &str, text: &str) {
        self.bytes(name, text.as_bytes());
        let encoded: String = text
            .bytes()
            .map(
                |byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") },
            )
            .collect();
        let escaped = Value::from(text).to_string();
        let forms = self.0.entry(name.to_owned()).or_default();
        forms.extend([text.to_owned(), encoded, escaped.trim_matches('"').to_owned()]);
    }

    /// Encoded on its own or as a part of something longer, at any of the three places of base64.
    fn bytes(&mut self, name: &str, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(96)];
        let forms = self.0.entry(name.to_owned()).or_default();
        for skip in 0..3_usize.min(bytes.len()) {
            let whole = &bytes[skip..skip + (bytes.len() - skip) / 3 * 3];
            if whole.len() >= 9 {
                forms.extend([STANDARD_NO_PAD.encode(whole), URL_SAFE_NO_PAD.encode(whole)]);
            }
        }
        forms.push(
            bytes
                .iter()
                .flat_map(|byte| [byte >> 4, byte & 15])
                .filter_map(|digit| char::from_digit(digit.into(), 16))
                .collect(),
        );
    }

    /// A token, and its parts that are nobody else's: half a token in a log is a leak as well.
    fn token(&mut self, name: &str, token: &str) {
        let parts: Vec<&str> = token.split('.').collect();
        let forms = self.0.entry(name.to_owned()).or_default();
        forms.push(token.to_owned());
        forms.extend(parts.iter().skip(1).filter(|part| part.len() >= 40).flat_map(|part| {
            // The first bytes of a payload are the same in many tokens.
            [
                part[part.len() / 2..].chars().take(32).collect(),
                part.chars().rev().take(32).collect::<Vec<_>>().into_iter().rev().collect::<String>(),
            ]
        }));
    }

    /// The names of those that are in `text`.
    fn found_in(&self, text: &str) -> Vec<&str> {
        let found = self.0.iter().filter(|(_, forms)| forms.iter().any(|form| text.contains(form.as_str())));
        found.map(|(name, _)| name.as_str()).collect()
    }
}

/// Everything is used once: every source, every form, refreshed, rotated, wrong, and with upstream away.
fn used(lab: &Lab, secrets: &mut Secrets) -> anyhow::Result<()> {
    for name in PODS {
        let pod = format!("demo/{name}");
        let answer = clock::wait_for(Duration::from_secs(20), || {
            let answer = lab.ask(&pod, &format!("resource={RESOURCE}"))?;
            Ok((answer.status == 200).then_some(answer))
        })?;
        let answer = answer.with_context(|| format!("{pod} gets no token"))?;
        secrets.token(&format!("the token of {name}"), &answer.field("access_token"));
    }
    let base = "http://169.254.169.254";
    let forms: [&[&str]; 3] = [
        &["-H", "X-IDENTITY-HEADER: x", &format!("{base}/msi/token?api-version=2019-08-01&resource={RESOURCE}")],
        &["-H", "Metadata: true", "-d", &format!("resource={RESOURCE}"), &format!("{base}/oauth2/token")],
        &["-H", "Metadata: true", &format!("{base}/metadata/identity/info?api-version=2018-02-01")],
    ];
    for form in forms {
        let answer = lab.curl("demo/by-secret", form)?;
        ensure!(answer.status < 500, "{form:?}: {answer:?}");
        let token = answer.field("access_token");
        if !token.is_empty() {
            secrets.token("a token in another form", &token);
        }
    }
    for name in BROKEN {
        let pod = format!("demo/{name}");
        let answer = clock::wait_for(Duration::from_secs(20), || {
            let answer = lab.ask(&pod, &format!("resource={RESOURCE}"))?;
            Ok((answer.status != 503 || answer.body.contains("nobody")).then_some(answer))
        })?;
        let answer = answer.with_context(|| format!("nothing is said to {pod}"))?;
        ensure!(answer.status >= 400, "{pod} gets {answer:?}");
        let told = secrets.found_in(&answer.body).join(", ");
        ensure!(told.is_empty(), "{pod} is told {told}");
    }
    let shown: Value = serde_json::from_str(&azure(lab, &["show"])?).context("`azure show` is no JSON")?;
    known(&shown, secrets);

    // Rotated, wrong, and away: whatever is said about it.
    let pods: Vec<String> = PODS.iter().map(|name| format!("demo/{name}")).collect();
    let load = Load::start(lab, &pods, 5.0, &token_path(RESOURCE))?;
    for (client, value) in [("c1", "wrong"), ("c1", "right")] {
        let value = format!("{value}~{}/+", credentials::password()?);
        let client = format!("bbbbbbbb-0000-4000-8000-0000000000{client}");
        azure(lab, &["pin", &client])?;
        if value.starts_with("right") {
            azure(lab, &["secret", "add", &client, &value])?;
        }
        secrets.add(&format!("the {} secret", value.split('~').next().unwrap_or_default()), &value);
        let objects = files::read(&lab.manifests().join("objects.yaml"))?;
        let rest = objects.split_once("---\n").context("one document")?.1;
        let secret = credentials::secret("by-secret", &[("clientSecret", value.as_bytes())]);
        lab.write("objects.yaml", &format!("{secret}---\n{rest}"))?;
        std::thread::sleep(Duration::from_secs(8));
    }
    lab.command(&["fault", "entra-down", "on", "imds-down", "on"]).run_quietly()?;
    std::thread::sleep(Duration::from_secs(12));
    lab.command(&["fault", "entra-down", "off", "imds-down", "off"]).run_quietly()?;
    std::thread::sleep(Duration::from_secs(5));
    for seen in load.stop()? {
        ensure!(seen.tokens.len() > 1, "{} was given {} tokens", seen.pod, seen.tokens.len());
        for (number, token) in seen.tokens.iter().enumerate() {
            secrets.token(&format!("token {number} of {}", seen.pod), &token.token);
        }
    }
    let projected = lab.run_dir().join("projected/token");
    secrets.token("the projected token", files::read(&projected)?.trim());
    Ok(())
}

/// The credentials that Azure knows, and the private keys in its vaults.
fn known(value: &Value, secrets: &mut Secrets) {
    match value {
        Value::Array(all) => all.iter().for_each(|one| known(one, secrets)),
        Value::Object(fields) => {
            for (name, value) in fields {
                match (name.as_str(), value) {
                    ("value", Value::String(text)) if !text.is_empty() => {
                        secrets.add("a secret that Azure knows", text);
                    }
                    ("key", Value::String(pem)) => {
                        let body: String = pem.lines().filter(|line| !line.starts_with("---")).collect();
                        let all = secrets.0.entry("a private key in a vault".to_owned()).or_default();
                        // The middle: the beginning says only that it is a key.
                        all.push(body.chars().skip(body.len() / 2).take(48).collect());
                    }
                    (_, value) => known(value, secrets),
                }
            }
        }
        _ => {}
    }
}

/// Looks everywhere.
fn searched(lab: &Lab, secrets: &Secrets) -> anyhow::Result<()> {
    ensure!(secrets.0.len() > 20, "only {} things to look for", secrets.0.len());
    // What holds them by its nature; there they must be found, or the search is blind.
    let holders = ["objects.yaml", "emulator.json", "azure.key", "azure.crt", "projected", "manifests"];
    let (mut looked, mut leaks, mut in_holders) = (0, Vec::new(), 0);
    for path in all_files(lab.scratch()) {
        let bytes = std::fs::read(&path).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let found = secrets.found_in(&text);
        let is_holder = path.iter().any(|part| holders.iter().any(|holder| *part == **holder));
        if is_holder {
            in_holders += found.len();
        } else {
            looked += bytes.len();
            leaks.extend(found.iter().map(|name| format!("{name} in {}", path.display())));
        }
    }
    ensure!(in_holders >= 2, "the search does not find what is there for sure");
    let journal = all_files(&lab.scratch().join("journal"));
    ensure!(
        journal.iter().any(|file| files::read(file).is_ok_and(|text| text.contains("issued"))),
        "no journal was searched"
    );
    let log = lab.log();
    for (what, marker) in
        [("the node's trace", "TRACE"), ("the audit", "issued"), ("a malformed manifest", "malformed.yaml")]
    {
        ensure!(log.contains(marker), "{what} is not in the log that was searched");
    }
    // Those of what the daemons are made of, at trace level: what comes in, what goes out, what is encrypted.
    let targets = targets(&log);
    println!("targets in the log: {}", targets.iter().cloned().collect::<Vec<_>>().join(", "));
    for library in ["identity_broker", "identity_core", "hyper_util"] {
        let is_there = targets.iter().any(|target| target.split("::").next() == Some(library));
        ensure!(is_there, "{library} says nothing in the log that was searched");
    }
    for (name, ports) in [("node", [8085, 9090]), ("controller", [8080, 8888])] {
        for port in ports {
            for path in ["metrics", "healthz", "readyz"] {
                let text = from_node(lab, &format!("http://127.0.0.1:{port}/{path}"))?;
                looked += text.len();
                leaks.extend(secrets.found_in(&text).iter().map(|secret| format!("{secret} in {name}'s /{path}")));
            }
        }
        // What `ps` shows to everybody.
        let process = process(lab, name)?;
        for file in ["cmdline", "environ", "comm"] {
            let bytes = std::fs::read(format!("/proc/{process}/{file}")).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            leaks.extend(secrets.found_in(&text).iter().map(|secret| format!("{secret} in {name}'s {file}")));
        }
    }
    println!("{} secrets and tokens were looked for in {} kB", secrets.0.len(), looked / 1000);
    ensure!(looked > 200_000, "only {looked} bytes were searched");
    ensure!(leaks.is_empty(), "{}", leaks.join("\n"));
    Ok(())
}

/// Where the lines of the log at debug and trace level are from.
fn targets(log: &str) -> BTreeSet<String> {
    let levels = ["TRACE", "DEBUG"];
    let of_line = |line: &str| {
        let rest = levels.iter().find_map(|level| line.split_once(level))?.1;
        // Spans come first; a target ends with a colon and has no blank.
        let target = rest.split_whitespace().map(|word| word.trim_end_matches(':')).find(|word| {
            let name = |part: &str| {
                !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit())
            };
            word.contains("::") && word.split("::").all(name)
        })?;
        Some(target.to_owned())
    };
    log.lines().filter_map(of_line).collect()
}

/// Ends both daemons as a fault in them would, at a moment when their memory is full of secrets: no core is
/// left. That one would be is shown by another process.
fn crashed(lab: &Lab, secrets: &Secrets) -> anyhow::Result<()> {
    let cores = CoreFiles::of_this_machine()?;
    println!("cores go to {}", cores.pattern);
    for name in ["node", "controller"] {
        let id = process(lab, name)?.to_string();
        let limits = files::read(&PathBuf::from(format!("/proc/{id}/limits")))?;
        let limit = limits.lines().find(|line| line.starts_with("Max core file size")).context("no limit of cores")?;
        ensure!(limit.split_whitespace().filter(|word| *word == "0").count() == 2, "{name}: {limit}");
        let directory = std::fs::read_link(format!("/proc/{id}/cwd")).context("no working directory")?;
        let before = cores.in_directory(&directory);
        // Where that is allowed: then what is left is that it cannot be dumped.
        let lifted = Cmd::new("prlimit").args(["--pid", &id, "--core=unlimited:unlimited"]).run_quietly().is_ok();
        println!("{name}: the limit of cores was {}", if lifted { "lifted" } else { "left at nothing" });
        Cmd::new("kill").args(["-ABRT", &id]).run_quietly()?;
        let gone = clock::wait_for(Duration::from_secs(20), || {
            let state = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            Ok((state.is_empty() || state.contains(") Z ")).then_some(()))
        })?;
        gone.with_context(|| format!("{name} lives on"))?;
        let after = cores.in_directory(&directory);
        ensure!(after == before, "{name} left a core: {after:?}");
    }
    // With the same limit, in a directory of its own.
    let directory = tempfile::tempdir()?;
    let lives = "ulimit -c unlimited && cd \"$1\" && exec sleep 60";
    #[expect(clippy::disallowed_methods, reason = "how it ended is wanted, not what it said")]
    let mut child = std::process::Command::new("sh").args(["-c", lives, "sh"]).arg(directory.path()).spawn()?;
    let id = child.id().to_string();
    let begun = clock::wait_for(Duration::from_secs(10), || {
        Ok(files::read(&PathBuf::from(format!("/proc/{id}/comm")))?.starts_with("sleep").then_some(()))
    });
    Cmd::new("kill").args(["-ABRT", &id]).run_quietly()?;
    let status = child.wait()?;
    begun?.context("no process to compare with")?;
    ensure!(status.core_dumped(), "no process leaves a core here, so nothing was shown: {status}");
    // What is left of the daemons is what they wrote.
    for path in all_files(lab.run_dir()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("core") || path.extension().is_some_and(|extension| extension == "log") {
            let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_default()).into_owned();
            let found = secrets.found_in(&text).join(", ");
            ensure!(found.is_empty(), "{found} in {} after the crash", path.display());
        }
    }
    Ok(())
}

/// Where the kernel would put cores.
struct CoreFiles {
    pattern: String,
}

impl CoreFiles {
    fn of_this_machine() -> anyhow::Result<Self> {
        Ok(Self { pattern: files::read(Path::new("/proc/sys/kernel/core_pattern"))?.trim().to_owned() })
    }

    /// What looks like one: in the working directory of who crashes, and where the pattern says.
    fn in_directory(&self, directory: &Path) -> BTreeSet<PathBuf> {
        let of_pattern = Path::new(&self.pattern).parent().filter(|parent| parent.is_absolute());
        let directories = [Some(directory), of_pattern];
        let entries =
            directories.into_iter().flatten().filter_map(|directory| std::fs::read_dir(directory).ok()).flatten();
        let files = entries.flatten().map(|entry| entry.path());
        files.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains("core"))).collect()
    }
}

fn all_files(directory: &Path) -> Vec<PathBuf> {
    let (mut files, mut open) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(entry.path()),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files
}

fn azure(lab: &Lab, words: &[&str]) -> anyhow::Result<String> {
    lab.command(&[&["azure"], words].concat()).text()
}

fn process(lab: &Lab, name: &str) -> anyhow::Result<u64> {
    let record: Value = serde_json::from_str(&files::read(&lab.run_dir().join("lab.json"))?).context("lab.json")?;
    let all = record["processes"].as_array().into_iter().flatten();
    let found = all
        .filter(|process| process["name"].as_str().is_some_and(|own| own.contains(name)))
        .find_map(|p| p["pid"].as_u64());
    found.with_context(|| format!("no {name} in lab.json"))
}

/// Asks something on the node's loopback.
fn from_node(lab: &Lab, url: &str) -> anyhow::Result<String> {
    let node = process(lab, "node")?.to_string();
    Cmd::new("nsenter").args(["-t", &node, "-n", "curl", "-sS", "--max-time", "10", url]).text()
}
