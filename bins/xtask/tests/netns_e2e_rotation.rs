//! Rotation is never noticed by an application: 50 pods ask for 500 tokens a second on kept connections through the real
//! redirect while the secret in the cluster, the certificate in the cluster, and secret and certificate in a Key Vault are
//! rotated twice, and once replaced by something that Entra does not know. Tokens live for seconds here, so that whatever is
//! wrong with a credential shows within seconds.

#![allow(clippy::print_stdout, reason = "the figures of a run are worth reading")]

mod load;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use xtask::{
    clock::{self, Stopwatch},
    demo::credentials,
    files,
    lab::Lab,
};

use load::{Load, asked, flawless, identity, pod, summary, token_path};

const TENANT: &str = "22222222-2222-4222-8222-222222222222";
const VAULT: &str = "rotation.vault.azure.net";
const PODS: usize = 50;
const PER_SECOND: f64 = 500.0;
/// Of a token, in seconds. It is refreshed at half of it.
const LIFE: u64 = 12;
/// What was got before has ended by then, whatever was done with the credential.
const A_LIFE: Duration = Duration::from_secs(LIFE + 3);
/// For so long Entra does not know what was just added, as the real one.
const PROPAGATION: &str = "2s";

/// Where a credential is, and what it is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Source {
    Secret,
    Certificate,
    VaultSecret,
    VaultCertificate,
}

const SOURCES: [Source; 4] = [Source::Secret, Source::Certificate, Source::VaultSecret, Source::VaultCertificate];

impl Source {
    const fn name(self) -> &'static str {
        match self {
            Self::Secret => "by-secret",
            Self::Certificate => "by-certificate",
            Self::VaultSecret => "by-vault-secret",
            Self::VaultCertificate => "by-vault-certificate",
        }
    }

    const fn client(self) -> &'static str {
        match self {
            Self::Secret => "bbbbbbbb-0000-4000-8000-0000000000a1",
            Self::Certificate => "bbbbbbbb-0000-4000-8000-0000000000a2",
            Self::VaultSecret => "bbbbbbbb-0000-4000-8000-0000000000a3",
            Self::VaultCertificate => "bbbbbbbb-0000-4000-8000-0000000000a4",
        }
    }

    const fn is_certificate(self) -> bool {
        matches!(self, Self::Certificate | Self::VaultCertificate)
    }

    /// What Entra says of a credential that it does not know.
    const fn refusal(self) -> &'static str {
        if self.is_certificate() { "700027" } else { "7000215" }
    }

    fn spec(self) -> String {
        let (kind, place) = match self {
            Self::Secret => (1, "clientPassword: {name: by-secret, namespace: demo}".to_owned()),
            Self::Certificate => (2, "clientPassword: {name: by-certificate, namespace: demo}".to_owned()),
            Self::VaultSecret => {
                (1, format!("keyVault: {{vaultURL: 'https://{VAULT}/', secretName: password, identityRef: reader}}"))
            }
            Self::VaultCertificate => {
                (2, format!("keyVault: {{vaultURL: 'https://{VAULT}/', certificateName: pair, identityRef: reader}}"))
            }
        };
        format!("  type: {kind}\n  tenantID: {TENANT}\n  clientID: {}\n  {place}\n", self.client())
    }
}

/// A credential that was made here.
enum Made {
    Secret(String),
    Pair(PathBuf),
}

#[test]
fn rotation_is_never_noticed() -> anyhow::Result<()> {
    let lab = Lab::up(None, fill)?;
    rotated(&lab).with_context(|| lab.log_tail())?;
    lab.down()
}

