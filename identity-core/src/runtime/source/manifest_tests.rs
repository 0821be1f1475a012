//! The whole way from a file to a receiver, with the kernel's inotify.

use std::{fs, os::unix::fs::symlink, path::Path, sync::Mutex};

use secrecy::ExposeSecret as _;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::runtime::{secrets::Secrets, source::Source};

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Default)]
struct Counts(Mutex<Vec<usize>>);

impl Observer for Counts {
    fn problems(&self, count: usize) {
        self.0.lock().unwrap().push(count);
    }
}

struct Watch {
    temp: TempDir,
    source: Source,
    updates: mpsc::Receiver<Update>,
    counts: Arc<Counts>,
    _stop: tokio_util::sync::DropGuard,
}

fn identity(version: u32) -> String {
    format!(
        "apiVersion: aadpodidentity.k8s.io/v1\nkind: AzureIdentity\nmetadata: {{name: a}}\nspec: {{clientID: v{version}}}\n"
    )
}

impl Watch {
    /// Watches a directory that has been prepared, and takes the first lists.
    fn start(prepare: impl FnOnce(&Path), interests: &[Interest]) -> Self {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("manifests")).unwrap();
        prepare(&temp.path().join("manifests"));
        let source = Source::manifests(temp.path().join("manifests"), temp.path().join("state"));
        let stop = CancellationToken::new();
        let counts = Arc::new(Counts::default());
        let updates = source.watch(interests, Some(counts.clone()), &stop).unwrap();
        Self { temp, source, updates, counts, _stop: stop.drop_guard() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join("manifests").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    async fn next(&mut self) -> String {
        let update = tokio::time::timeout(PATIENCE, self.updates.recv()).await.expect("nothing came").expect("ended");
        describe(&update)
    }

    /// Nothing is under way: an edit of another object is the next thing that comes.
    async fn nothing_else(&mut self) {
        self.write("sentinel.yaml", &identity(99).replace("name: a", "name: sentinel"));
        assert_eq!(self.next().await, "sentinel=v99");
        fs::remove_file(self.path("sentinel.yaml")).unwrap();
        assert_eq!(self.next().await, "-sentinel");
    }
}

fn describe(update: &Update) -> String {
    fn change<T>(change: &Change<T>, what: impl Fn(&T) -> String) -> String {
        match change {
            Change::Apply(object) => what(object),
            Change::Delete(gone) => format!("-{}", gone.name),
            Change::Relist(all) => {
                let mut all: Vec<_> = all.iter().map(what).collect();
                all.sort();
                format!("[{}]", all.join(" "))
            }
        }
    }
    match update {
        Update::Identities(c) => change(c, |i| {
            format!("{}={}", i.metadata.name.as_deref().unwrap(), i.spec.client_id.as_deref().unwrap_or_default())
        }),
        Update::Pods(c) => change(c, |p| format!("pod {}", p.reference.name)),
        Update::Bindings(c) => change(c, |b| format!("binding {}", b.metadata.name.as_deref().unwrap())),
        Update::Assigned(c) => change(c, |a| format!("assigned {}", a.metadata.name.as_deref().unwrap())),
        Update::Grants(c) => change(c, |g| format!("grant {}", g.metadata.name.as_deref().unwrap())),
        Update::Exceptions { namespace, change: c } => {
            format!("{namespace}: {}", change(c, |e| format!("exception {}", e.metadata.name.as_deref().unwrap())))
        }
    }
}

#[tokio::test]
async fn every_way_to_change_a_file_is_noticed() {
    let mut watch = Watch::start(|dir| fs::write(dir.join("a.yaml"), identity(1)).unwrap(), &[Interest::Identities]);
    assert_eq!(watch.next().await, "[a=v1]");
    watch.write("a.yaml", &identity(2));
    assert_eq!(watch.next().await, "a=v2", "written in place");
    watch.write(".a.yaml.tmp", &identity(3));
    fs::rename(watch.path(".a.yaml.tmp"), watch.path("a.yaml")).unwrap();
    assert_eq!(watch.next().await, "a=v3", "replaced");
    let outside = watch.temp.path().join("outside");
    fs::write(&outside, identity(4)).unwrap();
    fs::rename(&outside, watch.path("a.yaml")).unwrap();
    assert_eq!(watch.next().await, "a=v4", "moved in");
    fs::remove_file(watch.path("a.yaml")).unwrap();
    assert_eq!(watch.next().await, "-a");
    fs::write(&outside, identity(5)).unwrap();
    fs::hard_link(&outside, watch.path("a.yaml")).unwrap();
    fs::remove_file(&outside).unwrap();
    assert_eq!(watch.next().await, "a=v5", "linked");
    fs::remove_file(watch.path("a.yaml")).unwrap();
    assert_eq!(watch.next().await, "-a");
    fs::write(&outside, identity(6)).unwrap();
    symlink(&outside, watch.path("a.yaml")).unwrap();
    assert_eq!(watch.next().await, "a=v6", "linked symbolically");
    fs::rename(watch.path("a.yaml"), watch.path("a.old")).unwrap();
    assert_eq!(watch.next().await, "-a", "renamed to what is no manifest");
    fs::rename(watch.path("a.old"), watch.path("b.yml")).unwrap();
    assert_eq!(watch.next().await, "a=v6");
    watch.nothing_else().await;
}

#[tokio::test]
async fn editors_save_without_taking_anything_away() {
    let mut watch = Watch::start(|dir| fs::write(dir.join("a.yaml"), identity(1)).unwrap(), &[Interest::Identities]);
    assert_eq!(watch.next().await, "[a=v1]");
    // As vim does: a test file, a swap file, the old file moved away, the new one written.
    watch.write("4913", "");
    fs::remove_file(watch.path("4913")).unwrap();
    watch.write(".a.yaml.swp", "b0VIM");
    fs::rename(watch.path("a.yaml"), watch.path("a.yaml~")).unwrap();
    watch.write("a.yaml", &identity(2));
    fs::remove_file(watch.path("a.yaml~")).unwrap();
    fs::remove_file(watch.path(".a.yaml.swp")).unwrap();
    assert_eq!(watch.next().await, "a=v2");
    // As emacs does: a lock that is a link to nothing, a copy.
    symlink("user@host.1:2", watch.path(".#a.yaml")).unwrap();
    watch.write("#a.yaml#", &identity(7));
    fs::copy(watch.path("a.yaml"), watch.path("a.yaml~")).unwrap();
    watch.write("a.yaml", &identity(3));
    fs::remove_file(watch.path("#a.yaml#")).unwrap();
    fs::remove_file(watch.path(".#a.yaml")).unwrap();
    assert_eq!(watch.next().await, "a=v3");
    watch.nothing_else().await;
}

#[tokio::test]
async fn a_config_map_volume_is_followed() {
    let version = |dir: &Path, version: u32| {
        let data = dir.join(format!("..2026_{version}"));
        fs::create_dir(&data).unwrap();
        fs::write(data.join("a.yaml"), identity(version)).unwrap();
        symlink(data.file_name().unwrap(), dir.join("..data_tmp")).unwrap();
        fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    };
    let prepare = |dir: &Path| {
        version(dir, 1);
        symlink("..data/a.yaml", dir.join("a.yaml")).unwrap();
    };
    let mut watch = Watch::start(prepare, &[Interest::Identities]);
    assert_eq!(watch.next().await, "[a=v1]");
    for next in 2..5 {
        version(&watch.path(""), next);
        fs::remove_dir_all(watch.path(&format!("..2026_{}", next - 1))).unwrap();
        assert_eq!(watch.next().await, format!("a=v{next}"));
    }
    watch.nothing_else().await;
}

#[tokio::test]
async fn the_directory_may_go_and_come_back_or_be_a_link() {
    let mut watch = Watch::start(|dir| fs::write(dir.join("a.yaml"), identity(1)).unwrap(), &[Interest::Identities]);
    assert_eq!(watch.next().await, "[a=v1]");
    let (there, away) = (watch.path(""), watch.temp.path().join("away"));
    let there = there.parent().unwrap().join("manifests");
    fs::rename(&there, &away).unwrap();
    fs::create_dir(&there).unwrap();
    watch.write("a.yaml", &identity(2));
    assert_eq!(watch.next().await, "a=v2");
    watch.write("a.yaml", &identity(3));
    assert_eq!(watch.next().await, "a=v3", "the new directory is watched");
    // Its files go one by one before it does. Nothing is told of that.
    fs::remove_dir_all(&there).unwrap();
    symlink(&away, &there).unwrap();
    assert_eq!(watch.next().await, "a=v1");
    fs::write(away.join("a.yaml"), identity(4)).unwrap();
    assert_eq!(watch.next().await, "a=v4", "the link's target is watched");
    let other = watch.temp.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("a.yaml"), identity(5)).unwrap();
    symlink(&other, watch.temp.path().join("next")).unwrap();
    fs::rename(watch.temp.path().join("next"), &there).unwrap();
    assert_eq!(watch.next().await, "a=v5", "the link leads elsewhere");
    watch.nothing_else().await;
}

