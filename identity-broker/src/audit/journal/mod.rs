//! The journal: files on the node, one JSON object in each line, each line bound to the one before by its hash.
//!
//! ```text
//! record ─ body ─ queue ─┬─ nobody writes: takes the turn ─┐
//!                        ├─ somebody does: waits           ├─ all that waits ─ chain ─ write(2) ─ all are answered
//!                        └─ more to it than a write: thread┘                    every interval: fdatasync (a thread)
//! ```
//!
//! [`chain`], [`encode`] and [`verify`] are bytes in, bytes or findings out; files are the business of `directory`, `disk`
//! and `writer`. Who writes, and when that is a thread of the runtime, is in `turns`. The format is described in `docs/audit.md`.
//!
//! ```
//! # let directory = tempfile::tempdir().unwrap();
//! use identity_broker::audit::{AuditRecord, AuditSink, Verdict, journal::{Journal, JournalConfig, verify}};
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! let clock = || jiff::Timestamp::from_second(1_800_000_000).unwrap();
//! let journal = Journal::open(JournalConfig::new(directory.path(), "node-1"), clock).unwrap();
//! let caller = [10, 42, 1, 7].into();
//! let record = AuditRecord::new(clock(), Verdict::Denied, identity_broker::Reason::NoBinding, caller, "api://a");
//! journal.record(&record).await.unwrap();
//! journal.close().await;
//!
//! let bytes = std::fs::read(directory.path().join("journal-00000001.jsonl")).unwrap();
//! let report = verify::verify([("journal", &*bytes)], verify::Options::default());
//! assert!(report.is_whole());
//! assert_eq!(report.token_records, 1);
//! # });
//! ```

mod batch;
pub mod chain;
mod directory;
mod disk;
pub mod encode;
mod key;
mod queue;
mod reader;
mod shared;
mod syncing;
mod tally;
mod turns;
mod upkeep;
pub mod verify;
mod writer;

#[cfg(test)]
mod failure_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod verify_tests;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use jiff::SignedDuration;
use tokio::sync::watch;

pub use directory::{JournalError, file_name, file_number, files};
pub use key::{Checkpoint, KeyError, SigningKey, VerifyingKey};
pub use reader::{Cursor, Item, Reader};
pub use tally::{Count, Place, Tallied, Tally};

use self::{
    directory::Directory,
    queue::{Queue, Refused},
    shared::{Closed, Counts, Held, Shared},
    syncing::Syncing,
    turns::Engine,
    writer::Writer,
};
use super::{AuditError, AuditRecord, AuditSink};
use crate::clock::Clock;

/// How a journal is kept.
#[derive(Clone, Debug)]
pub struct JournalConfig {
    /// Where. Made with mode 0700 when it is not there; one process at a time.
    pub directory: PathBuf,
    /// The node, for the first record of each file.
    pub node: String,
    /// Version of the program, for the record of each start.
    pub version: String,
    /// The size in bytes from which on a file is followed by the next.
    pub max_size: u64,
    /// The age from which on it is.
    pub max_age: SignedDuration,
    /// How many files are kept, the one that is written included; at least 2.
    pub keep: u64,
    /// How often what is written is synced to the disk. Zero: before each answer.
    pub sync_interval: Duration,
    /// How long a disk may take for a write before its records count as not written.
    pub patience: Duration,
    /// Signs checkpoints.
    pub key: Option<Arc<SigningKey>>,
    /// How often there is a checkpoint, whether or not anything else was written.
    pub checkpoint_interval: Duration,
    /// After how many records there is one as well.
    pub checkpoint_records: u64,
    /// Whether a request may write by itself when nobody else does, on a runtime of several threads. `write(2)` to a file
    /// takes a microsecond and wakes nobody; should the disk hold it up, one thread of the runtime waits, and only one: see
    /// `docs/audit.md`. Without, a thread of the journal writes all.
    pub inline: bool,
    #[cfg(test)]
    pub(crate) faults: disk::faults::Faults,
}

impl JournalConfig {
    /// Files of 64 MiB or a day, 8 of them; synced each second; a checkpoint each minute and every 10,000 records.
    pub fn new(directory: impl Into<PathBuf>, node: impl Into<String>) -> Self {
        Self {
            directory: directory.into(),
            node: node.into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            max_size: 64 << 20,
            max_age: SignedDuration::from_hours(24),
            keep: 8,
            sync_interval: Duration::from_secs(1),
            patience: Duration::from_secs(5),
            key: None,
            checkpoint_interval: Duration::from_mins(1),
            checkpoint_records: 10_000,
            inline: true,
            #[cfg(test)]
            faults: disk::faults::Faults::default(),
        }
    }
}

/// How a journal fares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Records of tokens written since the process began.
    pub records: u64,
    /// Records of tokens that could not be written.
    pub lost: u64,
    /// Writes.
    pub writes: u64,
    /// Those of them that a request did by itself, without waking a thread.
    pub led: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Records that wait to be written.
    pub waiting: u64,
    /// Number of the last record.
    pub seq: u64,
    /// Number of the last record that is known to be on the disk.
    pub synced: u64,
    /// Syncs.
    pub syncs: u64,
    /// Whether the last write failed.
    pub failing: bool,
}

