//! What becomes of grants is recorded before it does: in a journal, or in the log.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use clap::ValueEnum;
use futures::{FutureExt as _, future::BoxFuture};
use identity_broker::{
    AuditError, LogAudit,
    audit::{
        GrantRecord, GrantSink,
        journal::{Checkpoint, Journal, Stats},
    },
};
use identity_core::{grant::Record, runtime::controller::GrantAudit};
use identity_process::{
    AuditFailure, JournalArgs, log_checkpoint, lost_log_lines,
    metrics::{Journalled, Publication},
    tell_checkpoints,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::error;

/// Whether records are lines of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ToLog {
    /// When there is no journal
    Auto,
    /// Beside the journal, too; the journal alone decides then whether a record was written
    Always,
}

/// The record of what becomes of each grant.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Audit")]
pub(crate) struct AuditArgs {
    #[command(flatten)]
    journal: JournalArgs,

    /// Whether records are lines of the log (target `audit`)
    #[arg(long, value_name = "WHEN", default_value = "auto", env = "ENTRA_POD_IDENTITY_AUDIT_LOG")]
    audit_log: ToLog,

    /// What happens to a grant of which no record can be written. With `deny` it stays as it is: none becomes active. Access
    /// ends all the same
    #[arg(long, value_name = "POLICY", default_value = "deny", env = "ENTRA_POD_IDENTITY_AUDIT_ON_FAILURE")]
    audit_on_failure: AuditFailure,
}

impl AuditArgs {
    /// Opens what was chosen, in the name of this holder of the lease.
    pub(crate) async fn open(&self, holder: &str) -> anyhow::Result<Arc<Audit>> {
        let journal = self.journal.open(holder, self.audit_on_failure).await?;
        let (closed, telling) = (CancellationToken::new(), TaskTracker::new());
        if let Some(journal) = &journal {
            telling.spawn(tell_checkpoints(journal.checkpoints(), closed.clone(), log_checkpoint));
        }
        let to_log = journal.is_none() || self.audit_log == ToLog::Always;
        Ok(Arc::new(Audit {
            controller: holder.to_owned(),
            journal,
            to_log,
            on_failure: self.audit_on_failure,
            lost: [AtomicU64::new(0), AtomicU64::new(0)],
            closed,
            telling,
        }))
    }
}

/// Where records go.
#[derive(Debug)]
pub(crate) struct Audit {
    controller: String,
    journal: Option<Arc<Journal>>,
    to_log: bool,
    on_failure: AuditFailure,
    /// Of the journal, of the log.
    lost: [AtomicU64; 2],
    /// No checkpoint follows.
    closed: CancellationToken,
    telling: TaskTracker,
}

impl Audit {
    /// Writes what waits, says that it stops, and tells the log of the last checkpoint.
    pub(crate) async fn close(&self) {
        if let Some(journal) = &self.journal {
            journal.close().await;
        }
        self.closed.cancel();
        self.telling.close();
        // It has nothing to wait for any more.
        self.telling.wait().await;
    }

    async fn write(&self, record: &GrantRecord<'_>) -> Result<(), AuditError> {
        let logged = if self.to_log { to_log(record).await } else { Ok(()) };
        let kept = match &self.journal {
            Some(journal) => journal.record_grant(record).await,
            None => logged.clone(),
        };
        for (lost, failed) in self.lost.iter().zip([self.journal.is_some() && kept.is_err(), logged.is_err()]) {
            lost.fetch_add(u64::from(failed), Ordering::Relaxed);
        }
        kept
    }
}

async fn to_log(record: &GrantRecord<'_>) -> Result<(), AuditError> {
    let before = lost_log_lines();
    LogAudit.record_grant(record).await?;
    // Perhaps it was another line; then this is tried once more without need, while the log is in trouble.
    if lost_log_lines() == before {
        return Ok(());
    }
    Err(AuditError("the log (standard error) takes no more: its disk is full, or nobody reads it".to_owned()))
}

