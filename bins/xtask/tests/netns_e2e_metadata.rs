//! The rest of the metadata service through the real binaries, real netfilter and the emulated service of the node: what the
//! default policy lets through and what it blocks, what a policy file changes, and whom an exception gives the node's own
//! identities.

use std::{path::Path, time::Duration};

use anyhow::{Context, ensure};
use xtask::{
    clock, files,
    lab::{Answer, Lab},
};

const INSTANCE: &str = "/metadata/instance/compute?api-version=2021-02-01";
const ATTESTED: &str = "/metadata/attested/document?api-version=2020-09-01";
const EVENTS: &str = "/metadata/scheduledevents?api-version=2020-07-01";
/// Two identities on the VM: one is assigned to `demo/app`, the other is the node's alone.
const ASSIGNED: &str = "aaaaaaaa-0000-4000-8000-000000000001";
const OF_THE_NODE: &str = "aaaaaaaa-0000-4000-8000-000000000002";
const NODE_ID: &str =
    "/subscriptions/s/resourcegroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/of-the-node";
const TENANT: &str = "22222222-2222-4222-8222-222222222222";
const SERVICE: &str = "http://169.254.169.254";
const VAULT: &str = "resource=https%3A%2F%2Fvault.azure.net";

/// Paths that a second reader might take for the token path. None may be answered by the node's service.
const TRICKS: &[&str] = &[
    "/metadata/identity\\oauth2\\token",
    "/metadata\\identity\\oauth2\\token",
    "/metadata/identity%5coauth2%5ctoken",
    "/metadata/instance/../identity/oauth2/token",
    "/metadata/instance/%2e%2e/identity/oauth2/token",
    "/metadata/instance/..%2fidentity/oauth2/token",
    "/metadata/instance%2f..%2fidentity%2foauth2%2ftoken",
    "/metadata/%2569dentity/oauth2/token",
    "/metadata/identity;x/oauth2/token",
    "/metadata/identity./oauth2/token",
    "/metadata/.identity/oauth2/token",
    "/metadata/v2/identity/oauth2/token",
];

fn fill(directory: &Path, arguments: &str) -> anyhow::Result<()> {
    let pod = |namespace: &str, name: &str, labels: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {labels}}}\n\
             spec: {{containers: [{{name: main, image: example.invalid/app}}]}}\n"
        )
    };
    let exception = |namespace: &str| {
        format!(
            "apiVersion: aadpodidentity.k8s.io/v1\nkind: AzurePodIdentityException\nmetadata: {{name: agents, namespace: \
             {namespace}}}\nspec: {{podLabels: {{role: agent, other: label}}}}\n"
        )
    };
    let objects = [
        "apiVersion: aadpodidentity.k8s.io/v1\nkind: AzureIdentity\nmetadata: {name: app, namespace: demo}\nspec:\n  type: 0\n  \
         resourceID: /subscriptions/s/resourcegroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/app\n"
            .to_owned()
            + &format!("  clientID: {ASSIGNED}\n"),
        "apiVersion: aadpodidentity.k8s.io/v1\nkind: AzureIdentityBinding\nmetadata: {name: app, namespace: demo}\n\
         spec: {azureIdentity: app, selector: app}\n"
            .to_owned(),
        pod("demo", "app", "{aadpodidbinding: app}"),
        pod("demo", "bare", "{}"),
        pod("demo", "agent", "{role: agent}"),
        pod("agents", "agent", "{role: Agent}"),
        pod("agents", "other", "{role: other}"),
        exception("demo"),
        exception("agents"),
    ];
    files::replace(&directory.join("objects.yaml"), &objects.join("---\n"))?;
    files::replace(
        &directory.join("lab.yaml"),
        &format!(
            "managedIdentities:\n- {{resourceId: '{NODE_ID}', clientId: {OF_THE_NODE}, tenantId: {TENANT}}}\n\
             nodeArguments: [{arguments}]\n"
        ),
    )
}

/// Asks the service from inside a pod. Waits for a pod's share of requests.
fn ask(lab: &Lab, pod: &str, arguments: &[&str], path: &str) -> anyhow::Result<Answer> {
    let url = format!("{SERVICE}{path}");
    let mut words = vec!["--path-as-is", "-H", "Metadata: true"];
    words.extend(arguments);
    words.push(&url);
    let answer = clock::wait_for(Duration::from_secs(30), || {
        let answer = lab.curl(pod, &words)?;
        Ok((answer.status != 429).then_some(answer))
    })?;
    answer.with_context(|| format!("{path}: 429 again and again"))
}

