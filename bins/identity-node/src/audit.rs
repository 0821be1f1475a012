//! The audit: the log, or a journal on the node, or both.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::ValueEnum;
use identity_broker::{
    AuditError, AuditRecord, AuditSink, FanOut, LogAudit, OnAuditFailure, Policy,
    audit::{
        journal::{Checkpoint, Journal, JournalConfig, JournalError, SigningKey, Stats},
        json,
        series::EventMetrics,
    },
};
use identity_core::runtime::checkpoints::Progress;
use identity_process::{
    Format, LogLines, VERSION, duration_within, lost_log_lines,
    metrics::{Journalled, Publication},
    now,
};
use jiff::SignedDuration;
use tracing::{error, info};

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
    /// Directory of a tamper-evident journal, made if need be; one for each daemon. Without it records are lines of the log
    #[arg(long, value_name = "DIR", env = "ENTRA_POD_IDENTITY_AUDIT_JOURNAL")]
    pub(crate) audit_journal: Option<PathBuf>,

    /// Whether records are lines of the log (target `audit`)
    #[arg(long, value_name = "WHEN", default_value = "auto", env = "ENTRA_POD_IDENTITY_AUDIT_LOG")]
    audit_log: ToLog,

    /// Size from which on a file of the journal is followed by the next
    #[arg(
        long, value_name = "SIZE", default_value = "64MiB", value_parser = size, requires = "audit_journal",
        env = "ENTRA_POD_IDENTITY_AUDIT_JOURNAL_MAX_SIZE"
    )]
    audit_journal_max_size: u64,

    /// Age from which on it is
    #[arg(
        long, value_name = "DURATION", default_value = "24h", value_parser = age, requires = "audit_journal",
        env = "ENTRA_POD_IDENTITY_AUDIT_JOURNAL_MAX_AGE"
    )]
    audit_journal_max_age: SignedDuration,

    /// How many files of the journal are kept; older ones are removed
    #[arg(
        long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(2..),
        requires = "audit_journal", env = "ENTRA_POD_IDENTITY_AUDIT_JOURNAL_KEEP"
    )]
    audit_journal_keep: u64,

    /// How often the journal is synced to the disk (at most 1m): what a power failure may take. 0s: before each answer
    #[arg(
        long, value_name = "DURATION", default_value = "1s", value_parser = interval, requires = "audit_journal",
        env = "ENTRA_POD_IDENTITY_AUDIT_SYNC_INTERVAL"
    )]
    audit_sync_interval: Duration,

    /// Whether a request may write its own record when nobody else writes (on a runtime of several threads, and with a sync
    /// interval). `false`: a thread of the journal writes all, which costs more, and a disk that hangs holds up no other thread
    #[arg(
        long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, requires = "audit_journal",
        env = "ENTRA_POD_IDENTITY_AUDIT_INLINE"
    )]
    audit_inline: bool,

    /// Ed25519 private key (PEM) that signs checkpoints of the journal; read when the daemon starts
    #[arg(long, value_name = "FILE", requires = "audit_journal", env = "ENTRA_POD_IDENTITY_AUDIT_KEY_FILE")]
    audit_key_file: Option<PathBuf>,

    /// How often there is a checkpoint (from 1s to 1h); each is a line of the log as well
    #[arg(
        long, value_name = "DURATION", default_value = "1m", value_parser = checkpoints, requires = "audit_journal",
        env = "ENTRA_POD_IDENTITY_AUDIT_CHECKPOINT_INTERVAL"
    )]
    pub(crate) audit_checkpoint_interval: Duration,

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
        on_failure: OnAuditFailure,
    ) -> anyhow::Result<(Sinks, Option<Arc<Journal>>)> {
        let log = ProcessAudit::new(format);
        let journal = match self.config(node)? {
            None => None,
            // It reads the last file.
            Some(config) => match tokio::task::spawn_blocking(move || Journal::open(config, now)).await? {
                Ok(journal) => Some(Arc::new(journal)),
                Err(failed @ JournalError::Io { .. }) if on_failure == OnAuditFailure::Allow => {
                    error!(error = %failed, "audit records go to the log, as --audit-on-failure=allow says");
                    None
                }
                Err(failed) => return Err(failed).context("--audit-journal"),
            },
        };
        if let Some(journal) = &journal {
            info!(directory = %journal.directory().display(), "audit journal");
        }
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
        let sinks = FanOut::new((journal.clone(), Policy::Required), (to_log.then_some(log), policy));
        Ok((sinks, journal))
    }

    fn config(&self, node: &str) -> anyhow::Result<Option<JournalConfig>> {
        let Some(directory) = &self.audit_journal else { return Ok(None) };
        let key = self.audit_key_file.as_ref().map(|file| {
            let named = || format!("--audit-key-file {}", file.display());
            let pem = std::fs::read(file).with_context(named)?;
            SigningKey::from_pem(&pem).map(Arc::new).with_context(named)
        });
        Ok(Some(JournalConfig {
            version: VERSION.to_owned(),
            max_size: self.audit_journal_max_size,
            max_age: self.audit_journal_max_age,
            keep: self.audit_journal_keep,
            sync_interval: self.audit_sync_interval,
            key: key.transpose()?,
            checkpoint_interval: self.audit_checkpoint_interval,
            inline: self.audit_inline,
            ..JournalConfig::new(directory, node)
        }))
    }
}

