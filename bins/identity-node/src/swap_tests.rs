//! What backs an identity changes while pods ask: objects from a directory, the node's index, the token manager and what brings
//! news to it, as `main` puts them together. Upstream is a fake that says whom it was asked for.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use identity_broker::{
    Backend, Freshness, Manager, ManagerConfig, Metrics, Token, TokenError, Tokens as _, tokens::Issued,
};
use identity_core::{
    lookup::{Caller, Decision, Identity, Published, Request, RequestedIdentity, Source as Given},
    runtime::{node, source::Source},
};
use identity_process::now;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::credentials::keep_up;

const RESOURCE: &str = "https://vault.azure.net";
const PATIENCE: Duration = Duration::from_secs(30);

/// Gives tokens that carry the client id of the identity, after a moment.
#[derive(Default)]
struct Fake {
    fetched: AtomicUsize,
}

impl Backend for Fake {
    fn credential_version(&self, _: &Identity) -> u64 {
        0
    }

    async fn fetch(&self, identity: &Arc<Identity>, resource: &str, _: Freshness) -> Result<Token, TokenError> {
        let count = self.fetched.fetch_add(1, Ordering::AcqRel);
        tokio::time::sleep(Duration::from_millis(3)).await;
        let now = now();
        Ok(Token::issued(&Issued {
            access_token: &format!("token-{count}"),
            resource,
            client_id: identity.client_id.as_deref(),
            expires_on: now + SignedDuration::from_hours(1),
            now,
            credential: 0,
            request_id: None,
        }))
    }
}

fn client(number: u32) -> String {
    format!("33333333-3333-3333-3333-{number:012}")
}

/// The identity `name`, as its object is in its `generation`: another type each time.
fn identity(name: &str, generation: u32) -> Value {
    let number = generation + if name == "a" { 0 } else { 100 };
    let mut spec = json!({"clientID": client(number), "tenantID": "44444444-4444-4444-4444-444444444444"});
    match generation % 3 {
        0 => {
            spec["type"] = json!(0);
            spec["resourceID"] = json!(
                "/subscriptions/11111111-1111-1111-1111-111111111111/resourceGroups/rg/providers/\
                 Microsoft.ManagedIdentity/userAssignedIdentities/demo"
            );
        }
        1 => {
            spec["type"] = json!(1);
            spec["clientPassword"] = json!({"name": "secret"});
        }
        _ => spec["type"] = json!(3),
    }
    json!({"metadata": {"name": name, "namespace": "team", "uid": format!("identity-{name}"), "generation": generation}, "spec": spec})
}

/// As the controller writes it.
fn assign(state: &Path, identity: &Value) {
    let name = &identity["metadata"]["name"];
    let object = json!({
        "apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureAssignedIdentity",
        "metadata": {"name": "p-1", "namespace": "team", "uid": "assigned", "resourceVersion": "1",
            "labels": {"nodename": "node-1", "app.kubernetes.io/managed-by": "entra-pod-identity"}},
        "spec": {
            "pod": "p", "podNamespace": "team", "podUID": "pod-p", "nodename": "node-1", "azureIdentityRef": identity,
            "azureBindingRef": {"metadata": {"name": "b", "namespace": "team", "uid": "binding-b"},
                "spec": {"azureIdentity": name, "selector": "demo"}},
        },
        "status": {"status": "Assigned"},
    });
    let directory = state.join("assignments/team");
    std::fs::create_dir_all(&directory).unwrap();
    let temporary = directory.join(".p-1.json.tmp");
    std::fs::write(&temporary, object.to_string()).unwrap();
    std::fs::rename(temporary, directory.join("p-1.json")).unwrap();
}

fn assigned(published: &Published) -> Option<Arc<Identity>> {
    let caller = Caller { address: "10.0.0.1".parse().unwrap(), pinned: None };
    let request = Request { resource: RESOURCE, identity: RequestedIdentity::Default };
    match published.load().decide(&caller, &request, Timestamp::UNIX_EPOCH) {
        Decision::Allow(allow) => match allow.source {
            Given::Assignment(assignment) => Some(Arc::clone(&assignment.identity)),
            Given::Exception(_) => None,
        },
        _ => None,
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_backs_an_identity_changes_under_load() {
    let directory = tempfile::tempdir().unwrap();
    let (manifests, state) = (directory.path().join("manifests"), directory.path().join("state"));
    std::fs::create_dir(&manifests).unwrap();
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "namespace": "team", "uid": "pod-p", "labels": {"aadpodidbinding": "demo"}},
        "spec": {"nodeName": "node-1"}, "status": {"phase": "Running", "podIP": "10.0.0.1"}});
    std::fs::write(manifests.join("pod.json"), pod.to_string()).unwrap();
    assign(&state, &identity("a", 1));

    let published = Arc::new(Published::default());
    let (news, what_is_new) = mpsc::channel(64);
    let stop = CancellationToken::new();
    let config = node::Config { news: Some(news), ..node::Config::new("node-1") };
    let following = tokio::spawn(node::run(
        config,
        Source::manifests(&manifests, &state),
        published.clone(),
        watch::channel(false).0,
        stop.clone(),
    ));
    let tokens = Manager::new(Fake::default(), now, ManagerConfig::default(), Arc::new(Metrics::default()));
    let keeping = tokio::spawn(keep_up(what_is_new, tokens.clone(), None));
    until("the first is assigned", || assigned(&published).is_some()).await;

    // Twenty that ask without a pause, and say whom they were given.
    let end = Arc::new(AtomicBool::new(false));
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (published, tokens, end) = (published.clone(), tokens.clone(), end.clone());
        asking.spawn(async move {
            let mut given = BTreeSet::new();
            while !end.load(Ordering::Acquire) {
                let identity = assigned(&published).expect("assigned all the time");
                let token =
                    tokens.get_for("pod-p", &identity, RESOURCE, Freshness::Any).await.expect("a token each time");
                assert_eq!(token.client_id(), identity.client_id.as_deref(), "whoever is decided for is given");
                given.insert(identity.client_id.as_deref().unwrap().to_owned());
                tokio::task::yield_now().await;
            }
            given
        });
    }
    // Another type behind the same identity, another identity behind the same binding, and back.
    let mut seen = BTreeSet::from([client(1)]);
    let round = [("a", 2), ("a", 3), ("b", 1), ("a", 3), ("b", 2), ("a", 4)];
    for (name, generation) in round.into_iter().cycle().take(18) {
        let next = identity(name, generation);
        assign(&state, &next);
        let expected = next["spec"]["clientID"].as_str().unwrap();
        until("the next is assigned", || {
            assigned(&published).is_some_and(|identity| identity.client_id.as_deref() == Some(expected))
        })
        .await;
        // The next token from now on, without a restart.
        let identity = assigned(&published).unwrap();
        let token = tokens.get_for("pod-p", &identity, RESOURCE, Freshness::Any).await.unwrap();
        assert_eq!(token.client_id(), Some(expected));
        seen.insert(expected.to_owned());
    }
    end.store(true, Ordering::Release);
    let mut given = BTreeSet::new();
    while let Some(asked) = asking.join_next().await {
        given.extend(asked.unwrap());
    }
    assert!(given.is_subset(&seen) && given.len() > 1, "{given:?}");

    // Nobody has any: nothing is kept.
    std::fs::remove_file(state.join("assignments/team/p-1.json")).unwrap();
    until("everything is forgotten", || tokens.is_empty()).await;
    stop.cancel();
    following.await.unwrap().unwrap();
    keeping.await.unwrap();
}