fn fill(directory: &Path) -> anyhow::Result<()> {
    let password = credentials::password()?;
    let secrets = [
        credentials::secret("by-secret", &[("clientSecret", credentials::password()?.as_bytes())]),
        credentials::secret(
            "by-certificate",
            &[("certificate", &credentials::pkcs12(&password)?), ("password", password.as_bytes())],
        ),
    ];
    let reader = "apiVersion: aadpodidentity.k8s.io/v1\nkind: AzureIdentity\nmetadata: {name: reader, namespace: demo}\nspec:\n  \
                  type: 0\n  clientID: aaaaaaaa-0000-4000-8000-0000000000a0\n  resourceID: /subscriptions/\
                  11111111-1111-4111-8111-111111111111/resourceGroups/g/providers/Microsoft.ManagedIdentity/\
                  userAssignedIdentities/reader\n"
        .to_owned();
    let identities = SOURCES.map(|source| identity(source.name(), &source.spec()));
    let pods = names().into_iter().zip(SOURCES.into_iter().cycle()).map(|(name, source)| pod(&name, source.name()));
    // One at a time: the lab's copy of a directory is of all its files.
    files::replace(&directory.join("by-secret.yaml"), &secrets[0])?;
    files::replace(&directory.join("by-certificate.yaml"), &secrets[1])?;
    files::replace(&directory.join("identities.yaml"), &format!("{reader}---\n{}", identities.join("---\n")))?;
    files::replace(&directory.join("pods.yaml"), &pods.collect::<Vec<_>>().join("---\n"))?;
    files::replace(
        &directory.join("lab.yaml"),
        &format!(
            "entra: {{tokenLifetimeSeconds: {LIFE}}}\nnodeArguments: [--vault-poll, 3s, --credential-propagation, 5s]\n\
             controllerArguments: [--credential-propagation, 5s]\n"
        ),
    )
}

fn names() -> Vec<String> {
    (0..PODS).map(|number| format!("pod-{number:02}")).collect()
}

fn rotated(lab: &Lab) -> anyhow::Result<()> {
    for source in SOURCES {
        azure(lab, &["pin", source.client()])?;
    }
    let pods: Vec<String> = names().iter().map(|name| format!("demo/{name}")).collect();
    #[expect(clippy::cast_precision_loss, reason = "fifty")]
    let per_pod = PER_SECOND / PODS as f64;
    // Every pod's first token: that is cold, and not what this is about.
    for pod in &pods[..SOURCES.len()] {
        let answer = lab.ask(pod, "resource=https%3A%2F%2Fgraph.microsoft.com")?;
        ensure!(answer.status == 200, "{pod}: {answer:?}");
    }
    let watch = Stopwatch::start();
    let load = Load::start(lab, &pods, per_pod, &token_path("https%3A%2F%2Fgraph.microsoft.com"))?;

    round(lab, 1)?;
    wrong(lab)?;
    round(lab, 2)?;

    let seconds = watch.elapsed().as_secs_f64();
    let all = load.stop()?;
    println!("{} in {seconds:.0} s", summary(&all));
    flawless(&all, PER_SECOND, seconds)?;
    for (seen, source) in all.iter().zip(SOURCES.into_iter().cycle()) {
        let of_others: Vec<_> =
            seen.tokens.iter().filter(|token| token.application.as_deref() != Some(source.client())).collect();
        ensure!(of_others.is_empty(), "{} was given tokens of others: {of_others:?}", seen.pod);
        ensure!(seen.tokens.len() > 3, "{} saw only {} tokens", seen.pod, seen.tokens.len());
    }
    Ok(())
}

