//! 2,000 pods on 50 nodes with 20 identities, on a real kube-apiserver and etcd, against the controller as it ships: seconds
//! from the last pod created to the last one assigned, and what the controller wrote for it, from the API server's own audit
//! log. Prints rows of JSON. `cargo xtask bench` calls it with the identities' type and sets the variables.

use std::{
    collections::BTreeMap,
    io::Write,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use identity_crd::{AzureAssignedIdentity, AzureIdentity, AzureIdentityBinding};
use identity_lab::kube::ControlPlane;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::{
    Api, Resource, ResourceExt,
    api::PostParams,
    runtime::{WatchStreamExt, watcher},
};
use serde_json::json;

const PODS: usize = 2000;
const NODES: usize = 50;
const IDENTITIES: usize = 20;
const IN_FLIGHT: usize = 20;
const CONTROLLER: &str = "system:serviceaccount:entra-pod-identity:entra-pod-identity-controller";
const NAMESPACE: &str = "bench";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // `cargo bench` adds `--bench`.
    let Some(kind) = std::env::args().skip(1).find_map(|word| word.parse::<u8>().ok()) else {
        bail!("usage: cargo bench --bench assign -- 0|1  (`cargo xtask bench` sets what else it needs)")
    };
    let assets = variable("KUBEBUILDER_ASSETS")?;
    let controller = variable("IDENTITY_CONTROLLER")?;
    let work = tempfile::tempdir()?;
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let plane = ControlPlane::start_with(assets.as_ref(), &work.path().join("cluster"), &manifests(&deploy)?).await?;
    let rows = measure(&plane, kind, &controller, work.path()).await;
    plane.stop().await;
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&rows?)?)?;
    Ok(())
}

async fn measure(plane: &ControlPlane, kind: u8, controller: &str, work: &Path) -> anyhow::Result<serde_json::Value> {
    prepare(plane, kind).await?;
    let kubeconfig = plane.kubeconfig_for(CONTROLLER, &["system:serviceaccounts", "system:authenticated"])?;
    let _controller = start(controller, &kubeconfig, work)?;

    let assignments: Api<AzureAssignedIdentity> = Api::namespaced(plane.client(), NAMESPACE);
    let mut seen = std::pin::pin!(watcher(assignments, watcher::Config::default()).applied_objects());
    let counting = async {
        let mut assigned = BTreeMap::new();
        while assigned.len() < PODS {
            let object = seen.try_next().await?.context("the watch ended")?;
            if object.is_assigned() {
                let pod = object.spec.pod.clone().unwrap_or_default();
                assigned.entry(pod).or_insert_with(now);
            }
        }
        anyhow::Ok(assigned.into_values().max().unwrap_or_else(now))
    };
    let creating = async {
        let pods: Api<Pod> = Api::namespaced(plane.client(), NAMESPACE);
        let first = now();
        stream::iter(0..PODS)
            .map(|number| create(&pods, pod(number)))
            .buffer_unordered(IN_FLIGHT)
            .try_collect::<Vec<()>>()
            .await?;
        anyhow::Ok((first, now()))
    };
    let both = async { tokio::try_join!(counting, creating) };
    let (last_assigned, (first_created, last_created)) = tokio::time::timeout(Duration::from_mins(5), both)
        .await
        .context("not all pods were assigned within 300 s")??;
    // What the controller writes late (status, a second write of the same) counts as well.
    settle(plane).await?;

    let events = plane.audit_events().await?;
    let own: Vec<_> = events.iter().filter(|event| event.user == CONTROLLER && event.is_write()).collect();
    let of = |resource: &str| own.iter().filter(|event| event.resource == resource).count();
    ensure!(
        of("azureassignedidentities") >= PODS,
        "the audit log has {} writes of assignments",
        of("azureassignedidentities")
    );
    #[expect(clippy::cast_precision_loss, reason = "thousands")]
    let per_pod = of("azureassignedidentities") as f64 / PODS as f64;
    let beyond = last_assigned.saturating_duration_since(last_created).as_secs_f64();
    let creation = last_created.duration_since(first_created).as_secs_f64();
    let (suffix, bar_seconds, bar_writes) = if kind == 0 { ("_type0", 10.0, 2.0) } else { ("", 5.0, 1.0) };
    let row = |id: &str, what: String, value: f64, unit: &str, bar: Option<f64>| json!({"id": format!("{id}{suffix}"), "what": what, "value": value, "unit": unit, "min": value, "max": value, "bar": bar, "met": null});
    Ok(json!([
        row(
            "assign_2000_s",
            format!("last of {PODS} pods created to last assigned, type {kind}"),
            beyond,
            "s",
            Some(bar_seconds)
        ),
        row(
            "writes_per_pod",
            format!("writes of assignments for a pod, type {kind}"),
            per_pod,
            "writes",
            Some(bar_writes)
        ),
        row(
            "create_2000_s",
            format!("creating the {PODS} pods, {IN_FLIGHT} in flight, controller running, type {kind}"),
            creation,
            "s",
            None
        ),
    ]))
}

