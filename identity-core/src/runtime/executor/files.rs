//! Actions as files of the state directory, with the same preconditions as an API server has.

use std::{
    fs, io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use identity_crd::AzureAssignedIdentity;
use serde_json::Value;
use tracing::warn;

use super::{
    Seen, Success, events,
    kubernetes::{grant_status, status_object},
};
use crate::{
    assign::{Action, Apply, Delete, GrantUpdate, Notice, Precondition},
    object::ObjectKey,
    runtime::{
        clock::Clock,
        request::Failure,
        state_dir::{StateDir, append, derived_uid, write},
    },
};

#[derive(Debug)]
pub(super) struct Files {
    state: StateDir,
    clock: Arc<dyn Clock>,
    /// The last resourceVersion given; also makes check and write one step.
    version: Mutex<Option<u64>>,
}

impl Files {
    pub(super) const fn new(state: StateDir, clock: Arc<dyn Clock>) -> Self {
        Self { state, clock, version: Mutex::new(None) }
    }

    pub(super) fn perform(&self, action: &Action) -> Result<Success, Failure> {
        match action {
            Action::Apply(apply) => self.apply(apply),
            Action::Delete(delete) => self.delete(delete),
            Action::Status(update) => {
                let path =
                    self.state.status(update.target.kind(), update.target.key()).map_err(|e| self.misnamed(&e))?;
                write(&path, &status_object(update)).map_err(|e| failed(&path, &e))?;
                Ok(Success::Done)
            }
            Action::Grant(update) => self.grant(update),
            Action::Event(notice) => self.event(notice),
        }
    }

    /// The version of a grant is that of its status: whoever has read an older one is refused.
    fn grant(&self, update: &GrantUpdate) -> Result<Success, Failure> {
        let path = self.state.status("AzureIdentityGrant", &update.key).map_err(|e| self.misnamed(&e))?;
        let mut version = self.version.lock().unwrap_or_else(PoisonError::into_inner);
        let there = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or(Value::Null),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Value::Null,
            Err(error) => return Err(failed(&path, &error)),
        };
        // That of another grant of this name counts for nothing.
        let same = there["metadata"]["uid"] == *update.precondition.uid;
        let held = there["metadata"]["resourceVersion"].as_str().filter(|_| same).unwrap_or("0");
        if held != update.precondition.resource_version {
            return Err(Failure::Conflict(format!("{} is not the version it was", update.key)));
        }
        let written = grant_status(update, &self.next(&mut version).to_string());
        write(&path, &written).map_err(|e| failed(&path, &e))?;
        // The rest of it is in the manifest, which whoever asked has read; the directory tells it with this status.
        Ok(Success::Done)
    }

    pub(super) fn look(&self, key: &ObjectKey) -> Option<Seen> {
        let path = self.state.assignment(key).ok()?;
        match read(&path) {
            Ok(Some(object)) => Some(Seen::Object(Box::new(object))),
            Ok(None) => Some(Seen::Nothing),
            Err(_) => None,
        }
    }

    fn apply(&self, apply: &Apply) -> Result<Success, Failure> {
        let meta = &apply.object.metadata;
        let key =
            ObjectKey::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
        let path = self.state.assignment(&key).map_err(|e| self.misnamed(&e))?;
        let mut version = self.version.lock().unwrap_or_else(PoisonError::into_inner);
        let uid = match (read(&path)?, &apply.precondition) {
            (None, None) => None,
            (Some(_), None) => return Err(Failure::Conflict(format!("{key} exists already"))),
            (None, Some(_)) => return Err(Failure::NotFound(key.to_string())),
            (Some(there), Some(wanted)) => Some(check(&key, &there, wanted)?),
        };
        let next = self.next(&mut version);
        let mut object = apply.object.clone();
        object.metadata.uid = Some(uid.unwrap_or_else(|| derived_uid(&format!("AzureAssignedIdentity/{key}/{next}"))));
        object.metadata.resource_version = Some(next.to_string());
        write(&path, &object).map_err(|e| failed(&path, &e))?;
        Ok(Success::Applied(Box::new(object)))
    }

    fn delete(&self, delete: &Delete) -> Result<Success, Failure> {
        let path = self.state.assignment(&delete.key).map_err(|e| self.misnamed(&e))?;
        let _version = self.version.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = read(&path)? {
            check(&delete.key, &there, &delete.precondition)?;
            fs::remove_file(&path).map_err(|e| failed(&path, &e))?;
        }
        Ok(Success::Done)
    }

    fn misnamed(&self, error: &io::Error) -> Failure {
        failed(self.state.root(), error)
    }

    fn event(&self, notice: &Notice) -> Result<Success, Failure> {
        let path = self.state.events();
        append(&path, &events::line(notice, self.clock.now())).map_err(|e| failed(&path, &e))?;
        Ok(Success::Done)
    }

    /// Versions only grow, over restarts too, whatever was deleted: they begin at the time in milliseconds.
    fn next(&self, version: &mut Option<u64>) -> u64 {
        let now = u64::try_from(self.clock.now().as_millisecond()).unwrap_or(0);
        let next = version.unwrap_or_else(|| self.newest()).max(now) + 1;
        *version = Some(next);
        next
    }

    fn newest(&self) -> u64 {
        let namespaces = fs::read_dir(self.state.assignments()).into_iter().flatten().flatten();
        let files = namespaces.filter_map(|entry| fs::read_dir(entry.path()).ok()).flatten().flatten();
        let objects = files.filter_map(|entry| read(&entry.path()).ok().flatten());
        objects.filter_map(|object| object.metadata.resource_version?.parse().ok()).max().unwrap_or(0)
    }
}

fn check(key: &ObjectKey, there: &AzureAssignedIdentity, wanted: &Precondition) -> Result<String, Failure> {
    let (uid, version) = (there.metadata.uid.clone(), &there.metadata.resource_version);
    match uid {
        Some(uid) if uid == wanted.uid && version.as_ref() == Some(&wanted.resource_version) => Ok(uid),
        _ => Err(Failure::Conflict(format!("{key} is not the version it was"))),
    }
}

/// None as well for what is no assignment: such a file (left by a crash of the machine) must not keep its name for ever.
fn read(path: &Path) -> Result<Option<AzureAssignedIdentity>, Failure> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)
            .inspect_err(|error| warn!(file = %path.display(), %error, "not an assignment; counts as absent"))
            .ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path, &error)),
    }
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::Disk(format!("{}: {error}", path.display()))
}
