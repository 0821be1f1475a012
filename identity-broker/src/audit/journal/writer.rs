//! The thread that writes. No request waits for a lock that is held while a disk works.

use std::{
    fs::File,
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};

use super::{
    JournalConfig,
    chain::Head,
    directory::Recovered,
    encode::{Encoder, Note},
    queue::{Outcome, Taken},
    shared::{Held, Shared},
};
use crate::clock::Clock;

/// After a write that many shared, records gather for so long before the next: a wake-up and a write for each would cost
/// more than the records. A request that comes alone is written at once.
const GATHER: Duration = Duration::from_micros(200);

/// How far the clock may go back without a word: threads read it before they queue, so that records come a little out of
/// order.
const CLOCK_SLACK: SignedDuration = SignedDuration::from_secs(1);

fn add(counter: &AtomicU64, number: usize) {
    counter.fetch_add(number as u64, Ordering::Relaxed);
}

/// The file that is written.
#[derive(Debug)]
struct Open {
    number: u64,
    file: Arc<File>,
    length: u64,
    began: Timestamp,
}

/// Where a record ends in what is written together, and the chain then.
#[derive(Clone, Copy, Debug)]
struct Mark {
    end: usize,
    head: Head,
}

/// What is to be said in the journal as soon as it can be written.
#[derive(Clone, Debug)]
enum Unsaid {
    Repair { file: u64, bytes: u64, torn: Vec<u8> },
    Damage { file: u64, text: String },
    Start,
    Clock { before: Timestamp },
    Lost { records: u64, since: Timestamp, error: String },
    Late { from: u64, to: u64 },
}

impl Unsaid {
    fn note<'a>(&'a self, config: &'a JournalConfig) -> Note<'a> {
        match self {
            Self::Repair { file, bytes, torn } => Note::Repair { file: *file, bytes: *bytes, torn },
            Self::Damage { file, text } => Note::Damage { file: *file, text },
            Self::Start => Note::Start { version: &config.version },
            Self::Clock { before } => Note::Clock { before: *before },
            Self::Lost { records, since, error } => Note::Lost { records: *records, since: *since, error },
            Self::Late { from, to } => Note::Late { from: *from, to: *to },
        }
    }
}

/// What the thread owns.
pub(super) struct Writer {
    config: JournalConfig,
    clock: Box<dyn Clock>,
    shared: Arc<Shared>,
    held: Arc<Held>,
    encoder: Encoder,
    open: Option<Open>,
    last_number: u64,
    /// Something that is no record is at the end of the file.
    torn: bool,
    last_time: Option<Timestamp>,
    unsaid: Vec<Unsaid>,
    since_checkpoint: u64,
    published: Head,
    out: Vec<u8>,
    marks: Vec<Mark>,
}

impl Writer {
    pub(super) fn new(
        config: JournalConfig,
        clock: Box<dyn Clock>,
        shared: Arc<Shared>,
        held: Arc<Held>,
        recovered: Recovered,
    ) -> Self {
        let journal = recovered.journal.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        let encoder = Encoder::new(journal, config.node.clone(), recovered.head, config.key.clone());
        let mut unsaid = Vec::new();
        if let Some((bytes, torn)) = recovered.torn {
            unsaid.push(Unsaid::Repair { file: recovered.number, bytes, torn });
        }
        if let Some(text) = recovered.damage {
            unsaid.push(Unsaid::Damage { file: recovered.number, text });
        }
        unsaid.push(Unsaid::Start);
        let open = recovered.resumed.map(|resumed| Open {
            number: recovered.number,
            file: Arc::new(resumed.file),
            length: resumed.length,
            began: resumed.began,
        });
        shared.counts.seq.store(recovered.head.seq, Ordering::Relaxed);
        Self {
            config,
            clock,
            shared,
            held,
            published: encoder.head,
            encoder,
            open,
            last_number: recovered.number,
            torn: false,
            last_time: recovered.last_time,
            unsaid,
            since_checkpoint: 0,
            out: Vec::with_capacity(1 << 14),
            marks: Vec::new(),
        }
    }

    /// The thread.
    #[expect(clippy::disallowed_methods, reason = "the driver's own timer: what is measured here goes into no record")]
    pub(super) fn run(mut self) {
        let mut taken = Taken::default();
        // What the process before left undone is said before the first request comes.
        let _ = self.write(&taken);
        let mut checkpoint_at = Instant::now() + self.config.checkpoint_interval;
        let mut took = Instant::now();
        loop {
            if taken.ends.len() > 1
                && let Some(rest) = GATHER.checked_sub(took.elapsed())
            {
                std::thread::sleep(rest);
            }
            self.shared.queue.take(&mut taken, checkpoint_at.saturating_duration_since(Instant::now()));
            took = Instant::now();
            if !taken.ends.is_empty() {
                let outcome = self.write(&taken);
                self.tell(&taken, outcome);
            }
            if took >= checkpoint_at || self.since_checkpoint >= self.config.checkpoint_records {
                checkpoint_at = took + self.config.checkpoint_interval;
                self.checkpoint();
            }
            if taken.closing && taken.ends.is_empty() {
                break;
            }
        }
        self.stop();
    }

