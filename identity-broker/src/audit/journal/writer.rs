//! What writes: the request whose turn it is, when there is nothing to it but one write to a file that is well; else the
//! thread, which alone begins files, cuts off what is torn, says what went wrong, signs and tries again.

use std::{
    io,
    os::unix::fs::MetadataExt as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use jiff::{SignedDuration, Timestamp};

use super::{
    JournalConfig,
    chain::Head,
    directory::Recovered,
    disk::JournalFile,
    encode::{Encoder, Note},
    queue::{Outcome, Taken},
    shared::{Held, Shared},
    syncing::{MOVED, sync_failed},
};
use crate::clock::Clock;

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
    file: Arc<JournalFile>,
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

/// What a leader has begun to write.
#[derive(Clone, Copy, Debug)]
struct Begun {
    /// The chain before it.
    before: Head,
    /// So many bytes of the buffer are with the kernel.
    done: usize,
}

/// What whoever has the turn uses.
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
    begun: Option<Begun>,
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
            file: Arc::new(JournalFile::new(resumed.file, &config)),
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
            begun: None,
        }
    }

    /// What the process before left undone is said before the first request comes.
    pub(super) fn begin_journal(&mut self) {
        let _ = self.write(&Taken::default());
    }

    /// For a leader: one write, when there is nothing else to it. `None`: the thread has to do it, or the rest of it.
    pub(super) fn write_at_once(&mut self, taken: &Taken) -> Option<Outcome> {
        let now = self.clock.now();
        if !self.is_well(now, taken) {
            return None;
        }
        let before = self.begin();
        self.encode(taken);
        let open = self.open.as_ref()?;
        let done = open.file.write(&self.out).unwrap_or(0);
        if done < self.out.len() {
            self.begun = Some(Begun { before, done });
            return None;
        }
        self.last_time = Some(now);
        add(&self.shared.counts.led, 1);
        Some(self.finish(before, done, 0, taken, now, Ok(())))
    }

    fn is_well(&self, now: Timestamp, taken: &Taken) -> bool {
        let config = &self.config;
        let well = self.unsaid.is_empty()
            && !self.torn
            && self.begun.is_none()
            && !config.sync_interval.is_zero()
            && !self.shared.syncing.is_busy()
            && self.since_checkpoint + (taken.ends.len() as u64) < config.checkpoint_records
            && self.last_time.is_none_or(|before| before.duration_since(now) <= CLOCK_SLACK);
        well && self.open.as_ref().is_some_and(|open| {
            !is_full(open, config, now)
                && open.file.metadata().is_ok_and(|found| found.nlink() > 0 && found.len() == open.length)
        })
    }

    fn encode(&mut self, taken: &Taken) {
        let mut start = 0;
        for end in &taken.ends {
            self.encoder.token(&taken.bodies[start..*end], &mut self.out);
            self.marks.push(Mark { end: self.out.len(), head: self.encoder.head });
            start = *end;
        }
    }

    /// Whether so many records were written that a checkpoint is due.
    pub(super) const fn is_checkpoint_due(&self) -> bool {
        self.since_checkpoint >= self.config.checkpoint_records
    }

    pub(super) fn tell(&mut self, taken: &Taken, outcome: Outcome) {
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
    pub(super) fn write(&mut self, taken: &Taken) -> Outcome {
        let now = self.clock.now();
        let records = taken.ends.len();
        if let Some(Begun { before, done }) = self.begun.take() {
            let (done, result) = self.put(done);
            return self.finish(before, done, 0, taken, now, result);
        }
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
        self.encode(taken);
        let (done, result) = self.put(0);
        self.finish(before, done, said, taken, now, result)
    }

    /// What became of the buffer, of which so many bytes are with the kernel.
    fn finish(
        &mut self,
        before: Head,
        done: usize,
        said: usize,
        taken: &Taken,
        now: Timestamp,
        result: io::Result<()>,
    ) -> Outcome {
        let records = taken.ends.len();
        let (complete, result) = self.settle(before, done, result);
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

    /// Hands the buffer to the kernel, from `done` on; how much of it is there then.
    fn put(&self, mut done: usize) -> (usize, io::Result<()>) {
        let Some(open) = &self.open else { return (0, Err(io::Error::other("there is no file"))) };
        while done < self.out.len() {
            match open.file.write(&self.out[done..]) {
                Ok(0) => return (done, Err(io::ErrorKind::WriteZero.into())),
                Ok(more) => done += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (done, Err(error)),
            }
        }
        (done, Ok(()))
    }

    /// Hands the buffer to the kernel; what became of it.
    fn put_all(&mut self, before: Head) -> (usize, io::Result<()>) {
        let (done, result) = self.put(0);
        self.settle(before, done, result)
    }

    /// How many of the records are there, whole; the chain ends with the last of them.
    fn settle(&mut self, before: Head, done: usize, mut result: io::Result<()>) -> (usize, io::Result<()>) {
        let Some(open) = &mut self.open else {
            self.encoder.head = before;
            return (0, result);
        };
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
                        self.shared.syncing.wrong(open.number, sync_failed(&error));
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
        let mut wrong = self.shared.syncing.take_wrong().map(|(file, text)| Unsaid::Damage { file, text });
        if let Some(open) = &self.open {
            let found = open.file.metadata()?;
            let text = if found.nlink() == 0 {
                Some("the file was removed while it was written; records after its last copy are gone".to_owned())
            } else if found.len() != open.length {
                Some(format!("somebody else changed the file: it has {} bytes instead of {}", found.len(), open.length))
            } else if self.config.sync_interval.is_zero() && !self.held.directory.has(open.number, &open.file) {
                Some(MOVED.to_owned())
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
            Some(open) => is_full(open, &self.config, now),
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
            match JournalFile::create(&self.held.directory, number, &self.config) {
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
        if let (_, Err(error)) = self.put_all(before) {
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
    pub(super) fn checkpoint(&mut self) {
        let now = self.clock.now();
        if self.config.key.is_none() && self.published == self.encoder.head {
            return;
        }
        self.since_checkpoint = 0;
        let before = self.begin();
        let checkpoint = self.encoder.checkpoint(now, &mut self.out);
        if !self.out.is_empty() {
            self.marks.push(Mark { end: self.out.len(), head: self.encoder.head });
            if let (_, Err(error)) = self.put_all(before) {
                tracing::debug!(%error, "no checkpoint in the audit journal");
                return;
            }
        }
        self.published = checkpoint.head;
        self.shared.checkpoints.send_replace(Some(checkpoint));
    }

    pub(super) fn stop(&mut self) {
        let now = self.clock.now();
        let before = self.begin();
        self.encoder.note(now, &Note::Stop, &mut self.out);
        self.marks.push(Mark { end: self.out.len(), head: self.encoder.head });
        let _ = self.put_all(before);
        self.checkpoint();
        if let Some(open) = &self.open
            && let Err(error) = open.file.sync_data()
        {
            tracing::warn!(%error, "the audit journal cannot be synced");
        }
    }
}

fn is_full(open: &Open, config: &JournalConfig, now: Timestamp) -> bool {
    open.length >= config.max_size || now.duration_since(open.began) > config.max_age
}
