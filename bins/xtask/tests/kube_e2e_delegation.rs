//! A binding of one client id, with the whole product and its objects in a real API server: its identity is exchanged under
//! it for another, and nothing of that reaches the pod.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, ensure};
use xtask::{clock, files, lab::Lab, paths, run::Cmd, setup};

const MINE: &str = "aaaaaaaa-0000-4000-8000-000000000002";
const OTHER: &str = "bbbbbbbb-0000-4000-8000-000000000003";
const LIMIT: Duration = Duration::from_secs(30);

fn resource(name: &str) -> String {
    format!("/subscriptions/s/resourcegroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{name}")
}

fn identity(name: &str, client_id: &str) -> String {
    format!(
        "apiVersion: aadpodidentity.k8s.io/v1\nkind: AzureIdentity\nmetadata: {{name: reports, namespace: demo}}\n\
         spec: {{type: 0, resourceID: {}, clientID: {client_id}}}\n",
        resource(name)
    )
}

#[test]
fn another_identity_is_not_assigned_through_a_binding_of_one_client_id() -> anyhow::Result<()> {
    let assets = match paths::variable("KUBEBUILDER_ASSETS") {
        Some(assets) => PathBuf::from(assets),
        None => setup::kube::assets()?,
    };
    let lab = Lab::up(Some(&assets), |directory| {
        files::replace(&directory.join("identity.yaml"), &identity("mine", MINE))?;
        files::replace(
            &directory.join("objects.yaml"),
            &format!(
                "apiVersion: aadpodidentity.k8s.io/v1\nkind: AzureIdentityBinding\nmetadata: {{name: reports, namespace: demo}}\n\
                 spec: {{azureIdentity: reports, clientID: {MINE}, selector: reports}}\n---\n\
                 apiVersion: v1\nkind: Pod\n\
                 metadata: {{name: app, namespace: demo, labels: {{aadpodidbinding: reports}}}}\n\
                 spec: {{containers: [{{name: main, image: example.invalid/app}}]}}\n"
            ),
        )?;
        files::replace(
            &directory.join("lab.yaml"),
            &format!(
                "managedIdentities:\n- resourceId: {}\n  clientId: {OTHER}\n  tenantId: 22222222-2222-4222-8222-222222222222\n",
                resource("other")
            ),
        )
    })?;
    exchanged(&lab, &assets.join("kubectl")).with_context(|| lab.log_tail())?;
    lab.down()
}

fn exchanged(lab: &Lab, kubectl: &std::path::Path) -> anyhow::Result<()> {
    let ask = || lab.ask("demo/app", "resource=https%3A%2F%2Fvault.azure.net");
    let kubeconfig = lab.kubeconfig()?;
    let get = |words: &[&str]| {
        Cmd::new(kubectl).arg("--kubeconfig").arg(&kubeconfig).args(["-n", "demo", "get"]).args(words).text()
    };
    let until = |what: &str, there: &dyn Fn() -> anyhow::Result<bool>| {
        let seen = clock::wait_for(LIMIT, || Ok(there()?.then_some(())))?;
        seen.with_context(|| format!("never: {what}"))
    };
    ensure!(ask()?.claims()?.appid == MINE);

    lab.write("identity.yaml", &identity("other", OTHER))?;
    until("the assignment is taken back", &|| Ok(get(&["azureassignedidentities", "-o", "name"])?.is_empty()))?;
    let condition = r#"jsonpath={.status.conditions[?(@.type=="IdentityFound")]}"#;
    until("the binding says why", &|| {
        let said = get(&["azureidentitybinding", "reports", "-o", condition])?;
        Ok(["\"False\"", "OtherClientID", MINE, OTHER].iter().all(|part| said.contains(part)))
    })?;
    until("the node has seen it", &|| Ok(ask()?.status != 200))?;
    let answer = ask()?;
    ensure!(answer.status != 200 && answer.field("access_token").is_empty(), "{answer:?}");

    lab.write("identity.yaml", &identity("mine", MINE))?;
    until("it is assigned again", &|| {
        let answer = ask()?;
        ensure!(answer.status != 200 || answer.claims()?.appid == MINE, "{answer:?}");
        Ok(answer.status == 200)
    })
}
