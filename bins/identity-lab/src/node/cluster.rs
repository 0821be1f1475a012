//! `--kube`: the objects live in a real API server, and the lab is the scheduler and kubelet of its one node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use futures::{StreamExt as _, pin_mut};
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Node, Pod, ServiceAccount},
};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinSet};

use super::{
    Error,
    deployed::{NAMESPACE, applicable, deployed, discovery, grants, identify},
    kubelet::{Kubelet, NODE_ADDRESS, NODE_NAME, PodView},
    place::Place,
};
use crate::{
    emulator::{Issuer, IssuerServer, Pem},
    kube::ControlPlane,
};

/// The API server issues no token for less, in seconds.
const SHORTEST: u32 = 600;

/// Field manager and reason in messages.
const MANAGER: &str = "identity-lab";
/// Where the parts of a cluster are.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Directory with etcd, kube-apiserver and kube-controller-manager.
    pub assets: PathBuf,
    /// The project's `deploy/` directory.
    pub deploy: PathBuf,
}

type Snapshot = Option<Arc<BTreeMap<(String, String), Value>>>;

/// The API server, and what is in it.
pub(super) struct Cluster {
    plane: ControlPlane,
    kubelet: Kubelet,
    pods: watch::Receiver<Snapshot>,
    identities: watch::Receiver<Snapshot>,
    secrets: watch::Receiver<Snapshot>,
    applied: BTreeMap<String, Value>,
    /// Pods of the manifests that the API server accepted.
    accepted: BTreeSet<(String, String)>,
    namespaces: BTreeSet<String>,
    tasks: JoinSet<()>,
}

/// What the node has to do about its pods.
#[derive(Default)]
pub(super) struct Work {
    /// Pods that run here.
    pub(super) desired: Vec<PodView>,
    /// Pods to be given to this node.
    bind: Vec<(String, String)>,
    /// Pods whose status is to be written, with it.
    publish: Vec<(String, String, Value)>,
    /// Pods that are being deleted.
    finish: Vec<(String, String)>,
}