/// How often the node's service was asked for something that `what` is in.
fn asked(lab: &Lab, what: &str) -> anyhow::Result<usize> {
    let mut count = 0;
    for entry in std::fs::read_dir(lab.run_dir()).context("no state of the lab")?.flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "jsonl") {
            count += files::read(&entry.path())?.lines().filter(|line| line.contains(what)).count();
        }
    }
    Ok(count)
}

#[test]
fn by_default_the_instance_can_be_read_and_nothing_that_is_the_nodes_alone() -> anyhow::Result<()> {
    let lab = Lab::up(None, |directory| fill(directory, ""))?;
    default_policy(&lab).with_context(|| lab.log_tail())?;
    lab.down()
}

fn default_policy(lab: &Lab) -> anyhow::Result<()> {
    for pod in ["demo/app", "demo/bare"] {
        let instance = ask(lab, pod, &[], INSTANCE)?;
        ensure!(instance.status == 200 && instance.field("osType") == "Linux", "{instance:?}");
        let twisted = ask(lab, pod, &[], "//Metadata/%69nstance/compute/osType/?api-version=2021-02-01&format=text")?;
        // The emulated service takes case seriously; what is sent is the pod's case.
        ensure!(twisted.status == 404 && twisted.json()["error"] == "Not found", "{twisted:?}");
        let name = ask(lab, pod, &[], "//metadata/%69nstance/compute/osType/?api-version=2021-02-01&format=text")?;
        ensure!(name.status == 200 && name.body == "Linux", "{name:?}");
        let events = ask(lab, pod, &[], EVENTS)?;
        ensure!(events.status == 200 && events.json()["DocumentIncarnation"] == 1, "{events:?}");
    }
    // The service's own refusals are passed on as they are.
    let version = ask(lab, "demo/app", &[], "/metadata/instance?api-version=1999-01-01")?;
    ensure!(version.status == 400 && version.json()["newest-versions"].is_array(), "{version:?}");

    let blocked = |answer: Answer, status: u16| {
        ensure!(answer.status == status && !answer.field("error_description").is_empty(), "{answer:?}");
        anyhow::Ok(())
    };
    blocked(ask(lab, "demo/app", &[], ATTESTED)?, 403)?;
    blocked(ask(lab, "demo/app", &[], "/metadata/versions")?, 403)?;
    blocked(ask(lab, "demo/app", &[], "/metadata/loadbalancer?api-version=2020-10-01")?, 403)?;
    blocked(ask(lab, "demo/app", &["-d", r#"{"StartRequests":[{"EventId":"x"}]}"#], EVENTS)?, 403)?;
    blocked(ask(lab, "demo/app", &["-X", "PUT"], INSTANCE)?, 405)?;
    blocked(ask(lab, "demo/app", &["-H", "X-Forwarded-For: 10.0.0.1"], INSTANCE)?, 400)?;
    blocked(ask(lab, "demo/app", &["-H", "Metadata;"], INSTANCE)?, 400)?;
    for trick in TRICKS {
        let answer = ask(lab, "demo/app", &[], &format!("{trick}?api-version=2018-02-01&{VAULT}"))?;
        ensure!(matches!(answer.status, 400 | 403 | 404), "{trick}: {answer:?}");
        ensure!(!answer.body.contains("access_token"), "{trick}: {answer:?}");
    }
    for never in ["attested", "versions", "loadbalancer", "oauth2", "\"POST\""] {
        let count = asked(lab, never)?;
        ensure!(count == 0, "{count} requests with {never} reached the node's service");
    }
    ensure!(asked(lab, "scheduledevents")? == 2, "the log of the node's service is not where it is looked for");

    // Exceptions are there, and no namespace is listed.
    for pod in ["demo/agent", "agents/agent"] {
        let answer = lab.ask(pod, &format!("{VAULT}&client_id={OF_THE_NODE}"))?;
        ensure!(answer.status == 400 && answer.field("access_token").is_empty(), "{pod}: {answer:?}");
    }
    // And the main thing works as before.
    let token = lab.ask("demo/app", VAULT)?.claims()?;
    ensure!(token.appid == ASSIGNED, "{token:?}");
    Ok(())
}

#[test]
fn a_policy_file_lets_one_namespace_approve_events_and_read_what_is_attested() -> anyhow::Result<()> {
    let lab = Lab::up(None, |directory| {
        let policy = directory.parent().context("no directory beside the manifests")?.join("policy.yaml");
        files::replace(
            &policy,
            "rules:\n- namespaces: [agents]\n  paths: [/metadata/scheduledevents, /metadata/attested]\n  methods: [GET, POST]\n\
             - paths: [/metadata/versions]\n",
        )?;
        fill(directory, &format!("--metadata-policy, '{}'", policy.display()))
    })?;
    policy_file(&lab).with_context(|| lab.log_tail())?;
    lab.down()
}

fn policy_file(lab: &Lab) -> anyhow::Result<()> {
    let events = ask(lab, "agents/other", &[], EVENTS)?;
    let id = events.json()["Events"][0]["EventId"].as_str().context("no event")?.to_owned();
    let approval = format!(r#"{{"StartRequests":[{{"EventId":"{id}"}}]}}"#);
    let approved = ask(lab, "agents/other", &["-d", &approval], EVENTS)?;
    ensure!(approved.status == 200, "{approved:?}");
    let events = ask(lab, "agents/other", &[], EVENTS)?;
    ensure!(events.json()["Events"][0]["EventStatus"] == "Started", "{events:?}");
    ensure!(ask(lab, "agents/other", &[], ATTESTED)?.field("encoding") == "pkcs7");
    ensure!(ask(lab, "demo/bare", &[], "/metadata/versions")?.status == 200);
    for path in [EVENTS, ATTESTED, INSTANCE] {
        let answer = ask(lab, "demo/bare", &[], path)?;
        ensure!(answer.status == 403 && answer.field("error") == "access_denied", "{path}: {answer:?}");
    }
    let answer = ask(lab, "demo/bare", &["-d", &approval], EVENTS)?;
    ensure!(answer.status == 403, "{answer:?}");
    let posts = asked(lab, "\"POST\"")?;
    ensure!(posts == 1, "{posts} approvals reached the node's service");
    Ok(())
}

#[test]
fn an_exempted_pod_gets_what_it_asks_for_of_the_node_and_no_other_pod_does() -> anyhow::Result<()> {
    let lab = Lab::up(None, |directory| fill(directory, "--exception-namespaces, agents"))?;
    exceptions(&lab).with_context(|| lab.log_tail())?;
    lab.down()
}

fn exceptions(lab: &Lab) -> anyhow::Result<()> {
    let named = [
        (format!("client_id={OF_THE_NODE}"), OF_THE_NODE),
        (format!("client_id={ASSIGNED}"), ASSIGNED),
        (format!("mi_res_id={}", NODE_ID.replace('/', "%2F")), OF_THE_NODE),
        (format!("msi_res_id={}", NODE_ID.to_uppercase()), OF_THE_NODE),
    ];
    for (name, application) in &named {
        let answer = lab.ask("agents/agent", &format!("{VAULT}&{name}"))?;
        ensure!(answer.claims()?.appid == *application, "{name}: {answer:?}");
        for field in ["expires_in", "expires_on", "not_before", "resource", "token_type", "client_id"] {
            ensure!(!answer.field(field).is_empty(), "no {field} in {answer:?}");
        }
    }
    // The node has two: its own words about that, and about one that it has not.
    let several = lab.ask("agents/agent", VAULT)?;
    ensure!(
        several.status == 400 && several.field("error_description").starts_with("Multiple user assigned"),
        "{several:?}"
    );
    let unknown = lab.ask("agents/agent", &format!("{VAULT}&client_id=cccccccc-0000-4000-8000-000000000009"))?;
    ensure!(unknown.status == 400 && unknown.field("error_description").contains("Identity not found"), "{unknown:?}");

    // Without the label, in a namespace that is not listed, with a binding: none of them gets it.
    for pod in ["agents/other", "demo/agent", "demo/bare", "demo/app"] {
        let answer = lab.ask(pod, &format!("{VAULT}&client_id={OF_THE_NODE}"))?;
        ensure!(answer.status == 400 && answer.field("access_token").is_empty(), "{pod}: {answer:?}");
    }
    ensure!(lab.ask("demo/app", VAULT)?.claims()?.appid == ASSIGNED);
    // The policy is for exempted pods, too.
    ensure!(ask(lab, "agents/agent", &[], ATTESTED)?.status == 403);

    // Each is recorded, with pod, exception and client id.
    let log = lab.log();
    for application in [OF_THE_NODE, ASSIGNED] {
        let parts =
            ["token issued", "pod_namespace=\"agents\"", "pod=\"agent\"", "exception=\"agents/agents\"", application];
        let found = log.lines().any(|line| parts.iter().all(|part| line.contains(part)));
        ensure!(found, "no record of a token of {application}");
    }

    // And no more, as soon as the exception is gone.
    let objects = files::read(&lab.manifests().join("objects.yaml"))?;
    lab.write("objects.yaml", &objects.replace("podLabels: {role: agent, other: label}", "podLabels: {role: nobody}"))?;
    clock::wait_for(Duration::from_secs(20), || {
        let answer = lab.ask("agents/agent", &format!("{VAULT}&client_id={OF_THE_NODE}"))?;
        Ok((answer.status == 400).then_some(()))
    })?
    .context("the pod is exempted for ever")
}
