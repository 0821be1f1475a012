//! How many records say the same: what was written since somebody last asked, by what it is about.
//!
//! Whoever counts records need not read each of them from the files, where they come by the ten thousands a second: the first
//! about a *subject* (whom, by which binding, for what, with which outcome) says what the others say. The tally is of records
//! that are with the kernel, between two of their numbers, so that it is neither ahead of the files nor behind them. Where it
//! does not know everything about them, it says so ([`Tallied::is_complete`]), and the files do.

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use foldhash::fast::RandomState;
use jiff::Timestamp;
use smallvec::SmallVec;

use super::{chain::Head, queue::lock};
use crate::audit::AuditRecord;

/// The most subjects, and the most bytes of them. With more, the tally begins anew, and what it knew is in the files.
const MOST: usize = 4096;
const MOST_BYTES: usize = 1 << 20;
/// A longer audience is no subject: pods choose them.
const LONGEST: usize = 512;

/// What a record that waits to be written is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    generation: u32,
    subject: u32,
    micros: i64,
}

/// What a line is for the tally.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// The journal's own.
    Note,
    /// Of a request; without a tag only the file says what it is about.
    Record(Option<Tag>),
}

/// Where a line ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The record there.
    pub head: Head,
    /// The file it is in.
    pub file: u64,
    /// Where the next line begins in that file.
    pub offset: u64,
}

/// So many records are about one subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// A number for the subject, the same in one [`generation`](Tallied::generation).
    pub subject: u32,
    /// How many records.
    pub records: u64,
    /// The number of the first of them.
    pub first: u64,
    /// The latest time of one.
    pub last: Timestamp,
}

/// What was written between two looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tallied {
    /// The record before the first of them.
    pub after: u64,
    /// The last of them.
    pub end: Place,
    /// Whether `counts` are all of the records that are not the journal's own.
    pub is_complete: bool,
    /// Subjects of another generation are others.
    pub generation: u32,
    /// By subject.
    pub counts: Vec<Count>,
}

#[derive(Debug)]
struct Entry {
    records: u64,
    first: u64,
    micros: i64,
}

#[derive(Debug, Default)]
struct State {
    generation: u32,
    subjects: HashMap<Box<[u8]>, u32, RandomState>,
    bytes: usize,
    /// By subject.
    entries: Vec<Entry>,
    /// Subjects of which something was written since the last look.
    touched: Vec<u32>,
    after: u64,
    end: Place,
    /// Something was written of which only the file says what it is about.
    unknown: bool,
}

impl State {
    /// Forgets all subjects; tags that are under way mean nothing then.
    fn forget(&mut self) {
        self.generation += 1;
        self.unknown |= !self.touched.is_empty();
        (self.subjects, self.entries, self.touched, self.bytes) = Default::default();
    }

    fn subject(&mut self, name: &[u8]) -> u32 {
        if let Some(subject) = self.subjects.get(name) {
            return *subject;
        }
        if self.subjects.len() >= MOST || self.bytes + name.len() > MOST_BYTES {
            self.forget();
        }
        // At most `MOST`.
        let subject = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        self.bytes += name.len();
        self.subjects.insert(name.into(), subject);
        self.entries.push(Entry { records: 0, first: 0, micros: 0 });
        subject
    }

    fn count(&mut self, seq: u64, tag: Tag) {
        let entry = self.entries.get_mut(tag.subject as usize).filter(|_| tag.generation == self.generation);
        let Some(entry) = entry else {
            self.unknown = true;
            return;
        };
        if entry.records == 0 {
            (entry.first, entry.micros) = (seq, tag.micros);
            self.touched.push(tag.subject);
        }
        entry.records += 1;
        entry.micros = entry.micros.max(tag.micros);
    }
}

/// See the [module](self). For one who asks.
#[derive(Debug)]
pub struct Tally {
    journal: String,
    on: AtomicBool,
    state: Mutex<State>,
}