#[tokio::test]
async fn assignments_appear_in_a_directory_that_was_not_there() {
    let node = Some("node-1".to_owned());
    let interests = [Interest::Pods { node: node.clone() }, Interest::Assigned { node }];
    let pod = |name: &str, node: &str| {
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{nodeName: {node}}}\n")
    };
    let text = format!("{}---\n{}", pod("mine", "node-1"), pod("others", "node-2"));
    let mut watch = Watch::start(|dir| fs::write(dir.join("pods.yaml"), text).unwrap(), &interests);
    let mut first = [watch.next().await, watch.next().await];
    first.sort();
    assert_eq!(first, ["[]", "[pod mine]"]);
    let state = watch.temp.path().join("state");
    let assigned = |name: &str, node: &str| {
        format!(
            r#"{{"apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureAssignedIdentity",
                "metadata": {{"name": "{name}", "namespace": "team", "labels": {{"nodename": "{node}"}}, "uid": "u", "resourceVersion": "7"}},
                "spec": {{"pod": "p", "podNamespace": "team"}}}}"#
        )
    };
    let write = |name: &str, node: &str| {
        let directory = state.join("assignments").join(if name == "three" || name == "four" { "new" } else { "team" });
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(format!(".{name}.tmp")), assigned(name, node)).unwrap();
        fs::rename(directory.join(format!(".{name}.tmp")), directory.join(format!("{name}.json"))).unwrap();
    };
    write("other", "node-2");
    // Of another node: as good as gone.
    assert_eq!(watch.next().await, "-other");
    write("one", "node-1");
    assert_eq!(watch.next().await, "assigned one");
    fs::remove_file(state.join("assignments/team/one.json")).unwrap();
    assert_eq!(watch.next().await, "-one");
    fs::remove_dir_all(&state).unwrap();
    assert_eq!(watch.next().await, "-other");
    write("two", "node-1");
    assert_eq!(watch.next().await, "assigned two", "made anew");
    write("three", "node-1");
    assert_eq!(watch.next().await, "assigned three", "a new namespace");
    write("four", "node-1");
    assert_eq!(watch.next().await, "assigned four", "which is watched, too");
    // A pod moves to this node.
    watch.write("pods.yaml", &format!("{}---\n{}", pod("mine", "node-2"), pod("others", "node-1")));
    let mut moved = [watch.next().await, watch.next().await];
    moved.sort();
    assert_eq!(moved, ["-mine", "pod others"]);
}

