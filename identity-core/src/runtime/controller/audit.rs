//! What becomes of grants is recorded before it does, and what cannot be taken back is written only by what is true now.
//!
//! ```text
//! status of a grant ─ is the binding the one that was seen? ─ record ─ is the lease held? ─ write
//! ```

use std::{fmt, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use identity_crd::AzureIdentityBinding;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Client, Resource as _, api::GetParams};
use serde::Deserialize;
use tracing::warn;

use super::Config;
use crate::{
    assign::{Action, GrantUpdate, JudgedBy},
    grant::Record,
    object::ObjectKey,
    runtime::{
        executor::{Executor, Report},
        lease::Fence,
        observe::{Observer, WriteOutcome},
        request::{Failure, send},
        source::Source,
    },
};

/// What is counted.
const KIND: &str = "AzureIdentityGrant/status";
/// Between two attempts at a record that nothing waits for.
const AGAIN: Duration = Duration::from_secs(2);

/// Takes down what becomes of grants.
pub trait GrantAudit: fmt::Debug + Send + Sync {
    /// Completes when it is written down; an error says why it is not, and then it does not happen. Bounded in time by the
    /// implementation. `withdrawn`: it was written down before, and has not happened, for this reason.
    fn record<'a>(&'a self, record: &'a Record, withdrawn: Option<&'a str>) -> BoxFuture<'a, Result<(), String>>;
}

/// Carries out actions, those on grants with care.
#[derive(Debug)]
pub(super) struct Careful {
    executor: Executor,
    fence: Arc<Fence>,
    bindings: Option<Bindings>,
    audit: Option<Arc<dyn GrantAudit>>,
    observer: Arc<dyn Observer>,
}

impl Careful {
    pub(super) fn new(executor: Executor, fence: Arc<Fence>, source: &Source, config: &Config) -> Self {
        let bindings = match source {
            Source::Kubernetes(client) => Some(Bindings { client: client.clone(), limit: config.request_timeout }),
            // One reader reads all kinds of a directory, and there is nobody else.
            Source::Manifests(_) => None,
        };
        Self { executor, fence, bindings, audit: config.audit.clone(), observer: config.observer.clone() }
    }

    pub(super) async fn execute(&self, action: &Action) -> Report {
        let Action::Grant(update) = action else { return self.executor.execute(action).await };
        if let Err(failure) = self.prepare(update).await {
            let outcome = match failure {
                Failure::Conflict(_) => WriteOutcome::Conflict,
                Failure::Fenced => WriteOutcome::Fenced,
                _ => WriteOutcome::Failed,
            };
            self.observer.wrote(KIND, outcome);
            return Report { result: Err(failure), seen: None };
        }
        let report = self.executor.execute(action).await;
        if let Err(failure) = &report.result
            && is_certain(failure)
        {
            self.withdraw(update, &failure.to_string()).await;
        }
        report
    }

    async fn prepare(&self, update: &GrantUpdate) -> Result<(), Failure> {
        if let (Some(judged_by), Some(bindings)) = (&update.judged_by, &self.bindings) {
            let now = bindings.read(&update.binding).await?;
            if now != *judged_by {
                let binding = &update.binding;
                return Err(Failure::Conflict(format!(
                    "AzureIdentityBinding {binding} is not what was seen of it yet"
                )));
            }
        }
        // What will not be sent is not recorded.
        self.fence.remaining().ok_or(Failure::Fenced)?;
        let Some(audit) = &self.audit else { return Ok(()) };
        for record in &update.records {
            audit.record(record, None).await.map_err(Failure::Unrecorded)?;
        }
        Ok(())
    }

    /// Says of what was recorded that it has not happened. Without, it would be told by what comes after: nothing that gives
    /// access hangs on it.
    async fn withdraw(&self, update: &GrantUpdate, why: &str) {
        let Some(audit) = &self.audit else { return };
        for record in &update.records {
            if let Err(error) = audit.record(record, Some(why)).await {
                warn!(grant = %update.key, error, "it is not recorded that this was not written: {}", record.message);
            }
        }
    }

    /// Records what has happened by itself, until that is done.
    pub(super) async fn record(&self, record: &Record) {
        let Some(audit) = &self.audit else { return };
        let mut complained = false;
        while let Err(error) = audit.record(record, None).await {
            if !std::mem::replace(&mut complained, true) {
                warn!(grant = %record.grant, error, "cannot be recorded yet: {}", record.message);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// Whether it is known that nothing was written.
const fn is_certain(failure: &Failure) -> bool {
    use Failure::{Conflict, Fenced, Forbidden, NotFound, Refused};
    matches!(failure, Conflict(_) | NotFound(_) | Forbidden(_) | Refused { .. } | Fenced)
}

/// Bindings as they are at the API server, not as a watch has shown them.
struct Bindings {
    client: Client,
    limit: Duration,
}

impl fmt::Debug for Bindings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bindings")
    }
}

/// Of an object whose spec need not be readable.
#[derive(Deserialize)]
struct Head {
    metadata: ObjectMeta,
}

impl Bindings {
    async fn read(&self, key: &ObjectKey) -> Result<JudgedBy, Failure> {
        let collection = kube::core::Request::new(AzureIdentityBinding::url_path(&(), Some(&key.namespace)));
        // Without a resourceVersion: what is true, not what a cache has.
        let request = collection
            .get(&key.name, &GetParams::default())
            .map_err(|error| Failure::Refused { code: 0, message: format!("the request cannot be built: {error}") })?;
        match send::<Head>(&self.client, request, self.limit).await {
            Ok(head) => Ok(JudgedBy::seen(Some(&head.metadata))),
            Err(Failure::NotFound(_)) => Ok(JudgedBy::Nothing),
            Err(failure) => Err(failure),
        }
    }
}
