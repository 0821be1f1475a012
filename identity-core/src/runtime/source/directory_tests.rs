//! Looks at real directories without watching them.

use std::{collections::BTreeMap, os::unix::fs::symlink};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const KINDS: &[Kind] = &[Kind::Identity, Kind::Binding];

fn identity(name: &str, version: u32) -> String {
    format!(
        "apiVersion: aadpodidentity.k8s.io/v1\nkind: AzureIdentity\nmetadata: {{name: {name}}}\nspec: {{clientID: v{version}}}\n"
    )
}

/// A directory, what was said about it, and what one would believe who only heard that.
struct Room {
    temp: TempDir,
    directory: Directory,
    heard: BTreeMap<String, String>,
    problems: Vec<String>,
}

impl Room {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let directory = Directory::new(temp.path().join("manifests"), 0, KINDS);
        fs::create_dir(temp.path().join("manifests")).unwrap();
        Self { temp, directory, heard: BTreeMap::new(), problems: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join("manifests").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Looks and answers what changed, as text.
    fn look(&mut self, dirty: &Dirty) -> Vec<String> {
        let found = self.directory.refresh(dirty);
        let root = format!("{}/", self.directory.root.display());
        self.problems = found.new_problems.iter().map(|p| p.to_string().replace(&root, "")).collect();
        for delta in &found.deltas {
            match delta {
                Delta::Applied(key, object) => self.heard.insert(key.object.name.to_string(), version(object)),
                Delta::Deleted(key, _) => self.heard.remove(&*key.object.name),
            };
        }
        let in_force: BTreeMap<_, _> = self
            .directory
            .in_force
            .iter()
            .map(|(key, object)| (key.object.name.to_string(), version(object)))
            .collect();
        assert_eq!(self.heard, in_force, "who hears every change knows everything");
        let told = |delta: &Delta| match delta {
            Delta::Applied(key, object) => format!("{}={}", key.object.name, version(object)),
            Delta::Deleted(key, _) => format!("-{}", key.object.name),
        };
        found.deltas.iter().map(told).collect()
    }

    fn look_at(&mut self, names: &[&str]) -> Vec<String> {
        let files = names.iter().map(|name| self.path(name)).collect();
        self.look(&Dirty::Files(files))
    }

    fn all_problems(&self) -> usize {
        self.directory.problems().count()
    }
}

fn version(object: &Object) -> String {
    match object {
        Object::Identity(identity) => identity.spec.client_id.clone().unwrap_or_default(),
        other => format!("{other:?}"),
    }
}

#[test]
fn only_what_changed_is_told() {
    let mut room = Room::new();
    room.write("a.yaml", &identity("a", 1));
    room.write("b.yml", &format!("{}---\n{}", identity("b", 1), identity("c", 1)));
    room.write(".hidden.yaml", &identity("hidden", 1));
    room.write("notes.txt", "none");
    room.write("a.yaml~", &identity("backup", 1));
    fs::create_dir(room.path("directory.yaml")).unwrap();
    assert_eq!(room.look(&Dirty::All), ["a=v1", "b=v1", "c=v1"]);
    assert_eq!(room.look(&Dirty::All), [""; 0]);
    assert_eq!(room.look_at(&["a.yaml", "b.yml", "never.yaml"]), [""; 0]);
    room.write("b.yml", &format!("# moved\n{}---\n{}", identity("c", 1), identity("b", 2)));
    assert_eq!(room.look_at(&["b.yml"]), ["b=v2"]);
    fs::remove_file(room.path("a.yaml")).unwrap();
    assert_eq!(room.look_at(&["a.yaml"]), ["-a"]);
    room.write("a.yaml", &identity("a", 3));
    assert_eq!(room.look(&Dirty::All), ["a=v3"]);
    fs::rename(room.path("b.yml"), room.path("z.yaml")).unwrap();
    assert_eq!(room.look_at(&["b.yml", "z.yaml"]), [""; 0], "renamed: the same objects");
    fs::rename(room.path("z.yaml"), room.path("b.yaml")).unwrap();
    assert_eq!(room.look(&Dirty::All), [""; 0]);
    assert_eq!(room.all_problems(), 0);
}

#[test]
fn the_last_good_version_of_a_broken_file_stays_in_force() {
    let mut room = Room::new();
    let good = format!("{}---\n{}", identity("a", 1), identity("b", 1));
    room.write("a.yaml", &good);
    room.look(&Dirty::All);

    // One document broken, the other new.
    room.write("a.yaml", &format!("{}---\n{}", "kind: [\n", identity("b", 2)));
    assert_eq!(room.look_at(&["a.yaml"]), ["b=v2"]);
    assert_eq!(
        room.problems,
        [
            "a.yaml:1:7: malformed YAML: unclosed bracket '['",
            "a.yaml: the last good version stays in force for AzureIdentity default/a"
        ]
    );
    assert_eq!(room.look_at(&["a.yaml"]), [""; 0]);
    assert_eq!(room.problems, [""; 0], "said once");
    assert_eq!(room.all_problems(), 2);

    room.write("a.yaml", "}");
    assert_eq!(room.look_at(&["a.yaml"]), [""; 0]);
    assert!(room.problems[1].ends_with("for AzureIdentity default/a, AzureIdentity default/b"), "{:?}", room.problems);

    // Whole again, and without b.
    room.write("a.yaml", &identity("a", 4));
    assert_eq!(room.look_at(&["a.yaml"]), ["a=v4", "-b"]);
    assert_eq!(room.all_problems(), 0);

    // A file that never was good has nothing to stay.
    room.write("new.yaml", "}");
    assert_eq!(room.look_at(&["new.yaml"]), [""; 0]);
    assert_eq!(room.problems.len(), 1);
    // Gone is gone, broken or not.
    room.write("a.yaml", "}");
    room.look_at(&["a.yaml"]);
    fs::remove_file(room.path("a.yaml")).unwrap();
    assert_eq!(room.look_at(&["a.yaml"]), ["-a"]);
}

#[test]
fn of_duplicates_the_first_file_counts() {
    let mut room = Room::new();
    room.write("b.yaml", &identity("a", 2));
    assert_eq!(room.look(&Dirty::All), ["a=v2"]);
    room.write("a.yaml", &identity("a", 1));
    assert_eq!(room.look_at(&["a.yaml"]), ["a=v1"]);
    let message = "defined in a.yaml:1 as well, and that one is used; remove one of the two";
    assert_eq!(room.problems, [format!("b.yaml:1:1: AzureIdentity default/a: {message}")]);
    // The one that does not count changes.
    room.write("b.yaml", &identity("a", 3));
    assert_eq!(room.look_at(&["b.yaml"]), [""; 0]);
    fs::remove_file(room.path("a.yaml")).unwrap();
    assert_eq!(room.look_at(&["a.yaml"]), ["a=v3"]);
    assert_eq!(room.all_problems(), 0);
}

#[test]
fn what_cannot_be_read_leaves_things_as_they_were() {
    let mut room = Room::new();
    let unreadable = |room: &mut Room, what: &str| {
        assert_eq!(room.look(&Dirty::All), [""; 0], "{what}");
        assert_eq!(room.problems.len(), 1, "{what}: {:?}", room.problems);
        assert!(room.problems[0].contains(what), "{:?}", room.problems);
        assert_eq!(room.look(&Dirty::All), [""; 0]);
        assert_eq!(room.problems, [""; 0], "said once");
    };
    room.write("a.yaml", &identity("a", 1));
    room.look(&Dirty::All);

    fs::File::create(room.path("a.yaml")).unwrap().set_len(LARGEST_FILE + 1).unwrap();
    unreadable(&mut room, "a.yaml: cannot be read: larger than 16 MiB");
    fs::write(room.path("a.yaml"), b"kind: \xff\n").unwrap();
    unreadable(&mut room, "a.yaml: cannot be read: not UTF-8 after byte 6");
    fs::remove_file(room.path("a.yaml")).unwrap();
    symlink("a.yaml", room.path("a.yaml")).unwrap();
    unreadable(&mut room, "symbolic links");

    fs::remove_file(room.path("a.yaml")).unwrap();
    room.write("a.yaml", &identity("a", 2));
    assert_eq!(room.look(&Dirty::All), ["a=v2"]);
    assert_eq!(room.all_problems(), 0);

    // A link to nothing is nothing.
    fs::remove_file(room.path("a.yaml")).unwrap();
    symlink("absent", room.path("a.yaml")).unwrap();
    assert_eq!(room.look(&Dirty::All), ["-a"]);
}

#[test]
fn a_file_that_is_about_to_be_written_is_left_alone() {
    let mut room = Room::new();
    room.write("a.yaml", &identity("a", 1));
    room.look(&Dirty::All);
    room.write("a.yaml", "");
    assert_eq!(room.look(&Dirty::All), [""; 0], "truncated, not closed");
    assert_eq!(room.look_at(&["a.yaml"]), ["-a"], "closed and empty: that is what it says");
}

#[test]
fn a_directory_that_vanishes_takes_nothing_away() {
    let mut room = Room::new();
    room.write("a.yaml", &identity("a", 1));
    room.look(&Dirty::All);
    let (there, away) = (room.directory.root.clone(), room.temp.path().join("away"));
    fs::rename(&there, &away).unwrap();
    assert_eq!(room.look(&Dirty::All), [""; 0]);
    assert!(!room.directory.is_listed());
    assert!(room.problems[0].ends_with("; what was read before stays in force"), "{:?}", room.problems);
    assert_eq!(room.look_at(&["a.yaml"]), [""; 0]);
    fs::create_dir(&there).unwrap();
    room.write("b.yaml", &identity("b", 1));
    assert_eq!(room.look(&Dirty::All), ["-a", "b=v1"], "another directory: what is in it counts");
    assert_eq!(room.all_problems(), 0);
    assert!(room.directory.is_listed());
}

#[test]
fn a_directory_for_each_namespace() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("assignments");
    let mut directory = Directory::new(root.clone(), 1, &[Kind::Assigned]);
    assert!(directory.refresh(&Dirty::All).deltas.is_empty());
    assert!(directory.is_listed(), "nothing was written yet");
    let write = |namespace: &str, name: &str, text: &str| {
        fs::create_dir_all(root.join(namespace)).unwrap();
        fs::write(root.join(namespace).join(name), text).unwrap();
    };
    let assigned = |namespace: &str| {
        format!(
            r#"{{"apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureAssignedIdentity",
                "metadata": {{"name": "a", "namespace": "{namespace}", "resourceVersion": "7"}}, "spec": {{"pod": "p"}}}}"#
        )
    };
    write("team", "a.json", &assigned("team"));
    write("team", ".b.json.tmp", "half");
    write("other", "a.json", &assigned("other"));
    fs::write(root.join("stray.json"), assigned("stray")).unwrap();
    let found = directory.refresh(&Dirty::All);
    assert_eq!(found.deltas.len(), 2);
    assert!(found.new_problems.is_empty());
    fs::remove_dir_all(root.join("team")).unwrap();
    assert!(
        matches!(&directory.refresh(&Dirty::All).deltas[..], [Delta::Deleted(key, _)] if &*key.object.namespace == "team")
    );
}

