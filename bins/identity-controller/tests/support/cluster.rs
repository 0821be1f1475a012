//! The control plane and what people and kubelets do to it.

use http::Method;
use identity_lab::kube::{AuditEvent, ControlPlane};
use kube::Client;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{CONTROLLER, assets, eventually, root, until};

const GROUP: &str = "/apis/aadpodidentity.k8s.io/v1";

/// What an API server says when it does not.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) code: u16,
    pub(crate) message: String,
}

pub(crate) struct Cluster {
    pub(crate) plane: ControlPlane,
    pub(crate) work: TempDir,
    pub(crate) admin: Client,
}

impl Cluster {
    /// Everything in force. `old` are manifests from before the definitions had rules and the policy existed.
    pub(crate) async fn start(old: &str) -> Self {
        let work = tempfile::tempdir().unwrap();
        let definitions: Vec<Value> =
            identity_crd::crds().into_iter().map(|crd| serde_json::to_value(crd).unwrap()).collect();
        let first: Vec<String> = definitions.iter().cloned().map(without_schema).map(|crd| crd.to_string()).collect();
        let plane = ControlPlane::start_with(&assets(), &work.path().join("plane"), &first).await.unwrap();
        let admin = plane.client();
        let cluster = Self { plane, work, admin };
        if !old.is_empty() {
            cluster.plane.apply_yaml(old).await.unwrap();
        }
        cluster.plane.apply_dir(&root().join("deploy/crds")).await.unwrap();
        cluster.plane.apply_dir(&root().join("deploy")).await.unwrap();
        eventually("rules and policy to be in force", async || {
            let bad = identity("default", "bad", &json!({"type": 9}));
            let forged = json!({"apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureAssignedIdentity",
                "metadata": {"name": "forged", "namespace": "default"}, "spec": {}});
            cluster.post(&format!("{}?dryRun=All", path("azureidentities", "default", "")), &bad).await.is_err()
                && cluster
                    .post(&format!("{}?dryRun=All", path("azureassignedidentities", "default", "")), &forged)
                    .await
                    .is_err_and(|refusal| refusal.code == 403)
        })
        .await;
        cluster
    }

    // Requests of the administrator

    pub(crate) async fn send(&self, method: Method, uri: &str, body: Option<&Value>) -> Result<Value, Refusal> {
        let content = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let body = body.map(|body| serde_json::to_vec(body).unwrap()).unwrap_or_default();
        let request =
            http::Request::builder().method(method).uri(uri).header("content-type", content).body(body).unwrap();
        self.admin.request::<Value>(request).await.map_err(|error| match error {
            kube::Error::Api(status) => Refusal { code: status.code, message: status.message.clone() },
            other => Refusal { code: 0, message: other.to_string() },
        })
    }

    pub(crate) async fn get(&self, uri: &str) -> Result<Value, Refusal> {
        self.send(Method::GET, uri, None).await
    }

    pub(crate) async fn post(&self, uri: &str, object: &Value) -> Result<Value, Refusal> {
        self.send(Method::POST, uri, Some(object)).await
    }

    pub(crate) async fn patch(&self, uri: &str, change: &Value) -> Value {
        let answer = self.send(Method::PATCH, uri, Some(change)).await;
        answer.unwrap_or_else(|refusal| panic!("PATCH {uri}: {refusal:?}"))
    }

    pub(crate) async fn delete(&self, uri: &str) {
        let now = json!({"gracePeriodSeconds": 0});
        self.send(Method::DELETE, uri, Some(&now)).await.unwrap_or_else(|refusal| panic!("DELETE {uri}: {refusal:?}"));
    }

    /// Creates an object that knows its own namespace.
    pub(crate) async fn create(&self, plural: &str, object: &Value) -> Value {
        let namespace = object["metadata"]["namespace"].as_str().unwrap();
        let answer = self.post(&path(plural, namespace, ""), object).await;
        answer.unwrap_or_else(|refusal| panic!("{object}: {refusal:?}"))
    }

    // Objects

    pub(crate) async fn namespace(&self, name: &str) {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        self.post("/api/v1/namespaces", &object).await.unwrap();
    }

    pub(crate) async fn identity(&self, namespace: &str, name: &str, spec: &Value) -> Value {
        self.create("azureidentities", &identity(namespace, name, spec)).await
    }

    pub(crate) async fn binding(&self, namespace: &str, name: &str, identity: &str, selector: &str) -> Value {
        let object = json!({"apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"azureIdentity": identity, "selector": selector}});
        self.create("azureidentitybindings", &object).await
    }

    /// A pod with the label that bindings select by; on a node and running, as a scheduler and a kubelet would have it, if
    /// `node` is given.
    pub(crate) async fn pod(&self, namespace: &str, name: &str, label: &str, node: Option<&str>) -> Value {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": {"aadpodidbinding": label}},
            "spec": {"containers": [{"name": "c", "image": "none"}]}});
        if let Some(node) = node {
            pod["spec"]["nodeName"] = json!(node);
        }
        let mut created = self.create("pods", &pod).await;
        if node.is_some() {
            created = self.running(namespace, name).await;
        }
        created
    }

