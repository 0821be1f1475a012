//! The directory of manifests → the lab's own copy of it, with what a kubelet and a scheduler supply filled in.
//!
//! A file or document that does not parse is copied as it is, for the product to complain about; line numbers in a copy are
//! those of the original. A broken file's pods stay as they were, as the rest of what it said stays in force.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::kubelet::{Kubelet, PodView};
use crate::{files, manifest};

/// A manifest larger than this is taken for a mistake, as the product does.
const LARGEST: u64 = 16 << 20;

/// The lab's own settings, never copied.
pub const OVERRIDES: &str = "lab.yaml";

/// One directory kept in step with another.
#[derive(Debug)]
pub struct Sync {
    source: PathBuf,
    copy: PathBuf,
    scratch: PathBuf,
    kubelet: Kubelet,
    known: BTreeMap<OsString, File>,
}

#[derive(Debug, Default)]
struct File {
    content: Vec<u8>,
    pods: Vec<PodView>,
    objects: Vec<Value>,
}

/// What a scan found to be done.
#[derive(Debug, Default)]
pub struct Changes {
    /// Files of the copy to be written.
    pub write: Vec<(OsString, Vec<u8>)>,
    /// Files of the copy to be removed.
    pub remove: Vec<OsString>,
    /// All pods there are now.
    pub pods: Vec<PodView>,
    /// All objects there are now, as given.
    pub objects: Vec<Value>,
    /// What did not parse: for the lab's log.
    pub broken: Vec<String>,
}

impl Changes {
    /// Whether anything is to be done.
    pub fn is_empty(&self) -> bool {
        self.write.is_empty() && self.remove.is_empty()
    }
}

impl Sync {
    /// Keeps `copy` (which is created) in step with `source`; `scratch` is a directory on the copy's file system.
    ///
    /// # Errors
    /// `source` is no directory, or `copy` cannot be made.
    pub fn new(source: &Path, copy: &Path, scratch: &Path) -> io::Result<Self> {
        if !source.is_dir() {
            return Err(io::Error::other(format!("{} is not a directory of manifests", source.display())));
        }
        files::private_directory(copy)?;
        files::private_directory(scratch)?;
        Ok(Self {
            source: source.to_owned(),
            copy: copy.to_owned(),
            scratch: scratch.to_owned(),
            kubelet: Kubelet::default(),
            known: BTreeMap::new(),
        })
    }

