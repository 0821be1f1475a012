//! Manifests into an API server: server-side apply through discovery.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use kube::{
    Client,
    api::{Api, DeleteParams, DynamicObject, Patch, PatchParams},
    core::{GroupVersionKind, TypeMeta},
    discovery::{self, Scope},
};
use serde_json::Value;

use super::Error;
use crate::manifest;

/// Our name as a field manager.
pub(super) const MANAGER: &str = "identity-lab";

/// How long a kind may take to be served after its CRD was applied.
const SERVED: Duration = Duration::from_secs(20);

/// All YAML and JSON files directly in `directory`, by name.
pub(super) fn files(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(directory)
        .map_err(|source| Error::Manifest { origin: directory.display().to_string(), message: source.to_string() })?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json"))
        .collect();
    found.sort();
    Ok(found)
}

/// The objects of a (multi-document) text.
pub(super) fn objects(origin: &str, text: &str) -> Result<Vec<Value>, Error> {
    let mut all = Vec::new();
    for document in manifest::documents(text) {
        let value = document.value.map_err(|message| Error::Manifest { origin: origin.to_owned(), message })?;
        manifest::flatten(value, &mut all);
    }
    Ok(all)
}

/// Applies in an order in which each object finds what it needs: CRDs (served before going on), namespaces, the rest as given.
pub(super) async fn apply(client: &Client, mut objects: Vec<Value>) -> Result<Vec<DynamicObject>, Error> {
    objects.sort_by_key(|object| match object.get("kind").and_then(Value::as_str) {
        Some("CustomResourceDefinition") => 0,
        Some("Namespace") => 1,
        Some("ServiceAccount" | "Secret") => 2,
        _ => 3,
    });
    let mut applied = Vec::with_capacity(objects.len());
    for object in objects {
        let crd = object.get("kind").and_then(Value::as_str) == Some("CustomResourceDefinition");
        let result = apply_one(client, object).await?;
        if crd {
            established(client, &result).await?;
        }
        applied.push(result);
    }
    Ok(applied)
}

async fn apply_one(client: &Client, value: Value) -> Result<DynamicObject, Error> {
    let object: DynamicObject = serde_json::from_value(value)
        .map_err(|source| Error::Manifest { origin: "object".to_owned(), message: source.to_string() })?;
    let what = describe(&object);
    let name = object.metadata.name.clone().unwrap_or_default();
    let api = api_for(client, object.types.as_ref(), object.metadata.namespace.as_deref(), &what).await?;
    let params = PatchParams::apply(MANAGER).force();
    api.patch(&name, &params, &Patch::Apply(&object))
        .await
        .map_err(|source| Error::Apply { what, source: Box::new(source) })
}

pub(super) async fn delete(client: &Client, value: &Value) -> Result<(), Error> {
    let object: DynamicObject = serde_json::from_value(value.clone())
        .map_err(|source| Error::Manifest { origin: "object".to_owned(), message: source.to_string() })?;
    let what = describe(&object);
    let name = object.metadata.name.clone().unwrap_or_default();
    let api = api_for(client, object.types.as_ref(), object.metadata.namespace.as_deref(), &what).await?;
    match api.delete(&name, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        result => result.map(drop).map_err(Error::from),
    }
}

async fn api_for(
    client: &Client,
    types: Option<&TypeMeta>,
    namespace: Option<&str>,
    what: &str,
) -> Result<Api<DynamicObject>, Error> {
    let types = types.ok_or_else(|| Error::Manifest {
        origin: what.to_owned(),
        message: "apiVersion or kind is missing".to_owned(),
    })?;
    let gvk = GroupVersionKind::try_from(types)
        .map_err(|source| Error::Manifest { origin: what.to_owned(), message: source.to_string() })?;
    let (resource, capabilities) = tokio::time::timeout(SERVED, async {
        loop {
            match discovery::pinned_kind(client, &gvk).await {
                Ok(found) => break found,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    })
    .await
    .map_err(|_| Error::NoSuchKind {
        what: what.to_owned(),
        api_version: types.api_version.clone(),
        kind: types.kind.clone(),
    })?;
    Ok(match capabilities.scope {
        Scope::Cluster => Api::all_with(client.clone(), &resource),
        Scope::Namespaced => Api::namespaced_with(client.clone(), namespace.unwrap_or("default"), &resource),
    })
}

async fn established(client: &Client, crd: &DynamicObject) -> Result<(), Error> {
    let what = describe(crd);
    let name = crd.metadata.name.clone().unwrap_or_default();
    let api = api_for(client, crd.types.as_ref(), None, &what).await?;
    let ready = async {
        loop {
            let now = api.get(&name).await.ok();
            let condition =
                now.as_ref().and_then(|crd| crd.data.pointer("/status/conditions")).and_then(Value::as_array);
            let is = |condition: &Value| condition["type"] == "Established" && condition["status"] == "True";
            if condition.is_some_and(|all| all.iter().any(is)) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // A new CRD holds (or answers 429 to) its first requests until its storage is ready: take that here, not in a test.
        let kind = crd.data.pointer("/spec/names/plural").and_then(Value::as_str).unwrap_or_default();
        let group = crd.data.pointer("/spec/group").and_then(Value::as_str).unwrap_or_default();
        for version in crd.data.pointer("/spec/versions").and_then(Value::as_array).into_iter().flatten() {
            let version = version.get("name").and_then(Value::as_str).unwrap_or_default();
            let uri = format!("/apis/{group}/{version}/{kind}?limit=1");
            loop {
                let request = http::Request::get(&uri).body(Vec::new());
                let Ok(request) = request else { break };
                if client.request_text(request).await.is_ok() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    tokio::time::timeout(SERVED, ready)
        .await
        .map_err(|_| Error::Timeout { what: format!("{what} to be established"), logs: String::new() })
}

fn describe(object: &DynamicObject) -> String {
    let kind = object.types.as_ref().map_or("object", |types| types.kind.as_str());
    let name = object.metadata.name.as_deref().unwrap_or("without a name");
    match &object.metadata.namespace {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}
