//! A real API server, and what it says.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::{fs, path::PathBuf, time::Duration};

use kube::Client;
use serde_json::Value;

pub(crate) const CONTROLLER: &str = identity_crd::policies::CONTROLLER;
pub(crate) const NODE: &str = identity_crd::policies::NODE;
pub(crate) const GROUP: &str = "/apis/aadpodidentity.k8s.io/v1/namespaces/default";

/// Where a kind's objects of the namespace `default` are.
pub(crate) fn collection(plural: &str) -> String {
    let group = if plural == "azureidentitygrants" { GROUP.replace("/v1/", "/v1alpha1/") } else { GROUP.to_owned() };
    format!("{group}/{plural}")
}

pub(crate) fn plural(kind: &str) -> &'static str {
    match kind {
        "AzureIdentity" => "azureidentities",
        "AzureIdentityBinding" => "azureidentitybindings",
        "AzureAssignedIdentity" => "azureassignedidentities",
        "AzurePodIdentityException" => "azurepodidentityexceptions",
        "AzureIdentityGrant" => "azureidentitygrants",
        other => panic!("no kind {other}"),
    }
}

pub(crate) fn api_version(kind: &str) -> String {
    let version = if kind == "AzureIdentityGrant" { identity_crd::GRANT_VERSION } else { identity_crd::VERSION };
    format!("{}/{version}", identity_crd::GROUP)
}

#[expect(clippy::disallowed_methods, reason = "the tier's runner says where the binaries are")]
pub(crate) fn assets() -> PathBuf {
    std::env::var_os("KUBEBUILDER_ASSETS")
        .expect("KUBEBUILDER_ASSETS must name the directory with etcd and kube-apiserver")
        .into()
}

pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The files of a directory, the namespace first.
pub(crate) fn files(directory: &str) -> Vec<String> {
    let mut paths: Vec<_> =
        fs::read_dir(root().join(directory)).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file()).collect();
    paths.sort_by_key(|p| (!p.ends_with("namespace.yaml"), p.clone()));
    paths.iter().map(|p| fs::read_to_string(p).unwrap()).collect()
}

pub(crate) async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), wait).await.unwrap_or_else(|_| panic!("timed out waiting for {what}"));
}

/// What an API server says when it does not.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) code: u16,
    pub(crate) message: String,
    pub(crate) fields: Vec<String>,
}

pub(crate) async fn send(
    client: &Client,
    method: &str,
    uri: &str,
    content_type: &str,
    body: Vec<u8>,
) -> Result<Value, Refusal> {
    let request =
        http::Request::builder().method(method).uri(uri).header("content-type", content_type).body(body).unwrap();
    answer(client, request).await
}

async fn answer(client: &Client, request: http::Request<Vec<u8>>) -> Result<Value, Refusal> {
    client.request::<Value>(request).await.map_err(refusal)
}

fn refusal(error: kube::Error) -> Refusal {
    match error {
        kube::Error::Api(status) => Refusal {
            code: status.code,
            message: status.message.clone(),
            fields: status.details.iter().flat_map(|d| d.causes.iter().map(|c| c.field.clone())).collect(),
        },
        other => panic!("{other}"),
    }
}

pub(crate) async fn post(client: &Client, path: &str, query: &str, object: &Value) -> Result<Value, Refusal> {
    send(client, "POST", &format!("{path}?{query}"), "application/json", serde_json::to_vec(object).unwrap()).await
}

pub(crate) async fn create(client: &Client, plural: &str, query: &str, object: &Value) -> Result<Value, Refusal> {
    post(client, &collection(plural), query, object).await
}

pub(crate) async fn patch(client: &Client, path: &str, change: &Value) -> Result<Value, Refusal> {
    send(client, "PATCH", path, "application/merge-patch+json", serde_json::to_vec(change).unwrap()).await
}

pub(crate) async fn get(client: &Client, path: &str) -> Result<Value, Refusal> {
    send(client, "GET", path, "application/json", Vec::new()).await
}

pub(crate) async fn delete(client: &Client, path: &str, options: &Value) -> Result<Value, Refusal> {
    send(client, "DELETE", path, "application/json", serde_json::to_vec(options).unwrap()).await
}

/// The text of a watch that ends by itself.
pub(crate) async fn watch(client: &Client, path: &str) -> Result<String, Refusal> {
    let request = http::Request::builder().uri(path).body(Vec::new()).unwrap();
    client.request_text(request).await.map_err(refusal)
}

/// Somebody, by impersonation.
pub(crate) struct Person {
    pub(crate) admin: Client,
    pub(crate) name: &'static str,
    pub(crate) groups: &'static [&'static str],
}

impl Person {
    async fn send(&self, method: &str, uri: &str, content_type: &str, object: &Value) -> Result<Value, Refusal> {
        let request = self.request(method, uri, content_type);
        let body = if object.is_null() { Vec::new() } else { serde_json::to_vec(object).unwrap() };
        answer(&self.admin, request.body(body).unwrap()).await
    }

    fn request(&self, method: &str, uri: &str, content_type: &str) -> http::request::Builder {
        let mut request = http::Request::builder().method(method).uri(uri).header("content-type", content_type);
        request = request.header("Impersonate-User", self.name);
        for group in self.groups {
            request = request.header("Impersonate-Group", *group);
        }
        request
    }

    /// What `kubectl` would print beside the answer to a creation in a namespace that goes through.
    pub(crate) async fn warnings(&self, collection: &str, object: &Value) -> Vec<String> {
        let request = self.request("POST", &format!("{collection}?dryRun=All"), "application/json");
        let request = request.body(serde_json::to_vec(object).unwrap().into()).unwrap();
        let answer = self.admin.send(request).await.unwrap();
        assert!(answer.status().is_success(), "{answer:?}");
        answer.headers().get_all("warning").iter().map(|text| text.to_str().unwrap().to_owned()).collect()
    }

    pub(crate) async fn create(&self, plural: &str, query: &str, object: &Value) -> Result<Value, Refusal> {
        self.send("POST", &format!("{}?{query}", collection(plural)), "application/json", object).await
    }

    pub(crate) async fn post(&self, path: &str, object: &Value) -> Result<Value, Refusal> {
        self.send("POST", path, "application/json", object).await
    }

    pub(crate) async fn patch(&self, path: &str, change: &Value) -> Result<Value, Refusal> {
        self.send("PATCH", path, "application/merge-patch+json", change).await
    }

    pub(crate) async fn put(&self, path: &str, object: &Value) -> Result<Value, Refusal> {
        let there = get(&self.admin, path).await?;
        let mut object = object.clone();
        object["metadata"]["resourceVersion"] = there["metadata"]["resourceVersion"].clone();
        self.send("PUT", path, "application/json", &object).await
    }

    /// Server-side apply.
    pub(crate) async fn apply(&self, path: &str, object: &Value) -> Result<Value, Refusal> {
        let uri = format!("{path}?fieldManager={}", self.name);
        self.send("PATCH", &uri, "application/apply-patch+yaml", object).await
    }
}
