//! Tour `rotation`: a client secret is rotated under a running application, after a wrong one was tried.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, ensure};

use super::{
    credentials::{self, secret},
    stage::{self, Stage, first_line},
};
use crate::{clock::Stopwatch, lab::Language, setup::sdk::Sdks, term};

const POD: &str = "demo/app";
const APPLICATION: &str = "aaaaaaaa-0008-4000-8000-000000000000";
const RESOURCE: &str = "https://vault.azure.net";
const QUERY: &str = "resource=https%3A%2F%2Fvault.azure.net";
const OBJECTS: &str = "apiVersion: aadpodidentity.k8s.io/v1\nkind: AzureIdentity\nmetadata: {name: app, namespace: demo}\nspec:\n  \
                       type: 1\n  tenantID: 22222222-2222-4222-8222-222222222222\n  \
                       clientID: aaaaaaaa-0008-4000-8000-000000000000\n  clientPassword: {name: app, namespace: demo}\n---\n\
                       apiVersion: aadpodidentity.k8s.io/v1\nkind: AzureIdentityBinding\nmetadata: {name: app, namespace: demo}\n\
                       spec: {azureIdentity: app, selector: app}\n---\n\
                       apiVersion: v1\nkind: Pod\nmetadata: {name: app, namespace: demo, labels: {aadpodidbinding: app}}\n\
                       spec: {containers: [{name: main, image: example.invalid/app}]}\n";
/// Entra takes minutes to know a new credential everywhere, and the daemons give it as long: here it is seconds.
const PROPAGATION: &str =
    "nodeArguments: [--credential-propagation, 5s]\ncontrollerArguments: [--credential-propagation, 5s]\n";
const FILE: &str = "secret.yaml";
/// Between two questions of the application.
const PAUSE: Duration = Duration::from_millis(100);

/// The manifests, with a secret that Entra is told, too.
pub(super) fn fill(directory: &Path) -> anyhow::Result<()> {
    let first = manifest(&credentials::password()?);
    stage::write(directory, &[], &[(FILE, &first), ("objects.yaml", OBJECTS), ("lab.yaml", PROPAGATION)])
}

fn manifest(value: &str) -> String {
    secret("app", &[("clientSecret", value.as_bytes())])
}

/// What the application saw.
#[derive(Default)]
struct Seen {
    asked: usize,
    failed: Vec<String>,
    tokens: BTreeSet<String>,
}

/// The story.
pub(super) fn story(stage: &Stage, sdks: &Sdks) -> anyhow::Result<()> {
    let (first, end) = (stage.lab.ask(POD, QUERY)?, AtomicBool::new(false));
    first.claims()?;
    let watch = Stopwatch::start();
    let (told, seen) = thread::scope(|scope| {
        let application = scope.spawn(|| ask(stage, &end));
        let told = rotate(stage);
        end.store(true, Ordering::Relaxed);
        (told, application.join())
    });
    told?;
    let seen = seen.ok().context("the application panicked")?;

    term::heading("What the application has seen of it");
    let tokens = seen.tokens.len();
    term::step(format_args!(
        "{} requests in {}: {} failed, {tokens} different tokens",
        seen.asked,
        watch.seconds(),
        seen.failed.len()
    ));
    ensure!(seen.failed.is_empty(), "the application was not served: {:?}", seen.failed);
    ensure!(seen.asked > 10, "it has asked only {} times", seen.asked);
    ensure!(tokens >= 2, "the tokens of the old secret were not replaced");
    let mut sdk = stage.lab.sdk(sdks, Language::Python, POD, "managed", RESOURCE)?;
    let claims = sdk.ask()?.claims()?;
    ensure!(claims.appid == APPLICATION, "a token of {}", claims.appid);
    term::step(format_args!("Python: a token of {}", claims.appid));
    Ok(())
}

/// Asks as an application without a cache would, until told to end.
fn ask(stage: &Stage, end: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    while !end.load(Ordering::Relaxed) {
        seen.asked += 1;
        match stage.lab.ask(POD, QUERY) {
            Ok(answer) if answer.claims().is_ok_and(|claims| claims.appid == APPLICATION) => {
                seen.tokens.insert(answer.field("access_token"));
            }
            Ok(answer) => seen.failed.push(format!("{} {}", answer.status, answer.body)),
            Err(error) => seen.failed.push(format!("{error:#}")),
        }
        thread::sleep(PAUSE);
    }
    seen
}

fn rotate(stage: &Stage) -> anyhow::Result<()> {
    // From here on Entra goes by what it is told, and not by the manifests.
    stage.lab.command(&["azure", "pin", APPLICATION]).run_quietly()?;

    term::heading("A wrong secret is written into the Secret");
    stage.lab.write(FILE, &manifest(&credentials::password()?))?;
    term::step("secret.yaml: a value that Entra does not know");
    let note = stage.event("CredentialRefused", "app")?;
    term::step(format_args!("Event CredentialRefused: {}", first_line(&note)));
    fresh(stage).context("with the old secret")?;
    term::step("a new token: the old secret goes on being used");

    term::heading("The right one");
    let right = credentials::password()?;
    stage.lab.command(&["azure", "secret", "add", APPLICATION, &right]).run_quietly()?;
    term::step(format_args!("$ identity-lab azure secret add {APPLICATION} …    # Entra knows both"));
    let watch = Stopwatch::start();
    stage.lab.write(FILE, &manifest(&right))?;
    term::step("secret.yaml: the value that Entra has just been told");
    let note = stage.event("CredentialRotated", "app")?;
    term::step(format_args!("Event CredentialRotated after {}: {}", watch.seconds(), first_line(&note)));

    term::heading("The old one is removed from Entra");
    let shown = stage.lab.command(&["azure", "show"]).text()?;
    let shown: serde_json::Value = serde_json::from_str(&shown).context("`azure show` is no JSON")?;
    let tenants = shown["tenants"].as_array().into_iter().flatten();
    let mut applications = tenants.flat_map(|tenant| tenant["applications"].as_array().into_iter().flatten());
    let application = applications.find(|one| one["clientId"] == APPLICATION).context("Entra does not know it")?;
    let secrets = application["secrets"].as_array().into_iter().flatten();
    let old: Vec<&str> = secrets.filter_map(|one| one["value"].as_str()).filter(|value| *value != right).collect();
    ensure!(old.len() == 1, "Entra knows {} other secrets", old.len());
    stage.lab.command(&["azure", "secret", "remove", APPLICATION, old[0]]).run_quietly()?;
    term::step(format_args!("$ identity-lab azure secret remove {APPLICATION} …"));
    fresh(stage).context("with the new secret")?;
    term::step("a new token: with the new secret");
    Ok(())
}

/// A token that Entra issues now.
fn fresh(stage: &Stage) -> anyhow::Result<()> {
    let url = format!(
        "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2023-07-01&{QUERY}&bypass_cache=true"
    );
    let answer = stage.lab.curl(POD, &["-H", "Metadata: true", &url])?;
    let claims = answer.claims()?;
    ensure!(claims.appid == APPLICATION, "a token of {}", claims.appid);
    Ok(())
}
