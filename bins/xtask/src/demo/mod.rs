//! `cargo xtask demo`: the product's main job in front of one's eyes. Whatever is narrated is also asserted.

pub mod credentials;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail, ensure};

use crate::{
    clock::{self, Stopwatch},
    jwt::Claims,
    lab::{Lab, Language},
    run::Cmd,
    setup::{self, packages, sdk::Sdks},
    term,
};

/// Arguments of `demo`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Keep the objects in a real kube-apiserver instead of a directory of manifests.
    #[arg(long)]
    kube: bool,
    /// Which story to tell.
    #[arg(long, value_name = "NAME", default_value = "tokens")]
    tour: Tour,
}

/// A story.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tour {
    /// Pods get tokens, are refused, and change identity.
    Tokens,
}

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

/// Runs it.
///
/// # Errors
/// Saying what did not happen as told.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let watch = Stopwatch::start();
    term::heading("Set-up");
    packages::ensure(packages::BUILD)?;
    packages::ensure(packages::NETWORK)?;
    setup::build()?;
    let sdks = setup::sdk::ensure()?;
    let assets = if arguments.kube { Some(setup::kube::assets()?) } else { None };
    let built = Stopwatch::start();
    match arguments.tour {
        Tour::Tokens => tokens(&sdks, assets)?,
    }
    term::heading(format_args!("Done in {} ({} with set-up)", built.seconds(), watch.seconds()));
    Ok(())
}

fn tokens(sdks: &Sdks, assets: Option<PathBuf>) -> anyhow::Result<()> {
    let place = if assets.is_some() { "a real kube-apiserver" } else { "a directory of manifests" };
    term::heading(format_args!("A node with four pods, their objects in {place}"));
    let watch = Stopwatch::start();
    let lab = Lab::up(assets.as_deref(), credentials::fill)?;
    term::step(format_args!(
        "ready in {}: each pod is a network namespace, netfilter redirects 169.254.169.254",
        watch.seconds()
    ));
    let told = story(&lab, sdks, assets);
    let told = told.with_context(|| format!("the last lines of the logs:\n{}", lab.log_tail()));
    term::heading("Taking it down");
    let down = lab.down();
    told?;
    down?;
    term::step("nothing is left: no process, no network namespace, no rule");
    Ok(())
}

fn story(lab: &Lab, sdks: &Sdks, assets: Option<PathBuf>) -> anyhow::Result<()> {
    let objects = Objects::of(lab, assets)?;
    objects.show()?;

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
    let swap = Stopwatch::start();
    objects.swap(lab)?;
    let claims = clock::wait_for(Duration::from_secs(10), || {
        let claims = lab.ask(SWAPPED.pod, "resource=https%3A%2F%2Fvault.azure.net")?.claims()?;
        Ok((claims.appid == SWAPPED.application).then_some(claims))
    })?
    .context("10 s after the swap the pod still gets tokens of the old identity")?;
    SWAPPED.verify(&claims)?;
    term::step(format_args!("the new identity's token arrived {} ms after the change", swap.elapsed().as_millis()));
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
    objects.show()
}

/// Where the objects are.
enum Objects {
    Manifests,
    Cluster { kubectl: PathBuf, kubeconfig: PathBuf },
}

impl Objects {
    fn of(lab: &Lab, assets: Option<PathBuf>) -> anyhow::Result<Self> {
        let Some(assets) = assets else { return Ok(Self::Manifests) };
        let kubeconfig = lab.kubeconfig()?;
        Ok(Self::Cluster { kubectl: assets.join("kubectl"), kubeconfig })
    }

    fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let Self::Cluster { kubectl, kubeconfig } = self else { bail!("no cluster") };
        Cmd::new(kubectl).arg("--kubeconfig").arg(kubeconfig).args(arguments).text()
    }

    /// Shows the assignments where there is a cluster to show them.
    fn show(&self) -> anyhow::Result<()> {
        if let Self::Cluster { .. } = self {
            term::heading("$ kubectl get azureassignedidentities -A");
            let text = self.kubectl(&["get", "azureassignedidentities", "-A"])?;
            ensure!(text.lines().count() >= 4, "three assignments were expected:\n{text}");
            text.lines().for_each(term::step);
        }
        Ok(())
    }

    fn swap(&self, lab: &Lab) -> anyhow::Result<()> {
        if let Self::Cluster { .. } = self {
            let patch = r#"{"spec":{"azureIdentity":"app-next"}}"#;
            let words = ["-n", "demo", "patch", "azureidentitybinding", "app", "--type=merge", "-p", patch];
            self.kubectl(&words)?;
            term::step(format_args!("$ kubectl {}", words.join(" ")));
            return Ok(());
        }
        swap_manifest(lab)?;
        term::step("binding-to-swap.yaml: azureIdentity: app-secret -> app-next");
        Ok(())
    }
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