impl Tally {
    /// Of a journal that goes on after `head`.
    pub(in crate::audit) fn new(journal: &str, head: Head) -> Self {
        let end = Place { head, ..Place::default() };
        let state = State { after: head.seq, end, ..State::default() };
        Self { journal: journal.to_owned(), on: AtomicBool::new(false), state: Mutex::new(state) }
    }

    /// Id of the journal.
    pub fn journal(&self) -> &str {
        &self.journal
    }

    /// From now on it is kept.
    pub fn begin(&self) {
        let mut state = lock(&self.state);
        state.forget();
        (state.after, state.unknown) = (state.end.head.seq, false);
        self.on.store(true, Ordering::Relaxed);
    }

    /// What was written since the last time.
    pub fn take(&self) -> Tallied {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let entries = &mut state.entries;
        let counts = state.touched.drain(..).filter_map(|subject| {
            let entry = entries.get_mut(subject as usize)?;
            let last = Timestamp::from_microsecond(entry.micros).unwrap_or_default();
            Some(Count { subject, records: std::mem::take(&mut entry.records), first: entry.first, last })
        });
        let counts = counts.collect();
        let after = std::mem::replace(&mut state.after, state.end.head.seq);
        let is_complete = !std::mem::take(&mut state.unknown);
        Tallied { after, end: state.end, is_complete, generation: state.generation, counts }
    }

    /// What a record is about, while somebody asks.
    pub(super) fn tag(&self, record: &AuditRecord<'_>) -> Option<Tag> {
        if !self.on.load(Ordering::Relaxed) || record.resource.len() > LONGEST {
            return None;
        }
        let name = name(record);
        let mut state = lock(&self.state);
        // The subject first: it may begin a generation.
        let subject = state.subject(&name);
        Some(Tag { generation: state.generation, subject, micros: record.time.as_microsecond() })
    }

    /// These lines are with the kernel, in this order, the last of them at `end`.
    pub(super) fn add(&self, lines: impl ExactSizeIterator<Item = Line>, end: Place) {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        state.end = end;
        if !self.on.load(Ordering::Relaxed) {
            state.unknown = true;
            return;
        }
        let first = end.head.seq + 1 - lines.len() as u64;
        for (seq, line) in (first..).zip(lines) {
            match line {
                Line::Note => {}
                Line::Record(Some(tag)) => state.count(seq, tag),
                Line::Record(None) => state.unknown = true,
            }
        }
    }
}

/// Everything of a record that tells series of Events apart.
fn name(record: &AuditRecord<'_>) -> SmallVec<[u8; 512]> {
    let mut name = SmallVec::new();
    let mut part = |text: &str| {
        // With its length, so that no two read the same.
        name.extend_from_slice(&text.len().to_le_bytes());
        name.extend_from_slice(text.as_bytes());
    };
    part(record.verdict.as_str());
    part(record.reason.as_str());
    let binding = record.binding.map(|binding| [&binding.namespace, &binding.name, &binding.uid]);
    let pod = record.pod.map(|pod| [&pod.namespace, &pod.name, &pod.uid]);
    for object in [binding, pod] {
        match object {
            Some(object) => object.into_iter().for_each(|text| part(text)),
            None => part(""),
        }
    }
    part(record.resource);
    name
}

#[cfg(test)]
mod tests {
    use identity_core::{lookup::ObjectRef, pod::PodRef};

    use super::*;
    use crate::{Reason, audit::Verdict};