    fn tell(&mut self, taken: &Taken, outcome: Outcome) {
        let (written, last) = (outcome.written as u64, self.encoder.head.seq);
        if taken.batch.finish(outcome) || written == 0 {
            return;
        }
        let from = last + 1 - written;
        match self.unsaid.last_mut() {
            Some(Unsaid::Late { to, .. }) if *to + 2 >= from => *to = last,
            _ => self.unsaid.push(Unsaid::Late { from, to: last }),
        }
    }

    /// Writes what there is to be said, then the records.
    fn write(&mut self, taken: &Taken) -> Outcome {
        let now = self.clock.now();
        let records = taken.ends.len();
        if let Err(error) = self.prepare(now) {
            return self.failed(records, 0, now, &error);
        }
        if let Some(before) = self.last_time.replace(now)
            && before.duration_since(now) > CLOCK_SLACK
            && !self.unsaid.iter().any(|unsaid| matches!(unsaid, Unsaid::Clock { .. }))
        {
            self.unsaid.push(Unsaid::Clock { before });
        }
        let before = self.begin();
        for unsaid in &self.unsaid {
            self.encoder.note(now, &unsaid.note(&self.config), &mut self.out);
            self.marks.push(Mark { end: self.out.len(), head: self.encoder.head });
        }
        let said = self.unsaid.len();
        let mut start = 0;
        for end in &taken.ends {
            self.encoder.token(&taken.bodies[start..*end], &mut self.out);
            self.marks.push(Mark { end: self.out.len(), head: self.encoder.head });
            start = *end;
        }
        let (complete, result) = self.put(before);
        self.unsaid.drain(..said.min(complete));
        let written = complete.saturating_sub(said);
        self.since_checkpoint += written as u64;
        add(&self.shared.counts.records, written);
        match result {
            Ok(()) => {
                if self.shared.counts.failing.swap(0, Ordering::Relaxed) > 0 {
                    tracing::info!("the audit journal is written again");
                }
                Outcome { written, error: None }
            }
            Err(error) => self.failed(records, written, now, &error),
        }
    }

    /// Nothing in the buffers; where the chain is.
    fn begin(&mut self) -> Head {
        self.out.clear();
        self.marks.clear();
        self.encoder.head
    }

    /// Hands the buffer to the kernel. How many of the records are there then, whole; the chain ends with the last of them.
    fn put(&mut self, before: Head) -> (usize, io::Result<()>) {
        let Some(open) = &mut self.open else {
            self.encoder.head = before;
            return (0, Err(io::Error::other("there is no file")));
        };
        let mut done = 0;
        let mut result = Ok(());
        while done < self.out.len() && result.is_ok() {
            match (&*open.file).write(&self.out[done..]) {
                Ok(0) => result = Err(io::ErrorKind::WriteZero.into()),
                Ok(more) => done += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => result = Err(error),
            }
        }
        let mut complete = self.marks.partition_point(|mark| mark.end <= done);
        let last = complete.checked_sub(1).map(|at| self.marks[at]);
        let end = last.map_or(0, |mark| mark.end);
        open.length += end as u64;
        self.encoder.head = last.map_or(before, |mark| mark.head);
        if end < done {
            // Half a record: nobody may take it for one.
            self.torn = open.file.set_len(open.length).is_err();
        }
        let counts = &self.shared.counts;
        add(&counts.writes, 1);
        add(&counts.bytes, end);
        counts.seq.store(self.encoder.head.seq, Ordering::Relaxed);
        if complete > 0 {
            if self.config.sync_interval.is_zero() {
                match open.file.sync_data() {
                    Ok(()) => counts.synced.store(self.encoder.head.seq, Ordering::Relaxed),
                    Err(error) => {
                        self.shared.syncing.fail(open.number, &error);
                        (complete, result) = (0, Err(error));
                    }
                }
            } else {
                self.shared.syncing.dirty(open.number, &open.file, self.encoder.head.seq, false);
            }
            self.shared.written.send_replace(self.encoder.head.seq);
        }
        (complete, result)
    }

    fn failed(&mut self, records: usize, written: usize, now: Timestamp, error: &io::Error) -> Outcome {
        let lost = (records - written) as u64;
        add(&self.shared.counts.lost, records - written);
        if self.shared.counts.failing.swap(1, Ordering::Relaxed) == 0 {
            tracing::error!(%error, directory = %self.config.directory.display(), "the audit journal cannot be written");
        }
        let earlier = self.unsaid.iter_mut().find_map(|unsaid| match unsaid {
            Unsaid::Lost { records, .. } => Some(records),
            _ => None,
        });
        match earlier {
            Some(records) => *records += lost,
            None if lost > 0 => self.unsaid.push(Unsaid::Lost { records: lost, since: now, error: error.to_string() }),
            None => {}
        }
        Outcome { written, error: Some(format!("journal: {error}").into()) }
    }

