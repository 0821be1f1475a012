//! What depends on Kubernetes: the node against a real kube-apiserver.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use identity_crd::{AzureAssignedIdentity, AzureIdentity, AzureIdentityBinding};
use identity_lab::kube::ControlPlane;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::{
    Api, Resource, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::json;

use super::{
    NAMESPACE, NODE,
    client::{connect_within, exchange},
    generator::{Pace, Plan, count},
    now,
    objects::{self, IDENTITIES, RESOURCE},
    rows::Row,
    stage::{METADATA, Programs, Stage, address, load, memory},
};

const CONTROLLER: &str = "system:serviceaccount:entra-pod-identity:entra-pod-identity-controller";
const NODE_USER: &str = "system:serviceaccount:entra-pod-identity:entra-pod-identity-node";
const GROUPS: [&str; 2] = ["system:serviceaccounts", "system:authenticated"];
pub(crate) const IN_FLIGHT: usize = 20;

pub(crate) async fn measure(
    programs: &Programs,
    assets: &Path,
    netns: PathBuf,
    work: &Path,
    pods: usize,
    quick: bool,
) -> anyhow::Result<Vec<Row>> {
    let plane = control_plane(assets, work).await?;
    let rows = with(&plane, programs, netns, work, pods, quick).await;
    plane.stop().await;
    rows
}

/// A control plane with what `deploy/` has beside the programs themselves.
pub(crate) async fn control_plane(assets: &Path, work: &Path) -> anyhow::Result<ControlPlane> {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    Ok(ControlPlane::start_with(assets, &work.join("cluster"), &manifests(&deploy)?).await?)
}

/// Where controller and node find their objects: as the accounts that `deploy/` gives them.
pub(crate) fn sources(plane: &ControlPlane) -> anyhow::Result<[Vec<String>; 2]> {
    let source = |user| -> anyhow::Result<Vec<String>> {
        Ok(vec!["--kubeconfig".to_owned(), plane.kubeconfig_for(user, &GROUPS)?.display().to_string()])
    };
    let mut controller = source(CONTROLLER)?;
    controller.extend(["--lease-namespace", "entra-pod-identity"].map(str::to_owned));
    Ok([controller, source(NODE_USER)?])
}

async fn with(
    plane: &ControlPlane,
    programs: &Programs,
    netns: PathBuf,
    work: &Path,
    pods: usize,
    quick: bool,
) -> anyhow::Result<Vec<Row>> {
    prepare(plane, &[NODE], IDENTITIES).await?;
    let stage = Stage::start(programs, netns, work, sources(plane)?).await?;
    let mut rows = vec![Row::new(
        "rss_mib_0",
        "anonymous memory of the node daemon without pods, Kubernetes mode",
        "MiB",
        &[memory(&stage.node)?],
    )];

    let client: Api<Pod> = Api::namespaced(plane.client(), NAMESPACE);
    create_all(&client, (0..pods).map(objects::pod)).await?;
    assigned(plane, pods).await?;

    // The others have their addresses before.
    let late = if quick { pods.min(80) } else { pods };
    let seen = Addresses::follow(client.clone());
    stream::iter(late..pods)
        .map(|number| publish(&client, format!("pod-{number}"), number))
        .buffer_unordered(IN_FLIGHT)
        .try_collect::<Vec<()>>()
        .await?;
    let mut times = Vec::new();
    for number in 0..late {
        times.push(first_token(&stage.pods, &client, &seen, number).await?);
        // Below what the node asks of IMDS in a second.
        tokio::time::sleep(Duration::from_millis(90)).await;
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
        let index = (count(times.len() as u64) * share).ceil() as usize;
        times[index.clamp(1, times.len()) - 1]
    };
    let mut first = Row::new(
        "first_token_p99_ms",
        format!(
            "99th percentile of {late} pods that ask before they have an address: from the address in the API (answered to \
             whoever wrote it, or seen by a watch, whichever is earlier) to the first, cold token; the upstream answers at once"
        ),
        "ms",
        &[at(0.99)],
    )
    .at_most(50.0);
    first.spread(times[0], times[times.len() - 1]);
    rows.push(first);
    rows.push(Row::new("first_token_p50_ms", "the median of those", "ms", &[at(0.5)]));
    rows.push(api_calls(plane, &stage, pods).await?);
    tokio::time::sleep(Duration::from_secs(2)).await;
    rows.push(
        Row::new(
            "rss_mib_250",
            format!(
                "anonymous memory of the node daemon with {pods} pods, {IDENTITIES} identities and tens of thousands of tokens \
                 answered, Kubernetes mode"
            ),
            "MiB",
            &[memory(&stage.node)?],
        )
        .at_most(12.0),
    );
    Ok(rows)
}

/// Milliseconds from the address of a pod to its first token, asked for before.
async fn first_token(netns: &Path, pods: &Api<Pod>, seen: &Addresses, number: usize) -> anyhow::Result<f64> {
    let mut stream = connect_within(netns, METADATA, address(number))?;
    let request = objects::request(&format!("https://first-{number}.example.com/"));
    let asking = tokio::spawn(async move {
        let mut answer = Vec::new();
        let (status, _) = exchange(&mut stream, request.as_bytes(), &mut answer).await?;
        ensure!(status == 200, "pod-{number}: {}", String::from_utf8_lossy(&answer));
        anyhow::Ok(now())
    });
    // It is being held by then.
    tokio::time::sleep(Duration::from_millis(30)).await;
    ensure!(!asking.is_finished(), "pod-{number} got an answer before it had an address");
    publish(pods, format!("pod-{number}"), number).await?;
    let published = now();
    let answered = asking.await??;
    let watched = seen.of(&format!("pod-{number}")).await?;
    Ok(answered.saturating_duration_since(published.min(watched)).as_secs_f64() * 1000.0)
}

/// When a watch first saw the address of each pod.
struct Addresses {
    seen: Arc<Mutex<HashMap<String, Instant>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Addresses {
    fn follow(pods: Api<Pod>) -> Self {
        let seen = Arc::<Mutex<HashMap<String, Instant>>>::default();
        let noted = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut events = std::pin::pin!(watcher(pods, watcher::Config::default()).applied_objects());
            while let Some(event) = events.next().await {
                let at = now();
                if let Ok(pod) = event
                    && pod.status.as_ref().is_some_and(|status| status.pod_ip.is_some())
                {
                    noted.lock().unwrap_or_else(PoisonError::into_inner).entry(pod.name_any()).or_insert(at);
                }
            }
        });
        Self { seen, task }
    }

    async fn of(&self, pod: &str) -> anyhow::Result<Instant> {
        for _ in 0..500 {
            if let Some(at) = self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(pod) {
                return Ok(*at);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bail!("the watch did not show the address of {pod} within 5 s")
    }
}

impl Drop for Addresses {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Requests of the node in the API server's audit log while tokens, warm and cold, are issued.
async fn api_calls(plane: &ControlPlane, stage: &Stage, pods: usize) -> anyhow::Result<Row> {
    let calls = async || -> anyhow::Result<Vec<String>> {
        // What is on its way into the log.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let events = plane.audit_events().await?;
        let own = events.iter().filter(|event| event.user == NODE_USER);
        Ok(own.map(|event| format!("{} {}", event.verb, event.resource)).collect())
    };
    let plan = |requests: Vec<String>, connections: usize, pace| Plan {
        netns: Some(stage.pods.clone()),
        target: METADATA,
        sources: (0..pods).map(address).collect(),
        connections,
        reconnect: false,
        requests,
        pace,
    };
    let prime = plan(vec![objects::request(RESOURCE)], pods, Pace::Open { per_second: 10, count: 20 });
    load(&prime).await?.flawless("the first tokens")?;
    let before = calls().await?.len();
    ensure!(before > 0, "the API server's log knows no request of {NODE_USER}");
    let warm = plan(vec![objects::request(RESOURCE)], pods, Pace::Closed { millis: 1500 });
    let warm = load(&warm).await?.flawless("warm tokens")?;
    let resources = (0..20).map(|number| objects::request(&format!("https://calls-{number}.example.com/")));
    let cold = plan(resources.collect(), 20, Pace::Open { per_second: 10, count: 20 });
    let cold = load(&cold).await?.flawless("cold tokens")?;
    let made = calls().await?.split_off(before);
    // Events are written of series of tokens, one a second at most, whatever the number of tokens.
    let (events, made): (Vec<String>, Vec<String>) = made.into_iter().partition(|call| call.ends_with(" events"));
    let named = if made.is_empty() { "none".to_owned() } else { made.join(", ") };
    let tokens = warm.requests + cold.requests;
    Ok(Row::new(
        "api_calls_per_token",
        format!(
            "requests of the node in the API server's audit log ({named}; beside {} Events of the audit, at most one a second) \
             while {tokens} tokens were issued, 20 of them cold",
            events.len()
        ),
        "calls",
        &[count(made.len() as u64) / count(tokens)],
    )
    .at_most(0.0))
}

pub(crate) async fn assigned(plane: &ControlPlane, pods: usize) -> anyhow::Result<()> {
    let api: Api<AzureAssignedIdentity> = Api::namespaced(plane.client(), NAMESPACE);
    for _ in 0..600 {
        if api.list(&kube::api::ListParams::default()).await?.items.iter().filter(|object| object.is_assigned()).count()
            >= pods
        {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("not all pods were assigned within a minute")
}

/// Gives a pod the address with this number.
pub(crate) async fn publish(pods: &Api<Pod>, name: String, number: usize) -> anyhow::Result<()> {
    let patch = Patch::Merge(json!({"status": objects::status(number)}));
    pods.patch_status(&name, &PatchParams::default(), &patch).await?;
    Ok(())
}

/// The namespace, nodes, and so many identities with their bindings.
pub(crate) async fn prepare(plane: &ControlPlane, nodes: &[&str], identities: usize) -> anyhow::Result<()> {
    let client = plane.client();
    create(&Api::<Namespace>::all(client.clone()), json!({"metadata": {"name": NAMESPACE}})).await?;
    for node in nodes {
        create(&Api::<Node>::all(client.clone()), json!({"metadata": {"name": node}})).await?;
    }
    for number in 0..identities {
        create(&Api::<AzureIdentity>::namespaced(client.clone(), NAMESPACE), objects::identity(number)).await?;
        create(&Api::<AzureIdentityBinding>::namespaced(client.clone(), NAMESPACE), objects::binding(number)).await?;
    }
    Ok(())
}

/// Creates pods, some at a time.
pub(crate) async fn create_all(api: &Api<Pod>, pods: impl Iterator<Item = serde_json::Value>) -> anyhow::Result<()> {
    stream::iter(pods).map(|pod| create(api, pod)).buffer_unordered(IN_FLIGHT).try_collect::<Vec<()>>().await?;
    Ok(())
}

async fn create<K>(api: &Api<K>, object: serde_json::Value) -> anyhow::Result<()>
where
    K: Resource + Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    let object: K = serde_json::from_value(object)?;
    api.create(&PostParams::default(), &object)
        .await
        .with_context(|| format!("cannot create {}", object.name_any()))?;
    Ok(())
}

/// What `deploy/` has beside the programs themselves.
fn manifests(deploy: &Path) -> anyhow::Result<Vec<String>> {
    let mut paths = vec![deploy.join("namespace.yaml")];
    for entry in std::fs::read_dir(deploy.join("crds"))? {
        paths.push(entry?.path());
    }
    paths.extend(["rbac-controller.yaml", "rbac-node.yaml", "admission-policy.yaml"].map(|name| deploy.join(name)));
    paths
        .iter()
        .map(|path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display())))
        .collect()
}
