//! Tour `jit`: access when somebody asks and another one approves. The objects are `examples/grant`; people are users of the API
//! server (the administrator impersonates them), and it is the API server that says who they are.

use std::{path::Path, time::Duration};

use anyhow::{Context, bail, ensure};
use jiff::Timestamp;
use serde_json::Value;

use super::stage::{self, SOON, Stage, first_line, refusal};
use crate::{
    clock::{self, Stopwatch},
    lab::Language,
    paths,
    run::Cmd,
    setup::sdk::Sdks,
    term,
};

const POD: &str = "default/shell-0";
const RESOURCE: &str = "https://vault.azure.net";
const QUERY: &str = "resource=https%3A%2F%2Fvault.azure.net";
const MANIFEST: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: shell-0, namespace: default, labels: {aadpodidbinding: maintenance}}\n\
                        spec: {containers: [{name: main, image: example.invalid/app}]}\n---\n\
                        apiVersion: aadpodidentity.k8s.io/v1\nkind: AzureIdentity\nmetadata: {name: data-store, namespace: default}\n\
                        spec: {type: 3, tenantID: 22222222-2222-4222-8222-222222222222, clientID: aaaaaaaa-0006-4000-8000-000000000000}\n";
const BINDING: &str = "production-vault";
const POLICY: &str = "azureidentitygrants.aadpodidentity.k8s.io";
/// A grant counts when it was created so long after the policy and its binding.
const AGE: Duration = Duration::from_mins(1);

/// Somebody.
struct Person {
    name: &'static str,
    groups: &'static [&'static str],
}

const ANN: Person = Person { name: "ann@example.com", groups: &["developers"] };
const BOB: Person = Person { name: "bob@example.com", groups: &[] };

/// The manifests.
pub(super) fn fill(directory: &Path) -> anyhow::Result<()> {
    stage::write(directory, &["grant/binding.yaml"], &[("pod.yaml", MANIFEST)])
}

