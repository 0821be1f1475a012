//! Tokens of pods' service accounts from a real API server, with the rights and the admission policy of `deploy/` and
//! `examples/federated-pod`.
//!
//! One control plane for all of it. Needs `KUBEBUILDER_ASSETS`.

#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use identity_core::{
    pod::PodRef,
    runtime::{
        Clock,
        token_request::{Error, TokenRequests},
    },
};
use identity_lab::kube::ControlPlane;
use jiff::Timestamp;
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    core::v1::{Pod, ServiceAccount},
};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

const AUDIENCE: &str = "api://AzureADTokenExchange";

#[derive(Debug)]
struct Frozen;

impl Clock for Frozen {
    fn now(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    fn uptime(&self) -> Duration {
        Duration::ZERO
    }
}

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

/// A pod that runs as `account`, with its UID.
async fn pod(admin: &Client, name: &str, account: &str) -> PodRef {
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": name},
        "spec": {"serviceAccountName": account, "automountServiceAccountToken": false, "containers": [{"name": "c", "image": "none"}]}}))
    .unwrap();
    let made = Api::namespaced(admin.clone(), "default").create(&PostParams::default(), &pod).await.unwrap();
    let uid = made.metadata.uid.unwrap();
    PodRef { namespace: "default".into(), name: name.into(), uid: uid.into(), service_account: account.into() }
}

/// What comes of it within a minute.
async fn eventually<T>(look: impl AsyncFn() -> Option<T>) -> T {
    let found = async {
        loop {
            match look().await {
                Some(found) => break found,
                None => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_mins(1), found).await.expect("it to come about within a minute")
}

/// Whom a token speaks for, at the API server.
async fn review(admin: &Client, token: &str, audience: &str) -> TokenReview {
    let spec = TokenReviewSpec { audiences: Some(vec![audience.to_owned()]), token: token.to_owned() };
    let review = TokenReview { spec, ..TokenReview::default() };
    Api::all(admin.clone()).create(&PostParams::default(), &review).await.unwrap()
}

#[tokio::test]
async fn tokens_are_for_entra_and_one_pod() {
    let work = tempfile::tempdir().unwrap();
    let plane = ControlPlane::start(&assets(), work.path()).await.unwrap();
    for path in ["deploy/namespace.yaml", "deploy/rbac-node.yaml", "deploy/admission-policy-tokens.yaml"] {
        apply(&plane, path).await;
    }
    let admin = plane.client();
    for name in ["demo", "other"] {
        let account: ServiceAccount = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        Api::namespaced(admin.clone(), "default").create(&PostParams::default(), &account).await.unwrap();
    }
    let node = plane.client_for_service_account("entra-pod-identity", "entra-pod-identity-node").await.unwrap();
    let tokens = || TokenRequests::new(node.clone(), Arc::new(Frozen));
    let (web, other) = (pod(&admin, "web", "demo").await, pod(&admin, "other", "other").await);

    // deploy/ alone gives no such right.
    let error = tokens().token(&web, AUDIENCE).await.unwrap_err();
    assert!(matches!(&error, Error::Forbidden { .. }), "{error}");
    assert!(error.to_string().contains("examples/federated-pod/role.yaml"), "{error}");

    apply(&plane, "examples/federated-pod/role.yaml").await;
    let token = eventually(async || match tokens().token(&web, AUDIENCE).await {
        // The role has yet to be known.
        Err(Error::Forbidden { .. }) => None,
        other => Some(other.unwrap()),
    });
    let token = token.await;
    let token = token.expose_secret();
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!((&claims["sub"], &claims["aud"]), (&json!("system:serviceaccount:default:demo"), &json!([AUDIENCE])));
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 3600);
    assert_eq!(claims["kubernetes.io"]["pod"], json!({"name": "web", "uid": &*web.uid}));

    // Good for Entra, and for nothing at the API server.
    let found = review(&admin, token, AUDIENCE).await.status.unwrap();
    assert_eq!(found.authenticated, Some(true), "{found:?}");
    let found = review(&admin, token, "https://kubernetes.default.svc").await.status.unwrap();
    assert_ne!(found.authenticated, Some(true), "{found:?}");

    // Not for others: an audience that the policy does not allow, an account that the role does not name, and (the server's
    // own rules) an account that is not the pod's, a pod that was made anew.
    let refused = async |pod: &PodRef| tokens().token(pod, AUDIENCE).await.unwrap_err();
    let words = eventually(async || match tokens().token(&web, "https://kubernetes.default.svc").await {
        Err(Error::Forbidden { message, .. }) => Some(message),
        // A policy is in force some time after it was made.
        Ok(_) => None,
        Err(other) => panic!("{other}"),
    });
    let words = words.await;
    assert!(words.contains("makes tokens for api://AzureADTokenExchange only"), "{words}");
    assert!(matches!(refused(&other).await, Error::Forbidden { .. }));
    let posing = PodRef { service_account: "demo".into(), ..other.clone() };
    let error = refused(&posing).await;
    assert!(matches!(&error, Error::Forbidden { message, .. } if message.contains("cannot bind token")), "{error}");
    let former = PodRef { uid: "00000000-0000-4000-8000-000000000000".into(), ..web.clone() };
    let error = refused(&former).await;
    assert!(matches!(&error, Error::Gone { .. }), "{error}");

    // Gone with the pod: no new one is made, and the API server takes the former for invalid (Entra cannot know).
    let pods: Api<Pod> = Api::namespaced(admin.clone(), "default");
    pods.delete("web", &DeleteParams::default().grace_period(0)).await.unwrap();
    let error = refused(&web).await;
    assert!(matches!(&error, Error::Gone { .. }), "{error}");
    plane.stop().await;
}
