//! The audit: the log, or a journal on the node, or both.

use std::sync::Arc;

use clap::ValueEnum;
use identity_broker::{
    AuditError, AuditRecord, AuditSink, FanOut, LogAudit, Policy,
    audit::{
        journal::{Checkpoint, Journal, Stats},
        json,
        series::EventMetrics,
    },
};
use identity_core::runtime::checkpoints::Progress;
use identity_process::{
    AuditFailure, Format, JournalArgs, LogLines, lost_log_lines,
    metrics::{Journalled, Publication},
};
use tracing::error;

use crate::{checkpoints::CheckpointArgs, events::WithEvents};

/// Whether records are lines of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ToLog {
    /// When there is no journal
    Auto,
    /// Beside the journal, too; the journal alone decides then whether a record was written
    Always,
    /// Not even without a journal: tokens are handed out UNRECORDED. Only in a build for the benchmark of what the audit costs
    #[cfg(feature = "unaudited")]
    Never,
}

/// The record of each token and each denial.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Audit")]
pub(crate) struct AuditArgs {
    #[command(flatten)]
    pub(crate) journal: JournalArgs,

    /// Whether records are lines of the log (target `audit`)
    #[arg(long, value_name = "WHEN", default_value = "auto", env = "ENTRA_POD_IDENTITY_AUDIT_LOG")]
    audit_log: ToLog,

    #[command(flatten)]
    pub(crate) checkpoints: CheckpointArgs,
}

/// Where records go.
pub(crate) type Sinks = FanOut<Option<Arc<Journal>>, Option<ProcessAudit>>;

impl AuditArgs {
    /// Opens what was chosen. A journal that cannot be opened is an error, unless tokens may leave without a record: then
    /// they are recorded in the log, at least.
    pub(crate) async fn open(
        &self,
        node: &str,
        format: Format,
        on_failure: AuditFailure,
    ) -> anyhow::Result<(Sinks, Option<Arc<Journal>>)> {
        let journal = self.journal.open(node, on_failure).await?;
        let to_log = match self.audit_log {
            ToLog::Auto => journal.is_none(),
            ToLog::Always => true,
            #[cfg(feature = "unaudited")]
            ToLog::Never => false,
        };
        if journal.is_none() && !to_log {
            error!("NO TOKEN IS RECORDED: this build is for a benchmark, and --audit-log=never says so");
        }
        let policy = if journal.is_some() { Policy::BestEffort } else { Policy::Required };
        let sinks =
            FanOut::new((journal.clone(), Policy::Required), (to_log.then(|| ProcessAudit::new(format)), policy));
        Ok((sinks, journal))
    }
}

/// How they fare, for metrics.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) journal: Option<Arc<Journal>>,
    pub(crate) sinks: Arc<WithEvents>,
    pub(crate) events: EventMetrics,
    /// How publishing checkpoints goes.
    pub(crate) leaving: Option<Arc<Progress>>,
}

impl Journalled for Told {
    fn stats(&self) -> Option<(Stats, Option<Checkpoint>)> {
        let journal = self.journal.as_ref()?;
        Some((journal.stats(), journal.checkpoints().borrow().clone()))
    }

    fn lost(&self) -> Vec<(&'static str, u64)> {
        let [journal, log] = self.sinks.first().lost();
        // The queue of Events takes every record, and counts by itself those that will be in none.
        vec![("journal", journal), ("log", log), ("events", self.events.lost())]
    }

    fn published(&self) -> Option<Publication> {
        let progress = self.leaving.as_ref()?;
        Some(Publication { seq: progress.published(), writes: progress.writes(), failures: progress.failures() })
    }
}

/// Records as lines of the log; one that the log has lost was not written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProcessAudit {
    json: Option<LogLines>,
}

impl ProcessAudit {
    fn new(format: Format) -> Self {
        Self { json: (format == Format::Json).then(LogLines::new) }
    }
}

impl AuditSink for ProcessAudit {
    async fn record(&self, record: &AuditRecord<'_>) -> Result<(), AuditError> {
        let written = if let Some(log) = &self.json {
            log.write(&line(record))
        } else {
            let before = lost_log_lines();
            LogAudit.record(record).await?;
            // Perhaps it was another line; then this token is refused once without need, while the log is in trouble.
            lost_log_lines() == before
        };
        if written {
            return Ok(());
        }
        Err(AuditError("the log (standard error) takes no more: its disk is full, or nobody reads it".to_owned()))
    }
}

