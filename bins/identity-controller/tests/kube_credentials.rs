//! Secrets followed on a real API server, with no more rights than one name needs, and what the controller makes of the
//! credentials in them, against an emulated Entra.
//!
//! Needs `KUBEBUILDER_ASSETS`.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests")]
#![allow(dead_code, reason = "each target uses a part of the helpers")]

mod support;

use std::{collections::BTreeMap, time::Duration};

use identity_core::runtime::{
    self,
    secrets::{Error, Secrets},
    source::Source,
};
use identity_lab::emulator::{self, Config, Handle, ca};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use support::{
    CONTROLLER,
    cluster::{Cluster, path},
    controller::Controller,
    eventually, part, until,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const TENANT: &str = "33333333-3333-3333-3333-333333333333";
const CLIENT: &str = "44444444-4444-4444-4444-000000000001";
const RIGHT: &str = "the-right-secret";

fn secrets_of(ns: &str) -> String {
    format!("/api/v1/namespaces/{ns}/secrets")
}

async fn put_secret(cluster: &Cluster, ns: &str, name: &str, value: &str) {
    let object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"clientSecret": value}});
    if cluster.post(&secrets_of(ns), &object).await.is_err() {
        cluster.patch(&format!("{}/{name}", secrets_of(ns)), &json!({"stringData": {"clientSecret": value}})).await;
    }
}