/// Everything is rotated: Entra learns the new credential, it is put where it belongs, the node says that it has taken it
/// over, and Entra forgets the old one.
fn round(lab: &Lab, number: usize) -> anyhow::Result<()> {
    let began = asked(lab)?.len();
    let watch = Stopwatch::start();
    let mut old = Vec::new();
    for source in SOURCES {
        old.push(known(lab, source)?);
        let made = make(lab, source, &format!("round-{number}"))?;
        admit(lab, source, &made)?;
        put(lab, source, &made)?;
    }
    for source in SOURCES {
        told(lab, source, "CredentialRotated", number)?;
    }
    println!("round {number}: all were taken over after {}", watch.seconds());
    for (source, old) in SOURCES.into_iter().zip(old) {
        ensure!(!old.is_empty(), "Entra knew no credential of {}", source.name());
        for credential in old {
            let change = if source.is_certificate() {
                json!({"removeCertificate": {"application": source.client(), "certificate": credential}})
            } else {
                json!({"removeSecret": {"application": source.client(), "value": credential}})
            };
            azure(lab, &["change", &change.to_string()])?;
        }
    }
    let removed = asked(lab)?.len();
    std::thread::sleep(A_LIFE);
    // Tokens were got with the new one, and nothing was refused for long.
    for source in SOURCES {
        let since = of(lab, source, removed)?;
        ensure!(since.granted >= 1, "round {number}: {} got no token after the old credential was gone", source.name());
        let all = of(lab, source, began)?;
        ensure!(all.refused <= 8, "round {number}: {} was refused {} times", source.name(), all.refused);
    }
    Ok(())
}

/// Everything is replaced by what Entra does not know: it is tried, refused, and the old one goes on serving.
fn wrong(lab: &Lab) -> anyhow::Result<()> {
    let began = asked(lab)?.len();
    for source in SOURCES {
        put(lab, source, &make(lab, source, "wrong")?)?;
    }
    for source in SOURCES {
        clock::wait_for(Duration::from_secs(30), || Ok((of(lab, source, began)?.refused > 0).then_some(())))?
            .with_context(|| format!("what is wrong with {} was never tried", source.name()))?;
    }
    let tried = asked(lab)?.len();
    std::thread::sleep(A_LIFE);
    for source in SOURCES {
        let after = of(lab, source, tried)?;
        ensure!(after.granted >= 1, "{} got no token with its old credential", source.name());
        let all = of(lab, source, began)?;
        ensure!(all.refused <= 12, "the wrong credential of {} was tried {} times", source.name(), all.refused);
        told(lab, source, "CredentialRefused", 1)?;
    }
    for source in [Source::Secret, Source::Certificate] {
        let code = format!("AADSTS{}", source.refusal());
        // At first it may be a matter of Entra's delay; the controller tries again after a minute.
        clock::wait_for(Duration::from_secs(150), || {
            let value: Value = serde_json::from_str(&status(lab, source)?).unwrap_or_default();
            let conditions = value.pointer("/status/conditions").or_else(|| value.get("conditions")).cloned();
            let all: Vec<Value> = conditions.and_then(|all| all.as_array().cloned()).unwrap_or_default();
            let ready = all.iter().find(|condition| condition["type"] == "CredentialReady");
            Ok(ready.is_some_and(|ready| ready["status"] == "False" && ready.to_string().contains(&code)).then_some(()))
        })?
        .with_context(|| {
            let status = status(lab, source).unwrap_or_default();
            format!("{} has no CredentialReady=False with {code}: {status}", source.name())
        })?;
    }
    println!("what is wrong was tried and refused");
    Ok(())
}

/// What the controller has written about a source's identity.
fn status(lab: &Lab, source: Source) -> anyhow::Result<String> {
    let directory = load::find(lab.run_dir(), "AzureIdentity").context("there is no status of any AzureIdentity")?;
    files::read(&directory.join("demo").join(format!("{}.json", source.name())))
}

/// A new credential, unknown to everybody.
fn make(lab: &Lab, source: Source, name: &str) -> anyhow::Result<Made> {
    if !source.is_certificate() {
        return Ok(Made::Secret(format!("{name}~{}", credentials::password()?)));
    }
    let directory = lab.scratch().join(format!("{}-{name}", source.name()));
    std::fs::create_dir_all(&directory).context("cannot make a directory")?;
    lab.command(&["credential", &directory.display().to_string(), "--name", name]).run_quietly()?;
    Ok(Made::Pair(directory))
}

/// Lets Entra know it, after a while.
fn admit(lab: &Lab, source: Source, made: &Made) -> anyhow::Result<()> {
    let (kind, value) = match made {
        Made::Secret(value) => ("secret", value.clone()),
        Made::Pair(directory) => ("certificate", directory.join("certificate.pem").display().to_string()),
    };
    azure(lab, &[kind, "add", source.client(), &value, "--propagation", PROPAGATION]).map(drop)
}