impl Cluster {
    pub(super) async fn start(parts: &Parts, lab: &Place) -> Result<Self, Error> {
        let (crds, rest): (Vec<Value>, Vec<Value>) =
            deployed(&parts.deploy)?.into_iter().partition(|object| object["kind"] == "CustomResourceDefinition");
        let text =
            |objects: &[Value]| objects.iter().map(|object| format!("---\n{object}\n")).collect::<Vec<_>>().concat();
        let plane = ControlPlane::start_with(&parts.assets, &lab.file("kube"), &[text(&crds)]).await?;
        plane.apply_yaml(&text(&rest)).await?;
        plane.apply_yaml(&discovery().to_string()).await?;
        let client = plane.client();
        let nodes: Api<Node> = Api::all(client.clone());
        let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE_NAME } });
        let params = PatchParams::apply(MANAGER).force();
        nodes.patch(NODE_NAME, &params, &Patch::Apply(&node)).await.map_err(crate::kube::Error::from)?;
        let status = json!({ "status": {
            "addresses": [{ "type": "InternalIP", "address": NODE_ADDRESS }],
            "conditions": [{ "type": "Ready", "status": "True", "reason": "Lab", "message": "" }],
        }});
        nodes
            .patch_status(NODE_NAME, &PatchParams::default(), &Patch::Merge(&status))
            .await
            .map_err(crate::kube::Error::from)?;

        let mut tasks = JoinSet::new();
        let mut follow_kind = |group: &str, kind: &'static str, plural: &str| {
            let (sender, receiver) = watch::channel(None);
            let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural);
            tasks.spawn(follow(client.clone(), resource, sender));
            receiver
        };
        Ok(Self {
            pods: follow_kind("", "Pod", "pods"),
            identities: follow_kind("aadpodidentity.k8s.io", "AzureIdentity", "azureidentities"),
            secrets: follow_kind("", "Secret", "secrets"),
            plane,
            kubelet: Kubelet::default(),
            applied: BTreeMap::new(),
            accepted: BTreeSet::new(),
            namespaces: BTreeSet::new(),
            tasks,
        })
    }

    pub(super) fn plane(&self) -> &ControlPlane {
        &self.plane
    }

    /// Kubeconfig of one of the product's service accounts.
    pub(super) fn kubeconfig(&self, account: &str) -> Result<PathBuf, Error> {
        Ok(self.plane.kubeconfig_for(&format!("system:serviceaccount:{NAMESPACE}:{account}"), &[])?)
    }

    /// Waits until pods, identities or secrets changed.
    pub(super) async fn changed(&mut self) {
        let (pods, identities, secrets) = (&mut self.pods, &mut self.identities, &mut self.secrets);
        let broken = tokio::select! {
            result = pods.changed() => result,
            result = identities.changed() => result,
            result = secrets.changed() => result,
        };
        if broken.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// What the emulators are to be seeded from.
    pub(super) fn objects(&self) -> Vec<Value> {
        let snapshots = [&self.identities, &self.secrets, &self.pods].map(|kind| kind.borrow().clone());
        snapshots.into_iter().flatten().flat_map(|snapshot| snapshot.values().cloned().collect::<Vec<_>>()).collect()
    }

    /// What to do about the pods as they are now.
    pub(super) fn work(&mut self, now: &str) -> Option<Work> {
        let snapshot = self.pods.borrow_and_update().clone()?;
        let mut work = Work::default();
        for ((namespace, name), pod) in snapshot.iter() {
            let key = (namespace.clone(), name.clone());
            let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            let node = text("/spec/nodeName");
            if pod.pointer("/metadata/deletionTimestamp").is_some() {
                if node == NODE_NAME {
                    work.finish.push(key);
                }
                continue;
            }
            match node {
                "" => work.bind.push(key),
                NODE_NAME => {
                    let published = !text("/status/podIP").is_empty();
                    let mut pod = pod.clone();
                    if !published && matches!(text("/status/phase"), "" | "Pending") {
                        pod["status"] = json!({});
                    }
                    // The API server has given it a UID already.
                    let Some(view) = self.kubelet.admit(&mut pod, String::new, now) else { continue };
                    if !published {
                        work.publish.push((namespace.clone(), name.clone(), pod["status"].clone()));
                    }
                    work.desired.push(view);
                }
                _ => {}
            }
        }
        self.kubelet.retain(&work.desired.iter().map(PodView::key).collect());
        Some(work)
    }

    /// Whether every pod that was applied is bound, addressed and seen as such.
    pub(super) fn settled(&self) -> bool {
        let Some(snapshot) = self.pods.borrow().clone() else { return false };
        let addressed = |pod: &Value| {
            pod.pointer("/status/podIP").is_some()
                || pod.pointer("/spec/nodeName").is_some_and(|node| node != NODE_NAME)
        };
        self.accepted.iter().all(|key| snapshot.get(key).is_some_and(addressed))
    }

    /// Writes what the node did to the API server: bindings, addresses, ends. Failures are returned for the log; the watch
    /// brings what is still to be done again.
    pub(super) async fn report(&self, work: &Work) -> Vec<String> {
        let mut failures = Vec::new();
        let mut note = |what: &str, pod: (&str, &str), result: Result<(), kube::Error>| match result {
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
            Err(error) => failures.push(format!("cannot {what} pod {}/{}: {error}", pod.0, pod.1)),
            Ok(()) => {}
        };
        let api = |namespace: &str| Api::<Pod>::namespaced(self.plane.client(), namespace);
        for (namespace, name) in &work.bind {
            let binding = json!({
                "apiVersion": "v1", "kind": "Binding", "metadata": { "name": name },
                "target": { "apiVersion": "v1", "kind": "Node", "name": NODE_NAME },
            });
            let result = api(namespace)
                .create_subresource::<Value, Value>("binding", name, &PostParams::default(), &binding)
                .await;
            note("bind", (namespace, name), result.map(drop));
        }
        for (namespace, name, status) in &work.publish {
            let mut status = status.clone();
            status["conditions"] = json!([{ "type": "Ready", "status": "True" }]);
            let patch = Patch::Merge(json!({ "status": status }));
            let result = api(namespace).patch_status(name, &PatchParams::default(), &patch).await;
            note("publish the address of", (namespace, name), result.map(drop));
        }
        for (namespace, name) in &work.finish {
            let result = api(namespace).delete(name, &DeleteParams::default().grace_period(0)).await;
            note("finish", (namespace, name), result.map(drop));
        }
        failures
    }

    /// The API server as the issuer of its service accounts' tokens.
    pub(super) fn issuer(&self, lab: &Place) -> Issuer {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.plane.port()));
        let ca = Pem::from(lab.file("kube").join("ca.crt").display().to_string());
        Issuer {
            issuer: crate::kube::SERVICE_ACCOUNT_ISSUER.to_owned(),
            jwks: None,
            server: Some(IssuerServer { address, ca }),
        }
    }

    /// A token as a kubelet requests it for a projected volume, and its lifetime, which the API server may make longer.
    pub(super) async fn projected(
        &self,
        (namespace, name): (&str, &str),
        audience: &str,
        lifetime: u32,
    ) -> Result<(String, u32), Error> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.plane.client(), namespace);
        let lifetime = lifetime.max(SHORTEST);
        let spec = TokenRequestSpec {
            audiences: Some(vec![audience.to_owned()]),
            expiration_seconds: Some(lifetime.into()),
            ..TokenRequestSpec::default()
        };
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let answer = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await
            .map_err(crate::kube::Error::from)?;
        Ok((answer.status.and_then(|status| status.token).unwrap_or_default(), lifetime))
    }

    /// A token of the pod's service account, bound to the pod; none when the account does not exist (yet).
    pub(super) async fn token(&self, pod: &PodView) -> Option<String> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.plane.client(), &pod.namespace);
        let bound = BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(pod.name.clone()),
            uid: Some(pod.uid.clone()),
        };
        let spec = TokenRequestSpec {
            expiration_seconds: Some(24 * 3600),
            bound_object_ref: Some(bound),
            ..TokenRequestSpec::default()
        };
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let answer =
            accounts.create_token_request(&pod.service_account, &PostParams::default(), &request).await.ok()?;
        answer.status?.token
    }

    /// Brings the API server in step with the directory of manifests: applies what is new or changed, deletes what is gone.
    /// What it refuses is returned for the log and tried again when the manifest changes.
    pub(super) async fn apply(&mut self, objects: &[Value]) -> Vec<String> {
        let mut failures = Vec::new();
        let grants = grants(objects);
        let wanted: BTreeMap<String, Value> =
            objects.iter().chain(&grants).map(|object| (identify(object), applicable(object))).collect();
        for (key, object) in &self.applied {
            if !wanted.contains_key(key)
                && let Err(error) = self.plane.delete(object).await
            {
                failures.push(format!("cannot delete {key}: {error}"));
            }
        }
        // As `kubectl apply -f DIR` needs several goes when a namespace comes last, kinds that others need go first.
        let mut order: Vec<(&String, &Value)> = wanted.iter().collect();
        order.sort_by_key(|(_, object)| match object["kind"].as_str() {
            Some("CustomResourceDefinition" | "Namespace") => 0,
            Some("Secret" | "ServiceAccount") => 1,
            Some("Pod") => 3,
            _ => 2,
        });
        for (key, object) in order {
            if self.applied.get(key) == Some(object) {
                continue;
            }
            if let Some(namespace) = object.pointer("/metadata/namespace").and_then(Value::as_str)
                && self.namespaces.insert(namespace.to_owned())
            {
                let made = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace } });
                let _ = self.plane.apply_yaml(&made.to_string()).await;
            }
            match self.plane.apply_yaml(&object.to_string()).await {
                Err(error) => failures.push(format!("{key}: {error}")),
                Ok(_) if object["kind"] == "Pod" => {
                    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
                    let namespace = text("/metadata/namespace").unwrap_or_else(|| "default".to_owned());
                    self.accepted.insert((namespace, text("/metadata/name").unwrap_or_default()));
                }
                Ok(_) => {}
            }
        }
        self.applied = wanted;
        failures
    }

    pub(super) async fn stop(mut self) {
        // An API server that is stopped waits for the watches that are open, the lab's own included.
        self.tasks.shutdown().await;
        self.plane.stop().await;
    }
}

