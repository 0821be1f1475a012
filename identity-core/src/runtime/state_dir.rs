//! The directory in which a controller without an API server keeps what it writes.
//!
//! ```text
//! assignments/<namespace>/<name>.json     one AzureAssignedIdentity each
//! status/<kind>/<namespace>/<name>.json   metadata and status of an AzureIdentity or AzureIdentityBinding
//! events.jsonl, events.jsonl.1            what would be Kubernetes Events; the older half
//! lease                                   locked by the controller that writes
//! ```

use std::{
    fmt::Write as _,
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::object::ObjectKey;

/// Paths inside a state directory. Readable by its owner only: assignments say who may speak as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir {
    root: PathBuf,
}

impl StateDir {
    /// The state directory at `root`, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where assignments are.
    pub fn assignments(&self) -> PathBuf {
        self.root.join("assignments")
    }

    /// The file of one assignment.
    pub fn assignment(&self, key: &ObjectKey) -> io::Result<PathBuf> {
        file(&self.assignments(), key)
    }

    /// The file with the status of one object.
    pub fn status(&self, kind: &str, key: &ObjectKey) -> io::Result<PathBuf> {
        file(&self.statuses().join(kind), key)
    }

    /// Where status is: a directory for each kind, in it one for each namespace.
    pub fn statuses(&self) -> PathBuf {
        self.root.join("status")
    }

    /// Events, one JSON object a line.
    pub fn events(&self) -> PathBuf {
        self.root.join("events.jsonl")
    }

    /// The file that the writing controller locks.
    pub fn lease(&self) -> PathBuf {
        self.root.join("lease")
    }

    /// Makes the directory and the one for assignments, mode 0700; also of a directory that was there with a wider one.
    pub fn create(&self) -> io::Result<()> {
        make(&self.assignments())?;
        for directory in [self.root(), &self.assignments()] {
            let permissions = fs::metadata(directory)?.permissions();
            if permissions.mode() & 0o077 != 0 {
                fs::set_permissions(directory, Permissions::from_mode(0o700))?;
            }
        }
        Ok(())
    }
}

fn file(directory: &Path, key: &ObjectKey) -> io::Result<PathBuf> {
    for part in [&key.namespace, &key.name] {
        if !is_object_name(part) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("`{part}` is no name of an object")));
        }
    }
    Ok(directory.join(&*key.namespace).join(format!("{}.json", key.name)))
}

/// Whether this is a name as Kubernetes has them (a DNS subdomain, RFC 1123); also what makes it safe in a path.
pub(crate) fn is_object_name(name: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    name.len() <= 253
        && edge(name.as_bytes().first())
        && edge(name.as_bytes().last())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
}

/// A UID in the usual form (8-4-4-4-12) that is always the same for the same `text`.
pub(crate) fn derived_uid(text: &str) -> String {
    let hash = Sha256::digest(text);
    let hex = hash.iter().take(16).fold(String::with_capacity(32), |mut hex, byte| {
        // Writing into a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// A number, over zero and exact in a double (RFC 8259 §6), that is always the same for the same `text`.
pub(crate) fn derived_number(text: &str) -> i64 {
    let hash = Sha256::digest(text);
    let number = hash.iter().take(6).fold(0_i64, |number, byte| (number << 8) | i64::from(*byte));
    number.max(1)
}

fn make(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Writes a file so that readers see the old content or the new, never a part.
pub(crate) fn write(path: &Path, content: &impl Serialize) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no file name"));
    };
    make(directory)?;
    // Hidden: whoever watches the directory does not take it for an object.
    let temporary = directory.join(format!(".{}.tmp", name.to_string_lossy()));
    let mut bytes = serde_json::to_vec_pretty(content).map_err(io::Error::other)?;
    bytes.push(b'\n');
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&bytes)?;
    drop(file);
    fs::rename(&temporary, path)
}

/// A file of lines larger than this becomes `<name>.1`, in place of the one before it.
const LARGEST_LOG: u64 = 4 << 20;

/// Appends one line.
pub(crate) fn append(path: &Path, content: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(content).map_err(io::Error::other)?;
    line.push(b'\n');
    let open = || OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    let mut file = open()?;
    if file.metadata()?.len() > LARGEST_LOG {
        let mut old = path.as_os_str().to_owned();
        old.push(".1");
        fs::rename(path, old)?;
        file = open()?;
    }
    file.write_all(&line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_leave_the_directory() {
        let state = StateDir::new("/state");
        let path = |namespace: &str, name: &str| state.assignment(&ObjectKey::new(namespace, name));
        assert_eq!(path("team", "a.b-c").unwrap(), Path::new("/state/assignments/team/a.b-c.json"));
        for (namespace, name) in [("..", "a"), ("team", "../a"), ("team", ""), ("a/b", "c"), ("A", "b"), ("-a", "b")] {
            assert!(path(namespace, name).is_err(), "{namespace} {name}");
        }
    }

    #[test]
    fn files_are_whole_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::new(directory.path().join("state"));
        fs::create_dir(state.root()).unwrap();
        fs::set_permissions(state.root(), Permissions::from_mode(0o755)).unwrap();
        state.create().unwrap();
        let path = state.assignment(&ObjectKey::new("n", "a")).unwrap();
        write(&path, &"one").unwrap();
        write(&path, &"two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "\"two\"\n");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        assert_eq!(fs::metadata(state.root()).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        append(&state.events(), &1).unwrap();
        append(&state.events(), &2).unwrap();
        assert_eq!(fs::read_to_string(state.events()).unwrap(), "1\n2\n");
        OpenOptions::new().write(true).open(state.events()).unwrap().set_len(LARGEST_LOG + 1).unwrap();
        append(&state.events(), &3).unwrap();
        assert_eq!(fs::read_to_string(state.events()).unwrap(), "3\n");
        assert_eq!(fs::metadata(state.root().join("events.jsonl.1")).unwrap().len(), LARGEST_LOG + 1);
    }
}