fn size(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let unit: u64 = match &text[digits..] {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err("write 64MiB, 512KiB, 1GiB or a number of bytes".to_owned()),
    };
    let bytes = text[..digits].parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    bytes.filter(|bytes| (64 << 10..=16 << 30).contains(bytes)).ok_or_else(|| "from 64KiB to 16GiB".to_owned())
}

fn age(text: &str) -> Result<SignedDuration, String> {
    let age: SignedDuration = text.parse().map_err(|error| format!("{error}; write 24h or 168h"))?;
    if age < SignedDuration::from_mins(1) { Err("at least 1m".to_owned()) } else { Ok(age) }
}

fn interval(text: &str) -> Result<Duration, String> {
    duration_within(text, Duration::ZERO..=Duration::from_mins(1))
}

fn checkpoints(text: &str) -> Result<Duration, String> {
    duration_within(text, Duration::from_secs(1)..=Duration::from_hours(1))
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
    fn what_makes_no_sense_is_refused() {
        assert!(parse(&[]).is_ok());
        for (flags, good) in [
            (&["--audit-journal-max-size", "1KiB"][..], false),
            (&["--audit-journal-max-size", "64MB"], false),
            (&["--audit-journal-max-size", "128KiB"], true),
            (&["--audit-journal-max-age", "30s"], false),
            (&["--audit-journal-max-age", "168h"], true),
            (&["--audit-journal-keep", "1"], false),
            (&["--audit-sync-interval", "2m"], false),
            (&["--audit-sync-interval", "0s"], true),
            (&["--audit-checkpoint-interval", "500ms"], false),
            (&["--audit-log", "never"], cfg!(feature = "unaudited")),
            (&["--audit-inline", "false"], true),
            (&["--audit-inline", "perhaps"], false),
        ] {
            assert_eq!(parse(&[&["--audit-journal", "d"], flags].concat()).is_ok(), good, "{flags:?}");
        }
        assert!(parse(&["--audit-key-file", "k"]).is_err(), "a key without a journal signs nothing");
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
    async fn a_journal_that_cannot_be_opened_stops_the_daemon_unless_tokens_may_leave_without_a_record() {
        let args = parse(&["--audit-journal", "/proc/journal"]).unwrap();
        let error = args.open("n", Format::Json, OnAuditFailure::Deny).await.unwrap_err();
        assert!(format!("{error:#}").starts_with("--audit-journal: audit journal /proc/journal: "), "{error:#}");
        let (_, journal) = args.open("n", Format::Json, OnAuditFailure::Allow).await.unwrap();
        assert!(journal.is_none());
    }

    #[tokio::test]
    async fn records_are_in_the_journal() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap().to_owned();
        let (sinks, journal) =
            parse(&["--audit-journal", &path]).unwrap().open("n", Format::Json, OnAuditFailure::Deny).await.unwrap();
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

    #[test]
    fn a_key_that_is_none_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        let error = parse(&["--audit-journal", "d", "--audit-key-file", path]).unwrap().config("n").unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains(path) && text.contains("openssl genpkey"), "{text}");
    }
}
