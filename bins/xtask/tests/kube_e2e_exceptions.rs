//! Exceptions in a real API server, watched by the node with the rights that `deploy/` gives it.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, ensure};
use xtask::{clock, files, lab::Lab, paths, setup};

const OF_THE_NODE: &str = "aaaaaaaa-0000-4000-8000-000000000002";
const LIMIT: Duration = Duration::from_secs(20);

fn pod(namespace: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: agent, namespace: {namespace}, labels: {{role: agent}}}}\n\
         spec: {{containers: [{{name: main, image: example.invalid/app}}]}}\n"
    )
}

fn exception(namespace: &str, label: &str) -> String {
    format!(
        "apiVersion: aadpodidentity.k8s.io/v1\nkind: AzurePodIdentityException\n\
         metadata: {{name: agents, namespace: {namespace}}}\nspec: {{podLabels: {{role: {label}}}}}\n"
    )
}

#[test]
fn exceptions_of_listed_namespaces_are_followed() -> anyhow::Result<()> {
    let assets = match paths::variable("KUBEBUILDER_ASSETS") {
        Some(assets) => PathBuf::from(assets),
        None => setup::kube::assets()?,
    };
    let lab = Lab::up(Some(&assets), |directory| {
        let objects = [pod("agents"), pod("demo"), exception("demo", "agent")];
        files::replace(&directory.join("objects.yaml"), &objects.join("---\n"))?;
        files::replace(&directory.join("exception.yaml"), &exception("agents", "agent"))?;
        files::replace(
            &directory.join("lab.yaml"),
            &format!(
                "managedIdentities:\n- resourceId: /subscriptions/s/resourcegroups/rg/providers/Microsoft.ManagedIdentity/\
                 userAssignedIdentities/of-the-node\n  clientId: {OF_THE_NODE}\n  \
                 tenantId: 22222222-2222-4222-8222-222222222222\nnodeArguments: [--exception-namespaces, agents]\n"
            ),
        )
    })?;
    followed(&lab).with_context(|| lab.log_tail())?;
    lab.down()
}

fn followed(lab: &Lab) -> anyhow::Result<()> {
    let ask = |pod: &str| lab.ask(pod, "resource=https%3A%2F%2Fvault.azure.net");
    let until = |status: u16| {
        let mut last = None;
        let there = clock::wait_for(LIMIT, || {
            let answer = ask("agents/agent")?;
            let there = answer.status == status;
            last = Some(answer);
            Ok(there.then_some(()))
        })?;
        there.with_context(|| format!("never {status}; the last was {last:?}"))
    };
    // Ready means that the exceptions are known: nobody waits for anything here.
    ensure!(ask("agents/agent")?.claims()?.appid == OF_THE_NODE);
    let elsewhere = ask("demo/agent")?;
    ensure!(elsewhere.status == 400 && elsewhere.field("access_token").is_empty(), "{elsewhere:?}");
    lab.write("exception.yaml", &exception("agents", "nobody"))?;
    until(400)?;
    lab.write("exception.yaml", &exception("agents", "agent"))?;
    until(200)?;
    std::fs::remove_file(lab.manifests().join("exception.yaml")).context("cannot remove the exception")?;
    until(400)
}
