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
    batch::Outcome,
    chain::Head,
    directory::Recovered,
    disk::JournalFile,
    encode::{Encoder, Note},
    queue::{Refused, Taken},
    shared::{Held, Shared},
    syncing::sync_failed,
    tally::{Line, Place},
    upkeep::is_full,
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
pub(super) struct Open {
    pub(super) number: u64,
    pub(super) file: Arc<JournalFile>,
    pub(super) length: u64,
    pub(super) began: Timestamp,
}

/// Where a record ends in what is written together, and the chain then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    end: usize,
    head: Head,
    line: Line,
}

/// What is to be said in the journal as soon as it can be written.
#[derive(Clone, Debug)]
pub(super) enum Unsaid {
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
pub(super) struct Begun {
    /// The chain before it.
    before: Head,
    /// So many bytes of the buffer are with the kernel.
    done: usize,
}

/// What whoever has the turn uses.
pub(super) struct Writer {
    pub(super) config: JournalConfig,
    pub(super) clock: Box<dyn Clock>,
    pub(super) shared: Arc<Shared>,
    pub(super) held: Arc<Held>,
    pub(super) encoder: Encoder,
    pub(super) open: Option<Open>,
    pub(super) last_number: u64,
    /// Something that is no record is at the end of the file.
    pub(super) torn: bool,
    pub(super) last_time: Option<Timestamp>,
    pub(super) unsaid: Vec<Unsaid>,
    pub(super) since_checkpoint: u64,
    pub(super) published: Head,
    pub(super) out: Vec<u8>,
    pub(super) marks: Vec<Mark>,
    pub(super) begun: Option<Begun>,
}

impl Writer {
    pub(super) fn new(
        config: JournalConfig,
        clock: Box<dyn Clock>,
        shared: Arc<Shared>,
        held: Arc<Held>,
        recovered: Recovered,
    ) -> Self {
        let encoder = Encoder::new(shared.tally.journal(), config.node.clone(), recovered.head, config.key.clone());
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
            && taken.refused == 0
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
        for (end, tag) in taken.ends.iter().zip(&taken.tags) {
            self.encoder.token(&taken.bodies[start..*end], &mut self.out);
            self.mark(Line::Record(*tag));
            start = *end;
        }
    }

    /// A record of the journal's own into the buffer.
    pub(super) fn note(&mut self, now: Timestamp, note: &Note<'_>) {
        self.encoder.note(now, note, &mut self.out);
        self.mark(Line::Note);
    }

    /// A line ends here.
    pub(super) fn mark(&mut self, line: Line) {
        self.marks.push(Mark { end: self.out.len(), head: self.encoder.head, line });
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
        if taken.refused > 0 {
            self.lost(taken.refused, now, &Refused::Full);
        }
        let before = self.begin();
        for unsaid in &self.unsaid {
            self.encoder.note(now, &unsaid.note(&self.config), &mut self.out);
            self.marks.push(Mark { end: self.out.len(), head: self.encoder.head, line: Line::Note });
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
        let (complete, result) = self.settle_safely(before, done, result);
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
    pub(super) fn begin(&mut self) -> Head {
        self.out.clear();
        self.marks.clear();
        self.encoder.head
    }

    /// Hands the buffer to the kernel, from `done` on; how much of it is there then.
    pub(super) fn put(&self, mut done: usize) -> (usize, io::Result<()>) {
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
    pub(super) fn put_all(&mut self, before: Head) -> (usize, io::Result<()>) {
        let (done, result) = self.put(0);
        self.settle_safely(before, done, result)
    }

    /// [Settles](Self::settle), and sees to it that the records are on the disk where that is promised.
    fn settle_safely(&mut self, before: Head, done: usize, result: io::Result<()>) -> (usize, io::Result<()>) {
        let complete = self.settle(before, done);
        if let Some(open) = self.open.as_ref().filter(|_| complete > 0) {
            if !self.config.sync_interval.is_zero() {
                self.shared.syncing.dirty(open.number, &open.file, self.encoder.head.seq, false);
            } else if let Err(error) = open.file.sync_data() {
                self.shared.syncing.wrong(open.number, sync_failed(&error));
                return (0, Err(error));
            } else {
                self.shared.counts.synced.store(self.encoder.head.seq, Ordering::Relaxed);
            }
        }
        (complete, result)
    }

    /// How many of the records are there, whole; the chain ends with the last of them.
    pub(super) fn settle(&mut self, before: Head, done: usize) -> usize {
        let Some(open) = &mut self.open else {
            self.encoder.head = before;
            return 0;
        };
        let complete = self.marks.partition_point(|mark| mark.end <= done);
        let last = complete.checked_sub(1).map(|at| self.marks[at]);
        let end = last.map_or(0, |mark| mark.end);
        open.length += end as u64;
        self.encoder.head = last.map_or(before, |mark| mark.head);
        if end < done {
            // Half a record: nobody may take it for one.
            self.torn = open.file.set_len(open.length).is_err();
        }
        let (counts, head) = (&self.shared.counts, self.encoder.head);
        add(&counts.writes, 1);
        add(&counts.bytes, end);
        counts.seq.store(head.seq, Ordering::Relaxed);
        if complete > 0 {
            let place = Place { head, file: open.number, offset: open.length };
            self.shared.tally.add(self.marks[..complete].iter().map(|mark| mark.line), place);
            self.shared.written.send_replace(head.seq);
        }
        complete
    }

    fn failed(&mut self, records: usize, written: usize, now: Timestamp, error: &io::Error) -> Outcome {
        let lost = (records - written) as u64;
        add(&self.shared.counts.lost, records - written);
        if self.shared.counts.failing.swap(1, Ordering::Relaxed) == 0 {
            tracing::error!(%error, directory = %self.config.directory.display(), "the audit journal cannot be written");
        }
        self.lost(lost, now, error);
        Outcome { written, error: Some(format!("journal: {error}").into()) }
    }

    /// So many records were not written, which is to be said.
    fn lost(&mut self, lost: u64, now: Timestamp, why: &dyn std::fmt::Display) {
        let earlier = self.unsaid.iter_mut().find_map(|unsaid| match unsaid {
            Unsaid::Lost { records, .. } => Some(records),
            _ => None,
        });
        match earlier {
            Some(records) => *records += lost,
            None if lost > 0 => self.unsaid.push(Unsaid::Lost { records: lost, since: now, error: why.to_string() }),
            None => {}
        }
    }
}