    /// Looks at the whole directory. Files named in `deleted` were unlinked since the last look: their pods are gone even when
    /// a file of that name is there again.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn scan(
        &mut self,
        deleted: &[OsString],
        mut new_uid: impl FnMut() -> String,
        now: &str,
    ) -> io::Result<Changes> {
        let mut changes = Changes::default();
        for name in deleted {
            if let Some(file) = self.known.remove(name) {
                for pod in &file.pods {
                    self.kubelet.forget(&pod.key());
                }
                changes.remove.push(name.clone());
            }
        }
        let mut present = BTreeSet::new();
        for entry in fs::read_dir(&self.source)? {
            let Ok(entry) = entry else { continue };
            let name = entry.file_name();
            if !is_manifest(&name) {
                continue;
            }
            // A file that vanished between the listing and the reading is simply not there; so is one that cannot be read.
            // Nor is one that is no file: a pipe would never end.
            if !fs::metadata(entry.path()).is_ok_and(|meta| meta.is_file() && meta.len() <= LARGEST) {
                continue;
            }
            let Ok(content) = fs::read(entry.path()) else { continue };
            present.insert(name.clone());
            if self.known.get(&name).is_some_and(|file| file.content == content) {
                continue;
            }
            let rendered = render(&name, &content, &mut |pod| self.kubelet.admit(pod, &mut new_uid, now));
            let mut file = File { content, pods: rendered.pods, objects: rendered.objects };
            if !rendered.broken.is_empty() {
                let before = self.known.get(&name).map(|file| (file.pods.as_slice(), file.objects.as_slice()));
                let (pods, objects) = before.unwrap_or_default();
                let lost: Vec<PodView> =
                    pods.iter().filter(|pod| file.pods.iter().all(|now| now.key() != pod.key())).cloned().collect();
                file.pods.extend(lost);
                let lost: Vec<Value> = objects
                    .iter()
                    .filter(|object| file.objects.iter().all(|now| !same(now, object)))
                    .cloned()
                    .collect();
                file.objects.extend(lost);
                changes.broken.extend(rendered.broken);
            }
            changes.remove.retain(|removed| removed != &name);
            changes.write.push((name.clone(), rendered.text));
            self.known.insert(name, file);
        }
        let gone: Vec<OsString> = self.known.keys().filter(|name| !present.contains(*name)).cloned().collect();
        for name in gone {
            self.known.remove(&name);
            changes.remove.push(name);
        }
        changes.pods = self.known.values().flat_map(|file| file.pods.iter().cloned()).collect();
        changes.objects = self.known.values().flat_map(|file| file.objects.iter().cloned()).collect();
        self.kubelet.retain(&changes.pods.iter().map(PodView::key).collect());
        Ok(changes)
    }

    /// Brings the copy in step: each file appears, changes or disappears at once.
    ///
    /// # Errors
    /// The copy cannot be written.
    pub fn apply(&self, changes: &Changes) -> io::Result<()> {
        for name in &changes.remove {
            match fs::remove_file(self.copy.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        for (name, text) in &changes.write {
            files::write(&self.copy.join(name), text, 0o600, &self.scratch)?;
        }
        Ok(())
    }
}

fn same(one: &Value, other: &Value) -> bool {
    ["/kind", "/metadata/namespace", "/metadata/name"].iter().all(|field| one.pointer(field) == other.pointer(field))
}

/// Whether a file of this name is a manifest for the product.
pub fn is_manifest(name: &OsStr) -> bool {
    let path = Path::new(name);
    let visible = !name.as_encoded_bytes().starts_with(b".");
    visible && name != OVERRIDES && path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json")
}

struct Rendered {
    text: Vec<u8>,
    pods: Vec<PodView>,
    objects: Vec<Value>,
    broken: Vec<String>,
}

fn render(name: &OsStr, content: &[u8], admit: &mut dyn FnMut(&mut Value) -> Option<PodView>) -> Rendered {
    let mut rendered = Rendered { text: Vec::new(), pods: Vec::new(), objects: Vec::new(), broken: Vec::new() };
    let Ok(text) = std::str::from_utf8(content) else {
        rendered.text = content.to_vec();
        rendered.broken.push(format!("{}: not UTF-8", name.to_string_lossy()));
        return rendered;
    };
    if Path::new(name).extension().is_some_and(|end| end == "json") {
        match serde_json::from_str::<Value>(text) {
            Ok(mut value) => {
                manifest::flatten(value.clone(), &mut rendered.objects);
                let before = rendered.pods.len();
                visit(&mut value, admit, &mut rendered.pods);
                let json = if rendered.pods.len() > before { format!("{value:#}\n") } else { text.to_owned() };
                rendered.text = json.into_bytes();
            }
            Err(error) => {
                rendered.text = content.to_vec();
                rendered.broken.push(format!("{}: {error}", name.to_string_lossy()));
            }
        }
        return rendered;
    }
    let mut copy = String::with_capacity(text.len() + 512);
    let mut position = 0;
    for document in manifest::documents(text) {
        // What lies between the documents (the separators), as it is.
        let begin = document.text.as_ptr() as usize - text.as_ptr() as usize;
        copy.push_str(&text[position..begin]);
        position = begin + document.text.len();
        match document.value {
            Err(error) => {
                rendered.broken.push(format!("{}: {error}", name.to_string_lossy()));
                copy.push_str(document.text);
            }
            Ok(mut value) => {
                manifest::flatten(value.clone(), &mut rendered.objects);
                let before = rendered.pods.len();
                visit(&mut value, admit, &mut rendered.pods);
                if rendered.pods.len() > before {
                    // One line of JSON (which is YAML), then as many line ends as there were: later lines keep their numbers.
                    copy.push(' ');
                    copy.push_str(&value.to_string());
                    copy.extend(document.text.matches('\n'));
                } else {
                    copy.push_str(document.text);
                }
            }
        }
    }
    copy.push_str(&text[position..]);
    rendered.text = copy.into_bytes();
    rendered
}

/// Admits the pods of a document or list.
fn visit(value: &mut Value, admit: &mut dyn FnMut(&mut Value) -> Option<PodView>, pods: &mut Vec<PodView>) {
    if manifest::is_list(value) {
        for item in value.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
            visit(item, admit, pods);
        }
    } else if value.get("kind").and_then(Value::as_str) == Some("Pod")
        && value.get("apiVersion").and_then(Value::as_str) == Some("v1")
    {
        pods.extend(admit(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        dir: tempfile::TempDir,
        sync: Sync,
        uids: u32,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("in")).unwrap();
            let sync =
                Sync::new(&dir.path().join("in"), &dir.path().join("copy"), &dir.path().join("scratch")).unwrap();
            Self { dir, sync, uids: 0 }
        }

        fn put(&self, name: &str, text: &str) {
            fs::write(self.dir.path().join("in").join(name), text).unwrap();
        }

        fn delete(&self, name: &str) {
            fs::remove_file(self.dir.path().join("in").join(name)).unwrap();
        }

        fn sync(&mut self, deleted: &[&str]) -> Changes {
            let deleted: Vec<OsString> = deleted.iter().map(Into::into).collect();
            let uids = &mut self.uids;
            let uid = || {
                *uids += 1;
                format!("uid-{uids}")
            };
            let changes = self.sync.scan(&deleted, uid, "2026-01-01T00:00:00Z").unwrap();
            self.sync.apply(&changes).unwrap();
            changes
        }

        fn copy(&self, name: &str) -> Option<String> {
            fs::read_to_string(self.dir.path().join("copy").join(name)).ok()
        }
    }

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: team}\n";

    #[test]
    fn pods_are_filled_in_and_everything_else_is_left_as_it_is() {
        let mut bench = Bench::new();
        let other = "# kept\nkind: AzureIdentity\nspec: {type: 0x1}\n";
        bench.put("all.yaml", &format!("{other}---\n{POD}--- # tail\nkind: X\nbroken: [\n"));
        bench.put("lab.yaml", "{}");
        bench.put("notes.txt", "no manifest");
        let changes = bench.sync(&[]);
        assert_eq!(changes.pods.len(), 1);
        assert_eq!(changes.broken.len(), 1);
        let copy = bench.copy("all.yaml").unwrap();
        assert!(copy.starts_with(other), "{copy}");
        assert!(copy.ends_with("--- # tail\nkind: X\nbroken: [\n"), "{copy}");
        let documents = manifest::documents(&copy);
        assert_eq!(documents[1].value.as_ref().unwrap()["metadata"]["uid"], "uid-1");
        assert_eq!(documents[2].line, 8, "line numbers are those of the original");
        assert_eq!((bench.copy("lab.yaml"), bench.copy("notes.txt")), (None, None));
        assert!(bench.sync(&[]).is_empty(), "nothing changed, nothing is written");
    }

    #[test]
    fn lists_and_json_too() {
        let mut bench = Bench::new();
        let list = r#"{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}, {"kind": "S"}]}"#;
        bench.put("list.json", list);
        bench.put("list.yml", list);
        bench.put("odd.json", "{");
        let changes = bench.sync(&[]);
        assert_eq!((changes.pods.len(), changes.objects.len(), changes.broken.len()), (2, 4, 1));
        for name in ["list.json", "list.yml"] {
            assert!(bench.copy(name).unwrap().contains("podIP"));
        }
        assert_eq!(bench.copy("odd.json").unwrap(), "{");
    }

    #[test]
    fn a_pod_lives_as_long_as_its_file_says() {
        let mut bench = Bench::new();
        bench.put("a.yaml", POD);
        let first = bench.sync(&[]).pods;
        bench.put("a.yaml", &format!("{POD}# edited\n"));
        assert_eq!(bench.sync(&[]).pods, first, "an edit changes no identity");
        bench.put("a.yaml", &format!("{POD}spec: [\n"));
        assert_eq!(bench.sync(&[]).pods, first, "a broken file leaves in force what it said");
        bench.put("a.yaml", POD);
        bench.delete("a.yaml");
        bench.put("a.yaml", POD);
        let again = bench.sync(&["a.yaml"]).pods;
        assert_ne!(again[0].uid, first[0].uid, "deleted and made again is another pod");
        bench.delete("a.yaml");
        assert!(bench.sync(&["a.yaml"]).pods.is_empty());
        assert_eq!(bench.copy("a.yaml"), None);
    }
}