#[tokio::test]
async fn secrets_are_there_before_their_identities_and_follow_the_file() {
    let secret = |value: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: sp}}\nstringData: {{key: {value}}}\n---\n{}",
            identity(1)
        )
    };
    let mut watch = Watch::start(|dir| fs::write(dir.join("a.yaml"), secret("one")).unwrap(), &[Interest::Identities]);
    let secrets = Secrets::new(&watch.source);
    assert_eq!(watch.next().await, "[a=v1]");
    assert_eq!(secrets.key("default", "sp", "key").await.unwrap().expose_secret(), b"one");
    watch.write("a.yaml", &secret("two").replace("v1}", "v2}"));
    assert_eq!(watch.next().await, "a=v2");
    assert_eq!(secrets.key("default", "sp", "key").await.unwrap().expose_secret(), b"two");
    watch.write("a.yaml", &identity(3));
    assert_eq!(watch.next().await, "a=v3");
    assert!(secrets.get("default", "sp").await.is_err());
}

#[tokio::test]
async fn problems_are_counted_over_all_directories() {
    let interests = [Interest::Identities, Interest::Assigned { node: None }];
    let mut watch = Watch::start(|dir| fs::write(dir.join("a.yaml"), "}").unwrap(), &interests);
    watch.next().await;
    watch.next().await;
    assert_eq!(*watch.counts.0.lock().unwrap().iter().max().unwrap(), 1);
    let directory = watch.temp.path().join("state/assignments/team");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("a.json"), "}").unwrap();
    watch.write("a.yaml", &identity(1));
    assert_eq!(watch.next().await, "a=v1");
    let seen = || watch.counts.0.lock().unwrap().clone();
    let reached = async {
        while *seen().last().unwrap() != 1 || !seen().contains(&0) && !seen().contains(&2) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("{:?}", seen()));
}