/// As the log writes it, a good deal faster: this is on the way of every token.
fn line(record: &AuditRecord<'_>) -> Vec<u8> {
    let mut line = Vec::with_capacity(1024);
    line.extend_from_slice(b"{\"timestamp\":\"");
    json::micros(&mut line, record.time);
    line.extend_from_slice(b"\",\"level\":\"INFO\",\"message\":\"token ");
    line.extend_from_slice(record.verdict.as_str().as_bytes());
    line.extend_from_slice(b"\",");
    json::fields(&mut line, record);
    line.extend_from_slice(b",\"target\":\"audit\"}\n");
    line
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};
    use identity_broker::{
        Reason, Verdict,
        audit::series::{Book, Config, EventWriter, Feed, Outcome, Queue, Write, run},
    };

    use super::*;

    fn parse(flags: &[&str]) -> Result<AuditArgs, clap::Error> {
        let command = AuditArgs::augment_args(clap::Command::new("identity-node"));
        AuditArgs::from_arg_matches(&command.try_get_matches_from([&["identity-node"], flags].concat())?)
    }

    fn record() -> AuditRecord<'static> {
        let time = jiff::Timestamp::from_second(1_800_000_000).unwrap();
        AuditRecord::new(time, Verdict::Denied, Reason::NoBinding, [10, 42, 0, 7].into(), "api://a")
    }

    #[test]
    fn only_a_build_for_the_benchmark_can_do_without() {
        assert_eq!(parse(&["--audit-log", "never"]).is_ok(), cfg!(feature = "unaudited"));
        assert!(
            parse(&["--audit-checkpoint-namespace", "audit"]).is_err(),
            "there is nothing to publish without a journal"
        );
    }

    #[test]
    fn a_line_of_the_log_is_one_object() {
        let line = line(&record());
        let text = std::str::from_utf8(&line).unwrap();
        assert_eq!(
            text,
            "{\"timestamp\":\"2027-01-15T08:00:00.000000Z\",\"level\":\"INFO\",\"message\":\"token denied\",\"verdict\":\"denied\",\
             \"reason\":\"no_binding\",\"address\":\"10.42.0.7\",\"resource\":\"api://a\",\"target\":\"audit\"}\n"
        );
    }

    #[tokio::test]
    async fn records_are_in_the_journal() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap().to_owned();
        let (sinks, journal) =
            parse(&["--audit-journal", &path]).unwrap().open("n", Format::Json, AuditFailure::Deny).await.unwrap();
        sinks.record(&record()).await.unwrap();
        journal.unwrap().close().await;
        let text = std::fs::read_to_string(directory.path().join("journal-00000001.jsonl")).unwrap();
        assert!(text.contains("\"kind\":\"token\"") && text.contains("\"reason\":\"no_binding\""), "{text}");
    }

    #[tokio::test]
    async fn what_no_event_will_have_counts_as_lost() {
        let sinks = FanOut::new((None, Policy::Required), (None, Policy::BestEffort));
        let events = EventMetrics::default();
        let queue = Arc::<Queue>::default();
        let sinks = Arc::new(FanOut::new((sinks, Policy::Required), (Some(queue.clone()), Policy::BestEffort)));
        let told = Told { journal: None, sinks: sinks.clone(), events: events.clone(), leaving: None };
        let lost = |sink: &str| told.lost().into_iter().find(|(name, _)| *name == sink).unwrap().1;
        assert_eq!(["journal", "log", "events"].map(lost), [0; 3]);
        // Nobody takes any out: there is room for 1024.
        for _ in 0..1030 {
            sinks.record(&record()).await.unwrap();
        }
        assert_eq!(queue.lost(), 6);
        let shutdown = tokio_util::sync::CancellationToken::new();
        shutdown.cancel();
        let book = |kept| Book::new(Config::series("n"), kept);
        run(Feed::Memory(queue), book, Never, events, shutdown).await;
        assert_eq!(["journal", "log", "events"].map(lost), [0, 0, 6]);
    }

    struct Never;

    impl EventWriter for Never {
        async fn write(&self, _: &Write) -> Outcome {
            std::future::pending().await
        }
    }
}
