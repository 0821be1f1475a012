//! Tour `tokens`: the product's main job.

use std::time::Duration;

use anyhow::{Context, ensure};

use super::stage::Stage;
use crate::{
    clock::{self, Stopwatch},
    jwt::Claims,
    lab::{Lab, Language},
    setup::sdk::Sdks,
    term,
};

/// What a pod of `examples/demo` is to get.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// Pod.
    pub pod: &'static str,
    /// What backs its identity.
    pub kind: &'static str,
    /// What it asks for, and what becomes the token's audience.
    pub resource: &'static str,
    /// Tenant; `None` where it is the tenant of the node's own subscription.
    pub tenant: Option<&'static str>,
    /// Application.
    pub application: &'static str,
}

/// The three pods that get tokens.
pub const EXPECTED: [Expected; 3] = [
    Expected {
        pod: "demo/reader",
        kind: "type 0, managed identity",
        resource: "https://management.azure.com",
        tenant: None,
        application: "aaaaaaaa-0000-4000-8000-000000000000",
    },
    Expected {
        pod: "demo/app",
        kind: "type 1, client secret",
        resource: "https://vault.azure.net",
        tenant: Some("22222222-2222-4222-8222-222222222222"),
        application: "aaaaaaaa-0001-4000-8000-000000000000",
    },
    Expected {
        pod: "demo/certificate",
        kind: "type 2, certificate",
        resource: "https://storage.azure.com",
        tenant: Some("33333333-3333-4333-8333-333333333333"),
        application: "aaaaaaaa-0002-4000-8000-000000000000",
    },
];

/// What the pod `demo/app` is to get after the swap.
pub const SWAPPED: Expected = Expected {
    pod: "demo/app",
    kind: "type 1, another application",
    resource: "https://vault.azure.net",
    tenant: Some("33333333-3333-4333-8333-333333333333"),
    application: "aaaaaaaa-0003-4000-8000-000000000000",
};

impl Expected {
    /// Compares a token with what was expected.
    ///
    /// # Errors
    /// Naming the claim that differs.
    pub fn verify(&self, claims: &Claims) -> anyhow::Result<()> {
        ensure!(
            claims.aud.trim_end_matches('/') == self.resource,
            "{}: the audience is {}, not {}",
            self.pod,
            claims.aud,
            self.resource
        );
        ensure!(
            claims.appid == self.application,
            "{}: the application is {}, not {}",
            self.pod,
            claims.appid,
            self.application
        );
        if let Some(tenant) = self.tenant {
            ensure!(claims.tid == tenant, "{}: the tenant is {}, not {tenant}", self.pod, claims.tid);
        }
        Ok(())
    }
}

pub(super) fn story(stage: &Stage, sdks: &Sdks) -> anyhow::Result<()> {
    let lab = &stage.lab;
    show(stage)?;

    term::heading("Unmodified Azure SDKs ask the ordinary managed-identity endpoint");
    let mut table = term::Table::new(["pod", "identity", "SDK and credential", "tenant", "audience", "application"]);
    // Started together: an interpreter takes longer to load an SDK than the SDK to get a token.
    let mut applications = Vec::new();
    for expected in &EXPECTED {
        for (language, kind, shown) in [
            (Language::Python, "managed", "Python ManagedIdentityCredential"),
            (Language::Python, "default", "Python DefaultAzureCredential"),
            (Language::Node, "managed", "Node ManagedIdentityCredential"),
        ] {
            let mut application = lab.sdk(sdks, language, expected.pod, kind, expected.resource)?;
            application.send()?;
            applications.push((expected, shown, application));
        }
    }
    for (expected, shown, application) in &mut applications {
        let claims = application.receive()?.claims().with_context(|| format!("{shown} in {}", expected.pod))?;
        expected.verify(&claims)?;
        table.row([
            expected.pod.to_owned(),
            expected.kind.to_owned(),
            (*shown).to_owned(),
            claims.tid,
            claims.aud,
            claims.appid,
        ]);
    }
    table.print();

    term::heading("A pod that no binding selects");
    let refused = lab.ask("demo/nobody", "resource=https%3A%2F%2Fvault.azure.net")?;
    ensure!(refused.status == 400, "demo/nobody got {}, not 400: {}", refused.status, refused.body);
    ensure!(refused.field("error") == "invalid_request", "not the endpoint's own error: {}", refused.body);
    ensure!(refused.field("access_token").is_empty(), "demo/nobody got a token");
    term::step(format_args!("{} {}", refused.status, refused.body.trim()));
    let mut nobody = lab.sdk(sdks, Language::Python, "demo/nobody", "managed", "https://vault.azure.net")?;
    let error = nobody.ask()?.error.context("the SDK in demo/nobody got a token")?;
    term::step(format_args!("Python: {}", error.lines().next().unwrap_or_default()));

    term::heading("The binding of demo/app gets another identity");
    let watch = Stopwatch::start();
    swap(stage)?;
    let claims = clock::wait_for(Duration::from_secs(10), || {
        let claims = lab.ask(SWAPPED.pod, "resource=https%3A%2F%2Fvault.azure.net")?.claims()?;
        Ok((claims.appid == SWAPPED.application).then_some(claims))
    })?
    .context("10 s after the swap the pod still gets tokens of the old identity")?;
    SWAPPED.verify(&claims)?;
    term::step(format_args!("the new identity's token arrived {} ms after the change", watch.elapsed().as_millis()));
    let mut table = term::Table::new(["pod", "same process", "tenant", "audience", "application"]);
    for (expected, shown, application) in &mut applications {
        if expected.pod == SWAPPED.pod {
            // This SDK keeps a resource's token for its whole process until it expires: its *next* token is another's.
            let resource = if shown.starts_with("Node") { "https://storage.azure.com" } else { SWAPPED.resource };
            application.send_for(resource)?;
            let claims = application.receive()?.claims()?;
            Expected { resource, ..SWAPPED }.verify(&claims)?;
            table.row([SWAPPED.pod.to_owned(), (*shown).to_owned(), claims.tid, claims.aud, claims.appid]);
        }
    }
    table.print();
    show(stage)
}

/// Shows the assignments where there is a cluster to show them.
fn show(stage: &Stage) -> anyhow::Result<()> {
    if stage.is_cluster() {
        term::heading("$ kubectl get azureassignedidentities -A");
        let text = stage.kubectl(&["get", "azureassignedidentities", "-A"])?;
        ensure!(text.lines().count() >= 4, "three assignments were expected:\n{text}");
        text.lines().for_each(term::step);
    }
    Ok(())
}

fn swap(stage: &Stage) -> anyhow::Result<()> {
    if stage.is_cluster() {
        let patch = r#"{"spec":{"azureIdentity":"app-next"}}"#;
        let words = ["-n", "demo", "patch", "azureidentitybinding", "app", "--type=merge", "-p", patch];
        stage.kubectl(&words)?;
        term::step(format_args!("$ kubectl {}", words.join(" ")));
        return Ok(());
    }
    swap_manifest(&stage.lab)?;
    term::step("binding-to-swap.yaml: azureIdentity: app-secret -> app-next");
    Ok(())
}

/// Points the demo's binding at the other identity.
///
/// # Errors
/// Of the file system.
pub fn swap_manifest(lab: &Lab) -> anyhow::Result<()> {
    let name = "binding-to-swap.yaml";
    let text = crate::files::read(&lab.manifests().join(name))?;
    ensure!(text.contains("app-secret"), "the binding has been swapped already");
    lab.write(name, &text.replace("app-secret", "app-next"))
}