/// Lets the controller's account do this with the Secret `sp`, and with no other.
async fn allow(cluster: &Cluster, ns: &str, verbs: &[&str]) {
    let rbac = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}");
    let api = "rbac.authorization.k8s.io/v1";
    let rules = json!([{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["sp"], "verbs": verbs}]);
    let role = json!({"apiVersion": api, "kind": "Role", "metadata": {"name": "secrets"}, "rules": rules});
    if cluster.post(&format!("{rbac}/roles"), &role).await.is_err() {
        cluster.patch(&format!("{rbac}/roles/secrets"), &json!({"rules": rules})).await;
        return;
    }
    let binding = json!({"apiVersion": api, "kind": "RoleBinding", "metadata": {"name": "secrets"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "secrets"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": CONTROLLER}]});
    cluster.post(&format!("{rbac}/rolebindings"), &binding).await.unwrap();
}

async fn source(cluster: &Cluster) -> Source {
    let file = cluster.plane.kubeconfig_for(CONTROLLER, &[]).unwrap();
    let read = Kubeconfig::read_from(file).unwrap();
    let config = kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.unwrap();
    Source::kubernetes(runtime::client(config).unwrap())
}

async fn changed(changes: &mut watch::Receiver<u64>) {
    tokio::time::timeout(Duration::from_secs(40), changes.changed()).await.expect("no change is told").unwrap();
}

async fn entra() -> (ca::Authority, Handle, CancellationToken) {
    let authority = ca::Authority::generate().unwrap();
    let server = authority.issue(&["localhost"]).unwrap();
    let config: Config = serde_json::from_value(json!({
        "entra": {"listen": "127.0.0.1:0", "certificate": server.certificate_pem, "key": server.key_pem},
        "directory": {"tenants": [{"id": TENANT, "applications": [{"clientId": CLIENT, "secrets": [{"value": RIGHT}]}]}]},
    }))
    .unwrap();
    let shutdown = CancellationToken::new();
    let handle = emulator::run(config, shutdown.clone()).await.unwrap();
    (authority, handle, shutdown)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials() {
    let cluster = part("control plane", Cluster::start("")).await;
    part("Secrets", followed(&cluster)).await;
    part("CredentialReady", conditions(&cluster)).await;
    cluster.plane.stop().await;
}

/// As long as RBAC names one Secret, one Secret is followed, and nothing else can be read.
async fn followed(cluster: &Cluster) {
    let ns = "followed";
    cluster.namespace(ns).await;
    put_secret(cluster, ns, "sp", "one").await;
    put_secret(cluster, ns, "other", "not to be seen").await;
    let source = source(cluster).await;
    let nothing = Secrets::new(&source);
    let error = nothing.get(ns, "sp").await.unwrap_err();
    assert!(matches!(error, Error::Forbidden { .. }), "{error}");
    assert!(error.to_string().contains("grant verb `get` on resource `secrets` named `sp`"), "{error}");

    // `get` is enough to be served; it is read again each time.
    allow(cluster, ns, &["get"]).await;
    let polled = Secrets::new(&source);
    let value = async |secrets: &Secrets| {
        let value = secrets.key(ns, "sp", "clientSecret").await;
        value.map(|value| String::from_utf8(secrecy::ExposeSecret::expose_secret(&value).to_vec()).unwrap())
    };
    until("RBAC to be in force", async || value(&polled).await.ok()).await;
    put_secret(cluster, ns, "sp", "two").await;
    eventually("the new value to be read", async || value(&polled).await.is_ok_and(|value| value == "two")).await;

    // With `list` and `watch` of that name it is followed.
    allow(cluster, ns, &["get", "list", "watch"]).await;
    let (secrets, mut changes) = until("RBAC to be in force", async || {
        let list = format!("{}?fieldSelector=metadata.name%3Dsp", secrets_of(ns));
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {"user": CONTROLLER,
            "resourceAttributes": {"namespace": ns, "verb": "watch", "resource": "secrets", "name": "sp"}}});
        let allowed = cluster.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", &review).await.unwrap();
        assert!(cluster.get(&list).await.is_ok());
        let secrets = (allowed["status"]["allowed"] == true).then(|| Secrets::new(&source))?;
        let changes = secrets.follow(ns, "sp");
        Some((secrets, changes))
    })
    .await;
    assert_eq!(value(&secrets).await.unwrap(), "two");
    changes.mark_unchanged();
    put_secret(cluster, ns, "sp", "three").await;
    changed(&mut changes).await;
    assert_eq!(value(&secrets).await.unwrap(), "three");
    cluster.delete(&format!("{}/sp", secrets_of(ns))).await;
    changed(&mut changes).await;
    assert!(matches!(value(&secrets).await.unwrap_err(), Error::NotFound { .. }));
    put_secret(cluster, ns, "sp", "four").await;
    changed(&mut changes).await;
    assert_eq!(value(&secrets).await.unwrap(), "four");
    let other = secrets.get(ns, "other").await.unwrap_err();
    assert!(matches!(other, Error::Forbidden { .. }), "{other}");
}

/// Conditions, as rights, Secrets and Entra change.
async fn conditions(cluster: &Cluster) {
    let ns = "conditions";
    let (authority, entra, stop) = entra().await;
    let port = entra.entra_address().unwrap().port();
    let bundle = cluster.work.path().join("ca.pem");
    std::fs::write(&bundle, authority.certificate_pem()).unwrap();
    cluster.namespace(ns).await;
    allow(cluster, ns, &["get", "list", "watch"]).await;
    let spec = |secret: &str| {
        json!({"type": 1, "tenantID": TENANT, "clientID": CLIENT, "adEndpoint": format!("https://localhost:{port}/"),
            "clientPassword": {"name": secret}})
    };
    cluster.identity(ns, "good", &spec("sp")).await;
    cluster.identity(ns, "unreadable", &spec("other")).await;
    let federated =
        json!({"type": 3, "tenantID": TENANT, "clientID": CLIENT, "adEndpoint": format!("https://localhost:{port}/")});
    cluster.identity(ns, "federated", &federated).await;
    let kubeconfig = cluster.plane.kubeconfig_for(CONTROLLER, &[]).unwrap();
    let flags = [
        format!("--authority-hosts=localhost:{port}"),
        format!("--ca-bundle={}", bundle.display()),
        "--credential-interval=1m".to_owned(),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let controller = Controller::start_with(cluster.work.path(), &kubeconfig, "tries", "15s", &flags).await;
    let object = async |name: &str| cluster.get(&path("azureidentities", ns, name)).await.unwrap();
    let ready = async |name: &str| -> BTreeMap<String, Value> {
        let conditions = object(name).await["status"]["conditions"].clone();
        let all = conditions.as_array().cloned().unwrap_or_default();
        let found = all.into_iter().find(|c| c["type"] == "CredentialReady").unwrap_or_default();
        serde_json::from_value(found).unwrap_or_default()
    };
    let becomes = async |name: &str, status: &str, reason: &str| {
        let what = format!("{name}: {status} {reason}");
        until(&what, async || {
            let now = ready(name).await;
            let is = |key: &str, wanted: &str| now.get(key).is_some_and(|value| value == wanted);
            (is("status", status) && (reason.is_empty() || is("reason", reason))).then_some(now)
        })
        .await
    };
    becomes("good", "False", "SecretNotFound").await;
    let unreadable = becomes("unreadable", "Unknown", "SecretForbidden").await;
    assert!(unreadable["message"].as_str().unwrap().contains("grant verb `get`"), "{unreadable:?}");
    becomes("federated", "Unknown", "TriedByNodes").await;

    put_secret(cluster, ns, "sp", RIGHT).await;
    let accepted = becomes("good", "True", "").await;
    assert_eq!(accepted["observedGeneration"], 1);
    assert_eq!(controller.metric("credential_ready", r#"identity="good""#).await, Some(1.0));
    // A wrong one after one that worked may be a new one that has yet to spread: not known to be bad for some minutes.
    put_secret(cluster, ns, "sp", "wrong").await;
    let doubted = becomes("good", "Unknown", "").await;
    assert!(doubted["message"].as_str().unwrap().contains("AADSTS7000215"), "{doubted:?}");
    put_secret(cluster, ns, "sp", RIGHT).await;
    becomes("good", "True", "").await;
    let change = json!({"spec": {"clientID": "44444444-4444-4444-4444-000000000009"}});
    cluster.patch(&path("azureidentities", ns, "good"), &change).await;
    let refused = becomes("good", "False", "").await;
    assert_eq!(refused["observedGeneration"], 2);
    assert!(refused["message"].as_str().unwrap().contains("AADSTS700016"), "{refused:?}");
    eventually("the Event", async || {
        let events = cluster.get(&format!("/apis/events.k8s.io/v1/namespaces/{ns}/events")).await.unwrap();
        let all = events["items"].as_array().unwrap();
        all.iter().any(|event| event["regarding"]["name"] == "good" && event["reason"] == refused["reason"])
    })
    .await;
    for text in [object("good").await.to_string(), controller.text()] {
        assert!(!text.contains(RIGHT), "a secret is shown");
    }
    controller.stop().await;
    stop.cancel();
}
