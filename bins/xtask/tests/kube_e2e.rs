//! The whole product with its objects in a real API server: service accounts, RBAC and admission policy of `deploy/` in
//! force, both binaries, real netfilter, tokens over real TLS.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, ensure};
use xtask::{
    clock,
    demo::{EXPECTED, SWAPPED, credentials},
    lab::Lab,
    paths,
    run::Cmd,
    setup,
};

const VAULT: &str = "resource=https%3A%2F%2Fvault.azure.net";
const LIMIT: Duration = Duration::from_secs(20);
const LATE: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: late, namespace: demo, labels: {aadpodidbinding: app}}\n\
                    spec: {containers: [{name: main, image: example.invalid/app}]}\n";

struct Cluster<'a> {
    lab: &'a Lab,
    kubectl: PathBuf,
}

impl Cluster<'_> {
    fn kubectl(&self, words: &[&str]) -> anyhow::Result<String> {
        Cmd::new(&self.kubectl).arg("--kubeconfig").arg(self.lab.kubeconfig()?).args(words).text()
    }

    fn fault(&self, state: &str) -> anyhow::Result<()> {
        self.lab.command(&["fault", "api-down", state]).run_quietly()
    }

    fn application(&self, pod: &str) -> anyhow::Result<String> {
        Ok(self.lab.ask(pod, VAULT)?.claims()?.appid)
    }

    /// Asks until the token is of this application.
    fn wait_for_application(&self, pod: &str, wanted: &str) -> anyhow::Result<()> {
        let mut last = String::new();
        let found = clock::wait_for(LIMIT, || {
            let answer = match self.lab.ask(pod, VAULT) {
                // The lab has yet to read the pod's manifest.
                Err(error) if format!("{error:#}").contains("there is no pod") => {
                    last = error.to_string();
                    return Ok(None);
                }
                answer => answer?,
            };
            let application = answer.claims().map(|claims| claims.appid);
            last = format!("{application:?} ({})", answer.status);
            Ok(application.is_ok_and(|application| application == wanted).then_some(()))
        })?;
        found.with_context(|| format!("{pod} gets no token of {wanted}; the last was {last}"))
    }
}

#[test]
fn tokens_with_a_real_api_server_and_without_it() -> anyhow::Result<()> {
    let assets = match paths::variable("KUBEBUILDER_ASSETS") {
        Some(assets) => PathBuf::from(assets),
        None => setup::kube::assets()?,
    };
    let lab = Lab::up(Some(&assets), credentials::fill)?;
    let outcome = story(&Cluster { lab: &lab, kubectl: assets.join("kubectl") });
    outcome.with_context(|| lab.log_tail())?;
    lab.down()
}

fn story(cluster: &Cluster<'_>) -> anyhow::Result<()> {
    let lab = cluster.lab;
    for expected in &EXPECTED {
        let query = format!("resource={}", expected.resource);
        expected.verify(&lab.ask(expected.pod, &query)?.claims()?)?;
    }
    let refused = lab.ask("demo/nobody", VAULT)?;
    ensure!(refused.status == 400 && refused.field("error") == "invalid_request", "{refused:?}");

    // What an operator sees.
    let table = cluster.kubectl(&["get", "azureassignedidentities", "-A"])?;
    for word in ["POD", "BINDING", "IDENTITY", "NODE", "STATUS", "app-certificate", "lab-node", "Assigned"] {
        ensure!(table.contains(word), "no {word} in\n{table}");
    }
    let missing = "apiVersion: aadpodidentity.k8s.io/v1\nkind: AzureIdentityBinding\nmetadata: {name: typo, namespace: demo}\n\
                   spec: {azureIdentity: no-such-identity, selector: typo}\n";
    lab.write("typo.yaml", missing)?;
    let condition = r#"jsonpath={.status.conditions[?(@.type=="IdentityFound")].message}"#;
    clock::wait_for(LIMIT, || {
        let text = cluster.kubectl(&["-n", "demo", "get", "azureidentitybinding", "typo", "-o", condition]);
        Ok(text.is_ok_and(|text| text.contains("no-such-identity")).then_some(()))
    })?
    .context("the binding has no condition that names the missing identity")?;

    // Without the API server: what was assigned goes on, from cache and from Entra.
    cluster.fault("on")?;
    ensure!(cluster.application("demo/app")? == EXPECTED[1].application, "not served from the cache");
    let other = lab.ask("demo/app", "resource=https%3A%2F%2Fgraph.microsoft.com")?;
    ensure!(other.claims()?.appid == EXPECTED[1].application, "{other:?}");
    ensure!(lab.ask("demo/nobody", VAULT)?.status == 400, "a pod without a binding must stay refused");
    // A change made meanwhile cannot be seen, and is seen afterwards, by controller and node.
    cluster.kubectl(&[
        "-n",
        "demo",
        "patch",
        "azureidentitybinding",
        "app",
        "--type=merge",
        "-p",
        r#"{"spec":{"azureIdentity":"app-next"}}"#,
    ])?;
    ensure!(cluster.application("demo/app")? == EXPECTED[1].application, "an assignment changed without an API server");
    cluster.fault("off")?;
    cluster.wait_for_application("demo/app", SWAPPED.application)?;

    // A pod that appears now is scheduled, gets its address and its assignment, and its first request is held for them.
    lab.write("late.yaml", LATE)?;
    cluster.wait_for_application("demo/late", SWAPPED.application)?;
    // Its assignment goes with it.
    std::fs::remove_file(lab.manifests().join("late.yaml")).context("cannot remove the pod")?;
    clock::wait_for(LIMIT, || {
        let left = cluster.kubectl(&["-n", "demo", "get", "azureassignedidentities", "-o", "name"])?;
        Ok((!left.contains("/late-")).then_some(()))
    })?
    .context("the assignment of a pod that is gone stays")?;
    ensure!(!lab.log().contains("eyJ"), "a log has what looks like a token");
    Ok(())
}