#[derive(Clone, Debug)]
enum Op {
    /// Objects by name and version, and whether something broken follows.
    Write(usize, BTreeMap<usize, u32>, bool),
    Remove(usize),
    Rename(usize, usize),
    LookAtAll,
    /// The whole directory is gone for a look.
    Vanish,
}

fn op() -> impl Strategy<Value = Op> {
    let objects = proptest::collection::btree_map(0_usize..3, 0_u32..4, 0..3);
    prop_oneof![
        5 => (0_usize..3, objects, proptest::bool::weighted(0.25)).prop_map(|(file, all, broken)| Op::Write(file, all, broken)),
        2 => (0_usize..3).prop_map(Op::Remove),
        2 => (0_usize..3, 0_usize..3).prop_map(|(from, to)| Op::Rename(from, to)),
        1 => Just(Op::LookAtAll),
        1 => Just(Op::Vanish),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Against the plainest model: each file's last good objects, the first file that has one wins.
    #[test]
    fn agrees_with_reading_everything_again(ops in proptest::collection::vec(op(), 1..25)) {
        const FILES: [&str; 3] = ["a.yaml", "b.yaml", "c.yaml"];
        let mut room = Room::new();
        // What is on disk, and what was understood of it.
        let mut disk: BTreeMap<usize, (BTreeMap<usize, u32>, bool)> = BTreeMap::new();
        let mut good: BTreeMap<usize, BTreeMap<usize, u32>> = BTreeMap::new();
        room.look(&Dirty::All);
        for op in ops {
            let mut touched = Vec::new();
            match op {
                Op::Write(file, objects, broken) => {
                    let mut documents: Vec<_> = objects.iter().map(|(o, v)| identity(&format!("o{o}"), *v)).collect();
                    if broken {
                        documents.push("}\n".into());
                    }
                    room.write(FILES[file], &documents.join("---\n"));
                    disk.insert(file, (objects, broken));
                    touched.push(file);
                }
                Op::Remove(file) => {
                    if disk.remove(&file).is_some() {
                        fs::remove_file(room.path(FILES[file])).unwrap();
                        touched.push(file);
                    }
                }
                Op::Rename(from, to) => {
                    if from != to && let Some(content) = disk.remove(&from) {
                        fs::rename(room.path(FILES[from]), room.path(FILES[to])).unwrap();
                        disk.insert(to, content);
                        touched.extend([from, to]);
                    }
                }
                Op::LookAtAll => touched.extend(0..3),
                Op::Vanish => {
                    let (there, away) = (room.directory.root.clone(), room.temp.path().join("away"));
                    fs::rename(&there, &away).unwrap();
                    prop_assert_eq!(room.look(&Dirty::All), Vec::<String>::new());
                    fs::rename(&away, &there).unwrap();
                    touched.extend(0..3);
                }
            }
            for file in &touched {
                match disk.get(file) {
                    None => drop(good.remove(file)),
                    Some((objects, broken)) => {
                        let mut all = objects.clone();
                        if *broken {
                            for (object, version) in good.get(file).into_iter().flatten() {
                                all.entry(*object).or_insert(*version);
                            }
                        }
                        good.insert(*file, all);
                    }
                }
            }
            if touched.len() == 3 {
                room.look(&Dirty::All);
            } else {
                room.look_at(&touched.iter().map(|file| FILES[*file]).collect::<Vec<_>>());
            }
            let mut expected = BTreeMap::new();
            for objects in good.values() {
                for (object, version) in objects {
                    expected.entry(format!("o{object}")).or_insert(format!("v{version}"));
                }
            }
            prop_assert_eq!(&room.heard, &expected);
        }
    }
}

#[test]
fn what_its_writer_cannot_understand_is_not_there() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("assignments");
    fs::create_dir_all(root.join("team")).unwrap();
    let file = root.join("team/a.json");
    let good = r#"{"apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureAssignedIdentity",
        "metadata": {"name": "a", "namespace": "team", "resourceVersion": "7"}, "spec": {"pod": "p"}}"#;
    fs::write(&file, good).unwrap();
    let new = || Directory::new(root.clone(), 1, &[Kind::Assigned]);
    let (mut reader, mut writer) = (new(), new().without_last_good());
    for directory in [&mut reader, &mut writer] {
        directory.refresh(&Dirty::All);
        assert_eq!(directory.objects().count(), 1);
    }
    fs::write(&file, &good[..40]).unwrap();
    for directory in [&mut reader, &mut writer] {
        directory.refresh(&Dirty::All);
        assert!(directory.problems().count() > 0);
    }
    assert_eq!(reader.objects().count(), 1, "a node goes on with what it had");
    assert_eq!(writer.objects().count(), 0, "the controller writes it anew");
}
