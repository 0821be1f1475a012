//! Manifests and the state directory as a source: reads what inotify says has changed, and tells the difference.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use identity_crd::{AzureAssignedIdentity, NODE_LABEL};
use kube::api::ObjectMeta;
use tokio::sync::mpsc;
use tracing::{debug, error, info};

use super::{
    Change, Error, Gone, Interest, Manifests, Update,
    directory::{Delta, Directory, Dirty, Found},
    inotify::Inotify,
    parse::{Key, Kind, Object},
};
use crate::{
    assign::node_label,
    object::ObjectKey,
    pod::Pod,
    runtime::{observe::Observer, secrets::Store},
};

const MANIFEST_KINDS: &[Kind] = &[Kind::Pod, Kind::Secret, Kind::Identity, Kind::Binding, Kind::Exception, Kind::Grant];
const STATE_KINDS: &[Kind] = &[Kind::Assigned];
const STATUS_KINDS: &[Kind] = &[Kind::IdentityStatus, Kind::BindingStatus, Kind::GrantStatus];
/// A manifest that is gone may be back in a moment: editors move the old file away before they write the new one.
const VANISHED: Duration = Duration::from_millis(50);

/// The tasks that watch: one for manifests (and the status of what is in them), one for assignments.
pub(super) fn watch(
    manifests: &Manifests,
    interests: &[Interest],
    updates: &mpsc::Sender<Update>,
    observer: &Arc<dyn Observer>,
) -> Result<Vec<BoxFuture<'static, ()>>, Error> {
    std::fs::read_dir(&manifests.directory)
        .map_err(|source| Error::Directory { path: manifests.directory.clone(), source })?;
    let (assigned, rest): (Vec<_>, Vec<_>) =
        interests.iter().cloned().partition(|interest| matches!(interest, Interest::Assigned { .. }));
    let problems = Arc::new(AtomicUsize::new(0));
    let room = |path, depth, kinds| Room::new(path, depth, kinds, problems.clone(), observer.clone());
    let manifest = Driver {
        room: room(manifests.directory.clone(), 0, MANIFEST_KINDS)?,
        statuses: Some(room(manifests.state.statuses(), 2, STATUS_KINDS)?),
        interests: rest,
        updates: updates.clone(),
        secrets: Some(manifests.secrets.clone()),
    };
    let mut tasks = vec![manifest.run().boxed()];
    if !assigned.is_empty() {
        let mut room = room(manifests.state.assignments(), 1, STATE_KINDS)?;
        if assigned.iter().any(|interest| matches!(interest, Interest::Assigned { node: None })) {
            // All of them: the controller, whose files they are.
            room.directory = room.directory.without_last_good();
        }
        let state = Driver { room, statuses: None, interests: assigned, updates: updates.clone(), secrets: None };
        tasks.push(state.run().boxed());
    }
    Ok(tasks)
}

/// A directory, watched.
struct Room {
    directory: Directory,
    inotify: Inotify,
    /// How many problems this directory has.
    problems: usize,
    /// How many all of them have.
    all_problems: Arc<AtomicUsize>,
    observer: Arc<dyn Observer>,
}

