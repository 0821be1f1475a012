//! The control plane that other tests stand on: identities, garbage collection, audit, outage, compaction, kwok.

#![allow(clippy::unwrap_used, clippy::similar_names, reason = "helpers of tests: a failure is the test's")]

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use identity_lab::kube::ControlPlane;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::json;

const CRD: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.lab.example}
spec:
  group: lab.example
  scope: Namespaced
  names: {plural: things, singular: thing, kind: Thing}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";

#[expect(clippy::disallowed_methods, reason = "the tier's runner says where the binaries are")]
fn assets() -> PathBuf {
    std::env::var_os("KUBEBUILDER_ASSETS")
        .expect("KUBEBUILDER_ASSETS must name the directory with etcd and kube-apiserver")
        .into()
}

async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait)
        .await
        .unwrap_or_else(|_| panic!("timed out waiting for {what}"));
}

fn pod(name: &str, node: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": { "nodeName": node, "containers": [{ "name": "c", "image": "none" }] },
    }))
    .unwrap()
}

#[tokio::test]
async fn a_real_control_plane() {
    let work = tempfile::tempdir().unwrap();
    let mut plane = ControlPlane::start_with(&assets(), work.path(), &[CRD.to_owned()]).await.unwrap();
    let client = plane.client();

    // Objects go in; what an owner owned is collected when it goes.
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let owner = pods.create(&PostParams::default(), &pod("owner", "some-node")).await.unwrap();
    let owned = format!(
        "{{apiVersion: lab.example/v1, kind: Thing, metadata: {{name: owned, namespace: default,
          ownerReferences: [{{apiVersion: v1, kind: Pod, name: owner, uid: {}}}]}}}}",
        owner.uid().unwrap()
    );
    plane.apply_yaml(&owned).await.unwrap();
    pods.delete("owner", &DeleteParams::default().grace_period(0)).await.unwrap();
    eventually("the owned object to be collected", || {
        let client = client.clone();
        async move {
            let request =
                http::Request::get("/apis/lab.example/v1/namespaces/default/things").body(Vec::new()).unwrap();
            let list: serde_json::Value = client.request(request).await.unwrap();
            list["items"].as_array().unwrap().is_empty()
        }
    })
    .await;

    // RBAC holds, for a certificate as for a token, and the audit log knows who wrote.
    plane
        .apply_yaml(
            "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: writer, namespace: default}\n---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: writer, namespace: default}
rules: [{apiGroups: [''], resources: [configmaps], verbs: [create]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: writer, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: writer}
subjects: [{kind: ServiceAccount, name: writer, namespace: default}]
",
        )
        .await
        .unwrap();
    let user = "system:serviceaccount:default:writer";
    let by_token = plane.client_for_service_account("default", "writer").await.unwrap();
    let by_certificate = plane.client_for(user, &[]).await.unwrap();
    for (name, client) in [("token", by_token), ("certificate", by_certificate)] {
        let maps: Api<ConfigMap> = Api::default_namespaced(client);
        let mut map = ConfigMap::default();
        map.metadata.name = Some(name.to_owned());
        map.data = Some(BTreeMap::from([("k".to_owned(), "v".to_owned())]));
        eventually("the role to be in force", || {
            let (maps, map) = (maps.clone(), map.clone());
            async move { maps.create(&PostParams::default(), &map).await.is_ok() }
        })
        .await;
        assert!(maps.list(&ListParams::default()).await.is_err(), "listing was not granted");
    }
    let events = plane.audit_events().await.unwrap();
    let written = events.iter().filter(|event| event.user == user && event.is_write() && event.code == 201).count();
    assert_eq!(written, 2);
    assert!(events.iter().any(|event| event.user == user && event.verb == "list" && event.code == 403));

    // After an outage everything is there again, on the same address; after a compaction an old watch is gone.
    plane.stop_apiserver().await;
    assert!(pods.list(&ListParams::default()).await.is_err());
    plane.start_apiserver().await.unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    assert!(maps.get("token").await.is_ok());
    plane.compact().await.unwrap();

    // Fake nodes give their pods addresses.
    plane.start_kwok(2).await.unwrap();
    let nodes: Api<Node> = Api::all(client.clone());
    assert_eq!(nodes.list(&ListParams::default()).await.unwrap().items.len(), 2);
    pods.create(&PostParams::default(), &pod("fake", "kwok-node-1")).await.unwrap();
    eventually("the fake pod to have an address", || async {
        pods.get("fake").await.unwrap().status.and_then(|status| status.pod_ip).is_some()
    })
    .await;

    let left: Vec<u32> = plane.processes().map(identity_lab::process::Process::id).collect();
    plane.stop().await;
    assert_eq!(left.len(), 4);
    assert!(left.into_iter().all(|id| identity_lab::process::started(id).is_none()), "processes stay behind");
}