/// Puts it where it is read from.
fn put(lab: &Lab, source: Source, made: &Made) -> anyhow::Result<()> {
    match (source, made) {
        (Source::Secret, Made::Secret(value)) => {
            lab.write("by-secret.yaml", &credentials::secret("by-secret", &[("clientSecret", value.as_bytes())]))
        }
        (Source::Certificate, Made::Pair(directory)) => {
            let bundle = std::fs::read(directory.join("bundle.pem")).context("bundle.pem")?;
            lab.write("by-certificate.yaml", &credentials::secret("by-certificate", &[("certificate", &bundle)]))
        }
        (Source::VaultSecret, Made::Secret(value)) => {
            azure(lab, &["vault", "secret", VAULT, "password", value]).map(drop)
        }
        (Source::VaultCertificate, Made::Pair(directory)) => {
            let [certificate, key] =
                ["certificate.pem", "key.pem"].map(|name| directory.join(name).display().to_string());
            azure(lab, &["vault", "certificate", VAULT, "pair", &certificate, &key]).map(drop)
        }
        _ => bail!("{source:?} has credentials of another kind"),
    }
}

/// The credentials that Entra accepts for a source's application: secrets, or certificates.
fn known(lab: &Lab, source: Source) -> anyhow::Result<Vec<String>> {
    let shown: Value = serde_json::from_str(&azure(lab, &["show"])?).context("`azure show` is no JSON")?;
    let tenants = shown["tenants"].as_array().context("no tenants")?;
    let application = tenants
        .iter()
        .flat_map(|tenant| tenant["applications"].as_array().into_iter().flatten())
        .find(|application| application["clientId"] == source.client())
        .with_context(|| format!("Entra does not know {}", source.name()))?;
    let (list, field) = if source.is_certificate() { ("certificates", "pem") } else { ("secrets", "value") };
    let all = application[list].as_array().into_iter().flatten();
    Ok(all.filter_map(|one| one.as_str().or_else(|| one[field].as_str()).map(str::to_owned)).collect())
}

fn azure(lab: &Lab, words: &[&str]) -> anyhow::Result<String> {
    lab.command(&[&["azure"], words].concat()).text()
}

/// Waits until an Event with this reason was written about a source's identity so many times.
fn told(lab: &Lab, source: Source, reason: &str, times: usize) -> anyhow::Result<()> {
    let mut seen = 0;
    clock::wait_for(Duration::from_secs(40), || {
        let events = load::find(lab.run_dir(), "events.jsonl").map(|path| files::read(&path)).transpose()?;
        let name = format!("\"{}\"", source.name());
        seen = events.unwrap_or_default().lines().filter(|line| line.contains(reason) && line.contains(&name)).count();
        Ok((seen >= times).then_some(()))
    })?
    .with_context(|| format!("{} has {seen} Events {reason}, not {times}", source.name()))
}

/// What Entra answered about a source's application after the first `skip` records of its log.
struct Answers {
    granted: usize,
    /// As unknown credentials are.
    refused: usize,
}

fn of(lab: &Lab, source: Source, skip: usize) -> anyhow::Result<Answers> {
    let all = asked(lab)?;
    let own: Vec<_> = all
        .iter()
        .skip(skip)
        .filter(|record| {
            record.service == "entra" && record.form.get("client_id").is_some_and(|id| id == source.client())
        })
        .collect();
    let refused =
        own.iter().filter(|record| record.error_code.as_deref().is_some_and(|code| code.contains(source.refusal())));
    // Nothing else goes wrong.
    let other = own.iter().find(|record| {
        record.status != 200 && !record.error_code.as_deref().is_some_and(|code| code.contains(source.refusal()))
    });
    ensure!(other.is_none(), "Entra said something else about {}: {other:?}", source.name());
    Ok(Answers { granted: own.iter().filter(|record| record.status == 200).count(), refused: refused.count() })
}
