//! Carries out actions: as requests to an API server, or as files of a state directory. Every write passes the lease's
//! [`Fence`] right before it is sent, and is given up when the lease runs out.

mod announce;
mod events;
mod files;
mod kubernetes;

use std::{sync::Arc, time::Duration};

use identity_crd::{AzureAssignedIdentity, AzureIdentityGrant};

pub use self::announce::Announcer;
use self::{
    files::Files,
    kubernetes::{Kubernetes, Write},
};
use super::{
    clock::Clock,
    lease::Fence,
    observe::{Observer, WriteOutcome},
    request::Failure,
    source::Source,
};
use crate::{assign::Action, object::ObjectKey};

/// Carries out actions. One is enough for any number of them at once.
#[derive(Debug)]
pub struct Executor {
    target: Target,
    fence: Arc<Fence>,
    observer: Arc<dyn Observer>,
    limit: Duration,
}

#[derive(Debug)]
enum Target {
    Kubernetes(Box<Kubernetes>),
    Files(Arc<Files>),
}

/// What came of an action.
#[derive(Debug)]
pub struct Report {
    /// Whether it was done.
    pub result: Result<Success, Failure>,
    /// After a conflict: what is there now.
    pub seen: Option<Seen>,
}

/// An action that was done.
#[derive(Debug)]
pub enum Success {
    /// An assignment was written: the object as it is now.
    Applied(Box<AzureAssignedIdentity>),
    /// The status of a grant was written: the grant as it is now.
    Granted(Box<AzureIdentityGrant>),
    /// Anything else.
    Done,
}

/// What is there.
#[derive(Debug)]
pub enum Seen {
    /// This object.
    Object(Box<AzureAssignedIdentity>),
    /// Nothing.
    Nothing,
}

impl Executor {
    /// Writes to where `source` reads from. `limit` bounds each request.
    pub fn new(
        source: &Source,
        reporter: &str,
        clock: Arc<dyn Clock>,
        fence: Arc<Fence>,
        observer: Arc<dyn Observer>,
        limit: Duration,
    ) -> Self {
        let target = match source {
            Source::Kubernetes(client) => Target::Kubernetes(Box::new(Kubernetes::new(client.clone(), reporter))),
            Source::Manifests(manifests) => Target::Files(Arc::new(Files::new(manifests.state().clone(), clock))),
        };
        Self { target, fence, observer, limit }
    }

    /// Carries out `action`.
    pub async fn execute(&self, action: &Action) -> Report {
        let result = self.attempt(action).await;
        let seen = match (&result, assignment(action)) {
            (Err(Failure::Conflict(_)), Some(key)) => self.look(&key).await,
            _ => None,
        };
        let outcome = match &result {
            Ok(_) => WriteOutcome::Done,
            Err(Failure::Conflict(_)) => WriteOutcome::Conflict,
            Err(Failure::Fenced) => WriteOutcome::Fenced,
            Err(_) => WriteOutcome::Failed,
        };
        self.observer.wrote(kind(action), outcome);
        Report { result, seen }
    }

    async fn attempt(&self, action: &Action) -> Result<Success, Failure> {
        match &self.target {
            Target::Kubernetes(kubernetes) => {
                let write = Write::prepare(action)?;
                // Nothing may come between this and the request.
                let left = self.fence.remaining().ok_or(Failure::Fenced)?;
                kubernetes.perform(write, self.limit.min(left)).await
            }
            Target::Files(files) => {
                self.fence.remaining().ok_or(Failure::Fenced)?;
                let (files, action) = (files.clone(), action.clone());
                tokio::task::spawn_blocking(move || files.perform(&action))
                    .await
                    .unwrap_or_else(|error| Err(Failure::Unreadable(error.to_string())))
            }
        }
    }

    async fn look(&self, key: &ObjectKey) -> Option<Seen> {
        match &self.target {
            Target::Kubernetes(kubernetes) => kubernetes.look(key, self.limit).await,
            Target::Files(files) => files.look(key),
        }
    }
}

fn assignment(action: &Action) -> Option<ObjectKey> {
    match action {
        Action::Apply(apply) => {
            let meta = &apply.object.metadata;
            Some(ObjectKey::new(meta.namespace.as_deref()?, meta.name.as_deref()?))
        }
        Action::Delete(delete) => Some(delete.key.clone()),
        Action::Status(_) | Action::Grant(_) | Action::Event(_) => None,
    }
}

/// What an action writes, for counters.
pub(super) fn kind(action: &Action) -> &'static str {
    match action {
        Action::Apply(_) | Action::Delete(_) => "AzureAssignedIdentity",
        Action::Status(update) => match update.target {
            crate::assign::StatusTarget::Identity(_) => "AzureIdentity/status",
            crate::assign::StatusTarget::Binding(_) => "AzureIdentityBinding/status",
        },
        Action::Grant(_) => "AzureIdentityGrant/status",
        Action::Event(_) => "Event",
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