impl Room {
    fn new(
        path: PathBuf,
        depth: usize,
        kinds: &'static [Kind],
        all_problems: Arc<AtomicUsize>,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, Error> {
        let absolute = std::path::absolute(&path).map_err(|source| Error::Directory { path: path.clone(), source })?;
        let inotify = Inotify::new(absolute.clone(), depth).map_err(|source| Error::Inotify { path, source })?;
        Ok(Self { directory: Directory::new(absolute, depth, kinds), inotify, problems: 0, all_problems, observer })
    }

    /// Reads what may have changed, on a thread that may block, and tells of problems. None when that thread panicked.
    async fn refresh(&mut self, dirty: Dirty) -> Option<Vec<Delta>> {
        let empty = Directory::new(PathBuf::new(), 0, &[]);
        let mut directory = std::mem::replace(&mut self.directory, empty);
        let read = tokio::task::spawn_blocking(move || {
            let found = directory.refresh(&dirty);
            (directory, found)
        });
        let (directory, Found { deltas, new_problems }) = read.await.ok()?;
        self.directory = directory;
        for problem in &new_problems {
            error!(
                file = %problem.file.display(), line = problem.line, column = problem.column,
                object = problem.object.as_deref(), "{problem}"
            );
        }
        let (before, now) = (self.problems, self.directory.problems().count());
        self.problems = now;
        // Wraps around and back when `before` is larger.
        let others = self.all_problems.fetch_add(now.wrapping_sub(before), Ordering::Relaxed).wrapping_sub(before);
        self.observer.problems(others.wrapping_add(now));
        Some(deltas)
    }
}

struct Driver {
    room: Room,
    /// Where the controller keeps the status of identities and bindings.
    statuses: Option<Room>,
    interests: Vec<Interest>,
    updates: mpsc::Sender<Update>,
    /// None for the state directory.
    secrets: Option<Arc<Store>>,
}

impl Driver {
    async fn run(mut self) {
        // Status first: the first list has it.
        if let Some(statuses) = &mut self.statuses {
            let dirty = statuses.inotify.changed().await;
            if statuses.refresh(dirty).await.is_none() {
                return;
            }
        }
        let mut listed = false;
        loop {
            let status = async {
                match &mut self.statuses {
                    Some(statuses) => statuses.inotify.changed().await,
                    None => std::future::pending().await,
                }
            };
            let (dirty, is_status) = tokio::select! {
                biased;
                dirty = self.room.inotify.changed() => (dirty, false),
                dirty = status => (dirty, true),
            };
            let deltas = match &mut self.statuses {
                Some(statuses) if is_status => statuses.refresh(dirty).await,
                _ => self.refresh(dirty).await,
            };
            let Some(deltas) = deltas else { return };
            let messages: Vec<Update> = if listed {
                deltas.iter().filter_map(|delta| self.update(delta)).collect()
            } else if self.room.directory.is_listed() && !is_status {
                listed = true;
                self.interests.iter().map(|interest| self.relist(interest)).collect()
            } else {
                // It has gone since it was checked: an empty list would be a lie.
                continue;
            };
            for message in messages {
                if self.updates.send(message).await.is_err() {
                    return;
                }
            }
        }
    }

    async fn refresh(&mut self, dirty: Dirty) -> Option<Vec<Delta>> {
        let Some(store) = &self.secrets else {
            let deltas = self.room.refresh(dirty).await?;
            debug!(changes = deltas.len(), "assignments changed");
            return Some(deltas);
        };
        if let Dirty::Files(files) = &dirty
            && files.iter().any(|file| !file.exists())
        {
            tokio::time::sleep(VANISHED).await;
        }
        let deltas = self.room.refresh(dirty).await?;
        if !deltas.is_empty() {
            info!(changes = deltas.len(), "manifests changed");
        }
        // Secrets first: whoever hears of an identity may ask for its Secret at once.
        for delta in &deltas {
            match delta {
                Delta::Applied(key, object) => {
                    if let Object::Secret(data) = &**object {
                        store.put(key.object.clone(), data.clone());
                    }
                }
                Delta::Deleted(key, _) if key.kind == Kind::Secret => store.remove(&key.object),
                Delta::Deleted(..) => {}
            }
        }
        store.ready();
        Some(deltas)
    }

    /// A copy of an object with the status that belongs to it.
    fn with_status(&self, object: &Object) -> Object {
        let status = |kind, meta: &ObjectMeta| {
            let name = |name: &Option<String>| name.as_deref().unwrap_or_default().to_owned();
            let key = Key { kind, object: ObjectKey::new(name(&meta.namespace), name(&meta.name)) };
            self.statuses.as_ref()?.directory.get(&key)
        };
        let mut object = object.clone();
        match &mut object {
            Object::Identity(identity) => {
                if let Some(Object::IdentityStatus(there)) = status(Kind::IdentityStatus, &identity.metadata)
                    && there.uid == identity.metadata.uid
                {
                    identity.status = Some(there.status.clone());
                }
            }
            Object::Binding(binding) => {
                if let Some(Object::BindingStatus(there)) = status(Kind::BindingStatus, &binding.metadata)
                    && there.uid == binding.metadata.uid
                {
                    binding.status = Some(there.status.clone());
                }
            }
            Object::Grant(grant) => {
                // Its version is that of its status: one with an older status is older, whatever else it says.
                grant.metadata.resource_version = Some("0".to_owned());
                if let Some(Object::GrantStatus(there)) = status(Kind::GrantStatus, &grant.metadata)
                    && there.uid == grant.metadata.uid
                {
                    grant.status = Some(there.status.clone());
                    if let Some(version) = &there.version {
                        grant.metadata.resource_version = Some(version.clone());
                    }
                }
            }
            _ => {}
        }
        object
    }