/// Keeps a snapshot of one kind.
async fn follow(client: Client, resource: ApiResource, sender: watch::Sender<Snapshot>) {
    let api: Api<DynamicObject> = Api::all_with(client, &resource);
    let stream = watcher(api, watcher::Config::default()).default_backoff();
    pin_mut!(stream);
    let (mut known, mut listing) = (BTreeMap::new(), BTreeMap::new());
    while let Some(event) = stream.next().await {
        let entry = |object: DynamicObject| {
            let key = (
                object.metadata.namespace.clone().unwrap_or_default(),
                object.metadata.name.clone().unwrap_or_default(),
            );
            let mut value = serde_json::to_value(object).unwrap_or_default();
            value["kind"] = resource.kind.clone().into();
            value["apiVersion"] = resource.api_version.clone().into();
            (key, value)
        };
        match event {
            Ok(Event::Init) => {
                listing = BTreeMap::new();
                continue;
            }
            Ok(Event::InitApply(object)) => {
                listing.extend([entry(object)]);
                continue;
            }
            Ok(Event::InitDone) => known = std::mem::take(&mut listing),
            Ok(Event::Apply(object)) => known.extend([entry(object)]),
            Ok(Event::Delete(object)) => {
                known.remove(&entry(object).0);
            }
            Err(error) => {
                tracing::warn!(kind = resource.kind, %error, "watch interrupted");
                continue;
            }
        }
        sender.send_replace(Some(Arc::new(known.clone())));
    }
}