impl GrantAudit for Audit {
    fn record<'a>(&'a self, record: &'a Record, withdrawn: Option<&'a str>) -> BoxFuture<'a, Result<(), String>> {
        async move {
            let whole = GrantRecord { withdrawn, ..GrantRecord::new(&self.controller, record) };
            match self.write(&whole).await {
                Err(error) if self.on_failure == AuditFailure::Allow => {
                    error!(
                        %error, grant = %record.grant, reason = record.reason,
                        "not recorded, and done all the same, as --audit-on-failure=allow says: {}", record.message
                    );
                    Ok(())
                }
                written => written.map_err(|error| error.to_string()),
            }
        }
        .boxed()
    }
}

/// How it fares, for metrics.
#[derive(Debug)]
pub(crate) struct Told(pub(crate) Arc<Audit>);

impl Journalled for Told {
    fn stats(&self) -> Option<(Stats, Option<Checkpoint>)> {
        let journal = self.0.journal.as_ref()?;
        Some((journal.stats(), journal.checkpoints().borrow().clone()))
    }

    fn lost(&self) -> Vec<(&'static str, u64)> {
        let [journal, log] = &self.0.lost;
        vec![("journal", journal.load(Ordering::Relaxed)), ("log", log.load(Ordering::Relaxed))]
    }

    fn published(&self) -> Option<Publication> {
        None
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};
    use identity_core::object::ObjectKey;
    use identity_crd::GrantPhase;

    use super::*;

    fn parse(flags: &[&str]) -> AuditArgs {
        let command = AuditArgs::augment_args(clap::Command::new("identity-controller"));
        let matches = command.try_get_matches_from([&["identity-controller"], flags].concat()).unwrap();
        AuditArgs::from_arg_matches(&matches).unwrap()
    }

    fn record() -> Record {
        Record {
            time: jiff::Timestamp::from_second(1_800_000_000).unwrap(),
            reason: "GrantActivated",
            message: "active".into(),
            from: Some(GrantPhase::Pending),
            to: GrantPhase::Active,
            grant: ObjectKey::new("demo", "g"),
            grant_uid: "u".into(),
            grant_version: "7".into(),
            requested_at: None,
            binding: ObjectKey::new("demo", "b"),
            binding_uid: None,
            binding_generation: None,
            pod: None,
            requested_by: "ann".into(),
            requester_groups: vec![],
            purpose: "p".into(),
            duration: "30m".into(),
            approvals: vec![],
            approvals_needed: None,
            active_from: None,
            active_until: None,
            ended_by: None,
            ended_reason: None,
        }
    }

    #[tokio::test]
    async fn what_is_not_written_is_an_error_or_a_line_of_the_log() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let flags = ["--audit-journal", path.to_str().unwrap()];
        let audit = parse(&flags).open("a_1").await.unwrap();
        audit.record(&record(), None).await.unwrap();
        audit.record(&record(), Some("conflict")).await.unwrap();
        audit.close().await;
        let text = std::fs::read_to_string(path.join("journal-00000001.jsonl")).unwrap();
        assert_eq!(text.matches("\"kind\":\"grant\"").count(), 2, "{text}");
        assert_eq!(text.matches("\"withdrawn\":\"conflict\"").count(), 1, "{text}");
        assert!(text.contains("\"controller\":\"a_1\"") && text.contains("\"node\":\"a_1\""), "{text}");
        // What is closed takes nothing more.
        let error = audit.record(&record(), None).await.unwrap_err();
        assert!(error.contains("closed"), "{error}");
        assert_eq!(Told(audit.clone()).lost(), [("journal", 1), ("log", 0)]);

        let audit = parse(&[&flags[..], &["--audit-on-failure", "allow"]].concat()).open("a_2").await.unwrap();
        audit.close().await;
        audit.record(&record(), None).await.unwrap();
        assert_eq!(Told(audit).lost(), [("journal", 1), ("log", 0)]);
        // No subscriber takes it here.
        let error = parse(&[]).open("a_3").await.unwrap().record(&record(), None).await.unwrap_err();
        assert!(error.contains("target `audit`"), "{error}");
    }
}