    fn relist(&self, interest: &Interest) -> Update {
        let all = || self.room.directory.objects().map(|object| self.with_status(object));
        match interest {
            Interest::Pods { node } => Update::Pods(Change::Relist(
                all()
                    .filter_map(|object| match object {
                        Object::Pod(pod) if pod_is_wanted(&pod, node.as_deref()) => Some(pod),
                        _ => None,
                    })
                    .collect(),
            )),
            Interest::Identities => Update::Identities(Change::Relist(
                all()
                    .filter_map(|object| match object {
                        Object::Identity(identity) => Some(identity),
                        _ => None,
                    })
                    .collect(),
            )),
            Interest::Bindings => Update::Bindings(Change::Relist(
                all()
                    .filter_map(|object| match object {
                        Object::Binding(binding) => Some(binding),
                        _ => None,
                    })
                    .collect(),
            )),
            Interest::Grants => Update::Grants(Change::Relist(
                all()
                    .filter_map(|object| match object {
                        Object::Grant(grant) => Some(grant),
                        _ => None,
                    })
                    .collect(),
            )),
            Interest::Assigned { node } => Update::Assigned(Change::Relist(
                all()
                    .filter_map(|object| match object {
                        Object::Assigned(assigned) if assignment_is_wanted(&assigned, node.as_deref()) => {
                            Some(assigned)
                        }
                        _ => None,
                    })
                    .collect(),
            )),
            Interest::Exceptions { namespace } => Update::Exceptions {
                namespace: namespace.clone(),
                change: Change::Relist(
                    all()
                        .filter_map(|object| match object {
                            Object::Exception(exception) if is_of(&exception.metadata, namespace) => Some(exception),
                            _ => None,
                        })
                        .collect(),
                ),
            },
        }
    }

    fn update(&self, delta: &Delta) -> Option<Update> {
        let (key, object, applied) = match delta {
            Delta::Applied(key, object) => (key, object, true),
            Delta::Deleted(key, object) => (key, object, false),
        };
        let kind = match key.kind {
            Kind::IdentityStatus => Kind::Identity,
            Kind::BindingStatus => Kind::Binding,
            Kind::GrantStatus => Kind::Grant,
            _ => return self.object_changed(key, object, applied),
        };
        // The object is another now, as it is without an API server, too.
        let key = Key { kind, object: key.object.clone() };
        let object = self.room.directory.get(&key)?;
        self.object_changed(&key, object, true)
    }

    fn object_changed(&self, key: &Key, object: &Object, applied: bool) -> Option<Update> {
        let object = self.with_status(object);
        let gone = |uid: Option<&str>| Gone {
            namespace: key.object.namespace.to_string(),
            name: key.object.name.to_string(),
            uid: uid.map(str::to_owned),
        };
        self.interests.iter().find_map(|interest| match (interest, &object) {
            (Interest::Pods { node }, Object::Pod(pod)) => {
                let wanted = applied && pod_is_wanted(pod, node.as_deref());
                Some(Update::Pods(change(pod, wanted, || gone(Some(&*pod.reference.uid)))))
            }
            (Interest::Identities, Object::Identity(identity)) => {
                Some(Update::Identities(change(identity, applied, || gone(identity.metadata.uid.as_deref()))))
            }
            (Interest::Bindings, Object::Binding(binding)) => {
                Some(Update::Bindings(change(binding, applied, || gone(binding.metadata.uid.as_deref()))))
            }
            (Interest::Grants, Object::Grant(grant)) => {
                Some(Update::Grants(change(grant, applied, || gone(grant.metadata.uid.as_deref()))))
            }
            (Interest::Assigned { node }, Object::Assigned(assigned)) => {
                let wanted = applied && assignment_is_wanted(assigned, node.as_deref());
                Some(Update::Assigned(change(assigned, wanted, || gone(assigned.metadata.uid.as_deref()))))
            }
            (Interest::Exceptions { namespace }, Object::Exception(exception))
                if is_of(&exception.metadata, namespace) =>
            {
                let change = change(exception, applied, || gone(exception.metadata.uid.as_deref()));
                Some(Update::Exceptions { namespace: namespace.clone(), change })
            }
            _ => None,
        })
    }
}

fn is_of(meta: &ObjectMeta, namespace: &str) -> bool {
    meta.namespace.as_deref() == Some(namespace)
}

fn change<T: Clone>(object: &T, applied: bool, gone: impl FnOnce() -> Gone) -> Change<T> {
    if applied { Change::Apply(Box::new(object.clone())) } else { Change::Delete(gone()) }
}

fn pod_is_wanted(pod: &Pod, node: Option<&str>) -> bool {
    node.is_none_or(|node| pod.node.as_deref() == Some(node))
}

fn assignment_is_wanted(object: &AzureAssignedIdentity, node: Option<&str>) -> bool {
    let label = object.metadata.labels.as_ref().and_then(|labels| labels.get(NODE_LABEL));
    node.is_none_or(|node| label.is_some_and(|label| *label == node_label(node)))
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