/// The story.
pub(super) fn story(stage: &Stage, sdks: &Sdks) -> anyhow::Result<()> {
    let mut sdk = stage.lab.sdk(sdks, Language::Python, POD, "managed", RESOURCE)?;
    let roles = paths::root().join("examples/grant/roles.yaml");
    stage.kubectl(&["apply", "-f", &roles.display().to_string()])?;
    term::step("$ kubectl apply -f examples/grant/roles.yaml");
    term::step("ann may ask (a developer), bob may approve (the binding names him); the API server knows who they are");

    term::heading("Nobody has asked");
    let text = refusal(&stage.lab.ask(POD, QUERY)?)?;
    term::step(format_args!("403 {text}"));
    let error = sdk.ask()?.error.context("the SDK got a token")?;
    term::step(format_args!("Python: {}", first_line(&error)));

    term::heading("Nobody speaks for others: the API server refuses");
    let forged = grant("in-bobs-name", BOB.name);
    let says = format!("spec.requestedBy must be your own name, which is {}", ANN.name);
    refused(stage, &ANN, &["create", "-f"], Some(&forged), ("ann asks in bob's name", &says))?;
    early(stage)?;
    wait_for_the_policy(stage)?;

    term::heading("ann asks, and bob approves");
    let name = request(stage, "Incident 4711: look into the dead letters")?;
    phase(stage, &name, "Pending")?;
    ensure!(stage.lab.ask(POD, QUERY)?.status == 403, "a request alone gave access");
    term::step("403 the pod is refused as before: nobody has approved");
    let by = |name: &str| format!(r#"{{"spec":{{"approvals":[{{"by":"{name}"}}]}}}}"#);
    let patch = |by: &str| ["patch", "azureidentitygrant", &name, "--type=merge", "-p", by].map(str::to_owned);
    refused(
        stage,
        &ANN,
        &patch(&by(ANN.name)),
        None,
        ("ann approves her own request", "the requester, who cannot approve"),
    )?;
    refused(stage, &ANN, &patch(&by(BOB.name)), None, ("ann approves in bob's name", "your own name"))?;
    ensure!(stage.lab.ask(POD, QUERY)?.status == 403, "a forged approval gave access");

    let watch = Stopwatch::start();
    identityctl(stage, &BOB, &["approve", &name])?;
    let answer = clock::wait_for(SOON, || {
        let answer = stage.lab.ask(POD, QUERY)?;
        Ok((answer.status == 200).then_some(answer))
    })?
    .context("approved, and the pod is still refused")?;
    let took = watch.elapsed();
    term::step(format_args!("200 the pod has a token {} ms after bob's command began", took.as_millis()));
    let until = deadline(stage, &name)?;
    let expires_on: i64 = answer.field("expires_on").parse().context("no expires_on")?;
    ensure!(expires_on == until.as_second(), "expires_on is {expires_on}, not the grant's end {}", until.as_second());
    let own = Timestamp::from_second(answer.claims()?.exp)?;
    ensure!(own > until, "the token ends before the grant");
    term::step(format_args!("expires_on {expires_on} = {until}: the grant's end (the token's own is {own})"));
    ensure!(sdk.ask()?.claims()?.aud.trim_end_matches('/') == RESOURCE, "the SDK got another token");
    term::step("Python: a token");
    identityctl(stage, &BOB, &["grants"])?;

    term::heading("ann has finished early");
    // The API server had it at some time in between.
    let watch = Stopwatch::start();
    identityctl(stage, &ANN, &["revoke", &name, "--reason", "found it"])?;
    let written = watch.elapsed();
    let turn = stage.turn(POD, QUERY, (200, 403), Stopwatch::start(), Duration::ZERO)?;
    term::step(format_args!(
        "403 {} ms after her command ended, {} ms after it began: {}",
        turn.late.as_millis(),
        (written + turn.late).as_millis(),
        refusal(&turn.answer)?
    ));
    let error = sdk.ask()?.error.context("the SDK got a token")?;
    term::step(format_args!("Python: {}", first_line(&error)));
    phase(stage, &name, "Revoked")?;

    term::heading("What is written about it");
    for reason in ["GrantRequested", "GrantActivated", "GrantRevoked"] {
        term::step(format_args!("Event {reason}: {}", stage.event(reason, BINDING)?));
    }
    stage.show(&["get", "azureidentitygrants"])?;
    Ok(())
}

/// A grant as a manifest.
fn grant(name: &str, by: &str) -> String {
    format!(
        "apiVersion: aadpodidentity.k8s.io/v1alpha1\nkind: AzureIdentityGrant\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{bindingName: {BINDING}, reason: 'Incident 4711', duration: 30m, requestedBy: {by}}}\n"
    )
}

/// A request from before the policy has been in force for a minute is worth nothing, whoever approves it.
fn early(stage: &Stage) -> anyhow::Result<()> {
    // Room for a slow machine; it is a minute that counts.
    if clock::now() > in_force(stage)? + AGE - Duration::from_secs(15) {
        return Ok(());
    }
    term::heading("ann asks in the policy's first minute");
    let name = request(stage, "at once")?;
    phase(stage, &name, "Refused")?;
    let path = r#"jsonpath={.status.conditions[?(@.type=="Active")].message}"#;
    let message = stage.kubectl(&["get", "azureidentitygrant", &name, "-o", path])?;
    ensure!(message.contains("ask again"), "it is not told what to do: {message}");
    term::step(format_args!("Refused, whoever might approve: {message}"));
    ensure!(stage.lab.ask(POD, QUERY)?.status == 403, "an unproven grant gave access");
    Ok(())
}

fn request(stage: &Stage, reason: &str) -> anyhow::Result<String> {
    let name = identityctl(stage, &ANN, &["request", BINDING, "--for", "30m", "--pod", "shell-0", "--reason", reason])?;
    Ok(name.trim().to_owned())
}

/// identityctl as somebody, shown with what it prints.
fn identityctl(stage: &Stage, person: &Person, words: &[&str]) -> anyhow::Result<String> {
    let mut command =
        Cmd::new(paths::binary("identityctl")).args(words).arg("--kubeconfig").arg(stage.lab.kubeconfig()?);
    command = command.args(["--as", person.name]);
    for group in person.groups {
        command = command.args(["--as-group", group]);
    }
    let text = command.text()?;
    let words: Vec<String> =
        words.iter().map(|word| if word.contains(' ') { format!("\"{word}\"") } else { (*word).to_owned() }).collect();
    term::step(format_args!("{}$ identityctl {}", short(person), words.join(" ")));
    // To what is no terminal it writes columns with tabs between them.
    let mut table = term::Table::default();
    for line in text.lines() {
        let mut cells = line.split('\t').map(str::to_owned);
        table.row::<9>(std::array::from_fn(|_| cells.next().unwrap_or_default()));
    }
    table.lines().iter().for_each(|line| term::step(format_args!("  {line}")));
    Ok(text)
}

/// kubectl as somebody, whom the API server refuses, saying why.
fn refused(
    stage: &Stage,
    person: &Person,
    words: &[impl AsRef<str>],
    manifest: Option<&str>,
    (what, says): (&str, &str),
) -> anyhow::Result<()> {
    let mut command = stage.kubectl_by(&stage.lab.kubeconfig()?)?.args(["--as", person.name]);
    for group in person.groups {
        command = command.args(["--as-group", group]);
    }
    command = command.args(words.iter().map(AsRef::as_ref));
    if let Some(manifest) = manifest {
        let path = stage.lab.scratch().join("grant.yaml");
        crate::files::replace(&path, manifest)?;
        command = command.arg(path);
    }
    let output = command.output()?;
    ensure!(!output.status.success(), "{what}, and is not refused");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(said.contains(says), "{what}: refused, but not since {says}: {said}");
    // Without how kubectl introduces it: by an admission policy, or by a rule of the kind.
    let intro = ["denied request: ", "Invalid value: "];
    let message = intro.iter().find_map(|intro| said.rsplit_once(intro)).map_or(said.as_str(), |(_, message)| message);
    term::step(format_args!("{what}: {}", message.trim()));
    Ok(())
}

fn short(person: &Person) -> &str {
    person.name.split('@').next().unwrap_or_default()
}

fn phase(stage: &Stage, name: &str, wanted: &str) -> anyhow::Result<()> {
    let mut seen = String::new();
    clock::wait_for(SOON, || {
        seen = stage.kubectl(&["get", "azureidentitygrant", name, "-o", "jsonpath={.status}"])?;
        let status: Value = serde_json::from_str(&seen).unwrap_or_default();
        Ok((status["phase"] == wanted).then_some(()))
    })?
    .with_context(|| format!("grant {name} does not become {wanted}: {seen}"))
}

fn deadline(stage: &Stage, name: &str) -> anyhow::Result<Timestamp> {
    let text = stage.kubectl(&["get", "azureidentitygrant", name, "-o", "jsonpath={.status.activeUntil}"])?;
    text.parse().with_context(|| format!("activeUntil of {name} is {text:?}"))
}

/// Since when the policy has been in force: it and its binding, by the API server's clock.
fn in_force(stage: &Stage) -> anyhow::Result<Timestamp> {
    let mut latest = None;
    for kind in ["validatingadmissionpolicy", "validatingadmissionpolicybinding"] {
        let created = stage.kubectl(&["get", kind, POLICY, "-o", "jsonpath={.metadata.creationTimestamp}"])?;
        let created: Timestamp = created.parse().with_context(|| format!("{kind}: created at {created:?}"))?;
        latest = latest.max(Some(created));
    }
    latest.context("no policy")
}

/// Times of the API server are whole seconds: one more makes a grant that is created now old enough in any case.
fn wait_for_the_policy(stage: &Stage) -> anyhow::Result<()> {
    let since = in_force(stage)?;
    let enough = since + AGE + Duration::from_secs(1);
    term::heading("The controller trusts a policy that has been in force for a minute before the request");
    let limit = AGE + Duration::from_secs(10);
    let left = || enough.duration_since(clock::now()).as_secs();
    ensure!(left() <= 70, "the policy is from the future: {since}");
    let mut said = i64::MAX;
    let done = clock::wait_for(limit, || {
        let left = left();
        if left > 0 && left <= said - 10 {
            term::step(format_args!("this cluster's is from {since}: {left} s to wait"));
            said = left;
        }
        Ok((clock::now() >= enough).then_some(()))
    })?;
    if done.is_none() {
        bail!("the clock stands still");
    }
    term::step("long enough");
    Ok(())
}
