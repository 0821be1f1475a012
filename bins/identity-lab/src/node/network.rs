//! Network namespaces and the wires between them, by `ip` (iproute2).
//!
//! ```text
//!  pod netns        node netns                               azure netns
//!  eth0 10.42.x.y ─ pods (bridge) 10.42.0.1/16
//!                   azure 10.43.0.1/30 ───────────────────── eth0 10.43.0.2/30 (Entra, 443)
//!                   route 169.254.169.254 via 10.43.0.2      lo 169.254.169.254/32 (IMDS, 80)
//! ```
//! The node forwards, so that a pod's request that nothing redirects would reach IMDS: that makes the product's drop rule
//! testable. `route_localnet` stays off.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

use super::kubelet::{NODE_ADDRESS, PREFIX};
use crate::process::{self, command};

/// The emulators' address on the wire to the node.
pub const AZURE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 43, 0, 2);
/// The node's address on that wire.
pub const AZURE_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 43, 0, 1);
/// Where IMDS answers.
pub const METADATA_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// What can go wrong with the network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A helper failed.
    #[error(transparent)]
    Process(#[from] process::Error),
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
}

impl Error {
    pub(super) fn system(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System { what: what.into(), source: source.into() }
    }
}

/// The network namespaces of one lab.
#[derive(Clone, Debug)]
pub struct Network {
    /// Where namespaces have their names: `/run/netns` for root (so that `ip netns` knows them), else the lab's own.
    directory: PathBuf,
    rootless: bool,
}

impl Network {
    /// For root: names in `/run/netns`.
    pub fn for_root() -> Self {
        Self { directory: PathBuf::from("/run/netns"), rootless: false }
    }

    /// Inside a user namespace: names in `directory`, a file system of this mount namespace only.
    ///
    /// # Errors
    /// The directory cannot be made or mounted on.
    pub fn rootless(directory: &Path) -> Result<Self, Error> {
        let what = || format!("cannot mount a file system for network namespaces on {}", directory.display());
        fs::create_dir_all(directory).map_err(|source| Error::system(what(), source))?;
        mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .map_err(|source| Error::system(what(), source))?;
        // Shared, so that a namespace removed here is removed from the copies that the node's processes have, too.
        mount(None::<&str>, directory, None::<&str>, MsFlags::MS_SHARED, None::<&str>)
            .map_err(|source| Error::system(what(), source))?;
        Ok(Self { directory: directory.to_owned(), rootless: true })
    }

    /// The directory of names.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The file that stands for a namespace.
    pub fn path(&self, netns: &str) -> PathBuf {
        self.directory.join(netns)
    }

    /// Makes a namespace with its loopback up.
    ///
    /// # Errors
    /// As the system says.
    pub fn add(&self, netns: &str) -> Result<(), Error> {
        if self.rootless {
            let path = self.path(netns);
            File::create(&path).map_err(|source| Error::system(format!("cannot create {}", path.display()), source))?;
            in_thread("make a network namespace", move || {
                unshare(CloneFlags::CLONE_NEWNET)?;
                mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
                Ok(())
            })?;
        } else {
            process::run("ip", &["netns", "add", netns])?;
        }
        self.ip(netns, "link set lo up\n")
    }

    /// Removes a namespace; no error when there is none.
    pub fn remove(&self, netns: &str) {
        let path = self.path(netns);
        let _ = umount2(&path, MntFlags::MNT_DETACH);
        let _ = fs::remove_file(&path);
    }

    /// Names of namespaces that begin with `prefix`.
    pub fn names(&self, prefix: &str) -> Vec<String> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter(|name| name.starts_with(prefix)).collect()
    }

    /// Runs `work` on a thread of its own inside a namespace. A socket made there stays there.
    ///
    /// # Errors
    /// The namespace cannot be entered, or `work` fails.
    pub fn within<T: Send + 'static>(
        &self,
        netns: &str,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let path = self.path(netns);
        in_thread(&format!("work in network namespace {netns}"), move || {
            setns(File::open(&path)?, CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }

    /// Runs a batch of `ip` commands inside a namespace.
    ///
    /// # Errors
    /// The first that fails.
    pub fn ip(&self, netns: &str, batch: &str) -> Result<(), Error> {
        let batch = batch.to_owned();
        self.within(netns, move || {
            let mut child = command("ip")
                .args(["-batch", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(batch.as_bytes())?;
            }
            let output = child.wait_with_output()?;
            if output.status.success() {
                return Ok(());
            }
            Err(io::Error::other(format!("ip -batch: {}", String::from_utf8_lossy(&output.stderr).trim())))
        })
    }

    /// Makes the node, Azure, and the wire between them.
    ///
    /// # Errors
    /// As the system says.
    pub fn add_node(&self, node: &str, azure: &str) -> Result<(), Error> {
        self.add(node)?;
        self.add(azure)?;
        let path = self.path(azure);
        self.ip(
            node,
            &format!(
                "link add pods type bridge\naddr add {NODE_ADDRESS}/{PREFIX} dev pods\nlink set pods up\n\
                 link add azure type veth peer name eth0 netns {}\naddr add {AZURE_GATEWAY}/30 dev azure\nlink set azure up\n",
                path.display()
            ),
        )?;
        self.ip(
            azure,
            &format!(
                "addr add {AZURE_ADDRESS}/30 dev eth0\nlink set eth0 up\naddr add {METADATA_ADDRESS}/32 dev lo\n\
                 route add default via {AZURE_GATEWAY}\n"
            ),
        )?;
        self.ip(node, &format!("route add {METADATA_ADDRESS}/32 via {AZURE_ADDRESS}\n"))?;
        self.within(node, || fs::write("/proc/sys/net/ipv4/ip_forward", "1"))
    }

    /// Makes a pod's namespace and plugs it into the node's bridge as `wire` (at most 15 characters).
    ///
    /// # Errors
    /// As the system says; nothing stays behind then.
    pub fn add_pod(&self, node: &str, netns: &str, wire: &str, addresses: &[Ipv4Addr]) -> Result<(), Error> {
        use std::fmt::Write as _;
        let mut inside = String::new();
        for address in addresses {
            let _ = writeln!(inside, "addr add {address}/{PREFIX} dev eth0");
        }
        let _ = writeln!(inside, "link set eth0 up\nroute add default via {NODE_ADDRESS}");
        let path = self.path(netns);
        let result = self
            .add(netns)
            .and_then(|()| {
                let outside = format!(
                    "link add {wire} type veth peer name eth0 netns {}\nlink set {wire} master pods\nlink set {wire} up\n",
                    path.display()
                );
                self.ip(node, &outside)
            })
            .and_then(|()| self.ip(netns, &inside));
        if result.is_err() {
            self.remove_pod(node, netns, wire);
        }
        result
    }

    /// Takes a pod off the bridge and removes its namespace. The wire goes first: a namespace lives on while a process is in it.
    pub fn remove_pod(&self, node: &str, netns: &str, wire: &str) {
        let _ = self.ip(node, &format!("link del {wire}\n"));
        self.remove(netns);
    }
}

/// Namespaces belong to threads: change them on one that ends.
fn in_thread<T: Send + 'static>(what: &str, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, Error> {
    let failed = |source| Error::system(format!("cannot {what}"), source);
    let thread = thread::Builder::new().name("netns".to_owned()).spawn(work).map_err(failed)?;
    thread.join().map_err(|_| failed(io::Error::other("the thread panicked")))?.map_err(failed)
}