    fn record(resource: &str, second: i64) -> AuditRecord<'_> {
        let time = Timestamp::from_second(second).unwrap();
        AuditRecord::new(time, Verdict::Issued, Reason::Issued, [10, 0, 0, 1].into(), resource)
    }

    fn add(tally: &Tally, lines: Vec<Line>) {
        let seq = lock(&tally.state).end.head.seq + lines.len() as u64;
        tally.add(lines.into_iter(), Place { head: Head { seq, ..Head::default() }, file: 1, offset: seq * 10 });
    }

    fn counts(tallied: &Tallied) -> Vec<(u32, u64, u64, i64)> {
        tallied.counts.iter().map(|c| (c.subject, c.records, c.first, c.last.as_second())).collect()
    }

    #[test]
    fn counts_are_of_what_was_written_between_two_looks() {
        let tally = Tally::new("j", Head { seq: 7, ..Head::default() });
        assert_eq!(tally.tag(&record("a", 5)), None, "nobody asks");
        add(&tally, vec![Line::Record(None)]);
        tally.begin();
        let tag = |resource, second| Line::Record(tally.tag(&record(resource, second)));
        add(&tally, vec![Line::Note, tag("a", 9), tag("b", 5), tag("a", 6)]);
        add(&tally, vec![tag("a", 7)]);
        let tallied = tally.take();
        assert_eq!((tallied.after, tallied.end.head.seq, tallied.end.offset), (8, 13, 130));
        assert_eq!((tallied.is_complete, counts(&tallied)), (true, vec![(0, 3, 10, 9), (1, 1, 11, 5)]));
        add(&tally, vec![tag("b", 4)]);
        let tallied = tally.take();
        assert_eq!((tallied.after, counts(&tallied)), (13, vec![(1, 1, 14, 4)]));
        assert_eq!((tally.take().after, tally.take().counts), (14, vec![]));
        let long = "x".repeat(LONGEST + 1);
        add(&tally, vec![tag("a", 1), tag(&long, 1)]);
        assert!(!tally.take().is_complete, "a long audience is for whoever reads the file");
        assert!(tally.take().is_complete);
    }

    #[test]
    fn what_was_known_before_is_known_no_more_when_there_are_too_many() {
        let tally = Tally::new("j", Head::default());
        tally.begin();
        let names: Vec<_> = (0..=MOST).map(|number| format!("r{number}")).collect();
        let first = tally.tag(&record(&names[0], 1));
        for name in &names[1..MOST] {
            assert!(tally.tag(&record(name, 1)).is_some());
        }
        let generation = tally.take().generation;
        let late = tally.tag(&record(&names[MOST], 1));
        add(&tally, vec![Line::Record(late)]);
        let tallied = tally.take();
        assert_eq!((tallied.generation, tallied.is_complete), (generation + 1, true));
        assert_eq!(counts(&tallied), [(0, 1, 1, 1)]);
        add(&tally, vec![Line::Record(first)]);
        let tallied = tally.take();
        assert_eq!((tallied.is_complete, counts(&tallied)), (false, vec![]), "not counted as another");
        // What was counted and not taken is in the file.
        add(&tally, vec![Line::Record(tally.tag(&record("r0", 1)))]);
        let long = ["x".repeat(LONGEST), "y".repeat(LONGEST)];
        for number in 0..MOST_BYTES / LONGEST {
            tally.tag(&record(&format!("{}{number:08}", &long[0][8..]), 1));
        }
        assert!(!tally.take().is_complete);
    }

    #[test]
    fn all_that_tells_series_apart_is_in_the_name() {
        let pod = |name: &str| PodRef {
            namespace: "n".into(),
            name: name.into(),
            uid: "u".into(),
            service_account: "s".into(),
        };
        let binding = |uid: &str| ObjectRef { namespace: "n".into(), name: "b".into(), uid: uid.into(), generation: 1 };
        let (pods, bindings) = ([pod("p"), pod("q")], [binding("u"), binding("v")]);
        let base = AuditRecord { pod: Some(&pods[0]), binding: Some(&bindings[0]), ..record("a", 1) };
        let others = [
            AuditRecord { pod: Some(&pods[1]), ..base },
            AuditRecord { pod: None, ..base },
            AuditRecord { binding: Some(&bindings[1]), ..base },
            AuditRecord { binding: None, ..base },
            AuditRecord { resource: "b", ..base },
            AuditRecord { verdict: Verdict::Withdrawn, ..base },
            AuditRecord { reason: Reason::Closed, ..base },
        ];
        let mut names: Vec<_> = others.iter().chain([&base]).map(name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), others.len() + 1);
        assert_eq!(name(&base), name(&AuditRecord { detail: "d", suppressed: 3, client_id: Some("c"), ..base }));
    }
}