/// Waits until the controller has written nothing for two looks at the log in a row, 500 ms apart.
async fn settle(plane: &ControlPlane) -> anyhow::Result<()> {
    let mut before = usize::MAX;
    for _ in 0..60 {
        let events = plane.audit_events().await?;
        let writes = events
            .iter()
            .filter(|event| event.user == CONTROLLER && event.is_write() && event.resource != "leases")
            .count();
        if writes == before {
            return Ok(());
        }
        before = writes;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    bail!("the controller is still writing 30 s after the last assignment")
}

/// Every manifest in `deploy/crds`, then those beside it that need no scheduler: namespace, RBAC, policy.
fn manifests(deploy: &Path) -> anyhow::Result<Vec<String>> {
    let mut paths = vec![deploy.join("namespace.yaml")];
    for entry in std::fs::read_dir(deploy.join("crds"))? {
        paths.push(entry?.path());
    }
    paths.extend([deploy.join("rbac-controller.yaml"), deploy.join("admission-policy.yaml")]);
    paths
        .iter()
        .map(|path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display())))
        .collect()
}

async fn prepare(plane: &ControlPlane, kind: u8) -> anyhow::Result<()> {
    let client = plane.client();
    create(&Api::all(client.clone()), from::<Namespace>(json!({"metadata": {"name": NAMESPACE}}))?).await?;
    let nodes: Api<Node> = Api::all(client.clone());
    for number in 0..NODES {
        create(&nodes, from(json!({"metadata": {"name": format!("node-{number}")}}))?).await?;
    }
    let identities: Api<AzureIdentity> = Api::namespaced(client.clone(), NAMESPACE);
    let bindings: Api<AzureIdentityBinding> = Api::namespaced(client, NAMESPACE);
    for number in 0..IDENTITIES {
        let name = format!("id-{number}");
        let client_id = format!("aaaaaaaa-0000-4000-8000-{number:012}");
        let spec = if kind == 0 {
            json!({"type": 0, "clientID": client_id, "resourceID": format!(
                "/subscriptions/11111111-1111-4111-8111-111111111111/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{name}"
            )})
        } else {
            json!({"type": kind, "clientID": client_id, "tenantID": "22222222-2222-4222-8222-222222222222",
                   "clientPassword": {"name": "secret", "namespace": NAMESPACE}})
        };
        create(
            &identities,
            from(json!({"apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity",
            "metadata": {"name": name}, "spec": spec}))?,
        )
        .await?;
        create(
            &bindings,
            from(json!({"apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding",
            "metadata": {"name": name}, "spec": {"azureIdentity": name, "selector": name}}))?,
        )
        .await?;
    }
    Ok(())
}

fn pod(number: usize) -> Pod {
    let value = json!({
        "metadata": {"name": format!("pod-{number}"), "labels": {"aadpodidbinding": format!("id-{}", number % IDENTITIES)}},
        "spec": {"nodeName": format!("node-{}", number % NODES), "containers": [{"name": "main", "image": "example.invalid/app"}]},
    });
    serde_json::from_value(value).expect("a literal of the right shape")
}

fn from<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> anyhow::Result<T> {
    Ok(serde_json::from_value(value)?)
}

async fn create<K>(api: &Api<K>, object: K) -> anyhow::Result<()>
where
    K: Resource + Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    api.create(&PostParams::default(), &object)
        .await
        .with_context(|| format!("cannot create {}", object.name_any()))?;
    Ok(())
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[expect(clippy::disallowed_methods, reason = "the benchmark starts the controller that it measures")]
fn start(program: &str, kubeconfig: &Path, work: &Path) -> anyhow::Result<Ended> {
    let log = std::fs::File::create(work.join("controller.log"))?;
    let [probe, metrics] = [port()?, port()?];
    let child = Command::new(program)
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(["--probe-address", &format!("127.0.0.1:{probe}"), "--metrics-address", &format!("127.0.0.1:{metrics}")])
        .args(["--lease-namespace", "entra-pod-identity", "--holder", "bench"])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let mut child = Ended(child);
    let began = now();
    while now() < began + Duration::from_mins(1) {
        if let Some(status) = child.0.try_wait()? {
            bail!("the controller ended ({status}):\n{}", std::fs::read_to_string(work.join("controller.log"))?);
        }
        if ready(probe) {
            return Ok(child);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!("the controller was not ready after 60 s:\n{}", std::fs::read_to_string(work.join("controller.log"))?)
}

fn ready(port: u16) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        std::io::read_to_string(stream)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// A port that was free a moment ago.
fn port() -> std::io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "the benchmark gets its paths from `cargo xtask bench`")]
fn variable(name: &str) -> anyhow::Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set: run `cargo xtask bench`"))
}
