//! A directory of manifest files: what is in force, and what changes when files do. No watching here, and no waiting.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::parse::{Key, Kind, Located, Object, Problem, parse};

/// A manifest larger than this is taken for a mistake.
const LARGEST_FILE: u64 = 16 << 20;

/// Which files may have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Dirty {
    /// Any.
    All,
    /// These, which are files of the directory or were.
    Files(BTreeSet<PathBuf>),
}

/// What became of one object.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Delta {
    Applied(Key, Arc<Object>),
    Deleted(Key, Arc<Object>),
}

/// What a look at the directory found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) deltas: Vec<Delta>,
    /// Problems that were not there before.
    pub(super) new_problems: Vec<Problem>,
}

#[derive(Debug)]
pub(super) struct Directory {
    root: PathBuf,
    /// How many levels of directories there are between it and its files (one for each namespace, say).
    depth: usize,
    kinds: &'static [Kind],
    files: BTreeMap<PathBuf, File>,
    /// Which files define an object; the first in order is used.
    claims: HashMap<Key, BTreeSet<PathBuf>>,
    in_force: HashMap<Key, Arc<Object>>,
    duplicates: BTreeMap<(PathBuf, Key), Problem>,
    missing: Option<Problem>,
    /// Whether the last good version of what is broken stays in force.
    keeps: bool,
}

/// One file: what it last said that could be understood.
#[derive(Debug, Default)]
struct File {
    stamp: Option<Stamp>,
    /// By key.
    objects: Vec<Located>,
    problems: Vec<Problem>,
}

/// Tells one content of a path from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Among objects in the order of their keys: files with thousands of objects are read each time they change.
fn find<'a>(objects: &'a [Located], key: &Key) -> Option<&'a Located> {
    objects.binary_search_by(|located| located.key.cmp(key)).ok().map(|index| &objects[index])
}

impl Directory {
    pub(super) fn new(root: PathBuf, depth: usize, kinds: &'static [Kind]) -> Self {
        Self {
            root,
            depth,
            kinds,
            files: BTreeMap::new(),
            claims: HashMap::new(),
            in_force: HashMap::new(),
            duplicates: BTreeMap::new(),
            missing: None,
            keeps: true,
        }
    }

    /// For whoever writes these files itself: what cannot be understood in them is not there, so that it is written anew.
    pub(super) fn without_last_good(mut self) -> Self {
        self.keeps = false;
        self
    }

    /// What is in force under this name.
    pub(super) fn get(&self, key: &Key) -> Option<&Object> {
        self.in_force.get(key).map(|object| &**object)
    }

    /// Everything in force.
    pub(super) fn objects(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.in_force.values()
    }

    /// Whether it could be listed the last time that was tried. Until then nothing is known to be absent.
    pub(super) const fn is_listed(&self) -> bool {
        self.missing.is_none()
    }