/// The journal of this process.
pub struct Journal {
    shared: Arc<Shared>,
    engine: Engine,
    inline: bool,
    patience: Duration,
    directory: PathBuf,
}

impl Journal {
    /// Takes the directory, repairs what the process before left behind, and starts to write. Reads the last file: call it
    /// where that may block. `clock` is read for what the journal says about itself.
    pub fn open(config: JournalConfig, clock: impl Clock) -> Result<Self, JournalError> {
        let directory = Directory::open(&config.directory)?;
        let recovered = directory.recover()?;
        let journal = recovered.journal.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        let shared = Arc::new(Shared {
            tally: Arc::new(Tally::new(&journal, recovered.head)),
            queue: Queue::default(),
            counts: Counts::default(),
            syncing: Syncing::default(),
            written: watch::Sender::new(recovered.head.seq),
            checkpoints: watch::Sender::new(None),
            closed: watch::Sender::new(false),
        });
        let (patience, path, interval) = (config.patience, config.directory.clone(), config.sync_interval);
        let (inline, checkpoints) = (config.inline, config.checkpoint_interval);
        let held = Arc::new(Held { directory, _closed: Closed(Arc::clone(&shared)) });
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned()).stack_size(256 << 10);
        let mut writer = Writer::new(config, Box::new(clock), Arc::clone(&shared), Arc::clone(&held), recovered);
        if !interval.is_zero() {
            let shared = Arc::clone(&shared);
            let sync = move || Syncing::run(&shared, &held, interval);
            // It ends when the writer does.
            drop(thread("audit-sync").spawn(sync).map_err(JournalError::Thread)?);
        }
        writer.begin_journal();
        let engine: Engine = Arc::new(Mutex::new(Some(writer)));
        let run = {
            let (shared, engine) = (Arc::clone(&shared), Arc::clone(&engine));
            move || turns::run(&shared, &engine, checkpoints)
        };
        drop(thread("audit-journal").spawn(run).map_err(JournalError::Thread)?);
        Ok(Self { shared, engine, inline, patience, directory: path })
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// How it fares.
    pub fn stats(&self) -> Stats {
        let counts = &self.shared.counts;
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            records: read(&counts.records),
            lost: read(&counts.lost),
            writes: read(&counts.writes),
            led: read(&counts.led),
            bytes: read(&counts.bytes),
            waiting: self.shared.queue.len() as u64,
            seq: read(&counts.seq),
            synced: read(&counts.synced),
            syncs: read(&counts.syncs),
            failing: read(&counts.failing) > 0,
        }
    }

    /// The number of the last record, on each change: then a [`Reader`] has more.
    pub fn written(&self) -> watch::Receiver<u64> {
        self.shared.written.subscribe()
    }

    /// How many records say the same: for one who counts them, and need not [read](Reader) them then.
    pub fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.shared.tally)
    }

    /// Where the journal is, at each checkpoint: to be kept where whoever can write the files cannot. Without a key as well.
    pub fn checkpoints(&self) -> watch::Receiver<Option<Checkpoint>> {
        self.shared.checkpoints.subscribe()
    }

    /// Completes when nothing is written any more: after [`close`](Self::close), or because a thread of it has panicked. Then each
    /// record is refused, and only a new process helps.
    pub async fn ended(&self) {
        // The sender is here.
        let _ = self.shared.closed.subscribe().wait_for(|closed| *closed).await;
    }

    /// Writes what waits, says that it stops, signs, syncs. Bounded; what comes later is refused.
    pub async fn close(&self) {
        self.shared.queue.close();
        let mut closed = self.shared.closed.subscribe();
        let waited = tokio::time::timeout(self.patience, closed.wait_for(|closed| *closed)).await;
        if waited.is_err() {
            tracing::error!("the audit journal could not be closed in time: its disk does not answer");
        }
    }
}

impl Journal {
    /// Completes when a record of this body (the fields of its line without braces, `"kind":"…"` first) is written. What it is
    /// `about` says only what is counted.
    pub(in crate::audit) fn put<'journal>(
        &'journal self,
        body: &[u8],
        about: Option<&AuditRecord<'_>>,
    ) -> impl Future<Output = Result<(), AuditError>> + Send + use<'journal> {
        let (shared, engine) = (&self.shared, &self.engine);
        let tag = about.and_then(|record| shared.tally.tag(record));
        let may_lead = self.inline && turns::has_company() && !shared.syncing.is_busy();
        let pushed = shared.queue.push(body, tag, self.patience, may_lead);
        let pushed = pushed.map(|(waiting, turn)| (waiting, turns::take(shared, engine, turn)));
        if pushed.as_ref().is_err_and(|refused| *refused == Refused::Full) {
            shared.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
        async move {
            let (waiting, coming) = pushed.map_err(|refused| AuditError(refused.to_string()))?;
            if let Some(coming) = coming {
                coming.come(engine).await;
            }
            waiting.await
        }
    }
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl AuditSink for Journal {
    fn record(&self, record: &AuditRecord<'_>) -> impl Future<Output = Result<(), AuditError>> + Send {
        self.put(&encode::token_body(record), Some(record))
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.shared.queue.close();
    }
}
