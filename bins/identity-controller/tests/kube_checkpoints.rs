//! Checkpoints of nodes' audit journals on a real API server, with the rights and the admission policy of
//! `examples/audit-checkpoints`: each node writes its own, and forwards.
//!
//! One control plane for all of it. Needs `KUBEBUILDER_ASSETS`.

#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use identity_core::runtime::{
    checkpoints::{Error, Published, Publisher},
    request::Failure,
};
use identity_lab::kube::ControlPlane;
use jiff::Timestamp;
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    coordination::v1::Lease,
    core::v1::{Pod, ServiceAccount},
};
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams, PostParams},
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

const DAEMONS: &str = "entra-pod-identity";
const ACCOUNT: &str = "entra-pod-identity-node";
const NAMESPACE: &str = "entra-pod-identity-audit";

#[expect(clippy::disallowed_methods, reason = "the tier's runner says where the binaries are")]
fn assets() -> PathBuf {
    std::env::var_os("KUBEBUILDER_ASSETS")
        .expect("KUBEBUILDER_ASSETS must name the directory with etcd and kube-apiserver")
        .into()
}

async fn apply(plane: &ControlPlane, path: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    plane.apply_yaml(&fs::read_to_string(path).unwrap()).await.unwrap();
}

/// A daemon's client, with the token that a kubelet would give its pod on `node`.
async fn daemon(plane: &ControlPlane, node: &str) -> Client {
    let admin = plane.client();
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": node}, "spec": {"serviceAccountName": ACCOUNT,
        "nodeName": node, "automountServiceAccountToken": false, "containers": [{"name": "c", "image": "none"}]}}))
    .unwrap();
    let pod = Api::namespaced(admin.clone(), DAEMONS).create(&PostParams::default(), &pod).await.unwrap();
    let bound = BoundObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: pod.metadata.name,
        uid: pod.metadata.uid,
    };
    let spec = TokenRequestSpec { bound_object_ref: Some(bound), ..TokenRequestSpec::default() };
    let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
    let accounts: Api<ServiceAccount> = Api::namespaced(admin, DAEMONS);
    let made = accounts.create_token_request(ACCOUNT, &PostParams::default(), &request).await.unwrap();
    let kubeconfig = Kubeconfig::read_from(plane.kubeconfig()).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    config.auth_info = AuthInfo { token: Some(made.status.unwrap().token.unwrap().into()), ..AuthInfo::default() };
    Client::try_from(config).unwrap()
}

fn checkpoint(journal: &str, seq: u64) -> Published {
    let time = Timestamp::from_second(1_800_000_000).unwrap();
    Published { journal: journal.into(), seq, head: format!("{seq:064x}"), time, key: None }
}

fn publisher(client: &Client, node: &str) -> Publisher {
    Publisher::new(client.clone(), NAMESPACE, node).unwrap()
}

/// The reason for which it was not allowed.
fn forbidden(result: Result<bool, Error>) -> String {
    match result {
        Err(Error::Request { failure: Failure::Forbidden(why), .. }) => why,
        other => panic!("it should be forbidden: {other:?}"),
    }
}

async fn annotations(admin: &Client, node: &str) -> Value {
    let leases: Api<Lease> = Api::namespaced(admin.clone(), NAMESPACE);
    let lease = leases.get_opt(&format!("entra-pod-identity-audit-{node}")).await.unwrap();
    lease.map_or(Value::Null, |lease| json!(lease.metadata.annotations))
}