    /// Everything wrong now.
    pub(super) fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.missing.iter().chain(self.files.values().flat_map(|file| &file.problems)).chain(self.duplicates.values())
    }

    /// Looks at what may have changed.
    pub(super) fn refresh(&mut self, dirty: &Dirty) -> Found {
        let before: HashSet<Problem> = self.problems().cloned().collect();
        let mut touched = BTreeSet::new();
        match self.suspects(dirty) {
            Ok(paths) => {
                self.missing = None;
                let complete = *dirty != Dirty::All;
                for path in paths {
                    self.read(&path, complete, &mut touched);
                }
            }
            Err(error) => {
                // Far more often an accident (a volume not mounted) than a wish to take every identity away.
                let message = format!("cannot be read: {error}; what was read before stays in force");
                self.missing = Some(Problem { file: self.root.clone(), line: 0, column: 0, object: None, message });
            }
        }
        let deltas = touched.into_iter().filter_map(|key| self.settle(key)).collect();
        let new_problems = self.problems().filter(|problem| !before.contains(*problem)).cloned().collect();
        Found { deltas, new_problems }
    }

    /// Files to read. An error when there is no directory: then a file that is not there says nothing.
    fn suspects(&self, dirty: &Dirty) -> io::Result<BTreeSet<PathBuf>> {
        match dirty {
            Dirty::All => {
                let mut paths = self.list()?;
                paths.extend(self.files.keys().cloned());
                Ok(paths)
            }
            Dirty::Files(paths) => {
                if self.depth == 0 && !paths.iter().all(|path| path.exists()) {
                    fs::read_dir(&self.root)?;
                }
                Ok(paths.clone())
            }
        }
    }

    fn list(&self) -> io::Result<BTreeSet<PathBuf>> {
        let mut found = BTreeSet::new();
        match list_into(&self.root, self.depth, &mut found) {
            // Nothing was written yet.
            Err(error) if self.depth > 0 && error.kind() == io::ErrorKind::NotFound => Ok(found),
            result => result.map(|()| found),
        }
    }

    /// Reads a file anew if it is another than before. `complete`: somebody has just finished writing it.
    fn read(&mut self, path: &Path, complete: bool, touched: &mut BTreeSet<Key>) {
        let (stamp, text) = match content(path) {
            Ok(Some((stamp, _))) if !complete && self.files.get(path).is_some_and(|f| f.stamp == Some(stamp)) => return,
            Ok(Some((stamp, read))) => match read() {
                Ok(text) => (stamp, text),
                Err(message) => return self.unreadable(path, &message),
            },
            Ok(None) => {
                if let Some(file) = self.files.remove(path) {
                    self.claim(path, &file.objects, &[], touched);
                }
                return;
            }
            Err(error) => return self.unreadable(path, &error.to_string()),
        };
        let old = self.files.remove(path).unwrap_or_default();
        if text.is_empty() && !complete && !old.objects.is_empty() {
            // Truncated, about to be written: its writer closes it soon, and that is told.
            self.files.insert(path.to_owned(), File { stamp: None, ..old });
            return;
        }
        let parsed = parse(path, &text, self.kinds);
        let mut objects = parsed.objects;
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        let mut problems = parsed.problems;
        if self.keeps && !problems.is_empty() {
            // What cannot be understood may have been meant to define any of the objects that are missing now.
            let kept: Vec<_> = old.objects.iter().filter(|o| find(&objects, &o.key).is_none()).cloned().collect();
            if !kept.is_empty() {
                let names: Vec<_> = kept.iter().map(|located| located.key.to_string()).collect();
                let message = format!("the last good version stays in force for {}", names.join(", "));
                problems.push(Problem { file: path.to_owned(), line: 0, column: 0, object: None, message });
            }
            objects.extend(kept);
            objects.sort_by(|a, b| a.key.cmp(&b.key));
        }
        self.claim(path, &old.objects, &objects, touched);
        self.files.insert(path.to_owned(), File { stamp: Some(stamp), objects, problems });
    }

    fn unreadable(&mut self, path: &Path, message: &str) {
        let file = self.files.entry(path.to_owned()).or_default();
        file.stamp = None;
        let message = format!("cannot be read: {message}; what was read before stays in force");
        file.problems = vec![Problem { file: path.to_owned(), line: 0, column: 0, object: None, message }];
    }

    fn claim(&mut self, path: &Path, old: &[Located], new: &[Located], touched: &mut BTreeSet<Key>) {
        for located in old {
            if let Some(files) = self.claims.get_mut(&located.key) {
                files.remove(path);
            }
            touched.insert(located.key.clone());
        }
        for located in new {
            self.claims.entry(located.key.clone()).or_default().insert(path.to_owned());
            touched.insert(located.key.clone());
        }
    }

    fn located(&self, path: &Path, key: &Key) -> Option<&Located> {
        find(&self.files.get(path)?.objects, key)
    }

    /// Decides what is in force for `key`, now that its files have been read.
    fn settle(&mut self, key: Key) -> Option<Delta> {
        self.duplicates.retain(|(_, other), _| *other != key);
        let files: Vec<PathBuf> = self.claims.get(&key).into_iter().flatten().cloned().collect();
        let first = files.first().and_then(|path| self.located(path, &key).cloned().map(|located| (path, located)));
        let Some((path, located)) = first else {
            self.claims.remove(&key);
            let old = self.in_force.remove(&key)?;
            return Some(Delta::Deleted(key, old));
        };
        for other in &files[1..] {
            let Some(place) = self.located(other, &key).map(|located| located.place) else { continue };
            let message = format!(
                "defined in {}:{} as well, and that one is used; remove one of the two",
                path.display(),
                located.place.line
            );
            let object = Some(key.to_string());
            let problem = Problem { file: other.clone(), line: place.line, column: place.column, object, message };
            self.duplicates.insert((other.clone(), key.clone()), problem);
        }
        match self.in_force.insert(key.clone(), located.object.clone()) {
            Some(old) if old == located.object => None,
            _ => Some(Delta::Applied(key, located.object)),
        }
    }
}

type Read = Box<dyn FnOnce() -> Result<String, String>>;

/// The stamp of a file and how to read it; none if there is no such file.
fn content(path: &Path) -> io::Result<Option<(Stamp, Read)>> {
    let meta = match fs::metadata(path) {
        Ok(meta) if meta.is_file() => meta,
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let stamp = Stamp {
        device: meta.dev(),
        inode: meta.ino(),
        size: meta.size(),
        modified: (meta.mtime(), meta.mtime_nsec()),
        changed: (meta.ctime(), meta.ctime_nsec()),
    };
    let path = path.to_owned();
    let read = move || {
        if stamp.size > LARGEST_FILE {
            return Err(format!("larger than {} MiB", LARGEST_FILE >> 20));
        }
        let mut bytes = Vec::new();
        // It may have grown since.
        let file = fs::File::open(&path).map_err(|error| error.to_string())?;
        file.take(LARGEST_FILE).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        String::from_utf8(bytes).map_err(|error| format!("not UTF-8 after byte {}", error.utf8_error().valid_up_to()))
    };
    Ok(Some((stamp, Box::new(read))))
}

fn list_into(directory: &Path, depth: usize, found: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if depth == 0 {
            if is_manifest(&path) {
                found.insert(path);
            }
        } else if entry.file_type()?.is_dir() {
            match list_into(&path, depth - 1, found) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// By its name: `*.yaml`, `*.yml`, `*.json`, not hidden.
pub(super) fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json")
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
