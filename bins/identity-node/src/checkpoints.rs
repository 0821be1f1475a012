//! Where the journal is leaves the node, because it proves later that nothing up to there was cut off: as lines of the log, and,
//! where the operator wants it, in a Lease at the API server.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use identity_broker::audit::journal::{Item, Journal, Reader};
use identity_core::runtime::{
    checkpoints::{HashOf, Progress, Published, Publisher, run},
    source::Source,
};
use identity_process::{log_checkpoint, tell_checkpoints};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// How long the last checkpoint may take to leave when the daemon stops: one request.
const LAST: Duration = Duration::from_secs(6);

/// The flag.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CheckpointArgs {
    /// Namespace of the Lease in which this node publishes the last checkpoint of its journal, once in
    /// --audit-checkpoint-interval at most (examples/audit-checkpoints). Without it checkpoints are lines of the log only
    #[arg(
        long,
        value_name = "NAMESPACE",
        requires = "audit_journal",
        env = "ENTRA_POD_IDENTITY_AUDIT_CHECKPOINT_NAMESPACE"
    )]
    audit_checkpoint_namespace: Option<String>,
}

/// Checkpoints on their way.
#[derive(Debug)]
pub(crate) struct Leaving {
    closed: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    progress: Option<Arc<Progress>>,
}

impl CheckpointArgs {
    /// Begins.
    pub(crate) fn follow(
        &self,
        journal: &Journal,
        interval: Duration,
        source: &Source,
        node: &str,
    ) -> anyhow::Result<Leaving> {
        let (newest, published) = watch::channel(None);
        let mut leaving = Leaving { closed: CancellationToken::new(), tasks: Vec::new(), progress: None };
        if let Some(namespace) = &self.audit_checkpoint_namespace {
            let Source::Kubernetes(client) = source else {
                anyhow::bail!("--audit-checkpoint-namespace needs an API server: there is none with --manifests");
            };
            let writes = Publisher::new(client.clone(), namespace, node).context("--audit-checkpoint-namespace")?;
            let writes = writes.comparing(hashes(journal));
            let progress = Arc::<Progress>::default();
            leaving.tasks.push(tokio::spawn(run(writes, published, interval, progress.clone())));
            leaving.progress = Some(progress);
        }
        let telling = tell_checkpoints(journal.checkpoints(), leaving.closed.clone(), move |checkpoint| {
            log_checkpoint(checkpoint);
            newest.send_replace(Some(Published {
                journal: checkpoint.journal.clone(),
                seq: checkpoint.head.seq,
                head: checkpoint.head.hash.to_string(),
                time: checkpoint.time,
                key: checkpoint.key.clone(),
            }));
        });
        leaving.tasks.push(tokio::spawn(telling));
        Ok(leaving)
    }
}

impl Leaving {
    /// How publishing goes, where there is any.
    pub(crate) fn progress(&self) -> Option<Arc<Progress>> {
        self.progress.clone()
    }

    /// After the journal was closed: waits until its last checkpoint has left, not for ever.
    pub(crate) async fn finish(self) {
        self.closed.cancel();
        let end = Instant::now() + LAST;
        for task in self.tasks {
            if timeout_at(end, task).await.is_err() {
                warn!("the last checkpoint of the journal has not left this node");
            }
        }
    }
}

/// What the journal has under a number. Reads its files from the first on: that is done once, when the daemon starts.
fn hashes(journal: &Journal) -> HashOf {
    let directory = Arc::<Path>::from(journal.directory());
    Box::new(move |seq| {
        let directory = directory.clone();
        Box::pin(async move { tokio::task::spawn_blocking(move || hash_of(&directory, seq)).await.ok().flatten() })
    })
}

fn hash_of(directory: &Path, seq: u64) -> Option<String> {
    let mut reader = Reader::new(directory, None);
    loop {
        if let Item::Record(line, _) = reader.read().ok()??
            && line.seq >= seq
        {
            return (line.seq == seq).then(|| line.hash.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use identity_broker::audit::journal::JournalConfig;

    use super::*;
    use identity_process::now;

    fn journal() -> (tempfile::TempDir, Journal) {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(JournalConfig::new(directory.path(), "n"), now).unwrap();
        (directory, journal)
    }

    #[tokio::test]
    async fn what_is_published_is_the_hash_of_a_record() {
        let (_directory, journal) = journal();
        let hash_of = hashes(&journal);
        journal.close().await;
        let last = journal.checkpoints().borrow().clone().expect("a checkpoint at the end").head;
        assert_eq!(hash_of(last.seq).await, Some(last.hash.to_string()));
        assert_ne!(hash_of(last.seq - 1).await, hash_of(last.seq).await);
        assert_eq!(hash_of(last.seq + 1).await, None);
    }

    #[tokio::test]
    async fn publishing_needs_an_api_server() {
        let (_directory, journal) = journal();
        let args = CheckpointArgs { audit_checkpoint_namespace: Some("audit".into()) };
        let source = Source::manifests("m", "s");
        let error = args.follow(&journal, Duration::from_mins(1), &source, "n").unwrap_err();
        assert!(error.to_string().contains("--manifests"), "{error}");
        let args = CheckpointArgs { audit_checkpoint_namespace: None };
        let leaving = args.follow(&journal, Duration::from_mins(1), &source, "n").unwrap();
        assert!(leaving.progress.is_none());
        journal.close().await;
        leaving.finish().await;
    }
}