#[tokio::test]
async fn a_node_publishes_its_own_checkpoints_and_no_others() {
    let work = tempfile::tempdir().unwrap();
    let plane = ControlPlane::start(&assets(), work.path()).await.unwrap();
    for path in ["deploy/namespace.yaml", "deploy/rbac-node.yaml", "examples/audit-checkpoints/install.yaml"] {
        apply(&plane, path).await;
    }
    let admin = plane.client();
    let (one, two) = (daemon(&plane, "node-1").await, daemon(&plane, "node-2").await);

    // Both right and policy take effect in their own time.
    let in_force = async {
        for seq in 1.. {
            // What is there already is not written again.
            match publisher(&one, "probe").publish(&checkpoint("j", seq)).await {
                Err(Error::Request { failure: Failure::Forbidden(why), .. }) if why.contains("only") => break,
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_mins(1), in_force).await.expect("the policy to be in force within a minute");

    let mut first = publisher(&one, "node-1");
    assert_eq!(first.publish(&checkpoint("j", 7)).await, Ok(true));
    assert_eq!(first.publish(&checkpoint("j", 9)).await, Ok(true));
    assert_eq!(first.publish(&checkpoint("j", 9)).await, Ok(false));
    assert_eq!(publisher(&two, "node-2").publish(&checkpoint("k", 3)).await, Ok(true));
    let there = annotations(&admin, "node-1").await;
    assert_eq!(there["audit.aadpodidentity.k8s.io/seq"], "9");
    assert_eq!(there["audit.aadpodidentity.k8s.io/head"], format!("{:064x}", 9));

    // Another node's: refused, and nothing has changed.
    let why = forbidden(publisher(&two, "node-1").publish(&checkpoint("j", 20)).await);
    assert!(why.contains("on node node-2 writes the Lease entra-pod-identity-audit-node-2 only"), "{why}");
    assert_eq!(annotations(&admin, "node-1").await, there);
    // Nor that of a node which has none yet.
    forbidden(publisher(&two, "node-3").publish(&checkpoint("j", 1)).await);
    assert_eq!(annotations(&admin, "node-3").await, Value::Null);
    // A token that is bound to no pod says no node.
    let unbound = plane.client_for_service_account(DAEMONS, ACCOUNT).await.unwrap();
    let why = forbidden(publisher(&unbound, "node-1").publish(&checkpoint("j", 20)).await);
    assert!(why.contains("a token that is bound to its pod"), "{why}");

    // Back: the daemon does not try, and whoever does is refused.
    let behind = publisher(&one, "node-1").publish(&checkpoint("j", 8)).await.unwrap_err();
    assert!(matches!(behind, Error::Behind { published: 9, at: 8, .. }), "{behind}");
    let leases: Api<Lease> = Api::namespaced(one.clone(), NAMESPACE);
    for (change, said) in [
        (json!({"audit.aadpodidentity.k8s.io/seq": "8"}), "journal j was at record 9, and this says 8"),
        (json!({"audit.aadpodidentity.k8s.io/seq": null}), "a checkpoint says its journal"),
        (json!({"audit.aadpodidentity.k8s.io/head": "x"}), "a checkpoint says its journal"),
    ] {
        let patch = Patch::Merge(json!({"metadata": {"annotations": change}}));
        let error = leases.patch("entra-pod-identity-audit-node-1", &PatchParams::default(), &patch).await.unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
    assert_eq!(annotations(&admin, "node-1").await, there);

    // Somebody with every right changes it: that is not overwritten unread.
    let mut forged = leases.get("entra-pod-identity-audit-node-1").await.unwrap();
    forged.metadata.managed_fields = None;
    forged.metadata.annotations.as_mut().unwrap().insert("audit.aadpodidentity.k8s.io/seq".into(), "99".into());
    let all: Api<Lease> = Api::namespaced(admin.clone(), NAMESPACE);
    all.replace("entra-pod-identity-audit-node-1", &PostParams::default(), &forged).await.unwrap();
    let conflict = first.publish(&checkpoint("j", 10)).await.unwrap_err();
    assert!(matches!(conflict, Error::Request { failure: Failure::Conflict(_), .. }), "{conflict}");
    assert!(matches!(first.publish(&checkpoint("j", 10)).await, Err(Error::Behind { published: 99, .. })));
    // Another journal begins where it begins.
    assert_eq!(first.publish(&checkpoint("another", 1)).await, Ok(true));

    // With every right to Leases, as somebody might give it by mistake, it is still its own alone: not the controller's.
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "mistake"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": DAEMONS}]});
    plane.apply_yaml(&role.to_string()).await.unwrap();
    let lease: Lease =
        serde_json::from_value(json!({"metadata": {"name": "entra-pod-identity-controller"}, "spec": {}})).unwrap();
    let elsewhere: Api<Lease> = Api::namespaced(one.clone(), DAEMONS);
    let refused = async {
        loop {
            let error = elsewhere.create(&PostParams::default(), &lease).await.unwrap_err().to_string();
            if error.contains("entra-pod-identity-audit-node-1 only") {
                break;
            }
            // The right has yet to be known.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), refused).await.expect("the policy's word");
    plane.stop().await;
}
