//! Secrets never appear: a full run at the most talkative level (credentials of every source, wrong ones, every form of the
//! endpoint, outages), then everything that was written or can be asked for is searched for every secret and every token
//! that was used, as it is and in the encodings in which it could have been written.

#![allow(clippy::print_stdout, reason = "the figures of a run are worth reading")]

mod load;

use std::{
    collections::BTreeMap,
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
    let lab = Lab::up(None, |directory| fill(directory, &client_secret, &password, &archive))?;
    used(&lab, &mut secrets).and_then(|()| searched(&lab, &secrets)).with_context(|| lab.log_tail())?;
    lab.down()
}

fn fill(directory: &Path, secret: &str, password: &str, archive: &[u8]) -> anyhow::Result<()> {
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
    files::replace(&directory.join("objects.yaml"), &documents.join("---\n"))?;
    // Also what is usually kept quiet whatever the level. The journal is beside the manifests, in what is searched.
    let level = "'trace,kube=trace,hyper_util=trace,h2=trace'";
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
    for (what, marker) in [("the node's trace", "TRACE"), ("the audit", "issued")] {
        ensure!(log.contains(marker), "{what} is not in the log that was searched");
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
