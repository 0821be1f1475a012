//! The whole controller against a directory, in real time.

use std::fs;

use super::*;

#[tokio::test]
async fn a_missing_directory_is_an_error() {
    let temp = tempfile::tempdir().unwrap();
    let source = Source::manifests(temp.path().join("absent"), temp.path().join("state"));
    let rig = Rig::start(source, "a", |_| {});
    assert!(matches!(rig.task.await.unwrap(), Err(Error::Source(_))));
}

/// As JSON, which is YAML: `---` between.
pub(super) fn manifests(objects: &[Value]) -> String {
    objects.iter().map(Value::to_string).collect::<Vec<_>>().join("\n---\n")
}

/// Waits, in real time, until something is so.
pub(super) async fn until_really(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn with_manifests_it_does_the_same() {
    let temp = tempfile::tempdir().unwrap();
    let (directory, state) = (temp.path().join("manifests"), temp.path().join("state"));
    fs::create_dir(&directory).unwrap();
    let mut objects =
        vec![identity("demo"), binding("demo", "demo"), pod("p0"), pod("p1"), binding("broken", "absent")];
    fs::write(directory.join("all.yaml"), manifests(&objects)).unwrap();
    let start = |holder: &str| Rig::start(Source::manifests(&directory, &state), holder, |_| {});
    let assigned = || {
        let mut all = BTreeMap::new();
        for entry in fs::read_dir(state.join("assignments/team")).into_iter().flatten().flatten() {
            // Not those that are being written.
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            if let Ok(object) = fs::read(entry.path()).map(|bytes| serde_json::from_slice::<Value>(&bytes).unwrap()) {
                all.insert(
                    object["spec"]["pod"].as_str().unwrap().to_owned(),
                    object["metadata"]["resourceVersion"].clone(),
                );
            }
        }
        all
    };
    let pods = || assigned().into_keys().collect::<Vec<_>>();
    let mut rig = start("a");
    rig.until_ready().await;
    until_really("assigned", || pods() == ["p0", "p1"]).await;
    until_really("told", || fs::read_to_string(state.join("events.jsonl")).is_ok_and(|text| text.contains("NotFound")))
        .await;
    until_really("status", || state.join("status/AzureIdentityBinding/team/broken.json").exists()).await;

    // A second one stands by and takes over.
    let mut standby = start("b");
    standby.until("on standby", |health| matches!(health.leadership, Leadership::Standby { .. })).await;
    let before = assigned();
    rig.stop().await;
    standby.until("leads", |health| health.leadership == Leadership::Leading && health.synced).await;
    objects.push(pod("p2"));
    fs::write(directory.join("all.yaml"), manifests(&objects)).unwrap();
    until_really("the new one, too", || pods() == ["p0", "p1", "p2"]).await;
    for (pod, version) in &before {
        assert_eq!(assigned().get(pod), Some(version), "not written again");
    }

    objects.retain(|object| object["metadata"]["name"] != "p0");
    fs::write(directory.join("all.yaml"), manifests(&objects)).unwrap();
    until_really("deleted", || pods() == ["p1", "p2"]).await;
    fs::remove_file(directory.join("all.yaml")).unwrap();
    until_really("all deleted", || pods().is_empty()).await;
    standby.stop().await;
}

/// Controller and node side by side, as on a laptop: what the one finds out, the other tells the pod.
#[tokio::test]
async fn with_manifests_the_node_hears_what_will_come_of_a_binding() {
    use crate::{
        lookup::{Caller, Decision, Published, Request, RequestedIdentity, Source},
        runtime::{node, source::Source as Objects},
    };
    let temp = tempfile::tempdir().unwrap();
    let (directory, state) = (temp.path().join("manifests"), temp.path().join("state"));
    fs::create_dir(&directory).unwrap();
    let mut heavy = binding("heavy", "later");
    heavy["spec"]["weight"] = 1.into();
    let all = [pod("a"), identity("demo"), binding("demo", "demo"), heavy];
    fs::write(directory.join("all.yaml"), manifests(&all)).unwrap();
    let published = Arc::new(Published::default());
    let (synced, _ready) = watch::channel(false);
    let stop = CancellationToken::new();
    let source = Objects::manifests(&directory, &state);
    let node = tokio::spawn(node::run(node::Config::new("node-1"), source, published.clone(), synced, stop.clone()));
    let decide = || {
        let caller = Caller { address: "10.0.0.1".parse().unwrap(), pinned: None };
        let request = Request { resource: "https://vault.azure.net", identity: RequestedIdentity::Default };
        published.load().decide(&caller, &request, Timestamp::UNIX_EPOCH)
    };
    until_really("it waits for the controller", || matches!(decide(), Decision::Wait(_))).await;
    let start = |holder: &str| {
        Rig::start(Objects::manifests(&directory, &state), holder, |config| {
            config.options.status_interval = SignedDuration::ZERO;
        })
    };
    let rig = start("a");
    let served = |name: &str| {
        let Decision::Allow(allow) = decide() else { return false };
        let Source::Assignment(assignment) = allow.source else { return false };
        *assignment.identity.object.name == *name
    };
    // The heavier binding comes to nothing, which only the controller can say: the pod has the other identity.
    until_really("nothing waits for an identity that is absent", || served("demo")).await;
    fs::write(directory.join("identity.yaml"), manifests(&[identity("later")])).unwrap();
    until_really("it is there now, and heavier", || served("later")).await;
    let says = |file: &str, text: &str| {
        fs::read_to_string(state.join("status").join(file)).is_ok_and(|all| all.contains(text))
    };
    until_really("said", || {
        says("AzureIdentityBinding/team/heavy.json", r#""reason": "Found""#)
            && says("AzureIdentityBinding/team/demo.json", r#""reason": "Found""#)
            && ["demo", "later"].iter().all(|name| says(&format!("AzureIdentity/team/{name}.json"), "AsExpected"))
    })
    .await;
    rig.stop().await;

    // A controller that restarts has nothing to say that it has not said.
    let read = |name: &str| fs::read(state.join(name)).unwrap();
    let said = || (read("events.jsonl"), read("status/AzureIdentityBinding/team/heavy.json"));
    let before = said();
    let mut rig = start("b");
    rig.until("leads", |health| health.leadership == Leadership::Leading && health.synced).await;
    fs::write(directory.join("more.yaml"), manifests(&[binding("other", "demo")])).unwrap();
    until_really("it works", || state.join("status/AzureIdentityBinding/team/other.json").exists()).await;
    assert!(said() == before, "{}", String::from_utf8_lossy(&said().1));
    assert_eq!(rig.told.writes.lock().unwrap().iter().filter(|(kind, _)| *kind == "AzureIdentity/status").count(), 0);
    rig.stop().await;
    stop.cancel();
    node.await.unwrap().unwrap();
}