#[tokio::test]
async fn exceptions_are_told_for_the_namespace_that_is_asked_for() {
    let exception = |namespace: &str, label: &str| {
        format!(
            "apiVersion: aadpodidentity.k8s.io/v1\nkind: AzurePodIdentityException\nmetadata: {{name: e, namespace: \
             {namespace}}}\nspec: {{podLabels: {{role: {label}}}}}\n"
        )
    };
    let interests = ["agents", "other"].map(|namespace| Interest::Exceptions { namespace: namespace.into() });
    let interests = [&interests[..], &[Interest::Identities]].concat();
    let prepare = |dir: &Path| {
        fs::write(dir.join("a.yaml"), exception("agents", "a")).unwrap();
        fs::write(dir.join("b.yaml"), exception("unlisted", "a")).unwrap();
    };
    let mut watch = Watch::start(prepare, &interests);
    assert_eq!(watch.next().await, "agents: [exception e]");
    assert_eq!(watch.next().await, "other: []");
    assert_eq!(watch.next().await, "[]");
    watch.write("b.yaml", &exception("unlisted", "b"));
    watch.nothing_else().await;
    watch.write("a.yaml", &exception("agents", "b"));
    assert_eq!(watch.next().await, "agents: exception e");
    watch.write("c.yaml", &exception("other", "b"));
    assert_eq!(watch.next().await, "other: exception e");
    fs::remove_file(watch.path("a.yaml")).unwrap();
    assert_eq!(watch.next().await, "agents: -e");
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_an_error_at_once() {
    let temp = tempfile::tempdir().unwrap();
    let source = Source::manifests(temp.path().join("absent"), temp.path().join("state"));
    let error = source.watch(&[Interest::Identities], None, &CancellationToken::new()).unwrap_err();
    assert!(error.to_string().ends_with("; --manifests names the directory with the YAML files"), "{error}");
}

#[tokio::test]
async fn status_is_what_the_controller_wrote_of_this_spec() {
    let mut watch = Watch::start(
        |dir| {
            let claimed = format!("{}status: {{conditions: []}}\n", identity(1));
            fs::write(dir.join("a.yaml"), claimed).unwrap();
        },
        &[Interest::Identities],
    );
    let take = |update: Update| match update {
        Update::Identities(Change::Apply(identity)) => *identity,
        Update::Identities(Change::Relist(mut all)) => all.remove(0),
        other => panic!("{other:?}"),
    };
    let first = take(watch.updates.recv().await.unwrap());
    assert_eq!(first.status, None, "nobody else says what it is");
    let write = |uid: &str, reason: &str| {
        let directory = watch.temp.path().join("state/status/AzureIdentity/default");
        fs::create_dir_all(&directory).unwrap();
        let text = format!(
            r#"{{"apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity",
                "metadata": {{"name": "a", "namespace": "default", "uid": "{uid}"}},
                "status": {{"conditions": [{{"type": "Valid", "status": "True", "reason": "{reason}", "message": "",
                    "lastTransitionTime": "2026-11-24T00:00:00Z"}}]}}}}"#
        );
        fs::write(directory.join(".a.tmp"), text).unwrap();
        fs::rename(directory.join(".a.tmp"), directory.join("a.json")).unwrap();
    };
    let reason = |identity: &identity_crd::AzureIdentity| {
        identity.status.as_ref().map(|status| status.conditions[0].reason.clone())
    };
    let uid = first.metadata.uid.as_deref().unwrap();
    write(uid, "First");
    assert_eq!(reason(&take(watch.updates.recv().await.unwrap())).as_deref(), Some("First"));
    write("of-another", "Second");
    assert_eq!(reason(&take(watch.updates.recv().await.unwrap())), None);
    write(uid, "Third");
    assert_eq!(reason(&take(watch.updates.recv().await.unwrap())).as_deref(), Some("Third"));
    watch.write("a.yaml", &identity(2));
    let second = take(watch.updates.recv().await.unwrap());
    assert_eq!(reason(&second).as_deref(), Some("Third"));
    assert_ne!(first.metadata.generation, second.metadata.generation, "a condition says of which spec it speaks");
    fs::remove_dir_all(watch.temp.path().join("state/status")).unwrap();
    assert_eq!(reason(&take(watch.updates.recv().await.unwrap())), None);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_away_for_a_moment_is_waited_for() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("a.yaml");
    let (updates, _receiver) = mpsc::channel(8);
    let room = Room::new(temp.path().to_owned(), 0, MANIFEST_KINDS, Arc::default(), Arc::new(Counts::default()));
    let mut driver = Driver {
        room: room.unwrap(),
        statuses: None,
        interests: vec![Interest::Identities],
        updates,
        secrets: Some(Arc::default()),
    };
    fs::write(&file, identity(1)).unwrap();
    driver.refresh(Dirty::All).await.unwrap();
    fs::remove_file(&file).unwrap();
    let dirty = Dirty::Files([file.clone()].into());
    let back = async {
        tokio::time::sleep(VANISHED / 2).await;
        fs::write(&file, identity(2)).unwrap();
    };
    let (deltas, ()) = tokio::join!(driver.refresh(dirty.clone()), back);
    assert!(matches!(&deltas.unwrap()[..], [Delta::Applied(..)]));
    // Not for ever.
    fs::remove_file(&file).unwrap();
    assert!(matches!(&driver.refresh(dirty).await.unwrap()[..], [Delta::Deleted(..)]));
}
