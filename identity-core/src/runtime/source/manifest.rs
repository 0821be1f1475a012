//! Manifests and the state directory as a source: reads what inotify says has changed, and tells the difference.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use identity_crd::{AzureAssignedIdentity, NODE_LABEL};
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
    pod::Pod,
    runtime::{observe::Observer, secrets::Store},
};

const MANIFEST_KINDS: &[Kind] = &[Kind::Pod, Kind::Secret, Kind::Identity, Kind::Binding, Kind::Exception];
const STATE_KINDS: &[Kind] = &[Kind::Assigned];
/// A manifest that is gone may be back in a moment: editors move the old file away before they write the new one.
const VANISHED: Duration = Duration::from_millis(50);

/// The tasks that watch: one for each directory.
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
    let mut tasks = Vec::new();
    let all_problems = Arc::new(AtomicUsize::new(0));
    let mut start = |path: PathBuf, nested, kinds, interests, secrets| -> Result<(), Error> {
        let absolute = std::path::absolute(&path).map_err(|source| Error::Directory { path: path.clone(), source })?;
        let inotify = Inotify::new(absolute.clone(), nested).map_err(|source| Error::Inotify { path, source })?;
        let driver = Driver {
            directory: Directory::new(absolute, nested, kinds),
            interests,
            updates: updates.clone(),
            observer: observer.clone(),
            problems: 0,
            all_problems: all_problems.clone(),
            secrets,
        };
        tasks.push(Box::pin(driver.run(inotify)) as BoxFuture<'static, ()>);
        Ok(())
    };
    start(manifests.directory.clone(), false, MANIFEST_KINDS, rest, Some(manifests.secrets.clone()))?;
    if !assigned.is_empty() {
        start(manifests.state.assignments(), true, STATE_KINDS, assigned, None)?;
    }
    Ok(tasks)
}

struct Driver {
    directory: Directory,
    interests: Vec<Interest>,
    updates: mpsc::Sender<Update>,
    observer: Arc<dyn Observer>,
    /// How many this directory has.
    problems: usize,
    /// How many all of them have.
    all_problems: Arc<AtomicUsize>,
    /// None for the state directory.
    secrets: Option<Arc<Store>>,
}

impl Driver {
    async fn run(mut self, mut inotify: Inotify) {
        let mut first = true;
        loop {
            let dirty = inotify.changed().await;
            if self.secrets.is_some()
                && let Dirty::Files(files) = &dirty
                && files.iter().any(|file| !file.exists())
            {
                tokio::time::sleep(VANISHED).await;
            }
            let Some(deltas) = self.refresh(dirty).await else { return };
            let messages: Vec<Update> = if first {
                if !self.directory.is_listed() {
                    // It has gone since it was checked: an empty list would be a lie.
                    continue;
                }
                first = false;
                self.interests.iter().map(|interest| relist(interest, &self.directory)).collect()
            } else {
                deltas.iter().filter_map(|delta| update(delta, &self.interests)).collect()
            };
            for message in messages {
                if self.updates.send(message).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Reads what may have changed, on a thread that may block, and tells of problems. None when that thread panicked.
    async fn refresh(&mut self, dirty: Dirty) -> Option<Vec<Delta>> {
        let empty = Directory::new(PathBuf::new(), false, &[]);
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
        if let Some(store) = &self.secrets {
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
        } else {
            debug!(changes = deltas.len(), "assignments changed");
        }
        Some(deltas)
    }
}

fn pod_is_wanted(pod: &Pod, node: Option<&str>) -> bool {
    node.is_none_or(|node| pod.node.as_deref() == Some(node))
}

fn assignment_is_wanted(object: &AzureAssignedIdentity, node: Option<&str>) -> bool {
    let label = object.metadata.labels.as_ref().and_then(|labels| labels.get(NODE_LABEL));
    node.is_none_or(|node| label.is_some_and(|label| *label == node_label(node)))
}

fn relist(interest: &Interest, directory: &Directory) -> Update {
    fn all<T: Clone>(directory: &Directory, pick: impl Fn(&Object) -> Option<&T>) -> Change<T> {
        Change::Relist(directory.objects().filter_map(|object| pick(object).cloned()).collect())
    }
    match interest {
        Interest::Pods { node } => Update::Pods(all(directory, |object| match object {
            Object::Pod(pod) if pod_is_wanted(pod, node.as_deref()) => Some(pod),
            _ => None,
        })),
        Interest::Identities => Update::Identities(all(directory, |object| match object {
            Object::Identity(identity) => Some(identity),
            _ => None,
        })),
        Interest::Bindings => Update::Bindings(all(directory, |object| match object {
            Object::Binding(binding) => Some(binding),
            _ => None,
        })),
        Interest::Assigned { node } => Update::Assigned(all(directory, |object| match object {
            Object::Assigned(assigned) if assignment_is_wanted(assigned, node.as_deref()) => Some(assigned),
            _ => None,
        })),
    }
}

fn update(delta: &Delta, interests: &[Interest]) -> Option<Update> {
    let (key, object, applied) = match delta {
        Delta::Applied(key, object) => (key, object, true),
        Delta::Deleted(key, object) => (key, object, false),
    };
    interests.iter().find_map(|interest| {
        Some(match (interest, &**object) {
            (Interest::Pods { node }, Object::Pod(pod)) => {
                let applied = applied && pod_is_wanted(pod, node.as_deref());
                Update::Pods(change(key, pod, Some(&*pod.reference.uid), applied))
            }
            (Interest::Identities, Object::Identity(identity)) => {
                Update::Identities(change(key, identity, identity.metadata.uid.as_deref(), applied))
            }
            (Interest::Bindings, Object::Binding(binding)) => {
                Update::Bindings(change(key, binding, binding.metadata.uid.as_deref(), applied))
            }
            (Interest::Assigned { node }, Object::Assigned(assigned)) => {
                let applied = applied && assignment_is_wanted(assigned, node.as_deref());
                Update::Assigned(change(key, assigned, assigned.metadata.uid.as_deref(), applied))
            }
            _ => return None,
        })
    })
}

fn change<T: Clone>(key: &Key, object: &T, uid: Option<&str>, applied: bool) -> Change<T> {
    if applied {
        Change::Apply(Box::new(object.clone()))
    } else {
        Change::Delete(Gone {
            namespace: key.object.namespace.to_string(),
            name: key.object.name.to_string(),
            uid: uid.map(str::to_owned),
        })
    }
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