    /// What the scheduler does.
    pub(crate) async fn schedule(&self, namespace: &str, name: &str, node: &str) {
        let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node}});
        self.post(&format!("{}/binding", path("pods", namespace, name)), &binding).await.unwrap();
    }

    /// What the kubelet does.
    pub(crate) async fn running(&self, namespace: &str, name: &str) -> Value {
        let status = json!({"status": {"phase": "Running", "podIP": "10.42.1.7", "podIPs": [{"ip": "10.42.1.7"}]}});
        self.patch(&format!("{}/status", path("pods", namespace, name)), &status).await
    }

    pub(crate) async fn assignments(&self, namespace: &str) -> Vec<Value> {
        let list = self.get(&path("azureassignedidentities", namespace, "")).await.unwrap();
        list["items"].as_array().unwrap().clone()
    }

    /// The assignment of a pod, once it has exactly one.
    pub(crate) async fn assigned(&self, namespace: &str, pod: &str) -> Value {
        until(&format!("the assignment of {namespace}/{pod}"), async || self.assignment(namespace, pod).await).await
    }

    pub(crate) async fn assignment(&self, namespace: &str, pod: &str) -> Option<Value> {
        let mut found = self.assignments(namespace).await;
        found.retain(|object| object["spec"]["pod"] == pod && object["metadata"]["labels"].get(OURS).is_some());
        assert!(found.len() <= 1, "more than one assignment of {namespace}/{pod}: {found:?}");
        found.pop()
    }

    pub(crate) async fn unassigned(&self, namespace: &str, pod: &str) {
        let what = format!("no assignment of {namespace}/{pod}");
        eventually(&what, async || self.assignment(namespace, pod).await.is_none()).await;
    }

    /// A condition of a binding or identity: status, reason, message.
    pub(crate) async fn condition(&self, uri: &str, type_: &str) -> Option<(String, String, String)> {
        let object = self.get(uri).await.unwrap();
        let condition = object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == type_)?.clone();
        let text = |key: &str| condition[key].as_str().unwrap_or_default().to_owned();
        Some((text("status"), text("reason"), text("message")))
    }

    /// Waits until the status of a binding is final: it has its identity and so many pods.
    pub(crate) async fn counted(&self, namespace: &str, name: &str, pods: usize) {
        let uri = path("azureidentitybindings", namespace, name);
        eventually(&format!("{namespace}/{name} to have {pods} pods"), async || {
            let object = self.get(&uri).await.unwrap();
            let found = self.condition(&uri, "IdentityFound").await.is_some_and(|(status, ..)| status == "True");
            found && object["status"]["matchedPods"] == pods
        })
        .await;
    }

    /// Waits until the controller has seen everything that was done before this call, and has done what follows from it: it
    /// handles things in order, so something new of each kind is given to it and its whole effect awaited. To be called
    /// before its writes are counted: a write shows in the audit log a little after its effect.
    pub(crate) async fn settle(&self) {
        let namespace = format!("settle-{}", self.mark().await);
        self.namespace(&namespace).await;
        // The binding last: its first status is its last then, and none has to wait for the least time between two.
        self.pod(&namespace, "p", "settle", Some("node-settle")).await;
        self.identity(&namespace, "i", &managed("i")).await;
        self.binding(&namespace, "b", "i", "settle").await;
        self.assigned(&namespace, "p").await;
        self.counted(&namespace, "b", 1).await;
        let binding = path("azureidentitybindings", &namespace, "b");
        self.delete(&path("pods", &namespace, "p")).await;
        self.delete(&binding).await;
        self.delete(&path("azureidentities", &namespace, "i")).await;
        self.unassigned(&namespace, "p").await;
    }

    // The audit log

    /// Where the audit log is now.
    pub(crate) async fn mark(&self) -> usize {
        self.plane.audit_events().await.unwrap().len()
    }

    /// Requests that ended since `mark`.
    pub(crate) async fn requests(&self, mark: usize) -> Vec<AuditEvent> {
        self.plane.audit_events().await.unwrap().split_off(mark)
    }

    /// What the controller wrote, or tried to, since `mark`; Leases and what belongs to [`settle`](Self::settle) left out.
    pub(crate) async fn writes(&self, mark: usize) -> Vec<AuditEvent> {
        let mut events = self.requests(mark).await;
        events.retain(|event| {
            event.user == CONTROLLER
                && event.is_write()
                && event.resource != "leases"
                && !event.namespace.starts_with("settle-")
        });
        events
    }

    /// Of these, the ones to assignments of `namespace`, as `verb code`.
    pub(crate) async fn assignment_writes(&self, mark: usize, namespace: &str) -> Vec<String> {
        let mut writes = self.writes(mark).await;
        writes.retain(|event| event.namespace == namespace && event.resource == "azureassignedidentities");
        writes.iter().map(|event| format!("{} {}", event.verb, event.code)).collect()
    }
}

/// The label that marks an assignment as the controller's.
pub(crate) const OURS: &str = "app.kubernetes.io/managed-by";

/// The path of an object, or of all of a namespace when `name` is empty.
pub(crate) fn path(plural: &str, namespace: &str, name: &str) -> String {
    let group = if plural == "pods" { "/api/v1" } else { GROUP };
    let slash = if name.is_empty() { "" } else { "/" };
    format!("{group}/namespaces/{namespace}/{plural}{slash}{name}")
}

pub(crate) fn identity(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

/// A managed identity (type 0).
pub(crate) fn managed(name: &str) -> Value {
    let id = format!(
        "/subscriptions/11111111-1111-1111-1111-111111111111/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{name}"
    );
    json!({"type": 0, "resourceID": id, "clientID": "22222222-2222-2222-2222-222222222222"})
}

/// A service principal (type 1); its Secret is nobody's business here.
pub(crate) fn principal(client: u32) -> Value {
    json!({"type": 1, "tenantID": "33333333-3333-3333-3333-333333333333",
        "clientID": format!("44444444-4444-4444-4444-{client:012}"), "clientPassword": {"name": "secret"}})
}

/// A definition that takes anything.
fn without_schema(mut crd: Value) -> Value {
    for version in crd["spec"]["versions"].as_array_mut().unwrap() {
        version["schema"]["openAPIV3Schema"] = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    }
    crd["apiVersion"] = json!("apiextensions.k8s.io/v1");
    crd["kind"] = json!("CustomResourceDefinition");
    crd
}
