//! The flags of an audit journal.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::ValueEnum;
use identity_broker::{
    OnAuditFailure,
    audit::journal::{Checkpoint, Journal, JournalConfig, JournalError, SigningKey},
};
use jiff::SignedDuration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::{VERSION, duration_within, now};

/// What happens to what cannot be recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum AuditFailure {
    /// It does not happen
    #[default]
    Deny,
    /// It happens, and the failure is logged
    Allow,
}

impl From<AuditFailure> for OnAuditFailure {
    fn from(choice: AuditFailure) -> Self {
        match choice {
            AuditFailure::Deny => Self::Deny,
            AuditFailure::Allow => Self::Allow,
        }
    }
}

/// Where a tamper-evident journal is, and how it is kept.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Audit")]
#[expect(clippy::struct_field_names, reason = "clap names the flags after the fields")]
pub struct JournalArgs {
    /// Directory of a tamper-evident journal, made if need be; one for each process. Without it records are lines of the log
    #[arg(long, value_name = "DIR", env = "ENTRA_POD_IDENTITY_AUDIT_JOURNAL")]
    audit_journal: Option<PathBuf>,

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

    /// Ed25519 private key (PEM) that signs checkpoints of the journal; read when the process starts
    #[arg(long, value_name = "FILE", requires = "audit_journal", env = "ENTRA_POD_IDENTITY_AUDIT_KEY_FILE")]
    audit_key_file: Option<PathBuf>,

    /// How often there is a checkpoint (from 1s to 1h); each is a line of the log as well
    #[arg(
        long, value_name = "DURATION", default_value = "1m", value_parser = checkpoints, requires = "audit_journal",
        env = "ENTRA_POD_IDENTITY_AUDIT_CHECKPOINT_INTERVAL"
    )]
    audit_checkpoint_interval: Duration,
}

impl JournalArgs {
    /// Opens the journal that was asked for, in the name of `writer`. One that cannot be opened is an error, unless things may
    /// happen without a record: then there is none, and that is logged.
    pub async fn open(&self, writer: &str, on_failure: AuditFailure) -> anyhow::Result<Option<Arc<Journal>>> {
        let Some(config) = self.config(writer)? else { return Ok(None) };
        // It reads the last file.
        let journal = match tokio::task::spawn_blocking(move || Journal::open(config, now)).await? {
            Ok(journal) => Arc::new(journal),
            Err(failed @ JournalError::Io { .. }) if on_failure == AuditFailure::Allow => {
                error!(error = %failed, "audit records go to the log, as --audit-on-failure=allow says");
                return Ok(None);
            }
            Err(failed) => return Err(failed).context("--audit-journal"),
        };
        info!(directory = %journal.directory().display(), "audit journal");
        Ok(Some(journal))
    }

    /// How often there is a checkpoint.
    pub const fn checkpoint_interval(&self) -> Duration {
        self.audit_checkpoint_interval
    }

    fn config(&self, writer: &str) -> anyhow::Result<Option<JournalConfig>> {
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
            ..JournalConfig::new(directory, writer)
        }))
    }
}

/// Tells of each checkpoint of a journal; when that is `closed` of the last one, if it is new, and of no more.
pub async fn tell_checkpoints(
    mut checkpoints: watch::Receiver<Option<Checkpoint>>,
    closed: CancellationToken,
    mut tell: impl FnMut(&Checkpoint) + Send,
) {
    let mut told = None;
    loop {
        let more = closed.run_until_cancelled(checkpoints.changed()).await;
        // Closed, or gone: what was not seen yet is the last.
        let last = !matches!(more, Some(Ok(())));
        let checkpoint = checkpoints.borrow_and_update().clone();
        if checkpoint != told {
            checkpoint.iter().for_each(&mut tell);
            told = checkpoint;
        }
        if last {
            return;
        }
    }
}

/// A checkpoint as a line of the log. That leaves the machine, and proves later that nothing up to there was cut off.
pub fn log_checkpoint(checkpoint: &Checkpoint) {
    info!(
        target: "audit", journal = checkpoint.journal, seq = checkpoint.head.seq, head = %checkpoint.head.hash,
        key = checkpoint.key, "checkpoint of the journal"
    );
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

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};

    use super::*;

    fn parse(flags: &[&str]) -> Result<JournalArgs, clap::Error> {
        let command = JournalArgs::augment_args(clap::Command::new("daemon"));
        JournalArgs::from_arg_matches(&command.try_get_matches_from([&["daemon"], flags].concat())?)
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
            (&["--audit-inline", "false"], true),
            (&["--audit-inline", "perhaps"], false),
        ] {
            assert_eq!(parse(&[&["--audit-journal", "d"], flags].concat()).is_ok(), good, "{flags:?}");
        }
        assert!(parse(&["--audit-key-file", "k"]).is_err(), "a key without a journal signs nothing");
    }

    #[tokio::test]
    async fn what_cannot_be_opened_stops_the_process_unless_things_may_happen_without_a_record() {
        let args = parse(&["--audit-journal", "/proc/journal"]).unwrap();
        let error = args.open("n", AuditFailure::Deny).await.unwrap_err();
        assert!(format!("{error:#}").starts_with("--audit-journal: audit journal /proc/journal: "), "{error:#}");
        assert!(args.open("n", AuditFailure::Allow).await.unwrap().is_none());
        assert!(parse(&[]).unwrap().open("n", AuditFailure::Deny).await.unwrap().is_none());

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let args = parse(&["--audit-journal", path.to_str().unwrap()]).unwrap();
        let journal = args.open("n", AuditFailure::Deny).await.unwrap().unwrap();
        let twice = args.open("n", AuditFailure::Allow).await.unwrap_err();
        assert!(format!("{twice:#}").contains("--audit-journal"), "another process has it: {twice:#}");
        journal.close().await;
        let file = tempfile::NamedTempFile::new().unwrap();
        let key = file.path().to_str().unwrap();
        let error = parse(&["--audit-journal", "d", "--audit-key-file", key]).unwrap().config("n").unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains(key) && text.contains("openssl genpkey"), "{text}");
    }

    #[tokio::test]
    async fn the_last_checkpoint_is_told_before_the_process_ends() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(JournalConfig::new(directory.path(), "n"), now).unwrap();
        let told = Arc::new(std::sync::Mutex::new(Vec::new()));
        let (closed, into) = (CancellationToken::new(), told.clone());
        let tell = move |checkpoint: &Checkpoint| into.lock().unwrap().push(checkpoint.head.seq);
        let telling = tell_checkpoints(journal.checkpoints(), closed.clone(), tell);
        // Nothing is told while it is closed: whoever tells gets no turn, as on a busy machine.
        journal.close().await;
        let last = journal.checkpoints().borrow().clone().expect("a checkpoint at the end").head.seq;
        closed.cancel();
        tokio::time::timeout(Duration::from_secs(10), telling).await.expect("it ends though the journal is held");
        assert_eq!(told.lock().unwrap().last(), Some(&last));
    }
}