    /// Sees to it that there is a file to write to.
    fn prepare(&mut self, now: Timestamp) -> io::Result<()> {
        if self.torn
            && let Some(open) = &self.open
        {
            open.file.set_len(open.length)?;
            self.torn = false;
        }
        let mut wrong = self.shared.syncing.take_failure().map(|(file, error)| {
            let text = format!("sync: {error}; what was written lately may be missing after a power failure");
            Unsaid::Damage { file, text }
        });
        if let Some(open) = &self.open {
            let found = open.file.metadata()?;
            let text = if found.nlink() == 0 {
                Some("the file was removed while it was written; records after its last copy are gone".to_owned())
            } else if found.len() != open.length {
                Some(format!("somebody else changed the file: it has {} bytes instead of {}", found.len(), open.length))
            } else {
                None
            };
            wrong = wrong.or(text.map(|text| Unsaid::Damage { file: open.number, text }));
        }
        if let Some(damage) = wrong {
            self.unsaid.push(damage);
            self.open = None;
        }
        let full = match &self.open {
            None => true,
            Some(open) => open.length >= self.config.max_size || now.duration_since(open.began) > self.config.max_age,
        };
        if !full {
            return Ok(());
        }
        let Err(error) = self.rotate(now) else { return Ok(()) };
        match &self.open {
            // Better a file that is too large than no token.
            Some(open) if open.length < self.config.max_size.saturating_mul(2) => Ok(()),
            _ => Err(error),
        }
    }

    fn rotate(&mut self, now: Timestamp) -> io::Result<()> {
        if self.open.is_some() && self.config.key.is_some() && self.since_checkpoint > 0 {
            self.checkpoint();
        }
        let mut number = self.last_number + 1;
        let file = loop {
            match self.held.directory.create(number) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                file => break Arc::new(file?),
            }
        };
        let kept = self.held.directory.files()?;
        let keep = usize::try_from(self.config.keep.max(2)).unwrap_or(usize::MAX);
        let oldest = kept.get(kept.len().saturating_sub(keep)).copied().unwrap_or(number);
        let before = self.begin();
        self.encoder.note(now, &Note::File { file: number, oldest }, &mut self.out);
        self.marks.push(Mark { end: self.out.len(), head: self.encoder.head });
        let former = self.open.replace(Open { number, file, length: 0, began: now });
        if let (_, Err(error)) = self.put(before) {
            self.open = former;
            self.torn = false;
            let _ = self.held.directory.remove(number);
            return Err(error);
        }
        self.last_number = number;
        self.shared.counts.file.store(number, Ordering::Relaxed);
        if let Some(open) = &self.open {
            self.shared.syncing.dirty(number, &open.file, self.encoder.head.seq, true);
        }
        for old in kept.into_iter().filter(|old| *old < oldest) {
            if let Err(error) = self.held.directory.remove(old) {
                tracing::warn!(%error, file = old, "an old file of the audit journal cannot be removed");
            }
        }
        Ok(())
    }

    /// Signs what there is, if there is a key, and says where the journal is.
    fn checkpoint(&mut self) {
        let now = self.clock.now();
        if self.config.key.is_none() && self.published == self.encoder.head {
            return;
        }
        self.since_checkpoint = 0;
        let before = self.begin();
        let checkpoint = self.encoder.checkpoint(now, &mut self.out);
        if !self.out.is_empty() {
            self.marks.push(Mark { end: self.out.len(), head: self.encoder.head });
            if let (_, Err(error)) = self.put(before) {
                tracing::debug!(%error, "no checkpoint in the audit journal");
                return;
            }
        }
        self.published = checkpoint.head;
        self.shared.checkpoints.send_replace(Some(checkpoint));
    }

    fn stop(&mut self) {
        let now = self.clock.now();
        let before = self.begin();
        self.encoder.note(now, &Note::Stop, &mut self.out);
        self.marks.push(Mark { end: self.out.len(), head: self.encoder.head });
        let _ = self.put(before);
        self.checkpoint();
        if let Some(open) = &self.open
            && let Err(error) = open.file.sync_data()
        {
            tracing::warn!(%error, "the audit journal cannot be synced");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Also when the thread has panicked: nobody waits for it for nothing.
        self.shared.queue.close();
        let mut rest = Taken::default();
        self.shared.queue.take(&mut rest, Duration::ZERO);
        rest.batch.finish(Outcome { written: 0, error: None });
        self.shared.syncing.stop();
    }
}
