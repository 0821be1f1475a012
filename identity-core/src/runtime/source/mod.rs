//! Where objects come from: watches of an API server, or a directory of manifests with a state directory beside it. Both
//! become one stream of [`Update`]s.

mod directory;
mod inotify;
mod kubernetes;
mod locate;
mod manifest;
mod parse;
mod words;

use std::{path::PathBuf, sync::Arc};

use futures::{FutureExt as _, future::BoxFuture};
use identity_crd::{
    AzureAssignedIdentity, AzureIdentity, AzureIdentityBinding, AzureIdentityGrant, AzurePodIdentityException,
};
use kube::Client;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub(super) use self::kubernetes::{BACKOFF, WATCH_SECONDS, impatient, start_was_gone};
pub use self::parse::{Problem, examine};
use super::{
    observe::{Nobody, Observer},
    secrets::Store,
    state_dir::StateDir,
};
use crate::{object::ObjectKey, pod::Pod};

/// How many updates may wait for whoever reads them; then the watches wait.
const WAITING: usize = 1024;

/// Something changed among the objects of one kind.
#[derive(Clone, Debug)]
pub enum Update {
    /// Pods.
    Pods(Change<Pod>),
    /// `AzureIdentity`.
    Identities(Change<AzureIdentity>),
    /// `AzureIdentityBinding`.
    Bindings(Change<AzureIdentityBinding>),
    /// `AzureAssignedIdentity`.
    Assigned(Change<AzureAssignedIdentity>),
    /// `AzureIdentityGrant`.
    Grants(Change<AzureIdentityGrant>),
    /// `AzurePodIdentityException`, of one namespace.
    Exceptions {
        /// Which.
        namespace: String,
        /// What changed in it.
        change: Change<AzurePodIdentityException>,
    },
}

/// What changed.
#[derive(Clone, Debug)]
pub enum Change<T> {
    /// An object appeared or changed.
    Apply(Box<T>),
    /// An object is gone.
    Delete(Gone),
    /// All objects as they are now; what is not among them is gone. Comes first, and again when a watch had to start over.
    Relist(Vec<T>),
}

/// An object that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `metadata.uid` of the object that went.
    pub uid: Option<String>,
}

/// What to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Pods, of one node if given.
    Pods {
        /// `spec.nodeName`.
        node: Option<String>,
    },
    /// `AzureIdentity`.
    Identities,
    /// `AzureIdentityBinding`.
    Bindings,
    /// `AzureAssignedIdentity`, of one node if given.
    Assigned {
        /// Label `nodename`.
        node: Option<String>,
    },
    /// `AzureIdentityGrant`.
    Grants,
    /// `AzurePodIdentityException`, of one namespace: nothing is asked about others.
    Exceptions {
        /// Which.
        namespace: String,
    },
}

impl Gone {
    /// Namespace and name.
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(self.namespace.as_str(), self.name.as_str())
    }
}

impl Interest {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Pods { .. } => "Pod",
            Self::Identities => "AzureIdentity",
            Self::Bindings => "AzureIdentityBinding",
            Self::Assigned { .. } => "AzureAssignedIdentity",
            Self::Grants => "AzureIdentityGrant",
            Self::Exceptions { .. } => "AzurePodIdentityException",
        }
    }
}

/// Where objects come from. Cheap to clone; clones share what they have read.
#[derive(Clone)]
pub enum Source {
    /// An API server. Use a client from [`runtime::client`](super::client).
    Kubernetes(Client),
    /// A directory of manifests.
    Manifests(Manifests),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kubernetes(_) => f.write_str("Kubernetes"),
            Self::Manifests(manifests) => manifests.fmt(f),
        }
    }
}

/// A directory of manifests and the state directory beside it.
#[derive(Clone, Debug)]
pub struct Manifests {
    directory: PathBuf,
    state: StateDir,
    secrets: Arc<Store>,
}

impl Manifests {
    /// Where the manifests are.
    pub const fn directory(&self) -> &PathBuf {
        &self.directory
    }

    /// Where what is written goes.
    pub const fn state(&self) -> &StateDir {
        &self.state
    }

    pub(crate) const fn secrets(&self) -> &Arc<Store> {
        &self.secrets
    }
}

/// Watching could not begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory of manifests is not there.
    #[error("{path}: {source}; --manifests names the directory with the YAML files")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// inotify is not to be had.
    #[error("cannot watch {path}: {source}; raise fs.inotify.max_user_instances or fs.inotify.max_user_watches")]
    Inotify {
        /// Which directory.
        path: PathBuf,
        /// Why.
        source: notify::Error,
    },
}

impl Source {
    /// Objects of an API server.
    pub const fn kubernetes(client: Client) -> Self {
        Self::Kubernetes(client)
    }

    /// Objects of the manifests in `directory` (`*.yaml`, `*.yml`, `*.json`, not in subdirectories); assignments from
    /// `state`.
    pub fn manifests(directory: impl Into<PathBuf>, state: impl Into<PathBuf>) -> Self {
        Self::Manifests(Manifests { directory: directory.into(), state: StateDir::new(state), secrets: Arc::default() })
    }

    /// Starts watching. Each kind begins with a [`Change::Relist`]; nothing is lost or repeated as long as updates are
    /// taken in order. The tasks end with `shutdown`, when the receiver is dropped, and all together when one of them panics.
    pub fn watch(
        &self,
        interests: &[Interest],
        observer: Option<Arc<dyn Observer>>,
        shutdown: &CancellationToken,
    ) -> Result<mpsc::Receiver<Update>, Error> {
        let observer = observer.unwrap_or_else(|| Arc::new(Nobody));
        let (updates, receiver) = mpsc::channel(WAITING);
        let tasks: Vec<BoxFuture<'static, ()>> = match self {
            Self::Kubernetes(client) => interests
                .iter()
                .map(|interest| {
                    kubernetes::watch(client.clone(), interest.clone(), updates.clone(), observer.clone()).boxed()
                })
                .collect(),
            Self::Manifests(manifests) => manifest::watch(manifests, interests, &updates, &observer)?,
        };
        // All or none: with one of them gone (a panic), what the others tell would be half the truth.
        let together = shutdown.child_token();
        for task in tasks {
            let (together, updates) = (together.clone(), updates.clone());
            tokio::spawn(async move {
                let _end = together.clone().drop_guard();
                let until_nobody_listens = async {
                    tokio::select! {
                        () = updates.closed() => {}
                        () = task => {}
                    }
                };
                together.run_until_cancelled(until_nobody_listens).await
            });
        }
        Ok(receiver)
    }
}
