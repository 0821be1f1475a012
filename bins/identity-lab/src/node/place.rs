//! Where a lab keeps what it knows: one directory, found again from anywhere.

use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// In a lab's directory: the distance of the lab's clock from the machine's, in seconds after a sign.
pub const CLOCK: &str = "clock";

/// The directory of one lab and the names inside it.
#[derive(Clone, Debug)]
pub struct Place {
    root: PathBuf,
    id: String,
}

impl Place {
    /// The place in `directory`; two labs in two directories run side by side.
    pub fn new(directory: &Path) -> Self {
        let root = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
        let digest = Sha256::digest(root.as_os_str().as_encoded_bytes());
        let id = hex(&digest[..4]);
        Self { root, id }
    }

    /// The well-known place of a user: under `/run` for root, else under the user's runtime directory or `/tmp`.
    pub fn default_directory(user: u32, runtime_directory: Option<&Path>) -> PathBuf {
        const NAME: &str = "entra-pod-identity-lab";
        match (user, runtime_directory) {
            (0, _) => Path::new("/run").join(NAME),
            (_, Some(directory)) => directory.join(NAME),
            (user, None) => PathBuf::from(format!("/tmp/{NAME}-{user}")),
        }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A name inside it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The log of a process.
    pub fn log(&self, process: &str) -> PathBuf {
        self.root.join("logs").join(format!("{process}.log"))
    }

    /// The lab's copy of the manifests.
    pub fn manifests(&self) -> PathBuf {
        self.root.join("manifests")
    }

    /// The state directory of the binaries.
    pub fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    /// What the lab is: see [`super::record::Record`].
    pub fn record(&self) -> PathBuf {
        self.root.join("lab.json")
    }

    /// Files of one pod: `hosts`, `resolv.conf`, `serviceaccount/`.
    pub fn pod(&self, namespace: &str, name: &str) -> PathBuf {
        self.root.join("pods").join(format!("{namespace}.{name}"))
    }

    /// The beginning of the names of this lab's network namespaces. It ends in a dot and the id has none, so no lab's prefix
    /// is the beginning of another's.
    pub fn netns_prefix(&self) -> String {
        format!("epi-lab-{}.", self.id)
    }

    /// Name of the network namespace of `what`.
    pub fn netns(&self, what: &str) -> String {
        format!("{}{what}", self.netns_prefix())
    }

    /// Name of a pod's network namespace; a file name, so at most 255 bytes.
    pub fn pod_netns(&self, namespace: &str, name: &str) -> String {
        let full = self.netns(&format!("pod.{namespace}.{name}"));
        if full.len() <= 200 {
            return full;
        }
        let digest = Sha256::digest(full.as_bytes());
        let hash: String = hex(&digest[..8]);
        // Object names are ASCII; a manifest's may be anything, so cut where a character ends.
        let cut = (0..=180).rev().find(|&cut| full.is_char_boundary(cut)).unwrap_or(0);
        format!("{}-{hash}", &full[..cut])
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_collide_between_labs_or_pods() {
        let (a, b) = (Place::new(Path::new("/x/a")), Place::new(Path::new("/x/b")));
        assert_ne!(a.netns_prefix(), b.netns_prefix());
        let long = "p".repeat(253);
        let (first, second) = (a.pod_netns("n", &format!("{long}1")), a.pod_netns("n", &format!("{long}2")));
        assert!(first.len() < 255 && first != second && first.starts_with(&a.netns_prefix()));
    }

    #[test]
    fn everybody_has_a_well_known_place() {
        let runtime = Path::new("/run/user/7");
        assert_eq!(Place::default_directory(0, Some(runtime)), Path::new("/run/entra-pod-identity-lab"));
        assert_eq!(Place::default_directory(7, Some(runtime)), Path::new("/run/user/7/entra-pod-identity-lab"));
        assert_eq!(Place::default_directory(7, None), Path::new("/tmp/entra-pod-identity-lab-7"));
    }
}
