//! Tour `groups`: authorization delegated to a directory group. Membership is a matter of the directory: nothing in the cluster
//! changes.

use std::path::Path;

use anyhow::{Context, ensure};

use super::{
    credentials,
    stage::{self, Stage},
};
use crate::{
    files, jwt,
    lab::{Answer, Language},
    setup::sdk::Sdks,
    term,
};

const MANIFESTS: &str = include_str!("groups.yaml");
const POD: &str = "demo/reports";
const APPLICATION: &str = "aaaaaaaa-0007-4000-8000-000000000000";
const GROUP: &str = "0a0b0c0d-0000-4000-8000-000000000000";
const HOST: &str = "reports.vault.azure.net";
const RESOURCE: &str = "https://vault.azure.net";
const TOKEN: &str = "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2023-07-01&resource=https%3A%2F%2Fvault.azure.net";

/// The manifests, and a vault that a group may read.
pub(super) fn fill(directory: &Path) -> anyhow::Result<()> {
    let lab = format!(
        "groups: [{{id: {GROUP}, members: []}}]\nvaults:\n- host: {HOST}\n  tenantId: 22222222-2222-4222-8222-222222222222\n  \
         secrets: [{{name: connection, versions: [{{value: {}}}]}}]\n  \
         access: [{{role: Key Vault Secrets User, principal: {GROUP}}}]\n",
        credentials::password()?
    );
    stage::write(directory, &[], &[("objects.yaml", MANIFESTS), ("lab.yaml", &lab)])
}

/// The story.
pub(super) fn story(stage: &Stage, sdks: &Sdks) -> anyhow::Result<()> {
    term::step(format_args!("{HOST} may be read by members of the group {GROUP}; it has none"));
    let objects = objects(stage)?;

    term::heading("The pod has a token, and the vault refuses it");
    let mut sdk = stage.lab.sdk(sdks, Language::Python, POD, "managed", RESOURCE)?;
    let token = sdk.ask()?.token.context("the SDK got no token")?;
    groups_are(&token, &[])?;
    denied(&read(stage, &token)?)?;

    term::heading("The application becomes a member of the group, in the directory");
    stage.command(&["azure", "group", "add", GROUP, APPLICATION])?;
    term::step("the token that it has says who it was when that was issued:");
    let token = sdk.ask()?.token.context("the SDK got no token")?;
    groups_are(&token, &[])?;
    denied(&read(stage, &token)?)?;

    term::heading(
        "A new token has the new group (bypass_cache: not the one that is kept until shortly before its end)",
    );
    let fresh = format!("{TOKEN}&bypass_cache=true");
    let answer = stage.lab.curl(POD, &["-H", "Metadata: true", &fresh])?;
    answer.claims()?;
    groups_are(&answer.field("access_token"), &[GROUP])?;
    let token = sdk.ask()?.token.context("the SDK got no token")?;
    ensure!(token == answer.field("access_token"), "the SDK is given another token than the new one");
    term::step("Python, asking as before, is given that token, too");
    let read_now = read(stage, &token)?;
    ensure!(read_now.status == 200, "the vault still refuses: {read_now:?}");
    ensure!(!read_now.field("value").is_empty(), "no secret in {}", read_now.body);
    term::step(format_args!("200 the vault gives the pod {}", read_now.field("id")));

    term::heading("No longer a member");
    stage.command(&["azure", "group", "remove", GROUP, APPLICATION])?;
    let answer = stage.lab.curl(POD, &["-H", "Metadata: true", &fresh])?;
    let token = answer.field("access_token");
    groups_are(&token, &[])?;
    denied(&read(stage, &token)?)?;

    ensure!(self::objects(stage)? == objects, "something in the cluster has changed");
    term::heading("Nothing in the cluster has changed");
    if stage.is_cluster() {
        stage.show(&["-n", "demo", "get", "azureidentities,azureidentitybindings,azureassignedidentities"])?;
    } else {
        term::step("identity, binding and assignment are what they were");
    }
    Ok(())
}

/// Reads the secret from inside the pod.
fn read(stage: &Stage, token: &str) -> anyhow::Result<Answer> {
    // Through a file: arguments can be read by every user of the machine.
    let header = stage.lab.scratch().join("authorization");
    files::replace(&header, &format!("Authorization: Bearer {token}"))?;
    let header = format!("@{}", header.display());
    let ca = stage.lab.run_dir().join("ca.crt").display().to_string();
    let url = format!("https://{HOST}/secrets/connection?api-version=7.4");
    stage.lab.curl(POD, &["--cacert", &ca, "-H", &header, &url])
}

fn denied(answer: &Answer) -> anyhow::Result<()> {
    ensure!(answer.status == 403, "the vault answers {} instead of 403: {}", answer.status, answer.body);
    let error = &answer.json()["error"];
    ensure!(error["code"] == "Forbidden", "not the vault's refusal: {}", answer.body);
    term::step(format_args!("403 {}: {}", error["code"].as_str().unwrap_or_default(), first_sentence(error)));
    Ok(())
}

fn first_sentence(error: &serde_json::Value) -> String {
    let message = error["message"].as_str().unwrap_or_default();
    message.lines().next().unwrap_or_default().to_owned()
}

fn groups_are(token: &str, wanted: &[&str]) -> anyhow::Result<()> {
    let claims = jwt::claims(token)?;
    ensure!(claims.appid == APPLICATION, "a token of {}", claims.appid);
    ensure!(claims.groups == wanted, "the token's groups are {:?}, not {wanted:?}", claims.groups);
    let groups = if claims.groups.is_empty() { "none".to_owned() } else { claims.groups.join(", ") };
    term::step(format_args!("token of {}, groups: {groups}", claims.appid));
    Ok(())
}

/// Identity, binding and assignment, each with its version.
fn objects(stage: &Stage) -> anyhow::Result<String> {
    if stage.is_cluster() {
        let path = r#"jsonpath={range .items[*]}{.kind} {.metadata.name} {.metadata.uid} {.spec}{"\n"}{end}"#;
        return stage.kubectl(&[
            "-n",
            "demo",
            "get",
            "azureidentities,azureidentitybindings,azureassignedidentities",
            "-o",
            path,
        ]);
    }
    let assigned = stage.lab.run_dir().join("state/assignments/demo");
    let mut all = files::read(&stage.lab.manifests().join("objects.yaml"))?;
    for entry in std::fs::read_dir(&assigned).with_context(|| format!("cannot read {}", assigned.display()))? {
        all += &files::read(&entry.context("cannot read the directory")?.path())?;
    }
    Ok(all)
}
